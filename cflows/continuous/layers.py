"""What fields are made of: activations that know their slope, layers that see the time."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cflows.core.pickling import Pickled

__all__ = [
    "ACTIVATIONS",
    "LAYERS",
    "Activation",
    "BlendLayer",
    "ConcatLayer",
    "ConcatSquashLayer",
    "FilmLayer",
    "HyperLayer",
    "IgnoreLayer",
    "SquashLayer",
    "TimeFeatures",
    "TimeLayer",
    "computed_once",
    "matvec",
    "normal_rate",
]

_KEPT = threading.local()


class Activation(nn.Module):
    """An elementwise s(a), and s'(a) at little more than its price."""

    def forward(self, a: Tensor) -> Tensor:
        """s(a)."""
        return self.value_and_slope(a)[0]

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """s(a) and s'(a)."""
        raise TypeError(f"{type(self).__name__} must define value_and_slope")

    def overwrite(self, a: Tensor, slopes: bool) -> Tensor | None:
        """Put s(a) in the place of a, without a graph; s'(a) where slopes are asked for."""
        value, slope = self.value_and_slope(a) if slopes else (self(a), None)
        a.copy_(value)
        return slope


class Tanh(Activation):
    """s = tanh(a), s' = 1 - s²."""

    def forward(self, a: Tensor) -> Tensor:
        """tanh(a)."""
        return torch.tanh(a)

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """tanh(a) and 1 - tanh(a)²."""
        value = torch.tanh(a)
        return value, 1 - value * value

    def overwrite(self, a: Tensor, slopes: bool) -> Tensor | None:
        """In one pass each."""
        a.tanh_()
        return torch.addcmul(a.new_ones(()), a, a, value=-1) if slopes else None


class Softplus(Activation):
    """s = log(1 + exp(a)), s' = σ(a)."""

    def forward(self, a: Tensor) -> Tensor:
        """log(1 + exp(a))."""
        return F.softplus(a)

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """log(1 + exp(a)) and σ(a)."""
        return F.softplus(a), torch.sigmoid(a)


class Elu(Activation):
    """s = a for a > 0, exp(a) - 1 below; s' = min(s, 0) + 1."""

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The exponential linear unit and its slope."""
        value = F.elu(a)
        return value, value.clamp(max=0) + 1


class Silu(Activation):
    """s = a σ(βa) with a learned β, one for a layer (Ramachandran et al. 2017, "swish").

    It is silu(βa) / β, and a field takes β into the affine maps before and after it, see
    ``MLP.at``: what is left here, once for all rows, is silu(a) = a σ(a).
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, a: Tensor) -> Tensor:
        """a σ(a)."""
        return F.silu(a)

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """a σ and σ + a σ (1 - σ)."""
        gate = torch.sigmoid(a)
        value = a * gate
        return value, torch.addcmul(gate, value, 1 - gate)

    def overwrite(self, a: Tensor, slopes: bool) -> Tensor | None:
        """In one pass each: the slope is a σ + σ (1 - a σ), between a σ and one."""
        if not slopes:
            F.silu(a, inplace=True)
            return None
        gate = torch.sigmoid(a)
        return torch.lerp(a.mul_(gate), a.new_ones(()), gate, out=gate)


class Sin(Activation):
    """s = sin(a), s' = cos(a) (Sitzmann et al. 2020)."""

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """sin(a) and cos(a)."""
        return torch.sin(a), torch.cos(a)


ACTIVATIONS: dict[str, type[Activation]] = {
    "tanh": Tanh,
    "softplus": Softplus,
    "elu": Elu,
    "silu": Silu,
    "sin": Sin,
}


class TimeFeatures(nn.Module):
    """φ(t) = (t), or with frequencies K > 0 (t, sin πt, cos πt, ..., sin Kπt, cos Kπt).

    Args:
        frequencies: K.

    """

    angular: Tensor

    def __init__(self, frequencies: int = 0) -> None:
        super().__init__()
        if frequencies < 0:
            raise ValueError(f"time_frequencies must be at least 0, got {frequencies}")
        self.register_buffer("angular", math.pi * torch.arange(1.0, frequencies + 1))
        self.size = 1 + 2 * frequencies

    def extra_repr(self) -> str:
        """K."""
        return f"frequencies={len(self.angular)}"

    def forward(self, t: Tensor) -> Tensor:
        """(*T,) -> (*T, 1 + 2K)."""
        t = t.unsqueeze(-1)
        if self.size == 1:
            return t
        angle = t * self.angular
        return torch.cat([t, torch.sin(angle), torch.cos(angle)], dim=-1)


