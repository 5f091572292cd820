"""Fixed maps fitted to training rows, the choice between them, and column names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import cflows
from cflows import (
    Affine,
    Chain,
    ElementwiseAffine,
    Flow,
    TableFlow,
    TrainingError,
    Whitening,
    behind,
    choose,
    standardise,
    whiten,
)
from cflows.training import pipeline
from cflows.training.history import History, Record
from cflows.training.preprocessing import extent

KINDS = ["zca", "pca"]


def correlated(n: int = 500, d: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.randn(n, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64)
    scale = torch.logspace(-2, 2, d, dtype=torch.float64)
    return (5.0 + scale * rows).to(dtype)


def nearly_dependent(spread: float) -> torch.Tensor:
    x = torch.randn(1000, 3, dtype=torch.float64)
    return torch.cat([x, x[:, :1] + spread * torch.randn(1000, 1, dtype=torch.float64)], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_white_rows_have_identity_covariance(kind):
    rows = correlated()
    z = whiten(rows, kind=kind).inverse(rows)
    torch.testing.assert_close(z.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        torch.cov(z.T, correction=0), torch.eye(4).double(), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floor", [None, 1e-6])
def test_a_whitening_alone_is_the_full_covariance_gaussian(kind, floor):
    rows = correlated()
    gaussian = torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T, correction=0))
    flow = Flow(whiten(rows, floor, kind=kind))
    torch.testing.assert_close(flow.log_prob(rows), gaussian.log_prob(rows))
    torch.testing.assert_close(flow.bijector.forward(flow.bijector.inverse(rows)), rows)


@pytest.mark.parametrize("fit_map", [standardise, whiten])
def test_rows_on_the_disk_give_the_map_of_rows_in_memory(fit_map, tmp_path, monkeypatch):
    monkeypatch.setattr(
        cflows.training.preprocessing, "CHUNK", 300
    )  # 75 rows: the last chunk is shorter
    rows = correlated()
    np.save(tmp_path / "x.npy", rows.numpy())
    streamed = fit_map(np.load(tmp_path / "x.npy", mmap_mode="r")).state_dict()
    for name, value in fit_map(rows).state_dict().items():
        torch.testing.assert_close(streamed[name], value.float())


def test_zca_is_symmetric_in_standard_units_and_pca_is_ordered():
    rows = correlated()
    std = rows.std(0, correction=0)
    zca = whiten(rows, kind="zca").matrix / std[:, None]
    torch.testing.assert_close(zca, zca.T)
    pca = whiten(rows, kind="pca").matrix / std[:, None]
    variances = pca.square().sum(0)
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(variances.sum(), torch.tensor(4.0).double())  # the trace of P
    largest = pca.gather(0, pca.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_a_floor_counts_the_directions_it_raised():
    rows = nearly_dependent(1e-5)
    with pytest.warns(UserWarning, match=r"^1 of 4 directions have less than 1e-06 .*") as caught:
        flow = Flow(whiten(rows, 1e-6))
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert flow.log_prob(rows).isfinite().all()
    z = flow.bijector.inverse(rows)
    spread = torch.linalg.eigvalsh(torch.cov(z.T, correction=0))
    assert spread[0] < 1e-3  # the floored direction is not blown up to 1
    torch.testing.assert_close(spread[1:], torch.ones(3).double())


def test_a_floor_takes_more_columns_than_rows():
    rows = torch.randn(5, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match="4 of 8 directions"):
        flow = Flow(whiten(rows, 1e-6))
    assert flow.log_prob(rows).isfinite().all()


def test_floored_directions_survive_single_precision():
    rows = nearly_dependent(1e-5).float()
    with pytest.warns(UserWarning, match="1 of 4"):
        f = whiten(rows, 1e-6)
    assert f.matrix.dtype == torch.float32
    torch.testing.assert_close(f.forward(f.inverse(rows)), rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_maps_are_fitted_in_double_precision(scale):
    """Float32 sums of 10^5 rows far from zero lose the digits that the spread needs."""
    rows = (1000 + torch.randn(100_000, 2)) * scale
    for fitted in (standardise(rows), whiten(rows)):
        expected = rows.double().mean(0)
        torch.testing.assert_close(fitted.loc.double(), expected, rtol=1e-7, atol=0)
        z = fitted.double().inverse(rows.double())
        torch.testing.assert_close(z.std(0), torch.ones(2).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("fit_map", [standardise, whiten, lambda rows: whiten(rows, 1e-6)])
@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_a_constant_column_is_named(fit_map, value):
    rows = correlated()
    rows[:, 2] = value
    with pytest.raises(ValueError, match="column 2 of the rows is constant or not finite: drop"):
        fit_map(rows)


def test_wrong_arguments():
    rows = correlated()
    with pytest.raises(ValueError, match='"zca" or "pca", got \'cholesky\''):
        whiten(rows, kind="cholesky")
    for floor in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="floor must lie between 0 and 1"):
            whiten(rows, floor)
    with pytest.raises(ValueError, match="give a floor"):
        whiten(nearly_dependent(0.0))


def build(data_end: cflows.Bijector) -> Flow:
    return behind(Flow(ElementwiseAffine(data_end.features)), data_end)


def test_choose_takes_the_map_of_the_higher_validation_likelihood():
    """Independent scales behind the map: only whitening makes correlated rows independent."""
    rows = correlated(1000)
    choice = choose(build_double, rows[:800], rows[800:], steps=3, progress=False, device="cpu")
    assert choice.name == "whiten"
    assert isinstance(choice.map, Whitening)
    assert list(choice.scores) == ["whiten", "standardise", "gaussianise"]
    assert choice.scores["whiten"] > choice.scores["standardise"] > -math.inf
    # What does not make rows much likelier by itself is not trained.
    assert choice.scores["gaussianise"] == -math.inf
    only = choose(
        build_double,
        rows[:800],
        rows[800:],
        {"standardise": standardise},
        steps=3,
        progress=False,
        device="cpu",
    )
    assert isinstance(only.map, Affine)
    assert -math.inf < only.scores["standardise"] < choice.scores["whiten"]


@pytest.mark.parametrize(
    ("course", "taken"),
    [
        ([3.0, 3.0, 3.0, 3.0, 3.1], "standardise"),  # has come to its end, just below
        ([-9.0, -3.0, -1.0, 0.0, 3.0], "whiten"),  # has won three nats by the last doubling
        ([-9.0, 0.0, 2.9, 2.9, 2.9], "standardise"),  # has won nothing of late
    ],
)
def test_the_map_is_taken_whose_course_leads_higher(monkeypatch, course, taken):
    """Validations at steps 0, 10, 20, 40 and 80, behind whiten; behind standardise always 3.2."""
    rows, fit = correlated(), pipeline.fit
    steps = [0, 10, 20, 40, 80]
    courses = {"Whitening": course, "Affine": [3.2] * 5}

    def recorded(flow, *given, **settings):
        fit(flow, *given, **settings)
        values = courses[type(flow.bijector.parts[-1]).__name__]
        lines = [
            Record(step, 0.0, None, v, 0.0, 0.0) for step, v in zip(steps, values, strict=True)
        ]
        return History(lines, best_validation=max(values))

    monkeypatch.setattr(pipeline, "fit", recorded)
    maps = {"standardise": standardise, "whiten": whiten}
    choice = choose(build_double, rows, rows, maps, steps=1, progress=False, device="cpu")
    assert choice.name == taken


def test_a_map_that_bends_is_tried_where_it_wins_much():
    """Two columns in sixteen orders of magnitude: the least likely map is not trained."""
    rows = (3 * torch.randn(1000, 2, dtype=torch.float64)).exp()
    choice = choose(build_double, rows[:800], rows[800:], steps=3, progress=False, device="cpu")
    assert choice.name == "gaussianise"
    assert min(choice.scores.values()) == -math.inf


def test_a_warm_up_is_no_more_than_a_tenth_of_the_few_steps(monkeypatch):
    rows, taken = correlated(), []

    def recorded(*given, **settings):
        taken.append(settings["warmup"])
        return fit(*given, **settings)

    fit = pipeline.fit
    monkeypatch.setattr(pipeline, "fit", recorded)
    for warmup in (1000, 1, 0):
        choose(
            build_double,
            rows,
            rows,
            {"standardise": standardise},
            steps=20,
            warmup=warmup,
            device="cpu",
            progress=False,
        )
    assert taken == [2, 1, 0]


def test_a_bar_counts_the_choice_and_the_training_together(capsys):
    rows, settings = correlated(), {"steps": 50, "batch_size": 8, "device": "cpu"}
    whole = 50 * (pipeline.TRIED + 1)
    for preprocess, shown, rest in (
        ("auto", f"{whole}/{whole}", "/50 "),
        ("whiten", "50/50", "/2"),
    ):
        pipeline.fit_behind(build_double, rows, rows, preprocess, **settings)
        bars = capsys.readouterr().err
        assert shown in bars
        assert rest not in bars


def build_double(data_end: cflows.Bijector) -> Flow:
    return build(data_end).double()


def test_choose_leaves_out_what_cannot_be_fitted():
    rows = nearly_dependent(0.0)
    choice = choose(build_double, rows[:800], rows[800:], steps=2, progress=False, device="cpu")
    assert choice.name == "standardise"
    assert choice.scores["whiten"] == float("-inf")
    with pytest.raises(ValueError, match="linearly dependent"):
        choose(build_double, rows[:800], rows[800:], {"whiten": whiten}, steps=2, progress=False)
    with pytest.raises(ValueError, match="maps is empty"):
        choose(build_double, rows[:800], rows[800:], {})


def test_choose_raises_where_no_training_ends(monkeypatch):
    def broken(*args, **settings):
        raise TrainingError("the loss left the numbers")

    monkeypatch.setattr(pipeline, "fit", broken)
    rows = correlated()
    with pytest.raises(TrainingError, match="left the numbers"):
        choose(build_double, rows, rows)


def test_behind():
    core = Flow(ElementwiseAffine(2))
    assert behind(core, None) is core
    flow = behind(core, Affine([1.0, 2.0], [1.0, 1.0]))
    assert isinstance(flow.bijector, Chain)
    assert flow.base is core.base


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_maps_are_saved(kind, tmp_path):
    rows = correlated(dtype=torch.float32)
    flow = TableFlow(whiten(rows, kind=kind), columns=list("abcd")).eval()
    flow.save(tmp_path / "model")
    again = cflows.load(tmp_path / "model")
    assert isinstance(again, TableFlow)
    assert again.columns == tuple("abcd")
    assert torch.equal(again.log_prob(rows), flow.log_prob(rows))


def test_column_names():
    assert TableFlow(Affine([0.0, 0.0], [1.0, 1.0])).columns == ("x0", "x1")
    with pytest.raises(ValueError, match="3 column names for 1 features"):
        TableFlow(Affine([0.0], [1.0]), columns=["a", "b", "c"])
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        TableFlow(Affine([0.0, 0.0], [1.0, 1.0]), columns=["a", "a"])


def test_the_extent_of_mapped_rows_is_that_of_the_rows(tmp_path):
    rows = np.random.default_rng(0).normal(5, 2, (300, 3)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = extent(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    torch.testing.assert_close(mapped, extent(torch.from_numpy(rows)))
    torch.testing.assert_close(mapped[:2].numpy(), np.stack([rows.min(0), rows.max(0)]))
