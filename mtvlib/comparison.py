"""Several methods on the same patients: paired differences with intervals, tests and effect sizes.

The unit is the person: his or her rows are resampled, swapped and ranked together. Every function takes the methods'
tables in the form of patients.csv, in which `cnn` stands for the method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import metrics
from mtvlib.classes import TARGETS
from mtvlib.cohort import SPLITS, persons_of, sites_of
from mtvlib.errors import InputError
from mtvlib.intervals import CHUNK, Bootstrap, Estimate, interval_columns, ratio, wilson
from mtvlib.params import Params

MOST_FOR_ALL_PAIRS = 3  # methods; of more, each is compared with the first
EXACT_WILCOXON = 50  # differences other than 0, up to which the p value is exact
EXACT_SWAPS, SWAPS = 13, 9999  # persons up to which all swaps are made, and how many are drawn of more
DECIMALS = 12  # to which differences are rounded before they are ranked: rounding errors are ties
VOLUME_ERROR = "mean_absolute_volume_error_ml"
COLUMN_OF = {  # measure that is a mean over patients -> column of patients.csv, by target
    "mean_dsc": "dsc_{}",
    "mean_surface_dsc_2_5mm": "surface_dsc_2_5mm_{}",
    "mean_hd95_mm": "hd95_{}_mm",
}
MEASURES = ("cohort_dsc", "mean_dsc", "mean_surface_dsc_2_5mm", VOLUME_ERROR, "mean_hd95_mm")
LOWER_IS_BETTER = (VOLUME_ERROR, "mean_hd95_mm")
TESTS = (
    "Differences are method - other. Intervals: 95 %, percentiles of a bootstrap over persons (and sites, of three or "
    "more); Wilson for the share of persons in whom the method is better. Wilcoxon signed-rank test: zeros are ranked "
    f"(Pratt), exact up to {EXACT_WILCOXON} differences other than 0, else normal. Permutation test of the difference: "
    f"the two methods swapped within persons, all swaps up to {EXACT_SWAPS} persons, else {SWAPS} drawn. All tests are "
    "two-sided, and below six persons none can reach 0.05. p_holm: Holm's correction over all pairs of methods, targets"
    " and measures of a partition that were tested so. rank_biserial: matched pairs, from -1 to 1, positive where the "
    "method is the better of the two"
)
NOBODY_HAS_IT = "no patient has it in the reference or by either method"
COLUMNS = (
    *("partition", "target", "measure", "method", "other", "n_persons", "n_left_out", "value", "other_value"),
    *("difference", "difference_low", "difference_high", "difference_reason"),
    *("n_better", "n_worse", "n_equal", "better_share", "better_share_low", "better_share_high"),
    *("rank_biserial", "rank_biserial_low", "rank_biserial_high", "rank_biserial_reason"),
    *("wilcoxon_p", "wilcoxon_p_holm", "permutation_p", "permutation_p_holm", "reason"),
)


def comparison(tables: Mapping[str, pd.DataFrame], params: Params) -> pd.DataFrame:
    """Every comparison of comparison.csv, a row each, in the order of `COLUMNS`.

    `tables`: name -> patients.csv of each method, with the same patients. Each method is compared with the first; up to
    three, every pair. A measure whose columns are absent is left out. Patients without its value by one of the two (no
    surface in an empty mask) are left out of the pair and counted in `n_left_out`: a distance says nothing of those
    whom a method failed. Raises `InputError` for fewer
    than two methods, other patients or other references.
    """
    aligned = _aligned(tables)
    rows = [
        row
        for cohort, partition in SPLITS.items()
        for method, other in pairs(list(tables))
        for row in _of_pair(cohort, partition, (method, other), aligned, params)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for name in ("wilcoxon_p", "permutation_p"):
        corrected = table.groupby("partition")[name].transform(lambda p: holm(p.to_numpy(float)))
        table[f"{name}_holm"] = corrected.astype(float)
    return table


def pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(method, other): every pair of up to three methods, else each with the first; the earlier one is the other."""
    if len(methods) <= MOST_FOR_ALL_PAIRS:
        return [(method, other) for other, method in combinations(methods, 2)]
    return [(method, methods[0]) for method in methods[1:]]


