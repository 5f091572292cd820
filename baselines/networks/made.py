r"""MADE: a perceptron whose outputs see only the inputs before them.

Germain, Gregor, Murray and Larochelle 2015, "MADE: Masked Autoencoder for Distribution Estimation".

Every unit has a degree. Input x_i has the place of i in the order, 1 to D; a hidden unit of degree
m depends on the inputs of degree at most m; an output of degree d depends on hidden units of degree
less than d. So the parameters of p(x_i | x_before) depend on the inputs before i and on no other.

Which unit of a layer has which degree is a matter of names, so that they are kept sorted: masks
between hidden layers are then block-triangular, and half of their products need not be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from baselines.networks.activations import FUSED_ACTIVATIONS, check_activation
from baselines.networks.fused_mlp import by_calls, perceptron
from baselines.networks.masked_linear import MaskedLinear, Staircase, staircase_of
from cflows.core.pickling import Pickled
from cflows.core.shortcuts import may_be_read, plain

__all__ = ["MADE", "ORDERS", "Plan", "input_degrees"]

ORDERS = ("sequential", "reversed", "random")
STAIRCASE_FROM = 256  # units a layer, from which on smaller products are faster products


def input_degrees(features: int, order: str) -> Tensor:
    """Degrees 1..D of the inputs, (D,): ``degrees[i]`` is the place of x_i in the order.

    Args:
        features: D.
        order: ``"sequential"``, ``"reversed"``, or ``"random"`` from torch's generator.

    """
    if order == "sequential":
        return torch.arange(1, features + 1)
    if order == "reversed":
        return torch.arange(features, 0, -1)
    if order == "random":
        return torch.randperm(features) + 1
    raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")


@dataclass(frozen=True)
class Plan:
    """Degrees on the Python side, where loops and slices want them.

    Attributes:
        features: D.
        hidden: degrees of each hidden layer's units, ascending.

    """

    features: int
    hidden: tuple[tuple[int, ...], ...]

    @cached_property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """``edges[l][m]`` is how many units of hidden layer l have a degree below m, m = 0..D."""
        found = []
        for degrees in self.hidden:
            counts = [0] * (self.features + 1)
            for degree in degrees:
                counts[degree + 1] += 1
            found.append(tuple(torch.tensor(counts).cumsum(0).tolist()))
        return tuple(found)

    @cached_property
    def staircases(self) -> tuple[Staircase | None, ...]:
        """For each layer of the network the blocks that its mask leaves, None for a full one."""
        between = [
            staircase_of(before, after, 4) if min(len(before), len(after)) >= STAIRCASE_FROM
            else None
            for before, after in zip(self.hidden, self.hidden[1:], strict=False)
        ]  # fmt: skip
        return (None, *between, None)


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
        check_activation(activation)
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
        """Whether the layers' weights say all; else the layers are called, see ``may_be_read``."""
        return may_be_read(self.layers, MaskedLinear)

    def weights(self) -> list[Tensor] | None:
        """M ∘ W of each layer, for several passes of one call; None where layers are called."""
        return [layer.effective() for layer in self.masked] if self.is_readable else None

    def skip(self, layer: int) -> int | None:
        """The hidden layer whose values are added to this one's, None where there is none."""
        return layer - 2 if self.residual and layer >= 2 and layer % 2 == 0 else None

    def plan(self) -> Plan:
        """Degrees as Python numbers, read from the buffers: one host synchronisation."""
        buffers = (getattr(self, f"hidden_degrees_{k}") for k in range(len(self.layers) - 1))
        return _planned(self.features, tuple(tuple(buffer.tolist()) for buffer in buffers))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """(*B, D), (*B, C) -> ``outputs`` tensors (*B, D), entry i a function of those before i."""
        return self.parameters_of(x, context).unbind(-1)

    def parameters_of(
        self, x: Tensor, context: Tensor | None = None, weights: Sequence[Tensor] | None = None
    ) -> Tensor:
        """(*B, D), (*B, C) -> (*B, D, outputs), row i a function of the coordinates before i.

        Args:
            x: (*B, D).
            context: (*B, C).
            weights: of ``weights()``, where one call makes several passes.

        """
        if not torch.compiler.is_compiling():
            self.evaluations_made += 1
        offset = None
        if self.context_weight is not None:
            if context is None:
                raise ValueError(f"a context of shape (*B, {self.context_features}) is needed")
            offset = context @ self.context_weight.mT
            batch = torch.broadcast_shapes(x.shape[:-1], offset.shape[:-1])  # type: ignore[no-untyped-call]
            x, offset = x.expand(*batch, -1), offset.expand(*batch, -1)
        if weights is None:
            weights = self.weights()
        out = (self._residual if self.residual else self._straight)(x, offset, weights)
        by_output = out.reshape(*x.shape[:-1], self.outputs, self.features)
        return by_output.mT

    def _straight(
        self, x: Tensor, offset: Tensor | None, weights: Sequence[Tensor] | None
    ) -> Tensor:
        return self._pass(x, slice(None), weights, self._staircases(x), offset)

    def _residual(
        self, x: Tensor, offset: Tensor | None, weights: Sequence[Tensor] | None
    ) -> Tensor:
        activation, staircases = FUSED_ACTIVATIONS[self.activation], self._staircases(x)
        h = self._pass(x, slice(0, 1), weights, staircases, offset)
        for first in range(1, len(self.layers) - 1, 2):
            block = slice(first, first + 2)
            h = h + self._pass(activation.call(h), block, weights, staircases)
        return self._pass(activation.call(h), slice(-1, None), weights, staircases)

    def _pass(
        self,
        x: Tensor,
        some: slice,
        weights: Sequence[Tensor] | None,
        staircases: Sequence[Staircase | None],
        offset: Tensor | None = None,
    ) -> Tensor:
        """Some of the layers, one after the other."""
        activation, layers = FUSED_ACTIVATIONS[self.activation], self.masked[some]
        if weights is None:
            return by_calls(x, layers, activation, offset=offset)
        biases = [layer.bias for layer in layers]
        return perceptron(
            x, weights[some], biases, activation, offset=offset, staircases=staircases[some]
        )

    def _staircases(self, x: Tensor) -> tuple[Staircase | None, ...]:
        # Blocks pay on a CPU, for wide layers; elsewhere nobody need read the degrees.
        wide = len(self.layers) > 2 and sorted(self.widths)[-2] >= STAIRCASE_FROM
        if wide and x.device.type == "cpu" and plain(x):
            return self.plan().staircases
        return (None,) * len(self.layers)


@lru_cache(maxsize=256)
def _planned(features: int, hidden: tuple[tuple[int, ...], ...]) -> Plan:
    return Plan(features, hidden)


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
