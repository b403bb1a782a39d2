"""Pairs of lesions that one can check by eye, and their counts."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from mtvlib import lesions, matching
from mtvlib.intervals import Bootstrap

MM = (2.5, 2.5, 2.5)
BOOTSTRAP = Bootstrap(200, seed=1)


def drawing(*boxes, shape=(24, 20, 20)):
    """A label map of boxes (label, slices in x, y, z)."""
    labels = np.zeros(shape, np.uint8)
    for label, *slices in boxes:
        labels[tuple(slice(*side) for side in slices)] = label
    return labels


def bar(label, *x):
    """A bar of 3 x 3 voxels across, from and to these x."""
    return label, x, (5, 8), (5, 8)


def matched(reference, prediction):
    """(source, target, number, counterpart, IoU) of each lesion."""
    found = lesions.find_lesions(reference, prediction, None, MM)
    return [tuple(one[key] for key in ("source", "target", "lesion", "matched_lesion", "iou")) for one in found]


def test_iou_by_hand():
    reference, prediction = drawing(bar(1, 2, 8)), drawing(bar(1, 4, 10))
    assert matched(reference, prediction) == [("man", "primary", 1, 1, 0.5), ("cnn", "primary", 1, 1, 0.5)]


def test_an_iou_of_the_threshold_is_no_match():
    """1 voxel layer of 10 in common: 0.1; the next larger overlap, 2 of 10, is one."""
    assert matched(drawing(bar(2, 2, 8)), drawing(bar(2, 7, 12)))[0][3:] == (None, None)
    assert matched(drawing(bar(2, 2, 8)), drawing(bar(2, 6, 12)))[0][3:] == (1, 0.2)


def test_the_other_class_is_no_counterpart():
    assert [row[3] for row in matched(drawing(bar(1, 2, 8)), drawing(bar(2, 2, 8)))] == [None, None]


def test_one_prediction_over_two_nodes_finds_one_of_them():
    """By coverage all three lesions are right (paper); as pairs, one node is left over."""
    reference, prediction = drawing(bar(2, 2, 6), bar(2, 7, 10)), drawing(bar(2, 2, 10))
    assert [lesion["outcome"] for lesion in lesions.find_lesions(reference, prediction, None, MM)] == ["TP"] * 3
    assert matched(reference, prediction) == [
        ("man", "nodes", 1, 1, 0.5),
        ("man", "nodes", 2, None, None),
        ("cnn", "nodes", 1, 1, 0.5),
    ]


def test_the_best_sum_and_not_the_best_pair():
    """Row 0 would take column 0, its best, and leave row 1 without any."""
    assert matching.pairs(np.array([[0.6, 0.5], [0.4, 0.0]])) == [(0, 1), (1, 0)]


def test_pairs_are_the_best_of_all_assignments():
    for seed in range(20):
        overlap = np.random.default_rng(seed).random((4, 5)) * 0.6
        allowed = np.where(overlap > 0.1, overlap, 0)
        best = max(
            sum(allowed[row, column] for row, column in enumerate(p)) for p in itertools.permutations(range(5), 4)
        )
        found = matching.pairs(overlap)
        assert sum(overlap[pair] for pair in found) == pytest.approx(best)
        assert all(overlap[pair] > 0.1 for pair in found)
        assert len({row for row, _ in found}) == len({column for _, column in found}) == len(found)


def test_no_lesions_no_pairs():
    assert matching.pairs(np.zeros((0, 3))) == []
    assert matching.iou([], [], ([], [])).shape == (0, 0)
    assert matched(drawing(), drawing(bar(1, 2, 4))) == [("cnn", "primary", 1, None, None)]


def test_iou_of_noise_agrees_with_a_plain_count():
    random = np.random.default_rng(3)
    reference, prediction = (random.integers(0, 3, (7, 6, 5)).astype(np.uint8) for _ in range(2))
    groups = [
        [np.argwhere(lesions.components(labels, 6) == n) for n in range(1, lesions.components(labels, 6).max() + 1)]
        for labels in (reference, prediction)
    ]
    classes = tuple(
        [int(labels[tuple(one[0])]) for one in own] for labels, own in zip((reference, prediction), groups, strict=True)
    )
    overlap = matching.iou(*groups, classes)
    for row, column in itertools.product(range(len(groups[0])), range(len(groups[1]))):
        one, other = ({tuple(voxel) for voxel in group} for group in (groups[0][row], groups[1][column]))
        same = classes[0][row] == classes[1][column]
        assert overlap[row, column] == pytest.approx(len(one & other) / len(one | other) if same else 0)


# --- the summary


def test_f1_by_hand():
    block = matching.matching([[2, 3, 2], [1, 1, 3], [0, 0, 0]], BOOTSTRAP)  # matched, man, cnn
    assert (block["n_matched"], block["n_man"], block["n_cnn"]) == (3, 4, 5)
    assert (block["sensitivity"], block["precision"]) == (0.75, 0.6)
    assert block["f1"] == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert block["f1_ci95"][0] <= block["f1"] <= block["f1_ci95"][1]


def test_without_lesions_f1_is_null_with_reasons():
    block = matching.matching([[0, 0, 0]] * 3, BOOTSTRAP)
    assert (block["f1"], block["f1_reason"]) == (None, "no lesion in reference or prediction")
    assert (block["sensitivity_reason"], block["precision_reason"]) == (
        "no lesion in the reference",
        "no lesion in the prediction",
    )


def table(*rows):
    """lesions.csv from (patient, source, target, ml, SUVmax, outcome, counterpart)."""
    names = ("patient", "source", "target", "volume_ml", "suv_max", "outcome", "matched_lesion")
    return pd.DataFrame(rows, columns=names)


LESIONS = table(
    ("A", "man", "primary", 12.0, 14.0, "TP", 1),
    ("A", "man", "nodes", 1.0, 4.0, "TP", None),
    ("A", "man", "nodes", 0.99, 3.9, "FN", None),
    ("A", "cnn", "primary", 11.0, 14.0, "TP", 1),
    ("B", "man", "nodes", 5.0, 10.0, "TP", 1),
    ("B", "man", "nodes", 5.01, 10.1, "FN", None),
    ("B", "cnn", "nodes", 4.0, 9.0, "FP", 1),
)
PATIENTS = pd.Series(["A", "B", "C"])


def test_counts_of_patients_and_targets():
    assert matching.matching_counts(PATIENTS, LESIONS, "primary").tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert matching.matching_counts(PATIENTS, LESIONS, "nodes").tolist() == [[0, 2, 0], [1, 2, 1], [0, 0, 0]]
    assert matching.matching_counts(PATIENTS, LESIONS, "all").tolist() == [[1, 3, 1], [1, 2, 1], [0, 0, 0]]


def test_bins_and_their_limits():
    """1 and 5 ml, SUV 4 and 10 belong to the middle; every lesion is in one bin."""
    blocks = matching.sensitivities(PATIENTS, LESIONS, "nodes", BOOTSTRAP)
    volumes = blocks["sensitivity_by_volume"]
    assert list(volumes) == ["below_1_ml", "1_to_5_ml", "above_5_ml"]
    assert [block["n"] for block in volumes.values()] == [1, 2, 1]
    assert [block["tpr"] for block in volumes.values()] == [0, 1, 0]
    assert [block["sensitivity"] for block in volumes.values()] == [0, 0.5, 0]
    uptake = blocks["sensitivity_by_suv_max"]
    assert list(uptake) == ["below_4", "4_to_10", "above_10"]
    assert [block["n"] for block in uptake.values()] == [1, 2, 1]


def test_bins_of_all_add_up_to_the_sensitivity_of_all():
    both = matching.matching(matching.matching_counts(PATIENTS, LESIONS, "all"), BOOTSTRAP)
    bins = matching.sensitivities(PATIENTS, LESIONS, "all", BOOTSTRAP)["sensitivity_by_volume"].values()
    assert sum(one["n"] for one in bins) == both["n_man"]
    assert sum(one["n"] * one["sensitivity"] for one in bins) == pytest.approx(both["n_matched"])


def test_a_bin_without_lesions_is_null_with_its_reason():
    small = matching.sensitivities(PATIENTS, LESIONS, "primary", BOOTSTRAP)["sensitivity_by_volume"]["below_1_ml"]
    assert (small["n"], small["tpr"], small["sensitivity"]) == (0, None, None)
    assert small["tpr_reason"] == small["sensitivity_reason"] == "no reference lesion of this kind"


def test_without_suv_no_lesion_has_a_bin_of_uptake():
    unknown = matching.sensitivities(PATIENTS, LESIONS.assign(suv_max=None), "all", BOOTSTRAP)
    assert [block["n"] for block in unknown["sensitivity_by_suv_max"].values()] == [0, 0, 0]
    assert sum(block["n"] for block in unknown["sensitivity_by_volume"].values()) == 5


def test_all_found_by_ten_patients_still_has_an_interval():
    rows = [(f"P{n}", "man", "nodes", 2.0, 8.0, "TP", 1) for n in range(10)]
    patients = pd.Series([f"P{n}" for n in range(12)])
    middle = matching.sensitivities(patients, table(*rows), "nodes", BOOTSTRAP)["sensitivity_by_volume"]["1_to_5_ml"]
    assert middle["sensitivity"] == 1
    assert middle["sensitivity_ci95"] == pytest.approx([0.7225, 1], abs=1e-4)  # Wilson of 10 of 10 patients


def test_patients_are_drawn_and_not_lesions():
    """Five found lesions in one patient, five missed in another: the interval is as wide as two patients make it."""
    rows = 5 * [("A", "man", "nodes", 2.0, 8.0, "TP", 1), ("B", "man", "nodes", 2.0, 8.0, "FN", math.nan)]
    block = matching.sensitivities(PATIENTS[:2], table(*rows), "nodes", BOOTSTRAP)["sensitivity_by_volume"]["1_to_5_ml"]
    assert (block["sensitivity"], block["sensitivity_ci95"]) == (0.5, [0, 1])
