"""A table of a result, for people: the terminal, the documentation and HTML pages print the same one."""

from __future__ import annotations

import msgspec

Cell = str | int | float | None


class Table(msgspec.Struct, frozen=True):
    """`rows` hold a cell for each column; None is a number that there is none of. `note` stands beneath."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


def cell_text(cell: Cell) -> str:
    """How a cell is printed: numbers with three significant digits, nothing as a dash."""
    if cell is None or cell != cell:  # noqa: PLR0124 - NaN
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return str(cell)
