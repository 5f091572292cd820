"""Columns that a dtype cannot hold are told: far from zero, or beside a fill value."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from baselines import MAF
from baselines.sklearn import DensityEstimator
from cflows import fit, log_likelihood, standardise, whiten
from cflows.training.rows import check_resolution

QUIET = {"steps": 2, "progress": False}


def table(offset: float = 0.0, fill: float | None = None) -> np.ndarray:
    rows = np.random.default_rng(0).normal(0, 2, (300, 2)) + offset
    if fill is not None:
        rows[7, 1] = fill
    return rows


def small(dtype=torch.float32):
    return MAF(2, layers=1, hidden=(8,)).to(dtype)


def estimator(dtype="float32"):
    return DensityEstimator("maf", depth=1, steps=2, dtype=dtype)


@pytest.mark.parametrize("offset", [3e6, 1e8, -1e8])
def test_doubles_far_from_zero_are_refused_in_single_precision(offset):
    for call in (
        lambda: estimator().fit(table(offset)),
        lambda: fit(small(), table(offset), **QUIET),
        lambda: fit(small(), torch.from_numpy(table(offset)), **QUIET),
    ):
        with pytest.raises(ValueError, match="far from zero for its spread") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_double_precision_holds_them():
    rows = torch.from_numpy(table(1e8))
    for fit_map in (standardise, whiten):
        z = fit_map(rows).inverse(rows)
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(2, dtype=torch.float64))
    check_resolution("rows", rows, torch.float64)
    with pytest.warns(UserWarning, match="float64 cannot hold"):
        check_resolution("rows", torch.from_numpy(table(1e16)), torch.float64)


@pytest.mark.parametrize("call", [standardise, whiten, lambda x: fit(small(), x, **QUIET)])
def test_rows_that_were_rounded_before_are_warned_of(call):
    with pytest.warns(UserWarning, match="far from zero for its spread"):
        call(torch.from_numpy(table(3e7)).float())


def test_whole_numbers_far_from_zero_are_exact():
    years = torch.from_numpy(1_000_000 + np.arange(300.0).reshape(150, 2) % 13).float()
    check_resolution("years", years, torch.float32)


@pytest.mark.parametrize("fill", [1e20, 9.97e36, -1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fill_value_is_named(fill, dtype):
    rows, said = table(fill=fill), re.escape(f"{fill:g}")
    if abs(fill) < 1e15 and dtype == torch.float64:
        check_resolution("rows", torch.from_numpy(rows), dtype)
        return
    for call in (
        lambda: estimator(str(dtype).removeprefix("torch.")).fit(rows),
        lambda: fit(small(dtype), rows, **QUIET),
        lambda: standardise(torch.from_numpy(rows).to(dtype)),
        lambda: whiten(torch.from_numpy(rows).to(dtype)),
    ):
        with pytest.raises(ValueError, match=rf"column 1 of .* is {said} in row 7") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_outliers_that_the_dtype_can_hold_are_left():
    check_resolution("rows", torch.from_numpy(table(fill=-9999)), torch.float32)
    check_resolution(
        "rows", torch.from_numpy(np.random.default_rng(0).standard_cauchy((1000, 3))), torch.float32
    )


def test_masked_values_are_refused():
    rows = np.ma.masked_array(table(), mask=np.zeros((300, 2), bool))
    found = estimator().fit(rows)
    rows.mask[3, 1] = True
    for call in (
        lambda: estimator().fit(rows),
        lambda: found.score_samples(rows),
        lambda: found.score(rows),
        lambda: fit(small(), rows, **QUIET),
        lambda: fit(small(), table(), rows, **QUIET),
        lambda: log_likelihood(small(), rows),
    ):
        with pytest.raises(ValueError, match="masked values") as caught:
            call()
        assert "\n" not in str(caught.value)
