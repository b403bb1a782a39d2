"""Prognostic value of the burden itself, and whether the network's burden may stand in for the manual one.

Beyond the paper, which asks of two groups at one cutoff: the burden enters as log2(TTB + 1), so that nothing depends on
a cutoff. One model predicts: the Cox model of the manual burden in the main cohort. It is applied as it is to the CNN's
burden and to external patients, like the paper's cutoff. In the main cohort it is judged by the patients it was fitted
to (apparent); external patients are new to it.

Each function gives a block of summary.json, with intervals, or the reason why something cannot be estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mtvlib import adjustment, cox, discrimination
from mtvlib.adjustment import hazard_entries
from mtvlib.followup import MIN_AT_RISK, SOURCES, Group, discordance, followup, support, survival_at, survival_estimate
from mtvlib.intervals import LEVEL, Bootstrap, Estimate, ratio
from mtvlib.params import Params
from mtvlib.survival import CannotEstimateError, kaplan_meier

KEYS = ("continuous", "discrimination", "calibration", "followup", "adjusted", "sites", "discordance", "noninferiority")
MODEL = "Cox model of log2(TTB + 1) by manual delineation, fitted to the main cohort"


def analysis(
    included: pd.DataFrame, main: pd.DataFrame, cutoff_ml: float, params: Params, bootstrap: Bootstrap
) -> dict[str, Any]:
    """The blocks `KEYS` of a partition's included patients; the model is fitted to `main`, those of the main cohort."""
    group, no_model = Group(included), ""
    try:
        forecast = Forecast.of(group, Group(main))
    except CannotEstimateError as error:
        forecast, no_model = None, f"no model of the main cohort: {error.problem}"
    scores = Scores.of(group, forecast, no_model, params, bootstrap)
    return {
        "continuous": {source: continuous(group, source, cutoff_ml) for source in SOURCES},
        "discrimination": scores.block(),
        "calibration": calibration(group, forecast, params.horizon_months) if forecast else {"reason": no_model},
        "followup": followup(group, landmarks(params)),
        "adjusted": _or_reason(lambda: adjustment.adjusted(included)),
        "sites": {source: adjustment.sites(included, source) for source in SOURCES},
        "discordance": discordance(group, cutoff_ml, params.horizon_months),
        "noninferiority": scores.noninferiority(params.noninferiority_margin),
    }


def no_analysis(reason: str) -> dict[str, Any]:
    """The same keys, each with the reason."""
    return {key: {"reason": reason} for key in KEYS}


def landmarks(params: Params) -> list[float]:
    """Months at which survival is looked at, rising."""
    return sorted({*params.landmark_months, params.horizon_months})


