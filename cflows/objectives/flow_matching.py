r"""Flow matching: a continuous flow trained without a solve.

Instead of the likelihood, whose every evaluation is a solve, the field is regressed on the velocity
of straight paths from noise to data, and the likelihood is asked for afterwards.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cflows.continuous.fields import MLP
from cflows.continuous.ode_bijector import ODEBijector
from cflows.core.arguments import known
from cflows.core.bijector import Bijector, may_read
from cflows.core.density import Density
from cflows.core.flow import Flow
from cflows.core.trajectory import flattened, through
from cflows.objectives.base import Batch, Objective, weighted_mean

__all__ = ["COUPLINGS", "FlowMatching", "optimal_coupling"]

COUPLINGS = ("independent", "optimal")
LAWS = ("likelihood", "uniform")
CUT = 0.1
"""δ of the law of times that the likelihood asks for."""
PAIRED = 256
"""Rows of an optimal coupling, at most."""
APART = 100.0
"""What a squared distance of contexts costs beside one of rows, in each column."""
TIMES = 16
"""Times of a batch for a field that takes one at a time; enough that no variance is seen of it."""


class FlowMatching(Objective):
    r"""Conditional flow matching on straight paths, with no solve at all.

        E |T f(sT, x_s, c) - (x₁ - x₀)|²,   x_s = (1 - s) x₀ + s x₁,   s ~ q

    with x₀ of the flow's base and x₁ a row of the data, summed over the D columns and averaged over
    rows (Lipman et al. 2023, "Flow Matching for Generative Modeling", equation 9, with no noise
    left at the data; Liu et al. 2023, "Flow Straight and Fast", equation 1; Albergo and
    Vanden-Eijnden 2023). Its minimiser is E[x₁ - x₀ | x_s], whose flow takes the base to the data.
    The least loss is not zero and says little of the likelihood: validate by that.

    **Times.** In the likelihood an error of the velocity counts the more the nearer it is to the
    data. Behind a standard normal the score of x_s is (s v - x_s) / (1 - s), so that an error e(s)
    of the velocity v is one of s e / (1 - s) of the score, and the diffusion g² = 2 (1 - s) / s
    keeps the paths' marginals: with it (Song et al. 2021, "Maximum Likelihood Training of
    Score-Based Diffusion Models", theorem 1)

        KL(data, flow) <= ½ ∫ g² (s / (1 - s))² E|e|² ds = ∫ s / (1 - s) E|e|² ds

    for the flow of that diffusion (Zheng et al. 2023, "Improved Techniques for Maximum Likelihood
    Estimation for Diffusion ODEs"). ``"likelihood"`` draws s with a density proportional to
    1 / (1 - s + δ), δ = .1: since 1 / (1 - s) = 1 + s / (1 - s), this is that weight, which alone
    would leave out the times near the noise, plus the uniform law's, cut where it grows without
    bound. Its quantiles are s = 1 + δ - (1 + δ) (δ / (1 + δ))^u. ``"uniform"`` is U(0, 1).

    Fixed maps behind the field, such as a whitening, are undone first, so that x₁ is what the
    field's flow shall end at; those in front of it are applied to the base's draws. The times of a
    batch are stratified, quantiles of (i + u_i) / N, which leaves the mean what it is and takes
    variance out. A field that is no ``MLP`` takes a scalar time, as in a solve: it is called
    ``TIMES`` times on a part of the rows each, with a time for all of them; or once, with times
    (N,), where its attribute ``time_by_row`` is true. A trained end time takes part.

    ``"optimal"`` pairs each batch's x₀ and x₁ at the least total |x₁ - x₀|² (Tong et al. 2024,
    "Improving and generalizing flow-based generative models with minibatch optimal transport",
    section 3.4; Pooladian et al. 2023): straighter paths and a calmer loss for an assignment on the
    CPU, by SciPy, of ``PAIRED`` rows at a time, since its cost grows with their cube. A pairing
    that does not look at the context would make x₀ depend on it, and the flow starts from a base
    that does not; so each draw has a row's context, and what is minimised is |x₁ - x₀|² +
    ``APART`` D |c - c'|², contexts in standard deviations of the batch: rows take draws of their
    own class, or of near neighbours (Kerrigan et al. 2024, "Dynamic Conditional Optimal Transport
    through Simulation-Free Flows"). Weights are refused: they make the rows another measure than
    the draws that they are paired with.

    **Reflow.** A trained flow in the place of a coupling pairs each row with the noise that it
    takes that row to (Liu et al. 2023, section 2.2): the second flow's paths are straighter, and
    what the first got wrong stays wrong. Begin with a copy of it, behind the same maps.

        again = copy.deepcopy(flow)
        fit(again, train, validation, objective=FlowMatching(flow))

    **Then maximum likelihood.** Matching is a warm start: a second ``fit`` goes on from it and
    returns what matching reached wherever its own best state is no better on the validation rows.
    Matching leaves smooth paths, and a large step of a fresh Adam destroys them: begin at a tenth
    or less of the learning rate, let it rise over a warm-up, and build the flow with a training
    solver that watches its error, since steps that nobody watches are exploited.

        flow = FFJORD(..., training_solver=Lagged("rk4", 1e-3))
        fit(flow, train, validation, objective="flow_matching", learning_rate=5e-3)
        fit(flow, train, validation, learning_rate=3e-4, warmup=50, steps=200)

    Args:
        coupling: ``"independent"``, ``"optimal"``, or a trained flow.
        times: ``"likelihood"`` or ``"uniform"``.

    Raises:
        ValueError: an unknown coupling or law of times; or, at the first batch, a flow with several
            continuous blocks or with other parts that would have to be trained.
        TypeError: at the first batch, a flow without a continuous block.
        ImportError: an optimal coupling without SciPy.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, FlowMatching
        >>> field = {"time_frequencies": 4}
        >>> flow = FFJORD(2, hidden=(64, 64), layer="film", activation="silu", field=field)
        >>> FlowMatching()(flow, (torch.randn(128, 2), None)).backward()

    """

    usual: ClassVar = {
        "learning_rate": 5e-3,
        "optimizer": "muon",
        "ema": 0.999,
        "batch_size": 1024,  # noise, time and row vary from term to term of the mean
    }

    def __init__(self, coupling: str | Flow = "independent", times: str = "likelihood") -> None:
        super().__init__()
        self.times = known("times", times, LAWS)
        self.first: Flow | None = None
        if isinstance(coupling, Flow):
            self.first = copy.deepcopy(coupling).eval().requires_grad_(False)
            coupling = "reflow"
        else:
            known("coupling", coupling, COUPLINGS)
        self.coupling = coupling
        self.additive = coupling != "optimal"  # a pairing is of the whole batch

    def train(self, mode: bool = True) -> FlowMatching:
        """The first flow of a reflow evaluates in training, too."""
        super().train(mode)
        if self.first is not None:
            self.first.eval()
        return self

    def forward(self, flow: Density, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """The mean squared error of the velocity, summed over columns, each row by its weight."""
        if self.coupling == "optimal" and weights is not None:
            raise ValueError(
                'coupling="optimal" pairs each row with one draw, whatever its weight: use '
                'coupling="independent" with weights'
            )
        return weighted_mean(self.losses(flow, batch), weights)

    def losses(self, flow: Density, batch: Batch) -> Tensor:
        """The squared error of each row, summed over columns: (N, D) and (N, C) -> (N,)."""
        before, block, behind = split_at_block(flow)
        x, context = flow.bijector.broadcast(batch[0], flow.seen(batch[1]))
        with torch.no_grad():
            end = through(behind, x, context, upwards=False)
            if self.first is not None:
                start = self.first.bijector.inverse(x, self.first.seen(batch[1]))
            else:
                # A base without context of its own takes the number of draws from the shape.
                start = flow.base.sample(() if context is not None else x.shape[:-1], context)
            start = through(before, start.to(end), context, upwards=True)
            if self.coupling == "optimal":
                start = start[optimal_coupling(start, end, context)]
        times, sizes = _times(block, end)
        if self.times == "likelihood":
            times = 1 + CUT - (1 + CUT) * (CUT / (1 + CUT)) ** times
        state = torch.lerp(start, end, times.unsqueeze(-1))
        context = context if block.context_features else None
        velocity = _velocity(block, times, sizes, state, context)
        return (velocity - (end - start)).square().sum(-1)


def optimal_coupling(
    start: Tensor, end: Tensor, context: Tensor | None = None, *, rows: int = PAIRED
) -> Tensor:
    """Indices i (N,) that minimise Σ_n |start[i_n] - end_n|²: optimal transport of two samples.

    With a context the sum has a term ``APART`` D |c[i_n] - c_n|² too, in standard deviations.

    Args:
        start: (N, D).
        end: (N, D).
        context: of a start and of the end at the same place, (N, C), or None.
        rows: that are paired with each other; the next so many are paired among themselves.

    Raises:
        ImportError: SciPy is missing.

    Example:
        >>> import torch
        >>> from cflows.objectives.flow_matching import optimal_coupling
        >>> optimal_coupling(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))
        tensor([1, 0])

    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError('coupling="optimal" needs SciPy: pip install scipy') from None
    one, other = end.double(), start.double()
    if context is not None and len(context) > 1:
        given = context.double()
        given = (given - given.mean(0)) / given.std(0).clamp(min=1e-12)
        given = (APART * end.shape[1]) ** 0.5 * given
        one, other = torch.cat([one, given], dim=1), torch.cat([other, given], dim=1)
    # |a|² and |b|² are the same for every pairing: products alone decide.
    costs = [
        -(a @ b.mT) for a, b in zip(torch.split(one, rows), torch.split(other, rows), strict=True)
    ]
    pairs = [
        linear_sum_assignment(cost.cpu().numpy())[1] + k * rows for k, cost in enumerate(costs)
    ]
    return torch.as_tensor(np.concatenate([*pairs, []]).astype(np.int64), device=start.device)


