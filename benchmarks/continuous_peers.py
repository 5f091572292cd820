"""The same continuous flow by diffrax and by zuko: arms of ``continuous.py``, where installed.

Each holds our field's weights and one Rademacher probe, and uses the loosest tolerance that keeps
the error asked for: the mean of |log p - log p64| over rows, and its maximum below .1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from cflows import MLP

__all__ = ["PEERS"]

Arm = tuple[Callable[[], object], str, tuple[float, float]]
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6, 1e-7)


def zuko_transform(
    model: nn.Module, end_time: float, like: Tensor, tolerance: float, exact: bool
) -> Any:
    """``zuko.transforms.FreeFormJacobianTransform``, data to noise: dopri5 with its adjoint."""
    from zuko.transforms import FreeFormJacobianTransform

    return FreeFormJacobianTransform(
        f=lambda t, state: model(t, state, None),
        t0=like.new_tensor(end_time),
        t1=like.new_tensor(0.0),
        phi=model.parameters(),
        atol=tolerance,
        rtol=tolerance,
        exact=exact,
    )


def zuko_arm(
    field: MLP,
    end_time: float,
    x: Tensor,
    seen: Tensor,
    probe: Tensor,
    limit: float,
    work: str = "iteration",
    trace: str = "estimate",
) -> Arm | None:
    """One of zuko's ``iteration``, ``density`` or ``sample``, by an estimated or exact trace."""

    def log_prob(model: nn.Module, rows: Tensor, tolerance: float) -> Tensor:
        transform = zuko_transform(model, end_time, rows, tolerance, trace == "exact")
        z, log_det = transform.call_and_ladj(rows)
        base: Tensor = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        return base + log_det

    doubled = MLP(field.features, hidden=field.hidden, activation=_name(field)).double()
    doubled.load_state_dict({k: v.double() for k, v in field.state_dict().items()})
    with _probe(probe), torch.no_grad():
        exact = log_prob(doubled, seen.double(), 1e-10)
        for tolerance in TOLERANCES:
            errors = _errors(log_prob(field, seen, tolerance), exact)
            if errors[0] <= limit and errors[1] <= 0.1:
                break
        else:
            return None
    optimizer = torch.optim.Adam(field.parameters(), 0.0)

    def iterate() -> None:
        optimizer.zero_grad()
        (-log_prob(field, x, tolerance).mean()).backward()
        optimizer.step()

    def density() -> None:
        with torch.no_grad():
            log_prob(field, x, tolerance)

    def sample() -> None:
        with torch.no_grad():
            zuko_transform(field, end_time, x, tolerance, False).inv(torch.randn_like(x))

    run = {"iteration": iterate, "density": density, "sample": sample}[work]
    return run, f"dopri5 {tolerance:g}", errors


def diffrax_arm(
    field: MLP, end_time: float, x: Tensor, seen: Tensor, probe: Tensor, limit: float
) -> Arm | None:
    """``diffrax.diffeqsolve``, Dopri5 with a PID controller; the whole iteration is compiled."""
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    activate = {"tanh": jnp.tanh, "softplus": jax.nn.softplus}[_name(field)]

    def parameters(dtype: Any) -> list[dict[str, Any]]:
        return [
            {k: jnp.asarray(v.detach().numpy(), dtype) for k, v in layer.named_parameters()}
            for layer in field.layers
        ]

    def velocity(layers: Any, t: Any, h: Any) -> Any:
        for index, p in enumerate(layers):
            h = activate(h) if index else h
            gate = jax.nn.sigmoid(p["gate_weight"][:, 0] * t + p["gate_bias"])
            h = (h @ p["weight"].T + p["bias"]) * gate + p["time_weight"][:, 0] * t
        return h

    def log_prob(layers: Any, rows: Any, noise: Any, tolerance: Any) -> Any:
        def term(t: Any, state: Any, layers: Any) -> Any:
            t = jnp.asarray(t, state[0].dtype)
            value, back = jax.vjp(lambda h: velocity(layers, t, h), state[0])
            return value, (back(noise)[0] * noise).sum(-1)

        # Python numbers would be float64 here, and promote the state.
        ends = jnp.asarray([end_time, 0.0], rows.dtype)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(term), diffrax.Dopri5(), ends[0], ends[1], None,
            (rows, jnp.zeros(len(rows), rows.dtype)), layers,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=4096,
        )  # fmt: skip
        z, total = solution.ys[0][-1], solution.ys[1][-1]
        return -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1) + total

    def step(layers: Any, moments: Any, rows: Any, noise: Any, tolerance: Any) -> Any:
        loss, gradient = jax.value_and_grad(lambda p: -log_prob(p, rows, noise, tolerance).mean())(
            layers
        )
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradient)
        second = jax.tree.map(lambda m, g: 0.999 * m + 0.001 * g * g, moments[1], gradient)
        layers = jax.tree.map(
            lambda p, m, v: p - 0.0 * m / (jnp.sqrt(v) + 1e-8), layers, first, second
        )
        return loss, layers, (first, second)

    def arrays(dtype: Any, rows: Tensor, noise: Tensor) -> tuple[Any, Any]:
        return jnp.asarray(rows.numpy(), dtype), jnp.asarray(noise.numpy(), dtype)

    scored = jax.jit(log_prob)
    exact = torch.tensor(
        scored(parameters(jnp.float64), *arrays(jnp.float64, seen, probe), 1e-10).tolist()
    )
    layers = parameters(jnp.float32)
    for tolerance in TOLERANCES:
        found = scored(layers, *arrays(jnp.float32, seen, probe), tolerance)
        errors = _errors(torch.tensor(found.tolist()), exact)
        if errors[0] <= limit and errors[1] <= 0.1:
            break
    else:
        return None
    noise = 2.0 * torch.randint(0, 2, x.shape) - 1
    inputs = arrays(jnp.float32, x, noise)
    moments = (jax.tree.map(jnp.zeros_like, layers), jax.tree.map(jnp.zeros_like, layers))
    compiled = jax.jit(step)

    def run() -> None:
        jax.block_until_ready(compiled(layers, moments, *inputs, tolerance))

    return run, f"Dopri5 {tolerance:g}, compiled", errors


PEERS = {
    name: arm
    for name, arm in (("zuko", zuko_arm), ("diffrax", diffrax_arm))
    if find_spec(name) is not None
}


@contextmanager
def _probe(probe: Tensor) -> Iterator[None]:
    """Have zuko draw this probe: it calls torch.randn_like."""
    original = torch.randn_like
    torch.randn_like = lambda like, **_: probe.to(like)
    try:
        yield
    finally:
        torch.randn_like = original


def _name(field: MLP) -> str:
    return type(field.activations[0]).__name__.lower()


def _errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    error = (found.detach().double() - exact.detach().double()).abs()
    return float(error.mean()), float(error.max())
