"""Who races in generate.py: the bare model, neuroscope-fast, what one would write by hand, and the peers."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import torch
from harness import CheckError, Contestant, Row
from peers import LLAMA_PLACES, HiddenStates, Lens, Nnsight, Peer, check_values, clones, first_tensor, invite
from peers import layer_modules as hooked
from safetensors.torch import save_file
from stack import PlainHooks
from step_files import Steps, in_steps, make_durable, named, read_back, save_run


@dataclass
class Scene:
    """The model, its prompt, and what is true of it: the tokens it generates and what its hooked modules give out."""

    model: Any
    ids: torch.Tensor
    new_tokens: int
    tokens: torch.Tensor
    steps: Steps
    folder: Path = field(default_factory=Path)

    @classmethod
    def of(cls, model: Any, ids: torch.Tensor, new_tokens: int) -> Scene:
        scene = cls(model, ids, new_tokens, torch.empty(0), [])
        scene.tokens = scene.generate()
        flat = clones(hooked(model), scene.generate)
        scene.steps = in_steps(flat, len(hooked(model)))
        if len(scene.steps) != new_tokens:
            raise RuntimeError(f"{len(scene.steps)} forward passes, not {new_tokens}")
        return scene

    def generate(self) -> torch.Tensor:
        return self.model.generate(self.ids, max_new_tokens=self.new_tokens, do_sample=False)  # type: ignore[no-any-return]

    def run(self) -> Path:
        return self.folder / "run"


class Timed(ABC):
    """A contestant that notes both marks of a round: generate has returned, and all is durable."""

    name: str
    note = ""
    tolerance = 0.0

    def __init__(self, scene: Scene):
        self.scene = scene
        self.returned: list[float] = []
        self.stages: dict[str, list[float]] = {}

    def forget(self) -> None:
        """Before another race."""
        self.returned.clear()
        self.stages.clear()

    @abstractmethod
    def round(self) -> tuple[torch.Tensor, float]:
        """Generates, and makes all durable in `scene.run()`; the ids, and the clock's time when generate returned."""

    @abstractmethod
    def captured(self) -> Steps:
        """What the round that has just run captured, read back from where it put it."""

    def expected(self) -> Steps:
        return self.scene.steps

    def work(self) -> float:
        try:
            start = time.perf_counter()
            _, returned = self.round()
            end = time.perf_counter()
        finally:
            shutil.rmtree(self.scene.run(), ignore_errors=True)
        self.returned.append(returned - start)
        return end - start

    def check(self) -> None:
        try:
            tokens, _ = self.round()
            if not torch.equal(tokens, self.scene.tokens):
                raise CheckError("it generates other tokens than the bare model")
            found, expected = self.captured(), self.expected()
            if len(found) != len(expected):
                raise CheckError(f"{len(found)} steps, not {len(expected)}")
            for one, other in zip(found, expected, strict=True):
                check_values(one, other, self.tolerance)
        finally:
            shutil.rmtree(self.scene.run(), ignore_errors=True)

    def contestant(self) -> Contestant:
        return Contestant(self.name, self.work, self.check, self.note)


class Bare(Timed):
    name = "bare"

    def round(self) -> tuple[torch.Tensor, float]:
        return self.scene.generate(), time.perf_counter()

    def captured(self) -> Steps:
        return []

    def expected(self) -> Steps:
        return []


class BareAgain(Bare):
    name = "bare, again"
    note = "the same once more: its ratio is what the machine's noise makes of 1"


class Fast(Timed):
    """neuroscope-fast; `dtype` None stores tensors as they are computed."""

    def __init__(self, scene: Scene, name: str, *, to_disk: bool = True, dtype: str | None = None):
        super().__init__(scene)
        self.name = f"neuroscope-fast, {name}"
        self.note = "" if to_disk else "nothing is written: until the records are in hand"
        self._to_disk, self._dtype = to_disk, dtype
        self._stored: Any = None

    def round(self) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        out = self.scene.run() if self._to_disk else None
        with nsf.capture(self.scene.model, LLAMA_PLACES, out=out, dtype=self._dtype) as capture:
            entered = time.perf_counter()
            tokens = self.scene.generate()
            returned = time.perf_counter()
        left = time.perf_counter()
        self._stored = capture.result
        marks = {"entering": entered - start, "generating": returned - entered, "leaving": left - returned}
        for stage, seconds in marks.items():
            self.stages.setdefault(stage, []).append(seconds)
        return tokens, returned

    def captured(self) -> Steps:
        run = nsf.open(self.scene.run()) if self._to_disk else self._stored
        names = {module: name for name, module in self.scene.model.named_modules()}
        ids = [
            next(hook for hook in run.hooks if hook.rpartition("_")[0] == names[m]) for m in hooked(self.scene.model)
        ]
        by_hook = [[tensor.clone() for tensor in run[hook]] for hook in ids]
        return [list(step) for step in zip(*by_hook, strict=True)]

    def expected(self) -> Steps:
        if self._dtype is None:
            return self.scene.steps
        return [[tensor.to(getattr(torch, self._dtype)) for tensor in step] for step in self.scene.steps]