def _aligned(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with their rows in the order of the first."""
    if len(tables) < 2:
        raise InputError("a comparison needs two methods or more", value=", ".join(tables) or "none")
    (first, table), *_ = tables.items()
    aligned = {name: other.set_index("patient", drop=False) for name, other in tables.items()}
    for name, other in aligned.items():
        differing = sorted(set(table["patient"]) ^ set(other.index))
        if differing or other.index.has_duplicates:
            value = ", ".join(differing[:5]) or "patients that come twice"
            raise InputError(f"methods {first} and {name} were evaluated on other patients", value=value)
        aligned[name] = other.loc[table["patient"]]
        if not np.allclose(aligned[name]["ttb_man_ml"], table["ttb_man_ml"]):
            raise InputError(f"methods {first} and {name} were evaluated against other references")
    return aligned


def _of_pair(
    cohort: str, partition: str, pair: tuple[str, str], tables: Mapping[str, pd.DataFrame], params: Params
) -> Iterator[dict[str, Any]]:
    """The rows of two methods in one partition."""
    method, other = (tables[name][tables[name]["cohort"] == cohort] for name in pair)
    if method.empty:
        return
    persons = np.array(persons_of(method))
    sites = np.array(sites_of(method))
    names = {"partition": partition, "method": pair[0], "other": pair[1]}
    for measure, target in product(MEASURES, TARGETS):
        one, two = (patient_counts(table, measure, target) for table in (method, other))
        if one is not None and two is not None:
            about = names | {"target": target, "measure": measure}
            absent = not any(volumes_ml(table, target).any() for table in (method, other))
            yield about | (_nothing(persons) if absent else compare(one, two, measure, persons, sites, params))


def _nothing(persons: np.ndarray) -> dict[str, Any]:
    return {"n_persons": len(set(persons)), "n_left_out": 0, "reason": NOBODY_HAS_IT}


def patient_counts(patients: pd.DataFrame, measure: str, target: str) -> np.ndarray | None:
    """What the patients add to a measure's sums (n, k): (man, cnn, both) in ml of the cohort DSC, else (value, 1).

    NaN where a patient has no value; None without the measure's column.
    """
    man, cnn = volumes_ml(patients, target).T
    if measure == "cohort_dsc":
        return np.column_stack([man, cnn, patients[f"both_{target}_ml"]])
    column = COLUMN_OF.get(measure, "").format(target)
    if measure != VOLUME_ERROR and column not in patients:
        return None
    values = np.abs(cnn - man) if measure == VOLUME_ERROR else patients[column].to_numpy(float)
    return np.column_stack([values, np.ones(len(values))])


def volumes_ml(patients: pd.DataFrame, target: str) -> np.ndarray:
    """The patients' volumes (n, 2) of a target in the reference and by the method."""
    volume = "ttb" if target == "all" else f"mtv_{target}"
    return patients[[f"{volume}_man_ml", f"{volume}_cnn_ml"]].to_numpy(float)


def _value(measure: str) -> Callable[[np.ndarray], np.ndarray]:
    """The measure from its sums (..., k)."""
    if measure == "cohort_dsc":
        return lambda sums: metrics.cohort_dsc(*np.moveaxis(sums, -1, 0))
    return lambda sums: ratio(sums[..., 0], sums[..., 1])


# --- one pair, one target, one measure


def compare(
    method: np.ndarray, other: np.ndarray, measure: str, persons: np.ndarray, sites: np.ndarray, params: Params
) -> dict[str, Any]:
    """One comparison from the patients' counts (n, k) of both methods; what is undefined is None, with its reason."""
    kept = np.isfinite(method).all(axis=1) & np.isfinite(other).all(axis=1)
    row: dict[str, Any] = {"n_persons": len(set(persons[kept])), "n_left_out": int((~kept).sum())}
    if not kept.any():
        return row | {"reason": "no patient has a value by both methods"}
    value = _value(measure)
    values = [float(value(counts[kept].sum(axis=0))) for counts in (method, other)]
    if not np.isfinite(values).all():
        return row | {"reason": "undefined: the target is in neither the reference nor the masks of one method"}
    one, two = (_by_person(counts[kept], persons[kept]) for counts in (method, other))
    row |= {"value": values[0], "other_value": values[1]}
    rows = Bootstrap.of_persons(params.bootstrap_resamples, params.seed, persons[kept].tolist(), sites[kept].tolist())
    bootstrap = replace(rows, persons=None)  # of the persons' counts
    row |= _entries("difference", _difference(one, two, value, bootstrap))
    row["permutation_p"] = swap_p(one, two, value, params.seed)
    if measure == "cohort_dsc":  # no patient has one of his or her own
        return row
    return row | _ranked(value(one) - value(two), measure, bootstrap)


def _by_person(counts: np.ndarray, persons: np.ndarray) -> np.ndarray:
    """The persons' counts (m, k), each the sum over the person's rows."""
    codes, names = pd.factorize(persons)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, codes, counts)
    return sums


