"""Data sets laid out as they are published, to a cohort: cohort.csv, its images, and the import log.

Every importer leaves import_log.csv beside cohort.csv: a line for each image, table or column that it met, with a
reason for whatever was left out. Images are copied as they are; whether they can be used is `mtv check`'s work.
"""

from __future__ import annotations

import csv
import filecmp
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from mtvlib.classes import BACKGROUND, CLASS_NAMES, NODES, PRIMARY
from mtvlib.cohort import FILES, SAFE_NAME
from mtvlib.errors import InputError
from mtvlib.files import atomic_path, write_text
from mtvlib.import_log import ImportLog
from mtvlib.volume import Grid, check_same_grid, read_image, read_labels, same_grid, to_array, to_image, write_image

Progress = Callable[[int, int], None]

LOG = "import_log.csv"
STS_FOLDERS = "STS_[0-9][0-9][0-9]"
STS_FILES = {"pet": "PET_image.nii.gz", "ct": "CT_image.nii.gz", "reference": "PET_mask.nii.gz"}
STS_SITE = "TCIA Soft-tissue-Sarcoma"


@dataclass(frozen=True)
class Overlap:
    """Patients of `sites` in `collection` are patients of `other` too.

    `person` is their name in `other`, from the `{site}` and `{number}` of their name in `collection`; None where no
    published table tells who is who, so that one of the two collections must be left out of a study as a whole.
    """

    collection: str
    sites: tuple[str, ...]
    other: str
    person: str | None
    source: str


KNOWN_OVERLAPS = (
    Overlap(
        "HECKTOR",
        ("CHUM", "CHUS", "HGJ", "HMR"),
        "Head-Neck-PET-CT",
        "HN-{site}-{number}",
        "the challenge's own conversion, github.com/voreille/hecktor (0117ff1): src/data/utils.py makes the name of "
        "2022 by cutting HN- off the TCIA name; in 2021 HN-HGJ- became CHGJ and HN-HMR- became CHMR",
    ),
    Overlap(
        "HECKTOR",
        ("MDA",),
        "HNSCC",
        None,
        "github.com/voreille/hecktor (0117ff1): src/mda chooses oropharynx patients by their TCIA codes HNSCC-01-NNNN; "
        "the table from these to the challenge's names is not published",
    ),
)
"""Public collections that share patients: a test on one is not external for a model trained on the other.

HECKTOR's editions contain each other as well. Names of 2021 (CHUP021) and later (CHUP-021) are taken for the same
person: certain for the four sites above, elsewhere from equal numbers of cases and public code that pairs them so.
"""


# --- soft-tissue sarcomas


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
    log = ImportLog()
    for folder, row in zip(folders, rows, strict=True):
        for name, file in STS_FILES.items():
            _copy(folder / file, out / row[name])
            log.add(folder.name, name, "imported", "", f"{folder.name}/{file}")
        log.add(folder.name, "CT_mask", "left out", "not_used", "the contour of PET_mask, on the CT's grid")
    log.write(out / LOG)
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


# --- HECKTOR

HECKTOR_LAYOUTS = {
    "2021": re.compile(r"(?:.*/)?hecktor_nii(?:_test)?/(?P<patient>[^/]+)_(?P<kind>ct|pt|gtvt)\.nii\.gz"),
    "2022": re.compile(
        r"(?:.*/)?(?:images(?:Tr|Ts)/(?P<patient>[^/]+)__(?P<kind>CT|PT)|labels(?:Tr|Ts)/(?P<labelled>[^/]+))\.nii\.gz"
    ),
    "2025": re.compile(r"(?:.*/)?(?P<patient>[^/]+)/(?P=patient)(?:__(?P<kind>CT|PT))?\.nii\.gz"),
}
"""Paths of each edition's images, the name of `source` included; 2025 also stands for 2026.

Sources: README of github.com/bamf-health/hecktor2021-task1; hecktor.grand-challenge.org/Data (2022); README of
github.com/BioMedIA-MBZUAI/HECKTOR2025 and HECKTOR2026. Not tried on the challenge's own files, which need registration.
"""
_KINDS = {"pt": "pet", "ct": "ct", "gtvt": "reference", "": "reference"}
_ALIASES = {"CHGJ": "HGJ", "CHMR": "HMR"}  # hospitals whose short name changed after 2021

