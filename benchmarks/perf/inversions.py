"""Inverting an autoregressive flow, three ways, against D."""

from __future__ import annotations

import torch

from .base import Suite, flow_of

ROWS = 200


class Inversion(Suite, inversion=("cached", "jacobi", "sequential"), features=(4, 16, 64)):
    """A sample of a MAF of five layers, H = 128."""

    def setup(self, inversion: str, features: int) -> None:
        """Build the flow."""
        self.flow = flow_of("maf", features, 128, inversion=inversion).eval()
        self.flow.sample(1)
        self.z = torch.randn(ROWS, features)

    def time_sample(self, inversion: str, features: int) -> None:
        """Without gradient."""
        torch.manual_seed(3)
        self.flow.sample(ROWS)

    def time_sample_and_gradient(self, inversion: str, features: int) -> None:
        """With the gradient of all parameters."""
        x, log_det = self.flow.bijector.forward_and_log_det(self.z)
        torch.autograd.grad(x.sum() + log_det.sum(), list(self.flow.parameters()))
