"""cohort.csv: reading, every check at once, exclusions, folds and the flow of patients.

One row a patient; paths are relative to the file; `README.md` describes the columns. A check yields findings, each with
severity, place, value and remedy, so that one run tells everything that is wrong.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
import pandas as pd
import SimpleITK as sitk

from mtvlib.errors import InputError
from mtvlib.intervals import Bootstrap
from mtvlib.leakage import KINDS, ImagePrint, Kind, SameImage, image_print, same_images, shared_collections
from mtvlib.params import Params
from mtvlib.volume import Grid, around_labels, read_labels, read_scan, to_array

REQUIRED = ("patient", "cohort", "site", "pet", "ct")
FILES = ("pet", "ct", "reference")
SPLITS = {"main": "cross_validation", "external": "external_testing"}
EXCLUDED = "excluded"
_BINARY = ("survival_eligible", "death")
_NUMBERS = (*_BINARY, "followup_months", "age")
_OPTIONAL = ("reference", "exclusion", *_NUMBERS, "sex", "tumour_site", "stage", "hpv", "person")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Finding:
    """One thing that a check found; `row` counts as a spreadsheet does, the header being row 1."""

    severity: Literal["error", "warning"]
    code: str
    message: str
    remedy: str
    row: int | None = None
    patient: str | None = None
    file: str | None = None
    value: Any = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = [f"row {self.row}"] if self.row is not None else []
        where += [f"patient {self.patient}"] if self.patient else []
        where += [f"file {self.file}"] if self.file else []
        found = f" (found: {self.value})" if self.value is not None else ""
        remedy = f" Remedy: {self.remedy}" if self.remedy else ""
        return f"{self.severity}: {', '.join(where) or 'cohort'}: {self.message.rstrip('.')}{found}.{remedy}"


# --- reading


def read_cohort(path: str | Path, params: Params | None = None) -> pd.DataFrame:
    """Read and check a cohort.csv, images unopened; one row a patient, in the file's order.

    All columns are kept. Text is str ('' where empty), `survival_eligible`, `followup_months`, `death` and `age` are
    float (NaN where empty), `pet`, `ct` and `reference` absolute paths ('' where empty); `reference`, `exclusion` and
    `person` (default: the patient) are always there. With `params` it is also checked that enough patients are left
    for the folds. Raises one `InputError` that lists every problem.
    """
    table, findings = _read(Path(path), params)
    stop_on_errors(findings, file=path)
    assert table is not None
    return table.reset_index(drop=True)


def stop_on_errors(findings: Iterable[Finding], *, file: str | Path | None = None) -> None:
    """Raise one `InputError` that lists every finding that is an error; do nothing if none is."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if len(errors) > 1:
        lines = "".join(f"\n  {str(finding).removeprefix('error: ')}" for finding in errors)
        raise InputError(f"{len(errors)} problems:{lines}", file=file)
    for one in errors:
        place = f"row {one.row}: " if one.row is not None else ""
        raise InputError(
            place + one.message, patient=one.patient, file=one.file or file, value=one.value, remedy=one.remedy
        )


def persons_of(patients: pd.DataFrame) -> list[str]:
    """Whose scan each row is; by default the patient is a person of his or her own."""
    persons = patients["person"].fillna(patients["patient"]) if "person" in patients else patients["patient"]
    return persons.astype(str).tolist()


def sites_of(patients: pd.DataFrame) -> list[str]:
    """Site of each row; one and the same where none is named."""
    return patients["site"].astype(str).tolist() if "site" in patients else [""] * len(patients)


def bootstrap_of(patients: pd.DataFrame, params: Params) -> Bootstrap:
    """The study's bootstrap of these rows: over patients (persons), and over sites where there are three or more."""
    return Bootstrap.of_persons(params.bootstrap_resamples, params.seed, persons_of(patients), sites_of(patients))


