"""Tables: the study's and the paper's values stand where they belong, and what is null says why."""

import copy
import re

import numpy as np
import pandas as pd
import pytest

from mtvlib import tables
from mtvlib.cohort import Finding
from mtvlib.params import Params
from mtvlib.typeset import great_table

EMPTY = "no patient has a node metastasis in reference or prediction"
DSC = {"mean_dsc_without_both_empty": 0.7, "iqr": [0.5, 0.9], "n_failed": 1, "n_failed_ci95": [0.2, 4.0]}
TTB = {
    "r2": 0.8,
    "r2_ci95": [0.6, 0.9],
    "mean_absolute_difference_ml": 2.5,
    "mean_difference_ml": -0.004,
    "limits_of_agreement_ml": [-3.0, 4.0],
    "volume_bias": -0.123,
}
RISK = {"hr": 2.04, "hr_ci95": [1.1, 3.9], "p": 0.0234, "logrank_p": 0.0001, "concordance": 0.66, "n_high": 5}


def summary():
    """A study of ten patients, without an external cohort; no two of its values are alike."""
    delineation = {
        "primary": DSC | {"cohort_dsc": 0.8111, "mean_dsc": 0.7222, "median_dsc": 0.9333, "n_both_empty": 2},
        "nodes": {key: None for key in ("cohort_dsc", "mean_dsc", "median_dsc", "iqr", "n_failed")} | {"reason": EMPTY},
        "all": DSC | {"cohort_dsc": 0.8444, "mean_dsc": 0.7555, "median_dsc": 0.9666, "n_both_empty": 0},
    }
    classification = {key: 0.25 for key in ("t_primary", "f_primary", "t_nodes", "f_nodes")}
    classification |= {"n_voxels": 12345, "tpr_primary": 0.987, "tpr_nodes": None, "accuracy": 0.976}
    classification |= {"tpr_nodes_reason": "no nodes voxel", "scans_without_error": 9}
    found = {"tp_man": 11, "tp_cnn": 12, "fn": 3, "fp": 4, "tpr": 0.7857, "tpr_ci95": [0.6, 0.9], "ppv": 0.75}
    survival = {"n": 8, "events": 4, "cutoff_ml": 9.5, "discordant": 0.125, "man": RISK | {"events_high": 3}}
    survival["cnn"] = dict.fromkeys((*RISK, "events_high")) | {"hr_reason": "nobody died", "logrank_reason": "no test"}
    block = {"n_patients": 10, "delineation": delineation, "classification": classification, "survival": survival}
    block |= {"ttb": TTB | {"n_outliers": 1, "all_patients": TTB | {"r2": 0.7}}, "lesions": dict.fromkeys(("primary",))}
    block["lesions"] = {target: copy.deepcopy(found) for target in tables.TARGET_NAMES}
    return {
        "cross_validation": block,
        "external_testing": {"n_patients": 0, "reason": "no patient of the external cohort"},
    }


def words(table):
    """The table as a page shows it: text of each row's cells."""
    page = great_table(table, "tbl-test").as_raw_html()
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    return [
        " | ".join(re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL))
        for row in rows
    ]


def row_of(table, name, number=0):
    return [row.cells for row in table.rows if row.name == name][number]


# --- numbers as words


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [(0.8849, 3, "0.885"), (-1.25, 1, "−1.2"), (-0.004, 2, "0.00"), (None, 3, "–"), (7, 0, "7")],
)
def test_number(value, digits, expected):
    assert tables.number(value, digits) == expected


def test_interval():
    assert tables.interval([0.856, 0.948], 2) == "0.86–0.95"
    assert tables.interval([0.5, 1], 1, 100) == "50.0–100.0"
    assert tables.interval([-2.06, 0.3], 1) == "−2.1\u00a0to\u00a00.3"
    assert tables.interval(None, 2) == "–"


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.00099, "< 0.001"),
        (0.001, "= 0.001"),
        (0.0112, "= 0.011"),
        (0.27, "= 0.27"),
        ("<0.001", "< 0.001"),
        ("0.011", "= 0.011"),
        (None, "–"),
    ],
)
def test_p_relation(p, expected):
    assert tables.p_relation(p).replace("\u00a0", " ") == expected


