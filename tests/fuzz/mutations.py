"""Changes to bytes and to JSON that files of other origin may have, seeded: a helper of the fuzz targets."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    31,
    32,
    127,
    255,
    256,
    4095,
    4096,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
]
NUMBERS += [2**63, 2**64 - 1]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        [],
        {},
        [[]],
        -1,
        0.5,
        2**64,
        10**300,
        -(2**63),
        1e308,
        "\x00",
        "\n",
        "../../x",
        "/etc/passwd",
    ),
    *(
        "..",
        "a\\b",
        "\x1b[31m",
        "\x9b31m",
        "\u202e",
        "[red]x[/red]",
        "[link=http://x.y]z[/link]",
        "<img src=x onerror=y>",
    ),
    *("![a](javascript:b)", "```\n# x", "n" * 10_000, "*" * 40, "{0..4095}" * 40, "{" * 40, "\ud800", "0x1", "é🙂"),
    *([0] * 200, [2**62, 4], [2**40, 0], {"file": "..", "key": "\n"}, {"a": {"b": {"c": [1, [2, [3]]]}}}),
]


def mutate(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with a few changes: bits, cuts, a piece of another seed, a length or number that is none, a JSON value."""
    for _ in range(chance.randint(1, 3)):
        data = chance.choice((_flip, _flip, _cut, _number, _digits, _copy, mutate_json, _splice(others)))(chance, data)
    return data


def mutate_json(chance: random.Random, data: bytes) -> bytes:
    """`data` with a value somewhere in its first JSON document replaced, taken out, repeated or renamed."""
    start = next((at for at in range(min(len(data), 64)) if data[at : at + 1] in (b"{", b"[")), None)
    if start is None:
        return data
    try:
        text = data[start:].decode("utf-8", "surrogateescape")
        document, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return _flip(chance, data)
    places: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        each = pending.pop()
        for key in list(each) if isinstance(each, dict) else range(len(each)):
            places.append((each, key))
            if isinstance(each[key], (dict, list)):
                pending.append(each[key])
    if not places:
        return data
    holder, key = chance.choice(places)
    deed = chance.randrange(5)
    if deed == 0 and isinstance(holder, dict):
        holder[chance.choice([str(value) for value in VALUES])] = holder.pop(key)
    elif deed == 1:
        del holder[key]
    elif deed == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif deed == 3:
        holder[key] = [holder[key]]
    else:
        holder[key] = chance.choice(VALUES)
    rest = text[end:].encode("utf-8", "surrogateescape")
    return (
        data[:start] + json.dumps(document, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass") + rest
    )


def _flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4) if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance: random.Random, data: bytes) -> bytes:
    at, length = chance.randint(0, len(data)), chance.choice((1, 4, 8, 100, len(data)))
    return data[:at] + data[at + length :]


def _number(chance: random.Random, data: bytes) -> bytes:
    """A field of 1 to 8 bytes, little-endian, as the lengths of shards and journals are."""
    form = chance.choice(("<B", "<H", "<I", "<Q"))
    size = struct.calcsize(form)
    at = chance.randint(0, max(len(data) - size, 0))
    return data[:at] + struct.pack(form, chance.choice(NUMBERS) % 256**size) + data[at + size :]


def _digits(chance: random.Random, data: bytes) -> bytes:
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not digits:
        return data
    at = chance.choice(digits)
    return data[:at] + str(chance.choice(NUMBERS)).encode() + data[at + 1 :]


def _copy(chance: random.Random, data: bytes) -> bytes:
    start, at = chance.randint(0, len(data)), chance.randint(0, len(data))
    return data[:at] + data[start : start + chance.randint(1, 64)] * chance.choice((1, 1, 2, 50)) + data[at:]


def _splice(others: Sequence[bytes]) -> Any:
    def splice(chance: random.Random, data: bytes) -> bytes:
        other = chance.choice(others)
        start, at = chance.randint(0, len(other)), chance.randint(0, len(data))
        return data[:at] + other[start:] if chance.random() < 0.5 else data[:at] + other[start : start + 64] + data[at:]

    return splice
