"""Shards: the format is safetensors, every dtype comes back bit for bit, and a torn file is an error that
names it.
"""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.errors import RunError
from neuroscope_fast.journal import parse_journal
from neuroscope_fast.shard_file import ShardFile, parse_header
from run_writer import NAMES, Tensor, bytes_of, random_tensor, write_open_shard, write_shard
from safetensors import SafetensorError, safe_open

SHAPES = [(2, 3, 5), (), (0,), (3, 0, 2), (1,), (7,)]


def _tensors(dtype: str) -> list[Tensor]:
    return [
        Tensor(f"h/{step:06d}", "h", random_tensor(shape, dtype, step), step=step) for step, shape in enumerate(SHAPES)
    ]


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype_and_shape_comes_back(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_shard(path, _tensors(dtype))
    shard = ShardFile.published(path)
    with safe_open(path, framework="pt") as theirs:
        assert sorted(theirs.keys()) == sorted(shard.entries)
        for item in _tensors(dtype):
            ours = shard.tensor(item.key)
            assert ours.dtype == item.tensor.dtype
            assert ours.shape == item.tensor.shape
            assert bytes_of(ours) == bytes_of(item.tensor) == bytes(shard.view(item.key))
            assert bytes_of(theirs.get_tensor(item.key)) == bytes_of(ours)


@pytest.mark.parametrize("dtype", NAMES)
def test_an_open_shard_reads_like_a_published_one(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_open_shard(path, _tensors(dtype))
    journal = parse_journal((tmp_path / "s.safetensors.journal").read_bytes(), "j")
    shard = ShardFile.open_shard(tmp_path / "s.safetensors.partial", journal)
    for item in _tensors(dtype):
        assert shard.tensor(item.key).shape == item.tensor.shape
        assert bytes_of(shard.tensor(item.key)) == bytes_of(item.tensor)


def test_an_open_shard_gives_only_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    items = [Tensor(f"h/{step:06d}", "h", random_tensor((1024,), seed=step), step=step) for step in range(4)]
    write_open_shard(path, items)
    partial = tmp_path / "s.safetensors.partial"
    partial.write_bytes(partial.read_bytes()[: 8192 + 4096 * 2 + 1])
    journal = parse_journal((tmp_path / "s.safetensors.journal").read_bytes(), "j")
    assert list(ShardFile.open_shard(partial, journal).entries) == ["h/000000", "h/000001"]


def test_tensors_lie_on_the_map_and_writing_does_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_shard(path, [Tensor("h/000000", "h", torch.zeros(4)), Tensor("h/000001", "h", torch.ones(4))])
    before = path.read_bytes()
    shard = ShardFile.published(path)
    first, second = shard.tensor("h/000000"), shard.tensor("h/000001")
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    first.add_(5)
    assert shard.tensor("h/000000").tolist() == [5.0] * 4  # the map is private to this process
    assert path.read_bytes() == before


def test_a_tensor_outlives_its_shard(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_shard(path, [Tensor("h/000000", "h", torch.arange(4.0))])
    tensor = ShardFile.published(path).tensor("h/000000")
    path.unlink()
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_shard(path, _tensors("float32"))
    with pytest.raises(RunError, match=re.escape(f"{path} holds no tensor 'x'")):
        ShardFile.published(path).tensor("x")


def test_a_file_that_shrinks_after_opening_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_shard(path, _tensors("float32"))
    shard = ShardFile.published(path)
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(RunError, match="smaller since it was opened"):
        shard.tensor("h/000000")
    with pytest.raises(RunError, match="smaller since it was opened"):
        shard.view("h/000000")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_shard(path, [Tensor("h/000000", "h", torch.arange(16.0))])
    data = path.read_bytes()
    for length in [0, 4, 8, 9, 100, 4095, 4096, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(RunError, match=re.escape(f"{path} is no whole shard")):
            ShardFile.published(path)


def _header(entries: dict[str, Any]) -> bytes:
    return json.dumps(entries).encode().ljust(4088)


def _entry(begin: int, end: int, dtype: str = "F32", shape: list[Any] | None = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"a": _entry(0, 8), "b": _entry(4, 16)}, "overlaps"),
        ({"a": _entry(0, 8), "b": _entry(0, 8)}, "overlaps"),
        ({"a": _entry(0, 8), "b": _entry(12, 16)}, "hole"),
        ({"a": _entry(4, 16)}, "hole"),
        ({"a": _entry(0, 20)}, "its header says"),
        ({"a": _entry(0, 12)}, "its header says"),
        ({"a": _entry(0, 16, shape=[3])}, "not the size of its shape"),
        ({"a": _entry(16, 0, shape=[0])}, "not the size of its shape"),
        ({"a": _entry(-16, 0)}, "cannot be read"),
        ({"a": _entry(0, 16, shape=[-2, -2])}, "cannot be read"),
        ({"a": _entry(0, 16, dtype="F4")}, "unknown dtype"),
        ({"a": {}}, "missing required field `dtype`"),
        ({"a": _entry(0, 0, shape=[0] * 65)}, "cannot be read"),
        ({"a": _entry(0, 16, shape=["4"])}, "cannot be read"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}, "cannot be read"),
        ({"a": 7}, "cannot be read"),
        (
            {"a": _entry(0, 2, dtype="F16", shape=[1]), "b": _entry(2, 16, dtype="F64", shape=[])},
            "not the size of its shape",
        ),
        ({"a": _entry(0, 8, dtype="U8", shape=[8]), "b": _entry(8, 16)}, None),
        (
            {"a": _entry(0, 1, dtype="U8", shape=[1]), "b": _entry(1, 16, dtype="F32", shape=[15])},
            "not the size of its shape",
        ),
        ({"a": _entry(0, 12, dtype="U8", shape=[12]), "b": _entry(12, 16)}, None),
        (
            {
                "a": _entry(0, 2, dtype="U8", shape=[2]),
                "b": _entry(2, 14, shape=[3]),
                "c": _entry(14, 16, "U8", [2]),
            },
            "aligned",
        ),
        (
            {"__metadata__": {"format": "pt"}, "a": _entry(0, 16), "e": _entry(16, 16), "f": _entry(0, 0)},
            None,
        ),
    ],
)
def test_a_header_that_lies(entries: dict[str, Any], problem: str | None, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(struct.pack("<Q", 4088) + _header(entries) + bytes(16))
    if problem is None:
        assert set(ShardFile.published(path).entries) == set(entries) - {"__metadata__"}
        return
    with pytest.raises(RunError, match=problem) as caught:
        ShardFile.published(path)
    assert str(path) in str(caught.value)
    if problem != "aligned":  # theirs copies what is not aligned
        with pytest.raises(SafetensorError):
            safe_open(path, framework="pt").__enter__()


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 4105, 100_000_001])
def test_a_header_length_beyond_the_file(length: int, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(struct.pack("<Q", length) + bytes(4096))
    with pytest.raises(RunError, match="does not fit"):
        ShardFile.published(path)


def test_a_header_that_nests_too_deeply() -> None:
    with pytest.raises(RunError, match="cannot be read"):
        parse_header(b'{"a":' * 100_000, 8, 8, "s")


@given(st.binary(max_size=100))
def test_any_header_is_survived(header: bytes) -> None:
    with pytest.raises(RunError, match=r"^s is no whole shard"):
        parse_header(header, 8, 109, "s")


def test_a_shape_that_torch_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    entries = {"a": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}}
    path.write_bytes(struct.pack("<Q", 4088) + _header(entries))
    with pytest.raises(RunError, match="torch cannot hold"):
        ShardFile.published(path).tensor("a")


def test_a_folder_in_place_of_a_shard(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        ShardFile.published(tmp_path)
