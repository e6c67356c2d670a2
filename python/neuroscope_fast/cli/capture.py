"""`neuroscope-fast capture`: the main job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ..head_options import PATTERN_REDUCTIONS, TOP_K
from ..models import EMBEDDED
from ..options import CaptureOptions
from ..spec import CAST_DTYPES
from .console import JsonOption, console, line, print_json, say, size_text
from .inputs import one_of, read_hooks, read_prompts, read_size
from .loading import ModelOption, RevisionOption, TrustOption, quiet_transformers, threads_for
from .progress import GenerationMeter, generation_meter
from .show import print_summary, print_warnings
from .summary import RunSummary, summarise_run

_PAGE = 4096  # bytes; blocks are multiples of it
_OVERFLOW = ("block", "drop", "fail")
_PHASES = ("both", "prefill", "decode")


def capture(
    *,
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The run directory.", show_default=False)],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="May be repeated.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A prompt on each line; of a .jsonl file a string, {prompt: …} or {messages: […]}.",
        ),
    ] = None,
    messages: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JSON",
            help="A chat for the chat template: a list of {role, content}, or a file that holds one.",
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are what a user says in a chat.")] = False,
    hook: Annotated[
        list[str] | None,
        typer.Option(
            "--hook",
            metavar="LAYER:COMPONENT[:ID]",
            help="What to capture, such as model.layers.2.self_attn:attention. May be repeated. "
            "'*' in it stands for any part of a layer's name, '{0..11}' and '{2,10}' for some.",
        ),
    ] = None,
    hooks: Annotated[
        list[Path] | None,
        typer.Option("--hooks", metavar="FILE.json", help="Hooks as JSON, or the metadata JSON of a run to repeat."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", metavar="N", help="The most tokens for a prompt.", min=1)
    ] = 30,
    analysis: Annotated[
        str | None, typer.Option(metavar="NAME", help="Makes the run a circuit analysis of this name.")
    ] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="A sentence on the analysis.")] = "",
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample, and do not take the likeliest token each time.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="Samples with it.", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Samples among the likeliest.")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Samples among so many.", min=0)] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.", min=0)] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Never end a text before --max-new-tokens.")] = False,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Load the weights as this.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="Run the model there.")] = None,
    capture_dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help=f"Store activations as this: {', '.join(CAST_DTYPES)}."),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="Positions of each step to keep: last, 0,5,-1 or a slice such as 2:."),
    ] = None,
    phase: Annotated[str | None, typer.Option(metavar="PHASE", help="Capture only prefill, or only decode.")] = None,
    every: Annotated[int | None, typer.Option(metavar="N", help="Capture each N-th step of those.", min=1)] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="HEADS", help="Of attention split by head the heads to keep, such as 0,5,-1.")
    ] = None,
    reduction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Of attention_pattern: {', '.join(PATTERN_REDUCTIONS)}; of head_output: head_norm.",
        ),
    ] = None,
    top_keys: Annotated[
        int | None, typer.Option(metavar="K", help=f"The reduction top_k keeps so many keys; else {TOP_K}.", min=1)
    ] = None,
    store_readout: Annotated[
        bool,
        typer.Option(
            "--store-readout",
            help="Keep final norm and unembedding too: logit lens and attribution then need no model.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in DIR.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run that is in DIR, which was interrupted, if there is one.")
    ] = False,
    overflow: Annotated[
        str, typer.Option(metavar="POLICY", help="When the ring is full: block, drop or fail.")
    ] = "block",
    durability: Annotated[
        str,
        typer.Option(metavar="WHEN", help="What is safe from a crash: close, shard, each 64MiB, or each 5s."),
    ] = "shard",
    on_error: Annotated[
        str, typer.Option("--on-error", metavar="HOW", help="When capturing fails: raise, or detach and go on.")
    ] = "raise",
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="Give up a disk that takes nothing for so long; 0 never.", min=0)
    ] = CaptureOptions().patience,
    ring: Annotated[str, typer.Option(metavar="SIZE", help="The memory for what is on its way to disk.")] = "64MiB",
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The most data in one file.")] = "4GiB",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a model write, and capture what it computes.

    The run directory then holds the tensors, the metadata JSON and a Markdown report. What can be hooked is told
    by `neuroscope-fast components MODEL`, as ready-made hooks.
    """
    if description and analysis is None:
        raise typer.BadParameter(
            "a description belongs to an analysis: give --analysis NAME too", param_hint="--description"
        )
    arguments: dict[str, Any] = {
        "hooks": read_hooks(
            hook or [],
            hooks or [],
            positions=positions,
            phase=one_of(phase, _PHASES, "--phase"),
            every=every,
            heads=heads,
            reduction=reduction,
            top_keys=top_keys,
        ),
        "prompts": read_prompts(prompt or [], prompts_file, messages or [], chat=chat),
        "max_new_tokens": max_new_tokens,
        "do_sample": True if sample else None,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "ignore_eos": ignore_eos,
        "dtype": dtype,
        "device": device,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "capture_dtype": one_of(capture_dtype, CAST_DTYPES, "--capture-dtype"),
        "analysis": analysis,
        "description": description,
        "store_readout": store_readout,
        "overwrite": overwrite,
        "resume": resume,
        "overflow": one_of(overflow, _OVERFLOW, "--overflow"),
        "durability": durability,
        "patience": patience,
        "on_error": one_of(on_error, ("raise", "detach"), "--on-error"),
        **ring_options(read_size(ring, "--ring")),
        "shard_bytes": read_size(shard_size, "--shard-size"),
    }
    summary = run_generation(model, out, **arguments)
    if as_json:
        print_json(summary)
        print_warnings(summary)
        return
    print_summary(summary)
    print_speed(summary)


def ring_options(ring: int) -> dict[str, int]:
    """A small ring is cut into smaller blocks: each dtype fills one of its own, and one is being written."""
    blocks = min(CaptureOptions().block_bytes, ring // 4)
    return {"ring_bytes": ring, "block_bytes": max(blocks - blocks % _PAGE, _PAGE)}


def run_generation(model: str, out: Path, **arguments: Any) -> RunSummary:
    """`generate` with a progress bar. Ctrl-C leaves a run of what was captured until then, and says so."""
    from ..generate import generate

    quiet_transformers()
    embedded = model == EMBEDDED
    meter: GenerationMeter | None = None
    try:
        with (
            generation_meter(loading=embedded or os.path.isdir(model)) as meter,
            threads_for(model),
        ):
            run = generate(model, out=out, progress=meter, **arguments)
    except KeyboardInterrupt:
        say(f"interrupted: {out} holds what was captured until then" if meter and meter.started else "interrupted")
        raise typer.Exit(130) from None
    wanted = meter.most_tokens
    if meter.tokens < wanted:
        say(f"note: the model ended its text after {meter.tokens} of {wanted} tokens; --ignore-eos goes on")
    return msgspec.structs.replace(
        summarise_run(run),
        seconds=round(meter.seconds, 6),
        tokens_per_second=round(meter.tokens_per_second, 3),
    )


def print_speed(summary: RunSummary) -> None:
    """How long it took, and what of it the capture's taps."""
    counters = summary.counters
    line(
        console(),
        f"{summary.seconds:.2f} s, {summary.tokens_per_second:.1f} tokens/s; "
        f"{counters.tap_seconds * 1000:.1f} ms of it in taps, {size_text(counters.bytes_written)} written",
    )
