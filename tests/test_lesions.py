"""Lesions drawn on paper: what is one, what is too small, what is found."""

import json
from importlib import resources

import numpy as np
import pytest
from scipy import ndimage

from mtvlib import lesions
from mtvlib.intervals import Bootstrap
from mtvlib.pet import voxel_ml

MM = (2.5, 2.5, 2.5)
PAPER = json.loads((resources.files("mtvlib") / "data" / "paper_results.json").read_text(encoding="utf-8"))
BOOTSTRAP = Bootstrap(200, seed=1)


def drawing(*boxes, shape=(20, 20, 20)):
    """A label map of boxes (label, slices in x, y, z)."""
    labels = np.zeros(shape, np.uint8)
    for label, *slices in boxes:
        labels[tuple(slice(*side) for side in slices)] = label
    return labels


def test_six_voxels_go_and_seven_stay():
    """Paper: ROIs below 0.1 ml are left out; a voxel of (2.5 mm)^3 has 0.0156 ml, so the limit is 6.4 voxels."""
    labels = drawing((1, (2, 8), (2, 3), (2, 3)), (2, (2, 9), (8, 9), (8, 9)))
    kept = lesions.remove_small_rois(labels, MM, 0.1)
    assert (np.count_nonzero(kept == 1), np.count_nonzero(kept == 2)) == (0, 7)
    assert np.count_nonzero(labels == 1) == 6  # the input is as it was


def test_exactly_the_limit_stays_whatever_the_rounding():
    labels = drawing((1, (2, 5), (2, 3), (2, 3)))
    assert 3 * voxel_ml((0.7, 0.7, 0.7)) < 0.001029  # 3 x 0.343 mm3, but not in binary
    assert np.count_nonzero(lesions.remove_small_rois(labels, (0.7, 0.7, 0.7), 0.001029)) == 3
    assert np.count_nonzero(lesions.remove_small_rois(labels, (0.7, 0.7, 0.699), 0.001029)) == 0


def test_a_limit_of_zero_and_an_empty_map_change_nothing():
    labels = drawing((1, (3, 4), (3, 4), (3, 4)))
    assert np.array_equal(lesions.remove_small_rois(labels, MM, 0.0), labels)
    assert not lesions.remove_small_rois(drawing(), MM, 0.1).any()


@pytest.mark.parametrize(("connectivity", "number"), [(6, 3), (18, 2), (26, 1)])
def test_neighbours_that_make_one_lesion(connectivity, number):
    labels = drawing((1, (0, 1), (0, 1), (0, 1)), (1, (1, 2), (1, 2), (0, 1)), (1, (2, 3), (2, 3), (1, 2)))
    assert len(lesions.describe(labels, None, MM, connectivity)) == number


def test_touching_classes_are_two_lesions():
    labels = drawing((1, (2, 5), (2, 5), (2, 5)), (2, (5, 8), (2, 5), (2, 5)))
    assert [lesion["target"] for lesion in lesions.describe(labels, None, MM)] == ["primary", "nodes"]


def test_components_agree_with_scipy_on_noise():
    labels = (np.random.default_rng(5).random((24, 25, 26)) < 0.12).astype(np.uint8)
    _, number = ndimage.label(labels, np.ones((3, 3, 3)))
    found = lesions.describe(np.asfortranarray(labels), None, MM)
    assert len(found) == number
    assert sum(lesion["volume_ml"] for lesion in found) == pytest.approx(labels.sum() * 0.015625)


def test_describe_by_hand():
    labels = drawing((2, (0, 2), (4, 6), (6, 10)), (2, (10, 12), (10, 12), (10, 12)), (1, (15, 18), (15, 18), (15, 18)))
    suv = np.where(labels > 0, 5.0, 1.0)
    suv[1, 4, 6] = 9
    largest, node, small = lesions.describe(labels, suv, MM)
    assert (largest["target"], largest["lesion"], largest["touches_border"]) == ("primary", 1, False)
    assert (node["target"], node["lesion"], node["touches_border"]) == ("nodes", 1, True)
    assert (small["target"], small["lesion"], small["volume_ml"]) == ("nodes", 2, 8 * 0.015625)
    assert node["centroid_voxel"] == (0.5, 4.5, 7.5)
    assert (node["suv_max"], node["suv_mean"]) == (9, pytest.approx((15 * 5 + 9) / 16))
    assert node["tlg"] == pytest.approx(node["volume_ml"] * node["suv_mean"])
    assert small["suv_peak"] < node["suv_peak"] < 9


