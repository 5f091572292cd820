"""The tables of a report: seeds averaged, every mean with its error, differences paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.harness.statistics import mean_and_error

__all__ = [
    "VIEW",
    "Cell",
    "Setting",
    "Table",
    "clip",
    "cost_table",
    "count",
    "deepest",
    "depth_table",
    "failure_table",
    "fixed",
    "label",
    "leaders",
    "likelihood_digits",
    "likelihood_table",
    "name_of",
    "paired",
    "plain_table",
    "plus_minus",
    "power",
    "quality_table",
    "reference",
    "settings",
    "significant",
    "summary_table",
]

Row = dict[str, Any]
Vector = NDArray[np.float64]
Columns = dict[str, Callable[["Setting"], str]]

_LABELS = {
    "ffjord": "FFJORD",
    "ffjord-matching": "FFJORD, matching",
    "ffjord-time": "FFJORD, end time",
    "maf": "MAF",
    "iaf": "IAF",
    "realnvp": "RealNVP",
    "nice": "NICE",
    "spline": "Spline",
    "planar": "Planar",
    "gaussian": "Gaussian",
}
_QUALITY = (
    "Draws against test rows; in brackets the null, test rows against test rows, which is what a"
    " perfect model would show. In standard deviations of the data; the classifier's accuracy is on"
    " held-out rows, one half if it cannot tell. Smaller is better in all four."
)
VIEW = "default"  # of fairness, where a command asks for no other
_LIKELIHOOD = "test log-likelihood ± 2 s.e."


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, and whether it is set in bold."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table without a format: a title, a note (or ""), column heads, rows of cells.

    A row shorter than the header ends in a sentence, which runs over the columns it lacks.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: bool = False  # set like text, not like numbers


@dataclass(frozen=True, eq=False)
class Setting:
    """One (data set, model, depth, view): its finished rows, one a seed, and their average.

    `log_probs` and `gains` hold one vector over the test rows for every seed that has one: log p,
    and log p less that of the Gaussian.
    """

    dataset: str
    model: str
    depth: int | None
    view: str = VIEW
    rows: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    log_probs: list[Vector] = field(default_factory=list)
    gains: list[Vector] = field(default_factory=list)

    def mean(self, column: str) -> float | None:
        """Return the average of a column over the seeds, None where no seed has a value."""
        values = self._values(column)
        return math.fsum(values) / len(values) if values else None

    def largest(self, column: str) -> float | None:
        """Return the largest value of a column over the seeds, None where no seed has one."""
        return max(self._values(column), default=None)

    @cached_property
    def log_prob(self) -> Vector | None:
        """Return log p of every test row, averaged over the seeds; None where there is none."""
        return _average(self.log_probs)

    @cached_property
    def likelihood(self) -> tuple[float | None, float | None]:
        """Test log-likelihood and its two standard errors over the test rows."""
        error = self.mean("test_log_prob_2se")
        if len(self.rows) > 1 and self.log_prob is not None:
            # All seeds saw the same test rows: averaged errors would not know it.
            error = mean_and_error(self.log_prob)[1]
        return self.mean("test_log_prob"), error

    @cached_property
    def gain(self) -> tuple[float | None, float | None]:
        """Paired gain over the Gaussian and its two standard errors."""
        difference = _average(self.gains)
        return (None, None) if difference is None else mean_and_error(difference)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test log-likelihood over seeds, None below two seeds."""
        return self.spread_of("test_log_prob")

    def spread_of(self, column: str) -> float | None:
        """Standard deviation of a column over seeds, None below two seeds."""
        values = self._values(column)
        if len(values) < 2 or not all(map(math.isfinite, values)):
            return None
        return float(np.std(values, ddof=1))

    @property
    def seeds(self) -> str:
        """How many seeds finished, out of how many."""
        done, total = len(self.rows), len(self.rows) + len(self.failed)
        return str(done) if done == total else f"{done} of {total}"

    def _values(self, column: str) -> list[float]:
        return [row[column] for row in self.rows if row.get(column) is not None]


def label(model: str) -> str:
    """Return a model's name as tables and pictures write it."""
    return _LABELS.get(model, model)


def name_of(s: Setting) -> str:
    """Return a setting's model as pictures write it, with its view where that is a special one."""
    return label(s.model) if s.view == VIEW else f"{label(s.model)}, {s.view}"


def paired(first: Vector, second: Vector) -> tuple[float, float] | None:
    """Return mean and two standard errors of first - second; None where the rows do not match."""
    return mean_and_error(_subtract(first, second)) if first.shape == second.shape else None


