from __future__ import annotations

import pytest
import torch
from zoo import perturbed

from baselines import (
    NICE,
    NSF,
    Additive,
    AffineScale,
    AffineSpline,
    Coupling,
    RationalQuadratic,
    RealNVP,
)
from baselines.networks.mask_split import MaskSplit, coupling_mask
from cflows import BatchNorm

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


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        ([False, True, False, True], "alternate"),
        ([True, False, True, False], "alternate"),
        ([False, True], "alternate"),
        ([False, True, True], "halves"),
        ([True, True, False, False], "halves"),
        ([False, True, False], "other"),
        ([False, True, True, False], "other"),
        ([True, False, False, True, False], "other"),
    ],
)
def test_splits_take_the_masked_coordinates_and_put_them_back(mask, kind):
    split, mask = MaskSplit(torch.tensor(mask)), torch.tensor(mask)
    assert split.kind == kind
    for batch in ((), (5,), (2, 3), (0,)):
        x = torch.randn(*batch, len(mask), requires_grad=True)
        a, b = split.apart(x)
        assert torch.equal(a, x[..., ~mask])
        assert torch.equal(b, x[..., mask])
        assert torch.equal(split.together(a, b), x)
        weight = torch.randn_like(x)
        (gradient,) = torch.autograd.grad((split.together(a, b) * weight).sum(), x)
        assert torch.equal(gradient, weight)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_split_follows_a_mask_that_is_written_over(compiled):
    split = MaskSplit(torch.tensor([False, True, False, True]))
    other = MaskSplit(torch.tensor([False, True, True, False]))
    x = torch.randn(3, 4)
    for here, there in zip(split.buffers(), other.buffers(), strict=True):
        here.copy_(there)
    apart = torch.compile(split.apart, backend="eager") if compiled else split.apart
    torch.testing.assert_close(apart(x), other.apart(x), rtol=0, atol=0)
    assert torch.equal(split.together(*split.apart(x)), x)
    split.load_state_dict(other.state_dict())
    assert split._kind() == other.kind
    torch.testing.assert_close(split.apart(x), other.apart(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "transformer", [AffineScale(), Additive(), RationalQuadratic(4, 5.0), AffineSpline(4, 5.0)]
)
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


@pytest.mark.parametrize("mask", ["alternate", "halves", "random"])
@pytest.mark.parametrize("flow", [RealNVP, NICE, NSF])
def test_functional_transforms_see_through(flow, mask):
    f = perturbed(flow(4, layers=2, hidden=(8,), mask=mask)).bijector
    z = torch.randn(3, 4, dtype=torch.float64)
    for function in (f.forward, f.inverse):
        mapped = torch.func.vmap(torch.func.jacrev(function))(z)
        for row in range(3):
            expected = torch.autograd.functional.jacobian(function, z[row])
            torch.testing.assert_close(mapped[row], expected)


def test_second_derivatives():
    for flow in (RealNVP(4, layers=2, hidden=(8,)), NSF(4, layers=2, hidden=(8,), bins=3)):
        flow = perturbed(flow)
        x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(flow.log_prob, (x,), atol=1e-4)


def test_separate_networks_are_a_relu_shift_and_a_tanh_scale():
    layer = perturbed(Coupling(4, [True, False, True, False], hidden=(8,), networks="separate"))
    shift, log_scale = layer.conditioners
    assert (shift.activation, log_scale.activation) == ("relu", "tanh")
    z = torch.randn(5, 4, dtype=torch.float64)
    passive = z[:, [1, 3]]
    scale = 5 * torch.tanh(log_scale(passive)[..., 0] / 5)
    x, log_det = layer.forward_and_log_det(z)
    torch.testing.assert_close(x[:, [0, 2]], z[:, [0, 2]] * scale.exp() + shift(passive)[..., 0])
    torch.testing.assert_close(log_det, scale.sum(-1))


def test_batch_norm_follows_every_coupling_towards_the_base():
    torch.manual_seed(0)
    flow = RealNVP(4, layers=3, hidden=(8,), batch_norm=True)
    kinds = [type(part) for part in flow.bijector.parts]
    assert kinds == [BatchNorm, Coupling] * 3
    x = 3 + 2 * torch.randn(500, 4)
    z = flow.train().bijector.inverse(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(4), rtol=0, atol=1e-2)


@pytest.mark.parametrize("value", [40.0, -1e8])
def test_a_spline_flow_leaves_what_is_out_of_bounds(value):
    flow = perturbed(NSF(4, layers=4, hidden=(8,), bound=3.0))
    x = torch.randn(20, 4, dtype=torch.float64)
    x[3] = value
    z, log_det = flow.bijector.inverse_and_log_det(x)
    assert torch.equal(z[3], x[3])
    assert log_det[3] == 0
    flow.log_prob(x)[torch.arange(20) != 3].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())


