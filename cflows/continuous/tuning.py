r"""The cheapest solver that keeps what was asked of a trained flow.

A continuous flow's price is its evaluations of the network. How many it needs, its own paths say:
``tune_solver`` measures, on rows that nothing was fitted to, how far log-densities and samples are
from those of a fine solve, for grids of the known methods and for schemes that were fitted to the
field (``schemes.fit_scheme``), cheapest first.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from cflows.continuous.bespoke import Bespoke, Scheme
from cflows.continuous.ode_bijector import ODEBijector
from cflows.continuous.solvers import FixedGrid, Solver
from cflows.continuous.trials import Bench, Trial, evaluations_of, scheme_of
from cflows.continuous.tuned import fingerprint
from cflows.core.flow import Flow

__all__ = ["Trial", "Tuning", "tune_solver"]

METHODS = ("midpoint", "bosh3", "rk4", "dopri5")
FITTED = (*range(2, 9), *range(10, 21, 2), 24, 28, 32)  # stages of the schemes that are tried
MOST = 96  # evaluations of a solve, where no number is given
ROWS = 1000  # half of them to fit to, half to judge by
ROOM = 4  # stages more, at most, with fewer traces
GRID_STEPS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Tuning:
    """What ``tune_solver`` tried and took.

    Attributes:
        solver: that the flow evaluates with from now on.
        density: the trial that was taken.
        sampling: likewise.
        drawing: that of samples without their density, None where it is the same.
        trials: all of them.
        reference_gap: mean |log p| by which the fine solve moved when its steps were halved.
        kept: whether the tolerance is kept in both directions.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, tune_solver
        >>> tuning = tune_solver(FFJORD(2, hidden=(16,)), torch.randn(100, 2))
        >>> tuning.kept, tuning.solver
        (True, Bespoke(2 evaluations for samples, 2 for densities, 0 of them with a trace))

    """

    solver: Solver
    density: Trial
    sampling: Trial
    drawing: Trial | None
    trials: tuple[Trial, ...]
    reference_gap: float
    kept: bool

    def records(self) -> list[dict[str, str | float | bool]]:
        """The trials as plain values, each with whether it was taken."""
        return [
            {
                "direction": trial.direction,
                "solver": trial.label,
                "evaluations": trial.evaluations,
                "traces": trial.traces,
                "gap": trial.gap,
                "gap_99": trial.gap_99,
                "bias": trial.bias,
                "end": trial.end,
                "taken": trial in (self.density, self.sampling, self.drawing),
            }
            for trial in self.trials
        ]

    def __str__(self) -> str:
        """A table of the trials."""
        head = f"{'':10}{'solver':>20}{'evaluations':>13}{'traces':>8}"
        lines = [head + f"{'gap':>10}{'99 %':>10}{'end':>10}"]
        for trial in self.trials:
            mark = " <" if trial in (self.density, self.sampling, self.drawing) else ""
            lines.append(
                f"{trial.direction:10}{trial.label:>20}{trial.evaluations:>13}{trial.traces:>8}"
                f"{trial.gap:>10.2g}{trial.gap_99:>10.2g}{trial.end:>10.2g}{mark}"
            )
        return "\n".join(lines)


def tune_solver(
    flow: Flow,
    rows: Tensor,
    context: Tensor | None = None,
    *,
    evaluations: int | None = None,
    tolerance: float | None = None,
    fitted: bool = True,
    seconds: float | None = None,
) -> Tuning:
    r"""Find the cheapest evaluation solver of a trained flow, and let the flow evaluate with it.

    For each direction, densities and samples, grids of midpoint, bosh3, rk4 and dopri5 are tried,
    and schemes that are fitted to the field's paths (``cflows.continuous.bespoke.Scheme``), by the
    number of their evaluations. What counts, on rows that nothing was fitted to:

    - the mean of |log p - fine log p|, at most ``tolerance``, and its 99 % quantile, at most ten
      times as much. For samples, log p is what ``sample_and_log_prob`` tells of them.
    - the end of the path, whose root mean square error is at most ``tolerance`` standard
      deviations. Of samples whose density nobody asks for it is all that counts, and they have a
      scheme of their own where a shorter one keeps it.

    Where that saves time on this machine and moves log p by less than a quarter of the tolerance,
    the products of a float32 flow's exact trace run in bfloat16, in the trials and from then on,
    unless gradients are asked for; its paths do not.

    The fine solve is dopri5 on steps that are doubled until they move log p by less than a tenth of
    the tolerance. The flow keeps the solver, ``save`` writes it, ``flow.using(solver=...)`` still
    overrides it, and a flow whose weights change drops it with a warning.

    Args:
        flow: with one continuous part or several, trained.
        rows: validation rows, (N, D), of which at most 1000 are used.
        context: (N, C), where the flow takes one.
        evaluations: of a solve, at most; without a tolerance, the best within these.
        tolerance: as above; .01 where neither is given.
        fitted: whether schemes are fitted, for a flow with one continuous part in a chain.
        seconds: after which no further solver is tried.

    Returns:
        what was tried and taken. Where nothing else keeps the tolerance it is the fine solve, or a
        grid of half its steps; where that does not either, the flow keeps the solver that it was
        built with, or, where ``evaluations`` bounds the price, takes the best, with a warning.

    Raises:
        TypeError: the flow has no continuous part.
        ValueError: fewer than 20 rows, or a number that is not positive.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, tune_solver
        >>> flow = FFJORD(2, hidden=(16,)).eval()
        >>> tuning = tune_solver(flow, torch.randn(100, 2), tolerance=0.01)
        >>> tuning.density.evaluations < 10
        True

    """
    if not flow.is_continuous:
        raise TypeError("this flow has no continuous part: there is no solver to tune")
    for name, value in (
        ("evaluations", evaluations),
        ("tolerance", tolerance),
        ("seconds", seconds),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if len(rows) < 20:
        raise ValueError(f"tuning needs 20 rows at least, got {len(rows)}")
    if tolerance is None and evaluations is None:
        tolerance = 0.01
    until = math.inf if seconds is None else time.perf_counter() + seconds
    flow.eval()
    blocks = [part for part in flow.modules() if isinstance(part, ODEBijector)]
    for block in blocks:
        block.tune(None)
    every = -(-len(rows) // ROWS)
    context = None if context is None else context.expand(len(rows), -1)[::every]
    with _held(flow):
        bench = Bench(flow, blocks, rows[::every].detach(), context, tolerance)
        search = partial(_searched, bench, evaluations, tolerance, fitted)
        # Half of the time for either direction.
        halfway = until - 0.5 * max(0.0, until - time.perf_counter()) if seconds else until
        (density, *others), (sampling, *more) = (
            search(halfway, "density"),
            search(until, "sampling"),
        )
        kept = tolerance is None or (density.keeps(tolerance) and sampling.keeps(tolerance))
        drawings = (
            _drawn(bench, sampling, tolerance, until) if kept and tolerance and fitted else []
        )
        drawing = next((trial for trial in drawings if trial.keeps(tolerance or 0)), None)
    if not kept:
        warnings.warn(
            f"no solver that was tried keeps a tolerance of {tolerance:g}, the best has gaps of "
            f"{density.gap:.2g} nats (densities) and {sampling.gap:.2g} (samples): the flow "
            + ("takes that" if evaluations else "keeps the solver that it was built with"),
            stacklevel=2,
        )
    solver: Solver = blocks[0].evaluation_solver
    for block in blocks:
        if kept or evaluations:
            solver = _solver(density, sampling, drawing, block)
            block.tune(solver)
    parts = [density, *others], [sampling, *more], drawings
    trials = tuple(trial for part in parts for trial in sorted(part, key=_price))
    return Tuning(solver, density, sampling, drawing, trials, bench.reference_gap, kept)


def _price(trial: Trial) -> tuple[int, int]:
    return trial.evaluations, trial.traces


def _drawn(bench: Bench, sampling: Trial, tolerance: float, until: float) -> list[Trial]:
    """Trials of schemes for samples without their density, the cheapest that will do first."""

    def drawn(stages: int) -> Trial:
        assert bench.block is not None
        scheme = bench.fitted(bench.block, "sampling", stages)
        return replace(bench.judged("sampling", scheme), direction="drawing", traces=0)

    sizes = [size for size in FITTED if size < sampling.evaluations] if bench.block else []
    return sorted(_bisected(sizes, drawn, tolerance, until), key=_price)


def _bisected(
    sizes: Sequence[int], trial_of: Callable[[int], Trial], tolerance: float | None, until: float
) -> list[Trial]:
    """Trials on the way to the smallest size that keeps the tolerance: the larger, the better."""
    trials: list[Trial] = []
    while sizes and time.perf_counter() < until:
        middle = len(sizes) // 2
        trials.append(trial_of(sizes[middle]))
        kept = tolerance is not None and trials[-1].keeps(tolerance)
        sizes = sizes[:middle] if kept else sizes[middle + 1 :]
    return trials


def _solver(density: Trial, sampling: Trial, drawing: Trial | None, block: ODEBijector) -> Solver:
    """One grid where both directions take the same, else a scheme for each."""
    same = density.solver == sampling.solver and not density.bfloat16 and drawing is None
    if same and isinstance(density.solver, FixedGrid):
        return density.solver
    schemes = scheme_of(sampling.solver), scheme_of(density.solver)
    drawn = None if drawing is None else scheme_of(drawing.solver)
    return Bespoke(*schemes, fingerprint(block), density.bfloat16, drawn)


def _searched(
    bench: Bench,
    evaluations: int | None,
    tolerance: float | None,
    fitted: bool,
    until: float,
    direction: str,
) -> list[Trial]:
    """The trial to take, and the others."""

    def keeps(trial: Trial) -> bool:
        return tolerance is not None and trial.keeps(tolerance)

    def fitted_to(stages: int, traces: int | None = None) -> Trial:
        assert bench.block is not None
        return bench.judged(direction, bench.fitted(bench.block, direction, stages, traces))

    most = evaluations or MOST
    sizes = [size for size in FITTED if size <= most] if fitted and bench.block else []
    if tolerance is None:
        sizes = [most] if sizes and most <= FITTED[-1] else sizes[-1:]
    trials = _bisected(sizes, fitted_to, tolerance, until)
    for trial in trials:
        most = trial.evaluations if keeps(trial) else most
    # With as few traces as will do, or a few more, and as few stages beside them.
    stages = min((trial.evaluations for trial in trials if keeps(trial)), default=0)
    room = min(stages + ROOM, FITTED[-1], evaluations or MOST) if stages > 2 else 0
    thin = _bisected(range(2, stages), partial(fitted_to, room), tolerance, until)
    traces = min((trial.traces for trial in thin if keeps(trial)), default=stages)
    for count in range(traces, min(traces + 3, stages)):
        fewer = partial(fitted_to, traces=count)
        thin += _bisected(range(count + 1, room), fewer, tolerance, until)
    trials += thin
    # A grid is taken where it is as cheap as that.
    for grid in _grids(most):
        trials.append(bench.judged(direction, grid))
        if keeps(trials[-1]) or time.perf_counter() > until:
            break

    # Nothing that was tried will do: half the fine solve, or all of it, is what it takes.
    fine = bench.fine.steps
    for steps in (fine // 2, fine) if tolerance is not None and evaluations is None else ():
        if not any(map(keeps, trials)):
            trials.append(bench.judged(direction, FixedGrid("dopri5", steps)))

    def rank(trial: Trial) -> tuple[bool, float, bool]:
        price = trial.evaluations + trial.traces * bench.trace_price
        price = price if keeps(trial) else max(trial.gap, trial.end)
        return not keeps(trial), price, isinstance(trial.solver, Scheme)

    taken = min(trials, key=rank)
    return [taken, *(trial for trial in trials if trial is not taken)]


def _grids(most: int) -> list[FixedGrid]:
    """Grids of at most so many evaluations, in their order."""
    grids = [FixedGrid(method, steps) for method in METHODS for steps in GRID_STEPS]
    cheap = [grid for grid in grids if evaluations_of(grid) <= most]
    return sorted(cheap, key=evaluations_of) or [FixedGrid("midpoint", 1)]


@contextmanager
def _held(flow: Flow) -> Iterator[None]:
    """Parameters without gradients within a block, which is about solvers."""
    trained = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
