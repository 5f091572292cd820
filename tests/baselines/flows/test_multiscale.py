from __future__ import annotations

import pytest
import torch
from zoo import perturbed

import cflows
from baselines import (
    AutoregressiveAffine,
    Invertible1x1,
    LULinear,
    MultiScale,
    Permutation,
    Squeeze,
)
from cflows import Affine, Chain, DiagonalScale, Flow, load


@pytest.mark.parametrize(("shape", "factor"), [((3, 4, 6), 2), ((2, 6, 3), 3), ((1, 2, 2), 1)])
def test_squeeze_is_a_pixel_unshuffle_with_pixels_before_channels(shape, factor):
    squeeze = Squeeze(shape, factor)
    images = torch.randn(5, *shape)
    squeezed = squeeze.inverse(images.flatten(1)).reshape(5, *squeeze.squeezed)
    c, h, w = squeeze.squeezed
    expected = torch.nn.functional.pixel_unshuffle(images, factor)
    expected = expected.reshape(5, shape[0], factor**2, h, w).transpose(1, 2).reshape(5, c, h, w)
    assert torch.equal(squeezed, expected)
    assert torch.equal(squeeze(squeezed.flatten(1)), images.flatten(1))


def test_half_of_a_squeezed_image_is_half_of_its_pixels():
    image = torch.arange(4.0).expand(3, 4).reshape(3, 2, 2)  # three equal colours
    z = Squeeze((3, 2, 2)).inverse(image.flatten())
    assert z[:6].tolist() == [0.0] * 3 + [1.0] * 3


@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 2, 3)])
def test_squeeze_refuses_odd_sides(shape):
    with pytest.raises(ValueError, match="multiples of factor=2") as caught:
        Squeeze(shape)
    assert "\n" not in str(caught.value)


def test_levels_compose_by_hand():
    coarse = Affine([1.0], [2.0])
    middle = Affine([0.0, 10.0], [3.0, 5.0])
    fine = Affine([0.0, 0.0, 0.0, 100.0], [1.0, 1.0, 7.0, 1.0])
    flow = MultiScale(coarse, middle, fine)
    z = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x, log_det = flow.forward_and_log_det(z)
    assert x.tolist() == [9.0, 20.0, 21.0, 104.0]
    torch.testing.assert_close(log_det, torch.tensor(2.0 * 3 * 5 * 7).log())
    back, log_det_back = flow.inverse_and_log_det(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det_back, -log_det)


def test_what_was_factored_out_never_meets_the_coarse_level():
    flow = perturbed(MultiScale(AutoregressiveAffine(3, hidden=(8,)), LULinear(6)))
    x = torch.randn(6, dtype=torch.float64)
    coarse, fine = flow.levels
    h = fine.inverse(x)
    z = flow.inverse(x)
    assert torch.equal(z[3:], h[3:])
    assert torch.equal(z[:3], coarse.inverse(h[:3]))
    assert (z[:3] - h[:3]).abs().max() > 1e-2


def test_images_at_three_scales_as_a_flow(tmp_path):
    shape, levels = (1, 4, 4), []
    for _ in range(2):
        squeeze = Squeeze(shape)
        levels.append(Chain(Invertible1x1(squeeze.squeezed), squeeze))
        c, h, w = squeeze.squeezed
        shape = (c // 2, h, w)
    levels.append(DiagonalScale(4))
    flow = perturbed(Flow(MultiScale(*reversed(levels))))
    x = torch.randn(5, 16, dtype=torch.float64)
    z, log_det = flow.bijector.inverse_and_log_det(x)
    torch.testing.assert_close(flow.bijector(z), x)
    jacobian = torch.autograd.functional.jacobian(flow.bijector.inverse, x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1])
    flow.save(tmp_path / "flow.pt")
    assert torch.equal(cflows.load(tmp_path / "flow.pt").log_prob(x), flow.log_prob(x))


def test_levels_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one level"):
        MultiScale()
    for sizes in ((4, 2), (2, 2)):
        with pytest.raises(ValueError, match="more features than the one before") as caught:
            MultiScale(*(DiagonalScale(size) for size in sizes))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="differ in context"):
        MultiScale(*(AutoregressiveAffine(k, context_features=k) for k in (1, 2)))


def test_files_that_name_the_package_of_before_load(tmp_path):
    """MultiScale, Squeeze and Permutation stood in baselines."""
    flow = Flow(Chain(MultiScale(LULinear(4), Squeeze((1, 2, 4))), Permutation(8, "random"))).eval()
    path = tmp_path / "old.flow"
    flow.save(path)
    content = torch.load(path, weights_only=True)
    for name in ("MultiScale", "Squeeze", "Permutation"):
        assert f"cflows.{name}" in content["configuration"]
        content["configuration"] = content["configuration"].replace(
            f"cflows.{name}", f"baselines.{name}"
        )
    torch.save(content, path)
    x = torch.randn(3, 8)
    assert torch.equal(load(path).log_prob(x), flow.log_prob(x))
