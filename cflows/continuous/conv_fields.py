r"""Vector fields of images: convolutions that see the time.

An image of shape (C, H, W) is a row of D = C H W numbers in this order, as everywhere here; a field
gives it its shape, and takes it away again. ``ConvField`` has FFJORD's dynamics, a stack of
convolutions. ``UNetField`` looks at an image at several sizes at once, as the networks of diffusion
models do, and is one for flow matching, which needs no trace in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows.continuous.layers import ACTIVATIONS, LAYERS, Silu, TimeFeatures, TimeLayer
from cflows.core.arguments import checked_image, known
from cflows.core.pickling import Pickled

__all__ = ["ConvField", "ImageField", "UNetField"]

GROUP = 8  # channels that are normalised together, at most


class ImageField(Pickled):
    """A field over images.

    Args:
        shape: (C, H, W).
        context_features: numbers of a context, such as the indicators of a class.

    """

    time_by_row = True
    """Times may be (N,), one of each row's own."""

    def __init__(self, shape: Sequence[int], context_features: int) -> None:
        super().__init__()
        self.shape = checked_image(shape)
        channels, height, width = self.shape
        self.features = channels * height * width
        self.context_features = context_features

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(t, x, context): t a scalar or (N,), x (N, D), context (N, C') -> (N, D)."""
        image = x.reshape(-1, *self.shape)
        if x.is_cuda:  # where convolutions in half precision want it
            image = image.contiguous(memory_format=torch.channels_last)
        times = t if t.dim() == 0 else t.reshape(-1)
        flat = None if context is None else context.reshape(len(image), -1)
        return self.velocity(times, image, flat).reshape(x.shape)

    def velocity(self, t: Tensor, image: Tensor, context: Tensor | None) -> Tensor:
        """The same for images (N, C, H, W)."""
        raise TypeError(f"{type(self).__name__} must define velocity")


class ConvField(ImageField):
    r"""Convolutions of 3 × 3 whose channels are gated and shifted by the time.

        h_0 = x,  h_l = s(gate_l(t) ∘ (W_l * h_{l-1}) + shift_l(t)),  f = the last, without s

    (Grathwohl et al. 2019, section 4 and appendix B.1: three hidden layers of 64 channels, softplus
    and ``concat`` layers on images). A layer sees the time as those of ``MLP`` do, a kernel being
    the weight of a patch. The last weights start at zero, so that a flow starts as a translation.

    Args:
        shape: (C, H, W).
        hidden: channels of the hidden layers.
        layer: how a layer sees the time: ``"concat"``, ``"concatsquash"``, ``"film"``,
            ``"squash"``, ``"ignore"``, ``"blend"`` or ``"hyper"``. The last two have a kernel for
            each time, which all rows of a call must share.
        activation: ``"softplus"``, ``"tanh"``, ``"elu"``, ``"silu"`` or ``"sin"``.
        context_features: numbers of a context, which shifts the first hidden layer.
        time_frequencies: the layers see t and sin kπt, cos kπt for k up to this.

    Raises:
        ValueError: no hidden layer, a size that is not positive, or an unknown name.

    Example:
        >>> import torch
        >>> from cflows import ConvField, Flow, ODEBijector
        >>> flow = Flow(ODEBijector(ConvField((1, 4, 4), hidden=(8,)))).eval()
        >>> flow.log_prob(torch.zeros(2, 16)).shape
        torch.Size([2])

    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        hidden: Sequence[int] = (64, 64, 64),
        layer: str = "concat",
        activation: str = "softplus",
        context_features: int = 0,
        time_frequencies: int = 0,
    ) -> None:
        super().__init__(shape, context_features)
        known("layer", layer, LAYERS)
        known("activation", activation, ACTIVATIONS)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must list at least one width of at least 1, got {hidden}")
        self.time = TimeFeatures(time_frequencies)
        widths = [self.shape[0], *hidden, self.shape[0]]
        # A kernel (outputs, inputs, 3, 3) is the weight of a patch of inputs · 9 numbers.
        layers = [LAYERS[layer](9 * a, b, self.time.size) for a, b in pairwise(widths)]
        for name in ("weight", "late_weight", "weight_slope"):
            if hasattr(layers[-1], name):
                nn.init.zeros_(getattr(layers[-1], name))
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(ACTIVATIONS[activation]() for _ in hidden)
        self.context_shift = (
            nn.Linear(context_features, hidden[0], bias=False) if context_features else None
        )
        self.time_by_row = not layers[0].varies

    def velocity(self, t: Tensor, image: Tensor, context: Tensor | None) -> Tensor:
        """Layer by layer."""
        h, phi = image, self.time(t)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, TimeLayer)
            gate, shift = layer.coefficients(phi)
            kernel = layer.weight_at(phi)
            if kernel.dim() > 2:
                raise ValueError("a blend or hyper layer has one kernel a call: give a scalar time")
            h = F.conv2d(h, kernel.reshape(len(kernel), -1, 3, 3), padding=1)
            h = (
                h + _pixels(shift)
                if gate is None
                else torch.addcmul(_pixels(shift), _pixels(gate), h)
            )
            if index == 0 and self.context_shift is not None:
                h = h + _pixels(self.context_shift(context))
            if index < len(self.activations):
                activation = self.activations[index]
                slope = activation.beta if isinstance(activation, Silu) else None
                h = activation(h) if slope is None else activation(slope * h) / slope
        return h


class UNetField(ImageField):
    r"""A U-Net: residual blocks at sizes H, H/2, ..., the time by scale and shift (FiLM).

    On the way down each level has a block, and its channels grow; on the way up each level sees
    what it gave on the way down (Ronneberger, Fischer and Brox 2015; Ho, Jain and Abbeel 2020). A
    block is

        h + conv(silu(γ(t, c) ∘ norm(conv(silu(norm(h)))) + β(t, c)))

    with group normalisation and a last convolution that starts at zero, as the whole field's does:
    a flow starts as the identity. Of an odd size a level below sees all but the last row or column.

    Args:
        shape: (C, H, W).
        channels: of the first level; level k has k times as many.
        levels: how many sizes.
        context_features: numbers of a context, which is added to the embedding of the time.
        time_frequencies: the embedding sees t and sin kπt, cos kπt for k up to this.

    Raises:
        ValueError: a size is not positive, or an image too small for so many levels.

    Example:
        >>> import torch
        >>> from cflows import UNetField
        >>> field = UNetField((1, 8, 8), channels=8, levels=2, context_features=10)
        >>> field(torch.tensor(0.5), torch.randn(3, 64), torch.eye(10)[:3]).shape
        torch.Size([3, 64])

    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: int = 24,
        levels: int = 3,
        context_features: int = 0,
        time_frequencies: int = 8,
    ) -> None:
        super().__init__(shape, context_features)
        if min(channels, levels) < 1 or min(self.shape[1:]) < 2 ** (levels - 1):
            raise ValueError(
                "channels and levels must be at least 1, and an image at least 2^(levels - 1) wide "
                f"and high; got {channels}, {levels} and shape {self.shape}"
            )
        widths = [channels * (level + 1) for level in range(levels)]
        embedded = 4 * channels
        self.time = TimeFeatures(time_frequencies)
        self.embedding = nn.Sequential(
            nn.Linear(self.time.size, embedded), nn.SiLU(), nn.Linear(embedded, embedded)
        )
        self.context_embedding = (
            nn.Linear(context_features, embedded, bias=False) if context_features else None
        )
        self.entrance = nn.Conv2d(self.shape[0], channels, 3, padding=1)
        self.down = nn.ModuleList(
            ResidualBlock(before, width, embedded)
            for before, width in zip([channels, *widths], widths, strict=False)
        )
        self.middle = ResidualBlock(widths[-1], widths[-1], embedded)
        # Level k meets what comes up from below, with the channels of level k + 1.
        above = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            ResidualBlock(width + below, width, embedded)
            for width, below in zip(widths, above, strict=True)
        )
        self.norm = _norm(channels)
        self.exit = nn.Conv2d(channels, self.shape[0], 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def velocity(self, t: Tensor, image: Tensor, context: Tensor | None) -> Tensor:
        """Down and up again."""
        embedding = self.embedding(self.time(t))
        if self.context_embedding is not None:
            embedding = embedding + self.context_embedding(context)
        embedding = F.silu(embedding).expand(len(image), -1)
        h, seen = self.entrance(image), []
        for level, block in enumerate(self.down):
            h = block(h if level == 0 else F.avg_pool2d(h, 2), embedding)
            seen.append(h)
        h = self.middle(h, embedding)
        for level, block in reversed(list(enumerate(self.up))):
            beside = seen[level]
            if h.shape[-2:] != beside.shape[-2:]:
                h = F.interpolate(h, size=beside.shape[-2:], mode="nearest")
            h = block(torch.cat([h, beside], dim=1), embedding)
        velocity: Tensor = self.exit(F.silu(self.norm(h)))
        return velocity


class ResidualBlock(nn.Module):
    """Two convolutions that add to what they are given, see ``UNetField``.

    Args:
        inputs: channels.
        outputs: channels; where they differ from the inputs, those are mixed to as many.
        embedded: numbers of the embedding of time and context.

    """

    def __init__(self, inputs: int, outputs: int, embedded: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = _norm(inputs), _norm(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedded, 2 * outputs)
        self.mixed = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """(N, inputs, H, W) and (N, embedded) -> (N, outputs, H, W)."""
        gate, shift = map(_pixels, self.modulation(embedding).chunk(2, dim=-1))
        a = self.second_norm(self.first(F.silu(self.first_norm(h))))
        a = self.second(F.silu(torch.addcmul(shift + a, gate, a)))
        sum_: Tensor = a + self.mixed(h)
        return sum_


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of ``GROUP`` channels, or the largest even groups that are smaller."""
    groups = next(n for n in _upwards(channels) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


def _upwards(channels: int) -> Iterator[int]:
    yield from range(max(1, -(-channels // GROUP)), channels + 1)


def _pixels(of_channels: Tensor) -> Tensor:
    """(C,) or (N, C) -> (1 or N, C, 1, 1)."""
    return of_channels.reshape(-1, of_channels.shape[-1], 1, 1)
