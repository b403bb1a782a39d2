"""Discrimination against scikit-survival, by hand, and in resamples against the same patients written out."""

import tracemalloc

import numpy as np
import pytest
from lifelines.datasets import load_gbsg2

from mtvlib import discrimination
from mtvlib.discrimination import auc, brier, censoring, concordances
from mtvlib.survival import concordance

metrics = pytest.importorskip("sksurv.metrics")
surv = pytest.importorskip("sksurv.util").Surv


@pytest.fixture(scope="module")
def breast():
    """German Breast Cancer Study Group 2, 686 women: days, event and number of nodes; none leaves at an event's day."""
    table = load_gbsg2()
    died = table["cens"].to_numpy() == 1
    days = table["time"].to_numpy(float) + np.where(died, 0, 0.5)
    return days, died, table["pnodes"].to_numpy(float)


def one(n):
    return np.ones((1, n))


# --- against scikit-survival


def test_harrells_c(breast):
    times, died, risk = breast
    found = concordances(times, died, {"x": risk}, one(686), 2000.0)["harrell_c"]["x"]
    assert found == pytest.approx(metrics.concordance_index_censored(died, times, risk)[0], abs=1e-12)
    assert found == pytest.approx(concordance(times, died, risk), abs=1e-12)


@pytest.mark.parametrize("tau", [400.0, 1000.0, 2000.0])
def test_unos_c(breast, tau):
    times, died, risk = breast
    y = surv.from_arrays(died, times)
    found = concordances(times, died, {"x": risk}, one(686), tau)["uno_c"]["x"]
    assert found == pytest.approx(metrics.concordance_index_ipcw(y, y, risk, tau)[0], abs=1e-8)


@pytest.mark.parametrize("days", [200.0, 730.0, 1825.0])
def test_auc(breast, days):
    times, died, risk = breast
    y = surv.from_arrays(died, times)
    found = auc(times, died, {"x": risk}, one(686), days)["x"]
    assert found == pytest.approx(metrics.cumulative_dynamic_auc(y, y, risk, [days])[0][0], abs=1e-8)


@pytest.mark.parametrize("days", [200.0, 730.0, 1825.0])
def test_brier(breast, days):
    times, died, risk = breast
    y = surv.from_arrays(died, times)
    survival = np.exp(-days / 4000 * (1 + risk / 5))
    expected = metrics.brier_score(y, y, survival[:, None], [days])[1][0]
    assert brier(times, died, survival, one(686), days) == pytest.approx(expected, abs=1e-8)


def test_brier_with_the_censoring_of_other_patients(breast):
    times, died, risk = breast
    train, test = slice(None, 500), slice(500, None)
    y = surv.from_arrays(died, times)
    survival = np.exp(-0.2 * (1 + risk / 5))
    expected = metrics.brier_score(y[train], y[test], survival[test, None], [730.0])[1][0]
    theirs = censoring(times[train], died[train], one(500))
    found = brier(times[test], died[test], survival[test], one(186), 730.0, theirs)
    assert found == pytest.approx(expected, abs=1e-8)


# --- resamples


def test_weights_are_patients_written_out(breast):
    """A patient of weight 2 is two patients; one of weight 0 is absent."""
    times, died, risk = (values[:80] for values in breast)
    drawn = np.random.default_rng(4).integers(80, size=80)
    weights = np.bincount(drawn, minlength=80)[None].astype(float)
    risks, out = {"x": risk}, {"x": risk[drawn]}
    written = times[drawn], died[drawn]
    for kind in ("harrell_c", "uno_c"):
        expected = concordances(*written, out, one(80), 1500.0)[kind]["x"]
        assert concordances(times, died, risks, weights, 1500.0)[kind]["x"] == pytest.approx(expected, abs=1e-12)
    assert auc(times, died, risks, weights, 900)["x"] == pytest.approx(auc(*written, out, one(80), 900)["x"], abs=1e-12)
    survival = np.linspace(0.2, 0.9, 80)
    expected = brier(*written, survival[drawn], one(80), 900)
    assert brier(times, died, survival, weights, 900) == pytest.approx(expected, abs=1e-12)


def test_blocks_of_rows_change_nothing(breast, monkeypatch):
    times, died, risk = (values[:120] for values in breast)
    weights = np.random.default_rng(2).integers(0, 4, (7, 120)).astype(float)
    whole = concordances(times, died, {"x": risk}, weights, 1500.0), auc(times, died, {"x": risk}, weights, 900)
    monkeypatch.setattr(discrimination, "PAIRS_AT_ONCE", 500)
    parts = concordances(times, died, {"x": risk}, weights, 1500.0), auc(times, died, {"x": risk}, weights, 900)
    assert parts[0]["uno_c"]["x"] == pytest.approx(whole[0]["uno_c"]["x"])
    assert parts[1]["x"] == pytest.approx(whole[1]["x"])


