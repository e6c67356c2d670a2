"""What `show` tells of a run, as `demo` and `capture` do when they end: a table, or the same as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..activations import data_ref
from ..dtypes import BY_NAME, MAX_RANK
from ..errors import RunError, one_line
from ..manifest import Counters, ModelInfo
from ..prompt_log import generations_of
from ..reader import Run
from ..records import Generation, HookConfiguration, Record, Usage
from ..run_directory import report_file_name
from ..summary import summarise_shapes
from .console import count_text, line, size_text

_MOST_BYTES = 2**63  # more than a file can have


class ShapeCount(Struct):
    """How many records have a shape."""

    shape: list[int]
    records: int


class HookSummary(Struct):
    """One hook of a run. `bytes` counts the tensors and, for int8 casts, their scales."""

    hook_id: str
    layer_name: str
    component: str
    records: int
    shapes: list[ShapeCount]
    dtypes: list[str]
    bytes: int


class RunSummary(Struct, omit_defaults=True):
    """The JSON of `show`. `bytes` counts what several hooks share once."""

    run: str
    status: str
    notice: str | None
    created: str
    metadata_file: str
    report_file: str
    model: ModelInfo
    generated_text: str
    usage: Usage
    hooks: list[HookSummary]
    records: int
    bytes: int
    counters: Counters
    warnings: list[str]
    dropped: int
    cause: str | None = None
    generations: list[Generation] = []
    seconds: float | None = None
    tokens_per_second: float | None = None


def summarise_run(run: Run) -> RunSummary:
    """Everything `show` tells."""
    metadata, manifest = run.metadata, run.manifest
    asked = {configuration.hook_id: configuration for configuration in metadata.hook_configurations}
    stored: dict[tuple[str, str], int] = {}
    for records in metadata.activations.values():
        for record in records:
            ref = data_ref(record)
            stored[ref.file, ref.key] = record_bytes(record)
    return RunSummary(
        run="" if run.path is None else _shown(run.path),
        status=run.status,
        cause=manifest.cause,
        notice=run.notice,
        created=manifest.created,
        metadata_file=manifest.metadata_file,
        report_file=report_file_name(manifest.metadata_file),
        model=manifest.model,
        generated_text=metadata.generated_text,
        generations=metadata.generations or generations_of(run.prompts),
        usage=metadata.usage,
        hooks=[
            _summarise_hook(hook_id, records, asked.get(hook_id)) for hook_id, records in metadata.activations.items()
        ],
        records=sum(map(len, metadata.activations.values())),
        bytes=sum(stored.values()),
        counters=manifest.counters,
        warnings=manifest.warnings,
        dropped=len(manifest.dropped),
    )


def record_bytes(record: Record) -> int:
    """The bytes that a record takes in its shards, scales included. Raises RunError where there is no such tensor."""
    dtype = BY_NAME.get(record.dtype)
    size = -1 if dtype is None or len(record.shape) > MAX_RANK else math.prod(record.shape) * dtype.size
    if not 0 <= size <= _MOST_BYTES:
        raise RunError(
            f"the metadata JSON is not that of a run: a record of {record.hook_id!r} is {record.dtype!r} {record.shape}"
        )
    scales = math.prod(record.shape[:-1]) * BY_NAME["float32"].size if record.scale is not None else 0
    return size + scales


def _summarise_hook(hook_id: str, records: Sequence[Record], asked: HookConfiguration | None) -> HookSummary:
    shapes: dict[tuple[int, ...], int] = {}
    for record in records:
        shape = tuple(record.shape)
        shapes[shape] = shapes.get(shape, 0) + 1
    named = records[0] if records else asked
    return HookSummary(
        hook_id=hook_id,
        layer_name=named.layer_name if named is not None else "",
        component=named.component if named is not None else "",
        records=len(records),
        shapes=[ShapeCount(list(shape), count) for shape, count in shapes.items()],
        dtypes=list(dict.fromkeys(record.dtype for record in records)),
        bytes=sum(map(record_bytes, records)),
    )


def print_hooks(out: Console, hooks: Sequence[HookSummary]) -> None:
    """A table with a line for each hook; on a terminal that is too narrow for it, two lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("hook", "layer", "component", "records", "shapes", "dtype", "bytes"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("records", "bytes") else "left")
    for hook in hooks:
        table.add_row(
            one_line(hook.hook_id),
            one_line(hook.layer_name),
            one_line(hook.component),
            f"{hook.records:,}",
            one_line(_shapes(hook)),
            one_line(", ".join(hook.dtypes)) or "none",
            size_text(hook.bytes),
        )
    needed = Measurement.get(out, out.options.update(max_width=100_000), table).maximum
    if needed <= out.width:
        out.print(table)
        return
    for hook in hooks:
        named_so = hook.hook_id == f"{hook.layer_name}_{hook.component}"
        line(out, (hook.hook_id, "bold"), "" if named_so else f"  {hook.layer_name}, {hook.component}")
        parts = [count_text(hook.records, "record"), *hook.dtypes, size_text(hook.bytes)]
        line(out, f"  {', '.join(parts)}: {_shapes(hook)}")


def _shapes(hook: HookSummary) -> str:
    return summarise_shapes({tuple(each.shape): each.records for each in hook.shapes})


def _shown(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the working directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
