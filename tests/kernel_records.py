"""Strided records for the tests of the kernels, the grids they are launched with, and the way into the interpreter."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neuroscope_fast.kernels import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SOURCES = ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
TARGETS = SOURCES[1:]
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Record:
    """What a launch is told of a record: element `start` of the one-dimensional `storage` is its address."""

    storage: torch.Tensor
    start: int
    length: int
    stride: int
    sizes: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (0, 0, 0)
    table: torch.Tensor | None = None
    looked_up: int = 0
    per_row: bool = False

    @property
    def rows(self) -> int:
        return self.sizes[0] * self.sizes[1] * self.sizes[2]

    def elements(self) -> torch.Tensor:
        """The logical elements, [rows * length]."""
        return reference.gather(
            self.storage,
            self.start,
            length=self.length,
            stride=self.stride,
            sizes=self.sizes,
            strides=self.strides,
            table=self.table,
            looked_up=self.looked_up,
            per_row=self.per_row,
        )

    def words(self) -> torch.Tensor:
        """The storage from the record's address on, as integers of the elements' size: what a kernel takes."""
        return self.storage.view(WORDS[self.storage.dtype.itemsize])[self.start :]

    def layout(self) -> list[int]:
        """length, stride, size1, stride1, size2, stride2, size3, stride3."""
        pairs = zip(self.sizes, self.strides, strict=True)
        return [self.length, self.stride, *(number for pair in pairs for number in pair)]

    def constants(self) -> dict[str, Any]:
        return {"TABLE": self.looked_up, "PER_ROW": self.per_row}


def record_of(tensor: torch.Tensor) -> Record:
    """The record of a tensor of up to four dimensions, as the engine describes it."""
    storage = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    shape, strides = [1, 1, 1, *tensor.shape][-4:], [0, 0, 0, *tensor.stride()][-4:]
    return Record(
        storage,
        tensor.storage_offset(),
        shape[3],
        strides[3],
        (shape[2], shape[1], shape[0]),
        (strides[2], strides[1], strides[0]),
    )


def grid(record: Record, begin: int, count: int, rows: int, columns: int) -> int:
    """Programs of a gather_cast launch: what the engine computes in C++."""
    if rows == 1:
        return -(-count // columns)
    touched = (begin + count - 1) // record.length - begin // record.length + 1
    return -(-touched // rows) * -(-(count if touched == 1 else record.length) // columns)


def run_in_the_interpreter(path: str) -> None:
    """Runs the kernel tests of a file where Triton interprets, which it decides when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", path]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    folder = Path(path).parent.parent
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped" not in result.stdout


@contextlib.contextmanager
def floats_of_a_gpu() -> Iterator[None]:
    """For kernels in the interpreter: ranges with bounds that were computed, and no warnings."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as monkeypatch, np.errstate(all="ignore"):
        # Its scalars are arrays of one element, which numpy >= 2.4 does not take for the bounds of a range.
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
        yield  # a GPU raises no flags for a NaN or an overflow
