"""The tools that capture activations beside this one, each asked for the same tensors in its own best way.

A peer holds a model object of its own with the same weights: nnsight replaces the forwards of what it wraps, and
TransformerLens rebuilds attention on eager matrix products, so neither may share a model with the others, and what a
peer adds is counted from the bare pass of its own object.

On a CPU `tensor.to("cpu")` is the same tensor, not a copy. Whether what a contestant hands over outlives the model's
own tensors is therefore tried (`changed_with_the_model`), and the note of its row is written from what came out.
"""

from __future__ import annotations

import copy
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nobody here waits for a network

import torch
from harness import CheckError, Row, missing
from stack import PlainHooks
from torch import nn

LLAMA_PLACES = ("model.layers.*:residual", "model.layers.*.self_attn:attention", "model.layers.*.mlp:mlp")
"""Three a layer, as `stack.PLACES`."""


def llama(*, layers: int, hidden: int, heads: int, intermediate: int, vocabulary: int, seed: int = 0) -> Any:
    """A Llama with random weights that never ends a text by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def layer_modules(model: Any) -> list[nn.Module]:
    """The modules that LLAMA_PLACES names, in the order in which they finish."""
    return [module for layer in model.model.layers for module in (layer.self_attn, layer.mlp, layer)]


def first_tensor(output: Any) -> torch.Tensor:
    """What a module gives out; attention gives its weights, or None, beside it."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def clones(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[torch.Tensor]:
    """What modules give out while `run` runs, in the order of their calls."""
    kept: list[torch.Tensor] = []
    with PlainHooks(list(modules), lambda _module, _inputs, output: kept.append(first_tensor(output).clone())):
        run()
    return kept


def changed_with_the_model(modules: Sequence[nn.Module], capture: Callable[[], Sequence[torch.Tensor]]) -> str:
    """A row's note on whether what `capture` hands over outlives the model's tensors: these are changed to see it."""
    own: list[torch.Tensor] = []
    with PlainHooks(list(modules), lambda _module, _inputs, output: own.append(first_tensor(output))):
        handed = capture()
    if not own:
        raise CheckError("no module ran")
    before = [tensor.clone() for tensor in handed]
    for tensor in own:
        tensor.add_(1)
    changed = sum(not torch.equal(now, then) for now, then in zip(handed, before, strict=True))
    return f"no copies: {changed} of {len(handed)} tensors changed with the model's own" if changed else ""


def check_values(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = 0.0) -> None:
    """Raises CheckError unless `found` are these tensors, to within `tolerance` of each one's largest value."""
    if len(found) != len(expected):
        raise CheckError(f"{len(found)} tensors, not {len(expected)}")
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise CheckError(f"tensor {number} is {one.dtype} {list(one.shape)}, not {other.dtype} {list(other.shape)}")
        furthest = float((one - other).abs().max()) / max(float(other.abs().max()), 1e-30)
        if not furthest <= tolerance:  # a NaN is wrong too
            raise CheckError(f"tensor {number} is off by {furthest:.1e} of its largest value")


