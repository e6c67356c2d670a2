"""Reads the journal of an open shard, in pure Python. The layout is in docs/file_format.md;
csrc/core/journal.cpp writes it.

A journal ends wherever its writer was killed, so no length in it is believed before the bytes it speaks of
are there and their CRC agrees. What stands before the first entry that does not hold up is whole.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

import msgspec

from .dtypes import DTYPES, MAX_RANK, DType
from .errors import RunError
from .keys import tensor_key
from .records import StepNote, decode_note

MAGIC = b"NSFJRNL1"
VERSION = 1
ALIGNMENT = 4096  # of the first tensor byte in the shard

_HEADER = struct.Struct("<8sIIQII")
JOURNAL_HEADER_BYTES = _HEADER.size
_ENTRY = struct.Struct("<II")
_STREAM = struct.Struct("<IB")
_RECORD_FRONT = struct.Struct("<IIIIBBH")
_RECORD_BACK = struct.Struct("<QQI")
_STREAM_KIND, _NOTE_KIND, _RECORD_KIND, _ACKNOWLEDGEMENT_KIND = 1, 2, 3, 4
_COUNT = struct.Struct("<Q")
_LARGEST_RECORD = 1 + _RECORD_FRONT.size + 8 * MAX_RANK + _RECORD_BACK.size
_LARGEST_SEARCH = 1 << 16  # bytes


class JournalHeaderError(RunError):
    """A journal without a whole header: its writer was killed as it opened the shard."""


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One stored tensor. `begin` and `end` are byte offsets from the shard's data start."""

    hook_id: str
    is_input: bool
    stream: int
    prompt: int
    step: int
    call: int
    is_scale: bool
    source: DType
    shape: tuple[int, ...]
    begin: int
    end: int
    crc32c: int
    note: StepNote
    is_indices: bool = False

    @property
    def key(self) -> str:
        return tensor_key(
            self.hook_id,
            self.step,
            prompt=self.prompt,
            call=self.call,
            is_input=self.is_input,
            is_scale=self.is_scale,
            is_indices=self.is_indices,
        )


@dataclass(frozen=True)
class Journal:
    """The whole part of a journal. `torn`: bytes stand behind it that are no whole entry. `acknowledged`: so many
    of the records, from the first, have been made durable.
    """

    dtype: DType
    data_start: int
    records: list[JournalRecord]
    torn: bool
    acknowledged: int = 0
    damaged: bool = False
    """Whole entries stand behind one that is not: its writer was not killed there."""


class _BadEntry(Exception):
    """An entry that does not hold up: reading stops before it."""


def parse_journal(data: bytes, name: str) -> Journal:
    """Everything whole in `data`. Raises JournalHeaderError, or RunError where the format version is unknown.

    `name` is the file's, for the messages.
    """
    dtype, data_start = _parse_header(data, name)
    records: list[JournalRecord] = []
    streams: dict[int, tuple[str, bool, bool]] = {}
    keys: set[str] = set()
    note = StepNote()
    position, end_of_data, acknowledged = _HEADER.size, 0, 0
    while True:
        payload = _entry_at(data, position)
        if payload is None:
            break
        try:
            kind, rest = payload[0], payload[1:]
            if kind == _STREAM_KIND:
                stream, side = _STREAM.unpack_from(rest)
                streams[stream] = (rest[_STREAM.size :].decode(), bool(side & 1), bool(side & 2))
            elif kind == _NOTE_KIND:
                note = decode_note(rest)
            elif kind == _RECORD_KIND:
                record = _parse_record(rest, dtype, streams, note)
                # Tensors follow each other without holes, and no key can be told from another of its name.
                if record.begin != end_of_data or record.key in keys:
                    raise _BadEntry
                end_of_data = record.end
                keys.add(record.key)
                records.append(record)
            elif kind == _ACKNOWLEDGEMENT_KIND:
                (count,) = _COUNT.unpack(rest)
                if not acknowledged <= count <= len(records):
                    raise _BadEntry
                acknowledged = count
            else:
                raise _BadEntry
        except (_BadEntry, struct.error, UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
            break
        position += _ENTRY.size + len(payload)
    torn = position != len(data)
    damaged = torn and _has_entry_behind(data, position)
    return Journal(dtype, data_start, records, torn=torn, acknowledged=acknowledged, damaged=damaged)


def _parse_header(data: bytes, name: str) -> tuple[DType, int]:
    if len(data) < _HEADER.size:
        raise JournalHeaderError(f"{name} is cut short: {len(data)} bytes are no journal header")
    magic, version, code, data_start, _, crc = _HEADER.unpack_from(data)
    if magic != MAGIC or zlib.crc32(data[: _HEADER.size - 4]) != crc:
        raise JournalHeaderError(f"{name} has no valid journal header")
    if version != VERSION:
        raise RunError(f"{name} has journal format version {version}; this neuroscope-fast reads version {VERSION}")
    if code >= len(DTYPES) or data_start == 0 or data_start % ALIGNMENT:
        raise JournalHeaderError(f"{name} names dtype {code} and data start {data_start}, which no writer makes")
    return DTYPES[code], data_start


def _entry_at(data: bytes, position: int) -> bytes | None:
    """The payload of the entry at `position`, or None where no whole entry starts there."""
    start = position + _ENTRY.size
    if start > len(data):
        return None
    length, crc = _ENTRY.unpack_from(data, position)
    # An empty payload has no kind. Its CRC is 0, so a tail of zero bytes would pass for entries without end.
    if length == 0 or length > len(data) - start:
        return None
    payload = data[start : start + length]
    return payload if zlib.crc32(payload) == crc else None


def _has_entry_behind(data: bytes, position: int) -> bool:
    """Whether a whole entry stands somewhere behind the one at `position`. Looks at so much as a writer that is killed
    leaves no more of, and at entries of a size that records have.
    """
    end = min(len(data), position + _LARGEST_SEARCH)
    for start in range(position + 1, end - _ENTRY.size):
        length = _ENTRY.unpack_from(data, start)[0]
        if 0 < length <= _LARGEST_RECORD and _entry_at(data, start) is not None:
            return True
    return False


def _parse_record(
    rest: bytes, dtype: DType, streams: dict[int, tuple[str, bool, bool]], note: StepNote
) -> JournalRecord:
    stream, prompt, step, call, is_scale, source, rank = _RECORD_FRONT.unpack_from(rest)
    back = _RECORD_FRONT.size + 8 * rank
    if rank > MAX_RANK or len(rest) != back + _RECORD_BACK.size or source >= len(DTYPES) or stream not in streams:
        raise _BadEntry
    shape = struct.unpack_from(f"<{rank}Q", rest, _RECORD_FRONT.size)
    offset, size, crc32c = _RECORD_BACK.unpack_from(rest, back)
    if size != math.prod(shape) * dtype.size:
        raise _BadEntry
    hook_id, is_input, is_indices = streams[stream]
    return JournalRecord(
        hook_id=hook_id,
        is_input=is_input,
        is_indices=is_indices,
        stream=stream,
        prompt=prompt,
        step=step,
        call=call,
        is_scale=bool(is_scale),
        source=DTYPES[source],
        shape=shape,
        begin=offset,
        end=offset + size,
        crc32c=crc32c,
        note=note,
    )
