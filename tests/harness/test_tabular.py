"""The five tables' preprocessing, judged by hand-computed rows and naive references."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from made_data import Payload, frame_pickle, gas_frame

from baselines.harness.data import DataError, tabular
from baselines.harness.data.pickles import read_frame


def test_power_by_hand():
    """20 rows; the draws are those of the description, taken one after the other.

    Row i is (i, 100 + i, ..., 700 + i), so that a row tells where it came from, and a column too.
    """
    raw = np.arange(20.0)[:, None] + 100 * np.arange(8)
    before = raw.copy()
    rng = np.random.RandomState(42)
    shuffled = raw.copy()
    rng.shuffle(shuffled)
    voltage = [0.01 * rng.rand() for _ in range(20)]
    active = [0.001 * rng.rand() for _ in range(20)]
    meterings = [[rng.rand() for _ in range(3)] for _ in range(20)]
    expected = [
        [row[0] + a, row[2] + v, row[4] + m[0], row[5] + m[1], row[6] + m[2], row[7]]
        for row, v, a, m in zip(shuffled, voltage, active, meterings, strict=True)
    ]
    seen = np.array(expected[:18])
    mean, std = seen.mean(0), np.sqrt(np.square(seen - seen.mean(0)).mean(0))
    found = tabular.power(raw)
    assert [len(part) for part in found[:3]] == [17, 1, 2]
    np.testing.assert_allclose(np.concatenate(found[:3]), (expected - mean) / std, rtol=1e-12)
    assert found.columns[:3] == ("active_power", "voltage", "metering_1")
    assert (raw == before).all()


def naive_gas(raw, names):
    """The loop of the description, correlations computed anew each time."""
    names, data = list(names), {name: raw[:, i] for i, name in enumerate(names)}
    names = [name for name in names if name not in ("Meth", "Eth", "Time")]
    while True:
        correlated = [
            a for a in names
            if sum(np.corrcoef(data[a], data[b])[0, 1] > 0.98 for b in names) > 1
        ]  # fmt: skip
        if not correlated:
            break
        names.remove(correlated[0])
    rows = np.stack([data[name] for name in names], 1)
    return (rows - rows.mean(0)) / rows.std(0, ddof=1), tuple(names)


def test_gas_against_the_loop():
    raw, names = gas_frame()
    expected, kept = naive_gas(raw, names)
    found = tabular.gas(raw, names)
    assert found.columns == kept == ("b", "c", "n2", "m")
    assert [len(part) for part in found[:3]] == [162, 18, 20]
    np.testing.assert_allclose(np.concatenate(found[:3]), expected, rtol=1e-12)


def test_hepmass_by_hand():
    """Labels, the extra column, ddof 1, and a feature whose LEAST value comes six times."""
    n = 30
    x = np.arange(n, dtype=float)
    few = np.where(x < 6, 0.0, x)  # six times the least: dropped
    five = np.where(x < 5, 0.0, x)  # five times: kept
    top = np.where(x > 10, 50.0, x)  # the greatest value may come as often as it likes
    signal = np.stack([np.ones(n), x, few, five, top], 1)
    background = np.zeros((4, 5)) + 1000
    background[:, 0] = 0
    train = np.vstack([background[:2], signal, background[2:]])
    test = np.hstack([np.vstack([signal[:7], background]), np.full((11, 1), 9.0)])
    found = tabular.hepmass(train, test, ("x", "few", "five", "top"))
    assert found.columns == ("x", "five", "top")
    assert [len(part) for part in found[:3]] == [27, 3, 7]
    kept = np.stack([x, five, top], 1)
    scale = np.sqrt(np.square(kept - kept.mean(0)).sum(0) / (n - 1))
    expected = (kept - kept.mean(0)) / scale
    np.testing.assert_allclose(np.concatenate(found[:2]), expected, rtol=1e-12)
    np.testing.assert_allclose(found.test, expected[:7], rtol=1e-12)


def test_miniboone_by_hand():
    raw = np.random.RandomState(0).normal(size=(105, 3))
    found = tabular.miniboone(raw)
    assert [len(part) for part in found[:3]] == [86, 9, 10]
    seen = raw[:95]
    expected = (raw - seen.mean(0)) / np.sqrt(np.square(seen - seen.mean(0)).mean(0))
    np.testing.assert_allclose(np.concatenate(found[:3]), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(2_049_280, (1_659_917, 184_435, 204_928)), (1_052_065, (852_174, 94_685, 105_206)),
     (36_488, (29_556, 3_284, 3_648))],
)  # fmt: skip
def test_published_sizes(rows, sizes):
    """What the split makes of the raw files' rows: POWER, GAS, MINIBOONE."""
    seen, test = tabular._split_tenth(np.empty((rows, 0)))
    assert tuple(len(part) for part in (*tabular._split_tenth(seen), test)) == sizes


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tabular.power(np.zeros((30, 7))), r"POWER: .*\(30, 7\).*8 columns"),
        (lambda: tabular.power(np.zeros((19, 8))), "at least 20 rows"),
        (lambda: tabular.miniboone(np.zeros(30)), r"MINIBOONE: .*\(30,\)"),
        (lambda: tabular.gas(np.zeros((30, 2)), ("Time", "Meth")), "no column 'Eth'"),
        (lambda: tabular.hepmass(np.ones((30, 4)), np.ones((30, 3)), tuple("abc")), "test file"),
        (lambda: tabular.hepmass(np.zeros((30, 4)), np.ones((30, 5)), tuple("abc")), "label 1"),
    ],
)
def test_wrong_shapes_are_one_line(call, says):
    with pytest.raises(DataError, match=says):
        call()


# Frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["old", "new", "strings"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_frames_of_three_layouts(layout, protocol, tmp_path):
    raw, names = gas_frame(30)
    (tmp_path / "f.pickle").write_bytes(frame_pickle(raw, names, layout, protocol))
    found, columns = read_frame(tmp_path / "f.pickle")
    assert columns == names
    np.testing.assert_array_equal(found, raw)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_pickle_that_would_run_code_does_not(tmp_path):
    target = tmp_path / "written by the pickle"
    data = pickle.dumps({"frame": Payload(target)})
    pickle.loads(data)["frame"].close()
    assert target.exists()
    target.unlink()
    (tmp_path / "f.pickle").write_bytes(data)
    with pytest.raises(DataError, match=r"asks for .*open, .*not run"):
        read_frame(tmp_path / "f.pickle")
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
        pickle.dumps([1, 2]),
        b"cpandas\nread_pickle\n(S'x'\ntR.",  # a stand-in: nothing happens
        b"garbage",
        b"",
    ],
)
def test_other_pickles_are_one_line(data, tmp_path):
    (tmp_path / "f.pickle").write_bytes(data)
    with pytest.raises(DataError):
        read_frame(tmp_path / "f.pickle")
