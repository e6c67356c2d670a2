"""The readout: found in models, written into a run bit by bit, and read with care."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import architectures
import command_line
import flow_runs
import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from conftest import hook_state
from neuroscope_fast.analysis.logits import logits_of
from neuroscope_fast.errors import ModelError, OptionError, RunError
from neuroscope_fast.model_readout import readout_of, write_readout
from neuroscope_fast.readout import READOUT_FILE, MissingReadout, Norm, encode_readout, read_readout
from neuroscope_fast.readout_formulas import factor_between, linear_weights, norm_formula, scale_and_cap
from safetensors.torch import load_file, save_file
from torch import nn

HOOKS = ["model.layers.*:residual", "model.layers.*:head_output"]


def before_the_norm(model: Any, ids: torch.Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What leaves the last layer and the model's logits, [T, D] and [T, V], by torch's own hook."""
    seen: list[torch.Tensor] = []
    readout = readout_of(model)
    handle = model.get_submodule(readout.layers[-1].name).register_forward_hook(
        lambda _module, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    logits = model(ids, use_cache=False).logits
    handle.remove()
    return seen[0][0].float().numpy(), logits[0].float().numpy()


@pytest.mark.parametrize(
    "name",
    [*(each for each in architectures.ARCHITECTURES if each not in ("bert", "t5")), "olmo2", "granite", "cohere"],
)
def test_it_reads_the_logits_off_the_stream(name: str) -> None:
    model = flow_runs.build(name)
    before = hook_state(model)
    stream, logits = before_the_norm(model, architectures.inputs("llama")["input_ids"])
    found = logits_of(readout_of(model), stream).numpy()
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())
    assert hook_state(model) == before


def test_what_becomes_of_the_heads_output() -> None:
    assert readout_of(flow_runs.build("gemma2")).softcap == pytest.approx(30.0)
    assert readout_of(flow_runs.build("gemma2")).scale == 1.0
    assert readout_of(flow_runs.build("granite")).scale == pytest.approx(1 / 6, rel=1e-6)
    assert readout_of(flow_runs.build("granite").to(torch.bfloat16)).scale == pytest.approx(1 / 6, rel=1e-6)
    assert readout_of(flow_runs.build("cohere")).scale == 0.25
    assert readout_of(flow_runs.build("llama")).softcap is None


def test_norms_behind_the_sublayers_and_sums() -> None:
    for name, behind, is_sum in (
        ("llama", False, True),
        ("gemma2", True, True),
        ("olmo2", True, True),
        ("gpt_neox", False, True),
        ("opt", False, True),
        ("bloom", False, False),  # its attention has the stream in its output
        ("granite", False, False),  # what is added is multiplied
    ):
        layer = readout_of(flow_runs.build(name)).layers[1]
        assert (layer.attention_norm is not None, layer.mlp_norm is not None, layer.is_sum) == (behind, behind, is_sum)


