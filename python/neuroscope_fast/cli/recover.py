"""`neuroscope-fast recover RUN`"""

from __future__ import annotations

import typer
from msgspec import Struct

from ..manifest import LostTensor
from ..repair import recover_run
from .console import JsonOption, console, count_text, line, print_json, printable, say
from .show import RunArgument


class Recovered(Struct):
    """The JSON of `recover`. `at` is None for a run that needed nothing."""

    run: str
    status: str
    at: str | None
    records: int
    acknowledged: int
    lost: list[LostTensor]
    unreadable: list[str]
    problems: list[str]


def recover(run: RunArgument, as_json: JsonOption = False) -> None:
    """Make a run that was never closed into one with all its files.

    Every tensor that is whole on the disk is kept, those that are not are listed. A run that needs nothing is left as
    it is. The exit code is 1 where files could not be read at all.
    """
    opened = recover_run(run)
    done = opened.manifest.recovery
    result = Recovered(
        run=str(run),
        status=opened.status,
        at=done.at if done is not None else None,
        records=len(opened.records),
        acknowledged=done.acknowledged if done is not None else opened.stats.acknowledged,
        lost=done.lost if done is not None else [],
        unreadable=done.unreadable if done is not None else [],
        problems=done.problems if done is not None else [],
    )
    if as_json:
        print_json(result)
    else:
        _print(result)
    if result.unreadable:
        raise typer.Exit(1)


def _print(result: Recovered) -> None:
    out = console()
    if result.at is None:
        line(out, f"{result.run} is {result.status}, with {count_text(result.records, 'record')}: nothing to recover")
        return
    line(out, f"{result.run} ({result.status}): {count_text(result.records, 'record')} whole")
    line(out, f"  acknowledged as durable before the end: {count_text(result.acknowledged, 'tensor')}")
    for lost in result.lost:
        line(out, ("lost", "bold red"), f"  {lost.file}  {printable(lost.key)}: {lost.reason}")
    for name in result.unreadable:
        line(out, ("left as it is", "bold yellow"), f"  {printable(name)}")
    for problem in result.problems:
        say(f"note: {problem}")
