"""Triage: who is corrected and what becomes of the cohort, on patients that can be worked out on paper."""

import numpy as np
import pandas as pd
import pytest

from mtvlib import triage
from mtvlib.intervals import Bootstrap, wilson

BOOTSTRAP = Bootstrap(200, 1)


def cohort(expected, dsc, man=None, cnn=None, both=None):
    n = len(dsc)
    volumes = {"ttb_man_ml": man or [10.0] * n, "ttb_cnn_ml": cnn or [10.0] * n}
    both = both or [10 * one for one in dsc]
    return pd.DataFrame({"expected_dsc": expected, "dsc_all": dsc, **volumes, "both_all_ml": both})


def curve(patients, order="uncertainty"):
    _, table = triage.triage(patients, BOOTSTRAP)
    return table[table["order"] == order].set_index("share")


@pytest.mark.parametrize(
    ("share", "n", "corrected"), [(0.2, 10, 2), (0.05, 10, 1), (0.5, 1, 1), (0.2, 2, 0), (0, 9, 0)]
)
def test_shares_are_rounded_to_patients_halves_up(share, n, corrected):
    assert triage.n_corrected(share, n) == corrected


def test_the_least_certain_is_corrected_first():
    patients = cohort([0.9, 0.2, 0.8, 0.7, 0.6], [0.9, 0.5, 0.0, 0.7, 0.6])
    row = curve(patients).loc[0.2]
    assert row["n_corrected"] == 1
    assert row["mean_dsc"] == pytest.approx((0.9 + 1 + 0 + 0.7 + 0.6) / 5)
    assert (row["failed"], row["failed_of_rest"]) == (0.2, 0.25)
    row = curve(patients, "worst_first").loc[0.2]
    assert row["mean_dsc"] == pytest.approx((0.9 + 0.5 + 1 + 0.7 + 0.6) / 5)
    assert (row["failed"], row["failed_of_rest"]) == (0, 0)


def test_a_corrected_patient_has_the_references_volume():
    patients = cohort([0.1, 0.9], [0.5, 0.8], man=[4.0, 10.0], cnn=[12.0, 10.0], both=[4.0, 8.0])
    before, after = curve(patients).loc[0], curve(patients).loc[0.5]
    assert before["cohort_dsc"] == pytest.approx(2 * 12 / (14 + 22))
    assert after["cohort_dsc"] == pytest.approx(2 * (4 + 8) / (14 + 4 + 10))


def test_nothing_is_corrected_at_zero_and_all_orders_agree():
    patients = cohort([0.3, 0.2, 0.9], [0.4, 0.0, 0.8])
    for order in triage.ORDERS:
        row = curve(patients, order).loc[0]
        assert (row["mean_dsc"], row["failed"]) == pytest.approx((0.4, 1 / 3))


def test_the_random_order_is_the_mean_over_all_orders():
    """Every pair of five patients corrected once: mean DSC and failures on average."""
    dsc = np.array([0.0, 0.5, 0.6, 0.7, 0.9])
    row = curve(cohort([0.5] * 5, dsc.tolist()), "random").loc[0.4]
    pairs = [[i, j] for i in range(5) for j in range(i)]
    after = np.tile(dsc, (len(pairs), 1))
    for changed, pair in zip(after, pairs, strict=True):
        changed[pair] = 1
    assert row["mean_dsc"] == pytest.approx(after.mean())
    assert row["failed"] == pytest.approx((after == 0).mean())
    assert row["failed_of_rest"] == pytest.approx(0.2)


def test_an_order_that_knows_all_gains_everything_and_a_reversed_one_loses():
    dsc = [0.1 * i for i in range(10)]
    best, _ = triage.triage(cohort(dsc, dsc), BOOTSTRAP)
    worst, _ = triage.triage(cohort(dsc[::-1], dsc), BOOTSTRAP)
    assert best["gain"] == pytest.approx(1)
    assert worst["gain"] == pytest.approx(-1)
    assert best["uncertainty"]["mean_dsc"] == pytest.approx((sum(dsc[2:]) + 2) / 10)
    assert best["nobody"]["mean_dsc"] == pytest.approx(0.45)


def test_where_all_patients_are_alike_the_order_makes_no_difference():
    block, _ = triage.triage(cohort([0.5] * 10, [0.8] * 10), BOOTSTRAP)
    assert (block["gain"], block["gain_reason"]) == (None, "the order makes no difference")


def test_without_failures_the_interval_is_wilsons_of_those_who_are_left():
    row = curve(cohort([0.1 * i for i in range(10)], [0.8] * 10)).loc[0.2]
    low, high = wilson(0, 8)
    assert (row["failed_of_rest_low"], row["failed_of_rest_high"]) == (low, high)
    assert row["failed_high"] == pytest.approx(high * 0.8)


def test_a_cohort_of_one():
    block, table = triage.triage(cohort([0.4], [0.0]), BOOTSTRAP)
    last = table[(table["order"] == "uncertainty") & (table["share"] == 0.5)].iloc[0]
    assert (last["n_corrected"], last["mean_dsc"], last["failed"]) == (1, 1, 0)
    assert np.isnan(last["failed_of_rest"])
    assert block["nobody"]["mean_dsc_ci95"] is None


def test_the_curve_has_intervals_and_no_randomness_of_its_own():
    patients = cohort([0.3, 0.2, 0.9, 0.5], [0.4, 0.0, 0.8, 0.6])
    _, table = triage.triage(patients, BOOTSTRAP)
    assert ((table["mean_dsc_low"] <= table["mean_dsc"]) & (table["mean_dsc"] <= table["mean_dsc_high"])).all()
    pd.testing.assert_frame_equal(table, triage.triage(patients, BOOTSTRAP)[1])
