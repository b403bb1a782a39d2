"""A patient's images without the face, for what leaves the reading room: the viewers of the report.

From thin slices of a head anybody can compute the surface of the face. It does not help to take away the skin alone:
what lies at the same depth below it has the face's shape. So everything in front of one flat cut is taken away, from
the vertex down to below the chin; the cut follows the tilt and the turn of the head, in coarse steps, and nothing else.
Lesions in front of it stay, with their surroundings, as far as these lie deep enough below the skin.

Where the head ends is sought by the bones of the face on the CT and by the brain on the PET. In doubt rather too much
is removed than too little: a field that shows neither, but might, loses its front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mtvlib.viewer import ViewCase
from mtvlib.volume import Grid, body_sections, find_brain, to_image

# All of these are choices.
CUT_MM = 40.0  # the cut lies so far behind the plane along forehead, cheeks and chin: behind the orbits' rims
BELOW_CHIN_MM = 15.0
SKIN_MM = 8.0  # no voxel so near to the outside is kept, whatever lies there
ROUND_LESION_MM = 10.0
FACE_MM = 135.0  # height of what the cut is laid along, from the chin up
CHIN_BELOW_BRAIN_MM, FACE_BELOW_BRAIN_MM = 140.0, 70.0  # of a bent head, and of an upright one
HALF_FACE_MM = 35.0  # width on each side of the midline that the cut is laid along
SLOPE_STEP, OFFSET_STEP_MM, STEEPEST = 0.1, 5.0, 0.7  # the cut tells no more of the face than this
AIR_HU, TISSUE_HU, TISSUE_SUV = -1000.0, -140.0, 0.25  # fat has about -100 HU
BONE_HU, AIRWAY_HU = 250.0, -400.0
HEAD_CM2 = 450.0  # a larger section is one of the trunk
AIRWAY_CM2 = (0.5, 60.0)  # air within a section: none in a limb, more in a chest
FRONT, FACE_BONE_CM2 = 0.35, 4.0  # share of a section's depth, and bone in it: larynx and hyoid have less
BONE_MM, AIRWAY_MM, GAP_MM = 10.0, 10.0, 40.0  # least height of both; bones nearer to each other belong together


@dataclass(frozen=True)
class Cut:
    """A plane, y mm = `at` + `turn` (x - `middle`) + `tilt` (z - `centre`): what lies in front of it goes.

    Only for z >= `lowest`; mm from the first voxel's centre.
    """

    at: float
    turn: float
    tilt: float
    middle: float
    centre: float
    lowest: float

    def removes(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
        """Voxels in front of the cut, bool (x, y, z)."""
        x, y, z = np.ogrid[tuple(slice(side) for side in shape)]
        x, y, z = x * spacing_mm[0], y * spacing_mm[1], z * spacing_mm[2]
        plane = self.at + self.turn * (x - self.middle) + self.tilt * (z - self.centre)
        return (y < plane) & (z >= self.lowest)


def without_face(case: ViewCase) -> ViewCase:
    """The case with everything in front of the face's cut set to air and no uptake, but for lesions and their
    surroundings. A field without a face is returned as it is.
    """
    body = body_mask(case)
    cut = find_cut(case, body)
    if cut is None:
        return case
    gone = cut.removes(body.shape, case.spacing_mm) & ~_kept(case, body)
    ct = None if case.ct is None else np.where(_finer(gone, case.ct), np.float32(AIR_HU), case.ct)
    return replace(case, pet=np.where(_finer(gone, case.pet), np.float32(0), case.pet), ct=ct)


def body_mask(case: ViewCase) -> np.ndarray:
    """The patient on the masks' grid, bool (x, y, z): the largest piece of tissue, filled slice by slice."""
    image, threshold = (case.pet, TISSUE_SUV) if case.ct is None else (case.ct, TISSUE_HU)
    # A mask's rim or a tube is thinner than a voxel or two.
    tissue = ndimage.median_filter(_coarse(case, image), 3) > threshold
    largest = _largest(tissue)
    return np.stack([ndimage.binary_fill_holes(largest[:, :, z]) for z in range(largest.shape[2])], -1)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, n = ndimage.label(mask)
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax() if n else mask


