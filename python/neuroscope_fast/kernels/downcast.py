# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: PLR0917 - a kernel's parameters have their places
"""The Triton kernel `gather_cast`: any strided record, cast on the way, as one contiguous piece of it.

Every cast gives the bits of the engine's CPU casts (csrc/core/cast.hpp) and keeps the sign of a NaN. They are integer
arithmetic on the bits of a float32, with two exact float32 operations where the exponent range changes: no rounding
mode, no flushing and no missing float8 conversion of an older device can change a result, and Triton's interpreter
computes the same. Only float32 to float8 on NVIDIA GPUs from compute capability 8.9 up uses the device's own
conversion (NATIVE): there the arithmetic would take longer than the memory.

All functions here are compiled by Triton: annotations other than `tl.constexpr` would mean something to it.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def _widen(code, MANTISSA: tl.constexpr, EXPONENT: tl.constexpr, HAS_INFINITY: tl.constexpr):
    """float32 bits (int32) of a small float with EXPONENT and MANTISSA bits; exact. `code`: int32."""
    magnitude: tl.constexpr = (1 << (EXPONENT + MANTISSA)) - 1
    bias: tl.constexpr = (1 << (EXPONENT - 1)) - 1
    power: tl.constexpr = (127 + 127 - bias) << 23
    moved = (code & magnitude) << (23 - MANTISSA)
    # As a float32, the moved bits are the value times 2^(bias - 127), subnormal or not: one exact product mends that.
    scale = tl.full(code.shape, power, tl.int32).to(tl.float32, bitcast=True)
    bits = (moved.to(tl.float32, bitcast=True) * scale).to(tl.int32, bitcast=True)
    if HAS_INFINITY:
        top: tl.constexpr = ((1 << EXPONENT) - 1) << 23
        bits = tl.where(moved >= top, moved | 0x7F800000, bits)
        bits = tl.where(moved > top, bits | 0x00400000, bits)
    else:
        bits = tl.where(moved == magnitude << (23 - MANTISSA), 0x7FF00000, bits)
    return bits | ((code & (magnitude + 1)) << (31 - EXPONENT - MANTISSA))


@triton.jit
def _narrow(bits, MANTISSA: tl.constexpr, EXPONENT: tl.constexpr, OVERFLOW: tl.constexpr):
    """The code (int32) of float32 bits (int32) in a float with EXPONENT (below 8) and MANTISSA bits, half to even.

    OVERFLOW is the code of magnitudes beyond the largest finite one.
    """
    shift: tl.constexpr = 23 - MANTISSA
    bias: tl.constexpr = (1 << (EXPONENT - 1)) - 1
    smallest_normal: tl.constexpr = (127 + 1 - bias) << 23
    magic_bits: tl.constexpr = (127 + 24 - bias - MANTISSA) << 23
    sign: tl.constexpr = 1 << (EXPONENT + MANTISSA)
    magnitude = bits & 0x7FFFFFFF
    normal = (magnitude - ((127 - bias) << 23) + ((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1)) >> shift
    # The last bit of this constant is one unit of a subnormal result: the addition rounds to it, half to even.
    magic = tl.full(bits.shape, magic_bits, tl.int32).to(tl.float32, bitcast=True)
    subnormal = (magnitude.to(tl.float32, bitcast=True) + magic).to(tl.int32, bitcast=True) - magic_bits
    code = tl.minimum(tl.where(magnitude < smallest_normal, subnormal, normal), OVERFLOW)
    if MANTISSA > 3:
        nan = ((magnitude >> shift) & (sign - 1)) | (((2 << EXPONENT) - 1) << (MANTISSA - 1))
        code = tl.where(magnitude > 0x7F800000, nan, code)
    else:
        code = tl.where(magnitude > 0x7F800000, sign - 1, code)
    return code | ((bits >> (31 - EXPONENT - MANTISSA)) & sign)


@triton.jit
def _to_bfloat16(bits):
    magnitude = bits & 0x7FFFFFFF
    rounded = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
    code = tl.where(magnitude > 0x7F800000, (magnitude >> 16) | 0x40, rounded)
    return code | ((bits >> 16) & 0x8000)


@triton.jit
def _native_float8(bits, FORMAT: tl.constexpr):
    """float8 codes (int8) from float32 bits by the device's conversion, which saturates; four elements at a time.

    The conversion drops the sign of a NaN; setting the signs of all four again costs three byte moves and one AND-OR.
    """
    return tl.inline_asm_elementwise(
        "{\n"
        ".reg .b16 low, high;\n"
        ".reg .b32 codes, signs, more;\n"
        "cvt.rn.satfinite." + FORMAT + "x2.f32 low, $2, $1;\n"
        "cvt.rn.satfinite." + FORMAT + "x2.f32 high, $4, $3;\n"
        "mov.b32 codes, {low, high};\n"
        "prmt.b32 signs, $1, $2, 0x0073;\n"
        "prmt.b32 more, $3, $4, 0x0073;\n"
        "prmt.b32 signs, signs, more, 0x5410;\n"
        "lop3.b32 $0, signs, 0x80808080, codes, 0xEA;\n"
        "}",
        "=r,r,r,r,r",
        [bits.to(tl.float32, bitcast=True)],
        dtype=tl.int8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _to_float8(
    bits,
    TARGET: tl.constexpr,
    E4M3_SATURATES: tl.constexpr,
    E5M2_SATURATES: tl.constexpr,
    NATIVE: tl.constexpr,
):
    if TARGET == "float8_e4m3fn":
        if NATIVE:
            code = _native_float8(bits, "e4m3")
            if not E4M3_SATURATES:  # beyond 464, the tie between 448 and what would be 480: NaN
                code = tl.where((bits & 0x7FFFFFFF) > 0x43E80000, code | 0x7F, code)
        else:
            code = _narrow(bits, 3, 4, 0x7E if E4M3_SATURATES else 0x7F).to(tl.int8)
    else:
        tl.static_assert(TARGET == "float8_e5m2")
        if NATIVE:
            code = _native_float8(bits, "e5m2")
            if not E5M2_SATURATES:  # from 61440, the tie between 57344 and what would be 65536: infinity
                beyond = ((bits & 0x7FFFFFFF) >= 0x47700000) & ((bits & 0x7FFFFFFF) <= 0x7F800000)
                code = tl.where(beyond, (code & -128) | 0x7C, code)
        else:
            code = _narrow(bits, 2, 5, 0x7B if E5M2_SATURATES else 0x7C).to(tl.int8)
    return code


@triton.jit
def float32_bits(code, SOURCE: tl.constexpr):
    """The bits (int32) as float32 of elements given as integers of their size; float64 is rounded half to even.

    SOURCE is float64, float32, bfloat16, float16, float8_e4m3fn or float8_e5m2. The shape is that of `code`.
    """
    if SOURCE == "float64":
        bits = code.to(tl.float64, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)
        magnitude = code & 0x7FFFFFFFFFFFFFFF
        nan = ((magnitude >> 29) & 0x7FFFFFFF) | ((code >> 32) & 0x80000000) | 0x7FC00000
        bits = tl.where(magnitude > 0x7FF0000000000000, nan.to(tl.int32), bits)
    elif SOURCE == "float32":
        bits = code
    elif SOURCE == "bfloat16":
        bits = code.to(tl.int32) << 16
    elif SOURCE == "float16":
        bits = _widen(code.to(tl.int32), 10, 5, True)
    elif SOURCE == "float8_e5m2":
        bits = _widen(code.to(tl.int32), 2, 5, True)
    else:
        tl.static_assert(SOURCE == "float8_e4m3fn")
        bits = _widen(code.to(tl.int32), 3, 4, False)
    return bits


@triton.jit
def _cast(
    code,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    E4M3_SATURATES: tl.constexpr,
    E5M2_SATURATES: tl.constexpr,
    NATIVE: tl.constexpr,
):
    if SOURCE == TARGET:
        result = code
    elif TARGET == "float32":
        result = float32_bits(code, SOURCE)
    elif TARGET == "bfloat16":
        result = _to_bfloat16(float32_bits(code, SOURCE)).to(tl.int16)
    elif TARGET == "float16":
        result = _narrow(float32_bits(code, SOURCE), 10, 5, 0x7C00).to(tl.int16)
    else:
        result = _to_float8(float32_bits(code, SOURCE), TARGET, E4M3_SATURATES, E5M2_SATURATES, NATIVE)
    return result


@triton.jit
def _move(
    source,
    target,
    inside,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    E4M3_SATURATES: tl.constexpr,
    E5M2_SATURATES: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """One tile: `source` and `target` are pointers, `inside` a mask or None, all of one shape."""
    code = tl.load(source, mask=inside)
    tl.store(target, _cast(code, SOURCE, TARGET, E4M3_SATURATES, E5M2_SATURATES, NATIVE), mask=inside)


@triton.jit
def _dimension_offset(index, outermost, size, stride, table, valid, LOOKED_UP: tl.constexpr, PER_ROW: tl.constexpr):
    if LOOKED_UP:
        entry = index + outermost * size if PER_ROW else index
        offset = tl.load(table + entry, mask=valid, other=0)
    else:
        offset = index * stride
    return offset


@triton.jit
def row_offset(
    row,
    valid,
    table,
    size1,
    stride1,
    size2,
    stride2,
    size3,
    stride3,
    TABLE: tl.constexpr,
    PER_ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Where each row starts, in elements from the source's address: int64, of the shape of `row` (int64).

    `valid` says of which rows the table, which ends somewhere, may be read.
    """
    rest = row // size1
    index1 = row - rest * size1
    index3 = rest // size2
    index2 = rest - index3 * size2
    offset = _dimension_offset(index1, index3, size1, stride1, table, valid, TABLE == 1, PER_ROW)
    offset += _dimension_offset(index2, index3, size2, stride2, table, valid, TABLE == 2, PER_ROW)
    offset += _dimension_offset(index3, index3, size3, stride3, table, valid, TABLE == 3, False)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
    return offset


