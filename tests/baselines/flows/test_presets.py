from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from zoo import cases

from baselines import (
    IAF,
    MAF,
    NICE,
    NSF,
    MADEMoG,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    ResidualFlow,
    SylvesterFlow,
)
from baselines.flows.presets import PRESETS, UNITS, preset
from cflows import BatchNorm, Flow


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_papers(name):
    flow = preset(name, "hepmass", features=21)
    parts = list(flow.modules())
    layers = int(name.rsplit("-", 1)[-1]) if name[-1].isdigit() else 1 if name == "made" else 0
    assert sum(isinstance(p, BatchNorm) for p in parts) == (layers if layers > 1 else 0)
    widths = {p.weight.shape[0] for p in parts if hasattr(p, "weight") and p.weight.shape[0] > 200}
    assert 512 in widths
    assert isinstance(flow.base, MADEMoG) == ("mog" in name)
    if "mog" in name:
        assert flow.base.components == 10
    if "realnvp" in name:
        kinds = [c.activation for c in parts if type(c).__name__ == "Conditioner"]
        assert kinds == ["tanh", "relu"] * layers or kinds == ["relu", "tanh"] * layers


def test_unknown_presets():
    with pytest.raises(ValueError, match="no preset is called 'maf-7'; known: made"):
        preset("maf-7", "power", 6)
    with pytest.raises(ValueError, match="no data set is called 'powr'; known: power"):
        preset("maf-5", "powr", 6)
    with pytest.raises(ValueError, match="hidden_layers"):
        preset("maf-5", "power", 6, hidden_layers=0)
    assert UNITS["power"] == 100


NARROW = {"layers": 32, "hidden": (32, 32)}


@dataclass(frozen=True)
class Case:
    build: Callable[[int], Flow]
    forward: bool = False
    """Trained in the direction that is one pass, towards a density of the same data."""


DEEP = {
    "maf": Case(lambda d: MAF(d, **NARROW)),
    "maf-random": Case(lambda d: MAF(d, order="random", **NARROW)),
    "iaf": Case(lambda d: IAF(d, **NARROW), forward=True),
    "realnvp": Case(lambda d: RealNVP(d, **NARROW)),
    "nice": Case(lambda d: NICE(d, **NARROW)),
    "nsf": Case(lambda d: NSF(d, **NARROW)),
    "nsf-autoregressive": Case(lambda d: NSF(d, passes="autoregressive", **NARROW)),
    "residual": Case(lambda d: ResidualFlow(d, log_det="unbiased", **NARROW)),
    "planar": Case(lambda d: PlanarFlow(d, layers=32), forward=True),
    "radial": Case(lambda d: RadialFlow(d, layers=32), forward=True),
    "sylvester": Case(lambda d: SylvesterFlow(d, layers=32, hidden=4), forward=True),
}


@cases(DEEP)
def test_32_layers_of_19_columns_go_there_and_back_in_float32(case, device):
    torch.manual_seed(0)
    mixing = torch.eye(19) + 0.3 * torch.randn(19, 19)
    heavy = torch.distributions.StudentT(5.0)
    x = (heavy.sample((2000, 19)) @ mixing).to(device)
    x = (x - x.mean(0)) / x.std(0)
    flow = case.build(19).to(device).train()
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    for step in range(30):
        optimiser.zero_grad()
        if case.forward:
            z = flow.bijector.forward(x[64 * step : 64 * step + 64])
            loss = (z @ torch.linalg.inv(mixing).to(device)).square().mean()
        else:
            loss = -flow.log_prob(x[64 * step : 64 * step + 64]).mean()
        loss.backward()
        optimiser.step()
    flow.eval()
    f = flow.bijector
    with torch.no_grad():
        for there, back in ((f.inverse, f.forward), (f.forward, f.inverse)):
            y = there(x[-300:])
            assert (y - x[-300:]).abs().max() > 0.1, "trained away from the identity"
            assert (back(y) - x[-300:]).abs().max() < 1e-4
