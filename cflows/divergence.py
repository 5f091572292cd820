r"""The divergence tr(∂f/∂x) of a vector field: exactly, or by Hutchinson's estimator.

Hutchinson (1990): tr J = E[εᵀ J ε] for any ε with E[ε εᵀ] = I. Rademacher entries give the least
variance, 2 (‖S‖² - Σ S_ii²) with S the symmetric part of J. A probe is drawn once and kept for a
whole solve and its backward pass: with a new one at each call the integrand would be noise in time,
and an adaptive solver would shrink its steps without end (Grathwohl et al. 2019, section 3.1).

The exact trace of a perceptron with shared gates needs no Jacobian. With one hidden layer,
J = W₂ diag(d₁) W₁ and tr J = Σ_j d₁_j (W₁ W₂)_jj. With two, J = W₃ diag(d₂) W₂ diag(d₁) W₁ and

    tr J = d₂ᵀ C d₁,   C = W₂ ∘ (W₁ W₃)ᵀ   (∘ elementwise),

where C is one matrix for all rows. Deeper perceptrons take one tangent a dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fields import MLP, FrozenMLP

__all__ = [
    "PROBES",
    "divergence_is_cheap",
    "draw_probe",
    "perceptron_divergence",
    "value_and_divergence",
]

PROBES = ("rademacher", "gaussian")


def value_and_divergence(
    field: nn.Module,
    t: Tensor,
    x: Tensor,
    context: Tensor | None = None,
    probe: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The velocity and its divergence at the same point.

    Args:
        field: f(t, x, context), an ``MLP`` or any module.
        t: a scalar, or (N,).
        x: the states, (N, D).
        context: (N, C) or None.
        probe: (k, N, D) draws of ``draw_probe`` for Hutchinson's estimate, the mean over k; None
            for the exact trace.

    Returns:
        f (N, D) and tr(∂f/∂x) (N,), with gradients where they are enabled.

    Example:
        >>> import torch
        >>> from cflows.divergence import value_and_divergence
        >>> double = lambda t, x, context: 2 * x
        >>> value_and_divergence(double, torch.tensor(0.0), torch.ones(1, 3))
        (tensor([[2., 2., 2.]]), tensor([6.]))

    """
    if isinstance(field, MLP):
        return perceptron_divergence(field.frozen(t, context), x, probe)
    return _by_autograd(field, t, x, context, probe)


def perceptron_divergence(
    field: FrozenMLP, x: Tensor, probe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As ``value_and_divergence``, of a perceptron whose time and context are given."""
    value, diagonals, weights = field.linearize(x)
    if probe is None:
        return value, _exact(diagonals, weights)
    return value, (probe * _pushforward(diagonals, weights, probe)).sum(-1).mean(0)


def draw_probe(x: Tensor, kind: str = "rademacher", count: int = 1) -> Tensor:
    """``count`` probes for each row of x (N, D): (count, N, D), entries ±1 or N(0, 1)."""
    shape = (count, *x.shape)
    if kind == "gaussian":
        return torch.randn(shape, dtype=x.dtype, device=x.device)
    return torch.randint(0, 2, shape, device=x.device).to(x.dtype).mul_(2).sub_(1)


def divergence_is_cheap(field: nn.Module, rows: int) -> bool:
    """Whether the exact trace costs about what one Hutchinson probe costs.

    True for a perceptron with one hidden layer, and with two where the product that builds C,
    D H², is no more than the layers' own work, N H². Gates are taken as shared by the rows.
    """
    if not isinstance(field, MLP):
        return False
    hidden = len(field.layers) - 1
    return hidden == 1 or (hidden == 2 and field.features <= rows)


def _exact(diagonals: list[Tensor], weights: list[Tensor]) -> Tensor:
    if len(diagonals) == 1 and len(weights) == 2:
        inner, outer = weights
        return diagonals[0] @ (inner * outer.mT).sum(-1)
    if len(diagonals) == 2 and len(weights) == 3:
        inner, middle, outer = weights
        pairing = middle * (inner @ outer).mT
        return ((diagonals[1] @ pairing) * diagonals[0]).sum(-1)
    features = weights[0].shape[1]
    basis = torch.eye(features, dtype=weights[0].dtype, device=weights[0].device)
    # One row of tangents for all states: (D, 1, D), and its image is (D, N, D).
    image = _pushforward(diagonals, weights, basis.unsqueeze(1))
    return image.diagonal(dim1=0, dim2=2).sum(-1)


def _pushforward(diagonals: list[Tensor], weights: list[Tensor], tangent: Tensor) -> Tensor:
    """J v for v (k, N, D)."""
    for index, weight in enumerate(weights):
        tangent = tangent @ weight.mT
        if index < len(diagonals):
            tangent = tangent * diagonals[index]
    return tangent


def _by_autograd(
    field: nn.Module, t: Tensor, x: Tensor, context: Tensor | None, probe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for a module of which nothing is known: vector-Jacobian products, batched."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (keep and x.requires_grad):
            x = x.detach().requires_grad_()
        value = field(t, x, context)
        if probe is None:
            basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            vectors = basis.unsqueeze(1).expand(-1, *x.shape)
        else:
            vectors = probe
        if value.requires_grad:
            (products,) = torch.autograd.grad(
                value, x, vectors, create_graph=keep, is_grads_batched=True,
                materialize_grads=True,
            )  # fmt: skip
        else:
            products = torch.zeros_like(vectors)
    trace = (products * vectors).sum(-1)
    trace = trace.sum(0) if probe is None else trace.mean(0)
    return (value, trace) if keep else (value.detach(), trace.detach())
