"""``cflows fit | score | sample``."""

from __future__ import annotations

import argparse

from baselines.harness.cli import torchrun
from baselines.harness.cli.options import filled

__all__ = ["fit", "sample", "score"]


def fit(options: argparse.Namespace) -> None:
    """Train a model on a table and write its file."""
    from baselines.harness.estimator.fit import Task, train

    task = filled(
        Task,
        options,
        seed=options.seed or 0,
        bounds=dict(options.bounds),
        columns=options.columns or None,
    )
    with torchrun.joined(task.device):
        train(task)


def score(options: argparse.Namespace) -> None:
    """Write the log-density of each row."""
    from baselines.harness.estimator import apply

    apply.score(options.model, options.data, options.out, options.device, options.context)


def sample(options: argparse.Namespace) -> None:
    """Write rows drawn from a model."""
    from baselines.harness.estimator import apply

    seed = options.seed or 0
    apply.sample(options.model, options.n, options.out, seed, options.device, options.context)
