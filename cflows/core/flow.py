"""A flow: a base distribution seen through a bijector."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from cflows.core.arguments import Array, as_tensor
from cflows.core.atomic_write import write_whole
from cflows.core.base import Base, Normal, Scored, Shape, leading
from cflows.core.bijector import Bijector, Mapped, check_last, may_read, refuse_low_precision
from cflows.core.collectives import agree_on_steps
from cflows.core.context import ContextNetwork
from cflows.core.distribution import FlowDistribution
from cflows.core.dtypes import dtype_of, refuse_mixed
from cflows.core.modes import evaluating
from cflows.core.pickling import Pickled
from cflows.core.registry import packed
from cflows.core.trajectory import trajectory

__all__ = ["Flow", "FlowDistribution", "evaluating", "log_likelihood"]

Image = TypeVar("Image", Tensor, Mapped)


class Flow(Pickled):
    """The distribution of x = f(z; context) with z from a base.

    log p(x) = log p_base(f⁻¹(x)) + log|det df⁻¹/dx|   (Papamakarios et al. 2021, equation 4)

    Args:
        bijector: f, noise to data.
        base: a module with ``log_prob(z, context)``, ``sample`` and ``rsample``; by default the
            standard normal of f's features.
        context_network: what makes of a context (*B, C') that which bijector and base see (*B, C);
            by default they see it as it is.

    Raises:
        TypeError: the base is a torch Distribution, which ``TorchBase.of`` makes a module.
        ValueError: the base has another number of features, or the network another than the context
            features of the bijector.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow
        >>> flow = Flow(Affine([1.0, 2.0], [1.0, 3.0]))
        >>> flow.log_prob(torch.tensor([[1.0, 2.0]]))  # -log(2 pi) - log 3
        tensor([-2.9365])
        >>> flow.sample(5).shape
        torch.Size([5, 2])

    """

    def __init__(
        self,
        bijector: Bijector,
        base: nn.Module | None = None,
        context_network: ContextNetwork | None = None,
    ) -> None:
        super().__init__()
        if isinstance(base, Distribution):
            raise TypeError(
                f"the base is a torch {type(base).__name__}, no module: take "
                f"TorchBase.of({type(base).__name__}(...))"
            )
        self.bijector = bijector
        self.base = Normal(bijector.features) if base is None else cast(Base, base)
        size = getattr(self.base, "features", bijector.features)
        if size != bijector.features:
            raise ValueError(
                f"the base has {size} features, the bijector {bijector.features}: build them alike"
            )
        self.context_network = context_network
        given, taken = getattr(context_network, "features", None), bijector.context_features
        if given not in (None, taken):
            raise ValueError(
                f"the context network gives {given} features, the bijector takes {taken}"
            )

    @property
    def features(self) -> int:
        """D."""
        return self.bijector.features

    @property
    def context_features(self) -> int:
        """C, of the context that is given; 0 for an unconditional flow."""
        return (self.context_network or self.bijector).context_features

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

        In evaluation mode a row so far out that the dtype overflows has density -inf, never NaN.

        Raises:
            TypeError: the dtype is not the flow's, or that is half precision, or not one.
            ValueError: a shape does not fit, or (in evaluation mode) a value is not finite.

        """
        x, context = self._check(x, context)
        z, log_det = self._map(self.bijector.inverse_and_log_det, x, context)
        log_prob = self.base.log_prob(z, context) + log_det
        if self.training:
            return log_prob
        # Where a row is so far that a map overflows on the way, and inf - inf follows.
        far = x.abs().amax(-1) > torch.finfo(x.dtype).max ** 0.5
        return torch.masked_fill(log_prob, far & log_prob.isnan(), -torch.inf)

    def log_prob_and_penalties(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-density and what the continuous parts integrate along the path, each (*B,).

        The penalties are those the parts were built with, added up over parts; see
        ``cflows.continuous.penalties``.
        """
        penalties: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for part in self._continuous_parts():
                stack.enter_context(part.collecting(penalties))
            return self.log_prob(x, context), penalties

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
        return trajectory(self.bijector, start, times, self.seen(context))

    def seen(self, context: Tensor | None) -> Tensor | None:
        """What bijector and base see of a context, (*B, C') -> (*B, C); None of none."""
        if context is None or self.context_network is None:
            return context
        return cast(Tensor, self.context_network(context))

    def check(self, x: Tensor, context: Tensor | None = None) -> None:
        """Refuse shapes and kinds that do not fit, whatever the values.

        Raises:
            TypeError, ValueError: a kind or a shape does not fit.

        """
        if self.context_network is not None:
            if context is None:
                raise ValueError(f"a context of shape (*B, {self.context_features}) is needed")
            check_last("the context", context, self.context_features, "C")
            context = context[..., :1].expand(*context.shape[:-1], self.context_network.features)
        self.bijector.broadcast(x, context)

    def review(self) -> bool:
        """Let ``Lagged`` solvers choose their next steps; False: the batch should be solved again.

        For training loops of one's own, between ``backward`` and the optimiser's step; ``fit`` does
        it. Within a process group of torch.distributed every process must call it: the largest
        error of all decides for all.
        """
        parts = self._continuous_parts()
        return agree_on_steps(parts, all([part.review() for part in parts]))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = (), context: Tensor | None = None) -> Tensor:
        """Draws without gradient, S and (*B, C) -> (*S, *B, D); an int n means (n,)."""
        return self._map(self.bijector.forward, *self._draw(sample_shape, context, "sample"))

    def rsample(self, sample_shape: Shape = (), context: Tensor | None = None) -> Tensor:
        """Draws with gradient in the parameters and the context, shapes as in ``sample``."""
        return self._map(self.bijector.forward, *self._draw(sample_shape, context, "rsample"))

    def sample_and_log_prob(
        self, sample_shape: Shape = (), context: Tensor | None = None
    ) -> Scored:
        """Draws and their log-density in one solve or pass: (*S, *B, D) and (*S, *B).

        log p(x) = log p_base(z) - log|det dx/dz|. With gradient, unless under ``no_grad`` or the
        base has no reparameterised draws.
        """
        kind = "rsample" if getattr(self.base, "has_rsample", False) else "sample"
        return self._draw_and_log_prob(sample_shape, context, kind)

    def rsample_and_log_prob(
        self, sample_shape: Shape = (), context: Tensor | None = None
    ) -> Scored:
        """``sample_and_log_prob`` whose draws must carry a gradient.

        It reaches the parameters and the context through the draws too, as in ``rsample``.

        Raises:
            TypeError: the base has no reparameterised draws.

        """
        return self._draw_and_log_prob(sample_shape, context, "rsample")

    def distribution(
        self, context: Tensor | None = None, *, training: bool = False
    ) -> FlowDistribution:
        """The flow as a ``torch.distributions.Distribution``.

        Args:
            context: (*B, C), or None.
            training: the mode in which it draws and scores, whatever mode the flow is in. In
                training mode continuous parts take their training solver, batch normalisation the
                batch's statistics, and an ActNorm starts: for a distribution that is itself
                trained, as in stochastic variational inference.

        """
        return FlowDistribution(self, context, training=training)

    @contextmanager
    def using(self, **settings: object) -> Iterator[Flow]:
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
        """Write the flow to one file, which ``cflows.load`` reads; an earlier file is never lost.

        Raises:
            TypeError: a part is of a class that was not registered, or the flow is no longer what
                its constructors build; the message names it.
            OSError: the file cannot be written.

        """
        write_whole(path, packed(self))

    def _continuous_parts(self) -> list[Any]:
        return [part for part in self.modules() if hasattr(part, "override")]

    def _check(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.context_network is None:
            x, context = self.bijector.broadcast(x, context)
        else:  # one summary of a context that stands for many rows
            self.check(x, context)
        dtype = dtype_of(self)
        refuse_low_precision("the flow", dtype)
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
        context = self.seen(context)
        return (x, context) if self.context_network is None else self.bijector.broadcast(x, context)

    def _draw(
        self, sample_shape: Shape, context: Tensor | None, kind: str
    ) -> tuple[Tensor, Tensor | None]:
        """Base draws and the context, both of leading shape (*S, *B)."""
        dtype = dtype_of(self)
        refuse_low_precision("the flow", dtype)
        if context is not None or self.context_features:
            # The context's check wants something to broadcast it to.
            blank = torch.zeros((), dtype=dtype).expand(self.features)
            context = self._check(blank, context)[1]
        z: Tensor = getattr(self.base, kind)(leading(sample_shape), context)
        if context is not None:
            context = context.expand(*z.shape[:-1], -1)
        return z, context

    def _draw_and_log_prob(self, sample_shape: Shape, context: Tensor | None, kind: str) -> Scored:
        z, context = self._draw(sample_shape, context, kind)
        x, log_det = self._map(self.bijector.forward_and_log_det, z, context)
        return x, self.base.log_prob(z, context) - log_det

    def _map(self, way: Callable[..., Image], value: Tensor, context: Tensor | None) -> Image:
        """The bijector's answer; looking through the dtypes of all parts waits for a sign."""
        try:
            result = way(value, context)
        except RuntimeError:
            refuse_mixed(self)
            raise
        image = result if isinstance(result, Tensor) else result[0]
        if image.dtype != value.dtype:
            refuse_mixed(self)
        return result


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
    for name, value in (("x", x), ("context", context)):
        if not isinstance(value, Tensor | np.ndarray) and (value is not None or name == "x"):
            raise TypeError(
                f"{name} must be a tensor or an array, got {type(value).__name__}: "
                "torch.as_tensor turns numbers into tensors"
            )
    if x.ndim == 0:
        raise ValueError("x must have shape (N, D) or (D,), got ()")
    if x.ndim == 1:
        return log_likelihood(flow, x[None], context, batch_size=batch_size)[0]
    back = x.device if isinstance(x, Tensor) else torch.device("cpu")
    device = next((value.device for value in (*flow.parameters(), *flow.buffers())), back)
    dtype = dtype_of(flow)

    def tensor(name: str, part: Tensor | Array) -> Tensor:
        return part if isinstance(part, Tensor) else as_tensor(name, part).to(dtype)

    if context is not None:
        context = tensor("context", context).expand(len(x), -1)
    parts = []
    with torch.no_grad(), evaluating(flow):
        for first in range(0, max(len(x), 1), batch_size):
            rows = slice(first, first + batch_size)
            of_rows = None if context is None else context[rows].to(device)
            parts.append(flow.log_prob(tensor("x", x[rows]).to(device), of_rows).to(back))
    return torch.cat(parts)
