"""A flow as ``torch.distributions`` has distributions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from cflows.core.base import Scored, Shape, leading
from cflows.core.density import Density
from cflows.core.modes import in_mode
from cflows.core.within import setting_aside

__all__ = ["FlowDistribution"]


class FlowDistribution(Distribution):
    """A flow given its context: batch shape B, event shape (D,).

    Built by ``flow.distribution(context)``. It evaluates: solver, divergence and statistics are
    those of evaluation mode, whatever mode the flow is in; with ``training=True`` they are those of
    training mode.

    Pyro wants ``pyro.contrib.zuko.ZukoToPyro(flow.distribution())`` in ``pyro.sample``; it takes
    draws and densities from ``rsample_and_log_prob``, in one pass.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow
        >>> law = Flow(Affine([1.0, 2.0], [1.0, 3.0])).distribution()
        >>> law
        FlowDistribution(Flow, features=2, batch_shape=(), context=None)
        >>> law.event_shape, law.expand([4]).sample((5,)).shape
        (torch.Size([2]), torch.Size([5, 4, 2]))
        >>> law.log_prob(torch.tensor([[1.0, 2.0], [1.0, torch.inf]]))
        tensor([-2.9365,    -inf])

    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012, torch's own signature

    def __init__(
        self,
        flow: Density,
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
        *,
        training: bool = False,
    ) -> None:
        if context is not None or flow.context_features:
            flow.check(torch.zeros(flow.features), context)
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else context.shape[:-1]
        self.flow = flow
        self.context = context
        self.training = training
        super().__init__(batch_shape, torch.Size((flow.features,)), validate_args=False)

    def __repr__(self) -> str:
        context = None if self.context is None else tuple(self.context.shape)
        return (
            f"FlowDistribution({type(self.flow).__name__}, features={self.flow.features}, "
            f"batch_shape={tuple(self.batch_shape)}, {context=}"
            f"{', training=True' if self.training else ''})"
        )

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The codomain of the flow's map."""
        return self.flow.bijector.codomain

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the base's draws carry a gradient."""
        return bool(getattr(self.flow.base, "has_rsample", False))

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: object = None
    ) -> FlowDistribution:
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*shape, -1)
        return FlowDistribution(self.flow, context, shape, training=self.training)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, (*S, *B, D) -> (*S, *B).

        -inf for rows outside of the support, those with an infinite entry among them; no gradient
        reaches such a row, and none of theirs the rest.

        Raises:
            ValueError: a value is NaN (in evaluation mode), or a shape does not fit.

        """
        infinite = value.isinf()
        with self._mode(), setting_aside() as outside:
            log_prob = self.flow.log_prob(value.masked_fill(infinite, 0.0), self.context)
        for rows in (infinite.any(-1), *outside):
            log_prob = log_prob.masked_fill(rows, -torch.inf)
        return log_prob + log_prob.new_zeros(self.batch_shape)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws without gradient, S -> (*S, *B, D); an int n means (n,)."""
        with self._mode():
            return self.flow.sample(self._leading(sample_shape), self.context)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws with gradient, S -> (*S, *B, D)."""
        with self._mode():
            return self.flow.rsample(self._leading(sample_shape), self.context)

    @property
    def rsample_and_log_prob(self) -> Callable[..., Scored]:
        """``flow.rsample_and_log_prob`` as a method: S -> draws (*S, *B, D), log p (*S, *B).

        Raises:
            AttributeError: the base's draws carry no gradient, so that ``hasattr`` says so too.

        """
        if not self.has_rsample:
            raise AttributeError(
                f"{type(self.flow.base).__name__} has no reparameterised draws: use sample"
            )
        return self._rsample_and_log_prob

    def _rsample_and_log_prob(self, sample_shape: Shape = ()) -> Scored:
        with self._mode():
            return self.flow.rsample_and_log_prob(self._leading(sample_shape), self.context)

    def _mode(self) -> AbstractContextManager[None]:
        return in_mode(self.flow.modules(), training=self.training)

    def _leading(self, sample_shape: Shape) -> tuple[int, ...]:
        batch = self.batch_shape if self.context is None else ()
        return (*leading(sample_shape), *batch)
