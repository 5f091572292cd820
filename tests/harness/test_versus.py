"""Two directories laid side by side: the same models, paired where the rows are the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from baselines.harness import cli
from baselines.harness.report import compare_runs
from baselines.harness.results.load import ReportError


def directory(root, shift, models=("maf",), checksum="abc", depth=2):
    base = np.random.default_rng(0).normal(size=500)
    root.mkdir()
    data = {"toy": {"checksum": checksum}}
    manifest = {"data": data, "models": list(models), "labels": {n: n.upper() for n in models}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    for model in models:
        cell = root / "cells" / f"toy-{model}-{depth}"
        cell.mkdir(parents=True)
        log_prob = base + shift + 0.1 * np.random.default_rng([len(model)]).normal(size=500)
        config = {"data": "toy", "model": model, "depth": depth, "seed": 0}
        result = {"status": "ok", "test_log_prob": log_prob.mean(), "test_log_prob_2se": 0.05}
        cost = {"density_ms_per_1000": 1.0 + shift, "sample_ms_per_1000": 20.0}
        for name, value in (("config", config), ("result", result), ("cost", cost)):
            (cell / f"{name}.json").write_text(json.dumps(value))
        np.save(cell / "test_log_prob.npy", log_prob)
    return root


def test_both_likelihoods_their_difference_and_both_costs(tmp_path):
    first = directory(tmp_path / "a", 0.0, ("maf", "nice"))
    second = directory(tmp_path / "b", 0.25, ("maf", "iaf"))
    (table,) = compare_runs.side_by_side(first, second)
    assert table.title == "toy"
    (row,) = table.rows  # NICE and IAF stand in one of them only
    texts = [cell.text for cell in row]
    assert texts[:2] == ["MAF", "2"]
    means = [np.load(d / "cells" / "toy-maf-2" / "test_log_prob.npy").mean()
             for d in (first, second)]  # fmt: skip
    for text, mean in zip(texts[2:4], means, strict=True):
        assert float(text.split(" ± ")[0]) == pytest.approx(mean, abs=6e-4)
    assert float(texts[4]) == pytest.approx(0.25)
    assert texts[5] == "0.250 to 0.250"  # the same rows moved by one number: no doubt is left
    assert texts[6:] == ["1.00 / 1.25", "20.0 / 20.0"]
    assert row[4].bold


def test_other_rows_are_subtracted_without_an_interval(tmp_path):
    first = directory(tmp_path / "a", 0.0)
    second = directory(tmp_path / "b", 0.25, checksum="other")
    (table,) = compare_runs.side_by_side(first, second)
    assert table.title == "toy (not known to be the same rows)"
    assert [cell.text for cell in table.rows[0]][4:6] == ["0.250", ""]
    assert not table.rows[0][4].bold


def test_the_command_prints_and_writes_nothing(tmp_path, capsys):
    first = directory(tmp_path / "a", 0.0)
    second = directory(tmp_path / "b", 0.25)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["report", str(first), str(second)]) == 0
    out = capsys.readouterr().out
    assert "MAF" in out
    assert max(map(len, out.splitlines()[3:7])) <= 120
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("other", [{"models": ("nice",)}, {"depth": 5}])
def test_nothing_in_common_is_one_line(other, tmp_path, capsys):
    first, second = directory(tmp_path / "a", 0.0), directory(tmp_path / "b", 0.0, **other)
    with pytest.raises(ReportError, match="no finished data set, model and depth in common"):
        compare_runs.side_by_side(first, second)
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(first), str(second)])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
