"""Tables of trust: values stand where they belong, and what is missing says why."""

import pandas as pd
import pytest

from mtvlib import tables_trust
from mtvlib.typeset import great_table, typst


def values(key, value, low, high):
    return {key: value, f"{key}_ci95": [low, high]}


def point(number):
    block = values("mean_dsc", 0.7 + number / 100, 0.6, 0.8) | values("cohort_dsc", 0.75, 0.7, 0.8)
    return block | values("failed", 0.05, 0.0, 0.1) | values("failed_of_rest", 0.06, 0.0, 0.12)


def trust_block():
    triage = {"share": 0.2, "n_corrected": 2} | values("gain", 0.664, -0.1, 0.98)
    triage |= {order: point(n) for n, order in enumerate(tables_trust.ORDER_NAMES, 1)}
    expected = values("mean", 0.88, 0.8, 0.9) | values("excess", -0.02, -0.1, 0.1) | values("spearman", 0.76, 0.5, 0.9)
    return {
        "uncertainty": {"models": 1, "expected_dsc": expected},
        "lesions": {"n_confirmed": 60, "n_spurious": 11} | values("auc", 0.81, 0.7, 0.9),
        "calibration": values("ece", 0.0404, 0.03, 0.05)
        | values("ece_of_suspected", 0.11, 0.09, 0.16)
        | values("brier", 0.052, 0.04, 0.06)
        | values("brier_of_constant", 0.112, 0.09, 0.13)
        | {"volume_ratio": None, "volume_ratio_ci95": None, "volume_ratio_reason": "no patient has a lesion"},
        "triage": triage | {"nobody": point(0)},
        "froc": {"n_lesions": 70, "sensitivity_at_0.5_fp": None, "sensitivity_at_0.5_fp_reason": "too many"}
        | values("sensitivity_at_1_fp", 0.55, 0.4, 0.7)
        | values("sensitivity_at_2_fp", 0.71, 0.6, 0.8),
    }


@pytest.fixture
def summary():
    return {
        "cross_validation": {"n_patients": 10, "trust": trust_block()},
        "external_testing": {"n_patients": 0, "reason": "no patient of the external cohort was evaluated"},
    }


def cells(table, name):
    (row,) = [row for row in table.rows if row.name == name]
    return {key: (cell.value, cell.below) for key, cell in row.cells.items()}


BUILDERS = [tables_trust.calibration, tables_trust.uncertainty, tables_trust.triage, tables_trust.lesions]


def test_calibration_in_per_cent_with_the_reason_of_what_is_missing(summary):
    table = tables_trust.calibration(summary)
    row = cells(table, "Cross-validation (N = 10)")
    assert row["ece"] == ("4.0", "3.0–5.0")
    assert row["brier_of_constant"] == ("0.112", "0.090–0.130")
    assert row["volume_ratio"] == ("–", "")
    assert "no patient has a lesion" in table.footnotes()


def test_one_model_has_one_sign_of_doubt_and_an_ensemble_two(summary):
    assert [row.name for row in tables_trust.uncertainty(summary).rows] == ["Expected DSC"]
    own = summary["cross_validation"]["trust"]["uncertainty"]
    own["model_dsc"] = own["expected_dsc"] | {"spearman": 0.5}
    table = tables_trust.uncertainty(summary)
    assert cells(table, "DSC among the models")["spearman"][0] == "0.50"
    assert cells(table, "Expected DSC")["excess"] == ("−0.02", "−0.10\u00a0to\u00a00.10")


def test_triage_names_who_is_corrected(summary):
    table = tables_trust.triage(summary)
    assert [row.name for row in table.rows] == ["Nobody", *tables_trust.ORDER_NAMES.values()]
    assert [row.cells["n"].value for row in table.rows] == ["0", "2", "2", "2"]
    assert [row.cells["mean_dsc"].value for row in table.rows] == ["0.700", "0.710", "0.720", "0.730"]
    assert cells(table, "Nobody")["failed"] == ("5.0", "0.0–10.0")
    assert [row.cells["gain"].value for row in table.rows] == ["", "66", "", ""]


def test_lesions_and_the_threshold(summary):
    table = tables_trust.lesions(summary)
    row = cells(table, "Cross-validation (N = 10)")
    assert (row["n_confirmed"][0], row["auc"][0], row["sensitivity_at_2_fp"][0]) == ("60", "0.81", "71.0")
    assert "too many" in table.footnotes()


