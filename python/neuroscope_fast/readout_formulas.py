"""The formulas on the way from stream to logits: which of them a module computes is found by giving it numbers, not by
its class's name.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ModelError
from .readout import Linear, Norm

if TYPE_CHECKING:
    import torch
    from torch import nn

_TOLERANCE = 1e-5
"""Of a row's largest value: float32 norms differ from the formula by a few times 1e-7."""

_NOT_PLAIN = "is no plain floating-point weight (quantised, sharded or adapted)"


class _Weights(NamedTuple):
    """One reading of a module's parameters."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None


def norm_formula(module: nn.Module, size: int, where: str) -> Norm:
    """The norm over vectors of `size` that `module` computes, with its weight as it is applied.

    Random rows, some so small that eps decides, go through a float32 copy of the module, and through RMSNorm and
    LayerNorm (Zhang and Sennrich 2019; Ba et al. 2016) with its parameters and every eps that it holds. Raises
    ModelError where none gives the same to rounding.
    """
    import torch

    parameters = [parameter.detach() for parameter in module.parameters() if tuple(parameter.shape) == (size,)]
    device = parameters[0].device if parameters else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, size, generator=generator) + 0.5  # a mean that is not 0 tells the two formulas apart
    rows *= torch.tensor([1.0, 10.0, 100.0, 0.1, 1e-2, 1e-3, 1e-4, 3.0])[:, None]
    try:
        given = _in_float32(module)(rows.to(device)).detach().cpu().double()
    except Exception as error:  # a module of any origin, with errors of its own
        raise ModelError(f"{where} cannot be tried as a norm: {type(error).__name__}: {error}") from error
    if given.shape == rows.shape:
        for weights in _readings(parameters):
            for eps in _epsilons(module):
                for kind in ("rms", "layer"):
                    norm = Norm(kind, eps, *weights)
                    if _fits(given, _computed(norm, rows.double())):
                        return norm
    raise ModelError(
        f"{where} ({type(module).__name__}) computes neither RMSNorm nor LayerNorm of its input: what reads the stream "
        "through it cannot be told"
    )


def _in_float32(module: nn.Module) -> Any:
    """The forward of a copy in float32 that calls no hooks; the module itself is not touched."""
    import torch

    twin = copy.copy(module)
    state = vars(twin)
    for name in ("_parameters", "_buffers"):
        state[name] = OrderedDict(
            (key, value.detach().float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value)
            for key, value in state[name].items()
        )
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        state[name] = OrderedDict()
    forward: Any = type(module).forward  # a wrapper in the instance would call the original
    return lambda rows: forward(twin, rows)


def _readings(parameters: list[torch.Tensor]) -> Iterator[_Weights]:
    """What the parameters may be: nothing, a weight, or a weight and a bias; a weight may be meant from 1."""
    if not parameters:
        yield _Weights(None, None)
    for weight, *rest in permutations(parameters, min(len(parameters), 2)):
        bias = rest[0] if rest else None
        yield _Weights(weight, bias)
        yield _Weights(1.0 + weight.float(), bias)


def _epsilons(module: nn.Module) -> list[float]:
    found = [value for value in vars(module).values() if isinstance(value, float) and 0 <= value < 1]
    return list(dict.fromkeys([*found, 0.0]))


def _computed(norm: Norm, rows: torch.Tensor) -> torch.Tensor:
    import torch

    if norm.kind == "layer":
        rows = rows - rows.mean(-1, keepdim=True)
    result = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + norm.eps)
    if norm.weight is not None:
        result = result * norm.weight.cpu().double()
    return result if norm.bias is None else result + norm.bias.cpu().double()


def _fits(given: torch.Tensor, expected: torch.Tensor) -> bool:
    largest = expected.abs().amax(-1)
    return bool(((given - expected).abs().amax(-1) <= _TOLERANCE * largest).all())


def linear_weights(module: nn.Module, taken: torch.Tensor, given: torch.Tensor, what: str) -> Linear:
    """The weights of a linear layer in any guise, as they turn `taken` into `given`."""
    import torch

    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    what = f"{what} ({type(module).__name__})"
    for tensor in (weight, bias):
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_floating_point()
        if not plain and not (tensor is None and tensor is not weight):
            raise ModelError(f"{what} {_NOT_PLAIN}: store no readout, or load the model without it")
    if weight.dim() == 2:
        for matrix in (weight, weight.T):  # transformers' Conv1D holds it transposed
            if matrix.shape == (given.shape[-1], taken.shape[-1]):
                computed = torch.nn.functional.linear(taken.to(matrix.dtype), matrix, bias)
                if _close(given, computed):
                    return Linear(matrix.detach(), None if bias is None else bias.detach())
    raise ModelError(f"{what} does not compute its weight times its input: it {_NOT_PLAIN}")


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    tolerance = 4 * max(torch.finfo(each.dtype).eps for each in (one, other))
    difference = (one.double() - other.double()).abs().max()
    return bool(difference <= tolerance * other.double().abs().max())


def factor_between(before: torch.Tensor, after: torch.Tensor) -> float | None:
    """The number by which `after` is `before`, to rounding."""
    import torch

    one, two = before.double().flatten(), after.double().flatten()
    factor = float((one @ two) / (one @ one))
    factor = 1.0 if torch.equal(one, two) else factor
    fits = (two - factor * one).abs().max() <= 1e-5 * two.abs().max() + 1e-12
    return factor if bool(fits) and factor != 0 else None


def scale_and_cap(raw: torch.Tensor, logits: torch.Tensor) -> tuple[float, float | None]:
    """From what the head is made to give and what the model makes of it; the largest numbers reach any soft cap."""
    import torch

    one, two = raw.double().flatten(), logits.double().flatten().to(raw.device)
    if one.shape == two.shape:
        factor = factor_between(one, two)
        if factor is not None:
            return factor, None
        cap = float(two.abs().max())
        below = ((two.abs() < 0.5 * cap) & (one != 0)).nonzero().flatten()
        if len(below):
            scale = float((cap * torch.atanh(two[below] / cap) / one[below]).median())
            scale = 1.0 if abs(scale - 1.0) < 1e-5 else scale
            if bool(((cap * torch.tanh(scale * one / cap) - two).abs() <= 1e-5 * cap).all()):
                return scale, cap
    raise ModelError("what the model does between its head and its logits is no factor and no soft cap")
