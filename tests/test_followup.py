"""Follow-up, survival at a month and discordant patients, by hand."""

import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter
from lifelines.datasets import load_lung
from lifelines.utils import median_survival_times

from mtvlib.followup import Group, discordance, followup, log2_burden, median_followup, support, survival_estimate


def group(months, death, man=None, cnn=None):
    n = len(months)
    columns = {"patient": [f"P{i}" for i in range(n)], "followup_months": months, "death": death}
    man = man if man is not None else range(n)
    return Group(pd.DataFrame(columns | {"ttb_man_ml": man, "ttb_cnn_ml": man if cnn is None else cnn}))


def test_log2_burden():
    assert log2_burden([0, 1, 3, 7]).tolist() == [0, 1, 2, 3]


# --- how long


def test_median_followup_by_hand():
    """Censored at 10, 20, 30, 40, a death at 15: 1 - 1/5, then of three 2/3 of that (0.53), 1/2 of that (0.27)."""
    found = median_followup(np.array([10.0, 15, 20, 30, 40]), np.array([0, 1, 0, 0, 0], bool))
    assert found.value == 30


def test_median_followup_is_the_median_survival_with_death_turned_round():
    lung = load_lung()
    died = lung["status"].to_numpy() == 1
    found = median_followup(lung["time"].to_numpy(float), died)
    reverse = KaplanMeierFitter().fit(lung["time"], ~died)
    assert found.value == reverse.median_survival_time_
    assert found.ci95 == tuple(median_survival_times(reverse.confidence_interval_).iloc[0])


def test_followup_counts_deaths_and_patients_at_risk():
    block = followup(group([6, 12, 12, 20, 30], [1, 1, 0, 0, 1]), [12, 24, 60])
    assert (block["n"], block["events"]) == (5, 3)
    assert block["times"] == {
        "12": {"n_at_risk": 2, "events": 2},
        "24": {"n_at_risk": 1, "events": 2},
        "60": {"n_at_risk": 0, "events": 3},
    }


@pytest.mark.parametrize(
    ("months", "death", "value", "reason"),
    [
        ([5, 6, 7], [1, 1, 1], None, "deaths ended the follow-up"),
        ([5], [0], 5, ""),
        ([5, 5, 5], [0, 0, 0], 5, ""),
        ([1, 2, 3, 4], [0, 0, 0, 0], 2, ""),
        ([*range(1, 11)], [0] * 10, 5, ""),  # a product of fractions that is a half only but for rounding
    ],
)
def test_median_followup_at_the_edges(months, death, value, reason):
    found = median_followup(np.array(months, float), np.array(death, bool))
    assert found.value == value
    assert reason in (found.reason or "")


# --- survival at a month


def test_survival_at_a_month_by_hand():
    times, died = np.array([5.0, 10, 15, 20]), np.array([1, 0, 1, 0], bool)
    assert survival_estimate(times, died, 4).value == 1
    assert survival_estimate(times, died, 5).value == pytest.approx(0.75)
    assert survival_estimate(times, died, 16).value == pytest.approx(0.75 / 2)
    assert survival_estimate(times, died, 16).ci95[0] < 0.375 < survival_estimate(times, died, 16).ci95[1]
    assert survival_estimate(times, died, 21).reason == "nobody was followed up for 21 months"


def test_survival_after_the_last_death_is_known_to_be_zero():
    found = survival_estimate(np.array([5.0, 10]), np.ones(2, bool), 24)
    assert (found.value, found.ci95) == (0, None)


def test_support_needs_ten_at_risk_and_a_death():
    assert "reason" not in support(group([5, *range(13, 23)], [1] + [0] * 10), 12)
    assert "fewer than 10 patients" in support(group([5, *range(13, 22)], [1] + [0] * 9), 12)["reason"]
    assert support(group(range(13, 24), [0] * 11), 12)["reason"] == "nobody died within 12 months"


# --- discordant patients


def test_discordance_by_hand():
    """Cutoff 10. By man only: dead (man right), alive (cnn right), lost (unknown). By cnn only: dead (cnn right)."""
    man, cnn = [20, 20, 20, 5, 30, 1], [5, 5, 5, 20, 30, 1]
    block = discordance(group([12, 30, 12, 24, 12, 30], [1, 0, 0, 1, 1, 0], man, cnn), 10, 24)
    assert (block["n"], block["n_man_right"], block["n_cnn_right"], block["n_unknown"]) == (4, 1, 2, 1)
    assert block["cnn_right"] == pytest.approx(2 / 3)
    assert block["cnn_right_ci95"] == pytest.approx([0.2077, 0.9385], abs=1e-4)  # Wilson
    by_man = block["high_by_man"]
    assert [by_man[key] for key in ("n", "events", "n_dead", "n_alive")] == [3, 1, 1, 1]
    assert by_man["survival"] == pytest.approx(2 / 3)
    assert block["high_by_cnn"]["n"] == 1


def test_nobody_is_discordant():
    block = discordance(group([12, 30], [1, 0], [20, 1]), 10, 24)
    assert (block["n"], block["n_unknown"], block["cnn_right"]) == (0, 0, None)
    assert block["cnn_right_reason"] == "no discordant patient whose fate is known"
    assert block["high_by_man"]["survival_reason"] == "no patient"
