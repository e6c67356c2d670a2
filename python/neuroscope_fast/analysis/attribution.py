"""Direct logit attribution: how much each block and each head adds to the logit of the token that comes next.

The stream that the final norm reads is the sum of what embedding, attention and MLPs have written to it, and a head's
share in its attention is its result times its slice of the output projection (Elhage et al. 2021, *A Mathematical
Framework for Transformer Circuits*, https://transformer-circuits.pub/2021/framework/index.html). With the final norm's
scale frozen at the value that it has at the position, the logit is linear in the stream, and each summand has its share
in it. Shares are direct ones: what a block does by way of later blocks is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from ..errors import OptionError, RunError
from ..reader import Run
from ..readout import Readout
from .head_attribution import HeadShares, head_shares
from .logit_lens import need_last_layer
from .logits import Names, captured_logits, logits_of, soft_cap, unembedding_rows
from .norms import bias_of, frozen, weight_of
from .residual_stream import PARTS, ResidualStream, need_readout
from .sequences import Tokens, tokens
from .tables import Cell, Table

if TYPE_CHECKING:
    from torch import nn

Array = np.ndarray[Any, Any]

_SHOWN = 8


class Attribution(msgspec.Struct, frozen=True):
    """Shares of C components in a logit, or in the difference of two, at T positions. In logits before any soft cap;
    NaN where a stream is not finite.
    """

    prompt: int
    row: int
    positions: Array
    """int64 [T]"""
    tokens: list[str]
    """What is read at each position."""
    targets: Array
    """int64 [T]: the tokens whose logits these are."""
    target_tokens: list[str]
    against: int | None
    """The token whose logit is subtracted."""
    against_token: str
    components: list[str]
    """Length C: `embedding`, `attention 3`, `mlp 3`, `layer 3` (a layer whose parts are not known), `rest of layer 3`,
    `bias` (of the final norm and the unembedding), `rest` (what the run does not tell)."""
    layers: Array
    """int64 [C]; -1 for components of no layer."""
    values: Array
    """[C, T]: they sum to `logits`."""
    head_layers: Array
    """int64 [N]: the layers whose heads are known."""
    heads: Array
    """[N, H, T]: the share of each head; NaN for heads that were not captured."""
    head_bias: Array
    """[N, T]: that of the bias of the output projection, and of the norm behind it."""
    logits: Array
    """[T]: the logit (difference), from the whole stream."""
    capped_logits: Array
    """[T]: the same behind the soft cap, where the model has one."""
    captured_logits: Array
    """[T]: the same from the model's own logits; NaN where the run holds none."""
    note: str

    def tables(self) -> list[Table]:
        """At the first position: the largest shares, then the heads'. Then all positions."""
        found = [self.at(0)]
        if len(self.head_layers):
            found.append(self.heads_at(0))
        if len(self.positions) > 1:
            found.append(self._every_position())
        return found

    def title(self, number: int) -> str:
        """What is attributed at the position of this number."""
        over = "" if self.against is None else f" over {self.against_token!r}"
        read, where = self.tokens[number], self.positions[number]
        return f"what speaks for {self.target_tokens[number]!r}{over}, after {read!r} at position {where}"

    def at(self, number: int, shown: int = _SHOWN) -> Table:
        """The largest shares at one position."""
        values = self.values[:, number]
        rows: list[list[Cell]] = [
            [self.components[each], float(values[each])] for each in _by_size(values)[:shown]
        ]  # fmt: skip
        others = np.delete(values, _by_size(values)[:shown])
        if len(others):
            rows.append([f"the other {len(others)}", float(others.sum())])
        rows.append(["sum", float(values.sum())])
        return Table(f"Direct logit attribution: {self.title(number)}", ["component", "logit"], rows, self.note)

    def heads_at(self, number: int, shown: int = _SHOWN) -> Table:
        """The largest shares of heads at one position."""
        values = self.heads[:, :, number]
        rows: list[list[Cell]] = []
        for each in _by_size(values.ravel())[:shown]:
            layer, head = divmod(int(each), values.shape[1])
            if not np.isnan(values[layer, head]):
                rows.append([f"head {self.head_layers[layer]}.{head}", float(values[layer, head])])
        return Table(f"Heads: {self.title(number)}", ["layer.head", "logit"], rows)

    def _every_position(self) -> Table:
        rows: list[list[Cell]] = []
        for number, position in enumerate(self.positions):
            values = self.values[:, number]
            order = _by_size(values)
            rows.append([
                int(position),
                self.tokens[number],
                self.target_tokens[number],
                float(self.logits[number]),
                *(f"{self.components[each]} ({values[each]:+.3g})" for each in order[:2]),
            ])  # fmt: skip
        columns = ["position", "reads", "target", "logit", "largest share", "second"]
        return Table("Direct logit attribution at every position", columns, rows)


