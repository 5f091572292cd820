"""A flow as a scikit-learn estimator.

Imported only when asked for: ``import cflows`` needs no scikit-learn.
"""

from __future__ import annotations

import copy
import numbers
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from baselines.models.model import Goal, Model
from baselines.models.registry import find
from cflows.bijectors.bounded import Bounded
from cflows.core.arguments import as_numbers
from cflows.core.bijector import Bijector
from cflows.core.flow import Flow, log_likelihood
from cflows.core.table_flow import TableFlow
from cflows.training.gaussianisation import gaussianise
from cflows.training.pipeline import behind, fit_behind
from cflows.training.preprocessing import extent, standardise, whiten
from cflows.training.rows import check_resolution, weights_for
from cflows.training.schedules import LEAST, NO_GAIN, for_few_rows

if TYPE_CHECKING:
    from cflows.training.trainer import History

__all__ = ["DensityEstimator"]

FLOOR = 1e-6
LEAST_HELD_OUT = 10
TRAINED = 20  # steps, of fewer of which nothing is expected
DRAWN_AT_ONCE = 10_000

Matrix = NDArray[np.float64]
Pair = tuple[float | None, float | None]
Bounds = Mapping[Hashable, Pair] | Sequence[Pair]
RandomState = int | np.random.RandomState | None


