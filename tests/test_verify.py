"""verify finds every changed byte and says where it is."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from neuroscope_fast.errors import RunError
from neuroscope_fast.reader import RunIncompleteWarning, open_run
from run_writer import RunWriter, crc32c, random_tensor

FILE = "activations-float32-00000.safetensors"


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuroscope_fast._core", SimpleNamespace(crc32c=crc32c))


def written(folder: Path) -> RunWriter:
    writer = RunWriter(folder, ["a", "b"], shared={"b": "a"})
    for step in range(3):
        writer.add("a", random_tensor((4, 8), "float32", step), step=step)
    writer.add("a", torch.ones(4, 8, dtype=torch.int8), step=3, source="float32", scale=torch.ones(4))
    writer.add("a", torch.empty(0), step=4)
    return writer


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue


def test_a_whole_run_has_nothing_bad(tmp_path: Path) -> None:
    sizes: list[int] = []
    assert open_run(written(tmp_path).close()).verify(sizes.append) == []
    assert sizes == [128, 128, 128, 32, 16, 0]  # a shared tensor is read once


def test_each_changed_byte_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path).close()
    data = bytearray((folder / FILE).read_bytes())
    for offset, key in [(0, "a/000000"), (127, "a/000000"), (128, "a/000001"), (384, "a/000003/scale")]:
        changed = bytearray(data)
        changed[4096 + offset] ^= 1
        (folder / FILE).write_bytes(changed)
        (bad,) = open_run(folder).verify()
        assert (bad.file, bad.key, bad.record.hook_id) == (FILE, key, "a")
        assert "when it was written" in bad.reason


def test_a_torn_and_a_missing_shard(tmp_path: Path) -> None:
    folder = written(tmp_path).close()
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[:-1])
    assert {bad.key for bad in open_run(folder).verify()} == {f"a/00000{step}" for step in (0, 1, 2, 4)} | {
        "a/000003/scale"
    }
    (folder / FILE).unlink()
    assert all("is missing" in bad.reason for bad in open_run(folder).verify())


def test_a_record_without_a_checksum(tmp_path: Path) -> None:
    writer = written(tmp_path)
    folder = writer.close()
    writer.write_manifest("complete", checksums=False)
    assert [bad.reason for bad in open_run(folder).verify()] == ["no checksum is recorded for it"] * 6


def test_checksums_that_are_none(tmp_path: Path) -> None:
    folder = written(tmp_path).close()
    manifest = folder / "capture.json"
    manifest.write_text(manifest.read_text().replace('"a/000000": "', '"a/000000": "x'))
    with pytest.raises(RunError, match=r"checksums in capture\.json cannot be read"):
        open_run(folder).verify()


def test_a_killed_run_is_verified_by_its_journal(tmp_path: Path) -> None:
    folder = written(tmp_path).kill()
    with pytest.warns(RunIncompleteWarning):
        run = open_run(folder)
    assert run.verify() == []
    partial = folder / (FILE + ".partial")
    data = bytearray(partial.read_bytes())
    data[8192] ^= 1
    partial.write_bytes(data)
    with pytest.warns(RunIncompleteWarning, match="1 records whose checksum does not agree"):
        assert open_run(folder).verify() == []  # the record is left out
    assert [bad.key for bad in run.verify()] == ["a/000000"]


def test_without_the_native_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuroscope_fast._core", None)
    run = open_run(written(tmp_path).close())
    with pytest.raises(RunError, match="needs the native module"):
        run.verify()
