from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.nn import functional as F
from zoo import perturbed

from baselines import MADE, MAF, AutoregressiveAffine, MADEMoG
from baselines.networks.activations import FUSED_ACTIVATIONS
from baselines.networks.fused_mlp import perceptron
from baselines.networks.masked_linear import MaskedLinear, staircase_of
from cflows import Affine, Flow

D = 5


@pytest.mark.parametrize("order", ["sequential", "reversed", "random"])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden_degrees", ["sequential", "random"])
def test_residual_made_sees_exactly_what_came_before(order, context, hidden_degrees):
    made = perturbed(
        MADE(
            D,
            hidden=(16, 16),
            order=order,
            context_features=context,
            activation="tanh",
            residual=True,
            hidden_degrees=hidden_degrees,
        )
    )
    c = torch.randn(context, dtype=torch.float64) if context else None
    x = torch.randn(D, dtype=torch.float64)
    before = made.degrees[None, :] < made.degrees[:, None]
    for output in (0, 1):
        pattern = torch.autograd.functional.jacobian(lambda v: made(v, c)[output], x) != 0  # noqa: B023
        assert torch.equal(pattern, before)


def test_residual_blocks_are_what_the_docstring_says():
    made = perturbed(MADE(D, hidden=(8, 8), residual=True, activation="tanh"))
    w = [layer.weight * layer.mask for layer in made.layers]
    b = [layer.bias for layer in made.layers]
    x = torch.randn(3, D, dtype=torch.float64)
    h = x @ w[0].T + b[0]
    for k in (1, 3):
        inner = torch.tanh(h) @ w[k].T + b[k]
        h = h + torch.tanh(inner) @ w[k + 1].T + b[k + 1]
    out = torch.tanh(h) @ w[5].T + b[5]
    torch.testing.assert_close(torch.cat(made(x), dim=-1), out)


@pytest.mark.parametrize("width", [3, 4, 5, 20])
def test_random_degrees_leave_none_empty(width):
    made = MADE(D, hidden=(width,), hidden_degrees="random")
    degrees = made.hidden_degrees_0.tolist()
    assert degrees == sorted(degrees)
    if width >= D - 1:
        assert set(degrees) == set(range(1, D))
    assert len(set(degrees)) == min(width, D - 1)


def test_random_degrees_differ_from_layer_to_layer():
    torch.manual_seed(0)
    made = MADE(20, hidden=(50, 50), hidden_degrees="random")
    assert not torch.equal(made.hidden_degrees_0, made.hidden_degrees_1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden_degrees": "uneven"}, "hidden_degrees must be sequential or random"),
        ({"residual": True, "hidden": (4, 5)}, "residual blocks must be of one width"),
        ({"outputs": 0}, "outputs must be at least 1"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        MADE(3, **arguments)


def multiplications(module: torch.nn.Module, call) -> int:
    """How often a call multiplies weights by masks."""
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes = {tuple(m.mask.shape) for m in module.modules() if isinstance(m, MaskedLinear)}

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mul.Tensor and tuple(out.shape) in shapes:
                Counter.count += 1
            return out

    with Counter():
        call()
    return Counter.count


@pytest.mark.parametrize("inversion", ["cached", "jacobi", "sequential"])
def test_masks_are_multiplied_once_a_call(inversion):
    flow = MAF(7, layers=2, hidden=(11, 13), inversion=inversion).eval()
    with torch.no_grad():
        assert multiplications(flow, lambda: flow.log_prob(torch.randn(3, 7))) == 6
        assert multiplications(flow, lambda: flow.sample(3)) == 6


def mend(flow):
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5)


def step(flow):
    flow.log_prob(torch.randn(5, 7)).sum().backward()
    torch.optim.SGD(flow.parameters(), 1e-4).step()


def swap(flow):
    for parameter in flow.parameters():
        parameter.data = 1.5 * parameter.data


def silent(flow):
    for parameter in flow.parameters():
        parameter.data.mul_(1.5)


def exchanged(flow):
    """The way of averages that swap their weights in for an evaluation, and out again."""
    kept = [parameter.data.clone() for parameter in flow.parameters()]
    for parameter in flow.parameters():
        parameter.data.copy_(1.5 * parameter.data)
    with torch.no_grad():
        flow.log_prob(torch.randn(3, 7))
    for parameter, value in zip(flow.parameters(), kept, strict=True):
        parameter.data.copy_(value)


def rearranged(flow):
    """Masks and degrees of another order."""
    other = MAF(7, layers=2, hidden=(11, 13), order="random")
    for here, there in zip(flow.buffers(), other.buffers(), strict=True):
        here.data.copy_(there)


@pytest.mark.parametrize(
    "change",
    [
        mend,
        step,
        swap,
        silent,
        exchanged,
        rearranged,
        lambda flow: flow.load_state_dict({k: 1.1 * v for k, v in flow.state_dict().items()}),
        lambda flow: flow.double().float(),
    ],
)
def test_every_change_of_the_weights_is_seen(change):
    flow = perturbed(MAF(7, layers=2, hidden=(11, 13)), torch.float32)
    x = torch.randn(3, 7)
    for _ in range(3):
        with torch.no_grad():
            flow.log_prob(x)
        change(flow)
        with torch.no_grad():
            seen = flow.log_prob(x)
            drawn = flow.bijector(x)
        fresh = MAF(7, layers=2, hidden=(11, 13)).eval()
        fresh.load_state_dict(copy.deepcopy(flow.state_dict()))
        with torch.no_grad():
            assert torch.equal(seen, fresh.log_prob(x))
            assert torch.equal(drawn, fresh.bijector(x))


def test_a_product_is_neither_saved_nor_trained():
    flow = MAF(7, layers=1, hidden=(11,)).eval()
    names = set(flow.state_dict())
    with torch.no_grad():
        flow.log_prob(torch.randn(3, 7))
    assert set(flow.state_dict()) == names
    torch.save(flow, io.BytesIO())
    flow.log_prob(torch.randn(3, 7)).sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [(6,), (), (2, 3)])
