"""What the GPU benchmarks share: the device as a parameter, timing, the measured ceilings, and their JSON.

`Device("cpu")` runs the same code with a plain clock and tiny sizes, so that all of it can be tried without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20


class Device:
    """Where a benchmark runs, and how time is taken there."""

    def __init__(self, name: str):
        self.torch = torch.device("cuda", 0) if name == "cuda" else torch.device(name)
        self.is_cuda = self.torch.type == "cuda"

    def finish(self) -> None:
        """Returns once everything on the device has ended, copies on other streams too."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def finish_compute(self) -> None:
        """Returns once the current stream has ended: then the model's results are there."""
        if self.is_cuda:
            torch.cuda.current_stream(self.torch).synchronize()

    def free_bytes(self) -> int | None:
        """Free memory of the device; None where it is the host's."""
        return int(torch.cuda.mem_get_info(self.torch)[0]) if self.is_cuda else None

    def release(self) -> None:
        """Give what nobody holds any more back to the device."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any], repeats: int) -> list[float]:
        """The time of each of `repeats` runs of `work`.

        On a GPU all runs are queued before the first is waited for, behind one that is not timed: no launch is part of
        a time.
        """
        if not self.is_cuda:
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
            return times
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        work()
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        self.finish()
        return [a.elapsed_time(b) * 1e-3 for a, b in pairwise(events)]

    def recorded(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """`work` as a CUDA graph, so that its launches from Python take no time; it must have run once."""
        if not self.is_cuda:
            return work
        graph = torch.cuda.CUDAGraph()
        self.finish()
        with torch.cuda.graph(graph):
            kept = work()

        def replay(_kept: Any = kept) -> None:  # what the graph writes to lives as long as it
            graph.replay()

        return replay


class Budget:
    """A number of seconds that are not to be exceeded, counted from its making."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Whether there is time for something that last took so many seconds."""
        return self.left() > 1.2 * seconds


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Median and spread of the rounds of one run."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
        "rounds": len(values),
    }


def ratios_to(times: dict[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """For each variant, the summary of its ratio to `base` in the same round."""
    return {
        name: summary([value / bare for value, bare in zip(values, times[base], strict=True)])
        for name, values in times.items()
        if name != base
    }


def device_copy_rate(device: Device, count: int, repeats: int = 20) -> float:
    """Bytes read and written a second by a large copy on the device."""
    source = torch.randint(-128, 128, (count,), dtype=torch.int8, device=device.torch)
    target = torch.empty_like(source)
    target.copy_(source)
    times = device.seconds(lambda: target.copy_(source), repeats)
    return 2 * count / statistics.median(times)


def pinned_rate(device: Device, count: int, repeats: int = 20) -> float:
    """Bytes a second from the device into page-locked memory."""
    source = torch.randint(-128, 128, (count,), dtype=torch.int8, device=device.torch)
    target = torch.empty(count, dtype=torch.int8, pin_memory=device.is_cuda)
    target.copy_(source, non_blocking=True)
    times = device.seconds(lambda: target.copy_(source, non_blocking=True), repeats)
    return count / statistics.median(times)


def ceilings(device: Device, *, tiny: bool) -> dict[str, float]:
    """What this device can do at most, in GB/s: the measure for everything else."""
    copied = MIB if tiny else 1024 * MIB
    pinned = MIB if tiny else 256 * MIB
    found = {
        "device_copy_gb_s": round(device_copy_rate(device, copied) * 1e-9, 2),
        "pinned_dtoh_gb_s": round(pinned_rate(device, pinned) * 1e-9, 2),
    }
    device.release()
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether shape, dtype and every bit are the same: NaN is NaN here, and 0 is not -0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    return torch.equal(one.contiguous().view(integers), other.contiguous().view(integers))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces the file in one step: whoever ends this process finds what was written last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(beside, path)


@contextmanager
def section(results: dict[str, Any], name: str, path: Path | None) -> Iterator[dict[str, Any]]:
    """A part of a benchmark: its time, or the error that ended it, stands in the JSON, and the others go on."""
    found: dict[str, Any] = {}
    results[name] = found
    start = time.monotonic()
    try:
        yield found
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
        print(f"{name}: {found['error']}", flush=True)
    finally:
        found["section_seconds"] = round(time.monotonic() - start, 2)
        if path is not None:
            write_json(path, results)


def has_errors(content: object) -> bool:
    """Whether an `error` stands anywhere in a benchmark's results."""
    if isinstance(content, dict):
        return "error" in content or any(map(has_errors, content.values()))
    return isinstance(content, list) and any(map(has_errors, content))


def parse_arguments(description: str) -> argparse.Namespace:
    """The command line of the benchmarks. Sizes are tiny wherever there is no GPU."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=150.0, help="rounds are left out beyond this time")
    parser.add_argument("--json", type=Path, help="write the results to this file, after every section")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, f"there is no GPU: torch {torch.__version__} finds no CUDA device\n")
    return options
