r"""The divergence tr(∂f/∂x) of a vector field: exactly, or by Hutchinson's estimator and Hutch++.

**Exactly.** The Jacobian of a perceptron is a product of weights and diagonals, and the trace of a
product may be read off without the Jacobian. With one hidden layer, J = W₂ diag(d₁) W₁ and
tr J = Σ_j d₁_j (W₁ W₂)_jj. With two, J = W₃ diag(d₂) W₂ diag(d₁) W₁ and

    tr J = d₂ᵀ C d₁,   C = W₂ ∘ (W₁ W₃)ᵀ   (∘ elementwise),

where C is one matrix for all rows: zero variance at the price of one more product. Deeper ones
take a tangent for each unit of their narrowest layer, since tr(AB) = tr(BA); other modules take D
vector-Jacobian products. Both go in chunks of bounded memory.

**By probes.** E[vᵀ J v] = tr J for any v with E[v vᵀ] = I (Hutchinson 1990). Rademacher entries
give the least variance, 2 (‖S‖² - Σ S_ii²) with S the symmetric part of J. Hutch++ (Meyer et al.
2021) spends some of the products on an orthonormal Q near the range of J, where the trace is taken
exactly, and probes what is left: tr J = tr(QᵀJQ) + E[gᵀ(I - QQᵀ) J (I - QQᵀ)g], for any Q.

Probes are drawn once and kept for a whole solve and its backward pass: with new ones at each call
the integrand would be noise in time, and an adaptive solver would shrink its steps without end
(Grathwohl et al. 2019, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from cflows.continuous.fields import MLP, FrozenMLP, Local
from cflows.continuous.foreign import ForeignField, ModuleLocal, TransformedLocal
from cflows.continuous.inference import evaluated
from cflows.continuous.penalties import rates
from cflows.continuous.residual_field import FrozenResidual, ResidualField
from cflows.continuous.stages import Slope
from cflows.core.bijector import exported, recorded, transformed, unwatched

__all__ = [
    "draw_probes",
    "exact_is_cheap",
    "linearize",
    "orthonormal_probes",
    "probes_for",
    "value_and_divergence",
]

DIVERGENCES = ("auto", "exact", "hutchinson", "hutch++")
PROBES = ("rademacher", "gaussian")


def value_and_divergence(
    field: nn.Module | Callable[..., Tensor],
    t: Tensor,
    x: Tensor,
    context: Tensor | None = None,
    probes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The velocity and its divergence at the same point.

    Args:
        field: f(t, x, context), an ``MLP`` or any module.
        t: a scalar, or (N,).
        x: the states, (N, D).
        context: (N, C) or None.
        probes: (k, N, D) of ``draw_probes`` or ``orthonormal_probes``, for an estimate; None for
            the exact trace.

    Returns:
        f (N, D) and tr(∂f/∂x) (N,), with gradients where they are enabled.

    Example:
        >>> import torch
        >>> from cflows.continuous.divergence import value_and_divergence
        >>> double = lambda t, x, context: 2 * x
        >>> with torch.no_grad():
        ...     value_and_divergence(double, torch.tensor(0.0), torch.ones(1, 3))
        (tensor([[2., 2., 2.]]), tensor([6.]))

    """
    if is_taken_apart(field):
        (frozen,) = field.at(t.unsqueeze(0), context)
        local = linearize(frozen, x)
    else:
        local = linearize(lambda state: field(t, state, context), x)
    divergence = local.trace(probes)
    return local.finished(local.value), local.finished(divergence)


def at_stages(
    field: nn.Module, times: Tensor, context: Tensor | None, end_time: Tensor
) -> Iterator[Callable[[Tensor], Tensor]]:
    """T f(sT, x, context) at each s of ``times`` (S,): S functions of the states x (N, D) alone."""
    if is_taken_apart(field):
        return field.at(times * end_time, context, scale=end_time)
    return (ForeignField(field, t, context, end_time) for t in (times * end_time).unbind())


def slope(
    field: Callable[[Tensor], Tensor],
    x: Tensor,
    traced: bool,
    probes: Tensor | None,
    penalties: tuple[str, ...],
    spare: Tensor,
    end_time: Tensor,
    low: bool = False,
) -> Slope:
    """Velocity (N, D) and rates (N, m) in the state's dtype; m = 0 gives None.

    Without gradients the products of an exact trace may run in bfloat16, where ``low`` is true.
    """
    if probes is None and not penalties:
        short = evaluated(field, x, traced, low)
        if short is not None:
            return short
    if not traced:
        return field(x).to(x.dtype), None
    local = linearize(field, x)
    parts = [local.trace(probes)]
    if penalties:
        parts += rates(penalties, local, probes, spare, end_time)
    rate = parts[0].unsqueeze(1) if len(parts) == 1 else torch.stack(parts, dim=1)
    return local.finished(local.value.to(x.dtype)), local.finished(rate.to(x.dtype))


