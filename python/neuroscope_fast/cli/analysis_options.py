"""The options that `analyze` and `plot` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WhatOption = Annotated[
    str,
    typer.Option(
        "--what",
        "-w",
        metavar="WHAT",
        help="attention, flow, lens, attribution, features, circuits, graph or patching.",
        show_default=False,
    ),
]
PromptOption = Annotated[int | None, typer.Option(metavar="N", help="Of this prompt, counted from 0.", min=0)]
RowOption = Annotated[int | None, typer.Option(metavar="N", help="Of this row of a batch.", min=0)]
LayerOption = Annotated[int | None, typer.Option(metavar="N", help="attention: of this layer.", min=0)]
HeadOption = Annotated[int | None, typer.Option(metavar="N", help="attention: of this head.", min=0)]
TopOption = Annotated[int | None, typer.Option(metavar="K", help="So many of the tokens or positions.", min=1)]
TokenOption = Annotated[str | None, typer.Option(metavar="TOKEN", help="attribution: of this token, a text or an id.")]
AgainstOption = Annotated[str | None, typer.Option(metavar="TOKEN", help="attribution: less the logit of this token.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="lens, attribution, flow: its readout. patching: it is run. graph: its heads apart.",
    ),
]
HookOption = Annotated[list[str] | None, typer.Option("--hook", metavar="ID", help="features: of this. Repeatable.")]
NeuronOption = Annotated[str | None, typer.Option("--neurons", metavar="LIST", help="features: these, such as 3,17.")]
SkipFirstOption = Annotated[
    int | None, typer.Option(metavar="N", help="features: leave out the first N positions of a sequence; 1.", min=0)
]
ProfilesOption = Annotated[
    int | None, typer.Option(metavar="N", help="features: so many neurons are looked at closely; 6.", min=0)
]
ThresholdOption = Annotated[float | None, typer.Option(metavar="X", help="features: active is what is above it; 0.")]
SaeOption = Annotated[
    Path | None, typer.Option("--sae", metavar="PATH", help="features: a sparse autoencoder as SAELens stores it.")
]
OtherOption = Annotated[
    Path | None, typer.Option("--other", metavar="RUN", help="circuits, graph, patching: the run to compare with.")
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", metavar="LIST", help="circuits, graph: the first group, such as 0..4.")
]
OtherPromptsOption = Annotated[
    str | None, typer.Option("--other-prompts", metavar="LIST", help="circuits, graph: the second group.")
]
UnpairedOption = Annotated[bool, typer.Option("--unpaired", help="circuits, graph: the groups are not matched pairs.")]
ComponentOption = Annotated[
    list[str] | None,
    typer.Option("--component", metavar="NAME", help="features, circuits, patching: only this."),
]
MeasureOption = Annotated[str | None, typer.Option(metavar="NAME", help="circuits: norm (the default) or direction.")]
SeedOption = Annotated[int | None, typer.Option(metavar="N", help="circuits: of random permutations.", min=0)]
PositionOption = Annotated[
    str | None, typer.Option("--position", metavar="WHICH", help="patching: all at once (the default), or each alone.")
]
NoisingOption = Annotated[
    bool, typer.Option("--noising", help="patching: corrupted activations into the clean prompts, not the reverse.")
]
