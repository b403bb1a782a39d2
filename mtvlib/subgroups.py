"""How the delineation does in subgroups: DSC by site, patient, disease and uptake, and whether the groups differ.

Exploratory: the groups were not balanced, one patient is in a group of every variable, and few are in most. Groups
are by the reference (`man`) alone, so that no group is chosen by what the network found.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import metrics
from mtvlib.cohort import bootstrap_of
from mtvlib.describe import as_categories
from mtvlib.intervals import Estimate, ratio
from mtvlib.params import Params

MIN_PATIENTS = 5  # a smaller group gets no interval and no part in the test (choice)
MISSING = "missing"
TOO_FEW = f"no interval: fewer than {MIN_PATIENTS} patients"
UNDEFINED = {"cohort_dsc": "no patient of the group has a lesion in reference or prediction"}


@dataclass(frozen=True)
class Grouping:
    """A variable of patients.csv that divides the patients: by its categories, or at `edges`, each the next's first."""

    column: str
    title: str
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


# Edges are choices, and fixed, so that studies can be compared.
GROUPINGS = (
    Grouping("site", "Site"),
    Grouping("tumour_site", "Tumour site"),
    Grouping("stage", "Stage"),
    Grouping("hpv", "HPV"),
    Grouping("sex", "Sex"),
    Grouping("age", "Age (years)", (65,), ("below 65", "65 or more")),
    Grouping("ttb_man_ml", "TTB (ml)", (5, 20), ("below 5", "5 to 20", "20 or more")),
    Grouping("suvmax_man", "SUVmax", (4, 10), ("below 4", "4 to 10", "10 or more")),
    Grouping("n_nodes_man", "Lymph node metastases", (1, 2, 4), ("none", "1", "2 or 3", "4 or more")),
)
TITLES = {grouping.column: grouping.title for grouping in GROUPINGS}


def subgroups(part: pd.DataFrame, params: Params) -> dict[str, Any]:
    """Mean and cohort DSC of primary and nodes together in every subgroup of a partition, for summary.json.

    `part`: rows of patients.csv. `variables` is a list of {"variable", "groups", "kruskal_p", "kruskal_p_holm"}, and a
    group is {"group", "n", "mean_dsc", "mean_dsc_ci95", "cohort_dsc", ...}; `absent` names the variables that
    patients.csv has not got or that no patient has a value of. Intervals: `cohort.bootstrap_of` the group's rows.
    """
    there = [g for g in GROUPINGS if g.column in part and part[g.column].pipe(labels, g).notna().any()]
    blocks = [_variable(part, grouping, params) for grouping in there]
    adjusted = holm([block["kruskal_p"] for block in blocks])
    return {
        "target": "all",
        "min_patients": MIN_PATIENTS,
        "absent": [grouping.column for grouping in GROUPINGS if grouping not in there],
        "variables": [block | {"kruskal_p_holm": p} for block, p in zip(blocks, adjusted, strict=True)],
    }


def labels(values: pd.Series, grouping: Grouping) -> pd.Series:
    """Each patient's group, missing where the value is."""
    if not grouping.edges:
        return as_categories(values)
    numbers = pd.to_numeric(values, errors="coerce")
    edges = [-np.inf, *grouping.edges, np.inf]
    return pd.cut(numbers, edges, right=False, labels=list(grouping.labels)).astype(object)


def _variable(part: pd.DataFrame, grouping: Grouping, params: Params) -> dict[str, Any]:
    group_of = part[grouping.column].pipe(labels, grouping)
    known = group_of.dropna()
    names = in_order(grouping.column, known.unique().tolist())
    groups = [_group(part[group_of == name], name, params) for name in names]
    if group_of.isna().any():
        groups.append(_group(part[group_of.isna()], MISSING, params))
    samples = [part.loc[group_of == name, "dsc_all"].to_numpy(float) for name in names]
    return {"variable": grouping.column, "groups": groups} | heterogeneity(samples)


def _group(rows: pd.DataFrame, name: str, params: Params) -> dict[str, Any]:
    sizes = rows[["ttb_man_ml", "ttb_cnn_ml", "both_all_ml"]].to_numpy(float)
    counts = np.column_stack([sizes, rows["dsc_all"], np.ones(len(rows))])
    shares = {"mean_dsc": len(rows), "cohort_dsc": int((sizes[:, :2].sum(axis=1) > 0).sum())}
    estimates = bootstrap_of(rows, params).of_sums(counts, _dsc_of_sums, UNDEFINED, shares)
    if len(rows) < MIN_PATIENTS:
        estimates = {key: _without_interval(estimate) for key, estimate in estimates.items()}
    block: dict[str, Any] = {"group": name, "n": len(rows)}
    for key, estimate in estimates.items():
        block |= estimate.entries(key)
    return block


def _dsc_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    man, cnn, both, dsc_sum, n = np.moveaxis(sums, -1, 0)
    return {"mean_dsc": ratio(dsc_sum, n), "cohort_dsc": metrics.cohort_dsc(man, cnn, both)}


def _without_interval(estimate: Estimate) -> Estimate:
    return estimate if estimate.value is None else Estimate(estimate.value, None, TOO_FEW)


def in_order(column: str, names: Collection[str]) -> list[str]:
    """Groups of a variable, each once, as its labels follow each other or by name; what is missing comes last."""
    (grouping,) = [one for one in GROUPINGS if one.column == column]
    known = set(names) - {MISSING}
    ordered = [label for label in grouping.labels if label in known] or sorted(known)
    return ordered + ([MISSING] if MISSING in names else [])


# --- do the groups differ?


def heterogeneity(samples: Sequence[np.ndarray]) -> dict[str, Any]:
    """Kruskal-Wallis test (1952, with the correction for ties) of the DSC of groups of at least `MIN_PATIENTS`.

    Null hypothesis: one distribution in all groups. p by the chi-squared distribution with one degree of freedom less
    than groups; rows are taken as independent. Null with a reason where fewer than two groups are large enough.
    """
    large = [sample for sample in samples if len(sample) >= MIN_PATIENTS]
    nothing = {"kruskal_h": None, "kruskal_df": None, "kruskal_p": None}
    if len(large) < 2:
        reason = f"fewer than two groups of {MIN_PATIENTS} patients or more"
        return nothing | {"kruskal_p_reason": reason}
    if np.ptp(np.concatenate(large)) == 0:
        return nothing | {"kruskal_p_reason": "all patients have the same DSC"}
    from scipy import stats  # half a second that delineating a patient does not need

    h, p = stats.kruskal(*large)
    return {"kruskal_h": float(h), "kruskal_df": len(large) - 1, "kruskal_p": float(p)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for their number by Holm's step-down method (1979); what is None stays so and counts not."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = highest
    return adjusted
