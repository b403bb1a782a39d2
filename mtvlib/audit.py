"""An audit of the folds, made from their result alone: nobody is tested by a network that has learnt from him or her.

It does not use how folds are assigned (`cohort.assign_folds`), only who came to be where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from mtvlib.cohort import SPLITS, Finding, FoldPatients, fold_patients
from mtvlib.errors import InputError
from mtvlib.params import Params


@dataclass(frozen=True)
class Check:
    """What was checked, among how many, and who or what breaks it."""

    name: str
    counted: int
    broken: list[str]


def audit(cohort: pd.DataFrame, params: Params, findings: Iterable[Finding] = ()) -> list[Check]:
    """Every check of the folds of a cohort with `split`, `fold` and `person`; `InputError` for the first that fails.

    `findings` are those of `cohort.check_cohort`, which compares all images with each other.
    """
    main, external = (cohort[cohort["split"] == split] for split in SPLITS.values())
    parts = [fold_patients(cohort, fold, params) for fold in range(params.folds)]
    person_of = dict(zip(cohort["patient"], cohort["person"], strict=True))
    checks = [_parts_of(fold, part, person_of) for fold, part in enumerate(parts)]
    checks += [_one_part_each(parts, main), _tested_once(parts, main), _in_both_cohorts(main, external)]
    if params.split_by == "site":
        checks += [_sites_of(fold, part, cohort) for fold, part in enumerate(parts)]
    checks.append(_same_images(cohort, findings))
    for check in checks:
        if check.broken:
            remedy = "run step 1_cohort again; if it fails again, the folds are at fault, not the cohort."
            raise InputError(f"the folds are not sound: {check.name}", value=", ".join(check.broken), remedy=remedy)
    return checks


def _parts_of(fold: int, parts: FoldPatients, person_of: dict[str, str]) -> Check:
    persons = [{person_of[patient] for patient in part} for part in (parts.train, parts.validation, parts.test)]
    times = Counter(person for part in persons for person in part)
    broken = sorted(person for person, n in times.items() if n > 1)
    return Check(f"fold {fold}: persons in two of training, validation and test", len(times), broken)


def _one_part_each(parts: Sequence[FoldPatients], main: pd.DataFrame) -> Check:
    broken = [_other_than_once([*part.train, *part.validation, *part.test], main) for part in parts]
    name = "all folds: patients of the main cohort without a part or with two, and others with one"
    return Check(name, len(main), sorted(set().union(*broken)))


def _tested_once(parts: Sequence[FoldPatients], main: pd.DataFrame) -> Check:
    broken = _other_than_once([patient for part in parts for patient in part.test], main)
    return Check("patients of the main cohort that are not tested exactly once", len(main), sorted(broken))


def _other_than_once(patients: Sequence[str], main: pd.DataFrame) -> set[str]:
    """Patients of the main cohort that do not come exactly once, and those that are not of it."""
    found, wanted = Counter(patients), Counter(main["patient"])
    return set((found - wanted) + (wanted - found))


def _in_both_cohorts(main: pd.DataFrame, external: pd.DataFrame) -> Check:
    ours, theirs = set(main["person"]), set(external["person"])
    return Check("persons in both the main and the external cohort", len(ours | theirs), sorted(ours & theirs))


def _sites_of(fold: int, parts: FoldPatients, cohort: pd.DataFrame) -> Check:
    site_of = dict(zip(cohort["patient"], cohort["site"], strict=True))
    tested = {site_of[patient] for patient in parts.test}
    learnt = {site_of[patient] for patient in (*parts.train, *parts.validation)}
    broken = sorted(tested & learnt) if len(tested) == 1 else sorted(tested)
    return Check(f"fold {fold}: sites tested and learnt from, or more than one tested", len(tested | learnt), broken)


def _same_images(cohort: pd.DataFrame, findings: Iterable[Finding]) -> Check:
    used = cohort[cohort["split"].isin(SPLITS.values())]
    same = sorted({str(one.patient) for one in findings if one.code == "duplicate_image" and one.severity == "error"})
    return Check("scans that are in the cohort under two names, by the images' own marks", len(used), same)
