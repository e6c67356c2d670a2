"""Progress bars on stderr for long work; silent where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .console import size_text

if TYPE_CHECKING:
    from ..generate import GenerationProgress

_REFRESHES = 5  # a second: drawing must not take the model's time


def _bar(*, by_itself: bool = True) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True, markup=False, highlight=False, emoji=False),
        disable=not sys.stderr.isatty(),
        transient=True,
        auto_refresh=by_itself,
        refresh_per_second=_REFRESHES,
        expand=True,
    )


@contextmanager
def _shown(*, start: bool = True, by_itself: bool = True) -> Iterator[Progress]:
    """`by_itself`: drawn from a thread of its own, now and then; else when it is told to."""
    bar = _bar(by_itself=by_itself)
    try:
        if start and not bar.disable:
            bar.start()
        yield bar
    finally:
        if not bar.disable:  # old versions of rich end the line even so
            bar.stop()


class GenerationMeter:
    """What `generate` is given as its `progress`: measures, and moves the bar."""

    def __init__(self, bar: Progress, task: TaskID | None):
        self._bar = bar
        self._task = task  # made at the first token where it is None
        self._begun: float | None = None
        self._first: float | None = None
        self._drawn = 0.0
        self.seconds = 0.0
        """From the first prompt's start to the last token, the loading of the model not counted."""
        self.tokens = 0
        self.most_tokens = 0
        self.tokens_per_second = 0.0
        """From the first token on: what comes before it is the prompt's length, and libraries that warm up."""

    @property
    def started(self) -> bool:
        """Whether the model has been loaded and the run is being written."""
        return self._begun is not None

    def __call__(self, progress: GenerationProgress) -> None:
        now = time.perf_counter()
        self.most_tokens = progress.most_tokens
        self._measure(now, progress.tokens)
        if self._bar.disable or (now - self._drawn < 1 / _REFRESHES and progress.prompt < progress.prompts):
            return
        self._drawn = now
        self._draw(progress)

    def _measure(self, now: float, tokens: int) -> None:
        if self._begun is None:
            self._begun = now
        if tokens and self._first is None:
            self._first = now
        if tokens > self.tokens:  # not when it is told that all is done
            self.tokens, self.seconds = tokens, now - self._begun
            if self._first is not None and now > self._first:
                self.tokens_per_second = (tokens - 1) / (now - self._first)

    def _draw(self, progress: GenerationProgress) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", detail="")
        captured = size_text(progress.capture.stats.bytes_in)
        which = f"prompt {min(progress.prompt + 1, progress.prompts)}/{progress.prompts}"
        self._bar.update(
            self._task,
            description=which if progress.prompts > 1 else "generating",
            total=progress.most_tokens,
            completed=progress.tokens,
            detail=f"{progress.tokens}/{progress.most_tokens} tokens  {self.tokens_per_second:.1f} tokens/s  "
            f"{captured} captured",
        )


@contextmanager
def generation_meter(*, loading: bool) -> Iterator[GenerationMeter]:
    """A bar for the tokens of `generate`, with `loading` also for what comes before them."""
    with _shown(start=loading) as bar:
        yield GenerationMeter(bar, bar.add_task("loading the model", total=None, detail="") if loading else None)


@contextmanager
def byte_meter(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for work that reads bytes: what it gives is called with the number of bytes of each piece."""
    with _shown() as bar:
        task = bar.add_task(description, total=max(total, 1), detail="")
        done = 0
        start = time.perf_counter()
        drawn = 0.0

        def advance(size: int) -> None:
            nonlocal done, drawn
            done += size
            now = time.perf_counter()
            if bar.disable or (now - drawn < 1 / _REFRESHES and done < total):
                return
            drawn = now
            rate = size_text(done / (now - start)) if now > start else "0 B"
            bar.update(task, completed=done, detail=f"{size_text(done)} of {size_text(total)}  {rate}/s")

        yield advance


@contextmanager
def step_meter(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar for work that is timed: it is drawn only when what it gives is called, after each of so many steps."""
    with _shown(by_itself=False) as bar:
        task = bar.add_task(description, total=total, detail=f"0/{total}")
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, detail=f"{done}/{total}", refresh=True)

        yield advance


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """A bar for work whose length is not known."""
    with _shown() as bar:
        bar.add_task(description, total=None, detail="")
        yield
