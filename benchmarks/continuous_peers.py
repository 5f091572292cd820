"""The same continuous flow by diffrax and by zuko: arms of ``continuous.py``, where installed.

Each holds our field's weights and one Rademacher probe, and uses the loosest tolerance that keeps
the error asked for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from common import Arm, work
from torch import Tensor, nn

from cflows import MLP

if TYPE_CHECKING:
    from jax import Array
    from jax.example_libraries.optimizers import OptimizerState
    from zuko.transforms import FreeFormJacobianTransform

    Layers = list[dict[str, Array]]

T = TypeVar("T")
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6, 1e-7)


class Errors(NamedTuple):
    """Of log p over rows: the mean of |log p - log p64| and its maximum."""

    mean: float
    maximum: float


class PeerArm(NamedTuple):
    """What is timed, how it solves, and how far off it is."""

    call: Callable[[], object]
    solver: str
    errors: Errors


def errors_of(log_prob: Tensor, exact: Tensor) -> Errors:
    """Between two arms' log p, (N,) each."""
    error = (log_prob.detach().double() - exact.detach().double()).abs()
    return Errors(error.mean().item(), error.max().item())


def first_within(
    limit: float, settings: Iterable[T], log_prob: Callable[[T], Tensor], exact: Tensor
) -> tuple[T, Errors] | None:
    """The first setting whose log p is off by ``limit`` on average and .1 at most."""
    for setting in settings:
        errors = errors_of(log_prob(setting), exact)
        if errors.mean <= limit and errors.maximum <= 0.1:
            return setting, errors
    return None


def zuko_arm(
    field: MLP,
    end_time: float,
    x: Tensor,
    checked: Tensor,
    probe: Tensor,
    limit: float,
    what: str = "iteration",
    trace: str = "estimate",
) -> PeerArm | None:
    """zuko's ``FreeFormJacobianTransform``, dopri5 with its adjoint; the trace either way."""
    from zuko.transforms import FreeFormJacobianTransform

    def transform(model: nn.Module, tolerance: float, exact: bool) -> FreeFormJacobianTransform:
        weight = next(model.parameters())
        return FreeFormJacobianTransform(
            f=lambda t, state: model(t, state, None),
            t0=weight.new_tensor(end_time),
            t1=weight.new_tensor(0.0),
            phi=model.parameters(),
            atol=tolerance,
            rtol=tolerance,
            exact=exact,
        )

    def log_prob(model: nn.Module, rows: Tensor, tolerance: float) -> Tensor:
        z, log_det = transform(model, tolerance, trace == "exact").call_and_ladj(rows)
        return log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    with _probe(probe), torch.no_grad():
        exact = log_prob(copy.deepcopy(field).double(), checked.double(), 1e-10)
        loosest = first_within(limit, TOLERANCES, lambda tol: log_prob(field, checked, tol), exact)
    if loosest is None:
        return None
    tolerance, errors = loosest
    arm = Arm(
        field,
        lambda rows: log_prob(field, rows, tolerance),
        lambda n: transform(field, tolerance, False).inv(torch.randn_like(x)),
    )
    return PeerArm(work(what, arm, x), f"dopri5 {tolerance:g}", errors)


def diffrax_arm(
    field: MLP, end_time: float, x: Tensor, checked: Tensor, probe: Tensor, limit: float
) -> PeerArm | None:
    """``diffrax.diffeqsolve``, Dopri5 with a PID controller; the whole iteration is compiled."""
    import diffrax
    import jax
    import jax.numpy as jnp
    from jax.example_libraries.optimizers import adam

    jax.config.update("jax_enable_x64", True)
    activation = type(field.activations[0]).__name__.lower()
    activate = {"tanh": jnp.tanh, "softplus": jax.nn.softplus}[activation]

    def array(tensor: Tensor, dtype: type = jnp.float32) -> Array:
        return jnp.asarray(tensor.detach().numpy(), dtype)

    def parameters(dtype: type) -> Layers:
        return [{k: array(v, dtype) for k, v in part.named_parameters()} for part in field.layers]

    def velocity(layers: Layers, t: Array, h: Array) -> Array:
        for index, p in enumerate(layers):
            h = activate(h) if index else h
            gate = jax.nn.sigmoid(p["gate_weight"][:, 0] * t + p["gate_bias"])
            h = (h @ p["weight"].T + p["bias"]) * gate + p["time_weight"][:, 0] * t
        return h

    def log_prob(layers: Layers, rows: Array, noise: Array, tolerance: float) -> Array:
        def term(t: Array, state: tuple[Array, Array], layers: Layers) -> tuple[Array, Array]:
            t = jnp.asarray(t, state[0].dtype)
            value, back = jax.vjp(lambda h: velocity(layers, t, h), state[0])
            return value, (back(noise)[0] * noise).sum(-1)

        # Python numbers would be float64 here, and promote the state.
        ends = jnp.asarray([end_time, 0.0], rows.dtype)
        start = (rows, jnp.zeros(len(rows), rows.dtype))
        control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        solve = partial(diffrax.diffeqsolve, stepsize_controller=control, max_steps=4096)
        solution = solve(diffrax.ODETerm(term), diffrax.Dopri5(), *ends, None, start, layers)
        z, total = solution.ys[0][-1], solution.ys[1][-1]
        return -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1) + total

    start, advance, layers_of = adam(0.0)

    @jax.jit
    def step(state: OptimizerState, rows: Array, noise: Array, tolerance: float) -> object:
        loss = jax.value_and_grad(lambda layers: -log_prob(layers, rows, noise, tolerance).mean())
        value, gradient = loss(layers_of(state))
        return value, advance(0, gradient, state)

    scored = jax.jit(log_prob)

    def scores(dtype: type, tolerance: float) -> Tensor:
        rows, noise = array(checked, dtype), array(probe, dtype)
        return torch.tensor(scored(parameters(dtype), rows, noise, tolerance).tolist())

    exact = scores(jnp.float64, 1e-10)
    loosest = first_within(limit, TOLERANCES, lambda tol: scores(jnp.float32, tol), exact)
    if loosest is None:
        return None
    tolerance, errors = loosest
    inputs = start(parameters(jnp.float32)), array(x), array(2.0 * torch.randint(0, 2, x.shape) - 1)

    return PeerArm(
        lambda: jax.block_until_ready(step(*inputs, tolerance)),
        f"Dopri5 {tolerance:g}, compiled",
        errors,
    )


ARMS: dict[str, Callable[..., PeerArm | None]] = {"zuko": zuko_arm, "diffrax": diffrax_arm}
PEERS = {name: arm for name, arm in ARMS.items() if find_spec(name)}


@contextmanager
def _probe(probe: Tensor) -> Iterator[None]:
    """Have zuko draw this probe: it calls torch.randn_like."""
    original = torch.randn_like
    torch.randn_like = lambda like, **_: probe.to(like)
    try:
        yield
    finally:
        torch.randn_like = original
