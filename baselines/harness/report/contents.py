"""results.csv, report.md, .html, .tex and the pictures, rebuilt from a directory of cells alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from baselines.harness.metrics import likelihood, sample_quality, scaling, timing
from baselines.harness.report import gallery, tables
from baselines.harness.report.difference_table import difference_table, leader
from baselines.harness.report.gallery import Picture
from baselines.harness.report.render import Section, render
from baselines.harness.report.scaling_tables import growth_table, rows_table, steps_table
from baselines.harness.results import layout, load
from baselines.harness.results.aggregate import by_dataset
from baselines.harness.results.load import ReportError, Results, one_line
from baselines.harness.results.number_format import clip
from baselines.harness.results.records import Row
from cflows.core.atomic_write import write_whole

__all__ = ["ReportError", "files", "rows", "summary", "write"]

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
    " Gaussian fitted to the same training rows. Gaussianised is a chain of closed-form maps"
    " behind a standard normal (cflows.gaussianise), without training, which is what a flow must"
    " beat; its parameters are the numbers that the maps hold. Likelihood and sampling cost show"
    " each model at its deepest; bold is the best log-likelihood and every other within 2 standard"
    " errors of the paired difference to it. Evaluations count calls of a model's networks. Solver"
    " gap is how far a row's log-density moves when the ODE solver's tolerance is ten times"
    " tighter: discrete flows have no solver, and their cell is empty. The round-trip error is the"
    " largest of the test rows checked, in standard deviations of the data."
)
_SEEDS = (
    " Values are averages over seeds, except that the solver gap's maximum and the round-trip error"
    " are the largest of all seeds. ± 2 s.e. is over test points, of that average; the spread over"
    " seeds is one standard deviation, and the gain's is the same: the Gaussian has no seed."
)


_QUICK = (
    " This is a first look (--quick): few steps of training; at most"
    f" {sample_quality.MOST_ROWS[True]} draws compared with as many test rows, solver gap and"
    f" round-trip error of {likelihood.CHECKED_ROWS[True]}; {timing.LIMITS[True].repeats} calls"
    f" timed, of more than {timing.LIMITS[True].longest} s one."
)


def write(directory: Path) -> Path:
    """Write the files of a report; return the path of report.html.

    Raises:
        ReportError: the directory is missing or holds no cells, or a file is broken.
        OSError: a file cannot be written.

    """
    for path, content in files(directory):
        write_whole(path, content)
    return path


def files(directory: Path) -> Iterator[tuple[Path, str | bytes]]:
    """Yield each file of a report with what stands in it: pictures, tables, report.html the last.

    Raises `ReportError` as `write` does.
    """
    directory = Path(directory)
    results = load.load(directory)
    pictures = list(gallery.pictures(results))
    for picture in pictures:
        yield directory / f"{picture.stem}.png", picture.png
        yield directory / f"{picture.stem}.svg", picture.svg
    yield directory / "results.csv", _csv(map(vars, results.rows))
    for name, lines in _measurements(results):
        yield directory / name, _csv(lines)
    content = _content(results, pictures)
    for kind in ("md", "tex", "html"):
        yield directory / f"report.{kind}", render(kind, **content)


def rows(directory: Path) -> list[Row]:
    """Return the rows of results.csv. Raises as `write` does."""
    return load.load(Path(directory)).rows


def summary(directory: Path) -> str:
    """Return the table for a terminal: every setting of every data set, at most 100 wide.

    Raises as `write` does.
    """
    lines: list[str] = []
    results = load.load(Path(directory))
    for name, groups in by_dataset(results.settings).items():
        seeds = max(len(s.rows) + len(s.failed) for s in groups)
        averaged = f" (averages over {seeds} seeds)" if seeds > 1 else ""
        lines += [clip(name, 70) + averaged]
        lines += tables.plain_table(tables.summary_table(groups))
        lines += [
            clip(f"{s.label} depth {s.depth} seed {row.seed} failed: {row.error}", 100)
            for s in groups
            if s.rows
            for row in s.failed
        ]
        lines.append("")
    timed = any(s.mean("density_ms_per_1000") is not None for s in results.settings)
    costs = "; ms per 1000 rows; NFE density/sample" if timed else ""
    lines.append(f"log-likelihood in nats, higher is better{costs}")
    return "\n".join(lines)


# --- what the report says ------------------------------------------------------------------------


def _content(results: Results, pictures: Sequence[Picture]) -> dict[str, object]:
    manifest = results.manifest
    several = any(len(s.rows) + len(s.failed) > 1 for s in results.settings)
    drawn = gallery.has_matplotlib()
    keys = ("created", "processor", "threads", "device", "dtype", "seed", "steps")
    machine = [f"{key}: {manifest[key]}" for key in keys if manifest.get(key) is not None]
    if isinstance(versions := manifest.get("versions"), dict):
        machine.append("versions: " + ", ".join(f"{name} {v}" for name, v in versions.items()))
    return {
        "title": _TITLES.get(str(manifest.get("comparison")), _TITLES["compare"]),
        "introduction": _HOW_TO_READ
        + (_SEEDS if several else "")
        + (_QUICK if manifest.get("quick") else ""),
        "front": [picture for picture in pictures if picture.leads == ""],
        "sections": list(_sections(results, pictures)),
        "pictures": [picture for picture in pictures if picture.leads is None],
        "no_pictures": "no cell has what one shows" if drawn else "they need matplotlib",
        "failures": tables.failure_table(results.rows, results.labels),
        "command": one_line(manifest.get("command", "")),
        "machine": list(map(one_line, machine)),
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False),
    }


def _sections(results: Results, pictures: Sequence[Picture]) -> Iterator[Section]:
    chosen = _TABLES.get(str(results.manifest.get("comparison")), _TABLES["compare"])
    sizes, steps = (load.measured(results, file) for file in (layout.ROWS, layout.STEPS))
    for name, groups in by_dataset(results.settings).items():
        if not name:  # a cell cut off before it wrote what it is: listed among the failed
            continue
        shown = [table for table_of in chosen if (table := table_of(groups)).rows]
        shown += [rows_table(sizes[name])] if name in sizes else []
        shown += [steps_table(steps[name])] if name in steps else []
        about = _describe(results.data.get(name, {}))
        leading = [picture for picture in pictures if picture.leads == name]
        yield Section(name, about, shown, leader(groups), leading)
    for axis, title in (("features", "dimension"), ("depth", "depth")):
        if lines := load.records(results.directory / layout.sweep(axis)):
            shown = [growth_table(lines, axis, w, results.labels) for w in ("density", "sample")]
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


def _measurements(results: Results) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Name and lines of the further .csv files: what was measured after the cells, flat."""
    for axis in scaling.SWEEPS:
        if lines := load.records(results.directory / layout.sweep(axis)):
            yield layout.sweep(axis).replace(".json", ".csv"), lines
    for file in (layout.ROWS, layout.STEPS):
        lines = [
            {"dataset": name, "model": s.model, "depth": s.depth, "view": s.view} | _flat(record)
            for name, pairs in load.measured(results, file).items()
            for s, kept in pairs
            for record in kept
        ]
        if lines:
            yield file.replace(".json", ".csv"), lines


def _flat(record: Mapping[str, object]) -> dict[str, object]:
    """{"density": {"ms": 1}} -> {"density_ms": 1}."""
    flat: dict[str, object] = {}
    for name, value in record.items():
        parts = (
            {f"{name}_{part}": v for part, v in value.items()} if isinstance(value, dict) else {}
        )
        flat |= parts or {name: value}
    return flat


def _csv(lines: Iterable[Mapping[str, object]]) -> str:
    lines = list(lines)
    text = io.StringIO()
    columns = dict.fromkeys(column for line in lines for column in line)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
