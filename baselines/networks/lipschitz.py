r"""Networks that contract: |g(x) - g(y)| ≤ c |x - y| with c < 1, whatever their parameters are.

g is a perceptron whose activations have slopes within [-1, 1] and whose weights are divided by what
their largest singular value has too much. That value is usually estimated by power iteration, from
below, with a state that must have caught up with the weights (Miyato et al. 2018). Here it is
bounded from above by squaring the Gram matrix (Delattre et al. 2023, "Efficient Bound of Lipschitz
Constant for Convolutional Layers by Gram Iteration"): no state, and a contraction at every step of
training and after every load.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows.continuous.fields import FrozenMLP
from cflows.continuous.layers import ACTIVATIONS, Activation
from cflows.core.arguments import known
from cflows.core.bijector import fusible, may_be_read
from cflows.core.first_order import Context
from cflows.core.pickling import Pickled

__all__ = ["CONTRACTIVE", "LipSwish", "LipschitzMLP", "spectral_bound"]

SQUARINGS = 6


class LipSwish(Activation):
    """s = a σ(ba) / 1.1 with a learned b = softplus(β) > 0 (Chen et al. 2019, section 3.2).

    Its slope lies within [-0.1, 1] for any b, and does not vanish where its derivative does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.5))

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """a σ / 1.1 and (σ + ba σ (1 - σ)) / 1.1."""
        steepness = F.softplus(self.beta)
        gate = torch.sigmoid(steepness * a)
        value = a * gate / 1.1
        return value, gate / 1.1 + steepness * value * (1 - gate)


CONTRACTIVE: dict[str, type[Activation]] = {
    "lipswish": LipSwish,
    "elu": ACTIVATIONS["elu"],
    "tanh": ACTIVATIONS["tanh"],
}


def spectral_bound(weight: Tensor) -> Tensor:
    """A tight upper bound of a matrix's largest singular value.

    ‖G^q‖_F^(1/2q) for G = W Wᵀ and q = 2^6: the Schatten norm of order 4q, which exceeds it by no
    more than a factor rank(W)^(1/4q), 1.016 at rank 64. It is homogeneous of degree 1, so that it
    equals the inner product of W and its own derivative, which is a multiple of G^(2q-1) W: no
    graph of the squarings is needed, as in σ = uᵀ W v. A second derivative goes through them.

    Args:
        weight: W, (m, n).

    Example:
        >>> import torch
        >>> from baselines.networks.lipschitz import spectral_bound
        >>> round(spectral_bound(torch.diag(torch.tensor([3.0, 1.0]))).item(), 5)
        3.0

    """
    if not weight.requires_grad or not fusible(weight):
        return (weight * _bound_derivative(weight)).sum()
    bound: Tensor = _Bound.apply(weight)  # type: ignore[no-untyped-call]
    return bound


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, weight: Tensor) -> Tensor:
        derivative = _bound_derivative(weight)
        ctx.save_for_backward(weight, derivative)
        return (weight * derivative).sum()

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> Tensor:
        weight, derivative = ctx.saved_tensors
        if torch.is_grad_enabled():
            derivative = _bound_derivative(weight)
        return gradient * derivative


class LipschitzMLP(Pickled):
    """A perceptron g(x, context) that contracts in x: Lip(g) ≤ coefficient^L < 1 for L layers.

    W h becomes min(1, coefficient / σ(W)) W h, σ(W) by ``spectral_bound`` (Gouk et al. 2021,
    "Regularisation of neural networks by enforcing Lipschitz continuity"). The context adds U c to
    the first layer; how steep g is in the context is free. The last layer starts at zero.

    Args:
        features: D.
        context_features: C.
        hidden: widths of the hidden layers, at least one.
        coefficient: of each layer, within (0, 1).
        activation: a name in ``CONTRACTIVE``: ``"lipswish"``, ``"elu"`` or ``"tanh"``.

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64, 64),
        coefficient: float = 0.97,
        activation: str = "lipswish",
    ) -> None:
        super().__init__()
        known("activation", activation, CONTRACTIVE)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must list at least one width of at least 1, got {hidden}")
        if not 0 < coefficient < 1:
            raise ValueError(f"coefficient must lie in (0, 1) for a contraction, got {coefficient}")
        self.coefficient = coefficient
        layers = [nn.Linear(a, b) for a, b in pairwise([features, *hidden, features])]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(CONTRACTIVE[activation]() for _ in hidden)
        self.context = (
            nn.Linear(context_features, hidden[0], bias=False) if context_features else None
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """g(x, context): (*B, D) and (*B, C) -> (*B, D)."""
        return self.frozen(context)(x)

    def frozen(self, context: Tensor | None = None) -> FrozenMLP:
        """g as a function of x alone, its weights divided once for all calls.

        Raises:
            TypeError: a layer carries hooks or is no plain ``nn.Linear``.

        """
        if not may_be_read(self.layers, nn.Linear):
            raise TypeError(
                "a contraction divides the weights of its layers and never calls them: take the "
                "hooks off, or use torch.nn.utils.parametrize"
            )
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        activations = [part for part in self.activations if isinstance(part, Activation)]
        weights = [self._contracted(layer.weight) for layer in layers]
        shifts: list[Tensor] = [layer.bias for layer in layers]
        if self.context is not None:
            shifts[0] = shifts[0] + self.context(context)
        return FrozenMLP(weights, [None] * len(layers), shifts, activations)

    def _contracted(self, weight: Tensor) -> Tensor:
        return weight / (spectral_bound(weight) / self.coefficient).clamp_min(1)


def _bound_derivative(weight: Tensor) -> Tensor:
    """M = G^(2q-1) W, scaled so that its inner product with W is the bound."""
    tiny = torch.finfo(weight.dtype).tiny
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.mT
    wide = wide / wide.abs().max().clamp_min(tiny)
    gram, image = wide @ wide.mT, wide
    log_bound = gram.new_zeros(())
    for halving in range(SQUARINGS + 1):
        # Powers leave the floating-point range unless each is scaled.
        norm = torch.linalg.vector_norm(gram).clamp_min(tiny)
        gram = gram / norm
        log_bound = log_bound + norm.log() / 2 ** (halving + 1)
        image = gram @ image
        image = image / torch.linalg.vector_norm(image).clamp_min(tiny)
        if halving < SQUARINGS:
            gram = gram @ gram
    derivative = image * (log_bound.exp() / (image * wide).sum().clamp_min(tiny))
    return derivative if derivative.shape == weight.shape else derivative.mT
