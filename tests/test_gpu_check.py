"""`make gpu-check` without a GPU: its message, limits and report, and its tests and benchmarks on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import gpu_kernels
import gpu_report
import pytest
import torch
from gpu_common import Device, has_errors, ratios_to, same_bits, section, write_json

REPO = Path(__file__).parent.parent
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **WITHOUT_GPU, **environment}
    return subprocess.run(command, env=given, cwd=REPO, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    result = run("make", "gpu-check", f"PYTHON={sys.executable}", OUT=str(tmp_path))
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert lines[0].startswith("gpu-check: there is no GPU: torch ")
    assert "Error 1" in result.stderr  # the exit code of the recipe
    assert list(tmp_path.iterdir()) == []


def test_gpu_tests_are_skipped_without_a_gpu_and_fail_where_they_were_chosen() -> None:
    pytest_command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    path = "tests/gpu/test_gpu_streams.py"
    skipped = run(*pytest_command, path)
    assert skipped.returncode == 0, skipped.stdout
    assert "passed" not in skipped.stdout
    assert "there is no GPU" in skipped.stdout
    chosen = run(*pytest_command, "-m", "gpu", path)
    assert chosen.returncode != 0
    assert "-m gpu chooses nothing but GPU tests, and there is no GPU" in chosen.stderr + chosen.stdout


def test_tests_and_benchmarks_on_the_cpu(tmp_path: Path) -> None:
    """Everything but the build, with tiny sizes, as one command."""
    command = (sys.executable, "bench/gpu_check.py", "--device", "cpu", "--parts", "tests,kernels,capture")
    result = run(*command, OUT=str(tmp_path))
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert result.returncode == 0, result.stdout + result.stderr + logs
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {name: part["result"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("tests", "kernels", "capture"), "passed"
    )
    counts = found["parts"]["tests"]["counts"]
    assert counts["passed"] > 50
    assert counts["failed"] == counts["errors"] == 0
    assert (tmp_path / "gpu_tests.xml").read_text().count("<testcase") == counts["passed"] + counts["skipped"]
    decode = found["capture"]["llama tiny, decode"]
    assert set(decode["ratio_to_bare"]) == {
        "nsf memory",
        "nsf disk",
        "hooks .cpu()",
        "hooks .to(non_blocking)",
        "hooks .clone()",
    }
    assert all(decode["same_results"].values())
    assert decode["captures"]["nsf disk"]["records"] == 6 * 5
    assert "head_reduce entropy bfloat16" in found["kernels"]
    assert result.stdout.rstrip().splitlines()[-1].startswith("pinned_dtoh_gb_s")  # the table is last
    assert {path.name for path in tmp_path.iterdir()} == {
        "gpu_check.json",
        "gpu_tests.xml",
        "tests.log",
        "kernels.log",
        "capture.log",
    }


def test_a_part_that_fails_or_hangs_is_ended_and_told_of(tmp_path: Path) -> None:
    commands = {
        "good": [sys.executable, "-c", "print('done')"],
        "bad": [sys.executable, "-c", "raise SystemExit(3)"],
        "slow": [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"],
    }
    limit = gpu_check.GRACE_SECONDS + 3
    start = time.monotonic()
    found = gpu_check.run_all(commands, limit, tmp_path / "part.log", os.environ)
    assert time.monotonic() - start < limit + 60  # and not 600; a busy machine starts processes late
    assert found == {"good": "passed", "bad": "failed: exit code 3", "slow": "failed: timed out"}
    assert [path.name for path in tmp_path.iterdir()] == ["part.log"]
    log = (tmp_path / "part.log").read_text()
    assert "done" in log
    assert "begun" in log


def test_no_part_keeps_the_next_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "WORK", tmp_path / "work")
    results: dict[str, Any] = {"parts": {}}
    check = gpu_check.Check("cpu", tmp_path, results, end=time.monotonic() + 600)
    limits: dict[str, float] = {}

    def part(name: str, result: str | None) -> Any:
        def play(limit: float) -> dict[str, Any]:
            limits[name] = limit
            if result is None:
                raise KeyError("a defect")
            return {"result": result}

        return play

    for name, result in {"build": "passed", "tests": "failed: x", "kernels": None, "capture": "passed"}.items():
        monkeypatch.setattr(check, name, part(name, result))
    check.run_parts(list(gpu_check.RESERVED))
    assert [part["result"] for part in results["parts"].values()] == [
        "passed",
        "failed: x",
        "failed: KeyError: 'a defect'",
        "passed",
    ]
    assert json.loads((tmp_path / "gpu_check.json").read_text()) == results
    assert limits["capture"] == pytest.approx(600, abs=5)
    assert limits["build"] == pytest.approx(600 - sum(gpu_check.RESERVED.values()) + gpu_check.RESERVED["build"], abs=5)
    assert sum(gpu_check.RESERVED.values()) < gpu_check.TOTAL_SECONDS < 540


@pytest.mark.parametrize("number", range(6))
def test_no_rate_is_reported_for_a_wrong_result(number: int) -> None:
    device = Device("cpu")
    case = gpu_kernels.by_twins(gpu_kernels.cases(device, tiny=True)[number])
    good = gpu_kernels.measure(case, device, copy_gb_s=10.0)
    assert good["gb_s"] > 0
    assert good["share_of_device_copy"] == pytest.approx(good["gb_s"] / 10, abs=0.01)

    def off(tensor: torch.Tensor) -> Any:
        first, *rest = case.twin(tensor)
        wrong = first.clone()
        wrong.view(-1)[-1] = wrong.view(-1)[-1].float() * 2 + 1
        return lambda: (wrong, *rest)

    bad = gpu_kernels.measure(gpu_kernels.Case(case.name, case.make, off, case.twin, case.tolerance), device, 10.0)
    assert list(bad) == ["error"]
    assert has_errors({"case": bad})


def test_arguments_of_a_kernel_address_every_element() -> None:
    from neuroscope_fast.kernels import reference

    for tensor in (torch.randn(4, 32, 16, 128).transpose(1, 2), torch.randn(64, 256)):
        out, programs, (address, target, table, begin, count, *numbers), tile = gpu_kernels.cast_launch(
            tensor, torch.bfloat16
        )
        assert (address, target, table, begin) == (tensor.data_ptr(), out.data_ptr(), 0, 0)
        assert count == tensor.numel() == out.numel()
        length, stride, *dimensions = numbers
        gathered = reference.gather(
            torch.empty(0).set_(tensor.untyped_storage()),
            0,
            length=length,
            stride=stride,
            sizes=tuple(dimensions[::2]),
            strides=tuple(dimensions[1::2]),
        )
        assert torch.equal(gathered, tensor.reshape(-1))
        assert programs * tile["rows"] * tile["columns"] >= count > (programs - 1) * tile["rows"] * tile["columns"]


def test_ratios_are_taken_within_a_round() -> None:
    times = {"bare": [1.0, 2.0, 4.0], "slow": [1.5, 2.0, 8.0]}
    assert ratios_to(times, "bare") == {"slow": {"median": 1.5, "low": 1.0, "high": 2.0, "rounds": 3}}


def test_a_section_keeps_its_error_and_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results: dict[str, Any] = {}
    with section(results, "good", path) as found:
        found["value"] = 1
    assert not has_errors(results)
    with section(results, "bad", path):
        raise ValueError("out of luck")
    assert json.loads(path.read_text()) == results
    assert results["bad"]["error"] == "ValueError: out of luck"
    assert has_errors([results])
    write_json(path, {})
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


def test_bits_tell_zeros_apart() -> None:
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))


def test_xml_files_are_put_together(tmp_path: Path) -> None:
    cases = '<testcase classname="a" name="x"/><testcase classname="a" name="y"><skipped message="why"/></testcase>'
    bad = '<testcase classname="b" name="z"><failure message="wrong&#10;more">trace</failure></testcase>'
    for name, content in (("one", cases), ("two", bad)):
        (tmp_path / f"{name}.xml").write_text(f"<testsuites><testsuite>{content}</testsuite></testsuites>")
    paths = [tmp_path / f"{name}.xml" for name in ("one", "two", "never_written")]
    note = gpu_report.merge_junit(paths, tmp_path / "all.xml")
    assert note["counts"] == {"passed": 1, "failed": 1, "errors": 0, "skipped": 1}
    assert note["failures"] == {"b::z": "wrong"}
    assert note["skips"] == {"why": 1}
    assert (tmp_path / "all.xml").read_text().count("<testcase ") == 3


def test_the_table_shows_errors_in_place_of_numbers() -> None:
    results = {
        "environment": {"driver": None, "torch": "2", "triton": "3"},
        "commit": "unknown",
        "date": "today",
        "seconds": 3,
        "parts": {"tests": {"result": "failed: x", "seconds": 1.0, "counts": {"passed": 2}, "failures": {"t": "why"}}},
        "kernels": {"ceilings": {"device_copy_gb_s": 3000}, "cast": {"error": "it is wrong"}},
        "capture": {"llama, decode": {"error": "it changed"}, "ceilings": {"pinned_dtoh_gb_s": 55}},
    }
    text = gpu_report.table(results)
    assert "failed: x (2 passed)" in text
    assert "FAILED t: why" in text
    assert "it is wrong" in text
    assert "llama, decode: it changed" in text
    assert text.endswith("pinned_dtoh_gb_s: 55")