_HECKTOR_COLUMNS = {
    "age": "age",
    "gender": "sex",
    "hpv status": "hpv",
    "tnm group": "stage",
    "tnm edition": "tnm_edition",
    "t-stage": "t_category",
    "n-stage": "n_category",
    "m-stage": "m_category",
    "performance status": "performance_status",
    "treatment": "treatment",
    "chemotherapy": "chemotherapy",
    "surgery": "surgery",
    "relapse": "relapse",
    "rfs": "rfs_days",
    "progression": "progression",
    "progression free survival": "pfs_days",
    "centerid": "centre",
    "center": "centre",
}
"""From the tables' headers, lower case, - for _, without what stands in brackets, to the cohort's columns.

Left out are body weight (the PET is in SUV already), tobacco and alcohol: nothing here uses them. T, N and M are named
categories, as UICC does, so that no one takes them for `stage`, the group.
"""
_CODES = {
    "sex": {"m": "M", "male": "M", "1": "M", "f": "F", "female": "F", "0": "F"},
    "hpv": {"0": "negative", "negative": "negative", "1": "positive", "positive": "positive"},
    "relapse": {"0": "0", "1": "1"},
    "progression": {"0": "0", "1": "1"},
}
_MEASURES = ("age", "rfs_days", "pfs_days")
_NOT_STATED = ("", "nan", "na", "n/a", "none", "unknown")


def import_hecktor(
    source: Path, out: Path, *, external: Collection[str] = (), progress: Progress = lambda done, total: None
) -> Path:
    """Cohort of a HECKTOR challenge, edition 2021, 2022, 2025 or 2026, told by its layout; returns cohort.csv.

    References are gross tumour volumes drawn on CT and PET for radiotherapy, not metabolic tumour volumes. 2021 has
    the primary tumour alone: `nodes_stated` is 0 there, and no class 2 does not mean no metastases. A patient without
    a reference (the challenge's test cases) or CT keeps a row with an empty cell; one without a PET has none.

    `site` is the hospital's short name; patients of the sites in `external` form the external cohort, all others the
    main one. `person` is the name in Head-Neck-PET-CT where it is known (see `KNOWN_OVERLAPS`), so that no one comes
    into both cohorts when collections are joined.

    The endpoint is recurrence-free survival in days from the end of radiotherapy (2021: progression-free), where a
    recurrence is no death: it is kept as `relapse` and `rfs_days` (`progression`, `pfs_days`). `death` and
    `followup_months` mean overall survival and stay away, as does `survival_eligible`.

    Raises `InputError` for a source in none or several of the layouts, for two different files of one patient, for
    names that cannot be file names, for unknown `external` sites, and for an `out` that holds another cohort.csv.
    """
    log = ImportLog()
    edition, found = _hecktor_images(source, out, log)
    known = _hecktor_tables(source, out, log)
    hpv = "unknown" if any("hpv" in cells for cells in known.values()) else ""
    cases = [
        _hecktor_case(patient, files, {"hpv": hpv} | known.get(patient, {}), edition)
        for patient, files in sorted(found.items())
    ]
    for patient in sorted(known.keys() - found.keys()):
        log.add(patient, "patient", "left out", "no_images", "is in the tables, but has no images")
    _set_external(cases, external)
    return _write(cases, source, out, log, progress)


def _hecktor_images(source: Path, out: Path, log: ImportLog) -> tuple[str, dict[str, dict[str, Path]]]:
    """The edition whose layout this is, and the files of each patient: pet, ct, reference."""
    files = _files(source, out, "*.nii.gz")
    # The source's own name takes part: hecktor_nii itself may be given.
    paths = {file: f"{source.resolve().name}/{file.relative_to(source).as_posix()}" for file in files}
    matches = {
        edition: {file: match for file, path in paths.items() if (match := layout.fullmatch(path))}
        for edition, layout in HECKTOR_LAYOUTS.items()
    }
    editions = [name for name, found in matches.items() if any(match["kind"] for match in found.values())]
    _check_editions(source, editions)
    for file in files:
        if file not in matches[editions[0]]:
            _leave_out(log, source, file, "not_used", "is no PET, CT or reference of this layout")
    return editions[0], _by_patient(source, matches[editions[0]], log)


