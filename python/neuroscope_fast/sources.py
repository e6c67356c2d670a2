"""Where the tensors of a run are: in memory, or in the shards of its directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .errors import RunError
from .files import plain_name
from .journal import Journal
from .records import DataRef
from .recovery import PARTIAL
from .shard_file import ShardFile

if TYPE_CHECKING:
    import torch


class Tensors(Protocol):
    """Tensors by key: a dict, or what makes them when they are asked for."""

    def __getitem__(self, key: str, /) -> torch.Tensor: ...


class MemorySource:
    """The tensors of a run that was kept in memory, by tensor key (`neuroscope_fast.keys.tensor_key`).

    A record without `data` is looked up under the key that its own hook id makes: hooks that share a tensor
    each have an entry, with the same tensor. Scales stand under the key with `/scale` behind it.
    """

    def __init__(self, tensors: Tensors):
        self._tensors = tensors

    def tensor(self, ref: DataRef) -> torch.Tensor:
        """The tensor as it is held. Raises RunError."""
        try:
            return self._tensors[ref.key]
        except KeyError:
            raise RunError(f"the run holds no tensor {ref.key!r} in memory") from None

    def of(self, keys: Iterable[str]) -> MemorySource:
        """A source that holds what there is under these keys, and what belongs to it, and nothing else."""
        found = {}
        for key in keys:
            for name in (key, f"{key}/scale", f"{key}/indices"):
                with contextlib.suppress(KeyError):
                    found[name] = self._tensors[name]
        return MemorySource(found)


class DirectorySource:
    """The tensors of a run directory. `journals`: those that stood beside shards when it was opened."""

    def __init__(self, folder: Path, journals: Mapping[str, Journal] | None = None):
        self.folder = folder
        self.journals = dict(journals or {})
        self._shards: dict[str, ShardFile] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_shards": {}}  # maps of files are opened again

    def tensor(self, ref: DataRef) -> torch.Tensor:
        """The tensor on the mapped file, without a copy. Raises RunError."""
        return self.shard(ref.file).tensor(ref.key)

    def shard(self, name: str) -> ShardFile:
        """The shard of this name, published or open. Raises RunError."""
        if name not in self._shards:
            self._shards[name] = self._open(name)
        return self._shards[name]

    def _open(self, name: str) -> ShardFile:
        path = self.folder / plain_name(name)
        try:
            return ShardFile.published(path)
        except FileNotFoundError:
            pass
        try:
            if name in self.journals:
                return ShardFile.open_shard(path.with_name(name + PARTIAL), self.journals[name])
            raise RunError(f"{path} is missing")
        except FileNotFoundError:
            return self._published_meanwhile(path)

    def _published_meanwhile(self, path: Path) -> ShardFile:
        try:
            return ShardFile.published(path)
        except FileNotFoundError:
            raise RunError(f"{path} is missing, and so is {path.name}{PARTIAL}") from None
