"""The preprocessing of POWER, GAS, HEPMASS, MINIBOONE and BSDS300: raw arrays to three splits.

Papamakarios, Pavlakou and Murray 2017, "Masked Autoregressive Flow for Density Estimation",
appendix D.1, and the code that was published with it. Random numbers are drawn in that code's
order, so that the full files give the very rows of the papers, which the code then rounds to
float32. Everything here is a function of arrays, in float64, leaves its arguments alone, and
refuses fewer than 20 rows, and columns that are not those of the set, by a DataError.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from baselines.harness.data.dataset import DataError, Matrix

__all__ = ["Splits", "gas", "hepmass", "miniboone", "power"]

DROPPED_OF_GAS = ("Meth", "Eth", "Time")
CORRELATED = 0.98
REPEATED = 5


class Splits(NamedTuple):
    """Training (N, D), validation (N', D) and test rows (N'', D), with the D column names."""

    train: Matrix
    validation: Matrix
    test: Matrix
    columns: tuple[str, ...]


def power(raw: Matrix) -> Splits:
    """Six columns of household power, shuffled, with what the meters rounded off filled up.

    With a generator seeded by 42: rows are shuffled; then voltage has 0.01 u added, active power
    0.001 u, and the three sub-meterings u, drawn in this order with u ~ U[0, 1); the time has no
    noise. Reactive power and intensity are left out. The last tenth is the test set, the last tenth
    of the rest validates, and all are standardised by training and validation rows (ddof 0).

    Args:
        raw: (N, 8): active power (kW), reactive power, voltage (V), intensity, three sub-meterings
            (Wh), minute of the day.

    """
    _refuse_shape("POWER", raw, 8)
    rng = np.random.RandomState(42)
    rows = len(raw)
    # The permutation that rng.shuffle(raw) applies, without its slow swapping of rows.
    data = raw[rng.permutation(rows)][:, [0, 2, 4, 5, 6, 7]]
    voltage = 0.01 * rng.rand(rows, 1)
    active_power = 0.001 * rng.rand(rows, 1)
    meterings = rng.rand(rows, 3)
    data = data + np.hstack((active_power, voltage, meterings, np.zeros((rows, 1))))
    names = ("active_power", "voltage", "metering_1", "metering_2", "metering_3", "minute")
    return _standardised(data, names)


def gas(raw: Matrix, columns: tuple[str, ...]) -> Splits:
    """Sensors of gas mixtures, without those that repeat others.

    Meth, Eth and Time are dropped. While some column has a correlation above .98 with another one
    (signed), the first such column is dropped and correlations are computed again. All rows
    together standardise (ddof 1). The last tenth is the test set, the last tenth of the rest
    validates; nothing is shuffled.

    Args:
        raw: (N, D).
        columns: the D names, those that are dropped among them.

    """
    if missing := [name for name in DROPPED_OF_GAS if name not in columns]:
        raise DataError(f"GAS: the frame has no column {missing[0]!r}, only {', '.join(columns)}")
    _refuse_shape("GAS", raw, len(columns))
    kept = [i for i, name in enumerate(columns) if name not in DROPPED_OF_GAS]
    correlation = np.corrcoef(raw[:, kept], rowvar=False).reshape(len(kept), -1)
    alive = np.arange(len(kept))
    while (above := (correlation[np.ix_(alive, alive)] > CORRELATED).sum(1) > 1).any():
        alive = np.delete(alive, above.argmax())
    kept = [kept[i] for i in alive]
    data = raw[:, kept]
    data = (data - data.mean(0)) / data.std(0, ddof=1)
    rest, test = _split_tenth(data)
    return Splits(*_split_tenth(rest), test, tuple(columns[i] for i in kept))


def hepmass(train: Matrix, test: Matrix, columns: tuple[str, ...]) -> Splits:
    """Signal events alone, without the features that take few values.

    Rows of label 1 are kept, and the label is dropped, as is what the test file has behind the
    training file's columns. Training rows standardise (ddof 1). A feature whose least value occurs
    more than 5 times among the training rows is dropped. The last tenth of the training rows
    validates; nothing is shuffled.

    Args:
        train: (N, 1 + D), the label first.
        test: (N', 1 + D + 1) with the extra last column.
        columns: the D names of the features.

    """
    width = 1 + len(columns)
    if test.shape[1] < width:
        raise DataError(f"HEPMASS: the test file has {test.shape[1]} columns, training {width}")
    train, test = (part[part[:, 0] == 1, 1:width] for part in (train, test))
    _refuse_shape("HEPMASS, label 1", train, len(columns))
    mean, std = train.mean(0), train.std(0, ddof=1)
    varied = (train == train.min(0)).sum(0) <= REPEATED
    train, test = ((part[:, varied] - mean[varied]) / std[varied] for part in (train, test))
    names = tuple(name for name, keep in zip(columns, varied, strict=True) if keep)
    return Splits(*_split_tenth(train), test, names)


def miniboone(raw: Matrix) -> Splits:
    """Particle identification variables, neither shuffled nor given noise.

    The last tenth is the test set, the last tenth of the rest validates, and all are standardised
    by training and validation rows (ddof 0). The raw rows are (N, D).
    """
    _refuse_shape("MINIBOONE", raw, raw.shape[1] if raw.ndim == 2 else 43)
    return _standardised(raw, tuple(f"x{i}" for i in range(raw.shape[1])))


def _standardised(data: Matrix, columns: tuple[str, ...]) -> Splits:
    fitted, test = _split_tenth(data)
    mean, std = fitted.mean(0), fitted.std(0)
    return Splits(*_split_tenth((fitted - mean) / std), (test - mean) / std, columns)


def _split_tenth(data: Matrix) -> tuple[Matrix, Matrix]:
    last = int(0.1 * len(data))
    return data[:-last], data[-last:]


def _refuse_shape(name: str, raw: Matrix, columns: int) -> None:
    if raw.ndim != 2 or raw.shape[1] != columns or len(raw) < 20:
        raise DataError(
            f"{name}: the file holds an array of shape {raw.shape}; at least 20 rows of {columns} "
            "columns are needed"
        )