def _check_editions(source: Path, editions: list[str]) -> None:
    looked_for = (
        "hecktor_nii/ID_pt.nii.gz (2021), imagesTr/ID__PT.nii.gz (2022) or ID/ID__PT.nii.gz (2025, 2026), "
        "each with CT and reference"
    )
    if not editions:
        raise InputError("holds no images of HECKTOR", file=source, remedy=f"name the folder that holds {looked_for}.")
    if len(editions) > 1:
        remedy = "import one edition at a time: each contains patients of the others."
        raise InputError("holds several editions of HECKTOR", file=source, value=", ".join(editions), remedy=remedy)


def _by_patient(source: Path, matches: Mapping[Path, re.Match[str]], log: ImportLog) -> dict[str, dict[str, Path]]:
    """Files by patient and kind. Of equal files the first counts: 2025 repeats images in its folders Task 1 to 3."""
    imaged = {match["patient"] for match in matches.values()}
    found: dict[str, dict[str, Path]] = {}
    for file, match in matches.items():
        patient = match["patient"] or match["labelled"]
        # The page of 2022 writes imagesTr/CHUM-001__CT, but labelsTr/CHUM_001.
        patient = patient if patient in imaged else patient.replace("_", "-")
        kind = _KINDS[(match["kind"] or "").lower()]
        first = found.setdefault(patient, {}).setdefault(kind, file)
        if first != file and not filecmp.cmp(first, file, shallow=False):
            both = " and ".join(one.relative_to(source).as_posix() for one in (first, file))
            remedy = "keep one of them, or name the folder of one task or edition."
            raise InputError(f"has two different files as {kind}", patient=patient, value=both, remedy=remedy)
        if first != file:
            message = f"the same as {first.relative_to(source).as_posix()}"
            _leave_out(log, source, file, "duplicate", message, patient)
    return found


def _hecktor_case(patient: str, files: dict[str, Path], known: Mapping[str, str], edition: str) -> _Case:
    site, person = _hecktor_person(patient)
    # The centre's number means another hospital in each edition; the name's prefix does not.
    site = site or f"HECKTOR {known.get('centre', '')}".strip()
    classes = (BACKGROUND, PRIMARY) if edition == "2021" else tuple(CLASS_NAMES)
    more = {column: known.get(column, "") for column in _HECKTOR_COLUMNS.values() if column != "centre"}
    return _Case(patient, "main", site, files, {label: label for label in classes}, {"person": person} | more)


def _hecktor_person(patient: str) -> tuple[str, str]:
    """Site ('' if the name does not tell it) and person: CHGJ007 of 2021 is HGJ and HN-HGJ-007 of Head-Neck-PET-CT."""
    match = re.fullmatch(r"([A-Z]+)-?(\d+)", patient)
    if not match:
        return "", patient
    site = _ALIASES.get(match[1], match[1])
    for overlap in KNOWN_OVERLAPS:
        if overlap.collection == "HECKTOR" and site in overlap.sites and overlap.person:
            return site, overlap.person.format(site=site, number=match[2])
    return site, f"{site}-{match[2]}"


def _set_external(cases: Iterable[_Case], external: Collection[str]) -> None:
    sites = sorted({case.site for case in cases})
    unknown = sorted(set(external) - set(sites))
    if unknown:
        remedy = f"--external takes these sites: {', '.join(sites)}."
        raise InputError("there are no patients of these sites", value=", ".join(unknown), remedy=remedy)
    for case in cases:
        case.cohort = "external" if case.site in external else "main"


# --- HECKTOR's tables


