"""Chapters 4 to 7 of studies in which there is little to show: every table and figure is made, and nothing is invented.

The chapters' code runs in this process, without kernel and browser: what they show is caught and looked at.
"""

import math

import nbformat
import numpy as np
import pandas as pd
import pytest

from mtvlib import comparators, dictionary, params, show, trust
from mtvlib.evaluation import Case, add_to_summary, evaluate
from mtvlib.files import read_table
from mtvlib.params import Params
from mtvlib.study import Study
from mtvlib.tables import table1_text
from mtvlib.typeset import csv_text, great_table, markdown, typst

SHAPE, MM = (24, 24, 20), (5.0, 5.0, 5.0)
CHAPTERS = ("4_delineation", "5_classification", "6_lesions", "7_survival")


def mask(*boxes):
    labels = np.zeros(SHAPE, np.uint8)
    for label, (x, y, z), side in boxes:
        labels[x : x + side, y : y + side, z : z + side] = label
    return labels


def cohort(n=12, external=4, **columns):
    """Patients of two sites, half of them with a node; burdens and times differ, and a third dies."""
    numbers = np.arange(n + external)
    table = pd.DataFrame(
        {
            "patient": [f"P{i:02}" for i in numbers],
            "cohort": np.where(numbers < n, "main", "external"),
            "split": np.where(numbers < n, "cross_validation", "external_testing"),
            "site": np.where(numbers % 2, "Ash", "Birch"),
            "fold": np.where(numbers < n, numbers % 2, -1),
            "exclusion": "",
            "person": [f"P{i:02}" for i in numbers],
            "reference": "r.nii.gz",
            "survival_eligible": 1.0,
            "followup_months": 10.0 + 5 * (numbers % 7) + numbers / 10,
            "death": (numbers % 3 == 0).astype(float),
            "age": 50.0 + numbers,
            "sex": np.where(numbers % 2, "female", "male"),
        }
    )
    return table.assign(**columns)


def cases(table, nodes=True, predicted=True, alike=False):
    for number, patient in enumerate(table["patient"]):
        primary = (1, (3, 3, 3), 4 if alike else 2 + number % 4)
        node = [(2, (14, 14, 8), 2)] if nodes and number % 2 else []
        found = [(1, (3, 3, 4), 4 if alike else 2 + number % 4), *node] if predicted else []
        reference, prediction = mask(primary, *node), mask(*found)
        yield Case(patient, reference, prediction, np.where(reference > 0, 8.0, 1.0), MM)


def write_study(folder, table, **how):
    chosen = Params(name="small", folds=2, studies=str(folder / "studies"), bootstrap_resamples=100, spacing_mm=5.0)
    study = Study(chosen)
    study.begin()
    params.write(chosen, study.folder / "params.yml")
    study.write_cohort(table)
    summary = evaluate(cases(table, **how), table, study.results, chosen)
    rows = (
        row for one in cases(table, **how)
        for row in comparators.patient_rows(one.patient, one.suv, one.reference, MM, chosen)
    )  # fmt: skip
    beside = comparators.table(rows, table)
    blocks = comparators.summary_blocks(beside, read_table(study.results / "patients.csv"), chosen)
    summary = add_to_summary(
        study.results, summary, {name: summary[name] | {"comparators": block} for name, block in blocks.items()}
    )
    add_to_summary(study.results, summary, trust.with_trust(summary, trust.without_maps(summary)))
    dictionary.write(study.results)
    return study


def run_chapters(study, project, monkeypatch, *, table=None, figure=None, display=None):
    """Labels of what chapters 4 to 7 show; functions that look at tables, figures and text can be given."""
    labels = []

    def look_at_table(one, label, caption):
        assert caption
        for form in (great_table(one, label).as_raw_html(), typst(one), markdown(one), csv_text(one)):
            assert "nan" not in form.lower().replace("nanometre", "")
        labels.append(label)

    def look_at_figure(one, label, caption, alt):
        assert caption
        assert alt
        assert "NaN" not in one.to_json()
        labels.append(label)

    monkeypatch.setattr(show, "show_table", table or look_at_table)
    monkeypatch.setattr(show, "show_figure", figure or look_at_figure)
    monkeypatch.setattr(show, "show_picture", lambda png, label, caption, alt: labels.append(label))
    monkeypatch.setattr(show, "display", display or (lambda *_, **__: None))
    for chapter in CHAPTERS:
        names = {"__name__": "__main__"}
        for cell in nbformat.read(project / "notebooks" / f"{chapter}.ipynb", 4).cells:
            if cell.cell_type != "code":
                continue
            exec(compile(cell.source, chapter, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {"name": "small", "studies": study.params.studies}
    return labels


def all_numbers(value):
    if isinstance(value, dict):
        for one in value.values():
            yield from all_numbers(one)
    elif isinstance(value, list):
        for one in value:
            yield from all_numbers(one)
    elif isinstance(value, float):
        yield value


COHORTS = {
    "whole": (cohort(), {}),
    "one patient": (cohort(1, 0), {}),
    "three patients": (cohort(3, 0), {}),
    "three patients, one external": (cohort(3, 1), {}),
    "one site": (cohort(site="Ash"), {}),
    "five sites": (cohort(20, 5, site=[f"S{i % 5}" for i in range(25)]), {}),
    "no nodes at all": (cohort(), {"nodes": False}),
    "no events": (cohort(death=0.0), {}),
    "all events": (cohort(death=1.0), {}),
    "tied times": (cohort(followup_months=24.0), {}),
    "all burdens equal": (cohort(), {"nodes": False, "alike": True}),
    "every prediction empty": (cohort(), {"predicted": False}),
    "no external cohort": (cohort(12, 0), {}),
    "only an external cohort": (cohort(0, 6), {}),
    "no survival columns": (cohort().drop(columns=["survival_eligible", "followup_months", "death"]), {}),
    "nobody eligible": (cohort(survival_eligible=0.0), {}),
    "nothing known of the patients": (cohort().drop(columns=["age", "sex"]), {}),
    "two scans of each person": (cohort(person=[f"H{i // 2}" for i in range(16)]), {}),
}


NO_STUDY = ("one patient", "only an external cohort")  # nothing to train on; masks of another tool can be evaluated


@pytest.mark.parametrize("name", NO_STUDY)
def test_what_is_no_study_can_be_evaluated(name, tmp_path):
    table, how = COHORTS[name]
    study = write_study(tmp_path, table, **how)
    assert all(math.isfinite(value) for value in all_numbers(study.summary))
    words = table1_text(study.summary)
    assert "Primary + metastases" in words
    assert "nan" not in words


@pytest.mark.parametrize("name", [name for name in COHORTS if name not in NO_STUDY])
def test_chapters_of_degenerate_cohorts(name, tmp_path, project, monkeypatch):
    table, how = COHORTS[name]
    study = write_study(tmp_path, table, **how)
    assert all(math.isfinite(value) for value in all_numbers(study.summary))
    labels = run_chapters(Study.open(study.folder), project, monkeypatch)
    assert {"tbl-delineation", "tbl-boundary", "tbl-classification", "tbl-lesions", "tbl-survival"} <= set(labels)
    assert len(labels) == len(set(labels))
