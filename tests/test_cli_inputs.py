"""What the command line reads: prompts, hooks, sizes; and the patterns that `components` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.cli.components import group
from neuroscope_fast.cli.console import count_text, printable, size_text
from neuroscope_fast.cli.inputs import read_hooks, read_prompts, read_size
from neuroscope_fast.cli.patterns import compress, number_set
from neuroscope_fast.errors import HookError, OptionError
from neuroscope_fast.layer_pattern import LayerPattern


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("256MiB", 256 << 20),
        ("256 mib", 256 << 20),
        ("4G", 4 << 30),
        ("1.5GiB", 3 << 29),
        ("500MB", 500_000_000),
        ("2TiB", 2 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text, "--ring") == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 XB", "0", "1e9", "0.1B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size"):
        read_size(text, "--ring")


def test_prompts_of_a_text_file_are_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('first\n\n  {"prompt": "as it stands"}  \r\nlast')
    assert read_prompts(["zeroth"], file, [], chat=False) == [
        "zeroth",
        "first",
        '  {"prompt": "as it stands"}  ',
        "last",
    ]


def test_prompts_of_a_jsonl_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    user = {"role": "user", "content": "Hé"}
    file.write_text(
        '"text"\n{"prompt": "two\\nlines"}\n\n{"messages": [{"role": "user", "content": "Hé"}]}\n'
        '[{"role": "user", "content": "Hé"}]\n',
        encoding="utf-8",
    )
    assert read_prompts([], file, [], chat=False) == ["text", "two\nlines", [user], [user]]
    chats = read_prompts([], file, [], chat=True)
    assert chats[0] == [{"role": "user", "content": "text"}]
    assert chats[2] == [user]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'"a"\n{"text": 1}\n', "line 2: it has neither prompt nor messages"),
        (b'"a"\n\n{"prompt": \n', "line 3 is not valid JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"", "there is no prompt"),
    ],
)
def test_wrong_prompt_files(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(typer.BadParameter, match=text):
        read_prompts([], file, [], chat=False)


def test_messages_from_text_and_file(tmp_path: Path) -> None:
    text = '[{"role": "user", "content": "Hello"}]'
    (tmp_path / "chat.json").write_text(text)
    chat = [{"role": "user", "content": "Hello"}]
    assert read_prompts([], None, [text, str(tmp_path / "chat.json")], chat=False) == [chat, chat]
    with pytest.raises(OptionError, match="each message is an object with role and content"):
        read_prompts([], None, ['[{"role": "user"}]'], chat=False)


def test_options_for_all_hooks_leave_alone_what_a_hook_says_itself(tmp_path: Path) -> None:
    file = tmp_path / "hooks.json"
    file.write_text(
        '[{"layer_name": "model.layers.0", "component": "mlp", "positions": [1], "phase": "prefill", "every": 2},'
        ' {"layer_name": "model.layers.1", "component": "mlp"}]'
    )
    own, given_, short = read_hooks(["model.layers.2:mlp"], [file], positions="0,-1", phase="decode", every=3)[
        1:
    ] + read_hooks(["model.layers.2:mlp"], [], positions="2:", phase=None, every=None)
    assert (own.positions, own.phase, own.every) == ([1], "prefill", 2)
    assert (given_.positions, given_.phase, given_.every) == ([0, -1], "decode", 3)
    assert (short.positions, short.phase, short.every) == ("2:", "both", 1)
    with pytest.raises(HookError, match="positions"):
        read_hooks(["model.layers.0:expert"], [], positions="last", phase=None, every=None)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([7], "7"), ([0, 1, 2], "{0..2}"), ([2, 10], "{2,10}"), ([5, 0, 1, 2], "{0..2,5}"), ([0, 1], "{0..1}")],
)
def test_number_sets(numbers: list[int], text: str) -> None:
    assert number_set(numbers) == text


def test_patterns_of_names_with_two_numbers() -> None:
    names = [f"h.{layer}.experts.{expert}" for layer in (0, 1, 3) for expert in range(4)] + ["h.2.experts.0"]
    patterns = [pattern for pattern, _ in compress(names)]
    assert patterns == ["h.{0..1,3}.experts.{0..3}", "h.2.experts.0"]


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(0, 2)), min_size=1))
def test_patterns_match_each_name_once_and_nothing_else(points: set[tuple[int, int, int]]) -> None:
    everything = [f"a.{x}.b.{y}.{z}" for x in range(5) for y in range(13) for z in range(3)]
    names = [f"a.{x}.b.{y}.{z}" for x, y, z in points]
    found: list[str] = []
    for pattern, matched in compress(names):
        assert sorted(name for name, _ in LayerPattern(pattern).expand(everything)) == sorted(matched)
        found += matched
    assert sorted(found) == sorted(names)


def test_places_are_grouped_by_component_in_their_order() -> None:
    places = [("embed", "embedding", "embed")]
    places += [(f"h.{n}", component, "") for n in range(3) for component in ("residual", "mlp")]
    places += [("lm_head", "logits", "")]
    assert [(each.hook, each.places) for each in group(places)] == [
        ("embed:embedding", 1),
        ("h.{0..2}:residual", 3),
        ("h.{0..2}:mlp", 3),
        ("lm_head:logits", 1),
    ]


def test_words() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 1536, 5 << 20, 3 << 40)] == [
        *("0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 TiB"),
    ]
    assert (count_text(1, "hook"), count_text(12345, "hook")) == ("1 hook", "12,345 hooks")
    assert printable("a\tb\nc\x1b[0m\x9b\u202e é漢🙂") == "a\tb\nc�[0m�� é漢🙂"
