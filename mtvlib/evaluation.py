"""From masks to results: patients.csv, lesions.csv, summary.json (paper, "Network evaluation" to "Survival analysis").

Patients pass one at a time; each leaves one row, its lesions, and their number under other definitions of a lesion. The
summary is a function of these three tables alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import SimpleITK as sitk

from mtvlib import (
    adjustment,
    comparators,
    dictionary,
    lesion_choices,
    lesions,
    matching,
    metrics,
    pet,
    prognosis,
    surface,
    survival,
    trust,
    volume,
)
from mtvlib.adjustment import SURVIVAL_COLUMNS
from mtvlib.agreement import agreement, outliers
from mtvlib.classes import LESION_CLASSES, NODES, TARGETS
from mtvlib.cohort import SPLITS, bootstrap_of, labelled_points_mm, persons_of, read_cohort
from mtvlib.errors import InputError
from mtvlib.files import read_table, sha256, write_json, write_text
from mtvlib.intervals import Bootstrap
from mtvlib.params import Params
from mtvlib.prepare import load_patient
from mtvlib.quantities import quantities
from mtvlib.study import Study
from mtvlib.subgroups import subgroups

INTERVALS = (
    "95 %: percentiles of a bootstrap over patients (over persons, each with all rows, where several rows are scans of "
    "one person; over sites, and then over their patients, where a partition has three sites or more); Wilson for "
    "shares of patients and where all patients are alike; Wald for hazard ratios; infinitesimal jackknife for "
    "`concordance`, bootstrap in `discrimination`. Wilson, Wald, jackknife and all tests take rows as independent: "
    "with several rows of one person these intervals are too narrow and the p values too small"
)
_DO_AGAIN = "delete it and run the study again."
Missing = Literal["error", "empty"]  # what a missing prediction is
Progress = Callable[[int, int], None]
CLINICAL_COLUMNS = ("age", "sex", "tumour_site", "stage", "hpv")
LESION_COLUMNS = (
    *("patient", "source", "target", "lesion", "volume_ml", "coverage", "outcome"),
    *("suv_max", "suv_mean", "suv_peak", "tlg", "touches_border"),
    *("matched_lesion", "iou", "asphericity", "centroid_voxel"),
)


@dataclass(frozen=True)
class Case:
    """One patient's masks on one grid: label maps uint8 (x, y, z), SUV (x, y, z) or None, voxel sides in mm."""

    patient: str
    reference: np.ndarray
    prediction: np.ndarray
    suv: np.ndarray | None
    spacing_mm: tuple[float, float, float]


def evaluate(cases: Iterable[Case], cohort: pd.DataFrame, out: str | Path, params: Params) -> dict[str, Any]:
    """Evaluate the cases, write what is found into `out`, and return the summary.

    `patients.csv`, `lesions.csv` and `lesion_choices.csv` are the tables from which `summary.json` is computed;
    `dictionary.csv` tells what their columns mean.

    `cohort` holds at least patient, cohort and site of every case; fold, person and the survival columns are used if
    there.
    The cases may come from a generator, so that one patient is in memory at a time. Raises `InputError` for masks of
    different shapes, unknown classes, a patient that comes twice or is not in the cohort, or no case at all.
    """
    rows, found, choices, known = {}, {}, {}, set(cohort["patient"])
    for case in cases:
        if case.patient not in known:
            raise InputError("is not in the cohort", patient=case.patient, remedy="add a row to cohort.csv.")
        if case.patient in rows:
            raise InputError("comes twice", patient=case.patient)
        rows[case.patient], found[case.patient] = evaluate_case(case, params)
        choices[case.patient] = choice_counts(case, params)
    if not rows:
        raise InputError("there is no patient to evaluate", remedy="give references, and do not exclude everybody.")
    order = [patient for patient in cohort["patient"] if patient in rows]  # whatever the order of the cases
    lesion_rows = [{"patient": patient, **lesion} for patient in order for lesion in found[patient]]
    patients = _patient_table([rows[patient] for patient in order], cohort, params)
    lesion_table = _lesion_table(lesion_rows)
    choice_table = lesion_choices.choice_table(order, [choices[patient] for patient in order], _choices(params))
    summary = summarise(patients, lesion_table, choice_table, params)
    out = Path(out)
    write_text(out / "patients.csv", patients.to_csv(index=False))
    write_text(out / "lesions.csv", lesion_table.to_csv(index=False))
    write_text(out / "lesion_choices.csv", choice_table.to_csv(index=False))
    write_json(out / "summary.json", summary)
    dictionary.write(out)
    return summary