def test_ten_thousand_patients_fit_in_little_memory():
    random = np.random.default_rng(1)
    times, died, risk = random.uniform(6, 100, 10_000), random.random(10_000) < 0.05, random.normal(size=10_000)
    tracemalloc.start()
    concordances(times, died, {"x": risk}, one(10_000), 60.0)
    auc(times, died, {"x": risk}, one(10_000), 60.0)
    peak_mb = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert peak_mb < 150  # all pairs of deaths and others at once would take 40 MB an array of bytes, 800 MB of floats


# --- by hand


def test_censoring_by_hand():
    """Leaving at 2 (of 3) and 4 (of 1, since the death at 4 came first): G is 2/3 after 2 and 0 after 4."""
    g = censoring(np.array([1.0, 2, 4, 4]), np.array([True, False, True, False]), one(4))
    assert g.before([1, 2, 3, 4]).tolist() == [pytest.approx([1, 1, 2 / 3, 2 / 3])]
    assert g.at([2, 4]).tolist() == [pytest.approx([2 / 3, 0])]


def test_unos_c_by_hand():
    """Deaths at 1 and 3 with G(1-) = 1, G(3-) = 2/3: pairs 1-2, 1-3, 1-4 weigh 1, 3-4 weighs 9/4; 1-3 is a tie."""
    times, died = np.array([1.0, 2, 3, 4]), np.array([True, False, True, False])
    risks = {"x": np.array([3.0, 1, 3, 4])}
    found = concordances(times, died, risks, one(4), 10.0)
    assert found["uno_c"]["x"] == pytest.approx((1 + 0.5) / (3 + 9 / 4))
    assert found["harrell_c"]["x"] == pytest.approx(1.5 / 4)
    before = concordances(times, died, risks, one(4), 3.0)  # only deaths before tau count
    assert before["uno_c"]["x"] == pytest.approx(1.5 / 3)


def test_a_death_counts_before_a_censoring_at_the_same_time():
    """G(2-) = 1 for the death at 2, where scikit-survival takes G(2) = 1/2."""
    times, died = np.array([2.0, 2, 5]), np.array([True, False, False])
    survival = np.array([0.4, 0.5, 0.9])
    assert brier(times, died, survival, one(3), 3) == pytest.approx((0.4**2 + 0.1**2 / 0.5) / 3)


def test_auc_by_hand():
    """At 3: dead are 1 and 3 (weights 1 and 4/3), alive 4 and 5; the death at 1 wins one pair and ties the other."""
    times, died = np.array([1.0, 2, 3, 4, 5]), np.array([True, False, True, True, False])
    found = auc(times, died, {"x": np.array([2.0, 0, 3, 2, 1])}, one(5), 3)["x"]
    g = 3 / 4  # one of the four at risk left at 2
    assert found == pytest.approx((1.5 + 2 / g) / (2 + 2 / g))


# --- what is undefined


def test_nothing_to_compare_is_undefined():
    times, risks = np.array([1.0, 2, 3]), {"x": np.arange(3.0)}
    nobody, everybody = np.zeros(3, bool), np.ones(3, bool)
    assert np.isnan(concordances(times, nobody, risks, one(3), 9)["uno_c"]["x"])
    assert np.isnan(auc(times, nobody, risks, one(3), 2)["x"])
    assert np.isnan(auc(times, everybody, risks, one(3), 3)["x"])  # nobody is left
    assert np.isnan(concordances(times[:1], everybody[:1], {"x": np.ones(1)}, one(1), 9)["harrell_c"]["x"])


def test_without_censoring_everything_is_a_plain_mean():
    times, died = np.array([1.0, 2, 3, 4]), np.ones(4, bool)
    survival = np.array([0.1, 0.2, 0.7, 0.9])
    assert brier(times, died, survival, one(4), 2.5) == pytest.approx(np.mean([0.01, 0.04, 0.09, 0.01]))


def test_brier_after_everybody_left_is_undefined():
    times, died = np.array([1.0, 2, 3]), np.array([True, False, False])
    assert np.isnan(brier(times, died, np.full(3, 0.5), one(3), 5))


def test_equal_burdens_are_a_half():
    times, died = np.arange(1.0, 21), np.tile([True, False], 10)
    found = concordances(times, died, {"x": np.full(20, 3.0)}, one(20), 30)
    assert (found["harrell_c"]["x"], found["uno_c"]["x"]) == (0.5, 0.5)
    assert auc(times, died, {"x": np.full(20, 3.0)}, one(20), 9)["x"] == pytest.approx(0.5)


def test_the_latest_time_with_enough_patients():
    times = np.arange(1.0, 31)
    assert discrimination.latest_supported(times, [12, 24], 10) == 21  # ten patients reached month 21
    assert discrimination.latest_supported(times, [12, 24], 3) == 24
    assert discrimination.latest_supported(times[:2], [12], 10) == 1
