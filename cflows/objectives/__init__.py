"""Training objectives by name: modules whose ``forward(flow, batch)`` is the loss to minimise.

A batch is a pair (x, context) with x (N, D) and context (N, C) or None; an objective with
``needs_data`` False takes (None, None) too. Those that weigh rows take ``weights`` (N,) after it.
``OBJECTIVES`` are the names that ``fit`` knows.
Called without arguments, those that need some say which.
"""

from __future__ import annotations

from cflows.objectives.base import AnyBatch, Batch, LogDensity, Objective, WeightedBatch
from cflows.objectives.f_divergences import AlphaDivergence, ChiSquare, FDivergence, JensenShannon
from cflows.objectives.flow_matching import FlowMatching
from cflows.objectives.ipm import MMD, SlicedWasserstein
from cflows.objectives.kl import ForwardKL, ReverseKL

__all__ = [
    "MMD",
    "OBJECTIVES",
    "AlphaDivergence",
    "AnyBatch",
    "Batch",
    "ChiSquare",
    "FDivergence",
    "FlowMatching",
    "ForwardKL",
    "JensenShannon",
    "LogDensity",
    "Objective",
    "ReverseKL",
    "SlicedWasserstein",
    "WeightedBatch",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "flow_matching": FlowMatching,
    "alpha": AlphaDivergence,
    "jensen_shannon": JensenShannon,
    "chi_square": ChiSquare,
    "mmd": MMD,
    "sliced_wasserstein": SlicedWasserstein,
}
