"""What each new token was chosen from: the tokens that the query which chose it attended to most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from ..errors import RunError
from ..reader import Run
from .attention_sources import Source, wanted
from .sequences import Listed, Pattern, Tokens, layer_number, listed, pattern, tokens

Array = np.ndarray[Any, Any]

WITH_KEYS = (None, "mean", "top_k", "max")
"""What says which keys were attended to; what comes first is taken where a run holds several. None: whole patterns."""


class Attended(msgspec.Struct, frozen=True, kw_only=True):
    """The attention of one query, from whose output the next token was chosen.

    query: its position; read: the token there; chosen: the token after it, empty where the run does not say. positions,
    texts, weights: the tokens it attended to most, the first token of the sequence apart, the most attended first;
    first_token: the weight on that one. Both are empty, and NaN, where a weight of the query is not a number.
    """

    prompt: int
    row: int
    query: int
    read: str
    chosen: str
    first_token: float
    positions: list[int]
    texts: list[str]
    weights: list[float]


class WhatWasAttended(msgspec.Struct, frozen=True):
    """queries: prompt by prompt. over: what the weights are, in words. note: empty, or what the run lacks."""

    queries: list[Attended]
    over: str
    note: str


def attended(
    run: Run,
    among: list[Source],
    sequences: list[tuple[int, int]],
    *,
    layer: int | None = None,
    head: int | None = None,
    top: int = 5,
) -> WhatWasAttended:
    """The `top` tokens that each query which chose a token attended to most, in these (prompt, row): those from
    the last of the prompt on.

    The weights are the mean over the heads of each layer, then over the layers; `layer` and `head` choose. Raises
    RunError where the run does not hold these.
    """
    chosen = _chosen(run, [source for source in among if source.writes], layer, head)
    if not chosen:
        note = (
            "The run does not say from which tokens a token was chosen: capture the attention of a causal language "
            f"model with --hook '{wanted(run)}', or reduced to the mean over heads"
        )
        return WhatWasAttended([], "", note)
    found = []
    for prompt, row in sequences:
        there = [source for source in chosen if prompt in source.prompts]
        if not there:
            continue
        texts = tokens(run, prompt, row)
        for query, weights in _queries(run, there, prompt, row, head=head, first=texts.prompt_tokens - 1):
            found.append(_attended((prompt, row, query), weights, texts, top))
    return WhatWasAttended(found, _over(chosen, layer, head), "")


def _chosen(run: Run, among: list[Source], layer: int | None, head: int | None) -> list[Source]:
    """The hooks of one kind: the first that there is."""
    fitting = [
        source
        for source in among
        if (layer is None or layer_number(source.module) == layer)
        and (head is None or (source.heads is not None and head in source.heads))
    ]
    for reduction in WITH_KEYS:
        of_kind = [source for source in fitting if source.reduction == reduction]
        if of_kind:
            return of_kind
    if layer is not None or head is not None:
        asked = " ".join(
            f"{name} {number}" for name, number in (("layer", layer), ("head", head)) if number is not None
        )
        raise RunError(f"this run does not hold the attention of {asked}: capture it with --hook '{wanted(run)}'")
    return []


def _over(chosen: list[Source], layer: int | None, head: int | None) -> str:
    heads = "largest weight of the heads" if chosen[0].reduction == "max" else "mean over the captured heads"
    count = len({source.module for source in chosen})
    layers = f"of layer {layer}" if layer is not None else f"of {count} layers" if count > 1 else ""
    if head is not None:
        heads = f"head {head}" if layer is not None or count == 1 else f"mean of the heads {head}"
    listed_only = ", of the weights that the run lists" if chosen[0].reduction == "top_k" else ""
    return f"{heads} {layers}".strip() + listed_only


def _queries(
    run: Run, chosen: list[Source], prompt: int, row: int, *, head: int | None, first: int
) -> list[tuple[int, Array]]:
    """The queries from `first` on, as far as every captured head of every module has them, with the mean of their
    weights over the heads of each module, then over the modules, [K].
    """
    by_module: dict[str, list[Source]] = {}
    for source in chosen:
        by_module.setdefault(source.module, []).append(source)
    sums: dict[int, Array] = {}
    held: dict[int, int] = {}
    for group in by_module.values():
        for query, weights in _of_module(run, group, prompt, row, head=head, first=first):
            sums[query] = sums.get(query, np.zeros(query + 1)) + weights
            held[query] = held.get(query, 0) + 1
    count = len(by_module)
    return [(query, sums[query] / count) for query in sorted(sums) if held[query] == count]


def _of_module(
    run: Run, group: list[Source], prompt: int, row: int, *, head: int | None, first: int
) -> Iterator[tuple[int, Array]]:
    """The queries that all the heads that these hooks of one module hold have, with the mean of their weights."""
    wanted = {each for source in group for each in source.heads or (-1,)} if head is None else {head}
    sums: dict[int, Array] = {}
    seen: dict[int, set[int]] = {}
    for source in group:
        part: Pattern | Listed
        if source.reduction == "top_k":
            part = listed(run, source.hook_id, prompt, row)
        else:
            part = pattern(run, source.hook_id, prompt, row, first=max(first, 0))
        for number in np.flatnonzero(part.queries >= first):
            query = int(part.queries[number])
            weights = sums.setdefault(query, np.zeros(query + 1))
            for at, each in enumerate(part.heads or (-1,)):
                if each not in wanted or each in seen.setdefault(query, set()):
                    continue
                seen[query].add(each)
                keys = part.keys[at, number] if isinstance(part, Listed) else np.arange(part.weights.shape[2])
                within = (keys >= 0) & (keys <= query)
                np.add.at(weights, keys[within], part.weights[at, number][within].astype(np.float64))
    for query, weights in sums.items():
        if seen[query] == wanted:
            yield query, weights / len(wanted)


def _attended(place: tuple[int, int, int], weights: Array, texts: Tokens, top: int) -> Attended:
    prompt, row, query = place
    finite = bool(np.isfinite(weights).all())
    order = np.argsort(-weights[1:], kind="stable")[:top] + 1 if finite else np.arange(0)
    positions = [int(position) for position in order if weights[position] > 0]
    return Attended(
        prompt=prompt,
        row=row,
        query=query,
        read=_text(texts, query),
        chosen=_text(texts, query + 1) if texts.ids else "",
        first_token=float(weights[0]) if finite else float("nan"),
        positions=positions,
        texts=[_text(texts, position) for position in positions],
        weights=[float(weights[position]) for position in positions],
    )


def _text(texts: Tokens, position: int) -> str:
    return texts.texts[position] if position < len(texts.texts) else ""