def test_staircase_is_the_full_product(blocks, batch):
    before, after = [1, 1, 2, 4, 5, 5, 6], [1, 2, 2, 3, 5, 5, 5, 5]
    staircase = staircase_of(before, after, blocks)
    mask = torch.tensor(after)[:, None] >= torch.tensor(before)
    weight = (torch.randn(8, 7, dtype=torch.float64) * mask).requires_grad_()
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    x = torch.randn(*batch, 7, dtype=torch.float64, requires_grad=True)

    def masked(x, weight, bias):
        return perceptron(
            x, [weight * mask], [bias], FUSED_ACTIVATIONS["relu"], staircases=[staircase]
        )

    torch.testing.assert_close(masked(x, weight, bias), F.linear(x, weight, bias))
    assert torch.autograd.gradcheck(masked, (x, weight, bias))
    assert torch.autograd.gradgradcheck(masked, (x, weight, bias))
    rows = torch.randn(5, 7, dtype=torch.float64)
    by_row = torch.func.vmap(lambda row: masked(row, weight, bias))(rows)
    torch.testing.assert_close(by_row, F.linear(rows, weight, bias))


@pytest.mark.parametrize("hidden_degrees", ["sequential", "random"])
def test_wide_layers_leave_out_products_and_change_nothing(hidden_degrees):
    torch.manual_seed(0)
    f = AutoregressiveAffine(6, hidden=(300, 280), hidden_degrees=hidden_degrees).double()
    assert [s is not None for s in f.made.plan().staircases] == [False, True, False]
    for parameter in f.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(4, 6, dtype=torch.float64)
    h = x
    for number, masked in enumerate(f.made.masked):
        h = F.linear(torch.relu(h) if number else h, masked.weight * masked.mask, masked.bias)
    torch.testing.assert_close(torch.cat(f.made(x), dim=-1), h)


def test_degrees_on_a_device_are_read_once(monkeypatch):
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")
        __torch_function__ = torch._C._disabled_torch_function_impl

    made, reads = MADE(D, hidden=(8, 8), hidden_degrees="random"), []
    for name, buffer in list(made.named_buffers(recurse=False)):
        setattr(made, name, buffer.as_subclass(Elsewhere))
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or tolist(self))
    plan = made.plan()
    assert len(reads) == 2
    assert made.plan() is plan
    assert len(reads) == 2
    other = MADE(D, hidden=(8, 8), hidden_degrees="random")
    made.load_state_dict(other.state_dict())
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    assert made.plan() == other.plan() != plan
    assert made.__getstate__()["_read"] is None, "no pickle refers to another device"


def mog(context: int = 0) -> MADEMoG:
    return perturbed(
        MADEMoG(3, 4, context_features=context, hidden=(12,), order="random", activation="tanh")
    )


def test_mixture_conditionals_are_those_of_torch():
    base = mog()
    z = torch.randn(6, 3, dtype=torch.float64)
    parts = base.made(z)
    total = 0
    for d in range(3):
        logits, means, scales = (
            torch.stack([parts[4 * kind + k][:, d] for k in range(4)], -1) for kind in range(3)
        )
        scales = (5 * torch.tanh(scales / 5)).exp()
        total = total + torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=logits),
            torch.distributions.Normal(means, scales),
        ).log_prob(z[:, d])
    torch.testing.assert_close(base.log_prob(z), total)


