r"""Conditional flows in simulation-based inference: density estimators of the package sbi.

Neural posterior estimation (Papamakarios and Murray 2016; Greenberg et al. 2019) draws parameters
θ from a prior, simulates x for each, and fits q(θ | x) to the pairs: a flow of θ whose context is
x. sbi has the rounds, the training loop and the posteriors; it takes any estimator that is built
from the first θ and x, and here it takes any conditional flow. This module is imported on request
and needs the extra ``sbi``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from cflows.core.arguments import known
from cflows.core.base import Scored
from cflows.core.context import ContextNetwork
from cflows.core.flow import Flow
from cflows.objectives.flow_matching import FlowMatching
from cflows.training.pipeline import behind
from cflows.training.preprocessing import Fit, standardise

INSTALLED = find_spec("sbi") is not None
if INSTALLED:
    from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
else:  # the module can be read without it
    ConditionalDensityEstimator = nn.Module

__all__ = ["FlowEstimator", "estimator"]

OBJECTIVES = ("forward_kl", "flow_matching")


class FlowEstimator(ConditionalDensityEstimator):  # type: ignore[misc]
    """A conditional flow as sbi calls it: inputs θ (S, B, D) or (B, D), conditions x (B, *shape).

    Attributes:
        net: the flow.

    Args:
        flow: of θ, its context an x.
        condition_shape: of an x, C numbers in all; by default (C,).
        objective: ``"forward_kl"``, the negative log-density, or ``"flow_matching"``.

    Raises:
        ImportError: sbi is missing.
        ValueError: an unknown objective, or a shape of another size than the flow's context.

    """

    def __init__(
        self,
        flow: Flow,
        condition_shape: Sequence[int] | None = None,
        objective: str = "forward_kl",
    ) -> None:
        _refuse_missing()
        shape = torch.Size(condition_shape or (flow.context_features,))
        if shape.numel() != flow.context_features:
            raise ValueError(
                f"the flow's context has {flow.context_features} numbers, an x of shape "
                f"{tuple(shape)} {shape.numel()}: build them alike"
            )
        super().__init__(flow, torch.Size((flow.features,)), shape)
        self.objective = known("objective", objective, OBJECTIVES)
        self.matching = FlowMatching()

    def log_prob(self, input: Tensor, condition: Tensor, **_: object) -> Tensor:
        """Log-densities in nats, (S, B)."""
        flow: Flow = self.net
        return flow.log_prob(input if input.dim() > 2 else input[None], self._context(condition))

    def loss(self, input: Tensor, condition: Tensor, **_: object) -> Tensor:
        """What training makes small, for each pair: (B, D) and (B, *shape) -> (B,)."""
        context = self._context(condition)
        if self.objective == "flow_matching":
            return self.matching.losses(self.net, (input, context))
        log_prob: Tensor = self.net.log_prob(input, context)
        return -log_prob

    def sample(self, sample_shape: Sequence[int], condition: Tensor, **_: object) -> Tensor:
        """Draws of θ, (*sample_shape, B, D)."""
        flow: Flow = self.net
        return flow.sample(tuple(sample_shape), self._context(condition))

    def sample_and_log_prob(
        self, sample_shape: Sequence[int], condition: Tensor, **_: object
    ) -> Scored:
        """Draws and their log-densities in one solve or pass."""
        flow: Flow = self.net
        return flow.sample_and_log_prob(tuple(sample_shape), self._context(condition))

    def _context(self, condition: Tensor) -> Tensor:
        """(*B, *shape) -> (*B, C)."""
        return condition.flatten(condition.dim() - len(self.condition_shape))


def estimator(
    build: Callable[[int, int], Flow],
    *,
    objective: str = "forward_kl",
    theta_map: Fit | None = standardise,
    summary: int | None = None,
    hidden: Sequence[int] = (),
    network: nn.Module | None = None,
) -> Callable[[Tensor, Tensor], FlowEstimator]:
    r"""A builder of density estimators, as sbi's ``NPE(prior, density_estimator=...)`` takes one.

    The flow stands behind a map that is fitted to the first θ, in front of a ``ContextNetwork``
    that standardises x; both are part of it, so that ``posterior_estimator.net.save(path)`` writes
    the whole.

    Args:
        build: features D and context features C -> a flow without a map.
        objective: ``"forward_kl"`` for the negative log-density; ``"flow_matching"`` for a flow
            with a vector field, whose solver ``cflows.tune_solver(estimator.net, theta, x)`` tunes
            after the training.
        theta_map: fitted to θ (N, D), such as ``standardise``, ``whiten`` or ``gaussianise``; or
            None.
        summary: C, what is made of the numbers of an x; by default all of them stay.
        hidden: widths of the perceptron that does that.
        network: (N, numbers of x) -> (N, C), in its place.

    Raises:
        ImportError: sbi is missing.
        ValueError: an unknown objective.

    Example::

        build = estimator(lambda d, c: MAF(d, context_features=c), hidden=(32,), summary=4)
        NPE(prior, density_estimator=build)

    """
    known("objective", objective, OBJECTIVES)
    _refuse_missing()

    def built(theta: Tensor, x: Tensor) -> FlowEstimator:
        context = ContextNetwork.of(x.flatten(1), summary, hidden=hidden, network=network)
        core = build(theta.shape[1], context.features)
        flow = Flow(core.bijector, core.base, context)
        if theta_map is not None:
            flow = behind(flow, theta_map(theta))
        return FlowEstimator(flow.to(theta.device), x.shape[1:], objective)

    return built


def _refuse_missing() -> None:
    if not INSTALLED:
        raise ImportError("cflows.sbi needs the package sbi: pip install 'cflows[sbi]'")
