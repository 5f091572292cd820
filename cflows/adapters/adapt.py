"""Flows of zuko, nflows, normflows, pyro and torch as flows of this package.

Each library has its own call and its own direction. An adapter keeps the module, shared and not
copied, and turns both: ``forward`` is noise to data, ``inverse`` data to noise, each with its
log-determinant, for rows (*B, D) and a context (*B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, TransformedDistribution
from torch.distributions.transforms import ComposeTransform

from cflows.adapters.bases import NflowsBase, NormflowsBase, TorchLaw, ZukoBase, embedded, keyword
from cflows.bases.torch import TorchBase
from cflows.core.base import Base, Normal
from cflows.core.bijector import Bijector, Mapped
from cflows.core.flow import Flow

__all__ = ["AdaptedBijector", "adapt"]


class AdaptedBijector(Bijector):
    """Another library's map, which takes rows (N, D) and a context (N, C) or None.

    Subclasses write ``drawn`` and ``scored``.
    """

    def drawn(self, z: Tensor, context: Tensor | None) -> Mapped:
        """Noise to data, (N, D), with log|det dx/dz|."""
        raise TypeError(f"{type(self).__name__} must define drawn")

    def scored(self, x: Tensor, context: Tensor | None) -> Mapped:
        """Data to noise, (N, D), with log|det dz/dx|."""
        raise TypeError(f"{type(self).__name__} must define scored")

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """Noise to data."""
        return self._flattened(self.drawn, z, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Data to noise."""
        return self._flattened(self.scored, x, context)

    def _flattened(
        self, mapped: Callable[..., Mapped], value: Tensor, context: Tensor | None
    ) -> Mapped:
        rows = value.reshape(-1, self.features)
        if context is not None:
            context = context.reshape(-1, self.context_features)
        result, log_det = mapped(rows, context)
        # Some libraries give one log-determinant for all rows, of a constant scale.
        log_det = log_det.reshape(-1).expand(len(rows))
        return result.reshape(value.shape), log_det.reshape(value.shape[:-1])


