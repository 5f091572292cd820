"""Which columns of a table are used, and what is said of those that cannot be."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np

from baselines.harness.data.dataset import DataError
from baselines.harness.data.rows import Fault, RawTable
from cflows.core.messages import listed, nearest

__all__ = ["places", "refuse_unknown", "refuse_unusable"]

DETAILED = 5  # columns whose fault is said, where more have one


def places(
    source: object,
    given: Sequence[str],
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    context: Sequence[str] = (),
) -> list[int]:
    """Where the columns stand that are asked for, in the table's order.

    Args:
        source: the table, for messages.
        given: the names of its columns.
        columns: the names to keep, beside those of the context; None for all.
        drop: the names to leave out.
        context: the names that stand for a context or for weights, and are kept; whether they are
            known is for others to say.

    Raises:
        DataError: a name is unknown, or no column is left.

    Example:
        >>> places("t.csv", ["id", "height", "age", "sex"], ["height"], context=["age"])
        [1, 2]

    """
    refuse_unknown(source, columns or (), given, "columns")
    refuse_unknown(source, drop, given, "drop")
    if both := [name for name in drop if name in context or name in (columns or ())]:
        other = "--columns" if both[0] in (columns or ()) else "--context or --weights"
        raise DataError(f"{source}: {both[0]!r} is named by --drop and by {other}; leave one out")
    wanted = set(given if columns is None else [*columns, *context]) - set(drop)
    found = [i for i, name in enumerate(given) if name in wanted]
    if not found:
        raise DataError(f"{source}: every column is named by --drop; leave one at least")
    return found


def refuse_unknown(
    source: object, wanted: Sequence[str], given: Sequence[str], option: str
) -> None:
    """Refuse a name that no column has.

    Raises:
        DataError: which, and names that are like it.

    """
    if missing := [name for name in wanted if name not in given]:
        near = nearest(missing[0], {name.lower(): name for name in given})
        raise DataError(f"{source}: has no column {missing[0]!r} for --{option}; {near}its columns "
                        f"are {listed(given, 20)}")  # fmt: skip


def refuse_unusable(source: object, table: RawTable) -> None:
    """Refuse columns that hold something else than finite numbers, all of them in one line.

    Raises:
        DataError: the columns, where they fail, and how to leave them out.

    """
    faults = dict(table.faults) | _not_finite(table)
    if not faults:
        return
    # What would be refused next, once the others are gone.
    for i, column in enumerate(table.values.T):
        if i not in faults and len(column) > 1 and len(faults) > 1 and (column == column[0]).all():
            faults[i] = Fault(f"is constant, {column[0]:g}", "")
    names = [table.columns[i] for i in sorted(faults)]
    option = f"--drop {' '.join(map(shlex.quote, names))}"
    if len(faults) == 1:
        (fault,) = faults.values()
        remedies = [f"drop the column ({option})", fault.remedy]
        if not fault.what.startswith("is not numeric"):
            remedies.reverse()
        raise DataError(f"{source}: column {names[0]!r} {fault.what}; {' or '.join(remedies)}")
    details = [f"{table.columns[i]!r} {faults[i].what}" for i in sorted(faults)]
    raise DataError(
        f"{source}: {len(faults)} columns cannot be used: {listed(details, DETAILED)}; drop them "
        f"({option}), or write numbers and fill in or drop the rows that lack them"
    )


def _not_finite(table: RawTable) -> dict[int, Fault]:
    finite = np.isfinite(table.values)
    found = {}
    for i in np.flatnonzero(~finite.all(0)):
        if i not in table.faults:
            lost = np.flatnonzero(~finite[:, i])
            more = f" and not finite in {len(lost) - 1} more" if len(lost) > 1 else ""
            what = f"is {table.values[lost[0], i]} in {table.place(int(lost[0]))}{more}"
            found[int(i)] = Fault(what, "drop such rows or fill them in")
    return found
