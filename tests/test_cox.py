"""Cox models and their assumptions against output of R's survival, pasted with the call that made it, and by hand."""

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.datasets import load_lung, load_rossi
from lifelines.statistics import proportional_hazard_test
from scipy.interpolate import CubicSpline
from sksurv.datasets import load_veterans_lung_cancer

from mtvlib import cox
from mtvlib.errors import InputError
from mtvlib.survival import CannotEstimateError, cox_hazard_ratio, kaplan_meier

# R: ovarian (Edmunson 1979): futime, fustat, age, ecog.ps
OVARIAN = pd.DataFrame(
    [
        *([59, 1, 72.3315, 1], [115, 1, 74.4932, 1], [156, 1, 66.4658, 2], [421, 0, 53.3644, 1], [431, 1, 50.3397, 1]),
        *([448, 0, 56.4301, 2], [464, 1, 56.9370, 2], [475, 1, 59.8548, 2], [477, 0, 64.1753, 1], [563, 1, 55.1781, 2]),
        *([638, 1, 56.7562, 2], [744, 0, 50.1096, 1], [769, 0, 59.6301, 2], [770, 0, 57.0521, 1], [803, 0, 39.2712, 1]),
        *(
            [855, 0, 43.1233, 2],
            [1040, 0, 38.8932, 2],
            [1106, 0, 44.6, 1],
            [1129, 0, 53.9068, 1],
            [1206, 0, 44.2055, 1],
        ),
        *([1227, 0, 59.589, 2], [268, 1, 74.5041, 2], [329, 1, 43.137, 1], [353, 1, 63.2192, 2], [365, 1, 64.4247, 1]),
        [377, 0, 58.3096, 1],
    ],
    columns=["time", "status", "age", "ecog.ps"],
)


@pytest.fixture
def lung():
    return load_lung()


def standard_errors(model):
    return np.sqrt(np.diag(model.covariance))


# --- the fit


def test_three_covariates_against_R(lung):  # noqa: N802
    """
    > summary(coxph(Surv(time, status) ~ age + sex + ph.ecog, data = lung))
      n= 227, number of events= 164
                 coef exp(coef)  se(coef)      z Pr(>|z|)
    age      0.011067  1.011128  0.009267  1.194 0.232416
    sex     -0.552612  0.575445  0.167739 -3.294 0.000986 ***
    ph.ecog  0.463728  1.589991  0.113577  4.083 4.45e-05 ***
            exp(coef) exp(-coef) lower .95 upper .95
    sex        0.5754     1.7378    0.4142    0.7994
    """
    known = lung.dropna(subset=["age", "sex", "ph.ecog"])
    model = cox.fit(known[["age", "sex", "ph.ecog"]], known["time"], known["status"])
    assert model.beta == pytest.approx([0.011067, -0.552612, 0.463728], abs=5e-7)
    assert standard_errors(model) == pytest.approx([0.009267, 0.167739, 0.113577], abs=5e-7)
    sex = model.hazard_ratio("sex")
    assert (sex.hr, *sex.ci95) == pytest.approx((0.5754, 0.4142, 0.7994), abs=5e-5)
    assert sex.p == pytest.approx(0.000986, abs=5e-7)
    assert (sex.n, sex.events) == (227, 164)


def test_rossi_against_R():  # noqa: N802
    """
    > coxph(Surv(week, arrest) ~ fin + age + race + wexp + mar + paro + prio, data = Rossi)   # Fox and Weisberg 2011
                 coef exp(coef) se(coef)      z Pr(>|z|)
    fin      -0.37942   0.68426  0.19138 -1.983  0.04742
    age      -0.05744   0.94418  0.02200 -2.611  0.00903
    prio      0.09150   1.09581  0.02865  3.194  0.00140
    """
    rossi = load_rossi()
    model = cox.fit(rossi[["fin", "age", "race", "wexp", "mar", "paro", "prio"]], rossi["week"], rossi["arrest"])
    at = [0, 1, 6]
    assert model.beta[at] == pytest.approx([-0.37942, -0.05744, 0.09150], abs=5e-6)
    assert standard_errors(model)[at] == pytest.approx([0.19138, 0.02200, 0.02865], abs=5e-6)
    assert model.hazard_ratio("prio").p == pytest.approx(0.00140, abs=5e-6)


def test_a_group_is_the_model_of_the_papers_analysis(lung):
    model = cox.fit(pd.DataFrame({"male": (lung["sex"] == 1).astype(float)}), lung["time"], lung["status"])
    paper = cox_hazard_ratio(lung["time"], lung["status"], lung["sex"] == 1)
    assert model.hazard_ratio("male") == paper


