"""Calibration: bins drawn by hand, and the calibration error and Brier score of an independent implementation."""

import numpy as np
import pytest

from mtvlib import calibration
from mtvlib.files import read_table
from mtvlib.intervals import Bootstrap, wilson

BOOTSTRAP = Bootstrap(200, 1)
SPACING_MM = (5.0, 5.0, 5.0)
VOXEL_ML = 0.125


def counts_of(probability, reference):
    return calibration.calibration_counts(
        np.asarray(reference, np.uint8), np.asarray(probability, np.uint8), SPACING_MM
    )


def block_of(*patients):
    return calibration.calibration(np.array([counts_of(*patient) for patient in patients]), BOOTSTRAP)


def test_the_region_is_all_suspected_voxels_and_what_lies_within_10_mm_of_them_or_of_the_reference():
    probability, reference = np.zeros((12, 1, 1), np.uint8), np.zeros((12, 1, 1), np.uint8)
    probability[0], probability[11], reference[5] = 26, 25, 1  # 0.102 and 0.098; the reference in the middle
    region = calibration.lesion_region(reference, probability, SPACING_MM)
    assert region.ravel().tolist() == [True] * 8 + [False] * 4
    apart = calibration.lesion_region(reference, probability, (11.0, 5.0, 5.0))
    assert np.flatnonzero(apart).tolist() == [0, 5]


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0), (25, 0), (26, 1), (51, 2), (127, 4), (128, 5), (229, 8), (230, 9), (255, 9)]
)
def test_bins_are_tenths_of_the_probability(value, number):
    counts = counts_of([[[value]]], [[[1]]])
    assert np.flatnonzero(counts[:, 0]).tolist() == [number]
    np.testing.assert_allclose(counts[number], [VOXEL_ML * one for one in (1, value / 255, 1, (1 - value / 255) ** 2)])


def test_a_bin_drawn_by_hand():
    """Four voxels of 0.8, three of them lesion, and one sure lesion: errors 0.05 x 4 / 5 and 0."""
    block, bins = block_of(([[[204, 204, 204, 204, 255]]], [[[1, 2, 1, 0, 1]]]))
    assert block["ece"] == pytest.approx(0.04)
    assert block["ece_of_suspected"] == pytest.approx(0.04)
    assert block["brier"] == pytest.approx((3 * 0.04 + 0.64) / 5)
    assert block["brier_of_constant"] == pytest.approx(0.8 * 0.2)
    assert block["volume_ratio"] == pytest.approx((4 * 0.8 + 1) / 4)
    eighth = bins.iloc[8]
    assert (eighth["p_low"], eighth["p_high"], eighth["volume_ml"]) == (0.8, 0.9, 0.5)
    assert (eighth["probability"], eighth["observed"]) == pytest.approx((0.8, 0.75))
    assert np.isnan(bins.loc[0, "probability"])


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    sklearn_calibration = pytest.importorskip("sklearn.calibration")
    random = np.random.default_rng(0)
    probability = random.integers(26, 255, (10, 10, 10)).astype(np.uint8)  # all of it is in the region
    probability[probability % 51 == 0] += 1  # 0.2, 0.4, ... belong to the next tenth here, there to the one before
    reference = (random.random((10, 10, 10)) < (probability / 255) ** 2).astype(np.uint8)
    block, bins = block_of((probability, reference))
    truth, p = reference.ravel(), probability.ravel() / 255
    assert block["brier"] == pytest.approx(metrics.brier_score_loss(truth, p))
    observed, predicted = sklearn_calibration.calibration_curve(truth, p, n_bins=10)
    np.testing.assert_allclose(bins["observed"][1:].astype(float), observed)
    np.testing.assert_allclose(bins["probability"][1:].astype(float), predicted)


def test_right_probabilities_have_no_error_and_false_ones_have_all():
    right, _ = block_of(([[[255, 0, 0]]], [[[1, 0, 0]]]))
    false, _ = block_of(([[[0, 255, 255]]], [[[1, 0, 0]]]))
    assert (right["ece"], right["brier"], right["volume_ratio"]) == (0, 0, 1)
    assert (false["ece"], false["brier"], false["volume_ratio"]) == (1, 1, 2)


def test_intervals_come_from_the_patients():
    block, bins = block_of(([[[204] * 5]], [[[1] * 5]]), ([[[204] * 5]], [[[1, 1, 1, 0, 0]]]))
    low, high = block["ece_ci95"]
    assert (low, high) == pytest.approx((0.0, 0.2), abs=1e-9)
    assert (bins.loc[8, "observed_low"], bins.loc[8, "observed_high"]) == pytest.approx((0.6, 1.0))


def test_where_all_or_nothing_is_lesion_the_interval_is_wilsons_of_the_patients():
    _, bins = block_of(*[([[[204, 51]]], [[[1, 0]]])] * 4, ([[[0, 0]]], [[[0, 0]]]))
    assert (bins.loc[8, "observed_low"], bins.loc[8, "observed_high"]) == pytest.approx(wilson(4, 4))
    assert (bins.loc[2, "observed_low"], bins.loc[2, "observed_high"]) == pytest.approx(wilson(0, 4))


def test_one_patient_has_no_interval_and_says_why():
    block, _ = block_of(([[[204]]], [[[1]]]))
    assert block["ece_ci95"] is None
    assert "one patient" in block["ece_reason"]


def test_without_any_lesion_nothing_is_estimated():
    block, bins = block_of(*[(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)))] * 3)
    assert (block["ece"], block["ece_reason"]) == (None, "no voxel lies near a lesion")
    assert (block["volume_ratio"], block["volume_ratio_reason"]) == (None, "no patient has a lesion in the reference")
    assert bins["observed"].isna().all()


def test_a_prediction_of_nothing_is_as_wrong_as_its_misses():
    block, _ = block_of(*[([[[0, 0, 0, 0, 0]]], [[[0, 0, 1, 0, 0]]])] * 3)
    assert (block["ece"], block["brier"], block["volume_ratio"]) == pytest.approx((0.2, 0.2, 0))
    assert (block["ece_of_suspected"], block["ece_of_suspected_reason"]) == (None, "no voxel has a probability of 0.1")


def test_an_empty_bin_is_an_empty_field_of_the_table(tmp_path):
    _, bins = block_of(([[[204, 204, 204, 204, 255]]], [[[1, 2, 1, 0, 1]]]))
    bins.to_csv(tmp_path / "bins.csv", index=False)
    read = read_table(tmp_path / "bins.csv")
    assert np.isnan(read["probability"].astype(float)[0])
    assert read["probability"].dtype == float  # not the text "nan"
