"""A directory of cells becomes tables and pictures that agree with it and with each other."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from baselines.harness.report import contents, gallery
from baselines.harness.results.load import load
from baselines.models import builtin

COLUMNS = [
    *["dataset", "model", "depth", "seed", "status", "error", "parameters", "steps"],
    *["train_seconds", "test_log_prob", "test_log_prob_2se", "solver_gap", "round_trip_error"],
    *["nfe_density", "nfe_sample", "density_ms_per_1000", "sample_ms_per_1000", "peak_memory_mb"],
    *["solver_gap_max", "gain_over_gaussian", "gain_over_gaussian_2se", "cell"],
]
MODELS = ["maf", "ffjord", "iaf", "realnvp", "nice"]  # no order that sorting would give
LABELS = {"maf": "MAF", "ffjord": "FFJORD", "iaf": "IAF", "realnvp": "RealNVP", "nice": "NICE"}
HOSTILE = "<script>alert(1)</script> | ../$x_"
DEPTHS = ["depth_pinwheel", "depth__script_alert_1_script_x_"]
UNFINISHED = "unfinished: run the same command again to go on with it"


DRAWN = {
    "test_the_page_stands_alone_and_escapes_names",
    "test_pictures_stay_in_the_directory",
    "test_a_second_call_writes_the_same_bytes",
    "test_a_directory_of_failures_is_still_a_report",
    "test_a_directory_that_cannot_be_read_is_one_line",
}


@pytest.fixture(autouse=True)
def _drawn_where_it_is_the_subject(request, monkeypatch):
    """Pictures take most of a report's time: the other tests look at its tables."""
    if request.node.originalname not in DRAWN:
        monkeypatch.setattr(gallery, "has_matplotlib", lambda: False)


