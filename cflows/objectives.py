"""Training objectives: modules whose ``forward(flow, batch)`` is the loss to minimise.

A batch is a pair (x, context) with x (N, D) and context (N, C) or None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["OBJECTIVES", "ForwardKL"]

Batch = tuple[Tensor, Tensor | None]


class ForwardKL(nn.Module):
    """Maximum likelihood: KL(data || flow) = -E_data[log p(x)] + constant, in nats a row."""

    def forward(self, flow: Any, batch: Batch) -> Tensor:
        """-mean log p(x | context)."""
        log_prob: Tensor = flow(*batch)
        return -log_prob.mean()


OBJECTIVES: dict[str, type[nn.Module]] = {"forward_kl": ForwardKL}
