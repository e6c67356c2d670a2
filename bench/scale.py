"""scale: how what a capture costs grows with hooks, hidden size, sequence and steps.

Along each of the four, entering the capture, the passes in it (what it adds to those of the bare model) and leaving it
are measured apart, beside hooks that clone. All in CPU time of the whole process, so that work that a thread took over
counts, and another process's turn does not: on a busy machine that is longer than most of what is measured here. An
exponent is fitted to each, the slope of its least-squares line in a log-log plot: over the whole range, and over its
upper part, where a fixed cost no longer hides the growth. 1 is linear; anything quadratic is a defect. Hooks and steps
make records, so there a run on disk is written and opened again, files, JSON and all; hidden size and sequence make
bytes, and there the memory sink keeps the disk, which stream.py measures, out of it. Run: python bench/scale.py
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import CheckError, Contestant, Row, settle_process

TOLERANCE = 0.15
"""Above 1: what caches, which large tensors leave, and a noisy machine may add to an exponent."""
RISEN = 2.0
"""The upper part of a range begins where the cost is so many times that of its first point."""
CAPTURE, CLONE = "neuroscope-fast", "clone hook"


@dataclass(frozen=True)
class Size:
    """`steps` passes of [1, sequence, hidden] float32 through a model of `hooks` hooked layers."""

    hooks: int = 24
    hidden: int = 64
    sequence: int = 1
    steps: int = 8


@dataclass(frozen=True)
class Dimension:
    name: str
    values: Sequence[int]
    size: Size
    on_disk: bool
    label: str

    def sizes(self) -> list[tuple[int, Size]]:
        return [(value, replace(self.size, **{self.name: value})) for value in self.values]


def dimensions(*, quick: bool) -> list[Dimension]:
    def values(*full: int) -> Sequence[int]:
        return full[:3:2] if quick else full

    few = Size(steps=2)
    return [
        Dimension("hooks", values(1, 3, 10, 30, 100, 200, 500), Size(), True, "hooks, 8 steps of [1, 1, 64]"),
        Dimension("hidden", values(64, 256, 1024, 2048, 4096, 8192), replace(few, sequence=64), False,
                  "hidden size, 24 hooks, 2 steps of [1, 64, hidden]"),
        Dimension("sequence", values(1, 8, 64, 512, 2048, 4096, 8192), few, False,
                  "sequence, 24 hooks, 2 steps of [1, sequence, 64]"),
        Dimension("steps", values(1, 4, 16, 64, 256, 1024, 4096), Size(), True, "steps, 24 hooks, [1, 1, 64]"),
    ]  # fmt: skip


class Point:
    """One size: its contestants, and the parts of a capture that are not its passes, by round."""

    def __init__(self, size: Size, folder: Path | None):
        import torch
        from stack import Stack

        self.size, self.folder = size, folder
        self.model, self.x = Stack(size.hooks), torch.randn(1, size.sequence, size.hidden)
        self.modules = list(self.model.layers)
        # A list of names, not one pattern: looking each of them up in a model that is as large must not be quadratic.
        self.hooks = [f"layers.{number}:residual" for number in range(size.hooks)]
        self.parts: dict[str, list[float]] = {}
        self.kept: list[torch.Tensor] = []

    def passes(self, steps: int | None = None) -> float:
        x, model = self.x, self.model
        start = time.process_time()
        for _ in range(steps or self.size.steps):
            model(x)
        return time.process_time() - start

    def capture(self, steps: int | None = None, *, check: bool = False) -> float:
        import neuroscope_fast as nsf

        out = None if self.folder is None else Path(tempfile.mkdtemp(prefix="nsf-scale-", dir=self.folder)) / "run"
        try:
            marks = [time.process_time()]
            with nsf.capture(self.model, self.hooks, out=out) as capture:
                marks.append(time.process_time())
                passes = self.passes(steps)
                marks.append(time.process_time())
            marks.append(time.process_time())
            parts = {"entry": marks[1] - marks[0], "leaving": marks[3] - marks[2]}
            run = capture.result
            if out is not None:
                start = time.process_time()
                run = nsf.open(out)
                parts["opening the run"] = time.process_time() - start
            if check:
                self.check_run(run, steps or self.size.steps)
            for name, seconds in parts.items():
                self.parts.setdefault(name, []).append(seconds)
            return passes
        finally:
            if out is not None:
                shutil.rmtree(out.parent, ignore_errors=True)

    def check_run(self, run: Any, steps: int) -> None:
        from stack import check_tensors

        check_tensors([tensor for hook in run.hooks for tensor in run[hook]], [self.x] * (self.size.hooks * steps))
        if bad := run.verify():
            raise CheckError(f"verify: {bad[0]}")

    def clones(self, steps: int | None = None) -> float:
        from stack import PlainHooks

        def clone(_module: object, _inputs: object, output: Any) -> None:
            self.kept.append(output.clone())

        self.kept.clear()
        with PlainHooks(self.modules, clone):
            return self.passes(steps)

    def check_clones(self) -> None:
        from stack import check_tensors

        self.clones(2)
        check_tensors(self.kept, [self.x] * (self.size.hooks * 2))

    def race(self, rounds: int) -> list[Row]:
        """A row for each part of the capture and one for the clone hook, in seconds; the passes less the bare ones."""
        from harness import race

        bare, clone, capture = race(
            [
                Contestant("bare", self.passes, lambda: None),
                Contestant(CLONE, self.clones, self.check_clones),
                Contestant(CAPTURE, self.capture, self.check_capture),
            ],
            rounds=rounds,
            warm_up=0,  # the check was one
        )
        for row, name in ((capture, f"{CAPTURE}: passes"), (clone, f"{CLONE}: passes")):
            row.name = name
            row.rounds = [value - off for value, off in zip(row.rounds, bare.rounds, strict=True)] if row.rounds else []
        # The check left its parts in front.
        others = [Row(f"{CAPTURE}: {name}", rounds=each[-rounds:]) for name, each in self.parts.items()]
        self.kept.clear()
        return [capture, clone, *(others if capture.refused is None else [])]

    def check_capture(self) -> None:
        self.capture(2, check=True)


def exponents(xs: Sequence[float], costs: Sequence[Sequence[float]]) -> list[float]:
    """The slope of log cost over log x, in each round; costs that noise took below zero are left out."""
    import numpy as np

    found = []
    for of_round in zip(*costs, strict=True):
        points = [(math.log(x), math.log(cost)) for x, cost in zip(xs, of_round, strict=True) if cost > 0]
        if len(points) >= 2:
            found.append(float(np.polyfit(*zip(*points, strict=True), 1)[0]))
    return found


def fits(name: str, xs: Sequence[float], rows: dict[str, list[Row]]) -> tuple[list[Row], list[Row]]:
    """The exponents of one dimension's rows: over its upper part and over all of it."""
    import numpy as np

    upper, whole = [], []
    for row_name, each in rows.items():
        label = f"{name}, {row_name}"
        if any(row.refused is not None for row in each):
            continue
        costs = [row.rounds for row in each]
        whole.append(Row(label, rounds=exponents(xs, costs)))
        middles = [float(np.median(cost)) for cost in costs]
        first = max(middles[0], 1e-9)
        start = next((at for at, cost in enumerate(middles) if cost > RISEN * first), len(xs))
        start = min(start, max(0, len(xs) - 3))
        note = f"from {xs[start]} on"
        if max(middles) <= RISEN * first:
            note += "; never more than twice the cost of the first point"
        slopes = exponents(xs[start:], costs[start:])
        if slopes and float(np.median(slopes)) > 1 + TOLERANCE:
            note += f"; MORE THAN LINEAR (tolerance {TOLERANCE})"
        upper.append(Row(label, note, rounds=slopes))
    return [row for row in upper if row.rounds], [row for row in whole if row.rounds]


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=7)
    import torch

    results = Results("scale", "how the cost of a capture grows", options)
    options.folder.mkdir(parents=True, exist_ok=True)
    upper: list[Row] = []
    whole: list[Row] = []
    with torch.inference_mode():
        for dimension in dimensions(quick=options.quick):
            xs, by_name = [], {}
            for value, size in dimension.sizes():
                rows = Point(size, options.folder if dimension.on_disk else None).race(options.rounds)
                sink = "disk" if dimension.on_disk else "memory"
                results.add(f"{dimension.name} {value}", "ms of CPU", rows, scale=1e3, x=value, x_label=dimension.label,
                            panel=f"{dimension.name} ({sink})")  # fmt: skip
                xs.append(value)
                for row in rows:
                    by_name.setdefault(row.name, []).append(row)
            high, all_of_it = fits(dimension.name, xs, by_name)
            upper += high
            whole += all_of_it
    results.add("exponent over the upper part", "1 is linear", upper, tolerance=TOLERANCE)
    results.add("exponent over the whole range", "1 is linear", whole, tolerance=TOLERANCE)
    return results.finish(log=True)


if __name__ == "__main__":
    raise SystemExit(main())
