"""From a plan's taps on attention to listeners on the calls of attention functions, and hooks where there are none."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from .attachment import Attachment
from .attention_inputs import READABLE, attention_kind
from .attention_interface import Listener, Listening
from .attention_modules import calls_attention_function
from .attention_returned import returned_pattern_hook
from .attention_taps import HEAD_AXIS, AttentionTaps, ComputedAttentionTap, StoredTap
from .errors import HookError
from .hooks import Plan, TapPlan, native_rules
from .model_components import HeadPart
from .passes import PassObserver, encoder_of

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session


def attach_attention(
    model: nn.Module, plan: Plan, session: Session, attachment: Attachment, observer: PassObserver
) -> None:
    """Listen to the attention modules of the plan.

    Raises HookError where scores or patterns are asked for and the model's attention implementation cannot be read.
    """
    encoder = encoder_of(model)
    encoder_modules = {id(module) for module in encoder.modules()} if encoder is not None else set()
    found: dict[str, list[StoredTap | ComputedAttentionTap]] = defaultdict(list)
    for index, tap in enumerate(plan.taps):
        if tap.place.side != "attention":
            continue
        module = model.get_submodule(tap.place.module)
        native: dict[str, Any] = {
            "index": index,
            "module": module,
            "in_encoder": id(module) in encoder_modules,
            "description": tap.description,
            "rules": native_rules(tap),
        }
        if _is_stored(tap):
            found[tap.place.module].append(_stored_tap(tap, session, native))
        else:
            indices = {stream: plan.indices[stream] for stream in tap.streams.values() if stream in plan.indices}
            found[tap.place.module].append(_computed_tap(tap, session, native, indices, observer))
    listeners: dict[int, Listener] = {}
    for path, taps in found.items():
        module = model.get_submodule(path)
        if calls_attention_function(module):
            listeners[id(module)] = AttentionTaps(module, taps, session.detach)
        else:
            computed = [each for each in taps if isinstance(each, ComputedAttentionTap)]
            attachment.add_hook(module, returned_pattern_hook(module, computed, session.detach))
    if listeners:
        attachment.listen(Listening(listeners))


def _is_stored(tap: TapPlan) -> bool:
    """Whether a tensor is stored as it is."""
    return tap.place.field in HEAD_AXIS and tap.place.part is not None and tap.place.part.reduction is None


def _stored_tap(tap: TapPlan, session: Session, native: dict[str, Any]) -> StoredTap:
    component, part = _component(tap)
    sequence = _sequence(component, part)
    return StoredTap(
        component,
        part,
        tap.description,
        session.tap(**native, is_input=False, sequence=sequence, field="", argument=-1),
    )


def _computed_tap(
    tap: TapPlan, session: Session, native: dict[str, Any], indices: dict[int, int], observer: PassObserver
) -> ComputedAttentionTap:
    component, part = _component(tap)
    module = native["module"]
    if component not in HEAD_AXIS and calls_attention_function(module):
        _refuse_unreadable(module, tap.description)
    computed = session.computed_tap(**native, sequence=_sequence(component, part))
    return ComputedAttentionTap(
        component,
        part,
        tap.description,
        computed,
        indices,
        observer.mask,
        observer.first_real,
        in_encoder=native["in_encoder"],
    )


def _component(tap: TapPlan) -> tuple[str, HeadPart]:
    component, part = tap.place.field, tap.place.part
    if component is None or part is None:
        raise AssertionError(f"{tap.description} is no tap on attention")
    return component, part


def _sequence(component: str, part: HeadPart) -> str:
    """What the engine calls the rows of the component."""
    if component in ("key", "value"):
        return "foreign" if part.is_cross else "cache"
    return "heads" if component == "head_output" else "pass"


def _refuse_unreadable(module: nn.Module, description: str) -> None:
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if isinstance(implementation, str) and attention_kind(implementation) is None:
        raise HookError(
            f"{description}: scores and patterns cannot be told of the attention implementation {implementation!r}; "
            f"load the model with one of {READABLE}, or capture query, key, value or head_output"
        )
