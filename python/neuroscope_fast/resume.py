"""Continuing a run: what a capture with `resume=True` finds in its folder, and where it goes on.

It goes on at the first prompt that is not whole: whose end the capture did not see, or of which a record is missing.
What there is of it and of later ones is taken out of the run first, so that every record is in it once. Each step
leaves a run that can be opened and resumed again, should it be the last.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from .errors import OptionError
from .manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    Checksums,
    Manifest,
    encode_index,
    encode_manifest,
    replace_files,
)
from .prompt_log import PROMPTS_FILE, PromptEntry, encode_prompt, texts_of
from .reader import RunIncompleteWarning, open_run
from .records import DataRef, HookConfiguration, Metadata, encode_metadata
from .report import render
from .run_directory import report_file_name
from .shard_file import ShardFile
from .shard_trim import trim_shard

_SHARD = re.compile(r"activations-(\w+)-(\d+)\.safetensors", re.ASCII)
_DECIDES_BYTES = ("dtype", "analysis", "description", "overflow")
"""Of the options those without which the rest of the run would be of another kind than its beginning."""


@dataclass(frozen=True)
class Earlier:
    """What a resumed capture goes on from. `first_shards`: by dtype the first number that no shard has."""

    first_prompt: int
    metadata: Metadata
    manifest: Manifest
    prompts: list[PromptEntry]
    weight_map: dict[str, str]
    total_size: int
    first_shards: dict[str, int]

    @property
    def checksums(self) -> dict[str, dict[str, int]]:
        """Of all tensors that stay: `{file: {key: checksum}}`."""
        return self.manifest.checksums.by_shard()


def resume_run(folder: Path, now: Manifest, hooks: Sequence[HookConfiguration]) -> Earlier:
    """Bring the run in `folder`, which is recovered and locked, to the end of its last whole prompt.

    `now`, `hooks`: the manifest and the hooks of the capture that is to continue it. Raises OptionError where these are
    not those of the run, RunError where it cannot be read, OSError where it cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunIncompleteWarning)  # that is why it is resumed
        run = open_run(folder)
    metadata = run.metadata
    _check(folder, run.manifest, metadata, now, hooks)
    prompts = _whole(metadata, run.prompts)
    earlier = _cut(folder, metadata, run.manifest, prompts)
    _write(folder, earlier)
    kept = earlier.checksums
    for name in _shards(folder):
        trim_shard(folder, name, kept.get(name, {}))
    return dataclasses.replace(earlier, first_shards=_next_numbers(folder))


def _check(
    folder: Path, before: Manifest, metadata: Metadata, now: Manifest, hooks: Sequence[HookConfiguration]
) -> None:
    """Raise OptionError where the two captures differ in what decides the bytes."""
    differences = [
        (f"the option {name}", before.options.get(name), now.options.get(name))
        for name in _DECIDES_BYTES
        if before.options.get(name) != now.options.get(name)
    ]
    for name in ("class_name", "model_type", "name_or_path", "revision", "dtype"):
        was, is_now = getattr(before.model, name), getattr(now.model, name)
        if was != is_now:
            differences.append((f"the model's {name}", was, is_now))
    for name in sorted({*before.generation, *now.generation}):
        if before.generation.get(name) != now.generation.get(name):
            differences.append((name, before.generation.get(name), now.generation.get(name)))
    if list(metadata.hook_configurations) != list(hooks):
        was_ids = [each.hook_id for each in metadata.hook_configurations]
        ids = [each.hook_id for each in hooks]
        if was_ids == ids:
            differences.append(("what its hooks ask for", "other", "this"))
        else:
            differences.append(("its hooks", _some(was_ids), _some(ids)))
    if differences:
        what, was, is_now = differences[0]
        raise OptionError(
            f"{folder} cannot be resumed: {what} was {was!r} and is now {is_now!r}; resume it as it was begun, "
            "or choose another folder"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _whole(metadata: Metadata, prompts: Sequence[PromptEntry]) -> list[PromptEntry]:
    """The prompts up to the first that is not whole."""
    stored = Counter(prompt for prompt, _ in set(_tensors(metadata)))
    found: list[PromptEntry] = []
    for entry in prompts:
        if not entry.ended or stored[entry.prompt] != entry.records:
            break
        found.append(entry)
    return found


def _tensors(metadata: Metadata) -> Iterable[tuple[int, DataRef]]:
    """What the engine counts as one, with its prompt: a record's tensor, and the indices beside it."""
    for records in metadata.activations.values():
        for record in records:
            for ref in (record.data, record.indices):
                if ref is not None:
                    yield record.prompt, ref


def _cut(folder: Path, metadata: Metadata, manifest: Manifest, prompts: list[PromptEntry]) -> Earlier:
    first = len(prompts)
    activations = {
        hook_id: [record for record in records if record.prompt < first]
        for hook_id, records in metadata.activations.items()
    }
    metadata = replace(metadata, activations=activations, **texts_of(prompts))
    refs = {
        ref
        for records in activations.values()
        for record in records
        for ref in (record.data, record.scale, record.indices)
        if ref is not None
    }
    checksums: dict[str, dict[str, int]] = {}
    for file, keys in manifest.checksums.by_shard().items():
        kept = {key: crc for key, crc in keys.items() if DataRef(file, key) in refs}
        if kept:
            checksums[file] = kept
    count = sum(len(keys) for keys in checksums.values())
    dropped = [each for each in manifest.dropped if each.prompt < first]
    manifest = replace(
        manifest,
        status="interrupted",
        cause=manifest.cause or "it is being resumed",
        checksums=Checksums.of(checksums),
        dropped=dropped,
        counters=replace(manifest.counters, records=count, acknowledged=count, drops=len(dropped)),
    )
    return Earlier(first, metadata, manifest, prompts, *_index(folder, checksums), {})


def _index(folder: Path, checksums: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, str], int]:
    weight_map: dict[str, str] = {}
    total_size = 0
    for file, keys in checksums.items():
        entries = ShardFile.published(folder / file).entries
        for key in keys:
            weight_map[key] = file
            total_size += entries[key].end - entries[key].begin
    return weight_map, total_size


def _write(folder: Path, earlier: Earlier) -> None:
    """All that tells of records before the shards are changed: what no file names can go."""
    encoded = encode_metadata(earlier.metadata)
    name = earlier.manifest.metadata_file
    replace_files(
        folder,
        {
            name: encoded,
            INDEX_FILE: encode_index(earlier.weight_map, earlier.total_size),
            PROMPTS_FILE: b"".join(map(encode_prompt, earlier.prompts)),
        },
    )
    report = render(encoded).encode()
    replace_files(folder, {report_file_name(name): report, MANIFEST_FILE: encode_manifest(earlier.manifest)})


def _shards(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if _SHARD.fullmatch(name))


def _next_numbers(folder: Path) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for name in _shards(folder):
        match = _SHARD.fullmatch(name)
        assert match is not None
        numbers[match[1]] = max(numbers.get(match[1], 0), int(match[2]) + 1)
    return numbers
