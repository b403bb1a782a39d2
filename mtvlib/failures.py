"""Failed patients (DSC = 0) and what the data say of the cause, by rules that are stated and not by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from mtvlib import lesions, pet
from mtvlib.classes import TARGETS, target_mask

SMALL_ML = 1.0  # a lesion below is small: eight voxels of 5 mm, 64 of 2.5 mm; choice
LOW_SUV = 4.0  # SUVmax below is low uptake: a threshold of SUV 4 would miss the lesion altogether; choice
NEAR_MM = 10.0  # as far as the surroundings of a lesion reach; choice
MOSTLY = 0.5  # share of a region that decides what it is; choice
HESITATED = 0.1  # least probability that is worth telling; choice

NOTHING = "nothing was predicted"
ELSEWHERE = "predicted elsewhere"
OTHER_CLASS = "called the other class"
NONE_THERE = "predicted where there is none"
FAILURE_COLUMNS = (
    *("patient", "target", "what", "why", "man_ml", "cnn_ml", "largest_man_ml", "suv_max_man"),
    *("touches_border", "distance_mm", "highest_probability"),
)


def find_failures(
    patient: str,
    reference: np.ndarray,
    prediction: np.ndarray,
    probability: np.ndarray,
    suv: np.ndarray,
    spacing_mm: Sequence[float],
) -> list[dict[str, Any]]:
    """One mapping (`FAILURE_COLUMNS`) for each target of which reference and prediction share no voxel.

    Arrays (x, y, z): classes without small ROIs, probability of a lesion in [0, 1], SUV. A target that is in neither
    has not failed. `what`: one of four kinds; `why`: what else the data say, joined by "; ", '' if nothing.
    """
    found = []
    for target in TARGETS:
        man, cnn = target_mask(reference, target), target_mask(prediction, target)
        if (man.any() or cnn.any()) and not (man & cnn).any():
            row = {"patient": patient, "target": target} | _measures(man, cnn, probability, suv, spacing_mm)
            row["what"] = _what(row, man, prediction)
            row["why"] = "; ".join([*_of_reference(row), *_of_prediction(row, reference[cnn], suv[cnn])])
            found.append(row)
    return found


def _measures(
    man: np.ndarray, cnn: np.ndarray, probability: np.ndarray, suv: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, Any]:
    """Volumes (ml), SUVmax, border, and least distance (mm) between the voxels of both; None where one is empty."""
    described = lesions.describe(man.astype(np.uint8), None, spacing_mm)
    voxel_ml, there = pet.voxel_ml(spacing_mm), bool(man.any())
    return {
        "man_ml": int(man.sum()) * voxel_ml,
        "cnn_ml": int(cnn.sum()) * voxel_ml,
        "largest_man_ml": described[0]["volume_ml"] if there else None,
        "suv_max_man": float(suv[man].max()) if there else None,
        "touches_border": any(lesion["touches_border"] for lesion in described),
        "distance_mm": distance_mm(man, cnn, spacing_mm) if there and cnn.any() else None,
        "highest_probability": float(probability[man].max()) if there else None,
    }


def distance_mm(man: np.ndarray, cnn: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Least distance between voxel centres of two masks, neither empty."""
    box = lesions.bounding_box(man | cnn)
    return float(ndimage.distance_transform_edt(~man[box], spacing_mm)[cnn[box]].min())


def _what(row: dict[str, Any], man: np.ndarray, prediction: np.ndarray) -> str:
    if row["man_ml"] == 0:
        return NONE_THERE
    if (prediction[man] > 0).any():  # not of this class, or the target would not have failed
        return OTHER_CLASS
    return ELSEWHERE if row["cnn_ml"] else NOTHING


def _of_reference(row: dict[str, Any]) -> list[str]:
    """What the data say of a lesion that was not found; nothing where there is none."""
    if row["man_ml"] == 0:
        return []
    why = []
    if row["largest_man_ml"] < SMALL_ML:
        why.append(f"small lesion (largest {row['largest_man_ml']:.2f} ml)")
    if row["suv_max_man"] < LOW_SUV:
        why.append(f"low uptake (SUVmax {row['suv_max_man']:.1f})")
    if row["touches_border"]:
        why.append("lesion at the border of the field")
    if row["what"] != OTHER_CLASS and row["highest_probability"] >= HESITATED:
        why.append(f"the network hesitated (probability up to {row['highest_probability']:.2f})")
    return why


def _of_prediction(row: dict[str, Any], reference: np.ndarray, suv: np.ndarray) -> list[str]:
    """What the data say of what was predicted in a lesion's stead, from reference and SUV of its voxels (n,)."""
    if row["cnn_ml"] == 0:
        return []
    there = f"{row['cnn_ml']:.2f} ml, SUVmax {suv.max():.1f}"
    if (reference > 0).mean() >= MOSTLY:
        return [f"what was predicted ({there}) is of the other class in the reference"]
    if row["what"] == NONE_THERE:
        return [f"what was predicted ({there}) is probably physiological uptake"]
    if row["what"] == OTHER_CLASS:
        return []
    if row["distance_mm"] <= NEAR_MM:
        return [f"beside the lesion, {row['distance_mm']:.0f} mm from it"]
    return [f"what was predicted ({there}) lies {row['distance_mm']:.0f} mm away, probably physiological uptake"]
