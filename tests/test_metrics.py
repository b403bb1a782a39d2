"""Overlap and voxel classification against drawings on paper, MONAI and the paper's own tables."""

import json
from importlib import resources

import numpy as np
import pytest
from monai.metrics import compute_dice
from torch import from_numpy

from mtvlib import metrics
from mtvlib.intervals import Bootstrap

BOOTSTRAP = Bootstrap(200, seed=1)
PAPER = json.loads((resources.files("mtvlib") / "data" / "paper_results.json").read_text(encoding="utf-8"))

# One slice of 4 x 4 voxels: row of reference, row of prediction.
REFERENCE = np.array([[1, 1, 0, 0], [1, 1, 0, 2], [0, 0, 0, 2], [0, 0, 0, 2]], np.uint8)[..., None]
PREDICTION = np.array([[1, 1, 0, 0], [1, 2, 0, 2], [0, 0, 0, 1], [0, 0, 0, 0]], np.uint8)[..., None]


def sizes(reference=REFERENCE, prediction=PREDICTION, target="all"):
    return [int(n) for n in metrics.overlap(metrics.contingency(reference, prediction), target)]


def test_contingency_by_hand():
    table = metrics.contingency(REFERENCE, PREDICTION)
    assert table.tolist() == [[9, 0, 0], [0, 3, 1], [1, 1, 1]]  # rows reference, columns prediction


@pytest.mark.parametrize(
    ("target", "expected"),
    [("primary", [4, 4, 3]), ("nodes", [3, 2, 1]), ("all", [7, 6, 6])],  # reference, prediction, both
)
def test_overlap_by_hand(target, expected):
    assert sizes(target=target) == expected


def test_dsc_by_hand_and_by_monai():
    assert metrics.dsc(*sizes(target="primary")) == pytest.approx(6 / 8)
    assert metrics.dsc(*sizes(target="nodes")) == pytest.approx(2 / 5)
    assert metrics.dsc(*sizes(target="all")) == pytest.approx(12 / 13)
    for target, classes in (("primary", [1]), ("nodes", [2]), ("all", [1, 2])):
        masks = [
            from_numpy(np.isin(labels, classes).astype(np.float32))[None, None] for labels in (PREDICTION, REFERENCE)
        ]
        assert metrics.dsc(*sizes(target=target)) == pytest.approx(float(compute_dice(*masks)))


def test_dsc_of_random_masks_by_monai():
    random = np.random.default_rng(0)
    reference, prediction = random.integers(0, 3, (2, 9, 8, 7), dtype=np.uint8)
    masks = [from_numpy((labels == 2).astype(np.float32))[None, None] for labels in (prediction, reference)]
    assert metrics.dsc(*sizes(reference, prediction, "nodes")) == pytest.approx(float(compute_dice(*masks)))


def test_dsc_of_empty_masks():
    man, cnn, both = [0, 5, 0, 4], [0, 0, 5, 4], [0, 0, 0, 0]
    assert metrics.dsc(man, cnn, both).tolist() == [1, 0, 0, 0]


def test_cohort_dsc_sums_before_it_divides():
    man, cnn, both = np.array([100, 2]), np.array([100, 2]), np.array([90, 0])
    assert metrics.cohort_dsc(man.sum(), cnn.sum(), both.sum()) == pytest.approx(180 / 204)
    assert metrics.dsc(man, cnn, both).mean() == pytest.approx(0.45)
    assert np.isnan(metrics.cohort_dsc(0, 0, 0))


# Five patients: perfect, half, one mask empty, disjoint, both empty.
MAN, CNN, BOTH = [10, 10, 10, 4, 0], [10, 10, 0, 4, 0], [10, 5, 0, 0, 0]


def test_delineation_by_hand():
    block = metrics.delineation(MAN, CNN, BOTH, BOOTSTRAP, "absent")
    assert block["cohort_dsc"] == pytest.approx(30 / 58)
    assert block["mean_dsc"] == pytest.approx((1 + 0.5 + 0 + 0 + 1) / 5)
    assert block["mean_dsc_without_both_empty"] == pytest.approx(1.5 / 4)
    assert block["median_dsc"] == 0.5
    assert block["iqr"] == [0, 1]
    assert (block["n_failed"], block["n_both_empty"]) == (2, 1)
    for key in ("cohort_dsc", "mean_dsc", "mean_dsc_without_both_empty", "median_dsc", "n_failed"):
        low, high = block[f"{key}_ci95"]
        assert low <= block[key] <= high
        assert low < high


