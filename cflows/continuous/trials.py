"""What a solver does to a trained flow, on rows that it was not fitted to, beside a fine solve."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from cflows.continuous.bespoke import Bespoke, Scheme
from cflows.continuous.divergence import is_taken_apart
from cflows.continuous.fields import MLP
from cflows.continuous.layers import computed_once
from cflows.continuous.ode_bijector import ODEBijector
from cflows.continuous.schemes import FINE, Paths, fit_scheme
from cflows.continuous.solvers import FixedGrid, Solver
from cflows.continuous.tableaus import TABLEAUS
from cflows.continuous.tuned import fingerprint
from cflows.core.bijector import Bijector, Chain
from cflows.core.flow import Flow
from cflows.core.trajectory import flattened, through

__all__ = ["Bench", "Trial", "evaluations_of", "scheme_of", "traces_of"]

SAVED = 0.85  # of the time: less is not worth traces in bfloat16
FINEST = 256  # steps of dopri5 that the truth takes at most
SOME = Scheme.of("rk4", 4)  # of which prices are taken
ROUGH = FixedGrid("rk4", 6)  # for the slope of log p, by which draws are compared to first order


@dataclass(frozen=True)
class Trial:
    """What a solver does in one direction, over rows that it was not fitted to.

    Attributes:
        direction: ``"density"``, data to noise, or ``"sampling"``, noise to data; ``"drawing"`` is
            the latter where nobody asks for the density.
        solver: a grid, or a scheme that was fitted.
        evaluations: of the field, a solve.
        traces: of its Jacobian, which may be fewer.
        gap: mean |log p - fine log p| in nats; of samples, between what was told of a sample and
            the fine log-density there.
        gap_99: the 99 % quantile.
        bias: the mean without absolute values.
        end: root mean square error of the end of the path, in standard deviations of the ends.
        bfloat16: whether the products of the trace ran in bfloat16, see ``Bench.bfloat16``.

    """

    direction: str
    solver: FixedGrid | Scheme
    evaluations: int
    traces: int
    gap: float
    gap_99: float
    bias: float
    end: float
    bfloat16: bool = False

    @property
    def label(self) -> str:
        """The method and its steps, or "fitted"."""
        solver = self.solver
        name = "fitted" if isinstance(solver, Scheme) else f"{solver.method} × {solver.steps}"
        return name + ", bf16" * self.bfloat16

    def keeps(self, tolerance: float) -> bool:
        """Whether mean gap and end are within the tolerance, and 99 % of gaps within ten times.

        Of a drawing the end alone.
        """
        if self.direction == "drawing":
            return self.end <= tolerance
        return max(self.gap, self.end, self.gap_99 / 10) <= tolerance


def evaluations_of(solver: FixedGrid | Scheme) -> int:
    """Of a solve."""
    if isinstance(solver, Scheme):
        return len(solver.c)
    return solver.steps * len(TABLEAUS[solver.method].c)


def traces_of(solver: FixedGrid | Scheme) -> int:
    """Of the field's Jacobian, in a solve with the density."""
    if isinstance(solver, Scheme):
        return sum(map(bool, solver.w))
    return solver.steps * sum(map(bool, TABLEAUS[solver.method].b))


def _clock(x: Tensor) -> float:
    """Seconds, when all that was asked of a tensor's device is done."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def scheme_of(solver: FixedGrid | Scheme) -> Scheme:
    """A grid's numbers as those of one step."""
    return solver if isinstance(solver, Scheme) else Scheme.of(solver.method, solver.steps)


