"""Components in models of one's own: by their structure, on the user's word, with shared modules."""

from __future__ import annotations

import torch
from neuroscope_fast.model_map import Place, components, resolve_hooks
from own_models import Attention, Block, TinyGPT
from places import ids, input_of, place_of, refused, tap
from torch import nn


def test_a_model_of_ones_own_is_known_by_its_structure() -> None:
    model = TinyGPT().eval()
    rows = components(model)
    assert rows[0] == ("transformer.wte", "embedding", "transformer.wte")
    assert rows[-1] == ("lm_head", "logits", "lm_head")
    assert [row for row in rows if row[0].startswith("transformer.h.1")] == [
        ("transformer.h.1", "residual", "transformer.h.1"),
        ("transformer.h.1", "attention", "transformer.h.1.sa"),
        ("transformer.h.1", "mlp", "transformer.h.1.mlp"),
        ("transformer.h.1", "neuron", "transformer.h.1.mlp.2"),
        ("transformer.h.1.ln1", "layernorm", "transformer.h.1.ln1"),
        ("transformer.h.1.ln2", "layernorm", "transformer.h.1.ln2"),
    ]
    places = {place_of(model, f"{layer}:{component}") for layer, component, _ in rows}
    tapped = tap(model, places, {"tokens": torch.arange(5)[None]})
    assert all(len(tensors) == 1 for tensors in tapped.values())


class Probe(nn.Module):
    """Nothing here is called what the field calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"proj": nn.Linear(8, 12), "act": nn.ReLU(), "back": nn.Linear(12, 8)})
        self.stack = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
        self.look = nn.MultiheadAttention(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stack(self.encoder["back"](self.encoder["act"](self.encoder["proj"](x))))


def test_on_the_users_word_where_nothing_is_known() -> None:
    model = Probe()
    assert place_of(model, "encoder.proj:mlp") == Place("encoder.proj", "output")
    assert place_of(model, "encoder.back:neuron") == Place("encoder.back", "input")
    assert place_of(model, "encoder.act:mlp") == Place("encoder.act", "output")
    assert place_of(model, "stack.1:residual") == Place("stack.1", "output")
    assert ids(model, "stack.*:residual:r") == ["r.0", "r.1"]
    assert input_of(model, "encoder.proj", "mlp") == Place("encoder.proj", "input")
    assert place_of(model, "encoder.proj:logits") == Place("encoder.proj", "output")
    assert components(model) == [("look", "attention", "look")]


def test_even_then_not_against_what_is_known() -> None:
    model = Probe()
    assert "'look' (MultiheadAttention) has no 'mlp', nor has any of Probe" in refused(model, "look:mlp")
    assert "has no 'mlp'" in refused(model, "look.out_proj:mlp")
    assert "has no 'neuron'" in refused(model, "encoder.act:neuron")  # no down projection in it
    assert "has no 'mlp'" in refused(model, "encoder:mlp")  # a ModuleDict never runs
    assert "no layer 'encoder.projj' in Probe; nearest: encoder.proj" in refused(model, "encoder.projj:mlp")


def test_the_neurons_of_a_sequential_are_what_enters_its_last_layer() -> None:
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 4))})
    assert place_of(model, "net:neuron") == Place("net.2", "input")


def test_torchs_own_transformer() -> None:
    layer = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    layers = [row for row in components(model) if row[0].startswith("layers.0") and row[1] != "layernorm"]
    assert layers == [
        ("layers.0", "residual", "layers.0"),
        ("layers.0", "attention", "layers.0.self_attn"),
        ("layers.0.multihead_attn", "attention", "layers.0.multihead_attn"),
        ("layers.0", "mlp", "layers.0.linear2"),
        ("layers.0", "neuron", "layers.0.linear2"),
    ]


class SharedBlock(nn.Module):
    """A block whose attention is one module for all blocks."""

    common = Attention(16)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = self.common
        self.mlp = Block(width).mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.attn(x))


def test_a_module_under_several_paths_is_one_place() -> None:
    model = TinyGPT(SharedBlock)
    first = Place("transformer.h.0.attn", "output")
    assert {place_of(model, f"transformer.h.{index}:attention") for index in range(3)} == {first}
    assert ids(model, "transformer.h.*:attention") == ["transformer.h.0_attention"]
    assert ids(model, "transformer.h.*.attn:attention") == ["transformer.h.0.attn_attention"]
    assert len(ids(model, "transformer.h.*:mlp")) == 3
    assert [row for row in components(model) if row[1] == "attention"] == [
        ("transformer.h.0", "attention", "transformer.h.0.attn")
    ]


def test_a_block_that_is_run_again_is_hooked_once() -> None:
    model = TinyGPT(tied=True).eval()
    assert ids(model, "transformer.h.*:residual:r") == ["r"]
    assert place_of(model, "transformer.h.2:mlp") == Place("transformer.h.0.mlp", "output")
    place = place_of(model, "transformer.h.1:residual")
    assert len(tap(model, {place}, {"tokens": torch.arange(4)[None]})[place]) == 3


class Experts(nn.Module):
    """A sparse block whose experts are modules of their own, with a shared one beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3)
        self.experts = nn.ModuleList(Block(width).mlp for _ in range(3))
        self.shared_expert = Block(width).mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        parts = [weights[..., index, None] * expert(x) for index, expert in enumerate(self.experts)]
        return self.shared_expert(x) + sum(parts)


