"""From what the engine recorded to the structs of the metadata JSON, the index and the checksums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from .keys import tensor_key
from .manifest import Checksums, Dropped
from .records import DataRef, Record, StepNote, decode_note

if TYPE_CHECKING:
    import torch

    from ._core import Session
    from .hooks import Plan
    from .resume import Earlier


class NativeRecord(NamedTuple):
    """What `_core.Session.records()` gives for each stored tensor, in the order of capture."""

    stream: int
    prompt: int
    step: int
    call: int
    is_scale: bool
    shape: tuple[int, ...]
    dtype: str
    source_dtype: str
    note: str | None
    shard: int
    offset: int
    bytes: int
    crc: int


@dataclass
class Collected:
    """A capture's records by hook id, and what the files beside the shards say of them."""

    activations: dict[str, list[Record]]
    weight_map: dict[str, str] = field(default_factory=dict)
    total_size: int = 0
    checksums: dict[str, dict[str, int]] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """For the memory sink: by the keys of every hook, shared tensors under each of theirs."""

    def put_behind(self, earlier: Earlier) -> None:
        """Make this the whole run: what was captured of it earlier, and then this."""
        self.activations = {
            hook_id: earlier.metadata.activations.get(hook_id, []) + records
            for hook_id, records in self.activations.items()
        }
        self.weight_map = {**earlier.weight_map, **self.weight_map}
        self.total_size += earlier.total_size
        self.checksums = {**earlier.checksums, **self.checksums}


def shard_file_name(dtype: str, number: int) -> str:
    """The name that the engine gives a shard."""
    return f"activations-{dtype}-{number:05d}.safetensors"


def collect(session: Session, plan: Plan, *, on_disk: bool, published: Callable[[str], bool]) -> Collected:
    """Every whole record of a closed session, for each hook that asked for it.

    `published` tells of a shard's file name whether it can be read; records in others are left to their journals.
    """
    users = _users_of_streams(plan)
    hooks = [each.hook for each in plan.hooks]
    collected = Collected({hook.hook_id: [] for hook in hooks})
    notes: dict[str | None, StepNote] = {None: StepNote()}
    shards: dict[str, bool] = {}
    beside: dict[str, DataRef] = {}
    """The scales and indices that belong to other records, by their own keys."""
    held: dict[str, torch.Tensor] = {}
    whole: list[tuple[NativeRecord, str, str]] = []
    for entry in session.records():
        record = NativeRecord(*entry)
        owner, is_input, is_indices = plan.streams[record.stream]
        key = tensor_key(
            owner,
            record.step,
            prompt=record.prompt,
            call=record.call,
            is_input=is_input,
            is_scale=record.is_scale,
            is_indices=is_indices,
        )
        file = shard_file_name(record.dtype, record.shard)
        if on_disk:
            if file not in shards:
                shards[file] = published(file)
            if not shards[file]:
                continue
            collected.weight_map[key] = file
            collected.checksums.setdefault(file, {})[key] = record.crc
        collected.total_size += record.bytes
        if record.is_scale or is_indices:
            beside[key] = DataRef(file, key)
            if not on_disk:
                held[key] = _held_tensor(session, record)
        else:
            whole.append((record, key, file))
    for record, key, file in whole:
        note = notes.get(record.note)
        if note is None:
            note = notes[record.note] = decode_note((record.note or "").encode())
        quantised = record.dtype == "int8" and record.source_dtype != "int8"
        scale = beside.get(f"{key}/scale") if quantised else None
        indexed = record.stream in plan.indices
        indices = beside.get(f"{key}/indices") if indexed else None
        if (quantised and scale is None) or (indexed and indices is None):
            continue  # what belongs to it was not written: the engine failed between the two
        stored = None if on_disk else _held_tensor(session, record)
        for number, is_input in users[record.stream]:
            hook = hooks[number]
            part = hook.output.part if hook.output is not None else None
            heads = list(part.heads) if part is not None and part.heads is not None else None
            if stored is not None:
                own = tensor_key(hook.hook_id, record.step, prompt=record.prompt, call=record.call, is_input=is_input)
                collected.tensors[own] = stored
                for name, is_there in (("scale", quantised), ("indices", indexed)):
                    if is_there:
                        collected.tensors[f"{own}/{name}"] = held[f"{key}/{name}"]
            collected.activations[hook.hook_id].append(
                Record(
                    hook_id=hook.hook_id,
                    layer_name=hook.layer_name,
                    component=hook.component,
                    shape=list(record.shape),
                    dtype=record.dtype,
                    is_input=is_input,
                    step=record.step,
                    prompt=record.prompt,
                    call=record.call,
                    positions=note.positions,
                    real_tokens=note.real_tokens,
                    heads=heads,
                    reduction=part.reduction if part is not None else None,
                    source_dtype=None if record.source_dtype == record.dtype else record.source_dtype,
                    scale=scale if on_disk else None,
                    indices=indices if on_disk else None,
                    data=DataRef(file, key) if on_disk else None,
                )
            )
    return collected


def _held_tensor(session: Session, record: NativeRecord) -> torch.Tensor:
    """A tensor on the memory of its slab, without a copy; it keeps the slab alive."""
    import torch

    dtype = getattr(torch, record.dtype)
    if record.bytes == 0:
        return torch.empty(record.shape, dtype=dtype)
    slab = session.slab(record.shard)
    count = record.bytes // dtype.itemsize
    return torch.frombuffer(slab, dtype=dtype, count=count, offset=record.offset).view(record.shape)


def collect_dropped(session: Session, plan: Plan) -> list[Dropped]:
    """The records that found no room, for each hook that asked for them."""
    users = _users_of_streams(plan)
    dropped = (
        Dropped(hook_id=plan.hooks[number].hook.hook_id, step=step, prompt=prompt, call=call, is_input=is_input)
        for stream, prompt, step, call in session.dropped()
        for number, is_input in users[stream]
    )
    return list(dict.fromkeys(dropped))  # of the weights and the keys of one record, which can both be among them


def _users_of_streams(plan: Plan) -> dict[int, list[tuple[int, bool]]]:
    """For each stream the hooks that it serves, by their number in the plan, and on which side."""
    users: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    for number, each in enumerate(plan.hooks):
        for stream, is_input in ((each.input, True), (each.output, False), (each.indices, False)):
            if stream is not None:
                users[stream].append((number, is_input))
    return users


def checksums_of(collected: Collected) -> Checksums:
    """The manifest's table."""
    return Checksums.of(collected.checksums)


NEVER_RAN = "module never ran"
NEVER_CALLED = "module never ran, or never called an attention function"


def never_ran(plan: Plan, session: Session) -> dict[str, list[str]]:
    """The ids of hooks whose modules were not called, by what is to be said of these. Experts are left out: a router
    may pass one over.
    """
    fired = session.fired()
    ran = {stream for tap, calls in zip(plan.taps, fired, strict=True) if calls for stream in tap.streams.values()}
    silent: dict[str, list[str]] = defaultdict(list)
    for each in plan.hooks:
        if each.hook.component != "expert" and not {each.input, each.output} & ran:
            in_function = each.hook.output is not None and each.hook.output.side == "attention"
            silent[NEVER_CALLED if in_function else NEVER_RAN].append(each.hook.hook_id)
    return silent
