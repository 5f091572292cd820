"""Counts that no machine changes: what a call evaluates, draws, multiplies and waits for.

Everything is computed in float64 from fixed seeds, so that no rounding decides whether an adaptive
step is accepted. ``counts.py`` beside this folder compares them with the committed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cflows import Adaptive, Flow, Lagged

from .base import FLOWS, SIZES, WEIGHTS, Suite, checked, flow_of, prepared, rows_of

ROWS = 64
SIZE = (6, 24)
TIGHT = Adaptive("dopri5", 1e-6, 1e-6, max_nfe=3000)

WAITS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "item")
DRAWS = ("rand", "randn", "randint", "rand_like", "randn_like", "bernoulli", "normal_", "uniform_",
         "random_", "bernoulli_", "normal", "randperm")  # fmt: skip
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot")


class Operators(TorchDispatchMode):
    """Counts what reaches the device by name, in a forward and in a backward pass alike."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **(kwargs or {}))

    def count(self, names: tuple[str, ...]) -> int:
        """How many of these ran."""
        return sum(self.found.get(name, 0) for name in names)


class _Counts(Suite):
    """float64 while it counts."""

    def setup(self, *_: object) -> None:
        """Start from a fixed seed."""
        torch.manual_seed(3)


class Solve(_Counts):
    """Evaluations of a field in an adaptive solve at a fixed tolerance."""

    unit = "evaluations"
    axes = {  # noqa: RUF012
        "divergence": ("exact", "hutchinson", "hutch++"),
        "weights": WEIGHTS,
    }

    def track_density(self, divergence: str, weights: str) -> float:
        """A density, data to noise."""
        return _nfe(divergence, weights, lambda flow, x: flow.log_prob(x))

    def track_sample(self, divergence: str, weights: str) -> float:
        """A sample, noise to data, without log-determinant."""
        return _nfe(divergence, weights, lambda flow, x: flow.sample(len(x)))

    def track_adjoint(self, divergence: str, weights: str) -> float:
        """The solve backwards of the adjoint."""
        with _float64():
            settings = {"training_solver": TIGHT, "gradient": "adjoint", "divergence": divergence}
            flow = flow_of("ffjord", *SIZE, **settings).train()
            flow.load_state_dict(_state(weights))
            torch.manual_seed(3)
            flow.log_prob(rows_of(SIZE[0], ROWS)).sum().backward()  # type: ignore[no-untyped-call]
            return checked(_solves(flow)[0].stats.nfe_backward)


class TrainingSolve(_Counts):
    """One solve of a grid and its gradient, in training."""

    axes = {  # noqa: RUF012
        "divergence": ("exact", "hutchinson", "hutch++"),
        "gradient": ("backprop", "checkpoint"),
    }

    def track_evaluations(self, divergence: str, gradient: str) -> float:
        """Of the field: the stages of the grid, and one more for the estimate of the error."""
        return checked(_trained(divergence, gradient)[0])

    def track_synchronisations(self, divergence: str, gradient: str) -> float:
        """Times that the host waited for the device."""
        return checked(_trained(divergence, gradient)[1].count(WAITS))

    def track_draws(self, divergence: str, gradient: str) -> float:
        """Calls of a random generator: the probes of a solve are drawn once."""
        return checked(_trained(divergence, gradient)[1].count(DRAWS))

    def track_products(self, divergence: str, gradient: str) -> float:
        """Matrix products."""
        return checked(_trained(divergence, gradient)[1].count(PRODUCTS))


