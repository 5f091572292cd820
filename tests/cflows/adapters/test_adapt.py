"""Flows of other libraries: what they score and draw is what their own calls would."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributions import (
    AffineTransform,
    Independent,
    Laplace,
    MultivariateNormal,
    TransformedDistribution,
)
from torch.distributions.transforms import (
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SigmoidTransform,
    TanhTransform,
)

from cflows import adapt, fit

CLOSE = {"atol": 1e-6, "rtol": 1e-6}


def stirred(module):
    """With parameters away from their start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def zuko_flow(context=0):
    zuko = pytest.importorskip("zuko")
    return stirred(zuko.flows.NSF(3, context, transforms=2, hidden_features=(16, 16)))


def nflows_flow(context=0, **more):
    pytest.importorskip("nflows")
    from nflows.distributions.normal import ConditionalDiagonalNormal, StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform
    from nflows.transforms.base import CompositeTransform
    from nflows.transforms.permutations import ReversePermutation

    embedded = 4 if context else None
    parts = [
        MaskedAffineAutoregressiveTransform(3, 16, context_features=embedded),
        ReversePermutation(3),
        MaskedAffineAutoregressiveTransform(3, 16, context_features=embedded),
    ]
    base = ConditionalDiagonalNormal([3], nn.Linear(4, 6)) if context else StandardNormal([3])
    embedding = nn.Linear(context, 4) if context else None
    return stirred(Flow(CompositeTransform(parts), base, embedding))


def normflows_flow(trainable=True):
    normflows = pytest.importorskip("normflows")
    flows = []
    for _ in range(2):
        network = normflows.nets.MLP([2, 16, 2], init_zeros=False)
        flows += [normflows.flows.AffineCouplingBlock(network), normflows.flows.Permute(3, "swap")]
    base = normflows.distributions.DiagGaussian(3, trainable=trainable)
    return stirred(normflows.NormalizingFlow(base, flows))


def conditional_normflows():
    normflows = pytest.importorskip("normflows")
    flows = [
        normflows.flows.MaskedAffineAutoregressive(3, 16, context_features=2) for _ in range(2)
    ]
    base = normflows.distributions.DiagGaussian(3, trainable=False)
    return stirred(normflows.ConditionalNormalizingFlow(base, flows))


def kept(flow):
    """Round trips, log-determinants and draws of an adapted flow agree with one another."""
    z = torch.randn(20, flow.features)
    context = torch.randn(20, flow.context_features) if flow.context_features else None
    x, log_det = flow.bijector.forward_and_log_det(z, context)
    again, back = flow.bijector.inverse_and_log_det(x, context)
    torch.testing.assert_close(again, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(back, -log_det, atol=1e-4, rtol=1e-4)
    drawn, told = flow.sample_and_log_prob(4, context)
    assert drawn.shape == ((4, 20, 3) if context is not None else (4, 3))
    torch.testing.assert_close(flow.log_prob(drawn, context), told, atol=1e-4, rtol=1e-4)


def test_zuko():
    theirs = zuko_flow()
    ours, x = adapt(theirs), torch.randn(50, 3)
    torch.testing.assert_close(ours.log_prob(x), theirs().log_prob(x), **CLOSE)
    kept(ours)
    torch.manual_seed(0)
    drawn = ours.sample(5)
    torch.manual_seed(0)
    torch.testing.assert_close(drawn, theirs().sample((5,)), **CLOSE)


def test_zuko_with_a_context():
    theirs = zuko_flow(context=2)
    ours, x, c = adapt(theirs, context_features=2), torch.randn(50, 3), torch.randn(50, 2)
    torch.testing.assert_close(ours.log_prob(x, c), theirs(c).log_prob(x), **CLOSE)
    kept(ours)


def test_zuko_with_a_base_of_its_own():
    zuko = pytest.importorskip("zuko")
    theirs = zuko.flows.GMM(2, components=3)
    with pytest.raises(TypeError, match="adapt knows"):
        adapt(theirs)
    bounded = stirred(zuko.flows.NCSF(3, transforms=1, hidden_features=(8,)))
    ours = adapt(bounded)
    x = bounded().sample((30,))
    torch.testing.assert_close(ours.log_prob(x), bounded().log_prob(x), **CLOSE)
    assert ours.sample(7).shape == (7, 3)


def test_nflows():
    theirs = nflows_flow()
    ours, x = adapt(theirs), torch.randn(50, 3)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), **CLOSE)
    kept(ours)


def test_nflows_with_an_embedded_context_and_base():
    theirs = nflows_flow(context=2)
    ours, x, c = adapt(theirs, context_features=2), torch.randn(50, 3), torch.randn(50, 2)
    torch.testing.assert_close(ours.log_prob(x, c), theirs.log_prob(x, c), **CLOSE)
    kept(ours)


