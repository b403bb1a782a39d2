"""Folders of DICOM, as an archive gave them, to a cohort: cohort.csv, images, and a log with a reason for everything.

Per patient: the PET (the first examination's static, corrected series), the CT with most slices in the PET's frame of
reference, and the reference from RTSTRUCT or SEG on the PET's grid. Nothing of the source's text reaches an output:
patients get pseudonyms, days are counted from the first examination, and a series is told by its modality and number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from pydicom import Dataset

from mtvlib import fingerprint
from mtvlib.clinical import ClinicalTable, read_table
from mtvlib.cohort import FILES, SAFE_NAME, Images, check_images
from mtvlib.dicom import (
    Read,
    Series,
    files_below,
    is_derived,
    quiet,
    read_ct,
    read_file,
    read_pet,
    read_series,
    why_no_pet,
    why_no_volume,
)
from mtvlib.errors import InputError, MtvError, Refusal
from mtvlib.files import sha256, write_json, write_text
from mtvlib.import_log import ImportLog
from mtvlib.pseudonyms import Pseudonyms, open_key
from mtvlib.regions import Category, Labelled, Names, check_reference, label_map, read_names, region_objects_summary
from mtvlib.suv import Clinical, Flag
from mtvlib.volume import Grid, write_image

Progress = Callable[[str, int, int], None]

LOG, STATES = "import_log.csv", "import_state"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
_IMAGES, _REGIONS = ("PT", "CT"), ("RTSTRUCT", "SEG")
_FILES_AT_ONCE = 200
_FEW_SLICES = 8  # less is a scout, a key image or a leftover
_OLDEST = 90  # ages above identify


# --- what is where


@dataclass(frozen=True, slots=True)
class Entry:
    """What one file is: the series and the patient that it belongs to, or why it is left out."""

    path: str
    problem: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    modality: str = ""
    frames: int = 1


_TAGS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "NumberOfFrames", "SOPClassUID"),
    "SpecificCharacterSet",
)


def look_at(path: str) -> Entry:
    """Sort one file by the few attributes that this needs."""
    file = Path(path)
    if file.name.upper() == "DICOMDIR" or file.name.startswith("."):
        return Entry(path, "index_file")
    if file.suffix.lower() in _ARCHIVES and not file.name.lower().endswith(".nii.gz"):
        return Entry(path, "archive")
    if file.stat().st_size == 0:
        return Entry(path, "empty_file")
    try:
        header = read_file(file, tags=_TAGS)
    except Refusal as refusal:
        return Entry(path, refusal.code)
    if header is None:
        return Entry(path, "not_dicom")
    text = {name: str(header.get(name) or "").strip() for name in _TAGS}
    if not text["SOPClassUID"] or not text["SeriesInstanceUID"]:
        return Entry(path, "no_series")
    modality = text["Modality"]
    if not text["PatientID"]:
        return Entry(path, "no_patient_id")
    frames = int(text["NumberOfFrames"]) if text["NumberOfFrames"].isdigit() else 1
    return Entry(path, "", text["PatientID"], text["StudyInstanceUID"], text["SeriesInstanceUID"], modality, frames)


_FILES_LEFT_OUT = {
    "index_file": "directory or hidden files, not needed",
    "archive": "archives; unpack them and import again",
    "empty_file": "empty files; copy them again",
    "not_dicom": "no DICOM files",
    "damaged": "damaged or truncated DICOM files; copy them again",
    "too_large": "files that would inflate to more than an image can hold",
    "no_series": "DICOM objects of no series",
    "no_patient_id": "DICOM objects without PatientID; whose they are is not guessed",
    "unreadable": "files that cannot be opened; check permissions",
    "mixed_patients": "files of a series that has several patients; export each patient again",
}


def _look_at_many(paths: Sequence[str]) -> list[Entry]:
    found = []
    for path in paths:
        try:
            found.append(look_at(path))
        except OSError:
            found.append(Entry(path, "unreadable"))
    return found


# --- one patient


@dataclass(frozen=True)
class Job:
    """All that a worker needs for one patient."""

    name: str  # pseudonym
    series: dict[str, list[str]]  # files by series UID, of image series and regions
    modalities: dict[str, str]
    out: str
    names: Names
    clinical: Clinical
    columns: dict[str, str]  # of the clinical table
    site: str
    cohort: str
    fingerprint: str


@dataclass
class Result:
    """A patient's row of cohort.csv (None: not imported) and lines of the log."""

    name: str
    row: dict[str, Any] | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Taken:
    """A series that was chosen, and what was read from it."""

    series: Series
    read: Read


