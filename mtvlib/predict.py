"""A new patient: from PET and CT to label maps on their own grids, a lesion table and a record of the making."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

import mtvlib
from mtvlib import lesions
from mtvlib.classes import LESION_CLASSES
from mtvlib.cohort import TITLES, Images, check_images, stop_on_errors
from mtvlib.errors import InputError, MtvError
from mtvlib.files import atomic_path, sha256, write_json, write_text
from mtvlib.inference import MODEL_FILE, PREPROCESSING, Model, load_model, predict_labels, predict_probabilities
from mtvlib.params import FOLDS, Params, from_dict
from mtvlib.prepare import AIR_HU, prepare_images
from mtvlib.training import choose_device, use_processor
from mtvlib.viewer import ViewCase, preview
from mtvlib.volume import Grid, probabilities_to_labels, read_scan, resample, to_array, to_image, write_image

if TYPE_CHECKING:
    from pydicom import Dataset

FORMS = ("nifti", "seg", "rtstruct")
LESION_COLUMNS = (
    *("target", "lesion", "volume_ml", "suv_max", "suv_mean", "suv_peak", "tlg", "touches_border"),
    *("centre_x_mm", "centre_y_mm", "centre_z_mm"),
)
CUT = "a lesion reaches the edge of the field that was analysed, so its volume may be too small"
ALGORITHM = "mtvlib: residual 3D U-Net with self-attention"


@dataclass(frozen=True)
class Patient:
    """A new patient's images as they came: PET in SUV, CT in HU or None, and for DICOM the headers of their series."""

    images: Images
    sha256: dict[str, str]
    headers: dict[str, list[Dataset]]  # by image; empty for NIfTI
    warnings: list[str]


@dataclass(frozen=True)
class Delineation:
    """Label maps on the images' own grids and on the study's grid, the lesions of the PET's, and what is odd."""

    labels: dict[str, sitk.Image]
    on_study_grid: ViewCase
    lesions: pd.DataFrame
    warnings: list[str]


def predict_patient(
    models: str | Path | Sequence[Model],
    pet: str | Path,
    ct: str | Path | None,
    out: str | Path,
    *,
    device: str = "auto",
    to: Collection[str] = ("nifti",),
) -> dict[str, Any]:
    """Delineate one patient by the mean of the models and write the results into `out`; returns the record.

    `pet` and `ct`: NIfTI (SUV, HU), or folders of DICOM; a folder that holds both needs to be named once. Written on
    the PET's and on the CT's own grid (probabilities are interpolated onto each grid before the class is decided,
    paper, "Network evaluation"; on each, ROIs below `min_roi_ml` are removed), in the forms named by `to`:
    `labels_*.nii.gz`, and of DICOM `seg_*.dcm` and `rtstruct_*.dcm`, which carry the patient's own header; then
    `lesions.csv` of the PET's grid, `preview.png`, and last `record.json`. Those of an earlier patient are deleted
    before. Raises `InputError` for images or models that cannot be used.
    """
    clock = Clock()
    loaded = load_models(models, device) if isinstance(models, str | Path) else list(models)
    patient = open_patient(Path(pet), Path(ct) if ct is not None else None, _params(loaded))
    return _predict_opened(loaded, patient, Path(pet), Path(out), to, clock)


def _params(models: Sequence[Model]) -> Params:
    return from_dict(dict(models[0].about["training"]["params"]))


def _predict_opened(
    loaded: Sequence[Model], patient: Patient, pet: Path, out: Path, to: Collection[str], clock: Clock
) -> dict[str, Any]:
    params = _params(loaded)
    _check_forms(to, patient, pet)
    clock.lap("read")
    found = delineate(loaded, patient.images, params, clock)
    _clear(out)
    _write_labels(out, found.labels, patient, to)
    write_text(out / "lesions.csv", found.lesions.to_csv(index=False))
    with atomic_path(out / "preview.png") as temporary:
        temporary.write_bytes(preview(found.on_study_grid))
    clock.lap("write")
    record = _record(loaded, patient, params, found) | {"seconds": clock.seconds, "peak_memory_mb": peak_memory_mb()}
    write_json(out / "record.json", record)
    return record


