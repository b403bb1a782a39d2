"""Tables of who was studied: each number in its place, what is missing beside it, and what is absent said once."""

import pandas as pd
import pytest
from test_tables import words

from mtvlib import tables_cohort
from mtvlib.audit import Check
from mtvlib.describe import BURDEN, CLINICAL, Variable, by_site, table_one
from mtvlib.params import Params
from mtvlib.subgroups import subgroups
from mtvlib.typeset import typst

AGE = Variable("age", "Age (years)", "number", 0)
SEX = Variable("sex", "Sex", "category")
DEATH = Variable("death", "Deaths", "share")
VARIABLES = (AGE, SEX, DEATH)


def cohort(**columns):
    table = {"cohort": ["main"] * 4 + ["external"] * 3, "site": ["Berlin"] * 4 + ["Munich"] * 3}
    table |= {"age": [50, 60, None, 70, 40, 44, 48], "sex": [*"MMF", "", *"MFX"], "death": [1, 0, 1, 1, 0, 0, None]}
    return pd.DataFrame(table | columns)


def told(table, variables=VARIABLES):
    return tables_cohort.table_one(table_one(table, variables), variables)


def line(table, name):
    (found,) = [" ".join(row.split()) for row in words(table) if row.split(" | ")[0].strip() == name]
    return found.replace("\u00a0", " ")


# --- Table 1


def test_table_one_puts_each_number_in_its_place():
    table = told(cohort())
    head = " ".join(words(table)[0].split())
    assert "Cross-validation N = 4 | External testing N = 3 | Missing CV / ext. | SMD" in head
    assert line(table, "Age (years)") == "Age (years) | 60 (55–65) | 44 (42–46) | 1 / 0 | 2.10 0.11–4.09"
    assert line(table, "Deaths, n (%)").startswith("Deaths, n (%) | 3 (75.0 %) | 0 (0.0 %) | 0 / 1 | 2.45")
    assert line(table, "F") == "F | 1 (33.3 %) | 1 (33.3 %) | |"
    assert line(table, "X") == "X | 0 (0.0 %) | 1 (33.3 %) | |"
    # Shares of F, M, X: (1, 2, 0) / 3 and (1, 1, 1) / 3; d = (1/3, -1/3), S = [[4, -1], [-1, 2]] / 18: sqrt(8 / 7)
    assert line(table, "Sex, n (%)").endswith("| 1 / 0 | 1.07")


def test_without_an_external_cohort_there_is_no_difference_to_tell():
    table = told(cohort().iloc[:4])
    assert list(table.columns) == ["main", "missing"]
    assert line(table, "Age (years)") == "Age (years) | 60 (55–65) | 1"
    assert not any("SMD" in note for note in table.notes)


def test_absent_columns_are_named_once_below_the_table():
    table = told(cohort()[["cohort", "site"]], CLINICAL)
    assert [row.name for row in table.rows] == ["Nothing is recorded of the patients"]
    (note,) = [note for note in table.notes if "Not recorded" in note]
    assert note.startswith("Not recorded in this cohort: Age (years), Sex, Tumour site")
    assert typst(table)
    assert words(table)


@pytest.mark.parametrize("n", [1, 3])
def test_small_cohorts_and_unknown_values_are_shown(n):
    table = told(cohort(age=[None] * 7, sex=[""] * 7).iloc[:n])
    assert line(table, "Age (years)") == f"Age (years) | – | {n}"
    assert line(table, "Sex, n (%)") == f"Sex, n (%) | | {n}"


def test_one_known_value_has_no_quartiles_and_a_missing_difference_its_reason():
    table = told(cohort(age=[None, None, 61, None, 40, 44, 48]))
    assert line(table, "Age (years)").startswith("Age (years) | 61 | 44 (42–46) | 3 / 0 | –")
    assert "fewer than two known values in one of the cohorts" in " ".join(table.footnotes())


# --- sites


