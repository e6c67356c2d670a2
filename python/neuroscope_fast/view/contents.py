"""What the page says of a run before it shows any of its numbers. It is read from the metadata: no tensor is."""

from __future__ import annotations

from typing import Any

from ..analysis import sequences
from ..analysis.attention_sources import sources, wanted
from ..reader import Run
from ..records import Record
from .blocks import PER_QUERY

_WEIGHT = {"name": "attention weight (probability)", "top": 1.0}
_LATER = "Hatched: keys that come after their query, which have weight 0."
_KINDS: dict[str | None, dict[str, Any]] = {
    None: {"title": "attention pattern", "short": "pattern", "unit": _WEIGHT, "note": _LATER},
    "mean": {"title": "mean over heads", "short": "mean", "unit": _WEIGHT, "note": _LATER},
    "max": {"title": "largest of all heads", "short": "max", "unit": _WEIGHT, "note": _LATER},
    "top_k": {
        "title": "largest weights of each query",
        "short": "top k",
        "unit": _WEIGHT,
        "note": "Hatched: not stored, since each query keeps its largest weights only; what they are is not known.",
    },
    "entropy": {
        "title": "entropy of each query's pattern",
        "short": "entropy",
        "unit": {"name": "entropy (nats)", "top": None},
        "note": "0: all attention on one token; ln n: spread evenly over n tokens.",
    },
    "sink": {
        "title": "weight on the first token",
        "short": "first",
        "unit": _WEIGHT,
        "note": "What each query gives the first token of the sequence.",
    },
    "previous": {
        "title": "weight on the previous token",
        "short": "previous",
        "unit": _WEIGHT,
        "note": "What each query gives the token before its own.",
    },
}
_LONGEST_TEXT = 120  # characters of a prompt, where prompts are chosen


def contents_of(run: Run) -> dict[str, Any]:
    """The run's name, model, prompts, and for each kind of attention that it holds the hooks that hold it.

    Raises MissingActivations where it holds none.
    """
    found = _entries(run)
    groups = [
        {**told, "rows": "heads" if kind in PER_QUERY else "queries", "entries": found[kind]}
        for kind, told in _KINDS.items()
        if kind in found
    ]
    if not groups:
        raise sequences.missing("the attention page", [wanted(run)])
    entries = [entry for group in groups for entry in group["entries"]]
    for number, entry in enumerate(entries):
        entry["number"] = number
    held = sorted({prompt for entry in entries for prompt in entry["prompts"]})
    for entry in entries:
        if entry["prompts"] == held:
            entry["prompts"] = None  # all of them: runs have thousands
    return {
        "run": run.name,
        "model": _model(run),
        "dtype": ", ".join(sorted({entry["dtype"] for entry in entries})),
        "layers": _layers(entries),
        "notice": run.notice,
        "groups": groups,
        "prompts": _prompts(run, held),
    }


def tokens_of(run: Run, prompt: int, row: int) -> dict[str, Any]:
    """The tokens of a sequence; `known`: whether the run says what they are, or only how many."""
    found = sequences.tokens(run, prompt, row)
    return {"texts": found.texts, "prompt_tokens": found.prompt_tokens, "known": bool(found.ids)}


def _entries(run: Run) -> dict[str | None, list[dict[str, Any]]]:
    """The hooks that hold self-attention, by what is made of it, and by layer. `reads`: the run's tokens are those of
    the module; those of a decoder beside an encoder are others.
    """
    found: dict[str | None, list[dict[str, Any]]] = {}
    for source in sources(run):
        first = run[source.hook_id].outputs.records[0]
        if not _is_shown(first):
            continue
        layer = sequences.layer_number(first.layer_name)
        entry = {
            "hook": source.hook_id,
            "label": first.layer_name if layer is None else f"layer {layer}",
            "layer": layer,
            "heads": source.heads or [],
            "dtype": first.dtype,
            "prompts": sorted(source.prompts),
            "reads": source.reads,
        }
        found.setdefault(first.reduction, []).append(entry)
    for entries in found.values():
        entries.sort(key=lambda entry: (entry["layer"] is None, entry["layer"] or 0))
        labels = [entry["label"] for entry in entries]
        for entry in entries:
            if labels.count(entry["label"]) > 1:
                entry["label"] = entry["hook"]
    return found


def _is_shown(record: Record) -> bool:
    rank = 3 if record.reduction in ("mean", "max", *PER_QUERY) else 4
    return record.reduction in _KINDS and len(record.shape) == rank


def _layers(entries: list[dict[str, Any]]) -> str:
    """`layers 0-3, 7`"""
    numbers = sorted({entry["layer"] for entry in entries if entry["layer"] is not None})
    others = sorted({entry["label"] for entry in entries if entry["layer"] is None})
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    texts = ["-".join(map(str, span)) for span in spans]
    what = ["layer " if len(numbers) == 1 else "layers " if numbers else "", ", ".join([*texts, *others])]
    return "".join(what)


def _model(run: Run) -> str:
    model = run.manifest.model
    name = model.name_or_path or model.class_name or "a model without a name"
    return f"{name} ({model.class_name})" if model.class_name and model.class_name != name else name


def _prompts(run: Run, held: list[int]) -> list[dict[str, Any]]:
    texts = {entry.prompt: entry.texts[0].prompt[:_LONGEST_TEXT] for entry in run.prompts if entry.texts}
    return [{"number": number, "rows": sequences.rows(run, number), "text": texts.get(number, "")} for number in held]
