"""Shards whose headers were written to mislead: each is one clear error, and takes little memory."""

from __future__ import annotations

import gc
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from neuroscope_fast.errors import RunError
from neuroscope_fast.journal import parse_journal
from neuroscope_fast.shard_file import ShardFile, parse_header
from run_writer import journal_entry, journal_header
from test_shard_file import _entry as entry

A = '"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}'
DOUBLED = {
    "the same entry": f"{{{A}, {A}}}",
    "another dtype": f'{{{A}, "a": {{"dtype": "I32", "shape": [4], "data_offsets": [0, 16]}}}}',
    "another spelling": f'{{{A}, "\\u0061": {{"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}}}',
    "empty tensors": f'{{{A}, "e": {{"dtype": "F32", "shape": [0], "data_offsets": [16, 16]}}, '
    '"e": {"dtype": "I32", "shape": [9, 0], "data_offsets": [16, 16]}}',
    "a field": '{"a": {"dtype": "I32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "a field, escaped": '{"a": {"dt\\u0079pe": "I32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "a name with colons": '{"a:b": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}, '
    '"a:b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "metadata": f'{{"__metadata__": {{"format": "pt", "format": "tf"}}, {A}}}',
}


def header(text: str) -> bytes:
    return text.encode().ljust(4088)


def parse(text: str) -> Any:
    return parse_header(header(text), 4096, 4096 + 16, "s")


@pytest.mark.parametrize("text", DOUBLED.values(), ids=DOUBLED)
def test_a_key_that_is_there_twice(text: str) -> None:
    with pytest.raises(
        RunError, match=r"^s is no whole shard: its header cannot be read: the key '.*' is there twice$"
    ):
        parse(text)


def test_metadata_comes_once_and_in_front() -> None:
    front = '"__metadata__": {"format": "pt", "a": "{\\"b\\": [1]}"}'
    assert list(parse(f"{{{front}, {A}}}")) == ["a"]
    assert list(parse_header(header(f" {{ {front} }} "), 4096, 4096, "s")) == []
    for text in (f"{{{front}, {front}, {A}}}", f"{{{A}, {front}}}", f'{{{A}, "__metadata__": {A[5:]}}}'):
        with pytest.raises(RunError, match="its header cannot be read"):
            parse(text)


def test_names_may_hold_anything() -> None:
    names = ["a:b", 'quote"d', "{brace}", "[x]", "\\", "ünï 🙂", "data_offsets", "", "a,b", "../../x", "\x1b[31m\n"]
    entries = {name: entry(4 * at, 4 * at + 4) for at, name in enumerate(names)}
    parsed = parse_header(json.dumps(entries).encode(), 4096, 4096 + 4 * len(names), "s")
    assert list(parsed) == names


@pytest.mark.parametrize("number", [2**63, 2**64, 2**64 + 16, 10**400, -1, 1.5, 1e30])
@pytest.mark.parametrize("place", ["begin", "end", "shape"])
def test_numbers_beyond_every_file(number: float, place: str) -> None:
    offsets = [number if place == "begin" else 0, number if place == "end" else 16]
    text = json.dumps({"a": {"dtype": "F32", "shape": [number if place == "shape" else 4], "data_offsets": offsets}})
    with pytest.raises(RunError, match=r"^s is no whole shard") as caught:
        parse(text)
    assert len(str(caught.value)) < 2100


@pytest.mark.parametrize("shape", [[2**62, 4], [2**32, 2**32], [2**63, 2], [2**64], [2**40] * 64])
def test_a_shape_whose_size_would_wrap_around(shape: list[int]) -> None:
    """In 64 bits each is of 0 bytes."""
    with pytest.raises(RunError, match=r"not the size of its shape|its header cannot be read"):
        parse_header(header(json.dumps({"a": entry(0, 0, shape=shape)})), 4096, 4096, "s")
    stream = journal_entry(struct.pack("<BIB", 1, 5, 0) + b"a")
    record = struct.pack(f"<BIIIIBBH{len(shape)}Q", 3, 5, 0, 0, 0, 0, 1, len(shape), *(n % 2**64 for n in shape))
    journal = parse_journal(
        journal_header("float32") + stream + journal_entry(record + struct.pack("<QQI", 0, 0, 0)), "j"
    )
    assert [each.shape for each in journal.records] == ([(0,)] if shape == [2**64] else [])


def test_a_shape_of_no_bytes_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    shapes = {"a": [2**40, 0], "b": [0, 2**62], "c": [1] * 64}
    entries = {key: entry(0, 4 if key == "c" else 0, shape=shape) for key, shape in shapes.items()}
    path.write_bytes(struct.pack("<Q", 4088) + header(json.dumps(entries)) + bytes(4))
    shard = ShardFile.published(path)
    assert [list(shard.tensor(key).shape) for key in shapes] == list(shapes.values())
    assert shard.tensor("c").sum() == 0


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 150_000_000))
        file.truncate(200_000_000)  # a hole, which takes no disk
    assert peak(lambda: refused(lambda: ShardFile.published(path), "150000000 bytes, 100000000 are allowed")) < 1 << 20
    with open(path, "r+b") as file:
        file.write(struct.pack("<Q", 99_000_000))
    assert peak(lambda: refused(lambda: ShardFile.published(path), "cannot be read")) < 3 * 99_000_000


