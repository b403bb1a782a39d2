"""The burden beside what else is known of the patients: the adjusted Cox model, the sites one by one, missing data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mtvlib import cox
from mtvlib.followup import SOURCES, log2_burden
from mtvlib.intervals import LEVEL
from mtvlib.survival import CannotEstimateError

MIN_SITE_EVENTS = 5  # Vittinghoff and McCulloch 2007: from five events on, the interval of one coefficient is sound
MOST_MISSING = 0.5  # share of patients in whom a covariate may be unknown and still enter the model
_STAGES = re.compile(r"(?:UICC|AJCC|STAGE|\s)*(IV|III|II|I|[1-4]|0)\s*[ABC]?")
_HPV = {
    **dict.fromkeys(("positive", "pos", "+", "yes", "1", "1.0", "p16+", "hpv+"), 1.0),
    **dict.fromkeys(("negative", "neg", "-", "no", "0", "0.0", "p16-", "hpv-"), 0.0),
}


# --- covariates


def decades(age: pd.Series) -> pd.Series:
    """Age in tens of years; NaN where it is unknown."""
    return pd.to_numeric(age, errors="coerce") / 10


def stage_iv(stage: pd.Series) -> pd.Series:
    """1 for stage IV (with IVA to IVC), 0 for lower ones, NaN where unknown; Roman or Arabic, `Stage` before or not."""
    found = stage.astype("string").str.strip().str.upper().str.removesuffix(".0").str.fullmatch(_STAGES.pattern)
    numeral = stage.astype("string").str.upper().str.contains(r"IV|4")
    return numeral.astype("Float64").where(found.fillna(False)).astype(float)


def hpv_positive(hpv: pd.Series) -> pd.Series:
    """1 for HPV or p16 positive, 0 for negative, NaN for anything else (empty, `unknown`)."""
    return hpv.astype("string").str.strip().str.lower().map(_HPV).astype(float)


COVARIATES: Mapping[str, tuple[str, Callable[[pd.Series], pd.Series]]] = {
    "age": ("age", decades),
    "stage_iv": ("stage", stage_iv),
    "hpv_positive": ("hpv", hpv_positive),
}


def covariates(patients: pd.DataFrame) -> pd.DataFrame:
    """Columns `COVARIATES` as numbers (n, k), NaN where unknown; a column that the cohort lacks is absent."""
    there = {name: parse(patients[column]) for name, (column, parse) in COVARIATES.items() if column in patients}
    return pd.DataFrame(there, index=patients.index)


# --- the adjusted model


def adjusted(patients: pd.DataFrame) -> dict[str, Any]:
    """Cox model of log2(TTB + 1) with age, stage IV and HPV, stratified by site, of patients in whom all is known.

    A covariate that is unknown in more than `MOST_MISSING` of the patients, or alike in all, is left out and named.
    Strata are made if at least two sites have deaths. `burden_alone`: the burden without the covariates in the same
    patients, so that a difference is not one of patients. Raises `TooFewEventsError` below ten deaths a coefficient
    among the complete cases, `CannotEstimateError` where no covariate is left or the likelihood has no maximum.
    """
    known = covariates(patients)
    left_out = _left_out(known)
    used = [name for name in known if name not in left_out]
    if not used:
        raise CannotEstimateError(f"no adjusted model: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    complete = known[used].notna().all(axis=1)
    rows, events = patients[complete], int(patients.loc[complete, "death"].sum())
    cox.refuse_few_events("adjusted model", events, 1 + len(used))
    sites = rows.loc[rows["death"] == 1, "site"].nunique()
    block: dict[str, Any] = {
        "n": len(rows),
        "events": events,
        "n_missing": {name: int(known[name].isna().sum()) for name in known},
        "left_out": left_out,
        "stratified_by_site": sites > 1,
    }
    strata = rows["site"] if sites > 1 else None
    for source in SOURCES:
        frame = known.loc[complete, used].assign(burden=log2_burden(rows[f"ttb_{source}_ml"]))
        model = cox.fit(frame[["burden", *used]], rows["followup_months"], rows["death"], strata)
        block[source] = {name: hazard_entries(model, name) for name in model.names}
        alone = cox.fit(frame[["burden"]], rows["followup_months"], rows["death"], strata)
        block[source]["burden_alone"] = hazard_entries(alone, "burden")
    return block


def _left_out(known: pd.DataFrame) -> dict[str, str]:
    """Covariates that cannot enter the model, and why."""
    reasons = {}
    for name, (column, _) in COVARIATES.items():
        if name not in known:
            reasons[name] = f"the cohort has no column {column}"
        elif known[name].isna().mean() > MOST_MISSING:
            reasons[name] = f"known in only {known[name].notna().sum()} of {len(known)} patients"
        elif known[name].nunique() < 2:
            reasons[name] = "the same in all patients"
    return reasons


def hazard_entries(model: cox.Cox, name: str) -> dict[str, Any]:
    found = model.hazard_ratio(name)
    return {"hr": found.hr, "hr_ci95": list(found.ci95), "p": found.p}


# --- sites


def sites(patients: pd.DataFrame, source: str) -> dict[str, Any]:
    """Hazard ratio per doubling of a source's burden in each site, pooled, with Cochran's Q and I2 between sites.

    A site with fewer than `MIN_SITE_EVENTS` deaths has a reason instead. Pooled is the inverse-variance mean (fixed
    effect) of the log hazard ratios; I2 and its interval by Higgins and Thompson 2002.
    """
    found: dict[str, Any] = {}
    betas, variances = [], []
    for site, rows in patients.groupby("site"):
        found[str(site)] = {"n": len(rows), "events": int(rows["death"].sum())}
        try:
            model = _of_site(rows, source)
        except CannotEstimateError as error:
            found[str(site)] |= {"hr": None, "hr_ci95": None, "p": None, "hr_reason": error.problem}
            continue
        found[str(site)] |= hazard_entries(model, "burden")
        betas.append(float(model.beta[0]))
        variances.append(float(model.covariance[0, 0]))
    return {"sites": found, "heterogeneity": heterogeneity(np.array(betas), np.array(variances))}


def _of_site(rows: pd.DataFrame, source: str) -> cox.Cox:
    events = int(rows["death"].sum())
    if events < MIN_SITE_EVENTS:
        raise CannotEstimateError(f"fewer than {MIN_SITE_EVENTS} deaths")
    frame = pd.DataFrame({"burden": log2_burden(rows[f"ttb_{source}_ml"])}, index=rows.index)
    return cox.fit(frame, rows["followup_months"], rows["death"])


def heterogeneity(betas: np.ndarray, variances: np.ndarray) -> dict[str, Any]:
    """Of k log hazard ratios (k,): pooled `hr`, Cochran's `q` with k - 1 degrees of freedom and `p`, `i2`."""
    k = len(betas)
    if k < 2:
        return {"reason": f"the hazard ratio is estimable in {k} site{'' if k == 1 else 's'}, two are needed"}
    weights = 1 / variances
    pooled, half = float(weights @ betas / weights.sum()), stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(weights.sum())
    q = float(weights @ (betas - pooled) ** 2)
    interval = _i2_interval(q, k)
    block = {
        "hr": float(np.exp(pooled)),
        "hr_ci95": [float(np.exp(pooled - half)), float(np.exp(pooled + half))],
        "q": q,
        "df": k - 1,
        "q_p": float(stats.chi2.sf(q, k - 1)),
        "i2": max(0.0, 1 - (k - 1) / q) if q else 0.0,
        "i2_ci95": interval,
    }
    return block | ({} if interval else {"i2_reason": "no interval of I2: it needs three sites"})


