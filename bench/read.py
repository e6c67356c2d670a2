"""read: opening a capture and reading tensors from it, beside torch.load and safetensors.

The same tensors stand in a run, in a file of torch.save and in one of safetensors. A contestant opens its file anew in
each round and copies so many tensors, chosen at random, into memory that stands ready: what is only mapped would not
have been read. Cold: no page of any file is in the page cache when a round begins, which is looked at; the disk
below may have caches of its own. Warm: all of it is there. Run: python bench/read.py --folder DISK
"""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import CheckError, Contestant, Row, missing, race, settle_process, timed

if TYPE_CHECKING:
    import torch
    from results import Results


@dataclass(frozen=True)
class Shape:
    """What a run holds: `steps` forward passes through `hooks` hooks, each tensor [1, positions, hidden] float32."""

    name: str
    hooks: int
    steps: int
    positions: int
    hidden: int

    @property
    def tensor_bytes(self) -> int:
        return 4 * self.positions * self.hidden

    @property
    def count(self) -> int:
        return self.hooks * self.steps


# 640 MiB of long prompts in tensors of 4 MiB; 96 MiB of decoded tokens in 6,144 tensors of 16 KiB.
SHAPES = (Shape("prefill", 16, 10, 512, 2048), Shape("decode", 48, 128, 1, 4096))
QUICK_SHAPES = (Shape("prefill", 4, 2, 64, 512), Shape("decode", 8, 16, 1, 512))
SOME = 64
"""Tensors that are read of the many."""


@dataclass
class Data:
    """One set of tensors in three forms, and the way to a file's pages."""

    shape: Shape
    folder: Path
    hooks: list[str]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def saved(self) -> Path:
        return self.folder / "tensors.pt"

    @property
    def safetensors(self) -> Path:
        return self.folder / "tensors.safetensors"

    def files(self) -> list[Path]:
        return [*(each for each in self.run.iterdir() if each.is_file()), self.saved, self.safetensors]

    def chosen(self, count: int) -> list[tuple[str, int]]:
        """Hook and step of so many different tensors, the same at every call."""
        every = [(hook, step) for hook in self.hooks for step in range(self.shape.steps)]
        return random.Random(1).sample(every, min(count, len(every)))

    def target(self) -> torch.Tensor:
        import torch

        return torch.zeros(1, self.shape.positions, self.shape.hidden)

    def expected(self, hook: str, step: int) -> torch.Tensor:
        """Made anew from its name, so that no form is compared with another's reading of it."""
        return values(self.shape, self.hooks.index(hook) + len(self.hooks) * step)


@functools.cache
def base(shape: Shape) -> torch.Tensor:
    import torch

    return torch.rand(1, shape.positions, shape.hidden, generator=torch.Generator().manual_seed(1))


def values(shape: Shape, number: int) -> torch.Tensor:
    """Of the tensor of this number: no two are alike."""
    return base(shape) + number


def write(shape: Shape, folder: Path) -> Data:
    """Captures the tensors from modules that hand them on, then saves what the run holds in the other forms."""
    import neuroscope_fast as nsf
    import torch
    from neuroscope_fast.keys import tensor_key
    from safetensors.torch import save_file
    from torch import nn

    class Source(nn.Module):
        """Calls each of its modules with values of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Identity() for _ in range(shape.hooks))

        def forward(self, step: int) -> None:
            for number, layer in enumerate(self.layers):
                layer(values(shape, number + shape.hooks * step))

    model = Source()
    with nsf.capture(model, "layers.*:residual", out=folder / "run") as capture:
        for step in range(shape.steps):
            model(step)
    hooks = capture.result.hooks
    tensors = {
        tensor_key(hook, step): tensor.clone() for hook in hooks for step, tensor in enumerate(capture.result[hook])
    }
    torch.save(tensors, folder / "tensors.pt")
    save_file(tensors, folder / "tensors.safetensors")
    data = Data(shape, folder, hooks)
    for file in data.files():
        descriptor = os.open(file, os.O_RDWR)
        os.fsync(descriptor)  # pages that are not on disk yet cannot be dropped
        os.close(descriptor)
    return data


def drop_from_cache(files: Sequence[Path]) -> bool:
    """Whether next to no page of the files is left: those that are still being read ahead cannot be dropped yet."""
    for _ in range(50):
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        if max(map(resident_share, files)) < 0.001:
            return True
        time.sleep(0.01)
    return False


LOWEST_BIT = bytes(value & 1 for value in range(256))


def resident_share(file: Path) -> float:
    """The share of a file's pages that are in the page cache."""
    size = file.stat().st_size
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        address = ctypes.addressof(first := ctypes.c_char.from_buffer(mapped))
        pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        if ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
        del first  # the mapping cannot be closed while anything points into it
        return sum(bytes(found).translate(LOWEST_BIT)) / pages


