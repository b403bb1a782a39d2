"""Prognostic value of the tumour burden: risk groups, Cox regression, log-rank test, Kaplan-Meier, concordance.

Paper, "Survival analysis" and Fig. 5. The methods are lifelines'; what is added here are the checks before a fit, so
that what cannot be estimated says why instead of giving a hazard ratio of 1e9 and a warning. The paper asks of a group
by one cutoff; that the hazards are proportional is assumed here and tested in prognosis.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import lifelines
import numpy as np
import pandas as pd
from lifelines.statistics import multivariate_logrank_test
from scipy import stats

from mtvlib.errors import InputError
from mtvlib.intervals import LEVEL, wilson

Values: TypeAlias = Sequence[Any] | np.ndarray | pd.Series
PAIRS_AT_ONCE = 2_000_000
FIT = {"precision": 1e-18, "r_precision": 0.0}  # lifelines' own (1e-7, 1e-9) leaves errors of 5e-4 among few patients


class CannotEstimateError(InputError):
    """The data are sound but hold no estimate: nobody died, one group only, all deaths in one group."""


@dataclass(frozen=True)
class HazardRatio:
    hr: float
    ci95: tuple[float, float]
    p: float
    n: int
    events: int


@dataclass(frozen=True)
class Logrank:
    chi2: float
    df: int
    p: float


@dataclass(frozen=True)
class Concordance:
    c: float
    ci95: tuple[float, float]
    se: float


def cox_hazard_ratio(months: Values, death: Values, high_risk: Values) -> HazardRatio:
    """Hazard ratio of the high-risk to the low-risk group: univariate Cox regression, ties by Efron's method.

    `months` of follow-up, `death` (0/1) at its end, `high_risk` (0/1), each (n,). The interval and p are Wald's, as in
    R's `summary(coxph(...))`. Raises `InputError` for malformed data and `CannotEstimateError` where no finite maximum
    of the likelihood exists. Not for a group that is itself a consequence of the follow-up (immortal time).
    """
    times, died = follow_up(months, death)
    high = _binary(high_risk, "high_risk", len(times))
    if not died.any():
        raise CannotEstimateError("no hazard ratio: nobody died")
    if high.all() or not high.any():
        raise CannotEstimateError(f"no hazard ratio: everybody is in the {'high' if high.all() else 'low'}-risk group")
    _refuse_separation(times, died, high)
    frame = pd.DataFrame({"months": times, "death": died, "high_risk": high.astype(float)})
    fit = lifelines.CoxPHFitter(alpha=1 - LEVEL).fit(frame, "months", "death", fit_options=FIT)
    row = fit.summary.loc["high_risk"]
    interval = float(row["exp(coef) lower 95%"]), float(row["exp(coef) upper 95%"])
    return HazardRatio(float(row["exp(coef)"]), interval, float(row["p"]), len(times), int(died.sum()))


def _refuse_separation(times: np.ndarray, died: np.ndarray, high: np.ndarray) -> None:
    """The likelihood has a maximum only if deaths of both groups occur while the other group is at risk."""
    last_high, last_low = times[high].max(), times[~high].max()
    deaths_of_high = (died & high & (times <= last_low)).any()
    deaths_of_low = (died & ~high & (times <= last_high)).any()
    if deaths_of_high and deaths_of_low:
        return
    if not deaths_of_high and not deaths_of_low:
        raise CannotEstimateError("no hazard ratio: nobody died while both groups were at risk")
    only = "high" if deaths_of_high else "low"
    raise CannotEstimateError(
        f"no hazard ratio: while both groups were at risk, only patients of the {only}-risk group died, so the "
        "likelihood rises without end (complete separation)"
    )


def logrank(months: Values, death: Values, group: Values) -> Logrank:
    """Log-rank test of equal survival in k >= 2 groups: chi2 with k - 1 degrees of freedom; R's `survdiff`, rho = 0.

    Weak against crossing curves. Raises `InputError` for malformed data, `CannotEstimateError` if there is one group or
    no death.
    """
    times, died = follow_up(months, death)
    names: np.ndarray = np.asarray(group)
    if len(names) != len(times):
        raise InputError(f"group has {len(names)} values, months has {len(times)}")
    if pd.isna(names).any():
        raise InputError("group holds a missing value")
    if not died.any():
        raise CannotEstimateError("no log-rank test: nobody died")
    codes, levels = pd.factorize(names)
    if len(levels) < 2:
        raise CannotEstimateError("no log-rank test: there is one group only")
    if len(levels) == 2 and not _both_at_risk_at_a_death(times, died, codes == 1):
        raise CannotEstimateError("no log-rank test: nobody died while both groups were at risk")
    result = multivariate_logrank_test(times, codes, died)
    return Logrank(float(result.test_statistic), len(levels) - 1, float(result.p_value))


def _both_at_risk_at_a_death(times: np.ndarray, died: np.ndarray, second: np.ndarray) -> bool:
    return bool((times[died] <= min(times[second].max(), times[~second].max())).any())


def concordance(months: Values, death: Values, risk: Values) -> float:
    """Harrell's C: the share of comparable pairs in which the patient at higher `risk` dies first, ties counting half.

    0.5 is chance. Comparable are pairs whose earlier time is a death; of two equal times, if one is a death and the
    other is not. Depends on how the follow-up was censored (Uno et al. 2011).
    """
    return concordance_interval(months, death, risk).c


def concordance_interval(months: Values, death: Values, risk: Values) -> Concordance:
    """Harrell's C with its standard error by the infinitesimal jackknife (as R's `concordance`) and normal 95 % limits.

    O(n^2) comparisons in blocks of rows: 10 000 patients take seconds and no more memory than 10.
    """
    times, died = follow_up(months, death)
    risks = numbers(risk, "risk")
    if len(risks) != len(times):
        raise InputError(f"risk has {len(risks)} values, months has {len(times)}")
    won, pairs = _pairs(times, died, risks)
    if not pairs.any():
        raise CannotEstimateError("no concordance: no two patients are comparable")
    c = float(won.sum() / pairs.sum())  # both sums hold every pair twice
    influence = (won - c * pairs) / (pairs.sum() / 2)
    se = float(np.sqrt((influence**2).sum()))
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * se
    return Concordance(c, (max(c - half, 0.0), min(c + half, 1.0)), se)


def _pairs(times: np.ndarray, died: np.ndarray, risks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each patient (n,): concordant (ties count half) and comparable pairs that he or she is part of."""
    n = len(times)
    won, pairs = np.zeros(n), np.zeros(n)
    rows = max(1, PAIRS_AT_ONCE // n)
    for first in range(0, n, rows):
        i = slice(first, first + rows)
        later = times[i, None] < times
        later |= (times[i, None] == times) & ~died
        comparable = later & died[i, None]
        order = np.sign(risks[i, None] - risks)
        concordant = comparable * (order + 1) / 2
        won[i] += concordant.sum(1)
        won += concordant.sum(0)
        pairs[i] += comparable.sum(1)
        pairs += comparable.sum(0)
    return won, pairs


def kaplan_meier(months: Values, death: Values) -> pd.DataFrame:
    """Survival curve: a row at month 0 and at each time of a death or censoring.

    Columns: `months`, `at_risk` (just before), `events`, `censored`, `survival` (just after), `low`, `high` (95 %, from
    log(-log S), so within [0, 1]; None where S is 0 or 1). Product-limit estimate of Kaplan and Meier 1958.
    """
    times, died = follow_up(months, death)
    fit = lifelines.KaplanMeierFitter(alpha=1 - LEVEL).fit(times, died)
    table, curve = fit.event_table, fit.survival_function_.iloc[:, 0]
    limits = fit.confidence_interval_.where(curve.between(0, 1, inclusive="neither"), axis=0)
    return pd.DataFrame(
        {
            "months": table.index.to_numpy(float),
            "at_risk": table["at_risk"].to_numpy(int),
            "events": table["observed"].to_numpy(int),
            "censored": table["censored"].to_numpy(int),
            "survival": curve.to_numpy(),
            "low": limits.iloc[:, 0].to_numpy(),
            "high": limits.iloc[:, 1].to_numpy(),
        }
    )


def curves(patients: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """Survival curves of Fig. 5 from rows of patients.csv: source (`man`, `cnn`) -> risk (`high`, `low`) -> curve.

    A risk group without patients is left out.
    """
    return {
        source: {
            str(risk): kaplan_meier(group["followup_months"], group["death"])
            for risk, group in patients[patients["survival_included"]].groupby(f"risk_{source}")
        }
        for source in ("man", "cnn")
    }


def follow_up(months: Values, death: Values) -> tuple[np.ndarray, np.ndarray]:
    """Checked follow-up of n >= 1 patients: months (n,) float from 0 and whether each died at their end (n,) bool."""
    times = numbers(months, "months")
    died = _binary(death, "death", len(times))
    if not len(times):
        raise CannotEstimateError("there are no patients")
    if (times < 0).any():
        raise InputError("months is negative", value=float(times.min()), remedy="count from the PET/CT scan onwards.")
    return times, died


def numbers(values: Values, name: str) -> np.ndarray:
    """Finite numbers (n,); raises `InputError` that calls them `name`."""
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers", value=values) from None
    if found.ndim != 1:
        raise InputError(f"{name} must have one dimension", value=found.shape)
    if not np.isfinite(found).all():
        raise InputError(f"{name} holds a missing or infinite value", remedy="leave these patients out.")
    return found


def _binary(values: Values, name: str, n: int) -> np.ndarray:
    found = numbers(values, name)
    if len(found) != n:
        raise InputError(f"{name} has {len(found)} values, months has {n}")
    if not np.isin(found, (0, 1)).all():
        raise InputError(f"{name} must be 0 or 1", value=float(found[~np.isin(found, (0, 1))][0]))
    return found.astype(bool)


# --- summary.json

_ESTIMATES = ("hr", "hr_ci95", "p", "logrank_chi2", "logrank_p", "concordance", "concordance_ci95")


def comparison(
    patients: Sequence[str],
    months: np.ndarray,
    death: np.ndarray,
    man_ml: np.ndarray,
    cnn_ml: np.ndarray,
    cutoff_ml: float,
) -> dict[str, Any]:
    """Survival by the reference's and by the prediction's burdens (n,), both cut at `cutoff_ml`, and where they differ.

    High risk is a burden above the cutoff. Discordant are patients whose groups differ.
    """
    high_man, high_cnn = np.asarray(man_ml) > cutoff_ml, np.asarray(cnn_ml) > cutoff_ml
    differ = high_man != high_cnn
    n = len(differ)
    return {
        "man": _by_burden(months, death, man_ml, high_man),
        "cnn": _by_burden(months, death, cnn_ml, high_cnn),
        "discordant": float(differ.mean()),
        "discordant_ci95": list(wilson(int(differ.sum()), n) or ()),
        "n_discordant_high_by_man": int((differ & high_man).sum()),
        "n_discordant_high_by_cnn": int((differ & high_cnn).sum()),
        "discordant_patients": [patient for patient, other in zip(patients, differ, strict=True) if other],
    }


def no_comparison(reason: str) -> dict[str, Any]:
    """The same keys, null."""
    nothing = dict.fromkeys(_ESTIMATES)
    shares = dict.fromkeys(("discordant", "discordant_ci95", "discordant_patients"))
    return {"man": nothing, "cnn": dict(nothing), **shares, "reason": reason}


def _by_burden(months: np.ndarray, death: np.ndarray, burden_ml: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    block: dict[str, Any] = dict.fromkeys(_ESTIMATES)
    block |= {"n_high": int(high.sum()), "events_high": int(death[high].sum())}
    try:
        cox = cox_hazard_ratio(months, death, high)
        block |= {"hr": cox.hr, "hr_ci95": list(cox.ci95), "p": cox.p}
    except CannotEstimateError as error:
        block["hr_reason"] = error.problem
    try:
        test = logrank(months, death, high)
        block |= {"logrank_chi2": test.chi2, "logrank_p": test.p}
    except CannotEstimateError as error:
        block["logrank_reason"] = error.problem
    try:
        order = concordance_interval(months, death, burden_ml)
        block |= {"concordance": order.c, "concordance_ci95": list(order.ci95)}
    except CannotEstimateError as error:
        block["concordance_reason"] = error.problem
    return block
