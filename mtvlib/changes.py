"""Versions of a study: what its results were each time they changed, and what is different from the time before.

A study grows: patients are added, a mask is corrected, a site joins. Each time its results change, `record` keeps a
small file `versions/<number>.json` with the numbers, the parameters and a hash of each patient's images, so that the
report can set the last two versions side by side and say which patients made the difference.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvlib.errors import InputError
from mtvlib.files import read_table, write_json
from mtvlib.manifest import git_commit
from mtvlib.study import Study

_IMAGES = ("pet", "ct", "reference")
_NOT_PROTOCOL = ("name", "studies", "cohort", "device", "threads")
_FORMAT = "mtv-version-1"


@dataclass(frozen=True)
class Changes:
    """The last two versions of a study and what lies between them; patients in the order of their names."""

    before: Mapping[str, Any]
    now: Mapping[str, Any]
    added: list[str]
    removed: list[str]
    new_images: list[str]  # another PET or CT
    new_reference: list[str]
    new_sites: list[str]  # in this version alone; empty where the one before does not tell
    moved: list[str]  # to another fold, or between cross-validation, external testing and exclusion
    parameters: dict[str, tuple[Any, Any]]  # name -> (before, now)

    @property
    def code(self) -> tuple[str | None, str | None]:
        return self.before["commit"], self.now["commit"]


# --- keeping


def record(study: Study) -> Path | None:
    """Keep the study's results as a new version, unless they are those of the last one; returns its file."""
    last = versions(study)[-1:]
    state = {"format": _FORMAT, "date": _today(), "commit": git_commit(), **_state(study)}
    if last and last[0]["summary"] == state["summary"] and _same_patients(last[0]["patients"], state["patients"]):
        return None
    path = study.folder / "versions" / f"{len(versions(study)) + 1:04d}.json"
    write_json(path, state)
    return path


def _same_patients(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """As far as the old version tells: earlier ones of this package did not keep the site."""
    told = {name: {key: new[name].get(key) for key in old[name]} for name in new if name in old}
    return old.keys() == new.keys() and told == old


def _state(study: Study) -> dict[str, Any]:
    parameters = study.params.model_dump(mode="json")
    return {
        "parameters": {name: value for name, value in parameters.items() if name not in _NOT_PROTOCOL},
        "patients": _patients(study),
        "summary": study.summary,
    }


def _patients(study: Study) -> dict[str, dict[str, str]]:
    """Of each patient of the cohort: hashes of the images, and the part that he or she plays."""
    images = read_table(study.volumes / "prepared.csv", dtype=str).fillna("").set_index("patient")
    found = {}
    for row in study.cohort.to_dict("records"):
        patient = str(row["patient"])
        hashes = {name: str(images[name].get(patient, "")) for name in _IMAGES if name in images}
        found[patient] = hashes | {"part": _part(row), "site": str(row.get("site", ""))}
    return dict(sorted(found.items()))


def _part(row: Mapping[str, Any]) -> str:
    split = str(row["split"])
    return f"fold {int(row['fold'])}" if split == "cross_validation" else split


def _today() -> str:
    return datetime.date.today().isoformat()


# --- comparing


def versions(study: Study) -> list[dict[str, Any]]:
    """All versions kept, the oldest first. `InputError` for a damaged file."""
    return [_read(path) for path in sorted((study.folder / "versions").glob("[0-9]*.json"))]


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        known = state["format"] == _FORMAT
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError("is no version of a study", file=path, remedy="delete it: only the comparison is lost.")
    return state


def since_last_version(study: Study) -> Changes | None:
    """What changed between the last two versions; None for a study of fewer than two."""
    kept = versions(study)
    return compare(*kept[-2:]) if len(kept) > 1 else None


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """What is different between two versions."""
    old, new = before["patients"], now["patients"]
    both = [patient for patient in new if patient in old]

    def differ(*names: str) -> list[str]:
        return [patient for patient in both if any(old[patient].get(x) != new[patient].get(x) for x in names)]

    return Changes(
        before,
        now,
        added=[patient for patient in new if patient not in old],
        removed=[patient for patient in old if patient not in new],
        new_images=differ("pet", "ct"),
        new_reference=differ("reference"),
        new_sites=_sites(new, old),
        moved=differ("part"),
        parameters={
            name: (before["parameters"].get(name), now["parameters"].get(name))
            for name in {**before["parameters"], **now["parameters"]}
            if before["parameters"].get(name) != now["parameters"].get(name)
        },
    )


def _sites(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    before, now = ({one.get("site") or None for one in patients.values()} for patients in (old, new))
    return [] if None in before else sorted(site for site in now - before if site)


def causes(changes: Changes) -> list[str]:
    """What made the difference, as sentences for a reader; empty where only chance or the machine is left."""
    return list(filter(None, _sentences(changes)))


def _sentences(changes: Changes) -> Iterator[str]:
    yield _named(changes.added, "was added", "were added")
    for site in changes.new_sites:
        yield f"The site {site} is new."
    yield _named(changes.removed, "was taken out", "were taken out")
    yield _named(changes.new_reference, "has a new reference", "have a new reference")
    yield _named(changes.new_images, "has new images", "have new images")
    parts = "another part: fold, external testing or excluded"
    yield _named(changes.moved, f"plays {parts}", f"play {parts}")
    for name, (before, now) in changes.parameters.items():
        yield f"The parameter `{name}` was {_plain(before)} and is {_plain(now)}."
    if changes.code[0] != changes.code[1]:
        yield f"The code is another: commit {changes.code[0] or 'unknown'}, now {changes.code[1] or 'unknown'}."


def _named(patients: list[str], one: str, several: str, most: int = 10) -> str:
    """The patients by name where they are few, else their number."""
    if not patients:
        return ""
    if len(patients) == 1:
        return f"Patient {patients[0]} {one}."
    names = f" ({', '.join(patients)})" if len(patients) <= most else ""
    return f"{len(patients)} patients{names} {several}."


def _plain(value: Any) -> str:
    return "absent" if value is None else str(value)
