"""A trained model asked for log-densities and samples, from files and into files."""

from __future__ import annotations

import csv
import io
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from baselines.harness import data
from baselines.harness.data import DataError
from baselines.harness.data.rows import numbered
from baselines.harness.metrics.likelihood import scored
from cflows import Flow, TableFlow, load
from cflows.core.arguments import listed
from cflows.core.atomic_write import (
    STDOUT,
    WriteOnly,
    is_file,
    refuse_unwritable,
    target,
    write_beside,
)
from cflows.core.dtypes import dtype_of
from cflows.core.table_flow import Outside

__all__ = ["drawn", "refuse_output", "sample", "score", "warn_of"]

DRAWN_AT_ONCE = 10_000

Names: TypeAlias = tuple[str, ...]


def score(
    model: Path, source: Path, out: Path, device: str = "cpu", context: Path | None = None
) -> None:
    """Write the log-density, in nats, of each row of a file, in the file's order and units.

    Args:
        model: what ``train`` or ``flow.save`` wrote.
        source: .csv, .npy or .npz; the columns of a .csv are found by name where both have names.
            A conditional model's context columns stand in it too, behind the others where there are
            no names, unless ``context`` is given.
        out: .csv with the header ``log_prob``, or .npy; -inf for a row outside of the bounds.
        device: where to compute.
        context: a file of the context columns alone: a row for each row of source, or one for all.

    Raises:
        LoadError: the model is damaged or no flow.
        DataError: a file is no table of finite numbers, or its columns are not the model's.
        OSError: a file is not there or cannot be written.

    """
    flow = _loaded(model, out, device, context, source)
    columns, beside = _names_of(flow)
    if context is None:
        rows = _read(source, columns + beside, flow)
        x, given = rows[:, : len(columns)], rows[:, len(columns) :] if beside else None
    else:
        x, given = _read(source, columns, flow), _read(context, beside, flow)
        if len(given) not in (1, len(x)):
            raise DataError(
                f"{context}: has {len(given)} rows for the {len(x)} of {source}; give as many, or "
                "one for all"
            )
    _write(out, scored(flow, x, given, device)[:, None], ("log_prob",))
    print(f"log-densities of {len(x):,} rows: {out}", file=_beside_the_rows(out))


def sample(
    model: Path,
    n: int,
    out: Path,
    seed: int = 0,
    device: str = "cpu",
    context: Path | None = None,
) -> None:
    """Write n draws in the units and under the column names of the training file.

    A conditional model draws n rows for each row of the context, which stands behind them in the
    output, so that ``score`` reads it as it is.

    Args:
        model: what ``train`` or ``flow.save`` wrote.
        n: rows, 1 or more.
        out: .csv with a header of column names, or .npy.
        seed: the same seed gives the same rows on one machine.
        device: where to compute.
        context: a file of the context columns, for a conditional model.

    Raises:
        LoadError: the model is damaged or no flow.
        DataError: the context is missing or not the model's, or a draw is not finite; nothing is
            written then.
        OSError: a file is not there or cannot be written.

    """
    flow = _loaded(model, out, device, context)
    columns, beside = _names_of(flow)
    if context is None and beside:
        raise DataError(
            f"{model} wants the context {', '.join(beside)}; give it with --context FILE"
        )
    given = None if context is None else _read(context, beside, flow).repeat_interleave(n, 0)
    x = drawn(flow, n if given is None else len(given), given, seed, device)
    lost = int((~x.isfinite()).any(1).sum())
    if lost:
        raise DataError(
            f"{lost} of {len(x)} samples are not finite, so none is written: train {model} anew, "
            "with more rows or fewer layers"
        )
    if isinstance(flow, TableFlow):
        warn_of(flow.outside(x))
    _write(out, x if given is None else torch.cat([x, given], 1), columns + beside)
    print(f"{len(x):,} samples of {listed(columns, 20)}: {out}", file=_beside_the_rows(out))


def refuse_output(out: Path, *inputs: str | Path) -> None:
    """Find out before the work that its result could not be written, or would replace an input."""
    refuse_unwritable(out)
    if target(out) == STDOUT and sys.__stdout__ is None:
        raise OSError(f"{out}: standard output is closed; name a file")
    for path in inputs:
        if out.is_file() and os.path.exists(path) and os.path.samefile(path, out):
            raise FileExistsError(f"{out}: would overwrite what is read; name another file")


def _loaded(model: Path, out: Path, device: str, context: Path | None, *inputs: Path) -> Flow:
    """A model, of which and of whose inputs the output is no part."""
    refuse_output(out, model, *inputs, *([] if context is None else [context]))
    if out.suffix.lower() not in (".csv", ".npy") and is_file(out):
        raise DataError(
            f"{out}: cannot write a file with suffix {out.suffix!r}; name it .csv or .npy"
        )
    flow = load(model).to(device)
    if context is not None and not flow.context_features:
        raise DataError(f"{model} takes no context; leave --context out")
    return flow


