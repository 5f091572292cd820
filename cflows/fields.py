"""Vector fields f(t, x, context): the right-hand sides of continuous flows.

A field is any ``nn.Module`` that maps a time t, a scalar or (*B,), a state x (*B, D) and an optional
context (*B, C) to a velocity (*B, D). ``MLP`` adds what makes its divergence cheap: it can say what
its Jacobian does to a vector, and its layers are open to the closed form of the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .storage import register

__all__ = ["ACTIVATIONS", "LAYERS", "MLP", "ConcatLayer", "ConcatSquashLayer", "TimeLayer"]


def _tanh(a: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(a)
    return value, 1 - value * value


def _softplus(a: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(a), torch.sigmoid(a)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]]
ACTIVATIONS = {
    "tanh": (torch.tanh, _tanh),
    "softplus": (F.softplus, _softplus),
}
"""Name -> (s, a -> (s(a), s'(a)))."""


class TimeLayer(nn.Module):
    """An affine layer whose coefficients depend on time: y = gate(t) * (W h) + shift(t).

    Args:
        inputs: size of h.
        outputs: size of y.

    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight, self.bias = linear.weight, linear.bias

    def coefficients(self, t: Tensor) -> tuple[Tensor | None, Tensor]:
        """The gate (None where it is one) and the shift at t, a scalar or (*B,): (outputs,) or (*B, outputs)."""  # noqa: E501
        raise TypeError(f"{type(self).__name__} must define coefficients")

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """Y at time t."""
        gate, shift = self.coefficients(t)
        return affine(h, self.weight, gate, shift)


class ConcatLayer(TimeLayer):
    """Time as one more input: y = W h + w t + b (``concat`` of the FFJORD code)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.time_weight = nn.Parameter(_uniform(outputs))

    def coefficients(self, t: Tensor) -> tuple[None, Tensor]:
        """Gate one, shift w t + b."""
        return None, self.bias + t.unsqueeze(-1) * self.time_weight


class ConcatSquashLayer(TimeLayer):
    """A gate and a shift by time: y = (W h + b) σ(u t + c) + w t (``concatsquash`` of FFJORD)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gate_weight = nn.Parameter(_uniform(outputs))
        self.gate_bias = nn.Parameter(_uniform(outputs))
        self.time_weight = nn.Parameter(_uniform(outputs))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Gate σ(u t + c), shift gate b + w t."""
        t = t.unsqueeze(-1)
        gate = torch.sigmoid(self.gate_bias + t * self.gate_weight)
        return gate, torch.addcmul(t * self.time_weight, gate, self.bias)


LAYERS: dict[str, type[TimeLayer]] = {"concat": ConcatLayer, "concatsquash": ConcatSquashLayer}


@register
class MLP(nn.Module):
    """A multilayer perceptron whose layers see the time (Grathwohl et al. 2019, section 4.1).

    h_0 = x,  h_l = s(layer_l(t, h_{l-1})),  f = layer_L(t, h_{L-1}); the context enters additively,
    U c, before the first activation. The last weights start at zero, so that training starts from
    a field that does not depend on x and a flow that is a translation.

    Args:
        features: D, the size of x and of the velocity.
        context_features: C.
        hidden: the widths of the hidden layers, at least one.
        layer: ``"concat"`` or ``"concatsquash"``.
        activation: ``"tanh"`` or ``"softplus"``.

    Example:
        >>> import torch
        >>> from cflows import MLP
        >>> field = MLP(2, hidden=(16, 16))
        >>> field(torch.tensor(0.5), torch.zeros(7, 2)).shape
        torch.Size([7, 2])

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64, 64),
        layer: str = "concatsquash",
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise ValueError(f"layer must be one of {', '.join(LAYERS)}; got {layer!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
            )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must list at least one width of at least 1, got {hidden}")
        self.features = features
        self.context_features = context_features
        widths = [features, *hidden, features]
        self.layers = nn.ModuleList(
            LAYERS[layer](a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        nn.init.zeros_(self.layers[-1].weight)
        self.context_weight = (
            nn.Linear(context_features, widths[1], bias=False).weight if context_features else None
        )
        self.activation = activation

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """F(t, x, context): t a scalar or (*B,), x (*B, D), context (*B, C) -> (*B, D)."""
        activate, _ = ACTIVATIONS[self.activation]
        h = x
        for index, (weight, gate, shift) in enumerate(self.affine_maps(t, context)):
            h = affine(activate(h) if index else h, weight, gate, shift)
        return h

    def affine_maps(
        self, t: Tensor, context: Tensor | None
    ) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """Each layer's weight, gate (None for one) and shift, the context's part included."""
        maps = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, TimeLayer)
            gate, shift = layer.coefficients(t)
            if index == 0 and self.context_weight is not None:
                assert context is not None
                shift = shift + context @ self.context_weight.mT
            maps.append((layer.weight, gate, shift))
        return maps

    def linearize(
        self, t: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """The value with the factors of its Jacobian, J = W'_L diag(d_{L-1}) W_{L-1} ... diag(d_1) W_1.

        Returns:
            f (*B, D); the diagonals d_l = gate_l s'(a_l), (*B, H_l); the weights W_l, of which the
            last carries the outer gate as W' = diag(gate_L) W_L where that gate is shared by all
            rows. Where it is not, d holds one more entry, the gate of each row.

        """  # noqa: E501
        _, activate_with_slope = ACTIVATIONS[self.activation]
        maps = self.affine_maps(t, context)
        diagonals, weights, h = [], [], x
        for weight, gate, shift in maps[:-1]:
            h, slope = activate_with_slope(affine(h, weight, gate, shift))
            diagonals.append(slope if gate is None else slope * gate)
            weights.append(weight)
        weight, gate, shift = maps[-1]
        value = affine(h, weight, gate, shift)
        if gate is not None and gate.dim() > 1:
            diagonals.append(gate)
        elif gate is not None:
            weight = gate.unsqueeze(-1) * weight
        return value, diagonals, [*weights, weight]


def affine(h: Tensor, weight: Tensor, gate: Tensor | None, shift: Tensor) -> Tensor:
    """Gate * (W h) + shift, as few kernels as it takes."""
    if gate is not None:
        return torch.addcmul(shift, h @ weight.mT, gate)
    if shift.dim() == 1:
        return F.linear(h, weight, shift)
    return h @ weight.mT + shift


def _uniform(size: int) -> Tensor:
    """As ``nn.Linear`` draws the weights of one input."""
    return torch.empty(size).uniform_(-1, 1)
