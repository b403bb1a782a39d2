"""The reporting checklists: an item is answered by what a study holds, and by nothing else."""

import json

import pandas as pd
import pytest
import yaml

from mtvlib import checklist, params
from mtvlib.checklist import ANSWERS, checklists
from mtvlib.files import write_json, write_text
from mtvlib.params import Params
from mtvlib.study import Study

LABELS = {"tbl-delineation", "tbl-sites", "tbl-audit", "fig-flow", "tbl-parameters", "tbl-software", "tbl-models"}
NO_SURVIVAL = {"n": 0, "events": None, "reason": "no column death"}


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "studies" / "small"
    params.write(Params(name="small", folds=2), folder / "params.yml")
    rows = [("p0", "A", "cross_validation", ""), ("p1", "B", "cross_validation", ""), ("p2", "B", "", "moved")]
    table = pd.DataFrame(rows, columns=["patient", "site", "split", "exclusion"])
    write_text(folder / "cohort.csv", table.assign(fold=0).to_csv(index=False))
    overlap = {"cohort_dsc": 0.8125, "cohort_dsc_ci95": [0.7, 0.9], "n_failed": 1}
    lesions = {"tpr": 0.5, "tpr_ci95": None, "ppv": None, "ppv_ci95": None}
    block = {"n_patients": 2, "delineation": {"all": overlap}, "lesions": {"all": lesions}, "survival": NO_SURVIVAL}
    write_json(folder / "results" / "summary.json", {"cross_validation": block, "external_testing": {"n_patients": 0}})
    for fold in range(2):
        write_text(folder / "folds" / str(fold) / "history.csv", "epoch,train_loss\n1,0.5\n2,0.4\n")
    return folder


def items(folder, guideline=0, labels=LABELS, manifest=None):
    found = checklists(Study.open(folder), labels, manifest or {})[guideline].items
    return {one.item: one for one in found}


def test_every_item_of_both_guidelines_is_there_once(study):
    claim, tripod = (items(study, guideline) for guideline in (0, 1))
    assert list(claim) == [str(number) for number in range(1, 45)]
    assert {name.rstrip("abcdefg") for name in tripod} == {str(number) for number in range(1, 28)}
    assert len(tripod) == 52


def test_answers_are_the_study_s_own_numbers(study):
    claim = items(study)
    assert claim["32"].answer == "2 patients, cohort DSC 0.812 (0.700–0.900). See @tbl-delineation."
    assert claim["7"].answer == "2 sites: A 1, B 2. See @tbl-sites."
    assert claim["35"].answer == "1 of 3 patients excluded. See @fig-flow."
    assert "Adadelta, batches of 16, 2 epochs" in claim["25"].answer


def test_what_the_study_does_not_hold_is_open(study):
    claim, tripod = items(study), items(study, 1)
    assert claim["33"].open  # no external cohort
    assert claim["23"].open  # no manifest
    assert claim["26"].open  # no models
    assert claim["14"].open  # real patients: who delineated them only the investigators know
    assert tripod["8a"].open  # no outcome
    assert tripod["21"].open
    assert claim["5"].answer == "Which of the two, and the dates of the scans."
    manifest = {"versions": {"mtvlib": "1.2", "torch": "2.13.0"}, "commit": "abc"}
    assert items(study, manifest=manifest)["23"].answer.startswith("mtvlib 1.2, torch 2.13.0, commit abc.")


def test_an_item_whose_table_is_not_in_the_report_is_open(study):
    assert not items(study)["20"].open
    assert items(study, labels=LABELS - {"tbl-audit"})["20"].open


def test_only_what_investigators_alone_can_say_stays_open_in_a_whole_study(study):
    """Ethics, funding, dates, readers and the like are never answered by software."""
    everything = json.loads((study / "results" / "summary.json").read_text())
    everything["external_testing"] = everything["cross_validation"]
    write_json(study / "results" / "summary.json", everything)
    every_label = {label for answer in answers_of(study) for label in answer.labels}
    for number in ("4", "5", "13", "15", "18", "21", "34", "40", "41", "44"):
        assert items(study, labels=every_label)[number].open, number
    for number in ("3a", "5b", "6c", "8b", "17", "18a", "18b", "18d", "19", "25", "26"):
        assert items(study, 1, every_label)[number].open, number


def answers_of(folder):
    evidence = checklist.Evidence(Study.open(folder))
    return [answer for answer in (one(evidence) for one in ANSWERS.values()) if answer]


def test_every_named_evidence_exists_and_every_open_item_says_what_to_state(project):
    table = yaml.safe_load((project / "mtvlib" / "data" / "checklists.yml").read_text())
    entries = [entry for one in table.values() for entry in one["items"]]
    assert {entry["evidence"] for entry in entries if "evidence" in entry} == set(ANSWERS)
    assert all(entry["ask"] and entry["topic"] for entry in entries)


def test_every_label_is_of_a_table_or_figure_of_the_report(project, study):
    sources = [
        path.read_text()
        for folder in ("notebooks", "report")
        for path in (project / folder).glob("*")
        if path.suffix in (".ipynb", ".qmd")
    ]
    text = "\n".join(sources).replace("fig-training-", "fig-training-0").replace("{fold}", "")
    missing = {label for answer in answers_of(study) for label in answer.labels if label not in text}
    assert missing == set()
