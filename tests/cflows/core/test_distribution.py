"""Flows seen as torch's distributions and transforms, and by several threads."""

import pickle
import threading

import pytest
import torch
from torch.distributions import (
    ComposeTransform,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
)
from zoo import BIJECTORS, FLOWS, TIGHT, cases

from baselines import IAF, MAF
from cflows import (
    FFJORD,
    ActNorm,
    Affine,
    BatchNorm,
    Chain,
    Exp,
    FixedGrid,
    Flow,
    Inverse,
    Log,
    MixtureOfGaussians,
    ODEBijector,
    Sigmoid,
    Tanh,
    TorchBase,
    as_transform,
    behind,
    fit,
    log_likelihood,
    whiten,
)
from cflows.core.modes import evaluating, in_mode

ENDS = {"sigmoid": Sigmoid, "exp": Exp, "tanh": Tanh}


@cases(FLOWS)
def test_one_pass_draws_and_scores_with_gradient(case):
    torch.manual_seed(0)
    flow = case.make(3, 2)
    c = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    if not case.rsample:
        with pytest.raises(TypeError, match="no reparameterised draws"):
            flow.rsample_and_log_prob((2,), c)
        assert not hasattr(flow.distribution(c), "rsample_and_log_prob")
        return
    for source, context in ((flow, (c,)), (flow.distribution(c), ())):
        x, log_prob = source.rsample_and_log_prob((2,), *context)
        assert x.shape == (2, 4, 3)
        assert log_prob.shape == (2, 4)
        torch.testing.assert_close(log_prob, flow.log_prob(x, c), rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(log_prob.sum() + x.sum(), c, allow_unused=True)
        assert gradient is None or gradient.isfinite().all()
        assert any(
            g is not None and g.abs().sum() > 0
            for g in torch.autograd.grad(
                source.rsample_and_log_prob((2,), *context)[0].sum(),
                [*flow.parameters()],
                allow_unused=True,
            )
        )


def test_a_draw_and_its_density_are_one_solve():
    flow = FFJORD(2, hidden=(8,), evaluation_solver=TIGHT).eval()
    before = flow.evaluations
    flow.sample(1)
    alone, before = flow.evaluations - before, flow.evaluations
    flow.distribution().rsample_and_log_prob((1,))
    assert flow.evaluations - before <= 2 * alone


def test_sizes_and_representation():
    law = MAF(2, context_features=1).distribution(torch.zeros(4, 1))
    assert law.sample(3).shape == law.rsample(3).shape == (3, 4, 2)
    assert law.rsample_and_log_prob(3)[1].shape == (3, 4)
    assert repr(law) == "FlowDistribution(MAF, features=2, batch_shape=(4,), context=(4, 1))"
    trained = MAF(2).distribution(training=True)
    assert trained.expand((3,)).training
    assert "training=True" in repr(trained)


@pytest.mark.parametrize("name", ["maf", "nsf", "radial", "realnvp-batch-norm", "residual"])
def test_rows_outside_have_no_density_and_disturb_nothing(name):
    torch.manual_seed(0)
    flow = FLOWS[name].make(3)
    law = flow.distribution()
    inside = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(flow.log_prob(inside).sum(), inside)
    rows = torch.cat([inside.detach(), torch.full((2, 3), torch.inf, dtype=torch.float64)])
    rows[3, 1:] = 0.5
    rows.requires_grad_()
    log_prob = law.log_prob(rows)
    torch.testing.assert_close(log_prob[:2], flow.log_prob(inside))
    assert log_prob[2:].tolist() == [-torch.inf] * 2
    log_prob[:2].sum().backward()
    torch.testing.assert_close(rows.grad, torch.cat([expected, torch.zeros(2, 3)]))
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)
    with pytest.raises(ValueError, match="NaN"):
        law.log_prob(rows.detach() * torch.nan)
    with pytest.raises(ValueError, match="infinite"):
        flow.log_prob(rows)


