"""Gives back what is whole in a run that has no metadata JSON yet: one still being written, or left by a
crash.

The manifest says which hook uses which stream, journals and shard headers say which tensors are there, and
from both the records are built again. What does not hold up is left out and said in `problems`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from .dtypes import DType
from .errors import RunError
from .files import read_regular
from .journal import Journal, JournalHeaderError, parse_journal
from .keys import KeyParts, parse_tensor_key
from .manifest import Manifest, ManifestHook
from .records import (
    ActivationCapture,
    CircuitAnalysis,
    DataRef,
    HookConfiguration,
    Metadata,
    Record,
    StepNote,
    Usage,
)
from .shard_file import ShardFile

PARTIAL = ".partial"
LOST_KEY = "__lost__/at-"
"""Begins the key of bytes in a repaired shard that are no record's."""
JOURNAL = ".journal"
_SHARD = re.compile(r"(activations-\w+-\d+\.safetensors)(?:\.partial|\.journal)?", re.ASCII)
_MOST_SHARING = 64  # hooks of one place; each record of it is given to all of them
Crc32c = Callable[..., int]


class _Found(NamedTuple):
    """A whole tensor. Without a journal its note and its source dtype are not known."""

    file: str
    dtype: DType
    shape: tuple[int, ...]
    note: StepNote | None
    source: DType | None


@dataclass
class Recovered:
    """What `recover` found. `journals`: those that stand beside shards, by the shard's final name."""

    activations: dict[str, list[Record]]
    journals: dict[str, Journal] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def recover(folder: Path, manifest: Manifest, *, published: bool, crc32c: Crc32c | None = None) -> Recovered:
    """The records of every whole tensor in `folder`, for each hook of the manifest in the order of capture.

    `published`: take those of published shards without a journal too, for a run whose metadata JSON does not name them.
    `crc32c`: leave out what is in an open shard and does not have the checksum that its journal says.
    """
    result = Recovered({hook_id: [] for hook_id in manifest.hooks})
    found: dict[str, _Found] = {}
    for name, journal in read_journals(folder, result.problems).items():
        if journal is not None:
            result.journals[name] = journal
        try:
            if os.path.lexists(folder / name):
                if published or journal is not None:
                    found.update(_in_published_shard(folder, name, journal))
            elif journal is None:
                result.problems.append(f"{name}{PARTIAL} has no journal that can be read")
            else:
                found.update(_in_open_shard(folder, name, journal, crc32c, result.problems))
        except FileNotFoundError:
            result.problems.append(f"{name} is gone")  # published or removed while this was looking
        except RunError as error:
            result.problems.append(str(error))
    result.activations = _records(manifest, found, result.problems)
    return result


def read_journals(folder: Path, problems: list[str]) -> dict[str, Journal | None]:
    """By the final name of every shard that is there, published or not: its journal, None where there is none that can
    be read, which is said in `problems`.
    """
    journals: dict[str, Journal | None] = {}
    for name in shard_names(folder):
        if os.path.lexists(folder / name) and os.path.lexists(folder / (name + PARTIAL)):
            problems.append(f"{name} and {name}{PARTIAL} are both there: the second, and its journal, are left out")
            journals[name] = None
        else:
            journals[name] = _read_journal(folder / (name + JOURNAL), problems)
    return journals


def shard_names(folder: Path) -> list[str]:
    """The final names of all shards of which any file is there."""
    try:
        found = map(_SHARD.fullmatch, os.listdir(folder))
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted({match[1] for match in found if match is not None})


def _read_journal(path: Path, problems: list[str]) -> Journal | None:
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return None
    except RunError as error:
        problems.append(str(error))
        return None
    try:
        return parse_journal(data, str(path))
    except JournalHeaderError as error:
        problems.append(str(error))
        return None


def _in_published_shard(folder: Path, name: str, journal: Journal | None) -> Iterator[tuple[str, _Found]]:
    notes = {record.key: record for record in journal.records} if journal else {}
    for key, entry in ShardFile.published(folder / name).entries.items():
        if key.startswith(LOST_KEY):
            continue
        said = notes.get(key)
        yield (
            key,
            _Found(name, entry.dtype, entry.shape, said.note if said else None, said.source if said else None),
        )


def _in_open_shard(
    folder: Path, name: str, journal: Journal, crc32c: Crc32c | None, problems: list[str]
) -> Iterator[tuple[str, _Found]]:
    try:
        shard = ShardFile.open_shard(folder / (name + PARTIAL), journal)
    except FileNotFoundError:
        shard = ShardFile.published(folder / name)  # published since its journal was read
    missing, broken = 0, 0
    for record in journal.records:
        if record.key not in shard.entries:
            missing += 1
        elif crc32c is not None and crc32c(shard.view(record.key)) != record.crc32c:
            broken += 1
        else:
            yield record.key, _Found(name, journal.dtype, record.shape, record.note, record.source)
    if missing:
        problems.append(f"{name}{PARTIAL} is cut short: {missing} records of its journal are not in it")
    if broken:
        problems.append(f"{name}{PARTIAL} holds {broken} records whose checksum does not agree")


