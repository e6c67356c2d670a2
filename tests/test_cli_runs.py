"""`show`, `report` and `verify`: what is told of a run that is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Outcome, run, run_process
from neuroscope_fast.report import render
from run_writer import RunWriter, random_tensor

SHARD = "activations-float32-00000.safetensors"
Capsys = pytest.CaptureFixture[str]


def writer_of(folder: Path) -> RunWriter:
    """Hook `a` with a prefill, two steps and an int8 record; `b` names the same data; `empty` has nothing."""
    writer = RunWriter(folder, ["a", "b", "empty"], shared={"b": "a"}, analysis="survey")
    writer.add("a", random_tensor((1, 7, 8)))
    for step in (1, 2):
        writer.add("a", random_tensor((1, 1, 8), seed=step), step=step)
    writer.add("a", torch.ones(1, 1, 8, dtype=torch.int8), step=3, source="float32", scale=torch.ones(1, 1))
    return writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return writer_of(tmp_path / "run").close()


BYTES = 7 * 8 * 4 + 2 * 8 * 4 + 8 + 4


def test_show_as_json(folder: Path, capsys: Capsys) -> None:
    done = run(capsys, "show", folder, "--json")
    assert (done.code, done.err) == (0, "")
    summary = json.loads(done.out)
    assert summary["run"] == str(folder)
    assert (summary["status"], summary["notice"]) == ("complete", None)
    assert summary["metadata_file"] == "circuit_analysis_survey.json"
    assert summary["report_file"] == "circuit_analysis_survey_format.md"
    assert summary["usage"]["total_tokens"] == 10
    assert summary["hooks"][1] == {
        "hook_id": "b",
        "layer_name": "model.layers.0",
        "component": "residual",
        "records": 4,
        "shapes": [{"shape": [1, 7, 8], "records": 1}, {"shape": [1, 1, 8], "records": 3}],
        "dtypes": ["float32", "int8"],
        "bytes": BYTES,
    }
    empty = summary["hooks"][2]
    assert (empty["layer_name"], empty["component"], empty["records"], empty["shapes"]) == (
        "model.layers.2",
        "residual",
        0,
        [],
    )
    assert (summary["records"], summary["bytes"]) == (8, BYTES)  # what two hooks share is stored once
    assert summary["counters"]["bytes_written"] == 123


@pytest.mark.parametrize("columns", [None, "80", "120"])
def test_show_loses_nothing_whatever_the_width(
    folder: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    done = run(capsys, "show", folder)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    for text in ("text\n", "[1, 7, 8] (first), [1, 1, 8] × 3", "float32, int8", "300 B", "none", "model.layers.2"):
        assert text in done.out
    assert f"{folder}: complete, captured from a model without a name" in done.out
    assert "3 hooks, 8 records, 300 B; 7 prompt and 3 completion tokens" in done.out


def test_a_long_name_is_never_broken(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "a-hook-with-a-long-name-" * 5
    writer = RunWriter(tmp_path, [name])
    writer.add(name, random_tensor((1, 7, 8)))
    assert name in run(capsys, "show", writer.close()).out


def test_a_generated_text_cannot_steer_the_terminal(tmp_path: Path, capsys: Capsys) -> None:
    writer = writer_of(tmp_path)
    file = writer.close() / writer.metadata_file
    file.write_text(file.read_text().replace('"text"', '"bell\\u0007 and \\u001b[31mred [bold]\\ttab"'))
    assert "bell� and �[31mred [bold]" in run(capsys, "show", tmp_path).out


def test_several_prompts(tmp_path: Path, capsys: Capsys) -> None:
    writer = writer_of(tmp_path)
    file = writer.close() / writer.metadata_file
    metadata = json.loads(file.read_text())
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    metadata["generations"] = [{"prompt": f"p{n}", "generated_text": f" t{n}", "usage": usage} for n in range(5)]
    file.write_text(json.dumps(metadata))
    lines = run(capsys, "show", tmp_path).out.splitlines()
    assert lines[:4] == ["p0 t0", "p1 t1", "p2 t2", "… and 2 texts more in circuit_analysis_survey.json"]


def test_an_interrupted_run_says_so(tmp_path: Path, capsys: Capsys) -> None:
    killed = writer_of(tmp_path / "killed").kill()
    done = run(capsys, "show", killed, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["status"] == "interrupted"
    assert "was interrupted" in json.loads(done.out)["notice"]
    for name in ("show", "verify"):
        done = run(capsys, name, killed)
        assert done.code == 0
        assert done.err.startswith(f"note: {killed} was interrupted")
        assert done.err.count("\n") == 1


def test_warnings_of_a_capture(folder: Path, capsys: Capsys) -> None:
    manifest = json.loads((folder / "capture.json").read_text())
    manifest |= {"warnings": ["hook 'empty' captured nothing"], "dropped": [{"hook_id": "a", "step": 9}]}
    (folder / "capture.json").write_text(json.dumps(manifest))
    err = run(capsys, "show", folder).err
    assert err.splitlines() == [
        "warning: hook 'empty' captured nothing",
        "warning: dropped since the ring was full: 1 record (listed in capture.json)",
    ]


def test_report_to_stdout_is_the_document_itself(folder: Path) -> None:
    expected = render(folder / "circuit_analysis_survey.json")
    for source in (folder, folder / "circuit_analysis_survey.json"):
        assert run_process("report", source) == Outcome(0, expected, "")


def test_report_to_a_file(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "report.md"
    assert run(capsys, "report", folder, "--out", out) == (0, "", f"wrote {out}\n")
    assert out.read_text() == render(folder / "circuit_analysis_survey.json")
    out.write_text("mine")
    refused = run(capsys, "report", folder, "--out", out)
    assert (refused.code, refused.err) == (
        1,
        f"error: {out} is there already: choose another name, or add --overwrite\n",
    )
    assert out.read_text() == "mine"
    assert run(capsys, "report", folder, "--out", out, "--overwrite").code == 0
    assert out.read_text() != "mine"


def test_report_never_overwrites_what_it_reads(folder: Path, capsys: Capsys) -> None:
    source = folder / "circuit_analysis_survey.json"
    before = source.read_bytes()
    assert run(capsys, "report", folder, "--out", source, "--overwrite").code == 2
    assert run(capsys, "report", folder, "--out", folder).code == 2
    assert run(capsys, "report", folder, "--out", folder / "no" / "such.md").code == 1
    assert source.read_bytes() == before


def test_verify_a_whole_run(folder: Path, capsys: Capsys) -> None:
    assert run(capsys, "verify", folder) == (0, f"{folder}: 8 records verified, 300 B, all good\n", "")
    verdict = json.loads(run(capsys, "verify", folder, "--json").out)
    assert verdict == {
        "run": str(folder),
        "status": "complete",
        "notice": None,
        "records": 8,
        "bytes": BYTES,
        "bad": [],
    }


def test_verify_lists_what_is_bad(folder: Path, capsys: Capsys) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[4096] ^= 1
    (folder / SHARD).write_bytes(data)
    done = run(capsys, "verify", folder)
    assert done.code == 1
    assert done.out.startswith("bad  a, step 0: its checksum is ")
    assert f" when it was written ({SHARD}, a/000000)\n" in done.out
    assert done.out.endswith(f"{folder}: 1 of 8 records are bad\n")
    done = run(capsys, "verify", folder, "--json")
    assert done.code == 1
    (bad,) = json.loads(done.out)["bad"]
    assert (bad["hook_id"], bad["file"], bad["key"]) == ("a", SHARD, "a/000000")
    assert (bad["step"], bad["prompt"], bad["call"], bad["is_input"]) == (0, 0, 0, False)
    assert "when it was written" in bad["reason"]


def test_verify_a_run_that_lost_a_shard(folder: Path, capsys: Capsys) -> None:
    (folder / SHARD).unlink()
    verdict = json.loads(run(capsys, "verify", folder, "--json").out)
    assert {bad["key"] for bad in verdict["bad"]} == {"a/000000", "a/000001", "a/000002", "a/000003/scale"}