@pytest.mark.parametrize("context", [0, 2])
def test_mixture_draws_have_the_density(context):
    base = mog(context)
    c = torch.randn(context, dtype=torch.float64) if context else None
    torch.manual_seed(0)
    z = base.sample((20000,), c)
    assert z.shape == (20000, 3)
    # E[q/p] = 1 for any density q that p covers.
    q = torch.distributions.Normal(z.median(0).values, 0.4 * z.std(0).clamp(max=2))
    ratio = (q.log_prob(z).sum(-1) - base.log_prob(z, c)).exp().detach()
    error = float(ratio.std()) / len(z) ** 0.5
    assert error < 0.1
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_components_start_apart_and_train():
    torch.manual_seed(0)
    flow = Flow(Affine([0.0], [1.0]), MADEMoG(1, 2, hidden=(8,)))
    x = torch.cat([torch.randn(500, 1) * 0.1 - 2, torch.randn(500, 1) * 0.1 + 2])
    optimiser = torch.optim.Adam(flow.parameters(), 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimiser.step()
    # The entropy of two equal normals of deviation 0.1: log 2 + log(0.1 sqrt(2 pi e)).
    assert abs(loss.item() - (0.6931 + 1.4189 - 2.3026)) < 0.05


def test_maf_mog():
    flow = perturbed(MAF(4, layers=2, hidden=(10,), components=3))
    assert isinstance(flow.base, MADEMoG)
    x, log_prob = flow.sample_and_log_prob(5)
    torch.testing.assert_close(flow.log_prob(x), log_prob)
    with pytest.raises(TypeError, match="no reparameterised draws"):
        flow.rsample(3)
    with pytest.raises(ValueError, match="beside a base of your own"):
        MAF(4, components=3, base=flow.base)
    before = flow.evaluations
    flow.sample(10)
    assert flow.evaluations - before == 3, "one walk through each layer, one through the base"


def test_batch_norm_follows_each_layer():
    flow = MAF(4, layers=2, hidden=(10,), batch_norm=True)
    kinds = [type(part).__name__ for part in flow.bijector.parts]
    assert kinds == ["BatchNorm", "Autoregressive"] * 2


def test_a_pass_in_inference_mode_leaves_nothing_behind():
    flow = perturbed(MAF(5, layers=1, hidden=(8, 8))).eval().requires_grad_(False)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        flow.log_prob(x)
    flow.log_prob(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_flow_built_in_inference_mode_works():
    with torch.inference_mode():
        flow = MAF(5, layers=2, hidden=(8, 8), order="random").eval()
        assert flow.log_prob(flow.sample(3)).shape == (3,)


# torch.func.jvp itself compiles a script when it is first used.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
def test_functional_weights():
    flow = perturbed(MAF(5, layers=1, hidden=(8, 8))).eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    name, weight = next((n, p.detach()) for n, p in flow.named_parameters() if "weight" in n)

    def total(w):
        return torch.func.functional_call(flow, {name: w}, (x,)).sum()

    with torch.no_grad():
        plain = flow.log_prob(x)
        many = torch.func.vmap(total)(torch.stack([weight, 2 * weight]))
        torch.testing.assert_close(many[0], plain.sum())
        # Forward mode passes no_grad by: a product without its tangent would give none.
        _, slope = torch.func.jvp(total, (weight,), (torch.ones_like(weight),))
        assert torch.equal(flow.log_prob(x), plain)
    torch.testing.assert_close(slope, torch.func.grad(total)(weight).sum())


def test_a_transform_leaves_nothing_behind():
    flow = perturbed(MAF(5, layers=1, hidden=(8, 8))).eval().requires_grad_(False)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    gradient = torch.func.grad(lambda v: flow.log_prob(v).sum())(x.detach())
    flow.log_prob(x).sum().backward()
    torch.testing.assert_close(gradient, x.grad)


# torch.func.jvp itself compiles a script when it is first used.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
def test_forward_mode_through_a_staircase():
    staircase = staircase_of([1, 2, 3, 4], [1, 2, 3, 4], 2)
    weight = torch.randn(4, 4, dtype=torch.float64).tril().requires_grad_()
    x, bias = torch.randn(3, 4).double().requires_grad_(), torch.randn(4).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w, b: perceptron(
            x, [w.tril()], [b], FUSED_ACTIVATIONS["relu"], staircases=[staircase]
        ),
        (x, weight, bias),
        check_forward_ad=True,
    )
