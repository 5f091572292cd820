"""The table of pairs: which model is better than which, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from baselines.harness.metrics.bootstrap import Interval, intervals, over_seeds
from baselines.harness.report.tables import Table, TableCell, table_of
from baselines.harness.results.aggregate import Group, Vector, deepest, name_of
from baselines.harness.results.number_format import decimals, finite, fixed

__all__ = ["difference_table"]

_NOTE = (
    "Each model at its deepest, the better one first: the difference of the mean test"
    " log-likelihoods in nats, on the same rows. The interval is a paired bootstrap over test"
    " points (BCa), of the average over seeds where there are several; bold where it leaves out"
    " zero. ± 2 s.e. over seeds is what other first weights would change, where there are several."
)


def difference_table(groups: Sequence[Group]) -> Table:
    """Return the pairwise differences of one data set, every model at its deepest."""
    scored = [(s, s.log_prob) for s in deepest(groups) if finite(s.likelihood[0])]
    ranked = [(s, vector) for s, vector in scored if vector is not None]
    ranked.sort(key=lambda pair: -(pair[0].likelihood[0] or 0.0))
    pairs = [(a, b) for a, b in combinations(ranked, 2) if a[1].shape == b[1].shape]
    header = ("model", "less", "difference", "95% over test points", "± 2 s.e. over seeds")
    width = 5 if any(len(s.log_probs) > 1 for s, _ in ranked) else 4
    differences = _intervals([a - b for (_, a), (_, b) in pairs])
    lines = []
    for ((first, _), (second, _)), interval in zip(pairs, differences, strict=True):
        digits = decimals([(interval.high - interval.low) / 2])
        low, high = (fixed(end, digits) for end in interval[1:])
        apart = interval.low > 0 or interval.high < 0
        seeds = over_seeds(*(np.array([v.mean() for v in s.log_probs]) for s in (first, second)))
        cells = (
            name_of(first, 40),
            name_of(second, 40),
            TableCell(fixed(interval.mean, digits), apart),
            f"{low} to {high}" if math.isfinite(interval.low) else "not known",
            "" if seeds is None else f"± {fixed(seeds, digits)}",
        )
        lines.append(cells[:width])
    return table_of("Differences of pairs", _NOTE if lines else "", header[:width], lines)


def _intervals(differences: Sequence[Vector]) -> list[Interval]:
    """Pairs on as many rows share their draws, and their cost."""
    shared = {
        rows: iter(intervals(np.stack([d for d in differences if len(d) == rows])))
        for rows in set(map(len, differences))
    }
    return [next(shared[len(d)]) for d in differences]
