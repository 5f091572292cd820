"""RealNVP and Glow of images."""

from __future__ import annotations

import pytest
import torch

from baselines import Glow, ImageCoupling, ImageRealNVP
from cflows import ActNorm, fit, load


def moved(module, dtype=torch.float64):
    """Every parameter moved a little: convolutions add up many of them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.to(dtype).eval()


BUILDS = {
    "realnvp": lambda shape, **s: ImageRealNVP(shape, hidden=4, blocks=1, **s),
    "glow": lambda shape, **s: Glow(shape, hidden=4, steps=2, **s),
}


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize(
    ("shape", "scales"), [((1, 4, 4), 1), ((1, 4, 4), 2), ((3, 4, 8), 2), ((1, 8, 8), 3)]
)
def test_log_determinants_are_those_of_the_jacobian(name, shape, scales, tmp_path):
    flow = moved(BUILDS[name](shape, scales=scales, context_features=2))
    d = flow.features
    assert d == shape[0] * shape[1] * shape[2]
    x, context = torch.randn(3, d).double(), torch.randn(3, 2).double()
    z, log_det = flow.bijector.inverse_and_log_det(x, context)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda value, c=context[row]: flow.bijector.inverse(value, c), x[row]
        )
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian)[1])
    back, log_det_back = flow.bijector.forward_and_log_det(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    torch.testing.assert_close(flow.log_prob(x, context)[:1], flow.log_prob(x[:1], context[:1]))
    flow.save(tmp_path / "images.flow")
    assert torch.equal(
        load(tmp_path / "images.flow").log_prob(x, context), flow.log_prob(x, context)
    )


@pytest.mark.parametrize("name", BUILDS)
def test_round_trips_in_single_precision(name):
    flow = moved(BUILDS[name]((1, 8, 8), scales=2), torch.float32)
    x = torch.randn(20, 64)
    assert (flow.bijector(flow.bijector.inverse(x)) - x).abs().max() < 1e-4


@pytest.mark.parametrize("mask", ["checkerboard", "channels"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_coupling_leaves_what_it_knows(mask, turned):
    layer = moved(ImageCoupling((3, 4, 4), mask=mask, turned=turned, hidden=4), torch.float32)
    z = torch.randn(5, 48)
    known = layer.known_part.flatten()
    assert torch.equal(layer(z)[:, known], z[:, known])
    assert (layer(z)[:, ~known] != z[:, ~known]).all()
    other = z.clone()
    other[:, ~known] += 1
    scale = (layer(other) - layer(z))[:, ~known]
    assert (scale > 0).all()  # what is told depends on what is known alone
    assert known.sum().item() in (16, 24, 32)


@pytest.mark.parametrize("name", BUILDS)
def test_they_start_near_the_identity_and_learn(name):
    torch.manual_seed(0)
    x = torch.randn(600, 16) @ torch.randn(16, 16) / 4 + 3
    flow = BUILDS[name]((1, 4, 4), scales=2)
    before = flow.eval().log_prob(x).mean().item()
    fit(flow.train(), x, steps=80, learning_rate=5e-3, progress=False)
    assert flow.eval().log_prob(x).mean().item() > before + 1
    assert all(bool(part.initialised) for part in flow.modules() if isinstance(part, ActNorm))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="has no two parts by its channels"):
        ImageCoupling((1, 4, 4))
    with pytest.raises(ValueError, match="has no two parts by its checkerboard"):
        ImageCoupling((3, 1, 1), mask="checkerboard")
    with pytest.raises(ValueError, match="mask must be one of"):
        ImageCoupling((2, 4, 4), mask="stripes")
    with pytest.raises(ValueError, match="cannot be squeezed: take fewer scales than 3"):
        Glow((1, 4, 4), scales=3)
    with pytest.raises(ValueError, match="scales must be at least 1"):
        ImageRealNVP((1, 4, 4), scales=0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Glow((1, 4, 4), steps=0)
