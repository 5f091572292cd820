"""Vector fields f(t, x, context): the right-hand sides of continuous flows.

A field is any ``nn.Module`` that maps a time t, a scalar or (*B,), a state x (*B, D) and an
optional context (*B, C) to a velocity (*B, D). ``MLP`` adds what makes a solve and its divergence
cheap: it can be frozen at all times of a solve at once, and it gives its Jacobian in factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .storage import register

__all__ = [
    "ACTIVATIONS",
    "LAYERS",
    "MLP",
    "ConcatLayer",
    "ConcatSquashLayer",
    "FrozenMLP",
    "TimeLayer",
]


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
        """Gate (None where it is one) and shift at times t (*T,): both (*T, outputs)."""
        raise TypeError(f"{type(self).__name__} must define coefficients")

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """The layer at time t, (*B, inputs) -> (*B, outputs)."""
        gate, shift = self.coefficients(t)
        return _affine(h, self.weight, gate, shift)


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
        layers = [LAYERS[layer](a, b) for a, b in pairwise(widths)]
        nn.init.zeros_(layers[-1].weight)
        self.layers = nn.ModuleList(layers)
        self.context_weight = (
            nn.Linear(context_features, widths[1], bias=False).weight if context_features else None
        )
        self.activation = activation

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(t, x, context): t a scalar or (*B,), x (*B, D), context (*B, C) -> (*B, D)."""
        return self.frozen(t, context)(x)

    def frozen(self, t: Tensor, context: Tensor | None = None) -> FrozenMLP:
        """The field as a function of x alone, at t, a scalar or (*B,)."""
        coefficients = [layer.coefficients(t) for layer in self._layers()]
        return self._frozen(coefficients, self._context_shift(context))

    def at(
        self, times: Tensor, context: Tensor | None = None, scale: Tensor | None = None
    ) -> list[FrozenMLP]:
        """As ``frozen``, at several times at once: what the stages of a solve need.

        Args:
            times: (S,).
            context: (*B, C) or None; what it adds is computed once for all times.
            scale: a factor of the velocity, such as dt/ds.

        Returns:
            S functions of x alone.

        """
        per_layer = []
        for layer in self._layers():
            gates, shifts = layer.coefficients(times)
            if layer is self.layers[-1] and scale is not None:
                gates = (
                    scale.expand(len(times), len(layer.bias)) if gates is None else scale * gates
                )
                shifts = scale * shifts
            none = [None] * len(times)
            per_layer.append(list(zip(none if gates is None else gates, shifts, strict=True)))
        context_shift = self._context_shift(context)
        return [self._frozen(list(stage), context_shift) for stage in zip(*per_layer, strict=True)]

    def _layers(self) -> list[TimeLayer]:
        return [layer for layer in self.layers if isinstance(layer, TimeLayer)]

    def _context_shift(self, context: Tensor | None) -> Tensor | None:
        if self.context_weight is None:
            return None
        assert context is not None
        return context @ self.context_weight.mT

    def _frozen(
        self, coefficients: list[tuple[Tensor | None, Tensor]], context_shift: Tensor | None
    ) -> FrozenMLP:
        gates, shifts = (list(values) for values in zip(*coefficients, strict=True))
        if context_shift is not None:
            shifts[0] = shifts[0] + context_shift
        weights = [layer.weight for layer in self._layers()]
        return FrozenMLP(weights, gates, shifts, self.activation)


@dataclass(frozen=True)
class FrozenMLP:
    """An ``MLP`` at one time and context: a_l = gate_l (W_l h_{l-1}) + shift_l, h_l = s(a_l).

    Attributes:
        weights: W_l, (H_l, H_{l-1}).
        gates: None for one, (H_l,) where all rows share it, else (*B, H_l).
        shifts: (H_l,) or (*B, H_l).
        activation: the name of s.

    """

    weights: list[Tensor]
    gates: list[Tensor | None]
    shifts: list[Tensor]
    activation: str

    def __call__(self, x: Tensor) -> Tensor:
        """f(x), (*B, D) -> (*B, D)."""
        activate, _ = ACTIVATIONS[self.activation]
        h = x
        for index, weight in enumerate(self.weights):
            h = _affine(activate(h) if index else h, weight, self.gates[index], self.shifts[index])
        return h

    def linearize(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The value with the factors of its Jacobian, J = W_L diag(d_{L-1}) ... diag(d_1) W_1.

        Returns:
            f (*B, D); the diagonals d_l = gate_l s'(a_l), (*B, H_l); the weights, of which the last
            carries the outer gate where all rows share it. Where they do not, the diagonals have
            one more entry, the gate of each row.

        """
        _, activate_with_slope = ACTIVATIONS[self.activation]
        diagonals, h = [], x
        for weight, gate, shift in zip(
            self.weights[:-1], self.gates[:-1], self.shifts[:-1], strict=True
        ):
            h, slope = activate_with_slope(_affine(h, weight, gate, shift))
            diagonals.append(slope if gate is None else slope * gate)
        weight, gate = self.weights[-1], self.gates[-1]
        value = _affine(h, weight, gate, self.shifts[-1])
        if gate is not None and gate.dim() > 1:
            diagonals.append(gate)
        elif gate is not None:
            weight = gate.unsqueeze(-1) * weight
        return value, diagonals, [*self.weights[:-1], weight]


def _affine(h: Tensor, weight: Tensor, gate: Tensor | None, shift: Tensor) -> Tensor:
    """gate * (W h) + shift, in as few kernels as it takes."""
    if gate is not None:
        return torch.addcmul(shift, h @ weight.mT, gate)
    if shift.dim() == 1:
        return F.linear(h, weight, shift)
    return h @ weight.mT + shift


def _uniform(size: int) -> Tensor:
    """As ``nn.Linear`` draws the weights of one input."""
    return torch.empty(size).uniform_(-1, 1)
