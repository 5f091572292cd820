"""The tables of a report: seeds averaged, every mean with its error, differences paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from baselines.harness.results.aggregate import Group, deepest, leaders, likelihood_digits, name_of
from baselines.harness.results.number_format import (
    clip,
    count,
    decimals,
    fixed,
    plus_minus,
    power,
    significant,
    whole,
)
from baselines.harness.results.records import VIEW, Row
from baselines.models.model import GAUSSIAN

__all__ = [
    "Table",
    "TableCell",
    "cost_table",
    "depth_table",
    "failure_table",
    "likelihood_table",
    "plain_table",
    "quality_table",
    "summary_table",
    "table_of",
]

Columns = dict[str, Callable[[Group], str]]

_QUALITY = (
    "Draws against test rows; in brackets the null, test rows against test rows, which is what a"
    " perfect model would show. In standard deviations of the data; the classifier's accuracy is on"
    " held-out rows, one half if it cannot tell. Smaller is better in all four."
)
_EVALUATIONS: Columns = {
    "evaluations, density": lambda s: count(s.mean("nfe_density")),
    "evaluations, sample": lambda s: count(s.mean("nfe_sample")),
}
_PARAMETERS: Columns = {"parameters": lambda s: count(s.mean("parameters"))}


@dataclass(frozen=True)
class TableCell:
    """One cell of a table: its text, and whether it is set in bold."""

    text: str
    bold: bool = False


Line = Sequence[str | TableCell]


@dataclass(frozen=True)
class Table:
    """A table without a format: a title, a note (or ""), column heads, rows of cells.

    A row shorter than the header ends in a sentence, which runs over the columns it lacks.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    words: bool = False  # set like text, not like numbers

    @cached_property
    def sides(self) -> str:
        """``"l"`` or ``"r"`` for each column: where words stand, and where numbers do."""
        full = [row for row in self.rows if len(row) == len(self.header)]
        texts = [[row[i].text for row in full if row[i].text] for i in range(len(self.header))]
        return "".join(
            "l" if self.words or i == 0 or (column and all(map(_is_word, column))) else "r"
            for i, column in enumerate(texts)
        )


def table_of(
    title: str, note: str, header: Sequence[str], lines: Iterable[Line], words: bool = False
) -> Table:
    """Return a table of cells and of texts that become cells."""
    rows = (tuple(TableCell(c) if isinstance(c, str) else c for c in line) for line in lines)
    return Table(title, note, tuple(header), tuple(rows), words)


def likelihood_table(groups: Sequence[Group]) -> Table:
    """Return the Likelihood table of one data set: closed forms, then each model at its deepest."""
    shown = deepest(groups)
    digits = decimals(s.gain[1] for s in shown)
    columns = _likelihood_columns(shown)
    if any(s.mean("bits_per_dim") is not None for s in shown):
        columns["bits per dimension ± 2 s.e."] = lambda s: plus_minus(
            s.mean("bits_per_dim"), s.mean("bits_per_dim_2se"), 3
        )
    columns |= {
        "gain over Gaussian ± 2 s.e.": lambda s: _gain(s, digits),
        "solver gap, mean / max": lambda s: _join(
            power(s.mean("solver_gap")), power(s.largest("solver_gap_max"))
        ),
        "round-trip error": lambda s: power(s.largest("round_trip_error")),
        **_PARAMETERS,
        "training s": lambda s: fixed(s.mean("train_seconds"), 1),
    }
    return _table("Likelihood", shown, columns, _stand_ins(groups, shown), leaders(shown))


def cost_table(groups: Sequence[Group]) -> Table:
    """Return the Sampling cost table of one data set: the rows of the Likelihood table."""
    shown = deepest(groups)
    columns: Columns = {
        **_EVALUATIONS,
        "ms per 1000 densities (quartiles)": lambda s: _quartiles(s, "density"),
        "ms per 1000 samples (quartiles)": lambda s: _quartiles(s, "sample"),
        "sample / density": lambda s: significant(_ratio(s)),
    }
    return _table("Sampling cost", shown, columns, _stand_ins(groups, shown))


def quality_table(groups: Sequence[Group]) -> Table:
    """Return the Sample quality table of one data set; no rows where nothing was compared."""
    shown = [s for s in deepest(groups) if s.mean("sw") is not None]
    columns: Columns = {
        "sliced Wasserstein (null)": lambda s: _beside_null(s, "sw", 3),
        "MMD² (null)": lambda s: _beside_null(s, "mmd", 4),
        "mean 1-d KS (null)": lambda s: _beside_null(s, "ks", 3),
        "classifier accuracy (null)": lambda s: _beside_null(s, "c2st", 3),
    }
    return _table("Sample quality", shown, columns, _QUALITY)


def _beside_null(s: Group, name: str, digits: int) -> str:
    value, null = s.mean(name), s.mean(f"{name}_null")
    spread = s.spread(name)
    text = fixed(value, digits) + ("" if spread is None else f" ± {fixed(spread, digits)} s.d.")
    return text if value is None or null is None else f"{text} ({fixed(null, digits)})"


