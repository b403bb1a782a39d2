"""From masks to the three result files: a cohort worked out by hand, and every way in which one can be degenerate."""

import dataclasses
import json
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from mtvlib import lesion_choices, volume
from mtvlib.cohort import read_cohort
from mtvlib.errors import InputError
from mtvlib.evaluation import (
    Case,
    choice_counts,
    evaluate,
    evaluate_case,
    evaluate_cohort,
    evaluate_study,
    summarise,
)
from mtvlib.files import sha256
from mtvlib.params import Params
from mtvlib.prepare import prepare_patient
from mtvlib.study import Study

MM = (2.5, 2.5, 2.5)
SHAPE = (24, 24, 20)
PARAMS = Params(bootstrap_resamples=100)
PAPER = json.loads((resources.files("mtvlib") / "data" / "paper_results.json").read_text(encoding="utf-8"))


def mask(*boxes):
    """Label map of boxes (label, first corner, sides)."""
    labels = np.zeros(SHAPE, np.uint8)
    for label, corner, sides in boxes:
        labels[tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))] = label
    return labels


def case(patient, reference, prediction, suv=True):
    reference, prediction = mask(*reference), mask(*prediction)
    return Case(patient, reference, prediction, np.where(reference > 0, 8.0, 1.0) if suv else None, MM)


def cases(n=8, external=0):
    """Primaries of 4 x 4 x (2 + i) voxels, half of the patients with a node of 3 x 3 x 3; predicted one slice less."""
    for number in range(n + external):
        sides = (4, 4, 2 + number)
        node = [(2, (15, 15, 5), (3, 3, 3))] if number % 2 else []
        patient = f"E{number - n}" if number >= n else f"M{number}"
        yield case(patient, [(1, (4, 4, 4), sides), *node], [(1, (4, 4, 4), (4, 4, 1 + number)), *node])


def cohort(n=8, external=0, survival=True):
    table = pd.DataFrame(
        {
            "patient": [f"M{i}" for i in range(n)] + [f"E{i}" for i in range(external)],
            "cohort": ["main"] * n + ["external"] * external,
            "site": ["Ash"] * n + ["Birch"] * external,
            "fold": [i % 5 for i in range(n)] + [-1] * external,
        }
    )
    if survival:
        table["survival_eligible"] = 1.0
        table["followup_months"] = [40.0 - 3 * (i % 8) for i in range(n + external)]
        table["death"] = [float(i % 3 != 1) for i in range(n + external)]
    return table