def normal_rate(t: Tensor) -> Tensor:
    """c(t) = (2t - 1) / (t² + (1 - t)²): E[x₁ - x₀ | x_t] = c(t) x_t for independent N(0, 1).

    x_t = (1 - t) x₀ + t x₁. Its integral over [0, 1] is zero: the flow of c(t) x is the identity.

    Example:
        >>> import torch
        >>> from cflows.continuous.layers import normal_rate
        >>> normal_rate(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-1.,  0.,  1.])

    """
    return (2 * t - 1) / (t.square() + (1 - t).square())


class TimeLayer(Pickled):
    """An affine layer y = gate(t) * (W(t) h) + shift(t), * elementwise.

    Args:
        inputs: size of h.
        outputs: size of y.
        times: size of φ(t), the features of the time that coefficients are made of.

    """

    varies = False  # whether W depends on the time

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, h: Tensor, phi: Tensor) -> Tensor:
        """gate * (W h) + shift, for h (*B, inputs) and φ (*B, times) or (times,)."""
        gate, shift = self.coefficients(phi)
        image = matvec(self.weight_at(phi), h)
        return (image if gate is None else gate * image) + shift

    def weight_at(self, phi: Tensor) -> Tensor:
        """W at φ (*T, times): (outputs, inputs), or (*T, outputs, inputs) where it varies."""
        return self.weight

    def coefficients(self, phi: Tensor) -> tuple[Tensor | None, Tensor]:
        """Gate (None where it is one) and shift at φ (*T, times): both (*T, outputs)."""
        raise TypeError(f"{type(self).__name__} must define coefficients")

    def scaled(self, phi: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and shift, times a scalar."""
        gate, shift = self.coefficients(phi)
        return (scale.expand_as(shift) if gate is None else scale * gate), scale * shift


class IgnoreLayer(TimeLayer):
    """No time at all: y = W h + b."""

    def coefficients(self, phi: Tensor) -> tuple[None, Tensor]:
        """Gate one, shift b."""
        return None, self.bias.expand(*phi.shape[:-1], -1)


class ConcatLayer(TimeLayer):
    """Time as further inputs: y = W h + V φ + b (``concat`` of the FFJORD code)."""

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__(inputs, outputs, times)
        self.time_weight = _uniform(outputs, times)

    def coefficients(self, phi: Tensor) -> tuple[None, Tensor]:
        """Gate one, shift V φ + b."""
        return None, self.bias + phi @ self.time_weight.mT


class SquashLayer(TimeLayer):
    """A gate by time: y = (W h + b) σ(U φ + c) (``squash`` of the FFJORD code)."""

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__(inputs, outputs, times)
        self.gate_weight = _uniform(outputs, times)
        self.gate_bias = _uniform(outputs)

    def coefficients(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Gate σ(U φ + c), shift gate b."""
        gate = torch.sigmoid(self.gate_bias + phi @ self.gate_weight.mT)
        return gate, gate * self.bias


class ConcatSquashLayer(SquashLayer):
    """A gate and a shift by time: y = (W h + b) σ(U φ + c) + V φ (``concatsquash`` of FFJORD)."""

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__(inputs, outputs, times)
        self.time_weight = _uniform(outputs, times)

    def coefficients(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Gate σ(U φ + c), shift gate b + V φ."""
        gate, shift = super().coefficients(phi)
        return gate, shift + phi @ self.time_weight.mT


class FilmLayer(TimeLayer):
    """A linear gate and shift by time: y = (1 + U φ) (W h) + V φ + b (Perez et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__(inputs, outputs, times)
        self.gate_weight = nn.Parameter(torch.zeros(outputs, times))
        self.time_weight = nn.Parameter(torch.zeros(outputs, times))

    def coefficients(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Gate 1 + U φ, shift V φ + b."""
        return 1 + phi @ self.gate_weight.mT, self.bias + phi @ self.time_weight.mT

    def scaled(self, phi: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and shift, times a scalar: linear in φ, which is smaller than they are."""
        phi = scale * phi
        return scale + phi @ self.gate_weight.mT, scale * self.bias + phi @ self.time_weight.mT


class BlendLayer(TimeLayer):
    """Two layers blended by time: y = (1 - t) (W h + b) + t (W' h + b') (``blend`` of FFJORD).

    With more than one time feature, t is the first of them, which is the time itself.
    """

    varies = True

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__(inputs, outputs, times)
        late = nn.Linear(inputs, outputs)
        self.late_weight, self.late_bias = late.weight, late.bias

    def weight_at(self, phi: Tensor) -> Tensor:
        """(1 - t) W + t W'."""
        return torch.lerp(self.weight, self.late_weight, phi[..., 0, None, None])

    def coefficients(self, phi: Tensor) -> tuple[None, Tensor]:
        """Gate one, shift (1 - t) b + t b'."""
        return None, torch.lerp(self.bias, self.late_bias, phi[..., :1])


class HyperLayer(TimeLayer):
    """All coefficients from the time: y = W(φ) h + b(φ), both affine in φ (``hyper`` of FFJORD)."""

    varies = True

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__(inputs, outputs, times)
        bound = 1 / math.sqrt(inputs)
        self.weight_slope = nn.Parameter(
            torch.empty(times, outputs, inputs).uniform_(-bound, bound)
        )
        self.time_weight = _uniform(outputs, times)

    def weight_at(self, phi: Tensor) -> Tensor:
        """W + Σ_k φ_k W'_k."""
        return self.weight + torch.einsum("...k,koi->...oi", phi, self.weight_slope)

    def coefficients(self, phi: Tensor) -> tuple[None, Tensor]:
        """Gate one, shift V φ + b."""
        return None, self.bias + phi @ self.time_weight.mT


LAYERS: dict[str, type[TimeLayer]] = {
    "ignore": IgnoreLayer,
    "concat": ConcatLayer,
    "squash": SquashLayer,
    "concatsquash": ConcatSquashLayer,
    "film": FilmLayer,
    "blend": BlendLayer,
    "hyper": HyperLayer,
}


def matvec(weight: Tensor, h: Tensor) -> Tensor:
    """W h, for one W (out, in) or one a row (*B, out, in), and h (*B, in)."""
    if weight.dim() == 2:
        return h @ weight.mT
    return (weight @ h.unsqueeze(-1)).squeeze(-1)


@contextmanager
def computed_once(field: nn.Module) -> Iterator[None]:
    """Within a block each parametrised weight (spectral norm) of a field is computed once.

    For this thread alone. ``torch.nn.utils.parametrize.cached`` has one store for the process: what
    another thread computed without a graph, or before a step of the optimiser, would be taken.
    """
    for part in field.modules():
        if parametrize.is_parametrized(part):
            for name in getattr(part, "parametrizations"):  # noqa: B009, mypy takes it for a tensor
                # Of this instance alone: torch made the class for it.
                weight = vars(type(part))[name]
                if not isinstance(weight, _KeptWeight):
                    setattr(type(part), name, _KeptWeight(weight.fget, weight.fset))
    outer = getattr(_KEPT, "weights", None)
    _KEPT.weights = {} if outer is None else outer
    try:
        yield
    finally:
        _KEPT.weights = outer


class _KeptWeight(property):
    def __get__(self, module: Any, owner: type | None = None) -> Any:
        # First, since the compiler does not see through what a thread keeps.
        kept = None if torch.compiler.is_compiling() else getattr(_KEPT, "weights", None)
        if kept is None or module is None:
            return super().__get__(module, owner)
        key = id(module), self.fget
        if key not in kept:
            kept[key] = super().__get__(module, owner)
        return kept[key]


def _uniform(*shape: int) -> nn.Parameter:
    """As ``nn.Linear`` draws the weights of inputs so few."""
    bound = 1 / math.sqrt(shape[1]) if len(shape) > 1 else 1.0
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