class PatientImport:
    """The import of one patient: takes the best PET, its CT and its reference, and notes every decision."""

    def __init__(self, job: Job) -> None:
        self.job, self.log = job, ImportLog()
        self.day_0: int | None = None

    def run(self) -> Result:
        images, regions = self.open_series()
        self.day_0 = min((day for one in images if (day := study_day(one.header)) is not None), default=None)
        pet = self.take_pet([one for one in images if one.modality == "PT"])
        if pet is None:
            return Result(self.job.name, None, self.log.lines)
        ct = self.take_ct([one for one in images if one.modality == "CT"], pet)
        labelled = self.take_reference(regions, pet, ct)
        return Result(self.job.name, self.write(pet, ct, labelled), self.log.lines)

    def open_series(self) -> tuple[list[Series], list[Dataset]]:
        """The image series, and the objects with regions."""
        images: list[Series] = []
        regions: list[Dataset | None] = []
        for uid, paths in self.job.series.items():
            modality = self.job.modalities[uid]
            try:
                if modality in _IMAGES:
                    images += read_series(map(Path, paths))
                elif modality in _REGIONS:
                    regions += [read_file(Path(path), pixels=True) for path in paths]
                else:
                    raise Refusal("modality", "neither PET nor CT nor regions")
            except Refusal as refusal:
                known = modality in (*_IMAGES, *_REGIONS)
                about = {"modality": modality if known else "other", "slices": len(paths)}
                self.note("series", refusal.code, refusal.problem, about)
        return images, [dataset for dataset in regions if dataset is not None]

    # --- the choice

    def take_pet(self, candidates: list[Series]) -> Taken | None:
        taken: Taken | None = None
        for series in sorted(candidates, key=_pet_rank):
            why = why_no_pet(series) or _too_few(series) or self.why_not_second(series, taken)
            read = self.read("pet", series, why, partial(read_pet, series, self.job.clinical))
            taken = Taken(series, read) if read else taken
        if taken is None:
            self.note("pet", "no_pet", "no PET can be used, so the patient is not imported")
        return taken

    def why_not_second(self, series: Series, taken: Taken | None) -> tuple[str, str] | None:
        if taken is None:
            return None
        if self.day(series.header) != self.day(taken.series.header):
            return "later_examination", "a later examination; the first one is used"
        return "other_pet", "another PET of the same examination is used"

    def take_ct(self, candidates: list[Series], pet: Taken) -> Taken | None:
        """The CT with most slices in the PET's frame of reference that can be read and is in HU."""
        taken: Taken | None = None
        for series in sorted(candidates, key=_ct_rank):
            why = why_no_volume(series) or _too_few(series)
            if why is None and _frame(series) != _frame(pet.series):
                why = "other_frame_of_reference", "not in the PET's frame of reference"
            if why is None and taken is not None:
                why = "other_ct", "another CT with as many slices or more is used"
            read = self.read("ct", series, why, partial(_read_checked_ct, series, pet.read))
            taken = Taken(series, read) if read else taken
        if taken is None:
            remedy = "the study excludes the patient unless its channels are [pet]"
            self.note("ct", "no_ct", f"no CT can be used: {remedy}")
        return taken

    def take_reference(self, regions: list[Dataset], pet: Taken, ct: Taken | None) -> Labelled | None:
        """The label map of the object that refers to the PET, else to the CT; the newest one of several."""
        taken: Labelled | None = None
        wanted = [one.series.uid for one in (pet, ct) if one is not None]
        for dataset in sorted(regions, key=lambda one: _region_rank(one, wanted), reverse=True):
            try:
                check_reference(dataset, _frame(pet.series), wanted)
                if taken is not None:
                    raise Refusal("other_reference", "")
                taken = label_map(dataset, Grid.of(pet.read.image), self.job.names)
                self.note("reference", *_words_on(taken), self.about(dataset), taken=True)
            except Refusal as refusal:
                words = _REGIONS_LEFT_OUT.get(refusal.code, "its regions cannot be used")
                self.note("reference", refusal.code, words, self.about(dataset))
        if taken is None:
            self.note("reference", "no_reference", "no RTSTRUCT or SEG can be used")
        return taken

    def read(self, item: str, series: Series, why: tuple[str, str] | None, read: Callable[[], Read]) -> Read | None:
        """Read a series unless there is a reason not to, and note which it was."""
        about = self.about(series.header) | {"slices": len(series.slices)}
        try:
            if why is not None:
                raise Refusal(*why)
            found = read()
        except Refusal as refusal:
            self.note(item, refusal.code, _without_text(refusal), about)
            return None
        words = [f"SUV by {found.suv.rule}"] if found.suv else []
        words += [flag.message for flag in found.flags]
        self.note(item, _codes(found.flags), "; ".join(words), about, taken=True)
        return found

    # --- the log

    def note(
        self, item: str, code: str, message: str, about: dict[str, Any] | None = None, *, taken: bool = False
    ) -> None:
        self.log.add(self.job.name, item, "imported" if taken else "left out", code, message, **(about or {}))

    def about(self, header: Dataset) -> dict[str, Any]:
        """What a log may say of a series: nothing that a person typed."""
        modality, number = str(header.get("Modality", "")), str(header.get("SeriesNumber") or "").strip()
        return {
            "modality": modality if modality in (*_IMAGES, *_REGIONS) else "other",
            "series_number": number if re.fullmatch(r"-?\d{1,9}", number) else "",
            "slices": "",
            "day": self.day(header),
        }

    def day(self, header: Dataset) -> int | None:
        """Days since the patient's first examination."""
        ordinal = study_day(header)
        return None if ordinal is None or self.day_0 is None else ordinal - self.day_0

    # --- the result

    def write(self, pet: Taken, ct: Taken | None, labelled: Labelled | None) -> dict[str, Any]:
        """Write the images; returns the row of cohort.csv."""
        images = {
            "pet": pet.read.image,
            "ct": ct.read.image if ct else None,
            "reference": labelled.image if labelled else None,
        }
        row: dict[str, Any] = {"patient": self.job.name, "cohort": self.job.cohort, "site": self.job.site}
        for name, image in images.items():
            file = f"images/{self.job.name}_{name}.nii.gz"
            row[name] = file if image is not None else ""
            if image is not None:
                write_image(image, Path(self.job.out) / file)
            else:
                (Path(self.job.out) / file).unlink(missing_ok=True)  # of an earlier import
        row |= {"age": age_of(pet.series.header), "sex": sex_of(pet.series.header)}
        row |= {name: value for name, value in self.job.columns.items() if value or name not in row}
        uptake_min = pet.read.suv.uptake_min if pet.read.suv else None
        row["uptake_min"] = None if uptake_min is None else round(uptake_min, 1)
        row["import_flags"] = _codes([flag for one in (pet, ct) if one for flag in one.read.flags])
        row["nodes_stated"] = None if labelled is None else int(labelled.nodes_stated)
        return row