class Clock:
    """Seconds of each phase of a patient."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 2)
        self._last = now


def peak_memory_mb() -> int:
    """Most memory that this process has held so far, MB."""
    scale = 1024 if sys.platform == "darwin" else 1  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 * scale)


def delineate(models: Sequence[Model], images: Images, params: Params, clock: Clock) -> Delineation:
    """The mean of the models on a patient's images; raises `InputError` if they cannot be prepared."""
    prepared = prepare_images(images.pet, images.ct, params)
    clock.lap("resample")
    probabilities = predict_probabilities(
        [model.network for model in models], prepared.inputs, params.patch_shape[2], params.patch_stride
    )
    clock.lap("network")
    grids = {name: Grid.of(image) for name, image in images.present().items()}
    labels = {name: labels_on(probabilities, prepared.grid, grid, params) for name, grid in grids.items()}
    inside = _without_small_rois(predict_labels(probabilities), prepared.grid, params)
    table = lesion_table(labels["pet"], images.pet, params)
    cut = bool(table["touches_border"].any()) or _touches_border(inside, prepared.grid)
    ct = None if images.ct is None else to_array(resample(images.ct, prepared.grid, outside=AIR_HU))
    case = ViewCase("", prepared.suv, np.zeros_like(inside), inside, prepared.grid.spacing_mm, ct)
    clock.lap("resample")
    doubts = [f"crop uncertain: {doubt}" for doubt in prepared.doubts]
    return Delineation(labels, case, table, [*doubts, CUT] if cut else doubts)


def patients_of(pets: Sequence[Path], cts: Sequence[Path]) -> list[tuple[str, Path, Path | None]]:
    """(name, PET, CT) of several patients; the name is that of the PET's file or folder.

    Raises `InputError` unless there is one CT a PET, or none at all.
    """
    if cts and len(cts) != len(pets):
        value = f"{len(pets)} PET, {len(cts)} CT"
        raise InputError("each PET needs its CT", value=value, remedy="give --ct as often as --pet, in the same order.")
    names = [pet.name.split(".nii")[0] if pet.is_file() else pet.resolve().name for pet in pets]
    own: Sequence[Path | None] = cts or [None] * len(pets)
    return list(zip(names, pets, own, strict=True))


def predict_many(
    models: str | Path,
    patients: Sequence[tuple[str, Path, Path | None]],
    out: Path,
    *,
    device: str = "auto",
    to: Collection[str] = ("nifti",),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any] | MtvError]:
    """Delineate (name, PET, CT) one after the other into `out`/<name>; the records, or the error of each that failed.

    While the network works on one patient the next one's images are read. A patient that cannot be used does not stop
    the others. Raises `InputError` for models that cannot be used and for
    two patients of one name.
    """
    names = [name for name, _, _ in patients]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            "patients have the same name", value=", ".join(twice), remedy="name their folders differently."
        )
    loaded = load_models(models, device)
    results: dict[str, dict[str, Any] | MtvError] = {}
    with ThreadPoolExecutor(1) as pool:

        def read(number: int) -> list[Future[Patient]]:
            return [pool.submit(open_patient, pet, ct, _params(loaded)) for _, pet, ct in patients[number : number + 1]]

        ahead = read(0)
        for done, (name, pet, _) in enumerate(patients, start=1):
            clock, opened, ahead = Clock(), ahead[0], read(done)
            try:
                results[name] = _predict_opened(loaded, opened.result(), pet, out / name, to, clock)
            except MtvError as error:
                results[name] = error
            progress(done, len(patients))
    return results


def find_models(folder: str | Path) -> list[Path]:
    """The model in a folder, or the models in its subfolders in the order of their names; `InputError` if none."""
    folder = Path(folder)
    found = (
        [folder] if (folder / MODEL_FILE).exists() else sorted(path.parent for path in folder.glob(f"*/{MODEL_FILE}"))
    )
    if not found:
        raise InputError("there is no model here", file=folder, remedy="name a study's folds/ or one of its folders.")
    return found


