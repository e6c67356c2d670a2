"""`neuroscope-fast components MODEL`"""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import Struct

from .console import JsonOption, console, count_text, line, print_json
from .loading import RevisionOption, TrustOption, quiet_transformers
from .patterns import compress
from .progress import waiting


class Place(Struct):
    """One place that can be hooked: `hook` is ready-made, `module` is what is tapped ("" is the model itself)."""

    hook: str
    layer_name: str
    component: str
    module: str


class Pattern(Struct):
    """Places that differ in their layer's number only. `hook` names them all."""

    hook: str
    component: str
    places: int


class Listing(Struct):
    """The JSON of `components`."""

    model: str
    class_name: str
    patterns: list[Pattern]
    components: list[Place]


def components(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="`demo`, a folder, or a Hugging Face id.", show_default=False),
    ],
    every: Annotated[
        bool, typer.Option("--all", help="A line for each place, and not for each pattern of them.")
    ] = False,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """What can be hooked in a model.

    As ready-made hooks for `--hook`. The weights are not loaded.
    """
    with waiting("looking at the model"):
        quiet_transformers()
        from ..model_map import components as components_of
        from ..models import load_skeleton

        loaded = load_skeleton(model, revision=revision, trust_remote_code=trust_remote_code)
        found = components_of(loaded)
    listing = Listing(
        model=model,
        class_name=type(loaded).__name__,
        patterns=group(found),
        components=[Place(f"{layer}:{name}", layer, name, module) for layer, name, module in found],
    )
    if as_json:
        print_json(listing)
    else:
        _print(listing, every)


def group(found: list[tuple[str, str, str]]) -> list[Pattern]:
    """Places by pattern, in the order of their first."""
    layers: dict[tuple[str, str], list[str]] = {}
    for layer, component, _ in found:
        layers.setdefault((_without_numbers(layer), component), []).append(layer)
    return [
        Pattern(f"{pattern}:{component}", component, len(matched))
        for (_, component), names in layers.items()
        for pattern, matched in compress(names)
    ]


def _without_numbers(layer: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in layer.split("."))


def _print(listing: Listing, every: bool) -> None:
    out = console()
    if every:
        for place in listing.components:
            line(out, place.hook)
        return
    line(out, ("places  hook", "bold"))
    for pattern in listing.patterns:
        line(out, f"{pattern.places:>6}  {pattern.hook}")
    line(out, "")
    line(
        out,
        f"{listing.class_name}: {count_text(len(listing.components), 'place')}; --all lists each of them.",
    )
    line(out, "Hooks with braces need quotes in a shell, and may name fewer layers:")
    line(out, f"  neuroscope-fast capture --model {listing.model} --hook '{_example(listing)}' …")


def _example(listing: Listing) -> str:
    return max(listing.patterns, key=lambda pattern: (pattern.places, pattern.component == "residual")).hook
