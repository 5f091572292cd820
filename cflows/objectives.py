"""Training objectives: modules whose ``forward(flow, batch)`` is the loss to minimise.

A batch is a pair (x, context) with x (N, D) and context (N, C) or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["OBJECTIVES", "ForwardKL"]

Batch = tuple[Tensor, Tensor | None]


class ForwardKL(nn.Module):
    """Maximum likelihood: KL(data || flow) = -E_data[log p(x)] + constant, in nats a row.

    Args:
        penalties: weights of what continuous parts integrate along the path, by name; the flow was
            built with these names. The loss becomes -E[log p(x)] + Σ_k weight_k E[penalty_k].

    """

    def __init__(self, penalties: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.penalties = dict(penalties or {})

    def forward(self, flow: Any, batch: Batch) -> Tensor:
        """-mean log p(x | context), and the penalties."""
        if not self.penalties:
            log_prob: Tensor = flow(*batch)
            return -log_prob.mean()
        log_prob, found = flow.log_prob_and_penalties(*batch)
        if missing := self.penalties.keys() - found.keys():
            raise ValueError(
                f"the flow integrates {sorted(found) or 'no penalty'}, not {sorted(missing)}: "
                "build it with penalties=(...)"
            )
        loss: Tensor = -log_prob.mean()
        for name, weight in self.penalties.items():
            loss = loss + weight * found[name].mean()
        return loss


OBJECTIVES: dict[str, type[nn.Module]] = {"forward_kl": ForwardKL}
