r"""Explicit Runge-Kutta methods, as coefficients.

A step of size h from (s, x): k_i = f(s + c_i h, x + h Σ_j a_ij k_j), x' = x + h Σ_i b_i k_i. Where
a method has an estimate of its error, it is h Σ_i e_i k_i with one more slope, that of the step's
end, k = f(s + h, x'), which is the next step's first: so it costs one evaluation a solve.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TABLEAUS", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """One method.

    Attributes:
        order: of x'.
        c: nodes.
        a: rows below the diagonal.
        b: weights.
        e: weights of the error's estimate, one longer than b; empty where there is none.
        estimate: order of the lower method that x' is compared with.
        w: weights of the integrals; empty where they are b.

    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    e: tuple[float, ...] = ()
    estimate: int = 0
    w: tuple[float, ...] = ()


TABLEAUS = {
    "midpoint": Tableau(2, (0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    # Bogacki and Shampine 1989.
    "bosh3": Tableau(
        3,
        (0, 1 / 2, 3 / 4),
        ((), (1 / 2,), (0, 3 / 4)),
        (2 / 9, 1 / 3, 4 / 9),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        2,
    ),
    # Kutta 1901. With the slope of the step's end in the place of the last stage, the weights
    # 1/6, 1/3, 1/3, 0, 1/6 are a method of order three.
    "rk4": Tableau(
        4,
        (0, 1 / 2, 1 / 2, 1),
        ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        (0, 0, 0, 1 / 6, -1 / 6),
        3,
    ),
    "rk4_38": Tableau(
        4,
        (0, 1 / 3, 2 / 3, 1),
        ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
    # Dormand and Prince 1980.
    "dopri5": Tableau(
        5,
        (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        (
            35 / 384 - 5179 / 57600,
            0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
        4,
    ),
}