def find_cut(case: ViewCase, body: np.ndarray) -> Cut | None:
    """The cut behind the face; None where a CT shows that there is none (a limb, a trunk, a neck), or no body."""
    brain, dz = _brain(case), case.spacing_mm[2]
    if case.ct is not None:
        bones = np.flatnonzero(_face_bones(case, body, brain)) * dz
        if len(bones):
            # Arms beside the jaw may hide it.
            lowest = bones[0] if brain is None else min(bones[0], brain - FACE_BELOW_BRAIN_MM)
            return _lay(body, case.spacing_mm, bones[0], lowest - BELOW_CHIN_MM)
    if brain is not None:
        return _lay(body, case.spacing_mm, brain - FACE_BELOW_BRAIN_MM, brain - CHIN_BELOW_BRAIN_MM - BELOW_CHIN_MM)
    slender = np.flatnonzero(_slender(body, case.spacing_mm)) * dz
    return _lay(body, case.spacing_mm, slender[0], slender[0]) if case.ct is None and len(slender) else None


def _slender(body: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Slices whose section may be one of a head or neck, bool (z,)."""
    area = body.sum((0, 1)) * spacing_mm[0] * spacing_mm[1] / 100
    return (area > 0) & (area <= HEAD_CM2)


def _face_bones(case: ViewCase, body: np.ndarray, brain: float | None) -> np.ndarray:
    """Slices from the lowest to the highest that hold bones of the face, bool (z,)."""
    assert case.ct is not None
    hu, (dx, dy, dz) = _coarse(case, case.ct), case.spacing_mm
    # A CT that was kept within a window only has its ends there.
    bone = body & (hu > min(BONE_HU, float(hu.max()) - 1)) & _front_part(body)
    air = (body & (hu < max(AIRWAY_HU, float(hu.min()) + 1))).sum((0, 1)) * dx * dy / 100
    airy = _long((air >= AIRWAY_CM2[0]) & (air <= AIRWAY_CM2[1]), AIRWAY_MM / dz)
    if not airy.any():
        return airy
    # Below the narrowest section with an airway, or far below the brain, bones in front are those of the chest.
    neck = np.where(airy, body.sum((0, 1)), np.inf).argmin() * dz
    above = np.arange(len(airy)) * dz > (neck if brain is None else brain - FACE_BELOW_BRAIN_MM)
    may_be = above if brain is not None else _slender(body, case.spacing_mm)
    bony = _long(may_be & (bone.sum((0, 1)) * dx * dy / 100 >= FACE_BONE_CM2), BONE_MM / dz)
    joined = ndimage.binary_closing(np.pad(bony, len(bony)), iterations=max(1, round(GAP_MM / dz / 2)))
    regions, n = ndimage.label(joined[len(bony) : -len(bony)])
    return np.isin(regions, [number for number in range(1, n + 1) if (airy & above & (regions == number)).any()])


def _front_part(body: np.ndarray) -> np.ndarray:
    """The front third of the body of each slice, bool (x, y, z) to be broadcast along x."""
    there = np.asarray(body.any(0))
    first, last = there.argmax(0), there.shape[0] - 1 - there[::-1].argmax(0)
    y = np.arange(there.shape[0])[:, None]
    return (there & (y <= first + FRONT * (last - first)))[None]


def _long(slices: np.ndarray, least: float) -> np.ndarray:
    """Those runs of slices that are at least so long."""
    runs, n = ndimage.label(slices)
    counts = np.bincount(runs, minlength=n + 1)
    return slices & (counts[runs] >= least)


def _brain(case: ViewCase) -> float | None:
    """Lower end of the brain's uptake, mm; None where there is no brain above what else there is."""
    origin = (0.0, 0.0, 0.0)
    grid = Grid(case.reference.shape, case.spacing_mm, origin)  # type: ignore[arg-type]
    pet = to_image(_coarse(case, case.pet).astype(np.float32), grid)
    ct = None if case.ct is None else to_image(_coarse(case, case.ct).astype(np.float32), grid)
    brain = find_brain(pet, body_sections(pet, ct))
    return brain.low_mm if brain is not None and brain.upright else None


def _lay(body: np.ndarray, spacing_mm: Sequence[float], chin: float, lowest: float) -> Cut:
    """The plane along the front of the body from the chin up, moved back by `CUT_MM`."""
    x, y, z = _front(body, spacing_mm, chin)
    middle, centre = float(x.mean()), float(z.mean())
    turn = _step(_turn(body, spacing_mm, chin))
    y = y - turn * (x - middle)
    used, tilt = np.ones(len(x), bool), 0.0
    for _ in range(4):
        tilt, level = np.polyfit(z[used] - centre, y[used], 1) if len(np.unique(z[used])) > 1 else (0.0, y[used].mean())
        away = y - level - tilt * (z - centre)
        used = (away > -15) & (away < 25)  # the nose, or a hand, is no part of the front; nor is a neck
        used |= used.sum() < 10
    tilt = _step(tilt)
    at = float(np.mean((y - tilt * (z - centre))[used])) + CUT_MM * math.hypot(turn, tilt, 1)
    return Cut(math.ceil(at / OFFSET_STEP_MM) * OFFSET_STEP_MM, turn, tilt, middle, centre, float(lowest))


def _step(slope: float) -> float:
    return float(np.clip(round(slope / SLOPE_STEP) * SLOPE_STEP, -STEEPEST, STEEPEST))


def _turn(body: np.ndarray, spacing_mm: Sequence[float], chin: float) -> float:
    """How much y changes with x along the front of a head that is turned to a side: a head is longer than wide."""
    upper = slice(*(max(0, round((chin + part * FACE_MM) / spacing_mm[2])) for part in (0.5, 1.5)))
    head = _largest(body[:, :, upper])
    ends = head[[0, -1]].sum() + head[:, [0, -1]].sum()
    x, y, _ = np.nonzero(head)
    if len(x) < 10 or ends > 0.02 * len(x):  # the field cuts it, whichever way it is turned
        return 0.0
    (xx, xy), (_, yy) = np.cov(x * spacing_mm[0], y * spacing_mm[1])
    return -math.tan(math.atan2(2 * xy, yy - xx) / 2) if yy > 1.05 * xx else 0.0


def _front(body: np.ndarray, spacing_mm: Sequence[float], chin: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, z (n,) in mm of the foremost voxels of the head near its middle, from the chin up to the forehead."""
    face = slice(*(max(0, round(end / spacing_mm[2])) for end in (chin, chin + FACE_MM)))
    face = face if body[:, :, face].any() else slice(None)
    head, across = _largest(body[:, :, face]), np.arange(body.shape[0]) * spacing_mm[0]  # without raised arms
    middle = float(np.median(across[np.nonzero(head)[0]]))
    x, z = np.nonzero(head.any(1) & (np.abs(across - middle) <= HALF_FACE_MM)[:, None])
    return across[x], head.argmax(1)[x, z] * spacing_mm[1], (z + (face.start or 0)) * spacing_mm[2]


def _kept(case: ViewCase, body: np.ndarray) -> np.ndarray:
    """Lesions and what lies round them, deep enough below the skin; bool (x, y, z)."""
    lesion = case.any_lesion()
    if not lesion.any():
        return lesion
    near = ndimage.distance_transform_edt(~lesion, case.spacing_mm) <= ROUND_LESION_MM
    if body.all():
        return near
    # The field's end is no skin.
    return near & (ndimage.distance_transform_edt(body, case.spacing_mm) > SKIN_MM)


def _coarse(case: ViewCase, image: np.ndarray) -> np.ndarray:
    """An image on the masks' grid: the mean of its voxels in each of theirs."""
    factor = image.shape[0] // case.reference.shape[0]
    nx, ny, nz = case.reference.shape
    return image.reshape(nx, factor, ny, factor, nz).mean((1, 3))


def _finer(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    factor = image.shape[0] // mask.shape[0]
    return mask.repeat(factor, 0).repeat(factor, 1)
