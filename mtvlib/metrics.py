"""Spatial concordance and voxel classification (paper, Tables 1 and 2) from counts that add up over patients.

What is counted may be voxels or millilitres. The evaluation counts millilitres, so that in a cohort of mixed grids no
patient weighs more for having smaller voxels; on one common grid, as in the paper, both give the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtvlib.classes import LESION_CLASSES, NODES, PRIMARY, TARGETS
from mtvlib.intervals import Bootstrap, pair_entries, ratio, wilson

CLASSIFICATION_COUNTS = ("t_primary", "f_primary", "t_nodes", "f_nodes")
NO_VOXEL_IN_BOTH = "no voxel lies in both the reference and the prediction"
NO_PATIENT_HAS = {
    "primary": "no patient has a primary tumour in reference or prediction",
    "nodes": "no patient has a node metastasis in reference or prediction",
    "all": "no patient has a lesion in reference or prediction",
}


def contingency(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Voxels of each class in the reference (row) and the prediction (column), (3, 3) int, from uint8 label maps."""
    pairs = reference.ravel() * np.uint8(3) + prediction.ravel()
    return np.bincount(pairs, minlength=9).reshape(3, 3)


def overlap(table: np.ndarray, target: str) -> tuple[Any, Any, Any]:
    """Size of a target in the reference, in the prediction and in both, from contingency tables (..., 3, 3).

    `all` is the union of both classes: a primary voxel that is called a node is in both.
    """
    classes = list(TARGETS[target])
    both = table[..., classes, :][..., classes]
    return table[..., classes, :].sum((-2, -1)), table[..., classes].sum((-2, -1)), both.sum((-2, -1))


def dsc_and_volumes(table: np.ndarray, voxel_ml: float) -> dict[str, Any]:
    """A patient's DSC and volumes (ml) of each target, as in patients.csv, from a contingency table in voxels."""
    sizes = {target: [int(n) * voxel_ml for n in overlap(table, target)] for target in TARGETS}
    row: dict[str, Any] = {f"dsc_{target}": float(dsc(*sizes[target])) for target in TARGETS}
    row |= {"ttb_man_ml": sizes["all"][0], "ttb_cnn_ml": sizes["all"][1]}
    for target in LESION_CLASSES:
        row |= {f"mtv_{target}_man_ml": sizes[target][0], f"mtv_{target}_cnn_ml": sizes[target][1]}
    row |= {f"both_{target}_ml": sizes[target][2] for target in TARGETS}
    return row | {f"failed_{target}": row[f"dsc_{target}"] == 0 for target in TARGETS}


def dsc(man: Any, cnn: Any, both: Any) -> np.ndarray:
    """Patients' Dice similarity coefficients 2 |A and B| / (|A| + |B|) from sizes (n,).

    1 where both are empty (choice; the paper does not say), 0 where one is.
    """
    value = ratio(2 * np.asarray(both), np.add(man, cnn))
    return np.where(np.isnan(value), 1.0, value)


def cohort_dsc(man: Any, cnn: Any, both: Any) -> np.ndarray:
    """DSC "for the union of all delineations across all patients" (paper, "Spatial concordance") from sums over them.

    HECKTOR calls it aggregated Dice. NaN if the sums are empty.
    """
    return ratio(2 * np.asarray(both), np.add(man, cnn))


def delineation(man: Any, cnn: Any, both: Any, bootstrap: Bootstrap, absent: str) -> dict[str, Any]:
    """One row of the paper's Table 1 from the patients' sizes (n,) of a target in reference, prediction and both.

    Failed means DSC = 0. `n_both_empty` patients have DSC 1 and are left out of `mean_dsc_without_both_empty`. If both
    are empty in all patients there is nothing to score, and every value is null for the reason `absent`.
    """
    sizes = np.column_stack([man, cnn, both]).astype(float)
    patients = dsc(*sizes.T)
    empty = (sizes[:, 0] == 0) & (sizes[:, 1] == 0)
    if empty.all():
        return _no_delineation(len(sizes), absent)
    counts = np.column_stack([sizes, patients, np.ones(len(sizes)), patients * ~empty, ~empty])
    shares = {
        "cohort_dsc": int((~empty).sum()),
        "mean_dsc": len(sizes),
        "mean_dsc_without_both_empty": int((~empty).sum()),
    }
    sums = bootstrap.of_sums(counts, _dsc_of_sums, shares=shares)
    quartiles = bootstrap.of_sample(patients[:, None], _quartiles)
    failed = int((patients == 0).sum())
    block: dict[str, Any] = {}
    for key, estimate in {**sums, "median_dsc": quartiles["q50"]}.items():
        block |= estimate.entries(key)
    return block | {
        **pair_entries("iqr", quartiles["q25"], quartiles["q75"]),
        "n_failed": failed,
        "n_failed_ci95": _patients_interval(failed, len(patients)),
        "n_both_empty": int(empty.sum()),
    }


