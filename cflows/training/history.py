"""What happened in a run of training, line by line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cflows.core.atomic_write import write_whole
from cflows.core.registry import LoadError

__all__ = ["History", "Record"]


@dataclass(frozen=True)
class Record:
    """One line of a history, written at each validation.

    Attributes:
        step: optimiser steps so far.
        seconds: training seconds so far, added up across resumes.
        loss: mean of the objective since the line before, None at the start.
        validation: mean validation log-likelihood in nats, or None without validation rows.
        nfe: network evaluations a step since the line before; of several processes, which evaluate
            side by side, those of the one that made the most.
        learning_rate: at this step.
        skipped: batches so far whose solve failed, and from which nothing was learnt.

    Example:
        >>> from cflows import Record
        >>> Record(100, 2.5, loss=3.1, validation=-3.0, nfe=48.0, learning_rate=1e-3).step
        100

    """

    step: int
    seconds: float
    loss: float | None
    validation: float | None
    nfe: float
    learning_rate: float
    skipped: int = 0


@dataclass
class History:
    """What happened in a run of ``fit``: a table with a line at each validation.

    Attributes:
        records: its lines, the first at step 0 where there are validation rows.
        best_step: the step whose state the flow was left in.
        best_validation: its mean validation log-likelihood, None without validation rows.
        stopped: ``"steps"``, ``"seconds"``, ``"patience"`` or ``"callback"``, or ``""`` while
            running.

    Example:
        >>> from cflows.training.history import History, Record
        >>> history = History([Record(0, 0.0, None, -3.5, 0.0, 1e-3)])
        >>> history.columns()["validation"]
        [-3.5]

    """

    records: list[Record] = field(default_factory=list)
    best_step: int = 0
    best_validation: float | None = None
    stopped: str = ""

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return self.records[-1].step if self.records else 0

    @property
    def seconds(self) -> float:
        """Training seconds, validation included, added up across resumes."""
        return self.records[-1].seconds if self.records else 0.0

    @property
    def skipped(self) -> int:
        """Batches whose solve failed."""
        return self.records[-1].skipped if self.records else 0

    @property
    def gain(self) -> float | None:
        """Nats a row that the state kept lies above the one that the flow came in, by validation.

        0 where training gained nothing, infinity where that state had no likelihood; None without
        validation rows.
        """
        scores = [r.validation for r in self.records[:1] if r.validation is not None]
        if not scores or self.best_validation is None:
            return None
        return self.best_validation - scores[0]

    def columns(self) -> dict[str, list[float | None]]:
        """The records as one list for each of their attributes, to plot or to make a table of."""
        names = [column.name for column in fields(Record)]
        return {name: [getattr(record, name) for record in self.records] for name in names}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the records as JSON lines."""
        text = "".join(json.dumps(asdict(record)) + "\n" for record in self.records)
        write_whole(path, text)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> History:
        """Read what ``write`` wrote; the best line is found again, why it stopped is not known.

        Raises:
            FileNotFoundError: there is no such file.
            LoadError: a line is not a record; the message says which.

        """
        history = cls()
        for number, line in enumerate(Path(path).read_text().splitlines(), 1):
            try:
                history.records.append(Record(**json.loads(line)))
            except (ValueError, TypeError) as error:
                reason = " ".join(str(error).split())
                raise LoadError(
                    f"{path}, line {number} is no record of a history: {reason}"
                ) from None
        scored = [record for record in history.records if record.validation is not None]
        best = max(scored, key=lambda record: record.validation or 0.0, default=None)
        history.best_step = history.steps if best is None else best.step
        history.best_validation = None if best is None else best.validation
        return history
