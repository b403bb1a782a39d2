"""Patient to the network's input: images onto the study's grid once, normalisation each time they are loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from PIL import Image

from mtvlib import fingerprint
from mtvlib.classes import LESION_CLASSES
from mtvlib.cohort import FILES, Images, check_images, labelled_points_mm, open_images, stop_on_errors
from mtvlib.errors import InputError
from mtvlib.files import atomic_path, sha256, write_json, write_text
from mtvlib.params import IMAGES, Params
from mtvlib.study import Study
from mtvlib.volume import (
    AxialCrop,
    Grid,
    axial_crop,
    resample,
    resample_labels,
    study_grid,
    to_array,
    to_image,
    write_image,
)

AIR_HU = -1000.0
RECORD = "prepared.json"
OVERVIEW = "overview.png"
OVERVIEW_MM = 4.0  # pixel of the overview: enough to see organs, too coarse for a face
OVERVIEW_SUV = 8.0  # shown black


@dataclass(frozen=True)
class Prepared:
    """A patient on the study's grid; arrays (x, y, z), z towards the head."""

    patient: str
    inputs: np.ndarray  # (C, x, y, z) float32 in [0, 1], channels in the order of the parameter `channels`
    reference: np.ndarray | None  # (x, y, z) uint8
    suv: np.ndarray  # (x, y, z) float32
    grid: Grid
    doubts: tuple[str, ...] = ()  # why the axial crop may be wrong


# --- writing


def prepare_patient(row: Mapping[str, Any] | pd.Series, params: Params, folder: str | Path, *, code: str = "") -> None:
    """Check a patient's images, resample them onto the study's grid and write `folder`/<patient>/.

    Files: `pet.nii` (SUV, float32, 0 outside the field), `ct.nii` (HU, int16, -1000 outside), `reference.nii` (uint8),
    uncompressed so that they can be memory-mapped, `overview.png` (see `_write_overview`), and last `prepared.json`
    (grid, sources with sha256, axial crop and why it may be wrong, the crop's frame in the overview, how much of the
    reference the crop keeps, warnings, seconds). `row` needs patient, pet, ct, reference ('' for none). Raises
    `InputError` listing everything that is wrong with the images.
    """
    began = time.perf_counter()
    patient, target = row["patient"], Path(folder) / row["patient"]
    images, warnings = _open(row, params)
    crop, grid, prepared = _on_study_grid(images, params, patient)
    for name in (RECORD, OVERVIEW, *(f"{name}.nii" for name in FILES)):
        (target / name).unlink(missing_ok=True)  # of an earlier run with other images
    for name, image in prepared.present().items():
        write_image(image, target / f"{name}.nii")
    frame = _write_overview(images.pet, grid, target / OVERVIEW)
    warnings += [f"crop uncertain: {doubt}" for doubt in crop.doubts]
    kept = _kept_of_reference(images, prepared, grid)
    if kept and kept["fraction"] is not None and kept["fraction"] < 1:
        warnings.append(f"the crop cuts off {100 * (1 - kept['fraction']):.1f} % of the reference's voxels")
    record = {
        "patient": patient,
        "params": params.part(IMAGES),
        "code": code,
        "grid": asdict(grid),
        "axial_mm": {"field": _axial_mm(Grid.of(images.pet)), "kept": _axial_mm(grid), "brain": crop.brain_mm},
        "doubts": list(crop.doubts),
        "overview": frame,
        "reference": kept,
        "warnings": warnings,
        "sources": {name: _source(row[name]) for name in images.present()},
        "seconds": round(time.perf_counter() - began, 2),
    }
    write_json(target / RECORD, record)


def _open(row: Mapping[str, Any] | pd.Series, params: Params) -> tuple[Images, list[str]]:
    _check_ct(bool(row.get("ct")), params, row["patient"])
    images, findings = open_images(row, with_ct="ct" in params.channels)
    stop_on_errors(findings)
    assert images is not None
    return images, [finding.message for finding in findings]


