"""What the files beside the shards, and the result of a capture, hold of what the engine recorded.

A record becomes text in the engine, and a struct when somebody asks for it: at the end of a capture nothing is done
here for each record.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from .keys import parse_tensor_key
from .manifest import Checksums, Dropped, encode_index
from .records import Lines, join_lines, record_lines
from .report_hooks import Counted, Entry

if TYPE_CHECKING:
    import torch

    from ._core import Records, Session
    from .hooks import HookStreams, Plan
    from .resume import Earlier


class Collected:
    """The whole records of a closed session, by hook id, behind those of the run that it continues.

    `published` tells of a shard's file name whether it can be read; records in others are left to their journals. None:
    the records are in memory.
    """

    def __init__(
        self, session: Session, plan: Plan, *, published: Callable[[str], bool] | None, earlier: Earlier | None = None
    ):
        self.hooks = {each.hook.hook_id: each for each in plan.hooks}
        self.records: Records = session.records(list(map(_recorded, plan.hooks)), plan.indices, published)
        self._numbers = {hook_id: number for number, hook_id in enumerate(self.hooks)}
        self._earlier = earlier
        self._before = {} if earlier is None else earlier.metadata.activations

    @property
    def shards(self) -> list[str]:
        """Those that hold any of the records."""
        return [*(self._earlier.checksums if self._earlier is not None else ()), *self.records.shards]

    def silent(self) -> list[str]:
        """The hooks without a record."""
        return [
            hook_id
            for hook_id, number in self._numbers.items()
            if not self._before.get(hook_id) and self.records.count(number) == 0
        ]

    def lines(self) -> Iterator[tuple[str, Lines]]:
        """The records of each hook as they stand in the metadata JSON."""
        return ((hook_id, self._lines(hook_id)) for hook_id in self.hooks)

    def undecoded(self) -> dict[str, Callable[[], Raw]]:
        """What makes the JSON of each hook's records."""
        return {hook_id: partial(self._raw, hook_id) for hook_id in self.hooks}

    def _lines(self, hook_id: str) -> Lines:
        lines = self.records.lines(self._numbers[hook_id])
        before = self._before.get(hook_id)
        return join_lines(record_lines(before), lines) if before else lines

    def _raw(self, hook_id: str) -> Raw:
        return Raw(b"".join((b"[", self._lines(hook_id), b"]")))

    def counted(self) -> Iterator[tuple[str, Counted]]:
        """The records of each hook as a report tells of them."""
        for hook_id, number in self._numbers.items():
            hook = self.hooks[hook_id].hook
            heads, reduction = _part(self.hooks[hook_id])
            before = self._before.get(hook_id, [])
            kinds = self.records.kinds(number)
            entries = [msgspec.convert(record, Entry, from_attributes=True) for record in before]
            entries += [
                Entry(hook.layer_name, hook.component, shape, dtype, is_input, reduction, heads)
                for shape, dtype, is_input, _ in kinds
            ]
            yield hook_id, Counted(entries, [1] * len(before) + [count for *_, count in kinds])

    def index(self) -> bytes:
        """The Hugging Face index."""
        texts, total_size = [self.records.weight_map()], self.records.total_bytes
        if self._earlier is not None:
            texts.insert(0, msgspec.json.encode(self._earlier.weight_map))
            total_size += self._earlier.total_size
        return encode_index(_joined(texts), total_size)

    def checksums(self) -> Checksums:
        """The manifest's table."""
        texts = [self.records.checksums()]
        if self._earlier is not None:
            texts.insert(0, bytes(self._earlier.manifest.checksums.shards))
        return Checksums(shards=_joined(texts))


def _joined(objects: list[bytes]) -> Raw:
    """One JSON object of several without spaces that have no key in common."""
    return Raw(b"{" + b",".join(text[1:-1] for text in objects if text != b"{}") + b"}")


def _part(streams: HookStreams) -> tuple[list[int] | None, str | None]:
    """Heads and reduction of what the hook captures."""
    part = streams.hook.output.part if streams.hook.output is not None else None
    if part is None:
        return None, None
    return None if part.heads is None else list(part.heads), part.reduction


def _recorded(streams: HookStreams) -> tuple[bytes, bytes, int | None, int | None]:
    """A hook for the engine: the fields that all of its records begin with, those in their middle, and its streams."""
    hook = streams.hook
    front = {"hook_id": hook.hook_id, "layer_name": hook.layer_name, "component": hook.component}
    heads, reduction = _part(streams)
    part = {name: value for name, value in (("heads", heads), ("reduction", reduction)) if value is not None}
    middle = b"," + msgspec.json.encode(part)[1:-1] if part else b""
    return msgspec.json.encode(front)[:-1], middle, streams.input, streams.output


class HeldTensors:
    """The tensors of a capture in memory by the keys of every hook; shared ones are under each of theirs."""

    def __init__(self, collected: Collected):
        self._records = collected.records
        self._hooks = collected.hooks
        self._made: dict[str, torch.Tensor] = {}

    def __getitem__(self, key: str) -> torch.Tensor:
        """On the memory of its slab, without a copy; the tensor keeps the slab alive. Raises KeyError."""
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, key: str) -> torch.Tensor:
        import torch

        parts = parse_tensor_key(key)
        if parts is None or (parts.is_input and parts.is_indices):
            raise KeyError(key)
        hook = self._hooks[parts.hook_id]
        stream = hook.input if parts.is_input else hook.indices if parts.is_indices else hook.output
        if stream is None:
            raise KeyError(key)
        found = self._records.find(stream, parts.prompt, parts.step, parts.call, parts.is_scale)
        if found is None:
            raise KeyError(key)
        slab, name, shape, offset = found
        dtype, count = getattr(torch, name), math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(slab, dtype=dtype, count=count, offset=offset).view(shape)


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
