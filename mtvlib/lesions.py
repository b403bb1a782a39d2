"""Lesions: what an ROI is, which are too small to count, and which were found (paper, "Structure-wise analysis").

A lesion is a connected component of one class. Table 3 does not pair lesions one to one: each component is judged by
how much of it the other mask covers, so the number of found reference lesions (`tp_man`) may differ from the number of
confirmed predicted ones (`tp_cnn`). Method: Moe et al. 2021, doi 10.1007/s00259-020-05125-x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import cc3d
import numpy as np

from mtvlib import pet
from mtvlib.classes import CLASS_NAMES
from mtvlib.intervals import Bootstrap, ratio

COUNTS = ("tp_man", "tp_cnn", "fn", "fp")
Box = tuple[slice, slice, slice]
Connectivity = Literal[6, 18, 26]


def bounding_box(mask: np.ndarray) -> Box:
    """Smallest box round the non-zero voxels of a 3D array; empty slices if there are none."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return box[0], box[1], box[2]


def components(labels: np.ndarray, connectivity: Connectivity = 26) -> np.ndarray:
    """Number of each voxel's component (0 in the background) in a label map; voxels of two classes never share one."""
    if not labels.size:
        return np.zeros(labels.shape, np.uint32)
    return cc3d.connected_components(np.ascontiguousarray(labels), connectivity=connectivity)


def remove_small_rois(
    labels: np.ndarray, spacing_mm: Sequence[float], min_roi_ml: float, connectivity: Connectivity = 26
) -> np.ndarray:
    """A copy of the label map without the components smaller than `min_roi_ml` (paper: 0.1 ml; equal is kept)."""
    kept, box = labels.copy(), bounding_box(labels)
    numbers = components(labels[box], connectivity)
    # A relative 1e-9 keeps a component of exactly the limit, whatever the rounding of the voxel's volume.
    small = np.bincount(numbers.ravel()) * pet.voxel_ml(spacing_mm) < min_roi_ml * (1 - 1e-9)
    kept[box][small[numbers]] = 0
    return kept


def describe(
    labels: np.ndarray, suv: np.ndarray | None, spacing_mm: Sequence[float], connectivity: Connectivity = 26
) -> list[dict[str, Any]]:
    """One mapping a lesion of a label map (x, y, z), the largest first.

    Keys: `target`, `lesion` (1 is the largest of its target), `volume_ml`, `suv_max`, `suv_mean`, `suv_peak`, `tlg`
    (None without `suv`), `touches_border` (of the volume: a part may lie outside), `centroid_voxel` (x, y, z).
    """
    return [
        _describe(number, voxels, labels, suv, spacing_mm) for number, voxels in _numbered_lesions(labels, connectivity)
    ]


def _describe(
    number: int, voxels: np.ndarray, labels: np.ndarray, suv: np.ndarray | None, spacing_mm: Sequence[float]
) -> dict[str, Any]:
    unknown = dict.fromkeys(("suv_max", "suv_mean", "suv_peak", "tlg"))
    return {
        "target": CLASS_NAMES[int(labels[tuple(voxels[0])])],
        "lesion": number,
        "volume_ml": len(voxels) * pet.voxel_ml(spacing_mm),
        **(asdict(pet.uptake(suv, voxels, spacing_mm)) if suv is not None else unknown),
        "touches_border": bool((voxels == 0).any() or (voxels == np.array(labels.shape) - 1).any()),
        "centroid_voxel": tuple(voxels.mean(axis=0).tolist()),
    }


def _numbered_lesions(labels: np.ndarray, connectivity: Connectivity) -> list[tuple[int, np.ndarray]]:
    """Number within its class and voxel indices (n, 3) of each component, the largest first (ties: array order)."""
    box = bounding_box(labels)
    numbers = components(labels[box], connectivity)
    voxels = np.argwhere(numbers)
    owners = numbers[tuple(voxels.T)]
    voxels = voxels[np.argsort(owners, kind="stable")] + [side.start for side in box]
    groups = np.split(voxels, np.cumsum(np.bincount(owners)[1:])[:-1]) if len(voxels) else []
    found, counts = [], dict.fromkeys(CLASS_NAMES, 0)
    for group in sorted(groups, key=len, reverse=True):
        label = int(labels[tuple(group[0])])
        counts[label] += 1
        found.append((counts[label], group))
    return found


def find_lesions(
    reference: np.ndarray,
    prediction: np.ndarray,
    suv: np.ndarray | None,
    spacing_mm: Sequence[float],
    *,
    coverage: float = 0.5,
    connectivity: Connectivity = 26,
) -> list[dict[str, Any]]:
    """The lesions of a patient's reference (`source` man) and prediction (cnn), small ROIs removed before.

    To the keys of `describe` come `coverage`, the share of the lesion's voxels that have its class in the other mask,
    and `outcome`: a reference lesion is found (TP, else FN) with a coverage of at least `coverage`, a predicted one is
    confirmed (TP, else FP) with more (paper: "at least 50 %" and "over 50 %"). Arrays (x, y, z).
    """
    found = []
    for source, own, other in (("man", reference, prediction), ("cnn", prediction, reference)):
        for number, voxels in _numbered_lesions(own, connectivity):
            share = float((other[tuple(voxels.T)] == own[tuple(voxels[0])]).mean())
            lesion = _describe(number, voxels, own, suv, spacing_mm)
            found.append({"source": source, **lesion, "coverage": share, "outcome": _outcome(source, share, coverage)})
    return found


def _outcome(source: str, share: float, coverage: float) -> str:
    if source == "man":
        return "TP" if share >= coverage else "FN"
    return "TP" if share > coverage else "FP"


def detection_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """tpr = tp_man / (tp_man + fn) and ppv = tp_cnn / (tp_cnn + fp) from sums (..., 4) in the order of `COUNTS`."""
    tp_man, tp_cnn, fn, fp = np.moveaxis(np.asarray(counts, float), -1, 0)
    return {"tpr": ratio(tp_man, tp_man + fn), "ppv": ratio(tp_cnn, tp_cnn + fp)}


def detection(counts: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """One row of the paper's Table 3 from the patients' counts (n, 4) in the order of `COUNTS`."""
    counts = np.asarray(counts)
    tp_man, tp_cnn, fn, fp = counts.T
    reasons = {"tpr": "no lesion in the reference", "ppv": "no lesion in the prediction"}
    patients = {"tpr": int((tp_man + fn > 0).sum()), "ppv": int((tp_cnn + fp > 0).sum())}
    block: dict[str, Any] = dict(zip(COUNTS, counts.sum(axis=0).tolist(), strict=True))
    for key, estimate in bootstrap.of_sums(counts, detection_rates, reasons, patients).items():
        block |= estimate.entries(key)
    return block
