"""generate: how much slower is generating text while every layer's activations go to disk?

A Llama of about 100 million parameters with random weights reads 128 tokens and decodes 32 more steps, greedily, on 2
threads; 36 hooks (12 layers: residual stream, attention, mlp) on every step. The clock starts before a contestant opens
anything. It is read when generate returns, which is the critical path, and again when all is durable: the files of
every contestant, and the folder that holds them, have been through fsync. Checked before anything is timed: the tokens
are those of the bare model, and what is read back from the files is what cloning hooks saw. The bare model races
against itself, too: a slowdown that is smaller than what noise makes of that cannot be seen in one round. So bare model
and capture to disk race alone in ten times the rounds, with the interval in which the median of the ratios lies.
Run: python bench/generate.py
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Row, round_to, row_named, settle_process

if TYPE_CHECKING:
    from generate_contestants import Timed

PROMPT = 128
NEW_TOKENS = 33
"""The first is the prefill's; each of the other 32 is a decode step."""
ALONE = ("bare", "bare, again", "neuroscope-fast, disk")
SHARED_MEMORY = Path("/dev/shm")


def places(folder: Path) -> Iterator[tuple[str, Path]]:
    """Where runs are written: the chosen disk, and memory that looks like one."""
    from neuroscope_fast.machine import file_system

    yield f"disk ({file_system(folder)})", folder
    if SHARED_MEMORY.is_dir():
        yield "/dev/shm", SHARED_MEMORY


def sections(timed: list[Timed], rows: list[Row]) -> dict[str, list[Row]]:
    """The same rounds twice: the seconds to each of the two marks."""
    returned = []
    by_name = {each.name: each for each in timed}
    for row in rows:
        marks = by_name[row.name].returned[-len(row.rounds) :] if row.rounds else []
        returned.append(Row(row.name, row.note, row.refused, list(marks)))
    return {"until generate returns": returned, "until all is durable": rows}


def stages(timed: list[Timed], rounds: int) -> dict[str, Any]:
    """Milliseconds of each neuroscope-fast contestant: entering the block, generating, leaving it."""
    from harness import spread

    return {
        each.name: {stage: spread([1e3 * value for value in values[-rounds:]]) for stage, values in each.stages.items()}
        for each in timed
        if each.stages
    }


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Between which of these values the median of all such values lies, with at least 95 % of certainty.

    From their order alone (binomial), whatever their distribution; None of fewer than six, which cannot say it.
    """
    ordered, count = sorted(values), len(values)
    left_out, below = 0, 1
    while 40 * below <= 2**count:  # below / 2**count of all draws leave the median out on this side: at most 1 in 40
        left_out += 1
        below += math.comb(count, left_out)
    if left_out == 0:
        return None
    return ordered[left_out - 1], ordered[count - left_out]


def intervals(rows: list[Row]) -> dict[str, tuple[float, float] | None]:
    """Of each row's ratios to the bare model's seconds in the same round."""
    bare = row_named(rows, "bare")
    found = {}
    for row in rows:
        if row is not bare and row.refused is None:
            ends = median_interval([value / one for value, one in zip(row.rounds, bare.rounds, strict=True)])
            found[row.name] = ends and (round_to(ends[0], 4), round_to(ends[1], 4))
    return found


def main() -> int:
    settle_process(threads=2)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=8)
    import torch
    from generate_contestants import Scene, own_contestants, peer_contestants
    from harness import race
    from peers import llama

    results = Results("generate", "slowdown of generate with 36 hooks", options)
    if options.quick:
        model = llama(layers=2, hidden=32, heads=2, intermediate=64, vocabulary=128)
        prompt, new_tokens = 8, 4
    else:
        model = llama(layers=12, hidden=768, heads=12, intermediate=2048, vocabulary=10_000)
        prompt, new_tokens = PROMPT, NEW_TOKENS
    ids = torch.randint(3, model.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(1))
    facts = {
        "parameters": sum(each.numel() for each in model.parameters()),
        "prompt_tokens": prompt,
        "decode_steps": new_tokens - 1,
        "hooks": 3 * model.config.num_hidden_layers,
    }
    with torch.inference_mode():
        scene = Scene.of(model, ids, new_tokens)
        # Peers take several times as long and rebuild the model: they race the bare one in fewer rounds of their own.
        own, (peers, absent) = own_contestants(scene), peer_contestants(scene)
        alone = [each for each in own if each.name in ALONE]
        fields = (
            ("", own, [], options.rounds),
            ("alone, ", alone, [], options.rounds if options.quick else 10 * options.rounds),
            ("peers, ", peers, absent, max(2, options.rounds // 3)),
        )
        for place, folder in places(options.folder):
            for kind, timed, missing, rounds in fields:
                if timed is alone and folder != options.folder:
                    continue
                with tempfile.TemporaryDirectory(dir=folder, prefix="nsf-generate-") as inside:
                    scene.folder = Path(inside)
                    for each in timed:
                        each.forget()
                    rows = race([each.contestant() for each in timed], rounds=rounds)
                for mark, found in sections(timed, rows).items():
                    results.add(
                        f"{kind}{place}, {mark}",
                        "seconds",
                        found + missing,
                        bases=("bare",),
                        stages_ms=stages(timed, rounds),
                        median_of_ratios_within=intervals(found),
                        **facts,
                    )
    return results.finish()


if __name__ == "__main__":
    raise SystemExit(main())
