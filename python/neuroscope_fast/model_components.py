"""Where the components of a model are: for each the module to tap, and the side of it that carries the
tensor.

residual    the output of a decoder (or encoder) layer
attention   the output of the attention module; a layer's own is its self-attention
mlp         the output of the feed-forward block, dense or sparse. Where its linear layers stand in the layer
            itself (OPT, BERT), the output of the second, before dropout, residual connection and norm; its
            input is then that of the first
moe         the output of a sparse block
router      the output of a sparse block's router: its logits, one row a token
expert      the output of an expert; where all experts are fused into one module, the weights with which they were
            chosen, one row a token, and beside them which experts these are. A fused module that is not told of the
            choice: its output
neuron      what enters the down projection of a dense MLP
query, key, value, head_output, attention_scores, attention_pattern
            what a module hands to its attention function, gets from it, and what follows from that. Modules of the
            older style, which call none, have at most the pattern, if they return it
layernorm   the output of a norm
embedding   the output of the token embedding
logits      the `logits` of the model's output, after any scaling or soft cap; its input is what enters the
            head

A module counts as what the model makes of it: the attention output of BLOOM and BERT, for instance, has the
residual connection in it, because their attention modules add it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from .attention_modules import function_node, pattern_node
from .head_options import HEAD_COMPONENTS
from .model_ends import output_heads, token_embeddings
from .module_tree import Kind, Node, build_tree, is_cross_attention, mlp_pair, size
from .pass_inputs import parameter_names

# fmt: off
DOWN_PROJECTIONS = (
    "down_proj", "c_proj", "dense_4h_to_h", "wo", "w2", "fc2", "fc_out", "linear2", "linear_2", "lin2",
    "layer_2", "output_linear", "dense_output", "output_dense", "out_proj", "w_out", "w_down", "down",
)
# fmt: on
"""Names of the second linear layer of an MLP, in lower case."""

CHOSEN_EXPERTS = ("top_k_index", "router_indices", "selected_experts", "top_k_indices")
EXPERT_WEIGHTS = ("top_k_weights", "routing_weights")
"""What the parameters of fused experts are called, each [tokens, experts a token]."""

_OF_KIND: dict[Kind | None, tuple[str, ...]] = {
    Kind.ATTENTION: ("attention",),
    Kind.MLP: ("mlp",),
    Kind.MOE: ("moe", "mlp"),
    Kind.ROUTER: ("router",),
    Kind.EXPERTS: ("expert",),
    Kind.EXPERT: ("expert",),
    Kind.NORM: ("layernorm",),
    Kind.EMBEDDING: ("embedding",),
}
# A token mixer that is no attention takes attention's place in its layer: on the user's word it is called so.
_CALLED: dict[Kind | None, tuple[str, ...]] = {**_OF_KIND, Kind.ROTARY: (), Kind.MIXER: ("attention",)}

_ORDER = {
    name: rank
    for rank, name in enumerate(
        (
            "residual",
            "attention",
            *HEAD_COMPONENTS,
            "mlp",
            "moe",
            "router",
            "expert",
            "neuron",
            "layernorm",
            "embedding",
            "logits",
        )
    )
}


@dataclass(frozen=True)
class HeadPart:
    """What is taken of a component that is split by head."""

    heads: tuple[int, ...] | None = None
    """Counted from the front; None: all, in their order."""
    reduction: str | None = None
    top_k: int | None = None
    """Of the reduction `top_k`."""
    is_cross: bool = False
    """Keys and values are those of another sequence."""


@dataclass(frozen=True)
class Place:
    """Where a tensor can be tapped: the first tensor of what a module takes or gives, or a named one."""

    module: str
    """The module's path; "" is the model itself."""
    side: Literal["input", "output", "attention"]
    field: str | None = None
    """The field of a ModelOutput or dict to take, where it is not the first tensor; of `attention` the component."""
    part: HeadPart | None = None
    """Of `attention`: which part of it."""
    argument: int | None = None
    """Of an input with a field, which then is a parameter of the module: its place among the positional ones."""
    indices: Place | None = None
    """Where the numbers are tapped that say what its values are of."""


@dataclass(frozen=True)
class Component:
    """One component at one module."""

    name: str
    node: Node
    output: Place
    """Where its value is tapped: for `neuron` that is the input of a module."""
    input: Place | None
    asked_at: str
    """The layer name under which it is listed: the layer's path, or the module's own."""
    reach: int
    """The depth in the tree from which on a module that holds this one can stand for it."""