# --- one patient


def evaluate_case(case: Case, params: Params) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A patient's row of patients.csv (without what the cohort knows) and lesions; small ROIs count in neither mask."""
    _check_case(case)
    voxel_ml = pet.voxel_ml(case.spacing_mm)
    masks = {"man": case.reference.astype(np.uint8), "cnn": case.prediction.astype(np.uint8)}
    kept = {
        source: lesions.remove_small_rois(mask, case.spacing_mm, params.min_roi_ml, params.connectivity)
        for source, mask in masks.items()
    }
    found = lesions.find_lesions(
        kept["man"],
        kept["cnn"],
        case.suv,
        case.spacing_mm,
        coverage=params.lesion_coverage,
        connectivity=params.connectivity,
    )
    box = lesions.bounding_box(kept["man"] | kept["cnn"])
    inside = kept["man"][box], kept["cnn"][box]
    table = metrics.contingency(*inside)
    own = {source: [lesion for lesion in found if lesion["source"] == source] for source in kept}
    removed = {
        f"removed_{source}_ml": int(np.count_nonzero(masks[source] != kept[source])) * voxel_ml for source in kept
    }
    row = {"patient": case.patient} | metrics.dsc_and_volumes(table, voxel_ml) | _uptake(own, case.suv is not None)
    row |= _counts(table, voxel_ml) | removed | lesions.spread(own, case.spacing_mm)
    row |= surface.boundaries(*inside, case.spacing_mm)
    return row | lesions.false_volumes(*inside, case.spacing_mm, params.connectivity), found


def choice_counts(case: Case, params: Params) -> np.ndarray:
    """A patient's lesions by outcome under each choice of `_choices`: see `lesion_choices.counts_by_choice`."""
    masks = case.reference.astype(np.uint8), case.prediction.astype(np.uint8)
    return lesion_choices.counts_by_choice(*masks, case.spacing_mm, _choices(params))


def _choices(params: Params) -> list[lesion_choices.Choice]:
    return lesion_choices.choices(params.connectivity, params.min_roi_ml, params.lesion_coverage)


def _check_case(case: Case) -> None:
    shapes = {"reference": case.reference.shape, "prediction": case.prediction.shape}
    if case.suv is not None:
        shapes["SUV"] = case.suv.shape
    if len(set(shapes.values())) > 1 or len(case.reference.shape) != 3:
        raise InputError("the volumes differ in shape or are not 3D", patient=case.patient, value=shapes)
    for name, labels in (("reference", case.reference), ("prediction", case.prediction)):
        if labels.dtype.kind not in "ui" or labels.min(initial=0) < 0 or labels.max(initial=0) > NODES:
            value = f"{labels.dtype}, {labels.min(initial=0)} to {labels.max(initial=0)}"
            raise InputError(f"the {name} must hold the integer classes 0, 1, 2", patient=case.patient, value=value)


def _counts(table: np.ndarray, voxel_ml: float) -> dict[str, Any]:
    counts = metrics.classification_counts(table).tolist()
    named = zip(metrics.CLASSIFICATION_COUNTS, counts, strict=True)
    return {"voxel_ml": voxel_ml} | {f"{name}_voxels": count for name, count in named}