def results(folder):
    """The three files as a reader finds them; JSON without NaN."""
    text = (folder / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return summary, read_table(folder, "patients"), read_table(folder, "lesions")


def read_table(folder, name):
    """Numbers as they were written: pandas' quick parser may be off by the last bit."""
    return pd.read_csv(folder / f"{name}.csv", float_precision="round_trip")


def nulls(block, path=""):
    """Paths of all nulls without a reason: `reason` of the block or `<key>_reason`; p has the hazard ratio's."""
    if not isinstance(block, dict) or "reason" in block:
        return
    for key, value in block.items():
        name = "hr" if key == "p" else key.removesuffix("_ci95").removesuffix("_p").removesuffix("_chi2")
        if value is None and f"{name}_reason" not in block:
            yield f"{path}/{key}"
        yield from nulls(value, f"{path}/{key}")


# --- one patient by hand


def test_a_patient_by_hand():
    """Primary 4 x 4 x 4, predicted 4 x 4 x 3; a node of 27 voxels missed; a stray of 6 (0.09 ml) does not count."""
    reference = [(1, (4, 4, 4), (4, 4, 4)), (2, (15, 15, 5), (3, 3, 3))]
    row, found = evaluate_case(case("A", reference, [(1, (4, 4, 4), (4, 4, 3)), (2, (0, 0, 0), (1, 1, 6))]), PARAMS)
    assert (row["dsc_primary"], row["dsc_nodes"]) == (pytest.approx(2 * 48 / (64 + 48)), 0)
    assert row["dsc_all"] == pytest.approx(2 * 48 / (91 + 48))
    assert (row["ttb_man_ml"], row["ttb_cnn_ml"]) == (91 / 64, 48 / 64)  # a voxel has 1/64 ml
    assert (row["mtv_nodes_man_ml"], row["mtv_nodes_cnn_ml"], row["removed_cnn_ml"]) == (27 / 64, 0, 6 / 64)
    assert (row["tlg_man"], row["tlg_cnn"]) == (pytest.approx(8 * 91 / 64), pytest.approx(8 * 48 / 64))
    assert (row["suvmax_man"], row["suvmean_cnn"]) == (8, pytest.approx(8))
    assert (row["failed_primary"], row["failed_nodes"], row["failed_all"]) == (False, True, False)
    assert [row[f"{name}_voxels"] for name in ("t_primary", "f_primary", "t_nodes", "f_nodes")] == [48, 0, 0, 0]
    assert [(lesion["source"], lesion["target"], lesion["outcome"]) for lesion in found] == [
        ("man", "primary", "TP"),
        ("man", "nodes", "FN"),
        ("cnn", "primary", "TP"),
    ]


def test_boundary_and_false_volumes_by_hand():
    """A primary with one slice too few, a missed node, and a spurious one of 8 voxels 25 mm below the primary."""
    reference = [(1, (4, 4, 10), (4, 4, 4)), (2, (15, 15, 5), (3, 3, 3))]
    row, _ = evaluate_case(case("A", reference, [(1, (4, 4, 10), (4, 4, 3)), (2, (4, 4, 0), (2, 2, 2))]), PARAMS)
    assert (row["surface_dsc_2_5mm_primary"], row["hd95_primary_mm"]) == (1, 2.5)
    assert 0 < row["assd_primary_mm"] < 2.5
    assert row["surface_dsc_5mm_nodes"] == 0
    assert 40 < row["hd95_nodes_mm"] < 45  # the farthest corner, (18, 18, 8), is 12, 12 and 6 voxels from (6, 6, 2)
    volumes_ml = [(row[f"fpv_{target}_ml"], row[f"fnv_{target}_ml"]) for target in ("primary", "nodes", "all")]
    assert volumes_ml == [(0, 0), (8 / 64, 27 / 64), (8 / 64, 27 / 64)]
    assert (row["largest_node_man_ml"], row["largest_node_cnn_ml"]) == (27 / 64, 8 / 64)
    # Centroids at (5.5, 5.5, 11.5) and (16, 16, 6), and at (5.5, 5.5, 11) and (4.5, 4.5, 0.5), in voxels of 2.5 mm.
    assert row["dmax_man_mm"] == pytest.approx(2.5 * np.sqrt(10.5**2 + 10.5**2 + 5.5**2))
    assert row["dmax_cnn_mm"] == pytest.approx(2.5 * np.sqrt(1 + 1 + 10.5**2))


def test_a_class_error_is_a_false_volume_of_both_classes_and_of_no_union():
    row, _ = evaluate_case(case("A", [(2, (4, 4, 4), (3, 3, 3))], [(1, (4, 4, 4), (3, 3, 3))]), PARAMS)
    assert (row["fpv_primary_ml"], row["fnv_primary_ml"]) == (27 / 64, 0)
    assert (row["fpv_nodes_ml"], row["fnv_nodes_ml"]) == (0, 27 / 64)
    assert (row["fpv_all_ml"], row["fnv_all_ml"], row["surface_dsc_2_5mm_all"]) == (0, 0, 1)


def test_one_lesion_and_none_have_no_spread():
    row, found = evaluate_case(case("A", [(1, (4, 4, 4), (4, 4, 4))], []), PARAMS)
    assert (row["dmax_man_mm"], row["dmax_cnn_mm"], row["largest_node_man_ml"]) == (None, None, 0)
    assert (row["hd95_all_mm"], row["surface_dsc_2_5mm_nodes"], row["fnv_all_ml"]) == (None, 1, 1)
    assert found[0]["matched_lesion"] is None


def test_small_rois_have_no_boundary_either():
    """A stray of 6 voxels (0.09 ml) is removed before anything is measured; the choices see it."""
    one = case("A", [(1, (4, 4, 4), (4, 4, 4))], [(1, (4, 4, 4), (4, 4, 4)), (1, (20, 20, 4), (1, 1, 6))])
    row, _ = evaluate_case(one, PARAMS)
    assert (row["hd95_primary_mm"], row["fpv_primary_ml"]) == (0, 0)
    counts = dict(zip(lesion_choices.choices(26, 0.1, 0.5), choice_counts(one, PARAMS)[:, 0].tolist(), strict=True))
    assert counts[(26, 0.1, 0.5)] == [1, 1, 0, 0]
    assert counts[(26, 0.0, 0.5)] == [1, 1, 0, 1]


def test_a_node_called_primary_is_a_classification_error_of_the_union():
    row, _ = evaluate_case(case("A", [(2, (4, 4, 4), (3, 3, 3))], [(1, (4, 4, 4), (3, 3, 3))]), PARAMS)
    assert (row["dsc_primary"], row["dsc_nodes"], row["dsc_all"]) == (0, 0, 1)
    assert row["f_primary_voxels"] == 27


def test_lesions_that_touch_the_border_are_flagged():
    row, _ = evaluate_case(case("A", [(1, (0, 4, 4), (4, 4, 4))], [(1, (1, 4, 4), (3, 4, 4))]), PARAMS)
    assert (row["touches_border_man"], row["touches_border_cnn"]) == (True, False)


def test_without_suv_uptake_is_unknown():
    row, _ = evaluate_case(case("A", [(1, (4, 4, 4), (4, 4, 4))], [], suv=False), PARAMS)
    assert [row[f"{name}_man"] for name in ("tlg", "suvmax", "suvmean", "suvpeak")] == [None] * 4


def test_memory_order_does_not_matter():
    one = next(cases(1))
    other = Case("M0", *(np.asfortranarray(array) for array in (one.reference, one.prediction, one.suv)), MM)
    assert evaluate_case(other, PARAMS) == evaluate_case(one, PARAMS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prediction": np.zeros((3, 4, 5), np.uint8)}, "differ in shape"),
        ({"suv": np.zeros((3, 4, 5))}, "differ in shape"),
        ({"prediction": np.full(SHAPE, 3, np.uint8)}, "prediction must hold the integer classes"),
        ({"reference": np.full(SHAPE, -1, np.int8)}, "reference must hold the integer classes"),
        ({"prediction": np.zeros(SHAPE)}, "prediction must hold the integer classes"),
    ],
)
def test_unfit_masks_are_refused_with_the_patient(change, problem):
    one = next(cases(1))
    arrays = {"reference": one.reference, "prediction": one.prediction, "suv": one.suv} | change
    with pytest.raises(InputError, match=problem) as caught:
        evaluate_case(Case("Zoe", **arrays, spacing_mm=MM), PARAMS)
    assert caught.value.patient == "Zoe"