def linearize(f: Callable[[Tensor], Tensor], x: Tensor) -> Local:
    """A field at one time, seen near its states.

    Args:
        f: a function of the states alone; a frozen ``MLP`` or ``ResidualField`` is taken apart,
            any other is differentiated.
        x: (N, D).

    """
    if isinstance(f, FrozenMLP | FrozenResidual):
        return f.linearize(x)
    if transformed() or recorded():
        return TransformedLocal(f, x)
    keep = torch.is_grad_enabled()
    if not (keep and x.requires_grad):
        x = x.detach().requires_grad_()
    return ModuleLocal(f, x, keep)


def is_perceptron(field: object) -> TypeGuard[MLP]:
    """Whether a field is an ``MLP`` that may be taken apart."""
    return isinstance(field, MLP) and is_taken_apart(field)


def is_taken_apart(field: object) -> TypeGuard[MLP | ResidualField]:
    """Whether a field is computed as its class computes it, so that its tangents are written out.

    Not so for a subclass with a forward of its own, nor where hooks watch its calls or its layers'.
    """
    return any(
        isinstance(field, own)
        and all(getattr(type(field), name) is getattr(own, name) for name in ("forward", "at"))
        and unwatched([field])
        and field.is_readable
        for own in (MLP, ResidualField)
    )


def draw_probes(x: Tensor, kind: str = "rademacher", count: int = 1) -> Tensor:
    """Hutchinson's probes for each row of x (N, D): (count, N, D), with Σ_k E[v_k v_kᵀ] = I."""
    shape = (count, *x.shape)
    if kind == "gaussian":
        probes = torch.randn(shape, dtype=x.dtype, device=x.device)
    else:
        probes = torch.randint(0, 2, shape, device=x.device).to(x.dtype).mul_(2).sub_(1)
    return probes if count == 1 else probes.div_(count**0.5)


@torch.no_grad()
def orthonormal_probes(
    f: Callable[[Tensor], Tensor], x: Tensor, kind: str = "rademacher", count: int = 3
) -> Tensor:
    """Hutch++'s probes: a third of them spans what J does to random vectors, the rest is outside.

    Q is the orthonormal basis of J S at these states, for a random S; both are kept for the solve,
    without gradient. The estimate is unbiased wherever the path goes, and exact where J keeps to
    the span of Q.

    Args:
        f: the field at the start of the solve, a function of the states.
        x: (N, D).
        kind: of the probes outside of the span.
        count: how many products an evaluation may take, at least 2.

    Returns:
        (count, N, D) with Σ_k E[v_k v_kᵀ] = I.

    """
    size = min(x.shape[-1], max(1, count // 2))
    rest = max(1, count - size)
    # Two rows of signs are parallel too often to span much: the sketch is always Gaussian.
    sketch = linearize(f, x).products(draw_probes(x, "gaussian", size))
    span = torch.linalg.qr(sketch.movedim(0, -1))[0]  # (N, D, size)
    loose = draw_probes(x, kind, rest).movedim(0, -1)
    loose = loose - span @ (span.mT @ loose)
    return torch.cat([span, loose], dim=-1).movedim(-1, 0).contiguous()


def probes_for(
    scheme: str,
    field: nn.Module,
    x: Tensor,
    first: Callable[[], Callable[[Tensor], Tensor]],
    kind: str,
    count: int,
) -> Tensor | None:
    """Probes (k, N, D) for a solve that begins at x with ``first()``; None: the exact trace.

    Args:
        scheme: a name in ``DIVERGENCES``.
        field: whose trace it is.
        x: (N, D).
        first: makes the field at the start of the solve, a function of the states.
        kind: ``"rademacher"`` or ``"gaussian"``.
        count: products that an estimate takes.

    """
    if scheme == "auto":
        # Of one row among many, or of a program for any number, nobody knows the batch.
        rows = None if transformed() or exported() else x.shape[0]
        scheme = "exact" if exact_is_cheap(field, rows, count) else "hutchinson"
    if scheme == "exact":
        return None
    if scheme == "hutch++":
        return orthonormal_probes(first(), x, kind, max(2, count))
    return draw_probes(x, kind, count)


def exact_is_cheap(field: nn.Module, rows: int | None, probes: int = 1) -> bool:
    """Whether an evaluation with the exact trace costs at most 1.5 times one with the probes.

    Counted in multiplications a row: P for the value, P a probe; for the exact trace the diagonals
    of one hidden layer are nothing, two take H₁ H₂ and D H₁ H₂ shared by all rows, more take a
    tangent for each unit of the narrowest layer. Where the number of rows is not known (None), it
    is taken to be large.
    """
    if not is_perceptron(field):
        return False
    widths: list[int] = [field.features, *field.hidden, field.features]
    sizes = [a * b for a, b in pairwise(widths)]
    one_pass = sum(sizes)
    trace = float(min(widths) * (one_pass - sizes[0]))
    if len(sizes) <= 3 and not any(getattr(layer, "varies", False) for layer in field.layers):
        pairing = 0.0 if rows is None else widths[0] * sizes[1] / max(rows, 1)
        trace = 0.0 if len(sizes) == 2 else sizes[1] + pairing
    return one_pass + trace <= 1.5 * one_pass * (1 + probes)
