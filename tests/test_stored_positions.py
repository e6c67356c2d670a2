"""Which positions are stored, under which names, with padding on either side."""

from __future__ import annotations

from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from torch import nn


def hook(**options: Any) -> dict[str, Any]:
    return {"layer_name": "model.layers.0", "component": "residual", "hook_id": "x", **options}


def generate(model: nn.Module, hooks: Any, new_tokens: int = 6, length: int = 5) -> nsf.Run:
    ids = architectures.inputs("llama", batch=1, length=length)["input_ids"]
    with nsf.capture(model, [hook(hook_id="full"), hooks]) as cap:
        model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return cap.result


SELECTIONS: list[tuple[Any, list[int]]] = [
    ("last", [4, 5, 6, 7, 8, 9]),
    ([0], [0]),
    ([2, 6, 100], [2, 6]),
    ([-1], [4, 5, 6, 7, 8, 9]),
    (slice(None, 3), [0, 1, 2]),
    (slice(3, 7), [3, 4, 5, 6]),
    ("1::3", [1, 4, 7]),
    ("7:", [7, 8, 9]),
]


@pytest.mark.parametrize(("positions", "kept"), SELECTIONS, ids=str)
def test_positions_of_a_generation(llama: nn.Module, positions: Any, kept: list[int]) -> None:
    run = generate(llama, hook(positions=positions))
    whole = run["full"].cat()
    assert whole.shape[1] == 10
    stored = [p for record in run["x"].records for p in record.positions]
    assert stored == kept
    assert torch.equal(run["x"].cat(), whole[:, kept])


def test_phase_and_every(llama: nn.Module) -> None:
    steps = {
        (phase, every): [r.step for r in generate(llama, hook(phase=phase, every=every))["x"].records]
        for phase in ("both", "prefill", "decode")
        for every in (1, 2, 4)
    }
    assert steps == {
        ("both", 1): [0, 1, 2, 3, 4, 5],
        ("both", 2): [0, 2, 4],
        ("both", 4): [0, 4],
        ("prefill", 1): [0],
        ("prefill", 2): [0],
        ("prefill", 4): [0],
        ("decode", 1): [1, 2, 3, 4, 5],
        ("decode", 2): [2, 4],
        ("decode", 4): [4],
    }


IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
GAPS = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("mask", "real", "last"),
    [(LEFT, [[2, 5], [0, 5]], [4, 4]), (RIGHT, [[0, 3], [0, 5]], [2, 4]), (GAPS, [[0, 1, 2, 4], []], [3, 4])],
    ids=["left", "right", "gaps"],
)
def test_padding(llama: nn.Module, mask: torch.Tensor, real: list[list[int]], last: list[int]) -> None:
    hooks = [hook(), hook(hook_id="last", positions="last"), hook(hook_id="some", positions=[0, 2])]
    with nsf.capture(llama, hooks) as cap:
        llama(IDS, attention_mask=mask)
    (full,) = cap.result["x"].records
    assert full.real_tokens == real
    assert full.positions is None
    whole = cap.result["x"][0]
    (record,) = cap.result["last"].records
    want = torch.stack([whole[row, last[row]] for row in range(2)])[:, None]
    assert torch.equal(cap.result["last"][0], want)
    same = last[0] == last[1]
    assert record.positions == ([last[0]] if same else [[last[0]], [last[1]]])
    (some,) = cap.result["some"].records
    assert some.positions == [0, 2]
    if mask is LEFT:
        assert some.real_tokens == [[1, 2], [0, 2]]


def test_a_decode_step_of_a_padded_batch_has_no_padding(llama: nn.Module) -> None:
    with nsf.capture(llama, hook()) as cap:
        llama.generate(IDS, attention_mask=LEFT, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert [record.real_tokens for record in cap.result["x"].records] == [[[2, 5], [0, 5]], None, None]


def test_rows_that_a_model_flattens() -> None:
    model = architectures.build("mixtral")
    where = {"layer_name": "model.layers.0", "component": "router"}
    hooks = [{**where, "hook_id": "all"}, {**where, "hook_id": "last", "positions": "last"}]
    with nsf.capture(model, hooks) as cap:
        model(IDS, attention_mask=RIGHT)
    (everything,) = cap.result["all"]
    (record,) = cap.result["all"].records
    assert everything.shape == (10, architectures.EXPERTS)
    assert record.real_tokens == [[0, 3], [0, 5]]
    (last,) = cap.result["last"]
    assert torch.equal(last, everything.view(2, 5, -1)[[0, 1], [2, 4]])


def test_the_encoder_has_padding_of_its_own() -> None:
    model = architectures.build("t5")
    hooks = ["encoder.block.0:residual:encoder", "decoder.block.0:residual:decoder"]
    with nsf.capture(model, hooks) as cap:
        model(input_ids=IDS, attention_mask=LEFT, decoder_input_ids=IDS[:, :5])
        model.generate(IDS, attention_mask=RIGHT, max_new_tokens=2, min_new_tokens=2)
    encoder, decoder = cap.result["encoder"].records, cap.result["decoder"].records
    assert [(r.step, r.real_tokens) for r in encoder] == [(0, [[2, 5], [0, 5]]), (1, [[0, 3], [0, 5]])]
    assert [(r.step, r.real_tokens) for r in decoder] == [(0, None), (1, None), (2, None)]


def test_positions_of_what_has_no_sequence_axis() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x.sum())

    model = Flat()
    with (
        pytest.raises(nsf.CaptureError, match="no sequence axis"),
        nsf.capture(model, {"layer_name": "body", "component": "mlp", "positions": "last"}),
    ):
        model(torch.randn(2, 3))