def settings(rows: Iterable[Row], log_probs: Mapping[str, Vector]) -> list[Setting]:
    """Return the settings in the order of their first row.

    `rows` are those of results.csv; `log_probs` holds log p of every test row by a row's `cell`.
    """
    rows = list(rows)
    found: dict[tuple[str, str, int | None, str], Setting] = {}
    for row in rows:
        key = (row["dataset"], row["model"], row["depth"], row.get("view", VIEW))
        setting = found.setdefault(key, Setting(*key))
        if row["status"] != "ok":
            setting.failed.append(row)
            continue
        setting.rows.append(row)
        if (vector := log_probs.get(row["cell"])) is not None:
            setting.log_probs.append(vector)
            other = reference(row, rows, log_probs)
            if other is not None and other.shape == vector.shape:
                setting.gains.append(_subtract(vector, other))
    return list(found.values())


def reference(row: Row, rows: Iterable[Row], log_probs: Mapping[str, Vector]) -> Vector | None:
    """Return log p under the Gaussian of the row's data (of its seed if there is one), or None."""
    found = [
        other
        for other in rows
        if other["model"] == "gaussian"
        and other["dataset"] == row["dataset"]
        and other["cell"] in log_probs
    ]
    found.sort(key=lambda other: other["seed"] != row["seed"])
    return log_probs[found[0]["cell"]] if found else None


def deepest(found: Iterable[Setting]) -> list[Setting]:
    """Return one setting a data set, model and view: the deepest that finished, else a failed one.

    A depth is never judged against another view's.
    """
    best: dict[tuple[str, str, str], Setting] = {}
    for setting in found:
        key = (setting.dataset, setting.model, setting.view)
        if _rank(setting) > _rank(best.setdefault(key, setting)):
            best[key] = setting
    return list(best.values())


def likelihood_table(found: Sequence[Setting]) -> Table:
    """Return the Likelihood table of one data set: the Gaussian, then each model at its deepest."""
    shown = deepest(found)
    digits = _decimals(s.gain[1] for s in shown)
    bits: Columns = {
        "bits per dimension ± 2 s.e.": lambda s: plus_minus(
            s.mean("bits_per_dim"), s.mean("bits_per_dim_2se"), 3
        )
    }
    columns: Columns = {
        **_likelihood_columns(shown),
        **(bits if any(s.mean("bits_per_dim") is not None for s in shown) else {}),
        "gain over Gaussian ± 2 s.e.": lambda s: _gain(s, digits),
        "solver gap, mean / max": lambda s: _join(
            power(s.mean("solver_gap")), power(s.largest("solver_gap_max"))
        ),
        "round-trip error": lambda s: power(s.largest("round_trip_error")),
        "parameters": lambda s: count(s.mean("parameters")),
        "training s": lambda s: fixed(s.mean("train_seconds"), 1),
    }
    return _table("Likelihood", shown, columns, _stand_ins(found, shown), leaders(shown))


def cost_table(found: Sequence[Setting]) -> Table:
    """Return the Sampling cost table of one data set: the rows of the Likelihood table."""
    shown = deepest(found)
    columns: Columns = {
        "evaluations, density": lambda s: count(s.mean("nfe_density")),
        "evaluations, sample": lambda s: count(s.mean("nfe_sample")),
        "ms per 1000 densities (quartiles)": lambda s: _quartiles(s, "density"),
        "ms per 1000 samples (quartiles)": lambda s: _quartiles(s, "sample"),
        "sample / density": lambda s: significant(_ratio(s)),
    }
    return _table("Sampling cost", shown, columns, _stand_ins(found, shown))


def quality_table(found: Sequence[Setting]) -> Table:
    """Return the Sample quality table of one data set; no rows where nothing was compared."""
    shown = [s for s in deepest(found) if s.mean("sw") is not None]
    names = {
        "sw": ("sliced Wasserstein", 3),
        "mmd": ("MMD²", 4),
        "ks": ("mean 1-d KS", 3),
        "c2st": ("classifier accuracy", 3),
    }
    columns: Columns = {
        f"{title} (null)": partial(_beside_null, name=name, digits=digits)
        for name, (title, digits) in names.items()
    }
    return _table("Sample quality", shown, columns, _QUALITY)


def _beside_null(s: Setting, name: str, digits: int) -> str:
    value, null = s.mean(name), s.mean(f"{name}_null")
    spread = s.spread_of(name)
    text = fixed(value, digits) + ("" if spread is None else f" ± {fixed(spread, digits)} s.d.")
    return text if value is None or null is None else f"{text} ({fixed(null, digits)})"


