"""What objectives and distributions need of a flow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from cflows.core.base import Base, Scored, Shape
from cflows.core.bijector import Bijector

__all__ = ["Density"]


class Density(Protocol):
    """A density with draws, as ``Flow`` is: x (*B, D), context (*B, C) and log p (*B,)."""

    training: bool
    bijector: Bijector
    base: Base

    @property
    def features(self) -> int:
        """D."""

    @property
    def context_features(self) -> int:
        """C, 0 for an unconditional density."""

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``log_prob``."""

    def check(self, x: Tensor, context: Tensor | None = None) -> None:
        """Refuse shapes that do not fit."""

    def seen(self, context: Tensor | None) -> Tensor | None:
        """What bijector and base see of a context."""

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats."""

    def log_prob_and_penalties(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-density, and what is integrated along the path by name."""

    def sample(self, sample_shape: Shape = (), context: Tensor | None = None) -> Tensor:
        """Draws without gradient."""

    def rsample(self, sample_shape: Shape = (), context: Tensor | None = None) -> Tensor:
        """Draws with gradient."""

    def sample_and_log_prob(
        self, sample_shape: Shape = (), context: Tensor | None = None
    ) -> Scored:
        """Draws and their log-density, with gradient where the base has one."""

    def rsample_and_log_prob(
        self, sample_shape: Shape = (), context: Tensor | None = None
    ) -> Scored:
        """Draws with gradient, and their log-density."""

    def modules(self) -> Iterator[nn.Module]:
        """All parts."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by name."""