def import_patient(job: Job) -> Result:
    """One patient, whatever happens: an unforeseen error is a line of the log and does not stop the others."""
    try:
        result = PatientImport(job).run()
    except MtvError:
        raise  # a full disk concerns all of them
    except Exception as error:
        log = ImportLog()
        log.add(job.name, "patient", "left out", "unexpected", f"could not be imported ({type(error).__name__})")
        return Result(job.name, None, log.lines)
    state = {"fingerprint": job.fingerprint, "row": result.row, "lines": result.lines}
    write_json(_state_path(Path(job.out), job.name), state)
    return result


_REGIONS_LEFT_OUT = {
    "other_frame_of_reference": "was drawn on other images",
    "other_reference": "another object is used",
    "no_region_matched": "no region's name is known: see --list-regions and --roi-names",
    "empty_region": "its regions hold no voxel of the PET",
    "broken_contours": "its contours have no single reading",
}


def _read_checked_ct(series: Series, pet: Read) -> Read:
    """A CT that can be HU and overlaps the PET, else a `Refusal`."""
    ct = read_ct(series)
    for finding in check_images(Images(pet.image, ct.image, None)):
        if finding.file == "ct" and finding.severity == "error":
            raise Refusal(finding.code, finding.message)
    return ct


def _words_on(found: Labelled) -> tuple[str, str]:
    """Codes and words about a label map, without the names of its regions, which are text of the source."""
    counts = Counter(str(category) for category in found.categories.values())
    words = [f"regions: {', '.join(f'{n} {category}' for category, n in sorted(counts.items()))}"]
    if not found.nodes_stated:
        words.append("no region of nodes was drawn, which does not mean that there are none")
    if found.overlap_ml > 0:
        words.append(f"{found.overlap_ml:.2f} ml in both classes went to the nodes")
    if found.outside_ml > 0:
        words.append(f"{found.outside_ml:.2f} ml lie outside of the PET")
    codes = [] if found.nodes_stated else ["nodes_not_stated"]
    odd = (Category.AMBIGUOUS, Category.UNMATCHED)
    codes += [f"regions_{category}" for category in odd if counts[str(category)]]
    return ";".join(codes), "; ".join(words)


