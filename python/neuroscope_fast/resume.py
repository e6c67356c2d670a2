"""Continuing a run: what a capture with `resume=True` finds in its folder, and where it goes on.

It goes on at the first prompt that is not whole: whose end the capture did not see, or of which a record is missing.
What there is of it and of later ones is taken out of the run before the model runs, so that every record is in it once.
Each step leaves a run that can be opened and resumed again, should it be the last. Of a complete run nothing is taken
out.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from .dtypes import BY_NAME
from .errors import OptionError, RunError
from .keys import parse_tensor_key
from .manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    Checksums,
    Manifest,
    Recovery,
    encode_index,
    encode_manifest,
    replace_files,
)
from .prompt_log import PROMPTS_FILE, PromptEntry, encode_prompt, texts_of
from .reader import RunIncompleteWarning, open_run
from .records import Metadata, encode_metadata
from .report import render
from .run_directory import report_file_name
from .shard_file import ShardFile
from .shard_trim import trim_shard

_SHARD = re.compile(
    rf"activations-(?P<dtype>{'|'.join(BY_NAME)})-(?P<number>\d{{5,9}})\.safetensors(?P<ending>\..+)?", re.ASCII
)
_DECIDES_BYTES = ("dtype", "analysis", "description", "overflow")
"""Of the options those without which the rest of the run would be of another kind than its beginning."""


@dataclass(frozen=True)
class Earlier:
    """What a resumed capture goes on from.

    `first_shards`: by dtype the first number that no file has, or had. `shards`: those that are there.
    """

    first_prompt: int
    metadata: Metadata
    manifest: Manifest
    prompts: list[PromptEntry]
    weight_map: dict[str, str]
    total_size: int
    first_shards: dict[str, int]
    shards: list[str]

    @property
    def checksums(self) -> dict[str, dict[str, int]]:
        """Of all tensors that stay: `{file: {key: checksum}}`."""
        return self.manifest.checksums.by_shard()


def look_back(folder: Path, now: Manifest) -> Earlier:
    """What there is to go on from of the run in `folder`, which is recovered and locked. Changes nothing.

    `now`: the manifest of the capture that is to continue it. Raises OptionError where it is of another kind than the
    run, RunError where this cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunIncompleteWarning)  # that is why it is resumed
        run = open_run(folder)
    if run.manifest.status == "writing":
        raise RunError(f"{folder} was written, and left, by another process after it was recovered: resume it again")
    metadata = run.metadata
    _check(folder, run.manifest, now)
    prompts = run.prompts
    if run.status != "complete":
        prompts = _whole(run.manifest, prompts, _shards(folder))
    elif any(record.prompt >= len(prompts) for record in run.records):
        raise OptionError(f"{folder} is complete, and its {PROMPTS_FILE} does not tell of all of it: nothing to resume")
    return _cut(folder, metadata, run.manifest, prompts)


def cut_back(folder: Path, earlier: Earlier) -> None:
    """Take out of the run what `earlier` does not hold. Raises RunError, and OSError where it cannot be written."""
    if earlier.manifest.status == "complete":
        return
    _write(folder, earlier)
    kept = earlier.checksums
    for name in earlier.shards:
        trim_shard(folder, name, kept.get(name, {}))


def _check(folder: Path, before: Manifest, now: Manifest) -> None:
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
    # As they were resolved: as they were asked for, a run that was killed does not tell.
    was_ids, ids = list(before.hooks), list(now.hooks)
    if (was_ids, before.hooks) != (ids, now.hooks):
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


def _whole(manifest: Manifest, prompts: Sequence[PromptEntry], shards: Collection[str]) -> list[PromptEntry]:
    """The prompts up to the first that is not whole."""
    stored: Counter[int] = Counter()
    for file, keys in manifest.checksums.by_shard().items():
        if file in shards:
            parts = map(parse_tensor_key, keys)
            stored.update(each.prompt for each in parts if each is not None and not each.is_scale)
    found: list[PromptEntry] = []
    for entry in prompts:
        if not entry.ended or stored[entry.prompt] != entry.records:
            break
        found.append(entry)
    return found


def _cut(folder: Path, metadata: Metadata, manifest: Manifest, prompts: list[PromptEntry]) -> Earlier:
    first, shards = len(prompts), _shards(folder)
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
        kept = {key: crc for key, crc in keys.items() if file in shards and _is_before(key, first)}
        if kept:
            checksums[file] = kept
    for ref in refs:
        if ref.key not in checksums.get(ref.file, {}):
            raise RunError(f"{folder / MANIFEST_FILE} has no checksum for {ref.key} in {ref.file}")
    count = sum(len(keys) for keys in checksums.values())
    dropped = [each for each in manifest.dropped if each.prompt < first]
    manifest = replace(
        manifest,
        status="complete" if manifest.status == "complete" else "interrupted",
        checksums=Checksums.of(checksums),
        dropped=dropped,
        counters=replace(
            manifest.counters, records=count, acknowledged=count, drops=sum(entry.drops for entry in prompts)
        ),
        recovery=_recovery_of(manifest, count),
    )
    return Earlier(
        first, metadata, manifest, prompts, *_index(folder, checksums), _next_numbers(folder, manifest), shards
    )


def _is_before(key: str, first: int) -> bool:
    parts = parse_tensor_key(key)
    return parts is not None and parts.prompt < first


def _recovery_of(manifest: Manifest, count: int) -> Recovery | None:
    """What is still true of it: nothing that was lost is of a prompt that stays."""
    if manifest.recovery is None:
        return None
    return replace(manifest.recovery, lost=[], acknowledged=min(manifest.recovery.acknowledged, count))


def _index(folder: Path, checksums: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, str], int]:
    weight_map: dict[str, str] = {}
    total_size = 0
    for file, keys in checksums.items():
        entries = ShardFile.published(folder / file).entries
        for key in keys:
            weight_map[key] = file
            if key not in entries:
                raise RunError(f"{folder / file} has no tensor {key}")
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
    return sorted(name for name in os.listdir(folder) if (match := _SHARD.fullmatch(name)) and match["ending"] is None)


def _next_numbers(folder: Path, manifest: Manifest) -> dict[str, int]:
    """Behind every file of a shard, what a recovery could not read too, and behind those that it has finished: it
    knows them by their names.
    """
    numbers: dict[str, int] = {}
    for name in [*os.listdir(folder), *(manifest.recovery.shards if manifest.recovery is not None else ())]:
        if match := _SHARD.fullmatch(name):
            numbers[match["dtype"]] = max(numbers.get(match["dtype"], 0), int(match["number"]) + 1)
    return numbers
