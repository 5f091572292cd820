"""``cflows fit | score | sample``."""

from __future__ import annotations

import argparse

from baselines.harness.cli import torchrun
from baselines.harness.cli.options import filled

__all__ = ["fit", "sample", "score"]


def fit(options: argparse.Namespace) -> None:
    """Train a model on a table and write its file."""
    from baselines.harness.estimator import commands
    from baselines.harness.estimator.task import Task

    task = filled(
        Task,
        options,
        seed=options.seed or 0,
        bounds=dict(options.bounds),
        columns=options.columns or None,
    )
    with torchrun.joined(task.device):
        commands.train(task)


def score(options: argparse.Namespace) -> None:
    """Write the log-density of each row."""
    from baselines.harness.estimator import commands

    commands.score(options.model, options.data, options.out, options.device, options.context)


def sample(options: argparse.Namespace) -> None:
    """Write rows drawn from a model."""
    from baselines.harness.estimator import commands

    commands.sample(
        options.model,
        options.n,
        options.out,
        options.seed or 0,
        options.device,
        options.context,
    )
