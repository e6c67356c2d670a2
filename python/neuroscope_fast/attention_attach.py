"""From a plan's attention taps to listeners on the calls of attention functions, and hooks on modules that call none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

from .attachment import Attachment
from .attention_inputs import READABLE, attention_kind
from .attention_interface import Listener, Listening
from .attention_modules import calls_attention_function
from .attention_taps import HEAD_AXIS, AttentionTaps, ComputedAttentionTap, ReturnedPattern, StoredTap
from .errors import HookError
from .hooks import Plan, TapPlan, native_rules
from .model_components import HeadPart
from .passes import PassObserver

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session


def attach_attention(
    model: nn.Module,
    plan: Plan,
    session: Session,
    attachment: Attachment,
    observer: PassObserver,
    encoder_modules: Collection[int],
) -> None:
    """Listen to the attention modules of the plan.

    Raises HookError where scores or patterns are asked for and the model's attention implementation cannot be read.
    """
    found: dict[str, list[StoredTap | ComputedAttentionTap]] = defaultdict(list)
    for index, tap in enumerate(plan.taps):
        if tap.place.side == "attention":
            module = model.get_submodule(tap.place.module)
            in_encoder = id(module) in encoder_modules
            found[tap.place.module].append(_tap(index, tap, module, plan, session, observer, in_encoder))
    listeners: dict[int, Listener] = {}
    for path, taps in found.items():
        module = model.get_submodule(path)
        if calls_attention_function(module):
            listeners[id(module)] = AttentionTaps(module, taps)
        else:
            computed = [tap for tap in taps if isinstance(tap, ComputedAttentionTap)]
            attachment.add_hook(module, ReturnedPattern(module, computed))
    if listeners:
        attachment.listen(Listening(listeners))


def _tap(
    index: int,
    tap: TapPlan,
    module: nn.Module,
    plan: Plan,
    session: Session,
    observer: PassObserver,
    in_encoder: bool,
) -> StoredTap | ComputedAttentionTap:
    component, part = tap.place.field, tap.place.part
    assert component is not None and part is not None
    sequence = _sequence(component, part)
    rules = native_rules(tap)
    if component in HEAD_AXIS and part.reduction is None:
        native = session.tap(
            index,
            module=module,
            is_input=False,
            in_encoder=in_encoder,
            sequence=sequence,
            field="",
            description=tap.description,
            rules=rules,
        )
        return StoredTap(component, part, tap.description, native)
    if component not in HEAD_AXIS and calls_attention_function(module):
        _refuse_unreadable(module, tap.description)
    computed = session.computed_tap(
        index, module=module, in_encoder=in_encoder, sequence=sequence, description=tap.description, rules=rules
    )
    indices = {stream: plan.indices[stream] for stream in tap.streams.values() if stream in plan.indices}
    return ComputedAttentionTap(component, part, tap.description, computed, indices, observer.mask, in_encoder)


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