def test_strata_by_hand():
    """Two strata of one death among two each: the second's pair is the first's turned round, so beta is 0."""
    model = cox.fit(pd.DataFrame({"x": [1.0, 0, 0, 1]}), [1, 2, 10, 20], [1, 0, 1, 0], strata=["a", "a", "b", "b"])
    assert model.beta == pytest.approx([0], abs=1e-8)
    assert model.covariance[0, 0] == pytest.approx(1 / (1 / 4 + 1 / 4))  # information p (1 - p) of each death


@pytest.mark.parametrize(
    ("x", "death", "reason"),
    [
        ([1, 2, 3, 4], [0] * 4, "nobody died"),
        ([2, 2, 2, 2], [1] * 4, "x is the same in all patients"),
        ([4, 3, 2, 1], [1] * 4, "most extreme value"),
        ([1, 2, 3, 4], [1] * 4, "most extreme value"),
        ([4, 4, 4, 1], [0, 0, 1, 0], "most extreme value"),
    ],
)
def test_no_hazard_ratio_and_why(x, death, reason):
    with pytest.raises(CannotEstimateError, match=reason):
        cox.fit(pd.DataFrame({"x": x}), [1, 2, 3, 4], death)


def test_separation_by_one_of_two_covariates_is_refused():
    random = np.random.default_rng(3)
    death = np.tile([1, 0], 20)
    frame = pd.DataFrame({"noise": random.normal(size=40), "fate": death * 1.0})
    with pytest.raises(CannotEstimateError):
        cox.fit(frame, np.arange(1, 41), death)


def test_covariates_that_determine_each_other_are_refused(lung):
    frame = pd.DataFrame({"age": lung["age"], "twice": 2 * lung["age"]})
    with pytest.raises(CannotEstimateError):
        cox.fit(frame, lung["time"], lung["status"])


def test_a_missing_covariate_is_no_estimate_problem(lung):
    with pytest.raises(InputError, match="ecog holds a missing") as caught:
        cox.fit(lung[["ph.ecog"]], lung["time"], lung["status"])
    assert not isinstance(caught.value, CannotEstimateError)


# --- proportional hazards


def test_zph_lung_against_R(lung):  # noqa: N802
    """
    > cox.zph(coxph(Surv(time, status) ~ age + sex + wt.loss, data = lung))     # survival >= 3.0
             chisq df    p
    age     0.5077  1 0.48
    sex     2.5489  1 0.11
    wt.loss 0.0144  1 0.90
    GLOBAL  3.0051  3 0.39
    """
    known = lung.dropna(subset=["age", "sex", "wt.loss"])
    covariates = known[["age", "sex", "wt.loss"]]
    model = cox.fit(covariates, known["time"], known["status"])
    test = cox.proportional_hazards(model, covariates, known["time"], known["status"])
    assert list(test.chi2.values()) == pytest.approx([0.5077, 2.5489, 0.0144], abs=5e-5)
    assert test.global_chi2 == pytest.approx(3.0051, abs=5e-5)
    assert [round(p, 2) for p in (*test.p.values(), test.global_p)] == [0.48, 0.11, 0.90, 0.39]


def test_zph_ovarian_against_R():  # noqa: N802
    """
    > cox.zph(coxph(Surv(futime, fustat) ~ age + ecog.ps, data = ovarian))      # survival >= 3.0
            chisq df    p
    age     0.698  1 0.40
    ecog.ps 2.371  1 0.12
    GLOBAL  3.633  2 0.16
    """
    covariates = OVARIAN[["age", "ecog.ps"]]
    model = cox.fit(covariates, OVARIAN["time"], OVARIAN["status"])
    test = cox.proportional_hazards(model, covariates, OVARIAN["time"], OVARIAN["status"])
    assert (*test.chi2.values(), test.global_chi2) == pytest.approx((0.698, 2.371, 3.633), abs=5e-4)


def test_veteran_against_R():  # noqa: N802
    """Therneau, Crowson, Atkinson, "Using time dependent covariates", survival 3: time-dependent effects in veteran.

    > vfit <- coxph(Surv(time, status) ~ trt + prior + karno, veteran)
               coef exp(coef)      z
    trt    0.180197  1.197453  0.982
    karno -0.033771  0.966793 -6.604
    > cox.zph(vfit)
            chisq df       p
    trt     0.288  1 0.59125
    prior   2.168  1 0.14087
    karno  12.138  1 0.00049
    GLOBAL 18.073  3 0.00042
    """
    patients, outcome = load_veterans_lung_cancer()
    covariates = pd.DataFrame(
        {
            "trt": 1.0 + (patients["Treatment"] == "test"),
            "prior": 10.0 * (patients["Prior_therapy"] == "yes"),
            "karno": patients["Karnofsky_score"].astype(float),
        }
    )
    days, died = outcome["Survival_in_days"], outcome["Status"]
    model = cox.fit(covariates, days, died)
    assert model.beta[[0, 2]] == pytest.approx([0.180197, -0.033771], abs=5e-7)
    assert (model.beta / standard_errors(model))[[0, 2]] == pytest.approx([0.982, -6.604], abs=5e-4)
    test = cox.proportional_hazards(model, covariates, days, died)
    assert list(test.chi2.values()) == pytest.approx([0.288, 2.168, 12.138], abs=5e-4)
    assert list(test.p.values()) == pytest.approx([0.59125, 0.14087, 0.00049], abs=6e-6)
    assert test.global_chi2 == pytest.approx(18.073, abs=5e-4)