def test_count_and_share():
    assert (tables.count(1, "outlier"), tables.count(0, "outlier")) == ("1 outlier", "0 outliers")
    assert tables.share(48, 698).replace("\u00a0", " ") == "48 (6.9 %)"
    assert tables.thousands(801384).replace("\u202f", " ") == "801 384"


# --- the paper's tables


def test_delineation_shows_the_study_and_below_it_the_paper():
    rows = words(tables.delineation(summary()))
    place = next(number for number, row in enumerate(rows) if row.startswith("Primary tumour"))
    assert all(text in rows[place] for text in ("0.811", "0.722", "0.933", "0.500–0.900", "10.0", "0–4"))
    assert rows[place + 1].startswith("Nikulin et al. 2023")
    assert all(text in rows[place + 1] for text in ("0.885", "0.815", "0.924", "0.856–0.948", "48"))


def test_delineation_heads_name_both_numbers_of_patients():
    assert any(
        "Cross-validation (N = 10; Nikulin et al. 2023: N = 698)" in row for row in words(tables.delineation(summary()))
    )


def test_delineation_says_why_nodes_are_not_estimable():
    rows = words(tables.delineation(summary()))
    assert any(f"Not estimable: {EMPTY}." in row for row in rows)
    assert next(row for row in rows if row.startswith("Lymph node")).count("–") == 5
    assert not any("None" in row or "nan" in row for row in rows)


def test_an_absent_partition_says_why():
    rows = words(tables.lesions(summary()))
    assert any("External testing: not estimable: no patient of the external cohort." in row for row in rows)
    assert not any(row.startswith("External testing (N") for row in rows)


def test_both_empty_patients_are_named_with_the_mean_of_the_others():
    notes = " ".join(tables.delineation(summary()).notes)
    assert "Cross-validation, primary tumour: 2 patients" in notes
    assert "mean of the others 0.700" in notes
    assert "primary + metastases" not in notes  # none there


@pytest.mark.parametrize(
    "make", [tables.delineation, tables.ttb, tables.classification, tables.lesions, tables.survival]
)
def test_every_comparison_warns_of_synthetic_studies(make):
    assert any("synthetic patients or of another disease cannot be compared" in note for note in make(summary()).notes)


@pytest.mark.parametrize(
    "make", [tables.delineation, tables.ttb, tables.classification, tables.lesions, tables.survival]
)
def test_the_papers_rows_are_those_of_the_paper(make):
    table = make(summary())
    assert {row.cited for row in table.rows if row.name == tables.PAPER} == {True}
    assert {row.cited for row in table.rows if row.name != tables.PAPER} == {False}


def test_ttb_agreement():
    table = tables.ttb(summary())
    own, everyone = row_of(table, "Without outliers"), row_of(table, "All patients")
    assert (own["n"].value, everyone["n"].value) == ("9", "10")
    assert (own["r2"].value, own["r2"].below, everyone["r2"].value) == ("0.80", "0.60–0.90", "0.70")
    assert own["mean_difference_ml"].value == "0.00"
    assert own["limits"].value == "−3.0\u00a0to\u00a04.0"
    assert own["volume_bias"].value == "−12.3"
    assert row_of(table, tables.PAPER)["mean_absolute_difference_ml"].value == "2.62"
    assert row_of(table, tables.PAPER)["volume_bias"].value == ""  # the paper gives none


def test_classification_in_per_cent():
    table = tables.classification(summary())
    own, paper = row_of(table, "This study"), row_of(table, tables.PAPER)
    assert (own["tpr_primary"].value, paper["tpr_primary"].value) == ("98.7", "99.2")
    assert own["tpr_nodes"].reason == "no nodes voxel"
    assert paper["scans"].value.replace("\u00a0", " ") == "640 (91.7 %)"


def test_an_accuracy_with_one_class_to_find_is_no_success():
    data = summary()
    assert any("was not tested" in note for note in tables.classification(data).notes)  # no node to find
    data["cross_validation"]["classification"]["tpr_nodes"] = 0.9
    assert not any("was not tested" in note for note in tables.classification(data).notes)


def test_lesions_counts_and_rates():
    table = tables.lesions(summary())
    own, paper = row_of(table, "Primary tumour"), row_of(table, tables.PAPER)
    assert [own[key].value for key in ("tp_man", "tp_cnn", "fn", "fp", "tpr", "ppv")] == [
        "11",
        "12",
        "3",
        "4",
        "78.6",
        "75.0",
    ]
    assert own["tpr"].below == "60.0–90.0"
    assert [paper[key].value for key in ("tp_man", "tp_cnn", "fn", "fp")] == ["578", "592", "65", "44"]


