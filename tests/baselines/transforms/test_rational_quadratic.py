from __future__ import annotations

import pytest
import torch

from baselines import AffineScale, AffineSpline, RationalQuadratic
from baselines.transforms.rational_quadratic import _inner_knots, rational_quadratic

BOUND = 2.0


def parameters(*shape: int, bins: int = 8, scale: float = 2.0, dtype=torch.float64):
    widths, heights, derivatives = (
        scale * torch.randn(*shape, size, dtype=dtype) for size in (bins, bins, bins - 1)
    )
    return widths, heights, derivatives


def apply(inputs, *unnormalised, inverse=False):
    return rational_quadratic(inputs, *unnormalised, inverse=inverse, bound=BOUND)


def knots(unnormalised):
    """All K + 1 of one spline: (K,) -> (K + 1,)."""
    inner = _inner_knots(unnormalised, BOUND)
    return torch.cat([inner.new_tensor([-BOUND]), inner, inner.new_tensor([BOUND])])


def same_for(count, unnormalised):
    return [value.expand(count, -1) for value in unnormalised]


@pytest.mark.parametrize("bins", [1, 2, 8, 40])
@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3)])
@pytest.mark.parametrize("inverse", [False, True])
def test_zero_parameters_are_the_identity(bins, shape, inverse, dtype):
    x = 2 * torch.randn(shape, dtype=dtype)
    zeros = [torch.zeros(*shape, size, dtype=dtype) for size in (bins, bins, bins - 1)]
    y, log_det = apply(x, *zeros, inverse=inverse)
    near = 20 * torch.finfo(dtype).eps
    assert y.dtype == log_det.dtype == dtype
    torch.testing.assert_close(y, x, rtol=near, atol=near)
    torch.testing.assert_close(log_det, torch.zeros_like(x), rtol=0, atol=near)


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_round_trip_and_log_det(scale):
    torch.manual_seed(0)
    unnormalised = parameters(4000, scale=scale)
    x = (1.2 * BOUND * (2 * torch.rand(4000, dtype=torch.float64) - 1)).requires_grad_()
    y, log_det = apply(x, *unnormalised)
    back, log_det_back = apply(y, *unnormalised, inverse=True)
    slope = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(log_det, slope.log(), rtol=1e-9, atol=1e-9)
    # Where the map is flat, a rounding of y is much in x.
    near = torch.exp(-log_det).clamp(min=1) * 1e-10
    assert ((back - x).abs() < near).all()
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8 if scale < 10 else 1e-4)


