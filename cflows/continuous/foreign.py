"""Fields that are no perceptron: called as they are, and differentiated by torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from cflows.continuous.fields import Local, recomputed
from cflows.core.bijector import recorded

__all__ = ["ForeignField", "ModuleLocal", "TransformedLocal"]

CHUNK = 2**21
"""Of the states' size, for a module whose inner layers may be many times as wide."""

KERNELS = ("flash", "mem_efficient", "cudnn", "math")
_LOCK = threading.Lock()
_OPEN: list[list[bool]] = []
"""For each block of ``twice_differentiable`` that is open in a thread, what was on before them."""


@dataclass(frozen=True)
class ForeignField:
    """T f(t, x, context) at one time, of a field that is called as it is."""

    field: nn.Module
    t: Tensor
    context: Tensor | None
    end_time: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        velocity: Tensor = self.end_time * self.field(self.t, x, self.context)
        return velocity


class ModuleLocal(Local):
    """A module of unknown make, by vector-Jacobian products."""

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor, keep: bool) -> None:
        self.f, self.x, self.keep = f, x, keep
        with torch.enable_grad(), twice_differentiable():
            self.value = f(x)

    def products(self, vectors: Tensor) -> Tensor:
        """vᵀ J."""
        if not self.value.requires_grad:
            return torch.zeros_like(vectors)
        chunks = [vectors] if self.keep else torch.split(vectors, _at_once(self.x))
        products = [self._products(chunk) for chunk in chunks]
        return products[0] if len(products) == 1 else torch.cat(products)

    def _products(self, vectors: Tensor) -> Tensor:
        # One product runs faster without the batching.
        if len(vectors) > 1:
            # torch cannot batch the gradient of some layers, of GroupNorm say.
            with suppress(RuntimeError):
                return self._pulled_back(vectors, batched=True)
        products = [self._pulled_back(vector, batched=False) for vector in vectors]
        return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)

    @torch.enable_grad()
    def _pulled_back(self, vectors: Tensor, batched: bool) -> Tensor:
        (products,) = torch.autograd.grad(
            self.value,
            self.x,
            vectors,
            create_graph=self.keep,
            retain_graph=True,
            is_grads_batched=batched,
            materialize_grads=True,
        )
        return products

    def diagonal(self) -> Tensor:
        """The diagonal of J, by D products in chunks."""
        size = self.x.shape[-1]
        basis = torch.eye(size, dtype=self.x.dtype, device=self.x.device).unsqueeze(1)
        step = _at_once(self.x)

        def chunk(first: int, local: ModuleLocal) -> Tensor:
            vectors = basis[first : first + step].expand(-1, *self.x.shape)
            return local.products(vectors)[..., first : first + step].diagonal(dim1=0, dim2=2)

        def again(first: int, x: Tensor) -> Tensor:
            # The value too: its graph will be gone when the chunk's turn comes on the way back.
            return chunk(first, ModuleLocal(self.f, x, self.keep))

        if step >= size or not self.keep:
            parts = [chunk(first, self) for first in range(0, size, step)]
        else:
            parts = [recomputed(again, first, self.x) for first in range(0, size, step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def finished(self, value: Tensor) -> Tensor:
        """The value, detached where gradients were not asked for."""
        return value if self.keep else value.detach()


class TransformedLocal(Local):
    """The same where torch.autograd.grad cannot be called: in torch.func and compilation."""

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.x = x
        _refuse_statistics(getattr(f, "field", None))
        with twice_differentiable():
            pulled = torch.func.vjp(f, x)
        self.value, self.pull_back = pulled[:2]

    def products(self, vectors: Tensor) -> Tensor:
        """vᵀ J."""
        products: Tensor = torch.func.vmap(lambda vector: self.pull_back(vector)[0])(vectors)
        return products

    def diagonal(self) -> Tensor:
        """The diagonal of J, by D products."""
        basis = torch.eye(self.x.shape[-1], dtype=self.x.dtype, device=self.x.device)
        products = self.products(basis.unsqueeze(1).expand(-1, *self.x.shape))
        return products.diagonal(dim1=0, dim2=2)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within the block scaled dot-product attention takes no fused kernel.

    The gradient of a divergence differentiates the field twice, and these have one derivative only.
    """
    if recorded():
        with sdpa_kernel(SDPBackend.MATH):
            yield
        return
    # The same as sdpa_kernel at a tenth of its time, which every stage of a solve would pay.
    with _LOCK:
        enabled = [getattr(torch.backends.cuda, f"{name}_sdp_enabled") for name in KERNELS]
        before = _OPEN[0] if _OPEN else [ask() for ask in enabled]
        _OPEN.append(before)
        _switch([False, False, False, True])
    try:
        yield
    finally:
        with _LOCK:
            _OPEN.pop()
            if not _OPEN:
                _switch(before)


def _switch(wanted: Sequence[bool]) -> None:
    for name, state in zip(KERNELS, wanted, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(state)


def _refuse_statistics(field: nn.Module | None) -> None:
    """Layers that count the batch write to their buffers, which torch.func does not let them."""
    for name, part in () if field is None else field.named_modules():
        if isinstance(part, _NormBase) and part.training and part.track_running_stats:
            raise RuntimeError(
                f"the field's {name} ({type(part).__name__}) updates its statistics, which "
                "torch.func does not allow: call eval(), or build it with track_running_stats=False"
            )


def _at_once(x: Tensor) -> int:
    """How many products of a module of unknown make are taken at once."""
    return max(1, CHUNK // max(1, x.numel()))
