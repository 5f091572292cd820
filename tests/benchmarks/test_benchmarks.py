from __future__ import annotations

import gc
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cflows import MLP, Adaptive, Flow, ODEBijector

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import common
import data
import target
from reference import ReferenceCNF

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def field(features=2, hidden=(7, 5), layer="concatsquash", activation="tanh"):
    """One of ours, of which no parameter is at zero."""
    ours = MLP(features, hidden=hidden, layer=layer, activation=activation)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ours


def pair(ours, activation="tanh", **options):
    """The flow of a field of ours and the reference, the same function."""
    solver = Adaptive("dopri5", **TIGHT)
    flow = Flow(ODEBijector(ours, end_time=options.get("end_time", 1.0), evaluation_solver=solver))
    hidden = [layer.weight.shape[0] for layer in list(ours.layers)[:-1]]
    theirs = ReferenceCNF(ours.features, hidden=hidden, activation=activation, **TIGHT, **options)
    return flow.eval(), theirs.copy_from(ours)


# common


def test_arms_take_turns_from_a_rotating_start():
    calls = []
    arms = {name: lambda name=name: calls.append(name) for name in "ABC"}
    times = common.alternate(arms, runs=3, warmup=1)
    assert "".join(calls) == "CAB" + "ABC" + "BCA" + "CAB"
    assert {name: len(values) for name, values in times.items()} == {"A": 3, "B": 3, "C": 3}
    assert all(value > 0 for values in times.values() for value in values)


def test_arms_run_on_one_thread_without_collection_and_all_is_put_back():
    states = []
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        common.alternate(
            {"a": lambda: states.append((torch.get_num_threads(), gc.isenabled())) or 1 / 0}
        )
    assert states == [(1, False)]
    assert torch.get_num_threads() == 2
    assert gc.isenabled()


def test_ratios_are_taken_run_by_run():
    result = common.ratio({"a": [2.0, 9.0, 40.0], "b": [1.0, 3.0, 10.0]}, "a", "b")
    assert result == common.Spread(3.0, 2.5, 3.5, 2.0, 4.0, 3, "x")  # 2, 3, 4
    with pytest.raises(ValueError, match="shorter"):
        common.ratio({"a": [1.0, 2.0], "b": [1.0]}, "a", "b")


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([5.1, 5.214, 5.33], "x", "5.21x (5.16-5.27, 3 runs)"),
        ([0.0123], "s", "12.3 ms (12.3-12.3, 1 runs)"),
        ([4.56e-5] * 2, "s", "45.6 µs (45.6-45.6, 2 runs)"),
        ([1234.5], "s", "1234 s (1234-1234, 1 runs)"),
        ([0.0], "", "0.00 (0.00-0.00, 1 runs)"),
    ],
)
def test_a_spread_reads_well(values, unit, text):
    assert str(common.spread(values, unit)) == text


def test_table_is_markdown():
    text = common.table(["arm", "time"], [["a|b", 1], ["c", common.spread([2.0])]])
    assert text.splitlines() == [
        "| arm  | time                       |",
        "| ---- | -------------------------- |",
        "| a\\|b | 1                          |",
        "| c    | 2.00 s (2.00-2.00, 1 runs) |",
    ]
    with pytest.raises(ValueError, match="shorter"):
        common.table(["a", "b"], [["only one"]])


def test_machine_is_named_and_serialises():
    result = json.loads(json.dumps(common.machine()))
    assert result["processor"]
    assert result["cores"] >= result["usable_cores"] >= 1
    assert (result["threads"], result["torch"]) == (1, torch.__version__)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin")
