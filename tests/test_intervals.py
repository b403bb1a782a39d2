"""The bootstrap against formulas, scipy and its own direct form."""

import numpy as np
import pytest
from scipy import stats

from mtvlib import intervals
from mtvlib.intervals import Bootstrap, Estimate, ratio, wilson


def mean(sums):
    return {"mean": ratio(sums[..., 0], sums[..., 1])}


def with_count(values):
    return np.column_stack([values, np.ones(len(values))])


def test_interval_of_a_mean_is_near_the_formula():
    values = np.random.default_rng(0).normal(10, 2, 400)
    estimate = Bootstrap(4000, seed=1).of_sums(with_count(values), mean)["mean"]
    half = 1.96 * values.std(ddof=1) / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.ci95 == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_interval_of_a_mean_is_near_scipy():
    values = np.random.default_rng(2).exponential(3, 50)
    ours = Bootstrap(4000, seed=1).of_sums(with_count(values), mean)["mean"].ci95
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=5).confidence_interval
    assert ours == pytest.approx(tuple(theirs), rel=0.02)


def test_sums_and_samples_draw_the_same_patients():
    values = np.random.default_rng(3).random(37)
    of_sums = Bootstrap(500, seed=9).of_sums(with_count(values), mean)["mean"]
    of_sample = Bootstrap(500, seed=9).of_sample(values[:, None], lambda v: {"mean": v[..., 0].mean(-1)})["mean"]
    assert of_sums.ci95 == pytest.approx(of_sample.ci95)


def test_chunks_change_nothing(monkeypatch):
    values = with_count(np.random.default_rng(4).random(30))
    whole = Bootstrap(200, seed=1).of_sums(values, mean)
    monkeypatch.setattr(intervals, "CHUNK", 70)  # two resamples at a time
    assert [len(drawn) for drawn in Bootstrap(5, seed=1).draws(30)] == [2, 2, 1]
    assert Bootstrap(200, seed=1).of_sums(values, mean) == whole


def test_the_seed_decides():
    values = with_count(np.random.default_rng(4).random(30))
    assert Bootstrap(200, 1).of_sums(values, mean) == Bootstrap(200, 1).of_sums(values, mean)
    assert Bootstrap(200, 1).of_sums(values, mean) != Bootstrap(200, 2).of_sums(values, mean)


def test_every_resample_holds_n_patients():
    (drawn,) = Bootstrap(50, seed=1).draws(7)
    weights = intervals._how_often(drawn)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights[0].tolist() == np.bincount(drawn[0], minlength=7).tolist()


def test_one_patient_has_no_interval():
    estimate = Bootstrap(100, seed=1).of_sums(np.array([[3.0, 1.0]]), mean)["mean"]
    assert (estimate.value, estimate.ci95) == (3, None)
    assert estimate.entries("mean") == {
        "mean": 3,
        "mean_ci95": None,
        "mean_reason": "no interval: one patient cannot be resampled",
    }


def test_an_undefined_estimate_is_null_with_the_given_reason():
    estimates = Bootstrap(100, seed=1).of_sums(np.zeros((3, 2)), mean, {"mean": "nobody was measured"})
    assert estimates["mean"] == Estimate(None, None, "nobody was measured")


def test_an_estimate_that_is_often_undefined_has_no_interval():
    rare = np.array([[1.0, 1.0], *[[0.0, 0.0]] * 9])  # 0.9^10 = 35 % of all resamples miss that patient
    estimate = Bootstrap(2000, seed=1).of_sums(rare, mean)["mean"]
    assert (estimate.value, estimate.ci95) == (1, None)
    assert "undefined in 33% of the resamples" in estimate.reason


def test_shares_of_nobody_and_everybody_get_an_interval_with_width():
    everybody = Bootstrap(100, seed=1).of_sums(with_count(np.ones(10)), mean, shares={"mean": 10})["mean"]
    nobody = Bootstrap(100, seed=1).of_sums(with_count(np.zeros(10)), mean, shares={"mean": 10})["mean"]
    assert everybody.ci95 == pytest.approx((0.7225, 1), abs=1e-4)
    assert nobody.ci95 == pytest.approx((0, 0.2775), abs=1e-4)


def test_wilson_by_hand():
    """Newcombe 1998 (Stat Med 17:857), table I, method 3: 81 of 263 and 15 of 148, 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(0, 0) is None


def test_ratio_is_undefined_over_zero():
    assert ratio([1, 0, 3], [2, 0, 0]).tolist() == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
