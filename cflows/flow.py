"""A flow: a base distribution seen through a bijector."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from .arrays import Array, as_tensor
from .bases import Normal
from .bijector import Bijector, may_read
from .distributed import agree_on_steps
from .storage import register, save
from .trajectory import trajectory

__all__ = ["Flow", "FlowDistribution", "evaluating", "log_likelihood"]


@register
class Flow(nn.Module):
    """The distribution of x = f(z; context) with z from a base.

    log p(x) = log p_base(f⁻¹(x)) + log|det df⁻¹/dx|   (Papamakarios et al. 2021, equation 4)

    Args:
        bijector: f, noise to data.
        base: a module with ``log_prob(z, context)``, ``sample`` and ``rsample``; by default the
            standard normal of f's features.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow
        >>> flow = Flow(Affine([1.0, 2.0], [1.0, 3.0]))
        >>> flow.log_prob(torch.tensor([[1.0, 2.0]]))  # -log(2 pi) - log 3
        tensor([-2.9365])
        >>> flow.sample(5).shape
        torch.Size([5, 2])

    """

    def __init__(self, bijector: Bijector, base: nn.Module | None = None) -> None:
        super().__init__()
        self.bijector = bijector
        self.base: Any = Normal(bijector.features) if base is None else base
        size = getattr(self.base, "features", bijector.features)
        if size != bijector.features:
            raise ValueError(
                f"the base has {size} features, the bijector {bijector.features}: build them alike"
            )

    @property
    def features(self) -> int:
        """D."""
        return self.bijector.features

    @property
    def context_features(self) -> int:
        """C, 0 for an unconditional flow."""
        return self.bijector.context_features

    @property
    def evaluations(self) -> int:
        """Network evaluations since the flow was built: an odometer, take differences."""
        return sum(getattr(part, "evaluations_made", 0) for part in self.modules())

    @property
    def is_continuous(self) -> bool:
        """Whether a part of the flow is solved, so that its figures have a solver's error."""
        return bool(self._continuous_parts())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``log_prob``, so that a wrapper around the module trains it."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats, (*B, D) and (*B, C) -> (*B,); leading dimensions broadcast.

        Raises:
            TypeError: the dtype is not the flow's.
            ValueError: a shape does not fit, or (in evaluation mode) a value is not finite.

        """
        x, context = self._check(x, context)
        z, log_det = self.bijector.inverse_and_log_det(x, context)
        return self._base_log_prob(z, context) + log_det

    def log_prob_and_penalties(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-density and what the continuous parts integrate along the path, each (*B,).

        The penalties are those the parts were built with, added up over parts; see
        ``cflows.penalties``.
        """
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for part in self._continuous_parts():
                stack.enter_context(part.collecting(found))
            return self.log_prob(x, context), found

    def trajectory(
        self, start: Tensor, times: Sequence[float], context: Tensor | None = None
    ) -> Tensor:
        """Where a path is at several times, for pictures: (*B, D) -> (len(times), *B, D).

        Time runs over [0, 1], from noise to data, and is shared out evenly between the continuous
        parts; maps between two of them act in an instant. All states are seen through the maps
        behind the last one, so that the whole path is in the data's units.

        Args:
            start: noise where the times ascend, data where they descend.
            times: within [0, 1], the first 0 or 1.
            context: (*B, C) or None.

        Raises:
            ValueError: the times do not run from 0 upwards or from 1 downwards.
            TypeError: the flow has no continuous part.

        """
        return trajectory(self.bijector, start, times, context)

    def review(self) -> bool:
        """Let ``Lagged`` solvers choose their next steps; False: the batch should be solved again.

        For training loops of one's own, between ``backward`` and the optimiser's step; ``fit`` does
        it. Within a process group of torch.distributed every process must call it: the largest
        error of all decides for all.
        """
        parts = self._continuous_parts()
        return agree_on_steps(parts, all([part.review() for part in parts]))

    @torch.no_grad()
    def sample(
        self, sample_shape: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> Tensor:
        """Draws without gradient, S and (*B, C) -> (*S, *B, D); an int n means (n,)."""
        return self.bijector.forward(*self._draw(sample_shape, context, "sample"))

    def rsample(
        self, sample_shape: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> Tensor:
        """Draws with gradient in the parameters and the context, shapes as in ``sample``."""
        return self.bijector.forward(*self._draw(sample_shape, context, "rsample"))

    def sample_and_log_prob(
        self, sample_shape: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log-density in one solve or pass: (*S, *B, D) and (*S, *B).

        log p(x) = log p_base(z) - log|det dx/dz|. With gradient, unless under ``no_grad`` or the
        base has no reparameterised draws.
        """
        kind = "rsample" if getattr(self.base, "has_rsample", False) else "sample"
        z, context = self._draw(sample_shape, context, kind)
        x, log_det = self.bijector.forward_and_log_det(z, context)
        return x, self._base_log_prob(z, context) - log_det

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The flow as a ``torch.distributions.Distribution``, always in evaluation mode."""
        return FlowDistribution(self, context)

    @contextmanager
    def using(self, **settings: Any) -> Iterator[Flow]:
        """Override the continuous parts' solver or divergence within a block, with gradients.

        Args:
            settings: ``solver=...`` and ``divergence=...``, as ``FFJORD`` takes them.

        Raises:
            TypeError: the flow has no continuous part.

        Example:
            >>> import torch
            >>> from cflows import FFJORD, Adaptive
            >>> flow = FFJORD(2).eval()
            >>> with flow.using(solver=Adaptive("dopri5", rtol=1e-7, atol=1e-7)):
            ...     tight = flow.log_prob(torch.zeros(1, 2))

        """
        parts = self._continuous_parts()
        if not parts:
            raise TypeError("this flow has no continuous part: there is no solver to override")
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(part.override(**settings))
            yield self

    @contextmanager
    def tightened(self, factor: float = 10.0) -> Iterator[Flow]:
        """Divide the tolerances of the solvers in force by ``factor`` within a block."""
        with ExitStack() as stack:
            for part in self._continuous_parts():
                stack.enter_context(part.override(solver=part.solver.tightened(factor)))
            yield self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the flow to one file, read again by ``cflows.load``; see ``cflows.storage``."""
        save(self, path)

    def _continuous_parts(self) -> list[Any]:
        return [part for part in self.modules() if hasattr(part, "override")]

    def _check(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, context = self.bijector.broadcast(x, context)
        dtype = dtype_of(self)
        for name, value in (("the input", x), ("the context", context)):
            if value is None:
                continue
            if dtype is not None and value.dtype != dtype:
                raise TypeError(
                    f"{name} is {value.dtype}, the flow is {dtype}: cast one of them with .to()"
                )
            # Asking costs a host synchronisation: training data are checked once, by fit.
            if not self.training and may_read(value) and not bool(value.isfinite().all()):
                raise ValueError(f"{name} has NaN or infinite values: drop or mend these rows")
        return x, context

    def _draw(
        self, sample_shape: int | tuple[int, ...], context: Tensor | None, kind: str
    ) -> tuple[Tensor, Tensor | None]:
        """Base draws and the context, both of leading shape (*S, *B)."""
        shape = tuple(sample_shape) if isinstance(sample_shape, Iterable) else (int(sample_shape),)
        # The context's check wants something to broadcast it to.
        like = context if isinstance(context, Tensor) and context.is_floating_point() else None
        blank = (torch.zeros(()) if like is None else like.new_zeros(())).expand(self.features)
        if context is not None or self.context_features:
            context = self._check(blank, context)[1]
        z: Tensor = getattr(self.base, kind)(shape, context)
        if context is not None:
            context = context.expand(*z.shape[:-1], -1)
        return z, context

    def _base_log_prob(self, z: Tensor, context: Tensor | None) -> Tensor:
        log_prob: Tensor = self.base.log_prob(z, context)
        return log_prob


class FlowDistribution(Distribution):
    """A flow given its context: batch shape B, event shape (D,).

    Built by ``flow.distribution(context)``. It evaluates: solver, divergence and statistics are
    those of evaluation mode, whatever mode the flow is in.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow
        >>> law = Flow(Affine([1.0, 2.0], [1.0, 3.0])).distribution()
        >>> law.event_shape, law.expand([4]).sample((5,)).shape
        (torch.Size([2]), torch.Size([5, 4, 2]))

    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012, torch's own signature
    support = constraints.real_vector

    def __init__(
        self, flow: Flow, context: Tensor | None = None, batch_shape: torch.Size | None = None
    ) -> None:
        if context is not None or flow.context_features:
            flow.bijector.broadcast(torch.zeros(flow.features), context)
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else context.shape[:-1]
        self.flow = flow
        self.context = context
        super().__init__(batch_shape, torch.Size((flow.features,)), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the base's draws carry a gradient."""
        return bool(getattr(self.flow.base, "has_rsample", False))

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None
    ) -> FlowDistribution:
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*shape, -1)
        return FlowDistribution(self.flow, context, shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, (*S, *B, D) -> (*S, *B)."""
        with evaluating(self.flow):
            log_prob = self.flow.log_prob(value, self.context)
        return log_prob + log_prob.new_zeros(self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws without gradient, S -> (*S, *B, D)."""
        with evaluating(self.flow):
            return self.flow.sample(self._leading(sample_shape), self.context)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradient, S -> (*S, *B, D)."""
        with evaluating(self.flow):
            return self.flow.rsample(self._leading(sample_shape), self.context)

    def _leading(self, sample_shape: Any) -> tuple[int, ...]:
        batch = self.batch_shape if self.context is None else ()
        return (*tuple(sample_shape), *batch)


def log_likelihood(
    flow: Flow,
    x: Tensor | Array,
    context: Tensor | Array | None = None,
    *,
    batch_size: int = 2000,
) -> Tensor:
    """Log-density of every row in evaluation mode, in batches, without gradient: (N, D) -> (N,).

    Batches are moved to the flow's device one by one; the answer is where x is, on the CPU for an
    array. Arrays are cast to the flow's dtype, as ``fit`` does.

    Args:
        flow: any flow.
        x: rows (N, D), or one row (D,), whose log-density is a scalar.
        context: (N, C), or (C,) for all rows.
        batch_size: rows at a time.

    Raises:
        TypeError: neither tensors nor arrays of real numbers, or a tensor of another dtype than the
            flow's.
        ValueError: a shape does not fit, or a value is not finite.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, log_likelihood
        >>> flow = Flow(Affine([0.0], [1.0]))
        >>> log_likelihood(flow, torch.zeros(5000, 1), batch_size=1000).mean()  # -log(2 pi) / 2
        tensor(-0.9189)

    """
    for name, given in (("x", x), ("context", context)):
        if not isinstance(given, Tensor | np.ndarray) and (given is not None or name == "x"):
            raise TypeError(
                f"{name} must be a tensor or an array, got {type(given).__name__}: "
                "torch.as_tensor turns numbers into tensors"
            )
    if x.ndim == 0:
        raise ValueError("x must have shape (N, D) or (D,), got ()")
    if x.ndim == 1:
        return log_likelihood(flow, x[None], context, batch_size=batch_size)[0]
    back = x.device if isinstance(x, Tensor) else torch.device("cpu")
    place = next((value.device for value in (*flow.parameters(), *flow.buffers())), back)
    dtype = dtype_of(flow)

    def tensor(name: str, part: Tensor | Array) -> Tensor:
        return part if isinstance(part, Tensor) else as_tensor(name, part).to(dtype)

    if context is not None:
        context = tensor("context", context).expand(len(x), -1)
    found = []
    with torch.no_grad(), evaluating(flow):
        for first in range(0, max(len(x), 1), batch_size):
            part = slice(first, first + batch_size)
            seen = None if context is None else context[part].to(place)
            found.append(flow.log_prob(tensor("x", x[part]).to(place), seen).to(back))
    return torch.cat(found)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within a block; every part has its own mode back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """Dtype of the first floating-point parameter, else buffer; None where there is none."""
    for values in (module.parameters(), module.buffers()):
        for value in values:
            if value.is_floating_point():
                return value.dtype
    return None
