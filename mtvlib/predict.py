"""A new patient: from PET and CT to label maps on their own grids, a lesion table and a record of the making."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

import mtvlib
from mtvlib import lesions
from mtvlib.classes import LESION_CLASSES
from mtvlib.cohort import Images, check_images, stop_on_errors
from mtvlib.errors import InputError
from mtvlib.files import sha256, write_json, write_text
from mtvlib.inference import MODEL_FILE, PREPROCESSING, Model, load_model, predict_labels, predict_probabilities
from mtvlib.params import FOLDS, Params, from_dict
from mtvlib.prepare import prepare_images
from mtvlib.training import choose_device
from mtvlib.volume import Grid, probabilities_to_labels, read_scan, to_array, to_image, write_image

OUTPUTS = ("record.json", "lesions.csv", "labels_pet.nii.gz", "labels_ct.nii.gz")
LESION_COLUMNS = (
    *("target", "lesion", "volume_ml", "suv_max", "suv_mean", "suv_peak", "tlg", "touches_border"),
    *("centre_x_mm", "centre_y_mm", "centre_z_mm"),
)
CUT = "a lesion reaches the edge of the field that was analysed, so its volume may be too small"


def predict_patient(
    models: str | Path, pet_file: str | Path, ct_file: str | Path | None, out: str | Path, *, device: str = "auto"
) -> dict[str, Any]:
    """Delineate one patient by the mean of the models and write the results into `out`; returns the record.

    Written: `labels_pet.nii.gz` and, with a CT, `labels_ct.nii.gz` (probabilities are interpolated onto each grid
    before the class is decided, paper, "Network evaluation"; on each, ROIs below `min_roi_ml` are removed),
    `lesions.csv` of the PET's grid, and last `record.json`; those of an earlier patient are deleted before. PET in SUV,
    CT in HU, NIfTI. Raises `InputError` for images or models that cannot be used.
    """
    began = time.perf_counter()
    loaded = load_models(models, device)
    params = from_dict(dict(loaded[0].about["training"]["params"]))
    files = {"pet": pet_file} | ({"ct": ct_file} if ct_file is not None else {})
    images, warnings = _open(files, params)
    prepared = prepare_images(images.pet, images.ct, params)
    probabilities = predict_probabilities(
        [model.network for model in loaded], prepared.inputs, params.patch_shape[2], params.patch_stride
    )
    grids = {name: Grid.of(image) for name, image in images.present().items()}
    labels = {name: labels_on(probabilities, prepared.grid, grid, params) for name, grid in grids.items()}
    table = lesion_table(labels["pet"], images.pet, params)
    warnings += [CUT] if table["touches_border"].any() or _is_cut(probabilities, prepared.grid, params) else []
    record = _record(loaded, files, params, table, warnings)
    record["seconds"] = round(time.perf_counter() - began, 1)
    _write(Path(out), labels, table, record)
    return record


def find_models(folder: str | Path) -> list[Path]:
    """The model in a folder, or the models in its subfolders in the order of their names; `InputError` if none."""
    folder = Path(folder)
    found = (
        [folder] if (folder / MODEL_FILE).exists() else sorted(path.parent for path in folder.glob(f"*/{MODEL_FILE}"))
    )
    if not found:
        raise InputError("there is no model here", file=folder, remedy="name a study's folds/ or one of its folders.")
    return found


def load_models(folder: str | Path, device: str = "cpu") -> list[Model]:
    """The models to average; `InputError` unless all were trained on the same preprocessing and number of folds."""
    folders = find_models(folder)
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


def _open(files: dict[str, str | Path], params: Params) -> tuple[Images, list[str]]:
    """The images and the warnings of their checks; a CT that the models do not take only lends its grid."""
    if "ct" in params.channels and "ct" not in files:
        raise InputError("these models need a CT beside the PET", remedy="give --ct, or use models of PET alone.")
    for path in files.values():
        if Path(path).is_dir():
            remedy = "convert the series to NIfTI first (PET in SUV, CT in HU)."
            raise InputError("is a folder, but must be a NIfTI file", file=path, remedy=remedy)
    opened = {name: read_scan(path) for name, path in files.items()}
    images = Images(opened["pet"], opened.get("ct"), None)
    findings = [replace(finding, file=str(files[str(finding.file)])) for finding in check_images(images)]
    stop_on_errors(findings)
    return images, [finding.message for finding in findings]


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


def _is_cut(probabilities: np.ndarray, grid: Grid, params: Params) -> bool:
    """Whether a lesion reaches the edge of the study's grid, beyond which nothing was looked at."""
    labels = _without_small_rois(predict_labels(probabilities), grid, params)
    return any(lesion["touches_border"] for lesion in lesions.describe(labels, None, grid.spacing_mm))


def _record(
    models: Sequence[Model], files: dict[str, str | Path], params: Params, table: pd.DataFrame, warnings: list[str]
) -> dict[str, Any]:
    volumes = {name: float(table.loc[table["target"] == name, "volume_ml"].sum()) for name in LESION_CLASSES}
    return {
        "mtvlib": mtvlib.__version__,
        "torch": torch.__version__,
        "models": [model.about["sha256"] | {"fold": model.about["training"]["fold"]} for model in models],
        "inputs": {name: {"sha256": sha256(path)} for name, path in files.items()},
        "min_roi_ml": params.min_roi_ml,
        "mtv_ml": volumes | {"all": sum(volumes.values())},
        "lesions": len(table),
        "warnings": warnings,
    }


def _write(out: Path, labels: dict[str, sitk.Image], table: pd.DataFrame, record: dict[str, Any]) -> None:
    for name in OUTPUTS:  # nothing of another patient stays beside the new record
        (out / name).unlink(missing_ok=True)
    for name, image in labels.items():
        write_image(image, out / f"labels_{name}.nii.gz")
    write_text(out / "lesions.csv", table.to_csv(index=False))
    write_json(out / "record.json", record)