@pytest.mark.parametrize("behind_it", [False, True])
@pytest.mark.parametrize("name", sorted(ENDS))
def test_support_of_a_bounded_end(name, behind_it):
    end = [ENDS[name](2), *([Affine([1.0, 0.0], [2.0, 1.0])] if behind_it else [])]
    flow = Flow(Chain(Affine([0.0, 0.0], [0.5, 0.5]), *end)).eval()
    law = flow.distribution()
    draws = law.sample(5)
    far = torch.tensor([[-9.0, 0.5]])
    rows = torch.cat([draws, far]).requires_grad_()
    log_prob = law.log_prob(rows)
    torch.testing.assert_close(log_prob[:5], flow.log_prob(draws))
    assert log_prob[5] == -torch.inf
    log_prob[:5].sum().backward()
    assert rows.grad.isfinite().all()
    assert rows.grad[5].tolist() == [0.0, 0.0]
    assert law.support.event_dim == 1
    assert bool(law.support.check(rows).all()) == behind_it
    assert law.support.check(draws).all()
    with pytest.raises(ValueError, match="outside"):
        flow.log_prob(far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases(BIJECTORS, lambda case: not case.surjective)
def test_forward_stays_inside_of_an_open_range(case, dtype):
    end = case.build(1, 0).eval()
    z = torch.tensor([-1e30, -200.0, -20.0, 20.0, 200.0, 1e30], dtype=dtype)
    x = end(z[:, None])
    back, log_det = end.inverse_and_log_det(x)
    assert back.isfinite().all()
    assert log_det.isfinite().all()
    assert (x.diff(dim=0) >= 0).all()


def test_a_chain_claims_no_support_that_it_has_not():
    below, shift = torch.tensor([[-0.5]]), Affine([1.0], [2.0])
    chains = [
        (Chain(Exp(1), Tanh(1)), True),  # reaches (0, 1), and not -0.5
        (Chain(Sigmoid(1), shift), True),
        (Chain(Log(1), shift, Exp(1)), False),
        (Chain(shift, Exp(1)), False),
        (Inverse(Chain(Log(1), shift)), False),
        (Inverse(Log(1)), False),
        (Log(1), True),
        (Inverse(Sigmoid(1)), True),
        (Inverse(Chain(shift, Tanh(1), Exp(1))), True),
    ]
    for bijector, whole in chains:
        law = Flow(bijector).distribution()
        assert (law.support is constraints.real_vector) == whole
        assert bool(law.support.check(below)) == whole
        assert repr(as_transform(bijector).inv.codomain) == repr(bijector.domain)
    assert not as_transform(Log(2)).domain.check(-torch.ones(2))
    assert as_transform(Exp(2)).domain is constraints.real_vector


def test_the_message_of_a_range():
    with pytest.raises(ValueError, match=r"^0 is outside \(0, 1\)"):
        Sigmoid(1).eval().inverse(torch.zeros(1, 1))


@cases(FLOWS)
def test_far_rows_have_no_density(case):
    if case.continuous:
        pytest.skip("a solve has limits of its own")
    torch.manual_seed(0)
    flow = case.make(3, dtype=torch.float32)
    near = torch.randn(2, 3)
    for size in (1e20, 1e30, 3e38):
        rows = torch.cat([near, size * torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, 0, 0]])])
        log_prob = flow.log_prob(rows)
        assert (log_prob[2:] < -1e2).all()
        torch.testing.assert_close(log_prob[:2], flow.log_prob(near), rtol=1e-4, atol=1e-4)


def test_training_mode_on_request():
    flow = Flow(Chain(BatchNorm(2), ActNorm(2))).eval()
    x = 3 + torch.randn(50, 2)
    flow.distribution().log_prob(x)
    assert not flow.bijector.parts[1].initialised
    flow.distribution(training=True).log_prob(x)
    assert flow.bijector.parts[1].initialised
    assert flow.bijector.parts[0].batches == 1
    assert not any(part.training for part in flow.modules())


