"""The manifest `capture.json`, the Hugging Face index, and the replacement of a file in one step.

The meaning of every key is in docs/file_format.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from .errors import RunError
from .head_options import TOP_K
from .records import Count

RUN_FORMAT = "neuroscope-fast run"
FORMAT_VERSION = 1
MANIFEST_FILE = "capture.json"
CHECKSUMS = "crc32c"
INDEX_FILE = "activations.safetensors.index.json"

_LARGEST_OPTIONS = 1 << 20
"""Bytes. They may hold anything, and nested lists take thirty times the memory of their text."""

Status = Literal["writing", "complete", "interrupted", "failed"]


class ModelInfo(Struct, kw_only=True):
    """The model that was captured."""

    class_name: str = ""
    model_type: str | None = None
    name_or_path: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None


class ManifestHook(Struct, kw_only=True):
    """A hook as it was resolved. `input` and `output` are the streams its two sides are stored under, if
    captured, and `indices` that of the keys which the weights of `top_k` are of.
    """

    layer_name: str
    component: str
    module: str
    input: int | None = None
    output: int | None = None
    dtype: str | None = None
    positions: str | list[int] = "all"
    phase: str = "both"
    every: int = 1
    heads: list[int] | None = None
    reduction: str | None = None
    top_k: int = TOP_K
    indices: int | None = None


class Counters(Struct, kw_only=True):
    """What the engine counted. Bytes are bytes, times are seconds; `records` are stored tensors, and of them those
    `acknowledged` are durable.
    """

    records: Count = 0
    acknowledged: Count = 0
    bytes_in: Count = 0
    bytes_written: Count = 0
    stalls: Count = 0
    stall_seconds: float = 0.0
    drops: Count = 0
    peak_ring_bytes: Count = 0
    pinned_bytes: Count = 0
    tap_seconds: float = 0.0


class DeviceCounters(Struct, kw_only=True):
    """What the engine counted on one CUDA device. Bytes are bytes, times are seconds."""

    device: str
    name: str = ""
    driver: str = ""
    staging_bytes: Count = 0
    peak_staging_bytes: Count = 0
    peak_slot_bytes: Count = 0
    dtoh_bytes: Count = 0
    dtoh_copies: Count = 0
    dtoh_seconds: float = 0.0
    host_waits: Count = 0
    device_waits: Count = 0


class Dropped(Struct, frozen=True, gc=False):
    """A record that found no room under the policy `drop`."""

    hook_id: str
    step: int
    prompt: int = 0
    call: int = 0
    is_input: bool = False


class Checksums(Struct):
    """CRC-32C of every stored tensor. `shards` stays bytes until it is needed: it has an entry for each
    record.
    """

    algorithm: str = CHECKSUMS
    shards: Raw = msgspec.field(default_factory=lambda: Raw(b"{}"))

    @classmethod
    def of(cls, shards: Mapping[str, Mapping[str, int]]) -> Checksums:
        """From `{file: {key: checksum}}`."""
        texts = {file: {key: f"{crc:08x}" for key, crc in keys.items()} for file, keys in shards.items()}
        return cls(shards=Raw(msgspec.json.encode(texts)))

    def by_shard(self) -> dict[str, dict[str, int]]:
        """`{file: {key: checksum}}`. Raises RunError where the manifest holds something else."""
        if self.algorithm != CHECKSUMS:
            raise RunError(
                f"the checksums in {MANIFEST_FILE} are {self.algorithm!r}; this neuroscope-fast knows {CHECKSUMS}"
            )
        try:
            texts = msgspec.json.decode(self.shards, type=dict[str, dict[str, str]])
            return {file: {key: int(text, 16) for key, text in keys.items()} for file, keys in texts.items()}
        except (msgspec.MsgspecError, ValueError) as error:
            raise RunError(f"the checksums in {MANIFEST_FILE} cannot be read: {error}") from error


class LostTensor(Struct, frozen=True, gc=False):
    """A tensor that a journal names, and whose bytes are not there, or are others."""

    file: str
    key: str
    reason: str


class Recovery(Struct, kw_only=True):
    """What `recover` did to a run.

    `shards`: those whose journals it read. `acknowledged`: how many of their tensors the capture had made durable and
    said so. `unreadable`: files that were left as they are. `problems`: in words.
    """

    at: str
    shards: list[str] = []
    acknowledged: Count = 0
    lost: list[LostTensor] = []
    unreadable: list[str] = []
    problems: list[str] = []


class Resumption(Struct, kw_only=True):
    """A capture that went on with the run of another, from a prompt on, at a time, with these versions."""

    at: str
    first_prompt: Count
    versions: dict[str, str | None] = {}


class Manifest(Struct, kw_only=True):
    """`capture.json`. `file_checksums`: CRC-32C, in hex, of whole files beside the shards. `generation`: with which
    arguments `nsf.generate` made the texts.
    """

    format: str = RUN_FORMAT
    format_version: int = FORMAT_VERSION
    status: Status
    cause: str | None = None
    created: str
    closed: str | None = None
    metadata_file: str
    versions: dict[str, str | None] = {}
    model: ModelInfo = msgspec.field(default_factory=ModelInfo)
    options: dict[str, Any] = {}
    hooks: dict[str, ManifestHook] = {}
    counters: Counters = msgspec.field(default_factory=Counters)
    devices: list[DeviceCounters] = []
    warnings: list[str] = []
    dropped: list[Dropped] = []
    checksums: Checksums = msgspec.field(default_factory=Checksums)
    file_checksums: dict[str, str] = {}
    recovery: Recovery | None = None
    generation: dict[str, Any] = {}
    resumptions: list[Resumption] = []


class _Versioned(Struct):
    format: str
    format_version: int
    options: Raw = msgspec.field(default_factory=lambda: Raw(b"{}"))


def encode_manifest(manifest: Manifest) -> bytes:
    """`capture.json`, indented by two."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, name: str = MANIFEST_FILE) -> Manifest:
    """The manifest. Raises RunError where `data` is none, or is of a version that is not known here."""
    try:
        version = msgspec.json.decode(data, type=_Versioned)
        if version.format != RUN_FORMAT:
            raise RunError(f"{name} is not the manifest of a neuroscope-fast run: its format is {version.format!r}")
        if version.format_version != FORMAT_VERSION:
            raise RunError(
                f"{name} has format version {version.format_version}; "
                f"this neuroscope-fast reads version {FORMAT_VERSION}"
            )
        if len(version.options) > _LARGEST_OPTIONS:
            raise RunError(f"{name} has {len(version.options)} bytes of options, which no capture writes")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{name} is not the manifest of a neuroscope-fast run: {error}") from error


