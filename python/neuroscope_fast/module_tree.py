"""The modules of a model as a tree, each with what it is: an attention module, an MLP, a norm, a layer, …

What a module is follows from its own structure, from its class's name and from the name of the attribute that
holds it, never from a list of architectures: the names below are those that the field uses over and over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

from torch import nn


class Kind(Enum):
    """What a module is by itself. Modules that are none of these (activations, wrappers, layers) have no
    kind."""

    ATTENTION = "attention module"
    MIXER = "token mixer"  # one that is no attention: state-space models and the like
    MLP = "MLP"
    MOE = "sparse block"
    ROUTER = "router"
    EXPERTS = "experts module"  # all experts of a sparse block, fused into one module
    EXPERT = "expert"
    NORM = "norm"
    EMBEDDING = "embedding module"
    LINEAR = "linear layer"
    ROTARY = "rotary embedding"


# Names of attributes, in lower case.
# fmt: off
ATTENTION_NAMES = frozenset({
    "attention", "attn", "self_attn", "self_attention", "selfattention", "rel_attn", "linear_attn", "mha",
    "multihead_attn", "encdecattention", "encoder_attn", "cross_attn", "crossattention", "cross_attention",
})
MLP_NAMES = frozenset({
    "mlp", "mlp_block", "shared_mlp", "residual_mlp", "ffn", "ff", "feed_forward", "feedforward",
    "densereludense", "shared_expert", "shared_experts", "block_sparse_moe", "sparse_moe", "moe",
})
# fmt: on
MIXER_NAMES = frozenset({"mixer", "token_mixer", "mamba", "ssm", "temporal_block"})
ROUTER_NAMES = frozenset({"router", "gate", "gating", "wg"})
# The linear layers of an MLP that stand in the layer itself: (up projection, down projection).
MLP_PAIRS = (
    ("fc1", "fc2"),
    ("linear1", "linear2"),
    ("lin1", "lin2"),
    ("ff1", "ff2"),
    ("ffn", "ffn_output"),
    ("intermediate.dense", "output.dense"),
)
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|multihead_attn", re.IGNORECASE)

_NORM_CLASS = re.compile(r"Norm(?!al)")
_ROTARY_CLASS = re.compile(r"Rotary|R[oO]PE|Rope")
_ATTENTION_CLASS = re.compile(r"Attention|Attn")
_MLP_CLASS = re.compile(r"MLP|Mlp|Feed_?[Ff]or?ward|FFN|DenseActDense|DenseGatedActDense|SwiGLU|GEGLU")
_MOE_CLASS = re.compile(r"MoE|MOE|SparseMoe|MoeBlock|SparseMLP|MixtureOfExperts")
_LAYER_CLASS = re.compile(r"(Decoder|Encoder|Transformer)(Layer|Block)$")
_BLOCK_CLASS = re.compile(r"(Layer|Block)\d*$")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class Node:
    """One module at one path. A module that a model holds under several paths has a node for each."""

    __slots__ = (
        "children",
        "depth",
        "holds_layers",
        "is_layer",
        "kind",
        "module",
        "name",
        "order",
        "parent",
        "path",
    )

    def __init__(self, module: nn.Module, name: str, parent: Node | None, order: int) -> None:
        self.module = module
        self.name = name
        self.parent = parent
        self.path: str = f"{parent.path}.{name}" if parent is not None and parent.path else name
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.order = order
        self.children: dict[str, Node] = {}
        self.kind: Kind | None = None
        self.is_layer = False
        """A decoder or encoder layer: the residual stream enters and leaves it."""
        self.holds_layers = False

    @property
    def class_name(self) -> str:
        return type(self.module).__name__

    @property
    def runs(self) -> bool:
        """False for containers such as ModuleList, which have no forward and so never call a hook."""
        return _runs(type(self.module))

    @property
    def layer(self) -> Node | None:
        """The layer that the module is, or in which it stands."""
        return next((node for node in self.upwards() if node.is_layer), None)

    def upwards(self) -> Iterator[Node]:
        """The node itself, its parent, and so on up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def walk(self) -> Iterator[Node]:
        """The node itself and all nodes under it, parents first, in the order of the modules."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def get(self, path: str) -> Node | None:
        """The node at `path` below this one."""
        node: Node | None = self
        for name in path.split("."):
            node = node.children.get(name) if node is not None else None
        return node


def build_tree(model: nn.Module) -> dict[str, Node]:
    """All nodes of `model` by path: the root "" first, then as `named_modules(remove_duplicate=False)` has
    them."""
    nodes: dict[str, Node] = {}
    _add(Node(model, "", None, 0), nodes, set())
    _find_layers(nodes[""])
    return nodes


def size(node: Node) -> tuple[int, int] | None:
    """(input size, output size) of a linear layer in any of its guises, or None for other modules.

    Linear layers say it as attributes: torch's, PEFT's and most quantisation libraries' as `in_features` and
    `out_features`, transformers' Conv1D as `nx` and `nf`.
    """
    attributes = vars(node.module)  # not getattr: a miss there costs an exception
    for names in (("in_features", "out_features"), ("nx", "nf"), ("infeatures", "outfeatures")):
        taken, given = attributes.get(names[0]), attributes.get(names[1])
        if isinstance(taken, int) and isinstance(given, int):
            return taken, given
    return None


def mlp_pair(node: Node) -> tuple[Node, Node] | None:
    """(up projection, down projection) of an MLP whose linear layers stand in `node` itself (OPT, BERT,
    …)."""
    for up_path, down_path in MLP_PAIRS:
        up, down = node.get(up_path), node.get(down_path)
        if up is None or down is None:
            continue
        up_size, down_size = size(up), size(down)
        if up_size and down_size and up_size == down_size[::-1]:
            return up, down
    return None


def is_cross_attention(node: Node) -> bool:
    """Whether an attention module reads another sequence, by its name (`encoder_attn`, `EncDecAttention`,
    …)."""
    return bool(_CROSS.search(node.name) or "Cross" in node.class_name)


def _runs(module_class: type[nn.Module]) -> bool:
    return module_class.forward is not nn.Module.forward


def _add(node: Node, nodes: dict[str, Node], above: set[int]) -> None:
    nodes[node.path] = node
    above.add(id(node.module))
    for name, child in node.module._modules.items():
        if child is not None and id(child) not in above:  # one that holds its own parent would go on for ever
            node.children[name] = Node(child, name, node, len(nodes))
            _add(node.children[name], nodes, above)
    above.discard(id(node.module))
    node.kind = _kind(node)
    _name_sparse_parts(node)


def _kind(node: Node) -> Kind | None:
    """What the module is; its children are known already."""
    module = node.module
    by_class = _kind_of_class(type(module))
    if by_class in (Kind.EMBEDDING, Kind.ROTARY):
        return by_class
    if by_class is Kind.NORM and not any(child.children or child.kind for child in node.children.values()):
        return by_class
    if size(node) is not None:
        return Kind.LINEAR
    if not node.runs or not (node.children or module._parameters):  # a container, a dropout, an activation
        return None
    name = node.name.lower()
    kinds = {child.kind for child in node.children.values()}
    if not kinds & {Kind.ATTENTION, Kind.MIXER} and _is_sparse(node):
        return Kind.MOE
    if name in ATTENTION_NAMES:
        return Kind.ATTENTION
    # By its class alone only if it is no wrapper around one, with its norm and its residual connection.
    wraps = bool(kinds & {Kind.MLP, Kind.MOE}) or (Kind.LINEAR not in kinds and _holds_attention(node))
    if by_class is Kind.ATTENTION and not wraps:
        return Kind.ATTENTION
    if name in MLP_NAMES or (by_class is Kind.MLP and not _holds_attention(node)):
        return Kind.MLP
    return Kind.MIXER if name in MIXER_NAMES else None


def _kind_of_class(module_class: type[nn.Module]) -> Kind | None:
    name = module_class.__name__
    if _LAYER_CLASS.search(name):
        return None
    if issubclass(module_class, _NORMS) or _NORM_CLASS.search(name):
        return Kind.NORM
    if _ROTARY_CLASS.search(name):
        return Kind.ROTARY
    if "Embedding" in name and _runs(module_class):
        return Kind.EMBEDDING
    if _ATTENTION_CLASS.search(name):
        return Kind.ATTENTION
    return Kind.MLP if _MLP_CLASS.search(name) else None


def _holds_attention(node: Node) -> bool:
    return any(below.kind is Kind.ATTENTION for below in node.walk())


def _is_sparse(node: Node) -> bool:
    router = any(name.lower() in ROUTER_NAMES for name in node.children)
    return router and ("experts" in node.children or bool(_MOE_CLASS.search(node.class_name)))


def _name_sparse_parts(node: Node) -> None:
    """Name the router and the experts in a sparse block, or in a layer that holds them without such a
    block."""
    experts = node.children.get("experts")
    if node.kind is not Kind.MOE and experts is None:
        return
    for name, child in node.children.items():
        if name.lower() in ROUTER_NAMES:
            child.kind = Kind.ROUTER
    if experts is not None:
        experts.kind = Kind.EXPERTS if experts.runs else None
        if isinstance(experts.module, (nn.ModuleList, nn.ModuleDict)):
            for child in experts.children.values():
                child.kind = Kind.EXPERT


_MIXES, _FEEDS_FORWARD = 1, 2


def _find_layers(node: Node) -> int:
    """Mark the layers under and at `node`; what its modules outside of layers do: mix tokens (1), feed
    forward (2).

    Layers are the innermost modules that do both, and the items of a list that are called layers or blocks
    and do at least one, such as Mamba's blocks or the layers of hybrid models.
    """
    content = 0
    for child in node.children.values():
        if child.kind in (Kind.ATTENTION, Kind.MIXER):
            content |= _MIXES
        elif child.kind in (Kind.MLP, Kind.MOE, Kind.ROUTER, Kind.EXPERTS):
            content |= _FEEDS_FORWARD
        elif child.kind is None:
            inner = _find_layers(child)
            if child.is_layer or child.holds_layers:
                continue
            if inner and child.runs and _is_list(node) and _BLOCK_CLASS.search(child.class_name):
                _mark(child)
            else:
                content |= inner
    if content == _MIXES and mlp_pair(node) is not None:
        content |= _FEEDS_FORWARD
    if content == _MIXES | _FEEDS_FORWARD and node.runs and node.parent is not None and not node.holds_layers:
        _mark(node)
    return content


def _is_list(node: Node) -> bool:
    return not node.runs or isinstance(node.module, nn.Sequential)


def _mark(layer: Node) -> None:
    layer.is_layer = True
    for above in layer.upwards():
        above.holds_layers |= above is not layer
