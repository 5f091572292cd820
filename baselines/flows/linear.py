r"""Linear maps that mix the coordinates: permutations, LU, reflections, 1×1 convolutions.

Coordinatewise and autoregressive layers treat the coordinates unequally; a linear map between two
of them says which coordinate meets which. x = W z has log|det dx/dz| = log|det W|, which for a
general matrix costs D³. Each map here is parametrised so that it costs D or nothing:

    Permutation       W a permutation                       log|det W| = 0
    LULinear          W = P L (U + diag(±exp s))            log|det W| = Σ_i s_i
    Householder       W = H_1 ... H_K, H = I - 2 v vᵀ/|v|²  log|det W| = 0
    Invertible1x1     one of the last two, at each pixel    H W times that of a pixel

No inverse matrix is ever formed: inverses are transposes and triangular solves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows import Bijector
from cflows.core.arguments import checked_image, known
from cflows.core.bijector import Mapped

__all__ = ["Householder", "Invertible1x1", "LULinear"]

STARTS = ("identity", "rotation")
MIXES = ("lu", "householder")


class LULinear(Bijector):
    """A dense x = P L (U + diag(±exp s)) z + b, with log|det dx/dz| = Σ_i s_i.

    Kingma and Dhariwal 2018, "Glow", section 3.2; Oliva et al. 2018, "Transformation Autoregressive
    Networks", section 3.1. L has a unit diagonal, U a zero one; P and the signs are fixed when
    built. A product takes D² multiplications a row, an inverse two triangular solves of as many.

    Args:
        features: D.
        bias: whether there is a b.
        start: ``"identity"``, or ``"rotation"``, a random orthogonal matrix.

    Attributes:
        packed: L below the diagonal, s on it, U above it: (D, D).

    Example:
        >>> import torch
        >>> from baselines import LULinear
        >>> LULinear(3)(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 2.0, 3.0]

    """

    order: Tensor
    signs: Tensor

    def __init__(self, features: int, *, bias: bool = True, start: str = "identity") -> None:
        super().__init__(features)
        if known("start", start, STARTS) == "rotation":
            order, signs, packed = _packed_rotation(features)
        else:
            order, signs = torch.arange(features), torch.ones(features)
            packed = torch.zeros(features, features)
        self.packed = nn.Parameter(packed)
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None
        # Row i of P L U is row order(i) of L U.
        self.register_buffer("order", order)
        self.register_buffer("signs", signs)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """P (L (U z)) + b."""
        lower, upper = self._factors()
        with torch.autocast(z.device.type, enabled=False):
            x = (z @ upper.mT @ lower.mT)[..., self.order]
        if self.bias is not None:
            x = x + self.bias
        return x, self._log_det().expand(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """U⁻¹ L⁻¹ Pᵀ (x - b), by two triangular solves."""
        lower, upper = self._factors()
        y = x if self.bias is None else x - self.bias
        with torch.autocast(x.device.type, enabled=False):
            rows = y[..., self.order.argsort()].reshape(-1, self.features)
            rows = torch.linalg.solve_triangular(
                lower.mT, rows, upper=True, left=False, unitriangular=True
            )
            rows = torch.linalg.solve_triangular(upper.mT, rows, upper=False, left=False)
        return rows.reshape(x.shape), -self._log_det().expand(x.shape[:-1])

    def _factors(self) -> tuple[Tensor, Tensor]:
        scale = self.signs * self.packed.diagonal().exp()
        eye = torch.eye(self.features, dtype=self.packed.dtype, device=self.packed.device)
        return self.packed.tril(-1) + eye, self.packed.triu(1) + scale.diag()

    def _log_det(self) -> Tensor:
        return self.packed.diagonal().sum()


class Householder(Bijector):
    """An orthogonal x = H_1 ... H_K z, H_k = I - 2 v_k v_kᵀ / |v_k|², with log|det dx/dz| = 0.

    Tomczak and Welling 2016, "Improving Variational Auto-Encoders using Householder Flow". The
    product is applied at once: for V of unit columns v_k, H_1 ... H_K = I - V T Vᵀ with
    T⁻¹ = I/2 + the part of VᵀV above its diagonal (Joffrain et al. 2006, "Accumulating Householder
    Transformations, Revisited"). A row takes 2 D K + K² multiplications.

    The vectors start in equal pairs, so that an even product starts at the identity. Even products
    of D or more reflections reach every rotation; odd ones turn one direction round as well.

    Args:
        features: D.
        reflections: K; by default D, or D + 1 where D is odd.

    Attributes:
        vectors: v_k, (K, D).

    Example:
        >>> import torch
        >>> from baselines import Householder
        >>> round(Householder(3)(torch.tensor([2.0, 3.0, 6.0])).norm().item(), 4)
        7.0

    """

    def __init__(self, features: int, reflections: int | None = None) -> None:
        super().__init__(features)
        count = features + features % 2 if reflections is None else reflections
        if count < 1:
            raise ValueError(f"reflections must be at least 1, got {count}")
        pairs = torch.randn((count + 1) // 2, features)
        self.vectors = nn.Parameter(pairs.repeat_interleave(2, dim=0)[:count])

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """z - V T Vᵀ z."""
        return self._reflected(z, transpose=False), z.new_zeros(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """x - V Tᵀ Vᵀ x."""
        return self._reflected(x, transpose=True), x.new_zeros(x.shape[:-1])

    def _reflected(self, value: Tensor, transpose: bool) -> Tensor:
        with torch.autocast(value.device.type, enabled=False):
            unit = F.normalize(self.vectors, dim=-1)
            half = 0.5 * torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
            inverse_t = (unit @ unit.mT).triu(1) + half
            rows = value.reshape(-1, self.features)
            # In rows: y T'ᵀ, where T' is T or its transpose.
            matrix = inverse_t if transpose else inverse_t.mT
            inner = torch.linalg.solve_triangular(
                matrix, rows @ unit.mT, upper=transpose, left=False
            )
            reflected: Tensor = rows - inner @ unit
            return reflected.reshape(value.shape)


class Invertible1x1(Bijector):
    """One linear map of the channels at every pixel of an image (Kingma and Dhariwal 2018, 3.2).

    x[:, i, j] = W z[:, i, j] and log|det dx/dz| = H W log|det W|.

    Args:
        shape: (C, H, W) of the image, whose D = C H W numbers are given in this order.
        mix: of W: ``"lu"``, a ``LULinear`` without bias, or ``"householder"``, orthogonal.
        start: of an LU mix, ``"rotation"`` as in Glow or ``"identity"``.

    Example:
        >>> import torch
        >>> from baselines import Invertible1x1
        >>> Invertible1x1((3, 4, 4))(torch.zeros(7, 48)).shape
        torch.Size([7, 48])

    """

    def __init__(self, shape: Sequence[int], *, mix: str = "lu", start: str = "rotation") -> None:
        channels, height, width = checked_image(shape)
        super().__init__(channels * height * width)
        known("mix", mix, MIXES)
        self.shape = (channels, height, width)
        self.mix: Bijector = (
            LULinear(channels, bias=False, start=start) if mix == "lu" else Householder(channels)
        )

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """W z at every pixel."""
        pixels, log_det = self.mix.forward_and_log_det(self._pixels(z))
        return self._flat(pixels), log_det.sum(-1)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """W⁻¹ x at every pixel."""
        pixels, log_det = self.mix.inverse_and_log_det(self._pixels(x))
        return self._flat(pixels), log_det.sum(-1)

    def _pixels(self, value: Tensor) -> Tensor:
        """(*B, D) -> (*B, H W, C)."""
        channels, height, width = self.shape
        return value.reshape(*value.shape[:-1], channels, height * width).mT

    def _flat(self, pixels: Tensor) -> Tensor:
        return pixels.mT.flatten(-2)


def _packed_rotation(features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order, signs and packed factors of a random rotation, computed in double precision."""
    rotation = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))[0]
    permutation, lower, upper = torch.linalg.lu(rotation)
    diagonal = upper.diagonal()
    packed = lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag()
    dtype = torch.get_default_dtype()
    return permutation.argmax(dim=1), diagonal.sign().to(dtype), packed.to(dtype)