def encode_index(weight_map: Mapping[str, str] | Raw, total_size: int) -> bytes:
    """The Hugging Face index: `weight_map`, or its JSON, names the shard of every key, `total_size` is the bytes of
    all tensors.
    """
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of the manifest; the package ships it as `schema/manifest.schema.json`."""
    (form,), definitions = msgspec.json.schema_components([Manifest], ref_template="#/$defs/{name}")
    digits = {"type": "string", "pattern": "^[0-9a-f]{8}$"}
    of_shard = {"type": "object", "additionalProperties": digits}
    manifest = definitions["Manifest"]
    manifest["required"] = ["format", "format_version", *manifest["required"]]  # a reader looks at them first
    manifest["properties"] |= {"format": {"const": RUN_FORMAT}, "format_version": {"const": FORMAT_VERSION}}
    definitions["Checksums"]["properties"]["shards"] = {"type": "object", "additionalProperties": of_shard}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "neuroscope-fast manifest",
        **form,
        "$defs": definitions,
    }


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """`replace_files` of one."""
    replace_files(path.parent, {path.name: data})


def replace_files(
    folder: Path, files: Mapping[str, bytes | Iterable[bytes | memoryview]], *, durable: bool = True
) -> None:
    """Writes files of a folder so that a reader, or a crash, finds of each the old bytes or the new ones. All are
    durable on return, for the price of one synchronisation of the folder; without `durable` that is left to the caller,
    and a crash may leave nothing where nothing was. What is too large for memory can come in pieces. Raises OSError
    with the `filename`.
    """
    at = folder
    beside = {folder / name: folder / f"{name}.tmp" for name in files}
    try:
        for at, data in zip(beside, files.values(), strict=True):
            # What stands there is left of a crash, or a link to elsewhere, which must not be written through.
            beside[at].unlink(missing_ok=True)
            with open(os.open(beside[at], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        for at, temporary in beside.items():
            os.replace(temporary, at)
        at = folder
        if durable:
            sync_folder(folder)
    except BaseException as error:
        for temporary in beside.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = os.fspath(at), None
        raise
