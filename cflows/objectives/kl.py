r"""The Kullback-Leibler divergences, in both directions.

    forward   KL(p || q) = E_p[log p(x) - log q(x)]   needs rows of p, and scores them by q
    reverse   KL(q || p) = E_q[log q(x) - log p(x)]   needs the density of p, and samples q

The two are one: seen from the noise's side they change roles, KL(p(x) || q(x)) = KL(p(u) || q(u))
with u = f⁻¹(x), q(u) the base and p(u) what the inverse makes of p (Papamakarios et al. 2021,
"Normalizing Flows for Probabilistic Modeling and Inference", section 2.3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cflows.core.density import Density
from cflows.core.modes import in_mode
from cflows.objectives.base import AnyBatch, Batch, LogDensity, Objective, weighted_mean

__all__ = ["ForwardKL", "ReverseKL", "draw"]


class ForwardKL(Objective):
    """Maximum likelihood: KL(data || flow) = -E_data[log p(x)] + constant, in nats a row.

    Args:
        penalties: weights of what continuous parts integrate along the path, by name; the flow was
            built with these names. The loss becomes -E[log p(x)] + Σ_k weight_k E[penalty_k].

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, ForwardKL
        >>> flow = Flow(Affine([0.0], [1.0]))
        >>> ForwardKL()(flow, (torch.zeros(8, 1), None))
        tensor(0.9189)

    """

    additive = True

    def __init__(self, penalties: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.penalties = dict(penalties or {})

    def forward(self, flow: Density, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """-mean log p(x | context), and the penalties, each row by its weight."""
        if not self.penalties:
            return -weighted_mean(flow(*batch), weights)
        log_prob, integrals = flow.log_prob_and_penalties(*batch)
        if missing := self.penalties.keys() - integrals.keys():
            raise ValueError(
                f"the flow integrates {sorted(integrals) or 'no penalty'}, not {sorted(missing)}: "
                "build it with penalties=(...)"
            )
        loss = -weighted_mean(log_prob, weights)
        for name, weight in self.penalties.items():
            loss = loss + weight * weighted_mean(integrals[name], weights)
        return loss


class ReverseKL(Objective):
    """Variational inference: KL(flow || p) = E_q[log q(x) - log p̃(x)] + log Z, p̃ = Z p.

    Z need not be known: the loss is what stands in front of it, the negative evidence lower bound
    (Rezende and Mohamed 2015, equation 15; Papamakarios et al. 2021, equation 17). It seeks modes:
    mass where p has none costs more than a mode left out.

    The gradient runs through the draws x = f(z; θ). Of its two terms, E_q[∇_θ log q(x; θ)] at fixed
    x has mean zero and variance that stays when q = p. The path gradient leaves it out: log q is
    taken with the parameters held, so that they enter through x alone, and at q = p every draw's
    gradient is zero (Roeder, Wu and Duvenaud 2017, section 3; for flows Vaitl et al. 2022). The
    loss is the same. It costs a second pass: x is drawn without its density, then scored as
    ``log_prob`` scores it, about twice the time, and a numerical inverse where the flow has one.

    With a context (N, C) in the batch there is one draw a row, which counts by the row's weight,
    and log p̃ is called with (x, context). The rows of the batch are not looked at.

    Args:
        log_density: log p̃, differentiable: (S, D) -> (S,), or (N, D) and (N, C) -> (N,).
        samples: S, draws a step where there is no context.
        path_gradient: whether to leave the term of mean zero out.

    Raises:
        ValueError: no log-density, samples less than 1, or weights without a context.
        TypeError: the base is trained but has no reparameterised draws.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, ReverseKL
        >>> target = Flow(Affine([2.0], [0.5]))
        >>> loss = ReverseKL(lambda x: 1.0 + target.log_prob(x))  # Z = e
        >>> round(loss(target, (None, None)).item(), 4)
        -1.0

    """

    needs_data = False
    additive = True

    def __init__(
        self,
        log_density: LogDensity | None = None,
        *,
        samples: int = 512,
        path_gradient: bool = False,
    ) -> None:
        super().__init__()
        if log_density is None:
            raise ValueError("reverse_kl needs a target: pass objective=ReverseKL(log_density)")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.log_density = log_density
        self.rows = samples
        self.path_gradient = path_gradient

    def forward(
        self, flow: Density, batch: AnyBatch = (None, None), weights: Tensor | None = None
    ) -> Tensor:
        """Mean of log q(x) - log p̃(x) over draws, those of a context's rows by their weights."""
        context = batch[1]
        refuse_weights("reverse_kl", context, weights)
        if self.path_gradient:
            _check_base(flow)
            x = flow.rsample(*_request(self.rows, context))
            log_q = held_log_prob(flow, x, context)
        else:
            x, log_q = draw(flow, self.rows, context)
        return weighted_mean(log_q - score(self.log_density, x, context), weights)


def draw(flow: Density, samples: int | None, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draws with gradient and their log-density: ``samples`` of them, or one a row of context.

    Raises:
        TypeError: the base is trained but its draws carry no gradient.

    """
    _check_base(flow)
    return flow.sample_and_log_prob(*_request(samples, context))


def refuse_weights(name: str, context: Tensor | None, weights: Tensor | None) -> None:
    """A ValueError for weights where no row has a draw of its own."""
    if weights is not None and context is None:
        raise ValueError(
            f"{name} with a density weighs no rows: leave weights out, or give rows their contexts"
        )


def score(log_density: LogDensity, x: Tensor, context: Tensor | None) -> Tensor:
    """log p̃ at draws, its shape checked: a density (S, 1) would broadcast in silence.

    Raises:
        ValueError: the density has another shape.

    """
    log_p = log_density(x) if context is None else log_density(x, context)
    if log_p.shape != x.shape[:-1]:
        raise ValueError(
            f"the log-density of x {tuple(x.shape)} must have shape {tuple(x.shape[:-1])}, "
            f"got {tuple(log_p.shape)}"
        )
    return log_p


def held_log_prob(flow: Density, x: Tensor, context: Tensor | None) -> Tensor:
    """log q(x; θ) with gradient in x alone.

    Draws pass batch normalisation by its stored statistics, so they are scored by these, and no
    layer learns statistics from draws: only continuous parts keep their mode, which picks their
    solver.
    """
    parameters = {name: value.detach() for name, value in flow.named_parameters()}
    solved = {
        inner for part in flow.modules() if hasattr(part, "override") for inner in part.modules()
    }
    with in_mode([p for p in flow.bijector.modules() if p not in solved], training=False):
        log_prob: Tensor = functional_call(cast(nn.Module, flow), parameters, (x, context))
    return log_prob


def _request(samples: int | None, context: Tensor | None) -> tuple[tuple[int, ...], Tensor | None]:
    """What ``rsample`` is asked for."""
    if context is not None:
        return (), context
    assert samples is not None
    return (samples,), None


def _check_base(flow: Density) -> None:
    trained = any(parameter.requires_grad for parameter in flow.base.parameters())
    if trained and torch.is_grad_enabled() and not getattr(flow.base, "has_rsample", False):
        raise TypeError(
            f"draws of {type(flow.base).__name__} carry no gradient to its parameters: hold them "
            "with flow.base.requires_grad_(False), or take a base with rsample"
        )
