"""From what a command asks for to its cells: seeds, protocol, views, presets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from baselines.harness import cli, data
from baselines.harness.experiment import run as runner
from baselines.harness.experiment.plan import Plan, default_seeds, plan_cells
from baselines.models import builtin, registry
from baselines.models.model import CLOSED_FORM
from cflows.training import pipeline
from cflows.training.fit import fit

FIVE = ["ffjord", "maf", "iaf", "realnvp", "nice"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, np.random.default_rng(0).normal(size=(13_000, 3)))
    return {"rows.npy": (str(path), data.load(path))}


def plan(tmp_path, **changes) -> Plan:
    base = Plan("likelihood", ["rows.npy"], ["maf"], [0, 1, 2], None, None, None, False,
                "cpu", 1, tmp_path, "test")  # fmt: skip
    return dataclasses.replace(base, **changes)


def of_model(cells, name="maf"):
    return [cell for cell in cells if cell.model == name]


def test_seeds_are_three_but_for_a_first_look():
    for comparison in ("likelihood", "sampling", "depth"):
        assert default_seeds(comparison, quick=False, bare=True) == (0, 1, 2)
        assert default_seeds(comparison, quick=True, bare=False) == (0,)
    assert default_seeds("compare", quick=False, bare=False) == (0, 1, 2)
    assert default_seeds("compare", quick=False, bare=True) == (0,)


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [
        (["compare"], [0]),
        (["compare", "--quick", "--data", "moons"], [0]),
        (["compare", "--data", "moons", "--steps", "5"], [0]),
        (["compare", "--data", "moons"], [0, 1, 2]),
        (["compare", "--models", "maf", "--seeds", "4", "4"], [4]),
        (["likelihood"], [0, 1, 2]),
        (["likelihood", "--steps", "5"], [0, 1, 2]),
        (["likelihood", "--quick"], [0]),
    ],
)
def test_seeds_of_a_command(arguments, seeds, monkeypatch):
    plans = []
    monkeypatch.setattr(runner, "execute", lambda plan: plans.append(plan) or 0)
    assert cli.main(arguments) == 0
    assert plans[0].seeds == seeds


def test_likelihood_trains_until_patience_ends_it(sets, tmp_path):
    patient = of_model(plan_cells(plan(tmp_path), sets))
    assert [cell.seed for cell in patient] == [0, 1, 2]
    for cell in patient:
        rows = len(sets["rows.npy"][1].train)
        assert (cell.patience, cell.validate_every, cell.schedule) == (30, rows // 512, "plateau")
        assert cell.steps > 10 * builtin.MODELS["maf"].steps
    for changes in ({"comparison": "compare"}, {"quick": True}, {"steps": 40}):
        for cell in of_model(plan_cells(plan(tmp_path, **changes), sets)):
            assert (cell.validate_every, cell.schedule) == (None, "cosine")
            assert (cell.quick, cell.validation_rows == 500) == (("quick" in changes),) * 2


def test_patience_ends_a_cell(sets, tmp_path, monkeypatch):
    """The protocol in earnest: rows of noise, of which nothing is to be learned for long."""
    seen = []
    monkeypatch.setattr(pipeline, "fit", lambda *a, **k: seen.append(fit(*a, **k)) or seen[-1])
    cell = of_model(plan_cells(plan(tmp_path, patience=2, models=["nice"]), sets), "nice")[0]
    assert runner.cells.run(cell, tmp_path)["stopped"] == "patience"
    *_, history = seen  # behind each map first, to choose one
    assert history.steps - history.best_step == 2 * cell.validate_every


def test_views_stand_side_by_side(sets, tmp_path):
    both = plan(tmp_path, models=FIVE, parameters=20_000, budget=3.0, seeds=[0])
    cells = plan_cells(both, sets)
    assert len(cells) == 12
    assert len({cell.key for cell in cells}) == 12
    equal = [cell for cell in cells if cell.view == "parameters"]
    timed = [cell for cell in cells if cell.view == "budget"]
    assert {cell.model for cell in equal} == {cell.model for cell in timed} == set(FIVE)
    counts = [
        sum(p.numel() for p in registry.preset(c.model, 3, c.depth, hidden=c.hidden).parameters())
        for c in equal
    ]
    assert max(counts) <= 1.03 * min(counts)
    assert {cell.seconds for cell in equal} == {None}
    assert {(cell.seconds, cell.hidden) for cell in timed} == {(3.0, None)}
    alone = plan_cells(dataclasses.replace(both, parameters=None, budget=None), sets)
    assert {cell.view for cell in alone} == {"default"}


def test_equal_parameters_are_the_median_of_the_models_own(sets, tmp_path):
    equal = plan(tmp_path, models=["maf", "realnvp", "nice"], parameters="equal", seeds=[0])
    own = sorted(
        sum(p.numel() for p in registry.preset(name, 3, depth).parameters())
        for name, depth in (("maf", 5), ("realnvp", 8), ("nice", 8))
    )
    for cell in plan_cells(equal, sets):
        if cell.model not in CLOSED_FORM:
            flow = registry.preset(cell.model, 3, cell.depth, hidden=cell.hidden)
            count = sum(p.numel() for p in flow.parameters())
            assert count == pytest.approx(own[1], rel=0.015)


def test_a_preset_has_its_papers_batch_and_rate(sets, tmp_path):
    cell = of_model(plan_cells(plan(tmp_path, models=["maf-power"]), sets), "maf-power")[0]
    assert (cell.batch_size, cell.learning_rate, cell.depth) == (100, 1e-4, 5)
    assert cell.validate_every == min(200, len(sets["rows.npy"][1].train) // 100)


def test_the_warm_up_is_a_tenth_of_a_training_at_most(sets, tmp_path):
    def warmups(**asked):
        found = plan_cells(plan(tmp_path, models=["maf", "ffjord"], **asked), sets)
        return {cell.model: cell.warmup for cell in found}

    own = builtin.MODELS["maf"].warmup
    assert own > 50
    assert warmups(steps=300) == {"maf": 30, "ffjord": 0} | dict.fromkeys(CLOSED_FORM, 0)
    assert warmups(steps=100 * own)["maf"] == own
    assert warmups(budget=3.0)["maf"] == own


def test_a_view_reaches_the_table(sets, tmp_path):
    asked = plan(tmp_path / "out", models=["nice"], parameters=2_000, steps=3, seeds=[0],
                 data=[sets["rows.npy"][0]], depths=[2], preprocess="whiten")  # fmt: skip
    assert runner.execute(asked) == 0
    from baselines.harness.report import contents

    rows = {row.model: row for row in contents.rows(tmp_path / "out")}
    assert rows["nice"].parameters == pytest.approx(2_000, rel=0.015)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--parameters", "0"], "--parameters must be positive"),
        (["--parameters", "9", "--data", "moons"], "ask for more"),
        (["--parameters", "20000", "--equal-parameters"], "not allowed with"),
        (["--patience", "0"], "--patience must be positive"),
    ],
)
def test_sizes_that_cannot_be_asked_for(arguments, word, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", *arguments, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