def _dsc_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    man, cnn, both, dsc_sum, n, dsc_sum_scored, n_scored = np.moveaxis(sums, -1, 0)
    return {
        "cohort_dsc": cohort_dsc(man, cnn, both),
        "mean_dsc": ratio(dsc_sum, n),
        "mean_dsc_without_both_empty": ratio(dsc_sum_scored, n_scored),
    }


def _quartiles(values: np.ndarray) -> dict[str, np.ndarray]:
    q25, q50, q75 = np.quantile(values[..., 0], [0.25, 0.5, 0.75], axis=-1)
    return {"q25": q25, "q50": q50, "q75": q75}


def _patients_interval(k: int, n: int) -> list[float] | None:
    interval = wilson(k, n)
    return [share * n for share in interval] if interval else None


def _no_delineation(n: int, absent: str) -> dict[str, Any]:
    keys = ("cohort_dsc", "mean_dsc", "mean_dsc_without_both_empty", "median_dsc", "iqr", "n_failed")
    nothing = {name: None for key in keys for name in (key, f"{key}_ci95")}
    return nothing | {"n_both_empty": n, "reason": absent}


def classification_counts(table: np.ndarray) -> np.ndarray:
    """t_primary, f_primary (node called primary), t_nodes, f_nodes (primary called node): (..., 3, 3) to (..., 4)."""
    pairs = ((PRIMARY, PRIMARY), (NODES, PRIMARY), (NODES, NODES), (PRIMARY, NODES))
    return np.stack([table[..., reference, prediction] for reference, prediction in pairs], axis=-1)


def classification_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The paper's Table 2 from sums (..., 4) in the order of `CLASSIFICATION_COUNTS`; NaN where nothing was counted."""
    t_primary, f_primary, t_nodes, f_nodes = np.moveaxis(np.asarray(counts, float), -1, 0)
    total = t_primary + f_primary + t_nodes + f_nodes
    return {
        "t_primary": ratio(t_primary, total),
        "f_primary": ratio(f_primary, total),
        "t_nodes": ratio(t_nodes, total),
        "f_nodes": ratio(f_nodes, total),
        "tpr_primary": ratio(t_primary, t_primary + f_nodes),
        "tpr_nodes": ratio(t_nodes, t_nodes + f_primary),
        "accuracy": ratio(t_primary + t_nodes, total),
    }


def classification(counts: np.ndarray, n_voxels: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Table 2 from the patients' counts (n, 4) in the order of `CLASSIFICATION_COUNTS`.

    `scans_without_error`: patients without a wrongly classified voxel, those without any voxel in both masks included.
    """
    counts = np.asarray(counts, float)
    reasons = dict.fromkeys((*CLASSIFICATION_COUNTS, "accuracy"), NO_VOXEL_IN_BOTH)
    reasons |= {
        f"tpr_{target}": f"no voxel that the reference calls {target} is in the prediction" for target in LESION_CLASSES
    }
    without_error = int(((counts[:, 1] + counts[:, 3]) == 0).sum())
    block: dict[str, Any] = {"n_voxels": int(n_voxels)}
    for key, estimate in bootstrap.of_sums(counts, classification_rates, reasons, _patients_with(counts)).items():
        block |= estimate.entries(key)
    return block | {
        "scans_without_error": without_error,
        "scans_without_error_ci95": _patients_interval(without_error, len(counts)),
    }


def _patients_with(counts: np.ndarray) -> dict[str, int]:
    """Patients that each rate of `classification_rates` rests on."""
    t_primary, f_primary, t_nodes, f_nodes = counts.T
    total, primary, nodes = counts.sum(axis=1), t_primary + f_nodes, t_nodes + f_primary
    of_all = dict.fromkeys((*CLASSIFICATION_COUNTS, "accuracy"), int((total > 0).sum()))
    return of_all | {"tpr_primary": int((primary > 0).sum()), "tpr_nodes": int((nodes > 0).sum())}
