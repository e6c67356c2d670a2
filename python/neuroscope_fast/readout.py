"""The weights that read logits off the residual stream, as a run keeps them in `readout.safetensors`.

    logits = cap(scale * (unembedding.weight @ norm(stream) + unembedding.bias)),   cap(x) = softcap * tanh(x / softcap)

With them the logit lens and direct logit attribution need no model. `model_readout` finds them in a model and writes
the file; this module is what is in it, and reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from .dtypes import BY_NAME
from .errors import RunError
from .shard_file import ShardFile

if TYPE_CHECKING:
    import torch

    from .reader import Run

READOUT_FILE = "readout.safetensors"
STORE_READOUT = "capture it with store_readout=True (--store-readout)"

_DESCRIPTION = "description"
_VERSION = 1
_ALIGNMENT = 4096  # bytes; where the tensors begin


class MissingReadout(RunError):
    """The run was captured without `store_readout`."""


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis. `weight` is what x is multiplied by (of Gemma's norms, 1 + w)."""

    kind: Literal["rms", "layer"]
    """`rms`: x / sqrt(mean(x²) + eps) (Zhang and Sennrich 2019); `layer`: the same of x - mean(x) (Ba et al. 2016)."""
    eps: float
    weight: torch.Tensor | None = None
    """[D]"""
    bias: torch.Tensor | None = None
    """[D]"""


@dataclass(frozen=True)
class Linear:
    """weight @ x + bias."""

    weight: torch.Tensor
    """[out, in]"""
    bias: torch.Tensor | None = None
    """[out]"""


@dataclass(frozen=True)
class LayerReadout:
    """What of one decoder layer says how its parts come into the stream."""

    name: str
    """Its path in the model."""
    attention_norm: Norm | None = None
    """The norm that the attention's output passes before it is added (Gemma 2 and 3, OLMo 2); None: it is added as
    it is."""
    mlp_norm: Norm | None = None
    """The same of the MLP."""
    projection: Linear | None = None
    """The attention's output projection [D, H * Dh], where it was asked for: it reads the heads side by side."""
    heads: int | None = None
    """How many heads it reads."""
    is_sum: bool = False
    """The layer's output is its input plus what its attention and its MLP give, through their norms."""


@dataclass(frozen=True)
class Readout:
    """How a model makes logits from the output of its last decoder layer. Tensors have the model's own dtypes."""

    norm: Norm
    unembedding: Linear
    """weight [V, D]"""
    layers: list[LayerReadout]
    scale: float = 1.0
    softcap: float | None = None
    vocabulary: list[str] = field(default_factory=list)
    """The text of each token id, where a tokenizer was at hand; else empty."""

    @property
    def hidden_size(self) -> int:
        return self.unembedding.weight.shape[1]


_Finite = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class _Norm(msgspec.Struct):
    kind: Literal["rms", "layer"]
    eps: _Finite


class _Layer(msgspec.Struct):
    name: str
    attention_norm: _Norm | None = None
    mlp_norm: _Norm | None = None
    heads: Annotated[int, msgspec.Meta(ge=1)] | None = None
    is_sum: bool = False


class _Description(msgspec.Struct):
    version: int
    norm: _Norm
    layers: list[_Layer]
    scale: float
    softcap: Annotated[float, msgspec.Meta(gt=0)] | None = None
    vocabulary: list[str] = []


def read_readout(run: Run) -> Readout:
    """The readout that the run holds; its tensors lie on the mapped file.

    Raises MissingReadout where it holds none, RunError where the file is torn or not what a capture writes.
    """
    if run.path is None:
        raise MissingReadout("a run in memory holds no readout: give out= a folder and capture with store_readout=True")
    path = run.path / READOUT_FILE
    try:
        file = ShardFile.published(path)
    except FileNotFoundError:
        raise MissingReadout(f"{run.path} holds no {READOUT_FILE}: {STORE_READOUT}, or give the model") from None
    return _Reader(path, file).readout()


