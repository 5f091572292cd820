"""The tables of what is measured after the cells: cost against size, and steps of a solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from baselines.harness.metrics.depth import Stepped
from baselines.harness.metrics.scaling import LEAST_SIZE, Sized, slope
from baselines.harness.metrics.timing import Call
from baselines.harness.report.tables import Table, table_of
from baselines.harness.results.aggregate import Group
from baselines.harness.results.number_format import count, fixed, power, significant, whole

__all__ = ["growth_table", "per_1000", "rows_table", "steps_table"]


def rows_table(measured: Sequence[tuple[Group, Sequence[Sized]]]) -> Table:
    """Return time, memory and evaluations against rows: a line a model and size."""
    header = ["model", "depth", "way", "rows"]
    for what in ("density", "sample"):
        header += [f"ms a call, {what} (quartiles)", "MB"]
        header += ["evaluations a call", "evaluations a row"]
    lines = []
    for s, records in measured:
        for way, rows in dict.fromkeys((r["way"], r["rows"]) for r in records):
            line = [s.label, whole(s.depth), way, f"{rows:,}"]
            own = [r for r in records if (r["way"], r["rows"]) == (way, rows)]
            for r in sorted(own, key=lambda r: r["what"]):
                line += [_quartiles(r), significant(r["memory_mb"])]
                line += [count(r["nfe_call"]), significant(r["nfe_row"])]
            lines.append(line)
    note = (
        "Medians with quartiles of calls after one to warm up, one thread; MB (2^20 bytes) is the"
        " most that tensors of a call hold at once; evaluations a row are those of a call shared by"
        " its rows. An autoregressive flow's slow direction is inverted in two ways: cached, about"
        " one pass, and sequential, as many passes as columns."
    )
    return table_of("Cost against rows", note, header, lines)


def growth_table(
    records: Sequence[Sized], axis: str, what: str, labels: Mapping[str, str]
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
    head, what_grows = {"features": ("D", "dimension D"), "depth": ("K", "depth K")}[axis]
    made = [r for r in records if r.get("ms")]
    first: dict[tuple[str, str | None], str] = {}  # what was left out, at its least size
    for r in sorted((r for r in records if r.get("note")), key=lambda r: r["size"]):
        note = f"{labels.get(r['model'], r['model'])} at {head} = {r['size']}: {r['note']}."
        first.setdefault((r["model"], r.get("way")), note)
    lines = []
    for model, way in dict.fromkeys((r["model"], r["way"]) for r in made):
        own = {
            r["size"]: r for r in made if (r["model"], r["way"], r["what"]) == (model, way, what)
        }
        slopes = (
            slope(list(own), [r["ms"] for r in own.values()], least),
            slope(list(own), [r["nfe_call"] for r in own.values()], least),
        )
        costs = [significant(own[n]["ms"]) if n in own else "" for n in sizes]
        lines.append([labels.get(model, model), way, *costs, *(fixed(s, 2) for s in slopes)])
    note = (
        f"Milliseconds, untrained models of fixed width. The slopes are of log cost over log {head}"
        f" by least squares from {head} = {least}, of the milliseconds and of the network"
        f" evaluations: 1 is linear growth. "
    )
    grid = [f"{head} = {size}" for size in sizes]
    header = ("model", "way", *grid, "slope, ms", "slope, evaluations")
    # Said once, below the second of the two tables.
    note = note + " ".join(dict.fromkeys(first.values())) if what == "sample" else ""
    title = {"density": "1000 densities", "sample": "1000 samples"}[what]
    return table_of(f"{title} against {what_grows}", note, header, lines)


def steps_table(measured: Sequence[tuple[Group, Sequence[Stepped]]]) -> Table:
    """Return likelihood and cost of continuous flows on grids of so many steps a block."""
    columns: dict[str, Callable[[Group, Stepped], str]] = {
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
    lines = [[text(s, r) for text in columns.values()] for s, records in measured for r in records]
    note = (
        "Trained flows, solved by rk4 on equal steps; the error is the distance of a row's log p"
        " from an adaptive solve at 1e-6. A likelihood above the adaptive one is no gain but the"
        " error of a coarse grid."
    )
    return table_of("Steps of the solver", note, tuple(columns), lines)


def per_1000(call: Call) -> float:
    """Milliseconds per 1000 rows."""
    return call["ms"] * 1000 / call["rows"]


def _quartiles(call: Call) -> str:
    middle, low, high = map(significant, (call["ms"], call["ms_q1"], call["ms_q3"]))
    return f"{middle} ({low}–{high})" if call["repeats"] > 1 else f"{middle} (one call)"
