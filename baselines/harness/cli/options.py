"""Options that several commands have, and what refuses their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from baselines.harness.cli.errors import fail

if TYPE_CHECKING:
    from baselines.harness.data.bounds import Pair

__all__ = [
    "SEEDS",
    "add_columns",
    "add_device",
    "add_table_options",
    "adder",
    "device_for",
    "refuse_numbers",
    "refuse_seed",
]

SEEDS = 2**63
HELP = {
    "--columns": "the columns of a file to use (default: all)",
    "--drop": "columns of a file to leave out",
    "--dequantise": "add uniform noise to the quantised columns of a file, as wide as the column's "
    "own steps, or of this width",
    "--bounds": "columns that no row and no sample leaves, as in wait=0: share=0:1",
}


def adder(command: Any, helps: Mapping[str, str]) -> Callable[..., argparse.Action]:
    """``add_argument`` that finds an argument's help by its name."""

    def add(name: str, **settings: Any) -> argparse.Action:
        action: argparse.Action = command.add_argument(name, help=helps.get(name), **settings)
        return action

    return add


def add_columns(command: argparse.ArgumentParser) -> None:
    """--columns and --drop."""
    add = adder(command, HELP)
    add("--columns", nargs="+", metavar="COLUMN")
    add("--drop", nargs="+", metavar="COLUMN", default=[])


def add_table_options(command: argparse.ArgumentParser) -> None:
    """What may be said of a table that flows are trained on."""
    add_columns(command)
    add = adder(command, HELP)
    add("--dequantise", nargs="?", type=_width, const="auto", metavar="WIDTH")
    add("--bounds", nargs="+", type=_bound, default=[], metavar="COLUMN=LOW:HIGH")


def add_device(command: argparse.ArgumentParser) -> None:
    """--device."""
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _bound(text: str) -> tuple[str, Pair]:
    from baselines.harness.data.bounds import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _width(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        width = float(text)
    except ValueError:
        width = math.nan
    if not 0 < width < math.inf:
        raise argparse.ArgumentTypeError(f"a width must be a positive number, got {text!r}")
    return width


def refuse_numbers(options: argparse.Namespace, *names: str) -> None:
    """Refuse what is not positive, or not finite, where it was given."""
    for name in names:
        value = getattr(options, name.lstrip("-"))
        if value is not None and value <= 0:
            fail(f"{name} must be positive, got {value}")
        if value is not None and not math.isfinite(value):
            fail(f"{name} must be a finite number of seconds, got {value}")


def refuse_seed(seed: int) -> None:
    """Refuse what torch takes for no seed."""
    if not 0 <= seed < SEEDS:
        fail(f"--seed must lie between 0 and 2**63 - 1, got {seed}")


def device_for(name: str) -> str:
    """``"cpu"`` or ``"cuda"``, for what --device says."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: this machine has no GPU that torch can use; leave the option out")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
