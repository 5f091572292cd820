"""A directory of cells, read: the rows of results.csv, the settings, the arrays for pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from baselines.harness.results import layout
from baselines.harness.results.aggregate import Group, paired, reference, settings
from baselines.harness.results.records import COLUMNS, VIEW, Row
from baselines.models.builtin import MODELS
from baselines.models.model import CLOSED_FORM
from cflows.core.registry import LoadError
from cflows.training.history import History, Record

__all__ = [
    "Measured",
    "ReportError",
    "Results",
    "drawn",
    "histories",
    "load",
    "measured",
    "one_line",
    "picture",
    "read_json",
    "records",
]

_WORDS = ("dataset", "model", "depth", "seed", "status", "error", "cell", "view")
_UNFINISHED = "unfinished: run the same command again to go on with it"

Arrays = TypeVar("Arrays")
Measured = list[tuple[Group, list[Any]]]  # with their scaling.Sized, or depth.Stepped


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
        labels: how tables and pictures write the models, by their names.

    """

    directory: Path
    manifest: dict[str, object]
    rows: list[Row]
    settings: list[Group]
    labels: dict[str, str]

    @property
    def data(self) -> dict[str, dict[str, object]]:
        """What the manifest says of each data set, by its name."""
        about = _object(self.manifest, "data").items()
        return {one_line(name): facts for name, facts in about if isinstance(facts, dict)}

    def file(self, row: Row, name: str) -> Path:
        """Return where a file of a row's cell lies."""
        return layout.cell(self.directory, row.cell) / name


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
    rows = [_row(cells / key, config) for key, config in planned.items()]
    rows.sort(key=_order(manifest))
    vectors = {r.cell: v for r in rows if (v := _vector(cells / r.cell, r)) is not None}
    for i, row in enumerate(rows):
        own, other = vectors.get(row.cell), reference(row, rows, vectors)
        if own is not None and other is not None and (gain := paired(own, other)):
            rows[i] = replace(row, gain_over_gaussian=gain[0], gain_over_gaussian_2se=gain[1])
    labels = _labels(manifest)
    return Results(directory, manifest, rows, settings(rows, vectors, labels), labels)


def _object(manifest: Mapping[str, object], key: str) -> dict[str, object]:
    value = manifest.get(key)
    return value if isinstance(value, dict) else {}


def _labels(manifest: Mapping[str, object]) -> dict[str, str]:
    own = {name: model.label for name, model in (CLOSED_FORM | MODELS).items()}
    pairs = _object(manifest, "labels").items()
    told = {one_line(n): one_line(label) for n, label in pairs if isinstance(label, str) and label}
    shared = Counter((own | told).values())
    # Two functions of one name, or one that is called like a model here, keep their files' names.
    return own | {
        n: n if n not in own and shared[label] > 1 else label for n, label in told.items()
    }


def _row(cell: Path, planned: dict[str, object]) -> Row:
    """One row of results.csv, whatever state the cell was left in, or before it began."""

    def kept(name: str, otherwise: dict[str, object]) -> dict[str, object]:
        return read_json(cell / name) if (cell / name).exists() else otherwise

    config = kept(layout.CONFIG, planned)
    result = kept(layout.RESULT, {"error": _UNFINISHED})
    cost = kept(layout.COST, {})
    values = {**result, **cost}
    for what in ("density", "sample"):
        pair = cost.get(f"{what}_ms_quartiles")
        low, high = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        values |= {f"{what}_ms_q1": low, f"{what}_ms_q3": high}
    is_finished = result.get("status") == "ok"
    return Row(
        dataset=one_line(config.get("data", "")),
        model=one_line(config.get("model", "")),
        depth=_number(cell, "depth", config.get("depth")),
        seed=_number(cell, "seed", config.get("seed")),
        status="ok" if is_finished else "failed",
        error="" if is_finished else one_line(result.get("error") or "no reason was given"),
        cell=cell.name,
        view=one_line(result.get("view") or config.get("view") or VIEW),
        **{name: _number(cell, name, values.get(name)) for name in COLUMNS if name not in _WORDS},
    )


def _number(cell: Path, column: str, value: object) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ReportError(f"{cell}: {column} is {value!r}, not a number")
    return value


