"""Rows that stay on the disk, and batch norm's statistics over all rows."""

from __future__ import annotations

import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import cflows
from baselines import MAF
from cflows import (
    FFJORD,
    BatchNorm,
    Bounded,
    Chain,
    FixedGrid,
    Flow,
    Inverse,
    Lagged,
    fit,
    inside,
    standardise,
    whiten,
)
from cflows.core.flow import evaluating
from cflows.training.batch_statistics import preserved, refresh
from cflows.training.preprocessing import extent
from cflows.training.rows import rows_for
from cflows.training.sources import read_scattered

QUIET = {"progress": False}


def rows(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]]) + 1.0


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def small(**settings):
    torch.manual_seed(0)
    return MAF(2, layers=2, hidden=(8,), **settings)


def mapped(path, values):
    array = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=values.shape)
    array[:] = values
    array.flush()
    return np.load(path, mmap_mode="r")


def test_streamed_rows_give_the_bits_of_rows_in_memory(tmp_path):
    x, held_out = rows().numpy().astype(np.float64), rows(100, seed=1).numpy()
    settings = {"steps": 25, "batch_size": 32, "validate_every": 10, **QUIET}
    flows = [small(), small(), small()]
    streams = mapped(tmp_path / "x.npy", x), mapped(tmp_path / "v.npy", held_out)
    histories = [
        fit(flows[0], torch.from_numpy(x), torch.from_numpy(held_out), **settings),
        fit(flows[1], *streams, **settings),
        fit(flows[2], x, held_out, **settings),
    ]
    for flow, history in zip(flows[1:], histories[1:], strict=True):
        assert torch.equal(weights(flow), weights(flows[0]))
        assert history.columns()["validation"] == histories[0].columns()["validation"]
    path = tmp_path / "checkpoint.pt"
    fit(small(), *streams, checkpoint=path, **{**settings, "schedule": "constant", "steps": 17})
    whole, parted = small(), small()
    settings["schedule"] = "constant"
    fit(parted, *streams, checkpoint=path, **settings)
    fit(whole, *streams, **settings)
    assert torch.equal(weights(whole), weights(parted))


