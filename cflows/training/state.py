"""The state of a run of training, and how it goes on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cflows.core import collectives
from cflows.core.flow import Flow
from cflows.core.registry import configuration_of
from cflows.training import distributed
from cflows.training.batch_statistics import has_norms
from cflows.training.checkpoint import read_newest, write_newest
from cflows.training.history import History, Record
from cflows.training.identity import settings_of, unmoved
from cflows.training.rows import Rows
from cflows.training.schedules import Schedule

__all__ = ["Callback", "RunState"]

Callback = Callable[[Record], object]

COUNTERS = ("step", "elapsed", "validated", "stale", "waiting", "decays", "skipped", "evaluations")
SHARED = (
    "seed",
    "batch_size",
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip_norm",
    "ema",
    "validate_every",
)
LIMITS = ("steps", "seconds", "checkpoint_every", "patience", "max_failures")


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
    schedule: Schedule
    warmup: int
    weight_decay: float
    clip_norm: float | None
    ema: float | None
    validate_every: int | None
    checkpoint_every: int | None
    patience: float
    max_failures: int
    seed: int
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        distributed.check_alike(self._settings)
        self.normed = has_norms(self.flow)
        self.loss = distributed.shared_loss(self.objective, self.flow, self.normed)
        # An objective may hold the flow; what is frozen stays as it is.
        own = dict.fromkeys([*self.flow.parameters(), *self.objective.parameters()])
        self.parameters = [parameter for parameter in own if parameter.requires_grad]
        self.optimizer = self._optimizer()
        self.averaged = [p for p in self.flow.parameters() if p.requires_grad]
        self.average = [] if self.ema is None else [p.detach().clone() for p in self.averaged]
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
        self.settings = self._parts_settings()

    def restore_best(self) -> None:
        """Leave the flow in its best state, in evaluation mode."""
        self.flow.load_state_dict(self.best)
        self.flow.eval()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint of the run."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        random = collectives.gathered((torch.get_rng_state(), cuda))
        if not collectives.leads():
            return
        content = {
            "run": self._identity(),
            "settings": unmoved(self.settings, self._parts_settings()),
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
        write_newest(path, content)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take over the state of a checkpoint of this very run."""
        with distributed.together():
            content = read_newest(path, self._identity(), self.settings)
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

    def _optimizer(self) -> torch.optim.Optimizer:
        # Biases, scales and bases are not what overfits: weights alone decay (Loshchilov and
        # Hutter 2019), by the learning rate times the decay at each step, beside Adam's.
        matrices = [p for p in self.parameters if p.dim() > 1]
        others = [p for p in self.parameters if p.dim() <= 1]
        groups = [
            {"params": parameters, "weight_decay": decay}
            for parameters, decay in ((matrices, self.weight_decay), (others, 0.0))
            if parameters
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate)

    def _settings(self) -> list[Any]:
        """What the processes of one run share."""
        rows = [None if r is None else r.fingerprint() for r in (self.rows, self.held_out)]
        schedule = settings_of("schedule", self.schedule)
        return [rows, self._state(), schedule, [getattr(self, n) for n in (*SHARED, *LIMITS)]]

    def _parts_settings(self) -> dict[str, str]:
        """What objective and schedule are set to, and a flow that has no configuration."""
        learnt = [*self.parameters, *self.flow.parameters(), *self.flow.buffers()]
        parts = {"objective": self.objective, "schedule": self.schedule}
        if configuration_of(self.flow) == type(self.flow).__qualname__:
            parts["flow"] = self.flow
        found: dict[str, str] = {}
        for name, part in parts.items():
            found |= settings_of(name, part, learnt)
        return found

    def _state(self) -> list[Any]:
        """Shapes and types of the flow's state, and what of it is trained."""
        state = self.flow.state_dict()
        return [
            {name: [str(v.dtype), *v.shape] for name, v in state.items()},
            [name for name, p in self.flow.named_parameters() if p.requires_grad],
        ]

    def _identity(self) -> str:
        """What two runs must share for one to go on where the other stopped."""
        shared = {name: getattr(self, name) for name in SHARED}
        return json.dumps(
            {
                "rows": [
                    None if r is None else r.fingerprint() for r in (self.rows, self.held_out)
                ],
                "flow": configuration_of(self.flow),
                "state": self._state(),
                "processes": collectives.processes(),
                **shared,
            }
        )
