"""What corrections changed, against masks drawn by hand: three patients, of whom two are corrected."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mtvlib import corrected, tables_corrections
from mtvlib.classes import NODES, PRIMARY
from mtvlib.corrected import CNN, CORRECTED, evaluate_corrections
from mtvlib.corrections import open_session
from mtvlib.evaluation import Case, evaluate
from mtvlib.params import Params
from mtvlib.prepare import Prepared
from mtvlib.study import Study
from mtvlib.typeset import markdown
from mtvlib.volume import Grid, to_image, write_image

MM = (5.0, 5.0, 5.0)
GRID = Grid((20, 20, 12), MM, (0.0, 0.0, 0.0))
PATIENTS = ("p1", "p2", "p3")
IN_PRIMARY, IN_SPURIOUS, IN_NODE = (5, 5, 5), (5, 15, 5), (14, 14, 6)


def reference() -> np.ndarray:
    """A primary of 27 voxels and a node of 27, 3.375 ml each."""
    labels = np.zeros(GRID.size, np.uint8)
    labels[4:7, 4:7, 4:7] = PRIMARY
    labels[13:16, 13:16, 5:8] = NODES
    return labels


def prediction() -> np.ndarray:
    """The primary as it is, called a node; the node is missed; a spurious node of 18 voxels."""
    labels = np.zeros(GRID.size, np.uint8)
    labels[4:7, 4:7, 4:7] = NODES
    labels[4:6, 14:17, 4:7] = NODES
    return labels


def uptake() -> np.ndarray:
    """The node is what lies above 0.39 (8 - 1) + 1 = 3.7."""
    suv = np.where(reference() > 0, np.float32(6), np.float32(1))
    suv[IN_NODE] = 8
    return suv


@pytest.fixture
def study(tmp_path, monkeypatch):
    made = Study(Params(name="s", studies=str(tmp_path), spacing_mm=5.0, bootstrap_resamples=200))
    made.begin()
    about = {"site": "Ash", "fold": 0, "split": "cross_validation", "reference": "r"}
    made.write_cohort(pd.DataFrame([{"patient": patient, "cohort": "main"} | about for patient in PATIENTS]))
    for patient in PATIENTS:
        write_image(to_image(prediction(), GRID), made.prediction_path(patient))
    prepared = Prepared("p", np.zeros((2, *GRID.size), np.float32), suv=uptake(), reference=reference(), grid=GRID)
    for module in ("corrections", "corrected"):
        monkeypatch.setattr(f"mtvlib.{module}.load_patient", lambda folder, patient, params: prepared)
    cases = (Case(patient, reference(), prediction(), uptake(), MM) for patient in PATIENTS)
    evaluate(cases, made.cohort, made.results, made.params)
    return made


def correct(study, patient, *, wholly=True):
    session = open_session(study, patient, "AB")
    session.delete(IN_SPURIOUS)
    if wholly:
        session.reclass(IN_PRIMARY)
        session.accept(IN_NODE, "nodes")
    session.save()


@pytest.fixture
def found(study):
    """p1 is put right in full, of p2 only the spurious node is deleted, p3 stays as it is."""
    correct(study, "p1")
    correct(study, "p2", wholly=False)
    return evaluate_corrections(study)


def difference(found, study, measure, target):
    table = corrected.differences(found, study.params)
    (row,) = table[(table["measure"] == measure) & (table["target"] == target)].to_dict("records")
    return row


def test_only_corrected_patients_count_and_both_tables_name_the_same(found):
    assert found.patients[CNN]["patient"].tolist() == ["p1", "p2"]
    assert found.patients[CORRECTED]["patient"].tolist() == ["p1", "p2"]
    assert (found.without_reference, found.outdated) == ((), ())


def test_dsc_before_and_after_and_their_paired_difference(found, study):
    """All: 2 x 27 / (54 + 45) before; after 1 in p1, and 2 x 27 / (54 + 27) in p2."""
    row = difference(found, study, "mean_dsc", "all")
    before, after = 54 / 99, (1 + 54 / 81) / 2
    assert (row["other"], row["method"], row["n_persons"]) == (CNN, CORRECTED, 2)
    assert row["other_value"] == pytest.approx(before)
    assert row["value"] == pytest.approx(after)
    assert row["difference"] == pytest.approx(after - before)
    assert row["difference_low"] == pytest.approx(54 / 81 - before)
    assert row["difference_high"] == pytest.approx(1 - before)


def test_the_error_of_the_burden_before_and_after(found, study):
    """Voxels of 0.125 ml: |45 - 54| before; after 0 in p1 and |27 - 54| in p2, where deleting made it larger."""
    row = difference(found, study, "mean_absolute_volume_error_ml", "all")
    assert row["other_value"] == pytest.approx(9 * 0.125)
    assert row["value"] == pytest.approx(27 * 0.125 / 2)


def test_lesions_found_and_confirmed_before_and_after(found, study):
    """Before: none of four found, none of four confirmed. After: both of p1 found; p2 keeps one of the wrong class."""
    block = corrected.detection(found, "main", study.params)["all"]
    assert (block["tpr_CNN"], block["ppv_CNN"]) == (0, 0)
    assert (block["tpr_CNN corrected"], block["tpr_difference"]) == (0.5, 0.5)
    assert block["ppv_CNN corrected"] == pytest.approx(2 / 3)
    assert block["tpr_CNN_ci95"][1] > 0.5  # Wilson's: two patients do not prove a share of 0
    assert block["tpr_difference_ci95"] == [0, 1]


def test_a_rate_of_nothing_has_a_reason(found, study):
    block = corrected.detection(found, "main", study.params)["primary"]
    assert block["ppv_CNN"] is None
    assert block["ppv_CNN_reason"] == "no lesion in one of the delineations"


def test_the_work_is_counted(found):
    done = corrected.work(found.log.assign(seconds=[60.0, 30.0]))
    assert (done.patients, done.editors, done.corrections, done.undone) == (2, 1, 2, 0)
    assert done.counts == {"deleted": 2, "reclassified": 1, "accepted": 1}
    assert (done.seconds, done.median_seconds, done.manual_shown) == (90, 45, 0)


def test_the_last_correction_of_a_patient_counts(found, study):
    correct_again = open_session(study, "p2", "CD")
    correct_again.reclass(IN_PRIMARY)
    correct_again.accept(IN_NODE, "nodes")
    correct_again.save()
    again = evaluate_corrections(study)
    assert again.patients[CORRECTED]["dsc_all"].tolist() == [1, 1]
    assert len(again.log) == 3


def test_a_correction_of_an_older_network_is_left_out_and_named(found, study):
    write_image(to_image(reference(), GRID), study.prediction_path("p2"))
    again = evaluate_corrections(study)
    assert (again.outdated, again.patients[CNN]["patient"].tolist()) == (("p2",), ["p1"])
    assert "1 patient (the network was trained anew since" in tables_corrections.left_out(again)


def test_a_patient_who_was_not_evaluated_is_left_out_and_named(study):
    write_image(to_image(prediction(), GRID), study.prediction_path("p9"))
    correct(study, "p9")
    found = evaluate_corrections(study)
    assert found.without_reference == ("p9",)
    assert tables_corrections.nothing_to_compare(found)
    assert "1 patient (no manual delineation" in tables_corrections.left_out(found)


# --- what readers see of it


def test_the_tables_show_both_and_the_difference(found, study):
    overlap = markdown(tables_corrections.overlap(found, study.params))
    assert "**Cross\\-validation (N = 2): Mean DSC**" in overlap.replace("Cross-", "Cross\\-")
    assert "| Primary + metastases | 0.545 | 0.833 | 0.288 (0.121–0.455) |" in overlap
    lesions = markdown(tables_corrections.lesions(found, study.params))
    assert "| 50.0 (0.0–100.0) |" in lesions
    assert "no estimate for the others" in lesions


def test_the_work_in_words_claims_no_time_saved(found):
    text = tables_corrections.work_text(found.log.assign(seconds=[90.0, 30.0]))
    assert text.startswith("2 patients corrected by 4 edits (2.0 a patient) in 2.0 minutes of editing, 60 seconds for")
    table = markdown(tables_corrections.work(found))
    assert "| Regions deleted | 2 |" in table
    assert "| Missed lesions accepted | 1 |" in table
    seen = tables_corrections.work(dataclasses.replace(found, log=found.log.assign(manual_shown=[True, False])))
    assert "| Corrections with the manual delineation shown | 1 |" in markdown(seen)


def test_nobody_who_corrected_is_named_in_the_report(found):
    assert "AB" not in tables_corrections.work_text(found.log) + markdown(tables_corrections.work(found))