class ModelComponents:
    """Every module and every component of a model, as they are when this is made; nothing in it is changed.

    A context manager: the tree of modules goes in circles and would keep the model alive after its last user.
    """

    def __init__(self, model: nn.Module) -> None:
        self.nodes = build_tree(model)
        self.root = self.nodes[""]
        self.model_name = type(model).__name__
        self.at: dict[str, list[Component]] = {}
        """The components at each path."""
        self.parts: dict[str, tuple[str, ...]] = {}
        """The parts of MLPs that have no module of their own, and what they can be called."""
        self._first_paths: dict[int, str] = {}
        for node in self.nodes.values():
            self._first_paths.setdefault(id(node.module), node.path)
        layers = [node for node in self.nodes.values() if node.is_layer]
        for layer in layers:
            self._add("residual", layer, layer.path, layer.depth)
            self._find_in(layer, layer.depth)
        self._find_in(self.root, None if layers else 0)
        embeddings, self.stand_ins = token_embeddings(self.nodes)
        """Modules that only hold the weights of embeddings: the model calls those others in their place."""
        for node in embeddings:
            self._add("embedding", node, node.path, 0)
        for head, owner in output_heads(self.nodes, embeddings):
            output = self.place(head, "output") if owner is None else self.place(owner, "output", "logits")
            self._put(Component("logits", head, output, self.place(head, "input"), head.path, 0))

    def __enter__(self) -> ModelComponents:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.parent = None
            node.children = {}

    def place(self, node: Node, side: Literal["input", "output"], field: str | None = None) -> Place:
        """The place at a module, under the first of its paths where it has several."""
        return Place(self._first_paths[id(node.module)], side, field)

    def under(self, node: Node, name: str) -> list[Component]:
        """The components called `name` at and below `node` that `node` can stand for."""
        found = [component for below in node.walk() for component in self.at.get(below.path, ())]
        return [component for component in found if component.name == name and component.reach <= node.depth]

    def of_module(self, node: Node, name: str) -> Component | None:
        """`name` as a component of exactly this module, if that is what the module is."""
        for component in self.at.get(node.path, ()):
            if component.name == name:
                return component
        if name in _OF_KIND.get(node.kind, ()) and node.path not in self.stand_ins:
            return self.whole(node, name)
        return None

    def part_of(self, node: Node) -> tuple[Node, tuple[str, ...]] | None:
        """The nearest module, from `node` upwards to below its layer, of which it is known what it is, and
        what its parts can be called."""
        for above in node.upwards():
            if above.is_layer or above.holds_layers:
                break
            if above.path in self.parts:
                return above, self.parts[above.path]
            if above.kind in _CALLED:
                return above, _CALLED[above.kind]
        return None

    def whole(self, node: Node, name: str) -> Component:
        """A component that is just what the module takes and gives."""
        return self._whole(name, node, node.path, node.depth)

    def _whole(self, name: str, node: Node, asked_at: str, reach: int) -> Component:
        output, entry = self.place(node, "output"), self.place(node, "input")
        if node.kind is Kind.EXPERTS and name == "expert":
            output = self._choice(node) or output
        return Component(name, node, output, entry, asked_at, reach)

    def _choice(self, experts: Node) -> Place | None:
        """The weights with which a router has chosen, as the experts are given them; None where they are not."""
        given = parameter_names(experts.module)
        found = [next((name for name in names if name in given), None) for names in (CHOSEN_EXPERTS, EXPERT_WEIGHTS)]
        path = self._first_paths[id(experts.module)]
        chosen, weights = (Place(path, "input", name, argument=given.index(name)) if name else None for name in found)
        return replace(weights, indices=chosen) if weights and chosen else None

    def neuron(self, down: Node, asked_at: str, reach: int) -> Component:
        """What enters the down projection `down`."""
        return Component("neuron", down, self.place(down, "input"), None, asked_at, reach)

    def listing(self) -> Iterator[Component]:
        """All components once each: the embedding, layer by layer, what is outside the layers, the logits."""

        def rank(component: Component) -> tuple[int, int, int, int]:
            end = {"embedding": 0, "logits": 2}.get(component.name, 1)
            anchor = component.node.layer or component.node
            return end, anchor.order, _ORDER[component.name], component.node.order

        seen: set[tuple[str, Place]] = set()
        for component in sorted((each for found in self.at.values() for each in found), key=rank):
            key = (component.name, component.output)  # a shared module is met once for each of its paths
            if key not in seen:
                seen.add(key)
                yield component

    def _put(self, component: Component) -> None:
        self.at.setdefault(component.node.path, []).append(component)

    def _add(self, name: str, node: Node, asked_at: str, reach: int) -> None:
        self._put(self._whole(name, node, asked_at, reach))

    def _find_in(self, region: Node, top: int | None) -> None:
        """The components inside a layer, or, for the root, outside all layers. Modules from the depth `top`
        on stand for what they hold; None: each component is asked for by its own name only."""
        nodes = list(_outermost(region))

        def add(name: str, node: Node, among: list[Node], *, outside: bool = True) -> None:
            """`outside`: what holds it stands for it. The layer does so in the listing where it is alone."""
            alone = outside and region.is_layer and among == [node]
            reach = node.depth if top is None or not outside else top
            self._add(name, node, region.path if alone else node.path, reach)
            if name == "mlp" and node.kind is Kind.MLP:
                self._put_neuron(node, region.path if alone else node.path, reach)

        attention = [node for node in nodes if node.kind is Kind.ATTENTION]
        own = [node for node in attention if not is_cross_attention(node)] or attention
        for node in attention:
            if node in own:
                add("attention", node, own)
                self._put_heads(node, region.path if region.is_layer and own == [node] else node.path, top)
            else:  # a layer that attends to itself and to another sequence stands for the former
                reach = _alone_up_to(node, attention)
                self._add("attention", node, node.path, reach)
                self._put_heads(node, node.path, reach)
        dense = [node for node in nodes if node.kind is Kind.MLP]
        sparse = [node for node in nodes if node.kind is Kind.MOE]
        for node in dense or sparse:
            add("mlp", node, dense or sparse)
        for node in sparse:
            add("moe", node, sparse)
        if not dense and not sparse and top is not None:
            self._find_pairs(region, nodes, top)
        inside = [below for node in sparse for below in node.walk() if below is not node]
        inside += [node for node in nodes if node.kind in (Kind.ROUTER, Kind.EXPERTS, Kind.EXPERT)]
        for kind, name in ((Kind.ROUTER, "router"), (Kind.EXPERTS, "expert"), (Kind.EXPERT, "expert")):
            found = [node for node in inside if node.kind is kind]
            for node in found:
                add(name, node, found)
        for node in inside:
            if node.kind is Kind.MLP:  # a shared expert: its block stands for the block's own output
                add("mlp", node, [], outside=False)
            elif node.kind is Kind.EXPERT:
                self._put_neuron(node, node.path, node.depth)
        for node in _region(region):
            if node.kind is Kind.NORM:
                add("layernorm", node, [])

    def _put_heads(self, attention: Node, asked_at: str, reach: int | None) -> None:
        """What an attention module hands to its attention function; of one that calls none the pattern."""
        called = function_node(attention)
        node = called or pattern_node(attention)
        if node is None:
            return
        part = HeadPart(is_cross=is_cross_attention(attention) or is_cross_attention(node))
        for name in HEAD_COMPONENTS if called else ("attention_pattern",):
            place = Place(self._first_paths[id(node.module)], "attention", name, part)
            self._put(Component(name, node, place, None, asked_at, attention.depth if reach is None else reach))

    def _put_neuron(self, mlp: Node, asked_at: str, reach: int) -> None:
        down = down_projection(mlp)
        if down is not None:
            self._put(self.neuron(down, asked_at, reach))

    def _find_pairs(self, region: Node, nodes: list[Node], top: int) -> None:
        for owner in [region, *(node for node in nodes if node.kind is None)]:
            pair = mlp_pair(owner)
            if pair is None:
                continue
            up, down = pair
            asked_at = owner.path or down.path
            places = self.place(down, "output"), self.place(up, "input")
            self._put(Component("mlp", down, *places, asked_at, top))
            self._put(self.neuron(down, asked_at, top))
            for part in up.upwards():
                if part is owner:
                    break
                self.parts[part.path] = ("mlp",)


