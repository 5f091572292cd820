"""Models by name: the papers' presets, the user's own functions, entry points, chosen widths."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.harness import cli
from baselines.models import builtin, papers, registry, widths
from baselines.models import user as user_models
from baselines.models.model import ModelError

OWN = '''\
"""A model of fifteen lines: one MAF layer behind a bijector of this file's own."""
import torch
from baselines import MAF
from cflows import Bijector, Chain, Flow

class Shift(Bijector):
    def __init__(self, features):
        super().__init__(features)
        self.by = torch.nn.Parameter(torch.zeros(features))
    def forward_and_log_det(self, z, context=None):
        return z + self.by, z.new_zeros(z.shape[:-1])
    def inverse_and_log_det(self, x, context=None):
        return x - self.by, x.new_zeros(x.shape[:-1])
def shifted(features, depth, hidden=(16, 16)):
    return Flow(Chain(MAF(features, layers=depth, hidden=hidden).bijector, Shift(features)))
'''


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def refused(name: str, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        registry.find(name)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_names_and_what_is_near_them():
    assert registry.find("spline").label == "Spline"
    assert registry.preset("spline", 3, 2).log_prob(torch.zeros(4, 3)).shape == (4,)
    refused("mfa", "did you mean maf", "FILE.py:FUNCTION")
    refused("maf-pwer", "did you mean", "maf-power")


def test_the_users_function_is_a_model(own, monkeypatch):
    found = registry.find(f"{own}:shifted")
    assert (found.label, found.depths, found.learning_rate) == (
        "shifted",
        (1,),
        builtin.MODELS["spline"].learning_rate,
    )
    assert registry.preset(f"{own}:shifted", 3, 2).features == 3
    assert user_models.located(f"{own}:shifted") == ("mine.py:shifted", f"{own}:shifted")
    monkeypatch.chdir(own.parent)
    assert user_models.located("mine.py:shifted")[1] == f"{own.resolve()}:shifted"


def test_a_function_says_more_in_its_attributes(own):
    own.write_text(
        OWN + "shifted.depths = [1, 2]\nshifted.label = 'Shifted'\nshifted.batch_size = 64\n"
    )
    found = registry.find(f"{own}:shifted")
    assert (found.label, found.depths, found.batch_size) == ("Shifted", (1, 2), 64)


def test_the_configuration_changes_with_the_users_text(own):
    before = registry.configuration(f"{own}:shifted", 3, 1)
    assert before == registry.configuration(f"{own}:shifted", 3, 1) != ""
    # A layer that looks the same from outside: no constructor's argument shows it.
    own.write_text(OWN.replace("z + self.by, z", "z + self.by + 0, z"))
    assert registry.configuration(f"{own}:shifted", 3, 1) not in ("", before)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "nothing.py:f", ("nothing.py", "cannot be read")),
        (OWN, "mine.py:shiftet", ("'shiftet'", "did you mean shifted")),
        (OWN, "mine.py:", ("FILE.py:FUNCTION",)),
        ("x = 1 / 0\n", "mine.py:f", ("ZeroDivisionError", "line 1 of mine.py")),
        ("import nosuchmodule\n", "mine.py:f", ("ModuleNotFoundError", "nosuchmodule")),
        ("f = 3\n", "mine.py:f", ("is a int, not a function",)),
        (None, "nosuchmodule:f", ("no module is called 'nosuchmodule'", "FILE.py:FUNCTION")),
    ],
)
def test_what_cannot_be_used_is_one_line(content, name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "mine.py").write_text(content)
    refused(name, *words)


def test_a_function_that_returns_no_flow(own):
    own.write_text("from baselines import MAF\n\ndef f(features, depth):\n    return features\n"
                   "\ndef g(features, depth):\n    return MAF(features + 1)\n")  # fmt: skip
    with pytest.raises(ModelError, match=r"returned a int, not a cflows\.Flow"):
        registry.preset(f"{own}:f", 2, 1)
    with pytest.raises(ModelError, match="a flow of 3 features for 2"):
        registry.preset(f"{own}:g", 2, 1)


def test_a_module_and_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "flows_of_mine.py").write_text(OWN)
    about = tmp_path / "flows_of_mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flows-of-mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[cflows.models]\nshifted = flows_of_mine:shifted\nlost = flows_of_mine:lost\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.find("flows_of_mine:shifted").core(2, 1).features == 2
    assert registry.find("shifted").text == registry.find("flows_of_mine:shifted").text != ""
    refused("shiftd", "did you mean shifted")
    refused("lost", "the entry point 'lost'", "AttributeError")


def test_the_users_model_joins_a_comparison(own, tmp_path, monkeypatch):
    """In spawned workers, with parts that are not registered, timed and reported."""
    assert len(OWN.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.random.default_rng(0).normal(size=(300, 3)))
    command = ["compare", "--data", "rows.npy", "--models", "maf", "mine.py:shifted",
               "--depths", "2", "--steps", "5", "--preprocess", "whiten", "--jobs", "2",
               "--out", "out"]  # fmt: skip
    assert cli.main(command) == 0
    with open("out/results.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["gaussian", "gaussianised", "maf", "mine.py:shifted"]
    assert rows["mine.py:shifted"]["status"] == "ok"
    assert float(rows["mine.py:shifted"]["sample_ms_per_1000"]) > 0
    assert json.loads(Path("out/manifest.json").read_text())["labels"] == {
        "maf": "MAF", "mine.py:shifted": "shifted"
    }  # fmt: skip
    report = Path("out/report.md").read_text()
    assert "| shifted |" in report
    assert "| mine.py:shifted |" not in report
    folder = next(Path("out/cells").glob("rows-npy-mine-py-shifted-*"))
    before = (folder / "result.json").stat().st_mtime_ns
    assert cli.main([*command[:4], "maf", "./mine.py:shifted", *command[6:]]) == 0
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_a_model_that_could_not_be_kept_is_refused_before_its_training(own, tmp_path, capsys):
    command = ["fit", "--data", "moons", "--out", str(tmp_path / "m"), "--steps", "2", "--model"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, f"{own}:shifted"])
    assert caught.value.code == 2
    assert "mine.py:shifted cannot be saved: " in capsys.readouterr().err
    own.write_text("from baselines import MAF\n\ndef plain(features, depth):\n"
                   "    return MAF(features, layers=depth, hidden=(8,))\n")  # fmt: skip
    assert cli.main([*command, f"{own}:plain", "--preprocess", "whiten"]) == 0
    assert (tmp_path / "m").exists()


def test_two_models_of_one_name(own, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text(OWN)
    given = [f"{own}:shifted", f"{tmp_path}/sub/mine.py:shifted"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", "--data", "moons", "--models", *given, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "two models are called 'mine.py:shifted'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "features", "hidden", "batch"),
    [("ffjord-power", 6, (60, 60, 60), 10_000), ("ffjord-miniboone", 43, (860, 860), 1_000)],
)
def test_ffjords_sizes_are_the_papers(name, features, hidden, batch):
    model = registry.find(name)
    assert model.batch_size == batch
    flow = registry.preset(name, features, model.depths[0])
    blocks = list(flow.bijector.parts)
    assert len(blocks) == model.depths[0]
    assert blocks[0].field.hidden == hidden


def test_presets_keep_their_layers():
    assert set(papers.examples()) <= set(papers.PRESETS)
    flow = registry.preset("maf-power", 6, 5)
    assert sum(p.numel() for p in flow.parameters()) == 60120
    with pytest.raises(ValueError, match=re.escape("has 10 layers, got 5")):
        registry.preset("maf10-power", 6, 5)


FIVE = (("ffjord", 2), ("maf", 5), ("iaf", 5), ("realnvp", 8), ("nice", 8))


@pytest.mark.parametrize("parameters", [5_000, 20_000, 200_000])
@pytest.mark.parametrize("features", [2, 21])
def test_five_models_of_equal_size(features, parameters):
    """All within 3 percent of one another, as flows that are built say."""
    counts = []
    for name, depth in FIVE:
        hidden = widths.solved(name, features, depth, parameters)
        flow = registry.preset(name, features, depth, hidden=hidden)
        counts.append(sum(parameter.numel() for parameter in flow.parameters()))
    assert max(counts) <= 1.03 * min(counts)
    assert min(counts) >= 0.985 * parameters


def test_sizes_that_cannot_be_had(own):
    with pytest.raises(ModelError, match="ask for more"):
        widths.solved("maf", 63, 5, 5_000)
    with pytest.raises(ModelError, match="fixed sizes"):
        widths.solved("maf-power", 6, 5, 5_000)
    own.write_text(OWN.replace(", hidden=(16, 16)", "").replace("hidden=hidden", "hidden=(8,)"))
    with pytest.raises(ModelError, match="third argument"):
        widths.solved(f"{own}:shifted", 6, 5, 5_000)
