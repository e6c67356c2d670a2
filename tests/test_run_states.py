"""A run through its life, in any order of events, against a list of what it must hold."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import nn

HOOKS = ["body:mlp:x", {"layer_name": "body", "component": "mlp", "hook_id": "y", "dtype": "bfloat16"}]


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def open_quietly(folder: Path) -> nsf.Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nsf.RunIncompleteWarning)
        return nsf.open(folder)


def leave(capture: nsf.Capture, error: BaseException | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nsf.CaptureWarning)  # of a run without a step
        capture.__exit__(None if error is None else type(error), error, None)


class RunStates(RuleBasedStateMachine):
    """`expected`: what the model has computed since the run began, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="nsf-states-"))
        self.folder = self.place / "run"
        self.model = Body()
        self.capture: nsf.Capture | None = None
        self.expected: list[torch.Tensor] = []
        self.synced = 0
        self.left: str | None = None  # the status that the run in the folder has, once it is closed

    def teardown(self) -> None:
        if self.capture is not None:
            leave(self.capture, None)
        shutil.rmtree(self.place)

    @rule(
        durability=st.sampled_from(["close", "shard", "4KiB", "0.001s"]),
        shard_bytes=st.sampled_from([500, 5000, 1 << 20]),
        blocks=st.integers(1, 4),
    )
    @precondition(lambda self: self.capture is None)
    def begin(self, durability: str = "shard", shard_bytes: int = 5000, blocks: int = 2) -> None:
        options: dict[str, Any] = {"durability": durability, "shard_bytes": shard_bytes}
        options |= {"block_bytes": 4096, "ring_bytes": 4096 * blocks}
        if self.left is not None:
            with pytest.raises(nsf.CaptureError, match="already holds a run"):
                nsf.capture(self.model, HOOKS, out=self.folder, **options).__enter__()
        self.capture = nsf.capture(self.model, HOOKS, out=self.folder, overwrite=True, **options)
        self.capture.__enter__()
        self.expected, self.synced, self.left = [], 0, None

    @rule(rows=st.integers(0, 40), width=st.sampled_from([1, 8, 63]))
    @precondition(lambda self: self.capture is not None)
    def step(self, rows: int, width: int) -> None:
        x = torch.randn(1, rows, width)
        self.model(x)
        self.expected.append(x)

    @rule()
    @precondition(lambda self: self.capture is not None)
    def sync(self) -> None:
        assert self.capture is not None
        self.capture.sync()
        self.synced = len(self.expected)
        assert self.capture.stats.acknowledged == 2 * self.synced

    @rule()
    @precondition(lambda self: self.capture is not None)
    def read_while_it_is_written(self) -> None:
        run = open_quietly(self.folder)
        assert run.status == "writing"
        self.check(run, least=self.synced)
        with pytest.raises(nsf.RunError, match="another process is writing"):
            nsf.recover(self.folder)
        with pytest.raises(nsf.CaptureError, match="another process is writing"):
            nsf.capture(Body(), HOOKS, out=self.folder, overwrite=True).__enter__()

    @rule()
    @precondition(lambda self: self.capture is not None)
    def crash_and_recover(self) -> None:
        """What a process that is killed now leaves; this one goes on."""
        copy = self.place / "copy"
        while True:
            try:
                shutil.copytree(self.folder, copy, copy_function=shutil.copy, ignore_dangling_symlinks=True)
                break
            except shutil.Error as error:  # a shard was published while it was copied: no process dies so slowly
                if not all("No such file" in why for _, _, why in error.args[0]):
                    raise
                shutil.rmtree(copy)
        run = nsf.recover(copy)
        assert run.status == "interrupted"
        assert run.verify() == []
        self.check(run, least=self.synced)
        before = {path.name: path.read_bytes() for path in copy.iterdir()}
        nsf.recover(copy)
        assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
        shutil.rmtree(copy)

    @rule(error=st.sampled_from([None, ValueError("the user's own"), KeyboardInterrupt()]))
    @precondition(lambda self: self.capture is not None)
    def close(self, error: BaseException | None) -> None:
        assert self.capture is not None
        leave(self.capture, error)
        self.left = "complete" if error is None else "interrupted"
        self.check(self.capture.result, least=len(self.expected))
        self.capture = None

    @rule()
    @precondition(lambda self: self.left is not None)
    def reopen(self) -> None:
        for run in (open_quietly(self.folder), nsf.recover(self.folder)):
            assert run.status == self.left
            assert run.verify() == []
            self.check(run, least=len(self.expected))

    @invariant()
    def hooks_are_there_only_while_it_runs(self) -> None:
        assert ("_compiled_call_impl" in vars(self.model.body)) == (self.capture is not None)

    def check(self, run: nsf.Run, least: int) -> None:
        """Both hooks hold a beginning of what was computed, and no less than they must."""
        for hook_id, dtype in (("x", torch.float32), ("y", torch.bfloat16)):
            steps = [record.step for record in run[hook_id].records]
            assert steps == list(range(len(steps)))
            assert least <= len(steps) <= len(self.expected)
            for stored, x in zip(run[hook_id], self.expected, strict=False):
                assert torch.equal(stored, x.to(dtype))


RunStates.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRunStates = RunStates.TestCase