def depth_table(groups: Sequence[Group]) -> Table:
    """Return the Depth table of one data set: every model at every depth, closed forms first."""
    columns: Columns = {
        **_likelihood_columns(groups),
        "ms per 1000 densities": lambda s: significant(s.mean("density_ms_per_1000")),
        "ms per 1000 samples": lambda s: significant(s.mean("sample_ms_per_1000")),
        **_EVALUATIONS,
        **_PARAMETERS,
    }
    return _table("Depth", groups, columns)


def summary_table(groups: Sequence[Group]) -> Table:
    """Return the short table that a terminal shows, without the columns that stay empty."""
    digits, gain_digits = likelihood_digits(groups), decimals(s.gain[1] for s in groups)
    columns: Columns = {
        "log-lik. ± 2 s.e.": lambda s: plus_minus(*s.likelihood, digits),
        "gain ± 2 s.e.": lambda s: _gain(s, gain_digits),
        "solver gap": lambda s: power(s.mean("solver_gap")),
        "density ms": lambda s: significant(s.mean("density_ms_per_1000")),
        "sample ms": lambda s: significant(s.mean("sample_ms_per_1000")),
        "NFE d/s": lambda s: _join(count(s.mean("nfe_density")), count(s.mean("nfe_sample")), "/"),
    }
    done = [s for s in groups if s.rows]
    measured = {head: text for head, text in columns.items() if any(map(text, done))}
    return _table("", groups, measured or columns)


def failure_table(rows: Iterable[Row], labels: Mapping[str, str]) -> Table:
    """Return one line for every cell that did not finish, with its reason."""
    header = ("data set", "model", "depth", "seed", "reason", "cell")
    lines = [
        (r.dataset, labels.get(r.model, r.model), whole(r.depth), whole(r.seed), r.error, r.cell)
        for r in rows
        if not r.is_finished
    ]
    return table_of("", "", header, lines, words=True)


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
        for value, size, side in zip(body, sizes[1:], table.sides[1:], strict=False):
            parts.append(value.ljust(size) if side == "l" else value.rjust(size))
        return clip("  ".join([*parts, *tail]).rstrip(), width)

    return list(map(text, lines))


def _stand_ins(groups: Sequence[Group], shown: Sequence[Group]) -> str:
    """Say where a table's row is not the deepest setting that was asked for."""
    failed = [o for o in groups if not o.rows]
    notes = []
    for s in shown:
        deeper = [o for o in failed if (o.depth or 0) > (s.depth or 0)]
        own = [str(o.depth) for o in deeper if (o.model, o.view) == (s.model, s.view)]
        if s.rows and (depths := ", ".join(own)):
            notes.append(f"{name_of(s)} failed at depth {depths}: depth {s.depth} stands here.")
    return " ".join(notes)


def _table(
    title: str, shown: Sequence[Group], columns: Columns, note: str = "", bold: Sequence[Group] = ()
) -> Table:
    """Return a row a setting: model, depth, the columns; a row cut short says why it failed."""
    views = any(s.view != VIEW for s in shown)

    def cells(s: Group) -> Line:
        name = [s.label, *([s.view] if views else []), whole(s.depth)]
        if not s.rows:
            return [*name, f"failed: {s.failed[0].error}"]
        first, *rest = (text(s) for text in columns.values())
        return [*name, TableCell(first, s in bold), *rest]

    head = ("model", *(["view"] if views else []), "depth")
    return table_of(title, note, (*head, *columns), map(cells, shown))


def _likelihood_columns(shown: Sequence[Group]) -> Columns:
    """Return the likelihood, and with several seeds their number and spread."""
    digits = likelihood_digits(shown)
    columns: Columns = {"test log-likelihood ± 2 s.e.": lambda s: plus_minus(*s.likelihood, digits)}
    if any(len(s.rows) + len(s.failed) > 1 for s in shown):
        columns["seeds"] = lambda s: s.seeds
        columns["spread over seeds (± s.d.)"] = lambda s: (
            "" if (spread := s.spread()) is None else f"± {fixed(spread, digits)}"
        )
    return columns


def _gain(s: Group, digits: int) -> str:
    return "0" if s.model == GAUSSIAN else plus_minus(*s.gain, digits)


def _ratio(s: Group) -> float | None:
    density, sample = s.mean("density_ms_per_1000"), s.mean("sample_ms_per_1000")
    return sample / density if density and sample is not None else None


def _quartiles(s: Group, what: str) -> str:
    middle = significant(s.mean(f"{what}_ms_per_1000"))
    low, high = (significant(s.mean(f"{what}_ms_{q}")) for q in ("q1", "q3"))
    return f"{middle} ({low}–{high})" if middle and low and high else middle


def _is_word(text: str) -> bool:
    return text[0].isalpha() and not text.startswith(("nan", "inf", "not known"))


def _join(first: str, second: str, sign: str = " / ") -> str:
    return f"{first}{sign}{second}" if first and second else first or second