def _hecktor_tables(source: Path, out: Path, log: ImportLog) -> dict[str, dict[str, str]]:
    """What the tables say of each patient, by the cohort's column; of two that contradict, the first counts."""
    known: dict[str, dict[str, str]] = {}
    files = [file for file in _files(source, out, "*.csv") if file.name.lower().startswith("hecktor")]
    if not files:
        message = "no table hecktor*.csv was found: age, sex, HPV and relapse stay empty"
        log.add("", "tables", "left out", "no_tables", message)
    for file in files:
        for patient, column, value in _hecktor_cells(source, file, log):
            first = known.setdefault(patient, {}).setdefault(column, value)
            if first != value:
                message = f"{file.name} says {value}, an earlier table {first}, which was taken"
                log.add(patient, column, "left out", "contradiction", message)
    return known


def _hecktor_cells(source: Path, file: Path, log: ImportLog) -> Iterator[tuple[str, str, str]]:
    """Patient, column of the cohort and value of each cell of a table that is filled and understood."""
    with open(file, newline="", encoding="utf-8-sig", errors="replace") as lines:
        header, *records = [[cell.strip() for cell in record] for record in csv.reader(lines)] or [[]]
    columns = {name: _HECKTOR_COLUMNS.get(name.split("(")[0].strip().lower().replace("_", "-"), "") for name in header}
    if "PatientID" not in columns or not any(columns.values()):
        _leave_out(log, source, file, "not_used", "holds nothing that the cohort takes")
        return
    for name in header:
        if not columns[name] and name != "PatientID":
            log.add("", f"column {name}", "left out", "not_used", f"in {file.name}: nothing here uses it")
    for record in records:
        cells = dict(zip(header, record, strict=False))
        for name, column in columns.items():
            text = cells.get(name, "")
            value = _hecktor_value(column, text) if column else ""
            if value:
                yield cells["PatientID"], column, value
            elif column and text.lower() not in _NOT_STATED:
                message = f"{file.name} says {text!r}, which is not understood"
                log.add(cells["PatientID"], column, "left out", "unknown_value", message)


def _hecktor_value(column: str, text: str) -> str:
    """A cell as the cohort writes it, '' if it is empty or not understood."""
    if text.lower() in _NOT_STATED:
        return ""
    text = re.sub(r"^(\d+)\.0+$", r"\1", text)  # a column with gaps is often written as fractions
    if column in _MEASURES:
        return text if re.fullmatch(r"\d+(\.\d+)?", text) else ""
    return _CODES[column].get(text.lower(), "") if column in _CODES else text


# --- nnU-Net

_PET_WORDS, _CT_WORDS = {"pet", "pt", "suv"}, {"ct", "ctres"}  # CTres: autoPET's name of the resampled CT
_CLASS_WORDS = {
    BACKGROUND: {"background"},
    PRIMARY: {"primary", "primarytumor", "primarytumour", "tumor", "tumour", "lesion", "gtv", "gtvp", "gtvt"},
    NODES: {"node", "nodes", "nodal", "lymph", "lymphnode", "lymphnodes", "gtvn"}
    | {"lymphnodemetastasis", "lymphnodemetastases", "nodemetastasis", "nodemetastases"},
}
_NUMBERED_CASE = re.compile(r"([A-Za-z][A-Za-z0-9]*)_(\d+)")


def import_nnunet(source: Path, out: Path, *, progress: Progress = lambda done, total: None) -> Path:
    """Cohort of an nnU-Net raw dataset (v2; v1's dataset.json is understood too); returns cohort.csv.

    `source` holds dataset.json, imagesTr/CASE_NNNN.nii.gz, labelsTr/CASE.nii.gz and perhaps imagesTs and labelsTs,
    whose patients become the external cohort, without reference if there is no label. The names of the channels tell
    PET and CT, the names of the labels the classes; labels of other numbers are recoded. A single class named tumour
    or lesion becomes the primary tumour, and `nodes_stated` is 0 then.

    nnU-Net knows no hospitals: where all names are SITE_NUMBER with more than one SITE, that is `site`, else the
    dataset's name is. Test cases may come from the hospitals of the training cases; only the user knows whether a test
    on them is external.

    Raises `InputError` for a dataset.json that is absent, not of NIfTI images, without a PET, with labels that cannot
    be told or regions in their place; for a case in training and test set; and for names that cannot be file names.
    """
    log = ImportLog()
    meta = _nnunet_json(source)
    channels = _nnunet_channels(source, meta, log)
    classes = _nnunet_classes(source, meta)
    found = _nnunet_images(source, str(meta.get("file_ending", ".nii.gz")), channels, log)
    sites = _nnunet_sites(found, str(meta.get("name") or source.resolve().name))
    cases = [_Case(name, cohort, sites[name], files, classes) for name, (cohort, files) in sorted(found.items())]
    return _write(cases, source, out, log, progress)


