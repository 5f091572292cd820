r"""Flows of images: RealNVP with masks of pixels and of channels, and Glow.

Rows are images of shape (C, H, W), flat in this order. Both are couplings whose networks are
convolutions, at several scales (``multiscale``): from data to noise an image is squeezed, so that
channels hold what pixels held, and after a scale's layers half of the channels are noise for good.

**RealNVP** (Dinh, Sohl-Dickstein and Bengio 2017, sections 3.4 to 3.6) has at each scale three
couplings that know half of the pixels, as on a checkerboard, and tell the other half, then a
squeeze and three couplings that know half of the channels; at the last scale four of the first
kind. **Glow** (Kingma and Dhariwal 2018) has steps of an activation norm, a learned mix of the
channels at every pixel, and a coupling of the channels. Between the couplings of both stands an
activation norm, which the paper of the former had as a batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from baselines.flows.linear import Invertible1x1
from baselines.networks.conv import ConvNetwork
from baselines.transforms.univariate import AffineScale
from cflows import ActNorm, Bijector, Chain, Flow, MultiScale, Squeeze
from cflows.core.arguments import checked_image, known
from cflows.core.bijector import Mapped

__all__ = ["IMAGE_MASKS", "Glow", "ImageCoupling", "ImageRealNVP"]

IMAGE_MASKS = ("checkerboard", "channels")
Shape = tuple[int, int, int]


class ImageCoupling(Bijector):
    """One affine coupling of an image: x_b = exp(s(x_a)) z_b + t(x_a), x_a = z_a.

    Args:
        shape: (C, H, W).
        mask: what part b is: ``"checkerboard"``, every second pixel; ``"channels"``, the second
            half of the channels.
        turned: whether a and b change roles.
        context_features: numbers of a context.
        hidden: channels of the network.
        network: ``"residual"`` or ``"glow"``, see ``ConvNetwork``.
        blocks: of a residual one.

    Raises:
        ValueError: one pixel, or one channel, which has no halves.

    Example:
        >>> import torch
        >>> from baselines import ImageCoupling
        >>> layer = ImageCoupling((1, 2, 2), mask="checkerboard", hidden=4)
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 4])

    """

    known_part: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        mask: str = "channels",
        turned: bool = False,
        context_features: int = 0,
        hidden: int = 32,
        network: str = "residual",
        blocks: int = 2,
    ) -> None:
        channels, height, width = self.shape = checked_image(shape)
        super().__init__(channels * height * width, context_features)
        known("mask", mask, IMAGE_MASKS)
        if mask == "checkerboard":
            rows, columns = (torch.arange(side, device="cpu") for side in (height, width))
            part = ((rows[:, None] + columns) % 2 == 0).expand(self.shape)
        else:
            first = torch.arange(channels, device="cpu") < channels // 2
            part = first[:, None, None].expand(self.shape)
        if part.all() or not part.any():
            raise ValueError(f"an image of shape {self.shape} has no two parts by its {mask}")
        self.mask, self.turned = mask, turned
        known_part = ~part if turned else part.clone()
        self.register_buffer("known_part", known_part.to(torch.get_default_device()))
        self.transformer = AffineScale()
        self.sizes = [channels // 2, channels - channels // 2]
        inputs, outputs = channels, channels
        if mask == "channels":  # the network sees and tells these alone
            inputs, outputs = self.sizes[::-1] if turned else self.sizes
        self.network = ConvNetwork(
            inputs,
            2 * outputs,
            hidden=hidden,
            kind=network,
            blocks=blocks,
            context_features=context_features,
        )

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """x_b = exp(s) z_b + t."""
        return self._mapped(self.transformer.forward, z, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """z_b = exp(-s) (x_b - t)."""
        return self._mapped(self.transformer.inverse, x, context)

    def _mapped(
        self, transform: Callable[[Tensor, Tensor], Mapped], value: Tensor, context: Tensor | None
    ) -> Mapped:
        image = value.reshape(-1, *self.shape)
        flat = None if context is None else context.reshape(len(image), -1)
        if self.mask == "checkerboard":
            # Parameters of zero leave what is known as it is.
            told = self._told(self.network(image * self.known_part, flat), image)
            image, log_det = transform(image, told * ~self.known_part[..., None])
        else:
            parts = list(torch.split(image, self.sizes, dim=1))
            b = 0 if self.turned else 1
            told = self._told(self.network(parts[1 - b], flat), image)
            parts[b], log_det = transform(parts[b], told)
            image = torch.cat(parts, dim=1)
        return image.reshape(value.shape), log_det.sum((1, 2, 3)).reshape(value.shape[:-1])

    @staticmethod
    def _told(parameters: Tensor, image: Tensor) -> Tensor:
        """(N, 2 C, H, W) -> (N, C, H, W, 2), in the image's dtype."""
        return torch.stack(parameters.to(image.dtype).chunk(2, dim=1), dim=-1)


