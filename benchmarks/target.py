"""Time to a likelihood: FFJORD's own way and ours by maximum likelihood, and both curves.

    python benchmarks/target.py reference --data power --lr 1e-2 --seconds 1200 --out theirs.jsonl
    python benchmarks/target.py train --data power --lr 1e-2 --seconds 300 --out ours.jsonl
    python benchmarks/target.py compare --reference theirs.jsonl --ours ours.jsonl

An arm trains for so many seconds on one thread. Its curve is one JSON object a validation: the
seconds and steps so far, the exact negative log-likelihood of the validation rows, and, over the
steps since the record before, the mean loss and evaluations, forwards and backwards.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import facts, parser_of, update, write_result
from data import task
from reference import VALIDATION_SOLVER, ReferenceCNF
from torch import Tensor

from cflows import FFJORD, Flow, ForwardKL, Lagged, SolverError, log_likelihood

Update = Callable[[Tensor], tuple[float, int, int]]
"""A batch -> the loss, evaluations forwards and backwards."""
RECORD = ("seconds", "step", "validation_nll", "loss", "nfe_forward", "nfe_backward")


def reference_arm(features: int, options: argparse.Namespace) -> tuple[Update, Callable[[], Flow]]:
    """An update of FFJORD's own way, and its present density in float64."""
    model = ReferenceCNF(features, rtol=options.rtol, atol=options.atol, **_field(options))
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)

    def step(x: Tensor) -> tuple[float, int, int]:
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        return loss.item(), model.nfe_forward, model.nfe_backward

    return step, model.flow


def our_arm(features: int, options: argparse.Namespace) -> tuple[Update, Callable[[], Flow]]:
    """Likewise of ours."""
    penalties = dict.fromkeys(("kinetic", "frobenius"), options.penalty) if options.penalty else {}
    flow = FFJORD(
        features,
        **_field(options),
        divergence=options.divergence,
        training_solver=Lagged(options.method, options.tolerance),
        evaluation_solver=VALIDATION_SOLVER,
        penalties=tuple(penalties),
    ).train()
    print(f"# {sum(p.numel() for p in flow.parameters())} parameters", flush=True)
    objective = ForwardKL(penalties)
    optimizer = torch.optim.Adam(flow.parameters(), lr=options.lr)

    def step(x: Tensor) -> tuple[float, int, int]:
        before = flow.evaluations
        loss = update(flow, optimizer, lambda: objective(flow, (x, None)))
        return loss.item(), flow.evaluations - before, 0

    return step, lambda: copy.deepcopy(flow).double().eval()


def _field(options: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(options, name) for name in ("hidden", "activation", "end_time")}


ARMS = {"reference": reference_arm, "train": our_arm}


def race(options: argparse.Namespace) -> None:
    """Train one arm; print its curve and append it to --out, line by line.

    A record comes before the first step, after every ``--validate-seconds`` of training, and at the
    end; validation is not counted.
    """
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    asked = {name: getattr(options, name) for name in ("batch", "validation_rows", "seed")}
    batches, validation = task(options.data, **asked)
    step, flow = ARMS[options.command](validation.shape[1], options)
    spent, steps, due = 0.0, 0, 0.0
    recent: list[tuple[float, int, int]] = []
    while True:
        if spent >= min(due, options.seconds):
            nll = _nll(flow(), validation)
            means = [sum(column) / len(recent) for column in zip(*recent, strict=True)]
            values = (spent, steps, nll, *(means or [None] * 3))
            line = json.dumps(dict(zip(RECORD, values, strict=True)))
            print(line, flush=True)
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    print(line, file=file)
            reached = options.target is not None and nll is not None and nll <= options.target
            if spent >= options.seconds or reached:
                return
            recent, due = [], spent + options.validate_seconds
        x = next(batches)
        start = time.perf_counter()
        recent.append(step(x))
        spent += time.perf_counter() - start
        steps += 1


@torch.no_grad()
def _nll(flow: Flow, rows: Tensor) -> float | None:
    """Mean -log p in nats; None, with the reason on stderr, where the field is too stiff for it."""
    try:
        return -log_likelihood(flow, rows).mean().item()
    except SolverError as error:
        print(f"validation: {error}", file=sys.stderr)
        return None


def compare(options: argparse.Namespace) -> None:
    """Both curves in one picture, and the seconds to a target: by default the reference's best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    goal, seconds = options.target, []
    for path, arm, colour in (
        (options.reference, "reference", "#7F7F7F"),
        (options.ours, "cflows", "#D55E00"),
    ):
        records: list[dict[str, float | None]] = [
            json.loads(line) for line in path.read_text().splitlines()
        ]
        known = [r for r in records if r["validation_nll"] is not None]
        if goal is None:
            goal = min(r["validation_nll"] for r in known)
        seconds.append(next((r["seconds"] for r in known if r["validation_nll"] <= goal), None))
        points = [(r["seconds"], r["validation_nll"]) for r in records if r["seconds"] > 0]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", ms=3, label=arm)
    axes.axhline(goal, color="#222222", lw=0.8, ls=(0, (4, 3)))
    axes.set(xscale="log", xlabel="training seconds, one thread", title=options.name)
    axes.set_ylabel("validation negative log-likelihood (nats)")
    axes.legend(frameon=False)
    axes.grid(color="#DDDDDD", lw=0.6)
    figure.savefig(options.ours.with_suffix(".png"), dpi=160)
    shown = ["longer than it ran" if time is None else f"{time:.1f} s" for time in seconds]
    gain = f"{seconds[0] / seconds[1]:.1f}x" if all(seconds) else "not reached"
    text = (
        f"{options.name}: to a validation NLL of {goal:.4f}, the reference took {shown[0]}, cflows "
        f"{shown[1]} of training: {gain}\n\n{facts()}"
    )
    print(text)
    write_result(f"target_{options.name or 'race'}", text)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the ``reference``, ``train`` ours, or ``compare`` their curves."""
    arm = argparse.ArgumentParser(add_help=False)
    add = arm.add_argument
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
    add("--target", type=float, help="stop at this validation NLL")

    parser = parser_of(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = {"parents": [arm], "formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    theirs = commands.add_parser("reference", **shared)
    theirs.add_argument("--rtol", type=float, default=1e-5)
    theirs.add_argument("--atol", type=float, default=1e-5)
    ours = commands.add_parser("train", **shared)
    ours.add_argument("--method", default="rk4", help="of the lagged solver")
    ours.add_argument("--tolerance", type=float, default=1e-3)
    ours.add_argument("--divergence", default="auto")
    ours.add_argument("--penalty", type=float, default=0.0, help="weight of kinetic and Jacobian")
    both = commands.add_parser("compare")
    both.add_argument("--reference", type=Path, required=True)
    both.add_argument("--ours", type=Path, required=True)
    both.add_argument("--target", type=float)
    both.add_argument("--name", default="")
    options = parser.parse_args(argv)
    (compare if options.command == "compare" else race)(options)


if __name__ == "__main__":
    main()
