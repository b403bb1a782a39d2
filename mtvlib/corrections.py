"""A physician's corrections of the CNN's delineation: what the paper's discussion says a user would do.

"Spurious regions can be deleted, and lesions of the wrong class changed, by a few clicks": here by `delete`, `reclass`
and `accept` (a missed lesion, delineated from a click by the adaptive threshold), each of which can be undone.

Nothing is ever overwritten. A correction is a pair of files, `corrections/<patient>/<number>-<who>.nii.gz` (the whole
label map) and `<number>.json` (who, when, what was corrected, every edit, sha256), written in this order: a map without
its record does not count, and of two who save at once one gets the number. Until a session is saved, its edits lie in a
journal beside them, one line an edit, so that a dead kernel loses none. Who saves second, after another one corrected
the same map, is refused and keeps the edits.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mtvlib import pet, thresholds, volume
from mtvlib.classes import BACKGROUND, LESION_CLASSES
from mtvlib.errors import InputError
from mtvlib.files import sha256, write_json, write_text
from mtvlib.lesions import components
from mtvlib.prepare import load_patient
from mtvlib.study import Study

Voxel = tuple[int, int, int]
Action = Literal["delete", "reclass", "accept"]

REACH_MM = 8.0  # how far from a click the hottest voxel of a missed lesion may lie
MARGIN_MM = 40.0  # how far it may reach from there
MOST_ML = 200.0  # no lesion that a click makes is larger: the threshold has run into the brain or the bladder
_EDITOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,19}")
_LOG = ("patient", "number", "who", "when", "base", "seconds", "edits", "deleted", "reclassified", "accepted", "undone")


@dataclass(frozen=True)
class Edit:
    """What was done at which voxel of the study's grid; `target` is the class that an accepted lesion gets."""

    action: Action
    voxel: Voxel
    target: str = ""


# --- the edits, on label maps (x, y, z)


