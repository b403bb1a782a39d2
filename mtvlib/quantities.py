"""PET quantities of the patients, manual and by the CNN, side by side: burden, uptake, spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mtvlib.agreement import icc_and_ccc
from mtvlib.intervals import Bootstrap, all_entries

# Name in summary.json -> (column of the manual, column of the CNN's delineation) in patients.csv.
QUANTITIES: Mapping[str, tuple[str, str]] = {
    "mtv_ml": ("ttb_man_ml", "ttb_cnn_ml"),
    "mtv_primary_ml": ("mtv_primary_man_ml", "mtv_primary_cnn_ml"),
    "mtv_nodes_ml": ("mtv_nodes_man_ml", "mtv_nodes_cnn_ml"),
    "tlg_g": ("tlg_man", "tlg_cnn"),
    "suv_max": ("suvmax_man", "suvmax_cnn"),
    "suv_mean": ("suvmean_man", "suvmean_cnn"),
    "suv_peak": ("suvpeak_man", "suvpeak_cnn"),
    "n_nodes": ("n_nodes_man", "n_nodes_cnn"),
    "largest_node_ml": ("largest_node_man_ml", "largest_node_cnn_ml"),
    "dmax_mm": ("dmax_man_mm", "dmax_cnn_mm"),
}


def quantities(part: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """The block `quantities` of a partition from its rows of patients.csv (n).

    Of each quantity: `n`, the patients who have it by both delineations (SUV values need a lesion in each, Dmax two),
    and of these the medians `man` and `cnn`, the `median_difference` (CNN - manual), and ICC(2,1). A patient whom one
    delineation lacks is counted in `n_one_only`.
    """
    return {
        name: _agreement(part[list(columns)].to_numpy(float), bootstrap)
        for name, columns in QUANTITIES.items()
        if set(columns) <= set(part)
    }


def _agreement(values: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    known = np.isfinite(values)
    reason = "no patient has it by both delineations"
    few = "fewer than three patients have it by both delineations, or all the same value"
    reasons = dict.fromkeys(("man", "cnn", "median_difference"), reason) | {"icc": few}
    estimates = bootstrap.of_sample(values, _statistics, reasons)
    return {"n": int(known.all(axis=1).sum()), "n_one_only": int((known.sum(axis=1) == 1).sum())} | all_entries(
        estimates
    )


def _statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Of samples (..., n, 2), NaN where a delineation lacks the quantity."""
    both = np.isfinite(values).all(-1)
    man, cnn = (np.where(both, values[..., source], np.nan) for source in (0, 1))
    icc, _ = icc_and_ccc(np.where(both, man, 0), np.where(both, cnn, 0), both)
    medians = {"man": man, "cnn": cnn, "median_difference": cnn - man}
    return {name: _median(sample) for name, sample in medians.items()} | {"icc": icc}


def _median(values: np.ndarray) -> np.ndarray:
    """Median over the last axis without the NaN, and NaN where nothing is left (never a warning)."""
    ordered = np.sort(values, axis=-1)  # NaN last
    n = np.isfinite(ordered).sum(-1, keepdims=True)
    low, high = (np.take_along_axis(ordered, np.maximum(place, 0), axis=-1) for place in ((n - 1) // 2, n // 2))
    return np.where(n > 0, (low + np.where(n % 2 == 0, high, low)) / 2, np.nan)[..., 0]