def test_pin_leaves_one_of_the_usable_cores():
    before = {int(t): os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")}
    usable = sorted(os.sched_getaffinity(0))
    try:
        assert common.pin(len(usable) - 1)
        for thread in before:
            assert os.sched_getaffinity(thread) == {usable[-1]}
    finally:
        for thread, cores in before.items():
            os.sched_setaffinity(thread, cores)


def test_a_result_is_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    common.write_result("speed", "old")
    path = common.write_result("speed", "σ\n\n")
    assert path.read_text(encoding="utf-8") == "σ\n"
    assert list(path.parent.iterdir()) == [path]


# reference


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
@pytest.mark.parametrize(
    ("features", "hidden", "layer", "end_time"),
    [
        (2, (64, 64, 64), "concatsquash", 1.0),
        (6, (8, 8), "concatsquash", 0.5),
        (3, (5,), "concat", 2.0),
    ],
)
def test_both_arms_are_the_same_density(features, hidden, layer, end_time, activation):
    ours, theirs = pair(
        field(features, hidden, layer, activation),
        activation=activation,
        layer=layer,
        end_time=end_time,
        exact=True,
    )
    x = 2 * torch.randn(20, features)
    with torch.no_grad():
        expected, result = ours.log_prob(x), theirs.log_prob(x)
        again = theirs.flow(Adaptive("dopri5", **TIGHT)).log_prob(x)
        base = ours.base.log_prob(x)
    assert (expected - base).abs().max() > 0.1  # the flow does something
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("layer", ["concat", "concatsquash"])
def test_right_hand_side_is_the_field_and_its_divergence(layer):
    ours = field(4, layer=layer)
    _, theirs = pair(ours, layer=layer)
    t, x, probe = torch.tensor(0.3), torch.randn(6, 4), torch.randn(6, 4)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: ours(t, v[None])[0], row) for row in x]
    )
    quadratic = torch.einsum("ni,nij,nj->n", probe, jacobian, probe)
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)

    theirs.dynamics.probe = probe
    for exact, expected in ((False, quadratic), (True, trace)):
        theirs.dynamics.exact = exact
        f, rate = theirs.dynamics(t, (x.clone(), torch.zeros(6, 1)))
        torch.testing.assert_close(f, ours(t, x))
        torch.testing.assert_close(rate, -expected.unsqueeze(1))


@pytest.mark.usefixtures("_float64")
def test_gradients_agree_with_backpropagation_through_our_solve():
    ours_field = field(3)
    ours, theirs = pair(ours_field, end_time=0.7, exact=True, trainable_end_time=True)
    ours.bijector.log_end_time.requires_grad_(True)
    x = torch.randn(10, 3)
    for flow in (ours, theirs):
        flow.log_prob(x).mean().backward()
    for layer, other in zip(theirs.dynamics.layers, ours_field.layers, strict=True):
        ours_named = (other.weight, other.bias, other.gate_weight, other.gate_bias)
        expected = [parameter.grad.squeeze(-1) for parameter in ours_named]
        theirs_named = (layer.linear.weight, layer.linear.bias, layer.gate.weight, layer.gate.bias)
        result = [parameter.grad.squeeze(-1) for parameter in theirs_named]
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-7)
        assert all(gradient.abs().max() > 1e-6 for gradient in result)
    # dL/dT from the logarithm of ours and the root of theirs.
    result = theirs.sqrt_end_time.grad / (2 * theirs.sqrt_end_time)
    expected = ours.bijector.log_end_time.grad / ours.bijector.end_time
    assert expected.abs() > 1e-3
    torch.testing.assert_close(result.detach(), expected.detach(), rtol=0, atol=1e-7)


def test_evaluations_are_counted_forwards_and_backwards(monkeypatch):
    model, calls = ReferenceCNF(2, hidden=(8,)), 0
    velocity = model.dynamics.velocity

    def counted(t, x):
        nonlocal calls
        calls += 1
        return velocity(t, x)

    monkeypatch.setattr(model.dynamics, "velocity", counted)
    for _ in range(2):  # the second time shows that the counts start afresh
        calls = 0
        loss = model.log_prob(torch.randn(5, 2)).mean()
        assert (model.nfe_forward, model.nfe_backward) == (calls, 0)
        assert calls > 6
        loss.backward()
        assert model.nfe_backward == calls - model.nfe_forward > 6


def test_the_probe_is_fixed_for_a_solve_and_drawn_for_the_next():
    x = torch.randn(5, 2)
    model = ReferenceCNF(2, hidden=(8,))
    first, second = model.log_prob(x), model.log_prob(x)
    assert not torch.equal(first, second)
    assert set(model.dynamics.probe.unique().tolist()) == {-1.0, 1.0}
    probe = torch.randn(5, 2)
    assert torch.equal(model.log_prob(x, probe), model.log_prob(x, probe))
    gaussian = ReferenceCNF(2, hidden=(8,), probe="gaussian")
    gaussian.log_prob(x)
    assert len(gaussian.dynamics.probe.unique()) == 10


