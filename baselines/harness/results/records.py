"""What a cell gives, as its files hold it and as a row of results.csv."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypedDict

from baselines.harness.metrics.likelihood import Scores
from baselines.harness.metrics.sample_quality import Quality

__all__ = [
    "COLUMNS",
    "HELD",
    "VIEW",
    "Bits",
    "Failure",
    "Outcome",
    "Result",
    "Row",
    "Training",
]

VIEW = "default"  # of fairness, where a command asks for no other


class Training(TypedDict, total=False):
    """How a cell was trained; a closed form has neither view, nor an end, nor a choice of maps."""

    steps: int
    train_seconds: float
    view: str
    stopped: str
    map: str
    peak_memory_mb: float


class Bits(TypedDict, total=False):
    """Bits per dimension of the test rows with two standard errors, where they are whole images."""

    bits_per_dim: float
    bits_per_dim_2se: float


class _Finished(TypedDict):
    status: Literal["ok"]
    error: str


class Result(_Finished, Training, Bits, Scores, Quality, total=False):
    """The entries of a finished cell's result.json."""

    parameters: int


class Failure(TypedDict):
    """The entries of result.json where a cell failed: the reason, in one line."""

    status: Literal["failed"]
    error: str


class _Held(TypedDict):
    """What stands for the result of a cell that another process works on."""

    status: Literal["held"]


Outcome = Result | Failure | _Held
HELD: _Held = {"status": "held"}


@dataclass(frozen=True)
class Row:
    """One cell in results.csv, whose columns these are; None where there is no such figure."""

    dataset: str = ""
    model: str = ""
    depth: float | None = None
    seed: float | None = None
    status: str = "ok"
    error: str = ""
    parameters: float | None = None
    steps: float | None = None
    train_seconds: float | None = None
    test_log_prob: float | None = None
    test_log_prob_2se: float | None = None
    solver_gap: float | None = None
    round_trip_error: float | None = None
    nfe_density: float | None = None
    nfe_sample: float | None = None
    density_ms_per_1000: float | None = None
    sample_ms_per_1000: float | None = None
    peak_memory_mb: float | None = None
    solver_gap_max: float | None = None
    gain_over_gaussian: float | None = None
    gain_over_gaussian_2se: float | None = None
    cell: str = ""
    density_ms_q1: float | None = None
    density_ms_q3: float | None = None
    sample_ms_q1: float | None = None
    sample_ms_q3: float | None = None
    sw: float | None = None
    sw_null: float | None = None
    mmd: float | None = None
    mmd_null: float | None = None
    ks: float | None = None
    ks_null: float | None = None
    c2st: float | None = None
    c2st_null: float | None = None
    bits_per_dim: float | None = None
    bits_per_dim_2se: float | None = None
    view: str = VIEW

    @property
    def is_finished(self) -> bool:
        """Whether the cell is done and did not fail."""
        return self.status == "ok"


COLUMNS = tuple(column.name for column in fields(Row))
