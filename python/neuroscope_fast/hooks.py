"""From resolved hooks to native taps on a model: which streams there are, which tap feeds which, and their removal.

A *stream* is what is stored: one side of one module with one set of options. Hooks that ask for the same stream share
it, so that the second costs nothing. A *tap* is one native callable on one side of one module; it feeds all the
streams of that place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from .attachment import Attachment
from .errors import HookError
from .model_map import Place, ResolvedHook
from .passes import encoder_of
from .positions import position_slice

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session
    from .compiled import CompiledCode


_WITHOUT_INFINITY = ("int8", "float8_e4m3fn")


@dataclass(frozen=True)
class Options:
    """What of a tensor is stored, when, and as what: hooks with equal options on one place share a stream."""

    dtype: str | None
    positions: str | tuple[int, ...]
    phase: str
    every: int


@dataclass
class TapPlan:
    """One tap: `streams` maps the options of each stream it feeds to the stream's number."""

    place: Place
    description: str
    streams: dict[Options, int] = field(default_factory=dict)


class StreamName(NamedTuple):
    """What the keys of a stream are made of: the hook named first gives it its id."""

    hook_id: str
    is_input: bool = False
    is_indices: bool = False


@dataclass(frozen=True)
class HookStreams:
    """The streams that hold what a hook captures; None for a side it does not capture."""

    hook: ResolvedHook
    dtype: str | None
    input: int | None
    output: int | None
    indices: int | None = None
    """Of the reduction `top_k` which keys, and of fused experts which experts, the weights of the output are of."""


@dataclass
class Plan:
    """Everything a capture needs to know before it touches the model."""

    streams: list[StreamName] = field(default_factory=list)
    """By stream number."""
    indices: dict[int, int] = field(default_factory=dict)
    """By a stream of weights that of the keys, or experts, which they are of."""
    taps: list[TapPlan] = field(default_factory=list)
    hooks: list[HookStreams] = field(default_factory=list)


def make_plan(resolved: Iterable[ResolvedHook], default_dtype: str | None) -> Plan:
    """Streams and taps for hooks; a hook without a dtype of its own is cast to `default_dtype` (None: not cast)."""
    plan = Plan()
    taps: dict[Place, TapPlan] = {}

    def stream(
        place: Place | None, hook: ResolvedHook, options: Options, *, is_input: bool = False, is_indices: bool = False
    ) -> int | None:
        if place is None:
            return None
        # First: where the values have come to disk, so has what they are of.
        indices = stream(place.indices, hook, options, is_indices=True)
        tap = taps.get(place)
        if tap is None:
            tap = taps[place] = TapPlan(place, f"hook {hook.hook_id!r} on layer {hook.layer_name!r}")
            plan.taps.append(tap)
        if options not in tap.streams:
            tap.streams[options] = len(plan.streams)
            plan.streams.append(StreamName(hook.hook_id, is_input, is_indices))
            if place.part is not None and place.part.top_k is not None:
                indices = len(plan.streams)
                plan.streams.append(StreamName(hook.hook_id, is_indices=True))
            if indices is not None:
                plan.indices[tap.streams[options]] = indices
        return tap.streams[options]

    for hook in resolved:
        spec = hook.spec
        positions = tuple(spec.positions) if isinstance(spec.positions, list) else spec.positions
        options = Options(spec.dtype or default_dtype, positions, spec.phase, spec.every)
        if hook.component == "attention_scores" and options.dtype in _WITHOUT_INFINITY:
            raise HookError(
                f"hook {hook.hook_id!r}: attention_scores are -inf where a key is hidden, which {options.dtype} cannot "
                "hold; use float16, bfloat16 or float8_e5m2, or capture attention_pattern"
            )
        given = stream(hook.input, hook, options, is_input=True)
        output = stream(hook.output, hook, options)
        indices = plan.indices.get(output) if output is not None else None
        plan.hooks.append(HookStreams(hook, options.dtype, given, output, indices))
    return plan


def attach_taps(model: nn.Module, plan: Plan, session: Session, attachment: Attachment, compiled: CompiledCode) -> None:
    """Put the plan's taps on the model."""
    encoder = encoder_of(model)
    encoder_modules = {id(module) for module in encoder.modules()} if encoder is not None else set()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tapped: dict[int, tuple[nn.Module, list[Callable[..., None]], list[Callable[..., None]]]] = {}
    for index, tap in enumerate(plan.taps):
        if tap.place.side == "attention":
            continue
        module = model.get_submodule(tap.place.module)
        is_input = tap.place.side == "input"
        is_logits = tap.place.field == "logits" or (head is not None and module is head)
        native = session.tap(
            index,
            module=module,
            is_input=is_input,
            in_encoder=id(module) in encoder_modules,
            sequence="logits" if is_logits else "pass",
            field=tap.place.field or "",
            argument=tap.place.argument if tap.place.argument is not None else -1,
            description=tap.description,
            rules=native_rules(tap),
        )
        compiled.add_tap(module, native, tap.place)
        _, before, after = tapped.setdefault(id(module), (module, [], []))
        (before if is_input else after).append(native)
    for module, before, after in tapped.values():
        attachment.add_taps(module, session, before, after)
    if any(tap.place.side == "attention" for tap in plan.taps):
        from .attention_attach import attach_attention

        attach_attention(model, plan, session, attachment, compiled.observer)


def native_rules(tap: TapPlan) -> list[tuple[int, str | None, str | list[int] | slice, str, int]]:
    """What the engine is told of the streams that a tap feeds."""
    return [
        (stream, options.dtype, _native_positions(options.positions), options.phase, options.every)
        for options, stream in tap.streams.items()
    ]


def refuse_compiled_ahead(model: nn.Module, plan: Plan) -> None:
    """Raise HookError where a hooked place lies in a module that runs code which was compiled ahead of time.

    Such code calls no hooks, and is not compiled again when there are some.
    """
    ahead = sys.modules.get("torch._dynamo.aot_compile")
    if ahead is None:
        return
    kinds = (ahead.AOTCompiledFunction, ahead.AOTCompiledModel)
    compiled = [path for path, module in model.named_modules() if isinstance(vars(module).get("forward"), kinds)]
    for tap in plan.taps:
        for path in compiled:
            if path in ("", tap.place.module) or tap.place.module.startswith(f"{path}."):
                raise HookError(
                    f"{tap.description}: {path or 'the model'} was compiled ahead of time, and such code calls no "
                    "hooks: capture the model that it was compiled from"
                )


def _native_positions(positions: str | tuple[int, ...]) -> str | list[int] | slice:
    if not isinstance(positions, str):
        return list(positions)
    return positions if positions in ("all", "last") else position_slice(positions)
