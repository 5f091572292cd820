"""A solver that holds for the weights it was chosen for, and for no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from cflows.continuous.bespoke import Bespoke
from cflows.continuous.solvers import Solver
from cflows.core.registry import decode, encode

__all__ = ["Tuned", "fingerprint", "refuse_others"]


class Tuned:
    """An evaluation solver and the weights that it was chosen for.

    Args:
        solver: how to solve.
        weights: their fingerprint.

    """

    def __init__(self, solver: Solver, weights: str) -> None:
        self.solver, self.weights = solver, weights
        self._seen: list[tuple[int, int, int]] = []

    def fits(self, module: nn.Module) -> bool:
        """Whether the weights are still these; their values are read where one was written to."""
        seen = [
            (id(value), 0 if value.is_inference() else value._version, value.data_ptr())
            for value in _values(module)
        ]
        if seen != self._seen:
            if fingerprint(module) != self.weights:
                return False
            self._seen = seen
        return True

    def packed(self, steps: int) -> Tensor:
        """Both, and a number of steps, as bytes for a state dictionary, which holds tensors."""
        content = {"steps": steps, "solver": encode(self.solver), "weights": self.weights}
        return torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)

    @classmethod
    def unpacked(cls, state: Tensor) -> tuple[Tuned, int]:
        """What ``packed`` was given."""
        content = json.loads(bytes(state.tolist()))
        solver = decode(content["solver"], {}, "the state of a tuned solver")
        return cls(solver, content["weights"]), content["steps"]


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers in single precision."""
    digest = hashlib.sha256()
    with torch.no_grad():
        for value in _values(module):
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def refuse_others(solver: Solver | None, module: nn.Module) -> None:
    """Refuse a solver that was fitted to the paths of another field.

    Raises:
        ValueError: the module's weights are not those that a ``Bespoke`` names.

    """
    if isinstance(solver, Bespoke) and solver.weights != fingerprint(module):
        raise ValueError(
            "this Bespoke solver was fitted to other weights: cflows.tune_solver(flow, rows) "
            "fits one to these"
        )


def _values(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