def one_line(value: object) -> str:
    """Text that can stand in a table or on a terminal: one line, nothing unprintable."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _vector(cell: Path, row: Row) -> NDArray[np.float64] | None:
    """Return log p of the test rows; a failed cell's file may be of an earlier attempt."""
    path = cell / layout.LOG_PROB
    if not row.is_finished or not path.exists():
        return None

    def read(file: IO[bytes]) -> NDArray[np.float64]:
        return np.asarray(np.load(file, allow_pickle=False), np.float64).reshape(-1)

    return _read_arrays(path, read, " as an array")


def _read_arrays(path: Path, read: Callable[[IO[bytes]], Arrays], how: str = "") -> Arrays:
    try:
        # Opened here: numpy leaves a file open that it finds to be no archive.
        with path.open("rb") as file:
            return read(file)
    except Exception as error:  # numpy lets out half a dozen types for a damaged file
        raise ReportError(f"{path} cannot be read{how}: remove its cell and run again") from error


def read_json(path: Path) -> dict[str, object]:
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


def _order(manifest: Mapping[str, object]) -> Callable[[Row], tuple[object, ...]]:
    """Return the key that sorts rows: data sets and models as the manifest, closed forms first."""

    def places(key: str) -> dict[str, int]:
        names = manifest.get(key)
        listed = names if isinstance(names, dict | list) else ()
        return {one_line(name): i for i, name in enumerate(listed)}

    data = places("data")
    models = {name: i for i, name in enumerate([*CLOSED_FORM, *places("models")])}

    def key(row: Row) -> tuple[object, ...]:
        depth, seed = (-1 if value is None else value for value in (row.depth, row.seed))
        dataset = data.get(row.dataset, len(data)), row.dataset
        model = models.get(row.model, len(models)), row.model
        views = ("default", "parameters", "budget", row.view)
        return (*dataset, *model, views.index(row.view), depth, seed, row.cell)

    return key


def picture(results: Results, s: Group) -> dict[str, NDArray[np.float64]] | None:
    """Return the arrays of picture.npz of a setting's first seed that left one, or None."""

    def read(file: IO[bytes]) -> dict[str, NDArray[np.float64]]:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name], np.float64) for name in arrays.files}

    for row in s.rows:
        path = results.file(row, layout.PICTURE)
        if not path.exists():
            continue
        arrays = _read_arrays(path, read)
        if missing := {"density", "extent", "samples"} - set(arrays):
            raise ReportError(f"{path} lacks {', '.join(sorted(missing))}: remove its cell")
        return arrays
    return None


def drawn(results: Results, s: Group) -> dict[str, NDArray[np.int64]] | None:
    """Return images as pixels (N, D), "drawn" by a setting's first seed and "data"; or None."""

    def read(file: IO[bytes]) -> dict[str, NDArray[np.int64]]:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("drawn", "data")}

    for row in s.rows:
        path = results.file(row, layout.DRAWN)
        if path.exists():
            return _read_arrays(path, read)
    return None


def records(path: Path) -> list[Any]:
    """Return what ``scaling.kept_or_made`` kept in a file; nothing where there is none."""
    if not path.exists():
        return []
    listed = read_json(path).get("records")
    if not isinstance(listed, list) or not all(isinstance(record, dict) for record in listed):
        raise ReportError(f"{path} holds no records: remove it and run again")
    return listed


def measured(results: Results, file: str) -> dict[str, Measured]:
    """Return, by data set, each setting with the records in that file of its first cell."""
    sets: dict[str, Measured] = {}
    for s in results.settings:
        if lines := next(filter(None, (records(results.file(row, file)) for row in s.rows)), None):
            sets.setdefault(s.dataset, []).append((s, lines))
    return sets


def histories(results: Results) -> dict[str, list[Record]]:
    """Return the lines of history.jsonl of every finished cell that has one."""
    lines: dict[str, list[Record]] = {}
    for row in results.rows:
        path = results.file(row, layout.HISTORY)
        if row.is_finished and path.exists():
            try:
                lines[row.cell] = History.read(path).records
            except (LoadError, OSError, UnicodeDecodeError) as error:
                raise ReportError(f"{one_line(error)}: remove its cell and run again") from error
    return lines
