r"""f-divergences between a target p and a flow q, from the ratio r = p / q alone.

    D_f(p || q) = E_q[f(r(x))],   f convex, f(1) = 0 = f'(1)

With a density p the ratio is known. Without one, any function u(x) that stands for log r gives a
lower bound, tight where u is log r (Nguyen, Wainwright and Jordan 2010; Nowozin, Cseke and Tomioka
2016, "f-GAN", equation 4, with the critic T = f'(e^u)):

    D_f(p || q) ≥ E_p[f'(e^u)] - E_q[f*(f'(e^u))],   f*(f'(r)) = r f'(r) - f(r).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cflows.core.density import Density
from cflows.objectives.base import AnyBatch, LogDensity, Objective, weighted_mean
from cflows.objectives.kl import draw, refuse_weights, score

__all__ = ["AlphaDivergence", "ChiSquare", "FDivergence", "JensenShannon"]

BOUND = 15.0  # of a critic's log ratio: e^15 is beyond what a batch can tell


class FDivergence(Objective):
    """The divergence of a convex f; subclasses write f, f' and f* ∘ f' as functions of u = log r.

    **With a density** the loss is the mean of f(r) over draws x = f(z; θ) of the flow, and its
    gradient runs through the draws and through q. Where p̃ = Z p has an unknown Z, r is divided by
    its mean over the draws, an importance-sampling estimate of Z; the bias is of order 1 / samples.
    Where flow and target hardly overlap, few draws carry the whole estimate.

    **With a critic** u(x), a module (N, D) -> (N,) or (N, 1), rows of p stand for its density. The
    critic's parameters are the objective's, which ``fit`` gives to the same optimiser; their
    gradient is reversed on its way back (Ganin and Lempitsky 2015), so that one step raises the
    bound in the critic and lowers it in the flow. u is bounded, u = b tanh(critic / b) with b = 15.

    With a context (N, C) in the batch there is one draw a row; a density is called with (x,
    context), a critic with both in one tensor (N, D + C).

    Args:
        log_density: log p, or log p̃, differentiable: (S, D) -> (S,).
        critic: a module in its place.
        samples: S, draws a step; with a critic there are as many as rows.
        normalised: whether the log-density is that of a Z = 1.

    Raises:
        ValueError: neither or both of log_density and critic; a batch without rows for a critic.

    """

    name = ""

    def __init__(
        self,
        log_density: LogDensity | None = None,
        *,
        critic: nn.Module | None = None,
        samples: int = 512,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        cls = type(self).__name__
        if (log_density is None) == (critic is None):
            raise ValueError(
                f"{self.name} needs one target: pass objective={cls}(log_density), or "
                f"{cls}(critic=module) to learn the ratio from rows"
            )
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.log_density = log_density
        self.critic = critic
        self.normalised = normalised
        self.additive = normalised or critic is not None  # Z is estimated by all draws at once
        self.needs_data = critic is not None
        self.rows = None if self.needs_data else samples

    def value(self, u: Tensor) -> Tensor:
        """f(e^u)."""
        raise TypeError(f"{type(self).__name__} must define value")

    def slope(self, u: Tensor) -> Tensor:
        """f'(e^u)."""
        raise TypeError(f"{type(self).__name__} must define slope")

    def conjugate(self, u: Tensor) -> Tensor:
        """f*(f'(e^u))."""
        raise TypeError(f"{type(self).__name__} must define conjugate")

    def forward(
        self, flow: Density, batch: AnyBatch = (None, None), weights: Tensor | None = None
    ) -> Tensor:
        """D_f(p || q) in nats, or the critic's lower bound of it, rows by their weights.

        With a context the draws, one for each row's, count by that row's weight too.
        """
        rows, context = batch
        if self.critic is None:
            assert self.log_density is not None
            refuse_weights(self.name, context, weights)
            x, log_q = draw(flow, self.rows, context)
            u = score(self.log_density, x, context) - log_q
            u = u if self.normalised else self._self_normalised(u, context)
            return weighted_mean(self.value(u), weights)
        if rows is None:
            raise ValueError(f"{self.name} with a critic compares rows: give fit training rows")
        x = flow.rsample((len(rows),)) if context is None else flow.rsample((), context)
        # Both samples in one call, so that a batch-normalised critic cannot tell them by it.
        u = self._log_ratio(torch.cat([rows, x]), context)
        of_rows = weighted_mean(self.slope(u[: len(rows)]), weights)
        drawn = self.conjugate(u[len(rows) :])
        return of_rows - weighted_mean(drawn, None if context is None else weights)

    def _self_normalised(self, u: Tensor, context: Tensor | None) -> Tensor:
        if context is not None:
            raise ValueError(
                f"{self.name} with normalised=False estimates one Z, and each context has its own: "
                "give a normalised density"
            )
        return u - (u.logsumexp(0) - math.log(len(u)))

    def _log_ratio(self, x: Tensor, context: Tensor | None) -> Tensor:
        assert self.critic is not None
        if context is not None:
            x = torch.cat([x, context.repeat(2, 1)], dim=1)
        parameters = {k: _Reversed.apply(v) for k, v in self.critic.named_parameters()}  # type: ignore[no-untyped-call]
        u = functional_call(self.critic, parameters, (x,))
        return BOUND * torch.tanh(u.reshape(len(x)) / BOUND)


