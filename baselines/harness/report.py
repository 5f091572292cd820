"""results.csv, report.md, report.html and the pictures, rebuilt from a directory of cells alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.harness import pages, tables
from baselines.harness.pages import Block
from baselines.harness.tables import Setting, Table

__all__ = ["COLUMNS", "ReportError", "rows", "summary", "write"]

Row = dict[str, Any]

_RESULT: tuple[str, ...] = (
    "parameters",
    "steps",
    "train_seconds",
    "test_log_prob",
    "test_log_prob_2se",
)
_RESULT += ("solver_gap", "round_trip_error")
_COST = ("nfe_density", "nfe_sample", "density_ms_per_1000", "sample_ms_per_1000")
_QUARTILES = ("density_ms_q1", "density_ms_q3", "sample_ms_q1", "sample_ms_q3")

COLUMNS: tuple[str, ...] = ("dataset", "model", "depth", "seed", "status", "error")
COLUMNS += (*_RESULT, *_COST, "peak_memory_mb")
COLUMNS += ("solver_gap_max", "gain_over_gaussian", "gain_over_gaussian_2se", "cell", *_QUARTILES)
COLUMNS += ("bits_per_dim",)

_UNFINISHED = "unfinished: run the same command again to go on with it"
_TITLES = {
    "likelihood": "Normalizing flows compared: likelihood",
    "sampling": "Normalizing flows compared: sampling cost",
    "depth": "Normalizing flows compared: what depth buys",
    "compare": "Normalizing flows compared: likelihood, sampling cost, depth",
}
_TABLES = {
    "likelihood": [tables.likelihood_table],
    "sampling": [tables.cost_table],
    "depth": [tables.depth_table],
    "compare": [tables.likelihood_table, tables.cost_table, tables.depth_table],
}
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
    " are the largest of all seeds; the spread over seeds is one standard deviation."
)


class ReportError(ValueError):
    """A directory no report can be made from; the message is one line and names the file."""


def write(directory: Path) -> Path:
    """Write results.csv, report.md, report.html and the pictures; return the path of report.html.

    Raises `ReportError` where the directory is missing or holds no cells, or a file is broken.
    """
    results = _load(Path(directory))
    pictures, blocks = {}, list(_results_blocks(results))
    for stem, caption, png, svg in _pictures(results):
        pictures[stem] = png
        blocks.append(Block("picture", caption, stem))
        _replace(results.directory / f"{stem}.png", png)
        _replace(results.directory / f"{stem}.svg", svg)
    if not pictures:
        reason = "no cell has what one shows" if _has_matplotlib() else "they need matplotlib"
        blocks.append(Block("p", f"None: {reason}."))
    blocks += _run_blocks(results)
    _replace(results.directory / "results.csv", _csv(results.rows).encode())
    _replace(results.directory / "report.md", pages.markdown(blocks).encode())
    path = results.directory / "report.html"
    _replace(path, pages.page(blocks, pictures).encode())
    return path


def rows(directory: Path) -> list[Row]:
    """Return the rows of results.csv, None where one is empty. Raises as `write` does."""
    return _load(Path(directory)).rows


def summary(directory: Path) -> str:
    """Return the table for a terminal: every setting of every data set, at most 100 wide.

    Raises as `write` does.
    """
    lines: list[str] = []
    for name, found in _load(Path(directory)).by_dataset.items():
        seeds = max(len(s.rows) + len(s.failed) for s in found)
        averaged = f" (averages over {seeds} seeds)" if seeds > 1 else ""
        lines += [tables.clip(name, 70) + averaged]
        lines += tables.plain_table(tables.summary_table(found))
        missing = [(s, row) for s in found if s.rows for row in s.failed]
        for s, row in missing:
            place = f"{tables.label(s.model)} depth {s.depth} seed {row['seed']}"
            lines.append(tables.clip(f"{place} failed: {row['error']}", 100))
        lines.append("")
    lines.append("log-likelihood in nats, higher is better; ms per 1000 rows; NFE density/sample")
    return "\n".join(lines)


# --- reading the directory -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Results:
    directory: Path
    manifest: dict[str, Any]
    rows: list[Row]
    settings: list[Setting]

    @property
    def by_dataset(self) -> dict[str, list[Setting]]:
        found: dict[str, list[Setting]] = {}
        for s in self.settings:
            found.setdefault(s.dataset, []).append(s)
        return found


def _load(directory: Path) -> _Results:
    if not directory.is_dir():
        raise ReportError(f"{directory} is not a directory: name one that a comparison has written")
    manifest = _json(directory / "manifest.json")
    cells = directory / "cells"
    # What this command planned; a folder may hold the cells of other commands beside them.
    planned = manifest.get("cells")
    if not isinstance(planned, dict):
        there = sorted(cells.iterdir()) if cells.is_dir() else []
        planned = {path.name: {} for path in there if path.is_dir() and path.name[0] != "."}
    if not planned:
        raise ReportError(f"{directory} holds no cells: name one that a comparison has written")
    loaded = [_row(cells / key, config) for key, config in planned.items()]
    loaded.sort(key=_order(manifest))
    vectors = {r["cell"]: v for r in loaded if (v := _vector(cells / r["cell"], r)) is not None}
    for row in loaded:
        own, other = vectors.get(row["cell"]), tables.reference(row, loaded, vectors)
        if own is not None and other is not None and (gain := tables.paired(own, other)):
            row["gain_over_gaussian"], row["gain_over_gaussian_2se"] = gain
    return _Results(directory, manifest, loaded, tables.settings(loaded, vectors))


def _row(cell: Path, planned: dict[str, Any]) -> Row:
    """One row of results.csv, whatever state the cell was left in, or before it began."""
    config = _json(cell / "config.json") if (cell / "config.json").exists() else planned
    result = {"status": "failed", "error": _UNFINISHED}
    if (cell / "result.json").exists():
        result = _json(cell / "result.json")
    cost = _json(cell / "cost.json") if (cell / "cost.json").exists() else {}
    values = {**result, **cost}
    for what in ("density", "sample"):
        found = cost.get(f"{what}_ms_quartiles")
        pair = found if isinstance(found, list) and len(found) == 2 else (None, None)
        values[f"{what}_ms_q1"], values[f"{what}_ms_q3"] = pair
    row: Row = {column: _number(cell, column, values.get(column)) for column in COLUMNS[6:]}
    ok = result.get("status") == "ok"
    row |= {
        "dataset": _one_line(config.get("data", "")),
        "model": _one_line(config.get("model", "")),
        "depth": _number(cell, "depth", config.get("depth")),
        "seed": _number(cell, "seed", config.get("seed")),
        "status": "ok" if ok else "failed",
        "error": "" if ok else _one_line(result.get("error") or "no reason was given"),
        "cell": cell.name,
    }
    return {column: row[column] for column in COLUMNS}


def _number(cell: Path, column: str, value: Any) -> float | int | None:
    if value is None or column == "cell":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ReportError(f"{cell}: {column} is {value!r}, not a number")
    return value


def _one_line(value: Any) -> str:
    """Text that can stand in a table or on a terminal: one line, nothing unprintable."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _vector(cell: Path, row: Row) -> NDArray[np.float64] | None:
    """Return log p of the test rows; a failed cell's file may be of an earlier attempt."""
    path = cell / "test_log_prob.npy"
    if row["status"] != "ok" or not path.exists():
        return None
    try:
        with path.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False), np.float64).reshape(-1)
    except Exception as error:  # numpy lets out half a dozen types for a damaged file
        raise ReportError(
            f"{path} cannot be read as an array: remove its cell and run again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path} is missing: run the same command again") from None
    except (ValueError, OSError) as error:
        reason = _one_line(error)
        raise ReportError(f"{path} is not JSON ({reason}): remove it and run again") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path} is not a JSON object: remove it and run again")
    return value