Reader = Callable[[list[tuple[str, int]], Callable[["torch.Tensor"], None]], None]


def readers(data: Data) -> list[tuple[str, Reader, str]]:
    """Each opens its form of the data and hands over the tensors asked for, one by one."""
    import neuroscope_fast as nsf
    import torch
    from neuroscope_fast.keys import tensor_key
    from safetensors import safe_open
    from safetensors.torch import load_file

    def from_run(chosen: list[tuple[str, int]], take: Callable[[torch.Tensor], None]) -> None:
        run = nsf.open(data.run)
        for hook, step in chosen:
            take(run[hook][step])

    def from_dict(load: Callable[[], dict[str, torch.Tensor]]) -> Reader:
        def read(chosen: list[tuple[str, int]], take: Callable[[torch.Tensor], None]) -> None:
            tensors = load()
            for hook, step in chosen:
                take(tensors[tensor_key(hook, step)])

        return read

    def from_safe_open(chosen: list[tuple[str, int]], take: Callable[[torch.Tensor], None]) -> None:
        with safe_open(data.safetensors, framework="pt") as opened:
            for hook, step in chosen:
                take(opened.get_tensor(tensor_key(hook, step)))

    return [
        ("neuroscope-fast, open", from_run, "with every tensor's record"),
        ("torch.load", from_dict(lambda: torch.load(data.saved, weights_only=True)), "reads the whole file"),
        ("torch.load, mmap", from_dict(lambda: torch.load(data.saved, weights_only=True, mmap=True)), ""),
        ("safetensors, load_file", from_dict(lambda: load_file(data.safetensors)), ""),
        ("safetensors, safe_open", from_safe_open, ""),
    ]


def read_rows(data: Data, count: int, rounds: int, *, cold: bool) -> list[Row]:
    import torch

    chosen = data.chosen(count)
    target = data.target()

    def made(name: str, read: Reader, note: str) -> Contestant:
        def work() -> float:
            if cold and not drop_from_cache(data.files()):
                raise RuntimeError("files that are read elsewhere too stay in the page cache")
            return timed(lambda: read(chosen, target.copy_))

        def check() -> None:
            left = list(chosen)

            def compare(tensor: torch.Tensor) -> None:
                hook, step = left.pop(0)
                if not torch.equal(tensor, data.expected(hook, step)):
                    raise CheckError(f"{hook} of step {step} has other values")

            read(chosen, compare)
            if left:
                raise CheckError(f"{len(left)} tensors were not handed over")

        return Contestant(name, work, check, note)

    ways = readers(data)
    if cold and not drop_from_cache(data.files()):  # a tmpfs, which is the page cache
        return [missing(name, "the file system keeps its pages in memory") for name, _, _ in ways]
    return race([made(*way) for way in ways], rounds=rounds)


def measure(results: Results, data: Data, rounds: int) -> None:
    shape = data.shape
    size = f"{shape.tensor_bytes >> 20} MiB" if shape.tensor_bytes >= 1 << 20 else f"{shape.tensor_bytes >> 10} KiB"
    for cold in (False, True):
        for count in dict.fromkeys((1, min(SOME, shape.count), shape.count)):
            panel = f"{'cold' if cold else 'warm'}, {shape.name}"
            line = f"{count:,} of {shape.count:,} tensors of {size}"
            rows = read_rows(data, count, min(rounds, 5) if cold else rounds, cold=cold)
            bases = ("torch.load, mmap", "safetensors, safe_open") if rows[0].refused is None else ()
            facts = {"tensors": shape.count, "read": count, "tensor_bytes": shape.tensor_bytes, "cold": cold}
            results.add(f"{panel}: {line}", "ms", rows, scale=1e3, bases=bases, panel=panel, line=line, **facts)


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=7)
    results = Results("read", "what it takes to open a capture and read tensors from it", options)
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="bench-read-"))
        try:
            data = write(shape, folder)
            gc.freeze()  # the harness collects before every round, and what was imported need not be walked each time
            measure(results, data, options.rounds)
        finally:
            shutil.rmtree(folder)
    return results.finish(log=True)


if __name__ == "__main__":
    raise SystemExit(main())
