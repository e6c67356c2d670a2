# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: PLR0917, PLR0124 - a kernel's parameters have their places; in Triton a NaN is what differs from itself
"""The Triton kernels of the reduction over heads, and `head_reduce`, which launches them on a torch tensor.

`fold_heads` makes mean, sum, max and l2_norm, `row_entropies` the entropy of attention rows; `select`, the chosen heads
as they are, is `gather_cast` with the heads in its table. csrc/core/head_reduce.hpp holds the definition, and
`reference.head_reduce` is the twin in torch. The results are those of the twins to the bit (entropy: within 2e-6),
which takes compiling with enable_fp_fusion=False: products are rounded before they are added.

As in `downcast`, annotations of kernels other than `tl.constexpr` would mean something to Triton.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from .downcast import _cast, float32_bits, gather_cast, row_offset
from .reference import chosen_heads

TILE = 1024  # elements of one program: 16 bytes of bfloat16 a thread and head, with four warps


@triton.jit
def _bits(result):
    """float32 as int32, every NaN the one that the twins give, too."""
    return tl.where(result != result, 0x7FC00000, result.to(tl.int32, bitcast=True))


@triton.jit
def fold_heads(
    source,
    target,
    table,
    begin,
    count,
    heads,
    head_stride,
    length,
    stride,
    size1,
    stride1,
    stride2,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    REDUCTION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TABLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    E4M3_SATURATES: tl.constexpr,
    E5M2_SATURATES: tl.constexpr,
):
    """Writes the results [begin, begin + count) of a reduction over heads, cast to TARGET, to target[0 .. count).

    `source` and `target` are pointers to integers of the elements' sizes, `table` to int64, all scalars are int64;
    begin >= 0, count, heads, length and size1 >= 1. The result is rows x `length` elements in C order. Element e of
    row r is the reduction of source[o + (r % size1) * stride1 + (r // size1) * stride2 + e * stride], where o is
    h * head_stride for h = 0 .. heads - 1, or with TABLE table[h]: one head after the other, in float32. REDUCTION is
    mean, sum, max or l2_norm. The grid, in one dimension, is
        rows = (begin + count - 1) // length - begin // length + 1
        cdiv(rows, ROWS) * cdiv(count if rows == 1 else length, COLUMNS)

    ALIGNED promises stride == 1, that source and target are multiples of 16 bytes, and that begin, count, length, the
    other strides and the table's entries are multiples of 16 elements. Compile with enable_fp_fusion=False. Every
    element is read once, in accesses of up to 16 bytes where ALIGNED.
    """
    program = tl.program_id(0).to(tl.int64)
    first_row = begin // length
    end_row = (begin + count - 1) // length + 1
    single = end_row - first_row == 1
    blocks = tl.cdiv(tl.where(single, count, length), COLUMNS)
    row = first_row + program // blocks * ROWS + tl.arange(0, ROWS)
    column = tl.where(single, begin - first_row * length, 0) + program % blocks * COLUMNS
    start = row % size1 * stride1 + row // size1 * stride2
    to_row = row * length + column - begin
    # The lanes of the tile that lie in the row and in the piece. Said in this way, the compiler can see that a mask
    # is the same for the 16 bytes of an access.
    lane = tl.arange(0, COLUMNS)
    first_lane = -to_row
    end_lane = tl.minimum(length - column, count - to_row)
    if ALIGNED:
        column = tl.multiple_of(column, 16)
        start = tl.multiple_of(start, 16)
        to_row = tl.multiple_of(to_row, 16)
        first_lane = tl.multiple_of(first_lane, 16)
        end_lane = tl.multiple_of(end_lane, 16)
        from_offset = (start + column)[:, None] + lane[None, :]
    else:
        from_offset = start[:, None] + ((column + lane) * stride)[None, :]
    to_offset = to_row[:, None] + lane[None, :]
    inside = (lane[None, :] >= first_lane[:, None]) & (lane[None, :] < end_lane[:, None])

    # As bits, since Triton makes 0.0 of a constant -0.0: of -inf, 0.0 and -0.0.
    identity: tl.constexpr = -0x800000 if REDUCTION == "max" else 0 if REDUCTION == "l2_norm" else -0x80000000
    result = tl.full([ROWS, COLUMNS], identity, tl.int32).to(tl.float32, bitcast=True)
    # Unrolled, as the loads of several heads are to be under way at a time; the additions keep their order.
    for head in tl.range(0, heads, loop_unroll_factor=4):
        offset = tl.load(table + head) if TABLE else head_stride * tl.cast(head, tl.int64)
        if ALIGNED:
            offset = tl.multiple_of(offset, 16)
        code = tl.load(source + (from_offset + offset), mask=inside)
        x = float32_bits(code, SOURCE).to(tl.float32, bitcast=True)
        if REDUCTION == "max":
            result = tl.where((x > result) | (x != x), x, result)
        elif REDUCTION == "l2_norm":
            result += x * x
        else:
            result += x
    if REDUCTION == "mean":
        result = tl.div_rn(result, tl.zeros([ROWS, COLUMNS], tl.float32) + tl.cast(heads, tl.float32))
    elif REDUCTION == "l2_norm":
        result = tl.sqrt_rn(result)
    code = _cast(_bits(result), "float32", TARGET, E4M3_SATURATES, E5M2_SATURATES, False)
    tl.store(target + to_offset, code, mask=inside)


@triton.jit
def _p_log_p(p):
    """p ln p of float32: 0 for p = 0, NaN for a negative or NaN p.

    The logarithm is that of the Cephes library (logf.c, S. L. Moshier, http://www.netlib.org/cephes/), as in
    csrc/core/head_reduce_loops.cpp: what GPUs have in one instruction is off by 2^-22 next to 1, where p ln p is
    small itself, and libraries may flush the subnormal p that a softmax has.
    """
    own_bits = p.to(tl.int32, bitcast=True)
    is_small = own_bits < 0x00800000
    raised_bits = (p * 8388608.0).to(tl.int32, bitcast=True)
    shifted = tl.where(is_small, raised_bits, own_bits) - 0x3F3504F3
    exponent = ((shifted >> 23) - tl.where(is_small, 23, 0)).to(tl.float32)
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    y = 7.0376836292e-2 * f - 1.1514610310e-1
    y = y * f + 1.1676998740e-1
    y = y * f - 1.2420140846e-1
    y = y * f + 1.4249322787e-1
    y = y * f - 1.6668057665e-1
    y = y * f + 2.0000714765e-1
    y = y * f - 2.4999993993e-1
    y = y * f + 3.3333331174e-1
    y = y * f * square
    y = y + exponent * -2.12194440e-4
    y = y - square * 0.5
    logarithm = (f + y) + exponent * 0.693359375
    term = tl.where(p < 0.0, float("nan"), p * logarithm)
    return tl.where(p == 0.0, 0.0, term)


@triton.jit
def row_entropies(
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
    ALIGNED: tl.constexpr,
    E4M3_SATURATES: tl.constexpr,
    E5M2_SATURATES: tl.constexpr,
):
    """Writes the entropies -sum p ln p, in nats, of the rows [begin, begin + count) of a record to target[0 .. count).

    The record, its sizes, strides and table are those of `gather_cast` (length 0 is allowed, the entropy is 0), and so
    are the types of pointers and scalars. COLUMNS running sums in float32 are added up as a tree. ROWS rows a program:
    the grid is cdiv(count, ROWS). ALIGNED promises stride == 1, that source is a multiple of 16 bytes, and that length,
    the other strides and the table's entries are multiples of 16 elements.
    """
    row = begin + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < begin + count
    start = row_offset(row, valid, table, size1, stride1, size2, stride2, size3, stride3, TABLE, False, ALIGNED)
    lane = tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, length, COLUMNS):
        column = tl.cast(first, tl.int64)
        end_lane = tl.where(valid, length - column, 0)
        if ALIGNED:
            end_lane = tl.multiple_of(end_lane, 16)
            offset = (start + tl.multiple_of(column, 16))[:, None] + lane[None, :]
        else:
            offset = start[:, None] + ((column + lane) * stride)[None, :]
        inside = lane[None, :] < end_lane[:, None]
        code = tl.load(source + offset, mask=inside, other=0)
        sums += _p_log_p(float32_bits(code, SOURCE).to(tl.float32, bitcast=True))
    entropy = 0.0 - tl.sum(sums, axis=1)
    code = _cast(_bits(entropy), "float32", TARGET, E4M3_SATURATES, E5M2_SATURATES, False)
    tl.store(target + (row - begin), code, mask=valid)


# ------------------------------------------------------------------------------------------------ launching

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Launch(NamedTuple):
    source: torch.Tensor  # as integers
    target: torch.Tensor  # as integers, contiguous
    table: torch.Tensor | None  # where the chosen heads start; None: all
    axes: list[tuple[int, int]]  # size and stride of the four axes, with as many heads as chosen
    head_axis: int
    constants: dict[str, Any]

    def tile(self, length: int, rows: int) -> tuple[int, int]:
        """Rows and columns of a program's share of a record with such rows."""
        columns = min(TILE, triton.next_power_of_2(length))
        return min(TILE // columns, triton.next_power_of_2(rows)), columns

    def table_number(self) -> int:
        """TABLE of `gather_cast`, which counts the axes before the last from the right."""
        return 0 if self.table is None else 3 - self.head_axis

    def aligned(self, stride: int, pointers: list[torch.Tensor], numbers: list[int]) -> bool:
        addresses = [pointer.data_ptr() for pointer in pointers]
        return stride == 1 and all(value % 16 == 0 for value in addresses + numbers)


def head_reduce(
    tensor: torch.Tensor,
    reduction: str,
    *,
    head_axis: int,
    heads: list[int] | None = None,
    dtype: torch.dtype | None = None,
    e4m3_saturates: bool = True,
    e5m2_saturates: bool = False,
) -> torch.Tensor:
    """Reduces a tensor of 4 axes over its heads, or each of its rows to an entropy, in one pass on its device.

    Arguments, result and errors are those of `reference.head_reduce`. CPU tensors need Triton's interpreter
    (TRITON_INTERPRET=1 before triton is imported); RuntimeError without it.
    """
    chosen = chosen_heads(tensor, reduction, head_axis, heads, dtype)
    dtype = dtype or torch.float32
    if tensor.device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise RuntimeError("head_reduce on the CPU needs Triton's interpreter: set TRITON_INTERPRET=1")
    shape = list(tensor.shape)
    table = None
    if heads is not None:
        shape[head_axis] = len(chosen)
        offsets = [head * tensor.stride(head_axis) for head in chosen]
        table = torch.tensor(offsets, dtype=torch.int64, device=tensor.device)
    strides = [
        stride if size > 1 or axis == head_axis else int(axis == 3)  # of an axis of one element any would do
        for axis, (size, stride) in enumerate(zip(shape, tensor.stride(), strict=True))
    ]
    axes = list(zip(shape, strides, strict=True))
    if reduction != "select":
        del shape[3 if reduction == "entropy" else head_axis]
    result = torch.empty(shape, dtype=dtype, device=tensor.device)
    if result.numel() == 0:
        return result
    constants = {
        "SOURCE": str(tensor.dtype).removeprefix("torch."),
        "TARGET": str(dtype).removeprefix("torch."),
        "E4M3_SATURATES": e4m3_saturates,
        "E5M2_SATURATES": e5m2_saturates,
    }
    source, target = tensor.view(_INTEGERS[tensor.dtype.itemsize]), result.view(_INTEGERS[dtype.itemsize])
    launch = _Launch(source, target, table, axes, head_axis, constants)
    with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
        if reduction == "entropy":
            _launch_entropies(launch)
        elif reduction == "select":
            _launch_gather(launch)
        else:
            _launch_fold(launch, reduction)
    return result


def _merged(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(size, stride) pairs, slowest first, with neighbours that are one in memory made one and ones dropped."""
    merged: list[tuple[int, int]] = []
    for size, stride in axes:
        if size == 1:
            continue
        if merged and merged[-1][1] == stride * size:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


def _launch_fold(launch: _Launch, reduction: str) -> None:
    axes = list(launch.axes)
    heads, head_stride = axes.pop(launch.head_axis)
    merged = _merged(axes) or [(1, 1)]
    length, stride = merged[-1]
    (_, stride2), (size1, stride1) = [(1, 0), (1, 0), *merged[:-1]][-2:]
    count = launch.target.numel()
    rows, columns = launch.tile(length, count // length)
    numbers = [count, length, stride1, stride2, head_stride]
    fold_heads[(triton.cdiv(count // length, rows) * triton.cdiv(length, columns),)](
        launch.source,
        launch.target,
        launch.table,
        0,
        count,
        heads,
        head_stride,
        length,
        stride,
        size1,
        stride1,
        stride2,
        **launch.constants,
        REDUCTION=reduction,
        ROWS=rows,
        COLUMNS=columns,
        TABLE=launch.table is not None,
        ALIGNED=launch.aligned(stride, [launch.source, launch.target], numbers),
        num_warps=4,
        enable_fp_fusion=False,
    )


def _launch_entropies(launch: _Launch) -> None:
    (size3, stride3), (size2, stride2), (size1, stride1), (length, stride) = launch.axes
    count = launch.target.numel()
    rows, columns = launch.tile(max(length, 1), count)
    row_entropies[(triton.cdiv(count, rows),)](
        launch.source,
        launch.target,
        launch.table,
        0,
        count,
        length,
        stride,
        size1,
        stride1,
        size2,
        stride2,
        size3,
        stride3,
        **launch.constants,
        ROWS=rows,
        COLUMNS=columns,
        TABLE=launch.table_number(),
        ALIGNED=launch.aligned(stride, [launch.source], [length, stride1, stride2, stride3]),
        num_warps=4,
        enable_fp_fusion=False,
    )


def _launch_gather(launch: _Launch) -> None:
    (size3, stride3), (size2, stride2), (size1, stride1), (length, stride) = launch.axes
    count = launch.target.numel()
    rows, columns = launch.tile(length, count // length)
    rows = max(rows, 2)  # 1 would say that there is one row
    gather_cast[(triton.cdiv(count // length, rows) * triton.cdiv(length, columns),)](
        launch.source,
        launch.target,
        launch.table,
        0,
        count,
        length,
        stride,
        size1,
        stride1,
        size2,
        stride2,
        size3,
        stride3,
        **launch.constants,
        ROWS=rows,
        COLUMNS=columns,
        TABLE=launch.table_number(),
        PER_ROW=False,
        ALIGNED=launch.aligned(stride, [launch.source, launch.target], [length, stride1, stride2, stride3]),
        NATIVE=False,
        num_warps=4,
    )
