r"""Residual flows: z = x + g(x) for a contraction g.

If Lip(g) < 1, then x + g(x) is invertible whatever else g is: no triangular Jacobian, no split of
the coordinates (Behrmann et al. 2019, "Invertible Residual Networks"; Chen et al. 2019, "Residual
Flows for Invertible Generative Modeling"). The direction with one pass is the one that a density
needs, data to noise; the other solves x = z - g(x) by iteration.

How g is kept a contraction is the matter of ``lipschitz``.

**Log-determinant.** log|det dz/dx| = log det(I + J), J = ∂g/∂x: exactly, from J's factors; or by
the power series Σ_k (-1)^(k+1) tr(J^k) / k with probes for the trace and a random length n, whose
terms are divided by the probability that n reaches them, so that no bias is left (Chen et al.,
equation 6). Its gradient is the Neumann series for tr((I + J)⁻¹ ∂J), of the same length (equation
8): no graph through powers of J is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from baselines.flows.stack import stacked
from baselines.inversion.roots import InversionError, InversionStatus
from baselines.networks.lipschitz import LipschitzMLP
from cflows import Bijector, Flow
from cflows.continuous.divergence import PROBES, draw_probes
from cflows.continuous.fields import FrozenMLP, Linearized, pushforward
from cflows.core.arguments import known
from cflows.core.bijector import Mapped, fusible
from cflows.core.first_order import Context, first_order, first_order_only

__all__ = ["LOG_DETS", "Residual", "ResidualFlow"]

LOG_DETS = ("auto", "exact", "unbiased")
ONCE_FORWARD = (
    "cannot differentiate twice through the solution of x = z - g(x): take cflows.Inverse of the "
    "layer, whose solved direction is the other one"
)
ONCE_SERIES = (
    "cannot differentiate twice through an unbiased log-determinant: build the layer with "
    'log_det="exact"'
)
FEW = 8
"""Tangents up to which ``"auto"`` takes the exact log-determinant in training too."""


class Residual(Bijector):
    """One residual layer z = x + g(x, context), g a contraction in x.

    log|det dz/dx| = log det(I + ∂g/∂x). ``inverse`` is one pass; ``forward`` iterates
    x ← z - g(x) until the residual is within the tolerance, and ``inversion_status`` says how that
    went. Its gradient is that of the solution, by the implicit function theorem: v is replaced by
    (I + Jᵀ)⁻¹ v, found by iteration too (Bai, Kolter and Koltun 2019, "Deep Equilibrium Models").
    Second derivatives of ``forward``, and of an unbiased log-determinant, raise a RuntimeError.
    ``cflows.Inverse`` makes ``forward`` the direction of one pass.

    Args:
        features: D.
        context_features: C.
        hidden: widths of g's hidden layers.
        coefficient: bound of each weight's largest singular value, within (0, 1).
        activation: ``"lipswish"``, ``"elu"`` or ``"tanh"``.
        log_det: ``"exact"``, by min(D, hidden widths) tangents and a determinant of that size;
            ``"unbiased"``, the random series, in evaluation too; ``"auto"``: exact in evaluation
            and where it takes no more than 8 tangents, unbiased otherwise.
        probe: ``"rademacher"`` or ``"gaussian"``, of the series.
        probes: how many of them a row.
        exact_terms: terms of the series that are always computed.
        continuation: the probability of each further term. The estimate's variance is finite if it
            exceeds ρ², ρ the largest norm of J. By default the bound of ρ² for these layers, 0.83
            for three of 0.97, or 0.5, the papers' choice, if larger.
        tolerance: of the relative residual; by default 1e-12, or 16 units of rounding if larger.
        max_iterations: after which the iteration ends in a InversionError.

    Raises:
        InversionError: of ``forward`` and of its gradient.

    Example:
        >>> import torch
        >>> from baselines import Residual
        >>> layer = Residual(3)
        >>> layer(torch.zeros(2, 3)).shape, layer.inversion_status.converged
        (torch.Size([2, 3]), True)

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64, 64),
        coefficient: float = 0.97,
        activation: str = "lipswish",
        log_det: str = "auto",
        probe: str = "rademacher",
        probes: int = 1,
        exact_terms: int = 2,
        continuation: float | None = None,
        tolerance: float | None = None,
        max_iterations: int = 2000,
    ) -> None:
        super().__init__(features, context_features)
        self.network = LipschitzMLP(
            features,
            context_features=context_features,
            hidden=hidden,
            coefficient=coefficient,
            activation=activation,
        )
        known("log_det", log_det, LOG_DETS)
        known("probe", probe, PROBES)
        if min(probes, max_iterations) < 1 or exact_terms < 0:
            raise ValueError("probes and max_iterations must be at least 1, exact_terms at least 0")
        if continuation is None:
            continuation = max(0.5, coefficient ** (2 * len(hidden) + 2))
        if not 0 < continuation < 1:
            raise ValueError(f"continuation must lie in (0, 1), got {continuation}")
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}")
        self.log_det, self.probe, self.probes = log_det, probe, probes
        self.exact_terms, self.continuation = exact_terms, continuation
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.tangents = min(features, *hidden)
        self.inversion_status: InversionStatus | None = None
        self.evaluations_made = 0

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The solution of x = z - g(x)."""
        with torch.autocast(z.device.type, enabled=False):
            return self._solved(self.network.frozen(context), z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x + g(x)."""
        if not torch.compiler.is_compiling():
            self.evaluations_made += 1
        with torch.autocast(x.device.type, enabled=False):
            z: Tensor = x + self.network(x, context)
            return z

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """The solution of x = z - g(x), and -log det(I + J) there."""
        with torch.autocast(z.device.type, enabled=False):
            g = self.network.frozen(context)
            x = self._solved(g, z)
            return x, -self._log_det(g.linearize(x), x)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """x + g(x), and log det(I + J) there."""
        if not torch.compiler.is_compiling():
            self.evaluations_made += 1
        with torch.autocast(x.device.type, enabled=False):
            local = self.network.frozen(context).linearize(x)
            return x + local.value, self._log_det(local, x)

    def _log_det(self, local: Linearized, x: Tensor) -> Tensor:
        cheap = not self.training or self.tangents <= FEW
        if self.log_det == "exact" or (self.log_det == "auto" and cheap):
            return exact_log_det(local, x)
        # 1 - U is never zero; P(extra ≥ k) = continuation^k.
        uniform = 1 - torch.rand((), dtype=torch.float64).item()
        extra = int(math.log(uniform) / math.log(self.continuation))
        weights = [
            self.continuation ** -max(0, k - self.exact_terms)
            for k in range(1, self.exact_terms + extra + 1)
        ]
        return series_log_det(local, draw_probes(x, self.probe, self.probes), weights)

    def _solved(self, g: FrozenMLP, z: Tensor) -> Tensor:
        with torch.no_grad():
            x, status = self._fixed_point(lambda x: z - g(x), z, 1.0)
        self.inversion_status = status
        if not torch.compiler.is_compiling():
            self.evaluations_made += status.iterations
        if not status.converged:
            raise self._failure("x = z - g(x)", status, z.dtype)
        # The iteration's last step once more, with its graph: ∂x/∂z = I and ∂x/∂θ = -∂g/∂θ, which
        # lack the factor (I + J)⁻¹.
        image = z - g(x)
        if not image.requires_grad:
            return image
        attached: Tensor = _Implicit.apply(image, lambda v: self._transposed_solve(g, x, v))  # type: ignore[no-untyped-call]
        return attached

    @torch.no_grad()
    def _transposed_solve(self, g: FrozenMLP, x: Tensor, v: Tensor) -> Tensor:
        """u = (I + Jᵀ)⁻¹ v."""
        tiny = torch.finfo(v.dtype).tiny
        # A backward pass called within autocast would iterate on low precision, and not end.
        with torch.autocast(v.device.type, enabled=False):
            factors = _transposed(g.linearize(x))
            u, status = self._fixed_point(lambda u: v - pushforward(*factors, u), v, tiny)
        if not status.converged:
            raise self._failure("the gradient's u = v - Jᵀ u", status, v.dtype)
        return u

    def _fixed_point(
        self, step: Callable[[Tensor], Tensor], start: Tensor, floor: float
    ) -> tuple[Tensor, InversionStatus]:
        """Iterate until every row's step is small beside floor + |start| + |image|."""
        value, iteration, residual = start, 0, 0.0
        tolerance = self._tolerance(start.dtype)
        while start.numel():
            image = step(value)
            iteration += 1
            size = floor + start.abs().amax(-1) + image.abs().amax(-1)
            residual = float(((image - value).abs().amax(-1) / size).amax())
            if residual <= tolerance:
                break
            if iteration == self.max_iterations or not math.isfinite(residual):
                return value, InversionStatus(False, iteration, residual)
            value = image
        return value, InversionStatus(True, iteration, residual)

    def _tolerance(self, dtype: torch.dtype) -> float:
        if self.tolerance is not None:
            return self.tolerance
        return max(1e-12, 16 * torch.finfo(dtype).eps)

    def _failure(
        self, equation: str, status: InversionStatus, dtype: torch.dtype
    ) -> InversionError:
        return InversionError(
            f"{equation} has a residual of {status.residual:.1e} after {status.iterations} "
            f"iterations, above the tolerance of {self._tolerance(dtype):.1e}: check the inputs "
            "for NaN, raise max_iterations or the tolerance, or build with a smaller coefficient",
            status,
        )


