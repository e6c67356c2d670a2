"""`neuroscope-fast demo`, and `--model demo` wherever a model is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import neuroscope_fast as nsf
import pytest
import torch
from command_line import run, run_process

Capsys = pytest.CaptureFixture[str]


def test_the_demo_leaves_a_run_and_says_what_to_do_next(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    done = run(capsys, "demo")
    assert done.code == 0
    assert done.out.startswith("Recursion is")
    first = done.out.split("\n\n")[1]
    assert first.startswith("What the attention heads do")
    assert "induction" in first
    assert "11.3" in first  # of demo.scores the best of them
    assert "runs/demo: complete" in done.out
    assert torch.get_num_threads() == threads
    captured = nsf.open(tmp_path / "runs" / "demo")
    assert captured.hooks == [
        *(f"pattern.{layer}" for layer in range(12)),
        *(f"residual.{layer}" for layer in range(12)),
        "attention_layer_10",
        "neurons_layer_10",
        "logits",
    ]
    tokens = captured.metadata.usage.completion_tokens
    assert {len(captured[hook]) for hook in captured.hooks} == {tokens}
    for step, pattern in enumerate(captured["pattern.11"]):
        assert pattern.dim() == 4
        assert pattern.shape[3] == captured.metadata.usage.prompt_tokens + step
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))
    assert captured.verify() == []
    folder = tmp_path / "runs" / "demo"
    for file in [*folder.iterdir(), *(folder / "pictures").iterdir()]:
        if file.is_file():
            assert f"\n  {file.relative_to(folder)} " in done.out
            assert file.stat().st_size > 100
    assert run(capsys, "verify", "runs/demo").code == 0
    assert run(capsys, "report", "runs/demo").out.startswith("# Circuit Analysis Data Format: attention_patterns\n")


def test_an_earlier_demo_is_kept(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [json.loads(run(capsys, "demo", "-n", 1, "--json").out)["run"] for _ in range(3)]
    assert runs == ["runs/demo", "runs/demo-2", "runs/demo-3"]
    refused = run(capsys, "demo", "--out", "runs/demo-2")
    assert refused.code == 1
    assert "already holds a run" in refused.err
    assert run(capsys, "demo", "--out", "runs/demo-2", "--overwrite").code == 0


def test_the_main_job_on_the_embedded_model(tmp_path: Path) -> None:
    done = run_process(
        *("capture", "--model", "demo", "--prompt", "Recursion is", "--max-new-tokens", 30),
        *("--hook", "model.layers.2.self_attn:attention:attention_layer_2"),
        *("--hook", "model.layers.10.self_attn:attention:attention_layer_10"),
        *("--analysis", "attention_patterns", "--description", "Analyze attention patterns across layers"),
        *("--out", tmp_path / "run", "--json"),
    )
    assert (done.code, done.err) == (0, "")
    summary = json.loads(done.out)
    assert [hook["records"] for hook in summary["hooks"]] == [30, 30]
    metadata = json.loads((tmp_path / "run" / summary["metadata_file"]).read_text())
    assert metadata["hooks_used"] == 2
    prompt = metadata["usage"]["prompt_tokens"]
    for records in metadata["activations"].values():
        width = records[0]["shape"][-1]
        assert [record["shape"] for record in records] == [[1, prompt, width]] + [[1, 1, width]] * 29
    assert "unknown" not in json.dumps(metadata) + (tmp_path / "run" / summary["report_file"]).read_text()


def test_the_embedded_model_in_other_places(capsys: Capsys) -> None:
    assert "logits" in run(capsys, "components", "demo").out
    captured = nsf.generate("demo", "A loop is", "model.layers.0:residual", max_new_tokens=2)
    assert len(captured["model.layers.0_residual"]) == 2
    assert captured.manifest.model.name_or_path == "demo"