def _or_reason(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return make()
    except CannotEstimateError as error:
        return {"reason": error.problem}


# --- the burden as it is


def continuous(group: Group, source: str, cutoff_ml: float) -> dict[str, Any]:
    """Hazard ratio per doubling of TTB + 1 (Wald), with the tests of linearity and of proportional hazards."""
    burden = pd.DataFrame({"burden": group.burden(source)})
    high = pd.DataFrame({"high_risk": (group.rows[f"ttb_{source}_ml"].to_numpy() > cutoff_ml).astype(float)})
    block: dict[str, Any] = {
        "linearity": _or_reason(lambda: _linearity(group, source)),
        "proportional_hazards_grouped": _or_reason(lambda: _proportional(group, high, _fitted(group, high))),
    }
    try:
        model = _fitted(group, burden)
    except CannotEstimateError as error:
        nothing = {"hr": None, "hr_ci95": None, "p": None, "hr_reason": error.problem}
        return nothing | block | {"proportional_hazards": {"reason": error.problem}}
    proportional = _or_reason(lambda: _proportional(group, burden, model))
    return hazard_entries(model, "burden") | block | {"proportional_hazards": proportional}


def _fitted(group: Group, covariate: pd.DataFrame) -> cox.Cox:
    return cox.fit(covariate, group.times, group.died)


def _linearity(group: Group, source: str) -> dict[str, Any]:
    test = cox.linearity(group.burden(source), group.times, group.died)
    return {"chi2": test.chi2, "df": test.df, "p": test.p, "knots_ml": [2**knot - 1 for knot in test.knots]}


def _proportional(group: Group, covariate: pd.DataFrame, model: cox.Cox) -> dict[str, Any]:
    test = cox.proportional_hazards(model, covariate, group.times, group.died)
    return {"chi2": test.global_chi2, "df": 1, "p": test.global_p}


@dataclass(frozen=True)
class Trend:
    """Schoenfeld residuals (columns `months`, `transformed`, `burden`), the coefficient, and their trend in time."""

    residuals: pd.DataFrame
    beta: float
    trend: pd.DataFrame  # columns `transformed`, `beta`, `low`, `high`


def schoenfeld(included: pd.DataFrame, source: str) -> Trend:
    """Residuals of the Cox model of a source's burden. Raises `CannotEstimateError` below 20 deaths."""
    group = Group(included)
    burden = pd.DataFrame({"burden": group.burden(source)})
    model = _fitted(group, burden)
    test = cox.proportional_hazards(model, burden, group.times, group.died)
    return Trend(test.residuals, float(model.beta[0]), cox.trend(test.residuals, "burden"))


def spline(included: pd.DataFrame, source: str) -> pd.DataFrame:
    """Hazard ratio by TTB against the median patient: `ttb_ml`, `hr`, `low`, `high` of the spline, `hr_linear`.

    From the first to the 99th percentile of the burdens. Raises `CannotEstimateError` below 20 deaths.
    """
    group = Group(included)
    burden = group.burden(source)
    test = cox.linearity(burden, group.times, group.died)
    first, last = np.quantile(burden, [0.01, 0.99])
    values = np.linspace(first, last, 80)
    curve = cox.spline_curve(test, values, float(np.median(burden)))
    return curve.assign(ttb_ml=2 ** curve["value"] - 1)


# --- discrimination, Brier score, non-inferiority


@dataclass(frozen=True)
class Scores:
    """Bootstrapped estimates by name, such as `auc 24 cnn`: of both burdens and of their difference, cnn - man."""

    estimates: dict[str, Estimate]
    months: dict[float, dict[str, Any]]  # time -> patients at risk and deaths, with a reason if these are too few
    tau_months: float
    horizon_months: float
    no_model: str  # why there is no Brier score

    @classmethod
    def of(cls, group: Group, forecast: Forecast | None, no_model: str, params: Params, bootstrap: Bootstrap) -> Scores:
        months = {month: support(group, month) for month in landmarks(params)}
        tau = discrimination.latest_supported(group.times, landmarks(params), MIN_AT_RISK)
        usable = [month for month, about in months.items() if "reason" not in about]

        def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
            return _scores(group, forecast, usable, tau, weights)

        estimates = bootstrap.of_weights(len(group.rows), statistic, _reasons(usable, tau))
        return cls(estimates, months, tau, params.horizon_months, no_model)

    def block(self) -> dict[str, Any]:
        """C of both burdens and of their difference, and by month (`times`) AUC, Brier score and its relative gain.

        `tau_months` truncates Uno's C. `ipa`, index of prediction accuracy (Kattan and Gerds 2018): the share that the
        burden takes off the Brier score of a forecast without it, the main cohort's Kaplan-Meier curve.
        """
        block: dict[str, Any] = {"tau_months": self.tau_months, "model": MODEL}
        for name in _NAMES:
            block[name] = self._entries(("harrell_c", "uno_c"), "", name)
        block["times"] = {f"{month:g}": self._at(month) for month in self.months}
        return block

    def _at(self, month: float) -> dict[str, Any]:
        block = dict(self.months[month])
        if "reason" in block:
            return block
        for name in _NAMES:
            block[name] = self._entries(("auc",), f" {month:g}", name)
            kinds = ("brier",) if name == "difference" else ("brier", "ipa")
            if self.no_model:
                for kind in kinds:
                    block[name] |= Estimate(None, None, self.no_model).entries(kind)
            else:
                block[name] |= self._entries(kinds, f" {month:g}", name)
        return block

    def _entries(self, kinds: Sequence[str], when: str, name: str) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for kind in kinds:
            entries |= self.estimates[f"{kind}{when} {name}"].entries(kind)
        return entries

    def noninferiority(self, margin: float) -> dict[str, Any]:
        """Does the CNN's burden lose less than `margin`? Yes if the lower limit of cnn - man lies above -margin.

        The limit is that of the two-sided 95 % interval, so the level of the test is 2.5 %.
        """
        month = self.horizon_months
        names = {"harrell_c": "harrell_c", "uno_c": "uno_c", "auc": f"auc {month:g}"}
        why = self.months[month].get("reason", "")
        block: dict[str, Any] = {"margin": margin, "months": month}
        for key, name in names.items():
            nothing = Estimate(None, None, why)
            difference, manual = (self.estimates.get(f"{name} {which}", nothing) for which in ("difference", "man"))
            block[key] = verdict(difference, manual, margin)
        return block


def verdict(difference: Estimate, manual: Estimate, margin: float) -> dict[str, Any]:
    """`noninferior`: whether the lower limit of the difference lies above -margin; null without an interval.

    `caution` where the manual burden is not shown to be better than chance: then a burden that says nothing would pass.
    """
    decided: dict[str, Any] = {"noninferior": difference.ci95[0] > -margin if difference.ci95 else None}
    if not difference.ci95:
        decided["noninferior_reason"] = difference.reason
    elif decided["noninferior"] and (not manual.ci95 or manual.ci95[0] <= 0.5):
        decided["caution"] = "the manual burden is not shown to be better than chance, so the verdict says little"
    return difference.entries("difference") | decided


_NAMES = (*SOURCES, "difference")


def _reasons(months: Sequence[float], tau: float) -> dict[str, str]:
    """Why an estimate may be undefined, by the names of `Scores`."""
    kinds = {
        "harrell_c": "no two patients are comparable",
        "uno_c": f"no two patients are comparable before {tau:g} months, where it is truncated",
    }
    kinds |= {
        f"{kind} {month:g}": f"everybody who was not dead had left by {month:g} months"
        for month in months
        for kind in ("brier", "ipa")
    }
    return {f"{kind} {name}": reason for kind, reason in kinds.items() for name in _NAMES}


@dataclass(frozen=True)
class Forecast:
    """The main cohort's model, its Kaplan-Meier curve as the forecast without a burden, and whose censoring counts."""

    model: cox.Baseline
    curve: pd.DataFrame
    censoring: discrimination.Censoring | None  # of the main cohort for external patients; None: the patients' own

    @property
    def apparent(self) -> bool:
        """Whether the patients are those to whom the model was fitted."""
        return self.censoring is None

    @classmethod
    def of(cls, group: Group, main: Group) -> Forecast:
        model = cox.baseline(main.burden("man"), main.times, main.died)
        observed = (
            None
            if group.same_as(main)
            else discrimination.censoring(main.times, main.died, np.ones((1, len(main.rows))))
        )
        return cls(model, kaplan_meier(main.times, main.died), observed)


def _scores(
    group: Group, forecast: Forecast | None, months: Sequence[float], tau: float, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """All estimates for weights (b, n), by the names of `Scores`."""
    times, died, risks = group.times, group.died, {source: group.burden(source) for source in SOURCES}
    found: dict[str, np.ndarray] = {}
    for kind, values in discrimination.concordances(times, died, risks, weights, tau).items():
        found |= _compared(kind, values)
    for month in months:
        found |= _compared(f"auc {month:g}", discrimination.auc(times, died, risks, weights, month))
        if forecast is not None:
            found |= _briers(group, forecast, month, weights)
    return found


def _briers(group: Group, forecast: Forecast, month: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    def brier(survival: np.ndarray) -> np.ndarray:
        return discrimination.brier(group.times, group.died, survival, weights, month, forecast.censoring)

    of = {source: brier(forecast.model.survival(group.burden(source), month)) for source in SOURCES}
    without = brier(np.full(len(group.rows), survival_at(forecast.curve, month)[0]))
    return _compared(f"brier {month:g}", of) | {
        f"ipa {month:g} {name}": 1 - ratio(of[name], without) for name in SOURCES
    }


def _compared(kind: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    both = values | {"difference": values["cnn"] - values["man"]}
    return {f"{kind} {name}": both[name] for name in both}


# --- calibration


def calibration(group: Group, forecast: Forecast, months: float) -> dict[str, Any]:
    """Survival at `months` that the model predicts against that observed, by groups of risk, and its slope.

    `observed_expected`: deaths over those the model expects, with Poisson limits; 1 is right on average. `slope`: log
    hazard ratio of the linear predictor (Wald limits); below 1, predictions are too extreme. Both are 1 by construction
    for the manual burden of the main cohort.
    """
    block: dict[str, Any] = {"model": MODEL, "months": months, "apparent": forecast.apparent}
    return block | {source: _calibrated(group, forecast.model, source, months) for source in SOURCES}


def _calibrated(group: Group, model: cox.Baseline, source: str, months: float) -> dict[str, Any]:
    burden = group.burden(source)
    block: dict[str, Any] = {"slope": None, "slope_ci95": None}
    try:
        fit = cox.fit(pd.DataFrame({"predictor": model.linear_predictor(burden)}), group.times, group.died)
        half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(fit.covariance[0, 0])
        block |= {"slope": float(fit.beta[0]), "slope_ci95": [float(fit.beta[0] - half), float(fit.beta[0] + half)]}
    except CannotEstimateError as error:
        block["slope_reason"] = error.problem.replace("hazard ratio", "slope")
    expected = float(model.cumulative_hazard(burden, group.times).sum())
    block |= _observed_expected(int(group.died.sum()), expected).entries("observed_expected")
    groups = _risk_groups(group, model, burden, months)
    return block | {"groups": groups} | ({} if groups else {"groups_reason": f"fewer than {3 * MIN_AT_RISK} patients"})


def _observed_expected(observed: int, expected: float) -> Estimate:
    """Ratio with exact Poisson limits of the observed number (Garwood 1936)."""
    if not expected > 0:
        return Estimate(None, None, "the model expects no death within the follow-up")
    tail = (1 - LEVEL) / 2
    low = float(stats.chi2.ppf(tail, 2 * observed)) / 2 if observed else 0.0
    return Estimate(observed / expected, (low / expected, float(stats.chi2.isf(tail, 2 * observed + 2)) / 2 / expected))


def _risk_groups(group: Group, model: cox.Baseline, burden: np.ndarray, months: float) -> list[dict[str, Any]] | None:
    """Groups of equal size from low to high risk: quarters, or thirds below four times `MIN_AT_RISK` patients."""
    n = len(group.rows) // MIN_AT_RISK
    if n < 3:
        return None
    predicted = model.survival(burden, months)
    parts = np.array_split(np.argsort(burden, kind="stable"), min(n, 4))
    return [_risk_group(group, part, float(predicted[part].mean()), months) for part in parts]


def _risk_group(group: Group, part: np.ndarray, predicted: float, months: float) -> dict[str, Any]:
    times, died = group.times[part], group.died[part]
    observed = survival_estimate(times, died, months)
    counts = {"n": len(part), "events": int((died & (times <= months)).sum()), "predicted": predicted}
    return counts | observed.entries("observed")
