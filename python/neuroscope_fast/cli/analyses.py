"""What `analyze` and `plot` can do with a run: each analysis by its name, with the options that are for it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from ..errors import OptionError
from ..reader import Run
from .loading import quiet_transformers
from .show import open_quietly

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from ..readout import Readout


HEAD = "head"


class Asked(msgspec.Struct, kw_only=True):
    """What was asked for on the command line; None where nothing was."""

    prompt: int | None = None
    row: int | None = None
    layer: int | None = None
    head: int | None = None
    top: int | None = None
    token: str | None = None
    against: str | None = None
    model: str | None = None
    hook: list[str] | None = None
    neurons: list[int] | None = None
    skip_first: int | None = None
    profiles: int | None = None
    threshold: float | None = None
    sae: Path | None = None
    other: Path | None = None
    prompts: list[int] | None = None
    other_prompts: list[int] | None = None
    unpaired: bool | None = None
    component: list[str] | None = None
    measure: str | None = None
    seed: int | None = None
    position: str | None = None
    noising: bool | None = None


class Analysis(msgspec.Struct):
    """`options`: of `Asked` those that it takes. `figures`: its pictures by name, the usual one first."""

    says: str
    options: tuple[str, ...]
    run: Callable[[Run, Asked], Any]
    figures: dict[str, Callable[[Run, Any, str, Asked], Figure]]


def analyse(path: Path, what: str, asked: Asked) -> tuple[Run, Any]:
    """Open a run and make the analysis. Raises OptionError for options that are not for it."""
    check_options(what, asked)
    run = open_quietly(path)
    return run, analysis_of(what).run(run, asked)


def check_options(what: str, asked: Asked) -> None:
    """Raises OptionError for an option that was given and is not for this analysis."""
    takes = analysis_of(what).options
    for name, value in msgspec.structs.asdict(asked).items():
        if value is not None and name not in takes:
            fitting = ", ".join(known for known, each in ANALYSES.items() if name in each.options)
            raise OptionError(f"--{name.replace('_', '-')} is not for --what {what}; it is for {fitting}")


def analysis_of(what: str) -> Analysis:
    """Raises OptionError for a name that is none."""
    if what not in ANALYSES:
        near = difflib.get_close_matches(what, ANALYSES, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise OptionError(f"there is no analysis {what!r}; {guess}available: {', '.join(ANALYSES)}")
    return ANALYSES[what]


def numbers(text: str | None, option: str) -> list[int] | None:
    """`0,2,5..9` as a list."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()):
            raise typer.BadParameter(f"{text!r} is no list of numbers such as 0,2,5..9", param_hint=option)
        found += range(int(first), int(last) + 1) if dots else [int(first)]
    return found


def _given(asked: Asked, *names: str) -> dict[str, Any]:
    """Of these options those that were given."""
    return {name: value for name in names if (value := getattr(asked, name)) is not None}


def _model(asked: Asked) -> nn.Module | None:
    if asked.model is None:
        return None
    from ..models import load_model

    quiet_transformers()
    return load_model(asked.model).model


def _attention(run: Run, asked: Asked) -> Any:
    from ..analysis.attention import attention

    return attention(run, **_given(asked, "prompt", "row", "layer", "head", "top"))


def _readout(asked: Asked) -> Readout | None:
    """What reads logits off the model's stream, with the texts of its tokens."""
    if asked.model is None:
        return None
    from ..model_readout import readout_of
    from ..models import load_model
    from ..prompts import token_texts

    quiet_transformers()
    loaded = load_model(asked.model)
    return readout_of(loaded.model, vocabulary=token_texts(loaded.tokenizer, range(len(loaded.tokenizer))))


def _flow(run: Run, asked: Asked) -> Any:
    from ..analysis.flow import information_flow

    return information_flow(run, **_given(asked, "prompt", "row"), model=_readout(asked))


def _lens(run: Run, asked: Asked) -> Any:
    from ..analysis.logit_lens import logit_lens

    return logit_lens(run, **_given(asked, "prompt", "row", "top"), model=_readout(asked))


def _attribution(run: Run, asked: Asked) -> Any:
    from ..analysis.attribution import logit_attribution

    return logit_attribution(run, **_given(asked, "prompt", "row", "token", "against"), model=_readout(asked))


def _features(run: Run, asked: Asked) -> Any:
    from ..analysis.features import detect_features
    from ..analysis.sparse_autoencoder import load_sparse_autoencoder

    autoencoder = None if asked.sae is None else load_sparse_autoencoder(asked.sae)
    if asked.component is not None and len(asked.component) > 1:
        raise OptionError("features are looked for in one component: give --component once")
    return detect_features(
        run,
        asked.hook,
        component=asked.component[0] if asked.component else None,
        autoencoder=autoencoder,
        **_given(asked, "top", "threshold", "neurons", "skip_first", "profiles"),
    )


