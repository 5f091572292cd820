"""What a report averages: the seeds of one data set, model, depth and view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from baselines.harness.metrics.bootstrap import mean_and_error
from baselines.harness.results.number_format import clip, decimals, finite
from baselines.harness.results.records import VIEW, Row
from baselines.models.model import GAUSSIAN

__all__ = [
    "Group",
    "Vector",
    "by_dataset",
    "deepest",
    "leaders",
    "likelihood_digits",
    "name_of",
    "paired",
    "reference",
    "settings",
]

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Group:
    """One (data set, model, depth, view): its finished rows, one a seed, and their average.

    `log_probs` and `gains` hold one vector over the test rows for every seed that has one: log p,
    and log p less that of the Gaussian.
    """

    dataset: str
    model: str
    depth: float | None
    view: str = VIEW
    label: str = ""  # of the model, as tables and pictures write it; by default its name
    rows: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    log_probs: list[Vector] = field(default_factory=list)
    gains: list[Vector] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.model)

    def mean(self, column: str) -> float | None:
        """Return the average of a column over the seeds, None where no seed has a value."""
        values = self._values(column)
        return math.fsum(values) / len(values) if values else None

    def largest(self, column: str) -> float | None:
        """Return the largest value of a column over the seeds, None where no seed has one."""
        return max(self._values(column), default=None)

    @cached_property
    def log_prob(self) -> Vector | None:
        """Return log p of every test row, averaged over the seeds; None where there is none."""
        return _average(self.log_probs)

    @cached_property
    def likelihood(self) -> tuple[float | None, float | None]:
        """Test log-likelihood and its two standard errors over the test rows."""
        error = self.mean("test_log_prob_2se")
        if len(self.rows) > 1 and self.log_prob is not None:
            # All seeds saw the same test rows: averaged errors would not know it.
            error = mean_and_error(self.log_prob)[1]
        return self.mean("test_log_prob"), error

    @cached_property
    def gain(self) -> tuple[float | None, float | None]:
        """Paired gain over the Gaussian and its two standard errors."""
        difference = _average(self.gains)
        return (None, None) if difference is None else mean_and_error(difference)

    def spread(self, column: str = "test_log_prob") -> float | None:
        """Standard deviation of a column over seeds, None below two seeds."""
        values = self._values(column)
        if len(values) < 2 or not all(map(finite, values)):
            return None
        return float(np.std(values, ddof=1))

    @property
    def seeds(self) -> str:
        """How many seeds finished, out of how many."""
        done, total = len(self.rows), len(self.rows) + len(self.failed)
        return str(done) if done == total else f"{done} of {total}"

    def _values(self, column: str) -> list[float]:
        values = (getattr(row, column) for row in self.rows)
        return [value for value in values if value is not None]


def name_of(s: Group, width: int = 80) -> str:
    """Return a setting's model as pictures write it, with its view where that is a special one."""
    name = clip(s.label, width)
    return name if s.view == VIEW else f"{name}, {s.view}"


def paired(first: Vector, second: Vector) -> tuple[float, float] | None:
    """Return mean and two standard errors of first - second; None where the rows do not match."""
    return mean_and_error(_subtract(first, second)) if first.shape == second.shape else None


def settings(
    rows: Sequence[Row], log_probs: Mapping[str, Vector], labels: Mapping[str, str]
) -> list[Group]:
    """Return the settings in the order of their first row.

    `rows` are those of results.csv; `log_probs` holds log p of every test row by a row's `cell`;
    `labels` says how a model is written where that is not its name.
    """
    groups: dict[tuple[str, str, float | None, str], Group] = {}
    for row in rows:
        key = (row.dataset, row.model, row.depth, row.view)
        group = groups.setdefault(key, Group(*key, labels.get(row.model, "")))
        if not row.is_finished:
            group.failed.append(row)
            continue
        group.rows.append(row)
        if (vector := log_probs.get(row.cell)) is not None:
            group.log_probs.append(vector)
            other = reference(row, rows, log_probs)
            if other is not None and other.shape == vector.shape:
                group.gains.append(_subtract(vector, other))
    return list(groups.values())


def by_dataset(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the settings by the name of their data set, in order."""
    named: dict[str, list[Group]] = {}
    for group in groups:
        named.setdefault(group.dataset, []).append(group)
    return named


def reference(row: Row, rows: Iterable[Row], log_probs: Mapping[str, Vector]) -> Vector | None:
    """Return log p under the Gaussian of the row's data (of its seed if there is one), or None."""
    others = [
        other
        for other in rows
        if (other.model, other.dataset) == (GAUSSIAN, row.dataset) and other.cell in log_probs
    ]
    nearest = min(others, key=lambda other: other.seed != row.seed, default=None)
    return None if nearest is None else log_probs[nearest.cell]


def deepest(groups: Iterable[Group]) -> list[Group]:
    """Return one setting a data set, model and view: the deepest that finished, else a failed one.

    A depth is never judged against another view's.
    """
    best: dict[tuple[str, str, str], Group] = {}
    for group in groups:
        key = (group.dataset, group.model, group.view)
        best[key] = max(best.get(key, group), group, key=_rank)
    return list(best.values())


def leaders(shown: Sequence[Group]) -> list[Group]:
    """Return the best, and each whose paired difference to it is within two standard errors."""
    scored = [s for s in shown if finite(s.likelihood[0])]
    best = max(scored, key=lambda s: s.likelihood[0] or 0.0, default=None)

    def is_level(s: Group) -> bool:
        if s is best or best is None or s.log_prob is None or best.log_prob is None:
            return s is best
        difference = paired(best.log_prob, s.log_prob)
        return difference is not None and difference[0] <= difference[1]

    return list(filter(is_level, scored))


def _rank(s: Group) -> tuple[bool, float]:
    return bool(s.rows), -1 if s.depth is None else s.depth


def _subtract(first: Vector, second: Vector) -> Vector:
    with np.errstate(invalid="ignore"):  # -inf less -inf is nan, and is shown as such
        return first - second


def _average(vectors: Sequence[Vector]) -> Vector | None:
    if not vectors or any(v.shape != vectors[0].shape for v in vectors):
        return None
    return vectors[0] if len(vectors) == 1 else np.mean(vectors, axis=0)


def likelihood_digits(groups: Iterable[Group]) -> int:
    """Return the decimals at which these settings' log-likelihoods are worth printing."""
    return decimals(s.likelihood[1] for s in groups)
