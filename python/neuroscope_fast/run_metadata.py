"""The structs of a run's metadata JSON and manifest, from the plan of its capture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .manifest import Counters, ManifestHook
from .options import CaptureOptions
from .records import ActivationCapture, CircuitAnalysis, HookConfiguration, Metadata

if TYPE_CHECKING:
    from .hooks import Plan


def hook_configurations(plan: Plan) -> list[HookConfiguration]:
    """The hooks as they were asked for, patterns expanded."""
    return [
        HookConfiguration(
            layer_name=each.hook.layer_name,
            component=each.hook.component,
            hook_id=each.hook.hook_id,
            capture_output=each.output is not None,
            capture_input=each.input is not None,
            dtype=each.hook.spec.dtype,
            positions=each.hook.spec.positions,
            phase=each.hook.spec.phase,
            every=each.hook.spec.every,
            heads=_heads_of(each.hook),
            reduction=each.hook.spec.reduction,
            top_k=each.hook.spec.top_k,
        )
        for each in plan.hooks
    ]


def manifest_hooks(plan: Plan) -> dict[str, ManifestHook]:
    """The hooks as they were resolved, by id."""
    return {
        each.hook.hook_id: ManifestHook(
            layer_name=each.hook.layer_name,
            component=each.hook.component,
            module=_module_of(each.hook),
            input=each.input,
            output=each.output,
            dtype=each.dtype,
            positions=each.hook.spec.positions,
            phase=each.hook.spec.phase,
            every=each.hook.spec.every,
            heads=_heads_of(each.hook),
            reduction=each.hook.spec.reduction,
            top_k=each.hook.spec.top_k,
            indices=each.indices,
        )
        for each in plan.hooks
    }


def run_metadata(
    plan: Plan,
    options: CaptureOptions,
    created: str,
    texts: Mapping[str, Any],
) -> Metadata:
    """The metadata JSON without its records: a circuit analysis where the options name one. `texts`: of
    `prompt_log.texts_of`.
    """
    common: dict[str, Any] = {
        "timestamp": created,
        "activations": {},
        "hook_configurations": hook_configurations(plan),
        **texts,
    }
    if options.analysis is None:
        return ActivationCapture(demo_type="activation_capture", total_hooks=len(plan.hooks), **common)
    return CircuitAnalysis(
        demo_type="circuit_analysis",
        analysis_name=options.analysis,
        analysis_description=options.description,
        hooks_used=len(plan.hooks),
        **common,
    )


def add_counters(before: Counters, now: Counters) -> Counters:
    """Of a run that was captured in two parts; peaks are the higher of the two."""
    peaks = ("peak_ring_bytes", "pinned_bytes")
    return Counters(
        **{
            name: max(getattr(before, name), getattr(now, name))
            if name in peaks
            else getattr(before, name) + getattr(now, name)
            for name in Counters.__struct_fields__
        }
    )


def _module_of(hook: Any) -> str:
    place = hook.output or hook.input
    return str(place.module)


def _heads_of(hook: Any) -> list[int] | None:
    """Counted from the front; None for all of them."""
    part = hook.output.part if hook.output is not None else None
    return list(part.heads) if part is not None and part.heads is not None else None
