"""Every bit of a shard that is not as it was written is found, and told with hook and step."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import torch
from command_line import run
from neuroscope_fast.reader import open_run
from run_writer import RunWriter, Tensor, random_tensor

NAME = "activations-{}-00000.safetensors"


def written(folder: Path) -> RunWriter:
    """Records of three dtypes: one with scales, one with indices."""
    writer = RunWriter(folder, ["a", "b"])
    writer.add("a", random_tensor((1, 3, 4)))
    writer.add("b", random_tensor((2,), seed=1), prompt=1, call=2, is_input=True)
    writer.add("a", torch.ones(1, 2, 4, dtype=torch.int8), step=1, source="float32", scale=torch.ones(1, 2))
    writer.add("b", random_tensor((1, 2, 1), seed=2), step=7)
    indices = Tensor("b/000007/indices", "b", random_tensor((1, 2, 1), "int32"), step=7)
    writer.records["b"][-1]["indices"] = writer._put(indices)
    return writer


def test_a_flipped_bit_of_each_byte(tmp_path: Path) -> None:
    """In the data it is one tensor that is bad, and it is named. In the header and the padding behind it the whole
    shard no longer reads, or what reads differs from the records; only what stands in `__metadata__` means nothing.
    """
    writer = written(tmp_path)
    folder = writer.close()
    assert open_run(folder).verify() == []
    chance = random.Random(5)
    for file, tensors in writer.shards.items():
        data = (folder / file).read_bytes()
        start = 8 + struct.unpack_from("<Q", data)[0]
        owners = [item for item in tensors for _ in range(item.tensor.nbytes)]
        assert start + len(owners) == len(data)
        metadata = range(data.index(b'{"format"'), data.index(b"}") + 1)
        padding = range(len(data[:start].rstrip(b" ")), start)
        for offset in range(len(data)):
            if offset in padding and offset % 16:
                continue  # all of it is alike
            changed = bytearray(data)
            changed[offset] ^= 1 << chance.randrange(8)
            (folder / file).write_bytes(changed)
            found = open_run(folder).verify()
            if offset >= start:
                owner = owners[offset - start]
                (bad,) = found
                assert (bad.file, bad.key) == (file, owner.key)
                assert (bad.record.hook_id, bad.record.step) == (owner.hook_id, owner.step)
                assert (bad.record.prompt, bad.record.call, bad.record.is_input) == (
                    *(owner.prompt, owner.call),
                    owner.is_input,
                )
                assert "when it was written" in bad.reason
            elif offset not in metadata:
                assert found, (file, offset, bytes(changed[offset : offset + 1]))
                assert {bad.file for bad in found} == {file}
        (folder / file).write_bytes(data)
    assert open_run(folder).verify() == []


@pytest.mark.parametrize(
    ("dtype", "offset", "place"),
    [
        ("float32", 0, "a, step 0: "),
        ("float32", 48, "b, step 0, prompt 1, call 2, input: "),
        ("int8", 3, "a, step 1: "),
        ("float32", 56, "a, step 1: "),  # its scales
        ("float32", 64, "b, step 7: "),
        ("int32", 0, "b, step 7: "),  # its indices
    ],
)
def test_the_command_names_hook_and_step(
    dtype: str, offset: int, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path).close()
    file = folder / NAME.format(dtype)
    data = bytearray(file.read_bytes())
    data[8 + struct.unpack_from("<Q", data)[0] + offset] ^= 0x10
    file.write_bytes(data)
    done = run(capsys, "verify", folder)
    assert done.code == 1
    assert done.out.startswith(f"bad  {place}its checksum is ")
    assert done.out.count("\n") == 2


def test_a_header_that_gives_the_bytes_another_meaning(tmp_path: Path) -> None:
    """The checksums of the bytes agree."""
    folder = written(tmp_path).close()
    file = folder / NAME.format("float32")
    for old, new in ((b'"F32", "shape": [1, 3, 4]', b'"I32", "shape": [1, 3, 4]'), (b"[1, 3, 4]", b"[1, 4, 3]")):
        data = file.read_bytes()
        file.write_bytes(data.replace(old, new, 1))
        (bad,) = open_run(folder).verify()
        assert (bad.record.hook_id, bad.record.step) == ("a", 0)
        assert bad.reason.startswith("its shard says ")
        assert bad.reason.endswith("its record float32 [1, 3, 4]")
        file.write_bytes(data)


def test_bits_of_the_scales_and_indices_of_a_header(tmp_path: Path) -> None:
    folder = written(tmp_path).close()
    for dtype, old, new in (("float32", b"[1, 2]", b"[2, 1]"), ("int32", b"[1, 2, 1]", b"[2, 1, 1]")):
        file = folder / NAME.format(dtype)
        data = file.read_bytes()
        assert data.count(old) == 1
        file.write_bytes(data.replace(old, new))
        (bad,) = open_run(folder).verify()
        assert bad.key.endswith("/scale" if dtype == "float32" else "/indices")
        file.write_bytes(data)
