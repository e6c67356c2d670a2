"""What a capture keeps of its prompts while it runs: their texts, and how many records each has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from .errors import CaptureError
from .prompt_log import Padding, PromptEntry, PromptLog, Text
from .records import Usage

if TYPE_CHECKING:
    from ._core import Session


def _short(entry: PromptEntry) -> PromptEntry:
    texts = [replace(text, token_ids=(), tokens=()) for text in entry.texts]
    return replace(entry, texts=texts)


class PromptRecorder:
    """Ends prompts: each becomes an entry, on disk a line of the log. Used by any number of threads.

    `out`: the run directory, None for a capture in memory, whose entries are kept. `before`: those of a run that is
    continued, whose lines are in the log already.
    """

    def __init__(self, session: Session, out: Path | None, before: Sequence[PromptEntry] = ()):
        self._session = session
        self._lock = threading.RLock()
        self._log = PromptLog(out) if out is not None else None
        self._texts: list[Text] = []  # of the prompt that is under way
        self._counted = (0, 0)  # records taken and dropped before it
        self._used = Usage()  # tokens that had gone through the model before it
        self._due: tuple[PromptEntry, tuple[int, int], Usage] | None = None
        self._entries = [_short(entry) for entry in before]
        self._closed = False
        self.failure: CaptureError | None = None
        """Why the log could not be written: raised at the end, since the model is not to be stopped by it."""
        self.count_tokens: Callable[[], Usage] = Usage
        """Says how many tokens have gone through the model."""
        self.take_padding: Callable[[], Padding] = lambda: Padding([], [])
        """Says what was padding in the prompt that ends, once."""

    @property
    def entries(self) -> list[PromptEntry]:
        """Of every prompt that has ended; on disk without its tokens, which would take memory without bound."""
        return list(self._entries)

    def add_text(self, text: Text) -> None:
        """What the model read and wrote in the prompt that is under way, for its next row."""
        with self._lock:
            self._texts.append(text)

    def next_prompt(self) -> None:
        """End the prompt that is under way, if anything has run in it."""
        with self._lock:
            if not self._closed:
                # What was detached has not seen the end of it.
                self._end(ended=not self._session.detached_by)

    def finish(self, *, ended: bool) -> None:
        """End the last prompt, if anything is known of it; `ended`: as it should, and not interrupted."""
        with self._lock:
            self._end(ended=ended, whatever_ran=bool(self._texts))

    def sync(self) -> None:
        """Make the log durable. Raises CaptureError."""
        with self._lock:
            if self._log is not None:
                self._log.sync()

    def close(self) -> None:
        """Let go of the file; no prompt ends any more. Can be called again."""
        with self._lock:
            self._closed = True
            if self._log is not None:
                self._log.close()

    def _end(self, *, ended: bool, whatever_ran: bool = False) -> None:
        self._settle()  # an interrupt may have come between two steps of this, the last time
        number = self._session.prompt
        stats = self._session.stats()
        counted, used = (stats["taken"], stats["drops"]), self.count_tokens()
        padding = self.take_padding()
        entry = PromptEntry(
            prompt=number,
            records=counted[0] - self._counted[0],
            drops=counted[1] - self._counted[1],
            usage=Usage(
                used.prompt_tokens - self._used.prompt_tokens,
                used.completion_tokens - self._used.completion_tokens,
                used.total_tokens - self._used.total_tokens,
            ),
            ended=ended,
            texts=list(self._texts),
            padding=padding.tokens,
            encoder_padding=padding.encoder,
        )
        self._due = (entry, counted, used)
        self._session.next_prompt()
        self._settle(whatever_ran=whatever_ran)

    def _settle(self, *, whatever_ran: bool = False) -> None:
        """Keep the entry that is due, if its prompt has ended."""
        if self._due is None:
            return
        entry, counted, used = self._due
        if whatever_ran or self._session.prompt != entry.prompt:
            del self._texts[: len(entry.texts)]
            self._counted, self._used = counted, used
            self._append(entry)
        self._due = None

    def _append(self, entry: PromptEntry) -> None:
        self._entries.append(entry if self._log is None else _short(entry))
        if self._log is not None and self.failure is None:
            try:
                self._log.append(entry)
            except CaptureError as error:
                self.failure = error
