"""A bijector as ``torch.distributions`` has transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from cflows.core.bijector import Bijector

__all__ = ["BijectorTransform", "as_transform"]


def as_transform(
    bijector: Bijector, context: Tensor | None = None, *, cache_size: int = 0
) -> BijectorTransform:
    """The map x = f(z; context) as a ``torch.distributions.Transform``, from noise to data.

    For ``TransformedDistribution``, ``ComposeTransform`` and whatever takes torch's transforms:
    with f a trained flow's bijector, Pyro's NeuTra samples in the noise's space, where the
    posterior is near the base (Hoffman et al. 2019, "NeuTra-lizing Bad Geometry in HMC").

    The bijector stays in its own mode: call ``eval()`` on a trained one.

    Args:
        bijector: f.
        context: (*B, C), or None.
        cache_size: 1: the last pair of z and x, with its log-determinant, is kept, so that the
            density of a draw costs no second pass: for weights that stay, since a density from
            before an optimiser's step would come back; 0: nothing is kept.

    Raises:
        TypeError: a flow, say, in place of its bijector.
        ValueError: a context is missing or does not fit.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> from cflows import Affine, as_transform
        >>> noise = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> shifted = as_transform(Affine([1.0, 2.0], [1.0, 3.0]))
        >>> TransformedDistribution(noise, [shifted]).log_prob(torch.tensor([1.0, 2.0]))
        tensor(-2.9365)
        >>> shifted.inv(torch.tensor([1.0, 5.0]))
        tensor([0., 1.])

    """
    if not isinstance(bijector, Bijector):
        raise TypeError(
            f"as_transform takes a bijector, got a {type(bijector).__name__}: give its .bijector"
        )
    return BijectorTransform(bijector, context, cache_size)


class BijectorTransform(Transform):
    """x = f(z; context) with an event dimension of one; see ``as_transform``."""

    bijective = True

    def __init__(self, bijector: Bijector, context: Tensor | None, cache_size: int) -> None:
        super().__init__(cache_size=cache_size)
        if context is not None or bijector.context_features:
            bijector.broadcast(torch.zeros(bijector.features), context)
        self.bijector, self.context = bijector, context
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.bijector).__name__}, {self.bijector.features})"

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def domain(self) -> constraints.Constraint:
        """The bijector's."""
        return self.bijector.domain

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def codomain(self) -> constraints.Constraint:
        """The bijector's."""
        return self.bijector.codomain

    def with_cache(self, cache_size: int = 1) -> BijectorTransform:
        """The same map with another size of the cache, 0 or 1."""
        if cache_size == self._cache_size:
            return self
        return BijectorTransform(self.bijector, self.context, cache_size)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx| (*B,) of a pair as ``__call__`` and ``inv`` return it."""
        if self._last is not None and self._last[0] is x and self._last[1] is y:
            return self._last[2]
        return -self.bijector.inverse_and_log_det(y, self.context)[1]

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of f(z): the context's leading dimensions broadcast."""
        if self.context is None:
            return shape
        batch = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            shape[:-1], self.context.shape[:-1]
        )
        return torch.Size((*batch, *shape[-1:]))

    inverse_shape = forward_shape

    def __getstate__(self) -> dict[str, object]:
        # As torch leaves out its own pair: results of a graph cannot be copied.
        return {**super().__getstate__(), "_last": None, "_cached_x_y": (None, None)}  # type: ignore[no-untyped-call]

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.bijector.forward_and_log_det(x, self.context)
        return self._kept(x, y, log_det)[1]

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self.bijector.inverse_and_log_det(y, self.context)
        return self._kept(x, y, -log_det)[0]

    def _kept(self, x: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        if self._cache_size:
            self._last = x, y, log_det
        return x, y
