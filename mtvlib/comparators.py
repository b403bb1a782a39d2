"""The threshold methods beside the network: the same patients, references and rules.

They are given the reference's lesions as seeds (see thresholds.py), which the network is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import metrics, pet, thresholds
from mtvlib.classes import TARGETS
from mtvlib.cohort import SPLITS, bootstrap_of
from mtvlib.comparison import as_json, comparison, volumes_ml
from mtvlib.lesions import remove_small_rois
from mtvlib.params import Params

NETWORK = "cnn"
SEEDS = (
    "thresholds of the SUV within 10 mm of each lesion of the reference, connected to its hottest voxel, of its class: "
    "they are shown every lesion and told its class, so their overlap is an upper bound"
)
_KNOWN_OF_PATIENTS = ("patient", "cohort", "site", "person")


def patient_rows(
    patient: str, suv: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], params: Params
) -> list[dict[str, Any]]:
    """A patient's row of each threshold method: DSC and volumes as in patients.csv, small ROIs removed alike.

    `suv` and `reference` (x, y, z); the seeds are the reference's lesions.
    """
    manual = remove_small_rois(np.asarray(reference), spacing_mm, params.min_roi_ml, params.connectivity)
    masks = thresholds.delineate_all(np.asarray(suv), manual, spacing_mm, connectivity=params.connectivity)
    return [
        {"method": method, "patient": patient} | _row(manual, mask, spacing_mm, params)
        for method, mask in masks.items()
    ]


def _row(manual: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], params: Params) -> dict[str, Any]:
    kept = remove_small_rois(mask, spacing_mm, params.min_roi_ml, params.connectivity)
    return metrics.dsc_and_volumes(metrics.contingency(manual, kept), pet.voxel_ml(spacing_mm))


def table(rows: Iterable[Mapping[str, Any]], cohort: pd.DataFrame) -> pd.DataFrame:
    """comparators.csv: the patients' rows with what the cohort knows of them, method by method."""
    known = cohort[[name for name in _KNOWN_OF_PATIENTS if name in cohort]]
    found = pd.DataFrame(list(rows))
    order = found["method"].map({name: number for number, name in enumerate(thresholds.METHODS)})
    return found.iloc[np.argsort(order, kind="stable")].merge(known, on="patient")[
        ["method", *known.columns, *(name for name in found.columns if name not in ("method", "patient"))]
    ]


def summary_blocks(comparators: pd.DataFrame, patients: pd.DataFrame, params: Params) -> dict[str, dict[str, Any]]:
    """The block `comparators` of each partition of summary.json that has patients.

    `comparators` as in comparators.csv, `patients` the network's patients.csv. `methods` holds Table 1 of each method,
    `differences` its paired differences to the network. Lists, since no value in them is a result of the study's own.
    """
    tables = {str(name): rows for name, rows in comparators.groupby("method", sort=False)}
    differences = as_json(comparison({NETWORK: patients} | tables, params))
    return {
        partition: {
            "needs_seed": True,
            "seeds": SEEDS,
            "margin_mm": thresholds.MARGIN_MM,
            "methods": [
                {"method": name, "label": thresholds.threshold_methods()[name]}
                | {"delineation": _delineation(rows[rows["cohort"] == cohort], params)}
                for name, rows in tables.items()
            ],
            "tests": differences["tests"],
            "differences": differences[partition],
        }
        for cohort, partition in SPLITS.items()
        if (comparators["cohort"] == cohort).any()
    }


def _delineation(part: pd.DataFrame, params: Params) -> dict[str, Any]:
    """Table 1 of one method in one partition, by target."""
    bootstrap = bootstrap_of(part, params)
    rows = {}
    for target in TARGETS:
        man, cnn = volumes_ml(part, target).T
        both = part[f"both_{target}_ml"].to_numpy()
        rows[target] = metrics.delineation(man, cnn, both, bootstrap, metrics.NO_PATIENT_HAS[target])
    return rows
