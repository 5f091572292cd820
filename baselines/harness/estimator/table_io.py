"""What a model and a file say to each other: columns by name, rows in, rows out."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.harness import data
from baselines.harness.data import DataError
from baselines.harness.data.rows import numbered
from cflows import Flow, TableFlow
from cflows.core.atomic_write import STDOUT, WriteOnly, is_file, target, write_beside
from cflows.core.flow import dtype_of

__all__ = [
    "all_columns",
    "beside_the_rows",
    "columns",
    "context_columns",
    "read",
    "refuse_suffix",
    "write",
]

Matrix = npt.NDArray[np.float64]


def read(source: Path, wanted: tuple[str, ...], flow: Flow) -> Tensor:
    """Read the wanted columns of a file, in the flow's dtype: (N, len(wanted)).

    Raises:
        DataError: no table of finite numbers of that dtype, or other columns.

    """
    values, _ = data.table(source, lambda given: _places(given, wanted, flow, source))
    x = torch.tensor(values, dtype=dtype_of(flow))
    if not bool(x.isfinite().all()):
        raise DataError(f"{source}: holds values beyond {torch.finfo(x.dtype).max:.0e}, the "
                        f"largest in the model's {str(x.dtype)[6:]}; drop such rows")  # fmt: skip
    return x


def columns(flow: Flow) -> tuple[str, ...]:
    """What a flow's features are called: x0, x1, ... where it does not say."""
    return flow.columns if isinstance(flow, TableFlow) else numbered(flow.features)


def context_columns(flow: Flow) -> tuple[str, ...]:
    """What the columns of its context are called: c0, c1, ... where it does not say."""
    if isinstance(flow, TableFlow):
        return flow.context_columns
    return tuple(f"c{i}" for i in range(flow.context_features))


def all_columns(flow: Flow) -> tuple[str, ...]:
    """The features' names, then the context's."""
    return *columns(flow), *context_columns(flow)


def _places(given: Sequence[str], wanted: tuple[str, ...], flow: Flow, source: Path) -> list[int]:
    """Where each wanted column stands in the file: by name where both have names.

    Columns of a file without a header, and of a model trained on one, are x0, x1, ...; they go by
    their order, unless the names on both sides are the same ones. Further named columns are left.
    """
    if twice := [name for name in given if given.count(name) > 1 and name in wanted]:
        raise DataError(f"{source}: two columns are called {twice[0]!r}; rename one")
    named_apart = given != numbered(len(given)) or len(given) > len(wanted)
    if set(given) == set(wanted) or (set(wanted) <= set(given) and named_apart):
        return [given.index(name) for name in wanted]
    named = isinstance(flow, TableFlow) and set(all_columns(flow)) != set(
        numbered(len(all_columns(flow)))
    )
    nameless = given == numbered(len(given)) or not (named or set(given) & set(wanted))
    if nameless and len(given) == len(wanted):
        return list(range(len(wanted)))
    context = context_columns(flow)
    hint, whose = "", "the model's context" if wanted == context else "the model"
    if context and wanted != context:
        hint = f"; its context is {', '.join(context)}, see --context"
    if nameless:
        raise DataError(f"{source}: has {len(given)} columns, {whose} {len(wanted)} "
                        f"({', '.join(wanted)}); give these, in this order{hint}")  # fmt: skip
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    parts = [
        f"{what}{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
        for what, names in (("lacks the column", missing), ("has the further column", extra))
        if names
    ]
    raise DataError(f"{source}: {' and '.join(parts)}; the columns of {whose} are "
                    f"{', '.join(wanted)}{hint}")  # fmt: skip


def refuse_suffix(out: Path) -> None:
    """Find out before the work that its result could not be written under this name.

    Raises:
        DataError: a file whose suffix is neither .csv nor .npy; what is no file, such as a pipe,
            takes text under any name.

    """
    if out.suffix.lower() not in (".csv", ".npy") and is_file(out):
        raise DataError(f"{out}: cannot write a file with suffix {out.suffix!r}; "
                        "name it .csv or .npy")  # fmt: skip


def beside_the_rows(out: Path) -> TextIO:
    """Where to say what was written: standard output, unless the rows go there."""
    return sys.stderr if target(out) == STDOUT else sys.stdout


def write(out: Path, rows: Tensor, columns: tuple[str, ...]) -> None:
    """Write a .csv with a header and all digits of the rows' dtype, or a float64 .npy."""
    digits = "%.9g" if rows.dtype == torch.float32 else "%.17g"
    values: Matrix = rows.detach().cpu().double().numpy()
    if out.suffix.lower() == ".npy" and columns == ("log_prob",):
        values = values[:, 0]
    header = io.StringIO()
    csv.writer(header, lineterminator="").writerow(columns)

    def save(file: BinaryIO) -> None:
        if out.suffix.lower() == ".npy":
            np.save(WriteOnly(file), values)
        else:
            np.savetxt(file, values, digits, delimiter=",", header=header.getvalue(),
                       comments="", encoding="utf-8")  # fmt: skip

    def save_beside(beside: Path) -> None:
        with open(beside, "wb") as file:
            save(file)

    if target(out) == STDOUT:
        save(sys.stdout.buffer)
    else:
        write_beside(out, save_beside)