def _nnunet_json(source: Path) -> dict[str, Any]:
    file = source / "dataset.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "name the folder of one dataset, such as nnUNet_raw/Dataset001_Name."
        raise InputError("there is no such file", file=file, remedy=remedy) from None
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", file=file, remedy="copy the file again.") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("labels"), dict):
        raise InputError("names no labels", file=file, remedy="give `labels` as nnU-Net documents it.")
    ending = meta.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        remedy = "convert images and labels to .nii.gz, for instance with SimpleITK, and change file_ending."
        raise InputError("is of images that are not NIfTI", file=file, value=ending, remedy=remedy)
    return meta


def _nnunet_channels(source: Path, meta: dict[str, Any], log: ImportLog) -> dict[int, str]:
    """Number of the channel to pet or ct."""
    raw = meta.get("channel_names") or meta.get("modality")
    pairs = raw.items() if isinstance(raw, dict) else ()
    names = {int(number): str(name) for number, name in pairs if str(number).isdigit()}
    words = {number: set(re.split(r"[^a-z]+", name.lower())) for number, name in names.items()}
    pet = [number for number in words if words[number] & _PET_WORDS]
    ct = [number for number in words if words[number] & _CT_WORDS]
    if len(pet) != 1 or len(ct) > 1 or pet == ct:
        raise InputError(
            "the channels do not tell one PET and at most one CT",
            file=source / "dataset.json",
            value=", ".join(f"{number}: {name}" for number, name in names.items()) or "no channel_names",
            remedy="name them PET and CT in `channel_names`.",
        )
    for number in names.keys() - {*pet, *ct}:
        log.add("", f"channel {names[number]}", "left out", "not_used", "is neither PET nor CT")
    return {pet[0]: "pet"} | {number: "ct" for number in ct}


def _nnunet_classes(source: Path, meta: dict[str, Any]) -> dict[int, int]:
    """The labels' numbers in the files to the classes of the study."""
    labels = meta["labels"]
    if all(str(name).isdigit() for name in labels):  # nnU-Net v1: number to name
        labels = {name: number for number, name in labels.items()}
    file, known = source / "dataset.json", "background, tumour (or primary, GTVp) and lymph node (or nodes, GTVn)"
    if not all(str(number).isdigit() for number in labels.values()):
        remedy = f"write label maps with a number for each of {known}."
        raise InputError("has regions in place of labels", file=file, value=json.dumps(labels), remedy=remedy)
    told = {name: _class_of(str(name)) for name in labels}
    unknown = [name for name, number in told.items() if number is None]
    if unknown:
        remedy = f"rename them in `labels`: this study knows {known}."
        raise InputError("has labels of unknown meaning", file=file, value=", ".join(unknown), remedy=remedy)
    classes = {int(labels[name]): number for name, number in told.items() if number is not None}
    distinct = len(classes) == len(set(classes.values())) == len(labels) and max(classes, default=0) < 256
    if not distinct or classes.get(0) != BACKGROUND or PRIMARY not in classes.values():
        remedy = f"give background the number 0, and one number below 256 to each of {known}."
        raise InputError("has labels that cannot be told apart", file=file, value=json.dumps(labels), remedy=remedy)
    return classes


