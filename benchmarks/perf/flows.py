"""A training iteration, a density and a sample of each flow."""

from __future__ import annotations

import torch

from .base import FLOWS, SIZES, WEIGHTS, Suite, checked, flow_of, iteration_of, prepared, rows_of

ROWS = 500


class Training(Suite, flow=FLOWS, size=tuple(SIZES), weights=WEIGHTS):
    """One iteration: loss, gradient, review, Adam."""

    def setup(self, flow: str, size: str, weights: str) -> None:
        """Build the flow; run one iteration, which chooses the steps of a solve."""
        features, width = SIZES[size]
        _affordable(flow, size, weights)
        x = rows_of(features, ROWS)
        model = prepared(flow_of(flow, features, width), x, weights)
        # At a rate of zero the step costs what it costs, and the weights stay.
        self.iterate = iteration_of(model, x, rate=0.0)
        checked(self.iterate())

    def time_iteration(self, flow: str, size: str, weights: str) -> None:
        """One iteration."""
        self.iterate()


class Evaluation(Suite, flow=FLOWS, size=tuple(SIZES), weights=WEIGHTS):
    """Density and sample, without gradient, as evaluated."""

    def setup(self, flow: str, size: str, weights: str) -> None:
        """Build the flow and the rows."""
        features, width = SIZES[size]
        _affordable(flow, size, weights)
        self.x = rows_of(features, ROWS)
        self.flow = prepared(flow_of(flow, features, width), self.x, weights)
        torch.manual_seed(3)

    def time_density(self, flow: str, size: str, weights: str) -> None:
        """log p of the rows."""
        with torch.no_grad():
            self.flow.log_prob(self.x)

    def time_sample(self, flow: str, size: str, weights: str) -> None:
        """As many rows drawn."""
        self.flow.sample(len(self.x))


def _affordable(flow: str, size: str, weights: str) -> None:
    """Leave out what takes seconds and says nothing that a smaller size does not."""
    if size == "43x512" and (weights == "trained" or flow == "nsf"):
        raise NotImplementedError("the small sizes show it")
