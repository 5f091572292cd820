"""An ordinary differential equation as a bijector."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from cflows.continuous.divergence import (
    DIVERGENCES,
    PROBES,
    at_stages,
    draw_probes,
    probes_for,
    slope,
)
from cflows.continuous.layers import computed_once
from cflows.continuous.penalties import PENALTIES
from cflows.continuous.solved import SolvedBijector
from cflows.continuous.solvers import GRADIENTS, Adaptive, Bespoke, FixedGrid, Lagged, Solver, solve
from cflows.continuous.stages import RightHandSide, Slope, SolveStats, Stage
from cflows.core.arguments import known
from cflows.core.bijector import exported, may_read, recorded, transformed

__all__ = ["ODEBijector"]


class ODEBijector(SolvedBijector):
    """The flow map of a vector field: x = z + ∫_0^T f(t, x(t), context) dt.

    log|det dx/dz| = ∫_0^T tr(∂f/∂x) dt along the path, and the inverse runs the same path from T to
    0 (Chen et al. 2018, theorem 1; Grathwohl et al. 2019, equation 4). Solved over s in [0, 1] with
    the field T f(sT, x), so that T is a parameter like any other.

    Training and evaluation are specified apart: ``.training`` picks ``training_solver`` and
    ``divergence``, or ``evaluation_solver`` and ``evaluation_divergence``. ``override`` changes
    both. A solver that ``tune`` was given stands in for the ``evaluation_solver`` as long as the
    weights stay as they are.

    Args:
        field: f(t, x, context), an ``MLP`` or any module; ``features`` and ``context_features`` are
            read from it. It is called with t a scalar, x (N, D) and context (N, C) or None, in
            solves and in flow matching alike.
        end_time: T, in the field's unit of time.
        trainable_end_time: whether log T is a parameter.
        divergence: in training, ``"exact"``, ``"hutchinson"``, ``"hutch++"``, or ``"auto"``, which
            is exact where that costs about what the estimate costs, else Hutchinson's.
        probe: ``"rademacher"`` or ``"gaussian"``.
        probes: products that an estimate takes at each evaluation of the field.
        training_solver: ``Lagged``, ``FixedGrid`` or ``Adaptive``.
        evaluation_solver: likewise.
        evaluation_divergence: the trace in evaluation, exact by default. An estimate leaves
            log-densities unbiased, with noise of which ``torch.manual_seed`` decides; for fields in
            hundreds of dimensions that are no ``MLP``, whose exact trace takes D products.
        evaluation_probes: products of that estimate; None for ``probes``.
        gradient: ``"backprop"`` through the solver; ``"checkpoint"``, the same with each step of a
            grid computed again on the way back; ``"adjoint"``, for adaptive solves.
        penalties: names in ``penalties.PENALTIES`` that ``collecting`` integrates along the path.
        steer: b; in training the end time is T + U(-b, b) (Ghosh et al. 2020, "STEER").
        bfloat16: whether the field's matrix products run in bfloat16; state, log-determinant and
            time keep their dtype.
        compiled: whether the field goes through ``torch.compile``.

    Attributes:
        stats: what the last solve did, a ``SolveStats``.
        evaluations_made: field evaluations since the bijector was built. Neither follows a solve
            that torch.func transforms, or that torch.compile or torch.export record.
        steps: of the next ``Lagged`` solve, 0 for an adaptive one; saved with the state.

    Example:
        >>> import torch
        >>> from cflows import ODEBijector
        >>> class Growth(torch.nn.Module):
        ...     features = 1
        ...     def forward(self, t, x, context=None):
        ...         return 2 * x
        >>> flow = ODEBijector(Growth()).eval()
        >>> x, log_det = flow.forward_and_log_det(torch.ones(1, 1))
        >>> round(x.item(), 3), round(log_det.item(), 3)  # e² and 2
        (7.389, 2.0)

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
        probes: int = 1,
        training_solver: Solver = Lagged("dopri5", 1e-3),  # noqa: B008, immutable
        evaluation_solver: Solver = Adaptive("dopri5", 1e-5, 1e-5),  # noqa: B008, immutable
        evaluation_divergence: str = "exact",
        evaluation_probes: int | None = None,
        gradient: str = "backprop",
        penalties: Sequence[str] = (),
        steer: float = 0.0,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(*_sizes(field), training_solver, evaluation_solver)
        if not 0 < end_time < math.inf:
            raise ValueError(f"end_time must be positive and finite, got {end_time}")
        if not 0 <= steer < end_time:
            raise ValueError(f"steer must lie in [0, end_time), got {steer}")
        evaluation_probes = probes if evaluation_probes is None else evaluation_probes
        for name, count in (("probes", probes), ("evaluation_probes", evaluation_probes)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if gradient == "adjoint" and not isinstance(training_solver, Adaptive):
            raise ValueError(
                'gradient="adjoint" needs training_solver=Adaptive(...): a grid is differentiated '
                'by "backprop" or "checkpoint"'
            )
        self.field = field
        log_end_time = torch.tensor(math.log(end_time))
        if trainable_end_time:
            self.log_end_time = nn.Parameter(log_end_time)
        else:
            self.register_buffer("log_end_time", log_end_time)
        self.divergence = known("divergence", divergence, DIVERGENCES)
        self.evaluation_divergence = known(
            "evaluation_divergence", evaluation_divergence, DIVERGENCES
        )
        self.probe = known("probe", probe, PROBES)
        self.probes, self.evaluation_probes = probes, evaluation_probes
        self.gradient = known("gradient", gradient, GRADIENTS)
        self.penalties = tuple(known("penalties", name, PENALTIES) for name in penalties)
        self.steer = steer
        self.low_precision = bfloat16
        self._is_compiled = compiled
        self._slope = torch.compile(slope) if compiled else slope
        self._collected: dict[int, dict[str, Tensor]] = {}  # by thread

    @property
    def end_time(self) -> Tensor:
        """T, with gradient where it is trained."""
        return self.log_end_time.exp()

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data; no divergence is computed."""
        return self._flow(z, context, (0.0, 1.0), traced=False)[0]

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Data to noise; no divergence is computed."""
        return self._flow(x, context, (1.0, 0.0), traced=False)[0]

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise to data, with +∫ tr(∂f/∂x) dt."""
        x, log_det = self._flow(z, context, (0.0, 1.0), traced=True)
        assert log_det is not None
        return x, log_det

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Data to noise, with -∫ tr(∂f/∂x) dt along the same path."""
        z, log_det = self._flow(x, context, (1.0, 0.0), traced=True)
        assert log_det is not None
        return z, log_det

    def trajectory(
        self, start: Tensor, times: Sequence[float], context: Tensor | None = None
    ) -> Tensor:
        """The path at several times, (*B, D) -> (len(times), *B, D).

        Args:
            start: the state at the first of the times.
            times: as parts of T, ascending (noise to data) or descending.
            context: (*B, C) or None.

        """
        start, context = self.broadcast(start, context)
        states = [start]
        part = self.evaluation_solver if isinstance(self.solver, Bespoke) else None
        with self.override(solver=part):
            for ends in pairwise(times):
                states.append(self._flow(states[-1], context, ends, traced=False)[0])
        return torch.stack(states)

    @contextmanager
    def collecting(self, totals: dict[str, Tensor]) -> Iterator[None]:
        """Within a block, add the penalties (*B,) of this thread's solves, by name."""
        thread = threading.get_ident()
        before = self._collected.get(thread)
        self._collected[thread] = totals
        try:
            yield
        finally:
            del self._collected[thread]
            if before is not None:
                self._collected[thread] = before

    def slopes(self, x: Tensor, context: Tensor | None, start: float) -> RightHandSide:
        """The velocity and the rate of log|det| as a solver that begins at s = start asks for them.

        Args:
            x: the states there, (N, D), for which probes are drawn where the trace is estimated.
            context: (N, C) or None.
            start: 0 at the noise, 1 at the data.

        """
        return self._right_hand_side(x, context, start, True, ())

    def __getstate__(self) -> dict[str, object]:
        # What torch compiled is no function that an unpickler could find.
        return {**self.__dict__, "_slope": None} if self._is_compiled else self.__dict__

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._is_compiled:
            self._slope = torch.compile(slope)

    def _flow(
        self, start: Tensor, context: Tensor | None, span: tuple[float, float], *, traced: bool
    ) -> tuple[Tensor, Tensor | None]:
        if recorded() and not (exported() or isinstance(self.solver, Bespoke | FixedGrid)):
            # Steps that follow the values are no graph: such a solve is left as it is.
            solved: Callable[..., tuple[Tensor, Tensor | None]]
            solved = torch.compiler.disable(self._solved)  # type: ignore[no-untyped-call]
            return solved(start, context, span, traced)
        return self._solved(start, context, span, traced)

    def _solved(
        self, start: Tensor, context: Tensor | None, span: tuple[float, float], traced: bool
    ) -> tuple[Tensor, Tensor | None]:
        if start.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"a solve needs float32 or float64, got {start.dtype}; for speed, bfloat16=True "
                "runs the field's matrix products alone in low precision"
            )
        if not (self._reviewed or transformed() or exported()):
            self.review()
        batch = start.shape[:-1]
        x = start.reshape(-1, self.features)
        watched = may_read(x)
        if watched:
            self.drop_stale()
        solver = self.solver
        adaptive = isinstance(solver, Adaptive) or (isinstance(solver, Lagged) and not self.steps)
        parameters: list[tuple[Tensor, Tensor]] = []
        if adaptive:
            parameters += [(p, p) for p in self.parameters()]
        if context is not None:
            context = outer = context.reshape(x.shape[0], self.context_features)
            if self.gradient == "adjoint" and adaptive:
                # It may depend on the parameters, whose gradient through it is the outer graph's.
                context = outer.detach().requires_grad_(outer.requires_grad)
            parameters.append((outer, context))
        collected = self._collected.get(threading.get_ident()) if self._collected else None
        penalties = self.penalties if traced and collected is not None else ()
        stats = SolveStats()
        if watched:
            self.stats = stats
        with nullcontext() if recorded() else computed_once(self.field):
            x, total, _ = solve(
                self._right_hand_side(x, context, span[0], traced, penalties),
                x,
                solver,
                integrals=int(traced) + len(penalties),
                span=span,
                steps=self.steps,
                gradient=self.gradient,
                parameters=parameters,
                stats=stats,
            )
        # An integer that changes at each call would have torch.compile begin anew each time.
        if watched:
            self.evaluations_made += stats.nfe
            self._reviewed = not isinstance(solver, Lagged)
        x = x.reshape(*batch, self.features)
        if total is None:
            return x, None
        for index, name in enumerate(penalties, 1):
            assert collected is not None
            value = (total[:, index] * (span[1] - span[0])).reshape(batch)
            collected[name] = collected[name] + value if name in collected else value
        return x, total[:, 0].reshape(batch)

    def _right_hand_side(
        self,
        x: Tensor,
        context: Tensor | None,
        start: float,
        traced: bool,
        penalties: tuple[str, ...],
    ) -> RightHandSide:
        """The field T f(sT, x), its divergence and the penalties' rates."""
        stretch = None
        if self.steer and self.training:
            stretch = (2 * torch.rand((), dtype=x.dtype, device=x.device) - 1) * self.steer

        def end_time() -> Tensor:
            # Taken from its parameter at each call, where the adjoint can see it.
            return self.end_time if stretch is None else self.end_time + stretch

        def at(times: Tensor) -> Iterator[Stage]:
            end = end_time()
            for field in at_stages(self.field, times, context, end):
                yield partial(stage, field, end)

        def stage(
            field: Callable[[Tensor], Tensor], end: Tensor, state: Tensor, rated: bool = True
        ) -> Slope:
            # An outer autocast stays in force otherwise.
            low = self.low_precision
            with torch.autocast(x.device.type, torch.bfloat16) if low else nullcontext():
                told = penalties if rated else ()
                return self._slope(
                    field, state, traced and rated, probes, told, spare, end, low_trace
                )

        def first() -> Callable[[Tensor], Tensor]:
            return next(at_stages(self.field, x.new_full((1,), start), context, end_time()))

        solver = self.solver
        low_trace = isinstance(solver, Bespoke) and solver.bfloat16
        probes = self._draw(x, first) if traced else None
        spare = draw_probes(x, self.probe) if penalties and probes is None else x
        return at

    def _draw(self, x: Tensor, first: Callable[[], Callable[[Tensor], Tensor]]) -> Tensor | None:
        """Probes for a solve that begins at x with the field ``first()``; None: the exact trace."""
        scheme, count = self.evaluation_divergence, self.evaluation_probes
        if self.training:
            scheme, count = self.divergence, self.probes
        return probes_for(self._override[1] or scheme, self.field, x, first, self.probe, count)


def _sizes(field: nn.Module) -> tuple[int, int]:
    """D and C of a field; a TypeError where it declares them otherwise than as integers."""
    sizes = getattr(field, "features", None), getattr(field, "context_features", 0)
    for name, size in zip(("features", "context_features"), sizes, strict=True):
        if not isinstance(size, int):
            raise TypeError(f"the field {type(field).__name__} needs an integer attribute `{name}`")
    return sizes  # type: ignore[return-value]