def _class_of(name: str) -> int | None:
    letters = re.sub(r"[^a-z]", "", name.lower())
    return next((number for number, words in _CLASS_WORDS.items() if letters in words), None)


def _nnunet_images(
    source: Path, ending: str, channels: Mapping[int, str], log: ImportLog
) -> dict[str, tuple[str, dict[str, Path]]]:
    """Cohort and files (pet, ct, reference) of each case."""
    found: dict[str, tuple[str, dict[str, Path]]] = {}
    for letters, cohort in (("Tr", "main"), ("Ts", "external")):
        for file in sorted([*source.glob(f"images{letters}/*"), *source.glob(f"labels{letters}/*")]):
            name, kind = _nnunet_name(file, ending, channels)
            if not name:
                _leave_out(log, source, file, "not_used", "is no PET, CT or label of this dataset")
            elif found.setdefault(name, (cohort, {}))[0] != cohort:
                remedy = "remove it from one of them, or rename one if these are two patients."
                raise InputError("is in the training and in the test set", patient=name, file=source, remedy=remedy)
            else:
                found[name][1][kind] = file
    return found


def _nnunet_name(file: Path, ending: str, channels: Mapping[int, str]) -> tuple[str, str]:
    """Case and kind (pet, ct, reference) of a file; two empty texts if it is none of these."""
    name = file.name.removesuffix(ending) if file.name.endswith(ending) else ""
    if file.parent.name.startswith("labels"):
        return name, "reference"
    match = re.fullmatch(r"(.+)_(\d{4})", name)
    kind = channels.get(int(match[2]), "") if match else ""
    return (match[1], kind) if match and kind else ("", "")


def _nnunet_sites(names: Iterable[str], dataset: str) -> dict[str, str]:
    matches = {name: _NUMBERED_CASE.fullmatch(name) for name in names}
    prefixes = {match[1] if match else "" for match in matches.values()}
    split = len(prefixes) > 1 and "" not in prefixes
    return {name: match[1] if match and split else dataset for name, match in matches.items()}


# --- what they share


@dataclass
class _Case:
    """A patient as found: `files` by pet, ct and reference; `classes` of the reference by their number in the file."""

    patient: str
    cohort: str
    site: str
    files: dict[str, Path]
    classes: dict[int, int]
    more: dict[str, str] = field(default_factory=dict)  # further columns

    @property
    def recoded(self) -> bool:
        return any(number != label for label, number in self.classes.items())

    @property
    def targets(self) -> dict[str, str]:
        """Paths of the images that there are, in the cohort's folder."""
        endings = {name: ".nii" if file.suffix == ".nii" else ".nii.gz" for name, file in self.files.items()}
        return {name: f"images/{self.patient}_{name}{ending}" for name, ending in endings.items()}

    def row(self) -> dict[str, str]:
        """The patient's row; `nodes_stated`: 1 if the reference tells lymph node metastases, 0 if it does not."""
        stated = ("1" if NODES in self.classes.values() else "0") if "reference" in self.files else ""
        images = {name: self.targets.get(name, "") for name in FILES}
        row = {"patient": self.patient, "cohort": self.cohort, "site": self.site}
        return row | images | {"nodes_stated": stated} | self.more


def _write(cases: list[_Case], source: Path, out: Path, log: ImportLog, progress: Progress) -> Path:
    """Check the cases, then write their images, the log and cohort.csv; returns cohort.csv."""
    _check_names(cases)
    cases = [case for case in cases if _has_pet(case, log)]
    if not cases:
        raise InputError("holds no patient with a PET", file=source, remedy="copy the images again.")
    for done, case in enumerate(cases, start=1):
        _check_files(case, source, log)
        progress(done, 2 * len(cases))
    table = _table(case.row() for case in cases)
    _check_free(out / "cohort.csv", table)
    for done, case in enumerate(cases, start=1):
        _write_images(case, source, out, log)
        progress(len(cases) + done, 2 * len(cases))
    log.write(out / LOG)
    if not (out / "cohort.csv").exists():
        write_text(out / "cohort.csv", table)
    return out / "cohort.csv"


