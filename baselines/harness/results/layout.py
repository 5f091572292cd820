"""The names of what stands in an output folder DIR, and in the folder of each of its cells."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "manifest.json"
CELLS = "cells"  # a folder, which holds one for each cell
TIMING = ".timing"  # within CELLS: the lock of whoever measures, since two would disturb each other

CONFIG = "config.json"
MAP = "map.json"
CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"
MODEL, STATE = "model.pt", "state.pt"  # the second where a part is not registered
RESULT, COST = "result.json", "cost.json"
LOG_PROB = "test_log_prob.npy"
PICTURE = "picture.npz"
DRAWN = "drawn.npz"  # images, as pixels
ROWS, STEPS = "sizes.json", "solver_steps.json"
SOLVERS = "solvers.json"  # what was tried where a continuous flow's solver was tuned
LOCK, TRACEBACK = "lock", "traceback.txt"


def cell(directory: Path, key: str) -> Path:
    """Return the folder of a cell."""
    return directory / CELLS / key


def sweep(axis: str) -> str:
    """Return the name of the file of DIR that holds a sweep over an axis."""
    return f"growth_{axis}.json"
