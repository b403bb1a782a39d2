"""Data sets laid out as they are published, to a cohort: cohort.csv and its images."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import pandas as pd

from mtvlib.classes import BACKGROUND, PRIMARY
from mtvlib.errors import InputError
from mtvlib.files import atomic_path, write_text
from mtvlib.volume import check_same_grid, read_image, read_labels

STS_FOLDERS = "STS_[0-9][0-9][0-9]"
STS_FILES = {"pet": "PET_image.nii.gz", "ct": "CT_image.nii.gz", "reference": "PET_mask.nii.gz"}
STS_SITE = "TCIA Soft-tissue-Sarcoma"


def import_sts(source: Path, out: Path) -> Path:
    """Cohort of the soft-tissue sarcomas in the IBSI validation set (theibsi/data_sets, from TCIA); returns cohort.csv.

    `source` holds a folder STS_0NN for each patient, with PET_image (SUV body weight), CT_image (HU), PET_mask (GTV on
    the PET's grid) and CT_mask, all .nii.gz. The GTV, 0 or 1, becomes class 1, the primary tumour; CT_mask, the same
    contour on the CT's grid, is not used. All patients are of the main cohort; there are no outcomes, hence no columns
    for them. What is there already and the same stays untouched, so that a study made from it is not done again.

    Raises `InputError` for a source without such folders, listing every missing file; for a mask that is not 0 or 1 or
    not on its PET's grid; and for an `out` that holds another cohort.csv.
    """
    folders = sorted(folder for folder in source.glob(STS_FOLDERS) if folder.is_dir())
    _check_sts(source, folders)
    rows = [_sts_row(folder.name) for folder in folders]
    table = pd.DataFrame(rows).to_csv(index=False)
    _check_free(out / "cohort.csv", table)
    for folder, row in zip(folders, rows, strict=True):
        for name, file in STS_FILES.items():
            _copy(folder / file, out / row[name])
    write_text(out / "cohort.csv", table)
    return out / "cohort.csv"


def _sts_row(patient: str) -> dict[str, str]:
    files = {name: f"images/{patient}_{name}.nii.gz" for name in STS_FILES}
    return {"patient": patient, "cohort": "main", "site": STS_SITE, **files}


def _check_sts(source: Path, folders: list[Path]) -> None:
    if not folders:
        remedy = f"name the folder that holds STS_001/ and so on, each with {', '.join(STS_FILES.values())}."
        raise InputError("holds no folders STS_0NN", file=source, remedy=remedy)
    missing = [
        f"{folder.name}/{file}" for folder in folders for file in STS_FILES.values() if not (folder / file).is_file()
    ]
    if missing:
        raise InputError(
            f"{len(missing)} files are missing: {', '.join(missing)}", file=source, remedy="copy the folders again."
        )
    for folder in folders:
        _check_gtv(folder)


def _check_gtv(folder: Path) -> None:
    pet, mask = (folder / STS_FILES[name] for name in ("pet", "reference"))
    gtv = read_labels(mask, classes=(BACKGROUND, PRIMARY), patient=folder.name)
    check_same_grid(read_image(pet, patient=folder.name), gtv, patient=folder.name, file=mask)


def _check_free(path: Path, table: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != table:
        raise InputError("is another cohort, or was changed", file=path, remedy="choose another folder for --out.")


def _copy(source: Path, target: Path) -> None:
    if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
