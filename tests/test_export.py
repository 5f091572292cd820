"""Flows leave Python: torch.export with a batch of any size, and compilation without a break."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import perturbed

from baselines import IAF, MAF, NICE, NSF, PlanarFlow, RealNVP

FLOWS = {
    "maf": lambda: MAF(3, layers=2, hidden=(16,)),
    "iaf": lambda: IAF(3, layers=2, hidden=(16,)),
    "realnvp": lambda: RealNVP(3, layers=2, hidden=(16,)),
    "nice": lambda: NICE(3, layers=2, hidden=(16,)),
    "nsf": lambda: NSF(3, layers=2, hidden=(16,)),
    "planar": lambda: PlanarFlow(3, layers=1),
    "maf-wide": lambda: MAF(3, layers=1, hidden=(256, 256)),
}


class Directions(nn.Module):
    """Both directions as one module: log-densities, and the points that noise is mapped to."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.log_prob(x), self.flow.bijector(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FLOWS)
def test_export_with_a_dynamic_batch(name, training):
    module = Directions(perturbed(FLOWS[name]()).train(training))
    batch = torch.export.Dim("batch", min=2, max=4096)
    given = torch.randn(16, 3, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(module, (given,), dynamic_shapes=({0: batch},)).module()
        for rows in (2, 16, 300):
            x = torch.randn(rows, 3, dtype=torch.float64)
            torch.testing.assert_close(program(x), module(x))


@pytest.mark.parametrize("name", ["maf", "realnvp"])
def test_one_graph_and_one_compilation(name):
    flow = perturbed(FLOWS[name]()).train()
    built = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        built.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(flow, backend=backend, fullgraph=True)
    x = torch.randn(16, 3, dtype=torch.float64)
    for _ in range(5):
        loss = -compiled(x).mean()
        loss.backward()
    assert len(built) == 1
    torch.testing.assert_close(loss, -flow.log_prob(x).mean())