def test_zph_is_near_lifelines_and_R_before_3():  # noqa: N802
    """
    > cox.zph(coxph(Surv(week, arrest) ~ fin + age + prio, data = Rossi))       # survival < 3.0, Fox and Weisberg 2011
              rho  chisq      p
    age  -0.20976 6.54147 0.0105
    GLOBAL     NA 7.13046 0.0679

    Both took the variance as constant over the deaths; lifelines' steps of g(t) differ from R's.
    """
    rossi = load_rossi()
    covariates = rossi[["fin", "age", "prio"]]
    test = cox.proportional_hazards(cox.fit(covariates, rossi["week"], rossi["arrest"]), covariates, *outcome(rossi))
    fitter = CoxPHFitter().fit(rossi[["week", "arrest", "fin", "age", "prio"]], "week", "arrest")
    theirs = proportional_hazard_test(fitter, rossi[["week", "arrest", "fin", "age", "prio"]], "km").summary
    assert test.chi2["age"] == pytest.approx(theirs.loc["age", "test_statistic"], rel=0.01)
    assert test.chi2["age"] == pytest.approx(6.54, rel=0.05)
    assert test.global_chi2 == pytest.approx(7.13, abs=0.02)


def outcome(rossi):
    return rossi["week"], rossi["arrest"]


def test_residuals_are_scaled_and_centred_on_the_coefficient(lung):
    covariates = lung[["age"]]
    model = cox.fit(covariates, lung["time"], lung["status"])
    residuals = cox.proportional_hazards(model, covariates, lung["time"], lung["status"]).residuals
    assert len(residuals) == 165
    assert residuals["age"].mean() == pytest.approx(model.beta[0])  # Schoenfeld residuals sum to 0
    assert residuals["transformed"].iloc[0] == 0  # 1 - S just before the first death
    assert residuals["transformed"].is_monotonic_increasing
    fitter = CoxPHFitter().fit(lung[["time", "status", "age"]], "time", "status")
    theirs = fitter.compute_residuals(lung[["time", "status", "age"]], "scaled_schoenfeld")["age"]
    alone = ~residuals["months"].duplicated(keep=False).to_numpy()  # ties share Efron's mean here
    ours = (residuals["age"] - model.beta[0]).to_numpy()[alone]
    assert ours == pytest.approx(
        theirs.to_numpy()[np.argsort(lung.loc[theirs.index, "time"], kind="stable")][alone], abs=1e-6
    )


def test_a_hazard_ratio_that_turns_round_is_found():
    random = np.random.default_rng(5)
    x = np.repeat([0.0, 1.0], 200)
    early = random.exponential(np.where(x == 1, 4, 16))
    times = np.where(early < 5, early, 5 + random.exponential(np.where(x == 1, 40, 8)))
    frame = pd.DataFrame({"x": x})
    test = cox.proportional_hazards(cox.fit(frame, times, np.ones(400)), frame, times, np.ones(400))
    assert test.global_p < 1e-6
    trend = cox.trend(test.residuals, "x")
    assert trend["beta"].iloc[0] > 0 > trend["beta"].iloc[-1]
    assert (trend["low"] < trend["high"]).all()


def test_all_deaths_at_one_time_have_no_trend():
    frame = pd.DataFrame({"x": [2.0, 5, 3, 4, 1]})
    months, death = [3, 3, 3, 8, 9], [1, 1, 1, 0, 0]
    with pytest.raises(CannotEstimateError, match="all deaths at one time"):
        cox.proportional_hazards(cox.fit(frame, months, death), frame, months, death)


# --- linearity


