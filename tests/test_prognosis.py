"""The blocks of the survival analysis: what they hold against independent estimates, and what is null has a reason."""

import json

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.datasets import load_lung

from mtvlib import adjustment, discrimination, prognosis
from mtvlib.cox import TooFewEventsError
from mtvlib.followup import Group
from mtvlib.intervals import Bootstrap, Estimate
from mtvlib.params import Params
from mtvlib.survival import CannotEstimateError, concordance, kaplan_meier

PARAMS = Params(bootstrap_resamples=100)
LOG_HR = 0.5


def patients(n=240, seed=1, **changes):
    """Rows of patients.csv: hazard exp(0.5) a doubling, the CNN's burden near the manual one."""
    random = np.random.default_rng(seed)
    ttb = np.exp(random.normal(2.4, 1, n))
    times = random.exponential(60 * np.exp(-LOG_HR * (np.log2(ttb + 1) - 3.5)))
    censored = random.uniform(10, 90, n)
    table = {
        "patient": [f"P{seed}-{i:03d}" for i in range(n)],
        "site": random.choice(["a", "b", "c"], n),
        "ttb_man_ml": ttb,
        "ttb_cnn_ml": ttb * np.exp(random.normal(0, 0.2, n)),
        "followup_months": 6 + np.minimum(times, censored),
        "death": (times <= censored).astype(float),
        "age": random.integers(40, 80, n).astype(float),
        "stage": random.choice(["II", "III", "IV"], n),
        "hpv": random.choice(["positive", "negative"], n),
    }
    return pd.DataFrame(table | changes)


def analysis(table, main=None, params=PARAMS):
    bootstrap = Bootstrap(params.bootstrap_resamples, params.seed)
    return prognosis.analysis(table, table if main is None else main, 10.0, params, bootstrap)


def unexplained(block, path=""):
    """Paths of nulls that neither `<key>_reason` nor the block's `reason` explains; p has the hazard ratio's."""
    if isinstance(block, list):
        for number, part in enumerate(block):
            yield from unexplained(part, f"{path}/{number}")
    if not isinstance(block, dict):
        return
    for key, value in block.items():
        name = "hr" if key == "p" else key.removesuffix("_ci95")
        if value is None and "reason" not in block and f"{name}_reason" not in block:
            yield f"{path}/{key}"
        yield from unexplained(value, f"{path}/{key}")


@pytest.fixture(scope="module")
def main():
    return patients()


@pytest.fixture(scope="module")
def blocks(main):
    return analysis(main)


# --- edges


def edge_cases():
    plain = patients(40)
    return {
        "nobody died": patients(40, death=0.0),
        "everybody died": patients(40, death=1.0),
        "tied times": patients(40, followup_months=np.repeat([8.0, 20, 30, 62], 10)),
        "one time": patients(40, followup_months=30.0),
        "one burden": patients(40, ttb_man_ml=5.0, ttb_cnn_ml=5.0),
        "no burden": patients(40, ttb_man_ml=0.0, ttb_cnn_ml=0.0),
        "one patient": plain.head(1),
        "three patients": plain.head(3),
        "one site": patients(40, site="a"),
        "no covariates": plain.drop(columns=["age", "stage", "hpv"]),
        "nothing known": patients(40, age=np.nan, stage="", hpv="unknown"),
    }


@pytest.mark.parametrize("name", edge_cases())
def test_every_null_has_a_reason(name):
    table = edge_cases()[name]
    for block in (analysis(table), analysis(patients(40, 7), table)):
        assert set(block) == set(prognosis.KEYS)
        assert list(unexplained(block)) == []
        json.dumps(block, allow_nan=False)


def test_without_an_analysis_every_block_says_why():
    block = prognosis.no_analysis("the cohort has no column death")
    assert set(block) == set(prognosis.KEYS)
    assert {part["reason"] for part in block.values()} == {"the cohort has no column death"}


def test_equal_burdens_have_no_model_and_chance_discrimination():
    block = analysis(patients(40, ttb_man_ml=5.0, ttb_cnn_ml=5.0))
    assert "burden is the same in all patients" in block["continuous"]["man"]["hr_reason"]
    assert block["discrimination"]["man"]["harrell_c"] == 0.5
    at = block["discrimination"]["times"]["24"]["man"]
    assert at["auc"] == pytest.approx(0.5)
    assert at["brier"] is None
    assert "no model of the main cohort" in at["brier_reason"]
    assert "no model of the main cohort" in block["calibration"]["reason"]


# --- continuous


