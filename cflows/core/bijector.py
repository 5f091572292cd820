r"""Invertible maps: the contract that every part of a flow keeps.

The direction is fixed throughout the package: ``forward`` takes noise to data, x = f(z), and
``inverse`` takes data to noise, z = f⁻¹(x), as in Papamakarios et al. 2021, "Normalizing Flows for
Probabilistic Modeling and Inference", section 2.1.

What reads values, or takes another way than torch's own calls, one after the other, asks here where
it may: not where a transform, a compiler or forward differentiation has rules of its own, nor where
somebody watches a module's calls or has put another one in its place.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.distributions import constraints
from torch.nn.modules import module as every_module

from cflows.core.pickling import Pickled

__all__ = [
    "Bijector",
    "Chain",
    "Mapped",
    "bounded",
    "exported",
    "fusible",
    "inner_weights",
    "may_be_read",
    "may_read",
    "plain",
    "recorded",
    "refuse_low_precision",
    "transformed",
    "unwatched",
]

BOUND = 5.0  # of log scales, unless another is given
LOW_PRECISION = (torch.float16, torch.bfloat16)

Mapped: TypeAlias = tuple[Tensor, Tensor]
"""What a map gives (*B, D), and its log-determinant (*B,)."""

T = TypeVar("T")


def _checked_noise(method: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(method)
    def checked(self: Bijector, z: Tensor, context: Tensor | None = None) -> T:
        return method(self, *self.broadcast(z, context))

    return checked


def _checked_data(method: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(method)
    def checked(self: Bijector, x: Tensor, context: Tensor | None = None) -> T:
        return method(self, *self.broadcast(x, context))

    return checked


class Bijector(Pickled, ABC):
    """An invertible, differentiable map x = f(z; context) of R^D to R^D.

    Subclasses write the two methods that return a log-determinant; ``forward`` and ``inverse``
    follow from them and are overridden where the log-determinant can be left out to save work.
    What a subclass writes is given z or x and the context as ``broadcast`` returns them: checked,
    and of one leading shape.

    Args:
        features: D, the size of the last dimension of z and x.
        context_features: C, the size of the last dimension of the context; 0 where there is none.

    Example:
        >>> import torch
        >>> from cflows import Bijector
        >>> class Cube(Bijector):
        ...     def forward_and_log_det(self, z, context=None):
        ...         return z**3, (3 * z**2).log().sum(-1)
        ...     def inverse_and_log_det(self, x, context=None):
        ...         z = x.sign() * x.abs() ** (1 / 3)
        ...         return z, -(3 * z**2).log().sum(-1)
        >>> Cube(1).forward_and_log_det(torch.tensor([2.0]))  # log 12
        (tensor([8.]), tensor(2.4849))

    """

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        for name, checked in (("forward", _checked_noise), ("inverse", _checked_data)):
            for method in (name, f"{name}_and_log_det"):
                if method in vars(cls):
                    setattr(cls, method, checked(vars(cls)[method]))

    def __init__(self, features: int, context_features: int = 0) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        if context_features < 0:
            raise ValueError(f"context_features must be at least 0, got {context_features}")
        self.features = features
        self.context_features = context_features

    @property
    def codomain(self) -> constraints.Constraint:
        """Where the data lie, as torch.distributions has it: R^D unless a map says otherwise."""
        return constraints.real_vector

    @property
    def domain(self) -> constraints.Constraint:
        """What noise the map takes, likewise."""
        return constraints.real_vector

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data: x = f(z), (*B, D) -> (*B, D)."""
        return self.forward_and_log_det(z, context)[0]

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Data to noise: z = f⁻¹(x), (*B, D) -> (*B, D)."""
        return self.inverse_and_log_det(x, context)[0]

    @abstractmethod
    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """Noise to data with its volume change: x (*B, D) and log|det dx/dz| (*B,)."""

    @abstractmethod
    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Data to noise with its volume change: z (*B, D) and log|det dz/dx| (*B,)."""

    def broadcast(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Check z or x (*B, D) and the context (*B, C), and give both the same leading shape.

        Raises:
            TypeError: one of them is not a tensor of float32 or float64.
            ValueError: a shape does not fit; the message says which would.

        """
        check_last("the input", value, self.features, "D")
        if self.context_features == 0:
            if context is not None:
                raise ValueError("this flow takes no context: it was built with context_features=0")
            return value, None
        if context is None:
            raise ValueError(f"a context of shape (*B, {self.context_features}) is needed")
        check_last("the context", context, self.context_features, "C")
        try:
            batch = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
                value.shape[:-1], context.shape[:-1]
            )
        except RuntimeError:
            raise ValueError(
                f"the leading dimensions of the input {tuple(value.shape)} and of the context "
                f"{tuple(context.shape)} do not broadcast"
            ) from None
        return value.expand(*batch, -1), context.expand(*batch, -1)


class Chain(Bijector):
    """The composition x = f_K(... f_1(z)), its parts listed from noise to data.

    log|det dx/dz| is the sum of the parts' log-determinants, each at its own input.

    Args:
        parts: bijectors of the same number of features; those with a context share one.

    Example:
        >>> import torch
        >>> from cflows import Affine, Chain
        >>> double, shift = Affine([0.0], [2.0]), Affine([1.0], [1.0])
        >>> Chain(double, shift)(torch.tensor([3.0]))
        tensor([7.])

    """

    def __init__(self, *parts: Bijector) -> None:
        if not parts:
            raise ValueError("Chain needs at least one bijector")
        sizes = {part.features for part in parts}
        contexts = {part.context_features for part in parts} - {0}
        if len(sizes) > 1:
            raise ValueError(f"the parts of a Chain differ in features: {sorted(sizes)}")
        if len(contexts) > 1:
            raise ValueError(f"the parts of a Chain differ in context: {sorted(contexts)}")
        super().__init__(sizes.pop(), contexts.pop() if contexts else 0)
        self.parts = nn.ModuleList(parts)

    @property
    def codomain(self) -> constraints.Constraint:
        """That of the last part, R^D where one before it reaches a part of R^D alone."""
        return _of_last(part.codomain for part, _ in self._with_context(self.parts, None))

    @property
    def domain(self) -> constraints.Constraint:
        """That of the first part, R^D where one behind it takes a part of R^D alone."""
        parts = self._with_context(reversed(self.parts), None)
        return _of_last(part.domain for part, _ in parts)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data, first part first; no log-determinant is computed."""
        for part, own in self._with_context(self.parts, context):
            z = part(z, own)
        return z

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Data to noise, last part first; no log-determinant is computed."""
        for part, own in self._with_context(reversed(self.parts), context):
            x = part.inverse(x, own)
        return x

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """Noise to data; the parts' log-determinants add up."""
        total = z.new_zeros(z.shape[:-1])
        for part, own in self._with_context(self.parts, context):
            z, log_det = part.forward_and_log_det(z, own)
            total = total + log_det
        return z, total

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Data to noise; the parts' log-determinants add up."""
        total = x.new_zeros(x.shape[:-1])
        for part, own in self._with_context(reversed(self.parts), context):
            x, log_det = part.inverse_and_log_det(x, own)
            total = total + log_det
        return x, total

    @staticmethod
    def _with_context(
        parts: Iterable[nn.Module], context: Tensor | None
    ) -> Iterable[tuple[Bijector, Tensor | None]]:
        for part in parts:
            assert isinstance(part, Bijector)
            yield part, context if part.context_features else None


def bounded(raw: Tensor, bound: float = BOUND) -> Tensor:
    """a tanh(s / a): near s for small s, and never past ±a."""
    return bound * torch.tanh(raw / bound)


def _of_last(ranges: Iterable[constraints.Constraint]) -> constraints.Constraint:
    *before, last = ranges
    whole = all(each is constraints.real_vector for each in before)
    return last if whole else constraints.real_vector


def refuse_low_precision(name: str, dtype: torch.dtype | None) -> None:
    """A TypeError for half precision: a log-determinant of it has three digits.

    Raises:
        TypeError: the dtype is float16 or bfloat16.

    """
    if dtype in LOW_PRECISION:
        raise TypeError(
            f"{name} is {dtype}: densities need float32 or float64; for speed run float32 "
            "within torch.autocast"
        )


def check_last(name: str, value: Tensor, size: int, symbol: str) -> None:
    """Refuse what is no floating-point tensor (*B, size).

    Args:
        name: of the value, in messages.
        value: such a tensor.
        size: of its last dimension.
        symbol: what that is called.

    Raises:
        TypeError: another kind, or half precision.
        ValueError: another shape.

    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    refuse_low_precision(name, value.dtype)
    if value.shape[-1:] != (size,):
        raise ValueError(
            f"{name} must have shape (*B, {size}), {symbol} = {size} its last dimension; "
            f"got {tuple(value.shape)}"
        )


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jacrev, ...) is at work.

    Each value stands for many there, or is differentiated by rules that torch.autograd.grad does
    not know; a tensor that is kept outlives its transform.
    """
    return torch._C._are_functorch_transforms_active()


def recorded() -> bool:
    """Whether the operations are recorded, by torch.compile or torch.export, to be run later."""
    return torch.compiler.is_compiling()


def exported() -> bool:
    """Whether torch.export records."""
    # torch 2.6 has no such question: there a compilation is told from an export by nothing.
    ask = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(ask())


def may_read(value: Tensor) -> bool:
    """Whether a check may ask a tensor for its numbers: not while something traces or transforms.

    Under torch.func's transforms, torch.compile, torch.export, torch.jit.trace and make_fx, within
    the capture of a CUDA graph, and for tensors without numbers (meta, fake), checks of values are
    left out: what they would refuse becomes NaN or infinite.
    """
    # First, since the compiler sees through no question below.
    if torch.compiler.is_compiling():
        return False
    return not (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or value.is_meta
        or isinstance(value, FakeTensor)
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or (value.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def fusible(x: Tensor) -> bool:
    """Whether a custom ``torch.autograd.Function`` may stand for several operations on x.

    torch.func, compilation and tracing, and forward differentiation, have a rule of their own for
    each operation: they see no custom Function.
    """
    return may_read(x) and forward_ad._current_level < 0


def plain(x: Tensor) -> bool:
    """Whether neither autocast nor a transform asks for torch's own operations."""
    return fusible(x) and not torch.is_autocast_enabled(x.device.type)


def inner_weights(layers: nn.ModuleList) -> list[Tensor]:
    """The weights of all layers but the first and the last: from hidden units to hidden units."""
    inner = layers[1:-1].named_parameters()
    return [weight for name, weight in inner if name.endswith(".weight")]


def may_be_read(layers: Iterable[nn.Module], kind: type[nn.Module]) -> bool:
    """Whether the layers' weights say all that a call of them would do.

    Not so where a hook watches the calls or computes the weights (``weight_norm``, ``prune``, the
    older ``spectral_norm``), nor for another class in a layer's place (low-rank adapters, quantised
    layers). ``torch.nn.utils.parametrize`` may be read.

    Args:
        layers: which.
        kind: what they were built as; a subclass with a forward of its own is another class.

    """
    parts, forward = list(layers), kind.forward
    return unwatched(parts) and all(
        isinstance(part, kind) and type(part).forward is forward and "forward" not in part.__dict__
        for part in parts
    )


def unwatched(modules: Iterable[nn.Module]) -> bool:
    """Whether no hook, of these modules or of all, would notice that they are not called."""
    return not every_module._has_any_global_hook() and not any(  # type: ignore[no-untyped-call]
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        for module in modules
    )
