"""The user's files: archives, the split, quantised columns and their noise, rows on the disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import cflows
from baselines.harness import cli
from baselines.harness.data import DataError, files, load, quantised
from baselines.harness.data.rows import SPLITS, Split
from baselines.harness.estimator.table_rows import open_rows
from baselines.harness.experiment import cells
from baselines.harness.experiment import run as runner


def normal(n=400, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments, words=()):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("cflows: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


# Archives -----------------------------------------------------------------------------------------


def test_an_archive_of_three_splits_is_taken_as_it_is(tmp_path):
    parts = dict(zip(SPLITS, (normal(30), normal(7, seed=1), normal(5, seed=2)), strict=True))
    np.savez(tmp_path / "t.npz", **dict(reversed(parts.items())))
    data = load(tmp_path / "t.npz")
    for name, part in parts.items():
        assert np.array_equal(getattr(data, name), part)
    assert files.table(tmp_path / "t.npz")[0].shape == (42, 3)


def test_an_archive_of_one_array_is_split_like_an_array(tmp_path):
    np.savez_compressed(tmp_path / "t.npz", rows=normal().astype(np.float32))
    np.save(tmp_path / "t.npy", normal().astype(np.float32))
    assert load(tmp_path / "t.npz").checksum == load(tmp_path / "t.npy").checksum


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": normal(), "b": normal()}, "holds 'a', 'b'; save one array, or the three train"),
        ({"train": normal(), "test": normal()}, "holds 'train', 'test'; save"),
        ({}, "holds nothing; save"),
        ({"train": normal(), "validation": normal(), "test": normal(9, 2)}, "have 3, 3, 2 columns"),
        (
            {"train": normal(), "validation": normal(1), "test": normal()},
            "'validation' has too few",
        ),
        ({"x": normal(5)}, "too few rows (5)"),
        ({"x": np.full((30, 2), None)}, "array 'x' is damaged or no plain numbers"),
        ({"x": np.zeros((30, 2), complex)}, "array 'x' holds complex128 values"),
        ({"x": np.zeros((3, 3, 3))}, "array 'x' has shape (3, 3, 3)"),
        (
            {"train": normal(), "validation": np.full((9, 3), np.nan), "test": normal()},
            "is nan in row 0 of 'validation'",
        ),
    ],
)
def test_archives_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        load(tmp_path / "t.npz")
    assert str(caught.value).startswith(f"{tmp_path / 't.npz'}: ")


@pytest.mark.parametrize("content", [b"PK\x03\x04 and no more", b"no archive"])
def test_damaged_archives_refused(tmp_path, content):
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not a complete \.npz file of plain numbers"):
        load(tmp_path / "t.npz")


# The split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 29, 100, 1234])
def test_the_split_is_a_partition_that_some_rows_can_be_asked_of(n):
    split = Split(n, seed=3)
    parts = {name: split.rows(name) for name in SPLITS}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(n))
    for name, part in parts.items():
        assert len(part) == split.size(name)
        assert (np.diff(part) > 0).all()
        chosen = np.array([0, len(part) // 2, len(part) - 1])
        assert np.array_equal(split.rows(name, chosen.astype(np.int32)), part[chosen])


def test_every_place_of_ten_is_held_out_as_often():
    split = Split(200_000, seed=0)
    for name in SPLITS[1:]:
        counts = np.bincount(split.rows(name) % 10)
        assert (np.abs(counts - 2000) < 5 * np.sqrt(2000 * 0.9)).all()
    assert not np.array_equal(split.rows("test"), Split(200_000, seed=1).rows("test"))


# Quantised columns --------------------------------------------------------------------------------


def grids(n=2000):
    rng = np.random.default_rng(4)
    x = rng.normal(size=n)
    return {
        "smooth": (x, None),
        "float32": (x.astype(np.float32).astype(float), None),
        "tenths": (x.round(1), 0.1),
        "whole": (rng.integers(40, size=n).astype(float), 1.0),
        "twenties": (20.0 * rng.integers(40, size=n), 20.0),
        "binary": (rng.integers(2, size=n) * 1.0, 1.0),
        "offset": (rng.integers(40, size=n) * 0.25 + 0.1, 0.25),
        "thirds": (rng.integers(40, size=n) / 3, 1 / 3),
        "pixels": ((rng.integers(256, size=n) / 255).astype(np.float32).astype(float), 1 / 255),
        "gaps": (rng.choice([0.02, 0.05, 7.0, 900.35], n), 0.01),
        "single": ((0.01 * rng.integers(5, 9000, n // 4).repeat(4)).astype(np.float32) * 1.0, 0.01),
        "spike": (np.maximum(x, 0), 0.0),
        "six decimals": (x.round(6), None),
        "seconds": (1.7e9 + np.arange(n), None),
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [([-1.7e308, 1.7e308, 0, 1], 0.0), ([1e300, 3e300], 2e300), ([0, 5e-324, 1e-322], 5e-324)],
)
def test_steps_at_the_ends_of_the_numbers(values, expected):
    column = np.random.default_rng(0).choice(np.array(values), (1000, 1))
    assert [found.step for found in quantised.repeats_of(column)] == [
        pytest.approx(expected, rel=1e-6)
    ]


@pytest.mark.parametrize("name", grids())
def test_steps_are_found(name):
    values, expected = grids()[name]
    (found,) = quantised.repeats_of(values[:, None])
    assert found.step == pytest.approx(expected or 0, rel=1e-4)
    assert bool(found) == (expected is not None)
    assert not found.apart
    assert bool(found.spikes) == (name == "spike")


def table(tmp_path):
    found = grids()
    names = ("smooth", "tenths", "whole", "spike")
    rows = np.column_stack([found[name][0] for name in names])
    text = "\n".join([",".join(names), *(",".join(map(repr, row)) for row in rows.tolist())])
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv", rows


def test_what_is_quantised_is_warned_of_with_the_remedy(tmp_path):
    path, rows = table(tmp_path)
    first, second = load(path).notes
    assert first.startswith(f"{path}: quantised columns, with their steps: 'tenths' (0.1), 'whole'")
    assert "--dequantise" in first
    assert f"{(rows[:, 3] == 0).sum():,} of 2,000 rows of 'spike' are exactly 0" in second
    assert "--dequantise WIDTH" in second
    (left,) = load(path, dequantise="auto").notes
    assert left == second
    assert load(path, dequantise=0.5).notes == ()
    assert load(path, spared=["tenths", "whole", "spike"]).notes == ()


def written(values, digits="%.9g"):
    """As a .csv has them: each value as the digits say."""
    return np.array([float(digits % value) for value in values.ravel()]).reshape(values.shape)


def repeating(n=2000):
    """Rows (n, 2) whose values repeat on no grid, and what is to be said of them."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, n))
    rain = np.exp(x) * (rng.random(n) > 0.6)
    zeros = int((rain == 0).sum())
    low, high = int((x < -1).sum()), int((x > 1).sum())
    chosen = rng.integers(0, 400, n)
    copies = np.column_stack([x, y])[chosen]
    return {
        "rain": (np.column_stack([rain, y]), f"{zeros:,} of 2,000 rows of 'x0' are exactly 0;"),
        "clipped": (
            np.column_stack([y, x.clip(-1, 1)]),
            f"{max(low, high)} of 2,000 rows of 'x1' are exactly {-1 if low > high else 1} "
            f"({min(low, high)} exactly {1 if low > high else -1});",
        ),
        "copies": (copies, f"{n - len(np.unique(chosen)):,} of 2,000 rows are copies of others;"),
        "categories": (
            np.column_stack([rng.choice([1.41421356, 2.71828183, 3.14159265], n), y]),
            "repeat values far from their neighbours: 'x0';",
        ),
    }


