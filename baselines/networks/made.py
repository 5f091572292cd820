r"""MADE: a perceptron whose outputs see only the inputs before them.

Germain, Gregor, Murray and Larochelle 2015, "MADE: Masked Autoencoder for Distribution Estimation".

Every unit has a degree. Input x_i has the place of i in the order, 1 to D; a hidden unit of degree
m depends on the inputs of degree at most m; an output of degree d depends on hidden units of degree
less than d. So the parameters of p(x_i | x_before) depend on the inputs before i and on no other.

Which unit of a layer has which degree is a matter of names, so that they are kept sorted: masks
between hidden layers are then block-triangular, and half of their products need not be done.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from baselines.networks.activations import FUSED_ACTIVATIONS
from baselines.networks.fused_mlp import by_calls, perceptron
from baselines.networks.masked_linear import MaskedLinear, Staircase, staircase_of
from cflows.core.arguments import known
from cflows.core.bijector import inner_weights, may_be_read, plain, unwatched
from cflows.core.pickling import Pickled

__all__ = ["MADE", "ORDERS", "MADESettings", "Plan", "input_degrees"]

ORDERS = ("sequential", "reversed", "random")
STAIRCASE_FROM = 256  # units a layer, from which on smaller products are faster products


def input_degrees(features: int, order: str) -> Tensor:
    """Degrees 1..D of the inputs, (D,): ``degrees[i]`` is the place of x_i in the order.

    Args:
        features: D.
        order: ``"sequential"``, ``"reversed"``, or ``"random"`` from torch's generator.

    """
    if known("order", order, ORDERS) == "random":
        return torch.randperm(features) + 1
    degrees = torch.arange(1, features + 1)
    return degrees if order == "sequential" else degrees.flip(0)


class Plan(NamedTuple):
    """Degrees on the Python side, where loops and slices want them.

    Attributes:
        edges: ``edges[l][m]`` is how many units of hidden layer l have a degree below m <= D + 1.
        staircases: for each layer of the network the blocks that its mask leaves, None for a full
            one.

    """

    edges: tuple[tuple[int, ...], ...]
    staircases: tuple[Staircase | None, ...]


class MADESettings(TypedDict, total=False):
    """Arguments of a ``MADE`` that those who hold one pass on."""

    hidden: Sequence[int]
    order: str
    hidden_degrees: str
    activation: str
    residual: bool


class MADE(Pickled):
    """A masked perceptron with ``outputs`` numbers for each of the D inputs.

    With a context (or for D = 1) hidden degrees start at 0 instead of 1: units that see the context
    alone, without which p(x_1 | context) would not depend on it.

    Args:
        features: D.
        context_features: C; the context enters the first layer and is seen by every unit.
        hidden: widths of the hidden layers, at least one. With ``residual``, of the blocks.
        outputs: numbers per input, such as 2 for a shift and a log-scale.
        order: of the inputs, see ``input_degrees``.
        hidden_degrees: ``"sequential"``, spread evenly over 1..D-1; or ``"random"``, each degree
            once where the width allows it, the rest drawn from torch's generator.
        activation: a name in ``FUSED_ACTIVATIONS``.
        residual: whether each entry of ``hidden``, all equal, is a block h + W₂ a(W₁ a(h)) behind
            a first masked layer (Nash and Durkan 2019, "Autoregressive Energy Machines", section
            4.1), instead of one layer.

    Attributes:
        degrees: the inputs' degrees, (D,).
        evaluations_made: passes since the module was built.

    Example:
        >>> import torch
        >>> from baselines import MADE
        >>> made = MADE(3, hidden=(16,), outputs=2)
        >>> [part.shape for part in made(torch.zeros(5, 3))]
        [torch.Size([5, 3]), torch.Size([5, 3])]

    """

    degrees: Tensor
    _read: tuple[list[Tensor], list[int], Plan] | None = None

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (128, 128),
        outputs: int = 2,
        order: str = "sequential",
        hidden_degrees: str = "sequential",
        activation: str = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        known("activation", activation, FUSED_ACTIVATIONS)
        if features < 1 or outputs < 1:
            raise ValueError(
                f"features and outputs must be at least 1, got {features} and {outputs}"
            )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must list at least one width of at least 1, got {hidden}")
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"residual blocks must be of one width, got {tuple(hidden)}")
        self.features = features
        self.context_features = context_features
        self.outputs = outputs
        self.activation = activation
        self.residual = residual
        self.evaluations_made = 0
        widths = [hidden[0]] * (2 * len(hidden) + 1) if residual else list(hidden)
        self.widths = tuple(widths)
        self.register_buffer("degrees", input_degrees(features, order))
        layers, before = [], self.degrees
        least = 0 if context_features > 0 or features == 1 else 1
        for number, width in enumerate(widths):
            # Blocks add to the units that they read: one set of degrees for all of them.
            if number == 0 or not residual:
                after = _hidden_degrees(width, features, least, hidden_degrees)
            self.register_buffer(f"hidden_degrees_{number}", after)
            layers.append(MaskedLinear(after[:, None] >= before))
            before = after
        layers.append(MaskedLinear(self.degrees.repeat(outputs)[:, None] > before))
        self.layers = nn.ModuleList(layers)
        # Zero last weights: every flow of these starts at the identity.
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.context_weight = (
            nn.Linear(context_features, widths[0], bias=False).weight if context_features else None
        )

    @property
    def masked(self) -> list[MaskedLinear]:
        """The masked layers, the last one included."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def is_readable(self) -> bool:
        """Whether the layers' weights say all; else module and layers are called."""
        return unwatched([self]) and may_be_read(self.layers, MaskedLinear)

    def hidden_weights(self) -> list[Tensor]:
        """The matrices between two hidden layers, for an optimiser that treats these apart."""
        return inner_weights(self.layers)

    def weights(self) -> list[Tensor] | None:
        """M ∘ W of each layer, for several passes of one call; None where layers are called."""
        if not may_be_read(self.layers, MaskedLinear):
            return None
        return [layer.weight * layer.mask for layer in self.masked]

    def __getstate__(self) -> dict[str, object]:
        # The buffers that were read may since have been replaced, on another device.
        return {**self.__dict__, "_read": None}

    def plan(self) -> Plan:
        """Degrees as Python numbers; a device is asked anew where their buffers have changed."""
        buffers = [getattr(self, f"hidden_degrees_{k}") for k in range(len(self.layers) - 1)]
        versions = [-1 if buffer.is_inference() else buffer._version for buffer in buffers]
        if self._read is not None:
            earlier, then, plan = self._read
            same = versions == then and all(map(operator.is_, buffers, earlier))
            # What is written past its version, by .data, is noticed where reading is cheap.
            if same and buffers[0].device.type != "cpu":
                return plan
        plan = _planned(self.features, tuple(tuple(buffer.tolist()) for buffer in buffers))
        self._read = buffers, versions, plan
        return plan

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """(*B, D), (*B, C) -> ``outputs`` tensors (*B, D), entry i a function of those before i."""
        return self._by_output(x, context, self.weights()).unbind(-1)

    def parameters_of(
        self, x: Tensor, context: Tensor | None = None, weights: Sequence[Tensor] | None = None
    ) -> Tensor:
        """(*B, D), (*B, C) -> (*B, D, outputs), row i a function of the coordinates before i.

        Args:
            x: (*B, D).
            context: (*B, C).
            weights: of ``weights()``, where one call makes several passes.

        """
        if not unwatched([self]):
            return torch.stack(self(x, context), dim=-1)
        return self._by_output(x, context, self.weights() if weights is None else weights)

    def _by_output(
        self, x: Tensor, context: Tensor | None, weights: Sequence[Tensor] | None
    ) -> Tensor:
        if not torch.compiler.is_compiling():
            self.evaluations_made += 1
        offset = None
        if self.context_weight is not None:
            if context is None:
                raise ValueError(f"a context of shape (*B, {self.context_features}) is needed")
            offset = context @ self.context_weight.mT
            batch = torch.broadcast_shapes(x.shape[:-1], offset.shape[:-1])  # type: ignore[no-untyped-call]
            x, offset = x.expand(*batch, -1), offset.expand(*batch, -1)
        activation, staircases = FUSED_ACTIVATIONS[self.activation], self._staircases(x)

        def through(some: slice, h: Tensor, offset: Tensor | None = None) -> Tensor:
            layers = self.masked[some]
            if weights is None:
                return by_calls(h, layers, activation, offset=offset)
            biases = [layer.bias for layer in layers]
            return perceptron(
                h, weights[some], biases, activation, offset=offset, staircases=staircases[some]
            )

        if self.residual:
            h = through(slice(0, 1), x, offset)
            for first in range(1, len(self.layers) - 1, 2):
                h = h + through(slice(first, first + 2), activation.call(h))
            out = through(slice(-1, None), activation.call(h))
        else:
            out = through(slice(None), x, offset)
        return out.reshape(*x.shape[:-1], self.outputs, self.features).mT

    def _staircases(self, x: Tensor) -> tuple[Staircase | None, ...]:
        # Blocks pay on a CPU, for wide layers; elsewhere nobody need read the degrees.
        wide = len(self.layers) > 2 and sorted(self.widths)[-2] >= STAIRCASE_FROM
        if wide and x.device.type == "cpu" and plain(x):
            return self.plan().staircases
        return (None,) * len(self.layers)


@lru_cache(maxsize=256)
def _planned(features: int, hidden: tuple[tuple[int, ...], ...]) -> Plan:
    """The plan for hidden layers whose units have these degrees, ascending."""
    edges = (tuple(bisect_left(degrees, m) for m in range(features + 2)) for degrees in hidden)
    between = (
        staircase_of(*pair, 4) if min(map(len, pair)) >= STAIRCASE_FROM else None
        for pair in pairwise(hidden)
    )
    return Plan(tuple(edges), (None, *between, None))


def _hidden_degrees(width: int, features: int, least: int, kind: str) -> Tensor:
    """Sorted degrees that cover their range; none is left out where the width allows it."""
    count = max(features - least, 1)
    if kind == "sequential":
        return least + torch.arange(width) * count // width
    if kind == "random":
        every = torch.randperm(count)
        more = torch.randint(count, (max(width - count, 0),))
        return least + torch.cat([every, more])[:width].sort().values
    raise ValueError(f"hidden_degrees must be sequential or random; got {kind!r}")
