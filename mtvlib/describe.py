"""What a cohort is like: a journal's Table 1 by partition, the same by site, and how far the partitions differ.

Unknown values are counted, never dropped without a word: an empty cell and the words of `UNKNOWN` are missing, and
every share and quartile is of the known ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from mtvlib.cohort import SPLITS
from mtvlib.intervals import Estimate

UNKNOWN = ("", "unknown", "missing", "not available", "not known", "na", "n/a", "nan", "?")
SCANNER = "scanner"  # a column that a cohort may have
NORMAL_97_5 = 1.959964  # 97.5th percentile of the standard normal distribution


@dataclass(frozen=True)
class Variable:
    """A column of cohort.csv or patients.csv, its name for readers, and how it is described."""

    column: str
    title: str
    kind: Literal["number", "category", "share"]  # share: 0/1, described by the number of ones
    digits: int = 1


CLINICAL = (
    Variable("age", "Age (years)", "number", 0),
    Variable("sex", "Sex", "category"),
    Variable("tumour_site", "Tumour site", "category"),
    Variable("stage", "Stage", "category"),
    Variable("hpv", "HPV", "category"),
    Variable("survival_eligible", "Eligible for survival analysis", "share"),
    Variable("followup_months", "Follow-up to death or last contact (months)", "number"),
    Variable("death", "Deaths", "share"),
)
BURDEN = (
    Variable("mtv_primary_man_ml", "MTV of the primary tumour (ml)", "number"),
    Variable("mtv_nodes_man_ml", "MTV of the lymph nodes (ml)", "number"),
    Variable("ttb_man_ml", "TTB (ml)", "number"),
    Variable("suvmax_man", "SUVmax", "number"),
    Variable("n_nodes_man", "Lymph node metastases (number)", "number", 0),
)


def table_one(patients: pd.DataFrame, variables: Sequence[Variable]) -> dict[str, Any]:
    """Each variable by cohort, with what is missing, and its standardised mean difference if there are two cohorts.

    `patients` has `cohort` (main, external) and any of the variables' columns. For instance {"n": {"main": 36,
    "external": 10}, "absent": ["HPV"], "variables": {"age": {"main": {"n": 35, "missing": 1, "median": 61.0, "iqr":
    [56.0, 67.0]}, "external": {...}, "smd": 0.2, "smd_ci95": [-0.5, 0.9]}}}; a category has `counts` and a share
    `count` in place of median and iqr.
    """
    parts = {cohort: patients[patients["cohort"] == cohort] for cohort in SPLITS}
    parts = {cohort: part for cohort, part in parts.items() if len(part)}
    present = [variable for variable in variables if variable.column in patients]
    return {
        "n": {cohort: len(part) for cohort, part in parts.items()},
        "absent": [variable.title for variable in variables if variable.column not in patients],
        "variables": {variable.column: _by_cohort(parts, variable) for variable in present},
    }


def by_site(patients: pd.DataFrame, variables: Sequence[Variable]) -> list[dict[str, Any]]:
    """One row a cohort and site: `cohort`, `site`, `n`, `scanners` (name -> n; {} without that column), `variables`.

    `variables` maps columns to what `table_one` says of a cohort; main before external, sites by name.
    """
    rows = []
    for cohort in SPLITS:
        for site, part in patients[patients["cohort"] == cohort].groupby("site", sort=True):
            scanners = _categories(part[SCANNER]).value_counts() if SCANNER in part else {}
            about = {v.column: summary(part[v.column], v) for v in variables if v.column in part}
            row = {"cohort": cohort, "site": str(site), "n": len(part), "variables": about}
            rows.append(row | {"scanners": {str(name): int(n) for name, n in scanners.items()}})
    return rows


def _by_cohort(parts: Mapping[str, pd.DataFrame], variable: Variable) -> dict[str, Any]:
    columns = {cohort: part[variable.column] for cohort, part in parts.items()}
    about: dict[str, Any] = {cohort: summary(values, variable) for cohort, values in columns.items()}
    if len(columns) < 2:
        return about
    main, external = columns.values()
    return about | difference(main, external, variable).entries("smd")


# --- one variable of one group


def summary(values: pd.Series, variable: Variable) -> dict[str, Any]:
    """Known and missing values, and median and quartiles, counts of the categories, or the number of ones."""
    known = _known(values, variable)
    about: dict[str, Any] = {"n": len(known), "missing": len(values) - len(known)}
    if variable.kind == "share":
        return about | {"count": int((known == 1).sum())}
    if variable.kind == "category":
        return about | {"counts": {str(name): int(n) for name, n in known.value_counts().sort_index().items()}}
    q25, q50, q75 = np.quantile(known, [0.25, 0.5, 0.75]).tolist() if len(known) else [None] * 3
    return about | {"median": q50, "iqr": None if q50 is None else [q25, q75]}


def _known(values: pd.Series, variable: Variable) -> pd.Series:
    if variable.kind == "category":
        return _categories(values)
    return pd.to_numeric(values, errors="coerce").dropna().astype(float)


def _categories(values: pd.Series) -> pd.Series:
    return as_categories(values).dropna()


def as_categories(values: pd.Series) -> pd.Series:
    """Categories as text, missing where the cell is empty or says so; a stage read as 4.0 is 4."""
    texts = values.map(_as_text).astype(str)
    return texts.where(~texts.str.lower().isin(UNKNOWN)).astype(object)


def _as_text(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip() if not pd.isna(value) else ""


# --- standardised mean differences


def difference(main: pd.Series, external: pd.Series, variable: Variable) -> Estimate:
    """Standardised mean difference of the cohorts' known values; None with a reason where there is none."""
    known = [_known(values, variable) for values in (main, external)]
    if min(map(len, known)) < 2:
        return Estimate(None, None, "fewer than two known values in one of the cohorts")
    if variable.kind == "number":
        return smd_of_numbers(*(values.to_numpy() for values in known))
    counts = [values.value_counts() for values in known]
    names = sorted(set(counts[0].index) | set(counts[1].index))
    return smd_of_categories(*(count.reindex(names, fill_value=0).to_numpy() for count in counts))


