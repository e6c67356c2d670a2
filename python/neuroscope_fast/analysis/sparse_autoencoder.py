"""Sparse autoencoders as SAELens stores them: `sae_weights.safetensors` with `cfg.json` beside it.

What the architectures compute is what `sae_lens/saes/{standard,jumprelu,topk,gated}_sae.py` of SAELens 6 does at
inference, https://github.com/decoderesearch/SAELens. Only safetensors are read, and only regular files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..errors import RunError, one_line
from ..files import read_regular
from ..shard_file import ShardFile

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "sae_weights.safetensors"
CONFIGURATION_FILE = "cfg.json"

# The tensors of each architecture, by the sizes of their axes.
_COMMON = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
_TENSORS: dict[str, dict[str, tuple[str, ...]]] = {
    "standard": {**_COMMON, "b_enc": ("d_sae",)},
    "topk": {**_COMMON, "b_enc": ("d_sae",)},
    "jumprelu": {**_COMMON, "b_enc": ("d_sae",), "threshold": ("d_sae",)},
    "gated": {**_COMMON, "b_gate": ("d_sae",), "b_mag": ("d_sae",), "r_mag": ("d_sae",)},
}
_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
_LAYER_NORM_EPSILON = 1e-5


class SAEConfiguration(NamedTuple):
    """What of `cfg.json` decides what an autoencoder computes. `k` is of `topk` alone. `hook_name`: where it was
    trained, as TransformerLens names it; None where the file does not say.
    """

    architecture: str
    apply_b_dec_to_input: bool
    normalize_activations: str
    reshape_activations: str
    k: int
    rescale_acts_by_decoder_norm: bool
    hook_name: str | None


class SparseAutoencoder:
    """`d_in` activations in, `d_sae` features out, and back; in float32, or float64 where the weights are so."""

    def __init__(self, configuration: SAEConfiguration, weights: Mapping[str, torch.Tensor], name: str):
        import torch

        self.configuration = configuration
        self.name = name
        dtype = torch.float64 if weights["W_enc"].dtype == torch.float64 else torch.float32
        self._weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
        self.dtype = dtype
        self.d_in, self.d_sae = weights["W_enc"].shape
        self._decoder_norms = self._weights["W_dec"].norm(dim=-1)

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """The features [n, d_sae] of activations [n, d_in]. A row that is not all finite gives NaN throughout."""
        return self._encode(self._normalised(activations)[0])

    def forward(self, activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The features [n, d_sae] of activations [n, d_in], and what the decoder makes of them again, [n, d_in]."""
        normalised, factor, shift = self._normalised(activations)
        features = self._encode(normalised)
        scaled = features
        if self.configuration.rescale_acts_by_decoder_norm:
            scaled = features / self._decoder_norms
        decoded = scaled @ self._weights["W_dec"] + self._weights["b_dec"]
        return features, decoded * factor + shift

    def _normalised(self, activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor | float]:
        """The input of the encoder, and the factor and shift that undo the normalisation."""
        given = activations.to(self.dtype)
        kind = self.configuration.normalize_activations
        if kind == "constant_norm_rescale":
            factor = given.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return given / factor, factor, 0.0
        if kind == "layer_norm":
            mean = given.mean(dim=-1, keepdim=True)
            deviation = (given - mean).std(dim=-1, keepdim=True)  # with n - 1, and undone without the epsilon
            return (given - mean) / (deviation + _LAYER_NORM_EPSILON), deviation, mean
        return given, 1.0, 0.0

    def _encode(self, given: torch.Tensor) -> torch.Tensor:
        import torch

        weights, configuration = self._weights, self.configuration
        broken = ~torch.isfinite(given).all(dim=-1)
        if configuration.apply_b_dec_to_input:
            given = given - weights["b_dec"]
        inner = given @ weights["W_enc"]
        if configuration.architecture == "gated":
            magnitude = torch.relu(inner * weights["r_mag"].exp() + weights["b_mag"])
            features = magnitude * (inner + weights["b_gate"] > 0)
        else:
            inner = inner + weights["b_enc"]
            if configuration.architecture == "topk":
                features = self._largest(inner)
            elif configuration.architecture == "jumprelu":
                features = torch.relu(inner) * (inner > weights["threshold"])
            else:
                features = torch.relu(inner)
        features[broken] = torch.nan
        return features

    def _largest(self, inner: torch.Tensor) -> torch.Tensor:
        import torch

        if self.configuration.rescale_acts_by_decoder_norm:
            inner = inner * self._decoder_norms
        values, at = inner.topk(self.configuration.k, dim=-1, sorted=False)
        return torch.zeros_like(inner).scatter_(-1, at, values.relu())