def _groups(asked: Asked) -> dict[str, Any]:
    return {
        "other": None if asked.other is None else open_quietly(asked.other),
        "prompts": asked.prompts,
        "other_prompts": asked.other_prompts,
        "paired": not asked.unpaired,
    }


def _circuits(run: Run, asked: Asked) -> Any:
    from ..analysis.circuits import compare

    return compare(run, **_groups(asked), components=asked.component or None, **_given(asked, "measure", "seed"))


def _graph(run: Run, asked: Asked) -> Any:
    from ..analysis.circuit_graph import circuit_graph
    from ..analysis.circuits import compare

    groups = _groups(asked)
    compared = compare(run, **groups, **_given(asked, "seed"))
    model = _model(asked)
    projections = None
    if model is not None:
        from ..analysis.head_writes import output_projections

        projections = output_projections(model)
    return circuit_graph(run, **groups, comparison=compared, projections=projections)


def _patching(run: Run, asked: Asked) -> Any:
    from ..analysis.run_patching import patch_runs

    model = _model(asked)
    if model is None:
        raise OptionError("patching runs the model again: name it with --model")
    if asked.other is None:
        raise OptionError("patching compares two runs: name that of the corrupted prompts with --other")
    return patch_runs(
        model,
        run,
        open_quietly(asked.other),
        components=asked.component or None,
        each_position=asked.position == "each",
        noising=bool(asked.noising),
    )


def _draw(module: str, name: str = "figure", *options: str) -> Callable[[Run, Any, str, Asked], Figure]:
    """A figure of `plots.{module}` that takes the result and the run's name."""

    def draw(_run: Run, result: Any, title: str, asked: Asked) -> Figure:
        import importlib

        function = getattr(importlib.import_module(f"neuroscope_fast.plots.{module}"), name)
        figure: Figure = function(result, title, **_given(asked, *options))
        return figure

    return draw


def draw_head(run: Run, title: str, asked: Asked) -> Figure:
    """The heat map of one head, for which no head needs to be scored."""
    from ..plots.attention import head_figure

    if asked.layer is None or asked.head is None:
        raise OptionError("a heat map is of one head: give --layer and --head")
    return head_figure(run, title, layer=asked.layer, head=asked.head, **_given(asked, "prompt", "row"))


_SEQUENCE = ("prompt", "row")
_GROUPS = ("other", "prompts", "other_prompts", "unpaired", "seed")

ANALYSES: dict[str, Analysis] = {
    "attention": Analysis(
        "what each attention head looks at",
        ("layer", "head", "top", *_SEQUENCE),
        _attention,
        {
            "scores": _draw("attention"),
            HEAD: lambda run, _result, title, asked: draw_head(run, title, asked),
            "attended": _draw("attention", "attended_figure", *_SEQUENCE),
        },
    ),
    "flow": Analysis(
        "norms of the residual stream, and what attention and MLP add to it",
        (*_SEQUENCE, "model"),
        _flow,
        {"flow": _draw("flow")},
    ),
    "lens": Analysis(
        "the logit lens: what each layer's stream would say next",
        (*_SEQUENCE, "top", "model"),
        _lens,
        {"lens": _draw("logit_lens")},
    ),
    "attribution": Analysis(
        "direct logit attribution: which blocks and heads made the next token likely",
        (*_SEQUENCE, "token", "against", "model"),
        _attribution,
        {"attribution": _draw("attribution")},
    ),
    "features": Analysis(
        "what MLP neurons, or the features of a sparse autoencoder, respond to",
        ("hook", "component", "neurons", "top", "threshold", "skip_first", "profiles", "sae"),
        _features,
        {
            "contexts": _draw("features"),
            "histograms": _draw("features", "histograms_figure"),
            "selectivity": _draw("features", "selectivity_figure"),
        },
    ),
    "circuits": Analysis(
        "which components differ between two groups of prompts",
        (*_GROUPS, "component", "measure"),
        _circuits,
        {"effects": _draw("circuits", "effects_figure"), "differences": _draw("circuits", "difference_figure")},
    ),
    "graph": Analysis(
        "how the components that differ read each other",
        (*_GROUPS, "model"),
        _graph,
        {"graph": _draw("circuits", "graph_figure")},
    ),
    "patching": Analysis(
        "which components matter: activation patching between two runs, with the model",
        ("other", "model", "component", "position", "noising"),
        _patching,
        {"patching": _draw("patching", "patching_figure")},
    ),
}
