"""`neuroscope-fast show RUN`"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from ..reader import Run, RunIncompleteWarning, open_run
from .console import JsonOption, console, count_text, line, paragraphs, print_json, say, size_text
from .summary import RunSummary, print_hooks, summarise_run

_MOST_TEXTS = 3

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]


def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """What a run holds.

    Its text, its hooks with layers, components, records, shapes, dtypes and bytes, and how it ended.
    """
    summary = summarise_run(open_quietly(run))
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


def open_quietly(path: Path) -> Run:
    """Opens a run; what there is to say of its state stands in its `notice`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunIncompleteWarning)
        return open_run(path)


def print_summary(summary: RunSummary, *, details: bool = True) -> None:
    """For people. `details`: the texts, and a line for each hook."""
    out = console()
    if details and summary.generated_text:
        written = [each.prompt + each.generated_text for each in summary.generations] or [summary.generated_text]
        for text in written[:_MOST_TEXTS]:
            paragraphs(out, text)
        if len(written) > _MOST_TEXTS:
            line(out, f"… and {count_text(len(written) - _MOST_TEXTS, 'text')} more in {summary.metadata_file}")
        line(out, "")
    if details:
        print_hooks(out, summary.hooks)
        line(out, "")
    model = summary.model.name_or_path or summary.model.class_name or "a model without a name"
    line(out, f"{summary.run}: {summary.status}, captured from {model}")
    usage = summary.usage
    line(
        out,
        f"{count_text(len(summary.hooks), 'hook')}, {count_text(summary.records, 'record')}, "
        f"{size_text(summary.bytes)}; {usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens",
    )
    for name, file in (("metadata", summary.metadata_file), ("report", summary.report_file)):
        line(out, f"{name:<8}  {Path(summary.run) / file}")
    print_warnings(summary)


def print_warnings(summary: RunSummary) -> None:
    """On stderr: what is not as it was asked for."""
    if summary.notice:
        say(f"note: {summary.notice}")
    for warning in summary.warnings:
        say(f"warning: {warning}")
    if summary.dropped:
        records = count_text(summary.dropped, "record")
        say(f"warning: dropped since the ring was full: {records} (listed in capture.json)")
