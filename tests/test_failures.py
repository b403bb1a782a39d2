"""Failed patients: each rule on masks that can be drawn."""

import numpy as np
import pytest

from mtvlib.failures import FAILURE_COLUMNS, distance_mm, find_failures

SPACING_MM = (5.0, 5.0, 5.0)
SHAPE = (20, 9, 9)


def volume(*boxes):
    """Class and first x of cubes of 3 voxels (3.4 ml) in the middle of a volume."""
    labels = np.zeros(SHAPE, np.uint8)
    for label, x in boxes:
        labels[x : x + 3, 3:6, 3:6] = label
    return labels


def failed(reference, prediction, probability=None, suv=10.0):
    probability = (prediction > 0).astype(float) if probability is None else probability
    found = find_failures("P", reference, prediction, probability, np.full(SHAPE, suv), SPACING_MM)
    return {row["target"]: (row["what"], row["why"]) for row in found}


def test_what_has_a_voxel_in_common_or_is_in_neither_has_not_failed():
    assert failed(volume((1, 2)), volume((1, 4))) == {}
    assert failed(volume(), volume()) == {}


def test_nothing_was_predicted():
    assert failed(volume((1, 2)), volume()) == {target: ("nothing was predicted", "") for target in ("primary", "all")}


def test_predicted_far_away_and_beside():
    away = "what was predicted (3.38 ml, SUVmax 10.0) lies 40 mm away, probably physiological uptake"
    assert failed(volume((1, 2)), volume((1, 12)))["all"] == ("predicted elsewhere", away)
    assert failed(volume((1, 2)), volume((1, 6)))["all"] == ("predicted elsewhere", "beside the lesion, 10 mm from it")


def test_called_the_other_class():
    found = failed(volume((1, 2)), volume((2, 2)))
    assert found["primary"] == ("called the other class", "")
    other = "what was predicted (3.38 ml, SUVmax 10.0) is of the other class in the reference"
    assert found["nodes"] == ("predicted where there is none", other)
    assert "all" not in found


def test_predicted_where_there_is_none():
    why = "what was predicted (3.38 ml, SUVmax 10.0) is probably physiological uptake"
    assert failed(volume(), volume((2, 2))) == dict.fromkeys(("nodes", "all"), ("predicted where there is none", why))


def test_small_faint_and_cut_lesions_are_told():
    reference = np.zeros(SHAPE, np.uint8)
    reference[0, 0, :7] = 2  # 0.875 ml at the border
    expected = "small lesion (largest 0.88 ml); low uptake (SUVmax 3.9); lesion at the border of the field"
    assert failed(reference, volume(), suv=3.9)["nodes"] == ("nothing was predicted", expected)
    reference[0, 0, 7] = 2  # 1 ml is not small, SUV 4 not low
    assert failed(reference, volume(), suv=4.0)["nodes"][1] == "lesion at the border of the field"


@pytest.mark.parametrize(("probability", "why"), [(0.09, ""), (0.42, "the network hesitated (probability up to 0.42)")])
def test_a_network_that_hesitated_is_told(probability, why):
    assert failed(volume((1, 2)), volume(), np.full(SHAPE, probability))["all"] == ("nothing was predicted", why)


def test_the_measures_of_a_failure():
    (row, _) = find_failures("P", volume((1, 2)), volume((1, 12)), np.full(SHAPE, 0.3), np.full(SHAPE, 6.0), SPACING_MM)
    assert set(row) == set(FAILURE_COLUMNS)
    expected = {"man_ml": 3.375, "cnn_ml": 3.375, "largest_man_ml": 3.375, "suv_max_man": 6.0, "distance_mm": 40.0}
    assert {name: row[name] for name in expected} == expected
    assert (row["highest_probability"], row["touches_border"]) == (0.3, False)


def test_distances_count_in_mm_along_each_axis():
    man, cnn = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    man[0, 0, 0], cnn[3, 0, 2] = True, True
    assert distance_mm(man, cnn, (1.0, 9.0, 2.0)) == pytest.approx(5)