def exact_log_det(local: Linearized, x: Tensor) -> Tensor:
    """Log det(I + J) from the factors of J, at states x (*B, D): (*B,).

    det(I + A B) = det(I + B A) (Sylvester), so that the factors may be turned round to begin and
    end at the narrowest layer.
    """
    widths = [weight.shape[-1] for weight in local.weights]
    size = min(widths)
    start = widths.index(size)
    eye = torch.eye(size, dtype=x.dtype, device=x.device)
    columns = pushforward(
        local.weights[start:] + local.weights[:start],
        local.diagonals[start:] + local.diagonals[:start],
        eye.reshape(size, *[1] * (x.dim() - 1), size),
    )
    jacobian = eye + columns.movedim(0, -2)
    log_det: Tensor
    if fusible(jacobian):
        log_det = torch.linalg.slogdet(jacobian)[1]
    else:
        # torch's forward-mode derivatives of the gradient of slogdet are wrong.
        factors = torch.linalg.lu_factor_ex(jacobian)[0]
        log_det = factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return log_det


def series_log_det(local: Linearized, probes: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ_k w_k (-1)^(k+1) vᵀ J^k v / k over k = 1..n, an estimate of log det(I + J): (*B,).

    Its gradient is that of vᵀ (I + Σ_k w_k (-J)^k) J v with the bracket held constant (Chen et al.
    2019, equations 6 and 8). Both are unbiased where w_k is one over the probability of n ≥ k.

    Args:
        local: g near its states.
        probes: v, (p, *B, D), with Σ E[v vᵀ] = I.
        weights: w_1, ..., w_n.

    """
    value = probes.new_zeros(probes.shape[1:-1])
    with torch.no_grad():
        factors, power, neumann = _transposed(local), probes, probes
        for k, weight in enumerate(weights, start=1):
            power = -pushforward(*factors, power)  # (-Jᵀ)^k v
            value = value - weight / k * (probes * power).sum((0, -1))
            neumann = neumann + weight * power
    if not torch.is_grad_enabled():
        return value
    surrogate = (neumann * local.products(probes)).sum((0, -1))
    return value + first_order(surrogate - surrogate.detach(), ONCE_SERIES)


class ResidualFlow(Flow):
    """Residual layers, one after the other: a density in one pass, a sample by iteration.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        layers: K.
        hidden: widths of each g's hidden layers.
        coefficient: bound of each weight's largest singular value, within (0, 1).
        activation: ``"lipswish"``, ``"elu"`` or ``"tanh"``.
        log_det: ``"auto"``, ``"exact"`` or ``"unbiased"``, see ``Residual``.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import ResidualFlow
        >>> ResidualFlow(5, layers=2).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 8,
        hidden: Sequence[int] = (64, 64),
        coefficient: float = 0.97,
        activation: str = "lipswish",
        log_det: str = "auto",
        base: nn.Module | None = None,
    ) -> None:
        def layer(k: int) -> Residual:
            return Residual(
                features,
                context_features=context_features,
                hidden=hidden,
                coefficient=coefficient,
                activation=activation,
                log_det=log_det,
            )

        super().__init__(stacked(features, layers, layer), base)


class _Context(Context, Protocol):
    solve: Callable[[Tensor], Tensor]


class _Implicit(torch.autograd.Function):
    """The identity, whose gradient goes through a linear solve."""

    @staticmethod
    def forward(ctx: _Context, image: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        ctx.save_for_backward(image)
        return image.clone()

    @staticmethod
    @first_order_only(ONCE_FORWARD)
    def backward(ctx: _Context, v: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(v), None


def _transposed(local: Linearized) -> tuple[list[Tensor], list[Tensor | None]]:
    """The factors of Jᵀ = W_1ᵀ diag(d_1) W_2ᵀ ... W_Lᵀ, from the right to the left."""
    weights = [weight.mT for weight in reversed(local.weights)]
    return weights, [*reversed(local.diagonals[:-1]), None]
