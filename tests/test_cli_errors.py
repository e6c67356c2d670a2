"""What the command line says when something is wrong: one line, and the right exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from command_line import command, environment, run
from neuroscope_fast.cli import capture as capture_command
from run_writer import RunWriter, random_tensor

HOOK = "model.layers.2.self_attn:attention:attention_layer_2"
Capsys = pytest.CaptureFixture[str]


def written_run(folder: Path) -> Path:
    writer = RunWriter(folder, ["a"])
    writer.add("a", random_tensor((4, 8)))
    return writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("model"))


WRONG: list[tuple[list[str], int, str]] = [
    (["--hook", "model.layers.2:attentio"], 2, "did you mean attention?"),
    (["--hook", "model.layers.2:attention_pattern", "--heads", "9"], 2, "there is no head 9; the module has"),
    (["--hook", "model.layers.2:attention_pattern", "--heads", "0,x"], 2, "--heads: '0,x' is no list of heads"),
    (["--hook", "model.layers.2:attention_pattern", "--reduction", "median"], 2, "available: mean, max"),
    (["--hook", HOOK, "--reduction", "mean"], 2, "is not split by head, and takes no reduction"),
    (["--hook", "model.layers.2.selfattn:attention"], 2, "nearest: model.layers.2.self_attn"),
    (["--hook", HOOK, "--hook", HOOK], 2, "comes twice"),
    (["--hook", HOOK, "model.layers.1:residual"], 2, "needs quotes: --hook 'model.layers.{0..11}:residual'"),
    (["--hook", HOOK, "--positions", "2:x"], 2, "positions"),
    (["--hook", HOOK, "--phase", "encode"], 2, "--phase: 'encode' is none of both, prefill, decode"),
    (["--hook", HOOK, "--every", "0"], 2, "--every"),
    (["--hook", HOOK, "--capture-dtype", "float7"], 2, "'float7' is none of float32"),
    (["--hook", HOOK, "--overflow", "spill"], 2, "'spill' is none of block, drop, fail"),
    (["--hook", HOOK, "--ring", "1Mi"], 2, "--ring: '1Mi' is no size"),
    (["--hook", HOOK, "--shard-size", "0"], 2, "--shard-size: '0' is no size"),
    (["--hook", HOOK, "--dtype", "float8"], 2, "available: auto, float32"),
    (["--hook", HOOK, "--device", "nowhere"], 1, "cannot be moved to nowhere"),
    (["--hook", HOOK, "--temperature", "warm"], 2, "--temperature"),
    (["--hook", HOOK, "--top-p", "2"], 2, "top_p is 2.0"),
    (["--hook", HOOK, "--sample", "--temperature", "0"], 2, "temperature 0 takes the likeliest token"),
    (["--hook", HOOK, "--analysis", "a/b"], 2, "becomes part of a file name"),
    (["--hook", HOOK, "--description", "x"], 2, "give --analysis NAME too"),
    (["--hook", HOOK, "--max-new-tokens", "500"], 2, "the model has 128"),
    (["--hook", HOOK, "--hooks", "nowhere.json"], 2, "cannot read hooks from nowhere.json"),
    (["--hook", HOOK, "--prompts-file", "nowhere.txt"], 2, "cannot read nowhere.txt"),
    (["--hook", HOOK, "--messages", "nowhere"], 2, "give a list such as"),
    (["--hook", HOOK, "--frobnicate"], 2, "--frobnicate"),
    (["--hook", HOOK, "--model", "gpt2"], 1, "model gpt2 is not on this machine"),
    (["--hook", HOOK, "--out", "/dev/null/run"], 1, "cannot create the run directory"),
    ([], 2, "no hooks given"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: " ".join(wrong[0]))
def test_what_is_wrong_is_one_line(
    folder: Path, tmp_path: Path, capsys: Capsys, wrong: tuple[list[str], int, str]
) -> None:
    arguments, code, text = wrong
    given = ["capture", "-m", folder, "-p", "x", "-o", tmp_path / "run", *arguments]
    done = run(capsys, *given, "--json")
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert text in done.err
    assert not (tmp_path / "run" / "capture.json").exists()


def test_no_prompt(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    done = run(capsys, "capture", "-m", folder, "-o", tmp_path, "--hook", HOOK)
    assert done.code == 2
    assert "give --prompt, --prompts-file or --messages; see `neuroscope-fast capture --help`" in done.err


def test_a_defect_is_no_users_mistake(
    folder: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(capture_command, "run_generation", broken)
    with pytest.raises(ZeroDivisionError):
        run(capsys, "capture", "-m", folder, "-p", "x", "-o", tmp_path, "--hook", HOOK)


@pytest.mark.parametrize(
    "wrong",
    [
        (["frobnicate"], 2, "No such command 'frobnicate'; see `neuroscope-fast --help`"),
        (["show"], 2, "Missing argument 'RUN'; see `neuroscope-fast show --help`"),
        (["show", "nowhere"], 1, "nowhere does not exist"),
        (["show", "."], 1, ". is not a run directory: it has no capture.json"),
        (["verify", "nowhere"], 1, "nowhere does not exist"),
        (["report", "nowhere.json"], 1, "nowhere.json cannot be read: No such file or directory"),
        (["report", "."], 1, ". is no run directory: capture.json cannot be read"),
        (["components", "./nowhere"], 1, "there is no folder './nowhere'"),
        (["doctor", "nowhere"], 2, "there is no directory nowhere"),
        (["demo", "-n", "0"], 2, "--max-new-tokens"),
    ],
)
def test_other_commands(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, wrong: tuple[list[str], int, str]
) -> None:
    arguments, code, text = wrong
    monkeypatch.chdir(tmp_path)
    done = run(capsys, *arguments)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert text in done.err
    assert done.err.count("\n") == 1


def test_without_arguments_there_is_help(capsys: Capsys) -> None:
    done = run(capsys)
    assert done.code in (0, 2)  # which of the two depends on the version of click below typer
    assert "Usage: neuroscope-fast [OPTIONS] COMMAND" in done.out
    assert done.err == ""
    assert run(capsys, "--help") == (0, done.out, "")


def test_version(capsys: Capsys) -> None:
    done = run(capsys, "--version")
    assert done.code == 0
    assert done.out.startswith("neuroscope-fast ")


@pytest.mark.parametrize("name", ["demo", "capture", "show", "report", "components", "verify", "bench", "doctor"])
def test_every_command_explains_itself(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert f"\n  {name} " in run(capsys, "--help").out
    done = run(capsys, name, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: neuroscope-fast {name} [OPTIONS]")
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments", [["--help"], ["show", "RUN", "--json"], ["show", "RUN"], ["report", "RUN"], ["show", "nowhere"]]
)
def test_quick_commands_do_without_torch(tmp_path: Path, arguments: list[str]) -> None:
    folder = written_run(tmp_path / "run")
    arguments = [str(folder) if argument == "RUN" else argument for argument in arguments]
    script = (
        "import sys; from neuroscope_fast.cli import main\n"
        f"main({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment())


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    with os.fdopen(writable, "wb") as nobody:
        process = subprocess.run(
            command("report", written_run(tmp_path / "run")),
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
            env=environment(),
        )
    assert process.stderr == b""
    assert process.returncode == 1