class SparseBlock(Block):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.mlp = Experts(width)


def test_experts_that_are_modules() -> None:
    model = TinyGPT(SparseBlock).eval()
    rows = {row for row in components(model) if row[0].startswith("transformer.h.0") and row[1] != "layernorm"}
    mlp = "transformer.h.0.mlp"
    assert rows == {
        ("transformer.h.0", "residual", "transformer.h.0"),
        ("transformer.h.0", "attention", "transformer.h.0.sa"),
        ("transformer.h.0", "mlp", mlp),
        ("transformer.h.0", "moe", mlp),
        ("transformer.h.0", "router", f"{mlp}.router"),
        *((f"{mlp}.experts.{index}", "expert", f"{mlp}.experts.{index}") for index in range(3)),
        *((f"{mlp}.experts.{index}", "neuron", f"{mlp}.experts.{index}.2") for index in range(3)),
        (f"{mlp}.shared_expert", "mlp", f"{mlp}.shared_expert"),
        (f"{mlp}.shared_expert", "neuron", f"{mlp}.shared_expert.2"),
    }
    message = refused(model, "transformer.h.*:expert")
    assert "has 3 of 'expert'; name one: transformer.h.*.mlp.experts.0:expert" in message
    assert len(resolve_hooks(model, "transformer.h.*.mlp.experts.*:expert")) == 9
    assert "has no 'neuron'" in refused(model, "transformer.h.0:neuron")


class Hybrid(nn.Module):
    """Each layer does one of the two, as in Nemotron-H."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mixer = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mixer(self.norm(x))


class HybridBlock(Hybrid):
    pass


def test_layers_that_do_one_thing_each() -> None:
    class MixerMLP(nn.Sequential):
        pass

    class StateSpace(nn.Linear):
        pass

    class Mamba(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_proj = StateSpace(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.in_proj(x)

    mlp = MixerMLP(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
    model = TinyGPT()
    model.transformer["h"] = nn.ModuleList([HybridBlock(Attention(16)), HybridBlock(mlp), HybridBlock(Mamba())])
    rows = [row for row in components(model) if row[0].startswith("transformer.h") and row[1] != "layernorm"]
    assert rows == [
        ("transformer.h.0", "residual", "transformer.h.0"),
        ("transformer.h.0", "attention", "transformer.h.0.mixer"),
        ("transformer.h.1", "residual", "transformer.h.1"),
        ("transformer.h.1", "mlp", "transformer.h.1.mixer"),
        ("transformer.h.1", "neuron", "transformer.h.1.mixer.2"),
        ("transformer.h.2", "residual", "transformer.h.2"),
    ]
    assert ids(model, "transformer.h.*:attention") == ["transformer.h.0_attention"]


def test_a_block_that_stands_in_no_list_is_a_layer_too() -> None:
    model = nn.Module()
    model.first = Block(16)
    assert ("first", "residual", "first") in components(model)
    model = nn.Module()
    model.first = Hybrid(Attention(16))  # attention alone: nothing says that it is a layer, save the user
    assert not [row for row in components(model) if row[1] == "residual"]
    assert place_of(model, "first:residual") == Place("first", "output")
    assert place_of(model, "first:attention") == Place("first.mixer", "output")
    assert "has no 'mlp'" in refused(model, "first:mlp")


class GatedMLP(nn.Module):
    """Its second linear layer is not the last, whatever other MLPs call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 20), nn.Linear(8, 20), nn.Linear(20, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(self.fc1(x).sigmoid() * self.fc2(x))


def test_the_down_projection_is_not_taken_by_its_name_alone() -> None:
    model = nn.ModuleDict({"mlp": GatedMLP()})
    assert place_of(model, "mlp:neuron") == Place("mlp.fc3", "input")


def test_names_that_cannot_be_hook_ids() -> None:
    model = nn.ModuleDict({"a/b": nn.Linear(2, 2)})
    assert "hook_id 'a/b_mlp' holds a '/'" in refused(model, "a/b:mlp")
    assert ids(model, "a/b:mlp:ab") == ["ab"]


class Cyclic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        self.mlp.add_module("owner", self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp[1](self.mlp[0](x))


def test_a_module_that_holds_its_own_parent() -> None:
    assert place_of(Cyclic(), "mlp:mlp") == Place("mlp", "output")