def test_sites_have_their_medians_and_what_is_missing():
    rows = by_site(cohort(scanner=["mCT", "mCT", "GE", "GE", "", "", ""]), VARIABLES)
    table = tables_cohort.by_site(rows, VARIABLES)
    assert list(table.columns) == ["n", "scanners", "age", "death"]
    assert line(table, "Berlin") == "Berlin | 4 | mCT (2) GE (2) | 60 (55–65) 1 missing | 3 (75.0 %)"
    assert line(table, "Munich") == "Munich | 3 | – | 44 (42–46) | 0 (0.0 %) 1 missing"
    assert [row.group for row in table.rows] == ["Cross-validation", "External testing"]


def test_sites_of_a_cohort_that_tells_nothing():
    bare = cohort()[["cohort", "site"]]
    table = tables_cohort.by_site(by_site(bare, BURDEN), BURDEN)
    assert list(table.columns) == ["n"]
    assert line(table, "Berlin") == "Berlin | 4"


# --- folds


def test_the_folds_are_told_as_they_were_made():
    assert "balanced over the sites" in tables_cohort.how_divided(Params())
    told_by_site = tables_cohort.how_divided(Params(split_by="site"))
    assert "one whole site" in told_by_site
    assert "64 / 16 / 20" not in told_by_site
    assert "16 % of the main cohort" in told_by_site


def test_the_audit_counts_what_was_checked():
    table = tables_cohort.audit([Check("fold 0: persons in two parts", 36, []), Check("scans", 46, [])])
    assert line(table, "Fold 0: persons in two parts") == "Fold 0: persons in two parts | 36 | 0"


# --- subgroups


def summary(external=True, **columns):
    """Ten patients of the main cohort at two sites, three of the external one at a third."""
    n = 13
    size = [10.0 + i for i in range(n)]
    table = {"ttb_man_ml": size, "ttb_cnn_ml": size, "both_all_ml": [x * x / 30 for x in size]}
    table |= {
        "patient": [f"P{i}" for i in range(n)],
        "dsc_all": [x / 30 for x in size],
        "site": ["a", "b"] * 5 + ["0"] * 3,
    }
    patients = pd.DataFrame(table | columns)
    parts = {"cross_validation": patients.iloc[:10], "external_testing": patients.iloc[10:]}
    blocks = {
        split: {"subgroups": subgroups(part, Params(bootstrap_resamples=100)), "n_patients": len(part)}
        for split, part in parts.items()
    }
    return blocks if external else blocks | {"external_testing": {"n_patients": 0, "reason": "nobody"}}


def test_subgroups_stand_side_by_side_in_one_order():
    table = tables_cohort.subgroups(summary(hpv=["positive", "", *["negative"] * 11]))
    names = [row.name for row in table.rows]
    assert [name.replace("\u2003", "- ") for name in names] == [
        *("Site", "- 0", "- a", "- b"),
        *("HPV", "- negative", "- positive", "- missing"),
        *("TTB (ml)", "- 5 to 20", "- 20 or more"),
    ]
    cells = {row.name: row.cells for row in table.rows}
    assert cells["\u20030"]["cross_validation n"].value == ""
    assert cells["\u20030"]["external_testing n"].value == "3"
    assert cells["\u2003a"]["cross_validation Mean DSC"].value.startswith("0.47 (")
    assert cells["\u2003missing"]["cross_validation Mean DSC"].value == "0.37"  # one patient: no interval
    assert cells["HPV"]["external_testing p (Holm)"].reason == "fewer than two groups of 5 patients or more"
    assert cells["Site"]["cross_validation p (Holm)"].value == "0.60 (0.60)"


def test_subgroups_of_one_partition_and_what_is_not_recorded():
    table = tables_cohort.subgroups(summary(external=False))
    assert all(column.startswith("cross_validation") for column in table.columns)
    assert "Not recorded in this cohort: Tumour site, Stage, HPV, Sex, Age (years), SUVmax" in " ".join(table.notes)
    assert "external" not in " ".join(table.notes)
    assert words(table)
    assert typst(table)
