"""What a capture costs with one model on one machine: the bare model, hooks and captures generate the same tokens.

Each contestant is checked before it is timed (`racing.race`): its tokens are those of the bare model, and what it
captured is what cloning hooks saw in the very same passes. In every timed round the tokens are compared again.
"""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .capture import Capture, capture
from .errors import CaptureError, HookError
from .generate import generate_tokens
from .hooks import make_plan
from .manifest import Counters, sync_folder
from .model_components import Place
from .model_map import components, resolve_hooks
from .models import LoadedModel
from .plain_hooks import PlainHooks, difference, hookable
from .racing import CheckError, Contestant
from .sampling import generation_arguments

if TYPE_CHECKING:
    from .reader import Run
    from .spec import HookSpec

USUAL = ("residual", "attention", "mlp")
"""The components that are captured of every layer where no hook is given."""


def usual_hooks(model: Any) -> list[str]:
    """Residual stream, attention and MLP of every layer. Raises HookError for a model that has none of them."""
    found = [f"{layer}:{name}" for layer, name, _ in components(model) if name in USUAL]
    if not found:
        raise HookError(f"{type(model).__name__} has no {', '.join(USUAL)}: say what to capture (--hook)")
    return found


class Scene:
    """What every contestant does: one prompt, greedily continued by so many tokens, the same hooks.

    Raises HookError for hooks that cannot be on this model, and CaptureError for a model that does not repeat its own
    tokens: with that, no contestant could be checked.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: list[int],
        max_new_tokens: int,
        hooks: list[HookSpec],
        folder: Path,
        *,
        dtype: str | None = None,
        **options: Any,
    ):
        self.loaded, self.prompt, self.hooks, self.dtype = loaded, prompt, hooks, dtype
        self.new_tokens = max_new_tokens
        self.run_folder = folder / "run"
        self._options = options
        self._arguments = generation_arguments(
            max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None, seed=None,
            ignore_eos=True,
        )  # fmt: skip
        self.plan = make_plan(resolve_hooks(loaded.model, hooks), dtype)
        self.places = [tap.place for tap in self.plan.taps if hookable(tap.place)]
        self._devices = {parameter.device for parameter in loaded.model.parameters() if parameter.device.type == "cuda"}
        self.tokens = self.generate()
        if not torch.equal(self.tokens, self.generate()):
            raise CaptureError("the model does not repeat its own tokens, so that nothing could be compared with them")

    def generate(self) -> torch.Tensor:
        """The tokens, once every device has computed what was asked of it."""
        tokens = generate_tokens(self.loaded, self.prompt, self._arguments)
        self.synchronise()
        return tokens

    def synchronise(self) -> None:
        for device in self._devices:
            torch.cuda.synchronize(device)

    def capture(self, *, to_disk: bool) -> Capture:
        out = self.run_folder if to_disk else None
        return capture(self.loaded.model, self.hooks, out, dtype=self.dtype, **self._options)


class Marks(NamedTuple):
    """Seconds from the start of a round: the hooks are on; the tokens are there; all is durable, or in hand."""

    entered: float
    returned: float
    ended: float

    @property
    def generating(self) -> float:
        return self.returned - self.entered


class Timed(ABC):
    """A contestant that notes the marks of each round."""

    name: str
    note = ""
    keeps = False
    """Whether it captures anything, so that there is an end after generate's return."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.told: Callable[[], object] = lambda: None
        """Called after the check and after each round."""
        self.marks: list[Marks] = []
        self.tensors = 0
        """How many tensors, or calls of hooks, a round has; known once it has been checked."""

    @abstractmethod
    def round(self) -> tuple[torch.Tensor, float, float]:
        """The tokens, and the clock's time when the hooks were on and when the tokens were there."""

    def try_out(self) -> torch.Tensor:
        """A round with all that can be checked of it; the tokens. Raises CheckError."""
        return self.round()[0]

    def clean(self) -> None:  # noqa: B027 - most have nothing to clean
        """After a round, off the clock."""

    def check(self) -> None:
        try:
            if not torch.equal(self.try_out(), self.scene.tokens):
                raise CheckError("it generates other tokens than the bare model")
        finally:
            self.clean()
            self.told()

    def work(self) -> float:
        try:
            start = time.perf_counter()
            tokens, entered, returned = self.round()
            ended = time.perf_counter()
        finally:
            self.clean()
            self.told()
        if not torch.equal(tokens, self.scene.tokens):
            raise CaptureError(f"{self.name}: it generated other tokens than the bare model, in a round that was timed")
        self.marks.append(Marks(entered - start, returned - start, ended - start))
        return ended - start

    def contestant(self) -> Contestant:
        return Contestant(self.name, self.work, self.check, self.note)