def _order(manifest: Mapping[str, Any]) -> Any:
    """Return the key that sorts rows: data sets and models as the manifest, Gaussian first."""
    data = {_one_line(name): i for i, name in enumerate(manifest.get("data") or ())}
    models = {_one_line(name): i for i, name in enumerate(manifest.get("models") or ())}
    models["gaussian"] = -1

    def key(row: Row) -> tuple[Any, ...]:
        depth, seed = (-1 if row[c] is None else row[c] for c in ("depth", "seed"))
        name, model = row["dataset"], row["model"]
        place = data.get(name, len(data)), name, models.get(model, len(models)), model
        return (*place, depth, seed, row["cell"])

    return key


# --- what the report says ------------------------------------------------------------------------


def _results_blocks(results: _Results) -> Iterator[Block | Table]:
    comparison = results.manifest.get("comparison")
    several = any(len(s.rows) + len(s.failed) > 1 for s in results.settings)
    yield Block("h1", _TITLES.get(str(comparison), _TITLES["compare"]))
    yield Block("p", _HOW_TO_READ + (_SEEDS if several else ""))
    about = results.manifest.get("data")
    about = {_one_line(k): v for k, v in about.items()} if isinstance(about, dict) else {}
    for name, found in results.by_dataset.items():
        if not name:  # a cell cut off before it wrote what it is: listed among the failed
            continue
        yield Block("h2", name)
        if isinstance(about.get(name), dict):
            yield Block("p", _describe(about[name]), "soft")
        for table in _TABLES.get(str(comparison), _TABLES["compare"]):
            yield table(found)
    yield Block("h2", "Pictures")


