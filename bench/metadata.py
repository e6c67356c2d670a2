"""metadata: a run's metadata JSON encoded, written and opened, beside Python's json and orjson; its report rendered.

A decode of many steps through 72 hooks: a record for each step and hook, with shape, dtype, step, positions and where
its bytes are. json and orjson write and read the same information as plain dicts; that it is equal when parsed
is checked before anything is timed. Files are written to and read from the page cache: fsync would be the disk's time.
The shard beside them has the header of so many tensors and is otherwise a hole. Run: python bench/metadata.py
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import CheckError, Contestant, Row, missing, race, settle_process, timed

if TYPE_CHECKING:
    from metadata_run import RunFiles
    from results import Results

TARGETS = {"encoded": 0.1, "opened": 0.1}
"""Seconds for 100,000 records: section 7 of the design."""
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def orjson_module() -> Any:
    try:
        import orjson
    except ImportError:
        return None
    return orjson


def expect(found: Any, expected: Any, what: str) -> None:
    if found != expected:
        raise CheckError(f"{what} is not what was given")


def contestant(name: str, work: Callable[[], Any], check: Callable[[], None], note: str = "") -> Contestant:
    return Contestant(name, lambda: timed(work), check, note)


def rows_with(found: list[Row], name: str, present: bool, place: int) -> list[Row]:
    """The rows, with one that says so where orjson is not installed."""
    return found if present else [*found[:place], missing(name, "not installed"), *found[place:]]


def encoded_rows(run: RunFiles, rounds: int, file: Path | None = None) -> list[Row]:
    """From objects in memory to bytes in memory, or in a new file."""
    from neuroscope_fast.records import encode_metadata

    orjson = orjson_module()

    def made(name: str, encode: Callable[[], bytes], note: str) -> Contestant:
        if file is None:
            return contestant(name, encode, lambda: expect(json.loads(encode()), run.plain, "the JSON"), note)

        def work() -> float:
            # A new one: what replaces a truncated file is flushed by some file systems when it is closed.
            file.unlink(missing_ok=True)
            return timed(lambda: file.write_bytes(encode()))

        def check() -> None:
            work()
            expect(json.loads(file.read_bytes()), run.plain, "what was written")

        return Contestant(name, work, check, note)

    contestants = [
        made("neuroscope-fast", lambda: encode_metadata(run.metadata), "a line for each record"),
        made("json", lambda: json.dumps(run.plain, separators=(",", ":")).encode(), "no line breaks"),
    ]
    if orjson is not None:
        contestants.append(made("orjson", lambda: orjson.dumps(run.plain), "no line breaks"))
    return rows_with(race(contestants, rounds=rounds), "orjson", orjson is not None, 2)


def written_rows(run: RunFiles, rounds: int) -> list[Row]:
    return encoded_rows(run, rounds, run.folder / "written.json")


def opened_rows(run: RunFiles, rounds: int) -> list[Row]:
    """From the file to the run, and to its records."""
    import msgspec
    import neuroscope_fast as nsf

    orjson = orjson_module()
    hook = next(iter(run.metadata.activations))

    def check_run() -> None:
        expect(nsf.open(run.folder).hooks, list(run.metadata.activations), "the list of hooks")
        expect(len(nsf.open(run.folder)[hook]), len(run.metadata.activations[hook]), "the first hook")

    def check_records() -> None:
        expect(msgspec.to_builtins(nsf.open(run.folder).metadata), run.plain, "what was opened")

    def check_tensor() -> None:
        expect(list(nsf.open(run.folder)[hook][0].shape), run.metadata.activations[hook][0].shape, "the tensor")

    def loads(decode: Callable[[bytes], Any]) -> tuple[Callable[[], Any], Callable[[], None]]:
        def load() -> Any:
            return decode(run.path.read_bytes())

        return load, lambda: expect(load(), run.plain, "what was loaded")

    contestants = [
        contestant("neuroscope-fast, open", lambda: nsf.open(run.folder), check_run, "a hook's records when asked for"),
        contestant("neuroscope-fast, open, one hook", lambda: nsf.open(run.folder)[hook], check_run),
        contestant(
            "neuroscope-fast, open, one tensor",
            lambda: nsf.open(run.folder)[hook][0],
            check_tensor,
            "checks the shard's whole header",
        ),
        contestant("neuroscope-fast, open, all records", lambda: nsf.open(run.folder).records, check_records),
        contestant("json", *loads(json.loads), "dicts; the metadata JSON alone"),
    ]
    if orjson is not None:
        contestants.append(contestant("orjson", *loads(orjson.loads), "dicts; the metadata JSON alone"))
    return rows_with(race(contestants, rounds=rounds), "orjson", orjson is not None, 5)


def closing_rows(run: RunFiles, rounds: int) -> list[Row]:
    """The rest of what the end of a capture computes of its records, besides the metadata JSON."""
    import msgspec
    from neuroscope_fast.manifest import Checksums, Manifest, encode_index, encode_manifest
    from neuroscope_fast.reader import open_run
    from neuroscope_fast.report import render

    data = run.path.read_bytes()
    manifest: Manifest = open_run(run.folder).manifest
    sums = manifest.checksums.by_shard()
    places = {key: shard for shard, keys in sums.items() for key in keys}
    report = render(data)

    def check_report() -> None:
        for hook, records in run.metadata.activations.items():
            section = report.partition(f"### Hook: {hook}\n")[2].partition("###")[0]
            if f"- **Activations Count**: {len(records)}\n" not in section:
                raise CheckError(f"the report does not say how many records {hook} has")

    def write_manifest() -> bytes:
        return encode_manifest(msgspec.structs.replace(manifest, checksums=Checksums.of(sums)))

    def check_manifest() -> None:
        expect(json.loads(write_manifest())["checksums"], json.loads((run.folder / "capture.json").read_bytes())
               ["checksums"], "the table of checksums")  # fmt: skip

    def check_index() -> None:
        expect(json.loads(encode_index(places, 1))["weight_map"], places, "the index")

    contestants = [
        contestant("report rendered", lambda: render(data), check_report, f"{len(report.splitlines())} lines"),
        contestant("manifest with checksums", write_manifest, check_manifest),
        contestant("safetensors index", lambda: encode_index(places, 1), check_index),
    ]
    return race(contestants, rounds=rounds)


RESIDENT = """
import gc, sys
how, path, folder = sys.argv[1:]
import json, neuroscope_fast.reader
if how == "orjson":
    import orjson
