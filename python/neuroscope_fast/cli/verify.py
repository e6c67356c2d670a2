"""`neuroscope-fast verify RUN`"""

from __future__ import annotations

import typer
from msgspec import Struct

from ..activations import data_ref
from ..errors import RunError
from ..reader import BadRecord
from ..records import Record
from .console import JsonOption, console, count_text, line, print_json, say, size_text
from .progress import byte_meter
from .show import RunArgument, open_quietly
from .summary import record_bytes


class BadTensor(Struct):
    """One tensor that is not as it was written, and the record that it is of."""

    hook_id: str
    step: int
    prompt: int
    call: int
    is_input: bool
    file: str
    key: str
    reason: str


class Verdict(Struct):
    """The JSON of `verify`. `bytes` are those that were read."""

    run: str
    status: str
    notice: str | None
    records: int
    bytes: int
    bad: list[BadTensor]


def verify(run: RunArgument, as_json: JsonOption = False) -> None:
    """Compare every stored tensor with its checksum.

    Where any is bad they are listed, and the exit code is 1.
    """
    opened = open_quietly(run)
    records = opened.records
    sizes = {(ref.file, ref.key): _bytes_of(record) for record in records for ref in [data_ref(record)]}
    read = 0
    with byte_meter("verifying", sum(sizes.values())) as advance:

        def count(size: int) -> None:
            nonlocal read
            read += size
            advance(size)

        bad = opened.verify(count)
    verdict = Verdict(
        run=str(run),
        status=opened.status,
        notice=opened.notice,
        records=len(records),
        bytes=read,
        bad=[_bad_tensor(each) for each in bad],
    )
    if as_json:
        print_json(verdict)
    else:
        _print(verdict)
    if bad:
        raise typer.Exit(1)


def _bytes_of(record: Record) -> int:
    """None of a record that cannot be: it will be found bad."""
    try:
        return record_bytes(record)
    except RunError:
        return 0


def _bad_tensor(bad: BadRecord) -> BadTensor:
    record = bad.record
    return BadTensor(
        record.hook_id, record.step, record.prompt, record.call, record.is_input, bad.file, bad.key, bad.reason
    )


def _place(bad: BadTensor) -> str:
    parts = [bad.hook_id, f"step {bad.step}"]
    parts += [f"{name} {number}" for name, number in (("prompt", bad.prompt), ("call", bad.call)) if number]
    return ", ".join([*parts, "input"] if bad.is_input else parts)


def _print(verdict: Verdict) -> None:
    out = console()
    if verdict.notice:
        say(f"note: {verdict.notice}")
    if not verdict.bad:
        line(
            out,
            f"{verdict.run}: {count_text(verdict.records, 'record')} verified, {size_text(verdict.bytes)}, all good",
        )
        return
    for bad in verdict.bad:
        line(out, ("bad", "bold red"), f"  {_place(bad)}: {bad.reason} ({bad.file}, {bad.key})")
    line(out, f"{verdict.run}: {len(verdict.bad)} of {count_text(verdict.records, 'record')} are bad")
