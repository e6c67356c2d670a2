"""`components`: what it lists can be hooked, and nothing is loaded for it that could be large."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
from command_line import run
from neuroscope_fast.model_map import resolve_hooks

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("model"))


def test_patterns_for_repeated_layers(folder: Path, capsys: Capsys) -> None:
    done = run(capsys, "components", folder)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "places  hook"
    assert "    12  model.layers.{0..11}:residual" in lines
    assert len(lines) < 22
    assert f"  neuroscope-fast capture --model {folder} --hook 'model.layers.{{0..11}}:residual' …" in lines


def test_every_place_is_a_ready_made_hook(folder: Path, capsys: Capsys) -> None:
    listing = json.loads(run(capsys, "components", folder, "--json").out)
    assert (listing["model"], listing["class_name"]) == (str(folder), "LlamaForCausalLM")
    hooks = [place["hook"] for place in listing["components"]]
    assert run(capsys, "components", folder, "--all").out.splitlines() == hooks
    model = tiny_models.llama()
    single = resolve_hooks(model, hooks)
    assert [hook.output.module for hook in single if hook.output] == [each["module"] for each in listing["components"]]
    by_pattern = resolve_hooks(model, [pattern["hook"] for pattern in listing["patterns"]])
    assert {hook.hook_id for hook in by_pattern} == {hook.hook_id for hook in single}
    assert sum(pattern["places"] for pattern in listing["patterns"]) == len(hooks) == len(by_pattern)


def test_neither_weights_nor_tokenizer_are_needed(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    assert run(capsys, "components", tmp_path).code == 0


def test_the_hooks_line_stays_whole_on_a_narrow_terminal(
    folder: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "model.layers.{0..11}.post_attention_layernorm:layernorm\n" in run(capsys, "components", folder).out