def resident():
    gc.collect()
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024
before = resident()
if how == "records":
    held = (run := neuroscope_fast.reader.open_run(folder)).records
elif how == "open":
    held = neuroscope_fast.reader.open_run(folder)
else:
    held = (json if how == "json" else orjson).loads(open(path, "rb").read())
print(resident() - before)
"""


def resident_rows(run: RunFiles, rounds: int) -> list[Row]:
    """How much larger a fresh process is once it has opened the run. The figures are MiB, not seconds."""
    ways = [("neuroscope-fast, open", "open"), ("neuroscope-fast, open, all records", "records"), ("json", "json")]
    ways += [("orjson", "orjson")] if orjson_module() is not None else []
    rows = []
    for name, how in ways:
        command = [sys.executable, "-c", RESIDENT, how, str(run.path), str(run.folder)]
        rows.append(Row(name))
        for _ in range(rounds):
            rows[-1].rounds.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return rows_with(rows, "orjson", orjson_module() is not None, 3)


def measure(results: Results, run: RunFiles, rounds: int) -> None:
    count = run.records
    place: dict[str, Any] = {"x": count, "x_label": "records", "records": count}
    sections: list[tuple[str, Callable[[RunFiles, int], list[Row]], tuple[str, ...]]] = [
        ("encoded", encoded_rows, ("json", "orjson")),
        ("written", written_rows, ("json", "orjson")),
        ("opened", opened_rows, ("json", "orjson")),
        ("other files of a run", closing_rows, ()),
    ]
    for name, rows_of, bases in sections:
        rows = rows_of(run, rounds)
        able = {row.name for row in rows if row.refused is None}
        facts = place | ({"target_seconds": TARGETS[name]} if count == 100_000 and name in TARGETS else {})
        if name == "encoded":
            facts["bytes"] = run.path.stat().st_size
        present = tuple(base for base in bases if base in able)
        results.add(f"{name}, {count:,} records", "ms", rows, scale=1e3, bases=present, panel=name, **facts)
    if count == max(SIZES) or results.options.quick:
        results.add(f"resident rise, {count:,} records", "MiB", resident_rows(run, min(rounds, 3)), records=count)


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=11)
    from metadata_run import write_run

    results = Results("metadata", "what a run's metadata costs to write and to open", options)
    for count in (1_000,) if options.quick else SIZES:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-metadata-") as folder:
            run = write_run(Path(folder) / "run", count)
            gc.freeze()  # millions of dicts stand ready, which no contestant's own collection should walk
            measure(results, run, options.rounds if count < max(SIZES) else min(options.rounds, 3))
            del run
            gc.unfreeze()
    return results.finish(log=True)


if __name__ == "__main__":
    raise SystemExit(main())