def test_affine_tails_are_scaled_and_shifted():
    bent = torch.tensor([True, False, True, False])
    layer = perturbed(Coupling(4, bent, hidden=(8,), transformer=AffineSpline(4, 2.0)))
    z = torch.full((3, 4), 0.5, dtype=torch.float64)  # what the network sees is alike in all rows
    z[:, bent] = torch.tensor([[40.0], [41.0], [-40.0]], dtype=torch.float64)
    x, log_det = layer.forward_and_log_det(z)
    scales = (x[1] - x[0])[bent]
    torch.testing.assert_close(scales.log().sum().expand(3), log_det)
    # x = exp(α) z + μ at both ends.
    torch.testing.assert_close((x[0] - x[2])[bent], 80 * scales)
    assert (scales - 1).abs().min() > 1e-3
    assert (x[0] + x[2])[bent].abs().min() > 1e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RealNVP(3, networks="two"), "networks must be one of shared, separate"),
        (lambda: RealNVP(3, activation="sine"), "activation must be one of"),
        (lambda: Coupling(2, [True, False], transformer=Additive(), networks="separate"), "is for"),
        (lambda: NSF(3, passes="both"), "passes must be"),
        (lambda: NSF(3, tails="linear"), "tails must be"),
        (lambda: NSF(3, tails="affine", bins=0), "bins must be from 1"),
        (lambda: NSF(3, bins=0), "bins must be from 1"),
        (lambda: NSF(3, bound=-1.0), "bound must be positive"),
    ],
)
def test_bad_choices(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_conditioners_answer_alike_in_low_precision():
    for flow in (RealNVP(4, layers=2, hidden=(8,)), NSF(4, layers=2, hidden=(8,))):
        flow = perturbed(flow, torch.float32)
        x = torch.randn(6, 4)
        expected = flow.log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            z, log_det = flow.bijector.inverse_and_log_det(x)
        assert z.dtype == log_det.dtype == torch.float32
        torch.testing.assert_close(flow.base.log_prob(z) + log_det, expected, rtol=0.2, atol=0.5)


@pytest.mark.parametrize("features", [2, 4, 7])
def test_masks_of_a_functional_call_are_its_own(features):
    flows = [perturbed(RealNVP(features, layers=3, mask="random", hidden=(8,))) for _ in range(8)]
    x = torch.randn(5, features, dtype=torch.float64)
    parameters, buffers = torch.func.stack_module_state(flows)

    def log_prob(parameters, buffers):
        return torch.func.functional_call(flows[0], (parameters, buffers), (x,))

    found = torch.func.vmap(log_prob)(parameters, buffers)
    for flow, by_stack in zip(flows, found, strict=True):
        torch.testing.assert_close(by_stack, flow.log_prob(x))
        state = dict(flow.named_parameters()), dict(flow.named_buffers())
        torch.testing.assert_close(log_prob(*state), flow.log_prob(x))