class DensityEstimator(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A normalizing flow behind scikit-learn's interface, as ``KernelDensity`` is.

    Log-densities are in nats and in the units of X, and so are samples.

    Args:
        model: a name that ``cflows compare`` knows, such as ``"maf"``, or a function
            (features, depth) -> Flow of one's own for white data.
        depth: layers or blocks; None for the deepest setting of a comparison.
        steps: optimiser steps at most; None for the model's own number, or fewer below 5000 rows,
            see ``schedules.for_few_rows``.
        learning_rate: Adam's; None for the model's own, or a lower one, likewise.
        batch_size: rows a step; None for the model's own number, 512 or, matching, 1024.
        preprocess: the map in front of X, ``"whiten"`` (by correlation, with a floor),
            ``"standardise"``, ``"gaussianise"`` (which counts each row once, whatever its weight),
            ``"auto"`` for the one that does best on validation rows, or ``"none"``.
        bounds: (lower, upper) of columns that no row and no sample leaves, None where there is no
            such end: a pair for each column, or a dictionary by the names of X's columns (by their
            numbers, where there are none).
        validation_fraction: share of the rows that chooses the best state, at least 10 rows where
            that is no more than a fifth of them. 0, or a share of fewer than two rows, keeps the
            last state, of fewer steps.
        dtype: ``"float64"``, as scikit-learn computes, or ``"float32"``, which is faster and wants
            columns whose spread is not small beside their distance from zero.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for the GPU where there is one.
        random_state: of the first weights, the split and the training. The global generators of
            torch are left alone.
        progress: whether to show a progress bar.

    Attributes:
        flow_: the trained flow, in evaluation mode and on the CPU.
        history_: what ``cflows.fit`` returned.
        preprocess_: the map's name, which ``"auto"`` has chosen.
        n_features_in_: D.
        feature_names_in_: the columns of X, where it had names; the flow has them too.

    Example:
        >>> import numpy as np
        >>> from baselines.sklearn import DensityEstimator
        >>> X = np.random.default_rng(0).normal(5.0, 2.0, (200, 2))
        >>> estimator = DensityEstimator("maf", depth=1, steps=20).fit(X)
        >>> estimator.score_samples(X[:3]).shape, estimator.sample(4).shape
        ((3,), (4, 2))

    """

    def __init__(
        self,
        model: str | Callable[[int, int | None], Flow] = "maf",
        *,
        depth: int | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        preprocess: str = "whiten",
        bounds: Bounds | None = None,
        validation_fraction: float = 0.1,
        dtype: str = "float64",
        device: str = "cpu",
        random_state: RandomState = 0,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.depth = depth
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.preprocess = preprocess
        self.bounds = bounds
        self.validation_fraction = validation_fraction
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.progress = progress

    flow_: TableFlow
    history_: History
    preprocess_: str

    def fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> DensityEstimator:
        """Train a new flow on the rows of X, (N, D); y is there for the interface.

        A row counts by its sample weight, (N,), in the map in front, in training and in the
        validation that chooses the best state; one of weight zero is left out. Equal weights are
        none.

        Raises:
            ValueError: a parameter, X or a weight cannot be used; the message says which.
            TrainingError: the training came to no end.

        """
        values: Matrix = validate_data(self, _unmasked(X), dtype=np.float64, ensure_min_samples=2)
        self._check_parameters()
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        names = getattr(self, "feature_names_in_", None)
        columns = None if names is None else [str(name) for name in names]
        dtype: torch.dtype = getattr(torch, self.dtype)
        x, weights = _weighed(torch.tensor(values), sample_weight)
        bounds = self._bounded()
        if bounds is not None:
            _refuse_outside(x, bounds)
        check_resolution("X", torch.tensor(values), dtype, columns)
        x = x.to(dtype)
        kept, held_out = self._split(len(x), seed)
        rows, validation = x[kept], None if held_out is None else x[held_out]
        of_rows = None if weights is None else weights[kept]
        least = 1 if validation is None else LEAST
        core, steps, learning_rate, goal = self._resolved(seed, len(rows), least)

        def build(data_end: Bijector | None) -> TableFlow:
            flow = behind(core().to(dtype), data_end)
            return TableFlow(flow.bijector, flow.base, columns, extent=extent(rows)).to(dtype)

        preprocess = self.preprocess
        if preprocess == "auto" and validation is None:
            warnings.warn("no validation rows to choose by: whitening is taken", stacklevel=2)
            preprocess = "whiten"
        done = fit_behind(
            build,
            rows,
            validation,
            preprocess,
            maps={
                "standardise": partial(standardise, weights=of_rows),
                "whiten": partial(whiten, floor=FLOOR, weights=of_rows),
                "gaussianise": gaussianise,
            },
            bounds=bounds,
            steps=steps,
            own={"validate_every": max(1, steps // 20)},
            learning_rate=learning_rate,
            seed=seed,
            device=self.device,
            progress=self.progress,
            weights=of_rows,
            **goal,
            validation_weights=None if weights is None or held_out is None else weights[held_out],
        )
        self.preprocess_, self.history_ = done.name, done.history
        self.flow_ = done.flow.cpu()
        if self.history_.gain == 0 and steps >= TRAINED:
            warnings.warn(NO_GAIN, stacklevel=2)
        return self

    def score_samples(self, X: ArrayLike) -> Matrix:
        """Log-density of each row in nats, (N, D) -> (N,)."""
        check_is_fitted(self)
        values: Matrix = validate_data(self, _unmasked(X), dtype=np.float64, reset=False)
        rows = torch.tensor(values, dtype=getattr(torch, self.dtype))
        log_prob: Matrix = log_likelihood(self.flow_, rows).double().numpy()
        return log_prob

    def score(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Mean log-density of a row in nats: the higher the better, whatever the number of rows.

        Each row counts by its sample weight, (N,).
        """
        log_prob = self.score_samples(X)
        if sample_weight is None:
            return float(log_prob.mean())
        weights = weights_for(sample_weight, len(log_prob), "sample_weight").numpy()
        counts = weights > 0
        return float((weights[counts] * log_prob[counts]).sum() / len(weights))

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> Matrix:
        """Draw rows in the units of X, (n_samples, D); None draws anew each time.

        A warning says how many lie far outside of the rows that the flow was trained on.

        Raises:
            ValueError: n_samples is less than 1.

        """
        check_is_fitted(self)
        count: object = n_samples
        if not isinstance(count, numbers.Integral) or count < 1:
            raise ValueError(f"n_samples must be a whole number of at least 1, got {count!r}")
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [
                self.flow_.sample(min(DRAWN_AT_ONCE, n_samples - first))
                for first in range(0, int(n_samples), DRAWN_AT_ONCE)
            ]
        x = torch.cat(parts)
        outside = self.flow_.outside(x)
        if outside is not None and outside.far:
            warnings.warn(str(outside), stacklevel=2)
        drawn: Matrix = x.double().numpy()
        return drawn

    def _check_parameters(self) -> None:
        for name, allowed in (
            ("preprocess", ("auto", "standardise", "whiten", "gaussianise", "none")),
            ("dtype", ("float64", "float32")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie in [0, 1), got {self.validation_fraction}"
            )
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")

    def _resolved(
        self, seed: int, rows: int, least: int
    ) -> tuple[Callable[[], Flow], int, float, Goal]:
        """A maker of the flow for white data, the same each time; and how it is trained."""
        depth = self.depth
        if isinstance(self.model, str):
            model = find(self.model)
            depth = max(model.depths) if depth is None else depth
        else:
            model = Model("", self.model, learning_rate=1e-3)

        def core() -> Flow:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                flow: Flow = model.core(self.n_features_in_, depth)
                return flow

        steps, learning_rate = for_few_rows(model.steps, model.learning_rate, rows, least)
        size = model.batch_size if self.batch_size is None else self.batch_size
        return (
            core,
            steps if self.steps is None else self.steps,
            learning_rate if self.learning_rate is None else self.learning_rate,
            {**model.goal, "batch_size": size},
        )

    def _bounded(self) -> Bounded | None:
        if self.bounds is None:
            return None
        names = list[Hashable](getattr(self, "feature_names_in_", range(self.n_features_in_)))
        pairs = self.bounds
        if isinstance(pairs, Mapping):
            if unknown := [name for name in pairs if name not in names]:
                raise ValueError(f"bounds has {unknown[0]!r}, which is no column of X")
            pairs = [pairs.get(name, (None, None)) for name in names]
        if len(pairs) != len(names):
            raise ValueError(f"bounds must have a pair for each of {len(names)} columns")
        return Bounded([low for low, _ in pairs], [high for _, high in pairs])

    def _split(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """The numbers of the training rows, in their order where there are no others, and those."""
        held_out = int(self.validation_fraction * count)
        if held_out < 2 or count - held_out < 2:
            return torch.arange(count), None
        held_out = max(held_out, min(LEAST_HELD_OUT, count // 5))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return order[held_out:], order[:held_out]


def _refuse_outside(x: Tensor, bounds: Bounded) -> None:
    exact = copy.deepcopy(bounds).double()
    inside = (x > exact.low) & (x < exact.high)
    for column in (~inside.all(0)).nonzero().flatten().tolist():
        outside = x[~inside[:, column], column]
        raise ValueError(
            f"column {column} of X has {len(outside):,} rows on or outside of its bounds, such as "
            f"{float(outside[0]):g}: widen them, or drop these rows"
        )


def _weighed(rows: Tensor, sample_weight: ArrayLike | None) -> tuple[Tensor, Tensor | None]:
    """The rows that count, and how much; no weights where they are equal."""
    if sample_weight is None:
        return rows, None
    weights = weights_for(sample_weight, len(rows), "sample_weight")
    rows, weights = rows[weights > 0], weights[weights > 0]
    if len(rows) < 2:
        raise ValueError("sample_weight leaves one row: give at least two a positive weight")
    return rows, None if bool((weights == weights[0]).all()) else weights


def _unmasked(X: ArrayLike) -> ArrayLike:
    """X, unless values of it are masked: scikit-learn would take what lies under the mask."""
    return as_numbers("X", X) if isinstance(X, np.ma.MaskedArray) else X
