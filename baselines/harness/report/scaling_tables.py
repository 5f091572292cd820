"""The tables of what is measured after the cells: cost against size, and steps of a solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from baselines.harness.metrics.scaling import LEAST_SIZE, slope
from baselines.harness.report.tables import Table, TableCell
from baselines.harness.results.aggregate import Group
from baselines.harness.results.number_format import count, fixed, power, significant

__all__ = ["growth_table", "rows_table", "steps_table"]

Record = Mapping[str, Any]
Measured = Sequence[tuple[Group, Sequence[Record]]]


def rows_table(found: Measured) -> Table:
    """Return time, memory and evaluations against rows: a line a model and size."""
    header = ["model", "depth", "way", "rows"]
    for what in ("density", "sample"):
        header += [f"ms a call, {what} (quartiles)", "MB"]
        header += ["evaluations a call", "evaluations a row"]
    lines = []
    for s, records in found:
        for way, rows in dict.fromkeys((r["way"], r["rows"]) for r in records):
            line = [s.label, "" if s.depth is None else str(s.depth), way, f"{rows:,}"]
            own = [r for r in records if (r["way"], r["rows"]) == (way, rows)]
            for r in sorted(own, key=lambda r: r["what"]):
                line += [_quartiles(r), significant(r["memory_mb"])]
                line += [count(r["nfe_call"]), significant(r["nfe_row"])]
            lines.append(tuple(map(TableCell, line)))
    note = (
        "Medians with quartiles of calls after one to warm up, one thread; MB (2^20 bytes) is the"
        " most that tensors of a call hold at once; evaluations a row are those of a call shared by"
        " its rows. An autoregressive flow's slow direction is inverted in two ways: cached, about"
        " one pass, and sequential, as many passes as columns."
    )
    return Table("Cost against rows", note, tuple(header), tuple(lines))


def growth_table(
    records: Sequence[Record], axis: str, what: str, labels: Mapping[str, str]
) -> Table:
    """Return milliseconds of 1000 densities or samples against a size, with the fitted slope.

    Args:
        records: of ``scaling.sweep``.
        axis: ``"features"`` or ``"depth"``.
        what: ``"density"`` or ``"sample"``.
        labels: how a model is written where that is not its name.

    """
    sizes = sorted({r["size"] for r in records})
    least = LEAST_SIZE[axis]
    head = {"features": "D", "depth": "K"}[axis]
    missing = sorted((r for r in records if r.get("note")), key=lambda r: -r["size"])
    first = {(r["model"], r.get("way")): r["size"] for r in missing}
    notes = dict.fromkeys(
        f"{labels.get(r['model'], r['model'])} at {head} = {r['size']}: {r['note']}."
        for r in records
        if r.get("note") and r["size"] == first[r["model"], r.get("way")]
    )
    lines = []
    for model, way in dict.fromkeys((r["model"], r["way"]) for r in records if r.get("ms")):
        own = {
            r["size"]: r
            for r in records
            if (r["model"], r.get("way"), r.get("what")) == (model, way, what) and r.get("ms")
        }
        cells = [labels.get(model, model), way]
        cells += [significant(own[n]["ms"]) if n in own else "" for n in sizes]
        for column in ("ms", "nfe_call"):
            cells.append(fixed(slope(list(own), [r[column] for r in own.values()], least), 2))
        lines.append(tuple(map(TableCell, cells)))
    title = {"density": "1000 densities", "sample": "1000 samples"}[what]
    what_grows = {"features": "dimension D", "depth": "depth K"}[axis]
    note = (
        f"Milliseconds, untrained models of fixed width. The slopes are of log cost over log {head}"
        f" by least squares from {head} = {least}, of the milliseconds and of the network"
        f" evaluations: 1 is linear growth. "
    )
    grid = [f"{head} = {size}" for size in sizes]
    header = ("model", "way", *grid, "slope, ms", "slope, evaluations")
    # Said once, below the second of the two tables.
    note = note + " ".join(notes) if what == "sample" else ""
    return Table(f"{title} against {what_grows}", note, header, tuple(lines))


def steps_table(found: Measured) -> Table:
    """Return likelihood and cost of continuous flows on grids of so many steps a block."""
    columns: dict[str, Callable[[Group, Record], str]] = {
        "model": lambda s, r: s.label,
        "blocks": lambda s, r: str(s.depth),
        "steps a block": lambda s, r: str(r["steps"]),
        "evaluations, density": lambda s, r: count(r["density"]["nfe_call"]),
        "test log-likelihood ± 2 s.e.": lambda s, r: (
            f"{fixed(r['test_log_prob'], 3)} ± {fixed(r['test_log_prob_2se'], 3)}"
        ),
        "error of log p, mean / max": lambda s, r: (
            f"{power(r['error_mean'])} / {power(r['error_max'])}"
        ),
        "round-trip error": lambda s, r: power(r["round_trip_error"]),
        "ms per 1000 densities": lambda s, r: significant(per_1000(r["density"])),
        "ms per 1000 samples": lambda s, r: significant(per_1000(r["sample"])),
    }
    lines = [
        tuple(TableCell(text(s, r)) for text in columns.values())
        for s, records in found
        for r in records
    ]
    note = (
        "Trained flows, solved by rk4 on equal steps; the error is the distance of a row's log p"
        " from an adaptive solve at 1e-6. A likelihood above the adaptive one is no gain but the"
        " error of a coarse grid."
    )
    return Table("Steps of the solver", note, tuple(columns), tuple(lines))


def per_1000(record: Record) -> float:
    """Milliseconds per 1000 rows."""
    return float(record["ms"]) * 1000 / float(record["rows"])


def _quartiles(r: Record) -> str:
    middle, low, high = (significant(r[column]) for column in ("ms", "ms_q1", "ms_q3"))
    return f"{middle} ({low}–{high})" if r["repeats"] > 1 else f"{middle} (one call)"
