"""How samples compare with data, where no density is asked: four distances, each with its null.

A distance means something beside what it is for two samples of the data themselves. So the test
rows are halved: model draws stand against the first half, and the second half stands against it as
the null, as many rows each way. All is in standard deviations of the test rows, column by column.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import MutableMapping
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from cflows import Flow
from cflows.objectives.ipm import median_distance, mmd, sliced_wasserstein

__all__ = ["Distances", "Quality", "c2st", "compare", "evaluate", "ks"]

MOST_ROWS = {False: 2000, True: 500}  # by whether it is quick
MMD_ROWS = 1000  # the kernels cost the square of it
LEAST_ROWS = 20
PROJECTIONS = 128
FACTORS = (0.5, 1.0, 2.0)
FOLDS = 5
MOST_UNITS = 200
EPOCHS = (10, 100)  # of the classifier, where work allows no more and where it does
WORK = {False: 4 * 10**8, True: 10**8}  # rows times weights times epochs: a second at most
OVERHEAD = 3000  # what a row costs a small network beside its weights, counted in weights
FAR = 1e4  # where a draw that is not finite is taken to lie, in standard deviations


class Distances(TypedDict, total=False):
    """Four distances of two samples, see ``compare``; two are None without their libraries."""

    sw: float
    mmd: float
    ks: float | None
    c2st: float | None


class Quality(Distances, total=False):
    """What result.json holds of a flow's draws: their distances, and the nulls of these."""

    sw_null: float
    mmd_null: float
    ks_null: float | None
    c2st_null: float | None


_NULLS: MutableMapping[Tensor, dict[tuple[int, int, bool], Distances]] = WeakIdKeyDictionary()
"""By the test rows, then by the seed, the rows' version and whether it is quick."""


@torch.no_grad()
def evaluate(flow: Flow, test: Tensor, seed: int = 0, quick: bool = False) -> Quality:
    """Compare draws of a flow with test rows; the same seed gives the same figures.

    Empty for fewer than 40 rows, which tell nothing.

    Args:
        flow: in evaluation mode.
        test: (N, D). At most 2000 rows are drawn and compared, half of N if that is fewer.
        seed: of the halves, the draws, the directions and the classifier, within this call only.
        quick: a quarter of the rows, and of the classifier's work.

    """
    size = min(MOST_ROWS[quick], len(test) // 2)
    if size < LEAST_ROWS:
        return {}
    exact = test.double()
    loc, scale = exact.mean(0), exact.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    devices = [test.device] if test.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        order = torch.randperm(len(test)).to(test.device)
        drawn = flow.sample(size).double()
    first, second, drawn = (
        (part - loc).div(scale).cpu() for part in (exact[order[:size]], exact[order[-size:]], drawn)
    )
    drawn = drawn.nan_to_num(nan=FAR, posinf=FAR, neginf=-FAR).clamp(-FAR, FAR)
    # The same for all models of a data set, and as dear as a model's own distances.
    nulls, state = _NULLS.setdefault(test, {}), (seed, test._version, quick)
    if state not in nulls:
        nulls[state] = compare(second, first, seed, quick)
    null = nulls[state]
    return {
        **compare(drawn, first, seed, quick),
        "sw_null": null["sw"],
        "mmd_null": null["mmd"],
        "ks_null": null["ks"],
        "c2st_null": null["c2st"],
    }


def compare(x: Tensor, y: Tensor, seed: int = 0, quick: bool = False) -> Distances:
    """Four distances of two samples of N rows each, (N, D) and (N, D).

    ``sw``: sliced Wasserstein distance of order 2 over 128 directions, in the rows' units; above
    zero for samples of one law, by the noise of their order statistics. ``mmd``: the unbiased
    estimate of MMD², about zero for one law, kernel widths from the median distance in y.
    ``ks``: the Kolmogorov-Smirnov statistic of each column, averaged. ``c2st``: the held-out
    accuracy of a classifier that tells x from y, about one half for one law. These two are None
    where scipy and scikit-learn are not installed.

    Raises:
        ValueError: the samples are not of one shape.

    """
    if x.shape != y.shape:
        raise ValueError(f"samples must be of one shape, got {tuple(x.shape)}, {tuple(y.shape)}")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(PROJECTIONS, x.shape[1], generator=generator, dtype=x.dtype)
    directions /= directions.norm(dim=1, keepdim=True)
    few = y[:MMD_ROWS]
    widths = median_distance(few) * few.new_tensor(FACTORS)
    return {
        "sw": math.sqrt(float(sliced_wasserstein(x, y, directions))),
        "mmd": float(mmd(x[:MMD_ROWS], few, widths)),
        "ks": ks(x, y),
        "c2st": c2st(y, x, seed, quick),
    }


def ks(x: Tensor, y: Tensor) -> float | None:
    """sup |F_x - F_y| of each column, averaged, for (M, D) and (N, D); None without scipy."""
    try:
        from scipy.stats import ks_2samp
    except ImportError:
        return None
    columns = zip(x.T.cpu().numpy(), y.T.cpu().numpy(), strict=True)
    return float(np.mean([ks_2samp(*pair, method="asymp").statistic for pair in columns]))


def c2st(x: Tensor, y: Tensor, seed: int = 0, quick: bool = False) -> float | None:
    """Held-out accuracy of a classifier that tells x from y; None without scikit-learn.

    The classifier two-sample test (Lopez-Paz and Oquab 2017) as sbibm has it (Lueckmann et al.
    2021): rows standardised by x, a perceptron of two hidden layers of 10 D rectified units trained
    by Adam, the accuracy averaged over five folds of shuffled rows. For one law it is 1/2 with a
    standard deviation of about 1 / √(8N).

    sbibm trains for 1000 epochs at most, which for 2000 rows and D = 6 or 63 takes 20 or 50 s. Here
    the hidden layers have 200 units at most, and training ends after 100 epochs or, where rows
    times weights times epochs would pass ``WORK``, fewer, ten at least; beyond that fewer rows are
    used (720 for D = 63). From D = 6 on less training tells more: 1000 epochs learn the rows by
    heart.

    Args:
        x: (N, D).
        y: (N, D).
        seed: of the folds and the first weights.
        quick: a quarter of ``WORK``.

    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
    except ImportError:
        return None
    units = min(10 * x.shape[1], MOST_UNITS)
    work = WORK[quick] // (units * (x.shape[1] + units) + OVERHEAD)
    few = max(2 * FOLDS, work // EPOCHS[0])
    x, y = x[:few], y[:few]
    scale = x.std(0)
    rows = (torch.cat([x, y]) - x.mean(0)) / torch.where(scale > 0, scale, 1.0)
    classifier = MLPClassifier(
        (units, units), max_iter=min(EPOCHS[1], max(EPOCHS[0], work // len(x))), random_state=seed
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    # What lies far off is told by any classifier, and must not hide all others.
    features = rows.clamp(-10, 10).float().cpu().numpy()
    labels = np.repeat([0, 1], [len(x), len(y)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(classifier, features, labels, cv=folds).mean())
