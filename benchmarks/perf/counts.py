"""Counts that no machine changes: what a call evaluates, draws, multiplies and waits for.

Everything is computed in float64 from fixed seeds, so that no rounding decides whether an adaptive
step is accepted. ``counts.py`` beside this folder compares them with the committed ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from cflows import Adaptive, Flow, Lagged, ODEBijector

from .base import FLOWS, SIZES, WEIGHTS, Suite, checked, flow_of, prepared, rows_of

ROWS = 64
SIZE = (6, 24)
DIVERGENCES = ("exact", "hutchinson", "hutch++")
INVERSIONS = ("cached", "jacobi", "sequential")
TIGHT = Adaptive("dopri5", 1e-6, 1e-6, max_nfe=3000)

Call = Callable[[Flow, torch.Tensor], object]

WAITS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "item")
DRAWS = (
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like"),
    *("normal", "normal_", "bernoulli", "bernoulli_", "uniform_", "random_"),
)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot")


class Operators(TorchDispatchMode):
    """Counts what reaches the device by name, in a forward and in a backward pass alike."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def count(self, names: tuple[str, ...]) -> int:
        """How many of these ran."""
        return sum(self.calls[name] for name in names)


class _Counts(Suite):
    """float64 while it counts."""

    def setup(self, *_: object) -> None:
        """Start from a fixed seed."""
        torch.manual_seed(3)


class Solve(_Counts, divergence=DIVERGENCES, weights=WEIGHTS):
    """Evaluations of a field in an adaptive solve at a fixed tolerance."""

    unit = "evaluations"

    def track_density(self, divergence: str, weights: str) -> float:
        """A density, data to noise."""
        return _nfe(divergence, weights, Flow.log_prob)

    def track_sample(self, divergence: str, weights: str) -> float:
        """A sample, noise to data, without log-determinant."""
        return _nfe(divergence, weights, _sample)

    def track_adjoint(self, divergence: str, weights: str) -> float:
        """The solve backwards of the adjoint."""
        with _float64():
            settings = {"training_solver": TIGHT, "gradient": "adjoint", "divergence": divergence}
            flow = flow_of("ffjord", *SIZE, **settings).train()
            flow.load_state_dict(_state(weights))
            torch.manual_seed(3)
            flow.log_prob(rows_of(SIZE[0], ROWS)).sum().backward()
            return checked(_solve(flow).stats.nfe_backward)


class TrainingSolve(_Counts, divergence=DIVERGENCES, gradient=("backprop", "checkpoint")):
    """One solve of a grid and its gradient, in training."""

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


class Work(_Counts, flow=FLOWS):
    """Matrix products and waits of each flow's three calls."""

    def track_products_of_an_iteration(self, flow: str) -> float:
        """Loss, gradient, review."""
        return checked(_differentiated(flow).count(PRODUCTS))

    def track_synchronisations_of_an_iteration(self, flow: str) -> float:
        """With a ``Lagged`` solve its error is read, once an iteration."""
        return checked(_differentiated(flow).count(WAITS))

    def track_products_of_a_density(self, flow: str) -> float:
        """Without gradient."""
        return checked(_evaluated(flow, Flow.log_prob)[1].count(PRODUCTS))

    def track_products_of_a_sample(self, flow: str) -> float:
        """Without gradient."""
        return checked(_evaluated(flow, _sample)[1].count(PRODUCTS))

    def track_passes_of_a_density(self, flow: str) -> float:
        """Network evaluations."""
        return checked(_evaluated(flow, Flow.log_prob)[0])

    def track_passes_of_a_sample(self, flow: str) -> float:
        """Network evaluations."""
        return checked(_evaluated(flow, _sample)[0])


class Parameters(_Counts, flow=FLOWS, size=tuple(SIZES)):
    """Numbers that are trained."""

    def track_parameters(self, flow: str, size: str) -> float:
        """Of all parts."""
        model = flow_of(flow, *SIZES[size])
        return checked(sum(p.numel() for p in model.parameters()))


class Passes(_Counts, flow=("maf", "iaf"), inversion=INVERSIONS, features=(4, 16)):
    """Network evaluations of an inversion, five layers."""

    unit = "passes"

    def track_inversion(self, flow: str, inversion: str, features: int) -> float:
        """A sample of a MAF, a density of an IAF."""
        slow = _sample if flow == "maf" else Flow.log_prob
        return checked(_evaluated(flow, slow, features, inversion=inversion)[0])


@cache
def _trained(divergence: str, gradient: str) -> tuple[int, Operators]:
    with _float64():
        settings = {"training_solver": Lagged("dopri5", 1e-3), "gradient": gradient}
        flow = flow_of("ffjord", *SIZE, divergence=divergence, **settings).train()
        x = rows_of(SIZE[0], ROWS)
        with Operators() as operators:
            flow.log_prob(x).sum().backward()
        return _solve(flow).stats.nfe, operators


@cache
def _state(weights: str) -> dict[str, torch.Tensor]:
    """Of the continuous flow, as ``prepared`` leaves it; called in float64."""
    return prepared(flow_of("ffjord", *SIZE), rows_of(SIZE[0], ROWS), weights).state_dict()


def _sample(flow: Flow, x: torch.Tensor) -> torch.Tensor:
    return flow.sample(len(x))


def _nfe(divergence: str, weights: str, call: Call) -> float:
    with _float64():
        x = rows_of(SIZE[0], ROWS)
        flow = flow_of("ffjord", *SIZE).eval()
        flow.load_state_dict(_state(weights))
        torch.manual_seed(3)
        with torch.no_grad(), flow.using(solver=TIGHT, divergence=divergence):
            call(flow, x)
        return checked(_solve(flow).stats.nfe)


@cache
def _differentiated(name: str) -> Operators:
    """Loss, gradient and review: an optimiser's own operators are torch's affair."""
    with _float64():
        x = rows_of(SIZE[0], ROWS)
        flow = flow_of(name, *SIZE).train()
        torch.manual_seed(3)
        with Operators() as operators:
            flow.log_prob(x).mean().backward()
            flow.review()
    return operators


def _evaluated(
    name: str, call: Call, features: int = SIZE[0], **settings: object
) -> tuple[int, Operators]:
    with _float64():
        x = rows_of(features, ROWS)
        flow = flow_of(name, features, SIZE[1], **settings).eval()
        torch.manual_seed(3)
        before = flow.evaluations
        with torch.no_grad(), Operators() as operators:
            call(flow, x)
        return flow.evaluations - before, operators


def _solve(flow: Flow) -> ODEBijector:
    return next(part for part in flow.modules() if isinstance(part, ODEBijector))


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
