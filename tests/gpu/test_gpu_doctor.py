"""`doctor` on a GPU: it captures from each device, and says who launches the kernels."""

from __future__ import annotations

import json

import pytest
from command_line import run

pytestmark = pytest.mark.gpu


@pytest.mark.usefixtures("cuda")
def test_every_device_is_captured_from(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert checks["CUDA"]["state"] == "works", checks["CUDA"]
    assert checks["Triton"]["state"] == "works", checks["Triton"]
