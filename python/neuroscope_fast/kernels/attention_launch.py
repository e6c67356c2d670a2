"""Attention scores, patterns and reductions on the tensors' device: launches the kernels of attention_pattern.py.

Arguments and results are those of `neuroscope_fast.attention_math`. CPU tensors need Triton's interpreter
(TRITON_INTERPRET=1 before triton is imported); RuntimeError without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from .attention_call import AttentionCall, Reduction, Rows, Selection, checked_reduction, select, top_weights
from .attention_pattern import attention_rows, attention_tiles

_TOP_K_ELEMENTS = 8 << 20  # of a pattern that exists at a time; with what sorts them, 32 bytes each
_MASKS = (torch.bool, torch.float32, torch.bfloat16, torch.float16)


def attention_scores(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """[B, h, n, K] float32: see `attention_math.attention_scores`."""
    return _Launch(dataclasses.replace(call, sinks=None), select(call, heads, rows)).tiles("scores")


def attention_pattern(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """[B, h, n, K] float32: see `attention_math.attention_pattern`."""
    return _Launch(call, select(call, heads, rows)).tiles("pattern")


def reduce_pattern(
    call: AttentionCall,
    reduction: str,
    *,
    heads: list[int] | None = None,
    rows: Rows | None = None,
    k: int | None = None,
    first_key: Tensor | int = 0,
    own_offset: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The reduction of the pattern: see `attention_math.reduce_pattern`."""
    selection = select(call, heads, rows)
    wanted = checked_reduction(call, selection, reduction, k=k, first_key=first_key, own_offset=own_offset)
    if wanted.name in ("mean", "max"):
        return _Launch(call, selection).tiles(wanted.name)
    if wanted.name == "top_k":
        return _top_k(call, selection, wanted)
    if wanted.keys is None:
        return _Launch(call, selection).rows("entropy")[0]
    return _Launch(call, selection).rows("probability", wanted.keys.contiguous())[0]


def _top_k(call: AttentionCall, selection: Selection, wanted: Reduction) -> tuple[Tensor, Tensor]:
    """Indices and weights, from the patterns of some heads and rows at a time."""
    batch, _, _, keys = call.logits_shape
    heads, count = selection.heads, selection.count
    shape = (batch, len(heads), count, wanted.largest)
    indices = torch.zeros(shape, dtype=torch.int64, device=call.query.device)
    weights = torch.zeros(shape, dtype=torch.float32, device=call.query.device)
    some_heads = min(len(heads), max(1, _TOP_K_ELEMENTS // max(1, batch * keys)))
    some_rows = max(1, _TOP_K_ELEMENTS // max(1, batch * keys * some_heads))
    positions = selection.positions(call)
    for head in range(0, len(heads), some_heads):
        for row in range(0, count, some_rows):
            part = slice(head, head + some_heads), slice(row, row + some_rows)
            rows = positions[:, part[1]]
            pattern = _Launch(call, Selection(heads[part[0]], rows, rows.shape[1])).tiles("pattern")
            indices[:, part[0], part[1]], weights[:, part[0], part[1]] = top_weights(pattern, wanted.largest)
    return indices, weights


class _Launch:
    """The arguments that both kernels take for a call and a selection."""

    def __init__(self, call: AttentionCall, selection: Selection) -> None:
        query, key, mask = call.query, call.key, call.mask
        if query.device.type == "cpu" and not triton.knobs.runtime.interpret:
            raise RuntimeError("attention kernels on the CPU need Triton's interpreter: set TRITON_INTERPRET=1")
        if mask is not None and mask.dtype not in _MASKS:
            call = dataclasses.replace(call, mask=mask.to(torch.float32))
        mask = call.expanded_mask()
        self.call = call
        self.batch, self.heads, self.count, self.keys = len(query), len(selection.heads), selection.count, key.shape[2]
        positions = selection.positions(call)
        if call.padding is not None:
            positions = positions.masked_fill(call.padding.gather(1, positions), -1)
        head_size = query.shape[3]
        self.arguments: dict[str, Any] = {
            "query": query,
            "key": key,
            "mask": mask.view(torch.int8) if mask is not None and mask.dtype == torch.bool else mask,
            "positions": positions.contiguous(),
            "heads": torch.tensor(selection.heads).to(query.device, non_blocking=True),
            "head_count": self.heads,
            "count": self.count,
            "keys": self.keys,
            "queries_per_key_head": call.queries_per_key_head,
            "scale": call.scale,
            "softcap": call.softcap or 0.0,
            "hidden_below": 0.0 if mask is None or mask.dtype == torch.bool else call.hidden_below(),
            "causal_offset": call.causal_offset or 0,
            "window": call.window or 0,
            "MASK": "none" if mask is None else "bool" if mask.dtype == torch.bool else "additive",
            "CAUSAL": call.causal_offset is not None,
            "WINDOW": call.window is not None,
            "SOFTCAP": call.softcap is not None,
            "SIZE": head_size,
            **tiles(head_size, self.count),
        }
        for name, tensor in (("query", query), ("key", key), ("mask", mask)):
            strides = (0, 0, 0, 0) if tensor is None else tensor.stride()
            for axis, stride in zip(("batch", "head", "stride", "step"), strides, strict=True):
                self.arguments[f"{name}_{axis}"] = stride

    def rows(self, result: str, wanted: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What `attention_rows` writes with RESULT `result`, [B, h, n] each; the second for `softmax` alone."""
        shape = (self.batch, self.heads, self.count)
        target = torch.empty(shape, dtype=torch.float32, device=self.call.query.device)
        inverses = torch.empty_like(target) if result == "softmax" else None
        programs = triton.cdiv(self.count, self.arguments["ROWS"]) * self.batch * self.heads
        sinks = None if self.call.sinks is None else self.call.sinks.to(torch.float32).contiguous()
        self._launch(
            attention_rows,
            programs,
            sinks=sinks,
            wanted=wanted,
            target=target,
            inverses=inverses,
            RESULT=result,
            SINKS=sinks is not None,
        )
        return target, inverses

    def tiles(self, result: str) -> Tensor:
        """What `attention_tiles` writes with RESULT `result`."""
        maxima, inverses = self.rows("softmax")
        shape = [self.batch, self.heads, self.count, self.keys]
        if result in ("mean", "max"):
            del shape[1]
        target = torch.empty(shape, dtype=torch.float32, device=self.call.query.device)
        blocks = triton.cdiv(self.count, self.arguments["ROWS"]) * triton.cdiv(self.keys, self.arguments["COLUMNS"])
        lines = self.batch if result in ("mean", "max") else self.batch * self.heads
        self._launch(attention_tiles, blocks * lines, maxima=maxima, inverses=inverses, target=target, RESULT=result)
        return target

    def _launch(self, kernel: Any, programs: int, **arguments: Any) -> None:
        device = self.call.query.device
        if programs == 0:
            return
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[(programs,)](**self.arguments, **arguments, **options(self.call.query.dtype))


def tiles(head_size: int, rows: int) -> dict[str, int]:
    """The constants of the kernels that say how much a program does at a time."""
    piece = head_size & -head_size  # the largest power of two in it: 16 for 80, 32 for 96
    return {"PIECE": min(max(piece, 16), 64), "ROWS": 64 if rows > 16 else 16, "COLUMNS": 64}


def options(dtype: torch.dtype) -> dict[str, int]:
    """What Triton is told when it compiles the kernels for queries of `dtype`."""
    # In float32, where products take no tensor cores, two stages would need more shared memory than some devices have.
    return {"num_warps": 4, "num_stages": 1 if dtype == torch.float32 else 2, "enable_fp_fusion": True}