def split_at_block(flow: Density) -> tuple[list[Bijector], ODEBijector, list[Bijector]]:
    """The maps in front of a flow's one continuous block, the block, and the maps behind it.

    Raises:
        TypeError: there is no continuous block.
        ValueError: there are several, it stands within another map, or another part is trained.

    """
    parts = list(flattened(flow.bijector))
    at = [index for index, part in enumerate(parts) if isinstance(part, ODEBijector)]
    inside = sum(isinstance(module, ODEBijector) for module in flow.bijector.modules())
    if not inside:
        raise TypeError(
            "flow matching trains a vector field, and this flow has none: use forward_kl, or FFJORD"
        )
    if inside > 1 or len(at) != 1:
        raise ValueError(
            f"flow matching trains one continuous block in a chain of fixed maps, this flow has "
            f"{inside}{'' if inside > 1 else ' within another map'}: use blocks=1 or forward_kl"
        )
    block = parts[at[0]]
    assert isinstance(block, ODEBijector)
    field = set(block.parameters())
    if isinstance(summary := getattr(flow, "context_network", None), torch.nn.Module):
        field |= set(summary.parameters())
    for name, parameter in flow.named_parameters():
        if parameter.requires_grad and parameter not in field:
            raise ValueError(
                f"flow matching trains the field alone, and {name} would stay as it is: hold it "
                "with requires_grad_(False), or use forward_kl"
            )
    return parts[: at[0]], block, parts[at[0] + 1 :]


