"""Vector fields f(t, x, context): the right-hand sides of continuous flows.

A field is any ``nn.Module`` that maps a time t, a scalar, a state x (N, D) and an optional context
(N, C) to a velocity (N, D). ``MLP`` takes a time of each row's own as well, and adds what makes a
solve and its divergence cheap: it can be frozen at all times of a solve at once, and it gives its
Jacobian in factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from cflows.continuous.layers import (
    ACTIVATIONS,
    LAYERS,
    Activation,
    Silu,
    TimeFeatures,
    TimeLayer,
    matvec,
    normal_rate,
)
from cflows.core.arguments import known
from cflows.core.bijector import inner_weights, may_be_read, unwatched
from cflows.core.pickling import Pickled

__all__ = ["CONTEXTS", "MLP", "FrozenMLP", "Linearized", "Local", "pushforward", "recomputed"]

CONTEXTS, RESIDUALS = ("additive", "gate"), ("False", "True", "normal")
CHUNK = 2**24  # numbers that one chunk of tangents may hold


class MLP(Pickled):
    """A multilayer perceptron whose layers see the time (Grathwohl et al. 2019, section 4.1).

    h_0 = x,  h_l = s(layer_l(t, h_{l-1})),  f = layer_L(t, h_{L-1}). The last weights start at
    zero, so that training starts from a field that does not depend on x and a flow that is a
    translation.

    Args:
        features: D, the size of x and of the velocity.
        context_features: C.
        hidden: the widths of the hidden layers, at least one.
        layer: how a layer sees the time, a name in ``LAYERS``: ``"ignore"``, ``"concat"``,
            ``"squash"``, ``"concatsquash"``, ``"film"``, ``"blend"`` or ``"hyper"``.
        activation: a name in ``ACTIVATIONS``: ``"tanh"``, ``"softplus"``, ``"elu"``, ``"silu"``
            (with a learned slope) or ``"sin"``.
        time_frequencies: K; the layers see t and sin kπt, cos kπt for k = 1..K.
        context_mode: ``"additive"``, U c into the first layer; ``"gate"``, each hidden layer
            becomes (1 + G c) layer(t, h) + U c.
        residual: True, where f is the perceptron less x; ``"normal"``, where it is the perceptron
            plus ``layers.normal_rate(t)`` x: nothing is left to learn where the data are normal.
        spectral: whether the weights are divided by their largest singular value, estimated by
            power iteration (Miyato et al. 2018).

    Raises:
        ValueError: a name is not known, or a width is not positive.

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
        time_frequencies: int = 0,
        context_mode: str = "additive",
        residual: bool | str = False,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        known("layer", layer, LAYERS)
        known("activation", activation, ACTIVATIONS)
        known("context_mode", context_mode, CONTEXTS)
        known("residual", str(residual), RESIDUALS)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must list at least one width of at least 1, got {hidden}")
        self.features = features
        self.context_features = context_features
        self.hidden = tuple(hidden)
        self.residual = residual
        self.time = TimeFeatures(time_frequencies)
        widths = [features, *hidden, features]
        layers = [LAYERS[layer](a, b, self.time.size) for a, b in pairwise(widths)]
        for part in layers if spectral else ():
            spectral_norm(part)
        for name in () if spectral else ("weight", "late_weight", "weight_slope"):
            if hasattr(layers[-1], name):
                nn.init.zeros_(getattr(layers[-1], name))
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(ACTIVATIONS[activation]() for _ in hidden)
        gated = widths[1:-1] if context_mode == "gate" else []
        self.context_shifts = _linears(context_features, gated or widths[1:2])
        self.context_gates = _linears(context_features, gated)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(t, x, context): t a scalar or (*B,), x (*B, D), context (*B, C) -> (*B, D)."""
        return self.frozen(t, context)(x) if self.is_readable else self._called(t, x, context)

    def hidden_weights(self) -> list[Tensor]:
        """The matrices between two hidden layers, for an optimiser that treats these apart."""
        return inner_weights(self.layers)

    @property
    def is_readable(self) -> bool:
        """Whether the layers' weights say all that a call of them would do, see ``may_be_read``."""
        return may_be_read(self.layers, TimeLayer) and unwatched(self.activations)

    def _called(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """The same, layer by layer, hooks and all."""
        h, phi, last = x, self.time(t), len(self.activations)
        for index, layer in enumerate(self.layers):
            h = layer(h, phi)
            if index < len(self.context_gates):
                h = h * (1 + self.context_gates[index](context))
            if index < len(self.context_shifts):
                h = h + self.context_shifts[index](context)
            if index < last:
                activation = self.activations[index]
                slope = activation.beta if isinstance(activation, Silu) else None
                h = activation(h) if slope is None else activation(slope * h) / slope
        return h - self._taken(t.unsqueeze(0))[0] * x if self.residual else h

    def _taken(self, times: Tensor) -> Tensor:
        """r in f = perceptron - r x, (S,), or (S, *B, 1) for times (S, *B)."""
        taken = torch.ones_like(times) if self.residual is True else -normal_rate(times)
        return taken.unsqueeze(-1) if times.dim() > 1 else taken

    def frozen(self, t: Tensor, context: Tensor | None = None) -> FrozenMLP:
        """The field as a function of x alone, at t, a scalar or (*B,)."""
        (frozen,) = self.at(t.unsqueeze(0), context)
        return frozen

    def at(
        self, times: Tensor, context: Tensor | None = None, scale: Tensor | None = None
    ) -> Iterator[FrozenMLP]:
        """As ``frozen``, at several times: what the stages of a solve need, one after the other.

        Gates and shifts of all times are computed in one go, and what the context adds once.

        Args:
            times: (S,), or (S, *B).
            context: (*B, C) or None.
            scale: a factor of the velocity, such as dt/ds.

        Returns:
            S functions of x alone.

        """
        layers = [layer for layer in self.layers if isinstance(layer, TimeLayer)]
        activations = [part for part in self.activations if isinstance(part, Activation)]
        phi = self.time(times)
        # silu(βa) / β: β goes into the layer before, 1 / β into the weights of the one after.
        slopes = [part.beta if isinstance(part, Silu) else None for part in activations]
        coefficients = [
            layer.coefficients(phi) if factor is None else layer.scaled(phi, factor)
            for layer, factor in zip(layers, [*slopes, scale], strict=True)
        ]
        # Taken apart at once: the gradient of one index is zeros of the whole size around it.
        gates = [[None] * len(times) if g is None else g.unbind() for g, _ in coefficients]
        shifts = [shift.unbind() for _, shift in coefficients]
        added = [
            part(context) if slope is None else slope * part(context)
            for part, slope in zip(self.context_shifts, slopes, strict=False)
        ]
        factors = [1 + part(context) for part in self.context_gates]
        behind = [None, *slopes]
        fixed = [
            None if layer.varies else _divided(layer.weight, slope)
            for layer, slope in zip(layers, behind, strict=True)
        ]
        taken: Sequence[Tensor | None] = [None] * len(times)
        if self.residual:
            taken = (self._taken(times) * (1 if scale is None else scale)).unbind()
        for stage in range(len(times)):
            weights = [
                _divided(layer.weight_at(phi[stage]), slope) if weight is None else weight
                for layer, weight, slope in zip(layers, fixed, behind, strict=True)
            ]
            gate, shift = [part[stage] for part in gates], [part[stage] for part in shifts]
            for index, factor in enumerate(factors):
                g = gate[index]
                gate[index] = factor if g is None else g * factor
                shift[index] = shift[index] * factor
            for index, term in enumerate(added):
                shift[index] = shift[index] + term
            yield FrozenMLP(weights, gate, shift, activations, taken[stage])


@dataclass(frozen=True)
class FrozenMLP:
    """An ``MLP`` at one time and context: a_l = gate_l (W_l h_{l-1}) + shift_l, h_l = s_l(a_l).

    Attributes:
        weights: W_l, (H_l, H_{l-1}), or (*B, H_l, H_{l-1}) where they differ by row.
        gates: None for one, (H_l,) where all rows share it, else (*B, H_l).
        shifts: (H_l,) or (*B, H_l).
        activations: s_l of the hidden layers.
        residual: r in f = a_L - r x, a scalar or (*B, 1), or None for zero.

    """

    weights: list[Tensor]
    gates: list[Tensor | None]
    shifts: list[Tensor]
    activations: list[Activation]
    residual: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """f(x), (*B, D) -> (*B, D)."""
        h = x
        for index, activation in enumerate(self.activations):
            h = activation(self._layer(index, h))
        return self._out(x, h)

    def linearize(self, x: Tensor) -> Linearized:
        """The value with its Jacobian in factors."""
        diagonals: list[Tensor | None] = []
        h = x
        for index, activation in enumerate(self.activations):
            h, slope = activation.value_and_slope(self._layer(index, h))
            gate = self.gates[index]
            diagonals.append(slope if gate is None else slope * gate)
        value = self._out(x, h)
        gate, weights = self.gates[-1], list(self.weights)
        if gate is not None and gate.dim() == 1 and weights[-1].dim() == 2:
            weights[-1], gate = gate.unsqueeze(-1) * weights[-1], None
        return Linearized(value, weights, [*diagonals, gate], self.residual)

    def _layer(self, index: int, h: Tensor) -> Tensor:
        """gate * (W h) + shift, in as few kernels as it takes."""
        weight, gate, shift = self.weights[index], self.gates[index], self.shifts[index]
        if gate is not None and gate.dim() > 1:
            # The backward of addcmul first multiplies both factors by its value, which is one.
            return shift + gate * matvec(weight, h)
        if gate is not None:
            return torch.addcmul(shift, matvec(weight, h), gate)
        if shift.dim() == 1 and weight.dim() == 2:
            return F.linear(h, weight, shift)
        return matvec(weight, h) + shift

    def _out(self, x: Tensor, h: Tensor) -> Tensor:
        value = self._layer(len(self.weights) - 1, h)
        return value if self.residual is None else value - self.residual * x


class Local:
    """A field near its states: its value f(x), (N, D), and what its Jacobian does."""

    value: Tensor

    def products(self, vectors: Tensor) -> Tensor:
        """J v, or vᵀ J where the field is only differentiated backwards: (k, N, D) -> the same."""
        raise TypeError

    def diagonal(self) -> Tensor:
        """The diagonal of J, (N, D)."""
        raise TypeError

    def exact_trace(self) -> Tensor:
        """tr J, (N,)."""
        return self.diagonal().sum(-1)

    def trace(self, probes: Tensor | None) -> Tensor:
        """tr J, exactly or as Σ_k v_kᵀ J v_k: (N,)."""
        if probes is None:
            return self.exact_trace()
        return (probes * self.products(probes)).sum((0, -1))

    def finished(self, value: Tensor) -> Tensor:
        """The value without the graph that only served to differentiate."""
        return value


@dataclass(frozen=True)
class Linearized(Local):
    """f(x) and ∂f/∂x = diag(d_L) W_L ... diag(d_1) W_1 - r I.

    Attributes:
        value: f(x), (*B, D).
        weights: W_l.
        diagonals: d_l, (*B, H_l); None for ones.
        residual: r, or None for zero.

    """

    value: Tensor
    weights: list[Tensor]
    diagonals: list[Tensor | None]
    residual: Tensor | None = None

    def products(self, vectors: Tensor) -> Tensor:
        """J v for v (k, *B, D)."""
        image = pushforward(self.weights, self.diagonals, vectors)
        return image if self.residual is None else image - self.residual * vectors

    def diagonal(self) -> Tensor:
        """The diagonal of J, by D tangents."""
        diagonal = _diagonal(self.weights, self.diagonals, self.value.shape[0])
        return diagonal if self.residual is None else diagonal - self.residual

    def exact_trace(self) -> Tensor:
        """tr J in closed form, or by as many tangents as the narrowest layer has units."""
        weights, (first, *others) = self.weights, self.diagonals
        shared = self.diagonals[-1] is None and all(weight.dim() == 2 for weight in weights)
        if shared and len(weights) == 2 and first is not None:
            inner, outer = weights
            trace = first @ (inner * outer.mT).sum(-1)
        elif shared and len(weights) == 3 and first is not None and others[0] is not None:
            inner, middle, outer = weights
            trace = ((others[0] @ (middle * (inner @ outer).mT)) * first).sum(-1)
        else:
            # The factors turned round, as a trace allows, to begin and end at the narrowest layer.
            widths = [weight.shape[-1] for weight in weights]
            k = widths.index(min(widths))
            turned = weights[k:] + weights[:k], self.diagonals[k:] + self.diagonals[:k]
            trace = _diagonal(*turned, self.value.shape[0]).sum(-1)
        if self.residual is None:
            return trace
        return trace - self.value.shape[-1] * self.residual.squeeze(-1)


def pushforward(weights: list[Tensor], diagonals: list[Tensor | None], tangent: Tensor) -> Tensor:
    """diag(d_L) W_L ... diag(d_1) W_1 v for v (k, *B, D)."""
    for weight, diagonal in zip(weights, diagonals, strict=True):
        tangent = matvec(weight, tangent)
        if diagonal is not None:
            tangent = tangent * diagonal
    return tangent


def recomputed(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """The function's value, computed again on the way back."""
    value: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return value


def diagonal_of(
    products: Callable[[Tensor], Tensor],
    like: Tensor,
    size: int,
    rows: int | torch.SymInt,
    widest: int,
) -> Tensor:
    """Diagonal of a matrix a row, (N, size), by its products with the unit vectors, in chunks.

    ``like`` has their dtype and device; a product takes up ``widest`` numbers a row.
    """
    basis = torch.eye(size, dtype=like.dtype, device=like.device).unsqueeze(1)
    # An exported program serves any number of rows.
    whole = isinstance(rows, torch.SymInt)
    step = size if whole else max(1, CHUNK // max(1, rows * widest))

    def chunk(first: int) -> Tensor:
        # One row of tangents for all states: (k, 1, size), and its image is (k, N, size).
        image = products(basis[first : first + step])
        return image[..., first : first + step].diagonal(dim1=0, dim2=2)

    if step >= size:
        return chunk(0)
    parts = range(0, size, step)
    recompute = torch.is_grad_enabled()
    return torch.cat([recomputed(chunk, k) if recompute else chunk(k) for k in parts], dim=-1)


def _diagonal(
    weights: list[Tensor], diagonals: list[Tensor | None], rows: int | torch.SymInt
) -> Tensor:
    """Diagonal of diag(d_L) W_L ... diag(d_1) W_1, (N, size)."""
    widest = max(weight.shape[-2] for weight in weights)
    products = partial(pushforward, weights, diagonals)
    return diagonal_of(products, weights[0], weights[0].shape[-1], rows, widest)


def _divided(weight: Tensor, slope: Tensor | None) -> Tensor:
    return weight if slope is None else weight / slope


def _linears(inputs: int, widths: Sequence[int]) -> nn.ModuleList:
    """Maps of the context; none where there is no context."""
    return nn.ModuleList(nn.Linear(inputs, width, bias=False) for width in widths if inputs)