def _check_ct(there: bool, params: Params, patient: str | None) -> None:
    if "ct" in params.channels and not there:
        raise InputError("has no CT", patient=patient, remedy="give a CT, or set channels to [pet].")


def _on_study_grid(images: Images, params: Params, patient: str | None) -> tuple[AxialCrop, Grid, Images]:
    crop = axial_crop(images.pet, images.ct, params.axial_mm)
    grid = study_grid(images.pet, images.ct, params.spacing_mm, params.crop_shape, params.axial_mm, crop)
    prepared = _resample(images, grid)
    if np.ptp(sitk.GetArrayViewFromImage(prepared.pet)) == 0:
        remedy = "check the PET, or exclude the patient."
        raise InputError("the PET is constant within the study's field", patient=patient, remedy=remedy)
    return crop, grid, prepared


def _resample(images: Images, grid: Grid) -> Images:
    """Linear; PET outside its field is 0, CT air (choice); labels class by class."""
    ct = reference = None
    if images.ct is not None:
        hu = to_array(resample(images.ct, grid, outside=AIR_HU))
        ct = to_image(np.clip(np.rint(hu), -32768, 32767).astype(np.int16), grid)
    if images.reference is not None:
        reference = resample_labels(images.reference, grid)
    return Images(resample(images.pet, grid, outside=0.0), ct, reference)


def _kept_of_reference(images: Images, prepared: Images, grid: Grid) -> dict[str, Any] | None:
    """Share of the reference's voxels within the crop (None without lesions), and volumes before and after in ml."""
    if images.reference is None or prepared.reference is None:
        return None
    points = labelled_points_mm(images.reference)
    return {
        "fraction": float(grid.contains(points).mean()) if len(points) else None,
        "source_ml": _volumes_ml(images.reference),
        "prepared_ml": _volumes_ml(prepared.reference),
    }


def _volumes_ml(labels: sitk.Image) -> dict[str, float]:
    array, voxel_ml = sitk.GetArrayViewFromImage(labels), Grid.of(labels).voxel_ml
    return {name: int((array == number).sum()) * voxel_ml for name, number in LESION_CLASSES.items()}


def _axial_mm(grid: Grid) -> list[float]:
    low, high = grid.box_mm()
    return [float(low[2]), float(high[2])]


