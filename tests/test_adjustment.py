"""Adjusted model, sites and missing data against R's metafor, lifelines and by hand."""

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter

from mtvlib import adjustment
from mtvlib.cox import TooFewEventsError
from mtvlib.survival import CannotEstimateError


def patients(n=300, seed=3, **changes):
    random = np.random.default_rng(seed)
    ttb = np.exp(random.normal(2.4, 1, n))
    times, censored = random.exponential(60 * 1.5 ** -np.log2((ttb + 1) / 12)), random.uniform(10, 90, n)
    table = {
        "patient": [f"P{i:03d}" for i in range(n)],
        "site": random.choice(["a", "b", "c"], n, p=[0.6, 0.38, 0.02]),
        "ttb_man_ml": ttb,
        "ttb_cnn_ml": ttb * np.exp(random.normal(0, 0.2, n)),
        "followup_months": 6 + np.minimum(times, censored),
        "death": (times <= censored).astype(float),
        "survival_eligible": 1.0,
        "age": random.integers(40, 80, n).astype(float),
        "stage": random.choice(["I", "II", "III", "IVA", "IVB"], n),
        "hpv": random.choice(["positive", "negative", "unknown"], n, p=[0.4, 0.4, 0.2]),
    }
    return pd.DataFrame(table | changes)


# --- covariates


def test_stages_as_they_are_written():
    written = ["I", "ii", "III", "IV", "IVA", "Stage IVB", "UICC 4", "3", "4.0", "", "unknown", "X", None, "T4"]
    found = adjustment.stage_iv(pd.Series(written))
    assert found.iloc[:9].tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert found.iloc[9:].isna().all()


def test_hpv_as_it_is_written():
    found = adjustment.hpv_positive(pd.Series(["positive", "Negative", "p16+", "-", "unknown", "", None, "1", "0.0"]))
    assert found.tolist()[:4] == [1, 0, 1, 0]
    assert found.iloc[4:7].isna().all()
    assert found.tolist()[7:] == [1, 0]


def test_numbers_from_csv_are_read_as_well():
    assert adjustment.stage_iv(pd.Series([4.0, 3.0, np.nan])).tolist()[:2] == [1, 0]
    assert adjustment.hpv_positive(pd.Series([1.0, 0.0])).tolist() == [1, 0]
    assert adjustment.decades(pd.Series(["65", "", "old"])).tolist()[0] == 6.5


# --- the adjusted model


def test_it_is_the_stratified_model_of_the_complete_cases():
    table = patients()
    block = adjustment.adjusted(table)
    known = table[table["hpv"] != "unknown"]
    assert (block["n"], block["events"]) == (len(known), known["death"].sum())
    assert block["n_missing"] == {"age": 0, "stage_iv": 0, "hpv_positive": len(table) - len(known)}
    assert block["left_out"] == {}
    assert block["stratified_by_site"]
    frame = pd.DataFrame(
        {
            "burden": np.log2(known["ttb_man_ml"] + 1),
            "age": known["age"] / 10,
            "stage": known["stage"].str.startswith("IV") * 1.0,
            "hpv": (known["hpv"] == "positive") * 1.0,
            "months": known["followup_months"],
            "death": known["death"],
            "site": known["site"],
        }
    )
    theirs = CoxPHFitter(strata=["site"]).fit(frame, "months", "death").summary
    for ours, name in (("burden", "burden"), ("age", "age"), ("stage_iv", "stage"), ("hpv_positive", "hpv")):
        assert block["man"][ours]["hr"] == pytest.approx(theirs.loc[name, "exp(coef)"], rel=1e-4)
        assert block["man"][ours]["p"] == pytest.approx(theirs.loc[name, "p"], abs=1e-4)
    alone = CoxPHFitter(strata=["site"]).fit(frame[["burden", "months", "death", "site"]], "months", "death")
    assert block["man"]["burden_alone"]["hr"] == pytest.approx(alone.hazard_ratios_["burden"], rel=1e-4)


def test_few_deaths_are_refused_by_type():
    table = patients()
    table.loc[table["death"].cumsum() > 39, "death"] = 0
    table["hpv"] = "positive"
    table.loc[::2, "hpv"] = "negative"
    with pytest.raises(TooFewEventsError, match="39 deaths, 40 are needed"):
        adjustment.adjusted(table)


def test_what_cannot_enter_the_model_is_named():
    table = patients(hpv="unknown", stage="IV").drop(columns="age")
    with pytest.raises(CannotEstimateError) as caught:
        adjustment.adjusted(table)
    assert "age: the cohort has no column age" in caught.value.problem
    assert "hpv_positive: known in only 0 of 300 patients" in caught.value.problem
    assert "stage_iv: the same in all patients" in caught.value.problem


def test_a_model_goes_without_a_covariate_that_is_mostly_unknown():
    table = patients()
    table.loc[:200, "hpv"] = ""
    block = adjustment.adjusted(table)
    assert block["left_out"]["hpv_positive"].startswith("known in only")
    assert set(block["cnn"]) == {"burden", "age", "stage_iv", "burden_alone"}
    assert block["n"] == 300