def test_threads_that_score_give_the_mode_back():
    flow = Flow(Chain(Affine([0.0], [1.0]), Affine([0.0], [1.0])))
    flow.bijector.parts[0].eval()
    modes = [part.training for part in flow.modules()]
    inside, leave = threading.Barrier(3), threading.Barrier(3)

    def score(first):
        with evaluating(flow):
            inside.wait()
            if first:
                leave.wait()
        if not first:
            leave.wait()
        for _ in range(200):
            log_likelihood(flow, torch.zeros(2, 1))
            flow.distribution().log_prob(torch.zeros(2, 1))

    threads = [threading.Thread(target=score, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    inside.wait()
    assert not flow.training
    leave.wait()
    for thread in threads:
        thread.join()
    assert [part.training for part in flow.modules()] == modes


def test_blocks_nest_fail_and_overlap():
    flow = Flow(Chain(Affine([0.0], [1.0]), Affine([0.0], [1.0])))
    part = flow.bijector.parts[0]
    with pytest.raises(KeyError), evaluating(flow), evaluating(part):
        raise KeyError
    assert all(each.training for each in flow.modules())
    with evaluating(part):
        with in_mode(flow.modules(), training=True):
            assert part.training
        assert not part.training
        assert flow.training
    one, other = evaluating(flow), evaluating(part)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert flow.training
    assert not part.training
    other.__exit__(None, None, None)
    assert part.training
    flow.eval()
    with evaluating(flow):
        flow.train()
    assert flow.training


def test_overrides_that_overlap_leave_none_behind():
    flow = FFJORD(2, hidden=(4,)).eval()
    (part,) = [each for each in flow.modules() if isinstance(each, ODEBijector)]
    usual, solvers = part.solver, [FixedGrid("rk4", steps) for steps in (1, 2)]
    one, other = (flow.using(solver=solver) for solver in solvers)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert part.solver == solvers[1]
    other.__exit__(None, None, None)
    assert part.solver == usual


def test_threads_collect_penalties_of_their_own():
    flow = FFJORD(2, hidden=(4,), penalties=("kinetic",))
    flow.eval()  # without probes of chance
    rows = {size: torch.full((size, 2), float(size)) for size in (3, 5)}
    alone = {size: flow.log_prob_and_penalties(x)[1]["kinetic"] for size, x in rows.items()}
    together, got = threading.Barrier(2, timeout=20), {}

    class Meeting(Flow):
        def log_prob(self, x, context=None):
            together.wait()
            value = super().log_prob(x, context)
            together.wait()
            return value

    meeting = Meeting(flow.bijector, flow.base).eval()

    def score(size):
        got[size] = meeting.log_prob_and_penalties(rows[size])[1]["kinetic"]

    threads = [threading.Thread(target=score, args=(size,)) for size in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(rows)
    for size in rows:
        torch.testing.assert_close(got[size], alone[size])


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("name", ["maf", "iaf", "realnvp", "nsf", "planar"])
def test_a_bijector_as_a_transform(name, cache_size):
    torch.manual_seed(0)
    flow = FLOWS[name].make(3, 2)
    c = torch.randn(4, 2, dtype=torch.float64)
    transform = as_transform(flow.bijector, c, cache_size=cache_size)
    noise = Independent(Normal(torch.zeros(4, 3, dtype=torch.float64), 1.0), 1)
    law = TransformedDistribution(noise, [transform])
    assert (law.batch_shape, law.event_shape) == ((4,), (3,))
    x = law.sample((5,))
    torch.testing.assert_close(law.log_prob(x), flow.log_prob(x, c))
    z = torch.randn(4, 3, dtype=torch.float64)
    x = transform(z)
    assert (transform.inv(x) is z) == bool(cache_size)
    expected = flow.bijector.forward_and_log_det(z, c)
    torch.testing.assert_close((x, transform.log_abs_det_jacobian(z, x)), expected)
    both = ComposeTransform([transform, transform.inv])
    torch.testing.assert_close(both(z), z)
    torch.testing.assert_close(
        both.log_abs_det_jacobian(z, both(z)),
        torch.zeros(4, dtype=torch.float64),
        atol=1e-8,
        rtol=0,
    )
    again = pickle.loads(pickle.dumps(transform.with_cache(1 - cache_size)))
    torch.testing.assert_close(again(z), x)


def test_a_transform_says_where_it_goes():
    transform = as_transform(Sigmoid(2).eval())
    assert transform.bijective
    assert transform.codomain.check(transform(torch.randn(3, 2))).all()
    assert transform.forward_shape((5, 2)) == (5, 2)
    with pytest.raises(ValueError, match="context"):
        as_transform(MAF(2, context_features=1).bijector)
    with pytest.raises(TypeError, match=r"takes a bijector, got a MAF: give its \.bijector$"):
        as_transform(MAF(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    flow = MAF(2, layers=1, hidden=(4,)).to(dtype)
    x = torch.randn(20, 2)
    for call in (
        lambda: flow.log_prob(x.to(dtype)),
        lambda: flow.sample(3),
        lambda: flow.rsample_and_log_prob(3),
        lambda: flow.bijector.inverse(x.to(dtype)),
        lambda: fit(flow, x, steps=1, progress=False),
    ):
        with pytest.raises(TypeError, match="densities need float32"):
            call()


def test_dtypes_are_named():
    flow = MAF(2, context_features=1)
    with pytest.raises(TypeError, match=r"the context is torch.float64, the flow is torch.float32"):
        flow.sample((), torch.zeros(3, 1, dtype=torch.float64))
    x = torch.randn(50, 2)
    mixed = Flow(Chain(MAF(2).double().bijector, whiten(x)), MAF(2).double().base).eval()
    for call in (lambda: mixed.log_prob(x.double()), lambda: mixed.sample(2)):
        with pytest.raises(TypeError, match=r"mixes torch.float64 .* and torch.float32"):
            call()
    whole = behind(MAF(2).double(), whiten(x))
    assert whole.log_prob(x.double()).dtype == whole.sample(3).dtype == torch.float64


def test_a_plain_distribution_names_its_wrapper():
    law = MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(TypeError, match=r"take TorchBase.of\(MultivariateNormal"):
        MAF(2, base=law)
    MAF(2, base=TorchBase.of(law)).log_prob(torch.zeros(2))


def test_draws_without_gradient_stay_as_they_are():
    flow = Flow(Affine([0.0, 0.0], [1.0, 1.0]), MixtureOfGaussians(2, 2))
    assert flow.distribution().sample(3).shape == (3, 2)
    with pytest.raises(AttributeError, match="no reparameterised draws"):
        _ = flow.distribution().rsample_and_log_prob


def test_no_draws_of_a_mixture():
    flow = MAF(2, context_features=1, components=2).eval()
    assert flow.sample((0,), torch.zeros(4, 1)).shape == (0, 4, 2)


@pytest.mark.parametrize(
    "name", ["nsf", "realnvp", "nice", "realnvp-random", "maf", "iaf", "planar"]
)
def test_built_without_numbers(name):
    real = FLOWS[name].build(4, 0)
    with torch.device("meta"):
        empty, assigned = FLOWS[name].build(4, 0), FLOWS[name].build(4, 0)
    assert all(value.is_meta for value in empty.state_dict().values())
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(real.state_dict())
    assigned.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(5, 4)
    for flow in (filled, assigned):
        assert torch.equal(flow.eval().log_prob(x), real.eval().log_prob(x))


def test_pyro_takes_the_wrapped_distribution():
    pyro = pytest.importorskip("pyro")
    from pyro.contrib.zuko import ZukoToPyro

    for flow in (IAF(2, layers=1, hidden=(4,)), MAF(2, components=2, layers=1, hidden=(4,))):
        assert pyro.sample("x", ZukoToPyro(flow.distribution())).shape == (2,)
