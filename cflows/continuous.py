"""An ordinary differential equation as a bijector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .bijector import Bijector
from .divergence import (
    PROBES,
    divergence_is_cheap,
    draw_probe,
    perceptron_divergence,
    value_and_divergence,
)
from .fields import MLP, FrozenMLP
from .solvers import Adaptive, FixedGrid, RightHandSide, Solver, SolveStats, Stage, solve
from .storage import register

__all__ = ["DIVERGENCES", "ODEBijector"]

DIVERGENCES = ("auto", "exact", "hutchinson")


@register
class ODEBijector(Bijector):
    """The flow map of a vector field: x = z + ∫_0^T f(t, x(t), context) dt.

    log|det dx/dz| = ∫_0^T tr(∂f/∂x) dt along the path, and the inverse runs the same path from T to
    0 (Chen et al. 2018, theorem 1; Grathwohl et al. 2019, equation 4). Solved over s in [0, 1] with
    the field T f(sT, x), so that T is a parameter like any other.

    Training and evaluation are specified apart: ``.training`` picks ``training_solver`` and
    ``divergence``, or ``evaluation_solver`` and the exact trace. ``override`` changes both.

    Args:
        field: f(t, x, context), an ``MLP`` or any module; ``features`` and ``context_features`` are
            read from it.
        end_time: T, in the field's unit of time.
        trainable_end_time: whether log T is a parameter.
        divergence: in training, ``"exact"``, ``"hutchinson"``, or ``"auto"``, which is exact where
            that costs no more than about one probe.
        probe: Hutchinson's, ``"rademacher"`` or ``"gaussian"``.
        training_solver: ``FixedGrid`` or ``Adaptive``.
        evaluation_solver: likewise.

    Attributes:
        stats: what the last solve did, a ``SolveStats``.
        evaluations_made: field evaluations since the bijector was built.

    """

    log_end_time: Tensor

    def __init__(
        self,
        field: nn.Module,
        *,
        end_time: float = 1.0,
        trainable_end_time: bool = False,
        divergence: str = "auto",
        probe: str = "rademacher",
        training_solver: Solver = FixedGrid("rk4", 8),  # noqa: B008, immutable
        evaluation_solver: Solver = Adaptive("dopri5", 1e-5, 1e-5),  # noqa: B008, immutable
    ) -> None:
        super().__init__(_size(field, "features"), _size(field, "context_features"))
        if not 0 < end_time < math.inf:
            raise ValueError(f"end_time must be positive and finite, got {end_time}")
        if probe not in PROBES:
            raise ValueError(f"probe must be one of {', '.join(PROBES)}; got {probe!r}")
        self.field = field
        log_end_time = torch.tensor(math.log(end_time))
        if trainable_end_time:
            self.log_end_time = nn.Parameter(log_end_time)
        else:
            self.register_buffer("log_end_time", log_end_time)
        self.divergence = _known(divergence)
        self.probe = probe
        self.training_solver = training_solver
        self.evaluation_solver = evaluation_solver
        self.stats = SolveStats()
        self.evaluations_made = 0
        self._override: dict[str, Any] = {}

    @property
    def end_time(self) -> Tensor:
        """T, with gradient where it is trained."""
        return self.log_end_time.exp()

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data; no divergence is computed."""
        return self._flow(z, context, reverse=False, traced=False)[0]

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Data to noise; no divergence is computed."""
        return self._flow(x, context, reverse=True, traced=False)[0]

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise to data, with +∫ tr(∂f/∂x) dt."""
        x, log_det = self._flow(z, context, reverse=False, traced=True)
        assert log_det is not None
        return x, log_det

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Data to noise, with -∫ tr(∂f/∂x) dt along the same path."""
        z, log_det = self._flow(x, context, reverse=True, traced=True)
        assert log_det is not None
        return z, log_det

    @contextmanager
    def override(
        self, *, solver: Solver | None = None, divergence: str | None = None
    ) -> Iterator[None]:
        """Use this solver and this divergence within a block, in training and in evaluation."""
        before = self._override
        given = {"solver": solver, "divergence": divergence and _known(divergence)}
        self._override = before | {name: value for name, value in given.items() if value}
        try:
            yield
        finally:
            self._override = before

    @property
    def solver(self) -> Solver:
        """The solver in force."""
        default = self.training_solver if self.training else self.evaluation_solver
        solver: Solver = self._override.get("solver", default)
        return solver

    def _flow(
        self, start: Tensor, context: Tensor | None, *, reverse: bool, traced: bool
    ) -> tuple[Tensor, Tensor | None]:
        start, context = self.broadcast(start, context)
        batch = start.shape[:-1]
        x = start.reshape(-1, self.features)
        if context is not None:
            context = context.reshape(len(x), -1)
        probe = draw_probe(x, self.probe) if traced and self._estimates(len(x)) else None
        x, total, self.stats = solve(
            self._right_hand_side(context, probe, traced),
            x,
            self.solver,
            integrals=int(traced),
            reverse=reverse,
        )
        self.evaluations_made += self.stats.nfe
        log_det = total.reshape(batch) if total is not None else None
        return x.reshape(*batch, self.features), log_det

    def _right_hand_side(
        self, context: Tensor | None, probe: Tensor | None, traced: bool
    ) -> RightHandSide:
        """The field T f(sT, x) and its divergence, in the state's dtype."""
        field, end_time = self.field, self.end_time

        def foreign(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
            if not traced:
                return end_time * field(t, x, context).to(x.dtype), None
            value, trace = value_and_divergence(field, t, x, context, probe)
            return end_time * value.to(x.dtype), (end_time * trace.to(x.dtype)).unsqueeze(1)

        def perceptron(frozen: FrozenMLP, x: Tensor) -> tuple[Tensor, Tensor | None]:
            if not traced:
                return frozen(x).to(x.dtype), None
            value, trace = perceptron_divergence(frozen, x, probe)
            return value.to(x.dtype), trace.to(x.dtype).unsqueeze(1)

        def at(times: Tensor) -> list[Stage]:
            if isinstance(field, MLP):
                frozen_fields = field.at(times * end_time, context, scale=end_time)
                return [partial(perceptron, frozen) for frozen in frozen_fields]
            return [partial(foreign, t) for t in (times * end_time).unbind()]

        return at

    def _estimates(self, rows: int) -> bool:
        """Whether a probe stands in for the exact trace."""
        divergence = self._override.get("divergence", self.divergence if self.training else "exact")
        if divergence == "auto":
            return not divergence_is_cheap(self.field, rows)
        return bool(divergence == "hutchinson")


def _known(divergence: str) -> str:
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {divergence!r}")
    return divergence


def _size(field: nn.Module, name: str) -> int:
    size = getattr(field, name, 0 if name == "context_features" else None)
    if not isinstance(size, int):
        raise TypeError(f"the field {type(field).__name__} needs an integer attribute `{name}`")
    return size
