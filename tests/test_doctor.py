"""`doctor`: what works here, and what it says where something does not."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import neuroscope_fast.cli.doctor as doctor_module
import pytest
import torch
from command_line import run
from neuroscope_fast import _core
from neuroscope_fast.cli import doctor_gpu
from neuroscope_fast.environment import package_version

Capsys = pytest.CaptureFixture[str]


def diagnose(capsys: Capsys, *arguments: object) -> tuple[int, dict[str, Any], dict[str, dict[str, str]]]:
    done = run(capsys, "doctor", *arguments, "--json")
    assert done.err == ""
    diagnosis: dict[str, Any] = json.loads(done.out)
    return done.code, diagnosis, {check["name"]: check for check in diagnosis["checks"]}


def test_here_captures_can_be_made(tmp_path: Path, capsys: Capsys) -> None:
    code, diagnosis, checks = diagnose(capsys, tmp_path)
    assert code == 0
    assert diagnosis["healthy"]
    assert diagnosis["versions"]["torch"] == package_version("torch")
    assert diagnosis["build"] == _core.build_info()
    assert checks["capture"]["state"] == "works"
    assert _core.build_info()["cpu_level"] in checks["native module"]["detail"]
    assert checks["tensor access"]["state"] in ("works", "limited")
    assert checks["direct I/O"]["state"] == ("works" if _core.supports_direct_io(str(tmp_path)) else "limited")
    assert str(tmp_path) in checks["direct I/O"]["detail"]
    assert list(tmp_path.iterdir()) == []  # what was tried leaves nothing behind
    if not torch.cuda.is_available():
        assert {checks[name]["state"] for name in ("CUDA", "Triton")} == {"unused"}


def test_for_people(capsys: Capsys) -> None:
    done = run(capsys, "doctor")
    assert (done.code, done.err) == (0, "")
    assert ["torch", package_version("torch")] in [line.split() for line in done.out.splitlines()]
    assert "captures are made from models on the CPU" in done.out or torch.cuda.is_available()
    assert "\x1b" not in done.out


def test_without_the_native_module(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuroscope_fast._core", None)
    code, diagnosis, checks = diagnose(capsys)
    assert code == 1
    assert not diagnosis["healthy"]
    assert diagnosis["build"] == {}
    assert "build it with `pip install .`" in checks["native module"]["detail"]
    assert run(capsys, "doctor").out.endswith("Captures cannot be made here: mend what fails.\n")


def test_old_and_missing_libraries(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.1+cpu", "transformers": None}
    monkeypatch.setattr(doctor_module, "package_version", lambda name: versions.get(name, "1.0"))
    code, _, checks = diagnose(capsys)
    assert code == 1
    assert checks["torch"]["detail"] == "2.9.1+cpu is older than 2.10: pip install -U 'torch>=2.10'"
    assert checks["transformers"]["detail"] == "not installed: pip install 'transformers>=5.10'"


def test_an_old_torch_has_no_exchange_table(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    code, _, checks = diagnose(capsys)
    assert code == 0
    assert checks["tensor access"]["state"] == "limited"


def test_a_file_system_without_direct_io(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "supports_direct_io", lambda _folder: False)
    code, _, checks = diagnose(capsys)
    assert code == 0
    assert checks["direct I/O"]["state"] == "limited"
    assert "page cache" in checks["direct I/O"]["detail"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, mode, **_options: mode != os.W_OK)  # root may write everywhere
    code, _, checks = diagnose(capsys, tmp_path)
    assert code == 1
    assert checks["direct I/O"]["state"] == "fails"


def test_whatever_breaks_is_a_finding(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = importlib.import_module("neuroscope_fast.capture")

    def broken(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(capture, "capture", broken)
    monkeypatch.setattr(importlib.import_module("neuroscope_fast.models"), "load_model", broken)
    code, _, checks = diagnose(capsys)
    assert code == 1
    assert checks["capture"] == {"name": "capture", "state": "fails", "detail": "RuntimeError: two lines"}
    assert checks["embedded model"]["state"] == "limited"


def test_a_driver_that_is_missing_is_told(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor_gpu, "_loads", lambda _library: False)
    _, _, checks = diagnose(capsys)
    assert checks["CUDA"]["state"] == "unused"
    assert checks["CUDA"]["detail"].endswith("no NVIDIA driver (libcuda.so.1 cannot be loaded)")


def test_a_device_that_cannot_be_captured_from_fails(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    monkeypatch.setattr(doctor_gpu, "_captures", lambda _device: False)
    code, _, checks = diagnose(capsys)
    assert code == 1
    assert checks["CUDA"]["detail"].startswith("a tensor captured from GPU 0 differs")
