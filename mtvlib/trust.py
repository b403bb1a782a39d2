"""Can the network's output be trusted? A study's calibration, uncertainty, triage, FROC and failed patients.

Patients pass one at a time, each with reference, label map and probability, and leave counts. The probability is that
of a lesion of either class: of one network in cross-validation, of the mean of all in external testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import lesions, volume
from mtvlib.calibration import FULL, calibration, calibration_counts
from mtvlib.cohort import SPLITS, bootstrap_of
from mtvlib.errors import InputError
from mtvlib.failures import FAILURE_COLUMNS, find_failures
from mtvlib.files import read_table, sha256, write_text
from mtvlib.froc import froc, froc_counts
from mtvlib.params import Params
from mtvlib.prepare import load_patient
from mtvlib.study import Study
from mtvlib.triage import TRIAGE, triage
from mtvlib.uncertainty import expected_dsc, lesion_auc, lesion_certainty, model_dsc, uncertainty

NO_MAPS = "no probabilities are known of these label maps"


def _with_ends(*names: str) -> tuple[str, ...]:
    return tuple(column for name in names for column in (name, f"{name}_low", f"{name}_high"))


# The files in results/ and their columns, after `partition`.
TABLES = {
    "uncertainty": ("patient", "expected_dsc", "model_dsc", "dsc_all"),
    "lesion_uncertainty": ("patient", "target", "lesion", "mean_probability", "models_agreeing", "models", "outcome"),
    "calibration": ("p_low", "p_high", "volume_ml", "probability", *_with_ends("observed")),
    "triage": ("order", "share", "n_corrected", *_with_ends(*TRIAGE)),
    "froc": ("threshold", *_with_ends("sensitivity", "false_positives")),
    "failures": FAILURE_COLUMNS,
}


@dataclass(frozen=True)
class Output:
    """What the network said of a patient beside the reference, on one grid; arrays (x, y, z)."""

    patient: str
    reference: np.ndarray  # classes, small ROIs removed
    prediction: np.ndarray  # classes, small ROIs removed
    probability: np.ndarray  # of a lesion, round(255 p) uint8
    suv: np.ndarray
    spacing_mm: tuple[float, float, float]
    votes: np.ndarray | None = None  # bit m: model m calls the voxel a lesion; None of one model
    models: int = 1


@dataclass(frozen=True)
class Counts:
    """What is kept of a patient."""

    models: int
    expected_dsc: float
    model_dsc: float | None  # None of one model
    calibration: np.ndarray
    froc: np.ndarray
    n_lesions: int
    lesions: list[dict[str, Any]]
    failures: list[dict[str, Any]]


def evaluate_trust(study: Study) -> dict[str, dict[str, Any]]:
    """The block `trust` of each partition that was evaluated; patients, lesions and curves go into `results/`.

    Reads the tables that the evaluation wrote there before, and writes `TABLES`, with their header alone where there is
    nothing. A partition whose predictions keep no probabilities has a reason instead. Raises `InputError` for a map
    that is damaged or not the one that was predicted.
    """
    patients, found = (read_table(study.results / f"{name}.csv") for name in ("patients", "lesions"))
    blocks: dict[str, dict[str, Any]] = {}
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for cohort, partition in SPLITS.items():
        part = patients[patients["cohort"] == cohort]
        if part.empty:
            continue
        index = _index(study, part)
        without = [patient for patient in part["patient"] if not index.get(patient, {}).get("probability_sha256")]
        if without:
            blocks[partition] = {"reason": f"{len(without)} of {len(part)} predictions keep no probabilities"}
            continue
        counts = {name: count(load_output(study, index[name]), study.params) for name in part["patient"]}
        blocks[partition], own = summarise(part, found, counts, study.params)
        for name, table in own.items():
            tables[name].append(table.assign(partition=partition))
    for name, columns in TABLES.items():
        # As objects: pandas warns of a partition in which a whole column has no value.
        there = [table.astype(object) for table in tables[name] if len(table)]
        written = pd.concat(there) if there else pd.DataFrame(columns=["partition", *columns])
        write_text(study.results / f"{name}.csv", written[["partition", *columns]].to_csv(index=False))
    return blocks


def with_trust(summary: Mapping[str, Any], blocks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The summary's partitions with their block as `trust`."""
    return {partition: summary[partition] | {"trust": block} for partition, block in blocks.items()}


