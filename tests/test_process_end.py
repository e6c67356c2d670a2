"""What becomes of a capture when its process exits, forks, is killed, or runs into a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch

PRELUDE = """
import os, signal, sys
import torch
from torch import nn
import neuroscope_fast as nsf

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Identity()
    def forward(self, x):
        return self.body(x)

model, out = Model(), sys.argv[1]
tensor = lambda i: torch.full((1, 4, 64), float(i))
def start(**options):
    return nsf.capture(model, "body:mlp:x", out=out, ring_bytes=1 << 16, block_bytes=4096, **options)
"""


def run(script: str, out: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + script, str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "capture.json").read_bytes())


def check_values(found: nsf.Run, count: int) -> None:
    assert found.verify() == []
    assert [record.step for record in found["x"].records] == list(range(count))
    for index, tensor in enumerate(found["x"]):
        assert torch.equal(tensor, torch.full((1, 4, 64), float(index)))


def test_sys_exit_inside_the_block(tmp_path: Path) -> None:
    run("with start():\n    [model(tensor(i)) for i in range(20)]\n    sys.exit(3)", tmp_path / "run", expect=3)
    assert manifest(tmp_path / "run")["status"] == "interrupted"
    with pytest.warns(nsf.RunIncompleteWarning, match="SystemExit"):
        check_values(nsf.open(tmp_path / "run"), 20)


def test_a_block_that_is_never_left(tmp_path: Path) -> None:
    run("cap = start()\ncap.__enter__()\n[model(tensor(i)) for i in range(20)]", tmp_path / "run")
    assert "interpreter exited" in manifest(tmp_path / "run")["cause"]
    with pytest.warns(nsf.RunIncompleteWarning, match="interpreter exited"):
        check_values(nsf.open(tmp_path / "run"), 20)


def test_a_lost_capture_takes_its_hooks_along(tmp_path: Path) -> None:
    script = """
import gc
start().__enter__()
gc.collect()
assert not model.body._forward_hooks and "_compiled_call_impl" not in vars(model.body)
assert not model._forward_hooks and not model._forward_pre_hooks
"""
    run(script, tmp_path / "run")
    assert manifest(tmp_path / "run")["status"] == "interrupted"


def test_a_killed_process_leaves_what_was_written(tmp_path: Path) -> None:
    script = """
with start() as cap:
    for i in range(200):
        model(tensor(i))
    while cap.stats.bytes_written < 150 * 1024:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run(script, tmp_path / "run", expect=-signal.SIGKILL)
    names = {entry.name for entry in (tmp_path / "run").iterdir()}
    shard = "activations-float32-00000.safetensors"
    assert names == {"capture.json", f"{shard}.partial", f"{shard}.journal"}
    assert manifest(tmp_path / "run")["status"] == "writing"
    with pytest.warns(nsf.RunIncompleteWarning, match="interrupted"):
        found = nsf.open(tmp_path / "run")
    assert found.status == "interrupted"
    assert 150 <= len(found["x"]) <= 200
    for index, tensor in enumerate(found["x"]):
        assert torch.equal(tensor, torch.full((1, 4, 64), float(index)))


def test_published_shards_of_a_killed_run_keep_their_positions(tmp_path: Path) -> None:
    script = """
hook = {"layer_name": "body", "component": "mlp", "hook_id": "x", "positions": [1, 2], "dtype": "bfloat16"}
with nsf.capture(model, hook, out=out, ring_bytes=1 << 14, block_bytes=4096, shard_bytes=8192) as cap:
    for i in range(200):
        model(tensor(i))
    while cap.stats.bytes_written < 32 * 1024:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run(script, tmp_path / "run", expect=-signal.SIGKILL)
    assert len(list((tmp_path / "run").glob("*.safetensors"))) > 1
    with pytest.warns(nsf.RunIncompleteWarning, match="interrupted"):
        found = nsf.open(tmp_path / "run")
    assert len(found["x"]) >= 128
    for record in found["x"].records:
        assert (record.positions, record.source_dtype) == ([1, 2], "float32")


def test_a_forked_child_cannot_capture_and_harms_nothing(tmp_path: Path) -> None:
    script = """
with start() as cap:
    model(tensor(0))
    child = os.fork()
    if child == 0:
        try:
            model(tensor(99))
        except nsf.CaptureError as error:
            assert "forked" in str(error)
            sys.exit(7)  # leaves the block, and runs the exit handlers
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    model(tensor(1))
print(cap.result.status)
"""
    assert run(script, tmp_path / "run").stdout == "complete\n"
    check_values(nsf.open(tmp_path / "run"), 2)


def test_a_full_disk_stops_the_writing_and_keeps_what_is_whole(tmp_path: Path) -> None:
    # A limit on file size stands in for a full disk: the write fails with an errno in the writer thread.
    script = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with start() as cap:
    model(tensor(0))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 * 1024, hard))
    results = []
    try:
        for i in range(1, 2000):
            results.append(model(tensor(i)))
    except nsf.CaptureError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "cannot write" in message and "activations-float32-00000.safetensors.partial" in message, message
    assert "errno 27" in message
    assert all(torch.equal(result, tensor(i + 1)) for i, result in enumerate(results))
"""
    done = run(script, tmp_path / "run", expect=1)
    assert "CaptureError: cannot write" in done.stderr
    stored = manifest(tmp_path / "run")
    assert stored["status"] == "failed"
    assert "errno 27" in stored["cause"]
    with pytest.warns(nsf.RunIncompleteWarning, match="failed"):
        found = nsf.open(tmp_path / "run")
    assert 100 <= len(found["x"]) <= 136
    check_values(found, len(found["x"]))


def test_a_folder_that_cannot_be_made(tmp_path: Path, llama: Any) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(nsf.CaptureError, match="cannot create the run directory"),
        nsf.capture(llama, "model.layers.0:residual", out=tmp_path / "file" / "run"),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a tmpfs")
def test_a_file_system_in_memory(llama: Any, tokens: dict[str, torch.Tensor]) -> None:
    out = Path(f"/dev/shm/neuroscope-test-{os.getpid()}")
    try:
        with nsf.capture(llama, "model.layers.*:residual", out=out) as cap:
            llama(**tokens)
        assert cap.result.verify() == []
    finally:
        for entry in out.iterdir():
            entry.unlink()
        out.rmdir()
