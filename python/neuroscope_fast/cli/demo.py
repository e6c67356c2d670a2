"""`neuroscope-fast demo`: the main job on the embedded model, and what its heads do."""

from __future__ import annotations

import shlex
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from ..reader import Run, open_run
from .analyses import Asked, analysis_of
from .capture import print_speed, run_generation
from .console import JsonOption, console, line, print_json
from .show import print_summary
from .summary import RunSummary
from .tables import print_table

HOOKS = (
    "model.layers.*.self_attn:attention_pattern:pattern",
    "model.layers.*:residual:residual",
    "model.layers.10.self_attn:attention:attention_layer_10",
    "model.layers.10:neuron:neurons_layer_10",
    "lm_head:logits:logits",
)
PROMPT = "Recursion is"
PICTURES = "pictures"
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
    """Capture the embedded model at work, and say what its attention heads do.

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
        store_readout=True,
        overwrite=overwrite,
    )
    run = open_run(summary.run)
    heads = analysis_of("attention").run(run, Asked())
    pictures = _draw_pictures(run, heads)
    if as_json:
        print_json(summary)
        return
    text = summary.generations[0]
    line(console(), (text.prompt, "bold"), text.generated_text)
    line(console(), "")
    for table in heads.tables()[:1]:
        print_table(console(), table)
    line(console(), "")
    print_summary(summary, details=False)
    print_speed(summary)
    _print_files(summary, pictures)


def _free() -> Path:
    """`runs/demo`, or the first of `runs/demo-2`, `runs/demo-3`, … that is not there yet."""
    names = (_DEFAULT_OUT.with_name(f"{_DEFAULT_OUT.name}-{number}") for number in count(2))
    return next(path for path in chain((_DEFAULT_OUT,), names) if not path.exists())


def _draw_pictures(run: Run, heads: object) -> dict[Path, str]:
    """What stands in each picture, by its file."""
    from ..plots.style import save, write
    from ..view.page import attention_page

    assert run.path is not None
    folder = run.path / PICTURES
    folder.mkdir(exist_ok=True)
    lens = analysis_of("lens")
    scores, words, page = folder / "heads.png", folder / "logit_lens.png", folder / "attention.html"
    save(analysis_of("attention").figures["scores"](run, heads, run.name, Asked()), scores)
    save(lens.figures["lens"](run, lens.run(run, Asked()), run.name, Asked()), words)
    write(page, attention_page(run).encode())
    return {
        page: "every head's attention, for a browser",
        scores: "what the heads do, by layer",
        words: "what each layer would say next",
    }


def _print_files(summary: RunSummary, pictures: dict[Path, str]) -> None:
    out = console()
    run = Path(summary.run)
    said = {
        summary.metadata_file: "an entry for each tensor",
        summary.report_file: "the report, for people",
        "capture.json": "versions, options, checksums",
        "prompts.jsonl": "the text, and its tokens",
        "readout.safetensors": "the weights that read logits off the stream",
    }
    line(out, "")
    line(out, (f"{run}/", "bold"))
    files = {file.name: file for file in sorted(run.iterdir()) if file.is_file()}
    names = {str(path.relative_to(path.parents[1])): text for path, text in pictures.items()}
    width = max(map(len, [*files, *names]))
    for name, file in files.items():
        text = said.get(name) or ("tensors" if file.suffix == ".safetensors" else "which tensor is where")
        line(out, f"  {name:<{width}}  {text}")
    for name, text in names.items():
        line(out, f"  {name:<{width}}  {text}")
    quoted = shlex.quote(str(run))
    line(out, "")
    line(out, ("Try next:", "bold"))
    for command in (
        f"neuroscope-fast view {quoted}",
        f"neuroscope-fast analyze {quoted} --what lens",
        f"neuroscope-fast plot {quoted} --what attention --layer 11 --head 3 -o head.png",
        f"neuroscope-fast report {quoted}",
        "neuroscope-fast capture --model demo --prompt 'A loop is' \\",
        "    --hook 'model.layers.*:residual' --out runs/loop",
    ):
        line(out, f"  {command}")
    line(out, ("and in Python:", "bold"))
    line(out, "  import neuroscope_fast as nsf")
    line(out, f"  run = nsf.open({str(run)!r})")
    line(out, "  run['pattern.11'][0]          # the prompt's attention patterns: [1, heads, queries, keys]")
    line(out, "  run['residual.10'].cat()      # all steps joined: [1, tokens, width]")