def test_the_spline_basis_spans_the_natural_splines():
    knots = (1.0, 2.5, 4.0, 6.0)
    x = np.linspace(0, 8, 200)
    basis = np.column_stack([np.ones(200), cox.spline_basis(x, knots)])
    natural = CubicSpline(knots, [0.3, -1.2, 2.0, 0.4], bc_type="natural")
    inside = (x >= 1) & (x <= 6)
    coefficients = np.linalg.lstsq(basis[inside], natural(x[inside]), rcond=None)[0]
    assert basis[inside] @ coefficients == pytest.approx(natural(x[inside]))
    outside = basis[x > 6] @ coefficients
    assert np.diff(outside, 2) == pytest.approx(0, abs=1e-9)  # linear beyond the last knot


def test_harrells_knots():
    values = np.arange(101.0)
    assert cox.harrell_knots(values, 4) == (5, 35, 65, 95)
    assert cox.harrell_knots(values, 3) == (10, 50, 90)
    with pytest.raises(CannotEstimateError, match="two knots fall together"):
        cox.harrell_knots(np.zeros(50), 3)


def simulated(shape, n=600):
    random = np.random.default_rng(8)
    x = random.normal(3, 1, n)
    times, censored = random.exponential(30 * np.exp(-shape(x))), random.uniform(5, 60, n)
    return x, np.minimum(times, censored), times <= censored


def test_a_bent_hazard_is_found_and_a_straight_one_is_not():
    assert cox.linearity(*simulated(lambda x: (x - 3) ** 2)).p < 1e-6
    straight = cox.linearity(*simulated(lambda x: 0.4 * (x - 3)))
    assert straight.p > 0.05
    assert (straight.df, len(straight.knots)) == (2, 4)
    assert straight.linear.beta[0] == pytest.approx(0.4, abs=3 * np.sqrt(straight.linear.covariance[0, 0]))


def test_the_spline_curve_is_one_at_its_reference_and_follows_the_truth():
    x, months, death = simulated(lambda x: (x - 3) ** 2)
    test = cox.linearity(x, months, death)
    curve = cox.spline_curve(test, np.array([2.0, 3.0, 4.0]), 3.0)
    assert curve.loc[1, ["hr", "low", "high", "hr_linear"]].tolist() == pytest.approx([1, 1, 1, 1])
    assert (curve["low"] <= curve["high"]).all()
    assert (curve.loc[[0, 2], "low"] > 1).all()


def test_too_few_deaths_for_a_spline_are_a_typed_refusal():
    x, months, death = simulated(lambda x: 0.0 * x, n=60)
    death = death & (np.cumsum(death) <= 19)
    with pytest.raises(cox.TooFewEventsError, match="19 deaths, 20 are needed"):
        cox.linearity(x, months, death)
    assert issubclass(cox.TooFewEventsError, CannotEstimateError)


def test_between_20_and_30_deaths_there_are_three_knots():
    x, months, death = simulated(lambda x: 0.0 * x, n=100)
    death = death & (np.cumsum(death) <= 25)
    assert len(cox.linearity(x, months, death).knots) == 3


# --- prediction


def test_breslows_baseline_by_hand():
    """beta = log 2 / 2 of the by-hand Cox model: deaths at 1 (risk 2 h + 2) and 2 (h + 2), h = sqrt 2, at x = mean."""
    x = np.array([1.0, 0, 1, 0])
    model = cox.baseline(x, [1, 2, 3, 3], [1, 1, 0, 0])
    h = np.sqrt(2)
    hazard = np.array([1 / (2 * h + 2), 1 / (2 * h + 2) + 1 / (h + 2)])
    assert model.cumulative_hazard(np.zeros(3), np.array([0.5, 1.0, 2.7])) == pytest.approx([0, *hazard])
    assert model.survival(np.array([1.0]), 2) == pytest.approx(np.exp(-hazard[1] * h))


def test_the_model_expects_as_many_deaths_as_there_were(lung):
    model = cox.baseline(lung["age"], lung["time"], lung["status"])
    expected = model.cumulative_hazard(lung["age"].to_numpy(), lung["time"].to_numpy())
    assert expected.sum() == pytest.approx(165)  # martingale residuals sum to 0


def test_predictions_agree_with_lifelines_and_with_the_mean_survival(lung):
    frame = lung[["time", "status", "age"]]
    model = cox.baseline(lung["age"], lung["time"], lung["status"])
    theirs = CoxPHFitter().fit(frame, "time", "status").predict_survival_function(frame.head(5), times=[365.0])
    assert model.survival(lung["age"].head(5).to_numpy(), 365.0) == pytest.approx(theirs.iloc[0].to_numpy(), abs=2e-3)
    curve = kaplan_meier(lung["time"], lung["status"])
    observed = curve.loc[curve["months"] <= 365, "survival"].iloc[-1]
    assert model.survival(lung["age"].to_numpy(), 365.0).mean() == pytest.approx(observed, abs=0.01)
