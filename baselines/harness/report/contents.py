"""results.csv, report.md, .html, .tex and the pictures, rebuilt from a directory of cells alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from baselines.harness.metrics import scaling
from baselines.harness.report import gallery, tables
from baselines.harness.report.difference_table import difference_table
from baselines.harness.report.render import Section, render
from baselines.harness.report.scaling_tables import growth_table, rows_table, steps_table
from baselines.harness.results import layout
from baselines.harness.results import load as reading
from baselines.harness.results.aggregate import Row
from baselines.harness.results.load import COLUMNS, ReportError, Results, load, one_line
from baselines.harness.results.number_format import clip
from cflows.core.atomic_write import write_whole

__all__ = ["COLUMNS", "ReportError", "rows", "summary", "write"]

_TITLES = {
    "likelihood": "Normalizing flows compared: likelihood",
    "sampling": "Normalizing flows compared: sampling cost",
    "depth": "Normalizing flows compared: what depth buys",
    "compare": "Normalizing flows compared: likelihood, sampling cost, depth",
}
_TABLES = {
    "likelihood": [tables.likelihood_table, difference_table, tables.quality_table],
    "sampling": [tables.cost_table],
    "depth": [tables.depth_table],
}
_TABLES["compare"] = _TABLES["likelihood"] + _TABLES["sampling"] + _TABLES["depth"]
_HOW_TO_READ = (
    "Log-likelihoods are in nats, in the data set's own units; higher is better, and ± is 2"
    " standard errors over the test rows. The gain is the paired difference to a full-covariance"
    " Gaussian fitted to the same training rows, which is what a flow must beat. Likelihood and"
    " sampling cost show each model at its deepest; bold is the best log-likelihood and every other"
    " within 2 standard errors of the paired difference to it. Evaluations count calls of a model's"
    " networks. Solver gap is how far a row's log-density moves when the ODE solver's tolerance is"
    " ten times tighter: discrete flows have no solver, and their cell is empty. The round-trip"
    " error is the largest of the test rows checked, in standard deviations of the data."
)
_SEEDS = (
    " Values are averages over seeds, except that the solver gap's maximum and the round-trip error"
    " are the largest of all seeds. ± 2 s.e. is over test points, of that average; the spread over"
    " seeds is one standard deviation, and the gain's is the same: the Gaussian has no seed."
)


def write(directory: Path) -> Path:
    """Write results.csv, report.md, .html, .tex and the pictures; return the path of report.html.

    Raises `ReportError` where the directory is missing or holds no cells, or a file is broken.
    """
    results = load(Path(directory))
    pictures = list(gallery.pictures(results))
    for stem, _, png, svg in pictures:
        write_whole(results.directory / f"{stem}.png", png)
        write_whole(results.directory / f"{stem}.svg", svg)
    write_whole(results.directory / "results.csv", _csv(results.rows))
    for name, lines in _measurements(results):
        columns = tuple(dict.fromkeys(column for line in lines for column in line))
        write_whole(results.directory / name, _csv(lines, columns))
    content = _content(results) | {"pictures": pictures}
    for kind in ("md", "tex", "html"):
        path = results.directory / f"report.{kind}"
        write_whole(path, render(kind, **content))
    return path


def rows(directory: Path) -> list[Row]:
    """Return the rows of results.csv, None where one is empty. Raises as `write` does."""
    return load(Path(directory)).rows


def summary(directory: Path) -> str:
    """Return the table for a terminal: every setting of every data set, at most 100 wide.

    Raises as `write` does.
    """
    lines: list[str] = []
    results = load(Path(directory))
    for name, found in results.by_dataset.items():
        seeds = max(len(s.rows) + len(s.failed) for s in found)
        averaged = f" (averages over {seeds} seeds)" if seeds > 1 else ""
        lines += [clip(name, 70) + averaged]
        lines += tables.plain_table(tables.summary_table(found))
        missing = [(s, row) for s in found if s.rows for row in s.failed]
        for s, row in missing:
            place = f"{s.label} depth {s.depth} seed {row['seed']}"
            lines.append(clip(f"{place} failed: {row['error']}", 100))
        lines.append("")
    timed = any(row["density_ms_per_1000"] is not None for s in results.settings for row in s.rows)
    costs = "; ms per 1000 rows; NFE density/sample" if timed else ""
    lines.append(f"log-likelihood in nats, higher is better{costs}")
    return "\n".join(lines)


# --- what the report says ------------------------------------------------------------------------


def _content(results: Results) -> dict[str, object]:
    manifest = results.manifest
    several = any(len(s.rows) + len(s.failed) > 1 for s in results.settings)
    drawn = gallery.has_matplotlib()
    keys = ("created", "processor", "threads", "device", "dtype", "seed", "steps")
    machine = [f"{key}: {manifest[key]}" for key in keys if manifest.get(key) is not None]
    if isinstance(versions := manifest.get("versions"), dict):
        machine.append("versions: " + ", ".join(f"{name} {v}" for name, v in versions.items()))
    return {
        "title": _TITLES.get(str(manifest.get("comparison")), _TITLES["compare"]),
        "introduction": _HOW_TO_READ + (_SEEDS if several else ""),
        "sections": list(_sections(results)),
        "no_pictures": "no cell has what one shows" if drawn else "they need matplotlib",
        "failures": tables.failure_table(results.rows, results.labels),
        "command": one_line(manifest.get("command", "")),
        "machine": list(map(one_line, machine)),
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False),
    }


def _sections(results: Results) -> Iterator[Section]:
    chosen = _TABLES.get(str(results.manifest.get("comparison")), _TABLES["compare"])
    about = results.manifest.get("data")
    about = {one_line(k): v for k, v in about.items()} if isinstance(about, dict) else {}
    later = [
        (reading.measured(results, file), table_of)
        for file, table_of in ((layout.ROWS, rows_table), (layout.STEPS, steps_table))
    ]
    for name, found in results.by_dataset.items():
        if not name:  # a cell cut off before it wrote what it is: listed among the failed
            continue
        facts = about.get(name)
        shown = [table for table_of in chosen if (table := table_of(found)).rows]
        shown += [table_of(measured[name]) for measured, table_of in later if name in measured]
        yield Section(name, _describe(facts) if isinstance(facts, dict) else "", shown)
    for axis, title in (("features", "dimension"), ("depth", "depth")):
        if records := reading.records(results.directory / layout.sweep(axis)):
            shown = [growth_table(records, axis, w, results.labels) for w in ("density", "sample")]
            yield Section(f"Growth with {title}", "", shown)


def _describe(data: Mapping[str, object]) -> str:
    parts = [str(data["kind"])] if data.get("kind") else []
    if isinstance(rows := data.get("rows"), list):
        counts = " / ".join(f"{n:,}" if isinstance(n, int) else str(n) for n in rows)
        parts.append(f"{counts} rows to train / validate / test")
    if data.get("features"):
        parts.append(f"{data['features']} columns")
    if data.get("note"):
        parts.append(str(data["note"]))
    parts += [f"{key} {data[key]}" for key in ("source", "licence", "checksum") if data.get(key)]
    return one_line("; ".join(parts))


# --- the files -----------------------------------------------------------------------------------


def _measurements(results: Results) -> Iterator[tuple[str, list[Row]]]:
    """Name and lines of the further .csv files: what was measured after the cells, flat."""
    for axis in scaling.SWEEPS:
        if records := reading.records(results.directory / layout.sweep(axis)):
            yield layout.sweep(axis).replace(".json", ".csv"), records
    for file in (layout.ROWS, layout.STEPS):
        lines: list[Row] = []
        for name, found in reading.measured(results, file).items():
            for s, records in found:
                head = {"dataset": name, "model": s.model, "depth": s.depth, "view": s.view}
                lines += [head | _flat(record) for record in records]
        if lines:
            yield file.replace(".json", ".csv"), lines


def _flat(record: Mapping[str, object]) -> Row:
    """{"density": {"ms": 1}} -> {"density_ms": 1}."""
    found: Row = {}
    for name, value in record.items():
        parts = value if isinstance(value, dict) else {None: value}
        found |= {name if part is None else f"{name}_{part}": v for part, v in parts.items()}
    return found


def _csv(found: Iterable[Row], columns: Sequence[str] = COLUMNS) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()
