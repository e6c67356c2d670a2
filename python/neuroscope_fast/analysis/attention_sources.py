"""Where a run holds attention: its hooks by attention module, and the sums over all its sequences."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from ..errors import RunError
from ..reader import Run
from .attention_scores import ENTROPY, FIRST, PREVIOUS, PREVIOUS_KEY, QueryMasses, Totals
from .run_index import ENCODER
from .sequences import (
    Joined,
    Listed,
    Pattern,
    heads_of,
    join,
    layer_number,
    layers_pattern,
    listed,
    missing,
    pattern,
    prompt_numbers,
    rows,
    tokens,
)

Array = np.ndarray[Any, Any]

HEAD_REDUCTIONS = (None, "entropy", "sink", "previous", "top_k")
"""What says something of single heads; what comes first is believed first. None: the whole pattern."""

_DECODER = re.compile(r"(?:^|\.)decoder\.")
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|multihead_attn|decoder\.block\.\d+\.layer\.1(?!\d)", re.IGNORECASE)


class Source(NamedTuple):
    """A hook that holds attention patterns, or a reduction of them. heads: None where they are reduced to one. reads:
    the module reads the run's tokens; writes: it stands in the stack that chooses the next one.
    """

    hook_id: str
    module: str
    reduction: str | None
    heads: list[int] | None
    prompts: frozenset[int]
    reads: bool
    writes: bool


class Layer(NamedTuple):
    """One attention module: the number of its layer, its path, the sums over its heads."""

    number: int | None
    module: str
    totals: Totals


def sources(run: Run) -> list[Source]:
    """The hooks of self-attention. Cross-attention, whose keys are of another sequence, is not among them.

    Raises MissingActivations where there are none.
    """
    found = []
    for hook_id in run:
        records = run[hook_id].outputs.records
        if not records or records[0].component != "attention_pattern" or records[0].is_input:
            continue
        first, hook = records[0], run.manifest.hooks.get(hook_id)
        module = hook.module if hook is not None and hook.module else first.layer_name
        if _CROSS.search(module) or _CROSS.search(first.layer_name):
            continue
        heads = None
        if first.reduction in HEAD_REDUCTIONS:
            heads = heads_of(first)
        prompts = frozenset(record.prompt for record in records)
        # A decoder beside an encoder reads a sequence of its own, which does not begin with the run's tokens.
        reads = not _DECODER.search(module) or run.manifest.model.class_name.endswith("ForCausalLM")
        writes = reads and not ENCODER.search(module)
        found.append(Source(hook_id, module, first.reduction, heads, prompts, reads, writes))
    if not found:
        raise missing("an analysis of attention", [wanted(run)])
    return found


def wanted(run: Run) -> str:
    """The hook that captures everything which this analysis reads."""
    return f"{layers_pattern(run)}:attention_pattern"


def head_pattern(run: Run, layer: int, head: int, prompt: int = 0, row: int = 0) -> Pattern:
    """The whole pattern of one head in one sequence. Raises RunError where the run does not hold it."""
    for source in sources(run):
        if source.reduction is None and layer_number(source.module) == layer and head in (source.heads or ()):
            if prompt not in source.prompts:
                raise RunError(f"{source.hook_id} holds nothing of prompt {prompt}")
            found = pattern(run, source.hook_id, prompt, row)
            number = found.heads.index(head)
            return Pattern(found.queries, [head], found.weights[number : number + 1])
    raise RunError(
        f"this run does not hold the whole attention pattern of layer {layer} head {head}: capture it with "
        f"--hook '{wanted(run)}'"
    )


def sequences_of(run: Run, prompt: int | None, row: int | None) -> list[tuple[int, int]]:
    """The sequences (prompt, row) of a run, or of one prompt, or one row. Raises RunError where there are none."""
    found = [
        (number, at)
        for number in prompt_numbers(run)
        if prompt in (None, number)
        for at in range(rows(run, number))
        if row in (None, at)
    ]
    if not found and (prompt is not None or row is not None):
        asked = " ".join(f"{name} {value}" for name, value in (("prompt", prompt), ("row", row)) if value is not None)
        raise RunError(f"this run holds no {asked}; its prompts are {', '.join(map(str, prompt_numbers(run)[:8]))}")
    return found


def measure(run: Run, among: list[Source], sequences: list[tuple[int, int]]) -> list[Layer]:
    """The sums over these sequences for every head that one of these hooks says something of."""
    by_module: dict[str, list[Source]] = {}
    for reduction in HEAD_REDUCTIONS:
        for source in among:
            if source.reduction == reduction and source.heads is not None:
                by_module.setdefault(source.module, []).append(source)
    totals = {
        module: Totals(sorted({head for source in group for head in source.heads or ()}))
        for module, group in by_module.items()
    }
    for prompt, row in sequences:
        given = tokens(run, prompt, row).ids
        ids = np.asarray(given, np.int64) if given else None
        for module, group in by_module.items():
            there = [each for each in group if prompt in each.prompts]
            loaded = [(source, _load(run, source, prompt, row)) for source in there]
            _add(totals[module], loaded, ids if all(each.reads for each in group) else None)
    layers = [Layer(layer_number(module), module, each) for module, each in totals.items()]
    layers.sort(key=lambda each: (each.number is None, each.number or 0, each.module))
    return layers


def _add(totals: Totals, loaded: list[tuple[Source, Pattern | Listed | Joined]], ids: Array | None) -> None:
    """What the hooks of one module say of one sequence."""
    length = max((int(part[0].max(initial=-1)) + 1 for _, part in loaded), default=0)
    if not length:
        return
    known = ids if ids is not None and len(ids) >= length else None
    masses = QueryMasses(totals.heads, length)
    for source, part in loaded:
        if isinstance(part, Pattern):
            masses.put_pattern(part.heads, part.queries, part.weights, known)
        elif isinstance(part, Listed):
            masses.put_listed(part.heads, part.queries, part.keys, part.weights, known)
        else:
            _put_reduction(masses, source, part)
    totals.add(masses, known)


def _load(run: Run, source: Source, prompt: int, row: int) -> Pattern | Listed | Joined:
    if source.reduction is None:
        return pattern(run, source.hook_id, prompt, row)
    return (listed if source.reduction == "top_k" else join)(run, source.hook_id, prompt, row)


def _put_reduction(masses: QueryMasses, source: Source, part: Joined) -> None:
    for number, head in enumerate(source.heads or ()):
        values = np.asarray(part.values[:, number], np.float64)
        if source.reduction == "entropy":
            masses.put(ENTROPY, head, part.positions, values)
        elif source.reduction == "sink":
            masses.put(FIRST, head, part.positions, values)
        else:
            masses.put(PREVIOUS_KEY, head, part.positions, values)
            masses.put(PREVIOUS, head, part.positions, np.where(part.positions > 1, values, 0.0))