def available_processors() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_models(folder: str | Path, device: str = "cpu") -> list[Model]:
    """The models to average; `InputError` unless all were trained on the same preprocessing and number of folds."""
    folders = find_models(folder)
    use_processor(available_processors())
    models = [load_model(one, choose_device(device)) for one in folders]
    first, names = models[0].about["training"]["params"], (*PREPROCESSING, *FOLDS)
    for one, model in zip(folders, models, strict=True):
        own = model.about["training"]["params"]
        differing = [f"{name} {own[name]}, not {first[name]}" for name in names if own[name] != first[name]]
        if differing:
            raise InputError(
                f"was trained with {'; '.join(differing)} as the first of these models",
                file=one / MODEL_FILE,
                remedy="keep the models of one study only; a fold that the study no longer has can be deleted.",
            )
    return models


def open_patient(pet: Path, ct: Path | None, params: Params) -> Patient:
    """The images and the warnings of their checks; a CT that the models do not take only lends its grid."""
    opened = _open_dicom(pet, ct, params) if pet.is_dir() else _open_nifti(pet, ct, params)
    findings = check_images(opened.images)
    places = {"pet": pet, "ct": ct or pet}
    stop_on_errors(replace(finding, file=str(places[str(finding.file)])) for finding in findings)
    return replace(opened, warnings=[*opened.warnings, *(finding.message for finding in findings)])


def _open_nifti(pet: Path, ct: Path | None, params: Params) -> Patient:
    if ct is None and "ct" in params.channels:
        raise InputError("these models need a CT beside the PET", remedy="give --ct, or use models of PET alone.")
    if ct is not None and ct.is_dir():
        remedy = "give both as folders of DICOM or both as NIfTI files."
        raise InputError("is a folder, but the PET is a file", file=ct, remedy=remedy)
    files = {"pet": pet} | ({"ct": ct} if ct is not None else {})
    with ThreadPoolExecutor(len(files)) as pool:  # side by side: unpacking leaves Python to others
        opened = dict(zip(files, pool.map(read_scan, files.values()), strict=True))
        hashes = dict(zip(files, pool.map(sha256, files.values()), strict=True))
    return Patient(Images(opened["pet"], opened.get("ct"), None), hashes, {}, [])


def _open_dicom(pet: Path, ct: Path | None, params: Params) -> Patient:
    """The PET of a folder; the CT of `ct`, or where the models need one and none is named, of the PET's folder."""
    from mtvlib.dicom import ct_series, instances, pet_series, quiet, read_ct, read_pet  # NIfTI needs no pydicom

    quiet()
    series = {"pet": pet_series(pet)}
    if ct is not None and not ct.is_dir():
        remedy = "give both as folders of DICOM or both as NIfTI files."
        raise InputError("is a file, but the PET is a folder", file=ct, remedy=remedy)
    if ct is not None or "ct" in params.channels:
        series["ct"] = ct_series(ct or pet, str(series["pet"].header.get("FrameOfReferenceUID", "")))
    read = {name: read_pet(one) if name == "pet" else read_ct(one) for name, one in series.items()}
    images = Images(read["pet"].image, read["ct"].image if "ct" in read else None, None)
    warnings = [f"the {TITLES[name]}: {flag.message}" for name, one in read.items() for flag in one.flags]
    hashes = {name: _hash_of_files({slice.path for slice in one.slices}) for name, one in series.items()}
    return Patient(images, hashes, {name: instances(one) for name, one in series.items()}, warnings)


def _hash_of_files(paths: Iterable[Path]) -> str:
    """Hash of a series: of its files' hashes, whatever their names and order."""
    return hashlib.sha256("".join(sorted(sha256(path) for path in paths)).encode()).hexdigest()


