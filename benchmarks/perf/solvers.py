"""What a solve costs beside its field: each solver on the same path, with and without gradient."""

from __future__ import annotations

import torch

from cflows import Adaptive, FixedGrid, Lagged
from cflows.continuous.solvers import Solver

from .base import Suite, flow_of, rows_of

SOLVERS: dict[str, Solver] = {
    "adaptive dopri5 1e-3": Adaptive("dopri5", 1e-3, 1e-3),
    "adaptive dopri5 1e-6": Adaptive("dopri5", 1e-6, 1e-6),
    "lagged dopri5 1e-3": Lagged("dopri5", 1e-3),
    "lagged rk4 1e-3": Lagged("rk4", 1e-3),
    "grid rk4 8": FixedGrid("rk4", 8),
    "grid dopri5 8": FixedGrid("dopri5", 8),
}
GRADIENTS = ("none", "backprop", "checkpoint", "adjoint")


class Solve(Suite, solver=tuple(SOLVERS), gradient=GRADIENTS):
    """log p of 200 rows of six columns, one probe."""

    def setup(self, solver: str, gradient: str) -> None:
        """Build the flow."""
        spec = SOLVERS[solver]
        if (gradient == "adjoint" and not isinstance(spec, Adaptive)) or (
            gradient == "checkpoint" and isinstance(spec, Adaptive)
        ):
            raise NotImplementedError("there is no such gradient")
        settings = {"training_solver": spec, "divergence": "hutchinson"}
        kind = "backprop" if gradient == "none" else gradient
        self.flow = flow_of("ffjord", 6, 64, gradient=kind, **settings).train()
        self.x = rows_of(6, 200)
        self.time_solve(solver, gradient)
        self.flow.review()

    def time_solve(self, solver: str, gradient: str) -> None:
        """One solve, and its gradient where there is one."""
        torch.manual_seed(3)
        if gradient == "none":
            with torch.no_grad():
                self.flow.log_prob(self.x)
        else:
            self.flow.zero_grad()
            self.flow.log_prob(self.x).sum().backward()