@pytest.mark.parametrize("digits", [None, "%.10g", "%.9g", "%.6g", "%.5f", "float32"])
@pytest.mark.parametrize("name", repeating())
def test_digits_that_a_value_was_written_with_are_no_grid(tmp_path, name, digits):
    rows, words = repeating()[name]
    if digits == "float32":
        rows = rows.astype(np.float32)
    elif digits:
        rows = written(rows, digits)
    np.save(tmp_path / "t.npy", rows)
    (note,) = load(tmp_path / "t.npy").notes
    assert words in note
    assert "quantised" not in note
    assert load(tmp_path / "t.npy", dequantise="auto").notes == (note,)
    if name != "copies":
        assert "--dequantise WIDTH" in note
    assert load(tmp_path / "t.npy", dequantise=0.1).notes == ()
    assert load(tmp_path / "t.npy", spared=["x0", "x1"]).notes == ()


def test_single_values_on_a_grid_are_told_beside_it(tmp_path):
    rng = np.random.default_rng(0)
    column = (np.exp(rng.normal(size=2000)) * (rng.random(2000) > 0.6)).round(3)
    np.save(tmp_path / "t.npy", np.column_stack([column, rng.normal(size=2000)]))
    grid, zeros = load(tmp_path / "t.npy").notes
    assert "'x0' (0.001)" in grid
    assert f"{(column == 0).sum():,} of 2,000 rows of 'x0' are exactly 0" in zeros
    assert load(tmp_path / "t.npy", dequantise="auto").notes == (zeros,)


