"""How far behind the disk may be: what the option `durability` says. And sizes, as they are written."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import OptionError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_NUMBER_AND_UNIT = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)")


class Durability(NamedTuple):
    """Everything stored is made durable whenever `bytes` more of it have been stored, or `seconds` have passed; 0 means
    never. `at_close`: shards that are full wait for the end too.
    """

    at_close: bool = False
    bytes: int = 0
    seconds: float = 0.0


def size_in_bytes(text: str) -> int | None:
    """`256MiB`, `4GiB`, `500MB`, `1048576`; None for what is no size of at least one byte."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS.get(match[2].lower(), 0)) if match is not None else 0
    return size if size >= 1 else None


def parse_durability(text: str) -> Durability:
    """`close`, `shard`, a size such as `64MiB`, or seconds such as `5s`. Raises OptionError."""
    if text in ("close", "shard"):
        return Durability(at_close=text == "close")
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is not None and match[2] == "s" and 0.001 <= float(match[1]) <= 86400 * 365:
        return Durability(seconds=float(match[1]))
    size = size_in_bytes(text)
    if match is None or not match[2] or size is None or size >= 1 << 63:
        raise OptionError(
            f"there is no durability {text!r}: it is 'close', 'shard', a size such as '64MiB' or seconds such as '5s'"
        )
    return Durability(bytes=size)
