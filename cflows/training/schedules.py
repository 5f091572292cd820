"""Learning rates: what a schedule multiplies them by and when, and what few rows do to them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = [
    "LEAST",
    "NO_GAIN",
    "Constant",
    "Cosine",
    "Plateau",
    "Schedule",
    "for_few_rows",
    "schedule_named",
]

FEW = 5000  # training rows, from which on nothing changes
LEAST = 200  # steps
NO_GAIN = (
    "the training gained nothing over a Gaussian: fewer layers, a lower learning rate, more rows"
)


class Schedule(ABC):
    """A factor in front of the learning rate, from the state that a checkpoint holds.

    Example:
        >>> from cflows import Schedule
        >>> class Linear(Schedule):
        ...     def factor(self, done, decays):
        ...         return 1 - done
        >>> Linear().factor(done=0.25, decays=0)
        0.75

    """

    @abstractmethod
    def factor(self, done: float, decays: int) -> float:
        """The factor, given the part of the run that is done and how often it has decayed."""

    def decays_after(self, stale: int) -> bool:
        """Whether this many validations without a better one, since the last decay, are enough."""
        return False


@dataclass(frozen=True)
class Constant(Schedule):
    """The learning rate itself, throughout.

    Example:
        >>> from cflows import Constant
        >>> Constant().factor(done=0.9, decays=0)
        1.0

    """

    def factor(self, done: float, decays: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """(1 + cos(π t)) / 2, t in [0, 1] the part of the steps or seconds that is done.

    (Loshchilov and Hutter 2017, equation 5, without restarts.) A run without an end stays at 1.

    Example:
        >>> from cflows import Cosine
        >>> [round(Cosine().factor(done, decays=0), 2) for done in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]

    """

    def factor(self, done: float, decays: int) -> float:
        """From 1 to 0."""
        return 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Plateau(Schedule):
    """decay^k after k times ``checks`` validations in a row without a better one.

    The rule of FFJORD's code for tables (Grathwohl et al. 2019, ``train_tabular.py``): with a
    patience of 30 validations, a tenth after 10 of them and a hundredth after 20. A better
    validation starts the count anew, but gives nothing back.

    Args:
        checks: validations without a better one before a decay.
        decay: what each decay multiplies the learning rate by.

    Raises:
        ValueError: checks below 1, or a decay outside of (0, 1).

    Example:
        >>> from cflows.training.schedules import Plateau
        >>> Plateau(decay=0.5).factor(done=0.3, decays=2)
        0.25

    """

    checks: int = 10
    decay: float = 0.1

    def __post_init__(self) -> None:
        if self.checks < 1:
            raise ValueError(f"checks must be at least 1, got {self.checks}")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {self.decay}")

    def factor(self, done: float, decays: int) -> float:
        """decay^k."""
        return self.decay**decays

    def decays_after(self, stale: int) -> bool:
        """After ``checks`` of them."""
        return stale >= self.checks


SCHEDULES: dict[str, type[Schedule]] = {"constant": Constant, "cosine": Cosine, "plateau": Plateau}


def schedule_named(schedule: str | Schedule) -> Schedule:
    """The schedule of this name with its own defaults; one that is given is itself."""
    if isinstance(schedule, Schedule):
        return schedule
    if schedule in SCHEDULES:
        return SCHEDULES[schedule]()
    known = ", ".join(SCHEDULES)
    raise ValueError(f"schedule must be one of {known}, or a Schedule; got {schedule!r}")


def for_few_rows(
    steps: int, learning_rate: float, rows: int, least: int = LEAST
) -> tuple[int, float]:
    """Steps and learning rate for so many training rows.

    From 5000 rows on they are what they were. For N rows less than that the steps are N/5000 times
    as many, 200 at least (or all, where these are fewer), and the learning rate is √(N/5000) times
    as high: small tables are overfitted within some ten steps, and at a high rate affine layers
    throw single draws far off.

    Args:
        steps: of a model on many rows.
        learning_rate: likewise.
        rows: N, the training rows.
        least: steps; 1 where no validation rows choose the best state, and the last one stays.

    Example:
        >>> from cflows.training.schedules import for_few_rows
        >>> for_few_rows(2000, 5e-3, 1250), for_few_rows(2000, 5e-3, 100_000)
        ((500, 0.0025), (2000, 0.005))

    """
    part = min(1.0, rows / FEW)
    fewer = max(math.ceil(steps * part), min(steps, least))
    return fewer, learning_rate * math.sqrt(part)
