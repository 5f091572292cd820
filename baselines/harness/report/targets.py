"""The table of flows that were trained on densities: log Z, and what their draws are worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from baselines.harness.data.targets import TARGETS
from baselines.models import registry

__all__ = ["HEADER", "label", "lines", "text"]

HEADER = (
    "target",
    "model",
    "trained by",
    "seed",
    "log Z ± 2 s.e.",
    "log Z - truth",
    "effective sample size",
    "per second",
    "Pareto k",
    "training (s)",
)

Result = Mapping[str, Any]


def label(result: Result) -> str:
    """What tables and pictures call a model and its way."""
    return f"{registry.find(result['model']).label}, {result['way']}"


def lines(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """A line for each cell, by target and model; a failed one with its reason."""
    order = {name: index for index, name in enumerate(TARGETS)}
    for result in sorted(results, key=lambda one: order[one["target"]]):
        named = (
            result["target"],
            registry.find(result["model"]).label,
            result["way"],
            str(result["seed"]),
        )
        if "error" in result:
            yield (*named, result["error"], *[""] * 5)
            continue
        off, error = result["log_z"] - result["log_normaliser"], 2 * result["log_z_error"]
        yield (
            *named,
            f"{result['log_z']:.3f} ± {error:.3f}",
            f"{off:+.3f}{'' if abs(off) <= error else ' *'}",
            f"{100 * result['ess']:.2g} %",
            f"{result['ess_per_second']:.3g}",
            _number(result["pareto_k"]),
            f"{result['training_seconds']:.0f}",
        )


def text(results: Sequence[Result], command: str) -> str:
    """The table in Markdown, with what its columns mean and the command that made it."""
    rows = [HEADER, *lines(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]

    def line(row: Sequence[str]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    notes = (
        "log Z by the mean weight of fresh draws; * where it is off by more than two of its "
        "standard errors. The effective sample size is that of one draw, per second that of a "
        "second of drawing and weighing on one thread. A Pareto k above .7 says that neither log Z "
        "nor its error is to be trusted. Draws that have never seen a mode say nothing of it."
    )
    table = [line(rows[0]), rule, *map(line, rows[1:])]
    return "\n".join([f"`{command}`", "", *table, "", notes, ""])


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else ""