def load_sparse_autoencoder(path: str | os.PathLike[str]) -> SparseAutoencoder:
    """Reads the folder of an autoencoder, or its safetensors file with `cfg.json` beside it.

    Raises RunError where a file is missing or is no such file, a tensor is missing or has another shape, or the
    architecture or normalisation is none that is known here.
    """
    given = Path(path)
    weights_path = given / WEIGHTS_FILE if given.is_dir() else given
    if weights_path.suffix != ".safetensors":
        raise RunError(f"{given} is no .safetensors file: sparse autoencoders are read from no other kind")
    configuration_path = weights_path.with_name(CONFIGURATION_FILE)
    try:
        # A link is followed here: the path is the user's own, and the cache of the Hugging Face Hub is full of them.
        file = ShardFile.published(weights_path.resolve())
    except FileNotFoundError:
        raise RunError(f"{weights_path} does not exist: it is where SAELens stores the weights") from None
    try:
        told = msgspec.json.decode(read_regular(configuration_path.resolve()), type=dict[str, Any])
    except FileNotFoundError:
        raise RunError(f"{configuration_path} does not exist: it says which architecture the weights are of") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{configuration_path} is not the configuration of a sparse autoencoder: {error}") from error
    configuration = _configuration(told, str(configuration_path))
    _need_tensors(file, configuration, str(weights_path))
    weights = {name: file.tensor(name) for name in _TENSORS[configuration.architecture]}
    _need_plain_scaling(file, str(weights_path))
    d_sae = weights["W_enc"].shape[1]
    if configuration.architecture == "topk" and not 1 <= configuration.k <= d_sae:
        raise RunError(f"{configuration_path}: k is {configuration.k}, of {d_sae} features")
    return SparseAutoencoder(configuration, weights, str(given))


def _configuration(told: dict[str, Any], name: str) -> SAEConfiguration:
    """What the file says, in the form of SAELens 6 or the older one."""
    metadata = told.get("metadata")
    hook_name = told.get("hook_name", told.get("hook_point"))
    if hook_name is None and isinstance(metadata, dict):
        hook_name = metadata.get("hook_name")
    old_k = told.get("activation_fn_kwargs")
    old_k = old_k.get("k") if isinstance(old_k, dict) else None
    function = told.get("activation_fn", told.get("activation_fn_str", "relu"))
    architecture = "topk" if function == "topk" else told.get("architecture", "standard")
    if architecture not in tuple(_TENSORS):
        raise RunError(f"{name}: the architecture {one_line(repr(architecture))} is none of {', '.join(_TENSORS)}")
    if function not in ("relu", "topk"):
        raise RunError(f"{name}: the activation function {one_line(repr(function))} is neither relu nor topk")
    normalisation = told.get("normalize_activations") or "none"
    if normalisation not in _NORMALISATIONS:
        raise RunError(
            f"{name}: the normalisation {one_line(repr(normalisation))} is none of {', '.join(_NORMALISATIONS)}; where "
            "its factor can be folded into the weights, do that with SAELens and save them again"
        )
    old_shape = "hook_z" if isinstance(hook_name, str) and "hook_z" in hook_name else "none"
    reshape = told.get("reshape_activations", old_shape)
    if reshape not in ("none", "hook_z"):
        raise RunError(f"{name}: reshape_activations is {one_line(repr(reshape))}, neither none nor hook_z")
    k = told.get("k", old_k) if architecture == "topk" else 0
    if not isinstance(k, int) or isinstance(k, bool):
        raise RunError(f"{name}: topk needs its k, a whole number")
    switches = {
        "apply_b_dec_to_input": told.get("apply_b_dec_to_input", True),
        "rescale_acts_by_decoder_norm": architecture == "topk" and told.get("rescale_acts_by_decoder_norm", False),
    }
    for key, value in switches.items():
        if not isinstance(value, bool):
            raise RunError(f"{name}: {key} is {one_line(repr(value))}, neither true nor false")
    return SAEConfiguration(
        architecture=architecture,
        normalize_activations=normalisation,
        reshape_activations=reshape,
        k=k,
        hook_name=hook_name if isinstance(hook_name, str) else None,
        **switches,
    )


def _need_tensors(file: ShardFile, configuration: SAEConfiguration, name: str) -> None:
    """RunError where a tensor is missing, no floating-point one, or of a shape that does not fit the others."""
    has = ", ".join(f"{key} {list(entry.shape)}" for key, entry in sorted(file.entries.items())[:16]) or "nothing"
    expected = _TENSORS[configuration.architecture]
    lacking = [key for key in expected if key not in file.entries]
    if lacking:
        raise RunError(f"{name} lacks {', '.join(lacking)} of a {configuration.architecture} autoencoder; it has {has}")
    shape = file.entries["W_enc"].shape
    if len(shape) != 2 or 0 in shape:
        raise RunError(f"{name}: W_enc has the shape {list(shape)}, not [d_in, d_sae]")
    sizes = dict(zip(("d_in", "d_sae"), shape, strict=True))
    for key, axes in expected.items():
        entry = file.entries[key]
        if entry.shape != tuple(sizes[axis] for axis in axes):
            raise RunError(f"{name}: {key} has the shape {list(entry.shape)}, not [{', '.join(axes)}]; it has {has}")
        if entry.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
            raise RunError(f"{name}: {key} is {entry.dtype.name}, no floating-point weights")


def _need_plain_scaling(file: ShardFile, name: str) -> None:
    """Older files may hold factors for the features, which SAELens no longer applies; those that are 1 do nothing."""
    for key in ("scaling_factor", "finetuning_scaling_factor"):
        if key in file.entries and not bool((file.tensor(key) == 1).all()):
            raise RunError(f"{name} holds a {key} that is not 1, which is not known here: fold it into the weights")
