"""Tables of several methods: each value stands in the row and column of its own."""

import numpy as np
import pandas as pd
import pytest

from mtvlib import tables_comparison as tables
from mtvlib.comparison import comparison
from mtvlib.params import Params
from mtvlib.thresholds import threshold_methods
from tests.test_comparison import table as patients_of
from tests.test_tables import words

EMPTY = "no patient has a node metastasis in reference or prediction"


def dsc(value):
    return {"cohort_dsc": value, "cohort_dsc_ci95": [value - 0.1, value + 0.1], "mean_dsc": value - 0.05}


def delineation(value):
    """Table 1 of a method, every target with another value; nobody has a node."""
    nothing = {"cohort_dsc": None, "cohort_dsc_ci95": None, "mean_dsc": None, "reason": EMPTY}
    return {"primary": dsc(value), "nodes": nothing, "all": dsc(value + 0.01)}


def summary():
    """A study without external patients; method number k has a cohort DSC of 0.5 + 0.05 k."""
    methods = [
        {"method": name, "label": label, "delineation": delineation(0.5 + 0.05 * number)}
        for number, (name, label) in enumerate(threshold_methods().items(), start=1)
    ]
    about = {"measure": "cohort_dsc", "other": "cnn", "target": "primary"}
    differences = [
        about | {"method": "max_41", "difference": 0.15, "difference_ci95": [0.1, 0.2]},
        about | {"method": "max_41", "measure": "mean_dsc", "difference": 0.77, "difference_ci95": None},
        about | {"method": "max_50", "difference": -0.2, "difference_ci95": None, "difference_reason": "one patient"},
        about | {"method": "max_50", "target": "nodes", "difference": None, "difference_ci95": None, "reason": EMPTY},
    ]
    block = {"n_patients": 9, "delineation": delineation(0.5)}
    block["comparators"] = {"methods": methods, "differences": differences}
    return {"cross_validation": block, "external_testing": {"n_patients": 0, "reason": "nobody"}}


def row_of(rows, name):
    cells = next(row for row in rows if row.startswith(name)).split(" | ")
    return [cell.replace("  ", " ") for cell in cells]


def test_the_network_comes_first_and_each_method_has_its_values():
    rows = words(tables.comparators(summary()))
    names = [row.split(" | ")[0] for row in rows]
    assert names[1:8] == ["Cross-validation (N = 9)", "CNN", *threshold_methods().values()]
    assert row_of(rows, "CNN")[1:4] == ["0.500 0.400–0.600", "– a", "0.510 0.410–0.610"]
    assert row_of(rows, "CNN")[4:] == ["", "", ""]
    assert row_of(rows, "41 %")[1:] == ["0.650 0.550–0.750", "– a", "0.660 0.560–0.760", "0.150 0.100–0.200", "", ""]
    assert row_of(rows, "50 %")[4:6] == ["−0.200", "– a"]


def test_the_table_says_that_the_thresholds_were_given_seeds():
    notes = " ".join(tables.comparators(summary()).notes)
    assert "lesions of the reference as seeds" in notes
    assert "upper bound" in notes
    assert "by construction" in notes


def test_a_study_without_comparators_has_an_empty_table():
    old = summary()
    del old["cross_validation"]["comparators"]
    assert tables.comparators(old).rows == []
    assert [one.delineation for one in tables.scores_of_study(old)] == [{}] * 6


def test_scores_of_methods_know_labels_seeds_and_partitions():
    own = {"cross_validation": {"n_patients": 9, "delineation": delineation(0.5)}}
    own["external_testing"] = {"n_patients": 0}
    ours, adaptive = tables.scores_of_methods({"ours": own, "adaptive": own | {"needs_seed": True}})
    assert (ours.label, ours.needs_seed, list(ours.delineation)) == ("ours", False, ["cross_validation"])
    assert (adaptive.label, adaptive.needs_seed) == ("Adaptive threshold", True)


def test_notes_on_seeds():
    seeded = {"needs_seed": True, "margin_mm": 12.5, "seeds": "the reference's lesions"}
    (note,) = tables.notes_on_seeds({"ours": {}, "max_41": seeded, "max_50": seeded})
    assert note.startswith("41 % of SUVmax, 50 % of SUVmax: thresholds within 12.5 mm of given seeds (the reference's")
    assert tables.notes_on_seeds({"ours": {}}) == []


@pytest.fixture
def compared():
    b = patients_of([0.6, 0.8, 0.6, 1.0], hd95_all_mm=[3.0, 4, np.nan, 2])
    a = patients_of([0.5, 0.6, 0.7, 0.8], hd95_all_mm=[4.0, 4, 3, 5])
    return comparison({"a": a, "b": b}, Params(bootstrap_resamples=100))


def test_differences_stand_with_their_effect_sizes_and_p_values(compared):
    rows = words(tables.differences(compared))
    start = rows.index("Cross-validation: Mean DSC, primary tumour")
    cells = rows[start + 1].split(" | ")
    assert cells[:3] == ["b − a", "0.750", "0.650"]
    assert cells[3].startswith("0.100 ")
    assert cells[4] == "3\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}4"
    assert cells[5].startswith("0.70")
    assert cells[6] == "1.00"  # 6 / 16, corrected for the number of tests
    distance = rows[rows.index("Cross-validation: Mean 95 % Hausdorff distance (mm), primary + metastases") + 1]
    assert distance.split(" | ")[1:3] == ["3.0", "4.3"]  # of the three patients with a distance by both


def test_the_cohort_dsc_has_no_values_of_patients(compared):
    rows = words(tables.differences(compared))
    cells = rows[rows.index("Cross-validation: Cohort DSC, primary tumour") + 1].split(" | ")
    assert cells[4:7] == ["", "", ""]
    assert cells[7] != ""


def test_a_comparison_that_cannot_be_made_gives_its_reason(compared):
    rows = words(tables.differences(compared))
    cells = rows[rows.index("Cross-validation: Mean DSC, lymph node metastases") + 1].split(" | ")
    assert cells[1].startswith("–")
    assert any("no patient has it in the reference or by either method" in row for row in rows)


def test_scores_as_text():
    text = tables.scores_text(tables.scores_of_study(summary())).splitlines()
    assert text[0].split() == ["cohort", "DSC", "mean", "DSC"]
    assert text[2] == "Cross-validation"
    assert text[3].split() == ["CNN", "0.500", "–", "0.510", "0.450", "–", "0.460"]
    assert len({line.index("0.") for line in text[3:]}) == 1
    assert not any("External" in line for line in text)


def test_names_of_methods_cannot_break_the_page():
    compared = pd.DataFrame(comparison({"<b>": patients_of([0.5]), "b": patients_of([0.6])}, Params()))
    assert "b − &lt;b&gt;" in " ".join(words(tables.differences(compared)))