class _Reader:
    """Puts the tensors of a file and its description together. Neither is believed without the other."""

    def __init__(self, path: Path, file: ShardFile):
        self._path = path
        self._file = file

    def readout(self) -> Readout:
        entry = self._file.entry(_DESCRIPTION)
        if entry.dtype.name != "uint8" or len(entry.shape) != 1:
            raise self._error("its description is no text")
        try:
            described = msgspec.json.decode(self._file.view(_DESCRIPTION), type=_Description)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._error(f"its description cannot be read: {error}") from error
        if described.version != _VERSION:
            raise self._error(f"its version is {described.version}, and this neuroscope-fast reads {_VERSION}")
        if not (math.isfinite(described.scale) and math.isfinite(described.softcap or 1.0)):
            raise self._error("its scale is no number")
        if not described.layers:
            raise self._error("it names no layers")
        unembedding = self._linear("unembedding")
        vocabulary, hidden = unembedding.weight.shape
        if described.vocabulary and len(described.vocabulary) > vocabulary:
            raise self._error(f"it has {len(described.vocabulary)} token texts for {vocabulary} tokens")
        return Readout(
            norm=self._norm("norm", described.norm, hidden),
            unembedding=unembedding,
            layers=[self._layer(number, layer, hidden) for number, layer in enumerate(described.layers)],
            scale=described.scale,
            softcap=described.softcap,
            vocabulary=described.vocabulary,
        )

    def _layer(self, number: int, layer: _Layer, hidden: int) -> LayerReadout:
        key = f"layers.{number}"
        projection = None
        if f"{key}.projection.weight" in self._file.entries:
            projection = self._linear(f"{key}.projection")
            heads, width = layer.heads, projection.weight.shape[1]
            if heads is None or width % heads or projection.weight.shape[0] != hidden:
                raise self._error(f"{key}.projection {list(projection.weight.shape)} is none of {heads} heads")
        return LayerReadout(
            name=layer.name,
            attention_norm=self._optional_norm(f"{key}.attention_norm", layer.attention_norm, hidden),
            mlp_norm=self._optional_norm(f"{key}.mlp_norm", layer.mlp_norm, hidden),
            projection=projection,
            heads=layer.heads,
            is_sum=layer.is_sum,
        )

    def _optional_norm(self, key: str, norm: _Norm | None, hidden: int) -> Norm | None:
        return None if norm is None else self._norm(key, norm, hidden)

    def _norm(self, key: str, norm: _Norm, hidden: int) -> Norm:
        weight, bias = (self._optional(f"{key}.{name}", [hidden]) for name in ("weight", "bias"))
        return Norm(norm.kind, norm.eps, weight, bias)

    def _linear(self, key: str) -> Linear:
        weight = self._tensor(f"{key}.weight")
        if weight.dim() != 2 or 0 in weight.shape:
            raise self._error(f"{key}.weight is {list(weight.shape)}, and no matrix")
        return Linear(weight, self._optional(f"{key}.bias", [weight.shape[0]]))

    def _optional(self, key: str, shape: list[int]) -> torch.Tensor | None:
        if key not in self._file.entries:
            return None
        tensor = self._tensor(key)
        if list(tensor.shape) != shape:
            raise self._error(f"{key} is {list(tensor.shape)}, not {shape}")
        return tensor

    def _tensor(self, key: str) -> torch.Tensor:
        tensor = self._file.tensor(key)
        if not tensor.is_floating_point():
            raise self._error(f"{key} is {str(tensor.dtype)[6:]}, and no weight")
        return tensor

    def _error(self, problem: str) -> RunError:
        return RunError(f"{self._path} is no readout: {problem}")


def put_readout(readout: Readout, write: Callable[[dict[str, Iterator[bytes | memoryview]]], object]) -> int:
    """Hand the file, by its name, to what writes files in pieces. Gives the CRC-32C of its bytes."""
    from . import _core

    checksum = 0

    def pieces() -> Iterator[bytes | memoryview]:
        nonlocal checksum
        for piece in encode_readout(readout):
            checksum = _core.crc32c(piece, checksum)
            yield piece

    write({READOUT_FILE: pieces()})
    return checksum


def encode_readout(readout: Readout) -> Iterator[bytes | memoryview]:
    """The bytes of `readout.safetensors`, piece by piece: no weight is held twice, those on another device are copied
    one by one.
    """
    import torch

    described = _Description(
        version=_VERSION,
        norm=_Norm(readout.norm.kind, readout.norm.eps),
        layers=[
            _Layer(
                layer.name,
                _described(layer.attention_norm),
                _described(layer.mlp_norm),
                layer.heads,
                layer.is_sum,
            )
            for layer in readout.layers
        ],
        scale=readout.scale,
        softcap=readout.softcap,
        vocabulary=readout.vocabulary,
    )
    text = bytearray(msgspec.json.encode(described))
    tensors = [*_tensors(readout), (_DESCRIPTION, torch.frombuffer(text, dtype=torch.uint8))]
    # Wide elements first: then each tensor begins at a multiple of its element's size.
    tensors.sort(key=lambda pair: -pair[1].dtype.itemsize)
    yield _header(tensors)
    for _, tensor in tensors:
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            yield flat.numpy().data


def _described(norm: Norm | None) -> _Norm | None:
    return None if norm is None else _Norm(norm.kind, norm.eps)


def _tensors(readout: Readout) -> list[tuple[str, torch.Tensor]]:
    found: list[tuple[str, Norm | Linear | None]] = [("norm", readout.norm), ("unembedding", readout.unembedding)]
    for number, layer in enumerate(readout.layers):
        found += [
            (f"layers.{number}.attention_norm", layer.attention_norm),
            (f"layers.{number}.mlp_norm", layer.mlp_norm),
            (f"layers.{number}.projection", layer.projection),
        ]
    return [
        (f"{key}.{name}", tensor)
        for key, part in found
        if part is not None
        for name, tensor in (("weight", part.weight), ("bias", part.bias))
        if tensor is not None
    ]


def _header(tensors: Sequence[tuple[str, torch.Tensor]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "writer": "neuroscope-fast"}}
    at = 0
    for key, tensor in tensors:
        size = tensor.numel() * tensor.dtype.itemsize
        header = BY_NAME[str(tensor.dtype).removeprefix("torch.")].header
        entries[key] = {"dtype": header, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = msgspec.json.encode(entries)
    padded = text.ljust(-(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT - 8)
    return len(padded).to_bytes(8, "little") + padded
