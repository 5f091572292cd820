"""A directory of cells, read: the rows of results.csv, the settings, the arrays for pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.harness.results import layout
from baselines.harness.results.aggregate import VIEW, Group, paired, reference, settings
from baselines.models.builtin import MODELS
from cflows.core.registry import LoadError
from cflows.training.history import History

__all__ = ["COLUMNS", "ReportError", "Results", "load", "one_line", "picture", "read_json"]

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
_QUALITY = tuple(name + end for name in ("sw", "mmd", "ks", "c2st") for end in ("", "_null"))
COLUMNS += (*_QUALITY, "bits_per_dim", "bits_per_dim_2se", "view")

_UNFINISHED = "unfinished: run the same command again to go on with it"


class ReportError(ValueError):
    """A directory no report can be made from; the message is one line and names the file."""


@dataclass(frozen=True)
class Results:
    """What a directory holds.

    Attributes:
        directory: DIR.
        manifest: manifest.json.
        rows: of results.csv.
        settings: the rows of one (data set, model, depth, view) together, in order.

    """

    directory: Path
    manifest: dict[str, Any]
    rows: list[Row]
    settings: list[Group]

    @property
    def labels(self) -> dict[str, str]:
        """How tables and pictures write the models, by their names."""
        return _labels(self.manifest)

    @property
    def by_dataset(self) -> dict[str, list[Group]]:
        """The settings by the name of their data set."""
        found: dict[str, list[Group]] = {}
        for s in self.settings:
            found.setdefault(s.dataset, []).append(s)
        return found


def load(directory: Path) -> Results:
    """Read a directory that a comparison has written, finished or not.

    Raises:
        ReportError: it is missing or holds no cells, or a file is broken; one line names it.

    """
    if not directory.is_dir():
        raise ReportError(f"{directory} is not a directory: name one that a comparison has written")
    manifest = read_json(directory / layout.MANIFEST)
    cells = directory / layout.CELLS
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
        own, other = vectors.get(row["cell"]), reference(row, loaded, vectors)
        if own is not None and other is not None and (gain := paired(own, other)):
            row["gain_over_gaussian"], row["gain_over_gaussian_2se"] = gain
    return Results(directory, manifest, loaded, settings(loaded, vectors, _labels(manifest)))


def _labels(manifest: Mapping[str, Any]) -> dict[str, str]:
    own = {"gaussian": "Gaussian"} | {name: model.label for name, model in MODELS.items()}
    found = manifest.get("labels")
    pairs = found.items() if isinstance(found, dict) else ()
    told = {one_line(n): one_line(label) for n, label in pairs if isinstance(label, str) and label}
    shared = Counter((own | told).values())
    # Two functions of one name, or one that is called like a model here, keep their files' names.
    return own | {
        n: n if n not in own and shared[label] > 1 else label for n, label in told.items()
    }


def _row(cell: Path, planned: dict[str, Any]) -> Row:
    """One row of results.csv, whatever state the cell was left in, or before it began."""
    config = read_json(cell / layout.CONFIG) if (cell / layout.CONFIG).exists() else planned
    result = {"status": "failed", "error": _UNFINISHED}
    if (cell / layout.RESULT).exists():
        result = read_json(cell / layout.RESULT)
    cost = read_json(cell / layout.COST) if (cell / layout.COST).exists() else {}
    values = {**result, **cost}
    for what in ("density", "sample"):
        found = cost.get(f"{what}_ms_quartiles")
        pair = found if isinstance(found, list) and len(found) == 2 else (None, None)
        values[f"{what}_ms_q1"], values[f"{what}_ms_q3"] = pair
    row: Row = {column: _number(cell, column, values.get(column)) for column in COLUMNS[6:]}
    ok = result.get("status") == "ok"
    row |= {
        "dataset": one_line(config.get("data", "")),
        "model": one_line(config.get("model", "")),
        "depth": _number(cell, "depth", config.get("depth")),
        "seed": _number(cell, "seed", config.get("seed")),
        "status": "ok" if ok else "failed",
        "error": "" if ok else one_line(result.get("error") or "no reason was given"),
        "cell": cell.name,
        "view": one_line(result.get("view") or config.get("view") or VIEW),
    }
    return {column: row[column] for column in COLUMNS}


def _number(cell: Path, column: str, value: Any) -> float | int | None:
    if value is None or column in ("cell", "view"):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ReportError(f"{cell}: {column} is {value!r}, not a number")
    return value


def one_line(value: Any) -> str:
    """Text that can stand in a table or on a terminal: one line, nothing unprintable."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _vector(cell: Path, row: Row) -> NDArray[np.float64] | None:
    """Return log p of the test rows; a failed cell's file may be of an earlier attempt."""
    path = cell / layout.LOG_PROB
    if row["status"] != "ok" or not path.exists():
        return None
    try:
        with path.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False), np.float64).reshape(-1)
    except Exception as error:  # numpy lets out half a dozen types for a damaged file
        raise ReportError(
            f"{path} cannot be read as an array: remove its cell and run again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a ReportError that names the file and the remedy if it is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path} is missing: run the same command again") from None
    except (ValueError, OSError) as error:
        reason = one_line(error)
        raise ReportError(f"{path} is not JSON ({reason}): remove it and run again") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path} is not a JSON object: remove it and run again")
    return value


def _order(manifest: Mapping[str, Any]) -> Any:
    """Return the key that sorts rows: data sets and models as the manifest, Gaussian first."""
    data = {one_line(name): i for i, name in enumerate(manifest.get("data") or ())}
    models = {one_line(name): i for i, name in enumerate(manifest.get("models") or ())}
    models["gaussian"] = -1

    def key(row: Row) -> tuple[Any, ...]:
        depth, seed = (-1 if row[c] is None else row[c] for c in ("depth", "seed"))
        name, model = row["dataset"], row["model"]
        place = data.get(name, len(data)), name, models.get(model, len(models)), model
        views = ("default", "parameters", "budget", row["view"])
        return (*place, views.index(row["view"]), depth, seed, row["cell"])

    return key


def picture(results: Results, s: Group) -> dict[str, NDArray[np.float64]] | None:
    """Return the arrays of picture.npz of a setting's first seed that left one, or None."""
    for row in s.rows:
        path = results.directory / layout.CELLS / row["cell"] / layout.PICTURE
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


def records(place: Path) -> list[dict[str, Any]]:
    """Return what ``scaling.kept_or_made`` kept in a file; nothing where there is none."""
    if not place.exists():
        return []
    found = read_json(place).get("records")
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise ReportError(f"{place} holds no records: remove it and run again")
    return found


def measured(results: Results, file: str) -> dict[str, list[tuple[Group, list[dict[str, Any]]]]]:
    """Return, by data set, each setting with the records in that file of its first cell."""
    found: dict[str, list[tuple[Group, list[dict[str, Any]]]]] = {}
    for s in results.settings:
        for row in s.rows:
            if there := records(results.directory / layout.CELLS / row["cell"] / file):
                found.setdefault(s.dataset, []).append((s, there))
                break
    return found


def histories(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of history.jsonl of every finished cell that has one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results.rows:
        path = results.directory / layout.CELLS / row["cell"] / layout.HISTORY
        if row["status"] != "ok" or not path.exists():
            continue
        try:
            lines = [asdict(record) for record in History.read(path).records]
        except (LoadError, OSError, UnicodeDecodeError) as error:
            raise ReportError(f"{one_line(error)}: remove its cell and run again") from error
        found[row["cell"]] = lines
    return found