class Direction(NamedTuple):
    """Of each of T positions how its logit reads the stream: share of x = x · rows[t], in float64 [T, D]."""

    rows: Array
    bias: Array


@np.errstate(invalid="ignore")  # what is not finite has no share
def logit_attribution(
    run: Run,
    prompt: int = 0,
    row: int = 0,
    *,
    positions: Sequence[int] | None = None,
    token: int | str | None = None,
    against: int | str | None = None,
    model: nn.Module | Readout | None = None,
) -> Attribution:
    """Direct logit attribution at some positions of one sequence.

    Args:
        positions: None: those behind which a token was generated, or all where the run does not tell of tokens.
        token: whose logit, by id or text; None: the token that was generated next, and where none was, the one that
            the model finds likeliest.
        against: subtract the logit of this token.
        model: its readout is used, and not the one in the run.

    Needs `residual` of the last layer and the readout; `attention` and `mlp` of each layer (or its `residual` and that
    before it) for their shares, `head_output` for those of heads. What is not captured is in `rest`. Raises RunError
    (MissingReadout, MissingActivations), OptionError.
    """
    readout = need_readout(run, model)
    stream = ResidualStream(run, prompt, row, readout)
    last = need_last_layer(stream, readout, "direct logit attribution")
    sequence = tokens(run, prompt, row)
    chosen = _chosen_positions(stream, positions, sequence.prompt_tokens if sequence.ids else None)
    final = stream.after(last)
    assert final is not None
    final = final[chosen]
    names = Names(run, readout)
    if token is None:
        targets = _targets(readout, final, stream.positions[chosen], sequence)
    else:
        targets = np.full(len(chosen), names.token(token))
    other = None if against is None else names.token(against)
    direction, logits = _direction(readout, final, targets, other)
    shares = _shares(stream, direction, chosen, last)
    whole = (final.astype(np.float64) * direction.rows).sum(1)
    rest = whole - sum((values for _, _, values in shares), np.zeros(len(chosen)))
    shares += [("bias", -1, direction.bias), ("rest", -1, rest)]
    heads = head_shares(stream, direction.rows, chosen, last)
    at = stream.positions[chosen]
    return Attribution(
        prompt=prompt,
        row=row,
        positions=at,
        tokens=[sequence.texts[each] if each < len(sequence.texts) else str(each) for each in at],
        targets=targets,
        target_tokens=[names.text(int(target)) for target in targets],
        against=other,
        against_token="" if other is None else names.text(other),
        components=[name for name, _, _ in shares],
        layers=np.array([layer for _, layer, _ in shares]),
        values=np.array([values for _, _, values in shares]),
        head_layers=heads.layers,
        heads=heads.values,
        head_bias=heads.bias,
        logits=logits[0] - logits[1],
        capped_logits=soft_cap(readout, logits[0]) - (0 if other is None else soft_cap(readout, logits[1])),
        captured_logits=_captured(stream, chosen, targets, other),
        note=_note(stream, rest, heads),
    )


def _chosen_positions(stream: ResidualStream, wanted: Sequence[int] | None, prompt_tokens: int | None) -> Array:
    """Indices into the stream's positions."""
    if wanted is None:
        first = 0 if prompt_tokens is None else prompt_tokens - 1
        chosen = np.flatnonzero(stream.positions >= first)
        return chosen if len(chosen) else np.arange(len(stream.positions))
    absent = [each for each in wanted if each not in stream.positions]
    if absent or not len(wanted):
        held = f"{stream.positions[0]} to {stream.positions[-1]}"
        raise OptionError(f"position {absent[0] if absent else 'none'} is not among those captured, {held}")
    return np.searchsorted(stream.positions, np.asarray(wanted, np.int64))


