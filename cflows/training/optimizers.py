"""Optimisers: AdamW, and Muon for the hidden matrices of networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OPTIMIZERS", "Muon", "hidden_weights", "named_optimizer"]

OPTIMIZERS = ("adamw", "muon")
MOMENTUM = 0.95
QUINTICS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
"""a, b, c of three maps a x + b x³ + c x⁵, each the nearest to one over what those before it make
of [.01, 1]: together they take that interval into [.73, 1.27] (as Amsel et al. 2025, "The Polar
Express", do; by linear programming on a grid)."""


def hidden_weights(parts: Iterable[nn.Module]) -> set[Tensor]:
    """The matrices between two hidden layers, as networks' methods of this name give them."""
    named: set[Tensor] = set()
    for module in (module for part in parts for module in part.modules()):
        of_module = getattr(module, "hidden_weights", None)
        named.update(of_module() if callable(of_module) else ())
    return {weight for weight in named if weight.dim() == 2}


def named_optimizer(
    name: str,
    parts: Iterable[nn.Module],
    parameters: Sequence[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """The optimiser of that name for these parameters.

    Weights alone decay, biases, scales and bases do not: these are not what overfits.

    Args:
        name: ``"adamw"`` or ``"muon"``, which is for the ``hidden_weights`` of the parts.
        parts: the modules that hold the parameters.
        parameters: those that are trained.
        learning_rate: of both.
        weight_decay: likewise.

    Raises:
        ValueError: there is no matrix for Muon.

    """
    hidden: list[nn.Parameter] = []
    if name == "muon":
        named = hidden_weights(parts)
        hidden = [p for p in parameters if p in named]
        if not hidden:
            raise ValueError(
                'optimizer="muon" is for matrices between hidden layers, and no part names any: '
                'give the network a method hidden_weights() -> its matrices, or use "adamw"'
            )
    taken = set(hidden)
    matrices = [p for p in parameters if p.dim() > 1 and p not in taken]
    others = [p for p in parameters if p.dim() <= 1]
    groups = [
        {"params": params, "weight_decay": decay, "hidden": of_hidden}
        for params, decay, of_hidden in (
            (matrices, weight_decay, False),
            (others, 0.0, False),
            (hidden, weight_decay, True),
        )
        if params
    ]
    return (Muon if hidden else torch.optim.AdamW)(groups, lr=learning_rate)


class Muon(torch.optim.AdamW):
    r"""Orthogonalised momentum for groups that say ``hidden``, AdamW for all others.

        m <- μ m + (1 - μ) g,   u = (1 - μ) g + μ m,   w <- (1 - ηλ) w - 0.2 η sqrt(max(n, k)) O(u)

    for w (n, k), μ = .95, and O(u) near the orthogonal matrix next to u (Jordan et al. 2024,
    "Muon: An optimizer for hidden layers in neural networks"). The factor gives a step the size of
    one of AdamW's, so that both take one learning rate and one decay (Liu et al. 2025, "Muon is
    Scalable for LLM Training", equation 4).

    As ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, but that matrices of one shape
    are done in one go; on a CPU in their own precision, since on one that does not multiply in
    bfloat16 torch's took 25 times as long; and by three iterations in place of five.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of all groups."""
        groups = self.param_groups
        for group in groups:
            if group["hidden"]:
                self._turn(group)
        self.param_groups = [group for group in groups if not group["hidden"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _turn(self, group: dict[str, Any]) -> None:
        updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["step"] = torch.tensor(0.0)  # which AdamW asks for where it is loaded
                state["momentum_buffer"] = torch.zeros_like(weight)
            momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
            update = weight.grad.lerp(momentum, MOMENTUM)
            updates.setdefault(weight.shape, []).append((weight, update))
        rate = group["lr"]
        for shape, pairs in updates.items():
            turned = orthogonalised(torch.stack([update for _, update in pairs]))
            weights = [weight for weight, _ in pairs]
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            size = 0.2 * math.sqrt(max(shape))
            torch._foreach_add_(weights, list(turned.unbind()), alpha=-rate * size)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Near U Vᵀ of each U S Vᵀ, (N, n, k).

    Singular values of at least a hundredth of the matrix's norm end between .73 and 1.27.

    Example:
        >>> import torch
        >>> from cflows.training.optimizers import orthogonalised
        >>> near = orthogonalised(torch.diag(torch.tensor([3.0, 1.0, 0.5])).unsqueeze(0))
        >>> bool(((near[0].diagonal() - 1).abs() < 0.28).all())
        True

    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    if x.is_cuda:
        x = x.bfloat16()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for a, b, c in QUINTICS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