class Bare(Timed):
    name = "bare"

    def round(self) -> tuple[torch.Tensor, float, float]:
        entered = time.perf_counter()
        return self.scene.generate(), entered, time.perf_counter()


class Hooked(Timed):
    """Python hooks on the places of the capture that hooks can see: `clones`, or nothing at all."""

    def __init__(self, scene: Scene, *, clones: bool):
        super().__init__(scene)
        self.name = "clone hooks" if clones else "no-op hooks"
        self.keeps = clones
        unseen = len(scene.plan.taps) - len(scene.places)
        told_so = [f"no hook sees {unseen} of the {len(scene.plan.taps)} places"] if unseen else []
        self.note = "; ".join([*told_so, "all tensors stay in the model's memory"] if clones else told_so)
        self._kept: list[torch.Tensor] = []

    def _see(self, _place: Place, tensor: torch.Tensor) -> None:
        self._kept.append(tensor.clone())

    def _hooks(self) -> AbstractContextManager[PlainHooks]:
        return PlainHooks(self.scene.loaded.model, self.scene.places, self._see if self.keeps else None)

    def round(self) -> tuple[torch.Tensor, float, float]:
        with self._hooks():
            entered = time.perf_counter()
            tokens = self.scene.generate()
            returned = time.perf_counter()
        return tokens, entered, returned

    def try_out(self) -> torch.Tensor:
        calls = 0

        def count(_place: Place, _tensor: torch.Tensor) -> None:
            nonlocal calls
            calls += 1

        with PlainHooks(self.scene.loaded.model, self.scene.places, count):
            tokens = super().try_out()
        if self.keeps and len(self._kept) != calls:
            raise CheckError(f"it kept {len(self._kept)} tensors, not {calls}")
        self.tensors = calls
        return tokens

    def clean(self) -> None:
        self._kept.clear()


class Fast(Timed):
    """neuroscope-fast, to disk or to memory."""

    keeps = True

    def __init__(self, scene: Scene, *, to_disk: bool):
        super().__init__(scene)
        self.name = f"neuroscope-fast, {'disk' if to_disk else 'memory'}"
        self._to_disk = to_disk
        unseen = len(scene.plan.taps) - len(scene.places)
        self.note = f"{unseen} of the {len(scene.plan.taps)} places could not be compared with a hook" if unseen else ""
        self._run: Run | None = None
        self.counters: list[Counters] = []
        self.stored = 0
        """Bytes that a round stores; known once it has been checked."""
        self.warnings: list[str] = []

    def round(self) -> tuple[torch.Tensor, float, float]:
        with self.scene.capture(to_disk=self._to_disk) as running:
            entered = time.perf_counter()
            tokens = self.scene.generate()
            returned = time.perf_counter()
        self._run = running.result
        return tokens, entered, returned

    def try_out(self) -> torch.Tensor:
        seen: dict[Place, list[torch.Tensor]] = {place: [] for place in self.scene.places}
        model = self.scene.loaded.model
        with PlainHooks(model, self.scene.places, lambda place, tensor: seen[place].append(tensor.clone())):
            tokens = super().try_out()
        run = self._run
        assert run is not None
        self.tensors, self.stored = len(run.records), run.manifest.counters.bytes_written
        self.warnings = run.manifest.warnings
        for each in self.scene.plan.hooks:
            place = each.hook.output
            if place is not None and place in seen:
                wrong = difference(run[each.hook.hook_id], seen[place], each.dtype)
                if wrong is not None:
                    raise CheckError(wrong)
        if self._to_disk and (bad := run.verify()):
            raise CheckError(f"{bad[0].key} in {bad[0].file} is {bad[0].reason}")
        return tokens

    def clean(self) -> None:
        if self._run is not None:
            self.counters.append(self._run.manifest.counters)
            self._run = None
        if self._to_disk and self.scene.run_folder.exists():
            shutil.rmtree(self.scene.run_folder)
            sync_folder(self.scene.run_folder.parent)  # or the next contestant pays for the removal


def contestants(scene: Scene) -> list[Timed]:
    """In the order of the report: the bare model first, the capture to disk last."""
    return [
        Bare(scene),
        Hooked(scene, clones=False),
        Hooked(scene, clones=True),
        Fast(scene, to_disk=False),
        Fast(scene, to_disk=True),
    ]
