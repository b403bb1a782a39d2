"""Tables of boundaries, pairs and choices: each value where it belongs, what is null with its reason."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mtvlib import tables_lesions
from mtvlib.evaluation import Case, evaluate
from mtvlib.params import Params
from mtvlib.typeset import great_table, typst

MM = (2.5, 2.5, 2.5)
TABLES = (tables_lesions.boundary, tables_lesions.matched, tables_lesions.sensitivity, tables_lesions.choices)


def box(label, corner, sides):
    labels = np.zeros((24, 24, 20), np.uint8)
    labels[tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))] = label
    return labels


def case(number):
    """Primaries predicted with a slice less; a node in every third patient, which is missed."""
    node = box(2, (15, 15, 5), (3, 3, 3)) if number % 3 == 0 else 0
    reference = box(1, (4, 4, 4), (4, 4, 4 + number)) + node
    return Case(f"P{number}", reference, box(1, (4, 4, 4), (4, 4, 3 + number)), np.full((24, 24, 20), 6.0), MM)


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    cohort = pd.DataFrame({"patient": [f"P{n}" for n in range(6)], "cohort": "main", "site": "Ash"})
    params = Params(bootstrap_resamples=100)
    return evaluate(map(case, range(6)), cohort, tmp_path_factory.mktemp("results"), params)


def row_of(table, name, number=0):
    return [row.cells for row in table.rows if row.name == name][number]


def test_boundary(summary):
    table = tables_lesions.boundary(summary)
    primary, nodes = row_of(table, "Primary tumour"), row_of(table, "Lymph node metastases")
    assert (primary["mean_surface_dsc_2_5mm"].value, primary["median_hd95_mm"].value) == ("1.000", "2.5")
    assert (primary["undefined"].value, nodes["undefined"].value, nodes["undefined"].below) == (
        "0",
        "6",
        "one empty: 2",
    )
    assert nodes["mean_surface_dsc_5mm"].value == f"{4 / 6:.3f}"
    assert nodes["mean_fnv_ml"].value == "0.14"  # 27 voxels in two of six patients
    assert nodes["median_hd95_mm"].reason == "in no patient do both masks hold the target"
    assert any("nodes" in note or "node metastases: 4 patients" in note for note in table.notes)


def test_pairs(summary):
    nodes = row_of(tables_lesions.matched(summary), "Lymph node metastases")
    assert [nodes[key].value for key in ("n_man", "n_cnn", "n_matched", "f1")] == ["2", "0", "0", "0.0"]
    assert nodes["precision"].reason == "no lesion in the prediction"


def test_sensitivity_by_volume_and_uptake(summary):
    table = tables_lesions.sensitivity(summary)
    names = ["< 1 ml", "1–5 ml", "> 5 ml", "SUVmax < 4", "SUVmax 4–10", "SUVmax > 10"]
    assert [row.name for row in table.rows] == names
    small, hot = row_of(table, "< 1 ml"), row_of(table, "SUVmax 4–10")
    assert (small["nodes/n"].value, small["nodes/tpr"].value) == ("2", "0.0")
    assert (hot["all/n"].value, hot["primary/sensitivity"].value) == ("8", "100.0")
    assert row_of(table, "> 5 ml")["all/tpr"].value == "–"


def test_choices_begin_with_the_studys_own(summary):
    table = tables_lesions.choices(summary)
    names = [row.name for row in table.rows]
    assert names[0] == "As in the study"
    assert "In the study: 26 neighbours, ROIs from 0.1 ml, coverage 50 %." in table.notes
    assert set(names[1:]) == {
        "6 neighbours",
        "18 neighbours",
        "ROIs of any size",
        "ROIs from 0.5 ml",
        "Coverage 30 %",
        "Coverage 70 %",
    }
    block = summary["cross_validation"]["lesions"]["all"]
    assert row_of(table, names[0])["all/tpr"].value == f"{100 * block['tpr']:.1f}"
    assert row_of(table, "ROIs from 0.5 ml")["nodes/tpr"].value == "–"  # the nodes of 0.42 ml are gone


@pytest.mark.parametrize("make", TABLES)
def test_an_absent_partition_leaves_a_note(make, summary):
    notes = make(summary).notes
    assert "External testing: not estimable: no patient of the external cohort was evaluated." in notes


@pytest.mark.parametrize("make", TABLES)
def test_both_settings_show_every_row(make, summary):
    table = make(summary)
    page, twin = great_table(table, "tbl-test").as_raw_html(), typst(table)
    for row in table.rows:
        assert row.name.replace("<", "&lt;").replace(">", "&gt;") in page
        assert row.name in twin


@pytest.mark.parametrize("make", TABLES)
def test_a_study_without_lesions_has_its_reasons(make, tmp_path):
    nothing = dataclasses.replace(
        case(0), reference=box(0, (0, 0, 0), (1, 1, 1)), prediction=box(0, (0, 0, 0), (1, 1, 1))
    )
    cohort = pd.DataFrame({"patient": ["P0"], "cohort": "main", "site": "Ash"})
    table = make(evaluate([nothing], cohort, tmp_path, Params(bootstrap_resamples=100)))
    assert great_table(table, "tbl-test").as_raw_html()
    values = [cell for row in table.rows for cell in row.cells.values() if cell.value == "–"]
    assert values
    assert make is tables_lesions.sensitivity or all(cell.reason for cell in values)
