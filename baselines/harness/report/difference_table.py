"""The table of pairs: which model is better than which, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from baselines.harness.metrics.bootstrap import Interval, intervals, over_seeds
from baselines.harness.report.tables import Table, TableCell
from baselines.harness.results.aggregate import Group, deepest, name_of
from baselines.harness.results.number_format import decimals, fixed

__all__ = ["difference_table"]

_NOTE = (
    "Each model at its deepest, the better one first: the difference of the mean test"
    " log-likelihoods in nats, on the same rows. The interval is a paired bootstrap over test"
    " points (BCa), of the average over seeds where there are several; bold where it leaves out"
    " zero. ± 2 s.e. over seeds is what other first weights would change, where there are several."
)


def difference_table(found: Sequence[Group]) -> Table:
    """Return the pairwise differences of one data set, every model at its deepest."""
    ranked = sorted(filter(_scored, deepest(found)), key=lambda s: -(s.likelihood[0] or 0.0))
    pairs = [(a, b) for a, b in combinations(ranked, 2) if _log_prob(a).shape == _log_prob(b).shape]
    header = ("model", "less", "difference", "95% over test points", "± 2 s.e. over seeds")
    width = 5 if any(len(s.log_probs) > 1 for s in ranked) else 4
    lines = []
    for (first, second), interval in zip(pairs, _intervals(pairs), strict=True):
        digits = decimals([(interval.high - interval.low) / 2])
        low, high = (fixed(end, digits) for end in interval[1:])
        apart = interval.low > 0 or interval.high < 0
        seeds = over_seeds(_means(first), _means(second))
        cells = [
            TableCell(name_of(first, 40)),
            TableCell(name_of(second, 40)),
            TableCell(fixed(interval.mean, digits), apart),
            TableCell(f"{low} to {high}" if math.isfinite(interval.low) else "not known"),
            TableCell("" if seeds is None else f"± {fixed(seeds, digits)}"),
        ]
        lines.append(tuple(cells[:width]))
    return Table("Differences of pairs", _NOTE if lines else "", header[:width], tuple(lines))


def _scored(s: Group) -> bool:
    value = s.likelihood[0]
    return value is not None and math.isfinite(value) and s.log_prob is not None


def _log_prob(s: Group) -> np.ndarray:
    assert s.log_prob is not None  # _scored has seen to it
    return s.log_prob


def _intervals(pairs: Sequence[tuple[Group, Group]]) -> list[Interval]:
    """Pairs on the same rows share their draws, and their cost."""
    found: dict[int, Interval] = {}
    for rows in {len(_log_prob(first)) for first, _ in pairs}:
        places = [i for i, (first, _) in enumerate(pairs) if len(_log_prob(first)) == rows]
        vectors = np.stack([_log_prob(pairs[i][0]) - _log_prob(pairs[i][1]) for i in places])
        found |= dict(zip(places, intervals(vectors), strict=True))
    return [found[i] for i in range(len(pairs))]


def _means(s: Group) -> np.ndarray:
    return np.array([vector.mean() for vector in s.log_probs])
