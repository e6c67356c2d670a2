"""The circuit graph against loops in plain numpy, its files as other libraries read them, and its refusals."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import architectures
import networkx
import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from memory_runs import Hook, memory_run
from neuroscope_fast import demo
from neuroscope_fast.analysis.circuit_graph import CircuitGraph, Link, Node, circuit_graph
from neuroscope_fast.analysis.circuit_stream import Projection
from neuroscope_fast.analysis.circuits import compare
from neuroscope_fast.analysis.graph_files import graphml, node_link_json, save_graph
from neuroscope_fast.analysis.head_writes import output_projections
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.demo.pairs import repeated_words
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.reader import Run

LAYERS, SIZE, HEADS, HEAD_SIZE = 3, 6, 2, 4
HOOKS = ["model.layers.*:residual", "model.layers.*:attention", "model.layers.*:mlp", "model.layers.*:head_output"]


def projections(seed: int = 99) -> dict[int, Projection]:
    random = np.random.default_rng(seed)
    return {
        layer: Projection(random.normal(size=(HEADS * HEAD_SIZE, SIZE)), random.normal(size=SIZE))
        for layer in range(LAYERS)
    }


def stream_run(lengths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> Run:
    """Layers whose attention and MLPs, random, add up to the stream; attention is what its heads project."""
    random = np.random.default_rng(seed)
    found: dict[str, list[list[torch.Tensor]]] = {}
    for length in lengths:
        stream = random.normal(size=(length, SIZE))
        for layer, projection in projections().items():
            heads = random.normal(size=(length, HEADS, HEAD_SIZE))
            attention = heads.reshape(length, -1) @ projection.weights + projection.bias
            mlp = random.normal(size=(length, SIZE))
            stream = stream + attention + mlp
            for name, values in (("residual", stream), ("attention", attention), ("mlp", mlp), ("head_output", heads)):
                found.setdefault(f"{name}.{layer}", []).append([torch.from_numpy(values)[None].to(dtype)])
    return memory_run(
        {key: Hook(f"model.layers.{key.split('.')[1]}", key.split(".")[0], prompts) for key, prompts in found.items()}
    )


def by_loops(one: Run, two: Run, positions: list[int], *, parallel: bool = False) -> dict[tuple[str, str], float]:
    """share of each writer in what each reader meets"""
    overlap: dict[tuple[str, str], float] = {}
    sizes: dict[str, float] = {}
    for prompt, position in itertools.product(range(len(one["mlp.0"])), positions):
        difference = {
            key: (one[key][prompt][0, position] - two[key][prompt][0, position]).double().numpy() for key in one
        }
        start = difference["residual.0"] - difference["attention.0"] - difference["mlp.0"]
        written, met = {"input": start}, {}
        before = start
        for layer, projection in projections().items():
            met[f"{layer} attention"] = before
            met[f"{layer} mlp"] = before if parallel else before + difference[f"attention.{layer}"]
            for head in range(HEADS):
                rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
                written[f"{layer}.{head}"] = difference[f"head_output.{layer}"][head] @ projection.weights[rows]
            written[f"{layer} attention"] = difference[f"attention.{layer}"]
            written[f"{layer} mlp"] = difference[f"mlp.{layer}"]
            before = difference[f"residual.{layer}"]
        met["output"] = before
        for reader, r in met.items():
            sizes[reader] = sizes.get(reader, 0.0) + float(r @ r)
            for writer, w in written.items():
                overlap[writer, reader] = overlap.get((writer, reader), 0.0) + float(w @ r)
    return {(writer, reader): value / sizes[reader] for (writer, reader), value in overlap.items()}


def shares(graph: CircuitGraph) -> dict[tuple[str, str], float]:
    return {(link.source, link.target): link.share for link in graph.links}


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("parallel", [False, True])
def test_shares_are_those_of_loops(positions: str, parallel: bool) -> None:
    one, two = stream_run([3, 3], 1), stream_run([3, 3], 2)
    graph = circuit_graph(one, two, least_share=0, positions=positions, parallel=parallel)  # type: ignore[arg-type]
    expected = by_loops(one, two, [-1] if positions == "last" else [0, 1, 2], parallel=parallel)
    assert len(graph.links) == 1 + 6 + sum(range(1, 7))  # input to all, each to all that come later
    for ends, share in shares(graph).items():
        assert share == pytest.approx(expected[ends])


def test_all_that_is_written_before_adds_up_to_what_is_met() -> None:
    one, two = stream_run([2, 4], 3), stream_run([2, 4], 4)
    for given in (None, projections()):
        graph = circuit_graph(one, two, least_share=0, nodes=100, positions="all", projections=given)
        for target in graph.nodes:
            if target.kind != "input":
                arriving = [link.share for link in graph.links if link.target == target.id]
                assert sum(arriving) == pytest.approx(1.0)


def test_heads_stand_in_the_place_of_attention() -> None:
    one, two = stream_run([3], 1), stream_run([3], 2)
    graph = circuit_graph(one, two, least_share=0, nodes=100, projections=projections())
    assert [node.id for node in graph.nodes][:4] == ["input", "0.0", "0.1", "0 mlp"]
    expected = by_loops(one, two, [-1])
    for (source, target), share in shares(graph).items():
        reader = f"{target.split('.')[0]} attention" if "." in target else target
        assert share == pytest.approx(expected[source, reader])
    meets = {(source, share) for (source, target), share in shares(graph).items() if target == "1.0"}
    assert meets == {(source, share) for (source, target), share in shares(graph).items() if target == "1.1"}


def test_edges_run_forwards_only() -> None:
    graph = circuit_graph(stream_run([3], 1), stream_run([3], 2), least_share=0, nodes=100, projections=projections())
    order = {"input": -1.0, "output": 99.0}
    for node in graph.nodes:
        if node.layer is not None:
            order[node.id] = node.layer + (0.5 if node.kind == "mlp" else 0)
    assert all(order[link.source] < order[link.target] for link in graph.links)
    assert len(graph.links) == len(set(shares(graph)))


def test_the_strongest_nodes_are_kept_and_the_rest_counted() -> None:
    one, two = stream_run([3], 1), stream_run([3], 2)
    everything = circuit_graph(one, two, nodes=100)
    strongest = sorted(
        (node for node in everything.nodes if node.layer is not None), key=lambda node: -abs(node.to_output)
    )
    few = circuit_graph(one, two, nodes=2)
    assert {node.id for node in few.nodes} == {"input", "output", strongest[0].id, strongest[1].id}
    assert (everything.left_out, few.left_out) == (0, 4)


def test_what_a_comparison_found_comes_first_and_is_marked() -> None:
    lengths = [2] * 12
    one, two = stream_run(lengths, 1), stream_run(lengths, 2)
    for prompt in range(12):  # louder, and yet nothing beside what the others add to the stream
        for run, factor in ((one, 1.2), (two, 0.8)):
            values = run["mlp.0"][prompt]
            values.mul_(0.02 * factor / values.norm(dim=-1, keepdim=True))
            rest = run["attention.0"][prompt] + values
            run["residual.0"][prompt].copy_(rest)
            for layer in (1, 2):
                rest = rest + run[f"attention.{layer}"][prompt] + run[f"mlp.{layer}"][prompt]
                run[f"residual.{layer}"][prompt].copy_(rest)
    found = compare(one, two)
    assert "0 mlp" in [component.name for component in found.found()]
    graph = circuit_graph(one, two, comparison=found, nodes=len(found.found()))
    assert {node.id: node.significant for node in graph.nodes}["0 mlp"]
    assert "0 mlp" not in {node.id for node in circuit_graph(one, two, nodes=2).nodes}


def test_independent_groups_are_compared_by_their_means() -> None:
    one, two = stream_run([3, 4], 1), stream_run([2, 5, 3], 2)
    graph = circuit_graph(one, two, paired=False, least_share=0, nodes=100, projections=projections())
    arriving = [link.share for link in graph.links if link.target == "output"]
    assert sum(arriving) == pytest.approx(1.0)
    means = [np.mean([run["mlp.2"][p][0, -1].numpy() for p in range(len(run["mlp.2"]))], axis=0) for run in (one, two)]
    after = [
        np.mean([run["residual.2"][p][0, -1].numpy() for p in range(len(run["mlp.2"]))], axis=0) for run in (one, two)
    ]
    write, read = means[0] - means[1], after[0] - after[1]
    assert shares(graph)["2 mlp", "output"] == pytest.approx(write @ read / (read @ read))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_runs_give_nearly_the_same(dtype: torch.dtype) -> None:
    exact = circuit_graph(stream_run([3, 3], 1), stream_run([3, 3], 2), least_share=0)
    rounded = circuit_graph(stream_run([3, 3], 1, dtype), stream_run([3, 3], 2, dtype), least_share=0)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for ends, share in shares(exact).items():
        assert shares(rounded)[ends] == pytest.approx(share, abs=tolerance)


def test_a_projection_that_is_another_is_refused() -> None:
    one, two = stream_run([3], 1), stream_run([3], 2)
    with pytest.raises(RunError, match="heads of layer 0 do not add up to its attention"):
        circuit_graph(one, two, projections=projections(seed=5))
    with pytest.raises(OptionError, match="no output projection for the heads of layer 1"):
        circuit_graph(one, two, projections={0: projections()[0]})
    narrow = {layer: Projection(each.weights[1:], each.bias) for layer, each in projections().items()}
    with pytest.raises(OptionError, match="takes 7 numbers, its 2 heads give 8"):
        circuit_graph(one, two, projections=narrow)


def capture(model: torch.nn.Module, ids: list[int], hooks: list[str]) -> Run:
    with nsf.capture(model, hooks) as cap, torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    return cap.result


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3", "mixtral", "phi3"])
def test_projections_of_architectures_are_found(name: str) -> None:
    model = architectures.build(name)
    layers = "transformer.h.*" if name == "gpt2" else "gpt_neox.layers.*" if name == "gpt_neox" else "model.layers.*"
    hooks = [hook.replace("model.layers.*", layers) for hook in HOOKS]
    runs = [capture(model, ids, hooks) for ids in ([5, 6, 7], [5, 9, 7])]
    graph = circuit_graph(*runs, projections=output_projections(model), nodes=100, least_share=0)
    assert {node.kind for node in graph.nodes} == {"input", "head", "mlp", "output"}
    assert sum(link.share for link in graph.links if link.target == "output") == pytest.approx(1.0, abs=1e-4)


def test_a_model_that_normalises_what_it_writes_is_refused() -> None:
    model = architectures.build("gemma2")
    runs = [capture(model, ids, HOOKS) for ids in ([5, 6, 7], [5, 9, 7])]
    with pytest.raises(RunError, match="scales or normalises what they give"):
        circuit_graph(*runs)


def test_what_lacks_is_named() -> None:
    one, two = stream_run([3], 1), stream_run([3], 2)

    def without(*names: str) -> Run:
        keys = [key for key in one if key not in names]
        return memory_run(
            {key: Hook(f"model.layers.{key.split('.')[1]}", key.split(".")[0], [list(one[key])]) for key in keys}
        )

    with pytest.raises(MissingActivations, match=r"--hook 'model\.layers\.\*:mlp'"):
        circuit_graph(without("mlp.1"), two)
    with pytest.raises(MissingActivations, match=r"residual.*attention.*mlp"):
        circuit_graph(memory_run({"h": Hook("model.layers.0", "head_output", [[torch.ones(1, 2, 2, 2)]])}), two)
    with pytest.raises(OptionError, match="do not differ at all"):
        circuit_graph(one, stream_run([3], 1))
    with pytest.raises(OptionError, match="positions is 'first'"):
        circuit_graph(one, two, positions="first")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="at least one node"):
        circuit_graph(one, two, nodes=0)


def test_a_layer_range_has_its_own_input() -> None:
    def upper(run: Run) -> Run:
        return memory_run(
            {
                key: Hook(f"model.layers.{key.split('.')[1]}", key.split(".")[0], [[each] for each in run[key]])
                for key in run
                if not key.endswith(".0")
            }
        )

    one, two = stream_run([3], 1), stream_run([3], 2)
    graph = circuit_graph(upper(one), upper(two), least_share=0, nodes=100)
    assert sum(link.share for link in graph.links if link.target == "output") == pytest.approx(1.0)
    assert min(node.layer for node in graph.nodes if node.layer is not None) == 1


STRANGE = CircuitGraph(
    [
        Node('<b a="1">&\x00\x1b', "head", 0, 1, 1.5, -0.25, True),
        Node("]]>\ud800 é 🙂", "mlp", None, None, 0.0, 1e-300, False),
    ],
    [Link('<b a="1">&\x00\x1b', "]]>\ud800 é 🙂", -0.5, 0.125)],
    0.0,
    0,
    "a note",
)


def test_graphml_is_read_by_networkx() -> None:
    one, two = stream_run([3], 1), stream_run([3], 2)
    graph = circuit_graph(one, two, projections=projections(), nodes=100)
    read = networkx.read_graphml(io.BytesIO(graphml(graph)))
    assert read.is_directed()
    assert list(read.nodes) == [node.id for node in graph.nodes]
    for node in graph.nodes:
        values = read.nodes[node.id]
        assert values["kind"] == node.kind
        assert values["significant"] is node.significant
        assert values["to_output"] == node.to_output
        assert values.get("layer") == node.layer
        assert values.get("head") == node.head
    for link in graph.links:
        assert read.edges[link.source, link.target]["share"] == link.share
        assert read.edges[link.source, link.target]["weight"] == abs(link.share)


def test_graphml_of_strange_names_is_well_formed() -> None:
    read = networkx.read_graphml(io.BytesIO(graphml(STRANGE)))
    assert list(read.nodes) == ['<b a="1">&\ufffd\ufffd', "]]>\ufffd é 🙂"]
    assert read.edges['<b a="1">&\ufffd\ufffd', "]]>\ufffd é 🙂"]["cosine"] == 0.125


def test_json_is_read_by_networkx_and_holds_what_d3_wants() -> None:
    graph = circuit_graph(stream_run([3], 1), stream_run([3], 2))
    data: dict[str, Any] = json.loads(node_link_json(graph))
    assert set(data) == {"directed", "multigraph", "graph", "nodes", "links"}
    assert {link["source"] for link in data["links"]} <= {node["id"] for node in data["nodes"]}
    read = networkx.node_link_graph(data, edges="links")
    assert set(read.nodes) == {node.id for node in graph.nodes}
    assert read.number_of_edges() == len(graph.links)
    assert read.nodes["0 mlp"]["kind"] == "mlp"


def test_files_are_written_by_their_suffix(tmp_path: Path) -> None:
    graph = circuit_graph(stream_run([3], 1), stream_run([3], 2))
    save_graph(graph, tmp_path / "a.json")
    save_graph(graph, tmp_path / "a.graphml")
    assert (tmp_path / "a.json").read_bytes() == node_link_json(graph)
    assert networkx.read_graphml(tmp_path / "a.graphml").number_of_nodes() == len(graph.nodes)
    with pytest.raises(OptionError, match=r"\.json or \.graphml"):
        save_graph(graph, tmp_path / "a.dot")
    with pytest.raises(RunError, match="cannot write"):
        save_graph(graph, tmp_path / "nowhere" / "a.json")


def test_on_the_embedded_model_the_induction_heads_make_the_difference(tmp_path: Path) -> None:
    model, tokenizer = demo.load()
    pairs = repeated_words(16, seed=3)
    runs = [
        nsf.generate(model, prompts, HOOKS, out=tmp_path / name, tokenizer=tokenizer, max_new_tokens=1)
        for name, prompts in (("a", pairs.clean), ("b", pairs.corrupted))
    ]
    graph = circuit_graph(*runs, projections=output_projections(model), nodes=100)
    heads = sorted((node for node in graph.nodes if node.kind == "head"), key=lambda node: -node.to_output)
    print([(node.id, round(node.to_output, 4)) for node in heads[:8]])
    assert {node.id for node in heads[:6]} == {"8.3", "9.2", "10.0", "10.2", "11.1", "11.3"}
    assert graph.tables()[0].rows[0][0] == "11 mlp"
    # The last token is the same in both prompts, and so is the stream that enters there.
    assert not [link for link in graph.links if link.source == "input"]