def _check_names(cases: list[_Case]) -> None:
    names = [case.patient for case in cases]
    unsafe = [name for name in names if not SAFE_NAME.fullmatch(name)]
    if unsafe:
        remedy = "rename their files: letters, digits, '-', '_' and '.', 64 at most."
        raise InputError("names of patients cannot be file names", value=", ".join(unsafe), remedy=remedy)
    # Some file systems do not tell P1 from p1.
    often = Counter(name.lower() for name in names)
    twice = [name for name in names if often[name.lower()] > 1]
    if twice:
        remedy = "rename one of them."
        raise InputError("names of patients differ by upper and lower case only", value=", ".join(twice), remedy=remedy)


def _has_pet(case: _Case, log: ImportLog) -> bool:
    if "pet" not in case.files:
        message = f"has no PET, only {' and '.join(sorted(case.files))}: no row in cohort.csv"
        log.add(case.patient, "patient", "left out", "no_pet", message)
    return "pet" in case.files


def _check_files(case: _Case, source: Path, log: ImportLog) -> None:
    """Take the reference away from the case if it cannot be read or holds other labels; note which images miss."""
    if "reference" in case.files:
        try:
            read_labels(case.files["reference"], tuple(case.classes))
        except InputError as error:
            message = error.problem + (f" (found: {error.value})" if error.value is not None else "")
            log.add(case.patient, "reference", "left out", "bad_reference", f"{message}: the patient has no reference")
            del case.files["reference"]
    else:
        log.add(case.patient, "reference", "left out", "no_reference", "is not there: training and evaluation need one")
    if "ct" not in case.files:
        log.add(case.patient, "ct", "left out", "no_ct", "is not there: a study with a CT excludes the patient")


def _table(rows: Iterable[dict[str, str]]) -> str:
    """cohort.csv of these rows, without further columns in which nothing is stated."""
    table = pd.DataFrame(list(rows)).fillna("")
    empty = [name for name in table.columns[3 + len(FILES) :] if (table[name] == "").all()]
    return table.drop(columns=empty).to_csv(index=False)


def _write_images(case: _Case, source: Path, out: Path, log: ImportLog) -> None:
    for name, target in case.targets.items():
        file = case.files[name]
        place = file.relative_to(source).as_posix()
        if name == "reference" and case.recoded:
            _recode(file, out / target, case.classes)
            log.add(case.patient, name, "imported", "recoded", f"{place}, labels {_mapping(case.classes)}")
        else:
            _copy(file, out / target)
            log.add(case.patient, name, "imported", "", place)


def _mapping(classes: Mapping[int, int]) -> str:
    return ", ".join(f"{label} to {number}" for label, number in sorted(classes.items()))


def _recode(source: Path, target: Path, classes: Mapping[int, int]) -> None:
    labels = read_labels(source, tuple(classes))
    lookup = np.zeros(256, np.uint8)
    lookup[list(classes)] = list(classes.values())
    recoded = to_image(lookup[to_array(labels)], Grid.of(labels))
    if not (target.exists() and _holds(target, recoded)):
        write_image(recoded, target)


def _holds(file: Path, labels: sitk.Image) -> bool:
    try:
        there = read_labels(file)
    except InputError:  # broken: to be written again
        return False
    return same_grid(there, labels) and np.array_equal(to_array(there), to_array(labels))


def _files(source: Path, out: Path, pattern: str) -> list[Path]:
    """Files below `source` in the order of their paths, without the cohort's own images if `out` lies there."""
    own = Path(os.path.abspath(out / "images"))
    files = (file for file in source.rglob(pattern) if file.is_file())
    return sorted(file for file in files if not Path(os.path.abspath(file)).is_relative_to(own))


def _leave_out(log: ImportLog, source: Path, file: Path, code: str, message: str, patient: str = "") -> None:
    log.add(patient, file.relative_to(source).as_posix(), "left out", code, message)


def _check_free(path: Path, table: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != table:
        raise InputError("is another cohort, or was changed", file=path, remedy="choose another folder for --out.")


def _copy(source: Path, target: Path) -> None:
    if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
