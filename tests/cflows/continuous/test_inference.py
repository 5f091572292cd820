"""Evaluations without a graph, beside those that keep one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from cflows import MLP, FixedGrid, ODEBijector, ResidualField
from cflows.continuous import inference
from cflows.continuous.divergence import linearize, value_and_divergence
from cflows.continuous.inference import LEAST, evaluated
from cflows.continuous.layers import ACTIVATIONS, LAYERS


def moved(field: nn.Module) -> nn.Module:
    """With parameters away from their start, in float64."""
    for parameter in field.double().parameters():
        nn.init.normal_(parameter, std=0.3)
    return field


def fields() -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {
        f"{layer} {activation} {len(hidden)}": MLP(
            3, hidden=hidden, layer=layer, activation=activation, time_frequencies=2
        )
        for layer, activation, hidden in itertools.product(LAYERS, ACTIVATIONS, [(8,), (8, 12)])
    }
    made["less x"] = MLP(3, hidden=(8, 8), residual=True)
    made["normal"] = MLP(3, hidden=(8, 8), residual="normal")
    made["spectral"] = MLP(3, hidden=(8, 8), spectral=True)
    made["residual"] = ResidualField(3, width=8, blocks=3)
    made["one block"] = ResidualField(3, width=8, blocks=1)
    return made


@pytest.mark.parametrize("name", fields())
def test_is_what_the_graph_gives(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    field = moved(fields()[name]).to(device).eval()
    x = torch.randn(LEAST + 7, 3, dtype=torch.float64, device=device)
    with torch.no_grad():
        scale = x.new_tensor(0.7)
        (frozen,) = field.at(x.new_tensor([0.3]), None, scale)  # type: ignore[operator]
        local = linearize(frozen, x)
        before = x.clone()
        result = evaluated(frozen, x, traced=True)
        alone = evaluated(frozen, x, traced=False)
    assert result is not None
    assert alone is not None
    assert result[1] is not None
    torch.testing.assert_close(result[0], local.value)
    torch.testing.assert_close(result[1][:, 0], local.exact_trace())
    torch.testing.assert_close(alone[0], local.value)
    assert alone[1] is None
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_contexts_and_parts_of_the_rows(
    kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context shifts each row by its own; more rows than a part holds."""
    monkeypatch.setattr(inference, "HELD", 1)
    monkeypatch.setattr(inference, "ON_GPU", 1)
    torch.manual_seed(0)
    field = MLP(3, hidden=(16, 16), context_features=2)
    wide = field if kind == "mlp" else ResidualField(3, width=16, context_features=2)
    flow = ODEBijector(moved(wide).to(device), evaluation_solver=FixedGrid("rk4", 2)).eval()
    n = 3 * LEAST + 5
    x = torch.randn(n, 3, dtype=torch.float64, device=device)
    context = torch.randn(n, 2, dtype=torch.float64, device=device)
    with torch.no_grad():
        value, log_det = flow.inverse_and_log_det(x, context)
    kept, kept_log_det = flow.inverse_and_log_det(x, context)
    assert kept_log_det.requires_grad
    assert not log_det.requires_grad
    torch.testing.assert_close(value, kept)
    torch.testing.assert_close(log_det, kept_log_det)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_what_has_no_shorter_way() -> None:
    x = torch.randn(LEAST, 3)
    with torch.no_grad():
        t = torch.tensor(0.5)
        deep = MLP(3, hidden=(4, 4, 4)).frozen(t)
        assert evaluated(deep, x, traced=True) is None
        assert evaluated(deep, x, traced=False) is not None
        gated = MLP(3, context_features=1, context_mode="gate")
        assert evaluated(gated.frozen(t, torch.ones(LEAST, 1)), x, traced=False) is None
        frozen = MLP(3).frozen(t)
        assert evaluated(frozen, x[1:], traced=True) is None
        assert evaluated(frozen, x.double(), traced=True) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert evaluated(frozen, x, traced=True) is None
    assert evaluated(MLP(3).frozen(t), x, traced=True) is None
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(MLP(3, activation="silu").frozen(t)(dual)).tangent
        assert tangent is not None
        assert evaluated(MLP(3, activation="silu").frozen(t), dual, traced=True) is None
    # Within a transform of torch.func nothing is written in place.
    field = moved(MLP(3)).float()
    with torch.no_grad():
        by_row = torch.func.vmap(lambda row: value_and_divergence(field, t, row)[1])(
            x.unsqueeze(1).expand(-1, LEAST, -1)[:2]
        )
        together = value_and_divergence(field, t, x[:2])[1]
    torch.testing.assert_close(by_row[:, 0], together)