def depth_table(found: Sequence[Setting]) -> Table:
    """Return the Depth table of one data set: every model at every depth, the Gaussian first."""
    columns: Columns = {
        **_likelihood_columns(found),
        "ms per 1000 densities": lambda s: significant(s.mean("density_ms_per_1000")),
        "ms per 1000 samples": lambda s: significant(s.mean("sample_ms_per_1000")),
        "evaluations, density": lambda s: count(s.mean("nfe_density")),
        "evaluations, sample": lambda s: count(s.mean("nfe_sample")),
        "parameters": lambda s: count(s.mean("parameters")),
    }
    return _table("Depth", found, columns)


def summary_table(found: Sequence[Setting]) -> Table:
    """Return the short table of one data set that a terminal shows at the end of a run."""
    digits, gain_digits = likelihood_digits(found), _decimals(s.gain[1] for s in found)
    columns: Columns = {
        "log-lik. ± 2 s.e.": lambda s: plus_minus(*s.likelihood, digits),
        "gain ± 2 s.e.": lambda s: _gain(s, gain_digits),
        "solver gap": lambda s: power(s.mean("solver_gap")),
        "density ms": lambda s: significant(s.mean("density_ms_per_1000")),
        "sample ms": lambda s: significant(s.mean("sample_ms_per_1000")),
        "NFE d/s": lambda s: _join(count(s.mean("nfe_density")), count(s.mean("nfe_sample")), "/"),
    }
    return _table("", found, columns)


def failure_table(rows: Iterable[Row]) -> Table:
    """Return one line for every cell that did not finish, with its reason."""
    header = ("data set", "model", "depth", "seed", "reason", "cell")
    columns = ("dataset", "model", "depth", "seed", "error", "cell")
    failed = [row for row in rows if row["status"] != "ok"]

    def cells(row: Row) -> tuple[Cell, ...]:
        values = {**row, "model": label(row["model"])}
        return tuple(Cell("" if values[c] is None else str(values[c])) for c in columns)

    return Table("", "", header, tuple(map(cells, failed)), words=True)


def plain_table(table: Table, width: int = 100) -> list[str]:
    """Return the table's lines, none longer than `width`; the first column gives way."""
    columns = len(table.header)
    lines = [table.header, *(tuple(cell.text for cell in row) for row in table.rows)]
    full = [line for line in lines if len(line) == columns]
    sizes = [max(len(line[i]) for line in full) for i in range(columns)]
    sizes[0] = max(len(line[0]) for line in lines)
    sizes[0] = max(8, min(sizes[0], width - sum(sizes[1:]) - 2 * (columns - 1)))

    def text(line: tuple[str, ...]) -> str:
        tail = line[-1:] if len(line) < columns else ()
        body = line[1 : len(line) - len(tail)]
        parts = [clip(line[0], sizes[0]).ljust(sizes[0])]
        parts += [value.rjust(size) for value, size in zip(body, sizes[1:], strict=False)]
        return clip("  ".join([*parts, *tail]).rstrip(), width)

    return list(map(text, lines))


def clip(text: str, width: int) -> str:
    """Return the text, shortened to `width` characters by an ellipsis where it is longer."""
    return text if len(text) <= width else text[: width - 1] + "…"


def plus_minus(value: float | None, error: float | None, digits: int) -> str:
    """Return "value ± error" at so many decimals; "" for no value, no ± where no error is known."""
    text = fixed(value, digits)
    if value is None or error is None or not math.isfinite(value) or not math.isfinite(error):
        return text
    return f"{text} ± {fixed(error, digits)}"


def likelihood_digits(found: Iterable[Setting]) -> int:
    """Return the decimals at which these settings' log-likelihoods are worth printing."""
    return _decimals(s.likelihood[1] for s in found)


def _rank(setting: Setting) -> tuple[bool, int]:
    return bool(setting.rows), -1 if setting.depth is None else setting.depth


def leaders(shown: Sequence[Setting]) -> list[Setting]:
    """Return the best, and each whose paired difference to it is within two standard errors."""
    scored = [(s.likelihood[0], s) for s in shown]
    finite = [(value, s) for value, s in scored if value is not None and math.isfinite(value)]
    if not finite:
        return []
    best = max(finite, key=lambda pair: pair[0])[1]
    leaders = [best]
    for _, s in finite:
        if s is best or s.log_prob is None or best.log_prob is None:
            continue
        difference = paired(best.log_prob, s.log_prob)
        if difference is not None and difference[0] <= difference[1]:
            leaders.append(s)
    return leaders


