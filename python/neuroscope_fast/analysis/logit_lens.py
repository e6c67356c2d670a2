"""The logit lens: what each layer's residual stream would say if it were the last (nostalgebraist 2020, *interpreting
GPT: the logit lens*, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).

The model's own final norm and unembedding are applied to the stream behind each layer, as they are: this is the untuned
lens, which can mislead where a model's early layers write in another basis (Belrose et al. 2023, *Eliciting Latent
Predictions from Transformers with the Tuned Lens*, arXiv:2303.08112).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..errors import OptionError, RunError
from ..reader import Run
from ..readout import Readout
from .logits import Names, captured_logits, logits_of
from .residual_stream import PARTS, ResidualStream, need_readout
from .sequences import missing, tokens
from .tables import Cell, Table

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 25  # logits that are held at once


class LogitLens(msgspec.Struct, frozen=True):
    """One sequence: L streams, T positions, the k likeliest tokens. Where a stream is not finite, probabilities are
    NaN, tokens and ranks -1.
    """

    prompt: int
    row: int
    positions: Array
    """int64 [T]"""
    tokens: list[str]
    """What is read at each position."""
    streams: list[str]
    """Length L: `embedding`, then the number of each layer whose output is read."""
    top_ids: Array
    """int64 [L, T, k]: the likeliest tokens, the first first."""
    top_probabilities: Array
    """[L, T, k]"""
    texts: dict[int, str]
    """Of the tokens in `top_ids` and `choices`."""
    choices: Array
    """int64 [T]: the token that the last layer gives most to, the model's own choice."""
    choice_probability: Array
    """[L, T]"""
    choice_rank: Array
    """int64 [L, T]: 1 where no token has a larger logit."""
    entropy: Array
    """[L, T], in nats."""
    divergence: Array
    """[L, T]: KL(last layer ‖ this one), in nats."""
    logits_off_by: float
    """The largest difference of the last layer's logits to those that the run holds; NaN where it holds none."""

    def tables(self) -> list[Table]:
        """For each position when the choice is made, and what the layers say at the last one."""
        return [self._decisions(), self._at_last()]

    def text(self, token: int) -> str:
        """The text of a token; `-` for -1."""
        return self.texts.get(int(token), "-")

    def decided(self) -> Array:
        """int64 [T]: the number of the first stream from which on the choice is the likeliest token; -1: none is."""
        ranks = self.choice_rank == 1
        always = np.logical_and.accumulate(ranks[::-1], axis=0)[::-1]
        return np.where(always.any(0), always.argmax(0), -1)

    def _decisions(self) -> Table:
        decided = self.decided()
        middle = len(self.streams) // 2
        rows: list[list[Cell]] = [
            [
                int(position),
                self.tokens[number],
                self.text(self.choices[number]),
                float(self.choice_probability[-1, number]),
                "-" if decided[number] < 0 else self.streams[decided[number]],
                self.text(self.top_ids[middle, number, 0]),
            ]
            for number, position in enumerate(self.positions)
        ]
        columns = ["position", "reads", "chooses", "probability", "settled at", f"layer {self.streams[middle]} says"]
        return Table("Logit lens: what the model will say, and from which layer on", columns, rows, self._note())

    def _at_last(self) -> Table:
        at = len(self.positions) - 1
        rows: list[list[Cell]] = []
        for number, name in enumerate(self.streams):
            likely = " ".join(repr(self.text(token)) for token in self.top_ids[number, at, :3])
            rows.append([
                name,
                likely,
                float(self.top_probabilities[number, at, 0]),
                int(self.choice_rank[number, at]),
                float(self.choice_probability[number, at]),
                float(self.entropy[number, at]),
                float(self.divergence[number, at]),
            ])  # fmt: skip
        title = f"Logit lens at position {self.positions[at]}, which reads {self.tokens[at]!r}"
        columns = ["layer", "likeliest", "probability", "rank of choice", "its probability", "entropy", "KL to last"]
        return Table(title, columns, rows, "Entropy and Kullback-Leibler divergence in nats.")

    def _note(self) -> str:
        if np.isnan(self.logits_off_by):
            return "The untuned lens. The run holds no logits to hold the last layer against."
        return f"The untuned lens. Its last layer is off the model's own logits by at most {self.logits_off_by:.1e}."


