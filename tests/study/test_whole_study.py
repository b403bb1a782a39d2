"""The whole graph on a tiny cohort: what a run leaves, what is redone, what a kill costs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mtvlib.corrections import open_session
from mtvlib.study import Study
from mtvlib.volume import read_labels, to_array, to_image, write_image
from tests.conftest import tiny_images, tiny_row, write_table

PARAMS = {
    "name": "tiny",
    "cohort": "cohort/cohort.csv",
    "spacing_mm": 4.0,
    "crop_shape": [16, 16],
    "patch_shape": [16, 16, 16],
    "patch_stride": 4,
    "pet_normalization": "window",
    "pet_window_suv": [0.0, 10.0],
    "filters": [8, 8, 8],
    "units_per_level": 1,
    "attention_heads": 2,
    "folds": 2,
    "validation_fraction": 0.25,
    "epochs": 12,
    "steps_per_epoch": 20,
    "batch_size": 2,
    "flip": True,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "threads": 1,
    "bootstrap_resamples": 100,
}
STEPS = ["1_cohort", "2_train_fold_0", "2_train_fold_1", "3_external_testing", "evaluation", "manifest"]
CHAPTERS = ["4_delineation", "5_classification", "6_lesions", "7_survival", "8_cases", "9_trust", "10_corrections"]


def write_inputs(folder: Path) -> None:
    (folder / "cohort").mkdir(parents=True)
    rows = [
        tiny_row(
            folder / "cohort",
            f"{cohort[0]}{number:02}",
            seed=number + 100 * (cohort == "external"),
            cohort=cohort,
            site=f"{cohort}_{number % 2}",
            survival_eligible=1,
            followup_months=7 + 3 * number,
            death=int(number in (0, 1, 3, 5)),
            synthetic=1,
            exclusion="",
        )
        for cohort, size in (("main", 8), ("external", 2))
        for number in range(size)
    ]
    for number, row in enumerate(rows):
        grow(folder / "cohort", row, slices=1 + (5 * number) % 8, seed=number)
    rows[7]["exclusion"] = "metal artefacts"
    write_table(folder / "cohort" / "cohort.csv", rows)
    set_params(folder)


def grow(cohort: Path, row: dict, slices: int, seed: int) -> None:
    """Make a patient's primary so many slices high, so that burdens differ and risk groups can be told apart."""
    images = tiny_images(seed)
    (pet, grid), (reference, _) = images["pet"], images["reference"]
    pet[3:7, 3:7, 2:7], reference[3:7, 3:7, 2:7] = 0.7, 0
    pet[3:7, 3:7, 2 : 2 + slices], reference[3:7, 3:7, 2 : 2 + slices] = 9.0, 1
    write_image(to_image(pet, grid), cohort / row["pet"])
    write_image(to_image(reference, grid), cohort / row["reference"])


def set_params(folder: Path, **changes) -> None:
    (folder / "tiny.yml").write_text(yaml.safe_dump(PARAMS | changes))


