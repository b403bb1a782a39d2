"""A physician's corrections of the CNN's delineation: what the paper's discussion says a user would do.

"Spurious regions can be deleted, and lesions of the wrong class changed, by a few clicks": here by `delete`, `reclass`
and `accept` (a missed lesion, delineated from a click by the adaptive threshold), each of which can be undone.

Nothing is ever overwritten. A correction is a pair of files, `corrections/<patient>/<number>-<who>.nii.gz` (the whole
label map) and `<number>.json` (who, when, what was corrected, every edit, sha256), written in this order: a map without
its record does not count, and of two who save at once one gets the number. Until a session is saved, its edits lie in a
journal beside them, one line an edit, so that a dead kernel loses none. Who saves second, after another one corrected
the same map, is refused and keeps the edits; and one name cannot edit a patient in two kernels at once.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pandas as pd

from mtvlib import pet, thresholds, volume
from mtvlib.classes import BACKGROUND, LESION_CLASSES
from mtvlib.errors import InputError
from mtvlib.files import sha256, write_json, write_text
from mtvlib.lesions import Box, bounding_box, components
from mtvlib.prepare import load_patient
from mtvlib.study import Study

Voxel = tuple[int, int, int]
Action = Literal["delete", "reclass", "accept"]

CLICK_MM = 8.0  # how far from a click the hottest voxel of a missed lesion may lie
REACH_MM = 40.0  # how far the lesion may reach from there, unless the editor says otherwise
MOST_ML = 200.0  # no lesion that a click makes is larger: the threshold has run into the brain or the bladder
IDLE_S = 60.0  # a longer pause counts as one of so many seconds: nobody corrects during lunch
_EDITOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,19}")
_TOLD = ("patient", "number", "who", "when", "base", "seconds", "undone", "manual_shown")
_LOG = (
    *("patient", "number", "who", "when", "base", "seconds"),
    *("edits", "deleted", "reclassified", "accepted", "undone", "manual_shown"),
)


@dataclass(frozen=True)
class Edit:
    """What was done at which voxel of the study's grid; of an accepted lesion also its class and its reach."""

    action: Action
    voxel: Voxel
    target: str = ""
    reach_mm: float | None = None


# --- the edits, on label maps (x, y, z)


