"""The state of a run, and checkpoints of it that survive a kill, a full disk, a damaged file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from cflows.bijectors.normalization import BatchNorm
from cflows.core import collectives
from cflows.core.atomic_write import (
    companion,
    is_file,
    refuse_unwritable,
    removed_on_failure,
    sibling,
    target,
    write_beside,
)
from cflows.core.flow import Flow
from cflows.core.registry import LoadError, configuration_of, to_bytes
from cflows.core.saving import read
from cflows.training import distributed
from cflows.training.history import History, Record
from cflows.training.identity import differences, settings_of, unmoved
from cflows.training.optimizers import named_optimizer
from cflows.training.rows import Rows
from cflows.training.schedules import Schedule

__all__ = ["Callback", "RunState", "exists", "interruptible", "refuse_unusable"]

FORMAT = 5
COUNTERS = ("step", "elapsed", "validated", "stale", "waiting", "decays", "skipped", "evaluations")
SHARED = (
    "seed",
    "batch_size",
    "learning_rate",
    "optimizer_name",
    "warmup",
    "weight_decay",
    "clip_norm",
    "ema",
    "validate_every",
)
LIMITS = ("steps", "seconds", "checkpoint_every", "patience", "max_failures")

PathLike = str | os.PathLike[str]
Callback = Callable[[Record], object]


@dataclass
class RunState:
    """The state of a run, as a checkpoint holds it; the fields are what ``fit`` was asked."""

    flow: Flow
    objective: nn.Module
    rows: Rows | None
    held_out: Rows | None
    device: torch.device
    batch_size: int
    steps: float
    seconds: float
    learning_rate: float
    optimizer_name: str
    schedule: Schedule
    warmup: int
    weight_decay: float
    clip_norm: float | None
    ema: float
    validate_every: int | None
    checkpoint: PathLike | None
    checkpoint_every: int | None
    patience: float
    max_failures: int
    seed: int
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        distributed.check_alike(
            lambda: [
                self._identity(),
                settings_of("schedule", self.schedule),
                [getattr(self, name) for name in LIMITS],
            ]
        )
        # Where a batch norm takes statistics from the batches, training and validation differ.
        self.normed = any(isinstance(part, BatchNorm) for part in self.flow.modules())
        self.loss = distributed.shared_loss(self.objective, self.flow, self.normed)
        # An objective may hold the flow; what is frozen stays as it is.
        own = dict.fromkeys([*self.flow.parameters(), *self.objective.parameters()])
        self.parameters = [parameter for parameter in own if parameter.requires_grad]
        self.optimizer = named_optimizer(
            self.optimizer_name,
            (self.flow, self.objective),
            self.parameters,
            self.learning_rate,
            self.weight_decay,
        )
        self.averaged = [p for p in self.flow.parameters() if p.requires_grad]
        self.average = [] if self.ema == 0 else [p.detach().clone() for p in self.averaged]
        self.history = History()
        self.step = 0
        self.elapsed = 0.0
        self.validated = 0.0  # seconds at the end of the last validation
        self.validating = 0.0  # seconds that it took
        self.stale = 0  # validations without a better one
        self.waiting = 0  # likewise, since the learning rate last decayed
        self.decays = 0
        self.skipped = 0
        self.losses: dict[int, Tensor] = {}  # by step, since the last record
        self.evaluations = 0  # likewise
        self.best = self.flow_state()
        self.settings = {} if self.checkpoint is None else self._parts_settings()

    def restore_best(self) -> None:
        """Leave the flow in its best state, in evaluation mode."""
        self.flow.load_state_dict(self.best)
        self.flow.eval()

    def write(self, path: PathLike) -> None:
        """Write a checkpoint of the run."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        random = collectives.gathered((torch.get_rng_state(), cuda))
        if not collectives.leads():
            return
        content = {
            "checkpoint": FORMAT,
            "run": self._identity(),
            "settings": unmoved(self.settings, self._parts_settings()),  # None for no setting
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "history": json.dumps(asdict(self.history)),
            "losses": self.losses,
            "state": self.flow.state_dict(),
            "objective": self.objective.state_dict(),
            "average": self.average,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "random": random,
        }
        _write_newest(path, to_bytes(content))

    def resume(self, path: PathLike) -> None:
        """Take over the state of a checkpoint of this very run.

        Raises:
            LoadError: it is damaged and there is none before it, or it belongs to another run.

        """
        with distributed.together():
            content = _read_newest(path)
            differ = next(differences(content["settings"], self.settings), None)
            if content["run"] != self._identity():
                differ = "rows, model, settings or the number of processes differ"
            if differ is not None:
                raise LoadError(
                    f"{path} is the checkpoint of another run ({differ}): name another path, or "
                    "delete it to start anew"
                )
        self.flow.load_state_dict(content["state"])
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.best = {name: value.to(self.device) for name, value in content["best"].items()}
        self.average = [value.to(self.device) for value in content["average"]]
        for name, value in content["counters"].items():
            setattr(self, name, value)
        self.losses = {step: loss.to(self.device) for step, loss in content["losses"].items()}
        past = json.loads(content["history"])
        past["records"] = [Record(**record) for record in past["records"]]
        self.history = History(**past)
        # A run that is allowed more than before may go on; what a callback ended has ended.
        allowed = (
            self.step < self.steps and self.elapsed < self.seconds and self.stale < self.patience
        )
        if allowed and self.history.stopped != "callback":
            self.history.stopped = ""
        random, random_cuda = content["random"][collectives.rank()]
        torch.set_rng_state(random)
        if random_cuda is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(random_cuda, self.device)

    def flow_state(self) -> dict[str, Tensor]:
        """A copy of the flow's state."""
        return {name: value.detach().clone() for name, value in self.flow.state_dict().items()}

    def _parts_settings(self) -> dict[str, str]:
        """What objective and schedule are set to, and a flow that has no configuration."""
        learnt = [*self.parameters, *self.flow.parameters(), *self.flow.buffers()]
        settings = settings_of("objective", self.objective, learnt)
        settings |= settings_of("schedule", self.schedule, learnt)
        if configuration_of(self.flow) == type(self.flow).__qualname__:
            settings |= settings_of("flow", self.flow, learnt)
        return settings

    def _identity(self) -> str:
        """What two runs must share for one to go on where the other stopped."""
        rows = [None if r is None else r.fingerprint() for r in (self.rows, self.held_out)]
        state = {name: [str(v.dtype), *v.shape] for name, v in self.flow.state_dict().items()}
        trained = [name for name, p in self.flow.named_parameters() if p.requires_grad]
        shared = {name: getattr(self, name) for name in SHARED}
        flow, count = configuration_of(self.flow), collectives.processes()
        return json.dumps([rows, flow, state, trained, count, shared])


