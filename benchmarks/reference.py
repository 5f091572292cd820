"""FFJORD's own way, the yardstick: an adaptive solve, one probe, the continuous adjoint.

Written anew after Grathwohl et al. 2019 and their code (rtqichen/ffjord, lib/layers/cnf.py,
odefunc.py, diffeq_layers/basic.py), as plainly as there: every layer computes its gate and shift at
every evaluation, the divergence is one vector-Jacobian product, nothing is fused or in closed form.
torchdiffeq 0.2 stands for the solver that the code carried with it. ``target.py`` trains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows import MLP, Adaptive, Flow, ODEBijector

Function = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Function] = {"tanh": torch.tanh, "softplus": F.softplus}
VALIDATION_SOLVER = Adaptive("dopri5", rtol=1e-6, atol=1e-6)


class ConcatLinear(nn.Module):
    """y = W [t, h] + b."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1 + inputs, outputs)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """The layer at time t, (N, inputs) -> (N, outputs)."""
        time = torch.ones_like(h[:, :1]) * t
        return self.linear(torch.cat([time, h], dim=1))

    def named_as_ours(self) -> dict[str, Tensor]:
        """Its parameters by the names that cflows gives them."""
        weight = self.linear.weight
        return {"weight": weight[:, 1:], "time_weight": weight[:, :1], "bias": self.linear.bias}


class ConcatSquashLinear(nn.Module):
    """y = (W h + b) σ(u t + c) + w t."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """The layer at time t, (N, inputs) -> (N, outputs)."""
        t = t.view(1, 1)
        return self.linear(h) * torch.sigmoid(self.gate(t)) + self.shift(t)

    def named_as_ours(self) -> dict[str, Tensor]:
        """Likewise."""
        return {
            "weight": self.linear.weight,
            "bias": self.linear.bias,
            "gate_weight": self.gate.weight,
            "gate_bias": self.gate.bias,
            "time_weight": self.shift.weight,
        }


LAYERS = {"concat": ConcatLinear, "concatsquash": ConcatSquashLinear}
PROBES: dict[str, Function] = {
    "rademacher": lambda x: 2 * torch.randint_like(x, 2) - 1,
    "gaussian": torch.randn_like,
}


class Dynamics(nn.Module):
    """The right-hand side, d(x, log p)/dt = (f, -tr(∂f/∂x)), and a count of its evaluations."""

    def __init__(self, widths: Sequence[int], layer: str, activation: str, exact: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LAYERS[layer](a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[activation]
        self.exact = exact
        self.probe: Tensor | None = None
        self.evaluations = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """At a scalar t: x (N, D), log p (N, 1) -> their derivatives."""
        x, _ = state
        self.evaluations += 1
        with torch.enable_grad():
            x.requires_grad_(True)
            f = self.velocity(t, x)
            divergence = self._brute_force(f, x) if self.exact else self._estimate(f, x)
        return f, -divergence

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """f(t, x), (N, D) -> (N, D)."""
        first, *others = self.layers
        h = first(t, x)
        for layer in others:
            h = layer(t, self.activation(h))
        return h

    def _estimate(self, f: Tensor, x: Tensor) -> Tensor:
        """εᵀ (∂f/∂x) ε (Hutchinson 1990), by one vector-Jacobian product."""
        assert self.probe is not None
        (product,) = torch.autograd.grad(f, x, self.probe, create_graph=True)
        return (product * self.probe).sum(1, keepdim=True)

    def _brute_force(self, f: Tensor, x: Tensor) -> Tensor:
        """tr(∂f/∂x), by D vector-Jacobian products."""
        diagonal = [
            torch.autograd.grad(f[:, i].sum(), x, create_graph=True)[0][:, i]
            for i in range(x.shape[1])
        ]
        return torch.stack(diagonal, dim=1).sum(1, keepdim=True)


class ReferenceCNF(nn.Module):
    """log p(x) = log N(z; 0, I) - ∫_0^T tr(∂f/∂x) dt (Grathwohl et al. 2019, equation 3).

    Time runs as in cflows, from the base at 0 to the data at T; the FFJORD code has the data at 0.
    Its T is a parameter that ``torch.tensor`` cuts from its gradient; here the gradient arrives.

    Args:
        features: D.
        hidden: widths of the hidden layers.
        layer: a key of ``LAYERS``.
        activation: a key of ``ACTIVATIONS``.
        end_time: T.
        trainable_end_time: whether √T is a parameter.
        probe: ``"rademacher"`` (as for the paper's toys) or ``"gaussian"`` (as for its tables), one
            draw a row, fixed for a solve and its adjoint.
        exact: whether the trace is exact, by brute force.
        rtol, atol: of dopri5, in both directions; 1e-5 is the default of that code.

    Attributes:
        nfe_forward: evaluations of the right-hand side by the last ``log_prob``.
        nfe_backward: by the adjoint solve after it, up to now.

    """

    sqrt_end_time: Tensor

    def __init__(
        self,
        features: int,
        *,
        hidden: Sequence[int] = (64, 64, 64),
        layer: str = "concatsquash",
        activation: str = "tanh",
        end_time: float = 1.0,
        trainable_end_time: bool = False,
        probe: str = "rademacher",
        exact: bool = False,
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> None:
        super().__init__()
        self.features, self.hidden, self.layer = features, tuple(hidden), layer
        self.activation, self.probe, self.rtol, self.atol = activation, probe, rtol, atol
        self.dynamics = Dynamics([features, *hidden, features], layer, activation, exact)
        sqrt_end_time = torch.tensor(math.sqrt(end_time))
        if trainable_end_time:
            self.sqrt_end_time = nn.Parameter(sqrt_end_time)
        else:
            self.register_buffer("sqrt_end_time", sqrt_end_time)
        self.nfe_forward = 0

    @property
    def end_time(self) -> Tensor:
        """T, with gradient where it is trained."""
        return self.sqrt_end_time * self.sqrt_end_time

    @property
    def nfe_backward(self) -> int:
        """Evaluations since the last forward solve ended."""
        return self.dynamics.evaluations - self.nfe_forward

    def log_prob(self, x: Tensor, probe: Tensor | None = None) -> Tensor:
        """log p(x), (N, D) -> (N,); probe (N, D) is drawn where it is not given."""
        from torchdiffeq import odeint_adjoint

        self.dynamics.probe = PROBES[self.probe](x) if probe is None else probe
        self.dynamics.evaluations = 0
        end_time = self.end_time
        z, delta = odeint_adjoint(
            self.dynamics,
            (x, x.new_zeros(len(x), 1)),
            torch.stack([end_time, torch.zeros_like(end_time)]).to(x),
            rtol=self.rtol,
            atol=self.atol,
            method="dopri5",
        )
        self.nfe_forward = self.dynamics.evaluations
        log_base = -0.5 * (z[-1].square() + math.log(2 * math.pi)).sum(1)
        return log_base - delta[-1].squeeze(1)

    @torch.no_grad()
    def copy_from(self, ours: MLP) -> ReferenceCNF:
        """Take the weights of a field of ours: from then on both are the same function of t, x.

        Raises:
            ValueError: no weights can make them the same; they differ in a width, or in the
                layer, the activation or another option.

        """
        for here, there in self._twins(ours):
            here.copy_(there.reshape(here.shape))
        t = next(ours.parameters()).new_tensor(0.5)
        x = torch.linspace(-1, 1, 3 * self.features).to(t).reshape(3, -1)
        if not torch.allclose(self.dynamics.velocity(t, x), ours(t, x), atol=1e-4):
            raise ValueError("the field is another function: give both the same activation")
        return self

    @torch.no_grad()
    def flow(self, solver: Adaptive = VALIDATION_SOLVER) -> Flow:
        """The same density as a flow of ours, in float64 and in evaluation: its trace is exact."""
        field = MLP(
            self.features, hidden=self.hidden, layer=self.layer, activation=self.activation
        ).double()
        for here, there in self._twins(field):
            there.copy_(here.reshape(there.shape))
        bijector = ODEBijector(field, end_time=float(self.end_time), evaluation_solver=solver)
        return Flow(bijector).double().eval()

    def _twins(self, ours: MLP) -> Iterator[tuple[Tensor, Tensor]]:
        """Every parameter with its counterpart; time weights may be (H,) or (H, 1)."""
        for layer, other in zip(self.dynamics.layers, ours.layers, strict=True):
            assert isinstance(layer, ConcatLinear | ConcatSquashLinear)
            here, there = layer.named_as_ours(), dict(other.named_parameters())
            sizes = [{k: v.numel() for k, v in side.items()} for side in (here, there)]
            if sizes[0] != sizes[1]:
                raise ValueError(f"the layers differ: here {sizes[0]}, in the field {sizes[1]}")
            yield from ((here[name], there[name]) for name in here)
