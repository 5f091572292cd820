r"""MADE: a perceptron whose outputs see only the inputs before them.

Germain, Gregor, Murray and Larochelle 2015, "MADE: Masked Autoencoder for Distribution Estimation".

Every unit has a degree. Input x_i has the place of i in the order, 1 to D; a hidden unit of degree
m depends on the inputs of degree at most m; an output of degree d depends on hidden units of degree
less than d. So the parameters of p(x_i | x_before) depend on the inputs before i and on no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows import register

__all__ = ["ACTIVATIONS", "MADE", "ORDERS", "check_activation", "input_degrees"]

ORDERS = ("sequential", "reversed", "random")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "silu": F.silu,
}


def check_activation(name: str) -> None:
    """Raise a ValueError unless the name is one of ``ACTIVATIONS``."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")


def input_degrees(features: int, order: str) -> Tensor:
    """Degrees 1..D of the inputs, (D,): ``degrees[i]`` is the place of x_i in the order.

    Args:
        features: D.
        order: ``"sequential"``, ``"reversed"``, or ``"random"`` from torch's generator.

    """
    if order == "sequential":
        return torch.arange(1, features + 1)
    if order == "reversed":
        return torch.arange(features, 0, -1)
    if order == "random":
        return torch.randperm(features) + 1
    raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")


@register
class MADE(nn.Module):
    """A masked perceptron with ``outputs`` numbers for each of the D inputs.

    Hidden degrees are spread evenly over 1..D-1, sorted. With a context (or for D = 1) they start
    at 0: units that see the context alone, without which p(x_1 | context) would not depend on it.

    Args:
        features: D.
        context_features: C; the context enters the first layer and is seen by every unit.
        hidden: widths of the hidden layers, at least one.
        outputs: numbers per input, such as 2 for a shift and a log-scale.
        order: of the inputs, see ``input_degrees``.
        activation: a name in ``ACTIVATIONS``.

    Attributes:
        degrees: the inputs' degrees, (D,).
        evaluations_made: passes since the module was built.

    Example:
        >>> import torch
        >>> from baselines import MADE
        >>> made = MADE(3, hidden=(16,), outputs=2)
        >>> [part.shape for part in made(torch.zeros(5, 3))]
        [torch.Size([5, 3]), torch.Size([5, 3])]

    """

    degrees: Tensor

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (128, 128),
        outputs: int = 2,
        order: str = "sequential",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        check_activation(activation)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must list at least one width of at least 1, got {hidden}")
        self.features = features
        self.context_features = context_features
        self.outputs = outputs
        self.activation = activation
        self.evaluations_made = 0
        self.register_buffer("degrees", input_degrees(features, order))
        layers, before = [], self.degrees
        for width in hidden:
            after = _hidden_degrees(width, features, from_zero=context_features > 0)
            layers.append(MaskedLinear(after[:, None] >= before))
            before = after
        layers.append(MaskedLinear(self.degrees.repeat(outputs)[:, None] > before))
        self.layers = nn.ModuleList(layers)
        # Zero last weights: every flow of these starts at the identity.
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.context_weight = (
            nn.Linear(context_features, hidden[0], bias=False).weight if context_features else None
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """(*B, D), (*B, C) -> ``outputs`` tensors (*B, D), entry i a function of those before i."""
        self.evaluations_made += 1
        activate = ACTIVATIONS[self.activation]
        h: Tensor = self.layers[0](x)
        if self.context_weight is not None:
            assert context is not None
            h = h + context @ self.context_weight.mT
        for layer in self.layers[1:]:
            h = layer(activate(h))
        return torch.chunk(h, self.outputs, dim=-1)


class MaskedLinear(nn.Module):
    """y = (M ∘ W) x + b with a fixed mask M (outputs, inputs) of ones and zeros."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        linear = nn.Linear(mask.shape[1], mask.shape[0])
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask.to(linear.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(*B, inputs) -> (*B, outputs)."""
        return F.linear(x, self.weight * self.mask, self.bias)


def _hidden_degrees(width: int, features: int, *, from_zero: bool) -> Tensor:
    """Sorted degrees that cover their range evenly; none is left out where the width allows it."""
    least = 0 if from_zero or features == 1 else 1
    return least + torch.arange(width) * (features - least) // width
