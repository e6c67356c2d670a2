"""gpu: what a capture costs an 8B-shaped model on a GPU, in the form of the other benchmarks.

A Llama of 32 layers, hidden size 4096 and 32/8 heads with random weights in bfloat16; the residual stream, attention
and MLP of every layer are taken: 96 hooks. Three sections: decode at batch 1 and at batch 32, and a prefill of 8,192
tokens, each against the bare model and against the hooks that people write. A round ends when the model's results are
there; how long a capture then still takes to bring everything to its place is in the section's facts. Checked before
anything is timed: the tokens are the bare model's, and every record of a capture is what cloning hooks saw. Beside the
times stand the device's own ceilings, from the same run. `--quick` tries all of it on the CPU, tiny; elsewhere a GPU is
needed. `make gpu-check` runs more (tests, kernels) within its time limit. Run: python bench/gpu.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from typing import Any

from harness import CheckError, Contestant, missing, settle_process


@dataclass(frozen=True)
class Load:
    """`steps` decode steps behind a prompt of `prompt` tokens, or, with no steps, a prefill of that many."""

    batch: int
    prompt: int
    steps: int

    @property
    def name(self) -> str:
        return f"decode, batch {self.batch}" if self.steps else f"prefill, {self.prompt} tokens"


FULL = (Load(1, 128, 64), Load(32, 128, 64), Load(1, 8192, 0))
QUICK = (Load(1, 8, 3), Load(4, 8, 3), Load(1, 32, 0))


@dataclass
class Scene:
    """One model under one load; a variant is run as a round, and what it still had to do afterwards is kept."""

    model: Any
    device: Any
    load: Load
    ids: Any
    closing: dict[str, list[float]] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, variant: Any) -> tuple[float, Any]:
        """The seconds to the model's results, and these."""
        from gpu_models import GreedyDecoding

        with variant.make() as block:
            if self.load.steps:
                decoding = GreedyDecoding(self.model, self.ids, variant.end_step)
            self.device.finish()
            start = time.perf_counter()
            if self.load.steps:
                computed = decoding.run(self.load.steps)
            else:
                computed = self.model(input_ids=self.ids, use_cache=True, logits_to_keep=1).logits
                variant.end_step()
            self.device.finish_compute()
            end = time.perf_counter()
        self.closing.setdefault(name, []).append(time.perf_counter() - end)
        if name.startswith("nsf"):
            manifest = block.result.manifest
            self.stats[name] = {
                "records": manifest.counters.records,
                "tap_microseconds": 1e6 * manifest.counters.tap_seconds / manifest.counters.records,
                "dtoh_gb_s": [each.dtoh_bytes / each.dtoh_seconds * 1e-9 for each in manifest.devices],
            }
        return end - start, computed.cpu()

    def contestants(self, variants: dict[str, Any]) -> list[Contestant]:
        from gpu_common import same_bits

        _, expected = self.run("bare", variants["bare"])

        def check(name: str) -> None:
            _, computed = self.run(name, variants[name])
            if not same_bits(computed, expected):
                raise CheckError("the model computed something else")

        return [
            Contestant(name, lambda name=name: self.run(name, variants[name])[0], lambda name=name: check(name))
            for name in variants
        ]


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=9)
    import torch
    from gpu_capture import check_records
    from gpu_common import MIB, Device, ceilings
    from gpu_models import SHAPES, TINY, build, fitting, ring_bytes_for, variants
    from harness import race, spread

    results = Results("gpu", "what a capture costs an 8B-shaped model on a GPU", options)
    loads = QUICK if options.quick else FULL
    if not options.quick and not torch.cuda.is_available():
        for load in loads:
            results.add(load.name, "seconds", [missing("all", f"not run: torch {torch.__version__} finds no GPU")])
        return results.finish()
    device = Device("cpu" if options.quick else "cuda")
    if device.is_cuda:
        results.origin["gpu"] = torch.cuda.get_device_name(device.torch)
    with torch.no_grad():
        limits = ceilings(device, tiny=options.quick)
        shape = TINY if options.quick else fitting(SHAPES["llama 8b"], device.free_bytes())
        model = build(shape, device.torch)
        check_records(model, shape, device)
        for load in loads:
            generator = torch.Generator().manual_seed(13)
            ids = torch.randint(3, shape.vocabulary, (load.batch, load.prompt), generator=generator).to(device.torch)
            scene = Scene(model, device, load, ids)
            with tempfile.TemporaryDirectory(prefix="nsf-gpu-", dir=options.folder) as folder:
                ring = ring_bytes_for(shape if options.quick else replace(shape, prefill=load.prompt))
                rows = race(scene.contestants(variants(model, device, f"{folder}/run", ring)), rounds=options.rounds)
            results.add(
                load.name,
                "seconds",
                rows,
                bases=("bare",),
                layers=shape.layers,
                hooks=3 * shape.layers,
                ring_mib=ring // MIB,
                closing_seconds={name: spread(values[-options.rounds :]) for name, values in scene.closing.items()},
                captures=scene.stats,
                ceilings=limits,
            )
            device.release()
    return results.finish()


if __name__ == "__main__":
    raise SystemExit(main())