@pytest.mark.parametrize("trainable", [True, False])
def test_normflows(trainable):
    theirs = normflows_flow(trainable)
    ours, x = adapt(theirs), torch.randn(50, 3)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), **CLOSE)
    kept(ours)


def test_normflows_with_a_context():
    theirs = conditional_normflows()
    ours, x, c = adapt(theirs, context_features=2), torch.randn(50, 3), torch.randn(50, 2)
    torch.testing.assert_close(ours.log_prob(x, c), theirs.log_prob(x, c), **CLOSE)
    kept(ours)


@pytest.mark.parametrize(
    "base",
    [
        MultivariateNormal(torch.zeros(3), torch.eye(3)),
        Independent(Laplace(torch.zeros(3), torch.ones(3)), 1),
        Laplace(torch.zeros(3), torch.ones(3)),
    ],
)
def test_torch(base):
    theirs = TransformedDistribution(base, [AffineTransform(1.0, 3.0), SigmoidTransform()])
    ours = adapt(theirs)
    x = theirs.sample((50,))
    log_prob = theirs.log_prob(x)
    torch.testing.assert_close(
        ours.log_prob(x), log_prob.sum(-1) if log_prob.dim() > 1 else log_prob, **CLOSE
    )
    kept(adapt(TransformedDistribution(base, [TanhTransform(), AffineTransform(0.0, 2.0)])))


def test_pyro():
    pyro = pytest.importorskip("pyro.distributions.transforms")
    parts = [stirred(pyro.spline_autoregressive(3, hidden_dims=[16]))]
    base = Independent(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
    theirs = TransformedDistribution(base, parts)
    ours, x = adapt(theirs), torch.randn(50, 3)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), **CLOSE)
    assert len(list(ours.parameters())) == len(list(parts[0].parameters()))


def test_pyro_inverses_and_composites_are_trained_and_copied():
    pyro = pytest.importorskip("pyro.distributions.transforms")
    inner = stirred(pyro.affine_autoregressive(3, hidden_dims=[16]))
    parts = [ComposeTransform([inner.inv]), IndependentTransform(ExpTransform(), 1)]
    base = Independent(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
    theirs = TransformedDistribution(base, parts)
    ours, x = adapt(theirs), torch.rand(50, 3) + 0.5
    assert len(list(ours.parameters())) == len(list(inner.parameters()))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), **CLOSE)
    told = ours.log_prob(x)
    copied = copy.deepcopy(ours)
    torch.testing.assert_close(copied.log_prob(x), told)


@pytest.mark.parametrize("make", [zuko_flow, nflows_flow, normflows_flow])
def test_in_float64_and_where_the_flow_is(make, device):
    theirs = make().double().to(device)
    ours = adapt(theirs)
    x = torch.randn(20, 3, dtype=torch.float64, device=device)
    own = (theirs() if make is zuko_flow else theirs).log_prob(x)
    torch.testing.assert_close(ours.log_prob(x), own)
    assert ours.sample(5).dtype == torch.float64


def test_no_rows():
    flow = adapt(nflows_flow(context=2), context_features=2)
    assert flow.log_prob(torch.zeros(0, 3), torch.zeros(0, 2)).shape == (0,)
    assert flow.log_prob(torch.zeros(4, 0, 3), torch.zeros(0, 2)).shape == (4, 0)


@pytest.mark.parametrize("make", [zuko_flow, nflows_flow, normflows_flow])
def test_gradients_are_theirs_and_fit_trains_the_module(make):
    theirs = make()
    ours, x = adapt(theirs), torch.randn(64, 3)
    ours.log_prob(x).mean().backward()
    mine = [parameter.grad.clone() for parameter in theirs.parameters()]
    theirs.zero_grad()
    (theirs() if make is zuko_flow else theirs).log_prob(x).mean().backward()
    for grad, parameter in zip(mine, theirs.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, **CLOSE)
    before = [parameter.detach().clone() for parameter in theirs.parameters()]
    fit(ours, x, steps=3, progress=False)
    moved = [
        not torch.equal(one, other) for one, other in zip(before, theirs.parameters(), strict=True)
    ]
    assert any(moved)


def test_what_is_no_flow_is_refused():
    with pytest.raises(TypeError, match="adapt knows flows of zuko"):
        adapt(nn.Linear(2, 2))
    base = MultivariateNormal(torch.zeros(3), torch.eye(3))
    with pytest.raises(TypeError, match="takes no context"):
        adapt(TransformedDistribution(base, [TanhTransform()]), context_features=2)
    trained = Laplace(torch.zeros(3, requires_grad=True), torch.ones(3))
    with pytest.raises(TypeError, match="holds tensors that are trained"):
        adapt(TransformedDistribution(trained, [TanhTransform()]))
    laws = torch.distributions.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"rows \(D,\) is needed"):
        adapt(TransformedDistribution(laws, [TanhTransform()]))
