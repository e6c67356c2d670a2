"""Muon: momentum whose update is orthogonalised, for the weight matrices of the hidden layers.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with the update scaled to the
size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training"). ``torch.optim.Muon`` orthogonalises
one matrix after another in bfloat16; the demo model has 84 small matrices in four shapes, and stacking
those of one shape costs a tenth of that on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Coefficients of the quintic Newton-Schulz iteration: after five steps all singular values lie in about
# 0.7..1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, approximately. matrices: ``[count, rows, columns]``."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Muon over two-dimensional parameters, every one of which has a gradient at each step."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            self._by_shape.setdefault(parameter.shape, []).append(parameter)
        self._momenta = {shape: torch.zeros(len(same), *shape) for shape, same in self._by_shape.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter once."""
        for shape, parameters in self._by_shape.items():
            gradient = torch.stack([p.grad for p in parameters if p.grad is not None])
            momentum = self._momenta[shape].lerp_(gradient, 1 - self._momentum)
            update = orthogonalize(gradient.lerp(momentum, self._momentum))  # Nesterov's look-ahead
            size = learning_rate * 0.2 * max(shape) ** 0.5  # 0.2: the root mean square of AdamW's updates
            torch._foreach_mul_(parameters, 1 - learning_rate * self._weight_decay)
            torch._foreach_add_(parameters, list(update.unbind()), alpha=-size)
