"""HookSpec and parse_hooks: every form a hook can be written in, and every way in which it can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.errors import HookError
from neuroscope_fast.head_options import REDUCTIONS
from neuroscope_fast.spec import (
    AVAILABLE_COMPONENTS,
    CAST_DTYPES,
    HEAD_COMPONENTS,
    HookSpec,
    parse_hooks,
)

LAYER = "model.layers.3"


def spec(**fields: object) -> HookSpec:
    return HookSpec(**{"layer_name": LAYER, "component": "mlp", **fields})


# The forms.


def test_short_forms() -> None:
    assert parse_hooks("model.layers.3:mlp") == [spec()]
    assert parse_hooks(" model.layers.3:mlp:my hook ") == [spec(hook_id="my hook")]
    assert parse_hooks("model.layers.3:mlp:a:b") == [spec(hook_id="a:b")]
    assert parse_hooks("{encoder,decoder}.block.*:residual")[0].layer_name == "{encoder,decoder}.block.*"


REFERENCE = {
    "layer_name": "model.layers.2.self_attn",
    "component": "attention",
    "hook_id": "attention_layer_2",
    "capture_output": True,
}


@pytest.mark.parametrize(
    "form",
    [
        lambda _: REFERENCE,
        lambda _: [REFERENCE],
        lambda _: {"hooks": [REFERENCE]},
        lambda _: json.dumps(REFERENCE),
        lambda _: f"\n  {json.dumps([REFERENCE], indent=2)}\n",
        lambda _: json.dumps({"demo_type": "circuit_analysis", "hook_configurations": [REFERENCE]}),
        lambda folder: write(folder / "hooks.json", [REFERENCE]),
        lambda folder: str(write(folder / "hooks.json", REFERENCE)),
        lambda folder: write(folder / "no_suffix", {"timestamp": "…", "hook_configurations": [REFERENCE]}),
        lambda folder: str(write(folder / "activation_capture.json", {"hook_configurations": [REFERENCE]})),
        lambda folder: [write(folder / "hooks.json", [REFERENCE])],
        lambda _: (hook for hook in ("model.layers.2.self_attn:attention:attention_layer_2",)),
        lambda _: HookSpec(**REFERENCE),
    ],
)
def test_one_hook_in_every_form(form: Callable[[Path], object], tmp_path: Path) -> None:
    assert parse_hooks(form(tmp_path)) == [HookSpec(**REFERENCE)]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_mixed_forms_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "hooks.json", [{"layer_name": "b", "component": "mlp"}, "c:residual"])
    specs = parse_hooks(["a:mlp", path, {"layer_name": "d", "component": "logits"}, [spec(layer_name="e")]])
    assert [each.layer_name for each in specs] == ["a", "b", "c", "d", "e"]


def test_all_fields_from_json() -> None:
    fields = {
        "layer_name": LAYER,
        "component": "mlp",
        "hook_id": "x",
        "capture_input": True,
        "capture_output": False,
        "dtype": "bfloat16",
        "positions": [0, -1],
        "phase": "decode",
        "every": 4,
        "heads": None,
        "reduction": None,
        "top_k": 8,
    }
    (parsed,) = parse_hooks(json.dumps(fields))
    assert msgspec.structs.asdict(parsed) == fields
    assert parse_hooks(msgspec.json.encode(parsed).decode()) == [parsed]


def test_defaults() -> None:
    (parsed,) = parse_hooks("a:mlp")
    assert parsed == HookSpec(
        layer_name="a",
        component="mlp",
        hook_id=None,
        capture_input=False,
        capture_output=True,
        dtype=None,
        positions="all",
        phase="both",
        every=1,
        heads=None,
        reduction=None,
        top_k=8,
    )
    assert parse_hooks({"layer_name": "a", "component": "mlp", "hook_id": None, "dtype": None}) == [parsed]


# What is wrong.


def refused(hooks: object) -> str:
    with pytest.raises(HookError) as caught:
        parse_hooks(hooks)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_field() -> None:
    message = refused(["a:mlp", {"layer": "b", "layer_name": "b", "component": "mlp"}])
    assert message.startswith("hook 2: unknown field 'layer'; did you mean layer_name? fields: layer_name, component,")
    assert "unknown field 'colour'" in refused({"layer_name": "b", "component": "mlp", "colour": 1})
    assert "unknown field 3" in refused({"layer_name": "b", "component": "mlp", 3: 1})


def test_missing_field() -> None:
    assert refused({"layer_name": "b"}) == "hook: component is missing"
    assert refused([{"component": "mlp"}]) == "hook 1: layer_name is missing"
    assert refused({}) == "hook: layer_name is missing"


def test_unknown_component() -> None:
    message = refused("a:atention")
    assert message.startswith("hook 'a:atention': unknown component 'atention'; did you mean attention? available:")
    assert all(component in message for component in AVAILABLE_COMPONENTS)
    assert "did you mean mlp" in refused("a:MLP")


def test_component_names() -> None:
    assert set(HEAD_COMPONENTS) < set(AVAILABLE_COMPONENTS)
    assert len(set(AVAILABLE_COMPONENTS)) == len(AVAILABLE_COMPONENTS) == 16


def head(component: str, **fields: object) -> dict[str, object]:
    return {"layer_name": LAYER, "component": component, **fields}


def test_heads_and_reductions() -> None:
    (parsed,) = parse_hooks(head("attention_pattern", heads=(0, -1), reduction="top_k", top_k=3))
    assert (parsed.heads, parsed.reduction, parsed.top_k) == ([0, -1], "top_k", 3)
    for component, reductions in REDUCTIONS.items():
        for reduction in reductions:
            assert parse_hooks(head(component, reduction=reduction))[0].reduction == reduction
    assert parse_hooks(head("query", heads=[2]))[0].heads == [2]


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (head("mlp", heads=[0]), "'mlp' is not split by head, and takes no heads"),
        (head("residual", reduction="mean"), "'residual' is not split by head, and takes no reduction"),
        (head("query", reduction="mean"), "'query' has no reduction 'mean'; it is one of 'attention_pattern'"),
        (head("head_output", reduction="entropy"), "it is one of 'attention_pattern'"),
        (head("attention_pattern", reduction="head_norm"), "it is one of 'head_output'"),
        (head("attention_pattern", reduction="median"), "available: mean, max, entropy, sink, previous, top_k"),
        (head("query", reduction="median"), "reductions there are for 'attention_pattern': mean"),
        (head("attention_pattern", top_k=3), "top_k is said and nothing is reduced to it"),
        (head("attention_pattern", reduction="top_k", top_k=0), "top_k is 0; it counts keys and is at least 1"),
        (head("attention_pattern", heads=[]), "heads is an empty list"),
        (head("attention_pattern", heads=[1, 1]), "heads names a head twice"),
        (head("attention_pattern", heads="all"), "heads 'all' is no list of heads such as [0, 5] or [-1]"),
        (head("attention_pattern", heads=[True]), "heads [True] is no list of heads"),
        (head("attention_pattern", heads=3), "heads 3 is no list of heads"),
        (head("attention_pattern", capture_input=True), "'attention_pattern' is one tensor and has no input side"),
        (head("key", positions="last"), "positions cannot be chosen for 'key', whose rows are the whole cache"),
    ],
)
def test_wrong_head_options(hook: dict[str, object], words: str) -> None:
    message = refused(hook)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ([], "no hooks given"),
        ({"hooks": []}, "no hooks given"),
        ("", "component is missing"),
        ("model.layers.3", "LAYER:COMPONENT"),
        ("model.layers.3:", "component is missing"),
        ("a:mlp:", "hook_id is empty"),
        (":logits", "layer_name is empty"),
        ([None], "hook 1: a NoneType is no hook"),
        (7, "a int is no hook"),
        (b"a:mlp", "a bytes is no hook"),
        ([["a:mlp", 3]], "hook 1, hook 2: a int is no hook"),
        ("[1, 2", "not valid JSON"),
        ('{"layer_name": ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ({"hooks": "a:mlp"}, "hooks is not a list"),
        ({"hook_configurations": {"x": 1}}, "hook_configurations is not a list"),
        ({"format_version": 1, "metadata_file": "activation_capture.json", "hooks": {}}, "run's manifest"),
        ("nowhere.json", "cannot read hooks from nowhere.json: No such file"),
        (Path("nowhere"), "cannot read hooks from nowhere"),
        ({"layer_name": 3, "component": "mlp"}, "expected `str`, got `int` (layer_name)"),
        ({"layer_name": "a", "component": None}, "(component)"),
        ({"layer_name": "a", "component": "mlp", "capture_input": "yes"}, "(capture_input)"),
        ({"layer_name": "a", "component": "mlp", "capture_output": False}, "captures neither side"),
        ({"layer_name": "a", "component": "mlp", "dtype": "float64"}, "unknown dtype 'float64'"),
        ({"layer_name": "a", "component": "mlp", "dtype": ""}, "unknown dtype ''"),
        ({"layer_name": "a", "component": "mlp", "phase": "middle"}, "'middle' (phase)"),
        ({"layer_name": "a", "component": "mlp", "every": 0}, "every is 0"),
        ({"layer_name": "a", "component": "mlp", "every": 2**63}, "every is"),
        ({"layer_name": "a", "component": "mlp", "every": 1.5}, "(every)"),
        ({"layer_name": "a", "component": "neuron", "capture_input": True}, "'neuron' is one tensor"),
        ({"layer_name": "a", "component": "expert", "positions": "last"}, "positions cannot be chosen"),
        ("model.layers.{1:mlp", "braces do not pair"),
        ("model.layers.1}:mlp", "braces do not pair"),
        ("model.layers.{}:mlp", "alternative between its braces is empty"),
        ("model.layers.{1,}:mlp", "alternative between its braces is empty"),
        ("model.layers.{5..2}:mlp", "runs backwards; write {2..5}"),
        ("model.layers.{0..9999999999}:mlp", "spans more than 4096"),
    ],
)
def test_refused(hooks: object, words: str) -> None:
    assert words in refused(hooks)


@pytest.mark.parametrize("hook_id", ["a/b", "", "a\nb", "a\x00", "\x7f", "\x85", "é" * 257, "\ud800"])
def test_bad_hook_ids(hook_id: str) -> None:
    assert "hook_id" in refused(spec(hook_id=hook_id))


def test_longest_hook_id() -> None:
    assert parse_hooks(spec(hook_id="é" * 256))[0].hook_id == "é" * 256


def test_a_spec_built_wrongly_in_python_is_checked_too() -> None:
    assert "(every)" in refused(spec(every="2"))
    assert "unknown component" in refused([spec(component="nose")])
    assert "(layer_name)" in refused(spec(layer_name=None))


def test_json_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "hooks.json"
    path.write_bytes(b'["\xff:mlp"]')
    assert f"{path} is not valid JSON" in refused(path)
    assert "cannot read hooks from" in refused(tmp_path)


def test_dtypes() -> None:
    import torch  # here: the module must not need it

    for name in CAST_DTYPES:
        for form in (name, f"torch.{name}", getattr(torch, name)):
            assert parse_hooks({"layer_name": "a", "component": "mlp", "dtype": form})[0].dtype == name


parts = st.text(st.characters(codec="utf-8", exclude_characters=".*{},", categories=("L", "N", "P", "S")), min_size=1)
paths = st.lists(parts, min_size=1, max_size=5).map(".".join)


@given(st.text(max_size=60))
def test_no_text_ends_in_anything_but_specs_or_a_hook_error(text: str) -> None:
    try:
        specs = parse_hooks(text)
    except HookError as error:
        message = str(error)
    else:
        message = "fine"
        assert all(isinstance(each, HookSpec) for each in specs)
        assert parse_hooks(specs) == specs
    assert message.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
fields = st.fixed_dictionaries(
    {"layer_name": paths, "component": st.sampled_from(AVAILABLE_COMPONENTS)},
    optional={
        "hook_id": st.text(max_size=8) | json_values,
        "capture_input": st.booleans() | json_values,
        "capture_output": st.booleans() | json_values,
        "dtype": st.sampled_from(CAST_DTYPES) | json_values,
        "positions": st.sampled_from(["all", "last", "2:"]) | st.lists(st.integers()) | json_values,
        "phase": st.sampled_from(["both", "prefill", "decode"]) | json_values,
        "every": st.integers() | json_values,
        "heads": st.lists(st.integers()) | json_values,
        "reduction": st.sampled_from(["mean", "top_k", "head_norm"]) | json_values,
        "top_k": st.integers() | json_values,
    },
)


@given(fields)
def test_hooks_from_anywhere_are_whole_or_refused(hook: dict[str, object]) -> None:
    message = "fine"
    try:
        (parsed,) = parse_hooks(hook)
    except HookError as error:
        message = str(error)
    assert message.isprintable()
    if message != "fine":
        return
    assert parsed.component in AVAILABLE_COMPONENTS
    assert parsed.capture_input or parsed.capture_output
    assert parsed.every >= 1
    assert parse_hooks(parsed) == [parsed]
    assert parse_hooks(msgspec.json.encode(parsed).decode()) == [parsed]


def test_specs_need_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import neuroscope_fast.spec, neuroscope_fast.errors
neuroscope_fast.spec.parse_hooks("a:mlp")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
