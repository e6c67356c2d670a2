"""Names and texts of a run that would steer a terminal, or be markup: they are shown, and do nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from markdown_it import MarkdownIt
from neuroscope_fast.errors import HookError, NeuroscopeError, RunError, one_line
from neuroscope_fast.reader import RunIncompleteWarning, open_run
from neuroscope_fast.report import render
from neuroscope_fast.spec import parse_hooks
from run_writer import RunWriter, random_tensor

RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NAMES = {
    "escape": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;title\x07",
    "C1": "\x9b31mred",
    "newline": "a\nbad line\r\nerror: made up",
    "direction": "abc\u202edef\u2066",
    "rich": "[red]x[/red] [link=http://x.y]z[/link] [/nothing] :boom:",
    "html": "<img src=x onerror=alert(1)><script>x</script>",
    "markdown": "# x `y` ![a](javascript:b) [c](d) ***",
    "fence": "```\n</code>\n# heading",
    "up": "../../../etc/passwd",
    "absolute": "/etc/passwd",
    "NUL": "a\0b",
    "long": "n" * 10_000,
    "a key": "h/p1/000001/input",
}
Capsys = pytest.CaptureFixture[str]
each_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def hostile(folder: Path, name: str, **manifest: Any) -> RunWriter:
    """A run in which every text is `name`."""
    writer = RunWriter(folder, [name])
    writer.add(name, random_tensor((1, 3, 2)))
    writer.close()
    for record in writer.records[name]:
        record |= {"layer_name": name, "component": name, "reduction": name}
    writer.write_metadata()
    file = folder / writer.metadata_file
    document = json.loads(file.read_text())
    document |= {"timestamp": name, "generated_text": name}
    document["hook_configurations"][0] |= {"layer_name": name, "component": name}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    document["generations"] = [{"prompt": name, "generated_text": name, "usage": usage}] * 2
    file.write_text(json.dumps(document))
    told = {"warnings": [name], "cause": name, "created": name, "model": {"name_or_path": name, "class_name": name}}
    manifest = {**writer.manifest("complete"), **told, **manifest}
    (folder / "capture.json").write_text(json.dumps(manifest))
    return writer


def analysis(folder: Path, name: str) -> None:
    """The same as an analysis, which has a name and a description."""
    file = folder / "activation_capture.json"
    document = json.loads(file.read_text())
    document |= {"demo_type": "circuit_analysis", "analysis_name": name, "analysis_description": name, "hooks_used": 1}
    file.write_text(json.dumps(document))


@pytest.fixture(params=["60", "20000"])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which a table of hooks fits, and one on which it does not."""
    monkeypatch.setenv("COLUMNS", request.param)


@each_name
@pytest.mark.parametrize("of_analysis", [False, True])
@pytest.mark.usefixtures("columns")
def test_nothing_raw_reaches_the_terminal(name: str, of_analysis: bool, tmp_path: Path, capsys: Capsys) -> None:
    hostile(tmp_path, name)
    if of_analysis:
        analysis(tmp_path, name)
    for command in (["show"], ["show", "--json"], ["verify"], ["verify", "--json"], ["report"]):
        done = run(capsys, command[0], tmp_path, *command[1:])
        assert done.code == 0
        assert not RAW.search(done.out + done.err)
        if command == ["show", "--json"]:
            assert json.loads(done.out)["hooks"][0]["hook_id"] == name
        if command == ["show"]:
            assert done.err.startswith("warning: ")
            assert done.err.count("\n") == 1
            for text in ("[red]x[/red]", ":boom:") if name == NAMES["rich"] else ():
                assert done.out.count(text) >= 4  # shown as it is, and no style


@each_name
def test_what_verify_finds_is_told_in_one_line(name: str, tmp_path: Path, capsys: Capsys) -> None:
    (shard,) = hostile(tmp_path, name).shards
    data = bytearray((tmp_path / shard).read_bytes())
    data[-1] ^= 1
    (tmp_path / shard).write_bytes(data)
    done = run(capsys, "verify", tmp_path)
    assert done.code == 1
    assert done.out.count("\n") == 2
    assert done.out.startswith("bad  ")
    assert not RAW.search(done.out + done.err)
    (bad,) = json.loads(run(capsys, "verify", tmp_path, "--json").out)["bad"]
    assert bad["hook_id"] == name


@each_name
def test_what_a_record_names_is_told_in_one_line(name: str, tmp_path: Path, capsys: Capsys) -> None:
    writer = hostile(tmp_path, "h")
    for field in ("file", "key"):
        for record in writer.records["h"]:
            record["data"] = {"file": next(iter(writer.shards)), "key": "h/000000"} | {field: name}
        writer.write_metadata()
        with pytest.raises(RunError) as caught:
            open_run(tmp_path)["h"][0]
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2100
        done = run(capsys, "verify", tmp_path)
        assert (done.code, done.out.count("\n")) == (1, 2)
        assert not RAW.search(done.out + done.err)