def _uptake(own: dict[str, list[dict[str, Any]]], with_suv: bool) -> dict[str, Any]:
    """Uptake and number of a patient's lesions, together and by class, in reference (man) and prediction (cnn)."""
    row = {source: _uptake_of(found, with_suv) | _by_class(found, with_suv) for source, found in own.items()}
    return {f"{name}_{source}": row[source][name] for name in row["man"] for source in own}


def _uptake_of(found: list[dict[str, Any]], with_suv: bool) -> dict[str, Any]:
    tlg = sum(lesion["tlg"] for lesion in found) if with_suv else None
    hot = found if with_suv else []
    return {
        "tlg": tlg,
        "suvmax": max((lesion["suv_max"] for lesion in hot), default=None),
        "suvmean": tlg / sum(lesion["volume_ml"] for lesion in hot) if tlg is not None and hot else None,
        "suvpeak": max((lesion["suv_peak"] for lesion in hot), default=None),
    }


def _by_class(found: list[dict[str, Any]], with_suv: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for target in LESION_CLASSES:
        own = [lesion for lesion in found if lesion["target"] == target]
        row[f"n_{target}"] = len(own)
        row |= {f"{name}_{target}": value for name, value in _uptake_of(own, with_suv).items()}
    return row | {"touches_border": any(lesion["touches_border"] for lesion in found)}


# --- the tables


def _lesion_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=LESION_COLUMNS)
    table["matched_lesion"] = table["matched_lesion"].astype("Int64")  # whole numbers beside empty cells
    for number, axis in enumerate("xyz"):
        table[f"centroid_{axis}_voxel"] = table["centroid_voxel"].str[number]
    return table.drop(columns="centroid_voxel")


