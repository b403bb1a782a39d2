"""Pairs of lesions, one reference lesion to one predicted: F1, and the sensitivity by volume and by uptake.

The paper's Table 3 judges each lesion by its coverage (lesions.py), so that one large prediction may find three nodes.
Here a lesion is paired with at most one of the same class in the other mask: the pairs are those with the largest sum
of IoU (intersection over union) among all that exceed `MATCH_IOU`. Above 0.5 no lesion could have two candidates, but
lesions of a few voxels would fail by a shift of one; 0.1 is the threshold of PI-CAI (Saha et al. 2024, doi
10.1016/S1470-2045(24)00220-1) and of nnDetection (Baumgartner et al. 2021), for detection and not for delineation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mtvlib.classes import LESION_CLASSES
from mtvlib.intervals import Bootstrap, ratio

MATCH_IOU = 0.1
COUNTS = ("n_matched", "n_man", "n_cnn")
VOLUME_LIMITS_ML = (1.0, 5.0)
SUV_MAX_LIMITS = (4.0, 10.0)


def iou(
    reference: Sequence[np.ndarray], prediction: Sequence[np.ndarray], classes: tuple[Sequence[int], Sequence[int]]
) -> np.ndarray:
    """Intersection over union of m reference and n predicted lesions: (m, n), 0 between classes.

    A lesion is the indices of its voxels (k, 3) in arrays of one shape; `classes` are those of the m and n lesions.
    """
    shared = np.zeros((len(reference), len(prediction)))
    if not shared.size:
        return shared
    owner = np.zeros(1 + np.max([voxels.max(axis=0) for voxels in (*reference, *prediction)], axis=0), np.int32)
    for number, voxels in enumerate(prediction, start=1):
        owner[tuple(voxels.T)] = number
    for row, voxels in zip(shared, reference, strict=True):
        row[:] = np.bincount(owner[tuple(voxels.T)], minlength=len(prediction) + 1)[1:]
    sizes = np.add.outer([len(voxels) for voxels in reference], [len(voxels) for voxels in prediction])
    return np.where(np.equal.outer(*classes), shared / (sizes - shared), 0.0)


def pairs(overlap: np.ndarray, threshold: float = MATCH_IOU) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of an IoU matrix (m, n), each above the threshold, with the largest sum of IoU."""
    from scipy.optimize import linear_sum_assignment  # not needed for delineating a patient

    weights = np.where(overlap > threshold, overlap, 0.0)
    assigned = zip(*linear_sum_assignment(weights, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in assigned if weights[row, column] > 0]


# --- the summary


def matching_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Sensitivity, precision and F1 = 2 matched / (man + cnn) from sums (..., 3) in the order of `COUNTS`."""
    matched, man, cnn = np.moveaxis(np.asarray(counts, float), -1, 0)
    return {
        "sensitivity": ratio(matched, man),
        "precision": ratio(matched, cnn),
        "f1": ratio(2 * matched, man + cnn),
    }


def matching(counts: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """The matched lesions of a partition from the patients' counts (n, 3) in the order of `COUNTS`."""
    counts = np.asarray(counts)
    _, man, cnn = counts.T
    reasons = {
        "sensitivity": "no lesion in the reference",
        "precision": "no lesion in the prediction",
        "f1": "no lesion in reference or prediction",
    }
    patients = {"sensitivity": man > 0, "precision": cnn > 0, "f1": man + cnn > 0}
    shares = {name: int(some.sum()) for name, some in patients.items()}
    block: dict[str, Any] = dict(zip(COUNTS, counts.sum(axis=0).tolist(), strict=True))
    for key, estimate in bootstrap.of_sums(counts, matching_rates, reasons, shares).items():
        block |= estimate.entries(key)
    return block


def matching_counts(patients: pd.Series, lesion_table: pd.DataFrame, target: str) -> np.ndarray:
    """Each patient's lesions of a target in lesions.csv, (n, 3) int, in the order of `COUNTS`."""
    own = lesion_table[_of_target(lesion_table, target)]
    man = own["source"] == "man"
    groups = (man & own["matched_lesion"].notna(), man, ~man)
    counts = [own.loc[group, "patient"].value_counts().reindex(patients, fill_value=0) for group in groups]
    return np.column_stack([column.to_numpy() for column in counts])


def _of_target(lesion_table: pd.DataFrame, target: str) -> pd.Series:
    return lesion_table["target"].isin(LESION_CLASSES if target == "all" else [target])


def bins(limits: tuple[float, float], unit: str = "") -> dict[str, tuple[float, float]]:
    """Three bins by their keys, as closed ranges: `below_1_ml`, `1_to_5_ml` (both ends included), `above_5_ml`."""
    low, high = limits
    return {
        f"below_{low:g}{unit}": (-np.inf, np.nextafter(low, -np.inf)),
        f"{low:g}_to_{high:g}{unit}": (low, high),
        f"above_{high:g}{unit}": (np.nextafter(high, np.inf), np.inf),
    }


VOLUME_BINS = bins(VOLUME_LIMITS_ML, "_ml")
SUV_MAX_BINS = bins(SUV_MAX_LIMITS)


def sensitivities(
    patients: pd.Series, lesion_table: pd.DataFrame, target: str, bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """`sensitivity_by_volume` and `sensitivity_by_suv_max` of a target: one block a bin of its reference lesions.

    Each has their number `n`, `tpr` (the paper's, by coverage) and `sensitivity` (by one-to-one pairs).
    """
    own = lesion_table[_of_target(lesion_table, target) & (lesion_table["source"] == "man")]
    return {
        "sensitivity_by_volume": _by_bin(patients, own, own["volume_ml"], VOLUME_BINS, bootstrap),
        "sensitivity_by_suv_max": _by_bin(patients, own, own["suv_max"], SUV_MAX_BINS, bootstrap),
    }


def _by_bin(
    patients: pd.Series,
    own: pd.DataFrame,
    values: pd.Series,
    ranges: Mapping[str, tuple[float, float]],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    values = pd.to_numeric(values)
    outcomes = {"n": True, "tpr": own["outcome"] == "TP", "sensitivity": own["matched_lesion"].notna()}
    counts = [
        own.loc[values.between(*ends) & outcome, "patient"].value_counts().reindex(patients, fill_value=0).to_numpy()
        for ends in ranges.values()
        for outcome in outcomes.values()
    ]
    table = np.column_stack(counts)
    keys = [(name, rate) for name in ranges for rate in ("tpr", "sensitivity")]
    reasons = dict.fromkeys(map("/".join, keys), "no reference lesion of this kind")
    shares = {"/".join(key): int((table[:, 3 * list(ranges).index(key[0])] > 0).sum()) for key in keys}
    estimates = bootstrap.of_sums(table, lambda sums: _rates_by_bin(sums, ranges), reasons, shares)
    totals = dict(zip(ranges, table[:, ::3].sum(axis=0).tolist(), strict=True))
    blocks: dict[str, Any] = {name: {"n": totals[name]} for name in ranges}
    for name, rate in keys:
        blocks[name] |= estimates[f"{name}/{rate}"].entries(rate)
    return blocks


def _rates_by_bin(sums: np.ndarray, ranges: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Rates of each bin from sums (..., 3 x bins): lesions, those found by coverage, those matched."""
    rates: dict[str, np.ndarray] = {}
    for number, name in enumerate(ranges):
        n, covered, matched = (sums[..., 3 * number + place] for place in range(3))
        rates |= {f"{name}/tpr": ratio(covered, n), f"{name}/sensitivity": ratio(matched, n)}
    return rates