# --- a cohort by hand


def test_summary_by_hand(tmp_path):
    evaluate(cases(8, 2), cohort(8, 2), tmp_path, PARAMS)
    summary, patients, _ = results(tmp_path)
    main = summary["cross_validation"]
    # Primaries have 16 (2 + i), predictions 16 (1 + i) voxels, i = 0..7.
    assert main["delineation"]["primary"]["cohort_dsc"] == pytest.approx(2 * 36 / (44 + 36))
    dsc = [2 * (1 + i) / (3 + 2 * i) for i in range(8)]
    assert main["delineation"]["primary"]["mean_dsc"] == pytest.approx(np.mean(dsc))
    assert main["delineation"]["primary"]["median_dsc"] == pytest.approx(np.median(dsc))
    assert main["delineation"]["nodes"]["cohort_dsc"] == 1
    assert main["delineation"]["nodes"]["n_both_empty"] == 4
    assert main["ttb"]["all_patients"]["mean_absolute_difference_ml"] == pytest.approx(16 / 64)
    assert main["classification"]["n_voxels"] == 36 * 16 + 4 * 27
    assert main["classification"]["t_nodes"] == pytest.approx(108 / 684)
    assert main["classification"]["scans_without_error"] == 8
    assert [main["lesions"]["all"][key] for key in ("tp_man", "tp_cnn", "fn", "fp")] == [12, 12, 0, 0]
    found = main["lesions"]["all"]
    assert (found["n_matched"], found["f1"], found["sensitivity_by_suv_max"]["4_to_10"]["n"]) == (12, 1, 12)
    small = found["sensitivity_by_volume"]["below_1_ml"]
    assert (small["n"], small["tpr"]) == (6, 1)  # primaries of 32 and 48 voxels and all nodes
    assert [main["lesion_choices"][0]["all"][key] for key in ("tp_man", "tp_cnn", "fn", "fp")] == [12, 12, 0, 0]
    boundary = main["delineation"]["primary"]
    assert (boundary["mean_surface_dsc_2_5mm"], boundary["median_hd95_mm"]) == (1, 2.5)
    assert (boundary["mean_fpv_ml"], boundary["mean_fnv_ml"], boundary["n_distance_undefined"]) == (0, 0, 0)
    assert main["delineation"]["nodes"]["n_distance_undefined"] == 4
    assert main["delineation"]["nodes"]["n_one_empty"] == 0
    cutoff = np.median([16 * (2 + i) + 27 * (i % 2) for i in range(8)]) / 64
    assert (
        main["survival"]["cutoff_ml"] == summary["external_testing"]["survival"]["cutoff_ml"] == pytest.approx(cutoff)
    )
    assert (main["survival"]["n"], main["survival"]["events"]) == (8, 5)
    high = patients.loc[patients["risk_man"] == "high", "patient"].tolist()
    assert high == [f"M{i}" for i in range(8) if 16 * (2 + i) + 27 * (i % 2) > cutoff * 64] + ["E0", "E1"]


def test_every_key_of_the_paper_is_there_with_its_interval(tmp_path):
    summary = evaluate(cases(8, 8), cohort(8, 8), tmp_path, PARAMS)

    def compare(theirs, ours, path):
        for key, value in theirs.items():
            assert key in ours, f"{path}/{key}"
            if isinstance(value, dict):
                compare(value, ours[key], f"{path}/{key}")
            elif isinstance(value, float):
                assert f"{key}_ci95" in ours, f"{path}/{key}_ci95"

    for partition in ("cross_validation", "external_testing"):
        compare(PAPER[partition], summary[partition], partition)
        assert summary[partition]["n_patients"] == 8