def refused(action: Callable[[], object], problem: str) -> None:
    with pytest.raises(RunError, match=problem):
        action()


def peak(action: Callable[[], object]) -> int:
    """The most memory that Python held during `action`, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


COUNT = 50_000
TINY = '{"dtype":"U8","shape":[],"data_offsets":[%d,%d]}'
BOMBS = {
    "empty objects": "{" + ",".join(f'"{n:x}":{{}}' for n in range(COUNT)) + "}",
    "empty objects behind metadata": '{"__metadata__":{},' + ",".join(f'"{n:x}":{{}}' for n in range(COUNT)) + "}",
    "lists in an unknown field": f'{{{A[:-1]}, "x":[{"[]," * COUNT}0]}}}}',
    "lists in metadata": f'{{"__metadata__":{{"x":[{"[]," * COUNT}0]}}, {A}}}',
    "a long shape": f'{{"a": {{"dtype": "F32", "shape": [{"0," * COUNT}0], "data_offsets": [0, 0]}}}}',
    "deep lists": "[" * COUNT,
    "deep objects": '{"a":' * COUNT,
    "tiny tensors, one twice": "{" + ",".join(f'"{n % (COUNT - 1):x}":{TINY % (n, n + 1)}' for n in range(COUNT)) + "}",
    "tiny tensors that overlap": "{" + ",".join(f'"{n:x}":{TINY % (0, 1)}' for n in range(COUNT)) + "}",
    "a long name": f'{{"{"n" * COUNT}": {{"dtype": "F4", "shape": [4], "data_offsets": [0, 16]}}}}',
    "a long dtype": f'{{"a": {{"dtype": "{"F" * COUNT}", "shape": [4], "data_offsets": [0, 16]}}}}',
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_the_memory_is_a_small_multiple_of_the_header(text: str) -> None:
    data = text.encode()
    used = peak(lambda: refused(lambda: parse_header(data, 8 + len(data), 24 + len(data), "s"), "^s is no whole shard"))
    assert used < 10 * len(data) + (1 << 18)


def test_the_message_stays_short() -> None:
    name = "n" * 100_000 + "\x1b[31m\n"
    with pytest.raises(RunError) as caught:
        parse(json.dumps({name: entry(0, 16, shape=[3])}))
    assert len(str(caught.value)) < 2100
    assert str(caught.value).isprintable()


def test_a_file_that_is_gone_when_it_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(struct.pack("<Q", 4088) + header("{" + A + "}") + bytes(16))
    shard = ShardFile.published(path)
    path.unlink()
    for action in (shard.tensor, shard.view):
        with pytest.raises(RunError, match="is gone since it was opened"):
            action("a")
