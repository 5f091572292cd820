from __future__ import annotations

import pytest
import torch
from zoo import perturbed

from baselines import IAF, MADE, MAF, AutoregressiveAffine
from cflows.core.bijector import BOUND, bounded

D = 5


def jacobian(function, point):
    return torch.autograd.functional.jacobian(function, point)


@pytest.mark.parametrize("order", ["sequential", "reversed", "random"])
@pytest.mark.parametrize("hidden", [(7,), (16, 16), (3,), (40, 11, 23)])
@pytest.mark.parametrize("context", [0, 2])
def test_made_sees_exactly_what_came_before(order, hidden, context):
    made = perturbed(
        MADE(D, hidden=hidden, order=order, context_features=context, activation="tanh")
    )
    c = torch.randn(context, dtype=torch.float64) if context else None
    x = torch.randn(D, dtype=torch.float64)
    before = made.degrees[None, :] < made.degrees[:, None]
    for output in (0, 1):
        pattern = jacobian(lambda v: made(v, c)[output], x) != 0  # noqa: B023
        assert not (pattern & ~before).any()
        # With a layer at least D - 1 wide (D with a context) no dependence is lost either.
        if min(hidden) >= D:
            assert torch.equal(pattern, before)
    if context:
        seen = jacobian(lambda v: torch.cat(made(x, v)), c) != 0
        assert seen.all(), "the first conditional too depends on the context"


@pytest.mark.parametrize("width", range(1, 12))
@pytest.mark.parametrize("features", [1, 2, 5, 8])
@pytest.mark.parametrize("context", [0, 2])
def test_no_hidden_degree_is_left_empty(width, features, context):
    made = MADE(features, hidden=(width,), context_features=context)
    # A unit's degree is read off its mask: how many inputs it sees.
    degrees = set(made.layers[0].mask.sum(1).int().tolist())
    wanted = set(range(0 if context or features == 1 else 1, max(features, 1)))
    assert degrees <= wanted
    if width >= len(wanted):
        assert degrees == wanted


def test_the_last_input_is_never_read():
    made = MADE(D, hidden=(16,))
    assert made.layers[0].mask[:, D - 1].sum() == 0
    assert made.layers[-1].mask.reshape(2, D, 16)[:, 0].sum() == 0


@pytest.mark.parametrize("order", ["sequential", "reversed", "random"])
@pytest.mark.parametrize("conditions_on", ["data", "noise"])
def test_jacobian_is_triangular_in_the_order(order, conditions_on):
    layer = perturbed(
        AutoregressiveAffine(D, order=order, hidden=(16,), conditions_on=conditions_on)
    )
    z = torch.randn(D, dtype=torch.float64)
    pattern = jacobian(layer.forward, z).abs() > 1e-12
    degrees = layer.made.degrees
    assert not (pattern & (degrees[None, :] > degrees[:, None])).any()
    assert pattern.diagonal().all()
    assert pattern.sum() > D


def test_conditionals_are_the_normals_of_the_made():
    # An independent reading of equation (2)-(4) of the MAF paper, one coordinate at a time.
    layer = perturbed(AutoregressiveAffine(D, order="random", hidden=(16,)))
    z = torch.randn(D, dtype=torch.float64)
    x = torch.zeros(D, dtype=torch.float64)
    total = 0.0
    for i in layer.made.degrees.argsort().tolist():
        mean, log_scale = (part[i] for part in layer.made(x))
        log_scale = bounded(log_scale)
        x = x.clone()
        x[i] = mean + log_scale.exp() * z[i]
        total = total + log_scale
    got, log_det = layer.forward_and_log_det(z)
    torch.testing.assert_close(got, x)
    torch.testing.assert_close(log_det, total)


def test_iaf_with_the_weights_of_maf_is_its_inverse_with_the_signs_turned():
    maf = perturbed(AutoregressiveAffine(D, hidden=(16,)))
    iaf = AutoregressiveAffine(D, hidden=(16,), conditions_on="noise").double()
    iaf.load_state_dict(maf.state_dict())
    z = torch.randn(4, D, dtype=torch.float64)
    shift, log_scale = maf.made(z)
    torch.testing.assert_close(iaf.forward(z), shift + bounded(log_scale).exp() * z)
    torch.testing.assert_close(maf.inverse(z), (z - shift) * torch.exp(-bounded(log_scale)))


@pytest.mark.parametrize(
    ("inversion", "passes"), [("cached", 1), ("sequential", D), ("jacobi", None)]
)
@pytest.mark.parametrize("flow", [MAF, IAF])
def test_which_direction_costs_what(flow, inversion, passes):
    model = perturbed(flow(D, layers=3, hidden=(8,), inversion=inversion))
    before = model.evaluations
    x = model.sample(10)
    sample, before = model.evaluations - before, model.evaluations
    model.log_prob(x)
    density = model.evaluations - before
    cheap, dear = (density, sample) if flow is MAF else (sample, density)
    assert cheap == 3
    # A Jacobi inversion stops when it can, after D sweeps at the latest and one for the gradient.
    assert dear == 3 * passes if passes else 3 < dear <= 3 * (D + 1)


def test_alternating_orders():
    degrees = [part.made.degrees.tolist() for part in MAF(3, layers=3).bijector.parts]
    assert degrees == [[1, 2, 3], [3, 2, 1], [1, 2, 3]]


def test_random_orders_differ_between_layers():
    layers = MAF(30, layers=2, order="random").bijector.parts
    assert not torch.equal(layers[0].made.degrees, layers[1].made.degrees)
    assert sorted(layers[0].made.degrees.tolist()) == list(range(1, 31))


def test_flows_start_at_the_base():
    x = torch.randn(7, D)
    for flow in (MAF(D), IAF(D)):
        torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x))


def test_scales_are_bounded():
    assert bounded(torch.tensor([-1e9, 1e9])).tolist() == [-BOUND, BOUND]
    torch.testing.assert_close(bounded(torch.tensor(0.01)), torch.tensor(0.01), rtol=1e-4, atol=0)


def test_large_inputs_do_not_reach_nan():
    # Coordinates not reached yet must not grow into an infinity that a zero weight turns to NaN.
    layer = AutoregressiveAffine(64, hidden=(32,))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = layer.forward(100 * torch.randn(3, 64))
    assert not x.isnan().any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order": "sideways"}, "order must be one of alternate"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"hidden": ()}, "hidden must list"),
        ({"hidden": (4, 0)}, "hidden must list"),
        ({"activation": "square"}, "activation must be one of"),
        ({"inversion": "magic"}, "inversion must be one of"),
        ({"features": 0}, "features must be at least 1"),
        ({"context_features": -1}, "context_features must be at least 0"),
    ],
)
@pytest.mark.parametrize("flow", [MAF, IAF])
def test_bad_arguments(flow, arguments, words):
    with pytest.raises(ValueError, match=words):
        flow(**{"features": 3, **arguments})


def test_conditions_on_is_checked():
    with pytest.raises(ValueError, match="conditions_on"):
        AutoregressiveAffine(3, conditions_on="luck")
