"""Takes tensors out of a published shard: those of a prompt that will be captured anew."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

from .errors import RunError
from .manifest import replace_files, sync_folder
from .recovery import LOST_KEY
from .shard_file import ShardFile
from .shard_repair import shard_front

_PIECE = 64 << 20  # bytes copied at once


def trim_shard(folder: Path, name: str, kept: Container[str]) -> None:
    """Leave only the tensors `kept` in a shard, and its file away where that is none.

    Tensors of a run stand in the order of its prompts, so that what goes is mostly the end of the file. What goes and
    stands before something that stays is kept as bytes under a key of no hook, since a safetensors file has no holes.
    The shard is replaced in one step. Raises RunError where it cannot be read, OSError where it cannot be written.
    """
    path = folder / name
    shard = ShardFile.published(path)
    some = any(key in kept for key in shard.entries)
    if some and all(key in kept or key.startswith(LOST_KEY) for key in shard.entries):
        return
    if not some:
        path.unlink()
        sync_folder(folder)
        return
    stored = [(key, entry) for key, entry in shard.entries.items() if key in kept]
    stored.sort(key=lambda item: (item[1].begin, item[1].end))
    data_start = min(entry.begin for entry in shard.entries.values())
    end = stored[-1][1].end
    entries = [(key, entry.shape, entry.begin - data_start, entry.end - data_start) for key, entry in stored]
    front = shard_front(path, stored[0][1].dtype.header, entries, data_start, end - data_start)
    replace_files(folder, {name: _pieces(path, front, end)})


def _pieces(path: Path, front: bytes, end: int) -> Iterator[bytes]:
    """The bytes of a file up to `end`, with `front` in place of as many at their beginning."""
    yield front
    with open(path, "rb") as file:
        file.seek(len(front))
        left = end - len(front)
        while left > 0:
            piece = file.read(min(_PIECE, left))
            if not piece:
                raise RunError(f"{path} is cut short: it has become smaller since it was opened")
            yield piece
            left -= len(piece)