class Bench:
    """A flow up to its one continuous part, or whole; rows for both directions, and the truth.

    Every second row judges, the others are for fitting.

    Attributes:
        reference_gap: mean |log p| by which the fine solve moved when its steps were doubled last.

    """

    def __init__(
        self,
        flow: Flow,
        blocks: list[ODEBijector],
        rows: Tensor,
        context: Tensor | None,
        tolerance: float | None,
    ) -> None:
        with torch.no_grad():
            context = flow.seen(context)
        parts = list(flattened(flow.bijector))
        self.context, self.block = context, None
        self.flow = Flow(flow.bijector, flow.base).eval()
        self.before: list[Bijector] = []
        self.behind: list[Bijector] = []
        if len(blocks) == 1 and blocks[0] in parts:
            self.block, at = blocks[0], parts.index(blocks[0])
            rows = through(parts[at + 1 :], rows, context, upwards=False)
            self.before, self.behind = parts[:at], parts[at + 1 :]
            self.flow = Flow(Chain(*parts[: at + 1]), flow.base).eval()
        with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
            torch.manual_seed(0)
            draws = flow.base.sample((len(rows),) if context is None else (), context)
        self.starts: dict[str, Tensor] = {"density": rows, "sampling": draws.to(rows)}
        self.tolerance = tolerance
        self.fine, self.reference_gap, (z, log_prob) = self._reference(rows, tolerance or 1e-3)
        with torch.no_grad(), self.flow.using(solver=self.fine):
            x = self.flow.bijector(self.starts["sampling"], context)
            there = self.flow.log_prob(x, context)
        with torch.enable_grad(), self.flow.using(solver=ROUGH):
            near = self.flow.log_prob(x.requires_grad_(), context)
            (self.score,) = torch.autograd.grad(near.sum(), x)
        self._paths: dict[str, Paths] = {}  # the same for every number of stages
        self.weights = None if self.block is None else fingerprint(self.block)
        self.ends: dict[str, Tensor] = {"density": z, "sampling": x.detach()}
        self.log_prob: dict[str, Tensor] = {"density": log_prob, "sampling": there.detach()}

    @torch.no_grad()
    def judged(self, direction: str, solver: FixedGrid | Scheme) -> Trial:
        """What a solver does to the rows that judge."""
        rows, context = slice(0, None, 2), self._contexts(slice(0, None, 2))
        start, end = self.starts[direction][rows], self.ends[direction][rows]
        with self.flow.using(solver=self._whole(solver, self.bfloat16)):
            if direction == "density":
                reached, log_det = self.flow.bijector.inverse_and_log_det(start, context)
                told = self.flow.base.log_prob(reached, context) + log_det
                true = self.log_prob[direction][rows]
            else:
                reached, log_det = self.flow.bijector.forward_and_log_det(start, context)
                told = self.flow.base.log_prob(start, context) - log_det
                true = self._log_prob_near(reached, rows)
        gap = (told - true).double()
        size = gap.abs()
        if direction == "sampling":  # in the data's units
            reached, end = (self._outside(x, context) for x in (reached, end))
        spread = end.std(0).double()
        return Trial(
            direction,
            solver,
            evaluations_of(solver),
            traces_of(solver),
            float(size.mean()),
            float(size.quantile(0.99)),
            float(gap.mean()),
            float(((reached - end).double() / spread).square().mean().sqrt()),
            self.bfloat16,
        )

    @torch.no_grad()
    def seconds(self, solver: FixedGrid | Scheme, bfloat16: bool = False) -> float:
        """What the densities of all rows take, the shortest of three runs."""
        runs = []
        with self.flow.using(solver=self._whole(scheme_of(solver), bfloat16)):
            for _ in range(3):
                began = _clock(self.starts["density"])
                self.flow.log_prob(self.starts["density"], self.context)
                runs.append(_clock(self.starts["density"]) - began)
        return min(runs)

    @cached_property
    def trace_price(self) -> float:
        """What a trace costs beside the velocity at the same point, 1 where they cost the same."""
        if self.block is None:
            return 1.0
        alone = replace(SOME, w=(0.0,) * len(SOME.w))
        return max(0.0, self.seconds(SOME, self.bfloat16) / self.seconds(alone) - 1)

    def _whole(self, solver: FixedGrid | Scheme, bfloat16: bool) -> Solver:
        """As a solver that the block takes."""
        if isinstance(solver, FixedGrid) and not bfloat16:
            return solver
        assert self.weights is not None
        scheme = scheme_of(solver)
        return Bespoke(scheme, scheme, self.weights, bfloat16)

    @cached_property
    def bfloat16(self) -> bool:
        """Whether traces run in bfloat16: that saves time and hardly moves log p."""
        if self.tolerance is None or not self._may_be_low:
            return False
        if self.seconds(SOME, bfloat16=True) > SAVED * self.seconds(SOME):
            return False
        exact, low = (
            self._scored(self.starts["density"], self._whole(SOME, kind))[1]
            for kind in (False, True)
        )
        return float((exact - low).abs().mean()) < self.tolerance / 4

    @property
    def _may_be_low(self) -> bool:
        """Whether traces in bfloat16 are another computation: exact ones of fields taken apart."""
        block = self.block
        if block is None or self.starts["density"].dtype != torch.float32:
            return False
        if block.evaluation_divergence not in ("exact", "auto") or block.low_precision:
            return False
        layers = len(block.field.hidden) if isinstance(block.field, MLP) else 2
        return is_taken_apart(block.field) and layers == 2

    def fitted(
        self, block: ODEBijector, direction: str, stages: int, traces: int | None = None
    ) -> Scheme:
        """A scheme for the paths of the rows that are for fitting."""
        if direction not in self._paths:
            self._paths[direction] = self._followed(block, direction)
        with torch.no_grad(), computed_once(block.field):
            return fit_scheme(self._paths[direction], stages, traces)

    def _followed(self, block: ODEBijector, direction: str) -> Paths:
        """The true paths of these rows."""
        every = slice(1, None, 2)
        of_flow = self._contexts(every)
        context = of_flow if block.context_features else None
        start, log_prob = self.starts[direction][every], self.log_prob[direction][every]
        span, ends, score = (1.0, 0.0), self.ends[direction][every], self.score[every]
        if direction == "sampling":
            span, start = (0.0, 1.0), through(self.before, start, of_flow, upwards=True)
        times = [span[0] + (span[1] - span[0]) * part / FINE for part in range(FINE + 1)]
        with torch.no_grad(), block.override(solver=FixedGrid("dopri5", 1)):
            states = block.trajectory(start, times, context)
            begun = self._begun(start, of_flow) if span[0] == 0 else None

        def told(end: Tensor) -> Tensor:
            if begun is None:
                return log_prob - self._begun(end, of_flow)
            near: Tensor = (score * (end - ends)).sum(-1)
            return begun - log_prob - near

        return Paths(block.slopes(start, context, span[0]), states, span, told)

    def _begun(self, state: Tensor, context: Tensor | None) -> Tensor:
        """The log-density of a state where the continuous part begins."""
        if self.before:
            return Flow(Chain(*self.before), self.flow.base).eval().log_prob(state, context)
        log_prob: Tensor = self.flow.base.log_prob(state, context)
        return log_prob

    def _log_prob_near(self, x: Tensor, rows: slice) -> Tensor:
        """The fine log-density of draws, to first order about where their paths should end."""
        moved = x - self.ends["sampling"][rows]
        near: Tensor = self.log_prob["sampling"][rows] + (self.score[rows] * moved).sum(-1)
        return near

    def _outside(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What stands behind the continuous part makes of its ends."""
        return through(self.behind, x, context, upwards=True) if self.behind else x

    def _contexts(self, rows: slice) -> Tensor | None:
        return None if self.context is None else self.context[rows]

    def _reference(
        self, rows: Tensor, tolerance: float
    ) -> tuple[FixedGrid, float, tuple[Tensor, Tensor]]:
        """A grid of dopri5 whose densities move by less than a tenth of the tolerance.

        With what its last doubling moved them by, and the ends and log-densities of the rows.
        """
        before, steps = self._scored(rows, FixedGrid("dopri5", 8))[1], 16
        while True:
            solver = FixedGrid("dopri5", steps)
            z, log_prob = self._scored(rows, solver)
            gap = float((log_prob - before).abs().mean())
            if gap < tolerance / 10 or steps >= FINEST:
                return solver, gap, (z, log_prob)
            before, steps = log_prob, 2 * steps

    @torch.no_grad()
    def _scored(self, rows: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        with self.flow.using(solver=solver):
            z, log_det = self.flow.bijector.inverse_and_log_det(rows, self.context)
        return z, self.flow.base.log_prob(z, self.context) + log_det
