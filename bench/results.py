"""What a benchmark found: sections of rows, written as JSON, shown as a table and drawn as a picture."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Row, floors, ratios, rises, spread
from provenance import provenance


@dataclass
class Results:
    """One benchmark's sections, in the order in which they were measured.

    A section has a name, a unit, and rows; a row has a name, a note, and either `refused` (why it has no figures) or
    `median`, `p20`, `p80`, `rounds` and, under `ratio_to`, the same of its ratios.
    """

    question: str
    asked: str
    options: argparse.Namespace
    sections: list[dict[str, Any]] = field(default_factory=list)
    origin: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.origin = provenance(self.options.folder)

    def add(
        self,
        name: str,
        unit: str,
        rows: list[Row],
        *,
        scale: float = 1.0,
        amount: float | None = None,
        bases: tuple[str, ...] = (),
        less: str | None = None,
        **facts: Any,
    ) -> dict[str, Any]:
        """A section of raced rows, their seconds times `scale`; with `amount`, that much a second; with `less`, what
        each adds to that row's, or to that of the row which it names itself.

        `facts`: anything else that belongs to the section, `x` for its place on a line, say.
        """
        under = floors(rows, less)
        added = rises(rows, less, scale) if under else None
        section: dict[str, Any] = {"name": name, "unit": unit, **facts, "rows": []}
        by_base = {base: ratios(rows, base, less) for base in bases}
        for row in rows:
            if row.name in under:
                continue
            entry: dict[str, Any] = {"name": row.name}
            if row.note:
                entry["note"] = row.note
            if row.refused is not None:
                entry["refused"] = row.refused
            else:
                if amount is not None:
                    entry |= spread([amount / seconds for seconds in row.rounds])
                else:
                    entry |= added[row.name] if added is not None else row.summary(scale)
                entry["ratio_to"] = {base: found[row.name] for base, found in by_base.items() if row.name in found}
            section["rows"].append(entry)
        self.sections.append(section)
        print_section(section, bases)
        self.write()
        return section

    def content(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "asked": self.asked,
            "quick": self.options.quick,
            "provenance": self.origin | {"load_average_at_end": list(os.getloadavg())},
            "sections": self.sections,
        }

    def write(self) -> None:
        """Replaces the file in one step: whoever ends this process finds the sections that were whole."""
        if self.options.json is None:
            return
        self.options.json.parent.mkdir(parents=True, exist_ok=True)
        beside = self.options.json.with_name(self.options.json.name + ".tmp")
        beside.write_text(json.dumps(self.content(), indent=1, ensure_ascii=False) + "\n")
        beside.replace(self.options.json)

    def finish(self, *, log: bool = False) -> int:
        """Writes JSON and picture; the exit code: 1 where a contestant's check failed."""
        self.write()
        if self.options.plot is not None:
            from plots import draw

            draw(self.content(), self.options.plot, log=log)
        refused = [row for section in self.sections for row in section["rows"] if "refused" in row]
        return int(any(row["refused"].startswith("not timed") for row in refused))


def parse_arguments(description: str, *, rounds: int, arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds: shows that it runs, no more")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, help="write the results to this file, after every section")
    parser.add_argument("--plot", type=Path, help="draw the results to this file (.png or .svg)")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where runs are written: chooses the disk")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = 2
    return options


def print_section(section: dict[str, Any], bases: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{section['name']} ({section['unit']})", title_justify="left")
    table.add_column("")
    for title in ("median", "p20", "p80", *(f"× {base}" for base in bases)):
        table.add_column(title, justify="right")
    table.add_column("note")
    for row in section["rows"]:
        if "refused" in row:
            table.add_row(row["name"], *[""] * (3 + len(bases)), row["refused"])
            continue
        figures = [f"{row[key]:g}" for key in ("median", "p20", "p80")]
        compared = [row["ratio_to"].get(base) for base in bases]
        told = [f"{each['median']:.3g} ({each['p20']:.3g}–{each['p80']:.3g})" if each else "" for each in compared]  # noqa: RUF001
        table.add_row(row["name"], *figures, *told, row.get("note", ""))
    Console(width=160).print(table)