def smd_of_numbers(first: np.ndarray, second: np.ndarray) -> Estimate:
    """(mean1 - mean2) / sqrt((s1^2 + s2^2) / 2) of two samples (n1,), (n2,), with s^2 the sample variances.

    Interval: `_smd_interval`. Cohen 1988; as recommended for the balance of two groups by Austin, Stat Med
    2009;28:3083, equation 1.
    """
    spread = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    if spread == 0:
        return Estimate(None, None, "no spread within the cohorts")
    smd = float(np.mean(first) - np.mean(second)) / spread
    return Estimate(smd, _smd_interval(smd, len(first), len(second)))


def smd_of_categories(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Distance of two multinomial samples, from their counts (k,), never negative.

    sqrt((p1 - p2)' S^-1 (p1 - p2)) with p the shares of all categories but one and S the mean of the two samples'
    covariance matrices (Yang and Dalton 2012, SAS Global Forum, paper 335); it does not depend on which category is
    left out. Of two categories it is Austin's (2009, equation 2) |p1 - p2| / sqrt((p1 (1 - p1) + p2 (1 - p2)) / 2),
    with `_smd_interval`; of more there is no interval. Infinite, hence None, for samples without a common category.
    """
    there = (first + second) > 0
    p1, p2 = (counts[there] / counts.sum() for counts in (first, second))
    if len(p1) < 2:
        return Estimate(None, None, "all patients are of one category")
    if not np.any((p1 > 0) & (p2 > 0)):
        return Estimate(None, None, "the cohorts have no category in common")
    apart, covariance = (p1 - p2)[1:], (_covariance(p1[1:]) + _covariance(p2[1:])) / 2
    smd = math.sqrt(max(float(apart @ np.linalg.solve(covariance, apart)), 0.0))
    if len(p1) > 2:
        return Estimate(smd)
    low, high = _smd_interval(smd, int(first.sum()), int(second.sum()))
    return Estimate(smd, (max(low, 0.0), high))


def _covariance(shares: np.ndarray) -> np.ndarray:
    return np.diag(shares) - np.outer(shares, shares)


def _smd_interval(smd: float, n1: int, n2: int) -> tuple[float, float]:
    """95 %, by the large-sample variance (n1 + n2) / (n1 n2) + d^2 / (2 (n1 + n2)) (Hedges and Olkin 1985, p. 86)."""
    half = NORMAL_97_5 * math.sqrt((n1 + n2) / (n1 * n2) + smd**2 / (2 * (n1 + n2)))
    return smd - half, smd + half