def _times(block: ODEBijector, x: Tensor) -> tuple[Tensor, list[int] | None]:
    """Stratified times (N,) in [0, 1], and how many rows share one; None where no two do."""
    n, field = len(x), block.field
    by_row = isinstance(field, MLP) and type(field).forward is MLP.forward
    if by_row or getattr(field, "time_by_row", False) or n == 0:
        s = torch.rand(n, dtype=x.dtype, device=x.device)
        return (s + torch.arange(n, dtype=x.dtype, device=x.device)) / n, None
    # A stratum is as wide as its part of the rows, so that the mean over rows has no bias.
    parts = min(n, TIMES)
    edges = torch.arange(parts + 1) * n // parts
    first, size = edges[:-1].to(x), edges.diff()
    s = torch.rand(parts, dtype=x.dtype, device=x.device)
    times = (first + s * size.to(x)) / n
    return times.repeat_interleave(size.to(x.device), output_size=n), size.tolist()


def _velocity(
    block: ODEBijector, s: Tensor, sizes: list[int] | None, x: Tensor, context: Tensor | None
) -> Tensor:
    """T f(sT, x, c), the velocity of the block's solve over [0, 1], at the times of the rows."""
    end_time = block.end_time
    times = s * end_time
    if may_read(x):
        block.evaluations_made += 1
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=block.low_precision):
        if sizes is None:
            velocity: Tensor = block.field(times, x, context)
        else:
            contexts = [None] * len(sizes) if context is None else torch.split(context, sizes)
            parts = zip(torch.split(times, sizes), torch.split(x, sizes), contexts, strict=True)
            velocity = torch.cat([block.field(t[0], *part) for t, *part in parts])
    return end_time * velocity.to(x.dtype)