def without_maps(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The blocks where label maps alone are known, such as those of another tool."""
    return {partition: {"reason": NO_MAPS} for partition in SPLITS.values() if summary[partition].get("n_patients")}


def read_tables(study: Study) -> dict[str, pd.DataFrame]:
    """The files of `TABLES` in a study's `results/`; empty where the study was evaluated without them."""
    paths = {name: study.results / f"{name}.csv" for name in TABLES}
    return {
        name: read_table(path) if path.exists() else pd.DataFrame(columns=["partition", *TABLES[name]])
        for name, path in paths.items()
    }


# --- one patient


def _index(study: Study, part: pd.DataFrame) -> dict[str, dict[str, str]]:
    """What is listed of each patient's prediction, by the network that did not learn from him or her."""
    main = part[part["cohort"] == "main"]
    files = {study.fold_folder(int(fold)) / "predicted.csv": rows["patient"] for fold, rows in main.groupby("fold")}
    files |= {study.predictions / "external.csv": part.loc[part["cohort"] == "external", "patient"]}
    listed: dict[str, dict[str, str]] = {}
    for file, patients in files.items():
        if len(patients):
            rows = pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")
            listed |= {row["patient"]: row for row in rows if row["patient"] in set(patients)}
    return listed


def load_output(study: Study, listed: Mapping[str, str]) -> Output:
    """A patient's maps from the study's folder; `listed`: the row of the index that `inference` wrote."""
    patient, params = listed["patient"], study.params
    prepared = load_patient(study.volumes, patient, params)
    if prepared.reference is None:
        raise InputError("has no reference", patient=patient, remedy="run step 1_cohort again.")
    maps = {}
    for name, path in study.prediction_paths(patient).items():
        digest = listed["sha256" if name == "labels" else f"{name}_sha256"]
        if digest:
            _check_file(patient, path, digest)
            image = volume.read_image(path, patient=patient)
            volume.check_same_grid(prepared.grid, image, patient=patient, file=path)
            maps[name] = volume.to_array(image)
    reference, prediction = (
        lesions.remove_small_rois(labels, prepared.grid.spacing_mm, params.min_roi_ml, params.connectivity)
        for labels in (prepared.reference, maps["labels"])
    )
    return Output(
        patient,
        reference,
        prediction,
        maps["probability"],
        prepared.suv,
        prepared.grid.spacing_mm,
        maps.get("votes"),
        int(listed["models"]),
    )


def _check_file(patient: str, file: Path, predicted: str) -> None:
    if not file.exists() or sha256(file) != predicted:
        raise InputError(
            "the map is missing, damaged or not the one that the network predicted",
            patient=patient,
            file=file,
            value=f"predicted sha256 {predicted[:12]}",
            remedy="delete it and run the study again.",
        )


def count(output: Output, params: Params) -> Counts:
    """What is kept of a patient."""
    maps, spacing_mm = (output.reference, output.probability), output.spacing_mm
    found = lesion_certainty(output.prediction, output.probability, output.votes, output.models, params.connectivity)
    return Counts(
        models=output.models,
        expected_dsc=expected_dsc(output.probability, output.prediction > 0),
        model_dsc=None if output.votes is None else model_dsc(output.votes, output.models),
        calibration=calibration_counts(*maps, spacing_mm),
        froc=froc_counts(*maps, spacing_mm, params),
        n_lesions=int(lesions.components(output.reference, params.connectivity).max(initial=0)),
        lesions=[{"patient": output.patient, **lesion, "models": output.models} for lesion in found],
        failures=find_failures(
            output.patient, output.reference, output.prediction, output.probability / FULL, output.suv, spacing_mm
        ),
    )


# --- a partition


def summarise(
    part: pd.DataFrame, found: pd.DataFrame, counts: Mapping[str, Counts], params: Params
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The block of a partition and its `TABLES` from its rows of patients.csv, lesions.csv and the patients' counts."""
    own = [counts[patient] for patient in part["patient"]]
    bootstrap = bootstrap_of(part, params)
    patients = part.assign(
        expected_dsc=[one.expected_dsc for one in own],
        model_dsc=pd.Series([one.model_dsc for one in own], part.index, dtype=float),
    )
    predicted = _lesion_table(own, found)
    models = min(one.models for one in own)
    block: dict[str, Any] = {"uncertainty": uncertainty(patients, models, bootstrap)}
    block["lesions"] = lesion_auc(part["patient"].tolist(), predicted, bootstrap)
    block["calibration"], bins = calibration(np.array([one.calibration for one in own]), bootstrap)
    block["triage"], orders = triage(patients, bootstrap)
    n_lesions = np.array([one.n_lesions for one in own])
    block["froc"], curve = froc(np.array([one.froc for one in own]), n_lesions, bootstrap)
    failed = pd.DataFrame([row for one in own for row in one.failures], columns=list(TABLES["failures"]))
    block["n_failures"] = {str(what): int(n) for what, n in failed["what"].value_counts().sort_index().items()}
    return block, {
        "uncertainty": patients[list(TABLES["uncertainty"])],
        "lesion_uncertainty": predicted,
        "calibration": bins,
        "triage": orders,
        "froc": curve,
        "failures": failed,
    }


def _lesion_table(counts: list[Counts], found: pd.DataFrame) -> pd.DataFrame:
    """The predicted lesions with what lesions.csv says became of them."""
    columns = [name for name in TABLES["lesion_uncertainty"] if name != "outcome"]
    rows = pd.DataFrame([row for one in counts for row in one.lesions], columns=columns).astype({"patient": str})
    own = found.loc[found["source"] == "cnn", ["patient", "target", "lesion", "outcome"]]
    return rows.merge(own, how="left", on=["patient", "target", "lesion"])
