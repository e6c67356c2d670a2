"""prompts.jsonl: what was read and written, through a kill, and read from files of any origin."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.prompt_log import PROMPTS_FILE, PromptEntry, PromptLog, Text, encode_prompt, read_prompts, texts_of
from neuroscope_fast.prompt_recorder import PromptRecorder
from neuroscope_fast.records import Usage
from torch import nn

TEXT = Text(prompt="a", generated_text=" b\n", usage=Usage(1, 2, 3), token_ids=[5, 6, 7], tokens=["a", " b", "\n"])
ENTRIES = [
    PromptEntry(prompt=0, records=3, drops=1, usage=Usage(1, 1, 2), texts=[TEXT, TEXT]),
    PromptEntry(prompt=1, records=0, ended=False),
]


def write(folder: Path, data: bytes) -> Path:
    (folder / PROMPTS_FILE).write_bytes(data)
    return folder


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    log = PromptLog(tmp_path)
    assert read_prompts(tmp_path) == []
    for number, entry in enumerate(ENTRIES, start=1):
        log.append(entry)
        assert read_prompts(tmp_path) == ENTRIES[:number]
    log.sync()
    log.close()
    log.close()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / PROMPTS_FILE).stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("cut", [1, 2, 30, 100])
def test_a_torn_line_ends_what_a_kill_left(tmp_path: Path, cut: int) -> None:
    data = b"".join(map(encode_prompt, ENTRIES))
    write(tmp_path, data[:-cut])
    assert read_prompts(tmp_path, torn=True) == ENTRIES[: data[:-cut].count(b"\n")]
    with pytest.raises(nsf.RunError, match=r"prompts\.jsonl, line [12], is not a prompt of a run") as error:
        read_prompts(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\x00\x00\x00\n",
        b"{}\n",
        b'{"prompt":1,"records":0}\n',
        b'{"prompt":-1,"records":0}\n',
        b'{"prompt":0,"records":1e300}\n',
        b'{"prompt":0,"records":0,"texts":[{"prompt":"","generated_text":"","usage":{},"token_ids":[1],"tokens":["a","b"]}]}\n',
        b'{"prompt":0,"records":0,"x":' + b"[" * 5000 + b"]" * 5000 + b"}\n",
        b'{"prompt":0,"records":0,"texts":[{"prompt":"\xff"}]}\n',
        b"\n",
    ],
)
def test_what_no_capture_writes(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, line)
    with pytest.raises(nsf.RunError, match="is not a prompt of a run"):
        read_prompts(tmp_path)
    assert read_prompts(tmp_path, torn=True) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(encode_prompt(ENTRIES[0]))
    (tmp_path / PROMPTS_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(nsf.RunError, match="symbolic link"):
        read_prompts(tmp_path)
    with pytest.raises(nsf.CaptureError, match="cannot write"):
        PromptLog(tmp_path).append(ENTRIES[1])


def test_text_that_is_no_unicode(tmp_path: Path) -> None:
    text = Text(prompt="\ud800a", generated_text="b\udfff", usage=Usage(), token_ids=[1], tokens=["\ud800"])
    write(tmp_path, encode_prompt(PromptEntry(prompt=0, records=0, texts=[text])))
    (read,) = read_prompts(tmp_path)[0].texts
    assert (read.prompt, read.generated_text, list(read.tokens)) == ("?a", "b?", ["?"])


def test_the_texts_of_all_rows_are_joined() -> None:
    told = texts_of(ENTRIES)
    assert told["generated_text"] == " b\n\n\n b\n"
    assert told["usage"] == Usage(2, 4, 6)
    assert [each.prompt for each in told["generations"]] == ["a", "a"]
    counted = texts_of([PromptEntry(prompt=0, records=1, usage=Usage(4, 2, 6)), ENTRIES[1]])
    assert counted == {"generated_text": "", "usage": Usage(4, 2, 6), "generations": []}


def test_a_capture_says_what_it_took_from_each_prompt(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    runs = []
    for out in (tmp_path / "run", None):
        with nsf.capture(llama, ["model.layers.*:residual", "model.layers.0.mlp:mlp"], out) as cap:
            cap.next_prompt()  # nothing has run: this is still the first prompt
            llama(**tokens)
            cap.add_generation("a", "b", prompt_tokens=1, completion_tokens=1, token_ids=[3, 4], tokens=["a", "b"])
            cap.add_generation("c", "", prompt_tokens=2, completion_tokens=0)
            cap.next_prompt()
            llama(**tokens)
            llama(**tokens)
        runs.append(cap.result)
    for run in [*runs, nsf.open(tmp_path / "run")]:
        first, second = run.prompts
        assert (first.records, second.records, first.ended, second.ended) == (3, 6, True, True)
        assert second.usage.total_tokens == 28
        assert [list(text.token_ids) for text in first.texts] == [[3, 4], []]
        assert second.texts == []
    with (
        pytest.raises(nsf.OptionError, match="tokens has 1 entries, and there are 2 tokens"),
        nsf.capture(llama, "model.layers.0:residual") as cap,
    ):
        cap.add_generation("a", "b", prompt_tokens=1, completion_tokens=1, tokens=["a"])


def test_a_log_that_cannot_be_written_is_an_error_at_the_end(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def run() -> None:
        with cap:
            (tmp_path / "run" / PROMPTS_FILE).mkdir()
            for _ in range(2):
                llama(**tokens)
                cap.next_prompt()

    cap = nsf.capture(llama, "model.layers.*:residual", tmp_path / "run")
    with pytest.raises(nsf.CaptureError, match=r"cannot write .*prompts\.jsonl: Is a directory"):
        run()
    assert cap.result.status == "failed"
    assert len(cap.result.records) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokens": ["a", "b"]}, "give these too"),
        ({"token_ids": [-100, 3]}, "`int` >= 0"),
        ({"token_ids": [1.5, 3]}, "'float' object"),
        ({"token_ids": [1, 2], "tokens": ["a", 2]}, "Expected `str`"),
        ({"prompt": None}, "Expected `str`"),
        ({"prompt_tokens": -1, "completion_tokens": 3}, "`int` >= 0"),
    ],
)
def test_texts_that_could_not_be_read_again(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with nsf.capture(llama, "model.layers.0:residual", tmp_path / "run") as cap:
        llama(**tokens)
        with pytest.raises(nsf.OptionError, match=re.escape(said)):
            cap.add_generation(
                **{"prompt": "a", "generated_text": "b", "prompt_tokens": 1, "completion_tokens": 1, **given}
            )
        ids: Any = torch.tensor([3, 4])
        cap.add_generation("a", "b", prompt_tokens=1, completion_tokens=1, token_ids=ids)
    run = nsf.open(tmp_path / "run")
    assert run.status == "complete"
    assert [list(text.token_ids) for text in run.prompts[0].texts] == [[3, 4]]


def test_after_the_block_no_prompt_ends(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with nsf.capture(llama, "model.layers.0:residual", tmp_path / "run") as cap:
        llama(**tokens)
    cap.next_prompt()
    assert [entry.records for entry in nsf.open(tmp_path / "run").prompts] == [1]


def test_an_interrupt_between_two_steps_leaves_no_gap(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nsf.capture(llama, "model.layers.0:residual", tmp_path / "run") as cap:
        for number in range(3):
            llama(**tokens)
            with monkeypatch.context() as patch:
                if number == 1:
                    patch.setattr(PromptRecorder, "_append", interrupt)
                with contextlib.suppress(KeyboardInterrupt):
                    cap.next_prompt()
    prompts = nsf.open(tmp_path / "run").prompts
    assert [entry.prompt for entry in prompts] == list(range(len(prompts)))


def interrupt(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_last_prompt_without_records_is_told_of(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    hook = {"layer_name": "model.layers.0", "component": "residual", "phase": "decode"}
    with nsf.capture(llama, hook, tmp_path / "run") as cap:
        llama(**tokens)
        cap.next_prompt()
        llama(**tokens)
    assert [(entry.records, entry.usage.total_tokens) for entry in cap.result.prompts] == [(0, 14), (0, 14)]
    assert cap.result.metadata.usage.total_tokens == 28


def test_a_file_of_that_name_which_is_of_no_run_stays(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    write(tmp_path, b'{"prompt": "What is recursion?"}\n')
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with (
            pytest.raises(nsf.CaptureError, match="is there, and is not of a run"),
            nsf.capture(llama, "model.layers.0:residual", tmp_path, **options),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [PROMPTS_FILE]
    for left in (b"", b'{"prompt":0,"rec', b'{"prompt":0\0\0\0\0\0\0\0\0\0\0\0\0\0'):
        with nsf.capture(llama, "model.layers.0:residual", write(tmp_path, left), overwrite=True):
            llama(**tokens)
