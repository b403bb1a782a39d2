"""A patient's images without the face, for what leaves the reading room: viewers and plates of the report.

From thin slices of a head anybody can compute the surface of the face. It does not help to take away the skin alone:
what lies at the same depth below it has the face's shape. So everything in front of one flat cut is taken away, from
the vertex down to below the chin; the cut follows the tilt of the head and nothing else. Lesions in front of it stay,
with their surroundings, as far as these lie deep enough below the skin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mtvlib.viewer import ViewCase

CUT_MM = 40.0  # the cut lies so far behind the line along forehead, nose and chin
BELOW_CHIN_MM = 15.0
SKIN_MM = 8.0  # no voxel so near to the outside is kept, whatever lies there
ROUND_LESION_MM = 10.0
HEAD_MM = 250.0  # vertex to below the chin of a tall adult, tilted
DOME_MM = 50.0  # from the vertex down the front recedes by itself
RECEDES_MM = 25.0  # below the chin the front lies at least so far behind it
NOSE_MM = 50.0  # what stands out less high than half of this does not count as the front
LEAST_HEAD_MM, LEAST_FACE_MM = 160.0, 70.0  # no chin is sought nearer to the vertex, or to an end above the eyes
AIR_HU, TISSUE_HU, TISSUE_SUV = -1000.0, -140.0, 0.25  # fat has about -100 HU


@dataclass(frozen=True)
class Cut:
    """The plane y = y_voxel + slope z, in voxels of the masks, for z >= lowest: what has a lower y goes."""

    y_voxel: float
    slope: float
    lowest: int

    def removes(self, shape: Sequence[int]) -> np.ndarray:
        """Voxels in front of the cut, bool (1, y, z)."""
        y, z = np.arange(shape[1])[:, None], np.arange(shape[2])
        return ((y < self.y_voxel + self.slope * z) & (z >= self.lowest))[None]


def without_face(case: ViewCase) -> ViewCase:
    """The case with everything in front of the face's cut set to air and no uptake, but for lesions and their
    surroundings. A field without a body is returned as it is.
    """
    body = body_mask(case)
    cut = find_cut(body, case.spacing_mm)
    if cut is None:
        return case
    gone = cut.removes(body.shape) & ~_kept(case, body)
    ct = None if case.ct is None else np.where(_finer(gone, case.ct), np.float32(AIR_HU), case.ct)
    return replace(case, pet=np.where(_finer(gone, case.pet), np.float32(0), case.pet), ct=ct)


def body_mask(case: ViewCase) -> np.ndarray:
    """The patient on the masks' grid, bool (x, y, z): the largest piece of tissue, filled slice by slice."""
    image, threshold = (case.pet, TISSUE_SUV) if case.ct is None else (case.ct, TISSUE_HU)
    factor = image.shape[0] // case.reference.shape[0]
    coarse = image.reshape(image.shape[0] // factor, factor, image.shape[1] // factor, factor, -1).mean((1, 3))
    tissue = ndimage.median_filter(coarse, 3) > threshold  # a mask's rim or a tube is thinner than a voxel or two
    labels, n = ndimage.label(tissue)
    if not n:
        return tissue
    largest = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return np.stack([ndimage.binary_fill_holes(largest[:, :, z]) for z in range(largest.shape[2])], -1)


def find_cut(body: np.ndarray, spacing_mm: Sequence[float]) -> Cut | None:
    """The cut behind the face of the uppermost head in a field; None where there is no body.

    The chin is where the front of the body, followed from the top down, recedes by 25 mm for good; where it never does
    (the field ends in the face, or there is only a trunk) the whole field counts as head, up to 25 cm: rather too much
    is removed than too little.
    """
    front_mm = _front_mm(body, spacing_mm)
    there = np.flatnonzero(np.isfinite(front_mm))
    if not len(there):
        return None
    _, dy, dz = spacing_mm
    first, top = int(there[0]), int(there[-1])
    front_mm = front_mm[first : top + 1]
    vertex = top < body.shape[2] - 1  # else the head is cut off above the eyes
    chin = _chin(front_mm, dz, LEAST_HEAD_MM if vertex else LEAST_FACE_MM)
    face = np.arange(chin, max(len(front_mm) - (round(DOME_MM / dz) if vertex else 0), chin + 1))
    slope, at_zero = np.polyfit(face, front_mm[face], 1) if len(face) > 2 else (0.0, float(front_mm[face].mean()))
    lowest = max(0, chin - round(BELOW_CHIN_MM / dz)) + first
    return Cut((at_zero - slope * first + CUT_MM) / dy, slope / dy, lowest)


def _front_mm(body: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Foremost y of the body of each slice, mm; NaN where there is none. A few voxels are no front."""
    dx, dy, _ = spacing_mm
    wide = body.sum(0) * dx > 10  # lines (y, z) across at least 1 cm of body
    return np.where(wide.any(0), wide.argmax(0) * dy, np.nan)


def _chin(front_mm: np.ndarray, dz: float, least_mm: float) -> int:
    """Lowest slice of the head, which is the upper end of `front_mm` and at least so high."""
    nose_apart = ndimage.median_filter(front_mm, round(NOSE_MM / dz), mode="nearest")
    near = round(40 / dz)  # a tilted head recedes along its whole height, but less within so much of it
    lowest = max(0, len(front_mm) - 1 - round(HEAD_MM / dz))
    enough = max(2, round(15 / dz))
    for z in range(len(front_mm) - 1 - round(least_mm / dz), lowest + enough, -1):
        if (nose_apart[z - enough : z] >= nose_apart[z : z + near].min() + RECEDES_MM).all():
            return z
    return lowest


def _kept(case: ViewCase, body: np.ndarray) -> np.ndarray:
    """Lesions and what lies round them, deep enough below the skin; bool (x, y, z)."""
    lesion = case.any_lesion()
    if not lesion.any():
        return lesion
    near = ndimage.distance_transform_edt(~lesion, case.spacing_mm) <= ROUND_LESION_MM
    deep = ndimage.distance_transform_edt(np.pad(body, 1), case.spacing_mm)[1:-1, 1:-1, 1:-1] > SKIN_MM
    return near & deep


def _finer(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    factor = image.shape[0] // mask.shape[0]
    return mask.repeat(factor, 0).repeat(factor, 1)
