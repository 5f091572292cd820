"""Which coordinates a coupling transforms, and how they are taken apart and put together.

Indexing costs as much as a small network's arithmetic, most of all its gradient, a sum into zeros.
So odd and even coordinates are told apart by a view where D is even, halves by another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cflows.core.arguments import known

__all__ = ["MASKS", "MaskSplit", "coupling_mask"]

MASKS = ("alternate", "halves", "random")


def coupling_mask(features: int, kind: str, layer: int) -> Tensor:
    """Which coordinates layer number ``layer`` transforms: booleans (D,), turned round by parity.

    Args:
        features: D, at least 2.
        kind: ``"alternate"`` (odd and even coordinates), ``"halves"`` (first and second half) or
            ``"random"`` (a random half, drawn anew for each layer from torch's generator).
        layer: counted from 0 at the base.

    Raises:
        ValueError: D is 1, or the kind is not known.

    """
    if features < 2:
        raise ValueError(
            "a coupling needs features >= 2, one part to read and one to transform; "
            "for features=1 use MAF or FFJORD"
        )
    if known("mask", kind, MASKS) == "random":
        index = torch.randperm(features, device="cpu")
    else:
        index = torch.arange(features, device="cpu")
    mask = index % 2 == 1 if kind == "alternate" else index >= features // 2
    return mask if layer % 2 == 0 else ~mask


class MaskSplit(nn.Module):
    """x as two parts and back: (*B, D) <-> (*B, D_a), (*B, D_b), each in its old order.

    Args:
        mask: booleans (D,), true for part b.

    Attributes:
        sizes: D_a and D_b.

    Example:
        >>> import torch
        >>> from baselines.networks.mask_split import MaskSplit
        >>> split = MaskSplit(torch.tensor([False, True, False, True]))
        >>> split.apart(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        (tensor([1., 3.]), tensor([2., 4.]))

    """

    order: Tensor
    back: Tensor
    kind: str
    turned: bool
    _looked_at: tuple[Tensor, int]

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        order = mask.cpu().int().argsort(stable=True)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())
        self.sizes = [int((~mask).sum()), int(mask.sum())]
        # A random mask is drawn by the constructor and then read from the file.
        self.register_load_state_dict_post_hook(_look)  # type: ignore[no-untyped-call]
        _look(self)
        # Read above on the host; they belong on the device that the module is built on.
        self.to(torch.get_default_device())

    def extra_repr(self) -> str:
        """The kind of the mask, and the sizes of the parts."""
        return f"{getattr(self, 'kind', 'not loaded yet')}, sizes={self.sizes}"

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(*B, D) -> (*B, D_a), (*B, D_b)."""
        kind = self._kind()
        if kind == "alternate":
            first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
        elif kind == "halves":
            sizes = self.sizes[::-1] if self.turned else self.sizes
            first, second = torch.split(x, sizes, dim=-1)
        else:
            first, second = torch.split(x.index_select(-1, self.order), self.sizes, dim=-1)
            return first, second
        return (second, first) if self.turned else (first, second)

    def together(self, a: Tensor, b: Tensor) -> Tensor:
        """(*B, D_a), (*B, D_b) -> (*B, D)."""
        kind = self._kind()
        if kind == "other":
            return torch.cat([a, b], dim=-1).index_select(-1, self.back)
        parts = (b, a) if self.turned else (a, b)
        if kind == "alternate":
            return torch.stack(parts, dim=-1).flatten(-2)
        return torch.cat(parts, dim=-1)

    def _kind(self) -> str:
        """Which view serves; none where the mask is another than the one that was looked at."""
        return self.kind if self._is_current() else "other"

    # The compiler asks once, since it does not see how often a buffer was written to.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _is_current(self) -> bool:
        order, version = self._looked_at
        return order is self.order and version == _version(order)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskSplit:
        current = self._is_current()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if current:  # moved, and the same mask as before
            self._looked_at = self.order, _version(self.order)
        return self


def _version(order: Tensor) -> int:
    """How often the buffer was written to; of one of inference mode nobody counts."""
    return -1 if order.is_inference() else order._version


def _look(split: MaskSplit, _: object = None) -> None:
    """Note which view serves the mask, and whether b comes first."""
    split._looked_at = split.order, _version(split.order)
    if split.order.is_meta:  # whose state is still to come
        return
    mask = torch.ones(len(split.order), dtype=torch.bool, device="cpu")
    mask[split.order[: split.sizes[0]].cpu()] = False
    split.turned = bool(mask[0])
    changes = mask[1:] != mask[:-1]
    if len(mask) % 2 == 0 and bool(changes.all()):
        split.kind = "alternate"
    else:
        split.kind = "halves" if int(changes.sum()) == 1 else "other"
