"""Writes runs for the tests, in pure Python and from docs/file_format.md alone: a second implementation of
the format.

Nothing of the package is used here, so that a mistake in it cannot hide itself.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

NAMES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
]
HEADER_NAMES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "I64",
    "I32",
    "I16",
    "I8",
    "U64",
    "U32",
    "U16",
    "U8",
    "BOOL",
    "C64",
]
DATA_START = 8192


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes | memoryview, initial: int = 0) -> int:
    """CRC-32C (Castagnoli), a byte at a time."""
    crc = initial ^ 0xFFFFFFFF
    for byte in bytes(data):
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def random_tensor(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    """Any bits, except that a bool is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    count = math.prod(shape) * torch.empty(0, dtype=kind).element_size()
    data = torch.randint(0, 2 if dtype == "bool" else 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(kind).reshape(shape) if count else torch.empty(shape, dtype=kind)


@dataclass
class Tensor:
    """One tensor of a shard, and what its journal entry says."""

    key: str
    hook_id: str
    tensor: torch.Tensor
    prompt: int = 0
    step: int = 0
    call: int = 0
    is_input: bool = False
    is_scale: bool = False
    source: str | None = None
    note: dict[str, Any] = field(default_factory=dict)
    stream: int = 0


def write_shard(path: Path, tensors: list[Tensor]) -> None:
    """A published shard."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for item in tensors:
        stored = bytes_of(item.tensor)
        header[item.key] = {
            "dtype": HEADER_NAMES[NAMES.index(dtype_of(item.tensor))],
            "shape": list(item.tensor.shape),
            "data_offsets": [len(data), len(data) + len(stored)],
        }
        data += stored
    text = json.dumps(header).encode()
    start = -(-(8 + len(text)) // 4096) * 4096
    path.write_bytes(struct.pack("<Q", start - 8) + text.ljust(start - 8) + data)


def journal_header(dtype: str, version: int = 1, data_start: int = DATA_START) -> bytes:
    front = struct.pack("<8sIIQI", b"NSFJRNL1", version, NAMES.index(dtype), data_start, 0)
    return front + struct.pack("<I", zlib.crc32(front))


def journal_entry(payload: bytes) -> bytes:
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


def journal_entries(tensors: list[Tensor]) -> list[bytes]:
    """The entries of a journal, in order: streams and notes stand in front of the first record that needs
    them.
    """
    entries, known, offset, note = [], set(), 0, {}
    for item in tensors:
        if item.stream not in known:
            known.add(item.stream)
            entries.append(journal_entry(struct.pack("<BIB", 1, item.stream, item.is_input) + item.hook_id.encode()))
        if item.note != note:
            note = item.note
            entries.append(journal_entry(b"\x02" + (json.dumps(note).encode() if note else b"")))
        stored = bytes_of(item.tensor)
        shape = item.tensor.shape
        payload = struct.pack(
            f"<BIIIIBBH{len(shape)}QQQI",
            *(3, item.stream, item.prompt, item.step, item.call, item.is_scale),
            NAMES.index(item.source or dtype_of(item.tensor)),
            *(len(shape), *shape, offset, len(stored), crc32c(stored)),
        )
        entries.append(journal_entry(payload))
        offset += len(stored)
    return entries


def write_open_shard(path: Path, tensors: list[Tensor]) -> None:
    """`path`.partial and `path`.journal, as a killed process leaves them: no header, a padded tail."""
    data = b"".join(bytes_of(item.tensor) for item in tensors)
    path.with_name(path.name + ".partial").write_bytes(b" " * DATA_START + data + b"\0" * (-len(data) % 4096))
    journal = journal_header(dtype_of(tensors[0].tensor)) + b"".join(journal_entries(tensors))
    path.with_name(path.name + ".journal").write_bytes(journal)


class RunWriter:
    """Collects records and writes them as a run. `shared` maps a hook to the one whose tensors it names."""

    def __init__(
        self,
        folder: Path,
        hooks: list[str],
        *,
        analysis: str | None = None,
        shared: dict[str, str] | None = None,
    ):
        self.folder = folder
        self.hooks = hooks
        self.shared = shared or {}
        self.analysis = analysis
        self.shards: dict[str, list[Tensor]] = {}  # by file name
        self.numbers: dict[str, int] = {}
        self.records: dict[str, list[dict[str, Any]]] = {hook: [] for hook in hooks}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def metadata_file(self) -> str:
        return f"circuit_analysis_{self.analysis}.json" if self.analysis else "activation_capture.json"

    def roll_over(self, dtype: str) -> None:
        """What comes next of this dtype goes to a new shard."""
        self.numbers[dtype] = self.numbers.get(dtype, 0) + 1

    def add(
        self,
        hook_id: str,
        tensor: torch.Tensor,
        *,
        step: int = 0,
        prompt: int = 0,
        call: int = 0,
        is_input: bool = False,
        source: str | None = None,
        scale: torch.Tensor | None = None,
        note: dict[str, Any] | None = None,
    ) -> None:
        key = hook_id + (f"/p{prompt}" if prompt else "") + (f"/c{call}" if call else "") + f"/{step:06d}"
        key += "/input" if is_input else ""
        facts: dict[str, Any] = {"prompt": prompt, "step": step, "call": call, "is_input": is_input}
        facts |= {"source": source, "note": note or {}, "stream": 2 * self.hooks.index(hook_id) + is_input}
        entry: dict[str, Any] = {"shape": list(tensor.shape), "dtype": dtype_of(tensor), "is_input": is_input}
        entry |= {name: value for name, value in (("step", step), ("prompt", prompt), ("call", call)) if value}
        entry |= note or {}
        if source is not None and source != dtype_of(tensor):
            entry["source_dtype"] = source
        if scale is not None:
            entry["scale"] = self._put(Tensor(key + "/scale", hook_id, scale, is_scale=True, **facts))
        entry["data"] = self._put(Tensor(key, hook_id, tensor, **facts))
        for user in [hook_id, *(alias for alias, owner in self.shared.items() if owner == hook_id)]:
            self.records[user].append({**self._place(user), **entry})

    def _put(self, item: Tensor) -> dict[str, str]:
        dtype = dtype_of(item.tensor)
        file = f"activations-{dtype}-{self.numbers.get(dtype, 0):05d}.safetensors"
        self.shards.setdefault(file, []).append(item)
        return {"file": file, "key": item.key}

    def _place(self, hook_id: str) -> dict[str, str]:
        layer = self.hooks.index(self.shared.get(hook_id, hook_id))
        return {"hook_id": hook_id, "layer_name": f"model.layers.{layer}", "component": "residual"}

    def close(self, status: str = "complete", cause: str | None = None) -> Path:
        """Publishes every shard and writes the metadata JSON and the manifest."""
        for file, tensors in self.shards.items():
            write_shard(self.folder / file, tensors)
        self.write_metadata()
        self.write_manifest(status, cause)
        return self.folder

    def kill(self) -> Path:
        """Leaves everything as a killed process does: the last shard of each dtype open, no metadata JSON."""
        for file, tensors in self.shards.items():
            dtype = dtype_of(tensors[0].tensor)
            if file.endswith(f"-{self.numbers.get(dtype, 0):05d}.safetensors"):
                write_open_shard(self.folder / file, tensors)
            else:
                write_shard(self.folder / file, tensors)
        self.write_manifest("writing", checksums=False)
        return self.folder

    def write_metadata(self) -> None:
        configurations = [{**self._place(hook), "capture_output": True} for hook in self.hooks]
        front: dict[str, Any] = {"timestamp": "2026-01-02T03:04:05.678901"}
        if self.analysis:
            front |= {"demo_type": "circuit_analysis", "analysis_name": self.analysis}
            front |= {"analysis_description": "What it is for", "hooks_used": len(self.hooks)}
        else:
            front |= {"demo_type": "activation_capture", "total_hooks": len(self.hooks)}
        front |= {"generated_text": "text", "activations": self.records}
        front |= {"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
        front |= {"hook_configurations": configurations}
        (self.folder / self.metadata_file).write_text(json.dumps(front))

    def manifest(self, status: str, cause: str | None = None, checksums: bool = True) -> dict[str, Any]:
        hooks: dict[str, dict[str, Any]] = {}
        for hook in self.hooks:
            stream = 2 * self.hooks.index(self.shared.get(hook, hook))
            place = self._place(hook)
            hooks[hook] = {"layer_name": place["layer_name"], "component": place["component"]}
            hooks[hook] |= {"module": place["layer_name"], "input": stream + 1, "output": stream}
        sums = {
            file: {item.key: f"{crc32c(bytes_of(item.tensor)):08x}" for item in tensors}
            for file, tensors in self.shards.items()
        }
        return {
            "format": "neuroscope-fast run",
            "format_version": 1,
            "status": status,
            "cause": cause,
            "created": "2026-01-02T03:04:05.678901",
            "metadata_file": self.metadata_file,
            "hooks": hooks,
            "counters": {"records": sum(map(len, self.records.values())), "bytes_written": 123},
            "checksums": {"algorithm": "crc32c", "shards": sums if checksums else {}},
        }

    def write_manifest(self, status: str, cause: str | None = None, checksums: bool = True) -> None:
        (self.folder / "capture.json").write_text(json.dumps(self.manifest(status, cause, checksums)))