def test_a_stream_is_never_loaded_whole(tmp_path):
    shape = (2_000_000, 2)
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    array[:1000] = 1.0
    del array
    stream = np.load(tmp_path / "x.npy", mmap_mode="r")[10:]
    tracemalloc.start()
    try:
        found = rows_for(small(), stream, "train")
        assert found.streamed
        found.fingerprint()
        found.take(torch.tensor([5, 1_999_000, 3]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < stream.nbytes / 20


class Source:
    """Rows of a RowSource's own: an array that is no numpy array."""

    def __init__(self, values):
        self.values = values

    @property
    def shape(self):
        return self.values.shape

    def __len__(self):
        return len(self.values)

    def __getitem__(self, chosen):
        if isinstance(chosen, np.ndarray):
            assert (np.diff(chosen) >= 0).all()
        return self.values[chosen]


def test_a_row_source_gives_the_bits_of_rows_in_memory():
    x = rows()
    flows = small(), small()
    for flow, given in zip(flows, (x, Source(x.numpy())), strict=True):
        fit(flow, given, given, steps=25, batch_size=32, validate_every=10, **QUIET)
    assert torch.equal(weights(flows[0]), weights(flows[1]))
    with pytest.raises(ValueError, match=r"train must have shape \(N, D\)"):
        rows_for(small(), Source(np.zeros(3)), "train")


def resident_pages(path):
    """KB of a file's mapping that count as this process's memory."""
    blocks = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(re.search(r"Rss:\s+(\d+) kB", block)[1]) for block in blocks)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts pages as Linux does")
def test_pages_that_were_read_are_given_back(tmp_path):
    path = tmp_path / "x.npy"
    stream = mapped(path, np.ones((500_000, 2), np.float32))
    total = float(stream.sum())
    before = resident_pages(path)
    found = rows_for(small(), stream[10:], "train")
    found.take(torch.arange(0, 499_990, 50))
    assert before > 3000
    assert resident_pages(path) < 200
    stream.sum()
    for _ in found.batches(100_000):
        pass
    assert resident_pages(path) < 200
    assert float(stream.sum()) == total


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_scattered_rows_are_mapped_a_few_at_a_time(tmp_path, monkeypatch, n):
    """The system may map half a megabyte around each, which counts as memory of ours."""
    monkeypatch.setattr(cflows.training.sources, "AT_ONCE", 4)
    dropped = []
    monkeypatch.setattr(cflows.training.sources, "drop_pages", dropped.append)
    whole = rows(50).numpy()
    stream, chosen = mapped(tmp_path / "x.npy", whole), np.arange(n) * 4
    assert np.array_equal(read_scattered(stream, chosen), whole[chosen])
    assert len(dropped) == math.ceil(n / 4)
    assert np.array_equal(read_scattered(whole, chosen), whole[chosen])


def test_changes_of_a_private_mapping_stay(tmp_path):
    mapped(tmp_path / "x.npy", np.ones((10, 2), np.float32))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[3] = 5.0
    found = rows_for(small(), private, "train")
    assert found.streamed
    for _ in range(2):
        assert found.take(torch.tensor([3]))[0].tolist() == [[5.0, 5.0]]


def test_rows_come_in_the_order_they_were_asked_for(tmp_path):
    x, c = rows(10).numpy(), rows(10, seed=3)[:, :1].numpy()
    flow = MAF(2, context_features=1, layers=1, hidden=(4,))
    found = rows_for(flow, (mapped(tmp_path / "x.npy", x), torch.from_numpy(c)), "train")
    chosen = torch.tensor([7, 0, 9, 3, 3])
    got = found.take(chosen)
    assert torch.equal(got[0], torch.from_numpy(x)[chosen])
    assert torch.equal(got[1], torch.from_numpy(c)[chosen])
    sizes = [len(part[0]) for part in found.batches(4)]
    assert sizes == [4, 4, 2]
    assert torch.equal(torch.cat([part[0] for part in found.batches(4)]), torch.from_numpy(x))


def test_a_streamed_row_that_is_not_finite_is_named_when_it_is_met(tmp_path):
    x = rows().numpy()
    x[217, 1] = math.nan
    with pytest.raises(ValueError, match="train has NaN or infinite values, first in row 217"):
        fit(small(), mapped(tmp_path / "x.npy", x), steps=20, batch_size=32, **QUIET)
    with pytest.raises(ValueError, match=r"validation has NaN or infinite .* in row 217"):
        fit(small(), rows(), mapped(tmp_path / "v.npy", x), steps=1, **QUIET)


@pytest.mark.parametrize(
    "fit_map", [standardise, whiten, extent, inside(Bounded([0.0, None], [None, None]), whiten)]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_name_a_streamed_row_that_is_not_finite(fit_map, value, tmp_path):
    x = rows().abs().numpy()
    x[217, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite values, first in row 217") as caught:
        fit_map(mapped(tmp_path / "x.npy", x))
    assert "\n" not in str(caught.value)


def test_arrays_that_cannot_be_written_to():
    x = rows().numpy()
    x.flags.writeable = False
    fit(small(), x, steps=1, **QUIET)
    fit(small(), (x, None), steps=1, **QUIET)
    fit(small(), (x,), steps=1, **QUIET)


def test_what_is_neither_tensor_nor_array_is_refused():
    for data in ([[0.0, 1.0]], ([0.0], [1.0]), (rows(), rows(), rows())):
        with pytest.raises(TypeError, match="must be a tensor, an array, a pair") as caught:
            fit(small(), data, steps=1, **QUIET)
        assert "\n" not in str(caught.value)


def continuous():
    torch.manual_seed(0)
    return FFJORD(
        2,
        hidden=(4,),
        blocks=2,
        batch_norm=True,
        training_solver=Lagged("bosh3", 1e-3),
        evaluation_solver=FixedGrid("rk4", 4),
    )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("build", [lambda: small(batch_norm=True), continuous])
def test_each_batch_norm_stores_the_statistics_of_what_it_is_given(build, streamed, tmp_path):
    flow, x = build().double(), rows(5000).double()
    flow = Flow(Chain(BatchNorm(2).double(), flow.bijector))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    given = []
    norms = [part for part in flow.modules() if isinstance(part, BatchNorm)]
    data = mapped(tmp_path / "x.npy", x.numpy()) if streamed else x
    state = torch.get_rng_state()
    refresh(flow, rows_for(flow, data, "train"))
    assert torch.equal(state, torch.get_rng_state())
    handles = [
        norm.register_forward_pre_hook(lambda *_: pytest.fail("the other way round"))
        for norm in norms
    ]
    for norm in norms:
        inverse = norm.inverse
        norm.inverse = lambda v, c=None, inverse=inverse: given.append(v) or inverse(v, c)
    with torch.no_grad(), evaluating(flow):
        flow.bijector.inverse(x)
    for handle in handles:
        handle.remove()
    assert len(given) == len(norms) == 3
    for norm, value in zip(reversed(norms), given, strict=True):
        torch.testing.assert_close(norm.mean, value.mean(0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(norm.variance, value.var(0, correction=0), rtol=1e-9, atol=1e-9)


def test_a_batch_norm_elsewhere_keeps_its_running_averages():
    norm = BatchNorm(2)
    norm.mean += 3
    flow = Flow(Chain(BatchNorm(2), Inverse(norm)))
    refresh(flow, rows_for(flow, rows(), "train"))
    assert norm.mean.tolist() == [3, 3]
    assert flow.bijector.parts[0].batches == 1


def test_running_averages_come_back():
    flow = small(batch_norm=True)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    with preserved(flow):
        refresh(flow, rows_for(flow, rows(), "train"))
        assert not torch.equal(
            flow.state_dict()["bijector.parts.0.mean"], before["bijector.parts.0.mean"]
        )
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_best_state_holds_statistics_of_all_rows_and_training_its_own(ema, tmp_path):
    settings = {"steps": 30, "batch_size": 32, "schedule": "constant", "ema": ema, **QUIET}
    often, seldom, parted = (small(batch_norm=True) for _ in range(3))
    fit(often, rows(), validate_every=5, **settings)
    fit(seldom, rows(), validate_every=30, **settings)
    assert torch.equal(weights(often), weights(seldom)), "validation leaves training alone"
    again = {name: value.clone() for name, value in often.state_dict().items()}
    refresh(often, rows_for(often, rows(), "train"))
    for name, value in often.state_dict().items():
        assert torch.equal(value, again[name])
    path = tmp_path / "checkpoint.pt"
    for steps in (12, 30):
        fit(parted, rows(), validate_every=5, checkpoint=path, **{**settings, "steps": steps})
    for name, value in parted.state_dict().items():
        assert torch.equal(value, again[name])
