r"""What a flow makes of its context before bijector and base see it: c' = h((c - loc) / scale).

A conditional flow's networks see its context beside x in each layer. Where the context is long or
strange, such as a time series, one network that summarises it first, trained together with the
flow, serves all layers (the embedding network of simulation-based inference: Greenberg et al. 2019,
"Automatic Posterior Transformation for Likelihood-Free Inference").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflows.core.registry import register

__all__ = ["ContextNetwork"]


@register
class ContextNetwork(nn.Module):
    r"""Standardise a context and summarise it by a perceptron, or by a module of one's own.

    Args:
        context_features: C', numbers of the context that is given.
        features: C, numbers of what bijector and base see: their ``context_features``. By default
            C'.
        hidden: widths of the perceptron, whose activation is silu; none at all leaves the
            standardised context as it is.
        loc: (C',), what is subtracted from the context; 0 by default.
        scale: (C',), what it is divided by, positive; 1 by default.
        network: (N, C') -> (N, C), in the perceptron's place; to be saved it must be registered,
            see ``cflows.register``.

    Raises:
        ValueError: sizes that do not fit, or a scale that is not positive.

    Example:
        >>> import torch
        >>> from cflows import ContextNetwork
        >>> summary = ContextNetwork(100, 4, hidden=(32,))
        >>> summary(torch.zeros(7, 100)).shape
        torch.Size([7, 4])

    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        context_features: int,
        features: int | None = None,
        *,
        hidden: Sequence[int] = (),
        loc: Sequence[float] | Tensor | None = None,
        scale: Sequence[float] | Tensor | None = None,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        features = context_features if features is None else features
        if min(context_features, features, *hidden) < 1:
            raise ValueError(
                "context_features, features and hidden must be at least 1, got "
                f"{context_features}, {features}, {tuple(hidden)}"
            )
        if network is not None and hidden:
            raise ValueError("give hidden, for a perceptron, or a network of your own, not both")
        if network is None and not hidden and features != context_features:
            raise ValueError(
                f"{context_features} numbers become {features} by a network: give hidden"
            )
        self.context_features, self.features = context_features, features
        shape = (context_features,)
        loc = torch.zeros(shape) if loc is None else torch.as_tensor(loc).detach().clone()
        scale = torch.ones(shape) if scale is None else torch.as_tensor(scale).detach().clone()
        if loc.shape != shape or scale.shape != shape or not bool((scale > 0).all()):
            raise ValueError(f"loc and scale must have shape {shape}, the scale positive")
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        self.network = (
            network if network is not None else _perceptron(context_features, features, hidden)
        )

    @classmethod
    def of(
        cls,
        contexts: Tensor,
        features: int | None = None,
        *,
        hidden: Sequence[int] = (),
        network: nn.Module | None = None,
    ) -> ContextNetwork:
        """With the mean and the standard deviation of contexts (N, C'), 1 of a constant column.

        Example:
            >>> import torch
            >>> from cflows import ContextNetwork
            >>> ContextNetwork.of(torch.tensor([[1.0], [3.0]]))(torch.tensor([[3.0]]))
            tensor([[1.]])

        """
        loc, scale = contexts.mean(0), contexts.std(0, correction=0)
        scale = scale.where(scale > 0, 1.0)
        size = contexts.shape[-1]
        return cls(size, features, hidden=hidden, loc=loc, scale=scale, network=network)

    def forward(self, context: Tensor) -> Tensor:
        """(*B, C') -> (*B, C)."""
        flat = ((context - self.loc) / self.scale).reshape(-1, self.context_features)
        summary: Tensor = self.network(flat)
        if summary.shape != (len(flat), self.features):
            raise ValueError(
                f"the context network gives {tuple(summary.shape)}, where it says "
                f"{(len(flat), self.features)}: mend features or the network"
            )
        return summary.reshape(*context.shape[:-1], self.features)


def _perceptron(inputs: int, outputs: int, hidden: Sequence[int]) -> nn.Module:
    """Linear layers with silu between them; of no hidden layer, nothing."""
    if not hidden:
        return nn.Identity()
    layers: list[nn.Module] = []
    for size, following in zip((inputs, *hidden), (*hidden, outputs), strict=True):
        layers += [nn.Linear(size, following), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