@each_name
def test_errors_and_notices_are_one_line(name: str, tmp_path: Path, capsys: Capsys) -> None:
    hostile(tmp_path, name, status="failed")
    with pytest.warns(RunIncompleteWarning) as caught:
        assert len(open_run(tmp_path).records) == 1
    assert one_line(str(caught[0].message)) == str(caught[0].message)
    assert run(capsys, "show", tmp_path).err.count("\n") == 2  # the notice, and the warning of the manifest
    for changes in ({"status": name}, {"format": name}, {"metadata_file": name}, {"checksums": {"algorithm": name}}):
        hostile(tmp_path, name, **changes)
        done = run(capsys, "verify", tmp_path)
        assert done.code == 1
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert not RAW.search(done.err)
        assert len(done.err) < 2200


@each_name
@pytest.mark.parametrize("of_analysis", [False, True])
def test_a_report_has_the_same_structure_whatever_the_names(name: str, of_analysis: bool, tmp_path: Path) -> None:
    def tokens(text: str) -> list[str]:
        hostile(tmp_path, text)
        if of_analysis:
            analysis(tmp_path, text)
        document = render(tmp_path / "activation_capture.json")
        assert not RAW.search(document)
        parsed = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(document)
        inside = [child.type for token in parsed for child in token.children or []]
        assert not {"html_inline", "link_open", "image", "code_inline", "s_open", "em_open"} & set(inside)
        return [token.type for token in parsed]

    assert tokens(name) == tokens("plain")


def test_records_of_no_kind_of_tensor(tmp_path: Path, capsys: Capsys) -> None:
    writer = hostile(tmp_path, "h")
    for changes in ({"dtype": "\x1b[31m"}, {"shape": [2**62] * 40}, {"shape": [0] * 100}, {"shape": [10**400] * 100}):
        writer.records["h"] = [{**writer.records["h"][0], "dtype": "float32", "shape": [1, 3, 2], **changes}]
        writer.write_metadata()
        done = run(capsys, "show", tmp_path)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: the metadata JSON is not that of a run: a record of 'h' is ")
        assert done.err.count("\n") == 1
        done = run(capsys, "verify", tmp_path)
        assert (done.code, done.err) == (1, "")
        assert done.out.startswith("bad  h, step 0: its shard says float32 [1, 3, 2], its record ")
        assert not RAW.search(done.out)


def test_a_hook_that_is_called_like_a_file_reads_and_writes_none(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("../outside", str(outside)):
        hostile(tmp_path / "run", name)
        assert open_run(tmp_path / "run")[name].cat().shape == (1, 3, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "run"]
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("text", ["a\0b.json", "n" * 5000 + ".json", "\udc80.json", "a/" * 3000 + ".json"])
def test_hooks_in_a_file_that_cannot_be(text: str) -> None:
    with pytest.raises(HookError, match=r"^cannot read hooks from ") as caught:
        parse_hooks(text)
    assert one_line(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        ("*" * 40, "more than 4 wildcards between two dots"),
        ("{a,aa}" * 30 + "b", "more than 4 wildcards between two dots"),
        (".{0..4095}" * 1000, "has more than 4096 alternatives"),
        ("{" + "0..4095," * 1000 + "0}", "has more than 4096 alternatives"),
        ("{" + "x," * 10_000 + "x}", "has more than 4096 alternatives"),
        ("{1.." + "9" * 5000 + "}", "names layers that no model has"),
    ],
)
def test_patterns_that_would_match_for_hours(layer: str, problem: str) -> None:
    with pytest.raises(HookError, match=problem):
        parse_hooks({"layer_name": layer, "component": "mlp"})


@pytest.mark.parametrize("positions", ["9" * 5000 + ":", ":" + "9" * 5000, "::" + "9" * 5000, "9" * 990 + ":"])
def test_positions_with_thousands_of_digits(positions: str) -> None:
    with pytest.raises(HookError, match=r"positions '999|beyond 64 bits|positions '::?999"):
        parse_hooks({"layer_name": "a", "component": "mlp", "positions": positions})


def test_every_error_is_one_line() -> None:
    error = NeuroscopeError("a\nb\x1b[31m\u202e" + "n" * 5000 + "\ud800")
    assert str(error).startswith("a b\\x1b[31m\\u202ennn")
    assert str(error).endswith("nnn\\ud800")
    assert len(str(error)) < 2100
    assert str(NeuroscopeError("ünï 🙂 'x'")) == "ünï 🙂 'x'"