class CloneAndSave(Timed):
    """Cloning hooks, and one file of everything when all is generated."""

    def __init__(self, scene: Scene, name: str, save: Any, suffix: str):
        super().__init__(scene)
        self.name = f"clone hooks, {name}"
        self._save, self._file = save, f"activations{suffix}"

    def round(self) -> tuple[torch.Tensor, float]:
        kept: list[torch.Tensor] = []
        modules = hooked(self.scene.model)
        with PlainHooks(modules, lambda _module, _inputs, output: kept.append(first_tensor(output).clone())):
            tokens = self.scene.generate()
        returned = time.perf_counter()
        save_run(self.scene.run(), in_steps(kept, len(modules)), self._save, self._file)
        return tokens, returned

    def captured(self) -> Steps:
        return read_back(self.scene.run())


class WriterThreads(Timed):
    """Cloning hooks, and a file for each step, written by eight threads while the next steps run."""

    name = "clone hooks, 8 writer threads"
    note = "a file for each step, as vLLM's connector writes one for each request"

    def round(self) -> tuple[torch.Tensor, float]:
        folder, modules = self.scene.run(), hooked(self.scene.model)
        folder.mkdir()
        kept: list[torch.Tensor] = []
        writes: list[Any] = []

        def write(number: int, step: list[torch.Tensor]) -> None:
            file = folder / f"step-{number:06d}.safetensors"
            save_file(named([step], first=number), file)
            make_durable(file)

        def hook(_module: object, _inputs: object, output: Any) -> None:
            kept.append(first_tensor(output).clone())
            if len(kept) == len(modules):
                writes.append(pool.submit(write, len(writes), kept.copy()))
                kept.clear()

        with ThreadPoolExecutor(8) as pool, PlainHooks(modules, hook):
            tokens = self.scene.generate()
            returned = time.perf_counter()
        for each in writes:
            each.result()
        make_durable(folder)
        return tokens, returned

    def captured(self) -> Steps:
        return read_back(self.scene.run())


class PeerAndSave(Timed):
    """A peer's own way of generating with a capture, and one safetensors file of everything at the end."""

    def __init__(self, scene: Scene, peer: Peer):
        super().__init__(scene)
        self.name, self.tolerance, self._peer = peer.name, peer.tolerance, peer
        self.note = "; ".join(filter(None, (peer.note(scene.ids.clone()), peer.way)))
        self._expected: Steps | None = None

    def round(self) -> tuple[torch.Tensor, float]:
        tokens, steps = self._peer.generate(self.scene.ids, self.scene.new_tokens)
        returned = time.perf_counter()
        save_run(self.scene.run(), steps)
        return tokens, returned

    def captured(self) -> Steps:
        return read_back(self.scene.run())

    def expected(self) -> Steps:
        return in_steps(self._peer.expected(self.scene.model, self.scene.generate), len(self._peer.modules))


class LensBare(Bare):
    """TransformerLens's own model object, the same loop of passes that captures nothing."""

    name = "TransformerLens, bare"
    note = "its own model object and the same loop, nothing captured"

    def __init__(self, scene: Scene, peer: Lens):
        super().__init__(scene)
        self._peer = peer

    def round(self) -> tuple[torch.Tensor, float]:
        return self._peer.generate_bare(self.scene.ids, self.scene.new_tokens), time.perf_counter()


def own_contestants(scene: Scene) -> list[Timed]:
    """Those that need no other tool."""
    return [
        Bare(scene),
        BareAgain(scene),
        Fast(scene, "disk"),
        Fast(scene, "disk, bfloat16", dtype="bfloat16"),
        Fast(scene, "memory", to_disk=False),
        CloneAndSave(scene, "save_file", save_file, ".safetensors"),
        CloneAndSave(scene, "torch.save", torch.save, ".pt"),
        WriterThreads(scene),
    ]


def peer_contestants(scene: Scene) -> tuple[list[Timed], list[Row]]:
    """The peers that are installed, with the bare model, and rows that say so of the rest."""
    peers, absent = invite([(kind.name, lambda kind=kind: kind(scene.model)) for kind in (Nnsight, Lens, HiddenStates)])
    timed: list[Timed] = [Bare(scene)]
    for peer in peers:
        if isinstance(peer, Lens):
            timed.append(LensBare(scene, peer))
        timed.append(PeerAndSave(scene, peer))
    return timed, absent
