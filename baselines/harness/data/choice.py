"""Which columns of a table are used, and what is said of those that cannot be: DataError."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from baselines.harness.data.dataset import DataError
from baselines.harness.data.rows import Fault, RawTable
from cflows.core.arguments import listed, nearest

__all__ = ["indices", "refuse_constant", "refuse_unknown", "refuse_unusable"]

DETAILED = 5  # columns whose fault is said, where more have one
WHOLE = 2.0**53  # from which on float64 does not hold every whole number


def indices(
    source: object,
    names: Sequence[str],
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    context: Sequence[str] = (),
) -> list[int]:
    """Where the columns stand that are asked for, in the table's order.

    Args:
        source: the table, for messages.
        names: of its columns.
        columns: the names to keep, beside those of the context; None for all.
        drop: the names to leave out.
        context: the names that stand for a context or for weights, and are kept; whether they are
            known is for others to say.

    Raises:
        DataError: a name is unknown, or no column is left.

    Example:
        >>> indices("t.csv", ["id", "height", "age", "sex"], ["height"], context=["age"])
        [1, 2]

    """
    refuse_unknown(source, columns or (), names, "columns")
    refuse_unknown(source, drop, names, "drop")
    if both := [name for name in drop if name in context or name in (columns or ())]:
        other = "--columns" if both[0] in (columns or ()) else "--context or --weights"
        raise DataError(f"{source}: {both[0]!r} is named by --drop and by {other}; leave one out")
    wanted = set(names if columns is None else [*columns, *context]) - set(drop)
    kept = [i for i, name in enumerate(names) if name in wanted]
    if not kept:
        raise DataError(f"{source}: every column is named by --drop; leave one at least")
    return kept


def refuse_unknown(
    source: object, wanted: Sequence[str], names: Sequence[str], option: str
) -> None:
    """Refuse a name that no column has, and say which are like it."""
    if missing := [name for name in wanted if name not in names]:
        near = nearest(missing[0], {name.lower(): name for name in names})
        raise DataError(
            f"{source}: has no column {missing[0]!r} for --{option}; {near}its columns are "
            f"{listed(names, 20)}"
        )


def refuse_unusable(source: object, table: RawTable) -> None:
    """Refuse columns that hold something else than finite numbers, all of them in one line."""
    faults = dict(table.faults) | _not_finite(table)
    if not faults:
        return
    # What would be refused next, once the others are gone.
    for i, column in enumerate(table.values.T):
        if i not in faults and len(column) > 1 and len(faults) > 1 and (column == column[0]).all():
            faults[i] = Fault(0, f"is constant, {column[0]:g}", "")
    names = [table.columns[i] for i in sorted(faults)]
    if len(faults) == 1:
        (fault,) = faults.values()
        remedies = [f"drop the column ({_drop(names)})", fault.remedy]
        if not fault.what.startswith("is not numeric"):
            remedies.reverse()
        raise DataError(f"{source}: column {names[0]!r} {fault.what}; {' or '.join(remedies)}")
    details = [f"{table.columns[i]!r} {faults[i].what}" for i in sorted(faults)]
    raise DataError(
        f"{source}: {len(faults)} columns cannot be used: {listed(details, DETAILED)}; drop them "
        f"({_drop(names)}), or write numbers and fill in or drop the rows that lack them"
    )


def _not_finite(table: RawTable) -> dict[int, Fault]:
    finite = np.isfinite(table.values)
    faults = {}
    for i in np.flatnonzero(~finite.all(0)).tolist():
        if i not in table.faults:
            rows = np.flatnonzero(~finite[:, i]).tolist()
            more = f" and not finite in {len(rows) - 1} more" if len(rows) > 1 else ""
            what = f"is {table.values[rows[0], i]} in {table.where(rows[0])}{more}"
            faults[i] = Fault(rows[0], what, "drop such rows or fill them in")
    return faults


def refuse_constant(source: object, constant: Mapping[str, float], rows: int) -> None:
    """Refuse columns, by name, of which each of the training rows has the same value."""
    if not constant:
        return
    (first, *others), value = constant, next(iter(constant.values()))
    what = f"{source}: column {first!r} is"
    where = f"{value:g} in all {rows} rows of the training split"
    remedy = f"drop the column ({_drop([*constant])})"
    if abs(value) >= WHOLE:
        raise DataError(
            f"{what} {where} as float64 holds it: values so large must differ by more than "
            f"{np.spacing(abs(value)):g}; {remedy} or subtract a constant where it was written"
        )
    also = f"; so are {', '.join(map(repr, others))}" if others else ""
    raise DataError(f"{what} constant, {where}, and has no density{also}; {remedy}")


def _drop(names: Sequence[str]) -> str:
    """The option that leaves columns out: a name like an option's must stand behind a sign."""
    plain = [shlex.quote(name) for name in names if not name.startswith("-")]
    signed = [f"--drop={shlex.quote(name)}" for name in names if name.startswith("-")]
    return " ".join([*(["--drop", *plain] if plain else []), *signed])
