"""Logits from the residual stream: the readout's final norm, unembedding, scale and soft cap, applied to rows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError
from ..reader import Run
from ..readout import Readout
from .norms import apply_norm, as_array
from .residual_stream import ResidualStream, at_positions
from .sequences import find, join, prompt_numbers, rows, tokens

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 24  # elements of the unembedding that are converted at once


def logits_of(readout: Readout, stream: Array) -> torch.Tensor:
    """What the model would choose from if rows [N, D] of the stream left its last layer: [N, V], in float32 (float64
    where the weights are), whatever the weights' dtype.
    """
    import torch

    weight = readout.unembedding.weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    normed = torch.from_numpy(apply_norm(readout.norm, stream)).to(dtype)
    blocks = torch.split(weight, max(_BLOCK // weight.shape[1], 1))
    raw = torch.cat([normed @ block.detach().cpu().to(dtype).T for block in blocks], dim=1)
    if readout.unembedding.bias is not None:
        raw += readout.unembedding.bias.detach().cpu().to(dtype)
    raw *= readout.scale
    return raw if readout.softcap is None else readout.softcap * torch.tanh(raw / readout.softcap)


def soft_cap(readout: Readout, logits: Array) -> Array:
    """Logits as the model gives them, from those before its soft cap."""
    cap = readout.softcap
    return logits if cap is None else cap * np.tanh(logits / cap)


def unembedding_rows(readout: Readout, ids: Array) -> tuple[Array, Array]:
    """The rows of the unembedding of these tokens and their biases, float64 [N, D] and [N]."""
    import torch

    at = torch.from_numpy(ids)
    weight = readout.unembedding.weight
    chosen = as_array(weight[at.to(weight.device)])
    bias = readout.unembedding.bias
    return chosen, np.zeros(len(ids)) if bias is None else as_array(bias[at.to(bias.device)])


def captured_logits(stream: ResidualStream) -> tuple[Array, Array]:
    """What the run holds of the model's own logits at the stream's positions: which of them (int64 [M], as indices),
    and the logits [M, V]. Both are empty where it holds none.
    """
    for hook in find(stream.run, "logits"):
        joined = join(stream.run, hook.hook_id, stream.prompt, stream.row)
        held = np.flatnonzero(np.isin(stream.positions, joined.positions))
        return held, at_positions(joined, stream.positions[held], hook.hook_id)
    return np.arange(0), np.zeros((0, 0), np.float32)


class Names:
    """What tokens are called: as the readout's vocabulary has them, else as the run's own texts do, else `#id`."""

    def __init__(self, run: Run, readout: Readout):
        self._vocabulary = readout.vocabulary
        self._size = readout.unembedding.weight.shape[0]
        self._known: dict[int, str] = {}
        if not self._vocabulary:
            for prompt in prompt_numbers(run):
                for row in range(rows(run, prompt)):
                    sequence = tokens(run, prompt, row)
                    self._known.update(zip(sequence.ids, sequence.texts, strict=False))

    def text(self, token: int) -> str:
        """A token's text; `-` where there is no token."""
        if token < 0:
            return "-"
        if token < len(self._vocabulary):
            return self._vocabulary[token]
        return self._known.get(token, f"#{token}")

    def token(self, wanted: int | str) -> int:
        """The id of a token given by its id or its text; digits that are no token's text are an id. Raises
        OptionError.
        """
        known = self._known or dict(enumerate(self._vocabulary))
        found = [token for token, text in known.items() if text == wanted]
        if not found and isinstance(wanted, str) and wanted.isdecimal():
            wanted = int(wanted)
        if isinstance(wanted, int):
            if not 0 <= wanted < self._size:
                raise OptionError(f"there is no token {wanted}: the model has {self._size}")
            return wanted
        if len(found) == 1:
            return found[0]
        if found:
            raise OptionError(f"{len(found)} tokens have the text {wanted!r}: give the id, such as {found[0]}")
        near = [text for text in known.values() if text.strip() == wanted.strip()][:3]
        hint = f"; there is {', '.join(map(repr, near))}" if near else ": give its id"
        raise OptionError(f"no single token has the text {wanted!r}{hint}")
