"""Validation likelihood against training seconds: how an arm of a race is run and written down."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from cflows import Flow, SolverError, log_likelihood

__all__ = ["race_parser", "read", "seconds_to", "train"]

Update = Callable[[Tensor], tuple[float, int, int]]


def train(
    update: Update,
    flow: Callable[[], Flow],
    batches: Iterator[Tensor],
    validation: Tensor,
    *,
    seconds: float,
    every: float,
    out: Path | None,
    target: float | None = None,
) -> None:
    """Update until so many seconds of training have passed; validation is not counted.

    One JSON object a validation goes to standard output and to a file, flushed, so that a run that
    is killed keeps its curve: the seconds and steps so far, the exact negative log-likelihood of
    the validation rows, and, over the steps since the record before, the mean loss and evaluations.
    A record comes before the first step, after every ``every`` seconds, and at the end.

    Args:
        update: a batch -> the loss, evaluations forwards and backwards.
        flow: the present density in float64, in evaluation.
        batches: without end.
        validation: (N, D), float64.
        seconds: of training.
        every: seconds of training between two validations.
        out: the file to append to, or None.
        target: a validation negative log-likelihood at which to stop, or None.

    """
    outputs: list[TextIO] = [sys.stdout]
    if out is not None:
        outputs.append(out.open("a", encoding="utf-8"))
    spent, step, due = 0.0, 0, 0.0
    recent: list[tuple[float, int, int]] = []
    try:
        while True:
            if spent >= min(due, seconds):
                record = _record(spent, step, recent, _nll(flow(), validation))
                for output in outputs:
                    print(json.dumps(record), file=output, flush=True)
                nll = record["validation_nll"]
                if spent >= seconds or (target is not None and nll is not None and nll <= target):
                    return
                recent, due = [], spent + every
            x = next(batches)
            start = time.perf_counter()
            recent.append(update(x))
            spent += time.perf_counter() - start
            step += 1
    finally:
        for output in outputs[1:]:
            output.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def seconds_to(target: float, records: list[dict[str, Any]]) -> float | None:
    """Training seconds at the first validation at or below a target; None where it is not met."""
    for record in records:
        if record["validation_nll"] is not None and record["validation_nll"] <= target:
            return float(record["seconds"])
    return None


def race_parser(description: str) -> argparse.ArgumentParser:
    """What both arms ask on the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="pinwheel", help="power, a two-dimensional toy or a file")
    add("--hidden", type=int, nargs="+", default=[60, 60, 60], metavar="WIDTH")
    add("--activation", default="tanh")
    add("--lr", type=float, default=1e-3, help="Adam's learning rate")
    add("--seed", type=int, default=0, help="of weights, batches and probes")
    add("--batch", type=int, default=1000, help="rows a step")
    add("--seconds", type=float, default=600.0, help="of training")
    add("--end-time", type=float, default=1.0)
    add("--out", type=Path, metavar="FILE.jsonl", help="append the records here")
    add("--validate-seconds", type=float, default=60.0, help="of training between")
    add("--validation-rows", type=int, default=2000)
    return parser


def _record(
    spent: float, step: int, recent: list[tuple[float, int, int]], nll: float | None
) -> dict[str, Any]:
    means: tuple[float | None, ...] = (None, None, None)
    if recent:
        means = tuple(sum(column) / len(recent) for column in zip(*recent, strict=True))
    return {
        "seconds": spent,
        "step": step,
        "loss": means[0],
        "validation_nll": nll,
        "nfe_forward": means[1],
        "nfe_backward": means[2],
    }


@torch.no_grad()
def _nll(flow: Flow, rows: Tensor) -> float | None:
    """Mean -log p in nats; None, with the reason on stderr, where the field is too stiff for it."""
    try:
        return -log_likelihood(flow, rows).mean().item()
    except SolverError as error:
        print(f"validation: {error}", file=sys.stderr)
        return None
