"""Decodes the JSON of a safetensors header, in which no key may come twice.

Two readers that each believe another of two equal keys would read different tensors from the same file. Decoders keep
the last one in silence, so keys are counted: each entry has four colons, one behind its own name and one behind each of
its fields. Where there are more (names may hold some) a slower decoder looks at each object.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Annotated, Any

import msgspec

from .decoding import no_collection
from .dtypes import MAX_RANK
from .errors import RunError

Size = Annotated[int, msgspec.Meta(ge=0)]

# `__metadata__` is cut away, so that an entry has all its fields or ends the decoding: objects that lack them would
# take twenty times the memory of their text. Every writer puts it first.
_METADATA = re.compile(
    rb'[ \t\n\r]*\{[ \t\n\r]*"__metadata__"[ \t\n\r]*:[ \t\n\r]*'
    rb'(\{[^{}"]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^{}"]*)*\})'
    rb"[ \t\n\r]*(?:,(?![ \t\n\r]*\})|(?=\}))",
    re.DOTALL,
)
_LONGEST_METADATA = 1 << 20  # bytes
_CANNOT_DECODE = (msgspec.MsgspecError, ValueError, RecursionError)  # ValueError: that of UTF-8, and json's own


class HeaderEntry(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One tensor, as the header has it: offsets are those from the first tensor byte."""

    dtype: str
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_RANK)]
    data_offsets: tuple[Size, Size]


_decoder = msgspec.json.Decoder(dict[str, HeaderEntry])
_metadata_decoder = msgspec.json.Decoder(dict[str, str])


def decode_header(header: bytes, name: str) -> dict[str, HeaderEntry]:
    """The tensors of a header, each key there once, their numbers not yet looked at. Raises RunError, which calls the
    file `name`.
    """
    try:
        with no_collection():
            metadata = _METADATA.match(header, 0, _LONGEST_METADATA)
            if metadata is not None:
                _metadata_decoder.decode(metadata[1])
                _need_single_keys(metadata[1])
                header = b"{" + header[metadata.end() :]
            stored = _decoder.decode(header)
            if header.count(b":") != 4 * len(stored):
                _need_single_keys(header)
            if "__metadata__" in stored:
                raise ValueError("its __metadata__ is a tensor")
        return stored
    except _CANNOT_DECODE as error:
        raise RunError(f"{name} is no whole shard: its header cannot be read: {error}") from error


def _need_single_keys(text: bytes) -> None:
    """ValueError where a key comes twice in an object of `text`, which is valid JSON of a known form."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {twice!r} is there twice")

    json.loads(text.decode(), object_pairs_hook=check)
