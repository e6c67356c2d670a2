"""What a capture costs a model on a GPU, against the bare model and against the hooks that people write.

The residual stream, attention and MLP of every layer of a Llama with random weights are taken in bfloat16: in 64
decode steps, and in a prefill of 4096 tokens. Each round runs every variant once, in a random order; figures are
medians over the rounds of one run, with the lowest and the highest. A time ends when the model's results are there;
what a capture still has to bring to its place then is reported as `close_seconds`. No ratio is reported for a variant
that changes what the model computes. Run: python bench/gpu_capture.py
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import tempfile
import time
from dataclasses import asdict
from typing import Any

import neuroscope_fast as nsf
import torch
from gpu_common import (
    MIB,
    Budget,
    Device,
    ceilings,
    has_errors,
    parse_arguments,
    ratios_to,
    same_bits,
    section,
    summary,
)
from gpu_models import (
    PLACES,
    SHAPES,
    TINY,
    GreedyDecoding,
    PlainHooks,
    Shape,
    Variant,
    build,
    fitting,
    hook_names,
    ring_bytes_for,
    tokens,
    variants,
)
from neuroscope_fast.model_map import resolve_hooks
from torch import nn

MOST_ROUNDS = 9
SHARES = {"llama 1b, decode": 1, "llama 1b, prefill": 1, "llama 8b, decode": 3, "llama 8b, prefill": 2}
"""Of the time, for each section: what a round of it takes, roughly."""


class Workload:
    """One model and one kind of pass; `run` is one variant of it, timed."""

    def __init__(self, model: nn.Module, shape: Shape, device: Device, kind: str):
        self.model, self.shape, self.device, self.kind = model, shape, device, kind

    def run(self, variant: Variant, *, steps: int | None = None) -> tuple[torch.Tensor, dict[str, float], Any]:
        """What the model computed, seconds (`critical`, `open`, `close`), and what the variant's block gave.

        `steps`: so many decode steps instead of the shape's.
        """
        shape, device = self.shape, self.device
        gc.disable()
        try:
            opening = time.perf_counter()
            with variant.make() as block:
                opened = time.perf_counter()
                if self.kind == "decode":
                    ids = tokens(shape, shape.prompt, device.torch)
                    decoding = GreedyDecoding(self.model, ids, variant.end_step)
                else:
                    ids = tokens(shape, shape.prefill, device.torch)
                device.finish()
                start = time.perf_counter()
                if self.kind == "decode":
                    computed = decoding.run(steps or shape.steps)
                else:
                    output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
                    computed = output.logits
                    variant.end_step()
                device.finish_compute()
                end = time.perf_counter()
            closed = time.perf_counter()
        finally:
            gc.enable()
        return computed.cpu(), {"critical": end - start, "open": opened - opening, "close": closed - end}, block


def capture_facts(capture: Any, pinned_gb_s: float) -> dict[str, float]:
    """What a capture's manifest says of its own cost."""
    manifest = capture.result.manifest
    counters = manifest.counters
    facts = {
        "records": counters.records,
        "tap_microseconds": counters.tap_seconds / counters.records * 1e6,
        "stalls": counters.stalls,
        "stall_seconds": counters.stall_seconds,
        "pinned_mib": counters.pinned_bytes / MIB,
    }
    for device in manifest.devices:
        rate = device.dtoh_bytes / device.dtoh_seconds * 1e-9
        facts |= {
            "dtoh_mib": device.dtoh_bytes / MIB,
            "dtoh_copies": device.dtoh_copies,
            "dtoh_gb_s": rate,
            "dtoh_share_of_pinned": rate / pinned_gb_s,
            "peak_staging_mib": device.peak_staging_bytes / MIB,
            "host_waits": device.host_waits,
            "device_waits": device.device_waits,
        }
    return facts


def check_records(model: nn.Module, shape: Shape, device: Device) -> None:
    """Raises AssertionError unless a capture holds the bits that cloning hooks see in the same passes."""
    resolved = resolve_hooks(model, hook_names())
    with PlainHooks(model, lambda tensor: tensor.clone()) as cloning, nsf.capture(model, hook_names()) as capture:
        GreedyDecoding(model, tokens(shape, shape.prompt, device.torch), lambda: None).run(2)
        device.finish()
        clones = [tensor.cpu() for tensor in cloning.kept]
    # A pass clones attention, MLP and residual stream of one layer after the other.
    order = [f"{layer}_{part}" for layer in range(shape.layers) for part in ("attention", "mlp", "residual")]
    names = {f"{hook.hook_id.split('.')[2].split('_')[0]}_{hook.component}": hook.hook_id for hook in resolved}
    assert len(clones) == 3 * len(order) == len(capture.result.records), "records are missing"
    for number, clone in enumerate(clones):
        step, place = divmod(number, len(order))
        stored = capture.result[names[order[place]]][step]
        assert same_bits(stored, clone), f"{order[place]} of step {step} is not what the model computed"