def test_delineation_does_not_depend_on_the_unit():
    voxels = metrics.delineation(MAN, CNN, BOTH, BOOTSTRAP, "absent")
    ml = metrics.delineation(*(np.multiply(sizes, 0.015625) for sizes in (MAN, CNN, BOTH)), BOOTSTRAP, "absent")
    assert ml == voxels


def test_delineation_of_an_absent_class_is_null_not_one():
    block = metrics.delineation([0, 0], [0, 0], [0, 0], BOOTSTRAP, "no patient has nodes")
    assert block["reason"] == "no patient has nodes"
    assert block["n_both_empty"] == 2
    assert all(block[key] is None for key in PAPER["cross_validation"]["delineation"]["nodes"])


def test_delineation_when_every_prediction_is_empty():
    block = metrics.delineation([5, 6, 7], [0, 0, 0], [0, 0, 0], BOOTSTRAP, "absent")
    assert (block["cohort_dsc"], block["mean_dsc"], block["n_failed"]) == (0, 0, 3)
    assert block["cohort_dsc_ci95"][1] == pytest.approx(0.5615, abs=1e-4)  # Wilson, 0 of 3 patients


def test_delineation_of_one_patient_has_no_interval_and_says_why():
    block = metrics.delineation([10], [10], [9], BOOTSTRAP, "absent")
    assert block["cohort_dsc"] == pytest.approx(0.9)
    assert block["cohort_dsc_ci95"] is None
    assert "one patient" in block["cohort_dsc_reason"]
    assert block["iqr_ci95"] is None


def test_classification_by_hand():
    table = np.array([[90, 1, 1], [1, 5, 2], [1, 3, 7]])  # two primary voxels called node, three the other way round
    assert metrics.classification_counts(table).tolist() == [5, 3, 7, 2]
    counts = metrics.classification_counts(metrics.contingency(REFERENCE, PREDICTION))
    assert counts.tolist() == [3, 1, 1, 1]
    block = metrics.classification([counts, [4, 0, 0, 0], [0, 0, 0, 0]], 10, BOOTSTRAP)
    expected = {"t_primary": 0.7, "f_primary": 0.1, "t_nodes": 0.1, "f_nodes": 0.1, "accuracy": 0.8}
    assert {key: block[key] for key in expected} == pytest.approx(expected)
    assert block["tpr_primary"] == pytest.approx(7 / 8)
    assert block["tpr_nodes"] == pytest.approx(1 / 2)
    assert (block["n_voxels"], block["scans_without_error"]) == (10, 2)


def test_classification_without_any_common_voxel_is_null_with_reasons():
    block = metrics.classification([[0, 0, 0, 0], [0, 0, 0, 0]], 0, BOOTSTRAP)
    assert block["accuracy"] is None
    assert block["accuracy_reason"] == metrics.NO_VOXEL_IN_BOTH
    assert block["scans_without_error"] == 2


def test_classification_without_nodes_keeps_the_primary():
    block = metrics.classification([[5, 0, 0, 0], [4, 0, 0, 0]], 9, BOOTSTRAP)
    assert (block["tpr_primary"], block["accuracy"], block["tpr_nodes"]) == (1, 1, None)
    assert block["tpr_primary_ci95"] == pytest.approx([0.3424, 1], abs=1e-4)  # Wilson, 2 of 2 patients
    assert "nodes" in block["tpr_nodes_reason"]


@pytest.mark.parametrize("partition", ["cross_validation", "external_testing"])
def test_paper_table_2_from_its_own_counts(partition):
    """Shares of Table 2 times its number of voxels give back its rates, to the rounding of the shares (0.05 %)."""
    table = PAPER[partition]["classification"]
    counts = [table[name] * table["n_voxels"] for name in metrics.CLASSIFICATION_COUNTS]
    rates = metrics.classification_rates(counts)
    for key in ("tpr_primary", "tpr_nodes", "accuracy"):
        assert rates[key] == pytest.approx(table[key], abs=1e-3)


def test_paper_table_1_keys_are_all_written():
    block = metrics.delineation(MAN, CNN, BOTH, BOOTSTRAP, "absent")
    assert set(PAPER["cross_validation"]["delineation"]["all"]) <= set(block)
    assert set(PAPER["cross_validation"]["classification"]) <= set(
        metrics.classification([[1, 0, 1, 0]] * 2, 4, BOOTSTRAP)
    )
