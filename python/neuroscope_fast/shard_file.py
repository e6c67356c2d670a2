"""One shard on disk: where its tensors are, and the tensors themselves on the mapped file.

A published shard is described by its safetensors header, an open one (`.partial`) by its journal. Neither is
believed: a length or an offset that the file does not bear out is a RunError that names the file.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .dtypes import BY_HEADER, DType
from .errors import RunError
from .files import open_regular
from .journal import Journal
from .shard_header import HeaderEntry, decode_header

if TYPE_CHECKING:
    import torch

LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


class Entry(NamedTuple):
    """One tensor. `begin` and `end` are byte offsets in the file."""

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


_sizes = {header: dtype.size for header, dtype in BY_HEADER.items()}


class _HeaderEntries(Mapping[str, Entry]):
    """The checked entries of a header. An `Entry` is made when it is asked for: a shard has up to 100,000 and
    more.
    """

    def __init__(self, stored: dict[str, HeaderEntry], data_start: int):
        self._stored = stored
        self._data_start = data_start

    def __getitem__(self, key: str) -> Entry:
        item = self._stored[key]
        begin, end = item.data_offsets
        return Entry(BY_HEADER[item.dtype], item.shape, self._data_start + begin, self._data_start + end)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class ShardFile:
    """A shard whose tensors can be looked at. Files are mapped when the first tensor is asked for."""

    def __init__(self, path: Path, entries: Mapping[str, Entry], length: int):
        self.path = path
        self.entries = entries
        self._length = length  # bytes of the file that the entries need
        self._storage: torch.UntypedStorage | None = None
        self._bytes: memoryview | None = None

    @classmethod
    def published(cls, path: Path) -> ShardFile:
        """A whole safetensors file. Raises RunError where it is torn, FileNotFoundError where it is not
        there.
        """
        with open_regular(path) as file:
            size = _size(file)
            try:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > size - 8:
                    raise RunError(
                        f"{path} is no whole shard: its header of {length} bytes does not fit in {size} bytes"
                    )
                if length > LARGEST_HEADER:
                    raise RunError(
                        f"{path} is no whole shard: its header has {length} bytes, {LARGEST_HEADER} are allowed"
                    )
                header = file.read(length)
            except OSError as error:
                raise RunError(f"{path} cannot be read: {error.strerror}") from error
        return cls(path, parse_header(header, 8 + length, size, str(path)), size)

    @classmethod
    def open_shard(cls, path: Path, journal: Journal) -> ShardFile:
        """A shard still being written, or left by a crash: what its journal names and the file holds."""
        with open_regular(path) as file:
            size = _size(file)
        entries = {}
        for record in journal.records:
            begin, end = journal.data_start + record.begin, journal.data_start + record.end
            if end <= size:
                entries[record.key] = Entry(journal.dtype, record.shape, begin, end)
        return cls(path, entries, max((entry.end for entry in entries.values()), default=0))

    def entry(self, key: str) -> Entry:
        """Where `key` is. Raises RunError."""
        try:
            return self.entries[key]
        except KeyError:
            raise RunError(f"{self.path} holds no tensor {key!r}") from None

    def tensor(self, key: str) -> torch.Tensor:
        """The tensor on the mapped file, without a copy. Writing to it changes memory, never the file."""
        import torch

        entry = self.entry(key)
        dtype = getattr(torch, entry.dtype.name)
        if entry.begin == entry.end:
            try:
                return torch.empty(entry.shape, dtype=dtype)
            except (RuntimeError, OverflowError, TypeError) as error:
                raise RunError(f"{self.path}: {key!r} has a shape that torch cannot hold") from error
        if self._storage is None:
            with self._opened():
                try:
                    storage = torch.UntypedStorage.from_file(str(self.path), False, self._length)
                except RuntimeError as error:
                    raise RunError(f"{self.path} cannot be mapped: {error}") from error
            assert isinstance(storage, torch.UntypedStorage)
            self._storage = storage
        strides = [math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape))]
        empty = torch.empty(0, dtype=dtype)
        return empty.set_(self._storage, entry.begin // entry.dtype.size, entry.shape, strides)

    def view(self, key: str) -> memoryview:
        """The stored bytes of `key`, read-only and without a copy."""
        entry = self.entry(key)
        if entry.begin == entry.end:
            return memoryview(b"")
        if self._bytes is None:
            with self._opened() as file:
                try:
                    self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                except OSError as error:
                    raise RunError(f"{self.path} cannot be mapped: {error.strerror}") from error
        return self._bytes[entry.begin : entry.end]

    def _opened(self) -> BinaryIO:
        """The file, to be mapped. Reading a mapped page that a file does not have kills the process, so its length is
        looked at again.
        """
        try:
            file = open_regular(self.path)
        except FileNotFoundError:
            raise RunError(f"{self.path} is gone since it was opened") from None
        if _size(file) < self._length:
            file.close()
            raise RunError(f"{self.path} is cut short: it has become smaller since it was opened")
        return file


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def parse_header(header: bytes, data_start: int, file_size: int, name: str) -> Mapping[str, Entry]:
    """The entries of a safetensors header, checked: the tensors fill the file from `data_start`, each byte
    once.

    Raises RunError, which calls the file `name`.
    """
    stored = decode_header(header, name)
    end_of_data = 0
    for key, item in sorted(stored.items(), key=lambda pair: pair[1].data_offsets):
        begin, end = item.data_offsets
        size = _sizes.get(item.dtype, 0)
        if size == 0:
            raise RunError(f"{name} is no whole shard: {key!r} has the unknown dtype {item.dtype!r}")
        if end - begin != math.prod(item.shape) * size:
            raise RunError(f"{name} is no whole shard: {key!r} has {end - begin} bytes, not the size of its shape")
        if begin != end_of_data:
            problem = "overlaps the tensor before it" if begin < end_of_data else "leaves a hole before it"
            raise RunError(f"{name} is no whole shard: {key!r} {problem}")
        if (data_start + begin) % size:
            raise RunError(f"{name} cannot be mapped: {key!r} is not aligned to its element size")
        end_of_data = end
    if data_start + end_of_data != file_size:
        raise RunError(
            f"{name} is no whole shard: it has {file_size} bytes, its header says {data_start + end_of_data}"
        )
    return _HeaderEntries(stored, data_start)
