"""Distributions of ``torch.distributions`` as bases that move, train and are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    Transform,
    biject_to,
    constraints,
    transform_to,
)

from cflows.core.base import Base, _batch

__all__ = ["TorchBase"]

# Names for what another argument says already: torch takes one of each group.
REDUNDANT = ("covariance_matrix", "precision_matrix", "probs")
REMEDY = "write a subclass of cflows.Base with log_prob and sample"


class TorchBase(Base):
    """A distribution of torch on R^D or a box in it, its arguments held as state of the module.

    The distribution is built anew at each call, so that it is where the flow is, in its dtype.
    Build it from one that is there already with ``TorchBase.of``. A density is -inf outside of the
    distribution's support.

    Args:
        name: a class of ``torch.distributions``, "Laplace" or "MultivariateNormal" say.
        arguments: its tensors by name. D scalars in a batch are read as independent coordinates.
        learnable: whether the arguments are trained, each through ``transform_to`` of its
            constraint (a scale through its logarithm), so that every step leaves them valid.

    Raises:
        TypeError: no such class, or none that is a density over R^D with tensors for arguments.
        ValueError: an argument's value is wrong.

    Example:
        >>> import torch
        >>> from cflows import TorchBase
        >>> base = TorchBase.of(torch.distributions.Laplace(torch.zeros(2), torch.ones(2)))
        >>> base.log_prob(torch.zeros(2))  # -2 log 2
        tensor(-1.3863)

    """

    def __init__(self, name: str, arguments: Mapping[str, Tensor], *, learnable: bool = False):
        cls = _class(name)
        try:
            # Said aloud: torch.compile turns the default off for the whole process.
            built = cls(**arguments, validate_args=True)
        except TypeError as error:
            raise TypeError(f"{name} takes no {sorted(arguments)} ({error}): {REMEDY}") from None
        super().__init__(_features(built))
        self.name, self.learnable, self.has_rsample = name, learnable, built.has_rsample
        self.names = tuple(arguments)
        for key, value in arguments.items():
            value = value.detach().clone(memory_format=torch.contiguous_format)
            if learnable:
                self.register_parameter(f"raw_{key}", nn.Parameter(_free(cls, key).inv(value)))
            else:
                self.register_buffer(key, value)

    @classmethod
    def of(cls, distribution: Distribution, *, learnable: bool = False) -> TorchBase:
        """The base that starts as a copy of this distribution.

        Raises:
            TypeError: the distribution is no density over R^D, or is made of other distributions.

        """
        inner = distribution
        while isinstance(inner, Independent):
            inner = inner.base_dist
        name = type(inner).__name__
        if getattr(torch.distributions, name, None) is not type(inner) or not inner.arg_constraints:
            raise TypeError(f"{name} is not built of tensors alone: {REMEDY}")
        keys = [key for key in inner.arg_constraints if key not in REDUNDANT]
        return cls(name, {key: getattr(inner, key).detach() for key in keys}, learnable=learnable)

    def distribution(self) -> Distribution:
        """The distribution with the arguments of now: no batch shape, event shape (D,)."""
        law = self._law()
        return law if law.event_shape else Independent(law, 1, validate_args=False)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The distribution's log-density; -inf outside of its support."""
        law = self._law()
        support = _scalar_support(law)
        if support is constraints.real:
            return self._joint(law, z)
        inside: Tensor = support.check(z)  # type: ignore[no-untyped-call]
        # A point of the support stands in for what is outside: no NaN enters a gradient.
        z = torch.where(inside, z, biject_to(support)(torch.zeros_like(z)))
        return self._joint(law, z).masked_fill(~inside.all(-1), -torch.inf)

    def rsample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draws with gradient, where the distribution has them."""
        if not self.has_rsample:
            return super().rsample(shape, context)
        return self._law().rsample(torch.Size((*shape, *_batch(context))))

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draws without gradient."""
        return self._law().sample(torch.Size((*shape, *_batch(context))))

    def _law(self) -> Distribution:
        """The distribution as torch has it, of D scalars in a batch or of one event."""
        cls = _class(self.name)
        if self.learnable:
            values = {key: _free(cls, key)(getattr(self, f"raw_{key}")) for key in self.names}
        else:
            values = {key: getattr(self, key) for key in self.names}
        law: Distribution = cls(**values, validate_args=False)
        return law

    @staticmethod
    def _joint(law: Distribution, z: Tensor) -> Tensor:
        # Summed here: torch's Independent fails on a batch of no rows.
        return law.log_prob(z) if law.event_shape else law.log_prob(z).sum(-1)


def _class(name: str) -> Any:
    cls = getattr(torch.distributions, name, None)
    if not (isinstance(cls, type) and issubclass(cls, Distribution)):
        raise TypeError(f"torch.distributions has no distribution {name!r}: {REMEDY}")
    return cls


def _features(distribution: Distribution) -> int:
    """D, of a density over R^D."""
    name = type(distribution).__name__
    shape = distribution.batch_shape + distribution.event_shape
    if len(shape) != 1:
        raise TypeError(
            f"{name} has batch shape {tuple(distribution.batch_shape)} and event shape "
            f"{tuple(distribution.event_shape)}: one dimension (D,) is needed in all"
        )
    support = _scalar_support(distribution)
    if support.is_discrete or support.event_dim or name == "VonMises":
        raise TypeError(f"{name} is no density over R^D, which a flow starts from: {REMEDY}")
    return shape[0]


def _scalar_support(distribution: Distribution) -> constraints.Constraint:
    support = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    assert isinstance(support, constraints.Constraint)
    return support


def _free(cls: Any, key: str) -> Transform:
    """The map from R onto what an argument may be."""
    try:
        # Uniform's constraints hang on one another: its table is a property, of instances.
        free: Transform = transform_to(cls.arg_constraints[key])
    except (KeyError, TypeError, NotImplementedError):
        raise TypeError(
            f"{key} of {cls.__name__} has no free parametrisation: use learnable=False, or {REMEDY}"
        ) from None
    return free
