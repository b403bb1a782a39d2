"""Free-response ROC curve: lesions found against false positives a patient, over the threshold of the probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import lesions
from mtvlib.calibration import FULL
from mtvlib.intervals import Bootstrap, all_entries, interval_columns, ratio
from mtvlib.params import Params

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# The lowest stored values that reach them; 1e-9 because 255 times 0.6 is a little more than 153.
LEVELS = tuple(math.ceil(FULL * threshold - 1e-9) for threshold in THRESHOLDS)
FALSE_POSITIVES = (0.5, 1, 2)  # a patient, at which the sensitivity is given


def froc_counts(
    reference: np.ndarray, probability: np.ndarray, spacing_mm: Sequence[float], params: Params
) -> np.ndarray:
    """Reference lesions found and false-positive regions of a patient at each of `THRESHOLDS`, (15, 2) int.

    The regions are components of the voxels with a probability of at least the threshold, of either class, those below
    `min_roi_ml` removed. A reference lesion (of one class, as in lesions.csv) is found if they cover at least
    `lesion_coverage` of it; a region is false if the reference, of either class, covers no more than that of it.
    Arrays (x, y, z): classes without small ROIs, and the stored probability of a lesion.
    """
    box = lesions.bounding_box((reference > 0) | (probability >= LEVELS[0]))
    manual, probability = lesions.components(reference[box], params.connectivity), probability[box]
    return np.array([_counts_at(level, manual, probability, spacing_mm, params) for level in LEVELS])


def _counts_at(
    level: int, manual: np.ndarray, probability: np.ndarray, spacing_mm: Sequence[float], params: Params
) -> tuple[int, int]:
    regions = (probability >= level).astype(np.uint8)
    regions = lesions.remove_small_rois(regions, spacing_mm, params.min_roi_ml, params.connectivity)
    numbers = lesions.components(regions, params.connectivity)
    found = _covered(manual, regions > 0) >= params.lesion_coverage
    confirmed = _covered(numbers, manual > 0) > params.lesion_coverage
    return int(found.sum()), int((~confirmed).sum())


def _covered(numbers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of each component that lies in the mask, (components,)."""
    sizes = np.bincount(numbers.ravel(), minlength=1)
    return np.bincount(numbers[mask], minlength=len(sizes))[1:] / sizes[1:]


def froc(counts: np.ndarray, n_lesions: np.ndarray, bootstrap: Bootstrap) -> tuple[dict[str, Any], pd.DataFrame]:
    """Free-response ROC curve from the patients' `froc_counts` (n, 15, 2) and numbers of reference lesions (n,).

    The block gives, for numbers of false positives a patient, the highest sensitivity that needs no more of them.
    """
    n = len(counts)
    columns = np.column_stack([np.reshape(counts, (n, -1)), n_lesions, np.ones(n)])
    no_lesion, too_many = "no lesion in the reference", "every threshold gives more false positives"
    reasons = {_at(limit): too_many if np.sum(n_lesions) else no_lesion for limit in FALSE_POSITIVES}
    reasons |= {f"sensitivity_{threshold}": no_lesion for threshold in THRESHOLDS}
    shares = dict.fromkeys(reasons, int(np.count_nonzero(n_lesions)))
    estimates = bootstrap.of_sums(columns, _froc_of_sums, reasons, shares)
    rows = []
    for threshold in THRESHOLDS:
        keys = ("sensitivity", "false_positives")
        own = {key: interval_columns(key, estimates.pop(f"{key}_{threshold}")) for key in keys}
        rows.append({"threshold": threshold} | own["sensitivity"] | own["false_positives"])
    return {"n_lesions": int(np.sum(n_lesions))} | all_entries(estimates), pd.DataFrame(rows)


def _at(limit: float) -> str:
    return f"sensitivity_at_{limit:g}_fp"


def _froc_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    counts = sums[..., :-2].reshape(*sums.shape[:-1], len(THRESHOLDS), 2)
    sensitivity = ratio(counts[..., 0], sums[..., -2, None])
    false = counts[..., 1] / sums[..., -1, None]
    estimates = {}
    for limit in FALSE_POSITIVES:
        best = np.where(false <= limit, sensitivity, -1).max(-1)
        estimates[_at(limit)] = np.where(best < 0, np.nan, best)
    for number, threshold in enumerate(THRESHOLDS):
        estimates[f"sensitivity_{threshold}"] = sensitivity[..., number]
        estimates[f"false_positives_{threshold}"] = false[..., number]
    return estimates