def _write_overview(pet: sitk.Image, kept: Grid, path: Path) -> dict[str, Any]:
    """Coronal maximum projection of the PET's whole field, 4 mm pixels, SUV 0 white to 8 black, seen from the front.

    Returns where it lies: pixel side, mm, and the frame of `kept` in pixels (left, top, right, bottom), which may reach
    beyond the picture; the patient's left is on the right.
    """
    low, high = Grid.of(pet).box_mm()
    nx, ny, nz = (int(side) for side in np.maximum(1, (high - low) / OVERVIEW_MM))
    grid = Grid((nx, ny, nz), (OVERVIEW_MM,) * 3, tuple((low + OVERVIEW_MM / 2).tolist()))
    suv = to_array(resample(pet, grid, outside=0.0)).max(axis=1)
    shades = np.rint(255 * (1 - np.clip(suv / OVERVIEW_SUV, 0, 1))).astype(np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(shades.T[::-1]).save(temporary, optimize=True)
    (left, _, bottom), (right, _, top) = ((corner - low) / OVERVIEW_MM for corner in kept.box_mm())
    frame = [left, nz - top, right, nz - bottom]
    return {"file": path.name, "pixel_mm": OVERVIEW_MM, "frame": [round(float(side), 2) for side in frame]}


def _source(path: str | Path) -> dict[str, str]:
    # The name without folders, which tell of the machine or its user; the hash tells which file it was.
    return {"file": Path(path).name, "sha256": sha256(path)}


# --- a whole cohort


def prepare_cohort(study: Study, cohort: pd.DataFrame, *, say: Callable[[str], None]) -> pd.DataFrame:
    """Prepare every patient that takes part; unchanged ones (images, parameters, code) are left as they are.

    `cohort` with absolute paths and `split`. Patients run side by side on `threads` threads. Writes and returns
    `volumes/prepared.csv`, one row a patient: patient, pet, ct, reference (sha256 of the sources), slices,
    volume_change, crop_doubts, warnings.
    """
    records = _prepare_rows(study, _taking_part(cohort), say)
    table = pd.DataFrame([_index_row(record) for record in records])
    write_text(study.volumes / "prepared.csv", table.to_csv(index=False))
    return table


def prepare_part(study: Study, cohort: pd.DataFrame, part: int, parts: int, *, say: Callable[[str], None]) -> None:
    """Prepare every `parts`th patient from the `part`th on, so that `prepare_cohort` finds them done; no index."""
    _prepare_rows(study, _taking_part(cohort)[part::parts], say)


def _taking_part(cohort: pd.DataFrame) -> list[dict[str, Any]]:
    return cohort[cohort["split"] != "excluded"].to_dict("records")  # type: ignore[return-value]


def _prepare_rows(study: Study, rows: list[dict[str, Any]], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The record of each row's patient, prepared where that is not done."""
    code = fingerprint.of_modules([__name__])
    done = count(1)

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        record = _current(row, study.params, study.volumes / row["patient"] / RECORD, code)
        if record is None:
            prepare_patient(row, study.params, study.volumes, code=code)
            record = _record(study.volumes / row["patient"] / RECORD, row["patient"])
        say(f"patient {next(done)} of {len(rows)} prepared")
        return record

    with ThreadPoolExecutor(study.params.threads) as pool:
        return list(pool.map(prepare, rows))


def _current(row: dict[str, Any], params: Params, path: Path, code: str) -> dict[str, Any] | None:
    """The record of a patient that need not be prepared again, or None."""
    if not path.exists():
        return None
    record = _record(path, row["patient"])
    wanted = [name for name in FILES if row.get(name) and (name != "ct" or "ct" in params.channels)]
    sources = {name: _source(row[name]) for name in wanted}
    same = (record["params"], record["code"], record["sources"]) == (params.part(IMAGES), code, sources)
    files = (OVERVIEW, *(f"{name}.nii" for name in wanted))
    return record if same and all((path.parent / name).exists() for name in files) else None


def _index_row(record: dict[str, Any]) -> dict[str, Any]:
    sources = {name: record["sources"].get(name, {}).get("sha256", "") for name in FILES}
    slices = record["grid"]["size"][2]
    change = _volume_change(record["reference"])
    warnings = "; ".join(record["warnings"])
    doubts = "; ".join(record["doubts"])
    return {
        "patient": record["patient"],
        **sources,
        "slices": slices,
        "volume_change": change,
        "crop_doubts": doubts,
        "warnings": warnings,
    }


def _volume_change(reference: dict[str, Any] | None) -> float | None:
    """Share by which the reference's volume changed on the study's grid; None without lesions."""
    before, after = (sum(reference[f"{name}_ml"].values()) if reference else 0 for name in ("source", "prepared"))
    return round(after / before - 1, 4) if before else None


# --- loading


def prepare_images(pet: sitk.Image, ct: sitk.Image | None, params: Params, patient: str = "") -> Prepared:
    """A new patient's images (SUV, HU) as the network's input, in memory; no reference.

    Raises `InputError` if they cannot be SUV or HU, or have no common field.
    """
    _check_ct(ct is not None, params, patient or None)
    images = Images(pet, ct if "ct" in params.channels else None, None)
    stop_on_errors(replace(finding, patient=patient or None, file=None) for finding in check_images(images))
    crop, grid, prepared = _on_study_grid(images, params, patient or None)
    arrays = {name: to_array(image) for name, image in prepared.present().items()}
    return replace(_normalised(patient, arrays, grid, params), doubts=crop.doubts)


def load_patient(folder: str | Path, patient: str, params: Params) -> Prepared:
    """A prepared patient with the network's input, see `normalise_pet` and `normalise_ct`.

    `suv` and `reference` are memory-mapped. Raises `InputError` if the patient was not prepared, or with other image
    parameters, or a file is damaged.
    """
    target = Path(folder) / patient
    record = _record(target / RECORD, patient)
    _check_record(record, params, target / RECORD)
    arrays = {name: _voxels(target / f"{name}.nii") for name in record["sources"]}
    return replace(_normalised(patient, arrays, _grid(record["grid"]), params), doubts=tuple(record["doubts"]))


@dataclass(frozen=True)
class Reader:
    """Reads prepared patients for a training; another process can be told to do the same."""

    volumes: Path
    params: Params

    def __call__(self, patient: str) -> tuple[str, np.ndarray, np.ndarray]:
        """Patient, inputs (C, x, y, z), labels (x, y, z). Raises `InputError` as `load_patient`, or without labels."""
        one = load_patient(self.volumes, patient, self.params)
        if one.reference is None:
            raise InputError("has no reference to learn from", patient=patient, file=self.volumes / patient)
        return patient, one.inputs, one.reference


def _normalised(patient: str, arrays: Mapping[str, np.ndarray], grid: Grid, params: Params) -> Prepared:
    normalise = {"pet": normalise_pet, "ct": normalise_ct}
    inputs = np.stack([normalise[name](arrays[name], params) for name in params.channels])
    return Prepared(patient, inputs, arrays.get("reference"), arrays["pet"], grid)


def normalise_pet(suv: np.ndarray, params: Params) -> np.ndarray:
    """PET in [0, 1] (paper, Methods: "individually normalized to the range [0, 1]").

    `minmax`: by the lowest and highest SUV of the prepared volume, padding (SUV 0) included; so the scale depends on
    the hottest voxel of the crop. `window`: `pet_window_suv` onto [0, 1], clipped (choice).
    """
    low, high = params.pet_window_suv
    if params.pet_normalization == "minmax":
        low, high = float(suv.min()), float(suv.max())
    return np.clip((suv - np.float32(low)) / np.float32(high - low), 0, 1)


def normalise_ct(hu: np.ndarray, params: Params) -> np.ndarray:
    """CT in [0, 1]: `ct_window_hu`, clipped (paper, Methods)."""
    low, high = params.ct_window_hu
    return np.clip((hu.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)


def read_record(folder: str | Path, patient: str) -> dict[str, Any]:
    """What `prepare_patient` wrote about a patient below `folder`. Raises `InputError` if it is missing or damaged."""
    return _record(Path(folder) / patient / RECORD, patient)


def _record(path: Path, patient: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("is not prepared yet", patient=patient, file=path, remedy="run step 1_cohort.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(
            "is damaged", patient=patient, file=path, remedy="delete it and run the study again."
        ) from None


def _check_record(record: dict[str, Any], params: Params, path: Path) -> None:
    there, here = record["params"], params.part(IMAGES)
    differing = [f"{name} {there[name]} there, {here[name]} here" for name in IMAGES[1:] if there[name] != here[name]]
    missing = set(params.channels) - set(record["sources"])
    if differing or missing:
        raise InputError(
            "; ".join([*differing, *(f"no {name}" for name in sorted(missing))]),
            patient=record["patient"],
            file=path,
            remedy="prepare the patient again with these parameters (step 1_cohort).",
        )


def _voxels(path: Path) -> np.ndarray:
    """Memory-mapped voxels (x, y, z) of one of our own files."""
    try:
        return np.asarray(nib.load(path, mmap="r").dataobj)  # type: ignore[attr-defined]
    except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"cannot be read ({why})", file=path, remedy="delete it and run the study again.") from None


def _grid(values: dict[str, Any]) -> Grid:
    return Grid(**{name: tuple(value) for name, value in values.items()})
