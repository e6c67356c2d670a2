"""Plain torch twins of the Triton kernels: what each must compute, on any device, without Triton.

They are written for exactness and not for speed: the tests hold them against the engine's own casts, and the kernels
against them.
"""

from __future__ import annotations

import torch

# name: exponent bits, mantissa bits, code of the largest finite value
_FLOAT8 = {torch.float8_e4m3fn: (4, 3, 0x7E), torch.float8_e5m2: (5, 2, 0x7B)}


def downcast(
    tensor: torch.Tensor,
    dtype: torch.dtype,
    *,
    axis: int = 0,
    indices: torch.Tensor | None = None,
    e4m3_saturates: bool = True,
    e5m2_saturates: bool = False,
) -> torch.Tensor:
    """`tensor` as `dtype`, contiguous; rounded half to even, float64 by way of float32.

    `indices` picks positions along `axis`: [kept], or [batch, kept] with one row for each entry of dimension 0, where
    `axis` is not 0. The two rules say whether a magnitude beyond the largest finite float8 becomes that value or NaN
    (e4m3fn), infinity (e5m2): torch's own conversion changes with its version, this one does not. Same dtypes are
    copied bit by bit.
    """
    if indices is not None and indices.dim() == 2:
        rows = [part.index_select(axis - 1, kept) for part, kept in zip(tensor, indices, strict=True)]
        tensor = torch.stack(rows)
    elif indices is not None:
        tensor = tensor.index_select(axis, indices)
    if tensor.dtype == dtype:
        return tensor.clone(memory_format=torch.contiguous_format)
    single = tensor.to(torch.float32).contiguous()
    if dtype in _FLOAT8:
        saturates = e4m3_saturates if dtype == torch.float8_e4m3fn else e5m2_saturates
        return _to_float8(single, dtype, saturates)
    return single.to(dtype)


def _to_float8(single: torch.Tensor, dtype: torch.dtype, saturates: bool) -> torch.Tensor:
    exponent_bits, mantissa_bits, largest = _FLOAT8[dtype]
    smallest_exponent = 2 - (1 << (exponent_bits - 1))
    largest_value = torch.tensor(largest, dtype=torch.uint8, device=single.device).view(dtype).to(torch.float64)
    # In float64, where every step but the one rounding is exact. A float8 of the same value has one encoding.
    magnitude = single.abs().to(torch.float64)
    exponent = torch.frexp(magnitude).exponent - 1
    unit = torch.ldexp(torch.ones_like(magnitude), exponent.clamp(min=smallest_exponent) - mantissa_bits)
    rounded = torch.round(magnitude / unit) * unit
    codes = rounded.clamp(max=largest_value).to(dtype).view(torch.uint8)
    codes = torch.where(rounded > largest_value, largest + (0 if saturates else 1), codes)
    codes = torch.where(torch.isinf(magnitude), largest + (0 if saturates else 1), codes)
    codes = torch.where(torch.isnan(magnitude), 0x7F, codes)
    sign = torch.signbit(single).to(torch.uint8) * 0x80
    return (codes.to(torch.uint8) | sign).view(dtype)