def logit_lens(
    run: Run, prompt: int = 0, row: int = 0, *, top: int = 5, model: nn.Module | Readout | None = None
) -> LogitLens:  # fmt: skip
    """The logit lens on the stream behind every captured layer, and on the embeddings where they are known.

    Needs `residual` of the last layer at least, and the readout: that of the run, or of `model`. Computed in float32.
    Raises RunError (MissingReadout, MissingActivations), OptionError.
    """
    if top < 1:
        raise OptionError(f"top is {top}: the lens shows at least one token")
    readout = need_readout(run, model)
    stream = ResidualStream(run, prompt, row, readout, parts=())
    last = need_last_layer(stream, readout, "the logit lens")
    layers = [layer for layer in stream.layers if layer <= last]
    entry = _entry(run, prompt, row, readout, stream)
    names = ([] if entry is None else ["embedding"]) + [str(layer) for layer in layers]
    shape = len(names), len(stream.positions)
    top = min(top, readout.unembedding.weight.shape[0])
    result = _Numbers(shape, top)
    chunk = max(_CHUNK // readout.unembedding.weight.shape[0], 1)
    final = stream.after(last)
    assert final is not None
    for begin in range(0, shape[1], chunk):
        part = slice(begin, begin + chunk)
        said = logits_of(readout, final[part])
        result.choose(part, said)
        for number, name in enumerate(names):
            rows = entry if name == "embedding" else stream.after(int(name))
            assert rows is not None
            result.add(number, part, logits_of(readout, rows[part]), said)
    labels = Names(run, readout)
    sequence = tokens(run, prompt, row).texts
    return LogitLens(
        prompt=prompt,
        row=row,
        positions=stream.positions,
        tokens=[sequence[at] if at < len(sequence) else str(at) for at in stream.positions],
        streams=names,
        texts={int(token): labels.text(int(token)) for token in {*result.top_ids.flat, *result.choices} if token >= 0},
        logits_off_by=_off_by(readout, stream, final),
        **vars(result),
    )


def need_last_layer(stream: ResidualStream, readout: Readout, what: str) -> int:
    """The number of the model's last layer, whose output the final norm reads. Raises MissingActivations."""
    name = readout.layers[-1].name
    for layer in stream.layers:
        if stream.name(layer) == name and stream.after(layer) is not None:
            return int(layer)
    raise missing(what, [f"{name}:residual"])


def _entry(run: Run, prompt: int, row: int, readout: Readout, stream: ResidualStream) -> Array | None:
    """The stream before layer 0 at the lens's positions, where the run holds what says what that is."""
    whole = ResidualStream(run, prompt, row, readout, parts=PARTS)
    if 0 not in whole.layers or not np.array_equal(whole.positions, stream.positions):
        return stream.before(0)
    return whole.before(0)


class _Numbers:
    """The lens's arrays as they are filled; its attributes are fields of the result."""

    def __init__(self, shape: tuple[int, int], top: int):
        self.top_ids = np.full((*shape, top), -1)
        self.top_probabilities = np.full((*shape, top), np.nan)
        self.choices = np.full(shape[1], -1)
        self.choice_probability = np.full(shape, np.nan)
        self.choice_rank = np.full(shape, -1)
        self.entropy = np.full(shape, np.nan)
        self.divergence = np.full(shape, np.nan)

    def choose(self, part: slice, final: torch.Tensor) -> None:
        """The model's choices at some positions, from the last layer's logits [N, V]."""
        whole = final.isfinite().all(1).numpy()
        self.choices[part] = np.where(whole, final.argmax(1).numpy(), -1)

    def add(self, number: int, part: slice, logits: torch.Tensor, final: torch.Tensor) -> None:
        """What the logits [N, V] of one stream say at these positions, beside the last layer's."""
        whole = logits.isfinite().all(1)
        at = np.arange(part.start, part.start + len(logits))[whole.numpy()]
        logits, final = logits[whole], final[whole]
        share = logits.log_softmax(1)
        top = logits.topk(self.top_ids.shape[2])
        self.top_ids[number, at] = top.indices.numpy()
        self.top_probabilities[number, at] = share.gather(1, top.indices).exp().numpy()
        self.entropy[number, at] = share.exp().mul(share).sum(1).neg().numpy()
        last = final.log_softmax(1)  # NaN where the last layer's is, and so is what is compared with it
        self.divergence[number, at] = last.exp().mul(last - share).sum(1).numpy()
        chosen = self.choices[at]
        known = chosen >= 0
        logits, share, at = logits[known], share[known], at[known]
        column = share.new_tensor(chosen[known]).long()[:, None]
        self.choice_probability[number, at] = share.gather(1, column).exp()[:, 0].numpy()
        self.choice_rank[number, at] = (logits > logits.gather(1, column)).sum(1).numpy() + 1


def _off_by(readout: Readout, stream: ResidualStream, final: Array) -> float:
    """How far the lens's last layer is from the logits in the run, at most."""
    held, given = captured_logits(stream)
    if not len(held):
        return float("nan")
    if given.shape[1] != readout.unembedding.weight.shape[0]:
        raise RunError(f"the run's logits are of {given.shape[1]} tokens, and the readout of another model's")
    return max(
        float(np.abs(logits_of(readout, final[at : at + 1])[0].numpy() - values).max())
        for at, values in zip(held, given, strict=True)
    )
