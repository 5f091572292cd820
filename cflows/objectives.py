"""Training objectives by name: modules whose ``forward(flow, batch)`` is the loss to minimise.

A batch is a pair (x, context) with x (N, D) and context (N, C) or None; an objective with
``needs_data`` False takes (None, None) too. ``OBJECTIVES`` are the names that ``fit`` knows.
Called without arguments, those that need some say which.
"""

from __future__ import annotations

from .kl import AnyBatch, Batch, ForwardKL, LogDensity, Objective, ReverseKL
from .matching import FlowMatching

__all__ = [
    "OBJECTIVES",
    "AnyBatch",
    "Batch",
    "FlowMatching",
    "ForwardKL",
    "LogDensity",
    "Objective",
    "ReverseKL",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "flow_matching": FlowMatching,
}
