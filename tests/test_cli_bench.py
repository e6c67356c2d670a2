"""`neuroscope-fast bench`: what it prints, what it refuses to print, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from neuroscope_fast import capture_cost, cost_report, demo

Capsys = pytest.CaptureFixture[str]
CONTESTANTS = ["bare", "no-op hooks", "clone hooks", "neuroscope-fast, memory", "neuroscope-fast, disk"]
SHORT = ("bench", "--max-new-tokens", 2, "--rounds", 2)
RESIDUAL = "model.layers.{1,2}:residual"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.glob("**/nsf-bench-*")), "the folder of the runs is removed"


def figures(row: dict[str, Any], *names: str) -> list[dict[str, float]]:
    found = [row[name] for name in names]
    for each in found:
        assert each["p20"] <= each["median"] <= each["p80"]
        assert each["rounds"] == 2
    return found


def test_the_embedded_model(folder: Path, capsys: Capsys) -> None:
    done = run(capsys, *SHORT, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["model"]["name_or_path"] == "demo"
    assert report["places"] == 36, "residual, attention and mlp of twelve layers"
    rows = {row["name"]: row for row in report["contestants"]}
    assert list(rows) == CONTESTANTS
    assert all(row["refused"] is None for row in rows.values())
    for row in rows.values():
        assert figures(row, "returned")[0]["p20"] > 0
    for name in CONTESTANTS[1:]:
        assert figures(rows[name], "returned_ratio", "tensor_us", "entering_ms", "leaving_ms")[0]["p20"] > 0
        assert rows[name]["tensors"] == 36 * 2
    for name in CONTESTANTS[2:]:
        returned, ended = figures(rows[name], "returned", "ended")
        assert ended["median"] >= returned["median"]
        figures(rows[name], "ended_ratio")
    hidden = json.loads((demo.path() / "config.json").read_text())["hidden_size"]
    for name in CONTESTANTS[3:]:
        assert rows[name]["stored_bytes"] == 36 * (report["prompt_tokens"] + 1) * hidden * 4
        assert rows[name]["peak_ring_bytes"] > 0
        assert (rows[name]["stalls"] > 0) == (rows[name]["stall_seconds"] > 0)
    assert report["disk"]["refused"] is not None or report["disk"]["gigabytes_a_second"]["median"] > 0
    assert report["conclusion"].startswith("Capturing 36 places to this disk ")
    origin = report["provenance"]
    assert origin["versions"]["torch"] == torch.__version__
    assert origin["threads"] == 1, "as capture runs the embedded model"
    assert {"cpu", "cores", "gpus", "load_average", "file_system", "system"} <= origin.keys()
    assert list(folder.iterdir()) == []


def test_a_table_and_a_sentence(capsys: Capsys) -> None:
    done = run(capsys, *SHORT, "--hook", RESIDUAL, "--prompt", "A loop is")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("demo: ")
    assert "2 new tokens, 2 places; medians of 2 rounds" in lines[0]
    for name in CONTESTANTS:
        assert any(line.strip().startswith(name) for line in lines)
    assert lines[-1].startswith("Capturing 2 places to this disk ")
    assert lines[-1].count(". ") == 0
    assert "neuroscope-fast, disk: 4 tensors, " in done.out


def test_attention_split_by_head_is_seen_by_no_hook(capsys: Capsys) -> None:
    done = run(capsys, *SHORT, "--hook", "model.layers.1:attention_pattern", "--hook", RESIDUAL, "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in json.loads(done.out)["contestants"]}
    assert rows["no-op hooks"]["note"] == "no hook sees 1 of the 3 places"
    assert "1 of the 3 places could not be compared" in rows["neuroscope-fast, disk"]["note"]
    assert (rows["clone hooks"]["tensors"], rows["neuroscope-fast, disk"]["tensors"]) == (4, 6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int8"])
def test_casts_are_compared_with_torchs(capsys: Capsys, dtype: str) -> None:
    hooks = ("--hook", RESIDUAL, "--hook", "model.layers.3:neuron")
    done = run(capsys, *SHORT, *hooks, "--capture-dtype", dtype, "--prompt-tokens", 9, "--json")
    assert done.code == 0, done.out + done.err
    report = json.loads(done.out)
    assert (report["capture_dtype"], report["prompt_tokens"]) == (dtype, 9)
    assert all(row["refused"] is None for row in report["contestants"])


def test_what_fails_its_check_has_no_figure(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    difference = capture_cost.difference
    compared = []

    def wrong_on_disk(stored: Any, seen: Any, dtype: Any) -> str | None:
        found = difference(stored, [seen[0] + 1, *seen[1:]] if compared else seen, dtype)
        compared.append(found)
        return found

    monkeypatch.setattr(capture_cost, "difference", wrong_on_disk)
    done = run(capsys, *SHORT, "--hook", "model.layers.1:residual", "--json")
    assert done.code == 1
    report = json.loads(done.out)
    *able, disk = report["contestants"]
    assert all(row["refused"] is None for row in able)
    assert disk["refused"] == "not timed: tensor 0 of model.layers.1_residual is not what a cloning hook saw there"
    assert all(disk[name] is None for name in ("returned", "returned_ratio", "ended", "tensor_us", "stalls"))
    assert "has no figure" in report["conclusion"]


def test_other_tokens_have_no_figure(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = capture_cost.Scene.generate
    hooked = capture_cost.Hooked.try_out

    def other_tokens(contestant: capture_cost.Hooked) -> torch.Tensor:
        return hooked(contestant) + 1

    monkeypatch.setattr(capture_cost.Hooked, "try_out", other_tokens)
    monkeypatch.delenv("COLUMNS", raising=False)  # a narrow table breaks its notes
    done = run(capsys, *SHORT, "--hook", RESIDUAL)
    assert done.code == 1
    assert done.out.count("not timed: it generates other tokens than the bare model") == 2

    calls = iter(range(100))
    monkeypatch.setattr(capture_cost.Scene, "generate", lambda scene: generate(scene) + next(calls))
    done = run(capsys, *SHORT, "--hook", RESIDUAL)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "does not repeat its own tokens" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--hook", "model.layers.1:attentio"], 2, "did you mean attention?"),
        (["--hook", "model.layers.99:residual"], 2, "model.layers.99"),
        (["--prompt", "x", "--prompt-tokens", "3"], 2, "give it or --prompt, not both"),
        (["--prompt-tokens", "100000"], 2, "positions"),
        (["--capture-dtype", "float7"], 2, "'float7' is none of float32"),
        (["--ring", "1Mi"], 2, "--ring: '1Mi' is no size"),
        (["--rounds", "1"], 2, "--rounds"),
        (["--out-folder", "nowhere"], 2, "there is no directory nowhere"),
        (["--out-folder", "/proc"], 1, "cannot write in /proc"),
        (["--model", "./nowhere"], 1, "there is no folder './nowhere'"),
        (["--device", "nowhere"], 1, "cannot be moved to nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: Capsys, arguments: list[str], code: int, text: str) -> None:
    done = run(capsys, *SHORT, *arguments, "--json")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert text in done.err


def test_an_existing_folder_keeps_what_it_holds(folder: Path, capsys: Capsys) -> None:
    kept = folder / "kept"
    assert run(capsys, "capture", "-m", "demo", "-p", "x", "-n", 1, "--hook", RESIDUAL, "--out", kept / "run").code == 0
    (kept / "nothing").mkdir()
    (kept / "note.txt").write_text("mine")

    def contents() -> dict[str, tuple[bytes, int]]:
        files = [path for path in sorted(kept.rglob("*")) if path.is_file()]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = contents()
    done = run(capsys, *SHORT, "--hook", RESIDUAL, "--out-folder", kept, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["disk"]["folder"] == str(kept)
    assert contents() == before
    assert sorted(path.name for path in kept.iterdir()) == ["note.txt", "nothing", "run"]


def test_ctrl_c_leaves_nothing(folder: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def interrupted(scene: capture_cost.Scene, *_: object) -> None:
        scene.run_folder.mkdir()
        seen.append(scene.run_folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(cost_report, "measure", interrupted)
    assert run(capsys, *SHORT, "--hook", RESIDUAL) == (130, "", "interrupted\n")
    assert seen[0].is_relative_to(folder)
    assert list(folder.iterdir()) == []
