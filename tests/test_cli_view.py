"""`neuroscope-fast view`: the page of a run, until Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import neuroscope_fast as nsf
import pytest
from command_line import command, environment, run

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("view") / "run"
    nsf.generate("demo", ["Recursion is"], ["model.layers.0.self_attn:attention_pattern"], path, max_new_tokens=2)
    return path


def test_view_serves_until_it_is_interrupted(folder: Path) -> None:
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *command("view", folder)],  # a job in the background has it ignored
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(rf"{re.escape(str(folder))}: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
        assert match, line
        with urllib.request.urlopen(match[1], timeout=30) as answer:
            assert b'"hook":"model.layers.0.self_attn_attention_pattern"' in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "", "ended\n")


# A browser that looks at the page and then ends the command as Ctrl-C does.
BROWSER = """
import os, signal, urllib.request, webbrowser
def look(url):
    print(urllib.request.urlopen(url.replace("0.0.0.0", "127.0.0.1")).status, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
webbrowser.open = look
from neuroscope_fast.cli import main
raise SystemExit(main(%r))
"""


def looked_at(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = BROWSER % (["view", *arguments, "--open"],)
    return subprocess.run(
        ["env", "--default-signal=INT", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=120,
    )


def test_view_opens_the_page_in_a_browser(folder: Path) -> None:
    done = looked_at(str(folder))
    assert (done.returncode, done.stderr) == (0, "ended\n")
    assert done.stdout.endswith("\n200\n")


def test_what_cannot_be_viewed_is_one_line(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    done = run(capsys, "view", folder, "--host", "0.0.0.0")
    assert done.code == 2
    assert done.err.startswith("error: 0.0.0.0 is no loopback address: everybody who can connect to it would read")
    assert run(capsys, "view", folder, "--port", 65536).code == 2
    done = run(capsys, "view", tmp_path / "nothing")
    assert (done.code, done.err) == (1, f"error: {tmp_path / 'nothing'} does not exist\n")
    nsf.generate("demo", ["One"], ["model.layers.0:residual"], tmp_path / "other", max_new_tokens=1)
    done = run(capsys, "view", tmp_path / "other")
    assert done.code == 1
    assert done.err == (
        "error: this run does not hold what an analysis of attention needs: capture it with --hook "
        "'model.layers.*:attention_pattern'\n"
    )


def test_an_exposed_run_is_told_aloud(folder: Path) -> None:
    done = looked_at(str(folder), "--host", "0.0.0.0", "--expose")
    assert re.match(r"warning: everybody who can connect to 0\.0\.0\.0, port \d+, reads this run's texts", done.stderr)
    assert done.stdout.endswith("\n200\n")