def test_the_hazard_ratio_per_doubling(main, blocks):
    frame = main[["followup_months", "death"]].assign(x=np.log2(main["ttb_man_ml"] + 1))
    theirs = CoxPHFitter().fit(frame, "followup_months", "death").summary.loc["x"]
    ours = blocks["continuous"]["man"]
    assert ours["hr"] == pytest.approx(theirs["exp(coef)"], rel=1e-5)
    assert ours["hr_ci95"] == pytest.approx([theirs["exp(coef) lower 95%"], theirs["exp(coef) upper 95%"]], rel=1e-4)
    assert ours["hr_ci95"][0] < np.exp(LOG_HR) < ours["hr_ci95"][1]
    assert 0 <= ours["linearity"]["p"] <= 1
    assert ours["linearity"]["df"] == 2


def test_the_grouped_model_is_tested_too(main, blocks):
    high = pd.DataFrame({"x": (main["ttb_man_ml"] > 10) * 1.0})
    model = prognosis.cox.fit(high, main["followup_months"], main["death"])
    test = prognosis.cox.proportional_hazards(model, high, main["followup_months"], main["death"])
    assert blocks["continuous"]["man"]["proportional_hazards_grouped"]["p"] == pytest.approx(test.global_p)


def test_the_spline_is_one_at_the_median_and_rises(main):
    curve = prognosis.spline(main, "man")
    nearest = (curve["ttb_ml"] - main["ttb_man_ml"].median()).abs().idxmin()
    assert curve.loc[nearest, "hr"] == pytest.approx(1, abs=0.05)
    assert curve["hr"].iloc[0] < 1 < curve["hr"].iloc[-1]


def test_residuals_for_a_plot(main):
    found = prognosis.schoenfeld(main, "cnn")
    assert len(found.residuals) == main["death"].sum()
    assert found.residuals["burden"].mean() == pytest.approx(found.beta)
    with pytest.raises(TooFewEventsError):
        prognosis.schoenfeld(main.head(20), "man")


# --- discrimination


def test_estimates_are_those_of_the_functions(main, blocks):
    group = Group(main)
    found = blocks["discrimination"]
    assert found["man"]["harrell_c"] == pytest.approx(concordance(group.times, group.died, main["ttb_man_ml"]))
    one = np.ones((1, len(main)))
    risks = {"cnn": group.burden("cnn")}
    uno = discrimination.concordances(group.times, group.died, risks, one, found["tau_months"])["uno_c"]["cnn"]
    assert found["cnn"]["uno_c"] == pytest.approx(uno[0])
    auc = discrimination.auc(group.times, group.died, risks, one, 36)["cnn"]
    assert found["times"]["36"]["cnn"]["auc"] == pytest.approx(auc[0])
    for key in ("harrell_c", "uno_c"):
        difference = found["cnn"][key] - found["man"][key]
        assert found["difference"][key] == pytest.approx(difference)


def test_the_interval_is_near_the_jackknifes(main, blocks):
    """R's standard error of concordance (lung, age: 0.55, se 0.025) against the bootstrap of the same patients."""
    lung = load_lung()
    died = lung["status"].to_numpy() == 1
    times, age = lung["time"].to_numpy(float), lung["age"].to_numpy(float)

    def statistic(weights):
        return {"c": discrimination.concordances(times, died, {"x": age}, weights, 1e9)["harrell_c"]["x"]}

    low, high = Bootstrap(2000, 1).of_weights(len(age), statistic)["c"].ci95
    assert (high - low) / (2 * 1.96) == pytest.approx(0.025, abs=0.002)
    assert (low + high) / 2 == pytest.approx(0.55, abs=0.005)


def test_brier_is_that_of_the_main_cohorts_model(main):
    external = patients(120, 9)
    found = analysis(external, main)["discrimination"]["times"]["24"]
    model = prognosis.cox.baseline(Group(main).burden("man"), main["followup_months"], main["death"])
    group, own = Group(external), Group(main)
    theirs = discrimination.censoring(own.times, own.died, np.ones((1, len(main))))
    survival = model.survival(group.burden("cnn"), 24)
    expected = discrimination.brier(group.times, group.died, survival, np.ones((1, 120)), 24, theirs)
    assert found["cnn"]["brier"] == pytest.approx(expected[0])
    without = discrimination.brier(
        group.times, group.died, np.full(120, own_survival(main, 24)), np.ones((1, 120)), 24, theirs
    )
    assert found["cnn"]["ipa"] == pytest.approx(1 - expected[0] / without[0])


def own_survival(table, months):
    curve = kaplan_meier(table["followup_months"], table["death"])
    return curve.loc[curve["months"] <= months, "survival"].iloc[-1]


def test_months_without_support_are_null_with_a_reason():
    block = analysis(patients(40))["discrimination"]["times"]
    assert "fewer than 10 patients are at risk" in block["60"]["reason"]
    assert "man" not in block["60"]
    assert block["24"]["man"]["auc"] is not None


def test_the_same_seed_gives_the_same_intervals(main, blocks):
    assert analysis(main)["discrimination"] == blocks["discrimination"]


