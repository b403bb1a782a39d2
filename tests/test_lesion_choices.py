"""Table 3 under other definitions of a lesion: the same counts as the evaluation's own way would give."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from mtvlib import lesions
from mtvlib.intervals import Bootstrap
from mtvlib.lesion_choices import Choice, choice_table, choices, counts_by_choice, summarise_choices

MM = (2.5, 2.5, 2.5)
BOOTSTRAP = Bootstrap(200, seed=1)
OWN = (26, 0.1, 0.5)


def noise(seed, shape=(24, 28, 20)):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 3, [side // 4 for side in shape])
    return (ndimage.zoom(coarse, 4, order=0) * (random.random(shape) < 0.7)).astype(np.uint8)


def by_the_long_way(reference, prediction, choice):
    """Counts by removing small ROIs from the whole maps and looking at each lesion that is left."""
    kept = [
        lesions.remove_small_rois(mask, MM, choice.min_roi_ml, choice.connectivity) for mask in (reference, prediction)
    ]
    found = lesions.find_lesions(*kept, None, MM, coverage=choice.coverage, connectivity=choice.connectivity)
    kinds = [(one["target"], one["source"], one["outcome"]) for one in found]
    order = (("man", "TP"), ("cnn", "TP"), ("man", "FN"), ("cnn", "FP"))
    return [[kinds.count((target, *kind)) for kind in order] for target in ("primary", "nodes")]


def test_seven_choices_that_differ_from_the_studys_in_one_respect():
    made = choices(*OWN)
    assert made[0] == OWN
    assert len(made) == len(set(made)) == 7
    assert {sum(a != b for a, b in zip(choice, OWN, strict=True)) for choice in made[1:]} == {1}


def test_an_own_choice_that_is_not_listed_comes_first():
    assert choices(18, 0.2, 0.4)[0] == (18, 0.2, 0.4)
    assert len(choices(18, 0.2, 0.4)) == 9


@pytest.mark.parametrize("seed", [1, 2])
def test_counts_are_those_of_the_long_way(seed):
    reference, prediction, made = noise(seed), noise(seed + 10), choices(*OWN)
    counts = counts_by_choice(reference, prediction, MM, made)
    for own, choice in zip(counts.tolist(), made, strict=True):
        assert own == by_the_long_way(reference, prediction, choice), choice
    assert len({str(own) for own in counts.tolist()}) > 3


def test_a_removed_neighbour_no_longer_covers():
    """A node of 1 ml, 48 % of it covered by a prediction of 31 voxels: too small for 0.5 ml, and then it is missed."""
    reference, prediction = np.zeros((2, 12, 12, 12), np.uint8)
    reference[2:6, 2:6, 2:6], prediction[2:4, 2:6, 2:6] = 2, 2
    prediction[3, 2, 2] = 0
    low, high = Choice(26, 0.1, 0.4), Choice(26, 0.5, 0.4)
    assert counts_by_choice(reference, prediction, MM, [low, high])[:, 1].tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]


def test_empty_masks_count_nothing():
    nothing = np.zeros((6, 6, 6), np.uint8)
    assert not counts_by_choice(nothing, nothing, MM, choices(*OWN)).any()
    one = nothing.copy()
    one[1:4, 1:4, 1:4] = 1
    assert counts_by_choice(one, nothing, MM, choices(*OWN))[0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert counts_by_choice(nothing, one, MM, choices(*OWN))[0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


@pytest.fixture
def table():
    made = choices(*OWN)
    counts = [counts_by_choice(noise(seed), noise(seed + 20), MM, made) for seed in range(3)]
    return choice_table(["A", "B", "C"], counts, made)


def test_the_table_is_tidy(table):
    assert list(table) == ["patient", "target", *Choice._fields, *lesions.COUNTS]
    assert len(table) == 3 * 7 * 2
    assert not table.duplicated(["patient", "target", "connectivity", "min_roi_ml", "coverage"]).any()
    row = table.set_index(["patient", "target", "connectivity", "min_roi_ml", "coverage"]).loc[
        ("B", "nodes", 6, 0.1, 0.5)
    ]
    assert row.tolist() == by_the_long_way(noise(1), noise(21), Choice(6, 0.1, 0.5))[1]


def test_summary_of_the_table_from_disk_in_any_order(table):
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    blocks = summarise_choices(pd.Series(["A", "B", "C"]), table, BOOTSTRAP)
    assert summarise_choices(pd.Series(["A", "B", "C"]), again, BOOTSTRAP) == blocks
    assert json.loads(json.dumps(blocks, allow_nan=False))[0]["connectivity"] == 26


def test_the_studys_own_choice_is_table_3(table):
    own = table[(table["connectivity"] == 26) & (table["min_roi_ml"] == 0.1) & (table["coverage"] == 0.5)]
    block = summarise_choices(pd.Series(["A", "B", "C"]), table, BOOTSTRAP)[0]
    for target in ("primary", "nodes"):
        counts = own.loc[own["target"] == target, list(lesions.COUNTS)].to_numpy()
        assert block[target] == lesions.detection(counts, BOOTSTRAP)
    both = own.groupby("patient")[list(lesions.COUNTS)].sum().to_numpy()
    assert block["all"] == lesions.detection(both, BOOTSTRAP)


def test_of_a_partition_only_its_patients_count(table):
    (block, *_) = summarise_choices(pd.Series(["B"]), table, BOOTSTRAP)
    alone = table[table["patient"] == "B"].iloc[0]
    assert block["primary"]["tp_man"] == alone["tp_man"]
    assert block["primary"]["tpr_ci95"] is None


def test_without_lesions_rates_are_null_with_reasons():
    made, nothing = choices(*OWN), np.zeros((7, 2, 4), int)
    block = summarise_choices(pd.Series(["A", "B"]), choice_table(["A", "B"], [nothing, nothing], made), BOOTSTRAP)[0]
    assert (block["all"]["tpr"], block["all"]["tpr_reason"]) == (None, "no lesion in the reference")
    assert (block["all"]["ppv"], block["all"]["ppv_reason"]) == (None, "no lesion in the prediction")
