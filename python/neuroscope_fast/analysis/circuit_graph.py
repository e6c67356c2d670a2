"""A graph of components: whose contribution to the residual stream a later component meets there.

Nodes are what writes to the stream: the stream that enters the first layer, attention (or its heads, each through its
part of the output projection, where that is given), MLPs; and `output`, the stream behind the last layer. An edge runs
from an earlier component to a later one and carries the overlap of what the earlier one wrote with what the later one
reads, both as differences between two groups of prompts (clean less corrupted), over the positions that they share:

share   <w, r> / |r|²: the part of the difference that the later one meets, which the earlier one wrote. What all
        earlier writers have as their shares adds up to 1, negative ones take from it.
cosine  <w, r> / (|w| |r|).

This is the residual-stream view of composition (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits") on activations instead of weights. It is a correlation: that a component meets a difference does not say
that it uses it. All heads of a layer meet the same stream, and what attention carries from one position to another is
in no edge. `patching` says what matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from ..errors import OptionError
from ..reader import Run
from .circuit_comparison import Comparison
from .circuit_groups import Component, Groups, make_groups
from .circuit_stream import Kind, Projection, Reader, Stream, Writer
from .tables import Cell, Table

Array = np.ndarray[Any, Any]


class Node(msgspec.Struct, frozen=True):
    """A component. `written` is |w|², its difference summed over positions and pairs; of the output that it is."""

    id: str
    kind: Kind
    layer: int | None
    head: int | None
    written: float
    to_output: float
    """Its share in the difference of the output."""
    significant: bool
    """Whether the comparison that was given found it (family-wise)."""


class Link(msgspec.Struct, frozen=True):
    """An edge from an earlier component to a later one."""

    source: str
    target: str
    share: float
    cosine: float


class CircuitGraph(msgspec.Struct, frozen=True):
    """Nodes from the bottom of the model to its top, and the links between them whose share is `least_share` or more,
    of either sign."""

    nodes: list[Node]
    links: list[Link]
    least_share: float
    left_out: int
    """Components that were measured and have no node, being none of the strongest."""
    note: str

    def tables(self) -> list[Table]:
        """What reaches the output, and the strongest links before it."""
        direct = sorted((each for each in self.nodes if each.kind != "output"), key=lambda each: -abs(each.to_output))
        rows: list[list[Cell]] = [[n.id, n.to_output, "yes" if n.significant else "no"] for n in direct[:10]]
        strongest = sorted((each for each in self.links if each.target != "output"), key=lambda each: -abs(each.share))
        heads = {node.id: f"heads of layer {node.layer}" for node in self.nodes if node.kind == "head"}
        links: dict[tuple[str, str], list[Cell]] = {}  # the heads of a layer meet the same
        for each in strongest:
            target = heads.get(each.target, each.target)
            links.setdefault((each.source, target), [each.source, target, each.share, each.cosine])
        columns = ["component", "share of the output's difference", "significant"]
        return [
            Table("What the difference at the end of the model is made of", columns, rows, self.note),
            Table(
                "What components meet in the stream",
                ["from", "to", "share", "cosine"],
                list(links.values())[:12],
                "overlap, not cause",
            ),
        ]


def circuit_graph(
    run: Run,
    other: Run | None = None,
    *,
    prompts: Sequence[int] | None = None,
    other_prompts: Sequence[int] | None = None,
    paired: bool = True,
    comparison: Comparison | None = None,
    projections: Mapping[int, Projection] | None = None,
    nodes: int = 16,
    least_share: float = 0.05,
    positions: Literal["last", "all"] = "last",
    parallel: bool = False,
) -> CircuitGraph:
    """The graph of two runs, or of two sets of prompts of one run, as `circuits.compare` takes them.

    Args:
        comparison: components that it found come first among the nodes, and are marked; then those with the largest
            share in the output's difference.
        projections: by layer, from `head_writes.output_projections(model)`: heads stand in the place
            of attention where `head_output` was captured.
        nodes: the most components, beside input and output.
        positions: the last one of the prompt, where the next token is predicted, or `all` that matched prompts share:
            then differences that are there because the tokens are others weigh most.
        parallel: attention and MLP of a layer read the same stream (GPT-NeoX, Falcon), not one after the other.

    Needs `residual`, `attention` and `mlp` of consecutive layers: MissingActivations names what is not there. Raises
    RunError where these do not add up to the stream, as in models that normalise what they write.
    """
    if nodes < 1 or not least_share >= 0:
        raise OptionError("a graph needs at least one node, and a least share of 0 or more")
    groups = make_groups(run, other, prompts=prompts, other_prompts=other_prompts, paired=paired)
    if positions not in ("last", "all"):
        raise OptionError(f"positions is {positions!r}; it is last or all")
    if positions == "last":
        groups = groups._replace(alignment="last", positions=[-1])
    stream = Stream(groups, (run, other or run), projections)
    return _graph(_inner_products(stream, parallel), comparison, nodes, least_share, groups)


class _Inner(NamedTuple):
    """Inner products of the differences, summed over positions and pairs, of W writers and R readers."""

    writers: list[Writer]
    readers: list[Reader]
    written: Array
    """|w|² [W]"""
    met: Array
    """|r|² [R]"""
    overlap: Array
    """<w, r> [W, R]"""


def _inner_products(stream: Stream, parallel: bool) -> _Inner:
    writers: list[Writer] = [Writer("input", None, None)]
    readers: list[Reader] = []
    for layer in stream.layers:
        if layer.heads is None:
            writers.append(Writer("attention", layer.number, None))
        else:
            writers += [Writer("head", layer.number, head.head) for head in layer.heads.components]
        writers.append(Writer("mlp", layer.number, None))
        readers += [Reader("attention", layer.number), Reader("mlp", layer.number)]
    readers.append(Reader("output", None))
    written, met = np.zeros(len(writers)), np.zeros(len(readers))
    overlap = np.zeros((len(writers), len(readers)))
    for parts in stream.differences():
        writes, reads = [parts[0].before], []
        for part in parts:
            writes += [part.attention] if part.heads is None else list(part.heads)
            writes.append(part.mlp)
            reads += [part.before, part.before if parallel else part.before + part.attention]
        reads.append(parts[-1].after)
        left, right = (np.array(each).reshape(len(each), -1) for each in (writes, reads))
        written += (left**2).sum(1)
        met += (right**2).sum(1)
        overlap += left @ right.T
    if not met[-1] > 0:
        raise OptionError("the groups do not differ at all in the residual stream: there is no graph of a difference")
    return _Inner(writers, readers, written, met, overlap)


def _graph(
    inner: _Inner, comparison: Comparison | None, count: int, least_share: float, groups: Groups
) -> CircuitGraph:
    shares = np.divide(inner.overlap, inner.met, out=np.zeros_like(inner.overlap), where=inner.met > 0)
    sizes = np.sqrt(np.outer(inner.written, inner.met))
    cosines = np.divide(inner.overlap, sizes, out=np.zeros_like(inner.overlap), where=sizes > 0)
    found = set() if comparison is None else {_as_writer(component) for component in comparison.found()}
    components = [w for w, writer in enumerate(inner.writers) if writer.kind != "input"]
    components.sort(key=lambda w: (inner.writers[w] not in found, -abs(shares[w, -1])))
    kept = [0, *sorted(components[:count])]
    nodes = [
        Node(
            inner.writers[w].id,
            inner.writers[w].kind,
            inner.writers[w].layer,
            inner.writers[w].head,
            float(inner.written[w]),
            float(shares[w, -1]),
            inner.writers[w] in found,
        )
        for w in kept
    ]
    nodes.append(Node("output", "output", None, None, float(inner.met[-1]), 1.0, False))
    links = []
    for target in nodes[1:]:
        reader = Reader("attention" if target.kind == "head" else target.kind, target.layer)
        r = inner.readers.index(reader)
        for w in kept:
            if inner.writers[w].comes_before(reader) and abs(shares[w, r]) >= least_share and inner.overlap[w, r] != 0:
                links.append(Link(inner.writers[w].id, target.id, float(shares[w, r]), float(cosines[w, r])))
    where = "the last position" if groups.alignment == "last" else f"{len(groups.positions)} positions"
    what = f"{len(groups.first)} pairs" if groups.paired else "the means of the groups"
    note = f"overlap of activation differences ({what}, {where}): a correlation, not a cause"
    return CircuitGraph(nodes, links, least_share, len(components) - len(kept) + 1, note)


def _as_writer(component: Component) -> Writer | None:
    kinds: dict[str, Kind] = {"head_output": "head", "attention": "attention", "mlp": "mlp"}
    if component.component not in kinds or component.reduction is not None:
        return None
    return Writer(kinds[component.component], component.layer, component.head)