def test_without_suv_its_values_are_unknown():
    (lesion,) = lesions.describe(drawing((1, (3, 6), (3, 6), (3, 6))), None, MM)
    assert [lesion[key] for key in ("suv_max", "suv_mean", "suv_peak", "tlg")] == [None] * 4


def outcomes(reference, prediction):
    found = lesions.find_lesions(reference, prediction, None, MM)
    return [(lesion["source"], lesion["target"], lesion["coverage"], lesion["outcome"]) for lesion in found]


def test_half_covered_counts_as_found_but_not_as_confirmed():
    """Paper: reference "at least 50 %", prediction "over 50 %"."""
    reference, prediction = drawing((1, (2, 6), (2, 6), (2, 6))), drawing((1, (4, 8), (2, 6), (2, 6)))
    assert outcomes(reference, prediction) == [("man", "primary", 0.5, "TP"), ("cnn", "primary", 0.5, "FP")]


def test_one_voxel_less_than_half_is_missed():
    reference, prediction = drawing((1, (2, 6), (2, 6), (2, 6))), drawing((1, (4, 7), (2, 6), (2, 6)))
    prediction[4, 2, 2] = 0
    missed, confirmed = outcomes(reference, prediction)
    assert (missed[2], missed[3]) == (31 / 64, "FN")
    assert (confirmed[2], confirmed[3]) == (31 / 47, "TP")


def test_a_lesion_of_the_other_class_covers_nothing():
    reference, prediction = drawing((1, (2, 6), (2, 6), (2, 6))), drawing((2, (2, 6), (2, 6), (2, 6)))
    assert outcomes(reference, prediction) == [("man", "primary", 0, "FN"), ("cnn", "nodes", 0, "FP")]


def test_counts_are_not_one_to_one():
    """One large prediction over two nodes: both are found, one is confirmed."""
    reference = drawing((2, (2, 5), (2, 5), (2, 5)), (2, (6, 9), (2, 5), (2, 5)))
    found = outcomes(reference, drawing((2, (2, 9), (2, 5), (2, 5))))
    assert [row[3] for row in found] == ["TP", "TP", "TP"]
    assert [row[0] for row in found] == ["man", "man", "cnn"]


def test_outcomes_of_noise_agree_with_a_plain_count():
    random = np.random.default_rng(9)
    reference, prediction = (
        ndimage.zoom(random.integers(0, 3, (6, 7, 5)), 4, order=0).astype(np.uint8)
        * (random.random((24, 28, 20)) < 0.9)
        for _ in range(2)
    )
    expected = []
    for source, own, other in (("man", reference, prediction), ("cnn", prediction, reference)):
        for label, target in ((1, "primary"), (2, "nodes")):
            numbers, count = ndimage.label(own == label, np.ones((3, 3, 3)))
            for number in range(1, count + 1):
                inside = numbers == number
                share = (other[inside] == label).sum() / inside.sum()
                found = share >= 0.5 if source == "man" else share > 0.5
                expected.append((source, target, share, "TP" if found else ("FN" if source == "man" else "FP")))
    assert sorted(outcomes(reference, prediction)) == sorted(expected)
    assert len({row[3] for row in expected}) > 1


def test_asphericity_from_sixteen_voxels_on():
    reference = drawing((1, (2, 5), (2, 5), (2, 5)), (2, (10, 13), (2, 7), (2, 3)), (2, (10, 14), (10, 14), (2, 3)))
    cube, plate, small = (one["asphericity"] for one in lesions.find_lesions(reference, drawing(), None, MM))
    assert cube < plate  # 27 and 16 voxels
    assert small is None  # 15


def untouched(own, other, connectivity=26):
    return lesions.untouched(own > 0, other > 0, connectivity)


def test_untouched_components_have_no_voxel_in_common():
    """Of three nodes one is touched by a single voxel."""
    own = drawing((2, (2, 5), (2, 5), (2, 5)), (2, (8, 11), (2, 5), (2, 5)), (2, (14, 16), (2, 4), (2, 4)))
    assert untouched(own, drawing((1, (4, 8), (4, 8), (4, 8)))) == 27 + 8
    assert untouched(own, drawing()) == 27 + 27 + 8
    assert untouched(own, own) == 0
    assert untouched(drawing(), own) == untouched(np.zeros((0, 0, 0)), np.zeros((0, 0, 0))) == 0


