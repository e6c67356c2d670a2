"""Activation patching and ablation: against passes made by hand, their two ends, and what they prove on the embedded
model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import neuroscope_fast as nsf
import numpy as np
import pytest
import tiny_models
import torch
from neuroscope_fast import demo
from neuroscope_fast.analysis.circuits import compare
from neuroscope_fast.analysis.interventions import Patch, Site, patched, sites, sites_of
from neuroscope_fast.analysis.logit_metric import last_logits, logit_difference, prompt_ids
from neuroscope_fast.analysis.patching import Patching, ablate, activation_patching
from neuroscope_fast.analysis.results import encode
from neuroscope_fast.analysis.sequences import MissingActivations, find, join
from neuroscope_fast.demo import scores
from neuroscope_fast.demo.pairs import repeated_words
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.reader import Run
from torch import nn

CLEAN = [[5, 9, 3, 17], [8, 8, 40, 2]]
CORRUPTED = [[5, 30, 3, 17], [8, 9, 40, 2]]
RIGHT, WRONG = [20, 21], [30, 31]
MODEL = tiny_models.llama()


def by_hand(ids: list[int], patch: Patch, pair: int) -> float:
    with patched(MODEL, [patch]), torch.no_grad():
        logits = MODEL(torch.tensor([ids])).logits[0, -1]
    return float(logits[RIGHT[pair]] - logits[WRONG[pair]])


def values_of(ids: list[int], site: Site) -> torch.Tensor:
    with nsf.capture(MODEL, {"layer_name": site.layer_name, "component": site.component}) as cap, torch.no_grad():
        MODEL(torch.tensor([ids]))
    values = torch.from_numpy(join(cap.result, find(cap.result, site.component)[0].hook_id).values)
    return values if site.head is None else values[:, site.head]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("positions", ["all", "each", [-1, 1]])
def test_each_number_is_that_of_a_pass_by_hand(direction: str, positions: str | list[int]) -> None:
    chosen = [Site("model.layers.3", "residual", 3), Site("model.layers.3", "head_output", 3, 1)]
    found = activation_patching(
        MODEL,
        CLEAN,
        CORRUPTED,
        RIGHT,
        WRONG,
        sites=chosen,
        positions=positions,  # type: ignore[arg-type]
        direction=direction,  # type: ignore[arg-type]
    )
    columns = {"all": [None], "each": [0, 1, 2, 3]}.get(str(positions), positions)
    given, base = (CLEAN, CORRUPTED) if direction == "denoising" else (CORRUPTED, CLEAN)
    for (row, site), (column, position), pair in itertools.product(enumerate(chosen), enumerate(columns), range(2)):
        values = values_of(given[pair], site)
        at = None if position is None else [position]
        part = values if position is None else values[position]
        expected = by_hand(base[pair], Patch(site.layer_name, site.component, part, site.head, at), pair)
        assert found.by_pair[row, column, pair] == expected
    assert found.clean == pytest.approx(
        np.mean([logit_difference(MODEL, CLEAN[p], RIGHT[p], WRONG[p]) for p in (0, 1)])
    )
    assert np.allclose(found.raw, found.by_pair.mean(2))
    assert np.allclose(found.normalised, (found.raw - found.corrupted) / (found.clean - found.corrupted))


def test_the_two_ends_are_reached_exactly() -> None:
    last = [sites(MODEL, ["residual"])[-1]]
    denoised = activation_patching(MODEL, CLEAN, CORRUPTED, RIGHT, WRONG, sites=last)
    noised = activation_patching(MODEL, CLEAN, CORRUPTED, RIGHT, WRONG, sites=last, direction="noising")
    assert denoised.normalised.tolist() == [[1.0]]
    assert noised.normalised.tolist() == [[0.0]]
    assert denoised.raw[0, 0] == denoised.clean


def test_what_comes_behind_the_difference_alone_restores_nothing() -> None:
    # The prompts differ at position 1: what is patched at position 0 cannot matter.
    found = activation_patching(MODEL, CLEAN, CORRUPTED, RIGHT, WRONG, sites=sites(MODEL), positions=[0])
    assert (found.raw == found.corrupted).all()
    assert (found.normalised == 0).all()


def test_patching_from_a_run_on_disk_is_patching_on_the_fly(tmp_path: Path) -> None:
    model, tokenizer = demo.load()
    pairs = repeated_words(2, seed=5)
    hooks = ["model.layers.*:head_output", "model.layers.*:residual", "model.layers.*:mlp"]
    clean = nsf.generate(model, pairs.clean, hooks, out=tmp_path / "a", tokenizer=tokenizer, max_new_tokens=2)
    clean_ids, corrupted_ids = prompt_ids(clean), [tokenizer(text)["input_ids"] for text in pairs.corrupted]
    chosen = [each for each in sites(model, ["head_output", "residual", "mlp"]) if each.layer in (0, 9)]
    found = [
        activation_patching(model, clean_ids, corrupted_ids, pairs.right, pairs.wrong, sites=chosen, source=source)
        for source in (nsf.open(tmp_path / "a"), None)
    ]
    assert (found[0].by_pair == found[1].by_pair).all()
    assert found[0].note == ""
    # Into itself: exactly what the model gives by itself.
    for ids, number in zip(clean_ids, (0, 1), strict=True):
        plain = last_logits(model, ids)
        for site in chosen:
            values = torch.from_numpy(join(clean, f"{site.layer_name}_{site.component}", number).values[: len(ids)])
            values = values if site.head is None else values[:, site.head]
            with patched(model, [Patch(site.layer_name, site.component, values, site.head)]):
                assert torch.equal(last_logits(model, ids), plain)


def test_rounded_activations_are_said_to_be_rounded(tmp_path: Path) -> None:
    model, tokenizer = demo.load()
    pairs = repeated_words(1, seed=5)
    run = nsf.generate(
        model,
        pairs.clean,
        ["model.layers.*:mlp"],
        out=tmp_path / "a",
        tokenizer=tokenizer,
        max_new_tokens=1,
        capture_dtype="bfloat16",
    )
    corrupted = [tokenizer(pairs.corrupted[0])["input_ids"]]
    found = activation_patching(
        model, prompt_ids(run), corrupted, pairs.right, pairs.wrong, sites=sites(model, ["mlp"]), source=run
    )
    assert found.note == "the activations patched in were rounded: float32 stored as bfloat16"
    assert found.note in found.tables()[0].note


def captured_run(ids: list[list[int]], hooks: list[str]) -> Run:
    with nsf.capture(MODEL, hooks) as cap, torch.no_grad():
        for number, each in enumerate(ids):
            if number:
                cap.next_prompt()
            MODEL(torch.tensor([each]))
    return cap.result


def test_what_cannot_be_done_is_said() -> None:
    site = [Site("model.layers.3", "residual", 3)]
    for arguments, message in (
        ({"clean": CLEAN[:1]}, "1 clean and 2 corrupted prompts"),
        ({"right": [1]}, "1 right and 2 wrong answers"),
        ({"clean": [[5, 9], CLEAN[1]]}, "pair 0 have 2 and 4 tokens: their positions do not match"),
        ({"clean": [[5, 9], CLEAN[1]], "positions": [1]}, "pair 0 differ in length: count positions from the end"),
        ({"clean": [[], CLEAN[1]]}, "has no tokens"),
        ({"positions": [4]}, r"positions \[4\] are not all in the shortest prompt, of 4 tokens"),
        ({"positions": []}, "empty list"),
        ({"positions": "some"}, "positions is 'some'"),
        ({"direction": "sideways"}, "direction is 'sideways'"),
        ({"corrupted": CLEAN}, "same logit difference"),
        ({"right": WRONG}, "same logit difference"),
        ({"right": [999, 1]}, "no token 999; the model has 259"),
        ({"sites": []}, "no site to patch"),
        ({"labels": ["a", "b"]}, "2 labels for 1 columns"),
    ):
        given = {"clean": CLEAN, "corrupted": CORRUPTED, "right": RIGHT, "wrong": WRONG, "sites": site, **arguments}
        with pytest.raises(OptionError, match=message):
            activation_patching(MODEL, **given)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"call model\.eval\(\)"):
        activation_patching(tiny_models.llama().train(), CLEAN, CORRUPTED, RIGHT, WRONG, sites=site)
    with pytest.raises(OptionError, match="gives no logits"):
        last_logits(MODEL.model, [1, 2])


def test_a_run_that_does_not_fit_is_refused() -> None:
    site = [Site("model.layers.3", "residual", 3)]

    def patch_from(run: Run, **options: object) -> Patching:
        return activation_patching(
            MODEL,
            CLEAN,
            CORRUPTED,
            RIGHT,
            WRONG,
            sites=site,
            source=run,
            **options,  # type: ignore[arg-type]
        )

    fitting = captured_run(CLEAN, ["model.layers.*:residual"])
    assert np.isfinite(patch_from(fitting).raw).all()
    assert np.isfinite(
        patch_from(captured_run([[1], *CLEAN], ["model.layers.3:residual"]), source_prompts=[1, 2]).raw
    ).all()
    with pytest.raises(MissingActivations, match=r"capture it with --hook 'model\.layers\.3:residual'"):
        patch_from(captured_run(CLEAN, ["model.layers.*:mlp"]))
    with pytest.raises(OptionError, match="has 1 prompts for 2 pairs"):
        patch_from(captured_run(CLEAN[:1], ["model.layers.3:residual"]))
    with pytest.raises(RunError, match="lacks positions of prompt 0"):
        patch_from(captured_run([[5], [8]], ["model.layers.3:residual"]))
    other = captured_run(CORRUPTED, ["model.layers.3:residual", "model.embed_tokens:embedding"])
    assert np.isfinite(patch_from(other).raw).all()  # it does not say what its tokens are
    told = nsf.capture(
        MODEL,
        [
            {"layer_name": "model.layers.3", "component": "residual"},
            {"layer_name": "model.embed_tokens", "component": "embedding", "capture_input": True},
        ],
    )
    with told, torch.no_grad():
        for number, each in enumerate(CORRUPTED):
            if number:
                told.next_prompt()
            MODEL(torch.tensor([each]))
    with pytest.raises(RunError, match="prompt 0 of the run to patch from has other tokens"):
        patch_from(told.result)


def test_prompts_of_unequal_length_can_be_patched_at_their_ends() -> None:
    site = [Site("model.layers.11", "residual", 11)]
    found = activation_patching(MODEL, [[5, 9], CLEAN[1]], CORRUPTED, RIGHT, WRONG, sites=site, positions=[-1])
    assert found.normalised.tolist() == [[pytest.approx(1.0, abs=1e-6)]]


def test_tables_and_json() -> None:
    found = activation_patching(MODEL, CLEAN, CORRUPTED, RIGHT, WRONG, sites=sites(MODEL), positions="each")
    tables = found.tables()
    assert [table.title.split(", ")[1].split(":")[0] for table in tables] == [
        "head_output",
        "attention",
        "mlp",
        "residual",
    ]
    best = max(
        range(len(found.sites)), key=lambda s: found.normalised[s].max() if found.sites[s].component == "mlp" else -1e9
    )
    assert tables[2].rows[0][0] == found.sites[best].name
    assert json.loads(encode(found))["sites"][0] == {
        "layer_name": "model.layers.0",
        "component": "residual",
        "layer": 0,
    }


def test_ablations_are_passes_by_hand() -> None:
    chosen = [Site("model.layers.2", "head_output", 2, 0), Site("model.layers.5", "mlp", 5)]

    def metric(model: nn.Module) -> float:
        return logit_difference(model, CLEAN[0], 20, 30)

    zero = ablate(MODEL, chosen, metric, metric_name="logit difference")
    assert zero.baseline == metric(MODEL)
    for number, site in enumerate(chosen):
        assert zero.values[number] == by_hand(CLEAN[0], Patch(site.layer_name, site.component, 0.0, site.head), 0)
    mean = ablate(MODEL, chosen, metric, kind="mean", reference=CORRUPTED)
    for number, site in enumerate(chosen):
        every = [values.double().numpy() for ids in CORRUPTED for values in values_of(ids, site)]
        average = torch.from_numpy(sum(every) / len(every))
        expected = by_hand(CLEAN[0], Patch(site.layer_name, site.component, average, site.head), 0)
        assert mean.values[number] == pytest.approx(expected, abs=1e-5)
    assert mean.values[0] != zero.values[0]
    with patched(MODEL, [Patch(site.layer_name, site.component, 0.0, site.head) for site in chosen]):
        assert zero.together == metric(MODEL)
    assert zero.tables()[0].rows[0] == ["none", zero.baseline, 0.0]
    with pytest.raises(OptionError, match="mean with reference prompts"):
        ablate(MODEL, chosen, metric, kind="mean")
    with pytest.raises(OptionError, match="no site"):
        ablate(MODEL, [], metric)


def test_what_a_comparison_found_can_be_patched() -> None:
    hooks = ["model.layers.*:head_output", "model.layers.*:attention_pattern", "model.layers.*:mlp"]
    ids = [[5, 6, number, 9] for number in range(10, 22)]
    changed = [[5, 6, number, 30] for number in range(10, 22)]
    found = compare(captured_run(ids, hooks), captured_run(changed, hooks))
    assert len(found.found()) > 2
    chosen = sites_of(found, most=4)
    assert len(chosen) == len(set(chosen)) == 4
    assert {site.component for site in chosen} <= {"head_output", "mlp"}
    first = found.components[int(np.lexsort((found.p, found.p_family))[0])]
    assert (chosen[0].layer, chosen[0].head) == (first.layer, first.head)
    patched_in = activation_patching(MODEL, ids[:1], changed[:1], [20], [30], sites=chosen)
    assert np.isfinite(patched_in.normalised).all()
    alike = compare(captured_run(ids[:2], hooks), captured_run(changed[:2], hooks))
    assert alike.found() == []
    assert len(sites_of(alike)) == 20


class Heads:
    """The heads of the embedded model, by what they attend to on random tokens that repeat."""

    def __init__(self) -> None:
        eager, _ = demo.load(attn_implementation="eager")
        induction = scores.induction_scores(eager, sequences=100, seed=501)
        previous = scores.previous_token_scores(eager, sequences=100, seed=501)
        self.all = [(layer, head) for layer in range(12) for head in range(4)]
        ranked = sorted(self.all, key=lambda each: -float(induction[each]))
        # Measured: six heads at 0.94 to 1.00, the next at 0.04. Twenty-two give 0.2 or more to the previous token.
        self.induction = [each for each in ranked if induction[each] > 0.5]
        self.others = [each for each in self.all if induction[each] < 0.1 and previous[each] < 0.2]


@pytest.fixture(scope="module")
def heads() -> Heads:
    return Heads()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return demo.load()[0]


def as_sites(some: list[tuple[int, int]]) -> list[Site]:
    return [Site(f"model.layers.{layer}", "head_output", layer, head) for layer, head in some]


@pytest.mark.parametrize("seed", [502, 503])
def test_the_induction_heads_together_do_the_copying(model: nn.Module, heads: Heads, seed: int) -> None:
    def accuracy(model: nn.Module) -> float:
        return scores.copy_accuracy(model, sequences=25, seed=seed)  # type: ignore[arg-type]

    assert len(heads.induction) == 6
    reference = scores.repeated_sequences(model, 20, seed=504).tokens.tolist()  # type: ignore[arg-type]
    for kind in ("zero", "mean"):
        without = ablate(model, as_sites(heads.induction), accuracy, kind=kind, reference=reference)  # type: ignore[arg-type]
        assert without.baseline >= 0.99  # measured with 40 sequences: 0.999
        assert without.together <= 0.02  # measured: 0.001 at most
        # They stand in for each other: without any single one it goes on (measured: 0.992 at least).
        assert without.values.min() >= 0.97
    beside = [each for each in heads.others if each[0] in {layer for layer, _ in heads.induction}]
    assert len(beside) >= len(heads.induction)
    # The other heads of the same layers, all at once, and then all heads that are neither of induction nor of the
    # previous token, which feeds it (measured: 0.999 at least).
    assert ablate(model, as_sites(beside), accuracy).together >= 0.98
    assert ablate(model, as_sites(heads.others), accuracy, kind="mean", reference=reference).together >= 0.98
    # Set to zero it is the same, but for layer 0, whose heads add much the same to every position.
    behind = [each for each in heads.others if each[0] > 0]
    assert ablate(model, as_sites(behind), accuracy).together >= 0.98
    first = as_sites([each for each in heads.others if each[0] == 0])
    assert ablate(model, first, accuracy).together <= 0.3  # measured: 0.07
    assert ablate(model, first, accuracy, kind="mean", reference=reference).together >= 0.98


def test_no_other_head_is_needed_for_copying(model: nn.Module, heads: Heads) -> None:
    def accuracy(model: nn.Module) -> float:
        return scores.copy_accuracy(model, sequences=20, seed=505)  # type: ignore[arg-type]

    others = ablate(model, as_sites([each for each in heads.all if each not in heads.induction]), accuracy)
    assert len(others.sites) == 42
    assert others.values.min() >= 0.97  # measured: 0.99


def test_patching_ranks_the_induction_heads_first(model: nn.Module, heads: Heads) -> None:
    _, tokenizer = demo.load()
    pairs = repeated_words(6, seed=506)
    clean, corrupted = ([tokenizer(text)["input_ids"] for text in side] for side in (pairs.clean, pairs.corrupted))
    found = activation_patching(model, clean, corrupted, pairs.right, pairs.wrong, sites=sites(model, ["head_output"]))
    ranked = np.argsort(-found.normalised[:, 0])
    assert {(found.sites[s].layer, found.sites[s].head) for s in ranked[:6]} == set(heads.induction)
    assert found.normalised[ranked[5], 0] > 2 * found.normalised[ranked[6], 0]