def test_one_site_has_no_strata():
    assert not adjustment.adjusted(patients(site="a"))["stratified_by_site"]


# --- sites


def test_heterogeneity_against_R():  # noqa: N802
    """
    > dat <- escalc(measure="RR", ai=tpos, bi=tneg, ci=cpos, di=cneg, data=dat.bcg)
    > rma(yi, vi, data=dat, method="FE")
    I^2 (total heterogeneity / total variability):   92.12%
    Q(df = 12) = 152.2330, p-val < .0001
    estimate      se      zval    pval    ci.lb    ci.ub
     -0.4303  0.0405  -10.6247  <.0001  -0.5097  -0.3509
    """
    trials = np.array(
        [
            *([4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619], [33, 5036, 47, 5761]),
            *([180, 1361, 372, 1079], [8, 2537, 10, 619], [505, 87886, 499, 87892], [29, 7470, 45, 7232]),
            *([17, 1699, 65, 1600], [186, 50448, 141, 27197], [5, 2493, 3, 2338], [27, 16886, 29, 17825]),
        ],
        float,
    )
    a, b, c, d = trials.T
    betas, variances = np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    found = adjustment.heterogeneity(betas, variances)
    assert found["q"] == pytest.approx(152.2330, abs=5e-5)
    assert found["i2"] == pytest.approx(0.9212, abs=5e-5)
    assert np.log(found["hr"]) == pytest.approx(-0.4303, abs=5e-5)
    assert np.log(found["hr_ci95"]) == pytest.approx([-0.5097, -0.3509], abs=5e-5)
    assert found["df"] == 12
    assert found["i2_ci95"][0] < found["i2"] < found["i2_ci95"][1]


def test_i2_of_sites_alike_is_zero_and_its_upper_limit_is_not():
    found = adjustment.heterogeneity(np.full(5, 0.3), np.full(5, 0.04))
    assert (found["q"], found["i2"]) == (pytest.approx(0, abs=1e-20), 0)
    assert found["i2_ci95"][0] == 0
    assert 0 < found["i2_ci95"][1] < 1


@pytest.mark.parametrize("k", [0, 1])
def test_one_site_has_no_heterogeneity(k):
    assert "two are needed" in adjustment.heterogeneity(np.full(k, 0.3), np.ones(k))["reason"]


def test_two_sites_have_no_interval_of_i2():
    found = adjustment.heterogeneity(np.array([0.1, 0.9]), np.array([0.04, 0.04]))
    assert (found["q"], found["i2"]) == (pytest.approx(8), pytest.approx(1 - 1 / 8))
    assert found["i2_ci95"] is None
    assert found["i2_reason"]


def test_each_site_has_its_own_model_or_a_reason():
    table = patients()
    block = adjustment.sites(table, "man")
    assert set(block["sites"]) == {"a", "b", "c"}
    assert sum(site["n"] for site in block["sites"].values()) == 300
    own = table[table["site"] == "a"]
    frame = pd.DataFrame({"x": np.log2(own["ttb_man_ml"] + 1), "t": own["followup_months"], "d": own["death"]})
    assert block["sites"]["a"]["hr"] == pytest.approx(CoxPHFitter().fit(frame, "t", "d").hazard_ratios_["x"], rel=1e-4)
    few = block["sites"]["c"]
    assert few["events"] < adjustment.MIN_SITE_EVENTS
    assert (few["hr"], few["hr_reason"]) == (None, "fewer than 5 deaths")
    assert block["heterogeneity"]["df"] == 1


# --- missing data


def test_everybody_is_counted_once():
    table = patients(8)
    table["followup_months"] = [5.0, 5, 20, 20, 20, np.nan, 20, 20]
    table["death"] = [1.0, 0, 1, np.nan, 0, 1, 0, 0]
    table["survival_eligible"] = [1.0, 1, 1, 1, 0, 1, np.nan, 1]
    table["stage"] = ["IV", "IV", "", "IV", "IV", "IV", "IV", "II"]
    block = adjustment.missing(table.drop(columns="hpv"), 6.0)
    counts = ("n_not_eligible", "n_outcome_unknown", "n_short_followup", "n_included")
    assert [block[key] for key in counts] == [2, 2, 2, 2]
    assert block["n_short_followup_deaths"] == 1
    assert block["covariates"]["stage_iv"] == {"n_missing": 1}
    assert block["covariates"]["hpv_positive"] == {"n_missing": None, "reason": "the cohort has no column hpv"}


def test_columns_that_are_absent_are_named():
    block = adjustment.missing(patients(4).drop(columns=["death", "survival_eligible"]), 6.0)
    assert block["columns_absent"] == ["survival_eligible", "death"]
    assert (block["n_included"], block["reason"]) == (0, "the cohort has no column survival_eligible, death")