def _targets(readout: Readout, final: Array, positions: Array, sequence: Tokens) -> Array:
    """The token of each position: the one that was generated next, else the likeliest."""
    ids, prompt_tokens = sequence.ids, sequence.prompt_tokens
    likeliest = logits_of(readout, final).argmax(1).numpy()
    generated = [
        ids[at + 1] if prompt_tokens - 1 <= at < len(ids) - 1 else likeliest[number]
        for number, at in enumerate(positions)
    ]
    return np.array(generated, np.int64)


def _direction(readout: Readout, final: Array, targets: Array, other: int | None) -> tuple[Direction, tuple[Any, Any]]:
    """How the logit reads the stream, and the logits of target and other (0 where there is none), found without it."""
    if (targets >= readout.unembedding.weight.shape[0]).any():
        raise RunError(f"the run's token {targets.max()} is none of the readout's: it is that of another model")
    norm, size = readout.norm, readout.hidden_size
    rows, scale = frozen(norm, final)
    weight, bias = weight_of(norm, size), bias_of(norm)
    normed = rows * scale[:, None] * weight + (0.0 if bias is None else bias)
    wanted, constant = unembedding_rows(readout, targets)
    logits: tuple[Any, Any] = (readout.scale * ((normed * wanted).sum(1) + constant), 0.0)
    if other is not None:
        subtracted, other_constant = unembedding_rows(readout, np.full(len(targets), other))
        logits = (logits[0], readout.scale * ((normed * subtracted).sum(1) + other_constant))
        wanted, constant = wanted - subtracted, constant - other_constant
    reading = readout.scale * wanted * weight * scale[:, None]
    if norm.kind == "layer":  # (x - mean(x)) · r = x · (r - mean(r))
        reading = reading - reading.mean(1, keepdims=True)
    fixed = readout.scale * (constant + (0.0 if bias is None else (wanted * bias).sum(1)))
    return Direction(reading, fixed), logits


def _shares(stream: ResidualStream, direction: Direction, chosen: Array, last: int) -> list[tuple[str, int, Array]]:
    """(component, layer, share at each position) of all that the run tells of the stream up to the last layer."""

    def share(values: Array) -> Array:
        result: Array = (values[chosen].astype(np.float64) * direction.rows).sum(1)
        return result

    found: list[tuple[str, int, Array]] = []
    before = stream.before(0) if stream.layers[0] == 0 else None
    if before is not None:
        found.append(("embedding", -1, share(before)))
    for layer in (layer for layer in stream.layers if layer <= last):
        before = stream.before(layer) if before is None else before
        after = stream.after(layer)
        known = [(part, stream.added(layer, part)) for part in PARTS]
        parts = [(f"{part} {layer}", layer, share(added)) for part, added in known if added is not None]
        if len(parts) < len(PARTS) and before is not None and after is not None:
            left = share(after) - share(before) - sum(values for _, _, values in parts)
            parts.append((f"rest of layer {layer}" if parts else f"layer {layer}", layer, left))
        found += parts
        before = after if layer + 1 in stream.layers else None
    return found


def _captured(stream: ResidualStream, chosen: Array, targets: Array, other: int | None) -> Array:
    result = np.full(len(chosen), np.nan)
    held, given = captured_logits(stream)
    for at, values in zip(held, given, strict=True):
        for number in np.flatnonzero(chosen == at):
            result[number] = float(values[targets[number]]) - (0.0 if other is None else float(values[other]))
    return result


def _by_size(values: Array) -> Array:
    """The numbers of the largest first; what is no number comes last."""
    return np.argsort(-np.nan_to_num(np.abs(values), nan=-1.0), kind="stable")


def _note(stream: ResidualStream, rest: Array, heads: HeadShares) -> str:
    finite = rest[np.isfinite(rest)]
    largest = f"{np.abs(finite).max():.1e}" if len(finite) else "unknown"
    entry = {
        "unknown": "The stream before layer 0 is not known and is in the rest. ",
        "difference": "The embedding is what layer 0 gives, less what its attention and MLP add. ",
    }.get(stream.entry_is, "")
    return f"Final norm's scale frozen. Rest: at most {largest}. {entry}{stream.describe()}{heads.note}"
