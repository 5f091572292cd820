"""Time to a likelihood: our continuous flow by maximum likelihood, and the picture of both curves.

python benchmarks/reference.py --data power --lr 1e-2 --seconds 1200 --out reference.jsonl
python benchmarks/target.py train --data power --lr 1e-2 --seconds 300 --out ours.jsonl
python benchmarks/target.py compare --reference reference.jsonl --ours ours.jsonl
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from common import machine, write_result
from curves import race_parser, read, seconds_to, train
from data import task
from torch import Tensor

from cflows import FFJORD, Adaptive, Flow, Lagged

VALIDATION = Adaptive("dopri5", rtol=1e-6, atol=1e-6)


def run(options: argparse.Namespace) -> None:
    """Train our flow; write its curve."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    batches, validation = task(
        options.data,
        batch=options.batch,
        validation_rows=options.validation_rows,
        seed=options.seed,
    )
    flow = FFJORD(
        validation.shape[1],
        hidden=options.hidden,
        activation=options.activation,
        end_time=options.end_time,
        divergence=options.divergence,
        training_solver=Lagged(options.method, options.tolerance),
        evaluation_solver=VALIDATION,
        penalties=("kinetic", "frobenius") if options.penalty else (),
    )
    print(f"# {sum(p.numel() for p in flow.parameters())} parameters", flush=True)
    optimiser = torch.optim.Adam(flow.parameters(), lr=options.lr)

    def loss_of(x: Tensor) -> Tensor:
        if not options.penalty:
            return -flow.log_prob(x).mean()
        log_prob, found = flow.log_prob_and_penalties(x)
        penalty = sum((value.mean() for value in found.values()), torch.zeros(()))
        return -log_prob.mean() + options.penalty * penalty

    def update(x: Tensor) -> tuple[float, int, int]:
        before = flow.evaluations
        while True:
            optimiser.zero_grad()
            loss = loss_of(x)
            loss.backward()  # type: ignore[no-untyped-call]
            if flow.review():
                break
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        return loss.item(), flow.evaluations - before, 0

    flow.train()
    train(
        update,
        lambda: _evaluated(flow),
        batches,
        validation,
        seconds=options.seconds,
        every=options.validate_seconds,
        out=options.out,
        target=options.target,
    )


def compare(reference: Path, ours: Path, target: float | None, name: str) -> str:
    """Both curves in one picture, and the seconds to a target: by default the reference's best."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {"reference": read(reference), "cflows": read(ours)}
    known = [r["validation_nll"] for r in curves["reference"] if r["validation_nll"] is not None]
    goal = min(known) if target is None else target
    seconds = {arm: seconds_to(goal, records) for arm, records in curves.items()}
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (arm, records), colour in zip(curves.items(), ("#7F7F7F", "#D55E00"), strict=True):
        points = [(r["seconds"], r["validation_nll"]) for r in records if r["seconds"] > 0]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", ms=3, label=arm)
    axes.axhline(goal, color="#222222", lw=0.8, ls=(0, (4, 3)))
    axes.set(xscale="log", xlabel="training seconds, one thread", title=name)
    axes.set_ylabel("validation negative log-likelihood (nats)")
    axes.legend(frameon=False)
    axes.grid(color="#DDDDDD", lw=0.6)
    figure.savefig(ours.with_suffix(".png"), dpi=160)
    first, second = seconds["reference"], seconds["cflows"]
    gain = f"{first / second:.1f}x" if first and second else "not reached"
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    return (
        f"{name}: to a validation NLL of {goal:.4f}, the reference took {_shown(first)}, cflows "
        f"{_shown(second)} of training: {gain}\n\n{facts}"
    )


def _shown(seconds: float | None) -> str:
    return "longer than it ran" if seconds is None else f"{seconds:.1f} s"


def _evaluated(flow: Flow) -> Flow:
    return copy.deepcopy(flow).double().eval()


def main() -> None:
    """``train`` one arm, or ``compare`` two curves."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    arm = commands.add_parser(
        "train", parents=[race_parser("")], add_help=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    arm.add_argument("--method", default="rk4", help="of the lagged solver")
    arm.add_argument("--tolerance", type=float, default=1e-3)
    arm.add_argument("--divergence", default="auto")
    arm.add_argument("--penalty", type=float, default=0.0, help="weight of kinetic and Jacobian")
    arm.add_argument("--target", type=float, help="stop at this validation NLL")
    both = commands.add_parser("compare")
    both.add_argument("--reference", type=Path, required=True)
    both.add_argument("--ours", type=Path, required=True)
    both.add_argument("--target", type=float)
    both.add_argument("--name", default="")
    options = parser.parse_args()
    if options.command == "train":
        run(options)
    else:
        text = compare(options.reference, options.ours, options.target, options.name)
        print(text)
        write_result(f"target_{options.name or 'race'}", text)


if __name__ == "__main__":
    main()
