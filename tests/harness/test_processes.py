"""``cflows fit`` in the processes that torchrun starts; needs Gloo and a loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import distributed

import cflows

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs Gloo"
)


def torchrun(line: str) -> subprocess.CompletedProcess[str]:
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 2 -m baselines.harness"
    command = [sys.executable, *launcher.split(), *line.split()]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_torchrun_trains_one_model_and_prints_once(tmp_path):
    table, out = tmp_path / "rows.csv", tmp_path / "rows.flow"
    x = np.random.default_rng(0).normal(size=(301, 2))
    np.savetxt(table, x, delimiter=",", header="a,b", comments="")
    settings = "--depth 1 --steps 4 --preprocess standardise --device cpu"
    done = torchrun(f"fit --model maf --data {table} --out {out} {settings}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps in") == 1
    assert cflows.load(out).columns == ("a", "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows.flow"]


def test_an_error_is_said_once(tmp_path):
    done = torchrun(f"fit --model maf --data nowhere.csv --out {tmp_path / 'm'}")
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("cflows: ")]) == 1