def mtv(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mtvlib.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def run(folder: Path) -> list[str]:
    """Run the study; returns the steps that were done, in order."""
    result = mtv(folder, "run", "tiny.yml", "--cores", "2")
    assert result.returncode == 0, result.stderr + result.stdout
    return [line.split()[4].rstrip(":") for line in result.stdout.splitlines() if line.endswith(": started")]


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often a study was interrupted."""
    study = folder / "studies" / "tiny"
    places = ("folds/*/weights.safetensors", "predictions/**/*.nii.gz", "results/*")
    files = [path for place in places for path in study.glob(place)]
    return {str(path.relative_to(study)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(finished_study, tmp_path_factory) -> Path:
    return Path(shutil.copytree(finished_study, tmp_path_factory.mktemp("study") / "moved"))


@pytest.fixture
def study(finished) -> Study:
    return Study.open(finished / "studies" / "tiny")


def test_everything_a_study_promises_is_there(study):
    for step in STEPS + CHAPTERS:
        assert (study.logs / f"{step}.json").exists(), step
    columns = pd.read_csv(study.results / "dictionary.csv", keep_default_na=False)
    assert set(columns["file"]) >= {"patients.csv", "lesions.csv", "comparators.csv", "uncertainty.csv", "failures.csv"}
    assert columns.loc[columns["meaning"] == "", ["file", "column"]].to_numpy().tolist() == []
    notebooks = {path.stem for path in (study.folder / "notebooks").glob("*.ipynb")}
    assert notebooks == {step for step in STEPS + CHAPTERS if step[0].isdigit()}
    for fold in (0, 1):
        for name in ("weights.safetensors", "model.json", "history.csv"):
            assert (study.fold_folder(fold) / name).exists()
    assert list(study.history(0).columns)[:4] == ["epoch", "train_loss", "validation_soft_dsc", "seconds"]


def test_each_patient_is_tested_once_and_the_excluded_one_never(study):
    tested = study.cohort[study.cohort["split"] == "cross_validation"]
    assert len(tested) == 7
    assert sorted(study.patients["patient"]) == sorted(study.cohort.loc[study.cohort["exclusion"].isna(), "patient"])
    for fold in (0, 1):
        predicted = pd.read_csv(study.fold_folder(fold) / "predicted.csv")["patient"]
        assert sorted(predicted) == sorted(tested.loc[tested["fold"] == fold, "patient"])
    assert not study.prediction_path("m07").exists()


def test_the_summary_has_the_papers_keys(study):
    def keys(value):
        return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else None

    def missing(paper, ours, path=""):
        if isinstance(paper, dict):
            return [m for key in paper for m in missing(paper[key], (ours or {}).get(key, "none"), f"{path}/{key}")]
        return [path] if ours == "none" else []

    for partition in ("cross_validation", "external_testing"):
        assert missing(study.paper[partition], study.summary[partition]) == []
    assert study.summary["cross_validation"]["n_patients"] == 7
    assert study.summary["external_testing"]["n_patients"] == 2


def test_the_manifest_names_what_the_study_was_made_from(study):
    manifest = json.loads((study.folder / "manifest.json").read_text())
    assert manifest["versions"]["torch"].startswith("2.")
    assert len(manifest["inputs"]["images"]) == 9
    assert set(manifest["weights"]) == {"folds/0", "folds/1"}
    assert manifest["steps"]["2_train_fold_0"]["seconds"] > 0
    assert manifest["params"]["values"]["spacing_mm"] == 4.0


def test_nothing_names_this_machine_or_its_user(study, finished):
    for path in [
        *(study.folder / "notebooks").glob("*.ipynb"),
        *study.results.glob("*"),
        study.folder / "manifest.json",
        study.folder / "cohort.csv",
    ]:
        text = path.read_text()
        for secret in (str(finished), str(Path.home()) + "/", str(Path(__file__).parents[2])):
            assert secret not in text, path.name


def test_notebooks_carry_no_error_and_say_that_patients_are_synthetic(study):
    for path in (study.folder / "notebooks").glob("[1-9]*.ipynb"):
        text = path.read_text()
        assert '"output_type": "error"' not in text
        assert "Synthetic patients" in text, path.name


def test_a_finished_study_is_not_done_again(finished):
    before = outcome(finished)
    assert run(finished) == []
    assert outcome(finished) == before


def test_a_touched_file_is_no_change(finished):
    os.utime(finished / "studies" / "tiny" / "volumes" / "prepared.csv")
    assert run(finished) == []


def test_a_second_run_at_the_same_time_is_refused(finished):
    import fcntl

    with open(finished / "studies" / "tiny" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = mtv(finished, "run", "tiny.yml")
    assert result.returncode == 2
    assert "another run is at work" in result.stderr


@pytest.mark.parametrize("log", ["2_train_fold_0.log"])
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(finished, tmp_path, log):
    write_inputs(tmp_path)
    command = [sys.executable, "-m", "mtvlib.cli", "run", "tiny.yml", "--cores", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, deadline = tmp_path / "studies" / "tiny" / "logs" / log, time.monotonic() + 120
    while not (path.exists() and "epoch 1 of" in path.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # its workers notice and end
    assert "1_cohort" not in run(tmp_path)
    assert outcome(tmp_path) == outcome(finished)


def test_the_study_learned_something(study):
    """So that what the chapters show, and what a kill must not change, are not empty label maps."""
    for partition in ("cross_validation", "external_testing"):
        assert study.summary[partition]["delineation"]["all"]["cohort_dsc"] > 0.3, partition
        assert study.summary[partition]["lesions"]["all"]["tp_cnn"] > 0
    for patient in study.patients["patient"]:
        assert to_array(read_labels(study.prediction_path(patient))).any(), patient
    assert study.patients["ttb_cnn_ml"].nunique() > 3


def test_survival_is_compared_between_two_risk_groups_by_the_network_too(study):
    survival = study.summary["cross_validation"]["survival"]
    for source in ("man", "cnn"):
        assert 0 < survival[source]["n_high"] < survival["n"], source
        for key in ("hr", "hr_ci95", "logrank_p", "concordance", "concordance_ci95"):
            assert survival[source][key] is not None, (source, key)


def test_a_correction_makes_its_chapter_anew_and_nothing_else(finished, study):
    patient = study.lesions.query("source == 'cnn'")["patient"].iloc[0]
    labels = to_array(read_labels(study.prediction_path(patient)))
    session = open_session(study, patient, "reader-7")
    session.delete(np.argwhere(labels > 0)[0])
    session.save()
    assert run(finished) == ["10_corrections", "manifest"]
    chapter = (study.folder / "notebooks" / "10_corrections.ipynb").read_text()
    assert "1 patient corrected by 1 edit" in chapter
    assert "reader-7" not in chapter  # the log names who; the report does not


def test_only_what_depends_on_a_parameter_is_redone(finished):
    """The last test: it leaves the study with another parameter."""
    set_params(finished, min_roi_ml=0.2)
    done = run(finished)
    assert done[0] == "evaluation"
    assert set(done) == {"evaluation", *CHAPTERS, "manifest"}
