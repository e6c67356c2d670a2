"""Finds in a model what reads logits off its residual stream: final norm, unembedding, and what becomes of its output.

Modules are found by their structure. Then the model runs twice on a few tokens: once to see which norm and which
projection get what the layers and the attention give, and once with numbers put in place of the norm's and the head's
outputs, to see what the model does with them. What does not fit is refused; nothing is taken from a class's name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .attachment import Attachment
from .attention_interface import AttentionGiven, Listening
from .errors import ModelError
from .manifest import replace_files
from .model_components import Component, ModelComponents
from .model_ends import output_heads, token_embeddings
from .module_tree import Kind, Node
from .readout import READOUT_FILE, LayerReadout, Linear, Readout, put_readout
from .readout_formulas import factor_between, linear_weights, norm_formula, scale_and_cap

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOKENS = 8


def readout_of(model: nn.Module, layers: Collection[str] | None = None, vocabulary: Sequence[str] = ()) -> Readout:
    """The readout of a decoder model with a language-modelling head.

    Args:
        model: in eval mode. It runs twice on 8 tokens; hooks that others have put on it see that.
        layers: paths of the decoder layers (or of modules in them) whose attention output projection is wanted; None:
            of all layers, where it can be had.
        vocabulary: the text of each token id.

    The tensors are the model's own, not copies. Raises ModelError, in one line, where what the model does between its
    last layer and its logits is not norm, linear, scale and soft cap, or where a weight is quantised or sharded.
    """
    if type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
        model = model._orig_mod  # type: ignore[assignment]
    if model.training:
        raise ModelError("the readout of a model in training mode cannot be told, for its dropout: call model.eval()")
    with ModelComponents(model) as structure, torch.no_grad():
        return _Finder(model, structure, layers).readout(list(vocabulary))


def write_readout(
    model: nn.Module, folder: Path, layers: Collection[str] | None = None, vocabulary: Sequence[str] = ()
) -> Path:
    """`readout_of`, written to `readout.safetensors` in `folder` in one step: gives its path. Raises OSError too."""
    put_readout(readout_of(model, layers, vocabulary), partial(replace_files, folder))
    return folder / READOUT_FILE


class _Finder:
    def __init__(self, model: nn.Module, structure: ModelComponents, wanted: Collection[str] | None):
        self._model = model
        self._structure = structure
        self._wanted = wanted
        nodes = structure.nodes
        embeddings, _ = token_embeddings(nodes)
        heads = output_heads(nodes, embeddings)
        if len(heads) != 1:
            raise ModelError(f"{type(model).__name__} has {len(heads)} heads that make logits; a readout is of one")
        self._head, self._owner = heads[0]
        if not embeddings:
            raise ModelError(f"{type(model).__name__} has no token embedding that could be found")
        table: Any = getattr(embeddings[0].module, "weight", torch.empty(_TOKENS, 0))
        if table.is_meta:
            raise ModelError("the model has no weights: it is on torch's meta device")
        self._tokens = (torch.arange(_TOKENS, device=table.device) % table.shape[0])[None]
        self._stacks: dict[str, list[Node]] = {}
        for node in nodes.values():
            if node.is_layer:
                self._stacks.setdefault(node.parent.path if node.parent else "", []).append(node)

    def readout(self, vocabulary: list[str]) -> Readout:
        seen = _Seen()
        heads: dict[str, torch.Tensor] = {}
        with self._watching(seen, heads):
            logits = self._run()
        layers, norm = self._final_norm(seen)
        unembedding = linear_weights(self._head.module, *seen.call(self._head), f"the head {self._head.path!r}")
        if self._owner is not None and unembedding.weight.shape[0] != logits.shape[-1]:
            raise ModelError(f"the head {self._head.path!r} does not give as many logits as the model")
        scale, softcap = self._after_norm(norm)
        size = unembedding.weight.shape[1]
        formula = norm_formula(norm.module, size, f"the final norm {norm.path!r}")
        found = [self._layer(layer, seen, heads, size) for layer in layers]
        return Readout(formula, unembedding, found, scale, softcap, vocabulary)

    def _run(self) -> torch.Tensor:
        """One pass over a few tokens: the logits."""
        try:
            with torch.random.fork_rng(devices=[]):
                output: Any = self._model(self._tokens)
        except Exception as error:  # a model of any origin, with errors of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(f"the model cannot be run on token ids alone to see its readout: {reason}") from error
        logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise ModelError(f"what {type(self._model).__name__} returns has no logits")
        return logits

    @contextmanager
    def _watching(self, seen: _Seen, heads: dict[str, torch.Tensor]) -> Iterator[None]:
        """`heads` gets what the attention functions of the wanted layers give, [B, S, H, Dh], by module path."""
        attachment = Attachment()
        nodes = self._structure.nodes
        watched = [self._head, *(layer for stack in self._stacks.values() for layer in stack)]
        watched += [node for node in nodes.values() if node.kind is Kind.NORM]
        functions = {}
        for layer in (layer for stack in self._stacks.values() for layer in stack):
            parts = {name: self._part(layer, name) for name in ("attention", "mlp", "head_output")}
            given = [nodes[part.output.module] for name, part in parts.items() if part and name != "head_output"]
            watched += given
            if parts["head_output"] is not None and self._is_wanted(layer):
                functions[id(parts["head_output"].node.module)] = _keep(heads, layer.path)
                watched += [below for node in given for below in node.walk() if below.kind is Kind.LINEAR]
        try:
            for module in {id(node.module): node.module for node in watched}.values():
                attachment.add_hook(module, seen.hook(module))
            if functions:
                attachment.listen(Listening(functions))
            yield
        finally:
            attachment.detach()

    def _part(self, layer: Node, name: str) -> Component | None:
        """The one component called `name` of a layer."""
        found = self._structure.under(layer, name)
        return found[0] if len({component.output for component in found}) == 1 else None

    def _final_norm(self, seen: _Seen) -> tuple[list[Node], Node]:
        """The stack of layers whose output enters a norm outside of all layers, and that norm."""
        norms = [node for node in self._structure.nodes.values() if node.kind is Kind.NORM and node.layer is None]
        for layers in self._stacks.values():
            last = seen.outputs.get(id(layers[-1].module))
            for norm in norms:
                if last is not None and _same(seen.inputs.get(id(norm.module)), last):
                    return layers, norm
        raise ModelError(
            f"{type(self._model).__name__} has no norm that reads the output of its last layer: its logits are not the "
            "unembedding of a normed residual stream"
        )

    def _after_norm(self, norm: Node) -> tuple[float, float | None]:
        """(scale, soft cap): what the model does with its norm's output up to its logits, beside the head itself.

        Numbers stand in for what norm and head give, in float32 and such that every floating-point dtype holds them:
        neither the weights' precision nor the size of what they compute is in the way of an exact look.
        """
        generator = torch.Generator().manual_seed(0)
        normed: list[torch.Tensor] = []
        entered: list[torch.Tensor] = []
        raw: list[torch.Tensor] = []

        def replace_normed(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            normed.append((torch.randint(-127, 128, output.shape, generator=generator) / 16).to(output.device))
            return normed[-1]

        def note_entry(module: nn.Module, args: Any, kwargs: Any) -> Any:
            entered.append(args[0])
            weight: Any = getattr(module, "weight", None)
            return (args[0].to(weight.dtype), *args[1:]), kwargs

        def replace_raw(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            shape = output.shape
            exponents = torch.randint(-10, 9, shape, generator=generator)
            raw.append((torch.randint(-127, 128, shape, generator=generator) * 2.0**exponents).to(output.device))
            return raw[-1]

        attachment = Attachment()
        try:
            attachment.add_hook(norm.module, replace_normed)
            attachment.add_pre_hook(self._head.module, note_entry)
            attachment.add_hook(self._head.module, replace_raw)
            logits = self._run()
        finally:
            attachment.detach()
        if len(normed) != 1 or len(entered) != 1 or entered[0].shape != normed[0].shape:
            raise ModelError(f"the head {self._head.path!r} does not read the final norm {norm.path!r} once a pass")
        before = factor_between(normed[0], entered[0])
        if before is None:
            raise ModelError(
                f"between the final norm {norm.path!r} and the head {self._head.path!r} the model does more than to "
                "multiply by a number"
            )
        after, softcap = (1.0, None) if self._owner is None else scale_and_cap(raw[0], logits)
        return before * after, softcap

    def _layer(self, layer: Node, seen: _Seen, heads: dict[str, torch.Tensor], size: int) -> LayerReadout:
        norms = {name: self._post_norm(layer, name, seen) for name in ("attention", "mlp")}
        is_sum = self._adds_up(layer, norms, seen)
        if not is_sum:
            norms = {}  # the norm is on the way to something else: BLOOM's attention has the stream in its output
        found = {
            name: norm_formula(norm.module, size, f"the norm {norm.path!r}") for name, norm in norms.items() if norm
        }
        projection, count = None, None
        if layer.path in heads:
            given = heads[layer.path]
            count = given.shape[2]
            try:
                projection = self._projection(layer, given, seen)
            except ModelError:
                if self._wanted is not None:
                    raise
        return LayerReadout(layer.path, found.get("attention"), found.get("mlp"), projection, count, is_sum)

    def _post_norm(self, layer: Node, name: str, seen: _Seen) -> Node | None:
        """The norm in the layer that reads what the component gives."""
        part = self._part(layer, name)
        given = seen.given(self._structure.nodes[part.output.module]) if part is not None else None
        norms = (node for node in layer.walk() if node.kind is Kind.NORM)
        return next((norm for norm in norms if _same(seen.inputs.get(id(norm.module)), given)), None)

    def _adds_up(self, layer: Node, norms: dict[str, Node | None], seen: _Seen) -> bool:
        """Whether the layer gives what it takes, and what its parts give, those with a norm after it."""
        before, after = seen.call(layer)
        total = before.double()
        for name, norm in norms.items():
            part = self._part(layer, name)
            node = norm or (None if part is None else self._structure.nodes[part.output.module])
            given = None if node is None else seen.given(node)
            if given is None or given.numel() != before.numel():
                return False
            total = total + given.double().reshape(before.shape).to(before.device)
        unit = torch.finfo(before.dtype).eps / 2  # each of two sums is rounded once
        size = sum(torch.linalg.vector_norm(each.double(), dim=-1) for each in (before, total, after))
        return bool((torch.linalg.vector_norm(after.double() - total, dim=-1) <= (unit + 4e-6) * size).all())

    def _is_wanted(self, layer: Node) -> bool:
        return self._wanted is None or any(
            name == layer.path or name.startswith(f"{layer.path}.") for name in self._wanted
        )

    def _projection(self, layer: Node, given: torch.Tensor, seen: _Seen) -> Linear:
        part = self._part(layer, "attention")
        node = layer if part is None else self._structure.nodes[part.output.module]
        flat = given.flatten(2)
        for below in node.walk():
            entered, left = seen.inputs.get(id(below.module)), seen.outputs.get(id(below.module))
            if below.kind is not Kind.LINEAR or entered is None or left is None:
                continue
            if _same(entered, flat) and _same(left, seen.given(node)):
                return linear_weights(below.module, entered, left, f"the output projection {below.path!r}")
        raise ModelError(
            f"no linear layer of {node.path!r} takes its heads as they are and gives its output: what each head adds "
            "cannot be told; leave head_output out, or store no readout"
        )


class _Seen:
    """What modules took and gave in one pass, by the id of the module; of several calls the last."""

    def __init__(self) -> None:
        self.inputs: dict[int, torch.Tensor] = {}
        self.outputs: dict[int, torch.Tensor] = {}

    def hook(self, module: nn.Module) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            taken, given = _first(args), _first(output if isinstance(output, tuple) else (output,))
            if taken is not None:
                self.inputs[id(module)] = taken.detach().clone()
            if given is not None:
                self.outputs[id(module)] = given.detach().clone()

        return note

    def given(self, node: Node) -> torch.Tensor | None:
        return self.outputs.get(id(node.module))

    def call(self, node: Node) -> tuple[torch.Tensor, torch.Tensor]:
        key = id(node.module)
        if key not in self.inputs or key not in self.outputs:
            raise ModelError(f"{node.path!r} was not called as the model ran")
        return self.inputs[key], self.outputs[key]


def _keep(heads: dict[str, torch.Tensor], path: str) -> Callable[[AttentionGiven], None]:
    def listener(given: AttentionGiven) -> None:
        if given.output.dim() == 4:
            heads[path] = given.output.detach().clone()

    return listener


def _first(values: tuple[Any, ...]) -> torch.Tensor | None:
    return next((value for value in values if isinstance(value, torch.Tensor)), None)


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether both hold the same numbers, on whatever device; the shapes may differ in how they are cut."""
    if one is None or other is None or one.numel() != other.numel() or one.shape[-1] != other.shape[-1]:
        return False
    moved = one.reshape(other.shape).to(other.device, other.dtype)
    return bool(((moved == other) | (moved.isnan() & other.isnan())).all())