class AlphaDivergence(FDivergence):
    """D_α(p || q) = (E_q[r^α] - 1) / (α (α - 1)), a way from one KL to the other.

        f(r) = (r^α - α r - 1 + α) / (α (α - 1)),  f'(r) = (r^(α-1) - 1) / (α - 1)

    (Amari 1985; Cressie and Read 1984). In the limits α = 1 is KL(p || q), which covers the target,
    α = 0 is KL(q || p), which seeks a mode; α = 1/2 is four times the squared Hellinger distance
    1 - E_q[√r], and α = 2 half of ``ChiSquare``.

    Args:
        log_density: log p, or log p̃.
        alpha: α, any number.
        options: further arguments of ``FDivergence``.

    Example:
        >>> import torch
        >>> from cflows import Affine, AlphaDivergence, Flow
        >>> p, q = Flow(Affine([1.0], [1.0])), Flow(Affine([0.0], [1.0]))
        >>> _ = torch.manual_seed(0)
        >>> loss = AlphaDivergence(p.log_prob, alpha=0.0, samples=20_000)  # KL(q || p) = 1/2
        >>> round(loss(q).item(), 1)
        0.5

    """

    name = "alpha"

    def __init__(
        self, log_density: LogDensity | None = None, *, alpha: float = 0.5, **options: Any
    ) -> None:
        super().__init__(log_density, **options)
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}")
        self.alpha = alpha

    def value(self, u: Tensor) -> Tensor:
        """f(e^u), which is never negative."""
        a, r = self.alpha, u.exp()
        if a == 0:
            return r - 1 - u
        if a == 1:
            return r * u - r + 1
        return (torch.exp(a * u) - a * r - 1 + a) / (a * (a - 1))

    def slope(self, u: Tensor) -> Tensor:
        """f'(e^u)."""
        return u if self.alpha == 1 else torch.expm1((self.alpha - 1) * u) / (self.alpha - 1)

    def conjugate(self, u: Tensor) -> Tensor:
        """(r^α - 1) / α."""
        return u if self.alpha == 0 else torch.expm1(self.alpha * u) / self.alpha


class ChiSquare(FDivergence):
    """Pearson's χ²(p || q) = E_q[(r - 1)²] (Nowozin et al. 2016, table 1).

    With ``normalised=False`` it is the squared coefficient of variation of the importance weights,
    N / ESS - 1 with ESS the effective sample size: what a flow used as a proposal should minimise
    (compare Dieng et al. 2017, "Variational inference via χ upper bound minimization").

    Example:
        >>> import torch
        >>> from cflows import Affine, ChiSquare, Flow
        >>> p, q = Flow(Affine([0.5], [1.0])), Flow(Affine([0.0], [1.0]))
        >>> _ = torch.manual_seed(0)
        >>> round(ChiSquare(p.log_prob, samples=50_000)(q).item(), 1)  # exp(1/4) - 1 = 0.284
        0.3

    """

    name = "chi_square"

    def value(self, u: Tensor) -> Tensor:
        """(r - 1)²."""
        return torch.expm1(u).square()

    def slope(self, u: Tensor) -> Tensor:
        """2 (r - 1)."""
        return 2 * torch.expm1(u)

    def conjugate(self, u: Tensor) -> Tensor:
        """r² - 1."""
        return torch.expm1(2 * u)


class JensenShannon(FDivergence):
    """JS = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, at most log 2.

        f(r) = (r log r - (1 + r) log((1 + r) / 2)) / 2

    With a critic it is the game of Goodfellow et al. 2014 (equation 1, halved and moved by log 2),
    u the logit of the discriminator.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, JensenShannon
        >>> p, q = Flow(Affine([100.0], [1.0])), Flow(Affine([0.0], [1.0]))
        >>> round(JensenShannon(p.log_prob)(q).item(), 4)  # draws of q see half of log 2
        0.3466

    """

    name = "jensen_shannon"

    def value(self, u: Tensor) -> Tensor:
        """f(e^u)."""
        return 0.5 * (u.exp() * self._log_share(u) + self._log_share(-u))

    def slope(self, u: Tensor) -> Tensor:
        """log(2 r / (1 + r)) / 2."""
        return 0.5 * self._log_share(u)

    def conjugate(self, u: Tensor) -> Tensor:
        """log((1 + r) / 2) / 2."""
        return -0.5 * self._log_share(-u)

    @staticmethod
    def _log_share(u: Tensor) -> Tensor:
        """log(2 σ(u))."""
        return F.logsigmoid(u) + math.log(2)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient changes sign."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient
