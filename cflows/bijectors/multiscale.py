r"""Flows over several scales: squeezing images, and factoring out.

Dinh, Sohl-Dickstein and Bengio 2017, "Density estimation using Real NVP", section 3.6. On the way
to the noise an image is squeezed, (C, H, W) -> (4C, H/2, W/2), so that channels hold what pixels
held; after some layers half of the numbers are noise for good, and only the other half goes on
(equations 13 to 16). Deep stacks then spend their layers on few numbers, and every scale has noise
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cflows.core.arguments import checked_image
from cflows.core.bijector import Bijector, Chain, Mapped

__all__ = ["MultiScale", "Permutation", "Squeeze"]


class Permutation(Bijector):
    """The coordinates in another order: x_i = z_order(i), log|det dx/dz| = 0.

    Args:
        features: D.
        order: ``"reversed"``, ``"random"`` (drawn from torch's generator when built), or the D
            indices 0..D-1 in the wanted order.

    Raises:
        ValueError: the order is no permutation of 0..D-1.

    Example:
        >>> import torch
        >>> from baselines import Permutation
        >>> Permutation(3, [2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))
        tensor([12., 10., 11.])

    """

    order: Tensor
    places: Tensor

    def __init__(self, features: int, order: str | Sequence[int] | Tensor = "reversed") -> None:
        super().__init__(features)
        indices = _indices(features, order)
        device = torch.get_default_device()
        self.register_buffer("order", indices.to(device))
        self.register_buffer("places", indices.argsort().to(device))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """x_i = z_order(i)."""
        return z[..., self.order], z.new_zeros(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """z_order(i) = x_i."""
        return x[..., self.places], x.new_zeros(x.shape[:-1])


class Squeeze(Permutation):
    """Blocks of factor × factor pixels become channels, on the way to the noise.

    Data x (C, H, W) to noise z (f² C, H/f, W/f), both flat in this order: at a block, channel
    (i f + j) C + c of z is channel c of the block's pixel (i, j). The channels of a pixel stay
    together, so that half of the new channels is half of the pixels. log|det dx/dz| = 0.

    Args:
        shape: (C, H, W) of the data.
        factor: f.

    Attributes:
        squeezed: (f² C, H/f, W/f), the shape of the noise.

    Raises:
        ValueError: H or W is not a multiple of f.

    Example:
        >>> import torch
        >>> from baselines import Squeeze
        >>> squeeze = Squeeze((1, 2, 4))
        >>> squeeze.squeezed
        (4, 1, 2)
        >>> squeeze.inverse(torch.arange(8.0))
        tensor([0., 2., 1., 3., 4., 6., 5., 7.])

    """

    def __init__(self, shape: Sequence[int], factor: int = 2) -> None:
        channels, height, width = checked_image(shape)
        if factor < 1 or height % factor or width % factor:
            raise ValueError(
                f"height and width must be multiples of factor={factor}, got shape {tuple(shape)}: "
                "pad or crop the images, or choose another factor"
            )
        blocks = (channels, height // factor, factor, width // factor, factor)
        pixels = torch.arange(channels * height * width, device="cpu").reshape(blocks)
        # Noise number k is data number gathered(k); a Permutation is given the other way round.
        gathered = pixels.permute(2, 4, 0, 1, 3).flatten()
        super().__init__(len(gathered), gathered.argsort())
        self.squeezed = (channels * factor**2, height // factor, width // factor)


class MultiScale(Bijector):
    """Levels of growing size from noise to data, each with some noise of its own.

    With levels f_1, ..., f_K of sizes D_1 < ... < D_K = D and z cut into pieces z_1, ..., z_K of
    sizes D_1, D_2 - D_1, ..., D_K - D_{K-1},

        h_1 = f_1(z_1),   h_k = f_k(h_{k-1}, z_k),   x = h_K,

    and log|det dx/dz| is the sum of the levels'. From data to noise: f_K sees all of x, the
    trailing D_K - D_{K-1} numbers of what it gives are noise for good, the leading ones go on to
    f_{K-1}. Levels are listed as a Chain's parts are, noise to data. For other coordinates than the
    trailing ones let a level begin with a ``Permutation``.

    Args:
        levels: bijectors of strictly increasing sizes; those with a context share one.

    Raises:
        ValueError: there is no level, the sizes do not increase, or the contexts differ.

    Example:
        Two scales of a 2×4 image: the data's level squeezes it, and half of the channels go on.

        >>> import torch
        >>> from baselines import Invertible1x1, LULinear, MultiScale, Squeeze
        >>> from cflows import Chain
        >>> fine = Chain(Invertible1x1((4, 1, 2)), Squeeze((1, 2, 4)))
        >>> MultiScale(LULinear(4), fine)(torch.zeros(7, 8)).shape
        torch.Size([7, 8])

    """

    def __init__(self, *levels: Bijector) -> None:
        if not levels:
            raise ValueError("MultiScale needs at least one level")
        sizes = [level.features for level in levels]
        if any(small >= large for small, large in pairwise(sizes)):
            raise ValueError(
                "levels are listed from noise to data and each must have more features than the "
                f"one before it; got {sizes}"
            )
        contexts = {level.context_features for level in levels} - {0}
        if len(contexts) > 1:
            raise ValueError(f"the levels of a MultiScale differ in context: {sorted(contexts)}")
        super().__init__(sizes[-1], contexts.pop() if contexts else 0)
        self.levels = nn.ModuleList(levels)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data, coarse levels first; no log-determinant is computed."""
        h = z[..., :0]
        for level, condition in Chain._with_context(self.levels, context):
            h = level(torch.cat([h, z[..., h.shape[-1] : level.features]], dim=-1), condition)
        return h

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Data to noise, fine levels first; no log-determinant is computed."""
        h, pieces = x, []
        for level, condition in Chain._with_context(reversed(self.levels), context):
            pieces.append(h[..., level.features :])
            h = level.inverse(h[..., : level.features], condition)
        return torch.cat([h, *reversed(pieces)], dim=-1)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """Noise to data; the levels' log-determinants add up."""
        h, total = z[..., :0], z.new_zeros(z.shape[:-1])
        for level, condition in Chain._with_context(self.levels, context):
            h = torch.cat([h, z[..., h.shape[-1] : level.features]], dim=-1)
            h, log_det = level.forward_and_log_det(h, condition)
            total = total + log_det
        return h, total

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Data to noise; the levels' log-determinants add up."""
        h, total, pieces = x, x.new_zeros(x.shape[:-1]), []
        for level, condition in Chain._with_context(reversed(self.levels), context):
            pieces.append(h[..., level.features :])
            h, log_det = level.inverse_and_log_det(h[..., : level.features], condition)
            total = total + log_det
        return torch.cat([h, *reversed(pieces)], dim=-1), total


def _indices(features: int, order: str | Sequence[int] | Tensor) -> Tensor:
    if isinstance(order, str):
        if order == "reversed":
            return torch.arange(features - 1, -1, -1, device="cpu")
        if order == "random":
            return torch.randperm(features, device="cpu")
        raise ValueError(f'order must be "reversed", "random" or {features} indices; got {order!r}')
    indices = torch.as_tensor(order, device="cpu").detach().clone()
    if indices.is_floating_point() or sorted(indices.flatten().tolist()) != [*range(features)]:
        raise ValueError(f"order must hold each of 0..{features - 1} once, got {indices.tolist()}")
    return indices.long().flatten()
