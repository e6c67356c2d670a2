"""What a capture refuses, and what it warns of: standing runs, shared folders, wrong options, compiled models."""

from __future__ import annotations

from pathlib import Path

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from torch import nn

RESIDUALS = "model.layers.*:residual"


def test_a_standing_run_is_not_overwritten(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with nsf.capture(llama, RESIDUALS, out=out, analysis="first", dtype="float16"):
        llama(**tokens)
    stored = {entry.name: entry.read_bytes() for entry in out.iterdir()}
    with (
        pytest.raises(nsf.CaptureError, match="already holds a run"),
        nsf.capture(llama, RESIDUALS, out=out),
    ):
        llama(**tokens)
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == stored
    with nsf.capture(llama, "model.layers.0:residual", out=out, overwrite=True):
        llama(**tokens)
    assert {entry.name for entry in out.iterdir()} == {
        "notes.txt",
        "prompts.jsonl",
        "activation_capture.json",
        "activation_capture_format.md",
        "activations-float32-00000.safetensors",
        "activations.safetensors.index.json",
        "capture.json",
    }
    assert (out / "notes.txt").read_text() == "mine"


def test_two_captures_cannot_share_a_folder(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with nsf.capture(llama, RESIDUALS, out=tmp_path / "run") as cap:
        with (
            pytest.raises(nsf.CaptureError, match="another process is writing"),
            nsf.capture(llama, RESIDUALS, out=tmp_path / "run", overwrite=True),
        ):
            pass
        with pytest.warns(nsf.RunIncompleteWarning, match="still being written"):
            assert nsf.open(tmp_path / "run").status == "writing"
        llama(**tokens)
    assert len(cap.result.records) == 2


def test_wrong_use_says_so(llama: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(nsf.CaptureError, match=r"unknown option 'ring'.*ring_bytes"):
        nsf.capture(llama, RESIDUALS, ring=3)
    with pytest.raises(nsf.CaptureError, match="cannot store activations as 'int4'"):
        nsf.capture(llama, RESIDUALS, dtype="int4")
    with pytest.raises(nsf.CaptureError, match="wrong option"):
        nsf.capture(llama, RESIDUALS, overflow="wait")
    with pytest.raises(nsf.CaptureError, match="becomes part of a file name"):
        nsf.capture(llama, RESIDUALS, analysis="../x")
    with pytest.raises(nsf.HookError):
        nsf.capture(llama, "model.layers.9:residual", out=tmp_path / "never")
    assert not (tmp_path / "never").exists()
    for sizes in ({"block_bytes": 1000}, {"ring_bytes": 100}):
        with pytest.raises(nsf.CaptureError, match="block"), nsf.capture(llama, RESIDUALS, **sizes):
            pass
    cap = nsf.capture(llama, RESIDUALS)
    with pytest.raises(nsf.CaptureError, match="has its result once"):
        _ = cap.result
    with pytest.raises(nsf.CaptureError, match="has not started"):
        _ = cap.stats
    with pytest.warns(nsf.CaptureWarning, match="never ran"), cap:
        pass
    with pytest.raises(nsf.CaptureError, match="runs once"), cap:
        pass


def test_a_module_that_never_ran_is_warned_of(llama: nn.Module) -> None:
    with (
        pytest.warns(nsf.CaptureWarning, match=r"model\.layers\.1_mlp: the hooked modules never ran"),
        nsf.capture(llama, ["model.layers.0:mlp", "model.layers.1:mlp"]) as cap,
    ):
        llama.get_submodule("model.layers.0.mlp")(torch.randn(1, 2, architectures.HIDDEN))
    assert cap.result.manifest.warnings == ["hook 'model.layers.1_mlp' captured nothing: its module never ran"]
