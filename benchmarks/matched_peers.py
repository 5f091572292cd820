"""A trained velocity as zuko and as torchcfm's users solve it: arms of ``peers.py``.

Both call our field, so the weights are the same. zuko's ``FreeFormJacobianTransform`` (the
transform of its ``CNF``) has tolerances of its own, 1e-6 and 1e-5, and an exact trace. torchcfm
trains and leaves the solve to the user: its examples call torchdiffeq's ``odeint``, dopri5 at 1e-4;
they have no density, which is written here as its users do, by a loop over columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from continuous_peers import TOLERANCES, errors_of
from torch import Tensor, nn

LIMIT = 0.01  # mean |log p - fine log p|, and the end of samples in standard deviations


class Way(NamedTuple):
    """A solve at a tolerance, None for the library's own."""

    density: Callable[[Tensor, float | None], Tensor]
    sample: Callable[[Tensor, float | None], Tensor]


def zuko_way(field: nn.Module) -> Way:
    """``zuko.transforms.FreeFormJacobianTransform``."""
    from zuko.transforms import FreeFormJacobianTransform

    def transform(tolerance: float | None) -> FreeFormJacobianTransform:
        own = {} if tolerance is None else {"atol": tolerance, "rtol": tolerance}
        zero, one = torch.tensor(0.0), torch.tensor(1.0)
        return FreeFormJacobianTransform(lambda t, x: field(t, x, None), one, zero, **own)

    def density(rows: Tensor, tolerance: float | None) -> Tensor:
        return _log_prob(*transform(tolerance).call_and_ladj(rows))

    return Way(density, lambda z, tolerance: transform(tolerance).inv(z))


def torchcfm_way(field: nn.Module) -> Way:
    """``torchdiffeq.odeint`` around the network."""
    from torchdiffeq import odeint

    def solved(f: Callable[[Tensor, object], object], start: object, span: Tensor, tol: float):
        return odeint(f, start, span, atol=tol, rtol=tol, method="dopri5")

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return field(t, x, None)

    def with_trace(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            value = field(t, x, None)
            trace = torch.zeros(len(x))
            for k in range(x.shape[1]):
                (row,) = torch.autograd.grad(value[:, k].sum(), x, retain_graph=True)
                trace = trace + row[:, k]
        return value.detach(), trace

    def density(rows: Tensor, tolerance: float | None) -> Tensor:
        start = rows, torch.zeros(len(rows))
        z, total = solved(with_trace, start, torch.tensor([1.0, 0.0]), tolerance or 1e-4)
        return _log_prob(z[-1], total[-1])

    def sample(z: Tensor, tolerance: float | None) -> Tensor:
        return solved(velocity, z, torch.tensor([0.0, 1.0]), tolerance or 1e-4)[-1]

    return Way(density, sample)


WAYS: dict[str, Callable[[nn.Module], Way]] = {"torchcfm": torchcfm_way}
if find_spec("zuko"):
    WAYS["zuko"] = zuko_way


def arms_of(
    field: nn.Module, what: str, start: Tensor, truth: Tensor, own: bool
) -> dict[str, tuple[Callable[[], object], str]]:
    """Each way's call and how it solves: at its own tolerance, or at the loosest one that will do.

    Args:
        field: f(t, x, context).
        what: ``"density"`` or ``"sample"``.
        start: rows or draws, where the solve begins.
        truth: the fine log-density, or the fine end.
        own: whether the tolerance is the library's.

    """
    arms: dict[str, tuple[Callable[[], object], str]] = {}
    for name, way_of in WAYS.items():
        call = getattr(way_of(field), what)
        for tolerance in (None,) if own else TOLERANCES:
            with torch.no_grad():
                result = call(start, tolerance)
            error = error_of(what, result, truth)
            if own or error <= LIMIT:
                how = "its own tolerance" if own else f"tolerance {tolerance:g}"
                run = torch.no_grad()(partial(call, start, tolerance))
                arms[name] = run, f"{how}, {'gap' if what == 'density' else 'end'} {error:.2g}"
                break
    return arms


def error_of(what: str, result: Tensor, truth: Tensor) -> float:
    """The mean gap of densities in nats, or the root mean square end of samples in their spread."""
    if what == "density":
        return errors_of(result, truth).mean
    return float(((result - truth) / truth.std(0)).square().mean().sqrt())


def _log_prob(z: Tensor, log_det: Tensor) -> Tensor:
    return log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