def quantize(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of the shape of `tensor`, and float32 scales without its last dimension: x is about code * scale.

    A scale is max|x| / 127 of its row, in float32; NaN if an element is not finite as float32. A code is
    rint(float32(x) / scale), half to even, within -127 .. 127; 0 where the scale is 0 or NaN. A tensor without
    dimensions is one row of one element.
    """
    rows = tensor.to(torch.float32).reshape(1) if tensor.dim() == 0 else tensor.to(torch.float32)
    if rows.shape[-1] == 0:
        scales = rows.new_zeros(rows.shape[:-1])
    else:
        largest = rows.abs().amax(-1)
        # A division by a number would be a multiplication by its reciprocal on a GPU, which rounds twice.
        scales = largest / torch.full_like(largest, 127.0)
        scales = torch.where(torch.isfinite(rows).all(-1), scales, torch.nan)
    usable = (scales > 0)[..., None]
    codes = torch.round((rows / scales[..., None]).clamp(-127, 127))
    codes = torch.where(usable, codes, 0).to(torch.int8)
    return codes.reshape(tensor.shape), scales.reshape(tensor.shape[:-1])


def gather(
    storage: torch.Tensor,
    start: int,
    *,
    length: int,
    stride: int,
    sizes: tuple[int, int, int],
    strides: tuple[int, int, int],
    table: torch.Tensor | None = None,
    looked_up: int = 0,
    per_row: bool = False,
) -> torch.Tensor:
    """The logical elements of a record as the kernels find them, [size3 * size2 * size1 * length].

    `storage` is one-dimensional, element `start` of it is the kernels' source address; sizes and strides are those of
    the dimensions 1 (innermost), 2 and 3. `looked_up` names the dimension whose offsets stand in `table`, int64:
    [size], or [size3, size] with `per_row`; 0 is none. All in elements. The rules are those of `gather_cast`.
    """
    numbers = [torch.arange(size, device=storage.device) for size in sizes]
    offsets = [number * step for number, step in zip(numbers, strides, strict=True)]
    first, second, third = offsets[0][None, None, :], offsets[1][None, :, None], offsets[2][:, None, None]
    if table is not None and looked_up == 1:
        first = table.reshape(sizes[2], 1, sizes[0]) if per_row else table[None, None, :]
    elif table is not None and looked_up == 2:
        second = table.reshape(sizes[2], sizes[1], 1) if per_row else table[None, :, None]
    elif table is not None:
        third = table[:, None, None]
    rows = (first + second + third).reshape(-1)
    return storage[(start + rows[:, None] + torch.arange(length, device=storage.device) * stride).reshape(-1)]


def chosen_heads(
    tensor: torch.Tensor,
    reduction: str,
    head_axis: int,
    heads: list[int] | None,
    dtype: torch.dtype | None,
) -> list[int]:
    """The heads that `head_reduce` with these arguments takes, in order. ValueError says what to change."""
    if reduction not in HEAD_REDUCTIONS:
        raise ValueError(f"there is no reduction '{reduction}'; use {', '.join(HEAD_REDUCTIONS)}")
    if tensor.dim() != 4:
        raise ValueError(
            f"a reduction over heads needs a tensor of 4 axes, not {tensor.dim()}; "
            "view it as [batch, heads, …] or [batch, positions, heads, …]"
        )
    if head_axis not in (1, 2):
        raise ValueError(f"the head axis is 1 or 2, not {head_axis}; transpose the tensor")
    if tensor.dtype not in (torch.float64, *HEAD_DTYPES):
        raise ValueError(f"heads of dtype {tensor.dtype} cannot be reduced; cast the tensor to a floating type first")
    if dtype is not None and dtype not in HEAD_DTYPES:
        raise ValueError(
            f"a reduction over heads cannot be stored as {dtype}; use {', '.join(str(each) for each in HEAD_DTYPES)}"
        )
    available = tensor.shape[head_axis]
    if available == 0:
        raise ValueError("the tensor has no heads; check the head axis")
    if heads is None:
        return list(range(available))
    if not heads:
        raise ValueError("no heads are chosen; name at least one, or leave the list out")
    for position, head in enumerate(heads):
        if not 0 <= head < available:
            raise ValueError(f"there is no head {head}; the heads are 0 to {available - 1}")
        if head in heads[:position]:
            raise ValueError(f"head {head} is chosen twice; name each head once")
    return list(heads)


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
    """A tensor of 4 axes reduced over its heads, contiguous; csrc/core/head_reduce.hpp has the definition.

    `head_axis` is 1 ([batch, heads, queries, keys], [batch, heads, positions, head size]) or 2 ([batch, positions,
    heads, head size]); `heads` are indices in any order, none twice (None: all). mean, sum, max and l2_norm give the
    shape without the head axis; entropy, -sum p ln p in nats of each row of each head, the shape without the last axis;
    select the chosen heads as they are. The result is cast like `downcast` to `dtype` (None: float32; or bfloat16,
    float16, float8_e4m3fn, float8_e5m2), with the same rules for float8.

    Raises ValueError for other arguments, with what to change.
    """
    chosen = chosen_heads(tensor, reduction, head_axis, heads, dtype)
    parts = [tensor.select(head_axis, head) for head in chosen]
    if reduction in ("entropy", "select"):
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
        result = torch.stack([part.view(integers) for part in parts], dim=head_axis).view(tensor.dtype)
        if reduction == "entropy":
            p = result.to(torch.float32).to(torch.float64)  # every step after the cast in float64, rounded once
            sums = torch.where(p == 0, 0.0, p * torch.log(p)).sum(dim=3)
            result = _with_one_nan((0.0 - sums).to(torch.float32))
    else:
        result = _with_one_nan(_folded([part.to(torch.float32) for part in parts], reduction))
    return downcast(result, dtype or torch.float32, e4m3_saturates=e4m3_saturates, e5m2_saturates=e5m2_saturates)


def _folded(parts: list[torch.Tensor], reduction: str) -> torch.Tensor:
    """mean, sum, max or l2_norm of float32 tensors, one after the other, each step rounded."""
    start = {"max": float("-inf"), "l2_norm": 0.0}.get(reduction, -0.0)
    result = torch.full_like(parts[0], start, memory_format=torch.contiguous_format)
    for x in parts:
        if reduction == "max":
            result = torch.where((x > result) | x.isnan(), x, result)
        else:
            result = result + (x * x if reduction == "l2_norm" else x)
    if reduction == "mean":
        return result / torch.full_like(result, len(parts))  # by a number, CUDA multiplies with its reciprocal
    # torch's float32 root is off by one unit for some values on CPUs; by way of float64 it is rounded correctly.
    return result.to(torch.float64).sqrt().to(torch.float32) if reduction == "l2_norm" else result


def _with_one_nan(result: torch.Tensor) -> torch.Tensor:
    return torch.where(result.isnan(), float("nan"), result)


HEAD_REDUCTIONS = ("mean", "sum", "max", "l2_norm", "entropy", "select")
HEAD_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
