"""torch.func, torch.compile, torch.export and torch.jit see a flow in evaluation mode."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, stack_module_state, vmap
from zoo import FLOWS, cases, perturbed

from baselines import PlanarFlow
from cflows import ActNorm, Affine, Chain, Flow, Sigmoid
from cflows.core.bijector import may_be_read, may_read


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


def test_a_layer_that_is_watched_may_not_be_read():
    layer = nn.Linear(2, 3)
    assert may_be_read([layer, nn.Linear(2, 3)], nn.Linear)
    layer.register_forward_hook(lambda *_: None)
    assert not may_be_read([layer], nn.Linear)
    assert not may_be_read([nn.Bilinear(1, 1, 1)], nn.Linear)


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


@cases(FLOWS, lambda case: case.torch_func)
def test_scores_by_torch_func(case):
    torch.manual_seed(0)
    flow = case.make(3)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda x: flow.log_prob(x).sum(), x)
    scores = vmap(grad(flow.log_prob), randomness="error")(x)
    torch.testing.assert_close(scores, expected, rtol=1e-8, atol=1e-8)
    whole = jacrev(flow.log_prob)(x).diagonal(dim1=0, dim2=1).mT
    torch.testing.assert_close(whole, expected, rtol=1e-8, atol=1e-8)
    parameters = {key: value.detach() for key, value in flow.named_parameters()}
    each = vmap(grad(lambda p, row: functional_call(flow, p, (row,))), (None, 0))(parameters, x)
    flow.log_prob(x).sum().backward()
    for key, parameter in flow.named_parameters():
        torch.testing.assert_close(each[key].sum(0), parameter.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own call
@pytest.mark.parametrize("name", ["planar", "radial", "sylvester", "residual", "realnvp", "nsf"])
def test_second_derivatives_and_ensembles_by_torch_func(name):
    torch.manual_seed(0)
    flows = [FLOWS[name].make(3) for _ in range(2)]
    x = torch.randn(3, 3, dtype=torch.float64)
    wanted = torch.stack([torch.autograd.functional.hessian(flows[0].log_prob, row) for row in x])
    torch.testing.assert_close(vmap(hessian(flows[0].log_prob))(x), wanted, rtol=1e-7, atol=1e-7)
    state = stack_module_state(flows)
    found = vmap(lambda *state: functional_call(flows[0], state, (x,)))(*state)
    torch.testing.assert_close(found, torch.stack([flow.log_prob(x) for flow in flows]))


@pytest.mark.parametrize("name", ["radial", "residual-tanh"])
def test_export_with_a_batch_of_any_size(name):
    _same_exported(FLOWS[name].make(2), torch.float64)


def test_export_of_roots(monkeypatch):
    monkeypatch.setattr(
        "baselines.inversion.roots.UNREAD_ITERATIONS", (12, 12)
    )  # fewer, to trace sooner
    _same_exported(perturbed(PlanarFlow(2, layers=1), torch.float32), torch.float32)


def test_unread_roots_are_right_or_nan():
    flow = perturbed(PlanarFlow(2, layers=1))
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(vmap(flow.log_prob)(x), flow.log_prob(x))
    flow.bijector.parts[0].max_iterations = 2
    assert vmap(flow.log_prob)(x).isnan().all()


def test_act_norm_does_not_start_within_a_transform():
    flow = Flow(ActNorm(2))
    with pytest.raises(RuntimeError, match="first batch"):
        vmap(flow.log_prob)(torch.ones(3, 2))
    torch.testing.assert_close(vmap(flow.eval().log_prob)(torch.ones(3, 2)).shape, (3,))


def _same_exported(flow, dtype):
    batch = torch.export.Dim("batch")
    x = torch.randn(3, 2, dtype=dtype)
    exported = torch.export.export(flow, (x,), dynamic_shapes=({0: batch},)).module()
    rows = torch.randn(7, 2, dtype=dtype)
    torch.testing.assert_close(exported(rows), flow.log_prob(rows))
