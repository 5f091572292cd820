"""Problems of one coordinate with a known answer, and what judges an objective on them."""

from __future__ import annotations

import math

import torch

from cflows import Chain, ElementwiseAffine, Flow, SinhArcsinh

NO_ROWS = (None, None)


def gaussian(mean, std):
    """log N(x; mean, std²) of one coordinate."""
    return lambda x: torch.distributions.Normal(mean, std).log_prob(x).sum(-1)


def line(loc=0.0, scale=1.0):
    """N(loc, scale²) as a flow with two parameters."""
    flow = Flow(ElementwiseAffine(1, bound=1e4))
    with torch.no_grad():
        flow.bijector.shift.fill_(loc)
        flow.bijector.raw_log_scale.fill_(math.log(scale))
    return flow


def normal_of(flow):
    """The mean and the standard deviation of ``line``."""
    x = flow(torch.zeros(1))
    here = flow.bijector(torch.tensor([[0.0], [1.0]])).detach().flatten()
    assert x.isfinite()
    return here[0].item(), (here[1] - here[0]).item()


def minimise(flow, objective, rows=None, *, steps=400, rate=5e-2, n=512):
    parameters = [*flow.parameters(), *objective.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        batch = NO_ROWS if rows is None else (rows[torch.randint(len(rows), (n,))], None)
        optimiser.zero_grad()
        objective(flow, batch).backward()
        optimiser.step()
        schedule.step()
    return flow


def gradient(flow, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(
        loss, list(flow.parameters()), materialize_grads=True)])  # fmt: skip


def assert_gradient(flow, objective, batch=NO_ROWS, *, near=1e-6, of=None, sign=1.0):
    """Against central differences in every parameter, with the same random numbers.

    By default the flow's parameters; ``of`` names another module, ``sign`` what its gradient is
    multiplied by.
    """
    of = flow if of is None else of

    def loss():
        torch.manual_seed(7)
        return objective(flow, batch)

    got, step = sign * gradient(of, loss()), 1e-5
    expected = []
    with torch.no_grad():
        for parameter in of.parameters():
            for entry in parameter.view(-1).split(1):
                middle = entry.clone()
                ends = [loss().item() for entry[:] in (middle - step, middle + step)]
                entry[:] = middle
                expected.append((ends[1] - ends[0]) / (2 * step))
    torch.testing.assert_close(got, torch.tensor(expected), rtol=near, atol=near)


def perturbed(flow, scale=0.3):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow


def curved():
    """A flow of one coordinate that is no normal."""
    return perturbed(Flow(Chain(ElementwiseAffine(1), SinhArcsinh(1))))
