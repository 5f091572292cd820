"""Velocity networks of other libraries, as fields: what was trained by matching has a density.

A network that flow matching trained is the right-hand side of an ordinary differential equation,
whatever library trained it and whatever schedule its paths had: where noise and data lie in time is
all that a flow has to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflows.core.pickling import Pickled

__all__ = ["CALLS", "VelocityField", "field_from"]

CALLS = ("t,x", "x,t", "cat")


class VelocityField(Pickled):
    """A network as a field, see ``field_from``.

    Example:
        >>> import torch
        >>> from cflows import VelocityField
        >>> field = VelocityField(torch.nn.Linear(3, 2), "cat", features=2)
        >>> field(torch.tensor(0.5), torch.zeros(7, 2)).shape
        torch.Size([7, 2])

    """

    time_by_row = True
    """Times may be (N,), one of each row's own."""

    def __init__(
        self,
        net: nn.Module,
        call: str | Callable[..., Tensor] = "t,x",
        *,
        features: int | None = None,
        context_features: int = 0,
        shape: Sequence[int] | None = None,
        data_at: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(call, str) and call not in CALLS:
            names = ", ".join(map(repr, CALLS))
            raise ValueError(f"call must be one of {names}, or a function; got {call!r}")
        if data_at not in (0.0, 1.0):
            raise ValueError(f"data_at must be 0 or 1, the time at which data lie, got {data_at}")
        size = features if shape is None else math.prod(shape)
        if size is None or size < 1:
            raise ValueError("features, the size of a row, or shape, that of an image, is needed")
        if features not in (None, size):
            raise ValueError(f"a shape of {tuple(shape or ())} has {size} features, not {features}")
        if call == "cat" and shape is not None:
            raise ValueError('call="cat" is for rows: an image has its time as an argument')
        self.net, self.call = net, call
        self.features, self.context_features = size, context_features
        self.shape = None if shape is None else tuple(shape)
        self.data_at = data_at

    def extra_repr(self) -> str:
        """How the network is called."""
        return f"features={self.features}, call={self.call!r}, data_at={self.data_at:g}"

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(t, x, context): t a scalar or (N,), x (N, D), context (N, C) -> (N, D)."""
        times = t.expand(len(x)).to(x)
        times = times if self.data_at else 1 - times
        state = x if self.shape is None else x.reshape(len(x), *self.shape)
        more = () if context is None else (context,)
        if not isinstance(self.call, str):
            velocity = self.call(self.net, times, state, *more)
        elif self.call == "cat":
            velocity = self.net(torch.cat([state, *more, times.unsqueeze(-1)], dim=-1))
        else:
            first = (times, state) if self.call == "t,x" else (state, times)
            velocity = self.net(*first, *more)
        if velocity.shape != state.shape:
            raise ValueError(
                f"the network gave {tuple(velocity.shape)} for states {tuple(state.shape)}: it "
                "must give a velocity of their shape; see call and shape of field_from"
            )
        velocity = velocity.reshape(x.shape)
        return velocity if self.data_at else -velocity


def field_from(
    net: nn.Module,
    call: str | Callable[..., Tensor] = "t,x",
    *,
    features: int | None = None,
    context_features: int = 0,
    shape: Sequence[int] | None = None,
    data_at: float = 1.0,
) -> VelocityField:
    """A velocity network of another library, or of a script of one's own, as a field.

    ``Flow(ODEBijector(field_from(net, ...)))`` has log-densities, by the exact trace or its
    estimate, samples, and ``tune_solver``. Noise is a standard normal at one end of time, data lie
    at the other; the schedule in between (straight, variance preserving, cosine) does not matter,
    since the velocity is all that counts. Two caveats: a schedule whose noise end is not quite a
    standard normal gives its own density; a network that predicts noise, data or a score is not a
    velocity.

    Args:
        net: the network, shared and not copied; it is trained, moved and put into evaluation mode
            with the flow.
        call: how it is called: ``"t,x"`` as torchcfm's U-Nets, ``"x,t"`` as velocity models of
            Meta's flow_matching, ``"cat"`` for one tensor, state, context and time side by side, as
            torchcfm's perceptrons; or a function (net, t, x) or (net, t, x, context). Times are
            (N,). A context comes last.
        features: D, the size of a row.
        context_features: C.
        shape: of a state as the network sees it, (C, H, W) say; rows stay flat outside.
        data_at: the time at which data lie, 1, or 0 where time runs from data to noise. Either way
            the time is one of [0, 1]: leave the bijector's ``end_time`` at 1.

    Raises:
        ValueError: an unknown call, no size, or sizes that differ; or, at the first call, a network
            that gives another shape than the state's.

    Example:
        >>> import torch
        >>> from cflows import Flow, ODEBijector, field_from
        >>> net = torch.nn.Linear(3, 2)  # of a script: velocity = net(cat([x, t]))
        >>> flow = Flow(ODEBijector(field_from(net, "cat", features=2))).eval()
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])

    """
    return VelocityField(
        net,
        call,
        features=features,
        context_features=context_features,
        shape=shape,
        data_at=data_at,
    )