class Peer(ABC):
    """A tool on a model of its own. `modules` compute what it hands over, in that order in every pass."""

    name: str
    way = ""
    """How its `generate` captures every step."""
    tolerance = 0.0
    """How far its values may be from those of cloning hooks on the given model, of a tensor's largest value."""
    modules: list[nn.Module]

    @abstractmethod
    def bare(self, inputs: torch.Tensor) -> object:
        """A forward pass of its own model object that captures nothing."""

    @abstractmethod
    def take(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """A forward pass, and every tensor of it that the tool captured."""

    @abstractmethod
    def generate(self, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """The ids that greedy decoding ends with, prompt included, and what was captured at each step."""

    def note(self, inputs: torch.Tensor) -> str:
        return changed_with_the_model(self.modules, lambda: self.take(inputs))

    def expected(self, model: Any, run: Callable[[], object]) -> list[torch.Tensor]:
        """What it should hand over, from cloning hooks on the given model."""
        return clones(layer_modules(model), run)


class Nnsight(Peer):
    """nnsight's `tracer.cache` over named modules."""

    name = "nnsight"
    way = "one trace of generate"

    def __init__(self, model: nn.Module, modules_of: Callable[[Any], list[nn.Module]] = layer_modules):
        from nnsight import NNsight

        self._model = copy.deepcopy(model)
        self._modules_of = modules_of
        self.modules = modules_of(self._model)
        names = {module: name for name, module in self._model.named_modules()}
        self._paths = [f"model.{names[module]}" for module in self.modules]
        self._wrapped = NNsight(self._model)
        self._generator: Any = None

    def bare(self, inputs: torch.Tensor) -> object:
        return self._model(inputs)

    def take(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        wrapped, paths = self._wrapped, self._paths
        with wrapped.trace(inputs) as tracer:
            cache = tracer.cache(modules=paths)
        return [first_tensor(cache[path].output) for path in paths]

    def generate(self, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """One trace of model.generate: its cache collects every step, and the trace is set up once."""
        if self._generator is None:
            from nnsight import TransformersModel

            with tempfile.TemporaryDirectory() as folder:
                self._generator = TransformersModel(self._model, task="text-generation", tokenizer=_tokenizer(folder))
        generator, paths = self._generator, self._paths
        with generator.generate(ids, max_new_tokens=new_tokens, do_sample=False) as tracer:
            cache = tracer.cache(modules=paths)
            told = tracer.result.save()
        visits = [cache[path].output for path in paths]
        return told, [[first_tensor(output) for output in step] for step in zip(*visits, strict=True)]

    def expected(self, model: Any, run: Callable[[], object]) -> list[torch.Tensor]:
        return clones(self._modules_of(model), run)


class Lens(Peer):
    """TransformerLens's `run_with_cache` on a TransformerBridge."""

    name = "TransformerLens"
    way = "a run_with_cache for each step, the key-value cache handed on"
    tolerance = 1e-4
    """Its PositionEmbeddingsAttentionBridge computes scores, softmax and values apart, where the model calls SDPA."""

    def __init__(self, model: Any):
        from transformer_lens.model_bridge import TransformerBridge
        from transformers.utils import logging

        logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            _tokenizer(folder)
            self._bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        blocks = range(len(self._bridge.blocks))
        self._names = [f"blocks.{n}.{part}" for n in blocks for part in ("attn.hook_out", "mlp.hook_out", "hook_out")]
        self.modules = [module for block in self._bridge.blocks for module in (block.attn, block.mlp, block)]

    def bare(self, inputs: torch.Tensor) -> object:
        return self._bridge(inputs)

    def take(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return self._pass(inputs)[1]

    def _pass(self, inputs: torch.Tensor, **more: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits, cache = self._bridge.run_with_cache(
            inputs, names_filter=self._names, return_cache_object=False, **more
        )  # fmt: skip
        return logits, [cache[name] for name in self._names]

    def generate(self, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """A run_with_cache for each step, with a key-value cache handed from one to the next.

        Its own generate(return_cache=True) runs the whole text once more when all is generated.
        """
        past = _key_value_cache(self._bridge.original_model)
        steps, step_ids = [], ids
        for _ in range(new_tokens):
            logits, taken = self._pass(step_ids, past_key_values=past)
            steps.append(taken)
            step_ids = logits[:, -1:].argmax(-1)
            ids = torch.cat((ids, step_ids), dim=1)
        return ids, steps

    def generate_bare(self, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """The same loop of forward passes that captures nothing."""
        past = _key_value_cache(self._bridge.original_model)
        step_ids = ids
        for _ in range(new_tokens):
            step_ids = self._bridge(step_ids, past_key_values=past)[:, -1:].argmax(-1)
            ids = torch.cat((ids, step_ids), dim=1)
        return ids


class HiddenStates(Peer):
    """Hugging Face's `output_hidden_states=True`: the residual stream alone."""

    name = "output_hidden_states"
    only = "the residual stream alone"

    def __init__(self, model: Any):
        self._model = copy.deepcopy(model)
        self.modules = self._stream(self._model)

    @staticmethod
    def _stream(model: Any) -> list[nn.Module]:
        """It hands over the embeddings, then each layer's output; the last one normalised."""
        inner = model.model
        return [inner.embed_tokens, *inner.layers[:-1], inner.norm]

    def bare(self, inputs: torch.Tensor) -> object:
        return self._model(inputs)

    def take(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return list(self._model(inputs, output_hidden_states=True).hidden_states)

    def generate(self, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        told = self._model.generate(
            ids, max_new_tokens=new_tokens, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
        )
        return told.sequences, [list(step) for step in told.hidden_states]

    def note(self, inputs: torch.Tensor) -> str:
        told = super().note(inputs)
        return f"{len(self.modules)} tensors, {self.only}" + (f"; {told}" if told else "")

    def expected(self, model: Any, run: Callable[[], object]) -> list[torch.Tensor]:
        return clones(self._stream(model), run)


def invite(makers: Sequence[tuple[str, Callable[[], Peer]]]) -> tuple[list[Peer], list[Row]]:
    """The peers that are installed, and rows that say so of the rest."""
    peers, absent = [], []
    for name, make in makers:
        try:
            peers.append(make())
        except ModuleNotFoundError as error:
            absent.append(missing(name, f"not installed: no module named {error.name!r}"))
    return peers, absent


def _tokenizer(folder: str) -> Any:
    """A tokenizer of numbers, saved to `folder`: the tools insist on one, though all are given token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"0": 0, "1": 1, "2": 2}, unk_token="0"))
    named = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", pad_token="0", bos_token="1", eos_token="2")
    named.save_pretrained(folder)
    return named


def _key_value_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