@pytest.mark.parametrize("build", BUILDERS)
def test_a_partition_without_probabilities_leaves_a_note(build, summary):
    summary["external_testing"] = {"n_patients": 3, "trust": {"reason": "3 of 3 predictions keep no probabilities"}}
    table = build(summary)
    assert len({row.group + row.name for row in table.rows}) == len(table.rows) > 0
    assert "External testing: not estimable: 3 of 3 predictions keep no probabilities." in table.notes
    del summary["external_testing"]["trust"]
    assert any(tables_trust.NOT_EVALUATED in note for note in build(summary).notes)


@pytest.mark.parametrize("build", BUILDERS)
def test_tables_can_be_set(build, summary):
    assert "no patient of the external cohort" in great_table(build(summary), "tbl-x").as_raw_html()
    assert "no patient of the external cohort" in typst(build(summary))


def test_lesions_are_counted_by_the_models_that_see_them():
    rows = [("e", 3, 3, "TP"), ("e", 3, 3, "FP"), ("e", 1, 3, "FP"), ("m", None, 1, "TP")]
    predicted = pd.DataFrame(rows, columns=["patient", "models_agreeing", "models", "outcome"])
    predicted["partition"] = predicted["patient"].map({"e": "external_testing", "m": "cross_validation"})
    table = tables_trust.models_agreeing(predicted)
    assert [(row.name, [cell.value for cell in row.cells.values()]) for row in table.rows] == [
        ("1 of 3 models", ["0", "1", "0"]),
        ("3 of 3 models", ["1", "1", "50"]),
    ]


def failure(
    patient, target, *, partition="cross_validation", man_ml=1.0, cnn_ml=0.0, what="nothing was predicted", why=""
):
    row = {"partition": partition, "patient": patient, "target": target, "what": what}
    return row | {"why": why or None, "man_ml": man_ml, "cnn_ml": cnn_ml}


FAILURES = pd.DataFrame(
    [
        failure("small", "nodes", man_ml=0.2, why="small lesion (largest 0.20 ml)"),
        failure("large", "primary", man_ml=0.0, cnn_ml=9.0, what="predicted where there is none"),
        failure("both", "nodes", partition="external_testing"),
        failure("both", "all", partition="external_testing"),
    ]
)


def test_who_failed_altogether_comes_first_and_then_the_largest_volume():
    names = [rows[0]["patient"] for rows in tables_trust.failed_patients(FAILURES)]
    assert names == ["both", "large", "small"]
    shuffled = FAILURES.sample(frac=1, random_state=1)
    assert [rows[0]["patient"] for rows in tables_trust.failed_patients(shuffled)] == names


def test_the_table_of_failed_patients_keeps_the_gravest():
    table = tables_trust.failures(FAILURES, 3)
    assert [(row.group, row.name) for row in table.rows] == [
        ("Cross-validation", "large"),
        ("External testing", "both"),
        ("External testing", "both"),
    ]
    assert table.rows[0].cells["why"].value == "–"
    assert table.notes == ["The first 3 of 4; results/failures.csv holds all."]
    whole = tables_trust.failures(FAILURES, 4)
    assert (len(whole.rows), whole.notes) == (4, [])
    assert cells(whole, "small")["why"][0] == "small lesion (largest 0.20 ml)"


def test_failures_are_counted_by_kind_and_target():
    table = tables_trust.failures_by_kind(FAILURES)
    counted = {(row.group, row.name): [cell.value for cell in row.cells.values()] for row in table.rows}
    assert counted == {
        ("Cross-validation", "Nothing was predicted"): ["0", "1", "0"],
        ("Cross-validation", "Predicted where there is none"): ["1", "0", "0"],
        ("External testing", "Nothing was predicted"): ["0", "1", "1"],
    }


def test_failures_in_words():
    assert tables_trust.failed_summary(FAILURES) == (
        "Manual and automatic delineation share no voxel in 1 patient (primary tumour), "
        "2 patients (lymph node metastases), 1 patient (primary + metastases)."
    )
    rows = tables_trust.failed_patients(FAILURES)[2]
    assert tables_trust.failed_words(rows) == (
        "Lymph node metastases: nothing was predicted; small lesion (largest 0.20 ml)."
    )