def _stand_ins(found: Sequence[Setting], shown: Sequence[Setting]) -> str:
    """Say where a table's row is not the deepest setting that was asked for."""
    notes = []
    for s in shown:
        missed = [
            o.depth
            for o in found
            if (o.model, o.view) == (s.model, s.view) and _deeper(o, s) and not o.rows
        ]
        if s.rows and missed:
            depths = ", ".join(str(depth) for depth in missed)
            notes.append(f"{name_of(s)} failed at depth {depths}: depth {s.depth} stands here.")
    return " ".join(notes)


def _deeper(first: Setting, second: Setting) -> bool:
    return (first.depth or 0) > (second.depth or 0)


def _table(
    title: str,
    shown: Sequence[Setting],
    columns: Columns,
    note: str = "",
    bold: Sequence[Setting] = (),
) -> Table:
    """Return a row a setting: model, depth, the columns; a row cut short says why it failed."""
    views = any(s.view != VIEW for s in shown)

    def cells(s: Setting) -> tuple[Cell, ...]:
        name = (Cell(label(s.model)), *([Cell(s.view)] if views else []))
        name += (Cell("" if s.depth is None else str(s.depth)),)
        if not s.rows:
            return (*name, Cell(f"failed: {s.failed[0]['error']}"))
        first, *rest = (text(s) for text in columns.values())
        return (*name, Cell(first, s in bold), *map(Cell, rest))

    head = ("model", *(["view"] if views else []), "depth")
    return Table(title, note, (*head, *columns), tuple(map(cells, shown)))


def _likelihood_columns(shown: Sequence[Setting]) -> Columns:
    """Return the likelihood, and with several seeds their number and spread."""
    digits = likelihood_digits(shown)
    columns: Columns = {_LIKELIHOOD: lambda s: plus_minus(*s.likelihood, digits)}
    if any(len(s.rows) + len(s.failed) > 1 for s in shown):
        columns["seeds"] = lambda s: s.seeds
        columns["spread over seeds (± s.d.)"] = lambda s: (
            "" if s.spread is None else f"± {fixed(s.spread, digits)}"
        )
    return columns


def _gain(s: Setting, digits: int) -> str:
    return "0" if s.model == "gaussian" else plus_minus(*s.gain, digits)


def _ratio(s: Setting) -> float | None:
    density, sample = s.mean("density_ms_per_1000"), s.mean("sample_ms_per_1000")
    return sample / density if density and sample is not None else None


def _quartiles(s: Setting, what: str) -> str:
    middle = significant(s.mean(f"{what}_ms_per_1000"))
    low, high = (significant(s.mean(f"{what}_ms_{q}")) for q in ("q1", "q3"))
    return f"{middle} ({low}–{high})" if middle and low and high else middle


def _join(first: str, second: str, sign: str = " / ") -> str:
    return f"{first}{sign}{second}" if first and second else first or second


def _decimals(errors: Iterable[float | None]) -> int:
    """Decimals that leave the smallest error two significant digits, between 0 and 4."""
    known = [e for e in errors if e is not None and math.isfinite(e) and e > 0]
    return min(max(1 - math.floor(math.log10(min(known))), 0), 4) if known else 3


def fixed(value: float | None, digits: int) -> str:
    """Return a value at so many decimals; "" for None, short where it is not finite or vast."""
    if value is None:
        return ""
    if not math.isfinite(value) or abs(value) >= 1e7:
        return f"{value:.4g}"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: never "-0.000"


def significant(value: float | None) -> str:
    """Three significant digits, without an exponent where a reader can do without."""
    if value is None:
        return ""
    if not math.isfinite(value) or value == 0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"


def power(value: float | None) -> str:
    """Return a value as a power of ten with two digits; "" for None."""
    return "" if value is None else f"{value:.1e}"


def count(value: float | None) -> str:
    """Return a count, an average of counts at one decimal; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if not math.isfinite(value) or value == round(value) else f"{value:,.1f}"


def _subtract(first: Vector, second: Vector) -> Vector:
    with np.errstate(invalid="ignore"):  # -inf less -inf is nan, and is shown as such
        return first - second


def _average(vectors: Sequence[Vector]) -> Vector | None:
    if not vectors or any(v.shape != vectors[0].shape for v in vectors):
        return None
    return vectors[0] if len(vectors) == 1 else np.mean(vectors, axis=0)
