"""What kinetic and Jacobian penalties buy: evaluations of the adaptive solve, against likelihood.

    python benchmarks/penalties.py --data pinwheel power --weight 0.01 --seeds 0 1 2

The same field, batches and learning rate with and without ∫‖f‖² dt and ∫‖∂f/∂x‖_F² dt in the loss.
Evaluations are those of log p with dopri5 at 1e-5 and the exact trace, on validation rows.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import machine, pin, table, write_result
from data import task

from cflows import FFJORD, Adaptive, Lagged

SETTINGS = {
    # hidden, end time, batch, steps, learning rate
    "pinwheel": ((64, 64), 0.5, 512, 2000, 1e-2),
    "power": ((80, 80), 1.0, 1000, 1500, 1e-2),
}


def measure(name: str, weight: float, seed: int, scale: float) -> tuple[int, float, float]:
    """Train once: evaluations of a density, validation log-likelihood in nats, seconds."""
    hidden, end_time, batch, steps, rate = SETTINGS[name]
    torch.manual_seed(seed)
    batches, validation = task(name, batch=batch, validation_rows=2000, seed=seed)
    flow = FFJORD(
        validation.shape[1],
        hidden=hidden,
        end_time=end_time,
        divergence="exact",
        training_solver=Lagged("rk4", 1e-2),
        evaluation_solver=Adaptive("dopri5", rtol=1e-5, atol=1e-5),
        penalties=("kinetic", "frobenius"),
    ).train()
    count = max(1, round(steps * scale))
    optimiser = torch.optim.Adam(flow.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, count)
    start = time.perf_counter()
    for _, x in zip(range(count), batches, strict=False):
        while True:
            optimiser.zero_grad()
            if weight:
                log_prob, found = flow.log_prob_and_penalties(x)
                loss = -log_prob.mean() + weight * sum(v.mean() for v in found.values())
            else:
                loss = -flow.log_prob(x).mean()
            loss.backward()
            if flow.review():
                break
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    seconds = time.perf_counter() - start
    flow.eval()
    before = flow.evaluations
    with torch.no_grad():
        score = float(flow.log_prob(validation.float()).mean())
    return flow.evaluations - before, score, seconds


def main() -> None:
    """Train pairs that differ in the penalty alone; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--weight", type=float, default=0.01)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    rows = []
    for name in options.data:
        for seed in options.seeds:
            plain = measure(name, 0.0, seed, options.scale)
            smooth = measure(name, options.weight, seed, options.scale)
            saved = 1 - smooth[0] / plain[0]
            rows.append(
                (
                    name,
                    seed,
                    plain[0],
                    smooth[0],
                    f"{saved:.0%}",
                    f"{plain[1]:.4f}",
                    f"{smooth[1]:.4f}",
                    f"{plain[1] - smooth[1]:+.4f}",
                    f"{plain[2]:.0f} / {smooth[2]:.0f}",
                )
            )
            print(*rows[-1], sep=" | ", flush=True)
    header = ("data", "seed", "NFE", "NFE with penalties", "saved", "log p", "log p with penalties",
              "nats lost", "training s")  # fmt: skip
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    text = table(header, rows) + f"\nweight {options.weight} each; {facts}"
    print("\n" + text)
    write_result("penalties_" + "_".join(options.data), text)


if __name__ == "__main__":
    main()
