"""Two directories of cells side by side: what changed from one to the other."""

from __future__ import annotations

import math
from pathlib import Path

from baselines.harness.metrics.bootstrap import intervals
from baselines.harness.report.tables import Line, Table, TableCell, plain_table, table_of
from baselines.harness.results.aggregate import Group, likelihood_digits, name_of
from baselines.harness.results.load import ReportError, load
from baselines.harness.results.number_format import clip, fixed, plus_minus, significant, whole

__all__ = ["side_by_side", "text"]

_HEADER = ("model", "depth", "A", "B", "B - A", "95%", "density ms, A / B", "sample ms, A / B")


def text(first: Path, second: Path) -> str:
    """Return the tables for a terminal, at most 120 wide; raises as ``side_by_side`` does."""
    lines = [f"A: {first}", f"B: {second}", ""]
    for table in side_by_side(first, second):
        lines += [table.title, *plain_table(table, 120), ""]
    lines.append(
        "log-likelihood in nats ± 2 s.e. over test points; B - A with its paired 95% interval "
        "where the test rows are the same, else without one; ms per 1000 rows"
    )
    return "\n".join(lines)


def side_by_side(first: Path, second: Path) -> list[Table]:
    """Return a table a data set: both likelihoods, their difference, both costs.

    Rows are paired where both directories name the same checksum of the data; the likelihoods of
    other rows are only subtracted.

    Raises:
        ReportError: a directory cannot be read, or they have no finished model in common.

    """
    results = [load(Path(directory)) for directory in (first, second)]
    ours, theirs = (
        {(s.dataset, s.model, s.depth, s.view): s for s in run.settings if s.rows}
        for run in results
    )
    common = [key for key in ours if key in theirs]
    if not common:
        raise ReportError(
            f"{first} and {second} have no finished data set, model and depth in common: "
            "name two runs of the same models on the same data"
        )
    tables = []
    for name in dict.fromkeys(key[0] for key in common):
        one, other = (run.data.get(name, {}).get("checksum") for run in results)
        same = one == other is not None
        pairs = [(ours[key], theirs[key]) for key in common if key[0] == name]
        digits = likelihood_digits(s for pair in pairs for s in pair)
        rows = [_row(*pair, digits, same) for pair in pairs]
        title = clip(name, 70) + ("" if same else " (not known to be the same rows)")
        tables.append(table_of(title, "", _HEADER, rows))
    return tables


def _row(one: Group, other: Group, digits: int, same: bool) -> Line:
    low = high = math.nan
    (first, _), (second, _) = one.likelihood, other.likelihood
    difference = None if first is None or second is None else second - first
    a, b = one.log_prob, other.log_prob
    if same and a is not None and b is not None and a.shape == b.shape:
        difference, low, high = intervals(b - a)[0]
    interval = f"{fixed(low, digits)} to {fixed(high, digits)}" if math.isfinite(low) else ""
    costs = [
        [significant(s.mean(f"{what}_ms_per_1000")) for s in (one, other)]
        for what in ("density", "sample")
    ]
    return [
        name_of(one),
        whole(one.depth),
        *(plus_minus(*s.likelihood, digits) for s in (one, other)),
        TableCell(fixed(difference, digits), low > 0 or high < 0),
        interval,
        *(" / ".join(pair) if all(pair) else "" for pair in costs),
    ]