def relative_paths(cohort: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """The cohort with `pet`, `ct` and `reference` relative to `folder`: to write it without this machine's paths."""
    cohort = cohort.copy()
    for name in FILES:
        cohort[name] = [Path(os.path.relpath(value, folder)).as_posix() if value else "" for value in cohort[name]]
    return cohort


def _read(path: Path, params: Params | None) -> tuple[pd.DataFrame | None, list[Finding]]:
    """The typed table, its index the row numbers (None if columns are missing), and the findings without images."""
    table, decimal, findings = _text_table(path)
    findings += _check_columns(list(table.columns))
    if any(name not in table for name in REQUIRED):
        return None, findings
    for name in ("reference", "exclusion", "person"):
        if name not in table:
            table[name] = ""
    table["person"] = table["person"].where(table["person"] != "", table["patient"])
    for check in (_check_names, _check_values, _check_persons, _check_sites_apart):
        findings += check(table)
    findings += _check_files(table, path.resolve().parent)
    for name in (name for name in _NUMBERS if name in table):
        table[name], bad = _numbers(table, name, decimal)
        findings += bad
    findings += _check_survival(table)
    for name in FILES:
        table[name] = [str(path.resolve().parent / value) if value else "" for value in table[name]]
    findings += _check_size(table, params) if params else []
    return table, sorted(findings, key=lambda finding: finding.row or 0)


def _text_table(path: Path) -> tuple[pd.DataFrame, str, list[Finding]]:
    """All cells as text, the decimal mark, and a finding for each row of another length than the header."""
    records = [(number, [cell.strip() for cell in record]) for number, record in enumerate(_records(path), start=1)]
    records = [(number, record) for number, record in records if any(record)]
    if len(records) < 2:
        raise InputError("the cohort has no patients", file=path, remedy="add one row for each patient.")
    # Spreadsheet programs add empty columns at the end.
    width = max(i for i, name in enumerate(records[0][1], start=1) if name)
    records = [(number, record if any(record[width:]) else record[:width]) for number, record in records]
    (_, header), *rows = records
    findings = [
        Finding(
            "error",
            "row_length",
            "the row has another number of cells than the header",
            "put cells that hold the separator into quotes.",
            row=number,
            value=f"{len(row)} instead of {len(header)}",
        )
        for number, row in rows
        if len(row) != len(header)
    ]
    whole = [(number, row) for number, row in rows if len(row) == len(header)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError("columns occur twice", file=path, value=", ".join(twice), remedy="keep one of each.")
    table = pd.DataFrame([row for _, row in whole], columns=header, index=[number for number, _ in whole], dtype=str)
    return table, "," if _separator(path) == ";" else ".", findings


def _records(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(_text(path), newline=""), delimiter=_separator(path)))
    except csv.Error as error:
        raise InputError(
            f"is not a table of comma-separated values ({error})", file=path, remedy="export it again as CSV."
        ) from None


def _separator(path: Path) -> str:
    """Comma, or semicolon or tab where the header has more of these (spreadsheets in many languages write those)."""
    header = _text(path).split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("there is no such cohort", file=path, remedy="correct the path of cohort.csv.") from None
    except UnicodeDecodeError:
        raise InputError(
            "is not UTF-8 text", file=path, remedy="save the table as 'CSV UTF-8' in the spreadsheet program."
        ) from None
    except OSError as error:
        remedy = "name the file cohort.csv itself." if path.is_dir() else "check its permissions and the disk."
        raise InputError(f"cannot be read: {error.strerror or error}", file=path, remedy=remedy) from None


# --- checks of the table


def _at(table: pd.DataFrame, row: int, code: str, message: str, remedy: str, value: Any = None) -> Finding:
    return Finding("error", code, message, remedy, row=row, patient=table.at[row, "patient"] or None, value=value)


def _used(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["exclusion"] == ""]


def _check_columns(columns: list[str]) -> Iterator[Finding]:
    unknown = [name for name in columns if name not in (*REQUIRED, *_OPTIONAL)]
    for name in REQUIRED:
        if name not in columns:
            near = difflib.get_close_matches(name, [other.lower() for other in unknown], n=1)
            meant = next((other for other in unknown if near and other.lower() == near[0]), None)
            remedy = f"rename '{meant}' to '{name}'." if meant else "add it; README.md describes the columns."
            yield Finding("error", "missing_column", f"the column '{name}' is missing", remedy, row=1)
    for name in unknown:
        near = difflib.get_close_matches(name.lower(), _OPTIONAL, n=1, cutoff=0.8)
        if near and near[0] not in columns:
            remedy = f"rename it to '{near[0]}' if that is meant."
            yield Finding(
                "warning", "unknown_column", "an unknown column, kept but not used", remedy, row=1, value=name
            )


def _check_names(table: pd.DataFrame) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for row, name in table["patient"].items():
        if not SAFE_NAME.fullmatch(name):
            message = "the patient's name cannot be a file name"
            yield _at(table, row, "unsafe_name", message, "use letters, digits, '-', '_' and '.', 64 at most.", name)
        # Some file systems do not tell P1 from p1.
        earlier = first.setdefault(name.lower(), row)
        if earlier != row:
            message = f"the same patient as row {earlier}"
            remedy = "keep one row; several scans of one human get names of their own and the same `person`."
            yield _at(table, row, "duplicate_patient", message, remedy, name)


def _check_values(table: pd.DataFrame) -> Iterator[Finding]:
    for row, value in table["cohort"].items():
        if value not in SPLITS:
            yield _at(table, row, "unknown_cohort", "`cohort` must be main or external", "correct it.", f"'{value}'")
    for row in table.index[table["site"] == ""]:
        yield _at(table, row, "no_site", "`site` is empty", "name the hospital or the database.")


def _check_persons(table: pd.DataFrame) -> Iterator[Finding]:
    used = _used(table)
    first: dict[str, int] = {}
    for row, person in used["person"].items():
        earlier = first.setdefault(person, row)
        if used.at[row, "cohort"] != used.at[earlier, "cohort"]:
            message = (
                f"the same person as row {earlier}, but in the other cohort: external testing would not be external"
            )
            yield _at(table, row, "person_in_both", message, "move or exclude one of the rows.", person)


def _check_sites_apart(table: pd.DataFrame) -> Iterator[Finding]:
    used = _used(table)
    sites = {cohort: set(used.loc[used["cohort"] == cohort, "site"]) for cohort in SPLITS}
    for site in sorted(sites["main"] & sites["external"] - {""}):
        row = used.index[(used["cohort"] == "external") & (used["site"] == site)][0]
        message = f"patients of the site {site} are in both cohorts: external testing is not of another site"
        remedy = "move them into one cohort, or keep this in mind where results are called external."
        yield replace(_at(table, row, "site_in_both", message, remedy), severity="warning")


def _check_files(table: pd.DataFrame, folder: Path) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for row, values in _used(table).iterrows():
        for name in FILES:
            problem = _file_problem(values[name], folder) if values[name] or name == "pet" else None
            if problem:
                code, message, remedy = problem
                yield replace(_at(table, row, code, f"`{name}` {message}", remedy), file=values[name] or None)
        earlier = first.setdefault(values["pet"], row)
        if earlier != row and values["pet"]:
            message = f"the same PET as row {earlier}"
            yield _at(table, row, "duplicate_image", message, "give each patient an own PET.", values["pet"])
        if not values["ct"]:
            message, remedy = "has no CT", "give a CT, or set channels to [pet]; else the patient is excluded (no CT)."
            yield replace(_at(table, row, "no_ct", message, remedy), severity="warning")
        if not values["reference"]:
            message, remedy = "has no reference", "training and evaluation exclude the patient (no reference)."
            yield replace(_at(table, row, "no_reference", message, remedy), severity="warning")


def _file_problem(value: str, folder: Path) -> tuple[str, str, str] | None:
    """Code, message and remedy if this path may not be read or is not there; `folder` without links in it."""
    if not value:
        return "missing_file", "is empty", "give the path of the PET, or exclude the patient."
    if "\\" in value or "\0" in value or PureWindowsPath(value).drive:
        return "path_form", "is not a path that every system reads", "separate folders by '/'."
    inside = "put the images into the cohort's folder and give paths relative to cohort.csv."
    if value.startswith("/"):
        return "absolute_path", "is an absolute path", inside
    try:
        outside = not (folder / value).resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # a link to itself
        return "missing_file", "cannot be followed", "replace the link by the file."
    if outside:
        return "path_outside", "leaves the cohort's folder (by '..' or a link)", inside
    if not (folder / value).is_file():
        return "missing_file", "does not exist", "correct the path or put the file there."
    return None


def _numbers(table: pd.DataFrame, name: str, decimal: str) -> tuple[list[float], list[Finding]]:
    """A column as floats, NaN where empty or wrong, with a finding for each wrong cell."""
    values, findings = [], []
    wanted = "0 or 1" if name in _BINARY else "a number, 0 or more"
    for row, text in table[name].items():
        value = _number(text.replace(decimal, "."))
        wrong = value is None or value < 0 or (name in _BINARY and value > 1) or (name in _BINARY and value % 1)
        if text and wrong:
            remedy = "correct it; leave the cell empty where it is unknown."
            findings.append(_at(table, row, "bad_number", f"`{name}` must be {wanted}", remedy, f"'{text}'"))
        values.append(math.nan if value is None or wrong else value)
    return values, findings


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_survival(table: pd.DataFrame) -> Iterator[Finding]:
    if "survival_eligible" not in table:
        return
    for row in _used(table).index[_used(table)["survival_eligible"] == 1]:
        missing = [name for name in ("followup_months", "death") if name not in table or np.isnan(table.at[row, name])]
        if missing:
            message, remedy = "eligible for survival, but not all is known", "the survival analysis leaves it out."
            value = f"no {' and no '.join(missing)}"
            yield replace(_at(table, row, "no_survival", message, remedy, value), severity="warning")


def _check_size(table: pd.DataFrame, params: Params) -> Iterator[Finding]:
    """Whether folds can be made of the main cohort's patients, or of its sites."""
    used = _used(exclude(table, params))
    main = used[used["cohort"] == "main"]
    return _check_sites(main, params) if params.split_by == "site" else _check_persons_left(main, params)


def _check_persons_left(main: pd.DataFrame, params: Params) -> Iterator[Finding]:
    """What is wrong if `folds` folds leave nobody to test, to validate or to train on."""
    persons = main["person"].nunique()
    left = persons - math.ceil(persons / params.folds)
    problem = f"{persons} persons in the main cohort leave {left} to train and validate on" if left < 2 else ""
    if persons < params.folds:
        problem = f"{params.folds} folds need {params.folds} persons in the main cohort, {persons} can be used"
    if problem:
        yield Finding("error", "too_few_patients", problem, "add patients or lower `folds`.")


def _check_sites(main: pd.DataFrame, params: Params) -> Iterator[Finding]:
    """What is wrong if the main cohort's sites cannot be the folds: too few, not as many, a person seen at two."""
    sites, by_patient = sorted(main["site"].unique()), "set `split_by: patient`."
    named = ", ".join(sites) or "none"
    if len(sites) < 2:
        problem = "`split_by: site` needs two sites in the main cohort"
        yield Finding("error", "folds_and_sites", problem, f"add a site, or {by_patient}", value=named)
    elif len(sites) != params.folds:
        problem = f"`split_by: site` tests one site in each fold, but folds is {params.folds} for {len(sites)} sites"
        yield Finding("error", "folds_and_sites", problem, f"set `folds: {len(sites)}`.", value=named)
    for person, seen_at in main.groupby("person")["site"].unique().items():
        if len(seen_at) > 1:
            problem = f"the person {person} was seen at several sites of the main cohort, each of which is a fold"
            remedy = f"exclude the rows of all sites but one, or {by_patient}"
            yield Finding("error", "person_at_two_sites", problem, remedy, value=", ".join(sorted(seen_at)))
    for site in sites if len(sites) > 1 else []:
        left = main.loc[main["site"] != site, "person"].nunique()
        if left < 2:
            problem = f"without the site {site}, {left} person of the main cohort is left to train and validate on"
            yield Finding("error", "too_few_patients", problem, f"add patients, or {by_patient}")


# --- checks of the images


@dataclass(frozen=True)
class Images:
    """A patient's images as stored: PET in SUV, CT in HU or None, label map or None, each on its own grid."""

    pet: sitk.Image
    ct: sitk.Image | None
    reference: sitk.Image | None

    def present(self) -> dict[str, sitk.Image]:
        """The images that there are, by name."""
        return {name: getattr(self, name) for name in FILES if getattr(self, name) is not None}


def check_cohort(
    path: str | Path,
    params: Params | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Every check, of the table and of the images; sorted by row, never raises for what is wrong with the cohort."""
    try:
        table, findings = _read(Path(path), params)
    except InputError as error:
        return [Finding("error", "cohort_file", error.problem, error.remedy or "", file=str(path), value=error.value)]
    if table is None:
        return findings
    bad = {finding.row for finding in findings if finding.code in ("missing_file", "path_form", *_FORBIDDEN)}
    rows = [(row, values) for row, values in _used(table).iterrows() if row not in bad]
    # Reading and unpacking release Python's lock; more threads would hold more images in memory.
    prints: dict[int, Prints] = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, (row, found, own) in enumerate(pool.map(_check_row, rows), start=1):
            findings += found
            prints[row] = own
            progress(done, len(rows))
    findings += [*_check_duplicates(table, prints), *_check_collections(table)]
    return sorted(findings, key=lambda finding: finding.row or 0)


_FORBIDDEN = ("absolute_path", "path_outside")


Prints = dict[Kind, ImagePrint]  # of a row's PET and CT, as far as they could be read


def _check_row(row: tuple[int, pd.Series]) -> tuple[int, list[Finding], Prints]:
    """The row's findings, and what its images are known by: made here, so that nothing is read twice."""
    number, values = row
    images, findings = open_images(values)
    present = images.present() if images else {}
    prints = {kind: image_print(present[kind], kind) for kind in KINDS if kind in present}
    return number, [replace(finding, row=number) for finding in findings], prints


def _check_duplicates(table: pd.DataFrame, prints: Mapping[int, Prints]) -> Iterator[Finding]:
    """One image in two rows: an error, but for a CT or a scan in the same position of one and the same person."""
    told: set[int] = set()
    for name in KINDS:
        rows = [row for row in prints if name in prints[row]]
        for pair in same_images([prints[row][name] for row in rows]):
            earlier, row = rows[pair.first], rows[pair.second]
            same_person = table.at[earlier, "person"] == table.at[row, "person"]
            # The same path is told of already; two PETs of one person may share a CT or be taken one after the other.
            known = table.at[earlier, name] == table.at[row, name] and name == "pet"
            if row not in told and not known and not (same_person and (name == "ct" or not pair.copy)):
                told.add(row)
                yield _duplicate(table, name, earlier, row, pair)


def _duplicate(table: pd.DataFrame, name: str, earlier: int, row: int, pair: SameImage) -> Finding:
    how = "stored in another way (crop, voxels or scale)" if pair.copy else "or one of the same person"
    how = "bit for bit" if pair.shift_mm is None else how
    message = f"the same {TITLES[name]}, {how}, as row {earlier}"
    if table.at[earlier, "cohort"] != table.at[row, "cohort"]:
        message += " of the other cohort: external testing would not be external"
    remedy = "remove one of the rows; the same scan must not be in two folds."
    if name == "pet" and not pair.copy:
        remedy = "remove one of the rows, or give both the same `person` if they are two scans of one human."
    if name == "ct":
        remedy = "give each patient the own CT; if both rows are of one human, give them the same `person`."
    return Finding(
        "error", "duplicate_image", message, remedy, row, table.at[row, "patient"], table.at[row, name], str(pair)
    )


def _check_collections(table: pd.DataFrame) -> Iterator[Finding]:
    """Collections that are known to share patients under other names, unless `person` says who is who."""
    used = _used(table)
    columns = [name for name in ("site", "collection", "patient") if name in used]
    names = {row: [str(values[name]) for name in columns] for row, values in used.iterrows()}
    for shared in shared_collections(names):
        named = [all(used.at[row, "person"] != used.at[row, "patient"] for row in rows) for rows in shared.rows]
        if not any(named):
            (a, b), (first, second) = shared.overlap.names, shared.rows
            message = f"{a} and {b} are both in the cohort and share patients: {shared.overlap.why}"
            remedy = f"fill `person` with the same value for the same human, at least in all rows of {b}."
            value = f"{len(first)} rows of {a} and {len(second)} of {b}, such as rows {first[0]} and {second[0]}"
            yield Finding("warning", "overlapping_collections", message, remedy, value=value)


def open_images(row: Mapping[str, Any] | pd.Series, *, with_ct: bool = True) -> tuple[Images | None, list[Finding]]:
    """Read and check a patient's images (`patient`, `pet`, `ct`, `reference`: paths, '' for none).

    Returns None instead of the images if one of them cannot be used at all.
    """
    images: dict[str, sitk.Image | None] = dict.fromkeys(FILES)
    findings = []
    for name in FILES:
        if row.get(name) and (with_ct or name != "ct"):
            try:
                images[name] = (read_labels if name == "reference" else read_scan)(row[name])
            except InputError as error:
                message = _about_image(name, error.problem)
                found = None if error.value is None else str(error.value)
                findings.append(Finding("error", "bad_image", message, error.remedy or "", None, None, name, found))
    opened = None if findings else Images(**images)  # type: ignore[arg-type]
    findings += check_images(opened) if opened else []
    return opened, [replace(finding, patient=row["patient"], file=row[str(finding.file)]) for finding in findings]


_VERBS = ("is", "has", "holds", "must", "may", "cannot")


def _about_image(name: str, problem: str) -> str:
    """`the PET cannot be read`, but `the PET: every voxel has the same value`."""
    return f"the {TITLES[name]}{' ' if problem.split()[0] in _VERBS else ': '}{problem}"


def check_images(images: Images) -> list[Finding]:
    """Whether the images can be what they should be, and of one examination; `file` is pet, ct or reference."""
    findings = list(_check_suv(images.pet))
    if images.ct is not None:
        findings += [*_check_hu(images.ct), *_check_field("ct", images.pet, images.ct)]
    if images.reference is not None:
        findings += _check_field("reference", images.pet, images.reference)
        findings += _check_reference(images.pet, images.reference)
    return findings


TITLES = {"pet": "PET", "ct": "CT", "reference": "reference"}


def _error(name: str, code: str, message: str, remedy: str, value: str | None = None) -> Finding:
    return Finding("error", code, f"the {TITLES[name]} {message}", remedy, file=name, value=value)


def _warning(name: str, code: str, message: str, remedy: str, value: str | None = None) -> Finding:
    return replace(_error(name, code, message, remedy, value), severity="warning")


def _sample(image: sitk.Image, most: int = 200_000) -> np.ndarray:
    """About so many voxels, evenly spread; an odd step keeps clear of rows of a power of two."""
    values = sitk.GetArrayViewFromImage(image).ravel()
    return values[:: max(1, values.size // most) | 1]


def _check_suv(pet: sitk.Image) -> Iterator[Finding]:
    """PET that cannot be SUV; the limits are far above FDG images and far below Bq/ml (choice)."""
    high, percentile = float(sitk.GetArrayViewFromImage(pet).max()), float(np.percentile(_sample(pet), 99.9))
    remedy = "convert it to SUV body weight; `mtv import dicom` does so from DICOM."
    value = f"maximum {high:.4g}, 99.9th percentile {percentile:.4g}"
    if high > 1000 or percentile > 100:
        yield _error("pet", "not_suv", "cannot be SUV, its values are as high as Bq/ml", remedy, value)
    elif high > 100:
        yield _warning("pet", "high_suv", "has an SUV above 100", remedy, value)
    elif high <= 1:
        yield _warning("pet", "low_suv", "has no SUV above 1: it may have been normalised", remedy, value)
    negative = float((_sample(pet) < -0.5).mean())
    if negative > 0.01:
        yield _error("pet", "not_suv", "cannot be SUV, it is below -0.5", remedy, f"in {negative:.1%} of the voxels")


def _check_hu(ct: sitk.Image) -> Iterator[Finding]:
    """CT that cannot be HU: nothing as thin as air, or much denser than metal (choice)."""
    low, percentile = float(sitk.GetArrayViewFromImage(ct).min()), float(np.percentile(_sample(ct), 99.9))
    if low > -200 or percentile > 10000:
        remedy = "apply RescaleSlope and RescaleIntercept, and do not window it."
        value = f"minimum {low:.4g}, 99.9th percentile {percentile:.4g}"
        yield _error("ct", "not_hu", "cannot be HU, where air is -1000", remedy, value)


def _check_field(name: str, pet: sitk.Image, other: sitk.Image) -> Iterator[Finding]:
    (low, high), (other_low, other_high) = Grid.of(pet).box_mm(), Grid.of(other).box_mm()
    covered = np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None) / (high - low)
    value = f"{TITLES[name]} {Grid.of(other)}; PET {Grid.of(pet)}"
    if not covered.all():
        remedy = "give images of one examination, in one coordinate system."
        yield _error(name, "far_apart", "and the PET have no common field", remedy, value)
    elif name == "ct" and covered[2] < 0.5:
        message = f"covers only {covered[2]:.0%} of the PET's axial field; the rest is taken as air"
        yield _warning(name, "short_ct", message, "give the whole CT.", value)


def _check_reference(pet: sitk.Image, reference: sitk.Image) -> Iterator[Finding]:
    """Reference without a lesion, outside of the PET's field, or where nothing takes up the tracer."""
    points = labelled_points_mm(reference)
    if not len(points):
        yield _warning("reference", "empty_reference", "has no lesion", "make sure that this patient has none.")
        return
    inside = Grid.of(pet).contains(points)
    if not inside.all():
        severity = _error if inside.mean() < 0.5 else _warning
        value = f"{1 - inside.mean():.1%} of the lesions' voxels"
        remedy = "check that both are of one examination."
        yield severity("reference", "reference_outside", "has lesions outside of the PET's field", remedy, value)
    hottest = _suv_at(pet, points[inside]).max(initial=0)
    if inside.any() and hottest < 1.5:
        message, remedy = "lies where the PET shows no uptake", "check for a mirrored or shifted reference."
        yield _warning("reference", "cold_reference", message, remedy, f"highest SUV inside {hottest:.2f}")


def labelled_points_mm(labels: sitk.Image) -> np.ndarray:
    """Physical points (n, 3) of the centres of all voxels that are not background."""
    part = around_labels(labels)
    return Grid.of(part).to_mm(np.argwhere(to_array(part)))


def _suv_at(pet: sitk.Image, points_mm: np.ndarray) -> np.ndarray:
    """SUV of the voxel in which each physical point (n, 3) lies."""
    indices = np.rint(Grid.of(pet).to_indices(points_mm)).astype(int)
    return to_array(pet)[tuple(np.clip(indices, 0, np.array(pet.GetSize()) - 1).T)]


# --- exclusions and folds


def exclude(cohort: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The cohort with a reason in `exclusion` for rows that cannot be used: no CT (if a channel), no reference."""
    cohort = cohort.copy()
    for name, reason in (("reference", "no reference"), ("ct", "no CT")):
        if name == "reference" or name in params.channels:
            cohort.loc[(cohort[name] == "") & (cohort["exclusion"] == ""), "exclusion"] = reason
    return cohort


def assign_folds(cohort: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The cohort with `split` (cross_validation, external_testing, excluded) and `fold` (main: 0..folds-1; else -1).

    All rows of a person come into one fold. By `split_by: patient`, persons of each site spread evenly over the folds
    (paper, Methods: five folds; choice: by site, ordered by a hash of seed and name, so neither the order of the rows
    nor a version of a random generator matters). By `split_by: site` (choice), fold k holds the k-th site of the main
    cohort by name: leave one site out. Raises `InputError` if patients or sites do not do for the folds.
    """
    cohort = exclude(cohort, params)
    stop_on_errors(_check_size(cohort, params))
    cohort["split"] = cohort["cohort"].map(SPLITS).where(cohort["exclusion"] == "", EXCLUDED)
    main = cohort[cohort["split"] == SPLITS["main"]]
    fold_of = _folds_by_site(main) if params.split_by == "site" else _folds_by_patient(main, params)
    is_main = cohort["split"] == SPLITS["main"]
    cohort["fold"] = [fold_of[p] if used else -1 for p, used in zip(cohort["person"], is_main, strict=True)]
    return cohort


def _folds_by_patient(main: pd.DataFrame, params: Params) -> dict[str, int]:
    return {person: i % params.folds for i, person in enumerate(_by_site(main, f"{params.seed} folds"))}


def _folds_by_site(main: pd.DataFrame) -> dict[str, int]:
    number = {site: fold for fold, site in enumerate(sorted(main["site"].unique()))}
    return {person: number[site] for person, site in zip(main["person"], main["site"], strict=True)}


@dataclass(frozen=True)
class FoldPatients:
    """Patients of one fold's parts; sorted, and each person in one part only."""

    train: list[str]
    validation: list[str]
    test: list[str]


def fold_patients(cohort: pd.DataFrame, fold: int, params: Params) -> FoldPatients:
    """Who trains, validates and tests in a fold (paper, Methods: 64, 16 and 20 % of the main cohort).

    `cohort` with folds, see `assign_folds`. Validation takes `validation_fraction` of the main cohort's persons from
    the other folds, evenly over the sites.
    """
    main = cohort[cohort["fold"] >= 0]
    if fold not in set(main["fold"]):
        raise InputError(
            f"there is no fold {fold}", value=f"{main['fold'].nunique()} folds", remedy="folds count from 0."
        )
    others = main[main["fold"] != fold]
    persons = _by_site(others, f"{params.seed} validation {fold}")
    wanted = round(params.validation_fraction * main["person"].nunique())
    wanted = min(max(1, wanted), len(persons) - 1)
    # Evenly spaced in an order by site: each site gives its share.
    chosen = {persons[int((i + 0.5) * len(persons) / wanted)] for i in range(wanted)}
    validates = others["person"].isin(chosen)
    return FoldPatients(
        train=sorted(others.loc[~validates, "patient"]),
        validation=sorted(others.loc[validates, "patient"]),
        test=sorted(main.loc[main["fold"] == fold, "patient"]),
    )


def fold_sizes(cohort: pd.DataFrame, params: Params) -> list[dict[str, int]]:
    """Patients of each fold by part, such as {"train": 23, "validation": 6, "test": 7}; `cohort` with folds."""
    parts = [fold_patients(cohort, fold, params) for fold in range(params.folds)]
    return [{name: len(getattr(part, name)) for name in ("train", "validation", "test")} for part in parts]


def _by_site(rows: pd.DataFrame, salt: str) -> list[str]:
    """Persons, site by site, each site's in an order that depends on `salt` and the names alone."""
    site_of = dict(
        zip(*(rows.sort_values("patient", ascending=False)[name] for name in ("person", "site")), strict=True)
    )
    return sorted(site_of, key=lambda person: (site_of[person], hashlib.sha256(f"{salt} {person}".encode()).digest()))


def flow(cohort: pd.DataFrame) -> dict[str, Any]:
    """Flow of patients through the study (CLAIM 2024): screened, excluded by reason, included by partition and site.

    `cohort` with `split`, see `assign_folds`. For instance {"screened": 9, "excluded": {"no CT": 2}, "included": 7,
    "partitions": {"cross_validation": {"n": 5, "sites": {"Berlin": 5}}, "external_testing": {"n": 2, ...}}}.
    """
    reasons = cohort.loc[cohort["split"] == EXCLUDED, "exclusion"]
    return {
        "screened": len(cohort),
        "excluded": {str(reason): int(n) for reason, n in reasons.value_counts().items()},
        "included": len(cohort) - len(reasons),
        "partitions": {split: _partition(cohort[cohort["split"] == split]) for split in SPLITS.values()},
    }


def _partition(rows: pd.DataFrame) -> dict[str, Any]:
    return {"n": len(rows), "sites": {str(site): int(n) for site, n in rows["site"].value_counts().items()}}
