"""The exceptions of neuroscope-fast. Every message is one line: the cause and, where there is one, the mend."""

from __future__ import annotations

_LONGEST = 2000  # characters; a name in a file of other origin may have millions


def one_line(text: str) -> str:
    """`text` without what could break its line or steer a terminal, and not longer than a message can be.

    Names in a run may be of any origin. Line breaks become spaces, other characters that are not printable their
    escapes: `\\x1b`.
    """
    text = _cut(text)
    if text.isprintable():
        return text
    escaped = (
        each if each.isprintable() else " " if each in "\r\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )
    return _cut("".join(escaped))


def _cut(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"


class NeuroscopeError(Exception):
    """Base of every error that neuroscope-fast raises on purpose."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


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
