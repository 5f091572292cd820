"""Rows of any make: what torch refuses in words of its own is converted, or named in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from baselines import MAF
from cflows import Affine, ElementwiseAffine, Flow, MixtureOfGaussians, fit, log_likelihood
from cflows.core.arguments import known, listed, nearest
from cflows.objectives import Objective

QUIET = {"steps": 5, "batch_size": 32, "progress": False}


def rows(n=100):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def small(**settings):
    torch.manual_seed(0)
    return MAF(2, layers=1, hidden=(8,), **settings)


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def trained(data, **settings):
    flow = small(**settings)
    fit(flow, data, **QUIET)
    return weights(flow)


X = rows().numpy()
ALIKE = {
    "big endian": X.astype(">f4"),
    "negative strides": X[::-1].copy()[::-1],
    "columns from behind": np.ascontiguousarray(X[:, ::-1])[:, ::-1],
    "column by column": np.asfortranarray(X),
    "objects": X.astype(object),
    "the widest float": X.astype(np.longdouble),
    "a mask of nothing": np.ma.array(X),
    "broadcast": np.broadcast_to(X, X.shape),
    "a dataset": TensorDataset(torch.from_numpy(X)),
}


@pytest.fixture(scope="module")
def plain():
    return trained(X)


@pytest.mark.parametrize("data", ALIKE.values(), ids=ALIKE)
def test_arrays_of_any_make_train_alike(data, plain):
    assert torch.equal(trained(data), plain)


def test_a_mapped_big_endian_file_trains_as_its_rows(tmp_path, plain):
    np.save(tmp_path / "x.npy", X.astype(">f4"))
    assert torch.equal(trained(np.load(tmp_path / "x.npy", mmap_mode="r")), plain)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.uint16, np.uint32, np.uint64, np.int64, bool]
)
def test_whole_numbers(dtype):
    whole = np.arange(200).reshape(100, 2) % 2
    assert torch.equal(trained(whole.astype(dtype)), trained(whole.astype(np.float32)))
    of_torch = torch.from_numpy(whole).to(torch.bool if dtype is bool else torch.int64)
    assert torch.equal(trained(of_torch), trained(whole.astype(np.float32)))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(rows())


GRAPH = nn.Linear(2, 3)(rows())
REFUSED = {
    "a stream": (Stream(), TypeError, "map-style Dataset, got Stream: .*torch.stack"),
    "a loader": (DataLoader(TensorDataset(rows())), TypeError, "got DataLoader"),
    "an iterator": (iter(rows()), TypeError, "must be a tensor, an array"),
    "a list": (rows().tolist(), TypeError, "got list: torch.as_tensor turns"),
    "a pair of lists": (([0.0], [1.0]), TypeError, r"got \(list, list\)"),
    "a record": (np.zeros(100, "f4,f4"), TypeError, "structured array with the fields f0, f1"),
    "words": (np.full((9, 2), "a"), TypeError, "holds <U1, not real numbers"),
    "objects": (np.full((9, 2), "a", dtype=object), TypeError, "objects that are not all real"),
    "times": (np.zeros((9, 2), "M8[s]"), TypeError, "not real numbers"),
    "complex": (X.astype(complex), TypeError, "not real numbers"),
    "a complex tensor": (rows().cfloat(), TypeError, "train is complex"),
    "a mask": (np.ma.masked_greater(X, 1), ValueError, "train has masked values: drop such rows"),
    "sparse": (rows().to_sparse(), TypeError, "no dense tensor: give"),
    "a graph": (rows() * torch.ones((), requires_grad=True), ValueError, r"detach\(\) it"),
    "a leaf": (rows().requires_grad_(), ValueError, "train carries a graph"),
}


@pytest.mark.parametrize(("data", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_on_is_named_in_one_line(data, error, message):
    with pytest.raises(error, match=message) as caught:
        fit(small(), data, **QUIET)
    assert "\n" not in str(caught.value)


def test_a_context_with_a_graph():
    with pytest.raises(ValueError, match=r"train's context carries a graph: .* into the flow"):
        fit(small(context_features=3), (rows(), GRAPH), **QUIET)
    fit(small(context_features=3), (rows(), GRAPH.detach()), **QUIET)
    with pytest.raises(ValueError, match=r"validation's context carries a graph"):
        fit(small(context_features=3), (rows(), GRAPH.detach()), (rows(), GRAPH), **QUIET)


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
def test_training_where_no_gradients_are_taken(within, plain):
    flow = small()
    with within():
        fit(flow, rows(), rows(), ema=0.9, **QUIET)
        assert not torch.is_grad_enabled()
    again = small()
    fit(again, rows(), rows(), ema=0.9, **QUIET)
    assert torch.equal(weights(flow), weights(again))


def test_a_flow_of_inference_mode_is_refused():
    with torch.inference_mode():
        flow = small()
        with pytest.raises(ValueError, match="build it outside"):
            fit(flow, rows(), **QUIET)


class Learned(Objective):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, flow, batch):
        return -(flow(*batch) * self.scale).mean()


def test_nothing_to_train_is_refused():
    for flow in (small().requires_grad_(False), Flow(Affine([0.0, 0.0], [1.0, 1.0]))):
        with pytest.raises(ValueError, match="there is nothing to train") as caught:
            fit(flow, rows(), **QUIET)
        assert "\n" not in str(caught.value)
        assert fit(flow, rows(), objective=Learned(), **QUIET).steps == 5
    base = MixtureOfGaussians(2, 2)
    assert fit(Flow(ElementwiseAffine(2).requires_grad_(False), base), rows(), **QUIET).steps == 5


def test_log_likelihood_of_arrays():
    flow = small(context_features=1)
    x, c = rows(), rows()[:, :1]
    found = log_likelihood(flow, x, c)
    for given in (X, X.astype(np.float64), X.astype(">f8"), X[::-1][::-1], X.astype(object)):
        assert torch.equal(log_likelihood(flow, given, c, batch_size=30), found)
        assert torch.equal(log_likelihood(flow, given, given[:, :1], batch_size=30), found)
    assert log_likelihood(flow.double(), X, X[:, :1]).dtype == torch.float64


def test_log_likelihood_of_one_row():
    flow = small(context_features=1)
    x, c = rows(), rows()[:, :1]
    found = log_likelihood(flow, x, c)
    for one in (x[3], X[3]):
        assert log_likelihood(flow, one, c[3]).shape == ()
        torch.testing.assert_close(log_likelihood(flow, one, c[3]), found[3])
    torch.testing.assert_close(log_likelihood(flow, x, c[3]), log_likelihood(flow, x, c[3:4]))
    assert log_likelihood(small(), torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (rows().tolist(), TypeError, "x must be a tensor or an array, got list"),
        (None, TypeError, "got NoneType"),
        (torch.tensor(1.0), ValueError, r"x must have shape \(N, D\) or \(D,\)"),
        (np.full((3, 2), "a"), TypeError, "not real numbers"),
        (rows().double(), TypeError, "the input is torch.float64, the flow is torch.float32"),
    ],
)
def test_what_log_likelihood_cannot_score(x, error, message):
    with pytest.raises(error, match=message) as caught:
        log_likelihood(small(), x)
    assert "\n" not in str(caught.value)


def test_names_within_messages():
    assert known("probe", "gaussian", ["rademacher", "gaussian"]) == "gaussian"
    with pytest.raises(ValueError, match="must be one of rademacher, gaussian; got 'normal'"):
        known("probe", "normal", ["rademacher", "gaussian"])
    assert nearest("powr", ["power", "gas"]) == "did you mean power? "
    assert nearest("x", ["power", "gas"]) == ""
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert listed(["a", "b"], 2) == "a, b"
