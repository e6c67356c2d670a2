"""`neuroscope-fast demo`: the main job on the embedded model."""

from __future__ import annotations

import shlex
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from .capture import print_speed, run_generation
from .console import JsonOption, console, line, print_json
from .show import print_summary
from .summary import RunSummary

HOOKS = (
    "model.layers.6.self_attn:attention_pattern:pattern_layer_6",
    "model.layers.11.self_attn:attention_pattern:pattern_layer_11",
    "model.layers.10.self_attn:attention:attention_layer_10",
    "model.layers.10:residual:residual_layer_10",
    "model.layers.10:neuron:neurons_layer_10",
    "lm_head:logits:logits",
)
PROMPT = "Recursion is"
_DEFAULT_OUT = Path("runs/demo")


def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The run directory; else runs/demo, or the next that is free."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to begin with.")] = PROMPT,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", metavar="N", help="The most tokens.", min=1)
    ] = 30,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in DIR.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Capture the embedded model at work.

    It needs no network and no download.
    """
    summary = run_generation(
        "demo",
        _free() if out is None else out,
        prompts=[prompt],
        hooks=list(HOOKS),
        max_new_tokens=max_new_tokens,
        analysis="attention_patterns",
        description="Analyze attention patterns across layers",
        overwrite=overwrite,
    )
    if as_json:
        print_json(summary)
        return
    print_summary(summary)
    print_speed(summary)
    _print_files(summary)


def _free() -> Path:
    """`runs/demo`, or the first of `runs/demo-2`, `runs/demo-3`, … that is not there yet."""
    names = (_DEFAULT_OUT.with_name(f"{_DEFAULT_OUT.name}-{number}") for number in count(2))
    return next(path for path in chain((_DEFAULT_OUT,), names) if not path.exists())


def _print_files(summary: RunSummary) -> None:
    out = console()
    run = Path(summary.run)
    said = {
        summary.metadata_file: "an entry for each tensor",
        summary.report_file: "the report, for people",
        "capture.json": "versions, options, checksums",
    }
    line(out, "")
    line(out, (f"{run}/", "bold"))
    files = sorted(run.iterdir())
    width = max(len(file.name) for file in files)
    for file in files:
        text = said.get(file.name) or ("tensors" if file.suffix == ".safetensors" else "which tensor is where")
        line(out, f"  {file.name:<{width}}  {text}")
    quoted = shlex.quote(str(run))
    line(out, "")
    line(out, ("Try next:", "bold"))
    for command in (
        f"neuroscope-fast report {quoted}",
        f"neuroscope-fast verify {quoted}",
        "neuroscope-fast components demo",
        "neuroscope-fast capture --model demo --prompt 'A loop is' \\",
        "    --hook 'model.layers.*:residual' --out runs/loop",
    ):
        line(out, f"  {command}")
    line(out, ("and in Python:", "bold"))
    line(out, "  import neuroscope_fast as nsf")
    line(out, f"  run = nsf.open({str(run)!r})")
    line(out, "  run['pattern_layer_11'][0]        # the prompt's attention patterns: [1, heads, queries, keys]")
    line(out, "  run['residual_layer_10'].cat()    # all steps joined: [1, tokens, width]")
