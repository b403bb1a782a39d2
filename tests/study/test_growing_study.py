"""A study that is moved, and one that grows: what is redone, what is left alone, and what the report says of it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mtvlib import report_text
from mtvlib.study import Study
from mtvlib.volume import read_labels, to_array, to_image, write_image
from tests.conftest import PET_GRID, tiny_row, write_table
from tests.study.test_whole_study import CHAPTERS, PARAMS, STEPS, mtv

NAME = "grown"


@pytest.fixture(scope="module")
def moved(finished_study, tmp_path_factory) -> Path:
    """The finished study under another name in another place, by a copy that gave every file a new time."""
    folder = tmp_path_factory.mktemp("another") / "place"
    shutil.copytree(finished_study, folder, copy_function=shutil.copyfile)
    (folder / "studies" / "tiny").rename(folder / "studies" / NAME)
    (folder / "tiny.yml").write_text(yaml.safe_dump(PARAMS | {"name": NAME}))
    return folder


def run(folder: Path) -> list[str]:
    """Run the study; returns the steps that were done, in order."""
    result = mtv(folder, "run", "tiny.yml", "--cores", "2")
    assert result.returncode == 0, result.stderr + result.stdout
    return [line.split()[4].rstrip(":") for line in result.stdout.splitlines() if line.endswith(": started")]


def stamps(study: Study, *patterns: str) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of the study's files."""
    files = [path for pattern in patterns for path in study.folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(study.folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_study_that_was_moved_and_renamed_after_half_redoes_nothing_that_is_finished(moved):
    study = moved / "studies" / NAME
    for product in ("notebooks/9_trust.ipynb", "notebooks/10_corrections.ipynb", "manifest.json"):
        (study / product).unlink()
    before = mtv(moved, "status", f"studies/{NAME}").stdout
    assert "10 of 13 steps done" in before
    assert set(run(moved)) == {"9_trust", "10_corrections", "manifest"}
    after = mtv(moved, "status", f"studies/{NAME}").stdout
    assert f"Study {NAME}: finished" in after


def grow_cohort(folder: Path) -> None:
    """Three more external patients, two of them of a new site, and a corrected reference of e00."""
    path = folder / "cohort" / "cohort.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clinical = {"survival_eligible": 1, "followup_months": 20, "death": 0, "synthetic": 1, "exclusion": ""}
    for number, site in ((2, "external_0"), (3, "new_site"), (4, "new_site")):
        row = tiny_row(folder / "cohort", f"e{number:02}", seed=200 + number, cohort="external", site=site, **clinical)
        rows.append({name: row.get(name, "") for name in rows[0]})
    write_table(path, rows)
    reference = next(row["reference"] for row in rows if row["patient"] == "e00")
    labels = to_array(read_labels(folder / "cohort" / reference)).copy()
    labels[10:12, 10:12, 8:10] = 1  # the reader took the node for a part of the primary
    write_image(to_image(labels, PET_GRID), folder / "cohort" / reference)


def test_new_patients_a_new_site_and_a_changed_mask_redo_only_what_depends_on_them(moved):
    """After the test above, on the same study: only external patients change, so no network learns anything new."""
    study = Study.open(moved / "studies" / NAME)
    volumes, maps = stamps(study, "volumes/*/*"), stamps(study, "predictions/**/*.nii.gz")
    weights = {path: content for path, (_, content) in stamps(study, "folds/*/weights.safetensors").items()}
    states = stamps(study, "folds/*/training_state.safetensors")
    grow_cohort(moved)

    assert set(run(moved)) == {*STEPS, *CHAPTERS}  # each looks at what it has

    now = stamps(study, "volumes/*/*")
    prepared = {name.split("/")[1] for name in now if now[name] != volumes.get(name)}
    assert prepared == {"e00", "e02", "e03", "e04"}
    now = stamps(study, "predictions/**/*.nii.gz")
    delineated = {Path(name).name.removesuffix(".nii.gz") for name in now if now[name] != maps.get(name)}
    assert delineated == {"e02", "e03", "e04"}  # a network does not see the mask of e00
    assert stamps(study, "folds/*/training_state.safetensors") == states
    assert {path: content for path, (_, content) in stamps(study, "folds/*/weights.safetensors").items()} == weights
    log = (study.logs / "2_train_fold_0.log").read_text()
    assert "resumed after epoch 12" in log
    evaluated = pd.read_csv(study.results / "patients.csv")["patient"]
    assert {"e02", "e03", "e04"} <= set(evaluated)


def test_the_report_says_who_came_what_changed_and_the_numbers_side_by_side(moved):
    """After the two tests above, on the same study."""
    study = Study.open(moved / "studies" / NAME)
    first, second = (json.loads(path.read_text()) for path in sorted((study.folder / "versions").glob("*.json")))
    found = report_text.changes_since(study)
    assert found["causes"][:3] == [  # a commit in between would come after these
        "3 patients (e02, e03, e04) were added.",
        "The site new_site is new.",
        "Patient e00 has a new reference.",
    ]
    rows = {tuple(row[:2]): row[2:] for row in found["rows"]}
    (main, external) = (title for title, what in rows if what == "Patients")
    assert rows[main, "Patients"] == ("7", "7", "+0")
    assert rows[external, "Patients"] == ("2", "5", "+3")
    dsc = [one["summary"]["external_testing"]["delineation"]["all"]["cohort_dsc"] for one in (first, second)]
    assert rows[external, "Cohort DSC, both together"][:2] == tuple(f"{value:.3f}" for value in dsc)
