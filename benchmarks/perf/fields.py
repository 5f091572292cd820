"""A field's velocity and its divergence, by each estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from cflows import MLP, value_and_divergence
from cflows.continuous.divergence import draw_probes, orthonormal_probes

from .base import SIZES, Suite, checked, rows_of

ESTIMATORS = ("none", "exact", "hutchinson", "hutch++", "module")
ROWS = 500


class Field(Suite, size=tuple(SIZES), divergence=ESTIMATORS):
    """One evaluation of a two-hidden-layer field; ``module`` is one that nobody takes apart."""

    def setup(self, size: str, divergence: str) -> None:
        """Build the field and draw its probes."""
        features, width = SIZES[size]
        torch.manual_seed(0)
        field = MLP(features, hidden=(width, width))
        self.parameters = list(field.parameters())
        x, t = rows_of(features, ROWS), torch.tensor(0.3)
        probes = None
        if divergence in ("hutchinson", "module"):
            probes = draw_probes(x)
        elif divergence == "hutch++":
            probes = orthonormal_probes(lambda state: field(t, state, None), x)
        # A function is not seen through: that is what a module of the user's own costs.
        opaque = (lambda t, x, context: field(t, x, context)) if divergence == "module" else field

        def evaluate() -> Tensor:
            if divergence == "none":
                return field(t, x, None).sum()
            value, trace = value_and_divergence(opaque, t, x, None, probes)
            return value.sum() + trace.sum()

        self.evaluate = evaluate
        checked(float(evaluate().detach()))

    def time_evaluation(self, size: str, divergence: str) -> None:
        """Without gradient."""
        with torch.no_grad():
            self.evaluate()

    def time_evaluation_and_gradient(self, size: str, divergence: str) -> None:
        """With the gradient of all parameters."""
        torch.autograd.grad(self.evaluate(), self.parameters, allow_unused=True)
