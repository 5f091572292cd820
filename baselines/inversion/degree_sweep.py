r"""The walk through the degrees of a MADE: an autoregressive layer inverted in one pass.

A hidden unit of degree m depends on y_1..y_m and on nothing later, so it is computed once, as soon
as y_m is known. Walk the degrees upwards,

    h_d from the units of degree < d;  y_d = τ(g_d; h_d);  then the units of degree d,

and every product of the masked network is done once, against D times. The gradient walks down: when
the cotangents of everything of a degree above m are known, those of the units of degree m are, then
that of y_m. Each takes about one pass, and O(N H) memory a layer.

Degrees are taken some at a time: what earlier ones contribute to them is one large product, and
only what they contribute to each other is done in small steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from baselines.inversion.autoregressive import ONCE, Solve, jacobi, sequential
from baselines.networks.activations import FUSED_ACTIVATIONS
from baselines.networks.made import MADE
from baselines.transforms.univariate import Pullback
from cflows.core.bijector import fusible
from cflows.core.first_order import Context, first_order_only

__all__ = ["INVERSIONS", "cached", "walk"]

UNITS_AT_A_TIME = 96


def cached(
    made: MADE, given: Tensor, context: Tensor | None, solve: Solve, pullback: Pullback
) -> tuple[Tensor, Tensor]:
    """One pass: y (*B, D) and Σ_d log|dy_d/dg_d| (*B,).

    Gradients cannot be differentiated again: a RuntimeError says so. Layers that must be called
    (``cflows.core.bijector``) are called, by D passes.
    """
    if not fusible(given) or not made.is_readable:
        return sequential(made, given, context, solve, pullback)
    if context is not None:
        context = context.reshape(-1, made.context_features)
    y, slopes = walk(made, given.reshape(-1, made.features), context, solve, pullback)
    return y.reshape(given.shape), slopes.sum(0).reshape(given.shape[:-1])


Inversion = Callable[[MADE, Tensor, Tensor | None, Solve, Pullback], tuple[Tensor, Tensor]]
INVERSIONS: dict[str, Inversion] = {"cached": cached, "jacobi": jacobi, "sequential": sequential}


def walk(
    made: MADE,
    given: Tensor,
    context: Tensor | None,
    solve: Solve,
    pullback: Pullback | None = None,
) -> tuple[Tensor, Tensor]:
    """Walk the degrees: (N, D, *G) and (N, C) -> y (N, D) and log-derivatives (D, N) by degree.

    Args:
        made: whose outputs are the parameters.
        given: what ``solve`` is given of each coordinate, (N, *G).
        context: of each row.
        solve: (N, *G), (N, P) -> y_d (N,), log-derivative (N,).
        pullback: its gradient; without one there is none.

    """
    made.evaluations_made += 1
    by_degree = made.degrees.argsort()
    with torch.autocast(given.device.type, enabled=False):
        layers, weights = made.masked, made.weights()
        assert weights is not None
        offset: Tensor = layers[0].bias[:, None]
        if made.context_weight is not None:
            assert context is not None
            offset = offset + made.context_weight @ context.mT
        weights[0] = weights[0][:, by_degree]
        # Outputs of one coordinate side by side, coordinates in the order of their degrees.
        shape = (made.outputs, made.features)
        weights[-1] = weights[-1].view(*shape, -1)[:, by_degree].transpose(0, 1).flatten(0, 1)
        biases: list[Tensor] = [layer.bias for layer in layers]
        if not torch.is_grad_enabled():
            # A Function is told that a parameter needs a gradient even where none is recorded.
            biases = [bias.detach() for bias in biases]
        biases[-1] = biases[-1].view(shape)[:, by_degree].mT.flatten()
        # Feature by row: what the walk slices then lies in one piece.
        rows = given.transpose(0, 1)[by_degree]
        y, slopes = _Walk.apply(  # type: ignore[no-untyped-call]
            _Network(made), solve, pullback, rows, offset, *weights, *biases[1:]
        )
    return y[made.degrees - 1].mT.contiguous(), slopes


class _Network:
    """A MADE with its coordinates in the order of their degrees, and how to walk it.

    Attributes:
        depth: how many hidden layers there are.
        columns: for each layer, before which column the inputs of a degree m = 0..D + 1 begin.
        edges: for each layer, before which row its units of a degree m = 0..D + 1 begin; the last
            layer's are parameters of coordinates.

    """

    def __init__(self, made: MADE) -> None:
        hidden, coordinates = made.plan().edges, [max(m - 1, 0) for m in range(made.features + 2)]
        self.features, self.depth = made.features, len(hidden)
        self.columns = [coordinates, *hidden]
        self.edges = [*hidden, [made.outputs * before for before in coordinates]]
        self.activation = FUSED_ACTIVATIONS[made.activation]
        # The hidden layer whose values are added to a layer's, at the end of a residual block.
        self.skips = [
            layer - 2 if made.residual and layer and layer % 2 == 0 else None
            for layer in range(self.depth)
        ]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of degrees p..q-1 that cover 0..D; the last has no hidden unit."""
        p = 0
        while p <= self.features:
            q = p + 1
            while (
                q <= self.features
                and q - p < UNITS_AT_A_TIME
                and max(edge[q + 1] - edge[p] for edge in self.edges[:-1]) <= UNITS_AT_A_TIME
            ):
                q += 1
            yield p, q
            p = q

    def inputs(self, layer: int, p: int, q: int) -> slice:
        """What a layer reads of degrees p..q-1: coordinates, or units of the layer before."""
        return slice(self.columns[layer][p], self.columns[layer][q])

    def rows(self, layer: int, p: int, q: int) -> slice:
        """Units of a layer with degrees p..q-1; of the last layer, parameters of coordinates."""
        return slice(self.edges[layer][p], self.edges[layer][q])

    def sizes(self, layer: int, p: int, q: int) -> list[int]:
        """How many of these rows each degree has."""
        return [after - before for before, after in pairwise(self.edges[layer][p : q + 1])]


