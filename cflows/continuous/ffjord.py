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
a solve (``ode_bijector``), and the trace of a field (``fields``, ``divergence``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from cflows.bijectors.normalization import BatchNorm
from cflows.continuous.fields import MLP
from cflows.continuous.ode_bijector import ODEBijector
from cflows.continuous.residual_field import ResidualField
from cflows.continuous.solvers import Adaptive, Lagged, Solver
from cflows.core.bijector import Bijector, Chain
from cflows.core.flow import Flow
from cflows.core.registry import ARGUMENTS

__all__ = ["FFJORD"]

FEW = 8  # columns, whose trace by a tangent each costs little


class FFJORD(Flow):
    """A continuous normalizing flow.

    Where ``hidden``, ``layer``, ``activation`` and ``field`` are left out, its field is one that
    flow matching trains well: a ``ResidualField`` for up to 8 columns, and for more, whose trace
    by a tangent each would be dear, an ``MLP`` of two hidden layers of 256 with film gates and
    silu, whose trace has a closed form. Else it is an ``MLP`` of these settings.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        hidden: widths of each field's hidden layers; (64, 64) where another of the four is given.
        blocks: how many fields, each integrated over [0, end_time], follow one another.
        layer: how a layer sees the time, see ``MLP``; ``"concatsquash"``, likewise.
        activation: see ``MLP``; ``"tanh"``, likewise.
        end_time: T.
        trainable_end_time: whether T is learned.
        divergence: the trace in training, ``"auto"``, ``"exact"``, ``"hutchinson"`` or
            ``"hutch++"``. ``flow.using(divergence=..., solver=...)`` overrides it in training and
            in evaluation.
        probe: ``"rademacher"`` or ``"gaussian"``.
        training_solver: ``Lagged``, ``FixedGrid`` or ``Adaptive``.
        evaluation_solver: likewise.
        evaluation_divergence: the trace in evaluation, exact by default; see ``ODEBijector``.
        evaluation_probes: how many probes an estimate takes there; None for as many as in training.
        gradient: ``"backprop"``, ``"checkpoint"`` or ``"adjoint"``.
        penalties: what ``log_prob_and_penalties`` integrates along the path, see
            ``cflows.continuous.penalties``.
        batch_norm: whether a moving batch normalization stands between two blocks and at the data.
        base: the distribution of z; by default the standard normal.
        field: further arguments of ``MLP``.
        ode: further arguments of ``ODEBijector``.

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

    ABSENT: ClassVar = {"hidden": (64, 64)}
    """Arguments of files that do not say them."""

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] | None = None,
        blocks: int = 1,
        layer: str | None = None,
        activation: str | None = None,
        end_time: float = 1.0,
        trainable_end_time: bool = False,
        divergence: str = "auto",
        probe: str = "rademacher",
        training_solver: Solver = Lagged("dopri5", 1e-3),  # noqa: B008, immutable
        evaluation_solver: Solver = Adaptive("dopri5", 1e-5, 1e-5),  # noqa: B008, immutable
        evaluation_divergence: str = "exact",
        evaluation_probes: int | None = None,
        gradient: str = "backprop",
        penalties: Sequence[str] = (),
        batch_norm: bool = False,
        base: nn.Module | None = None,
        field: Mapping[str, Any] | None = None,
        ode: Mapping[str, Any] | None = None,
    ) -> None:
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        if type(self) is FFJORD:  # a file without this argument is from before these defaults
            vars(self)[ARGUMENTS].setdefault("hidden", None)
        given = {"hidden": hidden, "layer": layer, "activation": activation, **(field or {})}
        settings = {name: value for name, value in given.items() if value is not None}
        parts: list[Bijector] = []
        for _ in range(blocks):
            network: MLP | ResidualField
            if settings:
                network = MLP(features, context_features=context_features, **settings)
            else:
                network = _usual_field(features, context_features)
            block = ODEBijector(
                network,
                end_time=end_time,
                trainable_end_time=trainable_end_time,
                divergence=divergence,
                probe=probe,
                training_solver=training_solver,
                evaluation_solver=evaluation_solver,
                evaluation_divergence=evaluation_divergence,
                evaluation_probes=evaluation_probes,
                gradient=gradient,
                penalties=penalties,
                **(ode or {}),
            )
            parts += [block, BatchNorm(features, moving=True)] if batch_norm else [block]
        super().__init__(Chain(*parts), base)


def _usual_field(features: int, context_features: int) -> MLP | ResidualField:
    if features <= FEW:
        return ResidualField(features, context_features=context_features)
    return MLP(
        features,
        context_features=context_features,
        hidden=(256, 256),
        layer="film",
        activation="silu",
        time_frequencies=8,
        residual="normal",
    )
