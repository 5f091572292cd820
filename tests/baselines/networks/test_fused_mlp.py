from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from baselines import MAF, RealNVP
from baselines.networks.activations import FUSED_ACTIVATIONS
from baselines.networks.fused_mlp import perceptron

PLAIN = {"relu": torch.relu, "tanh": torch.tanh, "elu": F.elu, "silu": F.silu}


def layers(*widths: int):
    weights = [
        torch.randn(b, a, dtype=torch.float64, requires_grad=True)
        for a, b in itertools.pairwise(widths)
    ]
    return weights, [torch.randn(b, dtype=torch.float64, requires_grad=True) for b in widths[1:]]


def by_layer(x, weights, biases, activation, offset=None):
    h = F.linear(x, weights[0], biases[0])
    h = h if offset is None else h + offset
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        h = F.linear(PLAIN[activation](h), weight, bias)
    return h


@pytest.mark.parametrize("activation", FUSED_ACTIVATIONS)
@pytest.mark.parametrize("widths", [(3, 2), (3, 5, 2), (3, 5, 4, 6, 2)])
@pytest.mark.parametrize("with_offset", [False, True])
def test_values_and_all_gradients_are_those_of_the_layers(activation, widths, with_offset):
    torch.manual_seed(0)
    weights, biases = layers(*widths)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(7, widths[1], dtype=torch.float64, requires_grad=True)
    offset = offset if with_offset else None
    kind = FUSED_ACTIVATIONS[activation]
    leaves = [x, *weights, *biases, *([offset] if with_offset else [])]
    for chosen in (leaves, leaves[:1], leaves[1:2], leaves[-1:]):
        for leaf in leaves:
            leaf.requires_grad_(any(leaf is one for one in chosen))
        pair = []
        for out in (
            perceptron(x, weights, biases, kind, offset=offset),
            by_layer(x, weights, biases, activation, offset),
        ):
            first = torch.autograd.grad(out.square().sum(), chosen, create_graph=True)
            second = torch.autograd.grad(
                sum(g.square().sum() for g in first), chosen, materialize_grads=True
            )
            again = torch.autograd.grad(
                perceptron(x, weights, biases, kind, offset=offset).square().sum(), chosen
            )
            pair.append((out, *first, *second, *again))
        torch.testing.assert_close(pair[0], pair[1])
    with torch.no_grad():
        kept = x.clone()
        out = perceptron(x, weights, biases, kind, offset=offset)
        torch.testing.assert_close(out, by_layer(x, weights, biases, activation, offset))
        assert torch.equal(x, kept), "the input is not written over"


# torch itself scripts some of its forward-mode rules.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_gradients_are_finite_differences_and_stay_so():
    weights, biases = layers(3, 5, 2)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        return perceptron(x, parameters[:2], parameters[2:], FUSED_ACTIVATIONS["tanh"])

    assert torch.autograd.gradcheck(function, (x, *weights, *biases), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, *weights, *biases))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", [MAF, RealNVP])
def test_flows_keep_their_transforms(family):
    torch.manual_seed(0)
    flow = family(4, layers=2, hidden=(6, 6)).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 4, dtype=torch.float64)
    state = dict(flow.named_parameters())

    def loss(state, row):
        return torch.func.functional_call(flow, state, (row[None],))[0]

    by_row = torch.func.vmap(torch.func.grad(loss), (None, 0))(state, x)
    for row in (0, 3):
        flow.zero_grad()
        flow.log_prob(x[row : row + 1]).sum().backward()
        for name, parameter in flow.named_parameters():
            torch.testing.assert_close(by_row[name][row], parameter.grad)
    jacobian = torch.func.vmap(torch.func.jacfwd(flow.bijector.inverse))(x)
    log_det = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(flow.bijector.inverse_and_log_det(x)[1], log_det)


@pytest.mark.parametrize("family", [MAF, RealNVP])
def test_a_backward_pass_twice_gives_the_same(family):
    flow = family(4, layers=2, hidden=(6, 6)).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    loss = flow.log_prob(torch.randn(5, 4, dtype=torch.float64)).sum()
    first = torch.autograd.grad(loss, list(flow.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(flow.parameters()))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
