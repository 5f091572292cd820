"""A bijector that is computed by solves: which solver is in force, and what the last solve did."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cflows.continuous.divergence import DIVERGENCES
from cflows.continuous.solvers import SIZES, Bespoke, Lagged, Solver
from cflows.continuous.stages import SolveStats
from cflows.continuous.tuned import Tuned, fingerprint, refuse_others
from cflows.core.arguments import known
from cflows.core.bijector import Bijector
from cflows.core.modes import claimed

__all__ = ["SolvedBijector"]


class SolvedBijector(Bijector):
    """Training and evaluation have a solver each, which a block or a tuning takes the place of.

    Args:
        features: D.
        context_features: C.
        training_solver: where ``.training`` is true.
        evaluation_solver: where it is not.

    Attributes:
        stats: what the last solve did, a ``SolveStats``.
        evaluations_made: field evaluations since the bijector was built.
        steps: of the next ``Lagged`` solve, 0 for an adaptive one; saved with the state.

    Raises:
        ValueError: one of the solvers is a ``Bespoke``.

    """

    def __init__(
        self,
        features: int,
        context_features: int,
        training_solver: Solver,
        evaluation_solver: Solver,
    ) -> None:
        super().__init__(features, context_features)
        if isinstance(training_solver, Bespoke) or isinstance(evaluation_solver, Bespoke):
            raise ValueError("a Bespoke solver belongs to trained weights: give it to tune()")
        self.training_solver, self.evaluation_solver = training_solver, evaluation_solver
        self.stats = SolveStats()
        self.evaluations_made = 0
        self.steps = SIZES[3]
        self._reviewed = True
        self._warned = False
        self._override: tuple[Solver | None, str | None] = (None, None)
        self._tuned: Tuned | None = None

    @property
    def solver(self) -> Solver:
        """The solver in force."""
        if self._override[0] is not None or self.training:
            return self._override[0] or self.training_solver
        return self.evaluation_solver if self._tuned is None else self._tuned.solver

    @contextmanager
    def override(
        self, *, solver: Solver | None = None, divergence: str | None = None
    ) -> Iterator[None]:
        """Use this solver and this divergence within a block, in training and in evaluation."""
        if divergence is not None:
            known("divergence", divergence, DIVERGENCES)
        refuse_others(solver, self)
        before = self._override
        with claimed([self], "_override", (solver or before[0], divergence or before[1])):
            yield

    def tune(self, solver: Solver | None) -> None:
        """Evaluate with this solver until the weights change; None: with the one it was built with.

        Raises:
            ValueError: a ``Bespoke`` of other weights.

        """
        refuse_others(solver, self)
        self._tuned = None if solver is None else Tuned(solver, fingerprint(self))

    def drop_stale(self) -> None:
        """Give up a tuned solver, with a warning, where the weights have changed since."""
        if self._tuned is None or self.training or self._tuned.fits(self):
            return
        warnings.warn(
            f"{self._tuned.solver} was tuned for other weights: {self.evaluation_solver} takes its "
            "place, until cflows.tune_solver(flow, rows) finds another",
            stacklevel=2,
        )
        self._tuned = None

    def review(self) -> bool:
        """Read the error of the last ``Lagged`` solve and choose the steps of the next.

        One host synchronisation, outside of the solve. Called at the next solve if not before. Of
        several processes each chooses its own steps here; ``Flow.review`` gives them the same.

        Returns:
            whether the error was within ten times the tolerance; if not, the batch should be
            solved again before the optimiser uses it.

        """
        solver, stats = self.solver, self.stats
        if self._reviewed or not isinstance(solver, Lagged):
            return True
        self._reviewed = True
        if stats.status == "adaptive":
            self.steps = solver.steps_for(0.0, 0)
        if stats.error is None:  # adaptive, or a batch without rows: there is nothing to learn
            return True
        value = float(stats.error)
        self.steps = solver.steps_for(value, stats.accepted)
        if self.steps == 0 and not self._warned:
            self._warned = True
            warnings.warn(
                f"{solver} cannot keep its tolerance on {SIZES[-1]} steps (error {value:.1e}): "
                "such solves are adaptive, and slower; a penalty or a smaller learning rate keeps "
                "fields smooth",
                stacklevel=2,
            )
        return value <= 10 * solver.tolerance

    def get_extra_state(self) -> Tensor:
        """The steps of the next ``Lagged`` solve, and the solver that ``tune`` was given."""
        return torch.tensor(self.steps) if self._tuned is None else self._tuned.packed(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over both."""
        self._tuned, self.steps = Tuned.unpacked(state) if state.dim() else (None, int(state))
