"""`neuroscope-fast plot RUN --what … -o FILE`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import OptionError
from .analyses import HEAD, Asked, analyse, analysis_of, check_options, numbers
from .analysis_options import (
    AgainstOption,
    ComponentOption,
    HeadOption,
    HookOption,
    LayerOption,
    MeasureOption,
    ModelOption,
    NeuronOption,
    NoisingOption,
    OtherOption,
    OtherPromptsOption,
    PositionOption,
    ProfilesOption,
    PromptOption,
    PromptsOption,
    RowOption,
    SaeOption,
    SeedOption,
    SkipFirstOption,
    ThresholdOption,
    TokenOption,
    TopOption,
    UnpairedOption,
    WhatOption,
)
from .console import console, line, say
from .inputs import one_of
from .show import RunArgument, open_quietly


def plot(  # noqa: PLR0917 - each is an option of the command line
    run: RunArgument,
    what: WhatOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="A .png, .svg or .html file.", show_default=False)
    ],
    figure: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another picture of the same analysis; a wrong name lists them.")
    ] = None,
    prompt: PromptOption = None,
    row: RowOption = None,
    layer: LayerOption = None,
    head: HeadOption = None,
    top: TopOption = None,
    token: TokenOption = None,
    against: AgainstOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    neurons: NeuronOption = None,
    threshold: ThresholdOption = None,
    skip_first: SkipFirstOption = None,
    profiles: ProfilesOption = None,
    sae: SaeOption = None,
    other: OtherOption = None,
    prompts: PromptsOption = None,
    other_prompts: OtherPromptsOption = None,
    unpaired: UnpairedOption = False,
    component: ComponentOption = None,
    measure: MeasureOption = None,
    seed: SeedOption = None,
    position: PositionOption = None,
    noising: NoisingOption = False,
) -> None:
    """Draw a picture of a run.

    A .html file needs no network: of attention it is a page on which each head can be looked at, with the value under
    the pointer; `neuroscope-fast view` shows the same of runs of any size.
    """
    asked = Asked(
        prompt=prompt,
        row=row,
        layer=layer,
        head=head,
        top=top,
        token=token,
        against=against,
        model=model,
        hook=hook or None,
        skip_first=skip_first,
        profiles=profiles,
        neurons=numbers(neurons, "--neurons"),
        threshold=threshold,
        sae=sae,
        other=other,
        prompts=numbers(prompts, "--prompts"),
        other_prompts=numbers(other_prompts, "--other-prompts"),
        unpaired=unpaired or None,
        component=component or None,
        measure=one_of(measure, ("norm", "direction"), "--measure"),
        seed=seed,
        position=one_of(position, ("all", "each"), "--position"),
        noising=noising or None,
    )
    if what == "attention" and figure is None and out.suffix.lower() == ".html":
        _attention_page(run, asked, out)
        return
    analysis = analysis_of(what)
    chosen = next(iter(analysis.figures)) if figure is None else figure
    if figure is None and what == "attention" and None not in (layer, head):
        chosen = HEAD
    if chosen not in analysis.figures:
        raise OptionError(f"--what {what} has no picture {chosen!r}; it has {', '.join(analysis.figures)}")
    from ..plots.style import check_suffix, save

    check_suffix(out)  # before the work
    check_options(what, asked)
    opened, result = (open_quietly(run), None) if chosen == HEAD else analyse(run, what, asked)
    save(analysis.figures[chosen](opened, result, opened.name, asked), out)
    line(console(), str(out))
    if opened.notice:
        say(f"note: {opened.notice}")


def _attention_page(path: Path, asked: Asked, out: Path) -> None:
    from ..plots.style import write
    from ..view.page import attention_page

    run = open_quietly(path)
    page = attention_page(run, None if asked.prompt is None else [asked.prompt])
    write(out, page.encode())
    line(console(), str(out))
    if run.notice:
        say(f"note: {run.notice}")
