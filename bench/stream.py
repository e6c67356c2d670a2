"""stream: gigabytes a second into a file system, against the rate of plain writes to it in the same run.

Modules that compute nothing hand on a tensor of a prefill's size, and a capture brings every one of them to disk:
float32 as it is, and float32 stored as bfloat16. Beside it stand plain sequential writes of blocks that are ready in
memory: O_DIRECT with one and with two writes under way (the ceiling), and through the page cache. All take turns; fsync
counts everywhere, and what a round wrote is removed after it. How far resident memory rises above the model's, and the
CPU time of the taps and of the threads behind them, come from the same rounds. --folder chooses the disk; needs 10 GB
there and 5 GB of /dev/shm. Run: python bench/stream.py
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import CheckError, Contestant, Row, missing, settle_process

MIB = 1 << 20
RINGS = (64, 256)  # MiB
ALLOWANCE = 64  # MiB of resident memory above model and ring: the target
TARGET = 0.85
ONE, TWO = "O_DIRECT, 4 MiB, one at a time", "O_DIRECT, 4 MiB, two at a time"
BUFFERED = "buffered"


@dataclass(frozen=True)
class Load:
    """What one round brings to disk: `passes` × `hooks` tensors [1, sequence, hidden]."""

    sequence: int = 2048
    hidden: int = 4096
    hooks: int = 32
    passes: int = 8
    dtype: str = "float32"

    @property
    def stored(self) -> int:
        """Bytes."""
        return self.sequence * self.hidden * self.hooks * self.passes * (4 if self.dtype == "float32" else 2)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A fresh folder in `folder`, removed with everything in it, down to the disk, before anyone else writes."""
    from watch import sync_folder

    made = Path(tempfile.mkdtemp(prefix="nsf-stream-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        sync_folder(folder)


class Place:
    """The contestants on one file system, and what was seen of them."""

    def __init__(self, folder: Path, load: Load):
        import torch
        from neuroscope_fast.raw_writes import aligned_copy
        from stack import Stack

        self.folder, self.load = folder, load
        self.model, self.x = Stack(load.hooks), torch.randn(1, load.sequence, load.hidden)
        self.stored = self.x.to(getattr(torch, load.dtype))
        self.blocks = aligned_copy(memoryview(self.stored.view(torch.uint8).numpy()).cast("B"))
        self.watches: dict[str, list[Any]] = {}
        self.counters: dict[str, Any] = {}

    def watched(self, name: str, work: Callable[[Path], None]) -> float:
        from watch import Watch

        with emptied(self.folder) as made, Watch() as watch:
            work(made / "run")
        self.watches.setdefault(name, []).append(watch)
        return float(watch.seconds)

    def capture(self, ring: int, out: Path, passes: int) -> dict[str, Any]:
        import msgspec
        import neuroscope_fast as nsf

        hooks, dtype = ["layers.*:residual"], self.load.dtype
        with nsf.capture(self.model, hooks, out=out, dtype=dtype, ring_bytes=ring * MIB) as capture:
            for _ in range(passes):
                self.model(self.x)
        return dict(msgspec.to_builtins(capture.result.manifest.counters))

    def check_capture(self, ring: int) -> None:
        import neuroscope_fast as nsf
        import torch

        with emptied(self.folder) as made:
            small = replace(self.load, sequence=min(self.load.sequence, 1000), hooks=4, passes=2)  # ends inside a block
            place = Place(made, small)
            place.capture(ring, made / "run", small.passes)
            run = nsf.open(made / "run")
            found = [tensor for hook in run.hooks for tensor in run[hook]]
            if len(found) != small.hooks * small.passes:
                raise CheckError(f"{len(found)} tensors, not {small.hooks * small.passes}")
            if not all(torch.equal(tensor, place.stored) for tensor in found):
                raise CheckError("a tensor is not what the model computed")
            if bad := run.verify():
                raise CheckError(f"verify: {bad[0]}")

    def contestants(self, share: int) -> list[Contestant]:
        def captured(name: str, ring: int) -> float:
            def work(out: Path) -> None:
                self.counters[name] = self.capture(ring, out, self.load.passes)

            return self.watched(name, work)

        def captures(ring: int) -> Contestant:
            name = f"neuroscope-fast, ring {ring} MiB"
            return Contestant(name, lambda: captured(name, ring), lambda: self.check_capture(ring))

        def plain(name: str, *, direct: bool, threads: int = 1, part: int = 1, note: str = "") -> Contestant:
            from neuroscope_fast.raw_writes import check_file, write_file

            total = self.load.stored // part

            def work(out: Path) -> None:
                write_file(out, self.blocks, total, direct=direct, threads=threads)

            def check() -> None:
                size = min(total, len(self.blocks) * 2)
                with emptied(self.folder) as made:
                    check_file(made / "file", self.blocks, size, direct=direct, threads=threads)

            return Contestant(name, lambda: self.watched(name, work) * part, check, note)

        return [
            *(captures(ring) for ring in RINGS),
            plain(ONE, direct=True),
            plain(TWO, direct=True, threads=2),
            plain(BUFFERED, direct=False, part=share, note=f"a file of {1 / share:g} of the size" if share > 1 else ""),
        ]

    def race(self, rounds: int, share: int) -> list[Row]:
        from harness import race
        from neuroscope_fast.raw_writes import has_direct_io

        wanted = self.contestants(share)
        able = has_direct_io(self.folder)
        there = [each for each in wanted if able or each.name not in (ONE, TWO)]
        rows = {row.name: row for row in race(there, rounds=rounds, warm_up=0)}
        return [rows.get(each.name) or missing(each.name, "the file system has no O_DIRECT") for each in wanted]


def first_capture() -> list[Row]:
    """What resident memory the first capture of a process takes for modules that are only imported then."""
    import neuroscope_fast as nsf
    import torch
    from stack import Stack
    from watch import Watch

    model, x = Stack(1), torch.randn(1, 1, 64)
    rows = []
    for name in ("first capture of the process", "second capture"):
        with Watch() as watch, nsf.capture(model, ["layers.*:residual"]):
            model(x)
        rows.append(Row(name, rounds=[watch.peak_mib]))
    return rows


def in_rates(rows: list[Row], stored: int) -> list[Row]:
    """Seconds as GB/s, so that higher is better and a ratio to a row is a part of its rate."""
    for row in rows:
        row.rounds = [stored / 1e9 / seconds for seconds in row.rounds]
    return rows


def add_place(results: Any, name: str, place: Place, rounds: int, share: int) -> None:
    """Three sections of one race: the rates, the memory and the CPU time."""
    from watch import facts_of

    rows = in_rates(place.race(rounds, share), place.load.stored)
    kept = [row for row in rows if row.refused is None and row.name.startswith("neuroscope")]
    bases = tuple(base for base in (ONE, TWO) if any(row.name == base and row.rounds for row in rows))
    section = results.add(
        name,
        "GB/s",
        rows,
        bases=bases,
        stored_bytes=place.load.stored,
        target=f"at least {TARGET} of {ONE}",
        counters=place.counters,
    )
    watches = {row.name: place.watches[row.name] for row in kept}
    section["resident_mib_over_time"] = facts_of(watches)
    memory = [Row(row.name, rounds=[each.peak_mib for each in watches[row.name]]) for row in kept]
    limits = {f"neuroscope-fast, ring {ring} MiB": ring + ALLOWANCE for ring in RINGS}
    for row in memory:
        row.note = f"target: at most {limits[row.name]}"
    results.add(f"{name}: peak resident memory above the model's", "MiB", memory)
    gigabytes = place.load.stored / 1e9
    cpu = []
    for row in kept:
        cpu.append(
            Row(f"{row.name}: checks and writes", rounds=[each.others / gigabytes for each in watches[row.name]])
        )
        cpu.append(Row(f"{row.name}: taps", rounds=[each.own_thread / gigabytes for each in watches[row.name]]))
    if place.watches.get(ONE):
        cpu.append(Row(ONE, rounds=[each.own_thread / gigabytes for each in place.watches[ONE]]))
    results.add(f"{name}: CPU time", "s a GB stored", cpu)


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=5)
    import torch

    results = Results("stream", "gigabytes a second into a file system, against its own rate", options)
    load, share = Load(), 8  # the page cache is so much slower that it would take most of the time
    if options.quick:
        load, share = Load(sequence=128, hidden=1024, hooks=4, passes=1), 1
    options.folder.mkdir(parents=True, exist_ok=True)
    halved = replace(load, passes=2 * load.passes, dtype="bfloat16")
    memory, fewer = Path("/dev/shm"), replace(load, passes=max(1, load.passes // 4))
    places = [("float32", options.folder, load), ("float32 stored as bfloat16", options.folder, halved)]
    if memory.is_dir() and shutil.disk_usage(memory).free > 2 * fewer.stored:
        places.append(("float32, /dev/shm", memory, fewer))
    with torch.inference_mode():
        results.add("a capture of one small tensor: peak resident memory above the model's", "MiB", first_capture())
        for name, folder, each in places:
            # Where memory is the disk, a page cache write and an O_DIRECT one are the same, so neither is shortened.
            add_place(results, name, Place(folder, each), options.rounds, 1 if folder == memory else share)
    return results.finish()


if __name__ == "__main__":
    raise SystemExit(main())