def _patient_table(rows: list[dict[str, Any]], cohort: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The patients' rows between what the cohort knows of them, with outliers and risk groups."""
    first = [name for name in ("patient", "cohort", "site", "fold") if name in cohort]
    last = [name for name in ("person", *SURVIVAL_COLUMNS, *CLINICAL_COLUMNS) if name in cohort]
    table = cohort[first].merge(pd.DataFrame(rows), on="patient").merge(cohort[["patient", *last]], on="patient")
    if "fold" not in table:
        table.insert(3, "fold", None)
    table["ttb_outlier"] = False
    for _, part in table.groupby("cohort"):
        left_out = outliers(part["ttb_man_ml"].to_numpy(), part["ttb_cnn_ml"].to_numpy(), params.outlier_percentile)
        table.loc[part.index, "ttb_outlier"] = left_out
    table["survival_included"] = survival_included(table, params.min_followup_months)
    cutoff_ml = survival_cutoff_ml(table)
    for source in ("man", "cnn"):
        table[f"risk_{source}"] = _risk(table, source, cutoff_ml)
    return table


def _risk(table: pd.DataFrame, source: str, cutoff_ml: float | None) -> pd.Series | None:
    """`high` or `low` of the patients in the survival analysis, else missing."""
    if cutoff_ml is None:
        return None
    group = (table[f"ttb_{source}_ml"] > cutoff_ml).map({True: "high", False: "low"})
    return group.where(table["survival_included"])


def survival_included(patients: pd.DataFrame, min_followup_months: float) -> pd.Series:
    """Patients that count in the survival analysis: eligible, followed up for long enough, outcome known."""
    if any(name not in patients for name in SURVIVAL_COLUMNS):
        return pd.Series(False, patients.index)
    eligible = pd.to_numeric(patients["survival_eligible"]) == 1
    followed_up = pd.to_numeric(patients["followup_months"]) >= min_followup_months
    return eligible & followed_up & patients["death"].notna()


def survival_cutoff_ml(patients: pd.DataFrame) -> float | None:
    """Median reference TTB of the included patients of the main cohort; None if there are none."""
    burdens = patients.loc[patients["survival_included"] & (patients["cohort"] == "main"), "ttb_man_ml"]
    return float(burdens.median()) if len(burdens) else None


# --- the summary


def summarise(
    patients: pd.DataFrame, lesion_table: pd.DataFrame, choice_table: pd.DataFrame, params: Params
) -> dict[str, Any]:
    """The content of summary.json from the three tables."""
    cutoff_ml = survival_cutoff_ml(patients)
    summary: dict[str, Any] = {"intervals": INTERVALS, "parameters": _parameters(params)}
    for cohort, partition in SPLITS.items():
        part = patients[patients["cohort"] == cohort]
        summary[partition] = (
            _summarise_partition(part, patients, lesion_table, choice_table, cutoff_ml, params)
            if len(part)
            else {"n_patients": 0, "reason": f"no patient of the {cohort} cohort was evaluated"}
        )
    return summary


def _parameters(params: Params) -> dict[str, Any]:
    names = ("min_roi_ml", "connectivity", "lesion_coverage", "outlier_percentile", "min_followup_months")
    return {name: getattr(params, name) for name in (*names, "bootstrap_resamples", "seed")}


def _summarise_partition(
    part: pd.DataFrame,
    patients: pd.DataFrame,
    lesion_table: pd.DataFrame,
    choice_table: pd.DataFrame,
    cutoff_ml: float | None,
    params: Params,
) -> dict[str, Any]:
    persons = persons_of(part)
    bootstrap = bootstrap_of(part, params)
    return {
        "n_patients": len(part),
        "n_persons": len(set(persons)),
        "delineation": {target: _delineation(part, target, bootstrap) for target in TARGETS},
        "ttb": agreement(part["ttb_man_ml"], part["ttb_cnn_ml"], params.outlier_percentile, bootstrap),
        "quantities": quantities(part, bootstrap),
        "classification": _classification(part, bootstrap),
        "lesions": _lesions(part, lesion_table, bootstrap),
        "lesion_choices": lesion_choices.summarise_choices(part["patient"], choice_table, bootstrap),
        "survival": _survival(part, patients, cutoff_ml, params),
        "subgroups": subgroups(part, params),
    }


def _delineation(part: pd.DataFrame, target: str, bootstrap: Bootstrap) -> dict[str, Any]:
    names = ("ttb_man_ml", "ttb_cnn_ml") if target == "all" else (f"mtv_{target}_man_ml", f"mtv_{target}_cnn_ml")
    man, cnn = (part[name].to_numpy() for name in names)
    both, absent = part[f"both_{target}_ml"].to_numpy(), metrics.NO_PATIENT_HAS[target]
    return (
        metrics.delineation(man, cnn, both, bootstrap, absent)
        | surface.summarise_boundary(man, cnn, part[surface.columns(target)].to_numpy(float), bootstrap, absent)
        | lesions.mean_false_volumes(part[[f"fpv_{target}_ml", f"fnv_{target}_ml"]].to_numpy(float), bootstrap)
    )


def _classification(part: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    voxels = part[[f"{name}_voxels" for name in metrics.CLASSIFICATION_COUNTS]].to_numpy()
    return metrics.classification(voxels * part[["voxel_ml"]].to_numpy(), int(voxels.sum()), bootstrap)


def _lesions(part: pd.DataFrame, lesion_table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """Table 3, then one-to-one pairs; as in the paper, "Primary + metastases" is the sum of both classes."""
    counts = {target: lesion_counts(part["patient"], lesion_table, target) for target in LESION_CLASSES}
    counts["all"] = counts["primary"] + counts["nodes"]
    return {
        target: lesions.detection(counts[target], bootstrap)
        | matching.matching(matching.matching_counts(part["patient"], lesion_table, target), bootstrap)
        | matching.sensitivities(part["patient"], lesion_table, target, bootstrap)
        for target in TARGETS
    }


def lesion_counts(patients: pd.Series, lesion_table: pd.DataFrame, target: str) -> np.ndarray:
    """Each patient's lesions of a class by outcome, (n, 4) int, in the order of `lesions.COUNTS`."""
    own = lesion_table[lesion_table["target"] == target]
    columns = []
    for source, outcome in (("man", "TP"), ("cnn", "TP"), ("man", "FN"), ("cnn", "FP")):
        owners = own.loc[(own["source"] == source) & (own["outcome"] == outcome), "patient"]
        columns.append(owners.value_counts().reindex(patients, fill_value=0).to_numpy())
    return np.column_stack(columns)


def _survival(part: pd.DataFrame, patients: pd.DataFrame, cutoff_ml: float | None, params: Params) -> dict[str, Any]:
    """The survival block of a partition; `patients` holds the main cohort, to whom the predicting model is fitted."""
    included = part[part["survival_included"]]
    reason = _why_no_survival(part, included, cutoff_ml, params)
    block: dict[str, Any] = {"n": len(included), "events": None, "cutoff_ml": cutoff_ml}
    block["missing"] = adjustment.missing(part, params.min_followup_months)
    if cutoff_ml is None or reason:
        return block | survival.no_comparison(reason) | prognosis.no_analysis(reason)
    months, death, man, cnn = (
        included[name].to_numpy(float) for name in ("followup_months", "death", "ttb_man_ml", "ttb_cnn_ml")
    )
    block["events"] = int(death.sum())
    block |= survival.comparison(included["patient"].tolist(), months, death, man, cnn, cutoff_ml)
    main = patients[patients["survival_included"] & (patients["cohort"] == "main")]
    return block | prognosis.analysis(included, main, cutoff_ml, params, bootstrap_of(included, params))


def _why_no_survival(part: pd.DataFrame, included: pd.DataFrame, cutoff_ml: float | None, params: Params) -> str:
    missing = [name for name in SURVIVAL_COLUMNS if name not in part]
    if missing:
        return f"the cohort has no column {', '.join(missing)}"
    if included.empty:
        months = f"{params.min_followup_months:g} months of follow-up"
        return f"no patient is eligible with at least {months} and a known outcome"
    if cutoff_ml is None:
        return "no cutoff: it is the median burden of the main cohort's included patients, and there are none"
    return ""


# --- where the masks come from


def evaluate_study(study: Study) -> dict[str, Any]:
    """Evaluate a study's predictions on the study's grid (as the paper does) and write into its folder `results/`.

    Patients without a reference are left out. Raises `InputError` that lists every missing prediction, or names one
    that is damaged or not what the network of its fold predicted: a map put in its place would be taken for it.
    """
    table = study.cohort[study.cohort["split"].isin(SPLITS.values()) & study.cohort["reference"].notna()]
    label_files(table, study.predictions)
    predicted = _predicted(study, table)
    cases = (_study_case(study, patient, predicted[patient]) for patient in table["patient"])
    summary = evaluate(cases, table, study.results, study.params)
    summary = add_to_summary(study.results, summary, _beside_thresholds(study, table, summary))
    summary = add_to_summary(study.results, summary, trust.with_trust(summary, trust.evaluate_trust(study)))
    dictionary.write(study.results)
    return summary


def _beside_thresholds(study: Study, table: pd.DataFrame, summary: dict[str, Any]) -> dict[str, Any]:
    """The partitions' blocks with `comparators`, what thresholds make of the same volumes; writes comparators.csv."""
    rows = (row for patient in table["patient"] for row in _comparator_rows(study, patient))
    found = comparators.table(rows, table)
    write_text(study.results / "comparators.csv", found.to_csv(index=False))
    blocks = comparators.summary_blocks(found, read_table(study.results / "patients.csv"), study.params)
    return {partition: summary[partition] | {"comparators": block} for partition, block in blocks.items()}


def _comparator_rows(study: Study, patient: str) -> list[dict[str, Any]]:
    prepared = load_patient(study.volumes, patient, study.params)
    assert prepared.reference is not None  # `_study_case` has seen to it
    return comparators.patient_rows(patient, prepared.suv, prepared.reference, prepared.grid.spacing_mm, study.params)


def _predicted(study: Study, table: pd.DataFrame) -> dict[str, str | None]:
    """sha256 of the label map that was predicted of each patient, by the network that did not learn from him or her."""
    internal = table["split"] == SPLITS["main"]
    files = {fold: study.fold_folder(int(fold)) / "predicted.csv" for fold in table.loc[internal, "fold"].unique()}
    sums = {fold: _sha256_of(file) for fold, file in files.items()}
    external = _sha256_of(study.predictions / "external.csv") if not internal.all() else {}
    rows = zip(table["patient"], table["fold"], internal, strict=True)
    return {patient: (sums[fold] if own else external).get(patient) for patient, fold, own in rows}


def _sha256_of(index: Path) -> dict[str, str]:
    """Patient and sha256 of an index that `inference.predict_patients` wrote."""
    if not index.exists():
        raise InputError("the list of what was predicted is missing", file=index, remedy="run the study again.")
    try:
        table = pd.read_csv(index, dtype=str, keep_default_na=False)
        return dict(zip(table["patient"], table["sha256"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"is no list of predictions ({what})", file=index, remedy=_DO_AGAIN) from None


def _study_case(study: Study, patient: str, predicted: str | None) -> Case:
    prepared = load_patient(study.volumes, patient, study.params)
    file = study.prediction_path(patient)
    _check_prediction(patient, file, predicted)
    prediction = volume.read_labels(file, patient=patient)
    volume.check_same_grid(prepared.grid, prediction, patient=patient, file=file)
    if prepared.reference is None:
        raise InputError("has no reference", patient=patient, remedy="run step 1_cohort again.")
    return Case(patient, prepared.reference, volume.to_array(prediction), prepared.suv, prepared.grid.spacing_mm)


def _check_prediction(patient: str, file: Path, predicted: str | None) -> None:
    found = sha256(file)
    if found != predicted:
        value = f"sha256 {found[:12]}, {f'predicted {predicted[:12]}' if predicted else 'no such prediction is listed'}"
        problem = "the label map is damaged or not the one that the network predicted"
        raise InputError(problem, patient=patient, file=file, value=value, remedy=_DO_AGAIN)


def evaluate_cohort(
    cohort: str | Path,
    predictions: str | Path,
    out: str | Path,
    params: Params,
    *,
    resample: bool = False,
    missing: Missing = "error",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Evaluate label maps `predictions/<patient>.nii.gz` of any tool against the references of a cohort.csv.

    Patients that are excluded or have no reference are left out; PET is resampled onto the reference's grid. So is a
    prediction on another grid with `resample` (`volume.resample_labels`), else it is an error. A missing prediction is
    an error, or by `missing` an empty mask. The summary lists `missing_predictions` and `resampled_predictions`, these
    with their volume before and after. Raises `InputError` that lists every missing prediction, or names the first
    unfit one.
    """
    table = evaluable(cohort)
    files, absent = label_files(table, predictions, missing=missing)
    changes: list[dict[str, Any] | None] = []

    def cases() -> Iterator[Case]:
        for number, (_, row) in enumerate(table.iterrows(), start=1):
            case, change = _cohort_case(row, files[row["patient"]], resample=resample)
            changes.append(change)
            yield case
            progress(number, len(table))

    summary = evaluate(cases(), table, out, params)
    summary |= trust.with_trust(summary, trust.without_maps(summary))
    resampled = [change for change in changes if change]
    return add_to_summary(out, summary, {"missing_predictions": absent, "resampled_predictions": resampled})


def evaluable(cohort: str | Path) -> pd.DataFrame:
    """The rows of a cohort.csv that can be evaluated: not excluded, and with a reference."""
    table = read_cohort(cohort)
    return table[(table["reference"] != "") & (table["exclusion"] == "")]


def reference_and_suv(row: pd.Series) -> tuple[volume.Grid, np.ndarray, np.ndarray]:
    """A patient's reference, and the PET resampled onto its grid: grid, labels and SUV (x, y, z)."""
    reference = volume.read_labels(row["reference"], patient=row["patient"])
    grid = volume.Grid.of(reference)
    suv = volume.resample(volume.read_scan(row["pet"], patient=row["patient"]), grid, outside=0.0)
    return grid, volume.to_array(reference), volume.to_array(suv)


def _cohort_case(row: pd.Series, file: Path, *, resample: bool) -> tuple[Case, dict[str, Any] | None]:
    """A patient's case, empty without a file, and what resampling did to the prediction: None if it was not needed."""
    grid, reference, suv = reference_and_suv(row)
    prediction, change = np.zeros_like(reference), None
    if file.exists():
        labels = volume.read_labels(file, patient=row["patient"])
        if resample and not volume.same_grid(grid, labels):
            before_ml = _labelled_ml(labels)
            labels = _onto(grid, labels, row["patient"], file)
            change = {"patient": row["patient"], "before_ml": before_ml, "after_ml": _labelled_ml(labels)}
        _check_grid(grid, labels, row["patient"], file)
        prediction = volume.to_array(labels)
    return Case(row["patient"], reference, prediction, suv, grid.spacing_mm), change


def _labelled_ml(labels: sitk.Image) -> float:
    return int(np.count_nonzero(sitk.GetArrayViewFromImage(labels))) * volume.Grid.of(labels).voxel_ml


def _onto(grid: volume.Grid, labels: sitk.Image, patient: str, file: Path) -> sitk.Image:
    """A label map on the reference's grid; one that lies wholly outside of it belongs to another image."""
    points = labelled_points_mm(labels)
    if len(points) and not grid.contains(points).any():
        raise InputError(
            f"none of its labels lies within the reference's field, {grid}",
            patient=patient,
            file=file,
            value=volume.Grid.of(labels),
            remedy="give the file that belongs here: resampling moves no image.",
        )
    return volume.resample_labels(labels, grid)


def _check_grid(grid: volume.Grid, labels: sitk.Image, patient: str, file: Path) -> None:
    try:
        volume.check_same_grid(grid, labels, patient=patient, file=file)
    except InputError as error:
        remedy = "give the file that belongs here, or `--resample` to bring label maps onto the reference's grid."
        raise InputError(error.problem, patient=patient, file=file, value=error.value, remedy=remedy) from None


def label_files(
    table: pd.DataFrame, folder: str | Path, what: str = "prediction", *, missing: Missing = "error"
) -> tuple[dict[str, Path], list[str]]:
    """The file of each patient's label map in a folder, and the patients that have none.

    Raises `InputError` that lists these, unless `missing` is `empty`. A folder that is none, or holds nobody's, is not
    the one that was meant, and always an error.
    """
    files = {patient: Path(folder) / f"{patient}.nii.gz" for patient in table["patient"]}
    absent = [patient for patient, file in files.items() if not file.exists()]
    if files and not Path(folder).is_dir():
        raise InputError("there is no such folder", file=folder, remedy=f"name the folder of the {what}s.")
    if absent and (missing == "error" or len(absent) == len(files)):
        raise InputError(
            f"{len(absent)} of {len(files)} patients have no {what}: {', '.join(absent)}",
            file=folder,
            remedy="add PATIENT.nii.gz for each (an empty mask where nothing was found; `mtv evaluate --missing empty` "
            "counts predictions so), or exclude the patient in the column exclusion of cohort.csv.",
        )
    return files, absent


def add_to_summary(out: str | Path, summary: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The summary with more keys, written again."""
    summary = summary | more
    write_json(Path(out) / "summary.json", summary)
    return summary
