"""What fit prints of a trained model: its likelihoods, its solver's gap, its draws."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from baselines import InversionError
from baselines.harness.data import Dataset
from baselines.harness.data.rows import SPLITS
from baselines.harness.estimator.table_rows import Source, at_most
from baselines.harness.metrics import likelihood
from cflows import Flow, ODEBijector, SolverError, TableFlow, log_likelihood
from cflows.core.flow import dtype_of
from cflows.core.table_flow import Outside

__all__ = ["SHOWN_ROWS", "drawn", "print_draws", "print_scores", "warn_of"]

SHOWN_ROWS = 10_000  # of the training rows, whose likelihood is only compared with the others'
DRAWN_AT_ONCE = 10_000
DRAWN_NUMBERS = 1_000_000  # of the draws behind a training, at most


def drawn(flow: Flow, n: int, context: Tensor | None, seed: int, device: str) -> Tensor:
    """n draws, or one for each row of a context, on the CPU; a function of the seed."""
    with torch.random.fork_rng(devices=[torch.device("cuda")] if device == "cuda" else []):
        torch.manual_seed(seed)
        return torch.cat(
            [
                flow.sample(len(part)).cpu()
                if context is None
                else flow.sample((), context[part].to(device)).cpu()
                for part in torch.split(torch.arange(n), DRAWN_AT_ONCE)
            ]
        )


def print_scores(flow: Flow, rows: Source) -> None:
    """The log-likelihood of the three parts, and the solver's gap."""
    print("log-likelihood of a row in nats, ± 2 standard errors:")
    dtype = dtype_of(flow)  # a model of one's own may be in float64
    for name in SPLITS:
        x, context = rows.few(name, at_most(SHOWN_ROWS))
        x, context = x.to(dtype), None if context is None else context.to(dtype)
        log_prob = log_likelihood(flow, x, context).double()
        mean = log_prob.mean()
        error = 2 * float(log_prob.std()) / math.sqrt(len(log_prob))
        if (weights := rows.weights_of(name, at_most(SHOWN_ROWS))) is not None:
            shares = weights.double() / weights.double().sum()
            mean = (shares * log_prob).sum()
            error = 2 * float((shares * (log_prob - mean)).square().sum().sqrt())
        label = name.replace("train", "training")
        bits = _bits(rows, log_prob, x)
        print(f"  {label:10} {float(mean):10.3f} ± {error:.3f}   {len(x):,} rows{bits}")
    checked = slice(likelihood.CHECKED_ROWS)
    context = None if context is None else context[checked]
    gap = likelihood.solver_gap(flow, x[checked], log_prob[checked], context)
    if gap is not None:
        print(f"  solver gap, mean / max: {float(gap.mean()):.0e} / {float(gap.max()):.0e}")


def print_draws(flow: TableFlow, rows: Source, seed: int, device: str) -> None:
    """How many of some draws leave the training rows: the likelihood does not show these."""
    n = max(100, min(SHOWN_ROWS, DRAWN_NUMBERS // flow.features))
    if any(isinstance(part, ODEBijector) for part in flow.modules()):
        n = max(100, n // 10)
    _, context = rows.few("train", at_most(n))
    if context is not None:
        context = context.repeat(math.ceil(n / len(context)), 1)[:n]
    try:
        outside = flow.outside(drawn(flow, n, context, seed, device))
    except (InversionError, SolverError) as error:
        print(f"cflows: the model is kept, and cannot be drawn from: {error}", file=sys.stderr)
        return
    if outside is not None:
        print(
            f"{n:,} draws: {outside.beyond:,} leave the range of the training rows in a column, "
            f"{outside.far:,} by more than it is wide"
        )
        warn_of(outside)


def warn_of(outside: Outside | None) -> None:
    """Say that draws lie far outside of the training rows, where some do."""
    if outside is not None and outside.far:
        print(f"cflows: {outside}", file=sys.stderr)


def _bits(rows: Source, log_prob: Tensor, x: Tensor) -> str:
    """Bits per dimension, where the rows are whole images."""
    pixels = rows.rows.pixels if isinstance(rows.rows, Dataset) else None
    if pixels is None or rows.context:
        return ""
    bits = pixels.bits_per_dim(log_prob.numpy(), x.double().numpy()).mean()
    return f"   {bits:.3f} bits per dimension"
