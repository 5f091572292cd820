"""The scikit-learn view: the interface's own checks, and densities in the units of X."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import cflows
from baselines.sklearn import DensityEstimator
from cflows import (
    FFJORD,
    Affine,
    ElementwiseAffine,
    FixedGrid,
    Flow,
    TableFlow,
    Whitening,
    standardise,
    whiten,
)


class Independent:
    """A flow that is done in no time: a learned scale and shift of each coordinate."""

    def __call__(self, features: int, depth: int | None) -> Flow:
        return Flow(ElementwiseAffine(features))

    def __repr__(self) -> str:
        return "independent"


independent = Independent()


def people(n: int = 400) -> np.ndarray:
    z = np.random.default_rng(0).normal(size=(n, 2))
    return np.column_stack([170 + 9 * z[:, 0], 70 + 4 * z[:, 0] + 7 * z[:, 1]])


# A row of weight k is k rows in expectation: which of these a batch holds is chance.
BY_CHANCE = {"check_sample_weight_equivalence_on_dense_data": "batches hold copies by chance"}


# Any other check that fails is a fault.
@parametrize_with_checks(
    [
        DensityEstimator("maf", depth=1, steps=2),
        DensityEstimator(independent, steps=2, preprocess="standardise"),
    ],
    expected_failed_checks=lambda estimator: BY_CHANCE if estimator.model == "maf" else {},
)
def test_scikit_learns_own_checks(estimator, check, request):
    assert " at 0x" not in request.node.name, "another process would collect other tests"
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> DensityEstimator:
    return DensityEstimator("maf", depth=2, steps=100).fit(people())


def test_densities_integrate_to_one_in_the_units_of_x(fitted):
    axes = torch.linspace(110, 230, 201).double(), torch.linspace(10, 130, 201).double()
    density = np.exp(fitted.score_samples(torch.cartesian_prod(*axes).numpy()))
    mass = torch.trapezoid(
        torch.trapezoid(torch.tensor(density).reshape(201, 201), axes[1]), axes[0]
    )
    assert float(mass) == pytest.approx(1.0, abs=2e-3)


def test_sample_weights_count_in_map_training_and_score():
    X = np.concatenate([people(), people() + 100])
    weights = np.repeat([1.0, 0.0], 400)
    # One of these rows is enough to be no equal weight.
    weights[0] = 1.5
    for preprocess in ("standardise", "whiten", "auto", "none"):
        estimator = DensityEstimator(independent, steps=20, preprocess=preprocess)
        alone = estimator.fit(X[:400], sample_weight=weights[:400]).score_samples(X)
        weighted = estimator.fit(X, sample_weight=weights)
        np.testing.assert_array_equal(weighted.score_samples(X), alone)
    expected = np.average(weighted.score_samples(X), weights=weights)
    assert weighted.score(X, sample_weight=weights) == pytest.approx(expected, abs=1e-12)
    plain = estimator.fit(people()).score_samples(people())
    equal = estimator.fit(people(), sample_weight=[3] * 400).score_samples(people())
    np.testing.assert_array_equal(plain, equal)


def test_a_weighted_map_is_that_of_repeated_rows():
    X = torch.tensor(people())
    k = torch.arange(400) % 3
    for fit_map in (standardise, whiten):
        weighted, repeated = fit_map(X, weights=k), fit_map(X.repeat_interleave(k, 0))
        streamed = fit_map(X.float().numpy(), weights=k)
        for name, value in weighted.state_dict().items():
            torch.testing.assert_close(value, repeated.state_dict()[name])
            torch.testing.assert_close(
                streamed.state_dict()[name].double(), value, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(399), r"sample_weight must have shape \(400,\)"),
        (np.ones((400, 1)), r"sample_weight must have shape \(400,\)"),
        (-np.ones(400), "sample_weight must be finite and not negative, got -1 in row 0"),
        (np.zeros(400), "sample_weight are all zero"),
        (np.eye(400)[7], "leaves one row"),
    ],
)
def test_sample_weights_that_cannot_be_used(weights, message):
    with pytest.raises(ValueError, match=message):
        DensityEstimator(independent, steps=1).fit(people(), sample_weight=weights)


def test_a_row_of_no_weight_may_lie_outside_of_the_bounds():
    estimator = DensityEstimator(independent, steps=2, bounds=[(100, None), (None, None)])
    X = people()
    X[7, 0] = 99
    estimator.fit(X, sample_weight=np.arange(400) != 7)
    with pytest.raises(ValueError, match="column 0 of X has 1 rows on or outside"):
        estimator.fit(X)


def test_samples_are_in_the_units_of_x(fitted):
    drawn = fitted.sample(4000, random_state=1)
    assert drawn.shape == (4000, 2)
    assert drawn.dtype == np.float64
    np.testing.assert_allclose(drawn.mean(0), people().mean(0), rtol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(people().T), rtol=0.25)


def test_seeds(fitted):
    state = torch.get_rng_state()
    assert np.array_equal(fitted.sample(5, random_state=0), fitted.sample(5, random_state=0))
    assert not np.array_equal(fitted.sample(5, random_state=0), fitted.sample(5, random_state=1))
    assert not np.array_equal(fitted.sample(5), fitted.sample(5))
    assert fitted.sample().shape == (1, 2)
    found = [
        DensityEstimator("maf", depth=1, steps=3, random_state=seed).fit(people()).score(people())
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_score_is_the_mean_log_density_of_the_flow(fitted):
    scores = fitted.score_samples(people())
    assert fitted.score(people()) == pytest.approx(scores.mean(), rel=1e-12)
    expected = fitted.flow_.log_prob(torch.tensor(people()))
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=1e-10)
    gaussian = torch.distributions.MultivariateNormal(
        torch.tensor(people().mean(0)), torch.tensor(np.cov(people().T))
    )
    assert fitted.score(people()) > float(gaussian.log_prob(torch.tensor(people())).mean()) - 0.1


def test_grid_search_over_depth():
    search = GridSearchCV(DensityEstimator("nice", steps=3), {"depth": [1, 2]}, cv=2)
    search.fit(people(200))
    assert search.best_params_["depth"] in (1, 2)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    flows = [
        clone(search.best_estimator_).set_params(depth=depth).fit(people(50)).flow_
        for depth in (1, 2)
    ]
    sizes = [sum(p.numel() for p in flow.parameters()) for flow in flows]
    assert sizes[0] < sizes[1]


def test_grid_search_finds_what_fits():
    """Scales of each coordinate alone fit correlated rows only behind whitening."""
    search = GridSearchCV(
        DensityEstimator(independent, steps=3), {"preprocess": ["standardise", "whiten"]}, cv=2
    ).fit(people())
    assert search.best_params_ == {"preprocess": "whiten"}
    assert search.best_score_ == pytest.approx(search.best_estimator_.score(people()), abs=0.2)


def test_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), DensityEstimator(independent, steps=2))
    assert pipeline.fit(people()).score_samples(people()).shape == (400,)


@pytest.mark.parametrize(
    ("preprocess", "part", "name"),
    [
        ("whiten", Whitening, "whiten"),
        ("standardise", Affine, "standardise"),
        ("auto", Whitening, "whiten"),
        ("none", None, "none"),
    ],
)
def test_the_map_in_front(preprocess, part, name):
    found = DensityEstimator(independent, steps=5, preprocess=preprocess).fit(people())
    assert found.preprocess_ == name
    maps = [type(m) for m in found.flow_.modules() if isinstance(m, Affine | Whitening)]
    assert maps == ([part] if part else [])


def test_double_precision_holds_what_single_does_not():
    X = people() + np.array([1.7e9, 0.0])
    found = DensityEstimator(independent, steps=5, dtype="float64").fit(X)
    np.testing.assert_allclose(found.sample(500, 0).std(0), X.std(0), rtol=0.2)
    single = DensityEstimator(independent, steps=5, dtype="float32").fit(people())
    assert {p.dtype for p in single.flow_.parameters()} == {torch.float32}
    assert single.score_samples(people()).dtype == np.float64


def test_names_go_into_the_flow_and_the_flow_into_a_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(people(), columns=["height", "weight"])
    found = DensityEstimator("maf", depth=1, steps=2).fit(frame)
    found.flow_.save(tmp_path / "m")
    flow = cflows.load(tmp_path / "m")
    assert isinstance(flow, TableFlow)
    assert flow.columns == ("height", "weight")
    np.testing.assert_array_equal(
        flow.log_prob(torch.tensor(people())).detach().numpy(), found.score_samples(frame)
    )
    with pytest.raises(ValueError, match="feature names should match"):
        found.score_samples(frame[["weight", "height"]])


def test_pickled(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.score_samples(people()), fitted.score_samples(people()))


def test_few_rows_have_no_validation():
    found = DensityEstimator(independent, steps=2).fit(people(12))
    assert found.history_.best_validation is None
    assert DensityEstimator(independent, steps=2).fit(people(20)).history_.best_validation
    with pytest.warns(UserWarning, match="no validation rows to choose by"):
        DensityEstimator(independent, steps=2, preprocess="auto").fit(people(12))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"model": "mfa"}, "did you mean maf"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        (
            {"preprocess": "pca"},
            "preprocess must be one of auto, standardise, whiten, gaussianise, none",
        ),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie in"),
    ],
)
def test_bad_parameters(parameters, words):
    estimator = DensityEstimator(**{"model": independent, "steps": 2, **parameters})
    with pytest.raises(ValueError, match=words):
        estimator.fit(people(30))


@pytest.mark.parametrize("n", [0, -1, 1.5, "3"])
def test_bad_numbers_of_samples(fitted, n):
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 1"):
        fitted.sample(n)


def test_not_fitted_yet():
    for call in (lambda e: e.sample(), lambda e: e.score(people())):
        with pytest.raises(NotFittedError):
            call(DensityEstimator())


def test_a_constant_column_is_named():
    X = people()
    X[:, 1] = 3.0
    with pytest.raises(ValueError, match="column 1 of the rows is constant"):
        DensityEstimator(steps=2).fit(X)


@pytest.mark.parametrize("module", ["cflows", "baselines", "baselines.harness.cli"])
def test_importing_the_package_does_not_import_scikit_learn(module):
    code = f"import sys, {module}; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_training_that_gains_nothing_warns(monkeypatch):
    def spoilt(*arguments, **settings):
        history = cflows.fit(*arguments, **settings)
        history.best_step, history.best_validation = 0, history.records[0].validation
        return history

    monkeypatch.setattr("cflows.training.pipeline.fit", spoilt)
    with pytest.warns(UserWarning, match="gained nothing over a Gaussian: fewer layers"):
        DensityEstimator("nice", depth=1, steps=20).fit(people())


def test_samples_far_from_the_rows_warn(fitted):
    far = copy.deepcopy(fitted)
    low, high, spread = far.flow_.extent
    far.flow_.extent.copy_(torch.stack([low, low + 1e-3 * (high - low), spread]))
    with pytest.warns(UserWarning, match="50 of 50 draws lie far outside"):
        far.sample(50, random_state=0)


def test_an_evaluation_by_probes_reaches_the_estimator():
    def probed(features, depth):
        return FFJORD(
            features,
            hidden=(8,),
            evaluation_divergence="hutchinson",
            evaluation_probes=2,
            evaluation_solver=FixedGrid("rk4", 4),
        )

    estimator = DensityEstimator(probed, steps=3).fit(people(60))
    assert any(
        getattr(p, "evaluation_divergence", "") == "hutchinson" for p in estimator.flow_.modules()
    )
    scores = [estimator.score_samples(people(60)) for _ in range(2)]
    assert not np.array_equal(*scores)  # fresh probes


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="batch_size"):
        DensityEstimator("maf", depth=1, steps=1, batch_size=0).fit(people())
