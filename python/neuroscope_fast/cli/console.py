"""What all commands share in speaking: the two consoles, JSON, sizes, and text that may hold anything.

What was asked for goes to stdout, everything else (errors, notices, progress) to stderr.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

_WIDE = 10_000  # columns, where stdout is no terminal: nothing is wrapped

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def console() -> Console:
    """For stdout: styled and as wide as the terminal, or plain and never wrapped where it is none."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, in UTF-8 whatever the terminal's encoding."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    print_bytes(data)


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
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


def line(out: Console, *parts: str | tuple[str, str]) -> None:
    """One line on stdout of texts, or of (text, style), which is not broken at the console's width."""
    out.print(Text.assemble(*parts), soft_wrap=True)


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
