"""Flows trained on densities that are known up to a normaliser, and what their draws are worth.

A cell is a target, a model, a way to train and a seed. ``reverse`` is the reverse KL divergence on
the flow's own draws; ``annealed`` trains on rows that ``cflows.annealed`` found, by the model's own
objective: maximum likelihood or matching. Either way the flow that was trained is the proposal of
``importance``, whose log Z stands beside the truth. Cells of a directory that are finished are not
touched again.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from baselines.harness.data.targets import Target, target
from baselines.harness.executors.process_pool import Killed, side_by_side
from baselines.harness.experiment.locks import claimed
from baselines.harness.results import layout
from baselines.models import registry
from cflows import (
    Affine,
    Flow,
    Importance,
    ReverseKL,
    annealed,
    behind,
    fit,
    gaussianise,
    importance,
    tune_solver,
)
from cflows.core.atomic_write import write_whole

__all__ = ["WAYS", "TargetCell", "finished", "planned", "trained"]

WAYS = ("reverse", "annealed")
PARTICLES = 10_000
HELD_OUT = 10  # of the annealed rows one in so many validates
SAMPLES = 512  # draws of a step of reverse KL
VALIDATION = 1000  # rows
TUNED = 0.05  # of the seconds
TUNED_ON = 128  # rows


@dataclass(frozen=True)
class TargetCell:
    """What is trained and measured.

    Attributes:
        target: a name in ``TARGETS``.
        model: a name that the registry knows.
        way: ``"reverse"`` or ``"annealed"``.
        depth: the model's deepest.
        seed: of all that is random.
        seconds: of the training, annealing included.
        draws: that are weighed.
        configuration: a hash of the model's constructor calls.

    """

    target: str
    model: str
    way: str
    depth: int
    seed: int
    seconds: float
    draws: int
    configuration: str

    @property
    def key(self) -> str:
        """A name for its folder, of all of its settings."""
        settings = json.dumps(asdict(self), sort_keys=True)
        return f"{self.target}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"


def planned(
    targets: Sequence[str],
    models: Sequence[str],
    ways: Sequence[str],
    seeds: Sequence[int],
    seconds: float,
    draws: int,
) -> list[TargetCell]:
    """The cells, each once; a model that matching trains is not trained on its own draws.

    Raises:
        DataError: an unknown target.
        ModelError: an unknown model.

    """
    cells = []
    for name in dict.fromkeys(targets):
        features = target(name).features
        for model in dict.fromkeys(models):
            found = registry.find(model)
            depth = max(found.depths)
            configuration = registry.configuration(model, features, depth)
            for way in dict.fromkeys(ways):
                if way == "reverse" and found.objective == "flow_matching":
                    continue
                shared = model, way, depth
                cells += [
                    TargetCell(name, *shared, seed, seconds, draws, configuration)
                    for seed in dict.fromkeys(seeds)
                ]
    return cells


def finished(cell: TargetCell, directory: Path) -> dict[str, Any] | None:
    """What a cell gave, or None where it is not done or failed."""
    path = layout.cell(directory, cell.key) / layout.RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return None if "error" in result else result


def trained(
    cells: Sequence[TargetCell], directory: Path, jobs: int
) -> Iterator[tuple[TargetCell, dict[str, Any]]]:
    """Train what is not done yet, several cells side by side, and yield each as it ends."""
    todo = [cell for cell in cells if finished(cell, directory) is None]
    for cell, result in side_by_side(partial(_run, directory), todo, jobs):
        if isinstance(result, Killed):
            result = asdict(cell) | {"error": f"its process ended with {result.exit_code}"}
        yield cell, result


def _run(directory: Path, cell: TargetCell) -> dict[str, Any]:
    """One cell in a process of its own; a failure is a result too."""
    torch.set_num_threads(1)
    folder = layout.cell(directory, cell.key)
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / layout.LOCK, wait=True):
        if (before := finished(cell, directory)) is not None:
            return before
        try:
            result = _measured(cell, folder)
        except Exception as error:  # whatever a model does
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        told = asdict(cell) | result
        write_whole(folder / layout.RESULT, json.dumps(told, indent=1) + "\n")
    return told


def _measured(cell: TargetCell, folder: Path) -> dict[str, Any]:
    aim = target(cell.target)
    torch.manual_seed(cell.seed)
    start = Affine([0.0] * aim.features, [aim.spread] * aim.features)
    core = registry.preset(cell.model, aim.features, cell.depth, cell.seed)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a solver that a tuning did not find
        if cell.way == "reverse":
            flow = _by_reverse_kl(cell, aim, behind(core, start))
        else:
            flow = _by_annealing(cell, aim, core, Flow(start), began)
    seconds = time.perf_counter() - began
    flow.eval().save(folder / layout.MODEL)
    found = importance(flow, aim.log_density, cell.draws)
    return _told(found, aim) | {"training_seconds": seconds}


def _by_reverse_kl(cell: TargetCell, aim: Target, flow: Flow) -> Flow:
    model = registry.find(cell.model)
    fit(
        flow,
        None,
        objective=ReverseKL(aim.log_density, samples=SAMPLES),
        seconds=cell.seconds,
        learning_rate=model.learning_rate / 2,
        warmup=100,
        seed=cell.seed,
        progress=False,
    )
    return flow


def _by_annealing(cell: TargetCell, aim: Target, core: Flow, start: Flow, began: float) -> Flow:
    model = registry.find(cell.model)
    rows = annealed(aim.log_density, start, PARTICLES).x
    rows = rows[torch.randperm(len(rows))]
    validation, train = rows[: len(rows) // HELD_OUT], rows[len(rows) // HELD_OUT :]
    flow = behind(core, gaussianise(train, validation))
    used = time.perf_counter() - began
    fit(
        flow,
        train,
        validation[:VALIDATION],
        objective=model.objective,
        optimizer=model.optimizer,
        ema=model.ema,
        batch_size=model.batch_size,
        seconds=max(1.0, (1 - TUNED) * cell.seconds - used),
        learning_rate=model.learning_rate,
        warmup=100,
        patience=None,
        seed=cell.seed,
        progress=False,
    )
    if flow.is_continuous:
        few = validation[:: -(-len(validation) // TUNED_ON)]
        tune_solver(flow, few, seconds=TUNED * cell.seconds)
    return flow


def _told(found: Importance, aim: Target) -> dict[str, Any]:
    """What a table needs."""
    return {
        "log_normaliser": aim.log_normaliser,
        "log_z": found.log_z,
        "log_z_error": found.log_z_error,
        "ess": found.ess_fraction,
        "ess_per_second": found.ess_per_second,
        "pareto_k": found.pareto_k,
    }
