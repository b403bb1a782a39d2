"""Lesions: what an ROI is, which are too small to count, and which were found (paper, "Structure-wise analysis").

A lesion is a connected component of one class. Table 3 does not pair lesions one to one: each component is judged by
how much of it the other mask covers, so the number of found reference lesions (`tp_man`) may differ from the number of
confirmed predicted ones (`tp_cnn`). Method: Moe et al. 2021, doi 10.1007/s00259-020-05125-x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cc3d
import numpy as np

from mtvlib import matching, pet
from mtvlib.classes import CLASS_NAMES, NODES, TARGETS, target_mask
from mtvlib.intervals import Bootstrap, Estimate, ratio

COUNTS = ("tp_man", "tp_cnn", "fn", "fp")
# Below, the mesh shows the lattice more than the lesion: in balls of 7 or 8 voxels the asphericity varied from 0.06 to
# 0.22 with their place between the voxels, in those of 16 and more from 0.05 to 0.15.
MESH_VOXELS = 16
Box = tuple[slice, slice, slice]
Connectivity = Literal[6, 18, 26]


def bounding_box(mask: np.ndarray) -> Box:
    """Smallest box round the non-zero voxels of a 3D array; empty slices if there are none."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
        mask = mask[(slice(None),) * axis + (box[-1],)]  # the rest of it need not be looked at again
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
        **(vars(pet.uptake(suv, voxels, spacing_mm)) if suv is not None else unknown),
        "touches_border": bool((voxels == 0).any() or (voxels == np.array(labels.shape) - 1).any()),
        "centroid_voxel": tuple(voxels.mean(axis=0).tolist()),
    }


