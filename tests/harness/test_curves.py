"""Curves and growth tables: what stands in them, from records made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.markers import CARETDOWN, CARETLEFT

from baselines.harness.plots import curves, likelihood_cost
from baselines.harness.plots.style import floor
from baselines.harness.report import contents, gallery
from baselines.harness.report.scaling_tables import growth_table, rows_table, steps_table
from baselines.harness.results.aggregate import Group
from baselines.harness.results.load import ReportError
from baselines.harness.results.records import Row
from cflows import Record


def call(ms, rows=1000, nfe=4, **more):
    return {"rows": rows, "ms": ms, "ms_q1": ms / 2, "ms_q3": 2 * ms, "repeats": 3,
            "memory_mb": 1.5, "nfe_call": nfe, "nfe_row": nfe / rows, **more}  # fmt: skip


def placed(model, value, depth, **more):
    row = Row(test_log_prob=value, test_log_prob_2se=0.1, sample_ms_per_1000=2.0, **more)
    return Group("d", model, depth, rows=[row])


def sweep(axis="features"):
    found = []
    for size in (8, 16, 32, 64):
        head = {"model": "maf", "size": size, "features": size, "depth": 2}
        for way, power in (("cached", 1), ("sequential", 2)):
            found.append(
                {**head, "way": way, "what": "density", **call(0.1 * size)},
            )
            found.append({**head, "way": way, "what": "sample", **call(size**power, nfe=size)})
    for size in (32, 64):
        found.append({"model": "ffjord", "size": size, "features": size, "way": "", "note": "slow"})
    return found


def test_growth_has_a_line_a_way_its_slope_and_what_was_left_out():
    table = growth_table(sweep(), "features", "sample", {"maf": "MAF", "ffjord": "FFJORD"})
    assert table.header == (
        "model", "way", "D = 8", "D = 16", "D = 32", "D = 64", "slope, ms", "slope, evaluations"
    )  # fmt: skip
    lines = [[cell.text for cell in row] for row in table.rows]
    assert [line[:2] for line in lines] == [["MAF", "cached"], ["MAF", "sequential"]]
    assert [line[-2:] for line in lines] == [["1.00", "1.00"], ["2.00", "1.00"]]
    assert lines[1][3] == "256"
    assert table.note.endswith("FFJORD at D = 32: slow.")  # once, not for each larger size


def test_rows_and_steps_are_tables_of_what_was_measured():
    setting = Group("d", "ffjord", 2, label="FFJORD")
    records = [
        {"way": "", "what": what, **call(ms, rows)}
        for rows in (1, 10_000)
        for what, ms in (("density", 3.0), ("sample", 7.0))
    ]
    table = rows_table([(setting, records)])
    lines = [[cell.text for cell in row] for row in table.rows]
    assert [line[3] for line in lines] == ["1", "10,000"]
    assert lines[0][4:8] == ["3.00 (1.50–6.00)", "1.50", "4", "4.00"]
    assert lines[1][8:] == ["7.00 (3.50–14.0)", "1.50", "4", "0.000400"]
    assert all(len(line) == len(table.header) for line in lines)

    steps = {"steps": 8, "test_log_prob": -1.5, "test_log_prob_2se": 0.25, "error_mean": 1e-4,
             "error_max": 1e-3, "round_trip_error": 1e-5, "density": call(3.0, 500, 32),
             "sample": call(7.0, 500)}  # fmt: skip
    (row,) = steps_table([(setting, [steps])]).rows
    assert [cell.text for cell in row] == [
        "FFJORD", "2", "8", "32", "-1.500 ± 0.250", "1.0e-04 / 1.0e-03", "1.0e-05", "6.00", "14.0"
    ]  # fmt: skip


def test_the_front_holds_what_no_other_beats_in_both():
    points = [(1.0, 0.0), (2.0, -1.0), (3.0, 2.0), (3.0, 1.0), (9.0, 1.5), (10.0, 3.0)]
    assert curves._front(points) == [(1.0, 0.0), (3.0, 2.0), (10.0, 3.0)]


def setting(model, depth, gap=None, nfe=5.0):
    row = Row(test_log_prob=-1.0 - 1 / depth, test_log_prob_2se=0.1, solver_gap=gap,
              round_trip_error=1e-6, density_ms_per_1000=2.0 * depth, nfe_density=nfe,
              sample_ms_per_1000=3.0 * depth, cell=f"{model}-{depth}", seed=0)  # fmt: skip
    return Group("d", model, depth, rows=[row])


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ([-7.8, 0.1, 0.5, 1.1], 0.05, 0.1),
        ([-1e5, -7.8, 0.9, 1.0, 1.1], 0.05, 0.9),
        ([0.0, 0.5, 1.0], 0.05, 0.0),
        ([-0.2, 0.4, 0.41, 0.592, 0.6], 0.1, -0.2),  # what errors could explain stays
        ([-50.0, 1.0], 0.1, -50.0),  # two always have room
        ([2.0, 2.0, -5.0], None, -5.0),  # no range to compare with
        ([3.0], float("nan"), 3.0),
        ([], None, -np.inf),
    ],
)
def test_the_floor_leaves_out_what_would_squeeze_the_rest(values, error, expected):
    assert floor((value, error) for value in values) == expected


@pytest.mark.parametrize("draw", [likelihood_cost.likelihood, curves.front])
def test_what_lies_below_the_floor_is_an_arrow_and_not_an_axis(draw):
    found = [placed("maf", 1.0, 2), placed("ffjord", 0.5, 1), placed("gaussian", -70.0, None)]
    axes = draw(found).axes[0]
    low, high = axes.get_xlim() if draw is likelihood_cost.likelihood else axes.get_ylim()
    assert -1 < low < 0.5 < 1 < high < 2
    arrows = [line for line in axes.lines if line.get_marker() in (CARETDOWN, CARETLEFT)]
    assert len(arrows) == 1
    assert any("70" in text.get_text() for text in axes.texts)


def test_closed_forms_are_lines_to_beat():
    values = {"gaussian": -1.0, "gaussianised": 0.2}
    found = [placed(name, value, None) for name, value in values.items()]
    axes = likelihood_cost.likelihood([*found, placed("maf", 1.0, 2)]).axes[0]
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == list(values.values())


def test_a_last_average_over_few_steps_is_left_out():
    def record(step, nfe):
        return Record(step, 1.0, None, None, nfe, 1e-3)

    s = placed("ffjord", 0.5, 1, solver_gap=1e-4, cell="c")
    lines = [record(0, 0), record(100, 30), record(200, 40), record(203, 12)]
    (line,) = curves.nfe_in_training([s], {"c": lines}).axes[0].lines
    assert list(line.get_ydata()) == [30, 40]
    (line,) = curves.nfe_in_training([s], {"c": [*lines[:-1], record(300, 50)]}).axes[0].lines
    assert list(line.get_ydata()) == [30, 40, 50]


def test_layers_and_evaluations_are_never_one_axis():
    found = [setting("maf", 2), setting("maf", 5), setting("ffjord", 1, 1e-6, 40.0),
             setting("ffjord", 2, 1e-6, 80.0), setting("ffjord-time", 4, 1e-6, 30.0)]  # fmt: skip
    record = {"test_log_prob": -2.0, "round_trip_error": 1e-3, "density": call(3.0, 500, 32),
              "sample": call(7.0, 500)}  # fmt: skip
    discrete, continuous = gallery._lines(found, [(found[3], [record])])
    assert [(line.model, [x for x, _ in line.points]) for line in discrete] == [("maf", [2, 5])]
    assert [(line.model, line.what, [x for x, _ in line.points]) for line in continuous] == [
        ("ffjord", "blocks", [40, 80]),
        ("ffjord-time", "end time", [30]),
        ("ffjord", "solver steps", [32]),
    ]
    assert continuous[2].points[0][1]["density_ms_per_1000"] == 6.0


@pytest.fixture
def directory(tmp_path):
    cell = tmp_path / "cells" / "toy-ffjord-1"
    cell.mkdir(parents=True)
    history = [{"step": step, "seconds": 0.5 * step, "loss": 1.0, "validation": -3.0 + step / 10,
                "nfe": 20.0 + step, "learning_rate": 1e-3} for step in (0, 5, 10, 20)]  # fmt: skip
    (cell / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    files = {
        tmp_path / "manifest.json": {"comparison": "depth", "data": {}, "models": ["ffjord"]},
        cell / "config.json": {"data": "toy", "model": "ffjord", "depth": 1, "seed": 0},
        cell / "result.json": {"status": "ok", "test_log_prob": -1.0, "solver_gap": 1e-6},
        tmp_path / "growth_features.json": {"key": {}, "records": sweep()},
    }
    for path, value in files.items():
        path.write_text(json.dumps(value))
    rng = np.random.default_rng(0)
    np.savez(cell / "picture.npz", density=np.zeros((4, 4)), extent=np.array([-1.0, 1, -1, 1]),
             samples=rng.normal(size=(20, 2)), paths=rng.normal(size=(5, 8, 2)))  # fmt: skip
    return tmp_path


def test_what_was_kept_becomes_pictures_and_files(directory):
    page = contents.write(directory).read_text()
    names = {path.stem for path in directory.glob("*.svg")}
    assert names == {
        "likelihood", "training", "nfe", "growth_features", "densities_toy", "trajectories_toy"
    }  # fmt: skip
    assert page.count("data:image/png") == len(names)
    assert "1000 samples against dimension D" in page
    lines = (directory / "growth_features.csv").read_text().splitlines()
    assert len(lines) == 1 + len(sweep())


@pytest.mark.parametrize(
    ("name", "content"),
    [("cells/toy-ffjord-1/history.jsonl", "{"), ("growth_features.json", '{"records": 3}')],
)
def test_what_is_damaged_is_one_line(directory, name, content):
    (directory / name).write_text(content)
    with pytest.raises(ReportError, match=name.split("/")[-1]) as caught:
        contents.write(directory)
    assert "\n" not in str(caught.value)
