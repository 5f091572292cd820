"""A deep vector field of residual blocks, with tangents written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows.continuous.fields import Local, diagonal_of
from cflows.continuous.layers import Silu, TimeFeatures, normal_rate
from cflows.core.bijector import may_be_read, unwatched
from cflows.core.pickling import Pickled

__all__ = ["FrozenResidual", "ResidualField", "ResidualLocal"]


class ResidualField(Pickled):
    r"""Residual blocks that the time modulates.

        h_0 = W_in x + b_in + U c
        h_k = h_{k-1} + B_k s((1 + a_k(t)) ∗ A_k s(h_{k-1}) + b_k(t)),   k = 1..K
        f = W_out s(h_K) + b_out + c(t) x

    with s = silu, and a_k and b_k linear in the time's Fourier features (∗ elementwise; blocks as
    of He et al. 2016, "Identity Mappings in Deep Residual Networks", with the modulation of Perez
    et al. 2018, "FiLM"). W_out and b_out start at zero, and c(t) is ``layers.normal_rate``: the
    velocity of flow matching from a standard normal to itself, whose flow over [0, 1] is the
    identity. What is left to learn vanishes where the data are normal.

    Deeper than the two layers of ``MLP`` a field bends its paths more finely for the same width.
    Its trace takes D tangents, in chunks of bounded memory, where two layers have a closed form: a
    field for few columns, or for flow matching, which needs no trace in training.

    Args:
        features: D.
        context_features: C.
        width: H, of every layer.
        blocks: K.
        time_frequencies: the blocks see t and sin kπt, cos kπt for k up to this.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> import torch
        >>> from cflows import ODEBijector, ResidualField
        >>> flow = ODEBijector(ResidualField(2, width=16, blocks=2))
        >>> flow.inverse(torch.ones(1, 2)).round(decimals=2).tolist()
        [[1.0, 1.0]]

    """

    time_by_row = True
    """Times may be (N,), one of each row's own."""

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        width: int = 128,
        blocks: int = 2,
        time_frequencies: int = 8,
    ) -> None:
        super().__init__()
        if min(features, width, blocks) < 1:
            raise ValueError(
                f"features, width and blocks must be at least 1, got {features}, {width}, {blocks}"
            )
        self.features = features
        self.context_features = context_features
        self.time = TimeFeatures(time_frequencies)
        self.entrance = nn.Linear(features, width)
        self.context_shift = (
            nn.Linear(context_features, width, bias=False) if context_features else None
        )
        self.inner = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(blocks))
        self.modulation = nn.Linear(self.time.size, 2 * blocks * width)
        self.exit = nn.Linear(width, features)
        for layer in (self.modulation, self.exit):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(t, x, context): t a scalar or (*B,), x (*B, D), context (*B, C) -> (*B, D)."""
        rate = normal_rate(t).unsqueeze(-1)
        frozen = FrozenResidual(self, self._added(context), *self._modulated(t), rate, None)
        return frozen(x)

    def hidden_weights(self) -> list[Tensor]:
        """The matrices A_k and B_k, for an optimiser that treats these apart."""
        return [*self.inner.parameters(), *self.outer.parameters()]

    @property
    def is_readable(self) -> bool:
        """Whether the layers' weights say all that a call of them would do, see ``shortcuts``."""
        linear = [
            part for part in self.modules() if part not in (self, self.time, self.inner, self.outer)
        ]
        return may_be_read(linear, nn.Linear) and unwatched([self])

    def at(
        self, times: Tensor, context: Tensor | None = None, scale: Tensor | None = None
    ) -> Iterator[FrozenResidual]:
        """The field at several times, each a function of x alone: the stages of a solve.

        Args:
            times: (S,), or (S, *B).
            context: (*B, C) or None.
            scale: a factor of the velocity, such as dt/ds.

        """
        added = self._added(context)
        gates, shifts = ([part.unbind() for part in parts] for parts in self._modulated(times))
        for stage, rate in enumerate(normal_rate(times).unsqueeze(-1)):
            yield FrozenResidual(
                self,
                added,
                [gate[stage] for gate in gates],
                [shift[stage] for shift in shifts],
                rate,
                scale,
            )

    def _added(self, context: Tensor | None) -> Tensor | None:
        if self.context_shift is None:
            return None
        added: Tensor = self.context_shift(context)
        return added

    def _modulated(self, times: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """1 + a_k(t) and b_k(t) of the blocks, (*T, H) each."""
        blocks = len(self.inner)
        parts = self.modulation(self.time(times)).chunk(2 * blocks, dim=-1)
        return [1 + gate for gate in parts[:blocks]], list(parts[blocks:])


@dataclass(frozen=True)
class FrozenResidual:
    """A ``ResidualField`` at one time and context.

    Attributes:
        field: whose layers are called.
        added: U c, (*B, H), or None.
        gates: 1 + a_k(t), (H,) or (*B, H).
        shifts: b_k(t), likewise.
        rate: c(t), (1,) or (*B, 1).
        scale: a factor of the velocity, or None.

    """

    field: ResidualField
    added: Tensor | None
    gates: list[Tensor]
    shifts: list[Tensor]
    rate: Tensor
    scale: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """f(x), (*B, D) -> (*B, D)."""
        h = self._entered(x)
        for inner, outer, gate, shift in self.blocks():
            h = h + outer(F.silu(torch.addcmul(shift, inner(F.silu(h)), gate)))
        return self._left(F.silu(h), x)

    def linearize(self, x: Tensor) -> ResidualLocal:
        """The value, with the slopes that tangents need."""
        h, slopes = self._entered(x), []
        for inner, outer, gate, shift in self.blocks():
            first, before = _SILU.value_and_slope(h)
            second, within = _SILU.value_and_slope(torch.addcmul(shift, inner(first), gate))
            h = h + outer(second)
            slopes.append((before, within * gate))
        last, behind = _SILU.value_and_slope(h)
        return ResidualLocal(self._left(last, x), self, slopes, behind)

    def pushed(
        self, tangent: Tensor, slopes: list[tuple[Tensor, Tensor]], behind: Tensor
    ) -> Tensor:
        """J v for v (k, *B, D)."""
        field = self.field
        h = F.linear(tangent, field.entrance.weight)
        for (inner, outer, *_), (before, within) in zip(self.blocks(), slopes, strict=True):
            h = h + F.linear(within * F.linear(before * h, inner.weight), outer.weight)
        return self._scaled(F.linear(behind * h, field.exit.weight) + self.rate * tangent)

    def _entered(self, x: Tensor) -> Tensor:
        h: Tensor = self.field.entrance(x)
        return h if self.added is None else h + self.added

    def _left(self, h: Tensor, x: Tensor) -> Tensor:
        return self._scaled(torch.addcmul(self.field.exit(h), self.rate, x))

    def _scaled(self, value: Tensor) -> Tensor:
        return value if self.scale is None else self.scale * value

    def blocks(self) -> Iterator[tuple[nn.Linear, nn.Linear, Tensor, Tensor]]:
        """A_k, B_k, gate and shift of each block."""
        inner, outer = (
            [layer for layer in layers if isinstance(layer, nn.Linear)]
            for layers in (self.field.inner, self.field.outer)
        )
        return zip(inner, outer, self.gates, self.shifts, strict=True)


class ResidualLocal(Local):
    """A residual field near its states: s'(h_{k-1}) and the gated s' of each block, s'(h_K)."""

    def __init__(
        self,
        value: Tensor,
        frozen: FrozenResidual,
        slopes: list[tuple[Tensor, Tensor]],
        behind: Tensor,
    ) -> None:
        self.value, self.frozen, self.slopes, self.behind = value, frozen, slopes, behind

    def products(self, vectors: Tensor) -> Tensor:
        """J v."""
        return self.frozen.pushed(vectors, self.slopes, self.behind)

    def diagonal(self) -> Tensor:
        """Diagonal of J, by D tangents in chunks."""
        rows, size = self.value.shape
        widest = self.behind.shape[-1] * (1 + 2 * len(self.slopes))
        return diagonal_of(self.products, self.value, size, rows, widest)


_SILU = Silu()