def region_at(labels: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """Voxels of the region (one class, 26 neighbours) at a voxel; `InputError` where there is none."""
    place = _within(labels, voxel)
    if labels[place] == BACKGROUND:
        raise InputError("no region lies there", value=place, remedy="click inside of a contour.")
    box = bounding_box(labels)  # the rest of a whole body need not be looked through
    numbers = components(labels[box])
    region = np.zeros(labels.shape, bool)
    region[box] = numbers == numbers[tuple(at - side.start for at, side in zip(place, box, strict=True))]
    return region


def delete(labels: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """The map without the region at a voxel."""
    return np.where(region_at(labels, voxel), np.uint8(BACKGROUND), labels)


def reclass(labels: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """The map with the region at a voxel turned from primary into node, or back."""
    others = {LESION_CLASSES["primary"]: LESION_CLASSES["nodes"], LESION_CLASSES["nodes"]: LESION_CLASSES["primary"]}
    region = region_at(labels, voxel)
    return np.where(region, np.uint8(others[int(labels[tuple(voxel)])]), labels)


def missed_lesion(
    labels: np.ndarray,
    suv: np.ndarray,
    voxel: Sequence[int],
    target: str,
    spacing_mm: Sequence[float],
    reach_mm: float = REACH_MM,
) -> np.ndarray:
    """The lesion that a click means, bool (x, y, z): adaptive threshold from the hottest voxel within 8 mm of it.

    It reaches no farther than `reach_mm` from that voxel, and voxels of regions that there are already do not belong to
    it. `InputError` where nothing rises above its surroundings, or where more than 200 ml do.
    """
    place = _within(labels, voxel)
    if target not in LESION_CLASSES:
        raise InputError("is no class of a lesion", value=target, remedy=f"choose {' or '.join(LESION_CLASSES)}.")
    box = _around(place, CLICK_MM + reach_mm + thresholds.SHELL_MM[1], spacing_mm, labels.shape)
    near = [at - side.start for at, side in zip(place, box, strict=True)]
    free = labels[box] == BACKGROUND
    seeds = np.zeros(free.shape, np.uint8)
    seeds[_hottest(np.where(free, suv[box], -np.inf), near, spacing_mm)] = LESION_CLASSES[target]
    found = (thresholds.delineate("adaptive", suv[box], seeds, spacing_mm, margin_mm=reach_mm) > 0) & free
    volume_ml = float(found.sum()) * pet.voxel_ml(spacing_mm)
    if not found.any() or volume_ml > MOST_ML:
        raise InputError(
            "no lesion stands out there",
            value=f"{volume_ml:.0f} ml above the threshold" if found.any() else place,
            remedy="click on the uptake of a lesion, or let it reach less far.",
        )
    whole = np.zeros(labels.shape, bool)
    whole[box] = found
    return whole


def runs_on(found: np.ndarray, suv: np.ndarray, spacing_mm: Sequence[float], reach_mm: float) -> bool:
    """Whether a lesion goes as far from its hottest voxel as it may: then it is likely more than a lesion, or none."""
    voxels = np.argwhere(found)
    hottest = voxels[np.asarray(suv)[tuple(voxels.T)].argmax()]
    far = np.sqrt((((voxels - hottest) * np.asarray(spacing_mm, float)) ** 2).sum(axis=1)).max()
    return bool(far > reach_mm - max(spacing_mm))


def accept(
    labels: np.ndarray,
    suv: np.ndarray,
    voxel: Sequence[int],
    target: str,
    spacing_mm: Sequence[float],
    reach_mm: float = REACH_MM,
) -> np.ndarray:
    """The map with the missed lesion at a click; see `missed_lesion`."""
    found = missed_lesion(labels, suv, voxel, target, spacing_mm, reach_mm)
    return np.where(found, np.uint8(LESION_CLASSES[target]), labels)


def _within(labels: np.ndarray, voxel: Sequence[int]) -> Voxel:
    """The voxel; `InputError` unless it lies in the map."""
    place = _voxel(voxel)
    if not all(0 <= at < length for at, length in zip(place, labels.shape, strict=True)):
        raise InputError("lies outside of the image", value=place, remedy=f"the image has {labels.shape} voxels.")
    return place


def _around(place: Voxel, reach_mm: float, spacing_mm: Sequence[float], shape: Sequence[int]) -> Box:
    """The part of a volume within a distance of a voxel, along each axis."""
    steps = [int(np.ceil(reach_mm / side)) for side in spacing_mm]
    first, second, third = (
        slice(max(0, at - step), min(length, at + step + 1))
        for at, step, length in zip(place, steps, shape, strict=True)
    )
    return first, second, third


def _hottest(suv: np.ndarray, voxel: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """The hottest voxel within `CLICK_MM` of a click."""
    axes = np.ogrid[tuple(slice(length) for length in suv.shape)]
    squared = sum(((axis - at) * side) ** 2 for axis, at, side in zip(axes, voxel, spacing_mm, strict=True))
    values = np.where(squared <= CLICK_MM**2, suv, -np.inf)
    if not np.isfinite(values.max()):
        raise InputError("a region lies there already", remedy="click outside of all contours.")
    return tuple(int(at) for at in np.unravel_index(int(values.argmax()), values.shape))


# --- a session


@dataclass(eq=False)
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
    seconds: float = 0.0  # spent on this correction, without long pauses
    manual_shown: bool = False  # the editor looked at the manual delineation that the correction is compared with
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])  # in the journal and in the record
    labels: np.ndarray = field(init=False)
    _last: float = field(default_factory=lambda: time.monotonic())
    _lock: TextIO | None = None
    _superseded: bool = False

    def __post_init__(self) -> None:
        self.labels = self._replay(self.edits)

    # --- editing

    def delete(self, voxel: Sequence[int]) -> None:
        self._do(Edit("delete", _voxel(voxel)))

    def reclass(self, voxel: Sequence[int]) -> None:
        self._do(Edit("reclass", _voxel(voxel)))

    def accept(self, voxel: Sequence[int], target: str, reach_mm: float = REACH_MM) -> None:
        self._do(Edit("accept", _voxel(voxel), target, reach_mm))

    def preview(self, voxel: Sequence[int], target: str, reach_mm: float = REACH_MM) -> np.ndarray:
        """What `accept` would add, bool (x, y, z)."""
        return missed_lesion(self.labels, self.suv, voxel, target, self.grid.spacing_mm, reach_mm)

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

    def save(self, *, unchanged: bool = False) -> Path | None:
        """Keep the map as a new correction; returns its file.

        None where nothing was edited, unless it is to be kept that somebody looked and found nothing to correct
        (`unchanged`). Raises `InputError` if somebody else saved a correction of the same map meanwhile; the edits stay
        in the journal.
        """
        if not self.edits and not unchanged:
            return None
        self.touch()
        if latest(self.study, self.patient) != self.base:
            raise self._late()
        path = self._write(self.base + 1)
        self.journal.unlink(missing_ok=True)
        self.close()
        self.base, self.original, self.name = self.base + 1, self.labels, uuid.uuid4().hex[:12]
        self.edits, self.undone, self.times_undone, self.seconds = [], [], 0, 0.0
        self.manual_shown = False
        return path

    def touch(self) -> None:
        """The editor did or looked at something: count the time since, or a minute of it."""
        now = time.monotonic()
        self.seconds, self._last = self.seconds + min(now - self._last, IDLE_S), now

    def close(self) -> None:
        """Let others edit under this name; what was not saved stays in the journal."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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
        self.touch()
        self.hold()
        lines = [line | {"seconds": round(self.seconds, 1), "manual_shown": self.manual_shown}]
        if not self.journal.exists():
            lines.insert(0, {"session": self.name})
        with open(self.journal, "a", encoding="utf-8") as journal:
            journal.write("".join(json.dumps(one) + "\n" for one in lines))
            journal.flush()
            os.fsync(journal.fileno())

    def hold(self) -> None:
        """See to it that nobody else writes this journal; `InputError` if another kernel, or a later session, does."""
        if self._lock is not None:
            return
        path = self.journal.with_name(f".{self.who}.lock").absolute()
        if self._superseded:
            raise InputError("was opened again since", patient=self.patient, remedy="go on there.")
        before = _HOLDERS.pop(path, None)
        if before is not None:  # a cell of the notebook was run again
            before._superseded = True
            before.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(
                f"{self.who} corrects this patient in another window",
                patient=self.patient,
                remedy="close that notebook's kernel, or sign with another name.",
            ) from None
        self._lock, _HOLDERS[path] = lock, self

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
            "session": self.name,
            "base_sha256": sha256(map_path(self.study, self.patient, self.base)),
            "sha256": sha256(path),
            "seconds": round(self.seconds, 1),
            "undone": self.times_undone,
            "manual_shown": self.manual_shown,
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


_HOLDERS: weakref.WeakValueDictionary[Path, Session] = weakref.WeakValueDictionary()  # in this process, by lock
_EDITS: dict[str, Callable[[np.ndarray, Edit, np.ndarray, Sequence[float]], np.ndarray]] = {
    "delete": lambda labels, edit, suv, spacing_mm: delete(labels, edit.voxel),
    "reclass": lambda labels, edit, suv, spacing_mm: reclass(labels, edit.voxel),
    "accept": lambda labels, edit, suv, spacing_mm: accept(
        labels, suv, edit.voxel, edit.target, spacing_mm, edit.reach_mm or REACH_MM
    ),
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
    """The edits of an interrupted session, as far as they are possible on the map as it is now."""
    if not session.journal.exists():
        return
    session.hold()
    lines = _whole_lines(session.journal)
    name, edits = _read_journal(session, lines)
    saved = range(1, latest(session.study, session.patient) + 1)
    if not edits or any(record(session.study, session.patient, n)["session"] == name for n in saved):
        session.journal.unlink()  # the kernel died between saving and this
        session.times_undone, session.seconds = 0, 0.0
        return
    session.name = name
    for edit in edits:
        try:
            session.labels = _edited(session.labels, edit, session.suv, session.grid.spacing_mm)
            session.edits.append(edit)
        except InputError:  # the map is another since: somebody else saved a correction
            session.dropped.append(edit)


def _whole_lines(journal: Path) -> list[str]:
    """The journal's lines. What a dying kernel wrote in part is cut off: that edit was never shown as done."""
    text = journal.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(journal, whole)
    return whole.splitlines()


def _read_journal(session: Session, lines: Sequence[str]) -> tuple[str, list[Edit]]:
    """The name of the session that wrote a journal and its edits; time and number of undos go into `session`."""
    name = ""
    edits: list[Edit] = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            if number == 1:
                name = str(line["session"])
                continue
            session.seconds = float(line.pop("seconds"))
            session.manual_shown |= bool(line.pop("manual_shown"))
            if line.pop("undo", False):
                edits.pop()
                session.times_undone += 1
            else:
                edits.append(Edit(line["action"], _voxel(line["voxel"]), line["target"], line["reach_mm"]))
        except (ValueError, KeyError, IndexError, TypeError):
            raise InputError(
                f"the journal of an interrupted session is damaged in line {number}",
                patient=session.patient,
                file=session.journal,
                remedy="delete that line and what follows, or the file: its edits are then lost.",
            ) from None
    return name, edits


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
        whole &= {"session", "base_sha256", "edits", *_TOLD} <= set(about)
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
    row = {
        name: about[name] for name in ("patient", "number", "who", "when", "base", "seconds", "undone", "manual_shown")
    }
    return row | {"edits": len(done)} | {name: done.count(action) for name, action in counts.items()}


def what_changed(session: Session) -> str:
    """The session's regions and edits in words, for the reader."""
    numbers = components(session.labels[box := bounding_box(session.labels)])
    counts = {name: len(np.unique(numbers[session.labels[box] == value])) for name, value in LESION_CLASSES.items()}
    regions = f"{counts['primary']} primary, {_count(counts['nodes'], 'node')}"
    return f"{regions}; {_count(len(session.edits), 'edit')} not yet saved" if session.edits else regions


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