def _describe(data: Mapping[str, Any]) -> str:
    parts = [str(data["kind"])] if data.get("kind") else []
    if isinstance(data.get("rows"), list):
        counts = " / ".join(f"{n:,}" if isinstance(n, int) else str(n) for n in data["rows"])
        parts.append(f"{counts} rows to train / validate / test")
    if data.get("features"):
        parts.append(f"{data['features']} columns")
    if data.get("note"):
        parts.append(str(data["note"]))
    parts += [f"{key} {data[key]}" for key in ("source", "licence", "checksum") if data.get(key)]
    return _one_line("; ".join(parts))


def _run_blocks(results: _Results) -> Iterator[Block | Table]:
    yield Block("h2", "Failed cells")
    failures = tables.failure_table(results.rows)
    yield failures if failures.rows else Block("p", "None.")
    manifest = results.manifest
    yield Block("h2", "Command and machine")
    yield Block("code", _one_line(manifest.get("command", "")))
    keys = ("created", "processor", "threads", "device", "dtype", "seed", "steps")
    lines = [f"{key}: {manifest[key]}" for key in keys if manifest.get(key) is not None]
    if isinstance(versions := manifest.get("versions"), dict):
        lines.append("versions: " + ", ".join(f"{name} {v}" for name, v in versions.items()))
    yield Block("list", "\n".join(map(_one_line, lines)))
    yield Block("manifest", json.dumps(manifest, indent=2, ensure_ascii=False))


def _has_matplotlib() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def _pictures(results: _Results) -> Iterator[tuple[str, str, bytes, bytes]]:
    """File stem, caption, PNG and SVG of every picture that the results can fill."""
    if not _has_matplotlib():
        return
    from baselines.harness import plots

    named = [s for s in results.settings if s.dataset]
    caption = "Test log-likelihood of each model at its deepest; the dashed line is the Gaussian."
    if figure := plots.likelihood(named):
        yield "likelihood", caption, *plots.encode(figure)
    caption = (
        "What a sample costs against what a density costs; the thin line joins a model's depths."
    )
    if figure := plots.cost(named):
        yield "cost", caption, *plots.encode(figure)
    taken: set[str] = set()
    for name, found in results.by_dataset.items():
        columns = [(s, p) for s in tables.deepest(found) if (p := _picture(results, s))]
        if name and columns:
            data = next((p["data"] for _, p in columns if "data" in p), None)
            caption = f"{name}: densities above, samples below, at each model's deepest."
            stem = _stem(name, taken)
            yield stem, caption, *plots.encode(plots.densities(columns, data))


def _picture(results: _Results, s: Setting) -> dict[str, NDArray[np.float64]] | None:
    """Return the arrays of a setting's first seed that left a picture."""
    for row in s.rows:
        path = results.directory / "cells" / row["cell"] / "picture.npz"
        if not path.exists():
            continue
        try:
            # Opened here: numpy leaves a file open that it finds to be no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: np.asarray(arrays[name], np.float64) for name in arrays.files}
        except Exception as error:  # likewise
            raise ReportError(f"{path} cannot be read: remove its cell and run again") from error
        if missing := {"density", "extent", "samples"} - set(found):
            raise ReportError(f"{path} lacks {', '.join(sorted(missing))}: remove its cell")
        return found
    return None


def _stem(name: str, taken: set[str]) -> str:
    """Return a file name that no data set can lead out of the directory, nor share with another."""
    stem = base = "densities_" + re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60]
    while stem.lower() in taken:
        stem = f"{base}_{len(taken) + 1}"
    taken.add(stem.lower())
    return stem


# --- the files -----------------------------------------------------------------------------------


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename: a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _csv(found: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()