def _names_of(flow: Flow) -> tuple[Names, Names]:
    """What a flow's features and its context are called: x0, ..., c0, ... where it does not say."""
    if isinstance(flow, TableFlow):
        return flow.columns, flow.context_columns
    return numbered(flow.features), tuple(f"c{i}" for i in range(flow.context_features))


def drawn(flow: Flow, n: int, context: Tensor | None, seed: int, device: str) -> Tensor:
    """n draws, or one for each row of a context, on the CPU; a function of the seed."""
    parts = []
    with torch.random.fork_rng(devices=[torch.device("cuda")] if device == "cuda" else []):
        torch.manual_seed(seed)
        for part in torch.split(torch.arange(n), DRAWN_AT_ONCE):
            given = None if context is None else context[part].to(device)
            parts.append(flow.sample(len(part) if given is None else (), given).cpu())
    return torch.cat(parts)


def warn_of(outside: Outside | None) -> None:
    """Say that draws lie far outside of the training rows, where some do."""
    if outside is not None and outside.far:
        print(f"cflows: {outside}", file=sys.stderr)


def _read(source: Path, wanted: Names, flow: Flow) -> Tensor:
    """Read the wanted columns of a file, in the flow's dtype: (N, len(wanted))."""
    values, _ = data.table(source, lambda names: _positions(tuple(names), wanted, flow, source))
    x = torch.tensor(values, dtype=dtype_of(flow))
    if not bool(x.isfinite().all()):
        raise DataError(
            f"{source}: holds values beyond {torch.finfo(x.dtype).max:.0e}, the "
            f"largest in the model's {str(x.dtype)[6:]}; drop such rows"
        )
    return x


def _positions(names: Names, wanted: Names, flow: Flow, source: Path) -> list[int]:
    """Where each wanted column stands in the file: by name where both have names.

    Columns of a file without a header, and of a model trained on one, are x0, x1, ...; they go by
    their order, unless the names on both sides are the same ones. Further named columns are left.
    """
    if twice := [name for name in names if names.count(name) > 1 and name in wanted]:
        raise DataError(f"{source}: two columns are called {twice[0]!r}; rename one")
    named_apart = names != numbered(len(names)) or len(names) > len(wanted)
    if set(names) == set(wanted) or (set(wanted) <= set(names) and named_apart):
        return [names.index(name) for name in wanted]
    features, context = _names_of(flow)
    every = features + context
    named = isinstance(flow, TableFlow) and set(every) != set(numbered(len(every)))
    nameless = names == numbered(len(names)) or not (named or set(names) & set(wanted))
    if nameless and len(names) == len(wanted):
        return list(range(len(wanted)))
    hint, whose = "", "the model's context" if wanted == context else "the model"
    if context and wanted != context:
        hint = f"; its context is {', '.join(context)}, see --context"
    if nameless:
        raise DataError(
            f"{source}: has {len(names)} columns, {whose} {len(wanted)} "
            f"({', '.join(wanted)}); give these, in this order{hint}"
        )
    missing = [name for name in wanted if name not in names]
    extra = [name for name in names if name not in wanted]
    parts = [
        f"{what}{'s' * (len(of) > 1)} {', '.join(map(repr, of))}"
        for what, of in (("lacks the column", missing), ("has the further column", extra))
        if of
    ]
    raise DataError(
        f"{source}: {' and '.join(parts)}; the columns of {whose} are {', '.join(wanted)}{hint}"
    )


def _beside_the_rows(out: Path) -> TextIO:
    """Where to say what was written: standard output, unless the rows go there."""
    return sys.stderr if target(out) == STDOUT else sys.stdout


def _write(out: Path, rows: Tensor, columns: Names) -> None:
    """Write a .csv with a header and all digits of the rows' dtype, or a float64 .npy."""
    digits = "%.9g" if rows.dtype == torch.float32 else "%.17g"
    values = rows.detach().cpu().double().numpy()
    if out.suffix.lower() == ".npy" and columns == ("log_prob",):
        values = values[:, 0]

    def save(path: Path | None) -> None:
        with nullcontext(sys.stdout.buffer) if path is None else open(path, "wb") as file:
            if out.suffix.lower() == ".npy":
                np.save(WriteOnly(file), values)
            else:
                header = io.StringIO()
                csv.writer(header, lineterminator="\n").writerow(columns)
                file.write(header.getvalue().encode())
                np.savetxt(file, values, digits, delimiter=",")

    if target(out) == STDOUT:
        save(None)
    else:
        write_beside(out, save)