class _Context(Context, Protocol):
    network: _Network
    pullback: Pullback | None


class _Walk(torch.autograd.Function):
    """(g, offset, weights, biases) -> (y, log-derivatives), all feature by row.

    Degrees 0..D in turn: coordinate d, if d ≥ 1, then the hidden units of degree d, if d < D.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        network: _Network,
        solve: Solve,
        pullback: Pullback | None,
        given: Tensor,
        offset: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        depth, count = network.depth, given.shape[1]
        weights = tensors[: depth + 1]
        biases = [offset, *(bias[:, None] for bias in tensors[depth + 1 :])]
        needed = any(ctx.needs_input_grad)
        y, slopes = (weights[0].new_zeros(network.features, count) for _ in range(2))
        *before, parameters = values = [w.new_empty(len(w), count) for w in weights]
        # What the activation is applied to is kept only for a skip or for the derivative.
        apart = needed or any(skip is not None for skip in network.skips)
        after = [torch.zeros_like(h) for h in before] if apart else before
        sources = [y, *after]
        # One view a coordinate, made at once: indexing is what the small steps spend time on.
        given_at, y_at, slope_at = given.unbind(0), y.unbind(0), slopes.unbind(0)
        for p, q in network.chunks():
            rows = [network.rows(layer, p, q) for layer in range(depth + 1)]
            for layer, r in enumerate(rows):
                known = network.inputs(layer, 0, p)
                if r.stop > r.start:
                    factor, source = weights[layer][r, known], sources[layer][known]
                    torch.addmm(biases[layer][r], factor, source, out=values[layer][r])
            # What degrees p..q-1 contribute to each other: by layer, a view a degree. Factors span
            # all of them: what is not known yet is finite, and its masked weight is zero.
            own = [network.inputs(layer, p, q) for layer in range(depth + 1)]
            sizes = [network.sizes(layer, p, q) for layer in range(depth + 1)]
            inner = [source[c] for source, c in zip(sources, own, strict=True)]
            factors = [
                torch.split(w[r, c], n)
                for w, r, c, n in zip(weights, rows, own, sizes, strict=True)
            ]
            value_at = [torch.split(v[r], n) for v, r, n in zip(values, rows, sizes, strict=True)]
            after_at = [torch.split(a[r], n) for a, r, n in zip(after, rows, sizes, strict=False)]
            for i, m in enumerate(range(p, q)):
                if m:
                    h = value_at[depth][i].addmm_(factors[depth][i], inner[depth])
                    value, slope = solve(given_at[m - 1], h.mT)
                    y_at[m - 1].copy_(value)
                    slope_at[m - 1].copy_(slope)
                for layer in range(depth):
                    if sizes[layer][i] == 0:
                        continue
                    h = value_at[layer][i].addmm_(factors[layer][i], inner[layer])
                    if (skip := network.skips[layer]) is not None:
                        h += value_at[skip][i]
                    if apart:
                        after_at[layer][i].copy_(h)
                    network.activation.in_place(after_at[layer][i])
        ctx.network, ctx.pullback = network, pullback
        if needed:
            ctx.save_for_backward(
                given, y, parameters, offset, *weights, *before, *after, *tensors[depth + 1 :]
            )
        return y, slopes

    @staticmethod
    @first_order_only(ONCE)
    def backward(ctx: _Context, for_y: Tensor, for_slopes: Tensor) -> tuple[Tensor | None, ...]:
        network, pullback = ctx.network, ctx.pullback
        assert pullback is not None
        depth, most = network.depth, network.features + 1
        given, y, parameters, offset, *rest = ctx.saved_tensors
        # The biases that follow are there to be refused, should a second derivative ask for them.
        weights, before = rest[: depth + 1], rest[depth + 1 : 2 * depth + 1]
        after = rest[2 * depth + 1 : 3 * depth + 1]
        for_y = for_y.clone()
        for_given = torch.empty_like(given)
        # Cotangents of the layers' values, h and parameters; under a, before a' is multiplied in.
        forms = [*(torch.empty_like(h) for h in before), torch.empty_like(parameters)]
        for p, q in reversed(list(network.chunks())):
            later = [network.rows(layer, q, most) for layer in range(depth + 1)]
            for layer, rows in enumerate(later):
                columns = network.inputs(layer, p, q)
                image = weights[layer][rows, columns].mT @ forms[layer][rows]
                if layer:
                    forms[layer - 1][columns] = image
                else:
                    for_y[columns] += image
            for m in reversed(range(p, q)):
                for layer in reversed(range(depth)):
                    columns = network.rows(layer, m, m + 1)
                    if columns.stop == columns.start:
                        continue
                    # Parameters of a coordinate depend on lesser degrees only.
                    rows = network.rows(layer + 1, m + (layer + 1 == depth), q)
                    form = forms[layer][columns]
                    if rows.stop > rows.start:
                        form.addmm_(weights[layer + 1][rows, columns].mT, forms[layer + 1][rows])
                    h, a = before[layer][columns], after[layer][columns]
                    network.activation.pull_back(form, h, a)
                    if layer in network.skips:
                        form += forms[network.skips.index(layer)][columns]
                if m:
                    column, rows = network.inputs(0, m, m + 1), network.rows(0, m, q)
                    if rows.stop > rows.start:
                        for_y[column].addmm_(weights[0][rows, column].mT, forms[0][rows])
                    rows = network.rows(depth, m, m + 1)
                    for_given[m - 1], for_parameters = pullback(
                        given[m - 1], parameters[rows].mT, y[m - 1], for_y[m - 1], for_slopes[m - 1]
                    )
                    forms[-1][rows] = for_parameters.mT
        needs = ctx.needs_input_grad[5 : 5 + depth + 1]
        for_weights = [
            form @ source.mT if need else None
            for need, form, source in zip(needs, forms, [y, *after], strict=True)
        ]
        for_offset = (
            forms[0] if offset.shape[1] == given.shape[1] else forms[0].sum(1, keepdim=True)
        )
        for_biases = [form.sum(1) for form in forms[1:]]
        return None, None, None, for_given, for_offset, *for_weights, *for_biases
