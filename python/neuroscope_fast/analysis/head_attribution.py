"""The heads' shares in a logit: each head's result, times its slice of the output projection, as the logit reads it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..errors import RunError
from ..readout import LayerReadout, Norm
from .norms import as_array, bias_of, frozen, weight_of
from .residual_stream import ResidualStream, at_positions, rounding_unit
from .sequences import Captured, find, join

Array = np.ndarray[Any, Any]


class HeadShares(NamedTuple):
    """layers: int64 [N]. values: [N, H, T], NaN for heads that were not captured. bias: [N, T]."""

    layers: Array
    values: Array
    bias: Array
    note: str


def head_shares(stream: ResidualStream, direction: Array, chosen: Array, last: int) -> HeadShares:
    """Of every layer whose `head_output` is in the run, and whose output projection is in the readout.

    `direction` [T, D] is how the logit reads the stream at the positions `chosen`, as indices into those of the stream.
    """
    assert stream.readout is not None
    known = {layer.name: layer for layer in stream.readout.layers}
    found: dict[int, tuple[Array, Array]] = {}
    reasons: list[str] = []
    for hook in find(stream.run, "head_output", by_head=True):
        if hook.layer is None or hook.layer > last or not hook.layer_name.startswith(stream.name(hook.layer)):
            continue
        layer = known.get(stream.name(hook.layer))
        reason = _why_not(stream, hook, layer)
        if reason is not None or layer is None:
            reasons.append(f"layer {hook.layer}: {reason}")
            continue
        try:
            own, bias = _of_layer(stream, hook, layer, direction, chosen)
        except RunError as error:
            if hook.layer not in found:
                raise
            reasons.append(f"layer {hook.layer}, {hook.heads}: {error}")
            continue
        if hook.layer in found:  # other heads of the layer
            own = np.where(np.isnan(found[hook.layer][0]), own, found[hook.layer][0])
        found[hook.layer] = own, bias
    heads = max((len(own) for own, _ in found.values()), default=0)
    values = np.full((len(found), heads, len(chosen)), np.nan)
    for number, (own, _) in enumerate(found.values()):
        values[number, : len(own)] = own
    note = f" No shares of heads of {'; '.join(dict.fromkeys(reasons))}." if reasons else ""
    biases = np.array([bias for _, bias in found.values()]).reshape(len(found), len(chosen))
    return HeadShares(np.array(list(found), np.int64), values, biases, note)


def _why_not(stream: ResidualStream, hook: Captured, layer: LayerReadout | None) -> str | None:
    """Why the heads of a layer have no shares that could be told."""
    if layer is None or layer.projection is None or layer.heads is None:
        return "the readout holds no output projection of it"
    if stream.way is None:
        return "what its attention adds is not known"
    if stream.way.attention not in (None, "readout"):
        return "the norm behind its attention is not in the readout"
    if (
        layer.attention_norm is not None
        and hook.heads is not None
        and stream.given(hook.layer or 0, "attention") is None
    ):
        return "the norm behind its attention reads all heads: capture its attention too"
    return None


def _of_layer(
    stream: ResidualStream, hook: Captured, layer: LayerReadout, direction: Array, chosen: Array
) -> tuple[Array, Array]:
    """(shares [H, T], that of the biases [T])."""
    assert layer.projection is not None
    assert layer.heads is not None
    joined = join(stream.run, hook.hook_id, stream.prompt, stream.row)
    results = at_positions(joined, stream.positions[chosen], hook.hook_id).astype(np.float64)  # [T, h, Dh]
    weight = as_array(layer.projection.weight)
    weight = weight.reshape(weight.shape[0], layer.heads, -1)  # [D, H, Dh]
    numbers = list(range(layer.heads)) if hook.heads is None else hook.heads
    if results.shape[1:] != (len(numbers), weight.shape[2]) or max(numbers) >= layer.heads:
        raise RunError(
            f"{hook.hook_id} is {list(results.shape[1:])} a position, and the readout reads {layer.heads} heads of "
            f"{weight.shape[2]} there: it is that of another model"
        )
    constant = np.zeros(len(weight)) if layer.projection.bias is None else as_array(layer.projection.bias)
    given = stream.given(hook.layer or 0, "attention")
    attention = None if given is None else given[chosen].astype(np.float64)
    if hook.heads is None:
        total = np.einsum("thd,khd->tk", results, weight) + constant
        _need_same(stream, total, attention, hook)
        attention = total
    fixed = np.zeros(len(chosen))
    if layer.attention_norm is not None:
        assert attention is not None
        norm = layer.attention_norm
        bias = bias_of(norm)
        fixed = fixed if bias is None else direction @ bias
        direction = _through(norm, attention, direction)
    shares = np.full((layer.heads, len(chosen)), np.nan)
    read = (direction @ weight.reshape(len(weight), -1)).reshape(len(chosen), layer.heads, -1)  # [T, H, Dh]
    shares[numbers] = (results * read[:, numbers]).sum(2).T
    return shares, fixed + direction @ constant


def _through(norm: Norm, values: Array, direction: Array) -> Array:
    """How what enters a norm is read, where what leaves it is read by `direction`: its scale frozen at `values`."""
    _, scale = frozen(norm, values)
    reading: Array = direction * weight_of(norm, values.shape[1]) * scale[:, None]
    return reading - reading.mean(1, keepdims=True) if norm.kind == "layer" else reading


def _need_same(stream: ResidualStream, total: Array, attention: Array | None, hook: Captured) -> None:
    """The projection must make of the heads what the attention was captured to give, to its rounding."""
    unit = rounding_unit(stream.run, [hook.hook_id])
    if attention is None or unit is None:
        return
    off, size = np.linalg.norm(total - attention, axis=1), np.linalg.norm(attention, axis=1)
    if (off > (8 * unit + 1e-5) * size)[np.isfinite(off)].any():
        raise RunError(
            f"the heads of {hook.layer_name} and the readout's output projection do not give what was captured as its "
            f"attention (off by {np.nanmax(off / size):.1e} of its norm): the readout is that of another model"
        )
