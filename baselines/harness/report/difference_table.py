"""The table of pairs: which model is better than which, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from baselines.harness.metrics.bootstrap import Interval, intervals, over_seeds
from baselines.harness.report.tables import Table, TableCell, table_of
from baselines.harness.results.aggregate import Group, Vector, deepest, name_of
from baselines.harness.results.number_format import decimals, finite, fixed, plus_minus, significant

__all__ = ["difference_table", "leader"]

_NOTE = (
    "Each model at its deepest, the better one first: the difference of the mean test"
    " log-likelihoods in nats, on the same rows. The interval is a paired bootstrap over test"
    " points (BCa), of the average over seeds where there are several; bold where it leaves out"
    " zero. ± 2 s.e. over seeds is what other first weights would change, where there are several."
)


def leader(groups: Sequence[Group]) -> str:
    """Say who leads on a data set, by how much, and at what price; "" where nobody does."""
    ranked = _ranked(groups)
    if len(ranked) < 2 or ranked[0][1].shape != ranked[1][1].shape:
        return ""
    (first, best), (second, other), *_ = ranked
    ((mean, low, high),) = _intervals([best - other])
    value, error = first.likelihood
    digits = decimals([error])
    words = f"{name_of(first, 40)} leads with {plus_minus(value, error, digits)} nats a row"
    digits = decimals([(high - low) / 2])
    by = f"{fixed(mean, digits)} (95%: {fixed(low, digits)} to {fixed(high, digits)})"
    apart = "ahead of" if low > 0 else "not apart from"
    line = f"{words}, {by} {apart} {name_of(second, 40)}, the next"
    density, sample = (first.mean(f"{what}_ms_per_1000") for what in ("density", "sample"))
    if density is not None and sample is not None:
        line += (
            f". It trained for {fixed(first.mean('train_seconds'), 0)} s; 1000 densities take "
            f"{significant(density)} ms, 1000 samples {significant(sample)} ms"
        )
    return f"{line}."


def difference_table(groups: Sequence[Group]) -> Table:
    """Return the pairwise differences of one data set, every model at its deepest."""
    ranked = _ranked(groups)
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


def _ranked(groups: Sequence[Group]) -> list[tuple[Group, Vector]]:
    """Every model at its deepest with the log-densities of its test rows, the best first."""
    scored = [(s, s.log_prob) for s in deepest(groups) if finite(s.likelihood[0])]
    ranked = [(s, vector) for s, vector in scored if vector is not None]
    return sorted(ranked, key=lambda pair: -(pair[0].likelihood[0] or 0.0))


def _intervals(differences: Sequence[Vector]) -> list[Interval]:
    """Pairs on as many rows share their draws, and their cost."""
    shared = {
        rows: iter(intervals(np.stack([d for d in differences if len(d) == rows])))
        for rows in set(map(len, differences))
    }
    return [next(shared[len(d)]) for d in differences]
