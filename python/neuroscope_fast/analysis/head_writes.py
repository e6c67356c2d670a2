"""What single heads write to the residual stream: their outputs, each through its part of the output projection."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..attention_modules import head_count
from ..errors import OptionError
from ..model_map import components
from .circuit_stream import Projection
from .sequences import layer_number


def output_projections(model: nn.Module) -> dict[int, Projection]:
    """By layer what takes the head outputs to the stream, float32.

    The last linear layer of the attention module that takes as many numbers as the heads give, and gives as many as
    the stream has; whether it is the one is checked against the attention's output where it is used. Raises OptionError
    where a layer has none, or where the model's attention is not split by head.
    """
    config: Any = getattr(model, "config", None)
    hidden = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "hidden_size", None)
    found = {}
    for layer_name, component, path in components(model):
        layer = layer_number(layer_name)
        if component != "head_output" or layer is None or layer in found:
            continue
        module = model.get_submodule(path)
        count = head_count(module, "query")
        size = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
        linear = [each for each in map(_projection, module.modules()) if each is not None]
        fitting = [each for each in linear if _fits(each, count, size, hidden)]
        if not fitting:
            raise OptionError(f"{path!r} has no linear layer that takes its heads: their contributions cannot be told")
        found[layer] = fitting[-1]
    if not found:
        raise OptionError(f"{type(model).__name__} has no 'head_output': its attention is not split by head")
    return found


def _fits(projection: Projection, heads: int | None, size: int | None, hidden: int | None) -> bool:
    taken, given = projection.weights.shape
    of_heads = heads is not None and (taken == heads * size if size else taken % heads == 0)
    return of_heads and given == (hidden or given)


def _projection(module: nn.Module) -> Projection | None:
    """Of a linear layer, or of transformers' Conv1D, which stores its weight the other way round."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is None or not (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
        return None
    matrix = weight.detach().float().cpu().numpy()
    matrix = matrix.T if isinstance(module, nn.Linear) else matrix
    added = np.zeros(matrix.shape[1], np.float32) if bias is None else bias.detach().float().cpu().numpy()
    return Projection(matrix, added)
