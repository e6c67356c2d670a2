"""`prompts.jsonl`: what the model read and wrote, a line for each prompt of a run.

A line is appended when its prompt has ended, so that a capture which is killed keeps the texts of all prompts before.
The keys are described in docs/file_format.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from .errors import CaptureError, RunError
from .files import read_regular
from .records import Count, Generation, Usage, total_usage

PROMPTS_FILE = "prompts.jsonl"
LINE_BEGIN = b'{"prompt":0,"records":'
"""As every such file begins."""


class Text(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the model read and wrote in one row of the batch.

    `token_ids`: those of the prompt, then the generated ones, of which the model never reads the last. `tokens`: the
    text of each. Both are empty where they are not known.
    """

    prompt: str
    generated_text: str
    usage: Usage
    token_ids: Sequence[Count] = ()
    tokens: Sequence[str] = ()


class PromptEntry(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One prompt of a run.

    `records`: how many tensors the capture took from it (scales of int8 not counted), `drops`: how many found no room.
    `usage`: the tokens that went through the model. `ended`: the capture went on
    to the next prompt, or was closed; not so where it was interrupted in this one. `texts`: for each row of the batch,
    if the capture was told. `padding`: for each row of the batch a flat list, start and stop of each range of positions
    that is padding in the first pass; empty where there is none. `encoder_padding`: that of what an encoder has read.
    """

    prompt: Count
    records: Count
    drops: Count = 0
    usage: Usage = Usage()
    ended: bool = True
    texts: list[Text] = []
    padding: list[list[Count]] = []
    encoder_padding: list[list[Count]] = []


class Padding(NamedTuple):
    """Of one prompt, as its entry says it."""

    tokens: list[list[int]]
    encoder: list[list[int]]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(PromptEntry)


class PromptLog:
    """Appends to the `prompts.jsonl` of a run that is being written. Not thread-safe."""

    def __init__(self, folder: Path):
        self._path = folder / PROMPTS_FILE
        self._descriptor = -1

    def append(self, entry: PromptEntry) -> None:
        """Write a line, in one piece. Raises CaptureError."""
        line = memoryview(encode_prompt(entry))
        try:
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = os.open(self._path, flags, 0o666)
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise CaptureError(f"cannot write {self._path}: {error.strerror}") from error

    def sync(self) -> None:
        """Make all lines durable. Raises CaptureError."""
        try:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
        except OSError as error:
            raise CaptureError(f"cannot make {self._path} durable: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the file. Can be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def encode_prompt(entry: PromptEntry) -> bytes:
    """A line of the file. Text that is no valid UTF-8 (lone surrogates) is written with `?` in its place."""
    try:
        return _encoder.encode(entry) + b"\n"
    except UnicodeEncodeError:
        texts = [
            msgspec.structs.replace(
                text,
                prompt=_valid(text.prompt),
                generated_text=_valid(text.generated_text),
                tokens=[_valid(token) for token in text.tokens],
            )
            for text in entry.texts
        ]
        return _encoder.encode(msgspec.structs.replace(entry, texts=texts)) + b"\n"


def read_prompts(folder: Path, *, torn: bool = False) -> list[PromptEntry]:
    """The prompts of a run; none where it has no such file.

    `torn`: what a killed capture left behind, which is read up to the first line that is not whole. Raises RunError.
    """
    path = folder / PROMPTS_FILE
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return []
    entries: list[PromptEntry] = []
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n"):
                raise msgspec.DecodeError("it is cut short")
            entry = _decoder.decode(line)
            if entry.prompt != len(entries):
                raise msgspec.DecodeError(f"it is of prompt {entry.prompt}, and that of {len(entries)} is due")
            if any(len(text.tokens) not in (0, len(text.token_ids)) for text in entry.texts):
                raise msgspec.DecodeError("it has other numbers of tokens and of their ids")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if torn:
                break
            raise RunError(f"{path}, line {number}, is not a prompt of a run: {error}") from error
        entries.append(entry)
    return entries


def texts_of(entries: Sequence[PromptEntry]) -> dict[str, Any]:
    """What the metadata JSON says of the prompts of a run: `generated_text`, `usage` and `generations`. Tokens are
    counted as they went through the model where no texts are known.
    """
    generations = generations_of(entries)
    return {
        "generated_text": "\n\n".join(each.generated_text for each in generations),
        "usage": total_usage([each.usage for each in generations] or [entry.usage for entry in entries]),
        "generations": generations if len(generations) > 1 else [],
    }


def generations_of(entries: Iterable[PromptEntry]) -> list[Generation]:
    """The texts of a run, as the metadata JSON holds them."""
    return [Generation(text.prompt, text.generated_text, text.usage) for entry in entries for text in entry.texts]


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