def save(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_picture(cell: Path, rng: np.random.Generator, data: bool) -> None:
    x, y = np.meshgrid(np.linspace(-3, 3, 24), np.linspace(-2, 2, 20))
    arrays = {
        "density": -(x**2 + y**2) / 2 - math.log(2 * math.pi),
        "extent": np.array([-3.0, 3.0, -2.0, 2.0]),
        "samples": rng.normal(size=(200, 2)),
    }
    np.savez(
        cell / "picture.npz", **arrays, **({"data": rng.normal(size=(300, 2))} if data else {})
    )


def write_cell(root, data, model, depth, seed, base, *, planar=False):
    rng = np.random.default_rng([len(data), len(model), depth or 0, seed])
    cell = root / "cells" / f"{'toy' if planar else 'wide'}-{model}-{depth}-{seed}"
    log_prob = base + (depth or 0) * 0.05 + 0.03 * len(model) + rng.normal(0, 0.1, len(base))
    save(cell / "config.json", {"data": data, "model": model, "depth": depth, "seed": seed})
    result = {
        "status": "ok",
        "error": "",
        "parameters": 1000 + 100 * (depth or 0),
        "steps": 2000,
        "train_seconds": 12.3,
        "test_log_prob": log_prob.mean(),
        "test_log_prob_2se": 2 * log_prob.std(ddof=1) / math.sqrt(len(log_prob)),
        "solver_gap": 2e-6 if model == "ffjord" else None,
        "solver_gap_max": 3e-5 if model == "ffjord" else None,
        "round_trip_error": 1e-6,
        "peak_memory_mb": 123.4,
    }
    cost = {
        "nfe_density": 5,
        "nfe_sample": 75,
        "density_ms_per_1000": 2.3 + len(model),
        "density_ms_quartiles": [2.1, 2.6],
        "sample_ms_per_1000": 33.0 + 3 * len(model),
        "sample_ms_quartiles": [30.0, 35.0],
        "repeats": 7,
    }
    save(cell / "result.json", result)
    save(cell / "cost.json", cost)
    np.save(cell / "test_log_prob.npy", log_prob)
    if planar:
        write_picture(cell, rng, data=model == "gaussian")
    return cell


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two data sets, five models at two depths and the Gaussian; one failed, one unfinished."""
    root = tmp_path / "run"
    about = {"rows": [50000, 5000, 400], "features": 2, "kind": "toy", "source": "https://x.org/a"}
    data = {"pinwheel": about, HOSTILE: about}
    manifest = {
        "command": 'cflows compare --data "pinwheel"',
        "comparison": "compare",
        "data": data,
        "models": MODELS,
        "labels": {name: found.label for name, found in builtin.MODELS.items()},
        "versions": {"cflows": "1.0"},
        "processor": "<b>fast</b>",
        "threads": 1,
    }
    save(root / "manifest.json", manifest)
    for name in data:
        base = np.random.default_rng(len(name)).normal(-2.5, 0.8, 400)
        planar = name == "pinwheel"
        write_cell(root, name, "gaussian", None, 0, base - 0.4, planar=planar)
        for model in MODELS:
            for depth in (2, 4):
                write_cell(root, name, model, depth, 0, base, planar=planar)
    failed = root / "cells" / "wide-nice-4-0"
    save(failed / "result.json", {"status": "failed", "error": "loss is not finite\nat step 7"})
    (root / "cells" / "toy-realnvp-4-0" / "result.json").unlink()
    return root


def table_of(root: Path) -> list[dict[str, str]]:
    with open(root / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def markdown_tables(text: str) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Rows of every table of report.md, by (section, table title)."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    section = title = ""
    header: list[str] = []
    for line in text.splitlines():
        if line.startswith("## "):
            section, title, header = line[3:], "", []
        elif line.startswith("### "):
            title, header = line[4:], []
        elif line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if header:
                row = dict(zip(header, cells, strict=True))
                found.setdefault((section, title), []).append(row)
            header = header or cells
    return found


def test_columns_come_in_order_and_rows_as_the_manifest_says(directory):
    contents.write(directory)
    header = (directory / "results.csv").read_text().splitlines()[0].split(",")
    rows = table_of(directory)
    assert header[: len(COLUMNS)] == COLUMNS
    assert len(rows) == 22
    for name, part in (("pinwheel", rows[:11]), (HOSTILE, rows[11:])):
        assert {row["dataset"] for row in part} == {name}
        order = [("gaussian", "")] + [(model, depth) for model in MODELS for depth in "24"]
        assert [(row["model"], row["depth"]) for row in part] == order


@pytest.mark.parametrize("quick", [True, False])
def test_a_first_look_says_how_little_was_compared_and_timed(quick, directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    save(directory / "manifest.json", {**manifest, "quick": quick})
    contents.write(directory)
    said = "at most 500 draws compared" in (directory / "report.md").read_text().replace("\n", " ")
    assert said == quick


def test_models_come_by_alphabet_where_the_manifest_names_none(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["models"]
    save(directory / "manifest.json", manifest)
    builtin = list(dict.fromkeys(row.model for row in contents.rows(directory)))
    assert builtin == ["gaussian", *sorted(MODELS)]


def test_discrete_flows_have_an_empty_solver_gap(directory):
    contents.write(directory)
    for row in table_of(directory):
        if row["status"] == "ok":
            expected = ("2e-06", "3e-05") if row["model"] == "ffjord" else ("", "")
            assert (row["solver_gap"], row["solver_gap_max"]) == expected
    tables = markdown_tables((directory / "report.md").read_text())
    gaps = {r["model"]: r["solver gap, mean / max"] for r in tables["pinwheel", "Likelihood"]}
    assert gaps.pop("FFJORD") == "2.0e-06 / 3.0e-05"
    assert set(gaps.values()) == {""}


def test_gains_are_paired_differences(directory):
    checked = 0
    for row in contents.rows(directory):
        if row.status != "ok":
            assert row.gain_over_gaussian is None
            continue
        kind = row.cell.split("-")[0]
        own = np.load(directory / "cells" / row.cell / "test_log_prob.npy")
        other = np.load(directory / "cells" / f"{kind}-gaussian-None-0" / "test_log_prob.npy")
        gains = [float(a) - float(b) for a, b in zip(own, other, strict=True)]
        mean = math.fsum(gains) / len(gains)
        variance = math.fsum((g - mean) ** 2 for g in gains) / (len(gains) - 1)
        assert row.gain_over_gaussian == pytest.approx(mean, rel=1e-12, abs=1e-15)
        error = 2 * math.sqrt(variance / len(gains))
        assert row.gain_over_gaussian_2se == pytest.approx(error, rel=1e-9, abs=1e-15)
        checked += 1
    assert checked == 20


def test_tables_agree_with_the_csv(directory):
    contents.write(directory)
    tables = markdown_tables((directory / "report.md").read_text())
    checked = 0
    for row in table_of(directory):
        if row["status"] != "ok" or row["dataset"] != "pinwheel":
            continue
        name = LABELS.get(row["model"], "Gaussian")

        def line(title, row=row, name=name):
            lines = tables["pinwheel", title]
            return next(
                (r for r in lines if (r["model"], r["depth"]) == (name, row["depth"])), None
            )

        depth = line("Depth")
        value, error = map(float, depth["test log-likelihood ± 2 s.e."].split(" ± "))
        assert value == pytest.approx(float(row["test_log_prob"]), abs=6e-4)
        assert error == pytest.approx(float(row["test_log_prob_2se"]), abs=6e-4)
        assert float(depth["ms per 1000 samples"]) == float(row["sample_ms_per_1000"])
        if (shown := line("Likelihood")) is not None and name != "Gaussian":
            gain, error = map(float, shown["gain over Gaussian ± 2 s.e."].split(" ± "))
            assert gain == pytest.approx(float(row["gain_over_gaussian"]), abs=6e-4)
            assert error == pytest.approx(float(row["gain_over_gaussian_2se"]), abs=6e-4)
            cost = line("Sampling cost")
            density, sample = (float(row[f"{k}_ms_per_1000"]) for k in ("density", "sample"))
            assert float(cost["sample / density"]) == pytest.approx(sample / density, rel=5e-3)
            assert cost["ms per 1000 samples (quartiles)"].endswith("(30.0–35.0)")
            checked += 1
    assert checked == 5  # the deepest finished setting of every model


def test_each_model_within_its_paired_error_of_the_best_is_bold(directory):
    best = np.load(directory / "cells" / "toy-ffjord-4-0" / "test_log_prob.npy")
    wiggle = np.random.default_rng(0).normal(0, 0.2, len(best))
    for model, shift, noise in (("maf", 0.005, wiggle), ("iaf", 0.03, 0.1 * wiggle)):
        cell = directory / "cells" / f"toy-{model}-4-0"
        log_prob = best - shift + noise - noise.mean()
        result = json.loads((cell / "result.json").read_text())
        save(cell / "result.json", {**result, "test_log_prob": log_prob.mean()})
        np.save(cell / "test_log_prob.npy", log_prob)
    contents.write(directory)
    lines = markdown_tables((directory / "report.md").read_text())["pinwheel", "Likelihood"]
    bold = {r["model"] for r in lines if r["test log-likelihood ± 2 s.e."].startswith("**")}
    # IAF lies well within 2 s.e. of its own mean, but the paired difference tells it apart.
    assert bold == {"FFJORD", "MAF"}


@pytest.mark.parametrize(
    ("comparison", "titles"),
    [
        ("compare", ["Likelihood", "Differences of pairs", "Sampling cost", "Depth"]),
        ("likelihood", ["Likelihood", "Differences of pairs"]),
        ("sampling", ["Sampling cost"]),
        ("depth", ["Depth"]),
    ],
)
def test_a_comparison_shows_its_own_tables_and_the_gaussian_in_each(directory, comparison, titles):
    manifest = json.loads((directory / "manifest.json").read_text())
    save(directory / "manifest.json", {**manifest, "comparison": comparison})
    contents.write(directory)
    tables = markdown_tables((directory / "report.md").read_text())
    shown = {key: lines for key, lines in tables.items() if key[1]}
    assert [title for section, title in shown if section == "pinwheel"] == titles
    pairs = "Differences of pairs"
    alone = [lines for (_, title), lines in shown.items() if title != pairs]
    assert all(lines[0]["model"] == "Gaussian" for lines in alone)


def test_the_page_stands_alone_and_escapes_names(directory):
    page = contents.write(directory).read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"url\(|@import|<link", page)
    assert page.count("<script") == page.count("</script>") == 1  # the page's own
    assert "eval" not in page[page.index("<script") :]
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>fast" not in page
    names = {path.stem for path in directory.glob("*.png")}
    assert names == {"likelihood", "cost", "front", "densities_pinwheel", *DEPTHS}
    assert page.count("data:image/png;base64,") == len(names)
    assert "<script" not in (directory / "report.md").read_text()


def test_pictures_stay_in_the_directory(directory):
    for cell in directory.glob("cells/toy-*"):
        other = directory / "cells" / cell.name.replace("toy", "wide") / "picture.npz"
        shutil.copy(cell / "picture.npz", other)
    contents.write(directory)
    names = {path.stem for path in directory.glob("*.png")}
    assert names == {path.stem for path in directory.glob("*.svg")}
    assert {"likelihood", "cost", "front", "densities_pinwheel", *DEPTHS} < names
    assert len(names) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)
    assert {path.name for path in directory.parent.iterdir()} == {"run"}
    # The front leads the report; who leads, and the densities, lead their data set.
    text = (directory / "report.md").read_text()
    places = ["(front.png)", "## pinwheel", " leads with ", "(densities_pinwheel.png)", "### Like"]
    assert sorted(places, key=text.index) == places
    assert text.count("(front.png)") == text.count("(densities_pinwheel.png)") == 1


def test_a_second_call_writes_the_same_bytes(directory):
    def content():
        contents.write(directory)
        return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}

    first = content()
    assert {"results.csv", "report.md", "report.html", "report.tex", "cost.png"} < set(first)
    assert content() == first


def test_a_failure_is_a_row_with_its_reason(directory):
    page = contents.write(directory).read_text()
    failed = [row for row in table_of(directory) if row["status"] == "failed"]
    assert [(row["cell"], row["error"]) for row in failed] == [
        ("toy-realnvp-4-0", UNFINISHED),
        ("wide-nice-4-0", "loss is not finite at step 7"),
    ]
    text = (directory / "report.md").read_text()
    tables = markdown_tables(text)
    assert [row["cell"] for row in tables["Failed cells", ""]] == [row["cell"] for row in failed]
    assert "RealNVP failed at depth 4: depth 2 stands here." in text
    for shown in (page, contents.summary(directory)):
        assert UNFINISHED in shown
        assert "loss is not finite at step 7" in shown


def test_a_directory_of_failures_is_still_a_report(directory):
    for path in directory.glob("cells/*/result.json"):
        save(path, {"status": "failed", "error": "out of memory"})
    contents.write(directory)
    assert [row["status"] for row in table_of(directory)] == ["failed"] * 22
    assert not list(directory.glob("*.png"))


def test_seeds_are_averaged_and_their_spread_shown(directory):
    rng = np.random.default_rng(1)
    cells = [directory / "cells" / "toy-maf-4-0"]
    for seed in (1, 2):
        cell = shutil.copytree(cells[0], directory / "cells" / f"toy-maf-4-{seed}")
        log_prob = np.load(cells[0] / "test_log_prob.npy") + seed * 0.07 + rng.normal(0, 1, 400)
        config, result = (
            json.loads((cell / f"{n}.json").read_text()) for n in ("config", "result")
        )
        save(cell / "config.json", {**config, "seed": seed})
        save(cell / "result.json", {**result, "test_log_prob": log_prob.mean()})
        np.save(cell / "test_log_prob.npy", log_prob)
        cells.append(cell)
    contents.write(directory)
    lines = markdown_tables((directory / "report.md").read_text())["pinwheel", "Likelihood"]
    shown = next(row for row in lines if row["model"] == "MAF")
    vectors = [np.load(cell / "test_log_prob.npy") for cell in cells]
    gaussian = np.load(directory / "cells" / "toy-gaussian-None-0" / "test_log_prob.npy")

    def numbers(text):
        return [float(part) for part in text.replace("*", "").split("±") if part.strip()]

    average = sum(vectors) / 3
    error = 2 * average.std(ddof=1) / math.sqrt(400)
    assert numbers(shown["test log-likelihood ± 2 s.e."]) == pytest.approx(
        [average.mean(), error], abs=6e-4
    )
    gain = average - gaussian
    assert numbers(shown["gain over Gaussian ± 2 s.e."]) == pytest.approx(
        [gain.mean(), 2 * gain.std(ddof=1) / math.sqrt(400)], abs=6e-4
    )
    spread = np.std([v.mean() for v in vectors], ddof=1)
    assert numbers(shown["spread over seeds (± s.d.)"]) == pytest.approx([spread], abs=6e-4)
    assert shown["seeds"] == "3"
    assert "(averages over 3 seeds)" in contents.summary(directory)

    save(cells[2] / "result.json", {"status": "failed", "error": "killed"})
    contents.write(directory)
    lines = markdown_tables((directory / "report.md").read_text())["pinwheel", "Likelihood"]
    assert next(row for row in lines if row["model"] == "MAF")["seeds"] == "2 of 3"
    assert "MAF depth 4 seed 2 failed: killed" in contents.summary(directory)


def test_views_of_fairness_are_told_apart(directory):
    cell = directory / "cells" / "toy-maf-4-0"
    other = shutil.copytree(cell, directory / "cells" / "toy-maf-4-0-budget")
    config = json.loads((cell / "config.json").read_text())
    save(other / "config.json", {**config, "view": "budget"})
    contents.write(directory)
    rows = {row["cell"]: row["view"] for row in table_of(directory)}
    assert rows["toy-maf-4-0"] == "default"
    assert rows["toy-maf-4-0-budget"] == "budget"
    tables = markdown_tables((directory / "report.md").read_text())
    shown = [r["view"] for r in tables["pinwheel", "Likelihood"] if r["model"] == "MAF"]
    assert shown == ["default", "budget"]
    pairs = tables["pinwheel", "Differences of pairs"]
    assert {"MAF", "MAF, budget"} <= {row["model"] for row in pairs} | {r["less"] for r in pairs}


def test_the_summary_fits_a_terminal(directory):
    lines = contents.summary(directory).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "pinwheel"
    assert lines[2].split()[0] == "Gaussian"
    ffjord = next(line for line in lines if line.startswith("FFJORD"))
    assert "2.0e-06" in ffjord
    assert ffjord.endswith("5/75")


def test_a_label_that_two_models_share_gives_way_to_their_names(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    labels = {"a.py:flow": "flow", "b.py:flow": "flow", "c.py:MAF": "MAF", "d.py:f": "Mine",
              "iaf": "", "nice": None}  # fmt: skip
    save(directory / "manifest.json", {**manifest, "labels": labels})
    found = load(directory).labels
    assert found["a.py:flow"] == "a.py:flow"
    assert found["c.py:MAF"] == "c.py:MAF"
    assert (found["maf"], found["d.py:f"]) == ("MAF", "Mine")
    assert (found["iaf"], found["nice"]) == ("IAF", "NICE")
    save(directory / "manifest.json", {**manifest, "labels": ["broken"]})
    assert load(directory).labels["maf"] == "MAF"


def test_the_summary_leaves_out_what_was_not_measured(directory):
    assert "sample ms" in contents.summary(directory)
    for cost in directory.glob("cells/*/cost.json"):
        cost.unlink()
    lines = contents.summary(directory).splitlines()
    assert lines[1].split("  ")[-1].strip() == "solver gap"
    assert lines[-1] == "log-likelihood in nats, higher is better"


def test_values_that_are_not_finite_are_shown_and_never_best(directory):
    cell = directory / "cells" / "toy-nice-4-0"
    result = json.loads((cell / "result.json").read_text())
    save(cell / "result.json", {**result, "test_log_prob": -math.inf})
    log_prob = np.load(cell / "test_log_prob.npy")
    np.save(cell / "test_log_prob.npy", np.where(np.arange(400) < 3, -np.inf, log_prob))
    contents.write(directory)
    lines = markdown_tables((directory / "report.md").read_text())["pinwheel", "Likelihood"]
    shown = next(row for row in lines if row["model"] == "NICE")
    assert shown["test log-likelihood ± 2 s.e."] == "-inf"
    assert shown["gain over Gaussian ± 2 s.e."] == "-inf"


def broken(name: str, content: bytes):
    def change(root: Path) -> None:
        (root / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "is not a directory"),
        (lambda root: shutil.rmtree(root / "cells"), "holds no cells"),
        (lambda root: (root / "manifest.json").unlink(), "manifest.json is missing"),
        (broken("manifest.json", b"{"), "manifest.json is not JSON"),
        (broken("cells/toy-maf-4-0/result.json", b"{\n\xff"), "result.json is not JSON"),
        (broken("cells/toy-maf-4-0/config.json", b"[]"), "config.json is not a JSON object"),
        (broken("cells/toy-maf-4-0/test_log_prob.npy", b"no"), "test_log_prob.npy cannot be read"),
        (
            broken("cells/toy-maf-4-0/test_log_prob.npy", b"PK\x03\x04"),
            "cannot be read as an array",
        ),
        (broken("cells/toy-maf-4-0/picture.npz", b"no"), "picture.npz cannot be read"),
        (broken("cells/toy-maf-4-0/picture.npz", b"PK\x03\x04"), "picture.npz cannot be read"),
        (
            broken("cells/toy-maf-4-0/result.json", b'{"status": "ok", "parameters": "many"}'),
            "parameters is 'many', not a number",
        ),
    ],
)
def test_a_directory_that_cannot_be_read_is_one_line(directory, change, message):
    change(directory)
    with pytest.raises(contents.ReportError, match=re.escape(message)) as caught:
        contents.write(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    assert not list(directory.glob(".*"))


def test_a_planned_cell_that_never_began_is_a_row_and_a_foreign_one_is_not(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    cell = {"data": "pinwheel", "model": "maf", "depth": 9, "seed": 0}
    there = {path.name: {} for path in (directory / "cells").iterdir() if "nice" not in path.name}
    save(directory / "manifest.json", {**manifest, "cells": {**there, "toy-maf-9-0": cell}})
    rows = contents.rows(directory)
    assert not [row for row in rows if row.model == "nice"]
    (row,) = [row for row in rows if row.depth == 9]
    assert row.status == "failed"
    assert "unfinished" in row.error
