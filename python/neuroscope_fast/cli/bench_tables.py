"""What `bench` prints for people: the contestants, the capture's own counters, the machine, and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import one_line
from .console import console, count_text, line, size_text

if TYPE_CHECKING:
    from ..cost_report import ContestantCost, CostReport
    from ..racing import Spread


def print_report(report: CostReport) -> None:
    out = console()
    model = report.model.name_or_path or report.model.class_name
    stored = f", stored as {report.capture_dtype}" if report.capture_dtype else ""
    line(
        out,
        (f"{model}", "bold"),
        f": {count_text(report.prompt_tokens, 'prompt token')}, {count_text(report.new_tokens, 'new token')}, "
        f"{count_text(report.places, 'place')}{stored}; medians of {report.rounds} rounds (20th–80th percentile)",  # noqa: RUF001
    )
    _print_costs(out, report)
    for each in report.contestants:
        if each.note:
            line(out, (f"{each.name}: {each.note}", "dim"))
    _print_captures(out, report)
    line(out, "")
    line(out, (report.conclusion, "bold"))


def _print_costs(out: Console, report: CostReport) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for title in ("until generate returns", "× bare", "until all is stored", "× bare", "µs a tensor"):
        table.add_column(title, justify="right", overflow="fold")
    for each in report.contestants:
        if each.refused is not None:
            table.add_row(Text(each.name), Text(one_line(each.refused), style="bold red"))
            continue
        table.add_row(
            Text(each.name),
            _seconds(each.returned),
            _plain(each.returned_ratio),
            _seconds(each.ended),
            _plain(each.ended_ratio),
            _plain(each.tensor_us),
        )
    out.print(table)


def _print_captures(out: Console, report: CostReport) -> None:
    """What is paid once, and what the ring saw."""
    for each in report.contestants:
        if each.peak_ring_bytes is None or each.stored_bytes is None:
            continue
        line(
            out,
            f"{each.name}: {count_text(each.tensors, 'tensor')}, {size_text(each.stored_bytes)}; "
            f"entering {_plain(each.entering_ms)} ms, leaving {_plain(each.leaving_ms)} ms; "
            f"peak ring {size_text(each.peak_ring_bytes)}, {_stalls(each)}",
        )
    disk = report.disk
    rate = disk.refused or f"{_plain(disk.gigabytes_a_second)} GB/s by O_DIRECT"
    line(out, f"disk ({disk.file_system}): {rate}")
    origin = report.provenance
    versions = origin["versions"]
    load = " ".join(f"{each:.2f}" for each in origin["load_average"])
    line(
        out,
        f"{', '.join([origin['cpu'], *origin['gpus']])}; {count_text(origin['cores'], 'core')}, "
        f"{count_text(origin['threads'], 'thread')}; load {load}; {origin['system']}; "
        f"neuroscope-fast {versions['neuroscope_fast']}, torch {versions['torch']}, Python {versions['python']}",
    )


def _stalls(each: ContestantCost) -> str:
    if not each.stalls:
        return "no stalls"
    return f"{count_text(each.stalls, 'stall')} ({each.stall_seconds:.3g} s in all rounds)"


def _seconds(spread: Spread | None) -> str:
    if spread is None:
        return ""
    scale, unit = (1.0, "s") if spread.median >= 1 else (1e3, "ms")
    return f"{spread.median * scale:.3g} {unit} ({spread.p20 * scale:.3g}–{spread.p80 * scale:.3g})"  # noqa: RUF001


def _plain(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.3g} ({spread.p20:.3g}–{spread.p80:.3g})"  # noqa: RUF001
