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


# --- several rows of one person


def of_mean(values):
    return {"mean": values[..., 0].mean(-1)}


def test_one_row_a_person_is_the_bootstrap_over_patients():
    assert Bootstrap.of_persons(100, 1, ["c", "a", "b"]) == Bootstrap(100, 1)


def test_rows_doubled_within_persons_give_the_interval_of_the_single_rows():
    values, persons = np.random.default_rng(5).random(30), [f"P{i}" for i in range(30)]
    doubled, by_person = np.tile(values, 2), Bootstrap.of_persons(500, 3, persons * 2)
    single = Bootstrap(500, 3).of_sums(with_count(values), mean)["mean"]
    assert by_person.of_sums(with_count(doubled), mean)["mean"].ci95 == pytest.approx(single.ci95)
    assert by_person.of_sample(doubled[:, None], of_mean)["mean"].ci95 == pytest.approx(single.ci95)
    as_if_independent = Bootstrap(500, 3).of_sums(with_count(doubled), mean)["mean"].ci95
    assert np.ptp(as_if_independent) == pytest.approx(np.ptp(single.ci95) / 2**0.5, rel=0.15)


def test_a_drawn_person_comes_with_all_rows():
    """Of A with 0 and B with 1, 1 there are four resamples: AA, AB, BA, BB, with means 0, 2/3, 2/3, 1."""
    values, by_person = np.array([1.0, 0, 1]), Bootstrap.of_persons(2000, 1, ["B", "A", "B"])
    means = [values[rows].mean() for rows in by_person._drawn_rows()]
    shares = [np.mean(np.isclose(means, value)) for value in (0, 2 / 3, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    of_sums = by_person.of_sums(with_count(values), mean)["mean"]
    of_sample = by_person.of_sample(values[:, None], of_mean)["mean"]
    assert of_sums.value == of_sample.value == pytest.approx(2 / 3)
    assert of_sums.ci95 == of_sample.ci95 == (0, 1)


def test_several_rows_of_the_only_person_have_no_interval():
    only = Bootstrap.of_persons(100, 1, ["A", "A"])
    for estimate in (only.of_sums(np.ones((2, 2)), mean), only.of_sample(np.ones((2, 1)), of_mean)):
        assert (estimate["mean"].value, estimate["mean"].ci95) == (1, None)


def test_a_share_of_everybody_counts_persons():
    """Ten rows of five persons, all 1: at least five persons, so Wilson's interval of 5 of 5."""
    by_person = Bootstrap.of_persons(100, 1, list("AABBCCDDEE"))
    everybody = by_person.of_sums(with_count(np.ones(10)), mean, shares={"mean": 10})["mean"]
    assert everybody.ci95 == pytest.approx(wilson(5, 5))


@pytest.mark.parametrize("sites", [None, list("abc") * 10])
def test_weights_are_the_same_resamples_as_sums(sites):
    counts = np.random.default_rng(2).normal(size=(30, 1))

    def of_weights(weights):
        return {"mean": (weights @ counts)[:, 0] / weights.sum(1)}

    bootstrap = Bootstrap.of_persons(200, 5, [f"P{i}" for i in range(30)], sites)
    by_sums = bootstrap.of_sums(
        np.hstack([counts, np.ones((30, 1))]), lambda sums: {"mean": sums[..., 0] / sums[..., 1]}
    )
    by_weights = bootstrap.of_weights(30, of_weights)["mean"]
    assert by_weights.value == pytest.approx(by_sums["mean"].value)
    assert by_weights.ci95 == pytest.approx(by_sums["mean"].ci95)


def test_weights_of_persons_are_those_of_all_their_rows():
    seen = []
    Bootstrap.of_persons(100, 5, list("aabc")).of_weights(4, lambda weights: seen.append(weights) or {})
    drawn = np.concatenate(seen[:-1])
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 1:].sum(1) == 3).all()  # three persons are drawn
    assert (seen[-1] == 1).all()


SITES = ["a"] * 3 + ["b"] * 2 + ["c"]
PERSONS = [f"P{i}" for i in range(6)]


def test_sites_are_drawn_first_and_their_patients_alike():
    """Patients of at most three drawn sites, of each site as often as it has patients."""
    (drawn,) = Bootstrap.of_persons(20_000, 1, PERSONS, SITES).draws(6)
    of_site = np.array(SITES)[drawn]
    assert drawn.shape == (20_000, 6)
    assert (of_site == of_site[:, :1]).all(axis=1).mean() > 3 / 27  # three times the same site: 3 of 27, or by chance
    # One draw of sites (i, j, k): the first patient is of "c" with probability (drawn c) / (sizes' sum).
    sizes = {"a": 3, "b": 2, "c": 1}
    triples = [(i, j, k) for i in sizes for j in sizes for k in sizes]
    expected = np.mean([t.count("c") / sum(sizes[site] for site in t) for t in triples])
    assert (of_site[:, 0] == "c").mean() == pytest.approx(expected, abs=0.01)
    within = np.bincount(drawn[of_site == "a"], minlength=3) / (of_site == "a").sum()
    assert within == pytest.approx([1 / 3] * 3, abs=0.01)


def test_fewer_than_three_sites_change_nothing():
    two = ["a", "a", "a", "b", "b", "b"]
    assert Bootstrap.of_persons(100, 1, PERSONS, two) == Bootstrap.of_persons(100, 1, PERSONS)
    assert Bootstrap.of_persons(100, 1, PERSONS, SITES) != Bootstrap.of_persons(100, 1, PERSONS)


def test_sites_that_differ_make_the_interval_wider():
    values = np.repeat([0.2, 0.5, 0.8], 20) + np.random.default_rng(0).normal(0, 0.01, 60)
    persons, sites = [str(i) for i in range(60)], list(np.repeat(["a", "b", "c"], 20))
    alone = Bootstrap.of_persons(2000, 1, persons).of_sums(with_count(values), mean)["mean"].ci95
    by_site = Bootstrap.of_persons(2000, 1, persons, sites).of_sums(with_count(values), mean)["mean"].ci95
    assert alone[1] - alone[0] < 0.15
    assert by_site == pytest.approx((0.2, 0.8), abs=0.05)  # 1 of 27 resamples draws one site three times: 2 x 3.7 %


def test_a_person_of_two_sites_counts_at_the_first():
    persons, sites = ["A", "A", "B", "C"], ["a", "b", "b", "c"]
    assert Bootstrap.of_persons(10, 1, persons, sites).sites == (0, 1, 2)