@pytest.mark.parametrize(
    ("name", "column", "step"),
    [
        ("a rare event", lambda r, n: r.random(n) < 0.02, 1),
        ("counts", lambda r, n: r.poisson(0.5, n), 1),
        ("rain in tenths", lambda r, n: (r.gamma(1, 5, n) * (r.random(n) > 0.6)).round(1), 0.1),
        ("heavy tails", lambda r, n: r.standard_cauchy(n).round(), 1),
        ("incomes", lambda r, n: np.exp(3 * r.normal(size=n)).round(), 1),
        ("cents", lambda r, n: r.pareto(1.5, n).round(2), 0.01),
        ("days", lambda r, n: r.choice([1, 30, 365], n), 1),
        ("thousandths", lambda r, n: r.normal(0, 0.05, n).round(3) + 0.12345, 0.001),
        ("minutes", lambda r, n: 1.7e9 + 60 * r.integers(0, 1440, n), 60),
        ("a coarse device", lambda r, n: (0.237 * r.normal(9000, 900, n).round()).round(2), 0.01),
        ("float32", lambda r, n: r.normal(size=n).round(2).astype(np.float32), 0.01),
        ("top-coded", lambda r, n: r.gamma(4, 10, n).round().clip(max=90), 1),
    ],
)
def test_true_grids_are_found(name, column, step):
    values = column(np.random.default_rng(1), 4000).astype(float)
    (found,) = quantised.repeats_of(values[:, None])
    assert found == (pytest.approx(step), (), False), name


def test_grids_of_real_sensors():
    place = Path(os.environ.get("CFLOWS_DATA", "nowhere"))
    if not (place / "gas_30k" / "gas_30k.npy").exists():
        pytest.skip("CFLOWS_DATA names no folder with gas_30k and power")
    gas, power = np.load(place / "gas_30k/gas_30k.npy"), np.load(place / "power/data.npy")
    assert quantised.repeats_of(gas.astype(float)) == [(pytest.approx(0.01), (), False)] * 8
    found = quantised.repeats_of(power)
    assert [c.step for c in found] == [0.002, 0.002, 0.01, 0.2, 1, 1, 1, 1]
    assert not any(c.apart or c.spikes for c in found)


def test_noise_fills_the_steps_of_the_columns_that_need_it(tmp_path):
    path, _ = table(tmp_path)
    plain, noisy = load(path), load(path, dequantise="auto")
    for name in SPLITS:
        u = (getattr(noisy, name) - getattr(plain, name)) / (1.0, 0.1, 1.0, 1.0)
        assert not u[:, [0, 3]].any()
        assert u[:, 1:3].min() >= -1e-9
        assert u[:, 1:3].max() < 1 + 1e-9
    u = noisy.train[:, 2] - plain.train[:, 2]
    assert u.mean() == pytest.approx(0.5, abs=0.03)
    assert u.var() == pytest.approx(1 / 12, rel=0.05)
    assert np.corrcoef(u, (noisy.train - plain.train)[:, 1])[0, 1] == pytest.approx(0, abs=0.1)
    given = load(path, dequantise=0.5)
    assert ((given.train - plain.train).max(0) <= (0, 0.5, 0.5, 0.5)).all()
    assert (given.train - plain.train)[:, 3].max() > 0.49
    spared = load(path, dequantise="auto", spared=["whole"])
    assert np.array_equal(spared.train[:, 2], plain.train[:, 2])
    assert load(path, dequantise="auto").checksum == noisy.checksum
    assert load(path, dequantise="auto", seed=1).checksum != noisy.checksum


def test_noise_is_uniform_and_its_columns_and_seeds_are_apart():
    u = quantised.uniform(np.arange(50_000), 3, seed=0)
    assert (np.abs(np.histogram(u, 10, (0, 1))[0] - 15_000) < 600).all()
    assert (np.abs(np.corrcoef(u.T) - np.eye(3)) < 0.02).all()
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 0.02
    other = quantised.uniform(np.arange(50_000), 3, seed=1)
    assert len(np.intersect1d(u, other)) == 0