def _numbered_lesions(labels: np.ndarray, connectivity: Connectivity) -> list[tuple[int, np.ndarray]]:
    """Number within its class and voxel indices (n, 3) of each component, the largest first (ties: array order)."""
    box = bounding_box(labels)
    numbers = components(labels[box], connectivity)
    places = np.flatnonzero(numbers)
    owners = numbers.ravel()[places]
    places = places[np.argsort(owners, kind="stable")]
    voxels = np.column_stack(np.unravel_index(places, numbers.shape)) + [side.start for side in box]
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
    confirmed (TP, else FP) with more (paper: "at least 50 %" and "over 50 %"); `matched_lesion`, the number of its
    counterpart in the one-to-one pairs of matching.py, and their `iou` (None without one); and `asphericity`, None
    below `MESH_VOXELS`. Arrays (x, y, z).
    """
    masks = {"man": (reference, prediction), "cnn": (prediction, reference)}
    numbered = {source: _numbered_lesions(own, connectivity) for source, (own, _) in masks.items()}
    matched = _matched(numbered, reference, prediction)
    found = []
    for source, (own, other) in masks.items():
        for place, (number, voxels) in enumerate(numbered[source]):
            share = float((other[tuple(voxels.T)] == own[tuple(voxels[0])]).mean())
            counterpart, iou = matched[source].get(place, (None, None))
            found.append(
                {"source": source}
                | _describe(number, voxels, own, suv, spacing_mm)
                | {"coverage": share, "outcome": _outcome(source, share, coverage)}
                | {"matched_lesion": counterpart, "iou": iou, "asphericity": _asphericity(voxels, spacing_mm)}
            )
    return found


def _matched(
    numbered: dict[str, list[tuple[int, np.ndarray]]], reference: np.ndarray, prediction: np.ndarray
) -> dict[str, dict[int, tuple[int, float]]]:
    """For each side, by the lesion's place in its list: the counterpart's number within its class, and their IoU."""
    man, cnn = ([voxels for _, voxels in numbered[source]] for source in ("man", "cnn"))
    classes = [int(reference[tuple(one[0])]) for one in man], [int(prediction[tuple(one[0])]) for one in cnn]
    overlap = matching.iou(man, cnn, classes)
    matched: dict[str, dict[int, tuple[int, float]]] = {"man": {}, "cnn": {}}
    for row, column in matching.pairs(overlap):
        iou = float(overlap[row, column])
        matched["man"][row], matched["cnn"][column] = (numbered["cnn"][column][0], iou), (numbered["man"][row][0], iou)
    return matched


def _asphericity(voxels: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    return pet.asphericity(voxels, spacing_mm) if len(voxels) >= MESH_VOXELS else None


def untouched(own: np.ndarray, other: np.ndarray, connectivity: Connectivity = 26) -> int:
    """Voxels of the components of the mask `own` (x, y, z) bool that have none in common with `other`.

    autoPET's false-positive volume if `own` is the prediction and `other` the reference, its false-negative volume the
    other way round (Gatidis et al. 2024, doi 10.1038/s42256-024-00912-9); autoPET itself uses 18 neighbours.
    """
    numbers = components(own, connectivity)
    sizes = np.bincount(numbers.ravel(), minlength=1)
    sizes[0] = 0  # the background
    sizes[numbers[other]] = 0
    return int(sizes.sum())


def _outcome(source: str, share: float, coverage: float) -> str:
    if source == "man":
        return "TP" if share >= coverage else "FN"
    return "TP" if share > coverage else "FP"


def false_volumes(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], connectivity: Connectivity = 26
) -> dict[str, float]:
    """`fpv_<target>_ml` and `fnv_<target>_ml` of two label maps (x, y, z): see `untouched`.

    `all` takes both classes for one: a primary tumour that is called a node counts as false in the two classes alone.
    """
    row, voxel_ml = {}, pet.voxel_ml(spacing_mm)
    for target in TARGETS:
        man, cnn = target_mask(reference, target), target_mask(prediction, target)
        row[f"fpv_{target}_ml"] = untouched(cnn, man, connectivity) * voxel_ml
        row[f"fnv_{target}_ml"] = untouched(man, cnn, connectivity) * voxel_ml
    return row


def spread(own: Mapping[str, Sequence[dict[str, Any]]], spacing_mm: Sequence[float]) -> dict[str, Any]:
    """`largest_node_<source>_ml` (0 without a node) and `dmax_<source>_mm` of each source's lesions."""
    row: dict[str, Any] = {}
    for source, found in own.items():
        nodes_ml = (lesion["volume_ml"] for lesion in found if lesion["target"] == CLASS_NAMES[NODES])
        row[f"largest_node_{source}_ml"] = max(nodes_ml, default=0.0)
    return row | {f"dmax_{source}_mm": dmax_mm(found, spacing_mm) for source, found in own.items()}


def dmax_mm(found: Sequence[dict[str, Any]], spacing_mm: Sequence[float]) -> float | None:
    """Largest distance between the centroids of two lesions; None with fewer than two.

    A measure of spread (Cottereau et al. 2020, doi 10.2967/jnumed.119.229450).
    """
    if len(found) < 2:
        return None
    from scipy.spatial.distance import pdist  # not needed for delineating a patient

    centroids_mm = np.array([lesion["centroid_voxel"] for lesion in found]) * np.asarray(spacing_mm, float)
    return float(pdist(centroids_mm).max())


# --- the summary


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


def mean_false_volumes(volumes_ml: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """`mean_fpv_ml` and `mean_fnv_ml` from the patients' volumes (n, 2); without an interval where all are 0."""
    sums = np.column_stack([volumes_ml, np.ones(len(volumes_ml))])
    block: dict[str, Any] = {}
    for key, estimate in bootstrap.of_sums(sums, _mean_false_volumes).items():
        if estimate.value == 0:
            estimate = Estimate(0.0, None, "no interval: 0 ml in every patient")
        block |= estimate.entries(key)
    return block


def _mean_false_volumes(sums: np.ndarray) -> dict[str, np.ndarray]:
    fpv, fnv, n = np.moveaxis(sums, -1, 0)
    return {"mean_fpv_ml": ratio(fpv, n), "mean_fnv_ml": ratio(fnv, n)}