def test_gemmas_weights_are_those_that_are_applied() -> None:
    model: Any = flow_runs.build("gemma2").to(torch.bfloat16)
    weight = readout_of(model).norm.weight
    assert weight is not None
    assert weight.dtype == torch.float32
    assert torch.equal(weight, 1 + model.model.norm.weight.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_what_is_written_is_read_bit_by_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model: Any = flow_runs.build(name).to(dtype)
    vocabulary = ["a", " b", "\u2581", "\n", "", "\ufffd"]
    path = write_readout(model, tmp_path, vocabulary=vocabulary)
    found = read_readout(in_folder(tmp_path))
    expected = readout_of(model)
    assert found.vocabulary == vocabulary
    assert torch.equal(found.unembedding.weight, model.lm_head.weight)
    assert found.unembedding.weight.dtype == dtype
    assert (found.norm.kind, found.norm.eps, found.scale, found.softcap) == (
        expected.norm.kind,
        expected.norm.eps,
        expected.scale,
        expected.softcap,
    )
    for one, two in zip(found.layers, expected.layers, strict=True):
        assert (one.name, one.heads, one.is_sum) == (two.name, two.heads, two.is_sum)
        assert one.projection is not None
        assert two.projection is not None
        assert torch.equal(one.projection.weight, two.projection.weight)
        assert one.projection.weight.dtype == dtype
    assert "unembedding.weight" in load_file(path)  # the library of the format reads it too


def in_folder(folder: Path) -> nsf.Run:
    """A run of which nothing is there but its folder."""
    metadata = nsf.records.ActivationCapture(
        demo_type="activation_capture", timestamp="", generated_text="", activations={}, usage=nsf.records.Usage(),
        hook_configurations=[], generations=[], total_hooks=0,
    )  # fmt: skip
    manifest = nsf.manifest.Manifest(status="complete", created="", metadata_file="activation_capture.json")
    return nsf.Run(metadata, manifest, nsf.reader.MemorySource({}), folder)


def test_heads_of_the_layers_that_were_asked_for(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    assert [each.projection is not None for each in readout_of(model, []).layers] == [False, False]
    run, _ = flow_runs.capture(model, tmp_path / "run", ["model.layers.1:head_output", "model.layers.0:residual"])
    assert [each.projection is not None for each in read_readout(run).layers] == [False, True]
    norms: Any = {"layer_name": "model.layers.1", "component": "head_output", "reduction": "head_norm"}
    run, _ = flow_runs.capture(model, tmp_path / "norms", [norms])
    assert [each.projection is not None for each in read_readout(run).layers] == [False, False]


def test_a_capture_keeps_it_and_runs_as_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hooks = ["model.layers.*:residual"]
    plain = nsf.generate("demo", "Recursion is", hooks, tmp_path / "plain", max_new_tokens=3)
    run = nsf.generate("demo", "Recursion is", hooks, tmp_path / "run", max_new_tokens=3, store_readout=True)
    assert run.prompts == plain.prompts
    assert [record.shape for record in run.records] == [record.shape for record in plain.records]
    assert run.metadata.usage == plain.metadata.usage
    for hook_id in plain:
        for one, two in zip(run[hook_id], plain[hook_id], strict=True):
            assert torch.equal(one, two)
    readout = read_readout(nsf.open(tmp_path / "run"))
    _, tokenizer = nsf.demo.load()
    assert len(readout.vocabulary) == len(tokenizer)
    text = run.prompts[0].texts[0]
    assert [readout.vocabulary[token] for token in text.token_ids] == text.tokens
    assert run.verify() == []
    with pytest.raises(MissingReadout, match="store-readout"):
        read_readout(plain)
    code, _, error = command_line.run(
        capsys, "capture", "-m", "demo", "-p", "Recursion is", "--hook", "model.layers.0:residual", "-n", 2,
        "--store-readout", "-o", tmp_path / "line",
    )  # fmt: skip
    assert code == 0, error
    assert (tmp_path / "line" / READOUT_FILE).is_file()
    again = nsf.generate("demo", "Recursion is", hooks, tmp_path / "line", max_new_tokens=1, overwrite=True)
    assert again.status == "complete"
    assert not (tmp_path / "line" / READOUT_FILE).exists()  # that of the run before does not stay


def test_verify_finds_every_kind_of_damage(tmp_path: Path) -> None:
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", HOOKS)
    path = tmp_path / "run" / READOUT_FILE
    assert run.verify() == []
    data = bytearray(path.read_bytes())
    for at in (20, len(data) // 2, len(data) - 1):  # its header too
        data[at] ^= 1
        path.write_bytes(data)
        (bad,) = nsf.open(tmp_path / "run").verify()
        assert (bad.file, bad.key) == (READOUT_FILE, "")
        assert "its checksum is" in bad.reason
        data[at] ^= 1
    path.unlink()
    (bad,) = nsf.open(tmp_path / "run").verify()
    assert "is missing" in bad.reason
    path.symlink_to(tmp_path / "elsewhere")
    (bad,) = nsf.open(tmp_path / "run").verify()
    assert "symbolic link" in bad.reason


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model: Any = flow_runs.build("llama")
    model.train()
    cap = nsf.capture(model, HOOKS, tmp_path / "run", store_readout=True)
    before = hook_state(model)
    with pytest.raises(ModelError, match=r"training mode"), cap:
        pass
    assert list((tmp_path / "run").iterdir()) == []
    assert hook_state(model) == before
    with pytest.raises(OptionError, match="give out the path of a folder"):
        nsf.capture(model, HOOKS, store_readout=True)


@pytest.mark.parametrize("again", [True, False])
def test_a_resumed_run_keeps_it(tmp_path: Path, again: bool) -> None:
    model = flow_runs.build("llama")
    ids = architectures.inputs("llama")["input_ids"]
    with suppress(KeyboardInterrupt), nsf.capture(model, HOOKS, tmp_path / "run", store_readout=True) as cap:
        model(ids)
        cap.next_prompt()
        raise KeyboardInterrupt
    assert cap.result.status == "interrupted"
    with nsf.capture(model, HOOKS, tmp_path / "run", resume=True, store_readout=again) as cap:
        model(ids)
    run = nsf.open(tmp_path / "run")
    assert run.status == "complete"
    assert run.verify() == []
    assert list(run.manifest.file_checksums) == [READOUT_FILE]
    assert read_readout(run).layers[0].projection is not None


class Scaled(nn.Module):
    """A norm of neither kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.weight * values / values.abs().amax(-1, keepdim=True)


def test_norm_formulas() -> None:
    layer = nn.LayerNorm(6, eps=1e-3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    found = norm_formula(layer, 6, "x")
    assert (found.kind, found.eps, found.weight is not None, found.bias is not None) == ("layer", 1e-3, True, True)
    assert found.weight is not None
    assert torch.equal(found.weight, layer.weight)
    rms = nn.RMSNorm(6, eps=1e-2)
    nn.init.normal_(rms.weight)
    assert norm_formula(rms, 6, "x").kind == "rms"
    assert norm_formula(nn.LayerNorm(6, elementwise_affine=False), 6, "x") == Norm("layer", 1e-5)
    assert norm_formula(nn.LayerNorm(1), 1, "x").kind == "layer"
    with pytest.raises(ModelError, match=r"the norm 'n' \(Scaled\) computes neither RMSNorm nor LayerNorm"):
        norm_formula(Scaled(), 6, "the norm 'n'")
    with pytest.raises(ModelError, match="cannot be tried as a norm"):
        norm_formula(nn.Linear(5, 6), 6, "the norm 'n'")


def test_factors_and_caps() -> None:
    raw = torch.linspace(-1000, 1000, 4001)
    assert scale_and_cap(raw, raw) == (1.0, None)
    assert scale_and_cap(raw, raw / 6)[0] == pytest.approx(1 / 6, rel=1e-6)
    for scale, cap in ((1.0, 30.0), (0.5, 50.0), (2.0, 15.0)):
        assert scale_and_cap(raw, cap * torch.tanh(scale * raw / cap)) == pytest.approx((scale, cap), rel=1e-5)
    for changed in (raw.square(), raw + 1, raw.clamp(-30, 30), raw[:5], raw * 0, raw * math.nan):
        with pytest.raises(ModelError, match="is no factor and no soft cap"):
            scale_and_cap(raw, changed)
    assert factor_between(raw, raw * 3 + 1) is None


class Packed(nn.Linear):
    """A linear layer whose weight is not what it multiplies with."""

    def __init__(self, linear: nn.Linear, weight: torch.Tensor):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.held = linear.weight
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values @ self.held.T


@pytest.mark.parametrize("broken", [torch.zeros(101, 48, dtype=torch.int8), torch.zeros(101, 48), torch.zeros(101, 24)])
def test_quantised_and_adapted_weights_are_refused(broken: torch.Tensor) -> None:
    model: Any = flow_runs.build("llama")
    model.lm_head = Packed(model.lm_head, broken)
    with pytest.raises(ModelError, match=r"the head 'lm_head' \(Packed\).* no plain floating-point weight"):
        readout_of(model)
    given = torch.randn(2, 48)
    with pytest.raises(ModelError, match="no plain floating-point weight"):
        linear_weights(model.lm_head, given, model.lm_head(given), "it")


@pytest.mark.parametrize(
    ("name", "reason"), [("bert", "no norm that reads"), ("t5", "cannot be run on token ids alone")]
)
def test_models_without_such_a_readout_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        readout_of(architectures.build(name))


def test_a_head_that_reads_something_else_is_refused() -> None:
    model: Any = flow_runs.build("llama")

    class Twisted(nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return super().forward(values.flip(-1))

    head = Twisted(48, 101, bias=False)
    model.lm_head = head
    with pytest.raises(ModelError, match="does not compute its weight times its input"):
        readout_of(model)


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = architectures._BUILDERS["llama"]().eval()
    with pytest.raises(ModelError, match="meta device"):
        readout_of(model)


def parts(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = load_file(folder / READOUT_FILE)
    return tensors, json.loads(bytes(tensors["description"].tolist()))


def put(folder: Path, tensors: dict[str, torch.Tensor], described: Any) -> None:
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    save_file({**tensors, "description": torch.tensor(list(text), dtype=torch.uint8)}, folder / READOUT_FILE)


CHANGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "version": (lambda _, told: told.update(version=2), "its version is 2"),
    "kind": (lambda _, told: told["norm"].update(kind="batch"), "description cannot be read"),
    "eps": (lambda _, told: told["norm"].update(eps=-1), "description cannot be read"),
    "scale": (lambda _, told: told.update(scale=1e999), "is no"),
    "cap": (lambda _, told: told.update(softcap=0), "description cannot be read"),
    "vocabulary": (lambda _, told: told.update(vocabulary=["a"] * 500), "500 token texts for 101 tokens"),
    "heads": (lambda _, told: told["layers"][0].update(heads=5), r"projection \[48, 48\] is none of 5 heads"),
    "layers": (lambda _, told: told.update(layers=[]), "no layers"),
    "no head": (lambda given, _: given.pop("unembedding.weight"), "holds no tensor 'unembedding.weight'"),
    "a vector": (lambda given, _: given.update({"unembedding.weight": torch.ones(4)}), r"is \[4\], and no matrix"),
    "nothing": (lambda given, _: given.update({"unembedding.weight": torch.ones(0, 48)}), "and no matrix"),
    "integers": (
        lambda given, _: given.update({"unembedding.weight": torch.ones(101, 48, dtype=torch.int64)}),
        "int64, and no weight",
    ),
    "norm": (lambda given, _: given.update({"norm.weight": torch.ones(7)}), r"norm.weight is \[7\], not \[48\]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_no_capture_writes_is_refused(tmp_path: Path, change: str) -> None:
    write_readout(flow_runs.build("llama"), tmp_path)
    tensors, described = parts(tmp_path)
    make, message = CHANGES[change]
    make(tensors, described)
    put(tmp_path, tensors, described)
    with pytest.raises(RunError, match=message):
        read_readout(in_folder(tmp_path))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_description_that_is_none(tmp_path: Path, text: bytes) -> None:
    write_readout(flow_runs.build("llama"), tmp_path)
    tensors, _ = parts(tmp_path)
    put(tmp_path, tensors, text)
    with pytest.raises(RunError, match="description cannot be read"):
        read_readout(in_folder(tmp_path))
    del tensors["description"]
    save_file({**tensors, "description": torch.ones(3)}, tmp_path / READOUT_FILE)
    with pytest.raises(RunError, match="its description is no text"):
        read_readout(in_folder(tmp_path))


def test_what_stands_in_place_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / READOUT_FILE
    run = in_folder(tmp_path)
    os.mkfifo(path)
    with pytest.raises(RunError, match="named pipe"):
        read_readout(run)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match="it is a folder"):
        read_readout(run)
    path.rmdir()
    other = tmp_path / "other"
    other.mkdir()
    write_readout(flow_runs.build("llama"), other)
    path.symlink_to(other / READOUT_FILE)
    with pytest.raises(RunError, match="symbolic link"):
        read_readout(run)
    path.unlink()
    data = (other / READOUT_FILE).read_bytes()
    for size in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(RunError, match="is no whole shard"):
            read_readout(run)


def test_writing_takes_the_place_of_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    (tmp_path / READOUT_FILE).symlink_to(kept)
    write_readout(flow_runs.build("llama"), tmp_path)
    assert kept.read_text() == "mine"
    assert not (tmp_path / READOUT_FILE).is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", READOUT_FILE]


def test_pieces_that_cannot_be_made_leave_no_file(tmp_path: Path) -> None:
    readout = readout_of(flow_runs.build("llama"))

    def pieces() -> Any:
        yield from list(encode_readout(readout))[:2]
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="gone"):
        nsf.manifest.replace_files(tmp_path, {READOUT_FILE: pieces()})
    assert list(tmp_path.iterdir()) == []