def _difference(
    method: np.ndarray, other: np.ndarray, value: Callable[[np.ndarray], np.ndarray], bootstrap: Bootstrap
) -> Estimate:
    k = method.shape[1]
    found = bootstrap.of_sums(
        np.column_stack([method, other]), lambda sums: {"difference": value(sums[..., :k]) - value(sums[..., k:])}
    )["difference"]
    return with_width(found)


def with_width(estimate: Estimate) -> Estimate:
    """Without its interval where that has no width: it would claim a certainty that the bootstrap cannot give."""
    if estimate.ci95 and estimate.ci95[1] - estimate.ci95[0] < 10**-DECIMALS:
        return Estimate(estimate.value, None, "no interval: persons differ alike, so every resample gives the same")
    return estimate


def _ranked(differences: np.ndarray, measure: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Wilcoxon's test and effect sizes from the persons' differences (m,)."""
    differences = np.round(differences, DECIMALS)
    gains = -differences if measure in LOWER_IS_BETTER else differences
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    share = Estimate(better / len(gains), wilson(better, len(gains)))
    effect = with_width(bootstrap.of_sample(gains[:, None], _effect, {"r": "no person differs"})["r"])
    counts = {"n_better": better, "n_worse": worse, "n_equal": len(gains) - better - worse}
    return counts | {
        **_entries("better_share", share),
        **_entries("rank_biserial", effect),
        "wilcoxon_p": wilcoxon_p(differences),
    }


def _effect(gains: np.ndarray) -> dict[str, np.ndarray]:
    return {"r": rank_biserial(gains[..., 0])}


def _entries(key: str, estimate: Estimate) -> dict[str, Any]:
    return {**interval_columns(key, estimate), f"{key}_reason": estimate.reason}


# --- tests and effect size


def signed_ranks(differences: np.ndarray) -> np.ndarray:
    """Ranks (..., n) of the absolute differences, with their signs; equal ones share the mean of their ranks.

    Zeros are ranked too, and then count neither way (Pratt 1959, J Am Stat Assoc 54:655).
    """
    from scipy.stats import rankdata

    return np.sign(differences) * rankdata(np.abs(differences), axis=-1)


def rank_biserial(differences: np.ndarray) -> np.ndarray:
    """(W+ - W-) / (W+ + W-) of signed ranks (..., n): 1 if all are positive (Kerby 2014); NaN if all are 0."""
    ranks = signed_ranks(differences)
    return ratio(ranks.sum(-1), np.abs(ranks).sum(-1))


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test of symmetry about 0 (Wilcoxon 1945); 1 if all differences are 0.

    Given the ranks, ties and zeros included, every sign is equally likely; so W+ - W- has mean 0 and variance the sum
    of the squared ranks. Up to `EXACT_WILCOXON` differences other than 0 its distribution is counted, beyond it is
    taken for normal (no correction for continuity). Below six differences p cannot fall under 0.05.
    """
    from scipy.stats import norm

    ranks = signed_ranks(np.asarray(differences, float))
    ranks = ranks[ranks != 0]
    if not len(ranks):
        return 1.0
    if len(ranks) > EXACT_WILCOXON:
        return float(2 * norm.sf(abs(ranks.sum()) / np.sqrt((ranks**2).sum())))
    return _exact_p(np.rint(2 * ranks).astype(int))


def _exact_p(doubled: np.ndarray) -> float:
    """Share of the 2^n choices of signs whose W+ lies as far from its mean; twice the ranks, which are then whole."""
    ways = np.zeros(np.abs(doubled).sum() + 1)  # by twice W+
    ways[0] = 1
    for rank in np.abs(doubled):
        ways[rank:] = ways[rank:] + ways[:-rank]
    from_mean = np.abs(2 * np.arange(len(ways)) - (len(ways) - 1))
    return float(ways[from_mean >= abs(doubled.sum())].sum() / ways.sum())


def swap_p(method: np.ndarray, other: np.ndarray, value: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> float:
    """Two-sided p of a difference of `value` of sums, if the two methods are exchangeable within each person.

    Counts (m, k) of the persons. For a mean this is the sign-flip test of paired differences (Good 2005, chapter 3).
    All swaps are made where there are few persons; else `SWAPS` are drawn, and the one observed counts among them
    (Phipson and Smyth 2010), so that p is never 0.
    """
    middle, half = (method + other).sum(axis=0) / 2, (method - other) / 2
    observed = _apart(middle, half.sum(axis=0), value)
    few = len(half) <= EXACT_SWAPS
    as_far = sum(
        int((_apart(middle, signs @ half, value) >= observed * (1 - 1e-9)).sum())
        for signs in (_all_signs(len(half)) if few else _drawn_signs(len(half), seed))
    )
    return as_far / 2 ** len(half) if few else (1 + as_far) / (1 + SWAPS)


def _apart(middle: np.ndarray, shift: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Absolute difference of the value of sums (..., k) that lie `shift` to either side; 0 where one is undefined."""
    return np.nan_to_num(np.abs(value(middle + shift) - value(middle - shift)))


def _all_signs(n: int) -> Iterator[np.ndarray]:
    yield np.array(list(product((-1.0, 1.0), repeat=n)))


def _drawn_signs(n: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    for first in range(0, SWAPS, rows):
        yield generator.choice((-1.0, 1.0), size=(min(rows, SWAPS - first), n))


def holm(p: np.ndarray) -> np.ndarray:
    """p values (n,) corrected for their number (Holm 1979): the smallest times n, the next times n - 1, ..., at most 1.

    NaN are no tests: they stay, and are not counted.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN come last
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


# --- summary.json and comparison.json


def as_json(table: pd.DataFrame) -> dict[str, Any]:
    """The content of comparison.json: for each partition the list of comparisons, with intervals and reasons."""
    rows = {partition: table[table["partition"] == partition].to_dict("records") for partition in SPLITS.values()}
    return {"tests": TESTS} | {partition: [_block(row) for row in own] for partition, own in rows.items()}


def _block(row: Mapping[str, Any]) -> dict[str, Any]:
    row = {str(key): None if pd.isna(value) else value for key, value in row.items()}
    block: dict[str, Any] = {key: row[key] for key in ("target", "measure", "method", "other")}
    block |= {key: int(row[key]) for key in ("n_persons", "n_left_out")}
    if row["reason"]:
        nothing = ("value", "other_value", "difference", "difference_ci95", "wilcoxon_p", "permutation_p")
        return block | dict.fromkeys(nothing) | {"reason": row["reason"]}
    block |= {key: row[key] for key in ("value", "other_value")}
    block |= _estimate(row, "difference")
    block["permutation"] = {"p": row["permutation_p"], "p_holm": row["permutation_p_holm"]}
    if row["wilcoxon_p"] is None:
        return block
    block["wilcoxon"] = {"p": row["wilcoxon_p"], "p_holm": row["wilcoxon_p_holm"]}
    block |= {key: int(row[key]) for key in ("n_better", "n_worse", "n_equal")}
    return block | _estimate(row, "better_share") | _estimate(row, "rank_biserial")


def _estimate(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    ends = None if low is None else (float(low), float(high))
    return Estimate(row[key], ends, row.get(f"{key}_reason")).entries(key)
