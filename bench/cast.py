"""cast: the engine's cast-copies, beside torch's copy_ into given memory and beside memmove.

A tap reads a tensor once and writes it, cast, into a block of the ring: that is what it costs the model's
thread for a large tensor. Here the same C++ does it into memory that stands ready, on one thread, for sources that fit
in the cache and sources that do not, contiguous and not. A rate is bytes of the source read a second, whatever the
target's size, so that the rates of one section compare as its times do; each includes the call from Python, whose own
cost the last section shows. Every contestant's bytes are torch's before it is timed. Run: python bench/cast.py
"""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness import CheckError, Contestant, Row, race, settle_process, timed

if TYPE_CHECKING:
    import torch
    from results import Results

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
PAIRS = [
    *(("float32", to) for to in ("float32", "bfloat16", "float16", *FLOAT8, "int8")),
    *(("bfloat16", to) for to in ("bfloat16", "float32", "float16", *FLOAT8, "int8")),
    *(("float16", to) for to in ("float16", "float32", "bfloat16", *FLOAT8, "int8")),
    ("float64", "float32"),
]
STRIDED_PAIRS = [
    *(("float32", to) for to in ("float32", "bfloat16", "float8_e4m3fn", "int8")),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float8_e4m3fn"),
]
ENGINE, TORCH, MEMMOVE = "neuroscope-fast", "torch", "memmove"
WIDTH = 1024
"""Elements of a row, which is what int8 has a scale for."""
HEADS, HEAD_SIZE = 16, 64
"""Of a query seen as [batch, heads, positions, head size] on a projection's output, as attention hands it over."""


def source_tensor(dtype: str, size: int, layout: str, *, finite: bool) -> torch.Tensor:
    """`size` bytes of normal numbers; unless `finite`, values beyond the targets' range and below it among them."""
    import torch

    kind = getattr(torch, dtype)
    x = torch.randn(size // kind.itemsize, generator=torch.Generator().manual_seed(1))
    if not finite:
        x[:8] = torch.tensor([0.0, -0.0, 1e5, -1e5, 3e38, 1e-6, -3e-40, float("inf")])
    x = x.to(kind)
    if layout == "heads":
        return x.view(1, -1, HEADS, HEAD_SIZE).transpose(1, 2)
    x = x.view(-1, min(WIDTH, len(x)))
    return x.t() if layout == "transposed" else x


def same_bits(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    import torch

    if not torch.equal(found.flatten().view(torch.uint8), expected.flatten().view(torch.uint8)):
        raise CheckError(f"{what} differ")


class Cast:
    """One pair of dtypes on one source: the same target memory for every contestant that casts."""

    def __init__(self, source: torch.Tensor, target: str):
        import torch
        from neuroscope_fast import _core
        from neuroscope_fast.environment import float8_rules

        self.source, self.target = source, target
        self.out = torch.empty(source.shape, dtype=getattr(torch, target))
        self.scales = torch.empty(source.shape[:-1])
        self.memory = memoryview(self.out.view(torch.uint8).numpy()).cast("B")
        self.rules = float8_rules()
        self.cast_into = _core.cast_into
        self.scale_bytes = b""
        self.stored = torch.empty(0, dtype=torch.uint8).set_(source.untyped_storage())
        self.copied = torch.empty_like(self.stored)

    def engine(self) -> None:
        self.scale_bytes = self.cast_into(self.source, self.target, self.memory, *self.rules)

    def torch(self) -> None:
        if self.target != "int8":
            self.out.copy_(self.source)
            return
        x = self.source.float()
        self.scales.copy_(x.abs().amax(-1).div_(127))
        self.out.copy_((x / self.scales[..., None]).round_())

    def memmove(self) -> None:
        ctypes.memmove(self.copied.data_ptr(), self.stored.data_ptr(), self.stored.nbytes)

    def check_engine(self) -> None:
        import torch

        self.engine()
        self._check_out()
        if self.target == "int8":
            self.scales.copy_(
                torch.frombuffer(bytearray(self.scale_bytes), dtype=torch.float32).view(self.scales.shape)
            )
            self._check_scales()

    def check_torch(self) -> None:
        self.torch()
        self._check_out()
        if self.target == "int8":
            self._check_scales()

    def _check_out(self) -> None:
        """Against torch's cast into memory of its own; int8 against the twin of the kernels, which defines it."""
        if self.target == "int8":
            same_bits(self.out, self.reference[0], "the codes")
        else:
            same_bits(self.out, self.source.to(self.out.dtype), "the bytes")
        self.out.zero_()  # for whoever is checked next

    def _check_scales(self) -> None:
        same_bits(self.scales, self.reference[1], "the scales")
        self.scales.zero_()

    @functools.cached_property
    def reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        from neuroscope_fast.kernels.reference import quantize

        return quantize(self.source)

    def check_memmove(self) -> None:
        self.memmove()
        same_bits(self.copied, self.stored, "the bytes")


def repeated(call: Callable[[], None], span: float) -> Callable[[], float]:
    """Rounds of about `span` seconds, long enough for the clock; each gives the seconds of one call."""
    calls = 0

    def several() -> None:
        for _ in range(calls):
            call()

    def work() -> float:
        nonlocal calls
        if calls == 0:  # the round that warms up: counted at its second call
            call()
            calls = max(1, int(span / timed(call)))
        return timed(several) / calls

    return work


def pair_rows(cast: Cast, rounds: int, span: float) -> list[Row]:
    composed = "float, abs, amax, div, div, round and copy_, with temporaries" if cast.target == "int8" else ""
    contestants = [
        Contestant(ENGINE, repeated(cast.engine, span), cast.check_engine),
        Contestant(TORCH, repeated(cast.torch, span), cast.check_torch, composed),
        Contestant(MEMMOVE, repeated(cast.memmove, span), cast.check_memmove, "the source's bytes as they lie"),
    ]
    return race(contestants, rounds=rounds)


def measure(
    results: Results, pairs: list[tuple[str, str]], size: int, layout: str, *, rounds: int, span: float
) -> None:
    amount = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
    for source, target in pairs:
        cast = Cast(source_tensor(source, size, layout, finite=target == "int8"), target)
        results.add(
            f"{source} → {target}, {amount}, {layout}",
            "GB of source read a second",
            pair_rows(cast, rounds, span),
            amount=size / 1e9,
            bases=(TORCH, MEMMOVE),
            panel=f"{amount} of source, {layout}",
            line=f"{source} → {target}",
            bytes_read=size,
            bytes_written=cast.out.nbytes,
        )


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=15)
    import torch
    from neuroscope_fast import _core

    torch.set_num_threads(1)
    gc.freeze()  # the harness collects before every round, and all that was imported need not be walked each time
    span = 0.001 if options.quick else 0.02
    rounds = options.rounds
    small, large = (64 << 10, (1 if options.quick else 64) << 20)
    results = Results("cast", "how fast a tensor is cast into given memory, on one thread", options)
    results.origin["cpu_level"] = _core.build_info()["cpu_level"]
    with torch.inference_mode():
        measure(results, PAIRS, small, "contiguous", rounds=rounds, span=span)
        measure(results, PAIRS, large, "contiguous", rounds=rounds, span=span)
        for layout in ("heads", "transposed"):
            measure(results, STRIDED_PAIRS, large, layout, rounds=rounds, span=span)
        call = Cast(source_tensor("float32", 4, "contiguous", finite=True), "bfloat16")
        results.add("the call from Python: 1 element", "µs", pair_rows(call, rounds, span), scale=1e6, bases=(TORCH,))
    return results.finish()


if __name__ == "__main__":
    raise SystemExit(main())
