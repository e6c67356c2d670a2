"""The activations that are patched in: read from a run on disk, or captured on the fly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..capture import capture
from ..errors import OptionError, RunError
from ..reader import Run
from ..spec import HookSpec
from . import sequences
from .interventions import Site
from .logit_metric import last_logits

Ids = Sequence[Sequence[int]]


class PatchValues:
    """The activations to patch in, read from a run."""

    def __init__(self, run: Run, prompts: list[int], ids: Ids) -> None:
        if len(prompts) != len(ids):
            raise OptionError(f"the run to patch from has {len(prompts)} prompts for {len(ids)} pairs")
        self._run = run
        self._prompts = prompts
        self._ids = ids
        self._cast: set[str] = set()
        self._places: dict[str, dict[str, sequences.Captured]] = {}
        self._held: tuple[str, dict[int, torch.Tensor]] = ("", {})
        """What has been read of the hook that was read last: its heads come one after the other."""
        for number, wanted in zip(prompts, ids, strict=True):
            held = sequences.tokens(run, number)
            if held.ids and held.ids[: held.prompt_tokens] != list(wanted):
                raise RunError(f"prompt {number} of the run to patch from has other tokens than the prompt of its pair")

    def of(self, site: Site, pair: int) -> torch.Tensor:
        """[positions, size], or [positions, heads, size] of all heads."""
        if site.component not in self._places:
            of_component = sequences.find(self._run, site.component)
            self._places[site.component] = {each.layer_name: each for each in of_component}
        found = self._places[site.component].get(site.layer_name)
        heads = None if found is None else found.heads
        if found is None or (heads is not None and site.head not in heads):
            raise sequences.missing(f"patching of {site.name}", [f"{site.layer_name}:{site.component}"])
        if self._held[0] != found.hook_id:
            self._held = (found.hook_id, {})
        if pair not in self._held[1]:
            self._held[1][pair] = self._read(found.hook_id, pair)
        values = self._held[1][pair]
        if site.head is None:
            return values
        return values[:, site.head if heads is None else heads.index(site.head)]

    def _read(self, hook_id: str, pair: int) -> torch.Tensor:
        joined = sequences.join(self._run, hook_id, self._prompts[pair])
        count = len(self._ids[pair])
        if not np.array_equal(joined.positions[:count], np.arange(count)):
            raise RunError(f"{hook_id} of the run to patch from lacks positions of prompt {self._prompts[pair]}")
        record = self._run[hook_id].records[0]
        if record.source_dtype not in (None, record.dtype):
            self._cast.add(f"{record.source_dtype} stored as {record.dtype}")
        values = torch.from_numpy(joined.values[:count])
        if not bool(torch.isfinite(values).all()):
            raise RunError(f"{hook_id} holds NaN or infinite values at prompt {self._prompts[pair]}")
        return values

    def note(self) -> str:
        return f"the activations patched in were rounded: {', '.join(sorted(self._cast))}" if self._cast else ""


def capture_sites(model: nn.Module, prompts: Ids, sites: Sequence[Site]) -> Run:
    """The activations of the sites on these prompts, in memory."""
    places = dict.fromkeys((site.layer_name, site.component) for site in sites)
    hooks = [HookSpec(layer_name=layer_name, component=component) for layer_name, component in places]
    with capture(model, hooks) as cap:
        for number, ids in enumerate(prompts):
            if number:
                cap.next_prompt()
            last_logits(model, ids)
    return cap.result
