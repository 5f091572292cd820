"""What a model of a comparison is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypedDict

from torch import Tensor

from cflows import Affine, Bijector, Flow, gaussianise, whiten
from cflows.training import pipeline

__all__ = [
    "CENTRED",
    "CLOSED_FORM",
    "GAUSSIAN",
    "MAPS",
    "ClosedForm",
    "Model",
    "ModelError",
    "centred",
]

GAUSSIAN = "gaussian"
HIDDEN = (128, 128)


class ModelError(ValueError):
    """A name that no model has, or a depth or a size that it cannot have; one line."""


class ClosedForm(NamedTuple):
    """A map (train, validation) -> bijector that is a model alone, behind a standard normal."""

    label: str
    fit: Callable[[Tensor, Tensor], Bijector]


def _gaussianised(
    train: Tensor, validation: Tensor | None = None, *, gain: float = 0.05
) -> Bijector:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the command has said which columns have steps
        return gaussianise(train, validation, gain=gain)


MAPS = {**pipeline.MAPS, "gaussianise": _gaussianised}
"""What the map of a cell is chosen among."""
CENTRED = "centre"
"""The name of ``centred``, which is no choice: models of images stand behind it."""


def centred(train: Tensor, *held_out: Tensor) -> Bijector:
    """x_i = mean_i + s z_i with one s for all: neighbouring pixels stay alike, as networks expect.

    Args:
        train: rows (N, D).
        held_out: of no account.

    """
    rows = train.double()
    spread = (rows - rows.mean(0)).square().mean().sqrt()
    return Affine(rows.mean(0).to(train), spread.expand(rows.shape[1]).to(train))


CLOSED_FORM = {
    GAUSSIAN: ClosedForm("Gaussian", lambda train, validation: whiten(train)),
    "gaussianised": ClosedForm("Gaussianised", partial(_gaussianised, gain=0.005)),
}
"""What nothing is trained of: rows of every table, which a flow must beat."""


class Goal(TypedDict):
    """What is minimised, and how."""

    objective: str
    optimizer: str | None
    ema: float | None
    batch_size: int | None


@dataclass(frozen=True)
class Model:
    """A model that can be asked for by name.

    Attributes:
        label: as tables and pictures write it.
        core: (features, depth) -> the flow, for white data; where it takes a third argument
            ``hidden``, the widths of a network's hidden layers, they can be chosen for it.
        depths: the settings of depth that a comparison runs by default, ascending.
        unit: what depth counts.
        steps: optimiser steps by default.
        quick_steps: the same under ``--quick``.
        learning_rate: Adam's.
        objective: a name that ``fit`` knows.
        batch_size: rows a step; None for that of all cells.
        text: what else decides how it computes: a hash of the file of a user's function.
        patience: validations without a better one after which training stops.
        validations: how often validation rows choose the best state; None for that of all cells.
        optimizer: as ``fit`` takes it; None for the objective's usual one.
        ema: likewise.
        warmup: steps over which the learning rate rises, a tenth of a training's steps at most.
        images: whether rows must be images, whose neighbouring pixels the model knows; it stands
            behind ``CENTRED``, whatever map is chosen for others.

    """

    label: str
    core: Callable[..., Flow]
    depths: tuple[int, ...] = (1,)
    unit: str = "layers"
    steps: int = 2000
    quick_steps: int = 150
    learning_rate: float = 5e-3
    objective: str = "forward_kl"
    batch_size: int | None = None
    text: str = ""
    patience: int | None = None
    warmup: int = 0
    validations: int | None = None
    optimizer: str | None = None
    ema: float | None = None
    images: bool = False

    @property
    def goal(self) -> Goal:
        """Arguments of ``fit``."""
        return {
            "objective": self.objective,
            "optimizer": self.optimizer,
            "ema": self.ema,
            "batch_size": self.batch_size,
        }

    def counted(self, depth: int) -> str:
        """A depth with its unit: 1 layer, 2 layers."""
        first, *more = self.unit.split(" ")
        return " ".join([str(depth), first.removesuffix("s") if depth == 1 else first, *more])

    def warmup_of(self, steps: int | None) -> int:
        """The warm-up of a training of so many steps, or of one that only seconds end."""
        return self.warmup if steps is None else min(self.warmup, steps // 10)
