"""What a physician's corrections changed: the CNN's delineation and the corrected one of the same patients.

Only patients with a correction count, and of each the last one. They are those whom somebody chose to correct, so
nothing here speaks for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import corrections, lesions, volume
from mtvlib.classes import LESION_CLASSES, TARGETS
from mtvlib.cohort import bootstrap_of
from mtvlib.comparison import VOLUME_ERROR, comparison, with_width
from mtvlib.evaluation import Case, evaluate_case, lesion_counts
from mtvlib.files import sha256
from mtvlib.intervals import Bootstrap, all_entries
from mtvlib.params import Params
from mtvlib.prepare import load_patient
from mtvlib.study import Study

CNN, CORRECTED = "CNN", "CNN corrected"
MEASURES = ("cohort_dsc", "mean_dsc", VOLUME_ERROR)
KINDS = ("deleted", "reclassified", "accepted")


@dataclass(frozen=True)
class Corrected:
    """The corrected patients who can be compared: patients.csv and lesions.csv by method; and all of the log.

    Left out are those `without_reference`, and the `outdated`: the CNN's delineation is another one since.
    """

    log: pd.DataFrame
    patients: dict[str, pd.DataFrame]
    lesions: dict[str, pd.DataFrame]
    without_reference: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()


def evaluate_corrections(study: Study) -> Corrected:
    """Evaluate the last correction of each patient as the CNN's delineation was; `InputError` if one is damaged."""
    corrected = corrections.corrected_patients(study)
    outdated = [patient for patient in corrected if _outdated(study, patient)]
    known = study.patients["patient"]
    before = study.patients[known.isin(corrected) & ~known.isin(outdated)]
    found = {patient: evaluate_case(_case(study, patient), study.params) for patient in before["patient"]}
    after = [old | found[old["patient"]][0] for old in before.to_dict("records")]
    lesion_rows = [{"patient": patient, **lesion} for patient, (_, own) in found.items() for lesion in own]
    return Corrected(
        log=corrections.log(study),
        patients={CNN: before, CORRECTED: pd.DataFrame(after, columns=before.columns)},
        lesions={
            CNN: study.lesions[study.lesions["patient"].isin(before["patient"])],
            CORRECTED: pd.DataFrame(lesion_rows, columns=["patient", "source", "target", "outcome"]),
        },
        without_reference=tuple(sorted(set(corrected) - set(known))),
        outdated=tuple(outdated),
    )


def _outdated(study: Study, patient: str) -> bool:
    """Whether the first correction is one of another delineation than the CNN's as it is now."""
    return corrections.record(study, patient, 1)["base_sha256"] != sha256(study.prediction_path(patient))


def _case(study: Study, patient: str) -> Case:
    prepared = load_patient(study.volumes, patient, study.params)
    assert prepared.reference is not None  # or patients.csv would not name the patient
    path = corrections.map_path(study, patient, corrections.latest(study, patient))
    labels = volume.read_labels(path, patient=patient)
    volume.check_same_grid(prepared.grid, labels, patient=patient, file=path)
    return Case(patient, prepared.reference, volume.to_array(labels), prepared.suv, prepared.grid.spacing_mm)


# --- the differences


def differences(found: Corrected, params: Params) -> pd.DataFrame:
    """Overlap and volume error by both, and their paired differences: rows of comparison.csv."""
    table = comparison(found.patients, params)
    return table[table["measure"].isin(MEASURES)].reset_index(drop=True)


def detection(found: Corrected, partition: str, params: Params) -> dict[str, dict[str, Any]]:
    """By target: lesions found and confirmed by both (`tpr_<method>`, `ppv_<method>`) and the paired differences.

    `partition`: `main` or `external`. Intervals from the bootstrap over persons, both methods of one in each resample.
    """
    part = found.patients[CNN][found.patients[CNN]["cohort"] == partition]
    bootstrap = bootstrap_of(part, params)
    return {target: _detection(found, part["patient"], target, bootstrap) for target in TARGETS}


def _detection(found: Corrected, patients: pd.Series, target: str, bootstrap: Bootstrap) -> dict[str, Any]:
    counts = {name: _counts(patients, table, target) for name, table in found.lesions.items()}
    both = np.column_stack(list(counts.values()))
    names = [f"{key}_{name}" for key in _UNDEFINED for name in (*counts, "difference")]
    reasons = {name: _UNDEFINED[name.split("_")[0]] for name in names}
    # Where every lesion is found, every resample finds all: the interval is that of so many patients then.
    shares = {f"{key}_{name}": _with_any(counts[name], key) for key in _UNDEFINED for name in counts}
    estimates = bootstrap.of_sums(both, _rates, reasons, shares)
    for key in _UNDEFINED:
        estimates[f"{key}_difference"] = with_width(estimates[f"{key}_difference"])
    return all_entries(estimates)


_UNDEFINED = {"tpr": "no lesion in the reference", "ppv": "no lesion in one of the delineations"}


def _with_any(counts: np.ndarray, key: str) -> int:
    """Patients with a lesion that the rate counts, from (n, 4)."""
    tp_man, tp_cnn, fn, fp = counts.T
    return int(((tp_man + fn if key == "tpr" else tp_cnn + fp) > 0).sum())


def _counts(patients: pd.Series, table: pd.DataFrame, target: str) -> np.ndarray:
    """The patients' lesions by outcome (n, 4); as in the paper, both classes together are the sum of the two."""
    targets: Sequence[str] = list(LESION_CLASSES) if target == "all" else [target]
    return np.sum([lesion_counts(patients, table, one) for one in targets], axis=0)


def _rates(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Rates of both methods and their differences from sums (..., 8)."""
    before, after = (lesions.detection_rates(sums[..., part]) for part in (slice(4), slice(4, 8)))
    rates = {f"{key}_{name}": own[key] for name, own in ((CNN, before), (CORRECTED, after)) for key in own}
    return rates | {f"{key}_difference": after[key] - before[key] for key in before}


# --- the work


@dataclass(frozen=True)
class Work:
    """What correcting took, over all corrections of the log."""

    patients: int
    editors: int
    corrections: int
    counts: dict[str, int]  # edits by kind
    undone: int
    seconds: float
    median_seconds: float  # a patient
    manual_shown: int  # corrections during which the manual delineation was looked at


def work(log: pd.DataFrame) -> Work:
    by_patient = log.groupby("patient")["seconds"].sum()
    return Work(
        patients=len(by_patient),
        editors=log["who"].nunique(),
        corrections=len(log),
        counts={kind: int(log[kind].sum()) for kind in KINDS},
        undone=int(log["undone"].sum()),
        seconds=float(by_patient.sum()),
        median_seconds=float(by_patient.median()),
        manual_shown=int(log["manual_shown"].sum()),
    )
