"""The report: the reference document to the byte, and a sound document whatever the JSON holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from golden_runs import GOLDEN, REFERENCE_DOCUMENT, REFERENCE_JSON, RUNS
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from neuroscope_fast.errors import RunError
from neuroscope_fast.records import Metadata, encode_metadata
from neuroscope_fast.report import render
from test_markdown import TEXTS
from test_records import METADATA

REFERENCE: dict[str, Any] = json.loads(REFERENCE_JSON.read_bytes())


def section(report: str, title: str) -> list[str]:
    """The lines of one hook."""
    lines = report.splitlines()
    start = lines.index(title) + 1
    return lines[start : start + next(n for n, line in enumerate(lines[start:]) if not line.startswith("- "))]


def rendered(**changes: Any) -> str:
    return render(json.dumps(REFERENCE | changes).encode())


def test_the_reference_document_to_the_byte() -> None:
    assert render(REFERENCE_JSON).encode() == REFERENCE_DOCUMENT.read_bytes()
    assert render(str(REFERENCE_JSON)) == render(REFERENCE_JSON.read_bytes())


def test_the_entries_of_the_reference_run_are_bare_numbers() -> None:
    assert {hook: len(entries) for hook, entries in REFERENCE["activations"].items()} == {
        "model.layers.0.self_attn_attention": 30,
        "model.layers.10.self_attn_attention": 30,
        "model.layers.2.self_attn_attention": 60,
        "model.layers.5.self_attn_attention": 30,
    }
    assert all(type(n) is float for hook in REFERENCE["activations"].values() for entry in hook for n in entry)


@pytest.mark.parametrize("name", RUNS)
def test_the_golden_files(name: str) -> None:
    assert render(GOLDEN / f"{name}.json") == (GOLDEN / f"{name}_format.md").read_text(encoding="utf-8")


def test_nothing_is_unknown_in_a_run_of_ours() -> None:
    assert all("unknown" not in render(encode_metadata(metadata)) for metadata in RUNS.values())


def test_only_the_generated_line_depends_on_the_time() -> None:
    changed = rendered(timestamp="2030-01-01T00:00:00").splitlines()
    same = rendered().splitlines()
    differing = [number for number, lines in enumerate(zip(changed, same, strict=True)) if lines[0] != lines[1]]
    assert [changed[number] for number in differing] == ["Generated: 2030-01-01T00:00:00"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short"),
        ("x" * 100, "x" * 100),
        ("x" * 101, "x" * 100 + "..."),
        ("", ""),
        ("a\r\nb\n\n\nc", "a\nb\nc"),
        ("a\n# b\n- c\n1. d\n```\n---\n> e", "a\n\\# b\n\\- c\n1\\. d\n\\`\\`\\`\n\\---\n\\> e"),
        ("你好 🙂 ünï", "你好 🙂 ünï"),
    ],
)
def test_the_generated_text(text: str, shown: str) -> None:
    assert f'**Generated Text**: "{shown}"\n\n**Hooks Analyzed**: 4\n' in rendered(generated_text=text)


@pytest.mark.parametrize(
    ("sides", "captures"),
    [
        ({"capture_output": True}, "Output"),
        ({"capture_output": True, "capture_input": False}, "Output"),
        ({"capture_output": False, "capture_input": True}, "Input"),
        ({"capture_output": True, "capture_input": True}, "Input & Output"),
        ({"capture_output": False}, "Nothing"),
        ({}, "Output"),
    ],
)
def test_what_a_hook_captures(sides: dict[str, bool], captures: str) -> None:
    hook = {"layer_name": "l", "component": "mlp", "hook_id": "h", **sides}
    expected = f"\n\n1. **l**\n   - Component: mlp\n   - Hook ID: h\n   - Captures: {captures}\n\n## NeuroScope"
    assert expected in rendered(hook_configurations=[hook])


def test_one_hook_is_no_different_hooks() -> None:
    assert "captured activations from 1 hook across the model:" in rendered(hooks_used=1)


def record(**fields: Any) -> dict[str, Any]:
    return {
        "hook_id": "h",
        "layer_name": "l",
        "component": "mlp",
        "shape": [1, 1, 4],
        "dtype": "float32",
    } | fields


@pytest.mark.parametrize(
    ("entries", "lines"),
    [
        ([record()], ["l", "mlp", "1", "[1, 1, 4]", "float32"]),
        (
            [record(shape=[1, 7, 4]), record(), record()],
            ["l", "mlp", "3", "[1, 7, 4] (first), [1, 1, 4] × 2", "float32"],
        ),
        ([record(dtype="int8"), record()], ["l", "mlp", "2", "[1, 1, 4]", "int8 (first), float32 × 1"]),
        (
            [record(), [0.5]],
            ["l (first), unknown × 1", "mlp (first), unknown × 1", "2", "[1, 1, 4] (first), unknown × 1"],
        ),
        ([{}], ["unknown", "unknown", "1", "unknown", "unknown"]),
        ([[]], ["unknown", "unknown", "1", "unknown", "unknown"]),
        ([1, "x", None, True], ["unknown", "unknown", "4", "unknown", "unknown"]),
        (0.5, ["unknown", "unknown", "1", "unknown", "unknown"]),
        ({"a": 1}, ["unknown", "unknown", "1", "unknown", "unknown"]),
        (None, ["unknown", "unknown", "0", "none", "none"]),
        ([], ["unknown", "unknown", "0", "none", "none"]),
        ([record(layer_name="a\n# b")], ["a # b", "mlp", "1"]),
        (
            [record(layer_name=None, component=7, shape="torch.Size([1, 2])")],
            ["unknown", "7", "1", "torch.Size([1, 2])"],
        ),
        ([record(shape=[[1], [2]])], ["l", "mlp", "1", "[[1],[2]]"]),
        ([record(shape={"a": [1]}, dtype=["*"])], ["l", "mlp", "1", '{"a":[1]}', '["\\*"]']),
        ([record(shape=[]), record(shape=[True])], ["l", "mlp", "2", "[] (first), [true] × 1"]),
    ],
)
def test_the_lines_of_a_hook(entries: Any, lines: list[str]) -> None:
    found = section(rendered(activations={"h": entries}), "### h")
    names = ["Layer", "Component", "Activations", "Shape", "Data Type"]
    assert found[: len(lines)] == [f"- **{name}**: {line}" for name, line in zip(names, lines, strict=False)]


def test_a_hook_that_captured_nothing_is_known_by_its_configuration() -> None:
    hook = {"layer_name": "l", "component": "mlp", "hook_id": "h", "capture_output": True}
    found = section(rendered(activations={"h": []}, hook_configurations=[hook]), "### h")
    assert found[:3] == ["- **Layer**: l", "- **Component**: mlp", "- **Activations**: 0"]


@pytest.mark.parametrize("key", REFERENCE)
@pytest.mark.parametrize("value", [None, 7, "x", [], {}, [7], {"a": 7}, "delete"])
def test_any_key_may_be_missing_or_odd(key: str, value: Any) -> None:
    document = REFERENCE | {key: value, "unknown extra key": [1, {"a": None}]}
    if value == "delete":
        del document[key]
    assert render(json.dumps(document).encode()).startswith(("# Circuit Analysis", "# Activation Capture"))


def test_forms_that_python_writes_are_read() -> None:
    document = REFERENCE | {
        "activations": {"h": [[float("nan"), float("inf")]]},
        "generated_text": "a\udcffb",
    }
    assert '"a?b"' in render(json.dumps(document).encode())
    assert render("\ufeff".encode() + REFERENCE_JSON.read_bytes()) == render(REFERENCE_JSON)
    assert render(REFERENCE_JSON.read_text().encode("utf-16")) == render(REFERENCE_JSON)


def test_numbers_that_are_none() -> None:
    """Python's own decoder, which is asked where the other refuses, makes an infinity of the last."""
    for number in ("NaN", "-Infinity", "1e999"):
        data = f'{{"activations": {{"a": [{{"shape": [1, {number}], "dtype": "float32"}}]}}, "x": NaN}}'.encode()
        assert "- **Shape**: [1,null]\n" in render(data)


