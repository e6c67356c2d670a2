"""The mean of attention patterns over heads at 2k, 4k and 8k tokens: a capture against eager attention's own patterns.

Each contestant runs in a process of its own, one after the other in each round, so that its peak of resident memory is
its own: the model without anything ("bare"), a capture of `attention_pattern` with the reduction `mean` in memory
("capture"), and the same model with eager attention and `output_attentions=True`, whose patterns are then averaged
("eager"). Before anything is timed, capture and eager must agree. Run: python bench/attention_patterns.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEADS, HEAD_SIZE, KEY_VALUE_HEADS = 32, 64, 8
LENGTHS = (2048, 4096, 8192)
CONTESTANTS = ("bare", "capture", "eager")
MEBIBYTE = 1 << 20
CHECKED_LENGTH, TOLERANCE = 300, 1e-5


def build(implementation: str) -> Any:
    """A Llama of one layer with random weights, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=1024,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=max(LENGTHS),
        attn_implementation=implementation,
    )
    return LlamaForCausalLM(config).eval()


def tokens(length: int) -> Any:
    import torch

    return torch.randint(1000, (1, length), generator=torch.Generator().manual_seed(length))


def mean_pattern(contestant: str, model: Any, ids: Any) -> Any:
    """[B, Q, K], or None of the bare model."""
    import neuroscope_fast as nsf

    # The body alone: logits of 8,192 tokens are no part of the question.
    if contestant == "bare":
        model.model(ids, use_cache=False)
        return None
    if contestant == "eager":
        return model.model(ids, use_cache=False, output_attentions=True).attentions[0].mean(1)
    hook = {"layer_name": "layers.0", "component": "attention_pattern", "hook_id": "mean", "reduction": "mean"}
    with nsf.capture(model.model, [hook]) as cap:
        model.model(ids, use_cache=False)
    return cap.result["mean"][0]


def run_one(contestant: str, length: int) -> dict[str, Any]:
    """Time and memory of one forward pass, in this process."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        model = build("eager" if contestant == "eager" else "sdpa")
        mean_pattern(contestant, model, tokens(64))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        mean_pattern(contestant, model, tokens(length))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib": (peak - before) * 1024 / MEBIBYTE}


def check() -> float:
    """The largest difference between the two patterns; SystemExit where it is no rounding."""
    import torch

    with torch.inference_mode():
        ids = tokens(CHECKED_LENGTH)
        ours = mean_pattern("capture", build("sdpa"), ids)
        theirs = mean_pattern("eager", build("eager"), ids)
    difference = float((ours - theirs).abs().max())
    if not difference < TOLERANCE:
        raise SystemExit(f"capture and eager attention differ by {difference}: nothing is timed")
    return difference


def eager_bytes(length: int) -> int:
    """Scores, their softmax in float32 and one more of the same size while the mask is added."""
    return 3 * HEADS * length * length * 4


def available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def spawn(contestant: str, length: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", contestant, "--length", str(length)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(length: int, rounds: int) -> dict[str, Any]:
    """Medians over alternating rounds, and the ratios of pairs in one round."""
    runnable = [each for each in CONTESTANTS if each != "eager" or eager_bytes(length) < available_bytes()]
    runs = [{each: spawn(each, length) for each in runnable} for _ in range(rounds)]
    row: dict[str, Any] = {"tokens": length}
    for each in CONTESTANTS:
        if each not in runnable:
            row[each] = f"not run: it would need some {eager_bytes(length) / 2**30:.0f} GiB"
            continue
        row[each] = {
            key: round(statistics.median(run[each][key] for run in runs), 3) for key in ("seconds", "peak_mib")
        }
    for other in [each for each in runnable if each != "capture"]:
        ratios = sorted(run["capture"]["seconds"] / run[other]["seconds"] for run in runs)
        row[f"seconds_capture_to_{other}"] = [
            round(value, 2) for value in (ratios[0], statistics.median(ratios), ratios[-1])
        ]
    if "eager" in runnable and row["eager"]["peak_mib"] > 0:  # a short pass fits into what is there already
        row["peak_capture_to_eager"] = round(row["capture"]["peak_mib"] / row["eager"]["peak_mib"], 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=CONTESTANTS, help="run one contestant in this process")
    parser.add_argument("--length", type=int, default=LENGTHS[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.length)))
        return
    import torch
    import transformers

    results: dict[str, Any] = {
        "question": "attention_patterns",
        "heads": HEADS,
        "head_size": HEAD_SIZE,
        "rounds": options.rounds,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "largest_difference": check(),
        "rows": [],
    }
    for length in options.lengths:
        results["rows"].append(measure(length, options.rounds))
        print(json.dumps(results["rows"][-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
