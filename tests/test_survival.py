"""Survival methods against output of R's package survival, pasted with the call that made it, and by hand."""

import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_leukemia, load_lung
from lifelines.utils import concordance_index

from mtvlib.errors import InputError
from mtvlib.survival import (
    CannotEstimateError,
    comparison,
    concordance,
    concordance_interval,
    cox_hazard_ratio,
    curves,
    kaplan_meier,
    logrank,
    no_comparison,
)

# R: aml (acute myelogenous leukaemia, Miller 1997), 11 maintained and 12 not maintained.
AML_MONTHS = [9, 13, 13, 18, 23, 28, 31, 34, 45, 48, 161, 5, 5, 8, 8, 12, 16, 23, 27, 30, 33, 43, 45]
AML_DEATH = [1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
AML_GROUP = ["maintained"] * 11 + ["not"] * 12


@pytest.fixture
def lung():
    return load_lung()


# --- Cox


def test_cox_lung_against_R(lung):  # noqa: N802
    """
    > summary(coxph(Surv(time, status) ~ sex, data = lung))
      n= 228, number of events= 165
             coef exp(coef) se(coef)      z Pr(>|z|)
    sex -0.5310    0.5880   0.1672 -3.176  0.00149 **
        exp(coef) exp(-coef) lower .95 upper .95
    sex     0.588      1.701    0.4237     0.816
    """
    cox = cox_hazard_ratio(lung["time"], lung["status"], lung["sex"] == 2)
    assert cox.hr == pytest.approx(0.5880, abs=5e-5)
    assert cox.ci95 == pytest.approx((0.4237, 0.816), abs=5e-5)
    assert cox.p == pytest.approx(0.00149, abs=5e-6)
    assert (cox.n, cox.events) == (228, 165)


def test_cox_with_many_ties_against_R():  # noqa: N802
    """
    > coxph(Surv(time, cens) ~ treat, data = MASS::gehan)     # ties by Efron, 17 distinct times of 30 events
                   coef exp(coef) se(coef)    z       p
    treatcontrol 1.572     4.817    0.412 3.81 0.00014
    """
    gehan = load_leukemia()
    cox = cox_hazard_ratio(gehan["t"], gehan["status"], gehan["Rx"])
    assert np.log(cox.hr) == pytest.approx(1.572, abs=5e-4)
    assert cox.hr == pytest.approx(4.817, abs=5e-4)
    assert np.log(cox.ci95[1] / cox.ci95[0]) / (2 * 1.959964) == pytest.approx(0.412, abs=5e-4)
    assert cox.p == pytest.approx(0.00014, abs=5e-6)


def test_cox_by_hand():
    """Deaths at 1 (high; at risk 2 + 2), 2 (low; 1 + 2): the score 1 - 2h/(2h+2) - h/(h+2) is zero at sqrt(2)."""
    cox = cox_hazard_ratio([1, 2, 3, 3], [1, 1, 0, 0], [1, 0, 1, 0])
    assert cox.hr == pytest.approx(np.sqrt(2), rel=1e-8)


def test_a_death_with_the_last_of_the_other_group_still_counts():
    """Death at 3 (low; at risk 2 + 2) and 5 (high; 2 + 1, the last low one): 1/(2h+1) = h/(h+1), so h = 1 / sqrt(2)."""
    cox = cox_hazard_ratio([3, 5, 5, 8], [1, 0, 1, 0], [0, 0, 1, 1])
    assert cox.hr == pytest.approx(1 / np.sqrt(2), rel=1e-8)


def test_exchanging_the_groups_inverts_the_ratio(lung):
    low, high = (cox_hazard_ratio(lung["time"], lung["status"], lung["sex"] == sex) for sex in (1, 2))
    assert low.hr == pytest.approx(1 / high.hr)
    assert low.ci95 == pytest.approx((1 / high.ci95[1], 1 / high.ci95[0]))
    assert low.p == pytest.approx(high.p)


def test_a_death_at_month_zero_and_all_deaths_are_sound():
    cox = cox_hazard_ratio([0, 0, 3, 4], [1, 1, 1, 1], [1, 0, 1, 0])
    assert (cox.n, cox.events) == (4, 4)
    assert cox.hr == pytest.approx(2, rel=1e-8)


# --- what cannot be estimated

MONTHS, HIGH = [6, 7, 8, 9, 10, 11], [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("months", "death", "high_risk", "reason"),
    [
        (MONTHS, [0] * 6, HIGH, "nobody died"),
        (MONTHS, [1] * 6, [1] * 6, "everybody is in the high-risk group"),
        (MONTHS, [1] * 6, [0] * 6, "everybody is in the low-risk group"),
        (MONTHS, [1, 0, 1, 0, 1, 0], HIGH, "only patients of the high-risk group died"),
        (MONTHS, [0, 1, 0, 1, 0, 1], HIGH, "only patients of the low-risk group died"),
        ([1, 2, 3, 7, 8, 9], [1] * 6, [1, 1, 1, 0, 0, 0], "only patients of the high-risk group died"),
        ([1, 2, 3, 7, 8, 9], [0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0], "nobody died while both groups were at risk"),
        ([], [], [], "no patients"),
        ([7], [1], [1], "everybody is in the high-risk group"),
    ],
)
def test_no_hazard_ratio_and_why(months, death, high_risk, reason):
    with pytest.raises(CannotEstimateError, match=reason):
        cox_hazard_ratio(months, death, high_risk)


@pytest.mark.parametrize(
    ("months", "death", "high_risk", "problem"),
    [
        (MONTHS, [1] * 5, HIGH, "death has 5 values, months has 6"),
        (MONTHS, [1] * 6, HIGH[:4], "high_risk has 4 values, months has 6"),
        ([-1, *MONTHS[1:]], [1] * 6, HIGH, "months is negative"),
        ([np.nan, *MONTHS[1:]], [1] * 6, HIGH, "months holds a missing"),
        ([np.inf, *MONTHS[1:]], [1] * 6, HIGH, "months holds a missing or infinite"),
        (MONTHS, [1, None, 1, 0, 1, 0], HIGH, "death holds a missing"),
        (MONTHS, [1, 2, 1, 0, 1, 0], HIGH, "death must be 0 or 1"),
        (MONTHS, [1] * 6, [0.5, *HIGH[1:]], "high_risk must be 0 or 1"),
        (["six", *MONTHS[1:]], [1] * 6, HIGH, "months must be numbers"),
        ([MONTHS], [1] * 6, HIGH, "one dimension"),
    ],
)
def test_malformed_data_are_refused(months, death, high_risk, problem):
    with pytest.raises(InputError, match=problem) as caught:
        cox_hazard_ratio(months, death, high_risk)
    assert not isinstance(caught.value, CannotEstimateError)


def test_no_warning_reaches_the_user(lung, recwarn):
    cox_hazard_ratio(lung["time"], lung["status"], lung["sex"] == 2)
    with pytest.raises(CannotEstimateError):
        cox_hazard_ratio(MONTHS, [1, 0, 1, 0, 1, 0], HIGH)
    assert not [warning for warning in recwarn if "lifelines" in str(warning.filename)]


# --- log-rank


def test_logrank_lung_against_R(lung):  # noqa: N802
    """
    > survdiff(Surv(time, status) ~ sex, data = lung)
            N Observed Expected (O-E)^2/E (O-E)^2/V
    sex=1 138      112     91.6      4.55      10.3
    sex=2  90       53     73.4      5.68      10.3
     Chisq= 10.3  on 1 degrees of freedom, p= 0.00131
    """
    test = logrank(lung["time"], lung["status"], lung["sex"])
    assert (test.chi2, test.df) == (pytest.approx(10.3267, abs=5e-5), 1)
    assert test.p == pytest.approx(0.00131116, abs=5e-9)


def test_logrank_aml_against_R():  # noqa: N802
    """
    > survdiff(Surv(time, status) ~ x, data = aml)
     Chisq= 3.4  on 1 degrees of freedom, p= 0.07
    """
    test = logrank(AML_MONTHS, AML_DEATH, AML_GROUP)
    assert test.chi2 == pytest.approx(3.4, abs=0.05)
    assert test.p == pytest.approx(0.07, abs=0.005)


def test_logrank_by_hand():
    """Deaths at 1 (one of 2 + 2) and 2 (one of 1 + 2): O - E = 1 - 1/2 - 1/3, V = 1/4 + 2/9."""
    test = logrank([1, 2, 3, 3], [1, 1, 0, 0], ["a", "b", "a", "b"])
    assert test.chi2 == pytest.approx((1 / 6) ** 2 / (1 / 4 + 2 / 9))


def test_logrank_of_three_groups_has_two_degrees_of_freedom(lung):
    known = lung.dropna(subset="ph.ecog").query("`ph.ecog` < 3")
    test = logrank(known["time"], known["status"], known["ph.ecog"])
    assert test.df == 2
    assert test.p < 0.001


@pytest.mark.parametrize(
    ("death", "group", "reason"),
    [
        ([0] * 4, [0, 1, 0, 1], "nobody died"),
        ([1] * 4, ["a"] * 4, "one group only"),
        ([0, 0, 1, 1], [0, 0, 1, 1], "nobody died while both"),
    ],
)
def test_no_logrank_and_why(death, group, reason):
    with pytest.raises(CannotEstimateError, match=reason):
        logrank([1, 2, 3, 4], death, group)


@pytest.mark.parametrize(("group", "problem"), [([0, 1], "group has 2 values"), ([0, 1, None, 1], "missing value")])
def test_malformed_groups_are_refused(group, problem):
    with pytest.raises(InputError, match=problem):
        logrank([1, 2, 3, 4], [1] * 4, group)


# --- concordance


def test_concordance_against_R(lung):  # noqa: N802
    """
    > summary(coxph(Surv(time, status) ~ sex, data = lung))$concordance     # 0.579 (se = 0.021)
    > summary(coxph(Surv(time, status) ~ age, data = lung))$concordance     # 0.55  (se = 0.025)
    """
    by_sex = concordance_interval(lung["time"], lung["status"], lung["sex"] == 1)
    by_age = concordance_interval(lung["time"], lung["status"], lung["age"])
    assert (round(by_sex.c, 3), round(by_sex.se, 3)) == (0.579, 0.021)
    assert (round(by_age.c, 3), round(by_age.se, 3)) == (0.550, 0.025)
    assert by_age.ci95 == pytest.approx((by_age.c - 1.959964 * by_age.se, by_age.c + 1.959964 * by_age.se))


def test_concordance_by_hand():
    """Comparable: 1-2, 1-3, 1-4 (death at 1) and 3-4 (death at 3); 1-3 is a tie in risk, 3-4 the wrong way round."""
    assert concordance([1, 2, 3, 4], [1, 0, 1, 0], [3, 1, 3, 4]) == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def test_concordance_of_perfect_and_reversed_risk():
    months, death = [5, 1, 3, 2, 4], [0, 1, 1, 1, 1]
    assert concordance(months, death, [1, 5, 3, 4, 2]) == 1
    assert concordance(months, death, [5, 1, 3, 2, 4]) == 0
    assert concordance(months, death, [7] * 5) == 0.5


def test_concordance_of_tied_times():
    """A death and a censoring at the same time are comparable, two deaths are not."""
    assert concordance([4, 4], [1, 0], [2, 1]) == 1
    with pytest.raises(CannotEstimateError, match="comparable"):
        concordance([4, 4], [1, 1], [2, 1])


def test_concordance_agrees_with_lifelines_on_ties(monkeypatch):
    random = np.random.default_rng(11)
    months, death, risk = random.integers(1, 12, 200), random.integers(0, 2, 200), random.integers(0, 9, 200)
    expected = concordance_index(months, -risk, death)
    assert concordance(months, death, risk) == pytest.approx(expected)
    monkeypatch.setattr("mtvlib.survival.PAIRS_AT_ONCE", 1500)  # blocks of seven rows
    assert concordance(months, death, risk) == pytest.approx(expected)


# --- Kaplan-Meier


def test_kaplan_meier_aml_against_R():  # noqa: N802
    """
    > summary(survfit(Surv(time, status) ~ x, data = aml))     # x=Maintained
     time n.risk n.event survival std.err
        9     11       1    0.909  0.0867
       13     10       1    0.818  0.1163
       18      8       1    0.716  0.1397
       23      7       1    0.614  0.1526
       31      5       1    0.491  0.1642
       34      4       1    0.368  0.1627
       48      2       1    0.184  0.1535
    """
    curve = kaplan_meier(AML_MONTHS[:11], AML_DEATH[:11])
    deaths = curve[curve["events"] > 0]
    assert deaths["months"].tolist() == [9, 13, 18, 23, 31, 34, 48]
    assert deaths["at_risk"].tolist() == [11, 10, 8, 7, 5, 4, 2]
    assert deaths["survival"].round(3).tolist() == [0.909, 0.818, 0.716, 0.614, 0.491, 0.368, 0.184]
    std_err = np.array([0.0867, 0.1163, 0.1397, 0.1526, 0.1642, 0.1627, 0.1535])
    log_s = np.log(deaths["survival"])
    half = 1.959964 * std_err / (deaths["survival"] * log_s)  # log(-log S), R's conf.type = "log-log"
    assert deaths["low"].to_numpy() == pytest.approx(np.exp(log_s * np.exp(-half)).to_numpy(), abs=1e-3)
    assert deaths["high"].to_numpy() == pytest.approx(np.exp(log_s * np.exp(half)).to_numpy(), abs=1e-3)


def test_kaplan_meier_starts_at_one_and_counts_everybody():
    curve = kaplan_meier([3, 3, 5, 8], [1, 0, 0, 1])
    assert curve["months"].tolist() == [0, 3, 5, 8]
    assert curve["survival"].tolist() == pytest.approx([1, 0.75, 0.75, 0])
    assert curve["at_risk"].tolist() == [4, 4, 2, 1]
    assert curve[["events", "censored"]].sum().tolist() == [2, 2]
    assert curve[["low", "high"]].iloc[[0, -1]].isna().all(axis=None)  # no interval where survival is 1 or 0


def test_kaplan_meier_without_deaths_stays_at_one():
    curve = kaplan_meier([3, 5], [0, 0])
    assert curve["survival"].tolist() == [1, 1, 1]


# --- both tools at one cutoff


def test_comparison_by_hand():
    months, death = np.array([10.0, 20, 30, 40, 50, 60]), np.array([1.0, 1, 0, 1, 0, 1])
    man, cnn = np.array([30.0, 5, 20, 6, 21, 10]), np.array([28.0, 12, 19, 5, 9, 10])
    block = comparison(list("abcdef"), months, death, man, cnn, cutoff_ml=10)
    assert block["discordant_patients"] == ["b", "e"]  # exactly the cutoff is low risk, as in f
    assert block["discordant"] == pytest.approx(2 / 6)
    assert block["discordant_ci95"] == pytest.approx([0.0968, 0.7000], abs=1e-4)
    assert (block["n_discordant_high_by_man"], block["n_discordant_high_by_cnn"]) == (1, 1)
    assert (block["man"]["n_high"], block["man"]["events_high"]) == (3, 1)
    assert block["man"]["hr"] == pytest.approx(cox_hazard_ratio(months, death, man > 10).hr)
    assert block["man"]["logrank_p"] == pytest.approx(logrank(months, death, man > 10).p)
    assert block["cnn"]["concordance"] == pytest.approx(concordance(months, death, cnn))


def test_comparison_gives_reasons_for_what_is_null():
    block = comparison(list("abc"), np.array([7.0, 8, 9]), np.zeros(3), np.full(3, 4.0), np.full(3, 4.0), cutoff_ml=4)
    for source in ("man", "cnn"):
        assert block[source]["hr"] is None
        assert block[source]["hr_reason"] == "no hazard ratio: nobody died"
        assert "nobody died" in block[source]["logrank_reason"]
        assert "comparable" in block[source]["concordance_reason"]
    assert block["discordant"] == 0
    assert set(no_comparison("why")["man"]) <= set(block["man"])


def test_curves_of_the_included_patients_by_risk():
    patients = pd.DataFrame(
        {
            "followup_months": [10.0, 20, 30, np.nan],
            "death": [1.0, 0, 1, np.nan],
            "survival_included": [True, True, True, False],
            "risk_man": ["high", "low", "low", None],
            "risk_cnn": ["low", "low", "low", None],
        }
    )
    found = curves(patients)
    assert {source: sorted(groups) for source, groups in found.items()} == {"man": ["high", "low"], "cnn": ["low"]}
    assert found["man"]["low"]["at_risk"].tolist() == [2, 2, 1]
