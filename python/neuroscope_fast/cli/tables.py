"""Tables of results on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..errors import one_line

if TYPE_CHECKING:
    from ..analysis.tables import Table


def print_tables(out: Console, tables: Sequence[Table]) -> None:
    """Each with its title above and its note beneath."""
    for number, table in enumerate(tables):
        if number:
            out.print()
        print_table(out, table)


def print_table(out: Console, table: Table) -> None:
    """Numbers are aligned to the right. Texts may be of any origin: nothing in them is markup or a control."""
    from ..analysis.tables import cell_text

    out.print(Text(one_line(table.title), style="bold"), soft_wrap=True)
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(table.columns):
        numeric = all(not isinstance(row[column], str) for row in table.rows)
        drawn.add_column(Text(one_line(name)), justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(one_line(cell_text(cell))) for cell in row))
    out.print(drawn)
    if table.note:
        out.print(Text(one_line(table.note), style="dim"), soft_wrap=True)