def test_copies_are_warned_of(tmp_path):
    rows = normal()
    np.save(tmp_path / "t.npy", rows[:, [0, 1, 0]])
    (note,) = load(tmp_path / "t.npy").notes
    assert "columns that are copies: 'x2' of 'x0'" in note
    assert "drop" in note


def test_a_comparison_dequantises_files(tmp_path, monkeypatch, capsys):
    """The warning, and cells that load the noisy rows again by their checksum."""
    monkeypatch.setattr(runner.contents, "write", lambda out: out)  # pictures take seconds
    path, _ = table(tmp_path)
    common = ["likelihood", "--models", "nice", "--steps", 2, "--seeds", 0, "--jobs", 1,
              "--data", path]  # fmt: skip
    assert run(*common, "--out", tmp_path / "plain") == 0
    warned = capsys.readouterr().err
    assert warned.count("\n") == 2
    assert "--dequantise" in warned
    assert run(*common, "--out", tmp_path / "noisy", "--dequantise") == 0
    assert "'tenths'" not in capsys.readouterr().err
    keys = [
        {p.parent.name for p in tmp_path.glob(f"{n}/cells/*/config.json")}
        for n in ("plain", "noisy")
    ]
    assert keys[0]
    assert not keys[0] & keys[1]
    (config,) = (tmp_path / "noisy" / "cells").glob("*nice*/config.json")
    assert '"dequantise": "auto"' in config.read_text()


def test_dequantise_refused(tmp_path, capsys):
    path, _ = table(tmp_path)
    fit = ["fit", "--model", "nice", "--out", tmp_path / "m", "--steps", 2, "--data"]
    for width in ("0", "-1", "nan", "inf", "wide"):
        refused(capsys, *fit, path, "--dequantise", width,
                words=("--dequantise", "must be a positive number", repr(width)))  # fmt: skip
    refused(capsys, *fit, "pinwheel", "--dequantise", words=("--dequantise is for files",))
    from PIL import Image

    Image.fromarray(np.arange(9, dtype=np.uint8).reshape(3, 3)).save(tmp_path / "p.png")
    refused(capsys, *fit, tmp_path / "p.png", "--dequantise", words=("is for files", "p.png"))
    refused(capsys, "likelihood", "--data", "pinwheel", "--out", tmp_path / "o", "--dequantise",
            words=("--dequantise is for files",))  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_the_key_of_a_cell_is_that_of_its_rows():
    """A cell finished before these options were there keeps its name."""
    plan = runner.Plan("likelihood", ["pinwheel"], ["nice"], [0], None, 1, None, True, "cpu", 1,
                       Path("o"), "")  # fmt: skip
    cell = runner.plan_cells(plan, runner._load(plan.data))[0]
    from dataclasses import replace

    assert replace(cell, dequantise="auto", pixels=(17, 0.1)).key == cell.key
    assert replace(cell, checksum="other").key != cell.key
    assert isinstance(cell, cells.Cell)


# Rows on the disk ---------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file of 1234 rows that counts as large, read in pieces that do not fit evenly."""
    monkeypatch.setattr(files, "STREAMED_BYTES", 1000)
    monkeypatch.setattr("baselines.harness.data.streams.CHUNK", 500)
    monkeypatch.setattr("cflows.training.sources.AT_ONCE", 33)
    rows = normal(1234, 4).astype(np.float32)
    rows[:, 3] = np.random.default_rng(1).integers(30, size=1234)
    np.save(tmp_path / "big.npy", rows)
    return tmp_path / "big.npy"


@pytest.mark.parametrize("dequantise", [None, "auto", 0.5])
def test_streamed_rows_are_those_in_memory(large, dequantise):
    stream = files.stream(large, dequantise=dequantise)
    data = files.read(large, dequantise=dequantise)
    assert stream.notes == data.notes
    assert stream.columns == data.columns
    for name in SPLITS:
        part = stream.part(name, range(4))
        whole = part[:]
        expected = np.float32(getattr(data, name))
        if name != "train":  # shuffled in memory
            whole, expected = (np.unique(rows, axis=0) for rows in (whole, expected))
        assert np.array_equal(whole, expected)
        chosen = np.array([0, 5, 99])
        assert np.array_equal(stream.part(name, [3, 1])[chosen], part[:][chosen][:, [3, 1]])
        assert np.array_equal(part[3:90:7], part[:][3:90:7])