def test_the_files_say_what_the_summary_says(tmp_path):
    """The summary can be computed again from the three tables on disk."""
    summary = evaluate(cases(8, 3), cohort(8, 3), tmp_path, PARAMS)
    written, patients, lesions = results(tmp_path)
    choices = read_table(tmp_path, "lesion_choices")
    again = summarise(patients, lesions, choices, PARAMS)
    assert json.loads(json.dumps(again)) == written == json.loads(json.dumps(summary))


def test_tables_have_the_contract_s_columns(tmp_path):
    evaluate(cases(3), cohort(3), tmp_path, PARAMS)
    _, patients, lesions = results(tmp_path)
    first = "patient cohort site fold dsc_primary dsc_nodes dsc_all ttb_man_ml ttb_cnn_ml"
    assert list(patients.columns)[:9] == first.split()
    volumes = {f"mtv_{target}_{source}_ml" for target in ("primary", "nodes") for source in ("man", "cnn")}
    assert volumes | {"tlg_man", "tlg_cnn", "suvmax_man", "suvmax_cnn"} <= set(patients)
    expected = "patient source target lesion volume_ml coverage outcome suv_max suv_mean suv_peak tlg touches_border"
    assert list(lesions.columns)[:12] == expected.split()


def test_the_order_of_the_cases_changes_nothing(tmp_path):
    evaluate(cases(6), cohort(6), tmp_path / "one", PARAMS)
    evaluate(reversed(list(cases(6))), cohort(6), tmp_path / "two", PARAMS)
    for name in ("patients.csv", "lesions.csv", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_voxels_of_another_size_weigh_by_their_volume(tmp_path):
    """One patient on 5 mm voxels: eight times the volume of the other, of which half is found, as a node."""
    coarse = case("M1", [(1, (4, 4, 4), (4, 4, 4))], [(2, (4, 4, 4), (4, 4, 2))])
    coarse = Case("M1", coarse.reference, coarse.prediction, coarse.suv, (5.0, 5.0, 5.0))
    perfect = case("M0", [(1, (4, 4, 4), (4, 4, 4))], [(1, (4, 4, 4), (4, 4, 4))])
    summary = evaluate([perfect, coarse], cohort(2), tmp_path, PARAMS)
    assert summary["cross_validation"]["delineation"]["all"]["cohort_dsc"] == pytest.approx(2 * 5 / (9 + 5))
    assert summary["cross_validation"]["classification"]["accuracy"] == pytest.approx(1 / (1 + 4))
    assert summary["cross_validation"]["classification"]["n_voxels"] == 64 + 32


@pytest.mark.parametrize(
    ("given", "problem"),
    [([*cases(2), *cases(1)], "comes twice"), ([*cases(3)], "not in the cohort"), ([], "no patient to evaluate")],
)
def test_patients_must_be_known_and_come_once(given, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        evaluate(given, cohort(2), tmp_path, PARAMS)
    assert not list(tmp_path.iterdir())


# --- several scans of one person


def scanned_twice(n):
    """Every patient of `cases(n)` a second time, under another name, and the cohort that says so."""
    again = [dataclasses.replace(one, patient=f"{one.patient}_again") for one in cases(n)]
    table = pd.concat([cohort(n), cohort(n).assign(patient=[one.patient for one in again])], ignore_index=True)
    return [*cases(n), *again], table.assign(person=[f"M{i}" for i in range(n)] * 2)


def test_a_second_scan_of_everybody_makes_no_interval_narrower(tmp_path):
    once = evaluate(cases(8), cohort(8), tmp_path / "once", PARAMS)["cross_validation"]
    twice = evaluate(*scanned_twice(8), tmp_path / "twice", PARAMS)["cross_validation"]
    assert (twice["n_patients"], twice["n_persons"]) == (16, 8)
    for target in ("primary", "all"):
        for key in ("cohort_dsc_ci95", "mean_dsc_ci95"):
            assert twice["delineation"][target][key] == pytest.approx(once["delineation"][target][key]), key
    assert twice["classification"]["t_nodes_ci95"] == pytest.approx(once["classification"]["t_nodes_ci95"])
    key = "mean_absolute_difference_ml"
    assert twice["ttb"]["all_patients"][key] == pytest.approx(once["ttb"]["all_patients"][key])
    unknown = evaluate(scanned_twice(8)[0], scanned_twice(8)[1].drop(columns="person"), tmp_path / "unknown", PARAMS)
    width = np.ptp(unknown["cross_validation"]["delineation"]["all"]["cohort_dsc_ci95"])
    assert width < 0.85 * np.ptp(twice["delineation"]["all"]["cohort_dsc_ci95"])


def test_persons_with_one_scan_each_change_nothing(tmp_path):
    known = evaluate(cases(6), cohort(6).assign(person=[f"M{i}" for i in range(5)] + [np.nan]), tmp_path, PARAMS)
    assert known == evaluate(cases(6), cohort(6), tmp_path, PARAMS)
    assert known["cross_validation"]["n_persons"] == 6


def test_patients_csv_says_whose_scan_a_row_is(tmp_path):
    """So that the summary can be computed again from it."""
    summary = evaluate(*scanned_twice(3), tmp_path, PARAMS)
    written, patients, lesions = results(tmp_path)
    assert patients["person"].tolist() == ["M0", "M1", "M2"] * 2
    choices = read_table(tmp_path, "lesion_choices")
    again = summarise(patients, lesions, choices, PARAMS)
    assert json.loads(json.dumps(again)) == written == json.loads(json.dumps(summary))


# --- degenerate cohorts: null with a reason, never an exception, 0 or NaN


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_cohorts(n, tmp_path):
    evaluate(cases(n), cohort(n), tmp_path, PARAMS)
    summary, _, _ = results(tmp_path)
    assert summary["cross_validation"]["n_patients"] == n
    assert list(nulls(summary)) == []
    if n == 1:
        assert summary["cross_validation"]["delineation"]["primary"]["cohort_dsc_ci95"] is None


def test_no_node_anywhere(tmp_path):
    given = [case(f"M{i}", [(1, (4, 4, 4), (4, 4, 4))], [(1, (4, 4, 4), (4, 4, 3))]) for i in range(4)]
    evaluate(given, cohort(4), tmp_path, PARAMS)
    summary = results(tmp_path)[0]["cross_validation"]
    assert summary["delineation"]["nodes"]["cohort_dsc"] is None
    assert summary["delineation"]["nodes"]["reason"] == "no patient has a node metastasis in reference or prediction"
    assert summary["lesions"]["nodes"]["tpr"] is None
    assert summary["lesions"]["all"]["tpr"] == 1
    assert list(nulls(summary)) == []


def test_every_prediction_empty(tmp_path):
    given = [case(f"M{i}", [(1, (4, 4, 4), (4, 4, 4 + i))], []) for i in range(5)]
    evaluate(given, cohort(5), tmp_path, PARAMS)
    summary = results(tmp_path)[0]["cross_validation"]
    assert (summary["delineation"]["all"]["cohort_dsc"], summary["delineation"]["all"]["n_failed"]) == (0, 5)
    assert (summary["lesions"]["all"]["tpr"], summary["lesions"]["all"]["ppv"]) == (0, None)
    assert summary["survival"]["cnn"]["hr_reason"] == "no hazard ratio: everybody is in the low-risk group"
    assert list(nulls(summary)) == []


def test_nothing_in_any_mask(tmp_path):
    evaluate([case(f"M{i}", [], []) for i in range(3)], cohort(3), tmp_path, PARAMS)
    summary, patients, lesions = results(tmp_path)
    assert (
        summary["cross_validation"]["delineation"]["all"]["reason"]
        == "no patient has a lesion in reference or prediction"
    )
    assert lesions.empty
    assert patients["dsc_all"].tolist() == [1, 1, 1]
    assert list(nulls(summary)) == []


def test_all_burdens_equal(tmp_path):
    given = [case(f"M{i}", [(1, (4, 4, 4), (4, 4, 4))], [(1, (4, 4, 4), (4, 4, 4))]) for i in range(5)]
    evaluate(given, cohort(5), tmp_path, PARAMS)
    summary = results(tmp_path)[0]["cross_validation"]
    assert summary["ttb"]["r2"] is None
    assert summary["survival"]["man"]["hr"] is None
    assert summary["survival"]["man"]["concordance"] == 0.5
    assert list(nulls(summary)) == []


@pytest.mark.parametrize("death", [0.0, 1.0])
def test_nobody_or_everybody_died(death, tmp_path):
    table = cohort(8)
    table["death"] = death
    evaluate(cases(8), table, tmp_path, PARAMS)
    survival = results(tmp_path)[0]["cross_validation"]["survival"]
    assert survival["events"] == 8 * death
    assert (survival["man"]["hr"] is None) == (death == 0)
    assert list(nulls(survival)) == []


def test_tied_times(tmp_path):
    table = cohort(8)
    table["followup_months"], table["death"] = 12.0, [1.0, 0, 1, 1, 0, 1, 1, 1]
    evaluate(cases(8), table, tmp_path, PARAMS)
    assert results(tmp_path)[0]["cross_validation"]["survival"]["man"]["hr"] is not None


def test_without_an_external_cohort(tmp_path):
    summary = evaluate(cases(3), cohort(3), tmp_path, PARAMS)
    assert summary["external_testing"] == {
        "n_patients": 0,
        "reason": "no patient of the external cohort was evaluated",
    }


def test_without_a_main_cohort_there_is_no_cutoff(tmp_path):
    table = cohort(4, 4).iloc[4:]
    evaluate(list(cases(4, 4))[4:], table, tmp_path, PARAMS)
    summary, patients, _ = results(tmp_path)
    survival = summary["external_testing"]["survival"]
    assert (survival["n"], survival["cutoff_ml"], survival["man"]["hr"]) == (4, None, None)
    assert "no cutoff" in survival["reason"]
    assert patients["risk_man"].isna().all()


def test_without_survival_columns(tmp_path):
    evaluate(cases(3), cohort(3, survival=False).drop(columns="fold"), tmp_path, PARAMS)
    summary, patients, _ = results(tmp_path)
    survival = summary["cross_validation"]["survival"]
    assert survival["reason"] == "the cohort has no column survival_eligible, followup_months, death"
    assert survival["man"]["hr"] is None
    assert patients["fold"].isna().all()


def test_who_counts_in_the_survival_analysis(tmp_path):
    table = cohort(8)
    table.loc[0, "survival_eligible"] = 0
    table.loc[1, "survival_eligible"] = np.nan
    table.loc[2, "followup_months"] = 5.9
    table.loc[3, "followup_months"] = 6.0  # exactly the limit counts
    table.loc[4, "death"] = np.nan
    table.loc[5, "followup_months"] = np.nan
    evaluate(cases(8), table, tmp_path, PARAMS)
    summary, patients, _ = results(tmp_path)
    assert patients.loc[patients["survival_included"], "patient"].tolist() == ["M3", "M6", "M7"]
    assert summary["cross_validation"]["survival"]["n"] == 3
    assert summary["cross_validation"]["survival"]["cutoff_ml"] == patients.loc[6, "ttb_man_ml"]


def test_nobody_eligible(tmp_path):
    table = cohort(3)
    table["survival_eligible"] = 0
    evaluate(cases(3), table, tmp_path, PARAMS)
    reason = results(tmp_path)[0]["cross_validation"]["survival"]["reason"]
    assert reason == "no patient is eligible with at least 6 months of follow-up and a known outcome"


# --- masks from files


@pytest.fixture
def files(tmp_path):
    """A cohort of four patients on disk, PET on a coarser grid, and a tool's predictions (uint8 and float)."""
    grid = volume.Grid(SHAPE, MM, (-30.0, -30.0, 0.0))
    coarse = volume.Grid((14, 14, 12), (5.0, 5.0, 5.0), (-32.5, -32.5, -2.5))
    predictions = tmp_path / "predictions"
    for one in cases(4):
        suv = volume.to_image(one.suv.astype(np.float32), grid)
        volume.write_image(volume.resample(suv, coarse, outside=1.0), tmp_path / f"{one.patient}_pet.nii.gz")
        hu = np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)
        hu[:3] = -1000
        volume.write_image(volume.to_image(hu, grid), tmp_path / f"{one.patient}_ct.nii.gz")
        volume.write_image(volume.to_image(one.reference, grid), tmp_path / f"{one.patient}_reference.nii.gz")
        volume.write_image(volume.to_image(one.prediction, grid), predictions / f"{one.patient}.nii.gz")
    table = cohort(4)
    for name in ("pet", "ct", "reference"):
        table[name] = [f"{patient}_{name}.nii.gz" for patient in table["patient"]]
    table.drop(columns="fold").to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path


def test_masks_of_any_tool(files):
    float_mask = sitk.Cast(volume.read_image(files / "predictions" / "M1.nii.gz"), sitk.sitkFloat32)
    volume.write_image(float_mask, files / "predictions" / "M1.nii.gz")
    evaluate_cohort(files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    summary, patients, _ = results(files / "results")
    expected = evaluate(cases(4), cohort(4), files / "expected", PARAMS)
    for block in ("delineation", "ttb", "classification"):
        assert summary["cross_validation"][block] == json.loads(json.dumps(expected["cross_validation"][block]))
    assert patients["suvmax_man"].between(4, 8).all()  # of the PET resampled onto the reference's grid


def test_all_missing_predictions_are_listed(files):
    for patient in ("M0", "M2"):
        (files / "predictions" / f"{patient}.nii.gz").unlink()
    with pytest.raises(InputError, match="2 of 4 patients have no prediction: M0, M2"):
        evaluate_cohort(files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    assert not (files / "results").exists()


def test_excluded_patients_and_those_without_reference_need_no_prediction(files):
    table = pd.read_csv(files / "cohort.csv")
    table["exclusion"] = ["metal artefacts", "", "", ""]
    table.loc[1, "reference"] = ""
    table.to_csv(files / "cohort.csv", index=False)
    for patient in ("M0", "M1"):
        (files / "predictions" / f"{patient}.nii.gz").unlink()
    summary = evaluate_cohort(files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    assert summary["cross_validation"]["n_patients"] == 2


def test_a_prediction_on_another_grid_is_refused_with_both_geometries(files):
    path = files / "predictions" / "M1.nii.gz"
    image = volume.read_image(path)
    image.SetOrigin((-30.0, -30.0, 1.0))
    volume.write_image(image, path)
    with pytest.raises(InputError) as caught:
        evaluate_cohort(files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    assert caught.value.patient == "M1"
    assert "1 mm" in str(caught.value)
    assert not (files / "results").exists()


def test_missing_predictions_can_count_as_empty_and_are_listed(files):
    for patient in ("M0", "M2"):
        (files / "predictions" / f"{patient}.nii.gz").unlink()
    arguments = (files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    returned = evaluate_cohort(*arguments, missing="empty")
    summary, patients, _ = results(files / "results")
    assert summary["missing_predictions"] == returned["missing_predictions"] == ["M0", "M2"]
    assert patients.set_index("patient")["ttb_cnn_ml"].to_dict() == {"M0": 0, "M1": 59 / 64, "M2": 0, "M3": 91 / 64}
    assert summary["cross_validation"]["delineation"]["all"]["n_failed"] == 2


@pytest.mark.parametrize("missing", ["error", "empty"])
def test_a_folder_without_any_prediction_is_not_the_one_that_was_meant(files, missing):
    (files / "elsewhere").mkdir()
    for folder, problem in {"elsewhere": "4 of 4 patients have no", "none": "there is no such folder"}.items():
        with pytest.raises(InputError, match=rf"file .*{folder}: {problem}"):
            evaluate_cohort(files / "cohort.csv", files / folder, files / "results", PARAMS, missing=missing)
    assert not (files / "results").exists()


def test_a_complete_folder_has_nothing_missing_and_nothing_resampled(files):
    evaluate_cohort(files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    summary = results(files / "results")[0]
    assert (summary["missing_predictions"], summary["resampled_predictions"]) == ([], [])


def write_finer(files, patient, shift_mm=0.0):
    """The prediction again, on a grid of half the voxel side with the same field."""
    grid = volume.Grid(tuple(2 * side for side in SHAPE), (1.25,) * 3, (-30.625, -30.625, -0.625 + shift_mm))
    labels = volume.read_labels(files / "predictions" / f"{patient}.nii.gz")
    finer = np.repeat(np.repeat(np.repeat(volume.to_array(labels), 2, 0), 2, 1), 2, 2)
    volume.write_image(volume.to_image(finer, grid), files / "predictions" / f"{patient}.nii.gz")


def test_predictions_on_another_grid_can_be_resampled_and_are_listed(files):
    """Each voxel cut into eight: back on the reference's grid the masks are what they were."""
    arguments = (files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    evaluate_cohort(*arguments)
    before = results(files / "results")
    write_finer(files, "M1")
    with pytest.raises(InputError, match=r"patient M1, file .*M1\.nii\.gz: the grids are .*Remedy: .*`--resample`"):
        evaluate_cohort(*arguments)
    evaluate_cohort(*arguments, resample=True)
    after = results(files / "results")
    assert after[0].pop("resampled_predictions") == [{"patient": "M1", "before_ml": 59 / 64, "after_ml": 59 / 64}]
    assert before[0].pop("resampled_predictions") == []
    assert after[0] == before[0]
    pd.testing.assert_frame_equal(after[1], before[1])


def test_a_prediction_beside_the_reference_is_not_resampled_away(files):
    write_finer(files, "M1", shift_mm=500.0)
    with pytest.raises(InputError, match=r"patient M1, file .*M1\.nii\.gz: none of its labels lies within the ref"):
        evaluate_cohort(files / "cohort.csv", files / "predictions", files / "results", PARAMS, resample=True)


def test_progress_counts_the_patients(files):
    told = []
    evaluate_cohort(
        files / "cohort.csv", files / "predictions", files / "results", PARAMS, progress=lambda *n: told.append(n)
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_foreign_class_is_refused(files):
    path = files / "predictions" / "M2.nii.gz"
    volume.write_image(volume.read_image(path) * 3, path)
    with pytest.raises(InputError) as caught:
        evaluate_cohort(files / "cohort.csv", files / "predictions", files / "results", PARAMS)
    assert (caught.value.patient, caught.value.value) == ("M2", "3")


@pytest.fixture
def study(files):
    params = Params(
        name="tiny",
        cohort=str(files / "cohort.csv"),
        studies=str(files / "studies"),
        crop_shape=(32, 32),
        patch_shape=(32, 32, 32),
        bootstrap_resamples=100,
    )
    study = Study(params)
    study.begin()
    table = read_cohort(files / "cohort.csv")
    table["fold"], table["split"] = 0, "cross_validation"
    study.write_cohort(table)
    for _, row in table.iterrows():
        prepare_patient(row, params, study.volumes)
        reference = volume.read_image(study.volumes / row["patient"] / "reference.nii")
        volume.write_image(reference, study.prediction_path(row["patient"]))
    write_index(study, table["patient"])
    return study


def write_index(study, patients, index="folds/0/predicted.csv"):
    path = study.folder / index
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"patient": patient, "sha256": sha256(study.prediction_path(patient))} for patient in patients]
    pd.DataFrame(rows, columns=["patient", "sha256"]).to_csv(path, index=False)


def test_a_study_is_evaluated_on_its_own_grid(study):
    summary = evaluate_study(study)
    assert summary["cross_validation"]["n_patients"] == 4
    assert summary["cross_validation"]["delineation"]["all"]["cohort_dsc"] == 1
    assert study.patients["voxel_ml"].tolist() == [0.015625] * 4
    assert study.summary["cross_validation"]["lesions"]["all"]["tpr"] == 1


def test_a_study_is_set_beside_thresholds_of_the_same_volumes(study):
    """The network is perfect; the PET is blurred, so no threshold is."""
    returned = evaluate_study(study)
    block = study.summary["cross_validation"]["comparators"]
    assert block == json.loads(json.dumps(returned["cross_validation"]["comparators"]))
    assert "comparators" not in study.summary["external_testing"]
    scores = {one["method"]: one["delineation"]["all"]["cohort_dsc"] for one in block["methods"]}
    table = pd.read_csv(study.results / "comparators.csv")
    assert len(table) == 5 * 4
    own = table[table["method"] == "max_50"]
    expected = 2 * own["both_all_ml"].sum() / (own["ttb_man_ml"] + own["ttb_cnn_ml"]).sum()
    assert scores["max_50"] == pytest.approx(expected)
    (row,) = [
        one
        for one in block["differences"]
        if (one["method"], one["measure"], one["target"]) == ("max_50", "cohort_dsc", "all")
    ]
    assert (row["other"], row["other_value"], row["difference"]) == ("cnn", 1, pytest.approx(expected - 1))
    assert list(nulls(block)) == []


def test_a_study_without_all_predictions_is_not_evaluated(study):
    study.prediction_path("M3").unlink()
    with pytest.raises(InputError, match="1 of 4 patients have no prediction: M3"):
        evaluate_study(study)
    assert not study.results.exists()


def test_external_patients_are_in_the_list_of_their_own(study):
    table = study.cohort.assign(fold=[0, 0, 0, -1], split=["cross_validation"] * 3 + ["external_testing"])
    table["cohort"] = ["main"] * 3 + ["external"]
    study.write_cohort(table)
    write_index(study, ["M3"], "predictions/external.csv")
    write_index(study, ["M0", "M1", "M2"])
    assert evaluate_study(Study(study.params))["external_testing"]["n_patients"] == 1
    write_index(study, ["M0", "M1", "M2", "M3"])
    write_index(study, [], "predictions/external.csv")
    with pytest.raises(InputError, match=r"patient M3.*no such prediction is listed"):
        evaluate_study(Study(study.params))


REFUSED = r"patient M2, file .*predictions/M2\.nii\.gz: .*not the one.*Remedy: delete it and run the study again"


def test_a_truncated_prediction_is_refused_with_the_studys_own_remedy(study):
    path = study.prediction_path("M2")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=REFUSED):
        evaluate_study(study)
    assert not study.results.exists()


def test_a_label_map_that_is_not_the_predicted_one_is_refused(study):
    labels = volume.read_labels(study.prediction_path("M2"))
    volume.write_image(labels * 0, study.prediction_path("M2"))
    with pytest.raises(InputError, match=REFUSED):
        evaluate_study(study)
    assert not study.results.exists()


def test_a_label_map_of_another_folds_network_is_refused(study):
    """That network may have learnt from the patient."""
    write_index(study, ["M0", "M1", "M3"])
    write_index(study, ["M2"], "folds/1/predicted.csv")
    with pytest.raises(InputError, match=REFUSED):
        evaluate_study(study)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "list of what was predicted is missing. Remedy: run"),
        ("", r"is no list of predictions .*Remedy: delete it and run"),
        ("patient\nM0\n", r"is no list of predictions .*Remedy: delete it and run"),
    ],
)
def test_a_damaged_list_of_predictions_is_refused_and_named(study, text, problem):
    path = study.fold_folder(0) / "predicted.csv"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=rf"folds/0/predicted\.csv: .*{problem}"):
        evaluate_study(study)


def test_external_patients_are_judged_by_the_main_cohorts_model(tmp_path):
    table = cohort(8, 6).assign(age=60, hpv="positive", treatment="none")
    evaluate(cases(8, 6), table, tmp_path, PARAMS)
    summary, patients, _ = results(tmp_path)
    main, external = (summary[part]["survival"] for part in ("cross_validation", "external_testing"))
    assert (main["calibration"]["apparent"], external["calibration"]["apparent"]) == (True, False)
    assert main["calibration"]["man"]["observed_expected"] == pytest.approx(1)
    assert patients["hpv"].tolist() == ["positive"] * 14  # what the adjusted model needs comes along
    assert external["missing"]["covariates"]["stage_iv"]["reason"] == "the cohort has no column stage"