class Work(_Counts):
    """Matrix products and waits of each flow's three calls, and its parameters."""

    axes = {"flow": FLOWS}  # noqa: RUF012

    def track_products_of_an_iteration(self, flow: str) -> float:
        """Loss, gradient, review."""
        return checked(_differentiated(flow).count(PRODUCTS))

    def track_synchronisations_of_an_iteration(self, flow: str) -> float:
        """With a ``Lagged`` solve its error is read, once an iteration."""
        return checked(_differentiated(flow).count(WAITS))

    def track_products_of_a_density(self, flow: str) -> float:
        """Without gradient."""
        return checked(_evaluated(flow, lambda f, x: f.log_prob(x))[1].count(PRODUCTS))

    def track_products_of_a_sample(self, flow: str) -> float:
        """Without gradient."""
        return checked(_evaluated(flow, lambda f, x: f.sample(len(x)))[1].count(PRODUCTS))

    def track_passes_of_a_density(self, flow: str) -> float:
        """Network evaluations."""
        return checked(_evaluated(flow, lambda f, x: f.log_prob(x))[0])

    def track_passes_of_a_sample(self, flow: str) -> float:
        """Network evaluations."""
        return checked(_evaluated(flow, lambda f, x: f.sample(len(x)))[0])


class Parameters(_Counts):
    """Numbers that are trained."""

    axes = {"flow": FLOWS, "size": tuple(SIZES)}  # noqa: RUF012

    def track_parameters(self, flow: str, size: str) -> float:
        """Of all parts."""
        model = flow_of(flow, *SIZES[size])
        return checked(sum(p.numel() for p in model.parameters()))


class Passes(_Counts):
    """Network evaluations of an inversion, five layers."""

    unit = "passes"
    axes = {  # noqa: RUF012
        "flow": ("maf", "iaf"),
        "inversion": ("cached", "jacobi", "sequential"),
        "features": (4, 16),
    }

    def track_inversion(self, flow: str, inversion: str, features: int) -> float:
        """A sample of a MAF, a density of an IAF."""
        slow: Callable[[Flow, torch.Tensor], object] = (
            (lambda f, x: f.sample(len(x))) if flow == "maf" else (lambda f, x: f.log_prob(x))
        )
        return checked(_evaluated(flow, slow, features, inversion=inversion)[0])


@cache
def _trained(divergence: str, gradient: str) -> tuple[int, Operators]:
    with _float64():
        settings = {"training_solver": Lagged("dopri5", 1e-3), "gradient": gradient}
        flow = flow_of("ffjord", *SIZE, divergence=divergence, **settings).train()
        x = rows_of(SIZE[0], ROWS)
        with Operators() as operators:
            flow.log_prob(x).sum().backward()  # type: ignore[no-untyped-call]
        return _solves(flow)[0].stats.nfe, operators


@cache
def _state(weights: str) -> dict[str, Any]:
    """Of the continuous flow, as ``prepared`` leaves it; called in float64."""
    return prepared(flow_of("ffjord", *SIZE), rows_of(SIZE[0], ROWS), weights).state_dict()


def _nfe(divergence: str, weights: str, call: Callable[[Flow, torch.Tensor], object]) -> float:
    with _float64():
        x = rows_of(SIZE[0], ROWS)
        flow = flow_of("ffjord", *SIZE).eval()
        flow.load_state_dict(_state(weights))
        torch.manual_seed(3)
        with torch.no_grad(), flow.using(solver=TIGHT, divergence=divergence):
            call(flow, x)
        return checked(_solves(flow)[0].stats.nfe)


@cache
def _differentiated(name: str) -> Operators:
    """Loss, gradient and review: an optimiser's own operators are torch's affair."""
    with _float64():
        x = rows_of(SIZE[0], ROWS)
        flow = flow_of(name, *SIZE).train()
        torch.manual_seed(3)
        with Operators() as operators:
            flow.log_prob(x).mean().backward()  # type: ignore[no-untyped-call]
            flow.review()
    return operators


def _evaluated(
    name: str,
    call: Callable[[Flow, torch.Tensor], object],
    features: int = SIZE[0],
    **settings: object,
) -> tuple[int, Operators]:
    with _float64():
        x = rows_of(features, ROWS)
        flow = flow_of(name, features, SIZE[1], **settings).eval()
        torch.manual_seed(3)
        before = flow.evaluations
        with torch.no_grad(), Operators() as operators:
            call(flow, x)
        return flow.evaluations - before, operators


def _solves(flow: Flow) -> list[Any]:
    return [part for part in flow.modules() if hasattr(part, "stats")]


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
