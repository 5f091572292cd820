"""Peak memory of a process that solves and differentiates once: what each gradient keeps."""

from __future__ import annotations

import torch

from cflows import Adaptive, FixedGrid, Flow

from .base import Suite, flow_of, rows_of


class Gradient(Suite, gradient=("backprop", "checkpoint", "adjoint"), steps=(4, 16)):
    """2000 rows of eight columns, H = 128; the adjoint solves adaptively and heeds no steps."""

    def setup(self, gradient: str, steps: int) -> None:
        """Build the flow."""
        if gradient == "adjoint" and steps != 4:
            raise NotImplementedError("an adaptive solve heeds no steps")
        solver = (
            Adaptive("dopri5", 1e-3, 1e-3) if gradient == "adjoint" else FixedGrid("rk4", steps)
        )
        self.flow: Flow = flow_of(
            "ffjord", 8, 128, gradient=gradient, training_solver=solver, divergence="hutchinson"
        ).train()
        self.x = rows_of(8, 2000)

    def peakmem_gradient(self, gradient: str, steps: int) -> None:
        """One loss and its gradient."""
        torch.manual_seed(3)
        self.flow.log_prob(self.x).mean().backward()