class ImageRealNVP(Flow):
    """RealNVP of images.

    Args:
        shape: (C, H, W).
        scales: how many, the last without a squeeze; H and W are multiples of 2^(scales - 1).
        context_features: numbers of a context, such as the indicators of a class.
        hidden: channels of the networks; the paper has 64 for CIFAR-10.
        blocks: residual blocks of a network; the paper has 8.
        base: the distribution of z; by default the standard normal.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from baselines import ImageRealNVP
        >>> flow = ImageRealNVP((1, 4, 4), scales=2, hidden=8, blocks=1)
        >>> flow.log_prob(torch.zeros(3, 16)).shape
        torch.Size([3])

    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        scales: int = 2,
        context_features: int = 0,
        hidden: int = 32,
        blocks: int = 2,
        base: nn.Module | None = None,
    ) -> None:
        def couplings(size: Shape, mask: str, count: int) -> list[Bijector]:
            layers: list[Bijector] = []
            for k in range(count):
                layers += [
                    ImageCoupling(
                        size,
                        mask=mask,
                        turned=k % 2 == 1,
                        context_features=context_features,
                        hidden=hidden,
                        blocks=blocks,
                    ),
                    ActNorm(_size(size), shape=size),
                ]
            return layers

        def level(size: Shape, *, last: bool) -> list[Bijector]:
            if last:
                return couplings(size, "checkerboard", 4)
            squeeze = Squeeze(size)
            within = couplings(squeeze.squeezed, "channels", 3)
            return [*within, squeeze, *couplings(size, "checkerboard", 3)]

        super().__init__(_scaled(checked_image(shape), scales, level), base)


class Glow(Flow):
    """Glow: activation norm, a mix of the channels at every pixel, a coupling of the channels.

    Args:
        shape: (C, H, W).
        scales: how many, each with a squeeze; H and W are multiples of 2^scales.
        steps: of each scale; the paper has 32.
        context_features: numbers of a context, such as the indicators of a class.
        hidden: channels of the networks; the paper has 512.
        base: the distribution of z; by default the standard normal.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from baselines import Glow
        >>> flow = Glow((1, 4, 4), scales=2, steps=2, hidden=8)
        >>> flow.sample(3).shape
        torch.Size([3, 16])

    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        scales: int = 2,
        steps: int = 8,
        context_features: int = 0,
        hidden: int = 64,
        base: nn.Module | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")

        def level(size: Shape, *, last: bool) -> list[Bijector]:
            squeeze, layers = Squeeze(size), []
            for _ in range(steps):
                coupling = ImageCoupling(
                    squeeze.squeezed,
                    context_features=context_features,
                    hidden=hidden,
                    network="glow",
                )
                norm = ActNorm(_size(size), shape=squeeze.squeezed)
                layers += [coupling, Invertible1x1(squeeze.squeezed), norm]
            return [*layers, squeeze]

        super().__init__(_scaled(checked_image(shape), scales, level, squeezed=True), base)


def _size(shape: Shape) -> int:
    channels, height, width = shape
    return channels * height * width


def _scaled(
    shape: Shape,
    scales: int,
    level: Callable[..., list[Bijector]],
    *,
    squeezed: bool = False,
) -> Bijector:
    """Levels from noise to data; of each but the last half of the squeezed channels go on.

    Args:
        shape: of the data.
        scales: how many levels.
        level: (shape, last=) -> its parts, noise to data.
        squeezed: whether the last level squeezes too.

    """
    if scales < 1:
        raise ValueError(f"scales must be at least 1, got {scales}")
    levels: list[Bijector] = []
    for scale in range(scales):
        channels, height, width = shape
        if (height % 2 or width % 2) and (squeezed or scale + 1 < scales):
            raise ValueError(
                f"an image of {height} × {width} cannot be squeezed: take fewer scales than "
                f"{scales}, or pad or crop the images"
            )
        levels.append(Chain(*level(shape, last=scale + 1 == scales)))
        shape = 2 * channels, height // 2, width // 2
    return MultiScale(*reversed(levels)) if scales > 1 else levels[0]
