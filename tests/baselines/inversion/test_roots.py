from __future__ import annotations

import pytest
import torch

from baselines.inversion.roots import InversionError, monotone_root, tanh_root


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def cubic(a):
    return a**3 + a, 3 * a**2 + 1


def steep(a):
    return a + 1e3 * torch.tanh(50 * a), 1 + 5e4 / torch.cosh(50 * a).square()


def kinked(a):
    return torch.where(a > 0, 100 * a, 0.01 * a), torch.where(a > 0, 100.0, 0.01).to(a)


@pytest.mark.parametrize("function", [cubic, steep, kinked])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_roots_of_awkward_functions(function, dtype):
    roots = torch.cat([torch.linspace(-6, 6, 101), torch.tensor([0.0, 1e-9, -1e5, 1e5])]).to(dtype)
    target = function(roots)[0]
    found, status = monotone_root(function, target)
    assert found.dtype == dtype
    again = function(found)[0]
    eps = torch.finfo(dtype).eps
    assert ((again - target).abs() <= 20 * eps * (found.abs() + target.abs())).all()
    assert status.converged
    assert status.residual < 50 * eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slope", [1e-6, 1e-3, 0.5, 1.0, 3.0, 1e4])
def test_tanh_root_at_every_slope(slope, dtype):
    s = torch.cat([torch.linspace(-9, 9, 201), torch.tensor([1e-7, 30.0, -1e6, 1e6])]).to(dtype)
    m = torch.tensor(slope, dtype=dtype)
    target = s + (m - 1) * torch.tanh(s)
    found, status = tanh_root(target, m)
    eps = torch.finfo(dtype).eps
    # How far a root moves where the target is off by a rounding: the flatter, the further.
    flatness = torch.tanh(s).square() + m / torch.cosh(s.clamp(-80, 80)).square()
    near = 20 * eps * (s.abs() + target.abs()) / flatness
    assert ((found - s).abs() <= near.clamp(max=0.05)).all()
    assert status.converged


def test_an_ordinary_function_takes_few_iterations():
    target = draws(1000)
    assert tanh_root(target, torch.tensor(1.5, dtype=torch.float64))[1].iterations <= 8
    # A bracket a million wide, bisected: 20 halvings reach the neighbourhood of the root.
    assert monotone_root(cubic, 1e18 * target)[1].iterations <= 80


def test_bracket_is_respected():
    seen = []

    def watched(a):
        if not torch.is_grad_enabled():
            seen.append(a)
        return cubic(a)

    low, high = torch.tensor([0.5, -3.0]), torch.tensor([2.0, 7.0])
    found, _ = monotone_root(watched, torch.tensor([2.0, -10.0]), (low, high))
    torch.testing.assert_close(found, torch.tensor([1.0, -2.0]))
    assert seen
    assert all(bool(((low <= a) & (a <= high)).all()) for a in seen)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    target, slope = 5 * draws(50), draws(50).exp()
    whole = tanh_root(target, slope)[0]
    for row in range(0, 50, 7):
        alone = tanh_root(target[row : row + 1], slope[row : row + 1])[0]
        assert torch.equal(alone, whole[row : row + 1])


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0, 3)])
def test_shapes(shape):
    found, status = tanh_root(draws(*shape), torch.tensor(2.0, dtype=torch.float64))
    assert found.shape == shape
    assert status.converged


def test_first_and_second_derivatives_are_exact():
    target = draws(6).requires_grad_()
    slope = draws(6).exp().requires_grad_()

    def root(t, m):
        return tanh_root(t, m)[0]

    assert torch.autograd.gradcheck(root, (target, slope))
    assert torch.autograd.gradgradcheck(root, (target, slope))


def test_derivative_is_one_over_the_slope():
    target = draws(20).requires_grad_()
    root = monotone_root(cubic, target)[0]
    (gradient,) = torch.autograd.grad(root.sum(), target)
    torch.testing.assert_close(gradient, 1 / (3 * root**2 + 1))


def test_no_graph_where_none_is_wanted():
    target = draws(3).requires_grad_()
    with torch.no_grad():
        assert not monotone_root(cubic, target)[0].requires_grad


def test_not_converged_is_an_error_with_figures():
    with pytest.raises(InversionError, match="max_iterations") as caught:
        tanh_root(draws(5), torch.tensor(0.01, dtype=torch.float64), max_iterations=1)
    assert "\n" not in str(caught.value)
    status = caught.value.status
    assert not status.converged
    assert status.iterations == 1
    assert status.residual > 1e-3


def test_a_target_out_of_range_is_an_error():
    def bounded(a):
        return torch.tanh(a), 1 / torch.cosh(a.clamp(-300, 300)).square()

    with pytest.raises(InversionError, match="1 of 2 targets are outside") as caught:
        monotone_root(bounded, torch.tensor([0.5, 1.5], dtype=torch.float64))
    assert "\n" not in str(caught.value)


def test_parameters_that_are_not_finite_are_an_error():
    slope = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    with pytest.raises(InversionError, match="1 of 2 rows"):
        tanh_root(draws(2), slope)


def test_a_target_that_is_not_finite_spoils_its_own_row_only():
    target = torch.tensor([0.3, float("nan"), float("inf"), -2.0], dtype=torch.float64)
    found, status = tanh_root(target, torch.tensor(2.0, dtype=torch.float64))
    assert found.isfinite().tolist() == [True, False, False, True]
    assert status.converged
