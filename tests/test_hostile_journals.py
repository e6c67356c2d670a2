"""Journals with forged lengths, and entries that lie with a checksum that is right."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from neuroscope_fast.errors import RunError
from neuroscope_fast.journal import Journal, parse_journal
from neuroscope_fast.reader import RunIncompleteWarning, open_run
from neuroscope_fast.shard_file import ShardFile
from run_writer import journal_entry, journal_header
from test_hostile_shards import peak
from test_reader import generation

FILE = "activations-float32-00000.safetensors"


def stream(number: int = 5, hook_id: bytes = b"a", side: int = 0) -> bytes:
    return journal_entry(struct.pack("<BIB", 1, number, side) + hook_id)


def record(offset: int = 0, size: int = 8, shape: tuple[int, ...] = (2,), step: int = 0, **other: int) -> bytes:
    rank = other.get("rank", len(shape))
    front = struct.pack("<BIIIIBBH", 3, other.get("stream", 5), 0, step, 0, 0, 1, rank)
    return journal_entry(front + struct.pack(f"<{len(shape)}QQQI", *shape, offset, size, 0))


def parse(*entries: bytes, **header: Any) -> Journal:
    return parse_journal(journal_header("float32", **header) + b"".join(entries), "j")


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 2**16, 100, 0])
@pytest.mark.parametrize("checksum", [0, zlib.crc32(b""), 2**32 - 1])
def test_a_length_beyond_the_file_takes_no_memory(length: int, checksum: int) -> None:
    forged = struct.pack("<II", length, checksum)
    journals: list[Journal] = []
    assert peak(lambda: journals.append(parse(stream(), record(), forged, b"\3abc"))) < 1 << 18
    assert (len(journals[0].records), journals[0].torn) == (1, True)


def test_an_entry_of_the_whole_file_is_read_once() -> None:
    size = 8 << 20
    for entry in (
        stream(hook_id=b"n" * size),
        journal_entry(b"\x02" + b"[" * size),
        journal_entry(b"\x03" + bytes(size)),
        journal_entry(b"\x02" + b'{"positions": [' + b"0," * (size // 2) + b"0]}"),
    ):
        assert peak(lambda entry=entry: parse(entry)) < 8 * size  # type: ignore[misc]


def test_many_records_take_a_small_multiple_of_the_file() -> None:
    entries = [stream(), *(record(0, 0, (0,), step) for step in range(20_000))]
    journals: list[Journal] = []
    assert peak(lambda: journals.append(parse(*entries))) < 12 * sum(map(len, entries))
    assert len(journals[0].records) == 20_000


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2**62, 4), 0), ((2**62, 4), 2**64 - 1), ((2**32, 2**32), 0), ((2**63, 2), 0), ((2**64 - 1,) * 64, 0)],
)
def test_a_shape_that_overflows(shape: tuple[int, ...], size: int) -> None:
    journal = parse(stream(), record(0, size, shape), record())
    assert (journal.records, journal.torn) == ([], True)


def test_a_shape_of_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(bytes(8200))
    journal = parse(stream(), record(0, 0, (2**40, 0)), record(0, 0, (0, 2**64 - 1), 1), record(step=2))
    shard = ShardFile.open_shard(tmp_path / "p", journal)
    assert shard.tensor("a/000000").shape == (2**40, 0)
    with pytest.raises(RunError, match="a shape that torch cannot hold"):
        shard.tensor("a/000001")
    assert shard.tensor("a/000002").tolist() == [0, 0]


@pytest.mark.parametrize("start", [4096 * 2**40, 2**63, 2**64 - 4096])
def test_a_data_start_beyond_the_file(start: int, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(bytes(8192))
    journal = parse(stream(), record(), record(8, 2**63, (2**61,), 1), data_start=start)
    assert len(journal.records) == 2
    assert dict(ShardFile.open_shard(tmp_path / "p", journal).entries) == {}


def test_a_key_that_is_there_twice_ends_the_journal() -> None:
    journal = parse(stream(), record(), stream(6), record(8, stream=6), record(16, step=1))
    assert [each.begin for each in journal.records] == [0]
    assert journal.torn
    # The same key in other words: of hook `a` in prompt 1, and of a hook that is called `a/p1`
    other = struct.pack("<BIIIIBBH", 3, 5, 1, 0, 0, 0, 1, 1) + struct.pack("<QQQI", 2, 8, 8, 0)
    journal = parse(stream(), stream(6, b"a/p1"), record(stream=6), journal_entry(other))
    assert [each.key for each in journal.records] == ["a/p1/000000"]


@pytest.mark.parametrize("hook_id", [b"..", b"../../x", b"/etc/passwd", b"a\0b", b"a\nb", b"\x1b[31m", b"n" * 10_000])
def test_a_hook_of_the_journal_that_the_manifest_does_not_have(hook_id: bytes, tmp_path: Path) -> None:
    folder = generation(tmp_path / "run").kill()
    before = sorted(tmp_path.rglob("*"))
    (folder / (FILE + ".journal")).write_bytes(journal_header("float32") + stream(0, hook_id) + record(stream=0))
    with pytest.warns(RunIncompleteWarning) as caught:
        run = open_run(folder)
    assert str(caught[0].message).isprintable()
    assert len(str(caught[0].message)) < 2100
    assert run.records == []
    assert sorted(tmp_path.rglob("*")) == before


def test_forged_entries_of_a_whole_run_never_leave_the_shard(tmp_path: Path) -> None:
    """Any tensor that a forged journal names lies in the bytes of its shard."""
    folder = generation(tmp_path).kill()
    partial = folder / (FILE + ".partial")
    entries = [stream(0, b"layer_2"), record(0, 8, stream=0), record(8, 2**40, (2**38,), 1, stream=0)]
    entries.append(record(8 + 2**40, 2**62, (2**60,), 2, stream=0))
    (folder / (FILE + ".journal")).write_bytes(journal_header("float32") + b"".join(entries))
    with pytest.warns(RunIncompleteWarning, match="2 records of its journal are not in it"):
        run = open_run(folder)
    assert [record.step for record in run["layer_2"].records] in ([], [0])  # its checksum is wrong
    assert len(partial.read_bytes()) > 8192


def test_many_hooks_that_share_many_records_do_not_multiply(tmp_path: Path) -> None:
    """The records of a manifest's hooks are made anew: as many as the product of two files would fill the memory."""
    folder = generation(tmp_path).kill()
    manifest = json.loads((folder / "capture.json").read_text())
    manifest["hooks"] |= {f"h{number}": manifest["hooks"]["layer_2"] for number in range(500)}
    (folder / "capture.json").write_text(json.dumps(manifest))
    with pytest.warns(RunIncompleteWarning, match="more than 64 hooks share a tensor, the rest of them are left out"):
        run = open_run(folder)
    assert len(run.records) == 4 * 64 + 4
    assert len(run["layer_2"]) == len(run["layer_10"]) == 4
