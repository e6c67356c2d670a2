# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: PLR0917 - a kernel's parameters have their places
"""The Triton kernel `quantize`: rows of any strided record as int8 codes with one float32 scale a row.

The bits are those of row_scale and quantize_row in csrc/core/cast.hpp. As in `downcast`, annotations other than
`tl.constexpr` would mean something to Triton.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from .downcast import float32_bits, row_offset


@triton.jit
def _codes(bits, scale):
    """int8 codes of elements given as float32 bits; `scale` is one float32, finite or NaN."""
    quotient = tl.div_rn(bits.to(tl.float32, bitcast=True), tl.full(bits.shape, 0.0, tl.float32) + scale)
    clamped = tl.minimum(tl.maximum(quotient, -127.0), 127.0)
    # Adding 1.5 * 2^23 leaves no bits for a fraction: it rounds half to even, and the low bits are the integer.
    code = (clamped + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    # A scale that is NaN is not above 0. No element is NaN then, as it would have made the scale NaN.
    return tl.where(scale > 0.0, code, 0).to(tl.int8)


@triton.jit
def quantize(
    source,
    codes,
    scales,
    table,
    first_row,
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
    COLUMNS: tl.constexpr,
    TABLE: tl.constexpr,
    PER_ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    WRITE: tl.constexpr,
):
    """Quantises rows of `length` elements: one program a row, row = first_row + program.

    The record, its sizes, strides and table are those of `gather_cast`; length 0 is allowed (the scale is 0). A
    row's scale is max|x| / 127 in float32, NaN if an element is not finite as float32. WRITE & 1 writes rint(x /
    scale), half to even, clamped to -127 .. 127, and 0 where the scale is 0 or NaN, for those of the row's logical
    elements e that lie in [begin, begin + count), to codes[e - begin]. WRITE & 2 writes the scale to
    scales[row - first_row]. `source` points to integers of the elements' size, `codes` to int8, `scales` to float32
    (null where not written). The grid is the number of rows, 1 or more.

    ALIGNED promises stride == 1; source and codes multiples of 16 bytes; begin, count, length, strides 1 to 3 and the
    table's entries multiples of 16 elements.
    """
    row = first_row + tl.program_id(0)
    start = row_offset(row, row >= 0, table, size1, stride1, size2, stride2, size3, stride3, TABLE, PER_ROW, ALIGNED)
    lanes = tl.arange(0, COLUMNS).to(tl.int64)
    largest = tl.zeros([COLUMNS], tl.int32)
    # while, as Triton's interpreter cannot take the bounds of a range from arguments under NumPy 2.4.
    block = tl.full([], 0, tl.int64)
    while block * COLUMNS < length:
        column = block * COLUMNS + lanes
        offset = start + (column if ALIGNED else column * stride)
        code = tl.load(source + offset, mask=column < length, other=0)
        largest = tl.maximum(largest, float32_bits(code, SOURCE) & 0x7FFFFFFF)
        block += 1
    bits = tl.max(largest, axis=0)
    scale = tl.div_rn(bits.to(tl.float32, bitcast=True), 127.0)
    scale = tl.where(bits >= 0x7F800000, float("nan"), scale)
    if WRITE & 2:
        tl.store(scales + (row - first_row), scale)
    if WRITE & 1:
        from_column = tl.maximum(begin - row * length, 0)
        end_column = tl.minimum(begin + count - row * length, length)
        target = row * length - begin
        block = from_column // COLUMNS
        while block * COLUMNS < end_column:
            column = block * COLUMNS + lanes
            offset = start + (column if ALIGNED else column * stride)
            inside = (column >= from_column) & (column < end_column)
            # The second reading finds the row in a cache.
            code = tl.load(source + offset, mask=inside, other=0)
            tl.store(codes + (target + column), _codes(float32_bits(code, SOURCE), scale), mask=inside)
            block += 1
