"""torch.func, torch.compile, torch.export and torch.jit see a flow in evaluation mode."""

import pytest
import torch
from torch.func import grad, vmap

from cflows import Affine, Chain, Flow, Sigmoid
from cflows.bijector import may_read


def test_may_read_knows_what_goes_on():
    seen = []

    def watch(x):
        seen.append(may_read(x))
        return (2 * x).sum()

    x = torch.ones(3)
    watch(x)
    for transform in (grad, vmap):
        transform(watch)(x)
    torch.fx.experimental.proxy_tensor.make_fx(watch)(x)
    watch(x.to("meta"))
    with torch._subclasses.FakeTensorMode():
        watch(torch.ones(3))
    assert seen == [True, *[False] * 5]
    chosen = torch.compile(lambda x: x + may_read(x), fullgraph=True, backend="eager")
    assert chosen(x).tolist() == [1.0] * 3


def test_checks_of_values_stand_aside():
    flow = Flow(Chain(Affine([0.0], [2.0]), Sigmoid(1))).eval()
    x = torch.tensor([[0.25], [0.75]])
    expected = torch.autograd.functional.jacobian(lambda x: flow.log_prob(x).sum(), x)
    torch.testing.assert_close(vmap(grad(flow.log_prob))(x), expected)
    exported = torch.export.export(flow, (x,)).module()
    torch.testing.assert_close(exported(x), flow.log_prob(x))
    with pytest.raises(ValueError, match="infinite"):
        flow.log_prob(x / 0)
    with pytest.raises(ValueError, match="outside"):
        flow.log_prob(1 + x)
