"""FROC: maps on which every threshold can be counted by eye."""

import numpy as np
import pytest

from mtvlib import froc
from mtvlib.intervals import Bootstrap, wilson
from mtvlib.params import Params

PARAMS = Params()
BOOTSTRAP = Bootstrap(200, 1)
SPACING_MM = (5.0, 5.0, 5.0)  # a voxel is 0.125 ml, so that one alone is kept


def row(values):
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def counts(probability, reference, spacing_mm=SPACING_MM, params=PARAMS):
    found = froc.froc_counts(row(reference), row(probability), spacing_mm, params)
    return dict(zip(froc.THRESHOLDS, [tuple(pair) for pair in found.tolist()], strict=True))


def test_a_lesion_is_found_while_half_of_it_reaches_the_threshold():
    # 0.8, 0.8, 0.3, 0.3 in the lesion; 0.6 far from it.
    at = counts([204, 204, 77, 77, 0, 0, 153], [1, 1, 1, 1, 0, 0, 0])
    assert at[0.3] == (1, 1)
    assert at[0.6] == (1, 1)
    assert at[0.7] == (1, 0)
    assert at[0.8] == (1, 0)
    assert at[0.85] == (0, 0)


def test_a_region_of_which_no_more_than_half_is_lesion_is_false():
    at = counts([255, 255, 128, 128], [1, 1, 0, 0])
    assert at[0.5] == (1, 1)
    assert at[0.6] == (1, 0)


def test_lesions_of_both_classes_count_and_the_class_is_not_asked_for():
    assert counts([255, 255, 255, 255], [1, 1, 2, 2])[0.5] == (2, 0)


@pytest.mark.parametrize(("value", "reached"), [(12, 0.0), (13, 0.05), (127, 0.4), (128, 0.5), (153, 0.6), (255, 0.95)])
def test_thresholds_in_stored_values(value, reached):
    found = [threshold for threshold, (lesions, _) in counts([value], [1]).items() if lesions]
    assert max(found, default=0.0) == reached


def test_small_regions_are_removed():
    assert counts([255], [0], spacing_mm=(4.0, 4.0, 4.0))[0.5] == (0, 0)  # 0.064 ml
    assert counts([255, 255], [0, 0], spacing_mm=(4.0, 4.0, 4.0))[0.5] == (0, 1)


def test_nothing_in_reference_or_map_counts_nothing():
    assert set(counts([0, 0], [0, 0]).values()) == {(0, 0)}
    assert set(counts([0, 0], [1, 0]).values()) == {(0, 0)}


def curve_of(patients, n_lesions):
    return froc.froc(np.array(patients), np.array(n_lesions), BOOTSTRAP)


def patient(found, false):
    """The same counts up to a threshold of 0.5, nothing above."""
    return [(found, false) if threshold <= 0.5 else (0, 0) for threshold in froc.THRESHOLDS]


def test_the_curve_is_that_of_the_sums():
    block, curve = curve_of([patient(2, 1), patient(1, 4)], [3, 1])
    at = curve.set_index("threshold")
    assert (at.loc[0.5, "sensitivity"], at.loc[0.5, "false_positives"]) == (0.75, 2.5)
    assert (at.loc[0.6, "sensitivity"], at.loc[0.6, "false_positives"]) == (0, 0)
    assert block["n_lesions"] == 4
    assert at.loc[0.5, "false_positives_low"] == 1
    assert at.loc[0.5, "false_positives_high"] == 4


def test_the_sensitivity_at_a_number_of_false_positives_is_the_best_that_needs_no_more():
    block, _ = curve_of([patient(2, 1), patient(1, 1)], [3, 1])
    assert block["sensitivity_at_1_fp"] == 0.75
    assert block["sensitivity_at_0.5_fp"] == 0


def test_where_every_lesion_is_found_the_interval_is_wilsons_of_the_patients_who_have_one():
    block, curve = curve_of([patient(2, 0), patient(1, 0), patient(0, 0)], [2, 1, 0])
    assert (curve["sensitivity_low"][0], curve["sensitivity_high"][0]) == pytest.approx(wilson(2, 2))
    assert block["sensitivity_at_1_fp_ci95"] == pytest.approx(list(wilson(2, 2)))


def test_what_no_threshold_reaches_is_null_with_a_reason():
    always = [[(1, 3)] * len(froc.THRESHOLDS)] * 3
    block, _ = curve_of(always, [1, 1, 1])
    assert block["sensitivity_at_2_fp"] is None
    assert block["sensitivity_at_2_fp_reason"] == "every threshold gives more false positives"


def test_without_lesions_there_is_no_sensitivity_but_false_positives_count():
    block, curve = curve_of([patient(0, 1), patient(0, 3)], [0, 0])
    assert curve["sensitivity"].isna().all()
    assert curve.set_index("threshold").loc[0.5, "false_positives"] == 2
    assert block["sensitivity_at_2_fp_reason"] == "no lesion in the reference"


def test_a_cohort_of_one_has_a_curve_without_intervals():
    _, curve = curve_of([patient(1, 1)], [1])
    assert curve["sensitivity"].iloc[0] == 1
    assert curve["sensitivity_low"].isna().all()