def _check_forms(to: Collection[str], patient: Patient, pet: Path) -> None:
    unknown = sorted(set(to) - set(FORMS))
    if unknown or not to:
        remedy = f"use {', '.join(FORMS)}, separated by commas."
        raise InputError("unknown form of the result", value=", ".join(unknown) or "none", remedy=remedy)
    if not patient.headers and set(to) != {"nifti"}:
        remedy = "give the DICOM folders of PET and CT."
        raise InputError("SEG and RTSTRUCT refer to DICOM images, but these are NIfTI", file=pet, remedy=remedy)


def labels_on(probabilities: np.ndarray, grid: Grid, target: Grid, params: Params) -> sitk.Image:
    """Label map on another grid: probabilities interpolated, then the class decided, then small ROIs removed."""
    labels = to_array(probabilities_to_labels(probabilities, grid, target))
    return to_image(_without_small_rois(labels, target, params), target)


def _without_small_rois(labels: np.ndarray, grid: Grid, params: Params) -> np.ndarray:
    return lesions.remove_small_rois(labels, grid.spacing_mm, params.min_roi_ml, params.connectivity)


def lesion_table(labels: sitk.Image, pet: sitk.Image, params: Params) -> pd.DataFrame:
    """One row a lesion of a label map on the PET's grid, the largest first; columns `LESION_COLUMNS`.

    Volume in ml, SUV values, TLG in g, centre (mean of its voxels' centres) in LPS mm; `touches_border`: of the PET.
    """
    grid = Grid.of(labels)
    found = lesions.describe(to_array(labels), to_array(pet), grid.spacing_mm, params.connectivity)
    for lesion in found:
        centre = grid.to_mm(np.array([lesion.pop("centroid_voxel")]))[0]
        lesion |= {f"centre_{axis}_mm": round(float(value), 1) for axis, value in zip("xyz", centre, strict=True)}
    return pd.DataFrame(found, columns=list(LESION_COLUMNS))


def _touches_border(labels: np.ndarray, grid: Grid) -> bool:
    """Whether a lesion reaches the edge of the study's grid, beyond which nothing was looked at."""
    return any(lesion["touches_border"] for lesion in lesions.describe(labels, None, grid.spacing_mm))


def _record(models: Sequence[Model], patient: Patient, params: Params, found: Delineation) -> dict[str, Any]:
    table = found.lesions
    volumes = {name: float(table.loc[table["target"] == name, "volume_ml"].sum()) for name in LESION_CLASSES}
    return {
        "mtvlib": mtvlib.__version__,
        "torch": torch.__version__,
        "models": [model.about["sha256"] | {"fold": model.about["training"]["fold"]} for model in models],
        "inputs": {name: {"sha256": digest} for name, digest in patient.sha256.items()},
        "min_roi_ml": params.min_roi_ml,
        "mtv_ml": volumes | {"all": sum(volumes.values())},
        "lesions": len(table),
        "warnings": [*patient.warnings, *found.warnings],
    }


def _clear(out: Path) -> None:
    """Nothing of another patient stays beside the new record."""
    for name in ("record.json", "lesions.csv", "preview.png"):
        (out / name).unlink(missing_ok=True)
    for image in ("pet", "ct"):
        for name in (f"labels_{image}.nii.gz", f"seg_{image}.dcm", f"rtstruct_{image}.dcm"):
            (out / name).unlink(missing_ok=True)


def _write_labels(out: Path, labels: dict[str, sitk.Image], patient: Patient, to: Collection[str]) -> None:
    if set(to) - {"nifti"}:
        from mtvlib.dicom_export import write_rtstruct, write_seg  # slow to import
    version = mtvlib.__version__
    for name, image in labels.items():
        if "nifti" in to:
            write_image(image, out / f"labels_{name}.nii.gz")
        if "seg" in to:
            write_seg(image, patient.headers[name], out / f"seg_{name}.dcm", algorithm=ALGORITHM, version=version)
        if "rtstruct" in to:
            path = out / f"rtstruct_{name}.dcm"
            write_rtstruct(image, patient.headers[name], path, algorithm=ALGORITHM, version=version)