def test_as_many_hooks_as_configurations_take_no_time_together() -> None:
    names = [f"h{number}" for number in range(20_000)]
    asked = [{"hook_id": name, "layer_name": f"of {name}"} for name in names] + [{"hook_id": "h7"}, {"hook_id": [7]}]
    document = {"activations": {name: [] for name in names}, "hook_configurations": asked}
    assert "### Hook: h7\n- **Layer**: of h7\n" in render(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not JSON"),
        (b"# Circuit Analysis Data Format", "is not JSON"),
        (b'{"activations": {}', "is not JSON"),
        (b"\xff\xff\x00", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"[]", "is not the metadata JSON of a capture"),
        (b"null", "is not the metadata JSON of a capture"),
        (b"{}", "is not the metadata JSON of a capture"),
        (b'{"weight_map": {}}', "is not the metadata JSON of a capture"),
        (b'{"activations": [1]}', "is not the metadata JSON of a capture"),
        (b'{"metadata_file": "x.json"}', r"of a capture: its metadata is in x\.json"),
    ],
)
def test_what_is_no_metadata_is_said_in_one_line(data: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(data)
    with pytest.raises(RunError, match=problem) as caught:
        render(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere\.json cannot be read: No such file"):
        render(tmp_path / "nowhere.json")
    with pytest.raises(RunError, match="cannot be read: it is a folder"):
        render(tmp_path)


def headings(report: str) -> list[tuple[str, str]]:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(report)
    return [
        (token.tag, "".join(child.content for child in tokens[number + 1].children or []))
        for number, token in enumerate(tokens)
        if token.type == "heading_open"
    ]


def skeleton(report: str) -> list[str]:
    """The blocks of a document. Fences are compared by their number of lines."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(report)
    return [
        f"{token.type} {token.tag} {token.content.count(chr(10)) if token.type == 'fence' else ''}" for token in tokens
    ]


@given(text=TEXTS, name=TEXTS, layer=TEXTS)
@example(text="``` x", name="```", layer="** x **")
def test_no_text_breaks_the_document(text: str, name: str, layer: str) -> None:
    def document(text: str, name: str, layer: str) -> str:
        entries = {f"0{layer}": [record(layer_name=layer, component=layer, dtype=layer)]}
        hooks = [{"layer_name": layer, "component": layer, "hook_id": layer}]
        changes = {
            "analysis_name": name,
            "analysis_description": text,
            "generated_text": text,
            "timestamp": name,
        }
        return rendered(**changes, activations=entries, hook_configurations=hooks)

    assert skeleton(document(text, name, layer)) == skeleton(document("x", "x", "x"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["layer_name", "shape", "x"]), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*REFERENCE, "total_hooks", "x"]), JSON | st.dictionaries(st.text(), JSON)))
def test_any_document_is_rendered_or_refused(document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    known = document.get("demo_type") in ("circuit_analysis", "activation_capture")
    if not known and not isinstance(document.get("activations"), dict):
        with pytest.raises(RunError, match=r"^the metadata JSON is not the metadata JSON of a capture$"):
            render(data)
        return
    report = render(data)
    report.encode()
    assert headings(report)[0][1].startswith(("Circuit Analysis", "Activation Capture"))


@given(METADATA)
def test_every_run_of_ours_is_rendered(metadata: Metadata) -> None:
    report = render(encode_metadata(metadata))
    total = sum(map(len, metadata.activations.values()))
    assert f"**Total Activation Tensors**: {total}\n" in report
    assert len(headings(report)) >= 6 + len(metadata.activations)


def test_heads_and_reductions_are_told() -> None:
    records = [
        {
            "hook_id": "m",
            "layer_name": "l.0",
            "component": "attention_pattern",
            "shape": [1, 3, length],
            "dtype": "float32",
            "is_input": False,
            "heads": [0, 2],
            "reduction": "mean",
        }
        for length in (3, 4, 5)
    ]
    plain = [{**records[0], "hook_id": "p", "heads": None, "reduction": None}]
    document = {"demo_type": "activation_capture", "total_hooks": 2, "activations": {"m": records, "p": plain}}
    report = render(json.dumps(document).encode())
    section, rest = report.split("### Hook: m")[1].split("### Hook: p")
    assert "- **Shape**: [1, 3, 3 to 5]\n" in section
    assert "- **Reduction**: mean\n- **Heads**: [0, 2]\n" in section
    assert "Reduction" not in rest.split("##")[0]