def region_at(labels: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """Voxels of the region (one class, 26 neighbours) at a voxel; `InputError` where there is none."""
    numbers = components(labels)
    number = numbers[tuple(voxel)] if labels[tuple(voxel)] != BACKGROUND else 0
    if not number:
        raise InputError("no region lies there", value=tuple(map(int, voxel)), remedy="click inside of a contour.")
    return numbers == number


def delete(labels: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """The map without the region at a voxel."""
    return np.where(region_at(labels, voxel), np.uint8(BACKGROUND), labels)


def reclass(labels: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """The map with the region at a voxel turned from primary into node, or back."""
    others = {LESION_CLASSES["primary"]: LESION_CLASSES["nodes"], LESION_CLASSES["nodes"]: LESION_CLASSES["primary"]}
    region = region_at(labels, voxel)
    return np.where(region, np.uint8(others[int(labels[tuple(voxel)])]), labels)


def missed_lesion(
    labels: np.ndarray, suv: np.ndarray, voxel: Sequence[int], target: str, spacing_mm: Sequence[float]
) -> np.ndarray:
    """The lesion that a click means, bool (x, y, z): adaptive threshold from the hottest voxel within 8 mm of it.

    Voxels of regions that there are already do not belong to it. `InputError` where nothing rises above its
    surroundings, or where more than 200 ml do.
    """
    if target not in LESION_CLASSES:
        raise InputError("is no class of a lesion", value=target, remedy=f"choose {' or '.join(LESION_CLASSES)}.")
    seed = _hottest(np.where(labels == BACKGROUND, suv, -np.inf), voxel, spacing_mm)
    seeds = np.zeros(labels.shape, np.uint8)
    seeds[seed] = LESION_CLASSES[target]
    found = thresholds.delineate("adaptive", suv, seeds, spacing_mm, margin_mm=MARGIN_MM) > 0
    found &= labels == BACKGROUND
    volume_ml = float(found.sum()) * pet.voxel_ml(spacing_mm)
    if not found.any() or volume_ml > MOST_ML:
        raise InputError(
            "no lesion stands out there",
            value=f"{volume_ml:.0f} ml above the threshold" if found.any() else tuple(map(int, voxel)),
            remedy="click on the uptake of a lesion.",
        )
    return found


def accept(
    labels: np.ndarray, suv: np.ndarray, voxel: Sequence[int], target: str, spacing_mm: Sequence[float]
) -> np.ndarray:
    """The map with the missed lesion at a click; see `missed_lesion`."""
    found = missed_lesion(labels, suv, voxel, target, spacing_mm)
    return np.where(found, np.uint8(LESION_CLASSES[target]), labels)


def _hottest(suv: np.ndarray, voxel: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """The hottest voxel within `REACH_MM` of a click."""
    box = tuple(
        slice(max(0, int(at - REACH_MM // side)), int(at + REACH_MM // side) + 1)
        for at, side in zip(voxel, spacing_mm, strict=True)
    )
    axes = np.ogrid[box]
    near = sum(((axis - at) * side) ** 2 for axis, at, side in zip(axes, voxel, spacing_mm, strict=True)) <= REACH_MM**2
    values = np.where(near, suv[box], -np.inf)
    if not np.isfinite(values).any():
        raise InputError(
            "a region lies there already", value=tuple(map(int, voxel)), remedy="click outside of all contours."
        )
    place = np.unravel_index(int(values.argmax()), values.shape)
    return tuple(int(at + side.start) for at, side in zip(place, box, strict=True))


# --- a session


@dataclass
class Session:
    """One physician's work on one patient; made by `open_session`.

    `labels` is the map as it stands. An edit is kept in the journal before it counts.
    """

    study: Study
    patient: str
    who: str
    base: int  # number of the correction that is corrected; 0: the CNN's map
    original: np.ndarray
    suv: np.ndarray
    grid: volume.Grid
    edits: list[Edit] = field(default_factory=list)
    undone: list[Edit] = field(default_factory=list)
    dropped: list[Edit] = field(default_factory=list)  # of an interrupted session: not possible on the map as it is now
    times_undone: int = 0
    seconds_before: float = 0.0  # of the sessions whose journal was taken up
    began: float = field(default_factory=time.monotonic)
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.labels = self._replay(self.edits)

    # --- editing

    def delete(self, voxel: Sequence[int]) -> None:
        self._do(Edit("delete", _voxel(voxel)))

    def reclass(self, voxel: Sequence[int]) -> None:
        self._do(Edit("reclass", _voxel(voxel)))

    def accept(self, voxel: Sequence[int], target: str) -> None:
        self._do(Edit("accept", _voxel(voxel), target))

    def preview(self, voxel: Sequence[int], target: str) -> np.ndarray:
        """What `accept` would add, bool (x, y, z)."""
        return missed_lesion(self.labels, self.suv, voxel, target, self.grid.spacing_mm)

    def undo(self) -> bool:
        """Take back the last edit; False where there is none."""
        if not self.edits:
            return False
        self._note({"undo": True})
        self.undone.append(self.edits.pop())
        self.times_undone += 1
        self.labels = self._replay(self.edits)
        return True

    def redo(self) -> bool:
        """Do the edit again that was taken back last; False where there is none."""
        if not self.undone:
            return False
        self._apply(self.undone[-1])
        self.undone.pop()
        return True

    def save(self) -> Path | None:
        """Keep the map as a new correction; returns its file, None where nothing was edited.

        Raises `InputError` if somebody else saved a correction of the same map meanwhile; the edits stay in the
        journal.
        """
        if not self.edits:
            return None
        if latest(self.study, self.patient) != self.base:
            raise self._late()
        path = self._write(self.base + 1)
        self.journal.unlink(missing_ok=True)
        self.base, self.original = self.base + 1, self.labels
        self.edits, self.undone, self.times_undone = [], [], 0
        self.seconds_before, self.began = 0.0, time.monotonic()
        return path

    @property
    def seconds(self) -> float:
        """Time spent on this correction."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def journal(self) -> Path:
        return folder(self.study, self.patient) / f"journal-{self.who}.jsonl"

    # --- what lies behind

    def _do(self, edit: Edit) -> None:
        self._apply(edit)
        self.undone = []

    def _apply(self, edit: Edit) -> None:
        labels = _edited(self.labels, edit, self.suv, self.grid.spacing_mm)  # before it is noted: it may be refused
        self._note(asdict(edit))
        self.edits.append(edit)
        self.labels = labels

    def _note(self, line: dict[str, Any]) -> None:
        """Append to the journal, and see to it that the disk has it."""
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with open(self.journal, "a", encoding="utf-8") as journal:
            journal.write(json.dumps({**line, "seconds": round(self.seconds, 1)}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def _replay(self, edits: Sequence[Edit]) -> np.ndarray:
        labels = self.original
        for edit in edits:
            labels = _edited(labels, edit, self.suv, self.grid.spacing_mm)
        return labels

    def _late(self) -> InputError:
        number = latest(self.study, self.patient)
        return InputError(
            f"correction {number} was saved by {record(self.study, self.patient, number)['who']} meanwhile",
            patient=self.patient,
            value=f"this session corrects {self.base or 'the CNN'}",
            remedy="open the patient again: your edits are kept and are done on the new map.",
        )

    def _write(self, number: int) -> Path:
        path = folder(self.study, self.patient) / f"{number}-{self.who}.nii.gz"
        volume.write_image(volume.to_image(self.labels, self.grid), path)
        about = {
            "patient": self.patient,
            "number": number,
            "who": self.who,
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "base": self.base,
            "base_sha256": sha256(map_path(self.study, self.patient, self.base)),
            "sha256": sha256(path),
            "seconds": round(self.seconds, 1),
            "undone": self.times_undone,
            "edits": [asdict(edit) for edit in self.edits],
        }
        if not _write_once(path.with_name(f"{number}.json"), about):
            raise self._late()
        write_text(self.study.folder / "corrections" / "log.csv", log(self.study).to_csv(index=False))
        return path


def _write_once(path: Path, about: dict[str, Any]) -> bool:
    """Write JSON unless the file is there; False then. Whole or not at all, on a network's disk too."""
    temporary = path.with_name(f".{path.name}-{about['who']}")
    write_json(temporary, about)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


_EDITS: dict[str, Callable[[np.ndarray, Edit, np.ndarray, Sequence[float]], np.ndarray]] = {
    "delete": lambda labels, edit, suv, spacing_mm: delete(labels, edit.voxel),
    "reclass": lambda labels, edit, suv, spacing_mm: reclass(labels, edit.voxel),
    "accept": lambda labels, edit, suv, spacing_mm: accept(labels, suv, edit.voxel, edit.target, spacing_mm),
}


def _edited(labels: np.ndarray, edit: Edit, suv: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    return _EDITS[edit.action](labels, edit, suv, spacing_mm)


def _voxel(voxel: Sequence[int]) -> Voxel:
    x, y, z = (int(at) for at in voxel)
    return x, y, z


def open_session(study: Study, patient: str, who: str) -> Session:
    """Begin to correct a patient's latest map, or go on where a session of `who` was interrupted.

    `who`: initials or a role, which the log keeps (letters, digits, - and _); never the computer's user. Raises
    `InputError` for an unfit name, a patient without a prediction or a damaged journal.
    """
    if not _EDITOR.fullmatch(who):
        raise InputError("is no name for the log", value=who, remedy="give initials or a role, such as AB or reader-1.")
    base = latest(study, patient)
    prepared = load_patient(study.volumes, patient, study.params)
    labels = volume.to_array(volume.read_labels(map_path(study, patient, base), patient=patient))
    session = Session(study, patient, who, base, labels.astype(np.uint8), prepared.suv, prepared.grid)
    _take_up(session)
    return session


def _take_up(session: Session) -> None:
    """The edits of an interrupted session."""
    if not session.journal.exists():
        return
    edits: list[Edit] = []
    for number, text in enumerate(session.journal.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            seconds = line.pop("seconds")
            if line.pop("undo", False):
                edits.pop()
                session.times_undone += 1
            else:
                edits.append(Edit(line["action"], _voxel(line["voxel"]), line["target"]))
        except (ValueError, KeyError, IndexError, TypeError):
            raise InputError(
                f"the journal of an interrupted session is damaged in line {number}",
                patient=session.patient,
                file=session.journal,
                remedy="delete that line and what follows, or the file: its edits are then lost.",
            ) from None
        session.seconds_before = seconds
    for edit in edits:
        try:
            session.labels = _edited(session.labels, edit, session.suv, session.grid.spacing_mm)
            session.edits.append(edit)
        except InputError:  # the map is another since: somebody else saved a correction
            session.dropped.append(edit)


# --- what was saved


def folder(study: Study, patient: str) -> Path:
    return study.folder / "corrections" / patient


def map_path(study: Study, patient: str, number: int) -> Path:
    """The label map of a correction; number 0 is the CNN's."""
    path = study.prediction_path(patient)
    if number:
        path = folder(study, patient) / f"{number}-{record(study, patient, number)['who']}.nii.gz"
    if not path.exists():
        raise InputError("has no delineation yet", patient=patient, file=path, remedy="run the study first.")
    return path


def latest(study: Study, patient: str) -> int:
    """Number of the last correction of a patient; 0 where there is none."""
    numbers = [int(path.stem) for path in folder(study, patient).glob("*.json") if path.stem.isdigit()]
    return max(numbers, default=0)


def record(study: Study, patient: str, number: int) -> dict[str, Any]:
    """Who, when and what of a correction. `InputError` if it is damaged or not that of the map beside it."""
    path = folder(study, patient) / f"{number}.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        whole = about["sha256"] == sha256(path.with_name(f"{number}-{about['who']}.nii.gz"))
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            "the correction is damaged, or its map was changed",
            patient=patient,
            file=path,
            remedy="restore both files from a copy, or delete both.",
        )
    return about


def corrected_patients(study: Study) -> list[str]:
    """Patients with a correction, by name."""
    return sorted(path.name for path in (study.folder / "corrections").glob("*") if latest(study, path.name))


def log(study: Study) -> pd.DataFrame:
    """A row for each correction: patient, number, who, when, what it corrects, seconds, number of edits by kind."""
    rows = [
        _log_row(record(study, patient, number))
        for patient in corrected_patients(study)
        for number in range(1, latest(study, patient) + 1)
    ]
    return pd.DataFrame(rows, columns=_LOG).sort_values(["when", "patient"], ignore_index=True)


def _log_row(about: dict[str, Any]) -> dict[str, Any]:
    done = [edit["action"] for edit in about["edits"]]
    counts = {"deleted": "delete", "reclassified": "reclass", "accepted": "accept"}
    row = {name: about[name] for name in ("patient", "number", "who", "when", "base", "seconds", "undone")}
    return row | {"edits": len(done)} | {name: done.count(action) for name, action in counts.items()}


def what_changed(session: Session) -> str:
    """The session's regions and edits in words, for the reader."""
    numbers = components(session.labels)
    counts = {name: len(np.unique(numbers[session.labels == value])) for name, value in LESION_CLASSES.items()}
    regions = ", ".join(f"{n} {name}" for name, n in counts.items())
    edits = f"{len(session.edits)} {'edit' if len(session.edits) == 1 else 'edits'} not yet saved"
    return f"{regions}; {edits}" if session.edits else regions
