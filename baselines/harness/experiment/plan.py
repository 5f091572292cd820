"""What a command asks for, and the cells that it comes to.

Likelihoods are compared by the protocol of Papamakarios, Pavlakou and Murray 2017 (section 4 and
appendix D) where nothing else was asked for: the data set's own splits and standardisation;
training until 30 validations in a row brought nothing better, the best state kept. They validated
once an epoch. Here it is once an epoch or 200 steps, whichever comes first, as in FFJORD's code for
the same tables, whose rule for the learning rate is taken too (``schedules.Plateau``).

Two views in which models are equals: ``parameters``, so many in each, by the widths of their hidden
layers; ``budget``, so many seconds of training for each. ``default`` is neither: the models' own
widths, and steps or patience.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from baselines.harness import data
from baselines.harness.data import Width
from baselines.harness.data.bounds import Bounds, refuse_unknown, within
from baselines.harness.experiment.cell import (
    BATCH_SIZE,
    PATIENCE,
    VALIDATION_ROWS,
    VALIDATIONS,
    Cell,
)
from baselines.harness.metrics import depth
from baselines.models import registry, widths
from baselines.models.model import CENTRED, CLOSED_FORM, GAUSSIAN, ModelError
from baselines.models.user import located

__all__ = [
    "COMPARISONS",
    "EQUAL",
    "Plan",
    "Sets",
    "default_seeds",
    "model_names",
    "plan_cells",
    "work",
]

Sets = dict[str, tuple[str, data.Dataset]]
WORK = {"ffjord": 16, "ffjord-matching": 16, "iaf": 8}  # roughly, for order and time left alone
COMPARISONS = ("compare", "likelihood", "sampling", "depth")
SEEDS = (0, 1, 2)
QUICK_VALIDATIONS, QUICK_ROWS = 5, 500  # one takes as long as dozens of a continuous flow's steps
EPOCH = 200  # steps between two validations at most, where patience ends a training
EQUAL = "equal"
MOST = 50  # of a model's own steps, beyond which no patience goes


@dataclass(frozen=True)
class Plan:
    """What a command asks for.

    Attributes:
        comparison: a name in ``COMPARISONS``.
        data: names of data sets, or files.
        models: names that ``registry.find`` knows; the closed forms are added to every table.
        seeds: one cell each.
        depths: for every model alike, or None for each model's own.
        steps: optimiser steps a cell, or None for each model's own.
        budget: training seconds a cell, or None.
        quick: whether to use the models' quick steps.
        device: ``"cpu"`` or ``"cuda"``.
        jobs: cells trained at a time, a process and a thread each.
        out: DIR.
        preprocess: the map behind each model, ``"auto"`` or one of ``cell.MAPS``; with ``quick``
            nothing is chosen, and ``"auto"`` is ``"whiten"``.
        command: as it was typed, for the manifest.
        dequantise: noise for quantised columns of files, as ``data.load`` takes it.
        bounds: of columns, by name.
        columns: of files, the columns to use; None for all.
        drop: of files, columns to leave out.
        parameters: how many each model shall have, in widths that are solved for; ``"equal"`` for
            the median of the models' own numbers on a data set; None for the models' own widths.
            Beside a budget it is a second view: each model is trained in both.
        patience: validations without a better one after which training stops.
        executor: ``"local"``, or a name in ``slurm.EXECUTORS``; with ``"slurm"``, jobs 0 is as
            many as the cluster will take.
        cluster: settings of submitit.

    """

    comparison: str
    data: Sequence[str]
    models: Sequence[str]
    seeds: Sequence[int]
    depths: Sequence[int] | None
    steps: int | None
    budget: float | None
    quick: bool
    device: str
    jobs: int
    out: Path
    command: str
    preprocess: str = "auto"
    dequantise: Width | None = None
    bounds: Bounds = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    parameters: int | str | None = None
    patience: int = PATIENCE
    executor: str = "local"
    cluster: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def is_patient(self) -> bool:
        """Whether only the validation rows end a training, but for one of a budget."""
        return self.comparison == "likelihood" and not self.quick and self.steps is None


def default_seeds(comparison: str, *, quick: bool, bare: bool) -> tuple[int, ...]:
    """Return the seeds where none were given: three, or one for a first look.

    A compare is `bare` that chooses neither its data nor its models, or cuts its steps.
    """
    return SEEDS[:1] if quick or (comparison == "compare" and bare) else SEEDS


def model_names(given: Sequence[str]) -> list[tuple[str, str]]:
    """Return what tables call each model, and what finds it from any folder; each once.

    Raises:
        ModelError: two files of one name have a function of one name.

    """
    names = list(dict.fromkeys(map(located, given)))
    shared = [name for name, count in Counter(name for name, _ in names).items() if count > 1]
    if shared:
        raise ModelError(f"two models are called {shared[0]!r}: rename one of the files")
    return names


def plan_cells(plan: Plan, sets: Sets) -> list[Cell]:
    """Return the cells of a plan, the longest first so that processes end together.

    Raises:
        ModelError: a model is not known, or cannot have the depth or the parameters asked for.
        DataError: a row lies outside of its column's bounds, or no column is called as they are.

    """
    listed: list[Cell] = []
    refuse_unknown((rows.columns for _, rows in sets.values()), plan.bounds)
    preprocess = "whiten" if plan.quick and plan.preprocess == "auto" else plan.preprocess
    deepest_only = plan.comparison in ("likelihood", "sampling")
    for name, (source, rows) in sets.items():
        gaussian = Cell(
            data=name,
            source=source,
            checksum=rows.checksum,
            model=GAUSSIAN,
            depth=None,
            seed=0,
            steps=0,
            seconds=None,
            learning_rate=0.0,
            preprocess="none",  # the model is its map
            device=plan.device,
            dequantise=plan.dequantise if rows.kind == "file" else None,
            bounds=within(rows, rows.columns, plan.bounds),
            columns=rows.columns if plan.columns is not None or plan.drop else None,
            validations=QUICK_VALIDATIONS if plan.quick else VALIDATIONS,
            validation_rows=QUICK_ROWS if plan.quick else VALIDATION_ROWS,
            quick=plan.quick,
            pixels=(pixels.levels, pixels.alpha) if (pixels := rows.pixels) else None,
        )
        parameters = _parameters(plan, rows.features)
        for model_name, origin in model_names(plan.models):
            model = registry.find(origin)
            if model.images and rows.pixels is None:
                raise ModelError(
                    f"{model_name} is a model of images, and {name} is a table: leave one of them "
                    "out, or give a set of images (digits, an idx file, CIFAR-10's archive)"
                )
            cell = replace(
                gaussian,
                model=model_name,
                origin="" if origin == model_name else origin,
                learning_rate=model.learning_rate,
                batch_size=model.batch_size or BATCH_SIZE,
                patience=plan.patience,
                preprocess=CENTRED if model.images else preprocess,
                validations=gaussian.validations
                if plan.quick
                else model.validations or gaussian.validations,
            )
            for deep in depth.settings(model, plan.depths, deepest_only=deepest_only):
                for own in _views(plan, replace(cell, depth=deep), deep, rows, parameters):
                    view = replace(
                        own,
                        warmup=model.warmup_of(own.steps),
                        configuration=registry.configuration(
                            origin, rows.features, deep, own.hidden
                        ),
                    )
                    listed += [replace(view, seed=seed) for seed in plan.seeds]
        listed += [replace(gaussian, model=name) for name in CLOSED_FORM]
    features = {name: rows.features for name, (_, rows) in sets.items()}
    return sorted(listed, key=lambda cell: -work(cell, features[cell.data]))


def work(cell: Cell, features: int) -> float:
    """What a cell takes beside others, roughly: for their order, and for the time that is left."""
    if cell.seconds is not None:
        return cell.seconds
    return WORK.get(cell.model, 1) * (cell.depth or 0) * features


def _views(
    plan: Plan, cell: Cell, deep: int, rows: data.Dataset, parameters: int | None
) -> Iterator[Cell]:
    """A model's cell in each view: with the widths, and with what ends the training."""
    model = registry.find(cell.located)
    own_steps = model.quick_steps if plan.quick else model.steps
    ended = replace(cell, steps=own_steps if plan.steps is None else plan.steps)
    if plan.is_patient:
        epoch = max(1, len(rows.train) // cell.batch_size)
        ended = replace(
            cell,
            steps=MOST * model.steps,
            validate_every=min(epoch, EPOCH),
            schedule="plateau",
        )
    if parameters is not None:
        hidden = widths.solved(cell.located, rows.features, deep, parameters)
        yield replace(ended, view="parameters", hidden=hidden)
    if plan.budget is not None:
        yield replace(cell, view="budget", steps=plan.steps, seconds=plan.budget)
    if plan.budget is None and parameters is None:
        yield ended


def _parameters(plan: Plan, features: int) -> int | None:
    """The number that all models of a plan shall have on a data set, or None."""
    if plan.parameters != EQUAL:
        return None if plan.parameters is None else int(plan.parameters)
    own = []
    for _, origin in model_names(plan.models):
        (deep,) = depth.settings(registry.find(origin), plan.depths, deepest_only=True)
        own.append(widths.counted(origin, features, deep))
    return round(median(own))