def measure(workload: Workload, budget: Budget, pinned_gb_s: float, *, most_rounds: int) -> dict[str, Any]:
    """Rounds of all variants until the time is up: one at least."""
    shape, device = workload.shape, workload.device
    times: dict[str, list[float]] = {}
    others: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, list[dict[str, float]]] = {}
    changed: set[str] = set()
    order = random.Random(17)
    rounds, longest = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="nsf-bench-") as folder:
        ring_bytes = ring_bytes_for(shape) if workload.kind == "prefill" else nsf.CaptureOptions().ring_bytes
        ways = variants(workload.model, device, f"{folder}/run", ring_bytes)
        expected, _, _ = workload.run(ways["bare"])  # warm
        for name in list(ways)[1:]:  # pools, kernels and pinned memory of the others
            workload.run(ways[name], steps=2)
        while rounds == 0 or (rounds < most_rounds and budget.allows(longest)):
            start = time.monotonic()
            gc.collect()
            for name in order.sample(list(ways), len(ways)):
                computed, seconds, block = workload.run(ways[name])
                if not same_bits(computed, expected):
                    changed.add(name)
                times.setdefault(name, []).append(seconds.pop("critical"))
                for key, value in seconds.items():
                    others.setdefault(name, {}).setdefault(key, []).append(value)
                if name.startswith("nsf"):
                    facts.setdefault(name, []).append(capture_facts(block, pinned_gb_s))
                del block  # not kept while the next one runs
            rounds, longest = rounds + 1, max(longest, time.monotonic() - start)
    results: dict[str, Any] = {
        "rounds": rounds,
        "rounds_left_out": most_rounds - rounds,
        "same_results": {name: name not in changed for name in times},
    }
    if changed:
        return {**results, "error": f"the model computed something else with: {', '.join(sorted(changed))}"}
    steps = shape.steps if workload.kind == "decode" else 1
    results["milliseconds_a_step"] = {
        name: summary([each / steps * 1e3 for each in seconds]) for name, seconds in times.items()
    }
    results["ratio_to_bare"] = ratios_to(times, "bare")
    results["captures"] = {
        name: {
            **{f"{key}_seconds": summary(values) for key, values in others[name].items()},
            **{key: round(statistics.median(each[key] for each in found), 4) for key in found[0]},
        }
        for name, found in facts.items()
    }
    return results


def main() -> int:
    options = parse_arguments(__doc__.splitlines()[0])
    device, tiny, budget = Device(options.device), options.device == "cpu", Budget(options.seconds)
    shapes = {"llama tiny": TINY} if tiny else SHAPES
    most_rounds = 2 if tiny else MOST_ROUNDS
    results: dict[str, Any] = {"places": list(PLACES), "most_rounds": most_rounds}
    waiting = [f"{name}, {kind}" for name in shapes for kind in ("decode", "prefill")]
    with torch.no_grad():
        with section(results, "ceilings", options.json) as found:
            found.update(ceilings(device, tiny=tiny))
        for name, wanted in shapes.items():
            model = None
            with section(results, f"{name}, correctness", options.json) as found:
                shape = fitting(wanted, device.free_bytes())
                found["shape"] = asdict(shape)
                found["hooks"] = len(PLACES) * shape.layers
                model = build(shape, device.torch)
                check_records(model, shape, device)
                found["records_are_the_models"] = True
            for kind in ("decode", "prefill"):
                total = sum(SHARES.get(each, 1) for each in waiting)
                share = Budget(budget.left() * SHARES.get(waiting.pop(0), 1) / total)
                if model is None or "error" in results[f"{name}, correctness"]:
                    continue
                with section(results, f"{name}, {kind}", options.json) as found:
                    pinned = results["ceilings"]["pinned_dtoh_gb_s"]
                    workload = Workload(model, shape, device, kind)
                    found.update(measure(workload, share, pinned, most_rounds=most_rounds))
                device.release()
            del model
            device.release()
    print(json.dumps(results, indent=2))
    return int(has_errors(results))


if __name__ == "__main__":
    raise SystemExit(main())
