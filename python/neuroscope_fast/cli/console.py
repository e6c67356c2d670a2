"""What all commands share in speaking: the two consoles, JSON, sizes, and text that may hold anything.

What was asked for goes to stdout, everything else (errors, notices, progress) to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from ..errors import one_line

# Of JSON's text what it does not escape itself: C1 controls, and what turns the direction of writing or ends a line.
_STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_WIDE = 10_000  # columns, where stdout is no terminal: nothing is wrapped

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def console() -> Console:
    """For stdout: styled and as wide as the terminal, or plain and never wrapped where it is none."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, in UTF-8 whatever the terminal's encoding."""
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:  # the name of a folder may be no UTF-8
        data = json.dumps(msgspec.to_builtins(value)).encode()
    text = msgspec.json.format(data, indent=2).decode()
    print_bytes(_STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode() + b"\n")


def print_bytes(data: bytes) -> None:
    """Bytes on stdout as they are."""
    sys.stdout.flush()
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(data.decode())
        return
    binary.write(data)
    binary.flush()


def say(message: str) -> None:
    """One line on stderr, whatever stands in the message."""
    print(one_line(message), file=sys.stderr, flush=True)


def line(out: Console, *parts: str | tuple[str, str]) -> None:
    """One line on stdout of texts, or of (text, style), which is not broken at the console's width. Names in a run may
    be of any origin: what stands in the texts cannot end the line or steer the terminal.
    """
    texts = [one_line(part) if isinstance(part, str) else (one_line(part[0]), part[1]) for part in parts]
    out.print(Text.assemble(*texts), soft_wrap=True)


def paragraphs(out: Console, text: str) -> None:
    """A text of many lines on stdout."""
    out.print(Text(printable(text)), soft_wrap=True)


def printable(text: str) -> str:
    """`text` without what could steer a terminal: such characters are shown as U+FFFD."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def size_text(size: int | float) -> str:
    """`15.9 KiB`"""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def count_text(count: int, what: str) -> str:
    """`1 record`, `1,024 records`"""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
