"""Suggestions for module paths that are not there."""

from __future__ import annotations

import pytest
from neuroscope_fast.nearest import last_index, nearest_paths

GPT2 = ["", "transformer", "transformer.wte", "transformer.h", "lm_head"] + [
    f"transformer.h.{index}{end}"
    for index in range(12)
    for end in ("", ".ln_1", ".attn", ".attn.c_attn", ".attn.c_proj", ".mlp", ".mlp.c_fc", ".mlp.c_proj")
]


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        ("model.layers.3", "transformer.h.3"),
        ("model.layers.3.self_attn", "transformer.h.3.attn"),
        ("model.layers.3.feed_forward", "transformer.h.3.mlp"),
        ("model.layers.3.mlp.down_proj", "transformer.h.3.mlp.c_proj"),
        ("h.3", "transformer.h.3"),
        ("transformer.h.3.atn", "transformer.h.3.attn"),
        ("transformer.h.12", "transformer.h.11"),
        ("transformers.h.40.mlp", "transformer.h.11.mlp"),
        ("model.layers.*", "transformer.h.*"),
        ("model.layers.{2,10}.self_attn", "transformer.h.*.attn"),
        ("lm_haed", "lm_head"),
    ],
)
def test_nearest(wanted: str, first: str) -> None:
    assert nearest_paths(wanted, GPT2)[0] == first


def test_nothing_near() -> None:
    assert nearest_paths("vision_tower", GPT2) == []
    assert nearest_paths("x", []) == []


def test_every_suggestion_is_there() -> None:
    for wanted in ("model.layers.3.mlp", "h.99.attn.c_proj", "wte", "transformer.h.x"):
        assert all("*" in path or path in GPT2 for path in nearest_paths(wanted, GPT2))


def test_last_index() -> None:
    assert last_index("transformer.h.12.mlp", GPT2) == ("transformer.h", 11)
    assert last_index("transformer.h.3.nose", GPT2) is None
    assert last_index("transformer.x.12", GPT2) is None
    assert last_index("transformer.wte.0", GPT2) is None