def test_what_is_not_streamed(large, tmp_path):
    np.save(tmp_path / "vector.npy", normal(900, 1)[:, 0])
    (tmp_path / "damaged.npy").write_bytes(large.read_bytes()[:5000])
    (tmp_path / "t.csv").write_text("a,b\n" * 900)
    for name in ("vector.npy", "damaged.npy", "t.csv", "none.npy"):
        assert files.stream(tmp_path / name) is None


def change(path, row, column, value):
    rows = np.load(path)
    rows[row, column] = value
    np.save(path, rows)


def test_streamed_files_are_checked(large, capsys):
    fit = ["fit", "--model", "nice", "--out", large.with_name("m"), "--data", large]
    for rows, column, value, words in (
        (777, 1, np.nan, ("column 'x1' is nan in row 777",)),
        (slice(None), 2, 5.0, ("column 'x2' is constant, 5 in all 988",)),
        (Split(1234, 0).rows("train"), 0, 3.0, ("column 'x0' is constant, 3 in all 988",)),
        (slice(None), 2, np.arange(1234) % 3 + 3e7, ("'x2'", "far from zero", "subtract")),
        (5, 1, 1e300, ("'x1'", "beyond 3e+38", "divide")),
    ):
        before = np.load(large)
        np.save(large, before.astype(np.float64))
        change(large, rows, column, value)
        refused(capsys, *fit, words=words)
        np.save(large, before)


def test_streamed_noise_that_float32_cannot_hold(large, capsys):
    refused(capsys, "fit", "--model", "nice", "--out", large.with_name("m"), "--data", large,
            "--dequantise", "1e300", words=("'x3'", "beyond 3e+38"))  # fmt: skip
    assert not large.with_name("m").exists()


@pytest.mark.parametrize("context", [[], ["--context", "x3", "x1"]])
def test_fit_gives_the_same_model_from_the_disk(large, monkeypatch, capsys, context):
    """All the way: the map, training, noise, a context; held-out rows are the same ones."""
    command = ["fit", "--model", "nice", "--depth", 1, "--data", large, "--steps", 20, *context,
               "--preprocess", "whiten", "--dequantise", "--out"]  # fmt: skip
    assert run(*command, large.with_name("streamed")) == 0
    assert "test" in capsys.readouterr().out
    monkeypatch.setattr(files, "STREAMED_BYTES", 2**28)
    assert run(*command, large.with_name("loaded")) == 0
    a, b = (cflows.load(large.with_name(n)).state_dict() for n in ("streamed", "loaded"))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-4)


def test_a_streamed_file_is_never_in_memory_whole(large, monkeypatch):
    """What numpy holds and what is mapped stay far below the size of the file."""
    import tracemalloc

    array = np.lib.format.open_memmap(large, "w+", np.float32, (500_000, 8))
    array[:] = np.random.default_rng(0).random((500_000, 8), np.float32)
    array.flush()
    del array
    monkeypatch.setattr("baselines.harness.data.streams.CHUNK", 2**16)
    monkeypatch.setattr("cflows.training.preprocessing.CHUNK", 2**16)
    monkeypatch.setattr("cflows.training.sources.AT_ONCE", 4)  # each may map half a megabyte
    monkeypatch.setattr("baselines.harness.data.quantised.EXAMINED", 1000)
    tracemalloc.start()
    try:
        source = open_rows(str(large))
        x, _ = source.train()
        assert not isinstance(x, torch.Tensor)
        cflows.standardise(x)
        source.few("validation", lambda n: n // 2000)
        assert len(x[np.arange(0, 400_000, 100)]) == 4000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < large.stat().st_size / 4
    smaps = Path("/proc/self/smaps")
    if smaps.exists():
        found = re.findall(rf"{large.name}.*?Rss:\s+(\d+) kB", smaps.read_text(), re.DOTALL)
        assert found
        assert sum(map(int, found)) < 4096


def test_what_does_not_fit_in_memory_is_refused(tmp_path, monkeypatch, capsys):
    def full(*arguments, **settings):
        raise MemoryError

    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr("pandas.read_csv", full)
    refused(capsys, "data", "check", tmp_path / "t.csv", words=("t.csv", "memory", ".npy"))
