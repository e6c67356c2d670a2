"""The exceptions of neuroscope-fast. Every message is one line: the cause and, where there is one, the mend."""

from __future__ import annotations


class NeuroscopeError(Exception):
    """Base of every error that neuroscope-fast raises on purpose."""


class HookError(NeuroscopeError, ValueError):
    """A hook specification is wrong: unknown field or component, duplicate id, no side, no such layer."""


class CaptureError(NeuroscopeError, RuntimeError):
    """A capture cannot start, or the engine failed while it ran."""


class RunError(NeuroscopeError):
    """A run directory, or a file of one, cannot be read or is torn."""


class ModelError(NeuroscopeError):
    """A model or tokenizer cannot be loaded."""


class CaptureWarning(UserWarning):
    """A capture went through, and something about it is probably not what was meant."""


class OptionError(CaptureError, ValueError):
    """An option of a capture or a generation has a value that it cannot have."""