class ZukoBijector(AdaptedBijector):
    """A ``zuko.lazy.LazyTransform``: data to noise."""

    def __init__(self, transform: nn.Module, features: int, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        self.transform = transform

    def drawn(self, z: Tensor, context: Tensor | None) -> Mapped:
        """Its inverse."""
        mapped: Mapped = self.transform(context).inv.call_and_ladj(z)
        return mapped

    def scored(self, x: Tensor, context: Tensor | None) -> Mapped:
        """Its call."""
        mapped: Mapped = self.transform(context).call_and_ladj(x)
        return mapped


class NflowsBijector(AdaptedBijector):
    """An ``nflows.transforms.Transform``, data to noise, and the network that embeds contexts."""

    def __init__(
        self,
        transform: nn.Module,
        features: int,
        context_features: int = 0,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__(features, context_features)
        self.transform, self.embedding = transform, embedding

    def drawn(self, z: Tensor, context: Tensor | None) -> Mapped:
        """Its inverse."""
        inverse: Any = self.transform.inverse
        mapped: Mapped = inverse(z, context=embedded(self.embedding, context))
        return mapped

    def scored(self, x: Tensor, context: Tensor | None) -> Mapped:
        """Its call."""
        mapped: Mapped = self.transform(x, context=embedded(self.embedding, context))
        return mapped


class NormflowsBijector(AdaptedBijector):
    """A list of ``normflows.flows.Flow``, each of noise to data."""

    def __init__(self, flows: nn.ModuleList, features: int, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        self.flows = flows

    def drawn(self, z: Tensor, context: Tensor | None) -> Mapped:
        """The first one first."""
        return self._through([flow.forward for flow in self.flows], z, context)

    def scored(self, x: Tensor, context: Tensor | None) -> Mapped:
        """The last one's inverse first."""
        inverses: list[Any] = [flow.inverse for flow in reversed(self.flows)]
        return self._through(inverses, x, context)

    def _through(
        self, calls: list[Callable[..., Mapped]], value: Tensor, context: Tensor | None
    ) -> Mapped:
        total = value.new_zeros(len(value))
        for call in calls:
            value, log_det = call(value, **keyword(context))
            total = total + log_det.reshape(-1)
        return value, total


class TorchBijector(AdaptedBijector):
    """Transforms of torch.distributions, noise to data; those that are modules are trained."""

    def __init__(self, transform: ComposeTransform, features: int) -> None:
        super().__init__(features)
        self.transform = transform
        self.leaves = list(_leaves(transform))
        self.parts = nn.ModuleList(leaf for leaf in self.leaves if isinstance(leaf, nn.Module))

    def drawn(self, z: Tensor, context: Tensor | None) -> Mapped:
        """Its call."""
        x = self.transform(z)
        return x, self._log_det(z, x)

    def scored(self, x: Tensor, context: Tensor | None) -> Mapped:
        """Its inverse."""
        z = self.transform.inv(x)
        return z, -self._log_det(z, x)

    def _log_det(self, z: Tensor, x: Tensor) -> Tensor:
        transform: Any = self.transform
        log_det: Tensor = transform.log_abs_det_jacobian(z, x)
        for leaf in self.leaves:  # what it keeps of this batch is a graph, which no copy takes
            for name in [name for name in vars(leaf) if name.startswith("_cached_")]:
                setattr(leaf, name, (None, None) if name == "_cached_x_y" else None)
        return log_det.flatten(1).sum(1) if log_det.dim() > 1 else log_det


def _leaves(transform: Any) -> Iterator[Any]:
    """The transforms that one is made of, inverses and composites taken apart."""
    # Of a transform that is no inverse, _inv is a way to one.
    one = [transform._inv] if "Inverse" in type(transform).__name__ else []
    one.append(getattr(transform, "base_transform", None))
    several = [*getattr(transform, "parts", []), *getattr(transform, "transforms", [])]
    inner = [part for part in (*one, *several) if isinstance(part, Transform)]
    for part in inner:
        yield from _leaves(part)
    if not inner:
        yield transform


def adapt(flow: nn.Module | Distribution, *, context_features: int = 0) -> Flow:
    """A flow of another library as a flow of this package; its modules are shared, not copied.

    Of zuko any lazy flow (``zuko.flows.NSF(...)``), of nflows a ``Flow``, of normflows a
    ``NormalizingFlow`` or ``ConditionalNormalizingFlow``, of torch and pyro a
    ``TransformedDistribution``. What it trains, draws and scores is what the library would, and
    the directions are those of here: ``forward`` is noise to data. It is not saved by ``save``,
    since its constructor is not known here: save the module's own ``state_dict``. A base of torch
    is copied, and stays as it is.

    Args:
        flow: the library's.
        context_features: C, the size of a context; 0 where it takes none.

    Raises:
        TypeError: no flow of these libraries.

    Example:
        >>> import torch
        >>> from torch.distributions import AffineTransform, MultivariateNormal
        >>> from torch.distributions import TransformedDistribution
        >>> from cflows import adapt
        >>> base = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> flow = adapt(TransformedDistribution(base, [AffineTransform(1.0, 3.0)]))
        >>> flow.log_prob(torch.ones(1, 2))  # -log(2 pi) - 2 log 3
        tensor([-4.0351])

    """
    names = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(flow).__mro__]
    known: Any = flow
    if "zuko.Flow" in names:
        return _of_zuko(known, context_features)
    if "nflows.Flow" in names:
        return _of_nflows(known, context_features)
    if "normflows.NormalizingFlow" in names:
        return _of_normflows(known, context_features)
    if isinstance(flow, TransformedDistribution):
        if context_features:
            raise TypeError(
                "a TransformedDistribution takes no context: leave context_features out"
            )
        return _of_torch(flow)
    raise TypeError(
        "adapt knows flows of zuko, nflows and normflows, and TransformedDistribution of torch "
        f"and pyro; got a {type(flow).__name__}: write a cflows.Bijector of your own, or take "
        "field_from for a velocity network"
    )


def _some_context(flow: nn.Module, context_features: int) -> Tensor | None:
    """A context where the flow is, in its dtype."""
    return _like(flow).new_zeros(1, context_features) if context_features else None


def _like(flow: nn.Module) -> Tensor:
    """A tensor of the flow's device and dtype."""
    held = (value for value in (*flow.parameters(), *flow.buffers()) if value.is_floating_point())
    return next(held, torch.zeros(()))


def _standard(bijector: Bijector, flow: nn.Module) -> Flow:
    """Behind a standard normal, where the library's flow is and in its dtype."""
    return Flow(bijector, Normal(bijector.features).to(_like(flow)))


def _of_zuko(flow: Any, context_features: int) -> Flow:
    law = flow.base(_some_context(flow, context_features))
    features = law.event_shape[0]
    bijector = ZukoBijector(flow.transform, features, context_features)
    if (
        type(law).__name__ == "DiagNormal"
        and not list(flow.base.parameters())
        and not bool(law.mean.any())
        and bool((law.stddev == 1).all())
    ):
        return _standard(bijector, flow)
    return Flow(bijector, ZukoBase(flow.base, features, law.has_rsample))


def _of_nflows(flow: Any, context_features: int) -> Flow:
    law, embedding = flow._distribution, flow._embedding_net
    embedding = None if isinstance(embedding, nn.Identity) else embedding
    if not hasattr(law, "_shape"):
        raise TypeError(f"the base {type(law).__name__} of this nflows Flow does not say its size")
    features = law._shape.numel()
    bijector = NflowsBijector(flow._transform, features, context_features, embedding)
    if type(law).__name__ == "StandardNormal":
        return _standard(bijector, flow)
    return Flow(bijector, NflowsBase(law, features, embedding))


def _of_normflows(flow: Any, context_features: int) -> Flow:
    some = _some_context(flow, context_features)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        shape = flow.q0(1, **keyword(some))[0].shape
    if len(shape) != 2:
        raise TypeError(f"a flow of rows (N, D) is needed, this one draws {tuple(shape[1:])}")
    features = shape[1]
    bijector = NormflowsBijector(flow.flows, features, context_features)
    return Flow(bijector, NormflowsBase(flow.q0, features, has_rsample=True))


def _of_torch(flow: TransformedDistribution) -> Flow:
    shape = flow.batch_shape + flow.event_shape
    if len(shape) != 1:
        raise TypeError(f"a distribution over rows (D,) is needed, this one is over {tuple(shape)}")
    bijector = TorchBijector(ComposeTransform(flow.transforms), shape[0])
    held = [value for value in vars(flow.base_dist).values() if isinstance(value, Tensor)]
    if any(value.requires_grad for value in held):
        raise TypeError(
            "the base holds tensors that are trained, which a flow's parameters would not show: "
            "build Flow(bijector, TorchBase.of(base, learnable=True))"
        )
    try:
        base: Base = TorchBase.of(flow.base_dist)
    except TypeError:
        base = TorchLaw(flow.base_dist, shape[0], has_rsample=False)
    return Flow(bijector, base)
