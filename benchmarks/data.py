"""Data for the benchmarks that train: endless batches, and validation rows in float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.harness.data import load, tabular, toy
from baselines.harness.data.toys import TOYS

Matrix = npt.NDArray[np.float64]
VALIDATION_SEED = 2**31 - 1  # the same validation rows for every seed of training
DRAWN = 100_000  # rows of a toy to train on


def task(
    name: str, *, batch: int, validation_rows: int, seed: int
) -> tuple[Iterator[Tensor], Tensor]:
    """Batches without end (batch, D) in float32, and the validation rows (N, D) in float64.

    The name is ``"power"``; a two-dimensional toy, drawn anew for every batch as in the FFJORD
    code; or a .csv or .npy file, split and standardised by its training rows.

    Raises:
        SystemExit: POWER is asked for and CFLOWS_DATA is not set.
        DataError: neither a known name nor a readable file.

    """
    if name in TOYS:
        validation = toy(name, validation_rows, VALIDATION_SEED)
        return _fresh(name, batch, seed), torch.from_numpy(validation)
    if name == "power":
        train, validation, _ = real(name)
    else:
        data = load(name)
        train, validation = standardised([data.train, data.validation])
    return batches(train, batch, seed), torch.from_numpy(validation[:validation_rows])


def rows_of(name: str, seed: int = 0) -> tuple[Matrix, Tensor, Tensor]:
    """Training rows, validation and test rows (float32) of a toy, by seed, or of a set by name."""
    if name in TOYS:
        held = toy(name, 4000, VALIDATION_SEED)
        train, validation, test = toy(name, DRAWN, seed), held[:2000], held[2000:]
    elif name in REAL:
        train, validation, test = real(name)
    else:
        data = load(name, seed=seed)
        train, validation, test = data.train, data.validation, data.test
    return train, torch.from_numpy(validation).float(), torch.from_numpy(test).float()


def real(name: str) -> tuple[Matrix, ...]:
    """Training, validation and test rows of a set in ``REAL``.

    Raises:
        SystemExit: CFLOWS_DATA, the folder that holds its file, is not set.

    """
    folder = os.environ.get("CFLOWS_DATA")
    if not folder:
        raise SystemExit(f"set CFLOWS_DATA to the folder that holds {REAL[name][0]}")
    return REAL[name][1](Path(folder))


def power(folder: Path) -> tuple[Matrix, ...]:
    """POWER in float64, prepared as by Papamakarios et al. 2017, (·, 6): ``tabular.power``."""
    return tabular.power(np.load(folder / "power" / "data.npy"))[:3]


def gas(folder: Path) -> tuple[Matrix, ...]:
    """The rows shuffled, dequantised by their grid of .01, a tenth each held out, standardised."""
    rng = np.random.default_rng(0)
    data = np.load(folder / "gas_30k" / "gas_30k.npy").astype(np.float64)
    data = rng.permutation(data) + 0.01 * rng.random(data.shape)
    held = len(data) // 10
    return standardised(np.split(data, [len(data) - 2 * held, len(data) - held]))


def standardised(parts: Sequence[Matrix]) -> tuple[Matrix, ...]:
    """By the mean and the spread of the first, the training rows."""
    mean, std = parts[0].mean(0), parts[0].std(0)
    return tuple((part - mean) / std for part in parts)


def bsds300(folder: Path) -> tuple[Matrix, ...]:
    """The patches of BSDS300 as the MAF archive's file has them, (·, 63)."""
    import h5py

    with h5py.File(folder / "BSDS300" / "BSDS300.hdf5") as file:
        return tuple(file[part][:] for part in ("train", "validation", "test"))


REAL: dict[str, tuple[str, Callable[[Path], tuple[Matrix, ...]]]] = {
    "power": ("power/data.npy", power),
    "gas_30k": ("gas_30k/gas_30k.npy", gas),
    "bsds300": ("BSDS300/BSDS300.hdf5", bsds300),
}


def batches(train: Matrix, size: int, seed: int) -> Iterator[Tensor]:
    """Epoch after epoch of the rows, shuffled anew; the last batch of an epoch may be short."""
    rows = torch.from_numpy(train).float()
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows), size):
            yield rows[order[start : start + size]]


def _fresh(name: str, size: int, seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    while True:
        yield torch.from_numpy(TOYS[name](size, rng)).float()
