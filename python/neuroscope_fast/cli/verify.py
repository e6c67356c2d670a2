"""`neuroscope-fast verify RUN`"""

from __future__ import annotations

import typer
from msgspec import Struct

from ..activations import data_ref
from ..reader import BadRecord
from .console import JsonOption, console, count_text, line, print_json, printable, say, size_text
from .progress import byte_meter
from .show import RunArgument, open_quietly
from .summary import record_bytes


class BadTensor(Struct):
    """One tensor that is not as it was written."""

    hook_id: str
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
    sizes = {(ref.file, ref.key): record_bytes(record) for record in records for ref in [data_ref(record)]}
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


def _bad_tensor(bad: BadRecord) -> BadTensor:
    return BadTensor(bad.record.hook_id, bad.file, bad.key, bad.reason)


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
        line(out, ("bad", "bold red"), f"  {bad.file}  {bad.key}: {printable(bad.reason)}")
    line(out, f"{verdict.run}: {len(verdict.bad)} of {count_text(verdict.records, 'record')} are bad")