@triton.jit
def gather_cast(
    source,
    target,
    table,
    begin,
    count,
    length,
    stride,
    size1,
    stride1,
    size2,
    stride2,
    size3,
    stride3,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TABLE: tl.constexpr,
    PER_ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    E4M3_SATURATES: tl.constexpr,
    E5M2_SATURATES: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Writes the logical elements [begin, begin + count) of a record, cast to TARGET, to target[0 .. count).

    `source` and `target` are pointers to integers of the elements' sizes, `table` to int64, all scalars are int64;
    begin >= 0, count >= 1, length >= 1, sizes >= 1. The record is rows x `length` elements in C order; the elements
    of a row stand `stride` elements apart (0 and negative too). Row r starts o1 + o2 + o3 elements behind `source`,
    where i1 = r % size1, i2 = r // size1 % size2, i3 = r // size1 // size2, and o_k = i_k * stride_k; for k == TABLE
    (1, 2 or 3; 0 is none) o_k = table[i_k], and with PER_ROW (TABLE 1 or 2) o_k = table[i_k + i3 * size_k].

    ROWS == 1 says that the record is a single row: sizes, strides 1 to 3 and the table are not used. The grid is
        ROWS == 1:  cdiv(count, COLUMNS)
        else:       rows = (begin + count - 1) // length - begin // length + 1
                    cdiv(rows, ROWS) * cdiv(count if rows == 1 else length, COLUMNS)
    in one dimension: a piece of a single long row costs no programs for what stands before or behind it.

    ALIGNED promises that stride == 1, that source and target are multiples of 16 bytes and begin of 16 elements; and,
    for ROWS > 1, that count, length, strides 1 to 3 and the table's entries are multiples of 16 elements too. Accesses
    are then of 16 bytes (in the last tile of a single row: of one element). The two SATURATES are CastRules of
    csrc/core/cast.hpp; NATIVE uses the float8 conversions of NVIDIA GPUs from compute capability 8.9 up.
    """
    program = tl.program_id(0).to(tl.int64)
    if ROWS == 1:
        first = program * COLUMNS
        element = first + tl.arange(0, COLUMNS)
        from_offset = begin + element
        if not ALIGNED:
            from_offset = from_offset * stride
        # A tile without a mask: the compiler cannot know that the mask of an odd count is the same for 16 elements.
        if first + COLUMNS <= count:
            _move(source + from_offset, target + element, None, SOURCE, TARGET, E4M3_SATURATES, E5M2_SATURATES, NATIVE)
        else:
            inside = element < count
            _move(
                source + from_offset, target + element, inside, SOURCE, TARGET, E4M3_SATURATES, E5M2_SATURATES, NATIVE
            )
    else:
        first_row = begin // length
        end_row = (begin + count - 1) // length + 1
        single = end_row - first_row == 1
        first_column = tl.where(single, begin - first_row * length, 0)
        if ALIGNED:
            first_column = tl.multiple_of(first_column, 16)
        blocks = tl.cdiv(length, COLUMNS)  # for a single row the grid is smaller, and program // blocks is 0
        tile_row = first_row + program // blocks * ROWS
        tile_column = first_column + program % blocks * COLUMNS
        row = tile_row + tl.arange(0, ROWS)
        column = tile_column + tl.arange(0, COLUMNS)
        valid = row < end_row
        start = row_offset(row, valid, table, size1, stride1, size2, stride2, size3, stride3, TABLE, PER_ROW, ALIGNED)
        from_offset = start[:, None] + (column if ALIGNED else column * stride)[None, :]
        to_offset = (row * length - begin)[:, None] + column[None, :]
        inside = valid[:, None] & (column < length)[None, :] & (to_offset >= 0) & (to_offset < count)
        _move(source + from_offset, target + to_offset, inside, SOURCE, TARGET, E4M3_SATURATES, E5M2_SATURATES, NATIVE)
