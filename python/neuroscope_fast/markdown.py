"""Puts text of any origin into Markdown without changing the document around it.

A Markdown viewer shows the text as it was; text without Markdown in it comes through byte for byte. What
starts a block or a span is in the CommonMark specification, https://spec.commonmark.org/0.31.2/, tables in
GitHub's.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SPAN = re.compile(
    r"""[\\`*<]              # escapes, code, emphasis, HTML
      | (?<![^\W_])_         # an underscore emphasises only where a word begins
      | _(?![^\W_])          # or ends
      | ](?=[(\[])           # links
      | &(?=[#a-zA-Z])       # entities
      | ~(?=~)|(?<=~)~       # GitHub's strikethrough
    """,
    re.VERBOSE,
)
_BLOCK = re.compile(
    r"""\#{1,6}(?=\s|$)      # headings
      | [-+](?=\s|$)         # list items
      | >                    # quotations
      | \[                   # link definitions
      | [-=:|](?=[-=:|\s]*$) # lines under headings, rules, table rules
      | ~(?=~~)              # code fences (those of backticks are escaped as spans)
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(r"(\d{1,9})([.)])(?=\s|$)")


def inline(text: str, limit: int = 1000) -> str:
    """`text` on one line, for use behind other text in a heading, a list item or a paragraph. At most `limit`
    characters of it.
    """
    line = " ".join(clean(text).split())
    return _SPAN.sub(r"\\\g<0>", line if len(line) <= limit else line[:limit] + "…")


def paragraph(text: str, *, begins_line: bool) -> str:
    """`text` as one paragraph, its line breaks kept and its blank lines left out.

    `begins_line`: nothing stands in front of it, so that its first line must not start a block either.
    """
    lines = [line for line in clean(text).split("\n") if line.strip()]
    return "\n".join(_line(line, begins_line or index > 0) for index, line in enumerate(lines))


def clean(text: str) -> str:
    """`text` with one kind of line break, and without what could steer a terminal or turn the direction of writing."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _line(line: str, begins_line: bool) -> str:
    body = line.lstrip(" \t")
    indent = line[: len(line) - len(body)] if not begins_line else ""
    front = ""
    if begins_line:
        number, block = _NUMBER.match(body), _BLOCK.match(body)
        if number:
            front, body = f"{number[1]}\\{number[2]}", body[number.end() :]
        elif block:
            front, body = "\\" + body[0], body[1:]
    return indent + front + _SPAN.sub(r"\\\g<0>", body)
