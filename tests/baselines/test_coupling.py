from __future__ import annotations

import pytest
import torch
from zoo import perturbed

from baselines import NICE, NSF, Additive, AffineScale, Coupling, RationalQuadratic, RealNVP
from baselines.coupling import coupling_mask

D = 5


@pytest.mark.parametrize("kind", ["alternate", "halves", "random"])
@pytest.mark.parametrize("features", [2, 3, 8])
def test_masks(kind, features):
    first, second = (coupling_mask(features, kind, layer) for layer in (0, 1))
    for mask in (first, second):
        assert mask.shape == (features,)
        assert mask.dtype == torch.bool
        assert 0 < int(mask.sum()) < features
    if kind != "random":
        assert torch.equal(first, ~second)


def test_masks_are_what_their_names_say():
    assert coupling_mask(4, "alternate", 0).tolist() == [False, True, False, True]
    assert coupling_mask(4, "halves", 0).tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="mask must be one of"):
        coupling_mask(4, "quarters", 0)


@pytest.mark.parametrize("transformer", [AffineScale(), Additive(), RationalQuadratic(4, 5.0)])
def test_jacobian_has_the_zero_pattern_of_a_coupling(transformer):
    mask = torch.tensor([True, False, False, True, False])
    layer = perturbed(Coupling(D, mask, hidden=(16,), transformer=transformer))
    z = torch.randn(D, dtype=torch.float64)
    pattern = torch.autograd.functional.jacobian(layer.forward, z) != 0
    expected = torch.eye(D, dtype=torch.bool) | (mask[:, None] & ~mask[None, :])
    assert torch.equal(pattern, expected)
    x = layer.forward(z)
    assert torch.equal(x[~mask], z[~mask])


def test_every_coordinate_is_transformed_by_two_layers():
    for kind in ("alternate", "halves"):
        flow = perturbed(RealNVP(D, layers=2, hidden=(16,), mask=kind))
        z = torch.randn(20, D, dtype=torch.float64)
        assert ((flow.bijector(z) - z).abs().amax(0) > 1e-3).all()


def test_nice_keeps_the_volume_but_for_its_scale():
    flow = perturbed(NICE(D, layers=4, hidden=(16,)))
    z = torch.randn(6, D, dtype=torch.float64)
    scale = flow.bijector.parts[0].log_scale
    _, log_det = flow.bijector.forward_and_log_det(z)
    torch.testing.assert_close(log_det, scale.sum().expand(6))
    # The scale sits next to the base: it acts on z before any coupling.
    torch.testing.assert_close(flow.bijector.parts[0](z), z * scale.exp())


def test_one_pass_a_layer_in_both_directions():
    flow = RealNVP(D, layers=3, hidden=(8,)).eval()
    x = flow.sample(10)
    assert flow.evaluations == 3
    flow.log_prob(x)
    assert flow.evaluations == 6


def test_flows_start_at_the_base():
    x = torch.randn(7, D)
    for flow in (RealNVP(D), NICE(D), NSF(D), RealNVP(D, networks="separate")):
        torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x))


@pytest.mark.parametrize("flow", [RealNVP, NICE, NSF])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"mask": "checkered"}, "mask must be one of"),
        ({"features": 1}, "features >= 2"),
    ],
)
def test_bad_arguments(flow, arguments, words):
    with pytest.raises(ValueError, match=words):
        flow(**{"features": 3, **arguments})


def test_a_mask_must_split():
    for mask in ([True] * 3, [False] * 3, [True, False]):
        with pytest.raises(ValueError, match="some true and some false"):
            Coupling(3, mask)