def test_several_scans_of_a_person_are_drawn_together():
    """Each patient twice: drawn by persons, the interval is that of the patients once."""
    table = patients(40)
    twice = pd.concat([table, table.assign(patient=table["patient"] + "b")])
    persons = [*table["patient"]] * 2
    once = analysis(table)["discrimination"]["man"]["harrell_c_ci95"]
    bootstrap = Bootstrap.of_persons(100, PARAMS.seed, persons)
    both = prognosis.analysis(twice, twice, 10.0, PARAMS, bootstrap)["discrimination"]["man"]["harrell_c_ci95"]
    assert both == pytest.approx(once, abs=0.01)


# --- non-inferiority


def test_the_same_burden_is_non_inferior_to_itself():
    table = patients(100)
    block = analysis(table.assign(ttb_cnn_ml=table["ttb_man_ml"]))["noninferiority"]
    for key in ("harrell_c", "uno_c", "auc"):
        assert block[key]["difference_ci95"] == [0, 0]
        assert block[key]["noninferior"] is True
    assert (block["margin"], block["months"]) == (0.05, 24)


def test_noise_is_not_non_inferior():
    table = patients()
    block = analysis(table.assign(ttb_cnn_ml=np.random.default_rng(1).permutation(table["ttb_man_ml"])))
    assert block["noninferiority"]["harrell_c"]["noninferior"] is False


@pytest.mark.parametrize(
    ("low", "manual", "noninferior", "caution"),
    [
        (-0.049, 0.6, True, False),
        (-0.051, 0.6, False, False),
        (-0.05, 0.6, False, False),
        (-0.04, 0.49, True, True),
    ],
)
def test_the_verdict_looks_at_the_lower_limit(low, manual, noninferior, caution):
    found = prognosis.verdict(Estimate(0.01, (low, 0.03)), Estimate(0.65, (manual, 0.7)), 0.05)
    assert found["noninferior"] is noninferior
    assert ("caution" in found) == caution


def test_without_an_interval_there_is_no_verdict():
    found = prognosis.verdict(Estimate(0.0, None, "no interval"), Estimate(0.6, None, "no interval"), 0.05)
    assert (found["noninferior"], found["noninferior_reason"]) == (None, "no interval")


# --- calibration


def test_the_main_cohort_is_calibrated_by_construction(blocks):
    block = blocks["calibration"]
    assert block["apparent"]
    assert block["man"]["slope"] == pytest.approx(1)
    assert block["man"]["observed_expected"] == pytest.approx(1)
    predicted = [group["predicted"] for group in block["man"]["groups"]]
    assert predicted == sorted(predicted, reverse=True)  # from low to high risk
    assert sum(group["n"] for group in block["man"]["groups"]) == 240
    assert len(predicted) == 4


def test_external_patients_who_die_twice_as_fast_show_it(main):
    external = patients(240, 5)
    external["followup_months"] = 6 + (external["followup_months"] - 6) / 2
    group = Group(external)
    block = prognosis.calibration(group, prognosis.Forecast.of(group, Group(main)), 24)
    assert not block["apparent"]
    low, high = block["man"]["observed_expected_ci95"]
    assert low > 1.2
    assert low < 2 < high + 0.5
    log_hr = [np.log(prognosis.continuous(Group(table), "man", 10)["hr"]) for table in (external, main)]
    assert block["man"]["slope"] == pytest.approx(log_hr[0] / log_hr[1], rel=1e-6)
    assert np.mean([group["observed"] - group["predicted"] for group in block["man"]["groups"]]) < -0.05


def test_poisson_limits_of_observed_over_expected():
    """
    > poisson.test(10, 5)$conf.int      # 0.9590778 3.6780713
    """
    found = prognosis._observed_expected(10, 5.0)
    assert found.value == 2
    assert found.ci95 == pytest.approx((0.9590778, 3.6780713), abs=1e-6)
    assert prognosis._observed_expected(0, 5.0).ci95 == pytest.approx((0, 0.7377759), abs=1e-6)


def test_few_patients_have_no_groups_but_a_slope():
    block = analysis(patients(29))["calibration"]["man"]
    assert block["groups"] is None
    assert block["groups_reason"] == "fewer than 30 patients"
    assert block["slope"] == pytest.approx(1)


# --- the rest is handed on


def test_adjusted_model_and_sites_are_there(main, blocks):
    assert blocks["adjusted"] == adjustment.adjusted(main)
    assert blocks["sites"]["cnn"] == adjustment.sites(main, "cnn")
    assert "deaths" in analysis(patients(40))["adjusted"]["reason"]
    assert blocks["followup"]["events"] == main["death"].sum()
    assert blocks["discordance"]["n"] > 0


def test_landmarks_hold_the_horizon():
    assert prognosis.landmarks(Params(landmark_months=[60, 12], horizon_months=24)) == [12, 24, 60]


def test_a_spline_of_few_deaths_is_refused():
    with pytest.raises(CannotEstimateError):
        prognosis.spline(patients(20), "man")