def _codes(flags: Iterable[Flag]) -> str:
    return ";".join(dict.fromkeys(flag.code for flag in flags))


def _without_text(refusal: Refusal) -> str:
    """What a refusal says, without the path and without a value that is text: either may tell who a patient is."""
    value = refusal.value if isinstance(refusal.value, int | float) else None
    return str(Refusal(refusal.code, refusal.problem, value=value, remedy=refusal.remedy)).rstrip(".")


def _too_few(series: Series) -> tuple[str, str] | None:
    return ("too_few_slices", "has too few slices for a volume") if len(series.slices) < _FEW_SLICES else None


def _frame(series: Series) -> str:
    return str(series.header.get("FrameOfReferenceUID", ""))


def study_day(header: Dataset) -> int | None:
    """The day of an examination as an ordinal number."""
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate"):
        digits = re.sub(r"\D", "", str(header.get(name) or ""))
        try:
            return pd.Timestamp(digits[:8]).toordinal() if len(digits) >= 8 else None
        except ValueError:
            continue
    return None


def _pet_rank(series: Series) -> tuple[Any, ...]:
    """First the originals, of these the earliest day, of these the most slices."""
    day = study_day(series.header)
    return (is_derived(series.header), 10**9 if day is None else day, -len(series.slices), series.uid)


def _ct_rank(series: Series) -> tuple[Any, ...]:
    return (-len(series.slices), is_derived(series.header), series.uid)


def _region_rank(dataset: Dataset, wanted: Sequence[str]) -> tuple[Any, ...]:
    """Refers to the PET before to the CT before to neither; then the newest."""
    referred = {uid for region in region_objects_summary(dataset) for uid in region.referenced_series_uids}
    score = next((len(wanted) - place for place, uid in enumerate(wanted) if uid in referred), 0)
    made = (str(dataset.get(name) or "") for name in ("StructureSetDate", "ContentDate", "SeriesDate"))
    return (score, next((date for date in made if date), ""), str(dataset.get("SOPInstanceUID", "")))


def age_of(header: Dataset) -> int | None:
    """Age in years; 90 for all above, since they are few."""
    match = re.fullmatch(r"\s*(\d{1,3})([DWMY]?)\s*", str(header.get("PatientAge") or ""))
    if not match:
        return None
    per_year = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1, "": 1}[match.group(2)]
    return min(_OLDEST, int(int(match.group(1)) / per_year))


def sex_of(header: Dataset) -> str:
    value = str(header.get("PatientSex") or "").strip().upper()
    return value if value in ("M", "F", "O") else ""


# --- the cohort


@dataclass(frozen=True)
class Imported:
    """What an import did, for the command's last lines."""

    cohort: Path
    patients: int
    skipped: int  # of these and the next: done before and unchanged
    left_out: int  # patients without a row
    rows_without_images: int  # of the clinical table
    dropped_columns: tuple[str, ...]  # of the clinical table: what cohort.csv does not take


