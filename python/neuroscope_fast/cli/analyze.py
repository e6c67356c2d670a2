"""`neuroscope-fast analyze RUN --what …`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .analyses import Asked, analyse, numbers
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
from .console import JsonOption, console, line, print_bytes, say
from .inputs import one_of
from .show import RunArgument
from .tables import print_tables


def analyze(  # noqa: PLR0917 - each is an option of the command line
    run: RunArgument,
    what: WhatOption,
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
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="graph: write it as .json (nodes, links) or .graphml."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Analyse a run: what its activations say.

    attention: what each head looks at. flow: norms of the residual stream and what is added to it. lens: what each
    layer would say next. attribution: which blocks and heads made a token likely. features: what neurons respond to.
    circuits: which components differ between two groups of prompts. graph: how these read each other. patching: which
    of them matter.
    """
    if export is not None and what != "graph":
        raise typer.BadParameter("only a graph is exported: --what graph", param_hint="--export")
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
    opened, result = analyse(run, what, asked)
    if export is not None:
        from ..analysis.graph_files import save_graph

        save_graph(result, export)
    if as_json:
        from ..analysis.results import encode

        print_bytes(encode(result))
    else:
        print_tables(console(), result.tables())
        if export is not None:
            line(console(), f"graph     {export}")
    if opened.notice:
        say(f"note: {opened.notice}")