def test_untouched_depends_on_the_neighbours():
    own = drawing((1, (2, 3), (2, 3), (2, 3)), (1, (3, 4), (3, 4), (2, 3)))
    touched = drawing((1, (2, 3), (2, 3), (2, 3)))
    assert [untouched(own, touched, neighbours) for neighbours in (6, 18, 26)] == [1, 0, 0]


def test_a_node_called_primary_is_false_in_both_classes_only():
    reference, prediction = drawing((2, (2, 6), (2, 6), (2, 6))), drawing((1, (2, 6), (2, 6), (2, 6)))
    volumes = lesions.false_volumes(reference, prediction, MM)
    assert [volumes[f"fpv_{target}_ml"] for target in ("primary", "nodes", "all")] == [1, 0, 0]
    assert [volumes[f"fnv_{target}_ml"] for target in ("primary", "nodes", "all")] == [0, 1, 0]


def test_mean_false_volumes_by_hand():
    block = lesions.mean_false_volumes(np.array([[1.0, 0.0], [0.0, 0.5], [2.0, 0.1]]), BOOTSTRAP)
    assert (block["mean_fpv_ml"], block["mean_fnv_ml"]) == (1, pytest.approx(0.2))
    assert block["mean_fpv_ml_ci95"][0] < 1 < block["mean_fpv_ml_ci95"][1]


def test_no_false_volume_in_anybody_is_no_certainty():
    block = lesions.mean_false_volumes(np.zeros((5, 2)), BOOTSTRAP)
    assert (block["mean_fpv_ml"], block["mean_fpv_ml_ci95"]) == (0, None)
    assert block["mean_fpv_ml_reason"] == "no interval: 0 ml in every patient"


def test_spread_of_lesions():
    """Centroids at 3, 3, 3 and 13, 3, 3, on voxels of 2 x 1 x 1 mm."""
    labels = drawing((2, (2, 5), (2, 5), (2, 5)), (1, (12, 15), (2, 5), (2, 5)), (2, (3, 5), (8, 10), (2, 4)))
    own = {"man": lesions.describe(labels, None, (2, 1, 1)), "cnn": lesions.describe(drawing(), None, (2, 1, 1))}
    row = lesions.spread(own, (2.0, 1.0, 1.0))
    assert row["dmax_man_mm"] == pytest.approx(20)
    assert (row["largest_node_man_ml"], row["largest_node_cnn_ml"]) == (pytest.approx(0.054), 0)
    assert row["dmax_cnn_mm"] is None


def test_empty_masks_hold_no_lesion():
    assert lesions.find_lesions(drawing(), drawing(), None, MM) == []


def test_detection_by_hand():
    block = lesions.detection([[2, 3, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]], BOOTSTRAP)  # tp_man, tp_cnn, fn, fp
    assert [block[key] for key in lesions.COUNTS] == [3, 4, 1, 1]
    assert (block["tpr"], block["ppv"]) == (3 / 4, 4 / 5)
    assert block["tpr_ci95"][0] <= 3 / 4 <= block["tpr_ci95"][1]


def test_detection_without_lesions_is_null_with_reasons():
    block = lesions.detection([[0, 0, 0, 0], [0, 0, 0, 0]], BOOTSTRAP)
    assert (block["tpr"], block["ppv"]) == (None, None)
    assert block["tpr_reason"] == "no lesion in the reference"
    assert block["ppv_reason"] == "no lesion in the prediction"


def test_all_found_in_every_patient_still_has_an_interval():
    block = lesions.detection([[2, 2, 0, 0]] * 10 + [[0, 0, 0, 0]], BOOTSTRAP)
    assert block["tpr_ci95"] == pytest.approx([0.7225, 1], abs=1e-4)  # Wilson, 10 of the 10 patients with a lesion


@pytest.mark.parametrize("partition", ["cross_validation", "external_testing"])
@pytest.mark.parametrize("target", ["primary", "nodes", "all"])
def test_paper_table_3_from_its_own_counts(partition, target):
    table = PAPER[partition]["lesions"][target]
    rates = lesions.detection_rates([table[key] for key in lesions.COUNTS])
    assert rates["tpr"] == pytest.approx(table["tpr"], abs=5e-4)
    assert rates["ppv"] == pytest.approx(table["ppv"], abs=5e-4)


@pytest.mark.parametrize("partition", ["cross_validation", "external_testing"])
def test_paper_table_3_adds_up(partition):
    table = PAPER[partition]["lesions"]
    assert all(table["primary"][key] + table["nodes"][key] == table["all"][key] for key in lesions.COUNTS)
