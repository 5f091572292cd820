from __future__ import annotations

import pytest
import torch
from zoo import perturbed

from baselines import Householder, Invertible1x1, LULinear, Permutation

D = 6


def matrix_of(layer) -> torch.Tensor:
    """W of x = W z + b, from the map itself."""
    eye = torch.eye(layer.features, dtype=torch.float64)
    return (layer(eye) - layer(torch.zeros_like(eye))).T


def test_a_permutation_gathers():
    order = [2, 0, 3, 1]
    layer = Permutation(4, order)
    z = torch.randn(3, 4)
    assert torch.equal(layer(z), z[:, order])
    assert torch.equal(layer.inverse(layer(z)), z)
    assert torch.equal(Permutation(4)(z), z.flip(-1))
    assert torch.equal(Permutation(4, torch.tensor(order))(z), z[:, order])


def test_a_random_permutation_is_drawn_once_and_kept():
    layer, other = Permutation(50, "random"), Permutation(50, "random")
    assert sorted(layer.order.tolist()) == [*range(50)]
    assert not torch.equal(layer.order, other.order)
    other.load_state_dict(layer.state_dict())
    z = torch.randn(2, 50)
    assert torch.equal(other.inverse(layer(z)), z)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1], [0, 1, 3], [0.0, 1.0, 2.0], "shuffled"])
def test_what_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match="order must") as caught:
        Permutation(3, order)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", ["identity", "rotation"])
def test_lu_starts_where_it_says(start):
    layer = LULinear(D, start=start).double()
    weight = matrix_of(layer)
    assert layer.bias.abs().max() == 0
    eye = torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(weight @ weight.T, eye, atol=1e-6, rtol=0)
    assert torch.equal(weight, eye) == (start == "identity")
    torch.testing.assert_close(
        layer.forward_and_log_det(eye)[1], torch.zeros(D).double(), atol=1e-6, rtol=0
    )


def test_lu_is_the_product_of_its_factors():
    layer = perturbed(LULinear(D, start="rotation"))
    lower = layer.packed.tril(-1) + torch.eye(D)
    upper = layer.packed.triu(1) + (layer.signs * layer.packed.diagonal().exp()).diag()
    permutation = torch.eye(D, dtype=torch.float64)[layer.order]
    torch.testing.assert_close(matrix_of(layer), permutation @ lower @ upper)
    # Rotations of both signs and of other orders occur.
    torch.manual_seed(1)
    assert (torch.cat([LULinear(D, start="rotation").signs for _ in range(5)]) < 0).any()
    assert not torch.equal(layer.order, torch.arange(D))


def test_lu_stays_accurate_in_single_precision():
    torch.manual_seed(2)
    layer = LULinear(64, start="rotation")
    with torch.no_grad():
        layer.packed += 0.05 * torch.randn(64, 64)
    z = torch.randn(100, 64)
    with torch.no_grad():
        error = (layer.inverse(layer(z)) - z).abs().max()
    weight = matrix_of(layer.double()).detach()
    assert error < 1e-5 * torch.linalg.cond(weight)


def test_lu_refuses_an_unknown_start():
    with pytest.raises(ValueError, match="start must be one of identity, rotation"):
        LULinear(3, start="zero")


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_householder_is_the_product_of_reflections(count):
    layer = perturbed(Householder(D, reflections=count))
    expected = torch.eye(D, dtype=torch.float64)
    for v in layer.vectors:
        expected = expected @ (torch.eye(D) - 2 * torch.outer(v, v) / (v @ v))
    weight = matrix_of(layer)
    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(weight @ weight.T, torch.eye(D, dtype=torch.float64))
    sign = torch.linalg.det(weight)
    torch.testing.assert_close(sign, torch.tensor((-1.0) ** count, dtype=torch.float64))


@pytest.mark.parametrize("features", [1, 5, 6])
def test_householder_starts_at_the_identity_and_leaves_it(features):
    layer = Householder(features).double()
    assert len(layer.vectors) % 2 == 0
    eye = torch.eye(features, dtype=torch.float64)
    torch.testing.assert_close(matrix_of(layer), eye)
    if features > 1:
        target = torch.randn(features, features, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((layer(eye) * target).sum(), layer.vectors)
        assert gradient.abs().max() > 1e-3


def test_many_parallel_reflections_stay_orthogonal_in_single_precision():
    layer = Householder(4, reflections=64)
    with torch.no_grad():
        layer.vectors.copy_(layer.vectors[:1] + 1e-3 * torch.randn(64, 4))
        weight = layer(torch.eye(4))
    torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=2e-5, rtol=0)


def test_householder_wants_a_reflection():
    with pytest.raises(ValueError, match="reflections must be at least 1"):
        Householder(3, reflections=0)


@pytest.mark.parametrize("mix", ["lu", "householder"])
def test_a_1x1_convolution_is_one(mix):
    layer = perturbed(Invertible1x1((3, 2, 4), mix=mix))
    images = torch.randn(5, 3, 2, 4, dtype=torch.float64)
    weight = matrix_of(layer.mix)
    x, log_det = layer.forward_and_log_det(images.flatten(1))
    expected = torch.nn.functional.conv2d(images, weight[:, :, None, None])
    torch.testing.assert_close(x, expected.flatten(1))
    torch.testing.assert_close(log_det, (8 * torch.linalg.slogdet(weight)[1]).expand(5))


def test_a_1x1_convolution_checks_its_arguments():
    with pytest.raises(ValueError, match=r"shape must be \(C, H, W\)"):
        Invertible1x1((3, 4))
    with pytest.raises(ValueError, match=r"shape must be \(C, H, W\)"):
        Invertible1x1((3, 0, 4))
    with pytest.raises(ValueError, match="mix must be one of lu, householder"):
        Invertible1x1((3, 4, 4), mix="qr")
    assert Invertible1x1((3, 4, 4), start="identity").mix.packed.abs().max() == 0


@pytest.mark.parametrize(
    "layer", [LULinear(4, start="rotation"), Householder(4), Invertible1x1((4, 1, 1))]
)
def test_autocast_changes_nothing(layer):
    z = torch.randn(5, 4)
    expected = (*layer.forward_and_log_det(z), *layer.inverse_and_log_det(z))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = (*layer.forward_and_log_det(z), *layer.inverse_and_log_det(z))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
