"""Sparse autoencoders: against their formulas in plain loops, against SAELens where it is installed, and refusals."""

from __future__ import annotations

import json
import math
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from activation_runs import cut, record_of, run_of
from neuroscope_fast.analysis.features import detect_features
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.analysis.sparse_autoencoder import load_sparse_autoencoder
from neuroscope_fast.errors import OptionError, RunError
from safetensors.torch import save_file
from test_analysis_features import check, sequences

Array = np.ndarray[Any, Any]
D_IN, D_SAE, K = 5, 11, 3
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")


def weights_of(architecture: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.7).to(dtype)

    weights = {"W_enc": normal(D_IN, D_SAE), "W_dec": normal(D_SAE, D_IN), "b_dec": normal(D_IN)}
    if architecture == "gated":
        return weights | {"b_gate": normal(D_SAE), "b_mag": normal(D_SAE), "r_mag": normal(D_SAE)}
    weights["b_enc"] = normal(D_SAE)
    return weights | ({"threshold": normal(D_SAE).abs()} if architecture == "jumprelu" else {})


def save(folder: Path, weights: dict[str, torch.Tensor], configuration: dict[str, Any] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    if configuration is not None:
        (folder / "cfg.json").write_text(json.dumps(configuration))
    return folder


def configuration_of(architecture: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32"}
    return found | ({"k": K} if architecture == "topk" else {}) | options


def by_loops(weights: dict[str, torch.Tensor], told: dict[str, Any], x: list[float]) -> tuple[list[float], list[float]]:
    """The features of one position, and what is decoded from them, number by number."""
    w = {name: tensor.double().tolist() for name, tensor in weights.items()}
    kind = told.get("normalize_activations", "none")
    factor, shift = 1.0, 0.0
    if kind == "constant_norm_rescale":
        factor = math.sqrt(sum(v * v for v in x) / len(x))
        x = [v / factor for v in x]
    elif kind == "layer_norm":
        shift = sum(x) / len(x)
        factor = math.sqrt(sum((v - shift) ** 2 for v in x) / (len(x) - 1))
        x = [(v - shift) / (factor + 1e-5) for v in x]
    if told.get("apply_b_dec_to_input", True):
        x = [v - b for v, b in zip(x, w["b_dec"], strict=True)]
    inner = [sum(x[i] * w["W_enc"][i][j] for i in range(len(x))) for j in range(D_SAE)]
    norms = [math.sqrt(sum(v * v for v in row)) for row in w["W_dec"]]
    rescale = told.get("rescale_acts_by_decoder_norm", False)
    features = []
    for j, v in enumerate(inner):
        if told["architecture"] == "gated":
            on = v + w["b_gate"][j] > 0
            features.append(max(v * math.exp(w["r_mag"][j]) + w["b_mag"][j], 0.0) if on else 0.0)
        elif told["architecture"] == "jumprelu":
            features.append(max(v + w["b_enc"][j], 0.0) if v + w["b_enc"][j] > w["threshold"][j] else 0.0)
        else:
            features.append(max(v + w["b_enc"][j], 0.0) * (norms[j] if rescale else 1.0))
    if told["architecture"] == "topk":
        least = sorted(features)[-told["k"]]
        features = [v if v >= least else 0.0 for v in features]
    scaled = [v / norms[j] if rescale else v for j, v in enumerate(features)]
    decoded = [sum(scaled[j] * w["W_dec"][j][i] for j in range(D_SAE)) + w["b_dec"][i] for i in range(len(x))]
    return features, [v * factor + shift for v in decoded]


CASES = [
    pytest.param(
        architecture,
        {"normalize_activations": kind, "apply_b_dec_to_input": apply},
        id=f"{architecture}-{kind}-{apply}",
    )
    for architecture in ("standard", "jumprelu", "topk", "gated")
    for kind in NORMALISATIONS
    for apply in (True, False)
] + [pytest.param("topk", {"rescale_acts_by_decoder_norm": True}, id="topk-rescaled")]


@pytest.mark.parametrize(("architecture", "options"), CASES)
def test_against_loops(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    weights, told = weights_of(architecture), configuration_of(architecture, **options)
    autoencoder = load_sparse_autoencoder(save(tmp_path, weights, told))
    given = torch.randn(17, D_IN, generator=torch.Generator().manual_seed(1)) * 2 + 0.5
    features, decoded = autoencoder.forward(given)
    assert torch.equal(features, autoencoder.encode(given))
    expected = [by_loops(weights, told, row) for row in given.tolist()]
    torch.testing.assert_close(features, torch.tensor([each[0] for each in expected]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded, torch.tensor([each[1] for each in expected]), atol=1e-5, rtol=1e-5)
    assert 0 < int((features > 0).sum()) < features.numel()


@pytest.mark.parametrize(("architecture", "options"), CASES)
def test_against_saelens(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae_lens = pytest.importorskip("sae_lens")
        classes = {"standard": "StandardSAE", "jumprelu": "JumpReLUSAE", "topk": "TopKSAE", "gated": "GatedSAE"}
        kind = getattr(sae_lens, classes[architecture])
        size = {"k": K} if architecture == "topk" else {}
        theirs = kind(getattr(sae_lens, classes[architecture] + "Config")(d_in=D_IN, d_sae=D_SAE, **size, **options))
        theirs.load_state_dict(weights_of(architecture))
        theirs.save_model(tmp_path)
        ours = load_sparse_autoencoder(tmp_path)
        given = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(2)) * 3
        features, decoded = ours.forward(given)
        torch.testing.assert_close(features, theirs.encode(given), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(decoded, theirs(given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    weights, told = weights_of("standard", dtype), configuration_of("standard")
    autoencoder = load_sparse_autoencoder(save(tmp_path, weights, told) / "sae_weights.safetensors")
    given = torch.randn(4, D_IN)
    features = autoencoder.encode(given)
    assert features.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = [by_loops(weights, told, row)[0] for row in given.tolist()]
    torch.testing.assert_close(features.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_configurations_of_older_versions(tmp_path: Path) -> None:
    weights = weights_of("topk")
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": None}
    old |= {"hook_point": "blocks.3.hook_resid_post"}
    autoencoder = load_sparse_autoencoder(save(tmp_path, weights | {"scaling_factor": torch.ones(D_SAE)}, old))
    assert autoencoder.configuration.architecture == "topk"
    assert autoencoder.configuration.k == K
    assert autoencoder.configuration.apply_b_dec_to_input
    assert autoencoder.configuration.hook_name == "blocks.3.hook_resid_post"
    assert (autoencoder.d_in, autoencoder.d_sae) == (D_IN, D_SAE)
    z = load_sparse_autoencoder(save(tmp_path / "z", weights_of("standard"), {"hook_name": "blocks.0.attn.hook_z"}))
    assert z.configuration.reshape_activations == "hook_z"


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated"])
@pytest.mark.parametrize("decoded", [0, 2])
def test_features_of_a_run(architecture: str, decoded: int, tmp_path: Path) -> None:
    told = configuration_of(architecture, metadata={"hook_name": "blocks.0.hook_resid_post"})
    weights = weights_of(architecture)
    autoencoder = load_sparse_autoencoder(save(tmp_path, weights, told))
    prompts = sequences([[9, 6], [7]], D_IN)
    run = run_of(cut(prompts, decoded, component="residual", hook_id="r"))
    found = detect_features(run, autoencoder=autoencoder, top=4).layers[0]
    features = [[autoencoder.encode(torch.tensor(row)).numpy() for row in rows] for rows in prompts]
    check(found, features, top=4, threshold=0.0, skip=1)
    assert (found.unit, found.hook_id) == ("feature", "r")
    given = [row[1:] for rows in prompts for row in rows]
    pairs = [(x, *by_loops(weights, told, x)) for rows in given for x in rows.tolist()]
    error = sum((a - b) ** 2 for x, _, y in pairs for a, b in zip(x, y, strict=True))
    mean = [sum(x[i] for x, _, _ in pairs) / len(pairs) for i in range(D_IN)]
    total = sum((x[i] - mean[i]) ** 2 for x, _, _ in pairs for i in range(D_IN))
    measured = found.reconstruction
    assert measured is not None
    assert measured.positions == len(pairs)
    assert measured.mse == pytest.approx(error / len(pairs) / D_IN, rel=1e-4)
    assert measured.explained_variance == pytest.approx(1 - error / total, rel=1e-4)
    assert measured.l0 == pytest.approx(sum(v > 0 for _, f, _ in pairs for v in f) / len(pairs))
    assert measured.not_finite == 0


def test_a_position_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    autoencoder = load_sparse_autoencoder(save(tmp_path, weights_of("jumprelu"), configuration_of("jumprelu")))
    (rows,) = sequences([[9]], D_IN)
    rows[0][3, 1] = np.nan
    rows[0][5, 0] = -np.inf
    found = detect_features(run_of(cut([rows])), ["h"], autoencoder=autoencoder).layers[0]
    assert found.not_finite.tolist() == [2] * D_SAE
    assert found.reconstruction is not None
    assert (found.reconstruction.positions, found.reconstruction.not_finite) == (6, 2)
    assert math.isfinite(found.reconstruction.mse)
    assert not np.isin(found.top_positions, [3, 5]).any()
    rows[0][:] = np.nan
    nothing = detect_features(run_of(cut([rows])), ["h"], autoencoder=autoencoder)
    assert nothing.layers[0].reconstruction is not None
    assert math.isnan(nothing.layers[0].reconstruction.explained_variance)
    assert nothing.tables()[0].rows[0][3:] == [None, None, None, 8]


def test_outputs_of_heads(tmp_path: Path) -> None:
    z = configuration_of("standard", reshape_activations="hook_z", metadata={"hook_name": "blocks.0.attn.hook_z"})
    weights = weights_of("standard")
    autoencoder = load_sparse_autoencoder(save(tmp_path, weights, z))
    with pytest.raises(RunError, match="does not fit the residual"):
        detect_features(run_of(cut(sequences([[4]], D_IN), component="residual")), ["h"], autoencoder=autoencoder)
    heads = torch.randn(1, 4, 5, 1)
    run = run_of([record_of(heads, component="head_output")])
    found = detect_features(run, autoencoder=autoencoder).layers[0]
    check(found, [[autoencoder.encode(heads[0, :, :, 0]).numpy()]], top=10, threshold=0.0, skip=1)
    turned = run_of([record_of(heads, component="head_output", heads=[1, 0, 2, 3, 4])])
    with pytest.raises(RunError, match=r"holds the heads \[1, 0, 2, 3, 4\]: an autoencoder needs all"):
        detect_features(turned, autoencoder=autoencoder)


def test_which_hook(tmp_path: Path) -> None:
    rows = sequences([[4]], D_IN)
    run = run_of(cut(rows, hook_id="r", component="residual", layer_name="model.layers.2"))

    def hook(name: str | None) -> str:
        told = configuration_of("standard", **({"hook_name": name} if name else {}))
        autoencoder = load_sparse_autoencoder(save(tmp_path, weights_of("standard"), told))
        return detect_features(run, autoencoder=autoencoder).layers[0].hook_id

    assert hook("blocks.2.hook_resid_post") == "r"
    assert hook("blocks.3.hook_resid_pre") == "r"
    with pytest.raises(MissingActivations, match=r"--hook 'model\.layers\.4:mlp'"):
        hook("blocks.4.hook_mlp_out")
    with pytest.raises(
        OptionError, match=r"was trained on blocks\.0\.hook_resid_pre: choose the hook to encode, one of r"
    ):
        hook("blocks.0.hook_resid_pre")
    with pytest.raises(OptionError, match="does not say where it was trained"):
        hook(None)
    autoencoder = load_sparse_autoencoder(tmp_path)
    with pytest.raises(OptionError, match="of one hook, and these are 2"):
        detect_features(run, ["r", "r"], autoencoder=autoencoder)
    wide = run_of(cut(sequences([[4]], 6)))
    with pytest.raises(RunError, match="encodes 5 numbers a position, h holds 6"):
        detect_features(wide, ["h"], autoencoder=autoencoder)


REFUSED = [
    (
        {"architecture": "matching_pursuit"},
        "architecture 'matching_pursuit' is none of standard, topk, jumprelu, gated",
    ),
    ({"architecture": ["x"]}, "architecture"),
    ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu'"),
    ({"normalize_activations": "expected_average_only_in"}, "normalisation 'expected_average_only_in' is none of"),
    ({"normalize_activations": True}, "normalisation True"),
    ({"reshape_activations": "other"}, "reshape_activations is 'other'"),
    ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input is 'yes', neither true nor false"),
    ({"architecture": "topk"}, "topk needs its k"),
    ({"architecture": "topk", "k": 2.5}, "topk needs its k"),
    ({"architecture": "topk", "k": 0}, "k is 0, of 11 features"),
    ({"architecture": "topk", "k": 12}, "k is 12, of 11 features"),
]


@pytest.mark.parametrize(("told", "message"), REFUSED, ids=[str(each[0]) for each in REFUSED])
def test_configurations_that_are_refused(told: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path, weights_of("standard"), told)
    with pytest.raises(RunError, match=message) as error:
        load_sparse_autoencoder(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_that_are_refused(tmp_path: Path) -> None:
    def refused(message: str, weights: dict[str, torch.Tensor], architecture: str = "standard") -> None:
        save(tmp_path, weights, configuration_of(architecture))
        with pytest.raises(RunError, match=message):
            load_sparse_autoencoder(tmp_path)

    good = weights_of("standard")
    refused(
        r"lacks threshold of a jumprelu autoencoder; it has W_dec \[11, 5\], W_enc \[5, 11\], b_dec", good, "jumprelu"
    )
    refused("lacks W_enc, W_dec, b_dec, b_enc", {"other": torch.zeros(1)})
    refused(r"W_dec has the shape \[5, 11\], not \[d_sae, d_in\]", good | {"W_dec": torch.zeros(5, 11)})
    refused(r"W_enc has the shape \[5\]", good | {"W_enc": torch.zeros(5)})
    refused("b_enc is int32, no floating-point", good | {"b_enc": torch.zeros(11, dtype=torch.int32)})
    refused("scaling_factor that is not 1", good | {"scaling_factor": torch.full((11,), 2.0)})


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist: it is where SAELens stores the weights"):
        load_sparse_autoencoder(save(tmp_path / "a", {}, {}).parent / "a" / "missing.safetensors")
    with pytest.raises(RunError, match=r"cfg\.json does not exist: it says which architecture"):
        load_sparse_autoencoder(save(tmp_path / "b", weights_of("standard"), None))
    (tmp_path / "b" / "cfg.json").write_text("[1]")
    with pytest.raises(RunError, match="is not the configuration of a sparse autoencoder"):
        load_sparse_autoencoder(tmp_path / "b")
    pickled = tmp_path / "sae.pt"
    pickled.write_bytes(pickle.dumps({}))
    with pytest.raises(RunError, match=r"is no \.safetensors file"):
        load_sparse_autoencoder(pickled)
    folder = save(tmp_path / "c", weights_of("standard"), configuration_of("standard"))
    whole = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(whole[:-1])
    with pytest.raises(RunError, match="no whole shard"):
        load_sparse_autoencoder(folder)
    (folder / "sae_weights.safetensors").unlink()
    os.mkfifo(folder / "sae_weights.safetensors")
    with pytest.raises(RunError, match="it is a named pipe"):
        load_sparse_autoencoder(folder)
    (folder / "sae_weights.safetensors").unlink()
    (folder / "blob").write_bytes(whole)
    (folder / "sae_weights.safetensors").symlink_to(folder / "blob")  # as in the cache of the Hugging Face Hub
    assert load_sparse_autoencoder(folder).d_sae == D_SAE