def _records(manifest: Manifest, found: Mapping[str, _Found], problems: list[str]) -> dict[str, list[Record]]:
    activations: dict[str, list[Record]] = {hook_id: [] for hook_id in manifest.hooks}
    users = _users_of_streams(manifest.hooks)
    unnamed, without_scales, without_indices = 0, 0, 0
    without_positions = set()
    for key, tensor in found.items():
        parts = parse_tensor_key(key)
        if parts is None or parts.hook_id not in manifest.hooks:
            unnamed += 1
            continue
        if parts.is_scale or parts.is_indices:
            continue
        owner = manifest.hooks[parts.hook_id]
        scale = found.get(key + "/scale")
        if tensor.dtype.name == "int8" and _is_quantised(tensor, owner) and scale is None:
            without_scales += 1
            continue
        indices = found.get(key + "/indices")
        if owner.indices is not None and not parts.is_input and indices is None:
            without_indices += 1
            continue
        record = _record(parts, key, tensor, scale, indices)
        stream = owner.input if parts.is_input else owner.output
        for hook_id, is_input in users.get(stream, [(parts.hook_id, parts.is_input)])[:_MOST_SHARING]:
            hook = manifest.hooks[hook_id]
            said = {"layer_name": hook.layer_name, "component": hook.component}
            taken = {"heads": hook.heads, "reduction": hook.reduction}
            activations[hook_id].append(replace(record, hook_id=hook_id, is_input=is_input, **said, **taken))
            if hook.positions != "all" and record.positions is None:
                without_positions.add(hook_id)
    if unnamed:
        problems.append(f"{unnamed} tensors belong to no hook of the manifest")
    if any(len(each) > _MOST_SHARING for each in users.values()):
        problems.append(f"more than {_MOST_SHARING} hooks share a tensor, the rest of them are left out")
    if without_scales:
        problems.append(f"{without_scales} int8 records are left out, their scales are not there")
    if without_indices:
        problems.append(f"{without_indices} records are left out, the indices beside them are not there")
    problems.extend(f"which positions {hook_id} stored is not known" for hook_id in sorted(without_positions))
    for records in activations.values():
        records.sort(key=order_of_capture)
    return activations


def _is_quantised(tensor: _Found, owner: ManifestHook) -> bool:
    return tensor.source.name != "int8" if tensor.source is not None else owner.dtype == "int8"


def _users_of_streams(hooks: Mapping[str, ManifestHook]) -> dict[int | None, list[tuple[str, bool]]]:
    users: dict[int | None, list[tuple[str, bool]]] = {}
    for hook_id, hook in hooks.items():
        for stream, is_input in ((hook.input, True), (hook.output, False)):
            if stream is not None:
                users.setdefault(stream, []).append((hook_id, is_input))
    return users


def _record(parts: KeyParts, key: str, tensor: _Found, scale: _Found | None, indices: _Found | None) -> Record:
    """All that the tensor itself says; layer and component are the hook's."""
    note = tensor.note or StepNote()
    source = tensor.source.name if tensor.source is not None else None
    return Record(
        hook_id=parts.hook_id,
        layer_name="",
        component="",
        shape=list(tensor.shape),
        dtype=tensor.dtype.name,
        is_input=parts.is_input,
        step=parts.step,
        prompt=parts.prompt,
        call=parts.call,
        positions=note.positions,
        real_tokens=note.real_tokens,
        source_dtype=None if source == tensor.dtype.name else source,
        scale=DataRef(scale.file, key + "/scale") if scale is not None else None,
        indices=DataRef(indices.file, key + "/indices") if indices is not None else None,
        data=DataRef(tensor.file, key),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def order_of_capture(record: Record) -> tuple[int, int, int, bool]:
    """Sorts the records of one hook: a module's input is seen before its output."""
    return record.prompt, record.step, record.call, not record.is_input


def merge(known: Iterable[Record], found: Iterable[Record]) -> list[Record]:
    """The records of one hook that the metadata JSON names, and those that only a journal does."""
    merged = {order_of_capture(record): record for record in (*found, *known)}
    return [merged[order] for order in sorted(merged)]


def metadata_of(manifest: Manifest, activations: dict[str, list[Record]]) -> Metadata:
    """The metadata of a run that has no metadata JSON: no text and no token counts are known."""
    configurations = [
        HookConfiguration(
            layer_name=hook.layer_name,
            component=hook.component,
            hook_id=hook_id,
            capture_output=hook.output is not None,
            capture_input=hook.input is not None,
            dtype=hook.dtype,
            positions=hook.positions,
            phase=hook.phase,
            every=hook.every,
            heads=hook.heads,
            reduction=hook.reduction,
            top_k=hook.top_k,
        )
        for hook_id, hook in manifest.hooks.items()
    ]
    name = manifest.metadata_file.removesuffix(".json")
    if name.startswith("circuit_analysis_"):
        return CircuitAnalysis(
            timestamp=manifest.created,
            demo_type="circuit_analysis",
            analysis_name=name.removeprefix("circuit_analysis_"),
            analysis_description=_text(manifest.options.get("description")),
            hooks_used=len(configurations),
            generated_text="",
            activations=activations,
            usage=Usage(),
            hook_configurations=configurations,
        )
    return ActivationCapture(
        timestamp=manifest.created,
        demo_type="activation_capture",
        total_hooks=len(configurations),
        generated_text="",
        activations=activations,
        usage=Usage(),
        hook_configurations=configurations,
    )
