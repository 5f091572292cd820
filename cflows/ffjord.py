r"""FFJORD: free-form continuous dynamics for scalable reversible generative models.

Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud, ICLR 2019.

A sample is the end of a path. It starts as noise, z = x(0) ~ p_0, and follows a learned velocity,

    dx/dt = f(t, x),   0 <= t <= T.

As the path moves, the density along it changes by the divergence of the field: the more the
velocities fan out, the thinner the mass (the instantaneous change of variables),

    d log p(x(t)) / dt = -tr(∂f/∂x).

To score a point the path is run backwards, from the data at T to the noise at 0, and the divergence
is integrated along the way:

    log p(x) = log p_0(z) - ∫_0^T tr(∂f/∂x) dt.

The field is free of form: no triangular Jacobian, no split of the coordinates, since an ordinary
differential equation with a smooth right-hand side is invertible whatever that is. What it costs is
a solve, and a trace. Three parts do the work, and this file only assembles them:

    fields.MLP                       f(t, x, context)
    divergence.value_and_divergence  f and tr(∂f/∂x), exactly or by Hutchinson's estimate
    continuous.ODEBijector           the solve, forwards and backwards
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .bijector import Chain
from .continuous import ODEBijector
from .fields import MLP
from .flow import Flow
from .solvers import Adaptive, FixedGrid, Solver
from .storage import register

__all__ = ["FFJORD"]


@register
class FFJORD(Flow):
    """A continuous normalizing flow with perceptron fields.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        hidden: widths of each field's hidden layers.
        blocks: how many fields, each integrated over [0, end_time], follow one another.
        layer: how a layer sees the time, ``"concat"`` or ``"concatsquash"``.
        activation: ``"tanh"`` or ``"softplus"``.
        end_time: T.
        trainable_end_time: whether T is learned.
        divergence: the trace in training, ``"auto"``, ``"exact"`` or ``"hutchinson"``; evaluation
            is exact. ``flow.using(divergence=..., solver=...)`` overrides both.
        probe: Hutchinson's, ``"rademacher"`` or ``"gaussian"``.
        training_solver: ``FixedGrid`` or ``Adaptive``.
        evaluation_solver: likewise.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from cflows import FFJORD
        >>> flow = FFJORD(2, hidden=(32, 32))
        >>> loss = -flow.log_prob(torch.randn(128, 2)).mean()
        >>> loss.backward()
        >>> x, log_prob = flow.eval().sample_and_log_prob(10)
        >>> x.shape, log_prob.shape
        (torch.Size([10, 2]), torch.Size([10]))

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64, 64),
        blocks: int = 1,
        layer: str = "concatsquash",
        activation: str = "tanh",
        end_time: float = 1.0,
        trainable_end_time: bool = False,
        divergence: str = "auto",
        probe: str = "rademacher",
        training_solver: Solver = FixedGrid("rk4", 8),  # noqa: B008, immutable
        evaluation_solver: Solver = Adaptive("dopri5", 1e-5, 1e-5),  # noqa: B008, immutable
        base: nn.Module | None = None,
    ) -> None:
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        super().__init__(
            Chain(
                *(
                    ODEBijector(
                        MLP(
                            features,
                            context_features=context_features,
                            hidden=hidden,
                            layer=layer,
                            activation=activation,
                        ),
                        end_time=end_time,
                        trainable_end_time=trainable_end_time,
                        divergence=divergence,
                        probe=probe,
                        training_solver=training_solver,
                        evaluation_solver=evaluation_solver,
                    )
                    for _ in range(blocks)
                )
            ),
            base,
        )
