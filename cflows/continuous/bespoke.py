r"""Solvers that were fitted to the paths of one field.

A grid of n steps is one step of a Runge-Kutta method with n times the stages, whose coefficients
are mostly zero. A ``Scheme`` has all of them: from the start of the way, s = 0, to its end, s = 1,

    x_i = x_0 ± Σ_{j<i} a_ij k_j,   k_i = f(s_i, x_i),
    x   = x_0 ± Σ_i b_i k_i,        log|det| = ± Σ_i w_i tr ∂f/∂x(s_i, x_i)

(non-stationary solvers: Shaul et al. 2024, "Bespoke Non-Stationary Solvers for Fast Sampling of
Diffusion and Flow Models"). What is fitted knows the field's own paths, where a tableau must do for
every field: it needs fewer evaluations, and is worth nothing for another field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cflows.continuous.adaptive import Adaptive
from cflows.continuous.tableaus import TABLEAUS, Tableau
from cflows.core.registry import register

__all__ = ["Bespoke", "Scheme"]

Numbers = tuple[float, ...]


@register
@dataclass(frozen=True)
class Scheme:
    """A Runge-Kutta method whose one step is the whole way, with weights of its own for integrals.

    Args:
        c: where the field is evaluated, as parts of the way, (S,).
        a: of the slopes before each stage, S rows of 0, 1, ..., S - 1 numbers.
        b: of all slopes at the end, (S,).
        w: of the rates of the integrals, (S,); where it is zero, the rate is not evaluated.

    Raises:
        ValueError: sizes that do not fit, or numbers that are not finite.

    Example:
        >>> from cflows.continuous.bespoke import Scheme
        >>> Scheme.of("midpoint", steps=2).c
        (0.0, 0.25, 0.5, 0.75)

    """

    c: Numbers
    a: tuple[Numbers, ...]
    b: Numbers
    w: Numbers

    def __post_init__(self) -> None:
        for name in ("c", "b", "w"):  # a file has lists
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        object.__setattr__(self, "a", tuple(tuple(map(float, row)) for row in self.a))
        sizes = [len(self.c), len(self.a), len(self.b), len(self.w)]
        if len(set(sizes)) > 1 or [len(row) for row in self.a] != list(range(sizes[0])):
            raise ValueError(f"a scheme of S stages has S nodes, weights and rows, got {sizes}")
        if not all(map(math.isfinite, (*self.c, *self.b, *self.w, *sum(self.a, ())))):
            raise ValueError("the numbers of a scheme must be finite")

    @property
    def tableau(self) -> Tableau:
        """As a method of one step."""
        return Tableau(1, self.c, self.a, self.b, w=self.w)

    @classmethod
    def of(cls, method: str, steps: int) -> Scheme:
        """The same numbers as a grid of equal steps."""
        tableau, h = TABLEAUS[method], 1 / steps
        stages = len(tableau.c)
        c = [(step + node) * h for step in range(steps) for node in tableau.c]
        done = [h * weight for weight in tableau.b]
        a = [
            tuple(done * step + [h * weight for weight in row] + [0.0] * (index - len(row)))
            for step in range(steps)
            for index, row in enumerate(tableau.a)
        ]
        assert [len(row) for row in a] == list(range(stages * steps))
        return cls(tuple(c), tuple(a), tuple(done * steps), tuple(done * steps))


@register
@dataclass(frozen=True)
class Bespoke:
    """A scheme for each direction, fitted to the paths of one field by ``cflows.tune_solver``.

    Args:
        sampling: from noise to data.
        density: from data to noise.
        weights: what the field's weights were, see ``fingerprint``; other weights are refused.
        bfloat16: whether the products of an exact trace run in bfloat16 where no gradient is asked
            for; the path keeps its dtype.
        drawing: from noise to data where no density is asked for; None for ``sampling``.

    Example:
        >>> from cflows.continuous.bespoke import Bespoke, Scheme
        >>> Bespoke(Scheme.of("rk4", 2), Scheme.of("rk4", 3))
        Bespoke(8 evaluations for samples, 12 for densities)

    """

    sampling: Scheme
    density: Scheme
    weights: str = ""
    bfloat16: bool = False
    drawing: Scheme | None = None

    def scheme(self, span: tuple[float, float], traced: bool = True) -> Scheme:
        """The one for a solve from one end of s to the other, with integrals or without.

        Raises:
            ValueError: another span.

        """
        if span not in ((0.0, 1.0), (1.0, 0.0)):
            raise ValueError(
                f"a Bespoke solver goes the whole way, not from {span[0]} to {span[1]}: take "
                "another solver for a part of it"
            )
        if span[0] > span[1]:
            return self.density
        return self.sampling if traced or self.drawing is None else self.drawing

    def tightened(self, factor: float = 10.0) -> Adaptive:
        """What it is measured by: an adaptive solve at a tolerance of 1e-5 / ``factor``."""
        return Adaptive("dopri5", 1e-5, 1e-5).tightened(factor)

    def __repr__(self) -> str:
        drawn = "" if self.drawing is None else f", {len(self.drawing.c)} without their density"
        traces = sum(map(bool, self.density.w))
        few = f", {traces} of them with a trace" if traces < len(self.density.c) else ""
        return (
            f"Bespoke({len(self.sampling.c)} evaluations for samples{drawn}, "
            f"{len(self.density.c)} for densities{few}{', traces in bfloat16' * self.bfloat16})"
        )