def import_dicom(
    source: Path,
    out: Path,
    *,
    table: Path | None = None,
    roi_names: Path | None = None,
    key: Path | None = None,
    site: str = "unknown",
    external: Collection[str] = (),
    keep_ids: bool = False,
    jobs: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Imported:
    """Import every patient below `source` into `out`; patients done before and unchanged are skipped.

    Writes images/ (PET in SUV of body weight, CT in HU, labels on the PET's grid), cohort.csv, import_log.csv and
    import_state/. `table` (see `clinical.read_table`), `roi_names` (see `regions.read_names`), `key` of the pseudonyms
    (default: beside `out`, never in it), `site` where the table has none, `external`: sites of the external cohort.
    `keep_ids` keeps the source's identifiers as names: for collections that were de-identified before.

    Raises `InputError` for a source without DICOM or a key, table or names that cannot be used.
    """
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise InputError("there is no such folder", file=source, remedy="name the folder that holds the DICOM files.")
    clinical, names = read_table(table), read_names(roi_names)
    pseudonyms = None if keep_ids else open_key(key or key_beside(out))
    options = Options(out, names, clinical, pseudonyms, site, frozenset(external))
    with workers(jobs) as spread:
        entries = _index(spread, source, progress)
        planned = plan(entries, source, options)
        done_before = {job.name: state for job in planned if (state := _done_before(job)) is not None}
        fresh = _import(spread, [job for job in planned if job.name not in done_before], progress)
    results = sorted([*done_before.values(), *fresh], key=lambda result: result.name)
    _write(out, results, _log(entries, results))
    ids = {" ".join(entry.patient.split()).casefold() for entry in entries}
    return Imported(
        cohort=out / "cohort.csv",
        patients=sum(result.row is not None for result in results),
        skipped=len(done_before),
        left_out=sum(result.row is None for result in results),
        rows_without_images=len(set(clinical.rows) - ids),
        dropped_columns=clinical.dropped,
    )


def key_beside(out: Path) -> Path:
    """Where the key of the pseudonyms lies unless the user says otherwise: beside the cohort's folder, not in it."""
    return out.resolve().with_name(out.resolve().name + ".key")


@contextmanager
def workers(jobs: int | None) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` over that many processes, in the order in which results come; over none of them for one job."""
    number = jobs or os.cpu_count() or 1
    quiet()
    if number == 1:
        yield map
        return
    with ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=quiet) as pool:
        yield lambda work, items: (one.result() for one in as_completed([pool.submit(work, item) for item in items]))


def _index(spread: Callable[..., Iterable[Any]], source: Path, progress: Progress) -> list[Entry]:
    """Every file below the source, sorted by path; a series with several patients is nobody's."""
    paths = [str(path) for path in files_below(source)]
    if not paths:
        raise InputError("holds no files", file=source, remedy="name the folder that holds the DICOM files.")
    parts = [paths[first : first + _FILES_AT_ONCE] for first in range(0, len(paths), _FILES_AT_ONCE)]
    entries: list[Entry] = []
    for found in spread(_look_at_many, parts):
        entries += found
        progress("files", len(entries), len(paths))
    owners: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        owners[entry.series].add(entry.patient)
    mixed = {series for series, patients in owners.items() if series and len(patients) > 1}
    entries = [replace(one, problem="mixed_patients", patient="") if one.series in mixed else one for one in entries]
    return sorted(entries, key=lambda one: one.path)


@dataclass(frozen=True)
class Options:
    """What a user said about an import."""

    out: Path
    names: Names
    clinical: ClinicalTable
    pseudonyms: Pseudonyms | None  # None: the source's identifiers are kept
    site: str
    external: frozenset[str]


def plan(entries: Sequence[Entry], source: Path, options: Options) -> list[Job]:
    """One job a patient. Raises `InputError` if names cannot be kept or two patients would get one."""
    own: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if not entry.problem:
            own[entry.patient].append(entry)
    if not own:
        remedy = "name the folder of an export from PACS or archive; see the log for what lies there."
        raise InputError(
            "holds no DICOM object of a patient", file=source, value=f"{len(entries)} files", remedy=remedy
        )
    code = fingerprint.of_modules([__name__])
    planned = [_job(patient, found, source, options, code) for patient, found in own.items()]
    taken = Counter(job.name.casefold() for job in planned)
    if max(taken.values()) > 1:
        raise InputError("two patients would get the same name", file=source, remedy="import without --keep-ids.")
    return planned


def _job(patient: str, entries: list[Entry], source: Path, options: Options, code: str) -> Job:
    series: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        series[entry.series].append(entry.path)
    columns = options.clinical.kept(patient)
    site = columns.get("site") or options.site
    job = Job(
        name=_name(patient, source, options),
        series=dict(series),
        modalities={entry.series: entry.modality for entry in entries},
        out=str(options.out),
        names=options.names,
        clinical=options.clinical.for_suv(patient),
        columns=columns,
        site=site,
        cohort="external" if site in options.external else "main",
        fingerprint="",
    )
    return replace(job, fingerprint=_fingerprint(job, source, code))


def _name(patient: str, source: Path, options: Options) -> str:
    if options.pseudonyms is not None:
        return options.pseudonyms.of(patient)
    if not SAFE_NAME.fullmatch(patient):
        remedy = "import without --keep-ids: the patients then get pseudonyms."
        raise InputError("an identifier cannot be a file name, so it cannot be kept", file=source, remedy=remedy)
    return patient


def _fingerprint(job: Job, source: Path, code: str) -> str:
    """Hash of what the result depends on: files by place, size and time of change, options and code."""
    digest = hashlib.sha256(repr((code, job.names, job.clinical, sorted(job.columns.items()))).encode())
    digest.update(repr((job.site, job.cohort)).encode())
    for path in sorted(path for paths in job.series.values() for path in paths):
        stat = os.stat(path)
        digest.update(f"{os.path.relpath(path, source)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _done_before(job: Job) -> Result | None:
    """The result of an earlier import from the same files, if its images are still there."""
    path = _state_path(Path(job.out), job.name)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        row, lines, same = state["row"], state["lines"], state["fingerprint"] == job.fingerprint
    except (OSError, ValueError, KeyError):
        return None
    images = [Path(job.out) / row[name] for name in FILES if row.get(name)] if row else []
    return Result(job.name, row, lines) if same and all(image.exists() for image in images) else None


def _state_path(out: Path, name: str) -> Path:
    return out / STATES / f"{name}.json"


def _import(spread: Callable[..., Iterable[Any]], planned: list[Job], progress: Progress) -> list[Result]:
    results = []
    for result in spread(import_patient, planned):
        results.append(result)
        progress("patients", len(results), len(planned))
    return results


def _log(entries: Sequence[Entry], results: Sequence[Result]) -> ImportLog:
    log = ImportLog()
    log.lines += [line for result in results for line in result.lines]
    for code, n in sorted(Counter(entry.problem for entry in entries if entry.problem).items()):
        log.add("", "files", "left out", code, f"{n} files: {_FILES_LEFT_OUT[code]}")
    return log


def _write(out: Path, results: Sequence[Result], log: ImportLog) -> None:
    """The log, and cohort.csv with the patients of this and of earlier imports; what a user changed is not replaced."""
    log.write(out / LOG)
    rows = {path.stem: json.loads(path.read_text(encoding="utf-8"))["row"] for path in (out / STATES).glob("*.json")}
    rows |= {result.name: result.row for result in results}
    table = pd.DataFrame([row for _, row in sorted(rows.items()) if row is not None])
    if table.empty:
        raise InputError("no patient could be imported", file=out / LOG, remedy="the log gives the reason for each.")
    target, mark = out / "cohort.csv", out / STATES / "cohort.sha256"
    changed = target.exists() and (not mark.exists() or mark.read_text() != sha256(target))
    text = table.to_csv(index=False)
    if changed and target.read_text(encoding="utf-8") != text:
        write_text(out / "cohort.imported.csv", text)
        raise InputError(
            "was changed since the last import and is left as it is; the new table is cohort.imported.csv",
            file=target,
            remedy="bring over what is new, or delete cohort.csv and import again.",
        )
    write_text(target, text)
    write_text(mark, sha256(target))


def regions_in(source: Path, roi_names: Path | None = None) -> list[tuple[str, str, int]]:
    """Name, category and number of all regions below a folder, for a user who writes a table of names."""
    names, found = read_names(roi_names), Counter[tuple[str, str]]()
    for path in files_below(source):
        if look_at(str(path)).modality in _REGIONS:
            dataset = read_file(path)
            for region in region_objects_summary(dataset) if dataset is not None else []:
                found[region.name, str(names.classify(region.name, codes=region.codes))] += 1
    return sorted((name, category, n) for (name, category), n in found.items())
