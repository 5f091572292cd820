"""Convolutional networks of couplings: from the part that passes to parameters for each pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows.core.arguments import known
from cflows.core.pickling import Pickled

__all__ = ["CONV_NETWORKS", "ConvNetwork"]

CONV_NETWORKS = ("residual", "glow")


class ConvNetwork(Pickled):
    """Images (N, C, H, W) to images (N, C', H, W), zero at the start.

    ``"residual"``: a convolution of 3 × 3, blocks h + conv(relu(conv(relu(h)))) and a last
    convolution (Dinh, Sohl-Dickstein and Bengio 2017, section 3.5, without batch normalisation:
    what it would do stands between the couplings). ``"glow"``: convolutions of 3 × 3, 1 × 1 and
    3 × 3 with relu between them (Kingma and Dhariwal 2018, appendix B).

    Args:
        inputs: C.
        outputs: C'.
        hidden: channels within.
        kind: of the network.
        blocks: of a residual one.
        context_features: numbers of a context, which shifts the hidden channels.

    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 32,
        kind: str = "residual",
        blocks: int = 2,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        known("kind", kind, CONV_NETWORKS)
        if min(hidden, blocks) < 1:
            raise ValueError(f"hidden and blocks must be at least 1, got {hidden} and {blocks}")
        self.kind = kind
        self.entrance = nn.Conv2d(inputs, hidden, 3, padding=1)
        pairs = [(3, 3)] * blocks if kind == "residual" else [(1,)]
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(hidden, hidden, size, padding=size // 2) for size in sizes)
            for sizes in pairs
        )
        self.exit = nn.Conv2d(hidden, outputs, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]
        self.context_shift = (
            nn.Linear(context_features, hidden, bias=False) if context_features else None
        )
        self.evaluations_made = 0

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, C, H, W) and (N, C_context) -> (N, C', H, W)."""
        if not torch.compiler.is_compiling():
            self.evaluations_made += 1
        if image.is_cuda:
            image = image.contiguous(memory_format=torch.channels_last)
        h = self.entrance(image)
        if self.context_shift is not None:
            h = h + self.context_shift(context)[..., None, None]
        for block in self.blocks:
            a = h
            for layer in block:  # type: ignore[attr-defined]
                a = layer(F.relu(a))
            h = h + a if self.kind == "residual" else a
        result: Tensor = self.exit(F.relu(h))
        return result
