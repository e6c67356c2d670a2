"""A run of any number of records, made of the package's own parts without a model, and the same as plain dicts."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from neuroscope_fast.keys import tensor_key
from neuroscope_fast.manifest import INDEX_FILE, Checksums, Counters, Manifest, encode_index
from neuroscope_fast.records import ActivationCapture, DataRef, HookConfiguration, Record, Usage, encode_metadata
from neuroscope_fast.run_directory import RunDirectory

HOOKS = 72
HIDDEN = 2048
PROMPT_TOKENS = 17
RECORDS_A_SHARD = 100_000
"""About what the engine puts in one, whose header has at most 16 MiB."""
METADATA = "activation_capture.json"


def shard_of(step: int) -> str:
    return f"activations-bfloat16-{step * HOOKS // RECORDS_A_SHARD:05d}.safetensors"


def capture_of(count: int) -> ActivationCapture:
    """The metadata of a capture of so many records: the prefill, then one token at each step."""

    parts = ("self_attn", "attention"), ("mlp", "mlp"), ("", "residual")
    activations: dict[str, list[Record]] = {}
    configurations = []
    for number in range(HOOKS):
        module, component = parts[number % 3]
        layer = f"model.layers.{number // 3}" + (f".{module}" if module else "")
        hook = f"{layer}_{component}"
        steps = count // HOOKS + (number < count % HOOKS)
        activations[hook] = [
            Record(
                hook_id=hook,
                layer_name=layer,
                component=component,
                shape=[1, 1 if step else PROMPT_TOKENS, HIDDEN],
                dtype="bfloat16",
                is_input=False,
                step=step,
                positions=[PROMPT_TOKENS - 1 + step] if step else list(range(PROMPT_TOKENS)),
                source_dtype="float32",
                data=DataRef(shard_of(step), tensor_key(hook, step)),
            )
            for step in range(steps)
        ]
        configurations.append(HookConfiguration(layer, component, hook, capture_output=True))
    steps = len(next(iter(activations.values())))
    return ActivationCapture(
        timestamp="2026-01-02T03:04:05.678901",
        demo_type="activation_capture",
        total_hooks=HOOKS,
        generated_text="word " * steps,
        activations=activations,
        usage=Usage(PROMPT_TOKENS, steps, PROMPT_TOKENS + steps),
        hook_configurations=configurations,
    )


@dataclass
class RunFiles:
    """The files of a run, made of the package's own parts, and what the contestants are given of it."""

    folder: Path
    metadata: ActivationCapture
    plain: dict[str, Any]
    """The same information as dicts, lists, strings and numbers."""

    @property
    def path(self) -> Path:
        return self.folder / METADATA

    @property
    def records(self) -> int:
        return sum(map(len, self.metadata.activations.values()))


def write_run(folder: Path, count: int) -> RunFiles:

    metadata = capture_of(count)
    shapes: dict[str, dict[str, list[int]]] = {}
    for records in metadata.activations.values():
        for step, record in enumerate(records):
            shapes.setdefault(shard_of(step), {})[tensor_key(record.hook_id, step)] = record.shape
    directory = RunDirectory(folder, METADATA, overwrite=True)
    directory.write({METADATA: encode_metadata(metadata)})
    size = sum(write_shard(folder / shard, tensors) for shard, tensors in shapes.items())
    places = {key: shard for shard, tensors in shapes.items() for key in tensors}
    sums = {shard: {key: zlib.crc32(key.encode()) for key in tensors} for shard, tensors in shapes.items()}
    directory.write({INDEX_FILE: encode_index(places, size)})
    directory.write_manifest(
        Manifest(
            status="complete",
            created=metadata.timestamp,
            metadata_file=METADATA,
            counters=Counters(records=len(places), bytes_written=size),
            checksums=Checksums.of(sums),
        )
    )
    directory.release()
    return RunFiles(folder, metadata, msgspec.to_builtins(metadata))


def write_shard(path: Path, shapes: dict[str, list[int]]) -> int:
    """A safetensors file of bfloat16 tensors, its data a hole; the bytes of the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * shape[1] * shape[2]
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    start = -(-(8 + len(text)) // 4096) * 4096
    with open(path, "wb") as file:
        file.write((start - 8).to_bytes(8, "little") + text.ljust(start - 8))
        file.truncate(start + end)
    return end