def down_projection(mlp: Node) -> Node | None:
    """The linear layer that takes an MLP's activations back to the hidden size; None where none can be told.

    It gives the size that the first linear layer takes. Of several that do it is the one with the usual name,
    else the last.
    """
    linear = list(_linear_layers(mlp))
    sizes = [size(node) for node in linear]
    back = [
        node
        for node, shape in zip(linear, sizes, strict=True)
        if sizes[0] is None or shape is None or shape[1] == sizes[0][0]
    ]
    for name in DOWN_PROJECTIONS:
        named = [node for node in back if node.name.lower() == name]
        if len(named) == 1:
            return named[0]
    return back[-1] if back and back[-1] is not linear[0] else None


def _linear_layers(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        if child.kind is Kind.LINEAR:
            yield child
        else:
            yield from _linear_layers(child)


def _region(region: Node) -> Iterator[Node]:
    """The nodes under `region` that are in no layer below it."""
    for child in region.children.values():
        if not child.is_layer:
            yield child
            yield from _region(child)


def _outermost(region: Node) -> Iterator[Node]:
    """The same without what is inside attention modules, MLPs, sparse blocks and experts."""
    for child in region.children.values():
        if not child.is_layer:
            yield child
            if child.kind in (None, Kind.NORM, Kind.EMBEDDING):
                yield from _outermost(child)


def _alone_up_to(node: Node, others: list[Node]) -> int:
    """The depth of the highest module around `node`, below its layer, that holds none of `others`."""
    holders = {id(above) for other in others if other is not node for above in other.upwards()}
    highest = node
    for above in node.upwards():
        if id(above) in holders or above.is_layer or above.parent is None:
            break
        highest = above
    return highest.depth
