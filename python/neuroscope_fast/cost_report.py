"""The figures of a race of captures against the bare model, and the sentence that says what they come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from msgspec import Struct

from .capture_cost import Fast, Marks, Scene, Timed, contestants
from .environment import model_info, versions
from .machine import file_system, machine
from .manifest import ModelInfo
from .racing import CheckError, Row, Spread, race, spread_of
from .raw_writes import BLOCK_BYTES, direct_write_seconds, has_direct_io

Meter = Callable[[int], AbstractContextManager[Callable[[], object]]]

_DISK_BYTES = 32 * BLOCK_BYTES
_DISK_ROUNDS = 3
_DISK_PATIENCE = 2.0  # seconds a round: a slow disk is measured once
_BUSY = 0.75  # of all cores, in the last minute


class ContestantCost(Struct):
    """What one way of capturing costs; of one that failed its check only why (`refused`).

    Seconds are those from before anything is opened: `returned` until generate returns, `ended` until all is durable
    or, in memory, in hand; their ratios are to the bare model in the same round. `tensor_us`: microseconds that the
    passes take longer than the bare model's, for each of `tensors`. `entering_ms` and `leaving_ms` are paid once a
    capture. The ring's peak is that of all rounds, stalls are their sum.
    """

    name: str
    note: str = ""
    refused: str | None = None
    tensors: int = 0
    returned: Spread | None = None
    returned_ratio: Spread | None = None
    ended: Spread | None = None
    ended_ratio: Spread | None = None
    tensor_us: Spread | None = None
    entering_ms: Spread | None = None
    leaving_ms: Spread | None = None
    stored_bytes: int | None = None
    peak_ring_bytes: int | None = None
    stalls: int | None = None
    stall_seconds: float | None = None


class DiskRate(Struct):
    """GB/s (1e9 bytes) at which plain O_DIRECT writes reach the folder's disk, fsync counted in, or why it is not
    known.
    """

    folder: str
    file_system: str
    gigabytes_a_second: Spread | None = None
    refused: str | None = None


class CostReport(Struct):
    """The JSON of `bench`."""

    model: ModelInfo
    prompt_tokens: int
    new_tokens: int
    places: int
    capture_dtype: str | None
    rounds: int
    contestants: list[ContestantCost]
    disk: DiskRate
    conclusion: str
    warnings: list[str]
    provenance: dict[str, Any]


def measure(scene: Scene, folder: Path, rounds: int, meter: Meter) -> CostReport:
    """Check all contestants, race them, and measure the disk of `folder`. Raises CaptureError where a capture fails.

    `meter` is given the number of steps there are, and gives what is called after each.
    """
    origin = provenance(folder)
    racing = contestants(scene)
    with meter(len(racing) * (2 + rounds)) as told:  # each is checked and warmed up too
        for each in racing:
            each.told = told
        rows = race([each.contestant() for each in racing], rounds=rounds)
    costs = [cost_of(each, row, racing[0], rounds) for each, row in zip(racing, rows, strict=True)]
    return CostReport(
        model=model_info(scene.loaded.model),
        prompt_tokens=len(scene.prompt),
        new_tokens=scene.new_tokens,
        places=len(scene.plan.taps),
        capture_dtype=scene.dtype,
        rounds=rounds,
        contestants=costs,
        disk=disk_rate(folder),
        conclusion=conclusion(costs[-1], len(scene.plan.taps)),
        warnings=[*busy(origin), *next(each.warnings for each in racing if isinstance(each, Fast))],
        provenance=origin,
    )


def cost_of(timed: Timed, row: Row, bare: Timed, rounds: int) -> ContestantCost:
    if row.refused is not None:
        return ContestantCost(timed.name, timed.note, row.refused)
    marks, floor = timed.marks[-rounds:], bare.marks[-rounds:]
    cost = ContestantCost(timed.name, timed.note, tensors=timed.tensors)
    cost.returned = spread_of([each.returned for each in marks])
    if timed.keeps:
        cost.ended = spread_of([each.ended for each in marks])
    if timed is bare or not floor:
        return cost
    cost.returned_ratio = _ratio([each.returned for each in marks], floor)
    if timed.keeps:
        cost.ended_ratio = _ratio([each.ended for each in marks], floor)
    if timed.tensors:
        pairs = zip(marks, floor, strict=True)
        cost.tensor_us = spread_of([1e6 * (one.generating - other.generating) / timed.tensors for one, other in pairs])
    cost.entering_ms = spread_of([1e3 * each.entered for each in marks])
    cost.leaving_ms = spread_of([1e3 * (each.ended - each.returned) for each in marks])
    if isinstance(timed, Fast):
        counters = timed.counters[-rounds:]
        cost.stored_bytes = timed.stored
        cost.peak_ring_bytes = max(each.peak_ring_bytes for each in counters)
        cost.stalls = sum(each.stalls for each in counters)
        cost.stall_seconds = round(sum(each.stall_seconds for each in counters), 6)
    return cost


def _ratio(values: Sequence[float], floor: Sequence[Marks]) -> Spread:
    return spread_of([value / under.returned for value, under in zip(values, floor, strict=True)])


def disk_rate(folder: Path) -> DiskRate:
    """Of the disk that holds `folder`, which is a passing one in the folder that is named."""
    found = DiskRate(str(folder.parent), file_system(folder))
    if not has_direct_io(folder):
        found.refused = "the file system has no O_DIRECT"
        return found
    try:
        seconds = direct_write_seconds(folder, _DISK_BYTES, rounds=_DISK_ROUNDS, patience=_DISK_PATIENCE)
    except CheckError as error:
        found.refused = str(error)
        return found
    found.gigabytes_a_second = spread_of([_DISK_BYTES / 1e9 / each for each in seconds])
    return found


def conclusion(disk: ContestantCost, places: int) -> str:
    """One sentence on the capture to disk."""
    what = f"Capturing {places} place{'s' * (places != 1)} to this disk"
    if disk.refused is not None or disk.returned_ratio is None or disk.tensor_us is None or disk.ended_ratio is None:
        return f"{what} has no figure: {disk.refused or 'the bare model has none'}."
    ratio = disk.returned_ratio
    spread = f"{_percent(ratio.p20)} to {_percent(ratio.p80)}"
    if ratio.p20 <= 1 <= ratio.p80:
        slower = f"slows generate by {_percent(ratio.median)}, which is within this machine's noise ({spread})"
    elif ratio.median > 1:
        slower = f"makes generate {_percent(ratio.median)} slower until it returns ({spread})"
    else:
        slower = f"leaves generate as fast as it is without ({spread}: what is faster is this machine's noise)"
    assert disk.entering_ms is not None
    assert disk.leaving_ms is not None
    once = disk.entering_ms.median + disk.leaving_ms.median
    each = f"each of its {disk.tensors:,} tensors costs the passes {disk.tensor_us.median:.3g} µs"
    if disk.tensor_us.p20 <= 0:
        each = f"what its {disk.tensors:,} tensors cost the passes is lost in noise"
    return (
        f"{what} {slower}, until all is durable by {_percent(disk.ended_ratio.median)}; "
        f"of that, {once:.0f} ms are paid once a capture, and {each}."
    )


def busy(origin: dict[str, Any]) -> list[str]:
    """A warning, where others work on the machine."""
    load, cores = origin["load_average"][0], origin["cores"]
    if load <= _BUSY * cores:
        return []
    return [f"other work runs on this machine (load {load:.1f} on {cores} cores): the figures vary more than they need"]


def _percent(ratio: float) -> str:
    percent = 100 * (ratio - 1)
    return f"{percent:.0f} %" if abs(percent) >= 10 else f"{percent:.1f} %"


def provenance(folder: Path) -> dict[str, Any]:
    """Versions, threads and devices of torch, the engine's build, and the machine as it was before anything ran."""
    import torch

    from . import _core

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "build": dict(_core.build_info()),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in devices],
        **machine(folder),
    }