def _i2_interval(q: float, k: int) -> list[float] | None:
    """From the test-based interval of H = sqrt(Q / (k - 1)) (Higgins and Thompson 2002, equation 16)."""
    if k < 3:
        return None
    log_h = np.log(q / (k - 1)) / 2 if q else 0.0
    se = (
        (np.log(q) - np.log(k - 1)) / 2 / (np.sqrt(2 * q) - np.sqrt(2 * k - 3))
        if q > k
        else np.sqrt(1 / (2 * (k - 2)) * (1 - 1 / (3 * (k - 2) ** 2)))
    )
    half = stats.norm.ppf((1 + LEVEL) / 2) * se
    h = np.exp(np.array([log_h - half, log_h + half]))
    return [float(end) for end in np.maximum(0, 1 - 1 / h**2)]


# --- missing data

SURVIVAL_COLUMNS = ("survival_eligible", "followup_months", "death")


def missing(patients: pd.DataFrame, min_followup_months: float) -> dict[str, Any]:
    """Why patients (rows of patients.csv) are not in the survival analysis, each counted once, in this order.

    `n_not_eligible` (not marked 1), `n_outcome_unknown` (months or death missing), `n_short_followup`, and of the
    latter the deaths: they are left out as well (paper, "Survival analysis"), so that survival is that of patients who
    lived for `min_followup_months`. `covariates`: unknown among the patients that are in.
    """
    absent = [name for name in SURVIVAL_COLUMNS if name not in patients]
    block: dict[str, Any] = {"n": len(patients), "columns_absent": absent}
    if absent:
        return block | {"n_included": 0, "reason": f"the cohort has no column {', '.join(absent)}"}
    months, death = (pd.to_numeric(patients[name]) for name in ("followup_months", "death"))
    not_eligible = pd.to_numeric(patients["survival_eligible"]) != 1
    unknown = ~not_eligible & (months.isna() | death.isna())
    short = ~not_eligible & ~unknown & (months < min_followup_months)
    included = patients[~(not_eligible | unknown | short)]
    return block | {
        "n_included": len(included),
        "n_not_eligible": int(not_eligible.sum()),
        "n_outcome_unknown": int(unknown.sum()),
        "n_short_followup": int(short.sum()),
        "n_short_followup_deaths": int(death[short].sum()),
        "covariates": {name: _n_missing(included, name) for name in COVARIATES},
    }


def _n_missing(included: pd.DataFrame, name: str) -> dict[str, Any]:
    column, parse = COVARIATES[name]
    if column not in included:
        return {"n_missing": None, "reason": f"the cohort has no column {column}"}
    return {"n_missing": int(parse(included[column]).isna().sum())}
