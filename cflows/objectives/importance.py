r"""What a flow is worth as a proposal for a density that is known up to its normaliser.

With draws x_i of the flow q and weights w_i = p̃(x_i) / q(x_i), the mean of the weights is an
unbiased estimate of Z = ∫ p̃, and weighted means of them are means under p = p̃ / Z. What no draw has
seen, no figure here tells: a mode that the flow has missed is missed in silence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflows.core.flow import Flow
from cflows.core.modes import evaluating

__all__ = ["Importance", "importance", "pareto_k"]

AT_ONCE = 10_000
FEWEST = 5  # weights of a tail, as in PSIS


@dataclass(frozen=True)
class Importance:
    """Weighted draws of a flow, and what they say.

    Attributes:
        x: the draws, (N, D).
        log_weights: log p̃(x) - log q(x), (N,), in float64.
        seconds: that drawing and weighing took.
        log_z: log of the mean weight.
        log_z_error: its standard error, by the delta method: sd(w) / (mean(w) √N).
        ess: effective sample size (Σ w)² / Σ w² (Kish 1965), out of N.
        pareto_k: the shape of the weights' tail, see ``pareto_k``: below .5 their variance is
            finite, above .7 neither log Z nor its error is to be trusted.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, importance
        >>> flow = Flow(Affine([0.0], [1.1]))  # a normal of variance 1.21, for one of variance 1
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> result = importance(flow, lambda x: -0.5 * x.square().sum(-1), 20_000)
        >>> round(result.log_z, 2), round(result.ess_fraction, 2)  # log √(2π) = .919
        (0.92, 0.98)

    """

    x: Tensor
    log_weights: Tensor
    seconds: float
    log_z: float
    log_z_error: float
    ess: float
    pareto_k: float

    @property
    def ess_fraction(self) -> float:
        """The effective sample size of one draw, between 1 / N and 1."""
        return self.ess / len(self.x)

    @property
    def ess_per_second(self) -> float:
        """The effective sample size that a second gives."""
        return self.ess / self.seconds

    def mean(self, values: Tensor) -> Tensor:
        """Self-normalised mean Σ w_i v_i / Σ w_i of values (N, ...) of the draws, or of truths."""
        values = values if values.is_floating_point() else values.double()
        weights = self.log_weights.softmax(0).to(values.dtype)
        mean: Tensor = torch.einsum("n,n...->...", weights, values)
        return mean

    def resample(self, n: int) -> Tensor:
        """N draws with replacement by their weights, (n, D): draws of p where the ESS is large."""
        taken = torch.multinomial(self.log_weights.softmax(0), n, replacement=True)
        return self.x[taken]

    def __str__(self) -> str:
        return (
            f"log Z {self.log_z:.4f} ± {2 * self.log_z_error:.4f} (2 s.e.), effective sample size "
            f"{100 * self.ess_fraction:.1f} % of {len(self.x)} draws, Pareto k {self.pareto_k:.2f}"
        )


@torch.no_grad()
def importance(
    flow: Flow,
    log_density: Callable[..., Tensor],
    n: int = 10_000,
    context: Tensor | None = None,
) -> Importance:
    """Draw from a flow and weigh its draws by an unnormalised density.

    Args:
        flow: the proposal, in evaluation mode within the call; its solver's gap enters the weights.
        log_density: x (N, D) -> log p̃(x) (N,), -inf where the density is zero; called with
            (x, context) where there is a context.
        n: draws.
        context: (C,), one for all draws.

    Returns:
        the draws, their weights, and what these say of Z.

    Raises:
        ValueError: fewer than 2 draws; a log-density of another shape, or that is not a number or
            +inf; or no draw where the density is positive.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, importance
        >>> flow = Flow(Affine([0.0], [1.0]))  # the density itself: every draw counts
        >>> result = importance(flow, lambda x: -0.5 * x.square().sum(-1), 100)
        >>> round(result.log_z, 4), round(result.ess, 2)
        (0.9189, 100.0)

    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    draws, log_weights = [], []
    began = time.perf_counter()
    with evaluating(flow):
        for first in range(0, n, AT_ONCE):
            size = min(AT_ONCE, n - first)
            x, log_q = flow.sample_and_log_prob(size, context)
            own = () if context is None else (context.expand(size, -1),)
            log_p = log_density(x, *own)
            if log_p.shape != log_q.shape:
                raise ValueError(
                    f"the log-density must have shape {tuple(log_q.shape)} for rows "
                    f"{tuple(x.shape)}, got {tuple(log_p.shape)}"
                )
            draws.append(x)
            log_weights.append(log_p.double() - log_q.double())
    x, log_w = torch.cat(draws), torch.cat(log_weights)
    if not bool((log_w < math.inf).all()):
        raise ValueError("the log-density of a draw is not a number, or +inf: look at its formula")
    if not bool((log_w > -math.inf).any()):
        raise ValueError(
            "the density is zero at all draws: train the flow where the density is, or draw more"
        )
    seconds = time.perf_counter() - began  # a GPU was waited for by the checks
    log_z = float(log_w.logsumexp(0)) - math.log(n)
    weights = (log_w - log_z).exp()
    ess = float(weights.sum().square() / weights.square().sum())
    error = float(weights.std() / math.sqrt(n))
    return Importance(x, log_w, seconds, log_z, error, ess, pareto_k(log_w))


def pareto_k(log_weights: Tensor) -> float:
    """The shape k of a generalised Pareto law fitted to the largest weights.

    A tail of shape k has 1 / k finite moments. The tail is the largest min(N / 5, 3 √N) weights;
    its fit is Zhang and Stephens' (2009), with the prior of Vehtari et al. (2024, "Pareto Smoothed
    Importance Sampling", appendix C), which draws k of a short tail to one half.

    Args:
        log_weights: (N,).

    Returns:
        k; -inf where the largest weights are all the same, inf where a handful of them is all that
        counts, NaN for fewer than 25 weights.

    Example:
        >>> import torch
        >>> from cflows.objectives.importance import pareto_k
        >>> u = (torch.arange(10_000) + 0.5) / 10_000
        >>> round(pareto_k(-0.4 * u.log()), 1)  # weights u^(-0.4)
        0.4

    """
    size = min(len(log_weights) // 5, math.ceil(3 * math.sqrt(len(log_weights))))
    if size < FEWEST:
        return math.nan
    tail = log_weights.double().topk(size + 1).values.flip(0)
    weights = (tail - tail[-1]).exp()
    above = weights[1:] - weights[0]
    above = above[above > 0]
    if len(above) < FEWEST:
        # All the same; or so far apart that a handful is all there is.
        return -math.inf if bool(tail[0] == tail[-1]) else math.inf
    n = len(above)
    count = 30 + int(math.sqrt(n))
    steps = torch.arange(1, count + 1, dtype=torch.float64, device=above.device)
    quartile = above[int(n / 4 + 0.5) - 1]
    b = (1 - (count / (steps - 0.5)).sqrt()) / (3 * quartile) + 1 / above[-1]
    k = torch.log1p(-b.unsqueeze(1) * above).mean(1)
    likelihood = n * ((-b / k).log() - k - 1)
    mean = (likelihood.softmax(0) * b).sum()
    shape = float(torch.log1p(-mean * above).mean())
    return (n * shape + 10 * 0.5) / (n + 10)
