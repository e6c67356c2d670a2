"""Ctrl-C at any point of a capture's beginning and end leaves no hook on the model."""

from __future__ import annotations

import gc
import sys
from types import FrameType
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
from conftest import hook_state
from neuroscope_fast import attention_interface
from torch import nn
from transformers.modeling_utils import AttentionInterface

WATCHED = (
    *("capture.py", "running_capture.py", "attachment.py", "hooks.py", "passes.py", "module.py"),
    *("attention_attach.py", "attention_interface.py", "module_calls.py", "background_sync.py", "run_directory.py"),
)
POINTS = 60
"""How many points, spread evenly over all the bytecodes that are run, are interrupted."""


class Interrupter:
    """Raises KeyboardInterrupt before the n-th bytecode of the watched files; counts them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(WATCHED):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def interrupted(model: nn.Module, side: str, at: int) -> int:
    """Enter or leave a capture with an interrupt at one point. Gives the number of points that were passed."""
    interrupter = Interrupter(at)
    cap = nsf.capture(model, ["model.layers.0:residual", "model.layers.1:neuron", "model.layers.1:attention_pattern"])
    before = sys.gettrace()
    try:
        if side == "exit":
            cap.__enter__()
            model(architectures.inputs("llama")["input_ids"])
        sys._getframe().f_trace_opcodes = True  # Python 3.12 gives opcodes only if a frame wants them by now
        sys.settrace(interrupter)
        if side == "enter":
            cap.__enter__()
            sys.settrace(before)
            model(architectures.inputs("llama")["input_ids"])
        cap.__exit__(None, None, None)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    del cap
    gc.collect()
    return interrupter.count


@pytest.mark.parametrize("side", ["enter", "exit"])
def test_an_interrupt_leaves_no_hook(side: str) -> None:
    model = architectures.build("llama")
    clean = hook_state(model)
    listening = vars(AttentionInterface)["get_interface"]
    total = interrupted(model, side, at=0)
    assert total > POINTS
    for point in range(1, total + 1, max(1, total // POINTS)):
        interrupted(model, side, point)
        assert hook_state(model) == clean, f"interrupted at {point} of {total}"
        assert vars(AttentionInterface)["get_interface"] is listening, f"interrupted at {point} of {total}"
        assert not attention_interface._listeners