def exists(path: PathLike) -> bool:
    """Whether there is a checkpoint to go on from, this one or the one before it."""
    return Path(path).exists() or _previous(path).exists()


def refuse_unusable(path: PathLike) -> None:
    """Find out before the training that no checkpoint could be written, or kept as PATH.previous.

    Raises:
        OSError: why.

    """
    for each in (path, _previous(path)):
        _file(each)
        refuse_unwritable(each)


@contextmanager
def interruptible(active: bool) -> Iterator[list[int]]:
    """Within a block, let SIGINT and SIGTERM wait; they arrive when it ends, in the main thread.

    Yields a list that is empty until one of them came: whoever finds it filled finishes what must
    not be torn and leaves the block. Then the handlers from before are back and the signal is sent
    again, so that the process ends as it would have. A second signal does not wait.
    """
    received: list[int] = []
    if not active or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored stays ignored; what was installed from outside of Python cannot be put back.
    caught = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, old in caught.items():
            signal.signal(number, old)

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            restore()
            signal.raise_signal(number)

    for number in caught:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        restore()
        if received:
            signal.raise_signal(received[0])


def _write_newest(path: PathLike, data: memoryview) -> None:
    """Write a checkpoint beside its place, keep the one before as PATH.previous, and rename.

    At every moment one complete checkpoint has its name. Where the disk is full, or writing fails
    in another way, both earlier ones stay as they are and a warning says so: a run that goes on
    loses less than one that ends, and the next checkpoint may have room.
    """

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _keep(path)

    try:
        write_beside(path, write)
    except OSError as error:
        warnings.warn(
            f"no checkpoint was written to {path} ({error.strerror or error}); training goes on, "
            "and the earlier checkpoint is kept: make room for the next one",
            RuntimeWarning,
            stacklevel=2,
        )


def _read_newest(path: PathLike) -> dict[str, Any]:
    """Read a checkpoint; where it is damaged, the one before it, with a warning."""
    previous = _previous(path)
    try:
        content = read(path)
    except (LoadError, FileNotFoundError) as error:
        if not previous.exists():
            raise
        content = read(previous)
        warnings.warn(f"{error}: going on from {previous}", RuntimeWarning, stacklevel=2)
    if "configuration" in content:
        raise LoadError(f"{path} is a saved flow, not a checkpoint: name another path")
    if content.get("checkpoint") != FORMAT:
        raise LoadError(
            f"{path} is no checkpoint of this version: name another path, or delete it to start "
            "anew"
        )
    return content


def _previous(path: PathLike) -> Path:
    return companion(path, ".previous")


def _keep(path: PathLike) -> None:
    """Give the newest checkpoint its second name, without taking away the first."""
    newest, previous = _file(path), _file(_previous(path))
    if not newest.exists():
        return
    link = sibling(previous)
    with removed_on_failure(link):
        try:
            os.link(newest, link)
        except OSError:  # a file system without links, or another one
            shutil.copyfile(newest, link)
        os.replace(link, previous)


def _file(path: PathLike) -> Path:
    """The file behind a path's links, refused where it is none."""
    file = target(path)
    if isinstance(file, int) or not is_file(file):
        raise OSError(f"{path}: is a device or a pipe, which keeps no checkpoint; name a file")
    return file