@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_thirty_two_layers(scale, dtype):
    layers = [parameters(2000, scale=scale, dtype=dtype) for _ in range(32)]
    z = torch.randn(2000, dtype=dtype)
    x, total = z, torch.zeros_like(z)
    for layer in layers:
        x, log_det = apply(x, *layer)
        total = total + log_det
    for layer in reversed(layers):
        x, _ = apply(x, *layer, inverse=True)
    # Random one-dimensional maps in a row contract: what no inverse could bring back is set aside.
    lost = torch.exp(-total).clamp(min=1)
    assert ((x - z).abs() / lost).max() < (1e-4 if dtype == torch.float32 else 1e-10)
    if scale == 0.1:
        assert (x - z).abs().max() < (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("inverse", [False, True])
def test_knots_map_to_knots_exactly(inverse, dtype):
    unnormalised = parameters(dtype=dtype)
    here, there = knots(unnormalised[0]), knots(unnormalised[1])
    if inverse:
        here, there = there, here
    y, _ = apply(here, *same_for(len(here), unnormalised), inverse=inverse)
    assert torch.equal(y, there)


@pytest.mark.parametrize("inverse", [False, True])
def test_value_and_derivative_are_continuous_at_the_knots(inverse):
    unnormalised = parameters(scale=1.0)
    places = knots(unnormalised[1 if inverse else 0])
    many = same_for(len(places), unnormalised)
    step = 1e-9
    (below, log_below), (above, log_above) = (
        apply(places + sign * step, *many, inverse=inverse) for sign in (-1, 1)
    )
    torch.testing.assert_close(below, above, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_below, log_above, rtol=0, atol=1e-5)
    assert log_below[0] == log_above[-1] == 0


@pytest.mark.parametrize("inverse", [False, True])
def test_monotone(inverse, dtype):
    for scale in (1.0, 10.0):
        x = torch.linspace(-1.1 * BOUND, 1.1 * BOUND, 3001, dtype=dtype)
        y, _ = apply(x, *same_for(len(x), parameters(dtype=dtype, scale=scale)), inverse=inverse)
        assert (y.diff() > -4 * BOUND * torch.finfo(dtype).eps).all()
        if dtype == torch.float64:
            assert (y.diff() > 0).all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rows_out_of_bounds_are_left_alone_and_harm_no_gradient(inverse, scale, dtype):
    big = torch.finfo(dtype).max
    x = torch.tensor([-big, -1e6, -BOUND, 0.3, BOUND, 5.0, float("inf")], dtype=dtype)
    x.requires_grad_()
    unnormalised = [p.requires_grad_() for p in parameters(len(x), scale=scale, dtype=dtype)]
    y, log_det = apply(x, *unnormalised, inverse=inverse)
    outside = x.detach().abs() >= BOUND
    assert torch.equal(y[outside], x[outside])
    assert torch.equal(log_det[outside], torch.zeros_like(log_det[outside]))
    assert log_det.isfinite().all()
    (y[1:-1].sum() + log_det.sum()).backward()
    assert all(value.grad.isfinite().all() for value in (x, *unnormalised))
    assert all((value.grad[outside] == 0).all() for value in unnormalised)


@pytest.mark.parametrize("inverse", [False, True])
def test_extreme_parameters_stay_finite(inverse, dtype):
    torch.manual_seed(0)
    x = (BOUND * (2 * torch.rand(20_000, dtype=dtype) - 1)).requires_grad_()
    unnormalised = [p.requires_grad_() for p in parameters(len(x), scale=200.0, dtype=dtype)]
    y, log_det = apply(x, *unnormalised, inverse=inverse)
    assert (y.abs() <= BOUND * (1 + 1e-6)).all()
    assert log_det.isfinite().all()
    (y.sum() + log_det.sum()).backward()
    assert all(value.grad.isfinite().all() for value in (x, *unnormalised))


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse):
    torch.manual_seed(3)
    x = torch.tensor([-3.0, -1.1, 0.2, 1.7, 2.5], dtype=torch.float64, requires_grad=True)
    unnormalised = [p.requires_grad_() for p in parameters(5, bins=4, scale=1.0)]
    assert torch.autograd.gradcheck(
        lambda *values: apply(*values, inverse=inverse), (x, *unnormalised)
    )


def test_transformer_takes_the_parameters_in_one_tensor():
    spline = RationalQuadratic(bins=5, bound=BOUND)
    widths, heights, derivatives = parameters(4, 3, bins=5)
    together = torch.cat([widths, heights, derivatives], dim=-1)
    assert together.shape[-1] == spline.size
    z = torch.randn(4, 3, dtype=torch.float64)
    x, log_det = spline.forward(z, together)
    assert torch.equal(x, apply(z, widths, heights, derivatives)[0])
    back, log_det_back = spline.inverse(x, together)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det_back, -log_det)


def test_an_affine_spline_is_a_spline_and_then_an_affine_map():
    torch.manual_seed(4)
    both, spline = AffineSpline(bins=5, bound=BOUND), RationalQuadratic(bins=5, bound=BOUND)
    z, h = 2 * torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 3, 16, dtype=torch.float64)
    assert both.size == 16
    x, log_det = both.forward(z, h)
    bent, first = spline.forward(z, h[..., 2:])
    expected, second = AffineScale().forward(bent, h[..., :2])
    assert torch.equal(x, expected)
    assert torch.equal(log_det, first + second)
    back, log_det_back = both.inverse(x, h)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det_back, -log_det)


@pytest.mark.parametrize("spline", [RationalQuadratic, AffineSpline])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bins": 0}, "bins must be from 1 to 999"),
        ({"bins": 1000}, "bins must be from 1 to 999"),
        ({"bound": 0.0}, "bound must be positive and finite"),
        ({"bound": float("inf")}, "bound must be positive and finite"),
    ],
)
def test_bad_arguments(spline, arguments, words):
    with pytest.raises(ValueError, match=words):
        spline(**arguments)
