"""Printing a flow shows what it is built of."""

from __future__ import annotations

import pytest
import torch

from baselines import IAF, NSF, RealNVP
from cflows import FFJORD, Affine, Flow, Lagged, StudentT


@pytest.mark.parametrize(
    ("flow", "says"),
    [
        (lambda: IAF(4, hidden=(8,)), ("features=4", "order='reversed'", "inversion='cached'",
                                       "hidden=(8,)", "inputs=4, outputs=8")),
        (lambda: RealNVP(4), ("alternate, sizes=[2, 2]", "networks='shared'")),
        (lambda: NSF(4), ("RationalQuadratic(bins=8, bound=3.0)",)),
        (lambda: FFJORD(3, hidden=(64, 64), training_solver=Lagged("rk4", 1e-2)), (
            "Lagged(method='rk4', tolerance=0.01)", "probe='rademacher'",
            "hidden=(64, 64)", "frequencies=0")),
        (lambda: Flow(Affine(torch.zeros(3), torch.ones(3)), StudentT(3, df=4.0)),
         ("loc=tensor(3,)", "StudentT(features=3, df=4.0)")),
    ],
)  # fmt: skip
def test_printing_shows_the_settings(flow, says):
    text = repr(flow())
    for words in says:
        assert words in text


def test_many_values_are_counted():
    assert "loc=[20 values]" in repr(Affine([0.0] * 20, [1.0] * 20))