def test_copying_from_another_kind_of_field_is_refused():
    model = ReferenceCNF(2, hidden=(8,))
    with pytest.raises(ValueError, match="the layers differ"):
        model.copy_from(field(hidden=(1,)))
    with pytest.raises(ValueError, match="the layers differ"):
        model.copy_from(field(hidden=(8,), layer="concat"))
    with pytest.raises(ValueError, match="another function"):
        model.copy_from(field(hidden=(8,), activation="softplus"))


@pytest.mark.parametrize("source", ["pinwheel", "file"])
def test_script_trains_and_leaves_its_curve(tmp_path, capsys, source):
    if source == "file":
        rows = np.random.default_rng(0).normal(3.0, (2.0, 0.5), (400, 2)).cumsum(axis=1)
        source = tmp_path / "rows.npy"
        np.save(source, rows)
    out = tmp_path / "curve.jsonl"
    target.main(
        f"reference --data {source} --hidden 8 8 --lr 1e-2 --seconds 1 --validate-seconds 0.4 "
        f"--batch 100 --rtol 1e-3 --atol 1e-3 --validation-rows 50 --out {out}".split()
    )
    text = out.read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    records = [json.loads(line) for line in text.splitlines()]
    assert len(records) >= 2
    fields = {"seconds", "step", "loss", "validation_nll", "nfe_forward", "nfe_backward"}
    assert all(record.keys() == fields for record in records)
    assert (records[0]["step"], records[0]["loss"]) == (0, None)
    for before, after in itertools.pairwise(records):
        assert after["step"] > before["step"]
        assert after["seconds"] > before["seconds"]
        assert min(after["nfe_forward"], after["nfe_backward"]) > 6
    assert records[-1]["seconds"] >= 1
    assert records[-1]["validation_nll"] < records[0]["validation_nll"]


# data


def test_power_is_prepared_as_by_its_authors(tmp_path):
    raw = np.random.default_rng(0).normal(size=(301, 8)) * np.arange(1, 9)
    (tmp_path / "power").mkdir()
    np.save(tmp_path / "power" / "data.npy", raw)
    # Their code, in its own words and order.
    rng = np.random.RandomState(42)
    expected = raw.copy()
    rng.shuffle(expected)
    expected = np.delete(np.delete(expected, 3, axis=1), 1, axis=1)
    voltage, active, meters = 0.01 * rng.rand(301, 1), 0.001 * rng.rand(301, 1), rng.rand(301, 3)
    expected = expected + np.hstack((active, voltage, meters, np.zeros((301, 1))))
    mean, std = expected[:271].mean(0), expected[:271].std(0)
    expected = (expected - mean) / std

    train, validation, test = data.power(tmp_path)
    np.testing.assert_array_equal(train, expected[:244])
    np.testing.assert_array_equal(validation, expected[244:271])
    np.testing.assert_array_equal(test, expected[271:])


def test_power_needs_its_folder(monkeypatch):
    monkeypatch.delenv("CFLOWS_DATA", raising=False)
    with pytest.raises(SystemExit, match="CFLOWS_DATA"):
        data.task("power", batch=10, validation_rows=10, seed=0)


def test_an_epoch_sees_every_row_once():
    rows = np.arange(10.0)[:, None]
    result = list(itertools.islice(data.batches(rows, 4, seed=0), 6))
    assert [len(batch) for batch in result] == [4, 4, 2, 4, 4, 2]
    epochs = torch.cat(result[:3]).flatten().tolist(), torch.cat(result[3:]).flatten().tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_toy_batches_are_fresh_and_validation_is_the_same_for_all_seeds():
    batches, validation = data.task("pinwheel", batch=50, validation_rows=30, seed=0)
    first, second = next(batches), next(batches)
    assert (first.shape, first.dtype) == ((50, 2), torch.float32)
    assert not torch.equal(first, second)
    other_batches, other_validation = data.task("pinwheel", batch=50, validation_rows=30, seed=1)
    assert not torch.equal(first, next(other_batches))
    assert torch.equal(validation, other_validation)
    assert (validation.shape, validation.dtype) == ((30, 2), torch.float64)