def test_survival_values_and_reasons():
    table = tables.survival(summary())
    man, cnn = row_of(table, "Manual TTB"), row_of(table, "CNN TTB")
    assert [man[key].value for key in ("n", "events", "hr", "p")] == ["8", "4", "2.0", "0.023"]
    assert man["hr"].below == "1.1–3.9"
    assert man["high"].value == "5\u00a0(3)"
    assert (cnn["hr"].reason, cnn["p"].reason, cnn["logrank_p"].reason) == ("nobody died", "nobody died", "no test")
    assert cnn["discordant"].value == "12.5"
    paper = row_of(table, tables.PAPER, 1)
    assert [paper[key].value.replace("\u00a0", " ") for key in ("n", "hr", "p", "discordant")] == [
        "585",
        "1.8",
        "< 0.001",
        "5.3",
    ]


def test_survival_without_outcome_says_why():
    data = summary()
    nothing = {"man": {"hr": None, "p": None}, "cnn": {"hr": None, "p": None}, "discordant": None}
    data["cross_validation"]["survival"] = {
        "n": 0,
        "events": None,
        "reason": "the cohort has no column death",
    } | nothing
    assert any("Not estimable: the cohort has no column death." in row for row in words(tables.survival(data)))


# --- patients and folds


def test_findings_name_the_file_but_not_the_folder():
    finding = Finding(
        "warning", "low", "PET is low", "check units", row=3, patient="P1", file="/home/me/pet.nii.gz", value=0.1
    )
    page = " ".join(words(tables.findings([finding])))
    assert all(text in page for text in ("P1", "warning", "PET is low (found: 0.1)", "check units", "pet.nii.gz"))
    assert "/home" not in page
    assert "nothing to report" in " ".join(words(tables.findings([])))


def test_folds_add_up_to_the_cohort():
    names = [f"P{number:02d}" for number in range(20)]
    cohort = pd.DataFrame({"patient": names, "person": names, "site": ["A", "B"] * 10, "fold": np.arange(20) % 5})
    table = tables.folds(cohort, Params())
    assert len(table.rows) == 5
    for row in table.rows:
        assert sum(int(cell.value) for cell in row.cells.values()) == 20


def test_a_fold_that_tests_a_whole_site_bears_its_name():
    names = [f"P{number}" for number in range(8)]
    cohort = pd.DataFrame({"patient": names, "person": names, "site": ["A", "B"] * 4, "fold": [0, 1] * 4})
    assert [row.name for row in tables.folds(cohort, Params(folds=2)).rows] == ["Fold 0", "Fold 1"]
    by_site = tables.folds(cohort, Params(folds=2, split_by="site"))
    assert [row.name for row in by_site.rows] == ["Fold 0, A", "Fold 1, B"]


def test_prepared_lists_each_warning():
    volumes = pd.DataFrame(
        {
            "patient": ["A", "B", "C"],
            "reference": ["x", "", "y"],
            "slices": [100, 120, 110],
            "volume_change": [-0.021, None, 0.004],
            "warnings": ["", "cut <off>", ""],
        }
    )
    rows = words(tables.prepared(volumes))
    assert "with a reference | 2" in rows
    assert "Reference volume, change by resampling, %, median (range) | −0.9 (−2.1 to 0.4)" in rows
    assert "Slices, median (range) | 110 (100–120)" in rows
    assert "Warning, patient B | cut &lt;off&gt;" in rows


# --- the end of a run in a terminal


def test_table1_text_puts_study_and_paper_side_by_side():
    text = tables.table1_text(summary(), synthetic=True)
    primary = next(line for line in text.splitlines() if "Primary tumour" in line).split()
    assert primary[2:] == ["0.811", "0.885", "0.722", "0.815", "0.933", "0.924", "1", "48"]
    nodes = next(line for line in text.splitlines() if "Lymph node" in line).split()
    assert nodes[3::2] == ["–"] * 4
    assert "External testing: no patient of the external cohort" in text
    assert "cannot be compared" in text
    assert "cannot be compared" not in tables.table1_text(summary())


def test_table1_text_fits_a_terminal():
    assert max(map(len, tables.table1_text(summary(), synthetic=True).splitlines())) <= 100
