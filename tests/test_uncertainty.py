"""What a network and its ensemble are unsure of: values by hand, and rank statistics of scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtvlib import uncertainty
from mtvlib.inference import votes
from mtvlib.intervals import Bootstrap
from mtvlib.lesions import find_lesions
from mtvlib.metrics import dsc

BOOTSTRAP = Bootstrap(200, 1)


def test_the_expected_dsc_by_hand():
    """Probabilities 1, 0.8 inside, 0.2 outside: 2 x 1.8 / (2.0 + 2)."""
    probability = np.array([[[255, 204, 51, 0]]], np.uint8)
    assert uncertainty.expected_dsc(probability, probability > 127) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("probability", "delineated", "expected"),
    [([0, 0], [False, False], 1.0), ([255, 0], [True, False], 1.0), ([51, 0], [False, False], 0.0)],
)
def test_the_expected_dsc_at_its_ends(probability, delineated, expected):
    assert uncertainty.expected_dsc(np.array(probability, np.uint8), np.array(delineated)) == expected


def test_the_expected_dsc_is_near_the_mean_of_drawn_references():
    random = np.random.default_rng(0)
    probability = random.integers(0, 256, 4000).astype(np.uint8)
    delineated = probability > 127
    drawn = random.random((200, 4000)) < probability / 255
    true = [float(dsc(one.sum(), delineated.sum(), (one & delineated).sum())) for one in drawn]
    assert uncertainty.expected_dsc(probability, delineated) == pytest.approx(np.mean(true), abs=1e-3)


def label_maps(*rows):
    return np.array(rows, np.uint8)[:, None, None]


def test_the_dsc_among_models_is_the_mean_of_their_pairs():
    maps = label_maps([1, 1, 0, 0], [1, 2, 2, 0], [0, 0, 0, 1])
    assert uncertainty.model_dsc(votes(maps), 3) == pytest.approx((2 * 2 / 5 + 0 + 0) / 3)


def test_models_that_agree_have_no_disagreement_be_it_in_finding_nothing():
    for row in ([1, 0, 2, 0], [0, 0, 0, 0]):
        assert uncertainty.model_dsc(votes(label_maps(row, row, row, row, row)), 5) == 1
    one_finds_nothing = votes(label_maps([0, 0], [1, 0]))
    assert uncertainty.model_dsc(one_finds_nothing, 2) == 0


@pytest.mark.parametrize("models", [2, 8, 9, 20, 33])
def test_any_number_of_models_can_vote(models):
    maps = np.random.default_rng(models).integers(0, 3, (models, 4, 5, 6)).astype(np.uint8)
    found = maps > 0
    pairs = [dsc(found[a].sum(), found[b].sum(), (found[a] & found[b]).sum()) for a in range(models) for b in range(a)]
    assert uncertainty.model_dsc(votes(maps), models) == pytest.approx(np.mean(pairs))


def test_lesions_are_numbered_as_in_the_table_of_lesions():
    random = np.random.default_rng(3)
    prediction = (random.integers(0, 3, (9, 9, 9)) * (random.random((9, 9, 9)) < 0.1)).astype(np.uint8)
    found = uncertainty.lesion_certainty(prediction, prediction * 100, None, 1)
    expected = find_lesions(np.zeros_like(prediction), prediction, None, (1.0, 1.0, 1.0))
    assert len(found) > 10
    assert [(one["target"], one["lesion"]) for one in found] == [(one["target"], one["lesion"]) for one in expected]
    means = {one["target"]: one["mean_probability"] for one in found}
    assert means == pytest.approx({"primary": 100 / 255, "nodes": 200 / 255})


def test_a_model_agrees_with_a_lesion_that_it_calls_one_by_half():
    prediction = np.array([[[1, 1, 0, 2, 2]]], np.uint8)
    probability = np.array([[[255, 153, 0, 51, 51]]], np.uint8)
    maps = label_maps([1, 1, 0, 0, 0], [2, 0, 0, 0, 2], [0, 0, 1, 0, 0])
    primary, node = uncertainty.lesion_certainty(prediction, probability, votes(maps), 3)
    assert (primary["mean_probability"], primary["models_agreeing"]) == (pytest.approx(0.8), 2)
    assert (node["mean_probability"], node["models_agreeing"]) == (pytest.approx(0.2), 1)
    assert uncertainty.lesion_certainty(np.zeros_like(prediction), probability, None, 1) == []


def test_the_rank_correlation_is_scipys_in_every_sample():
    values = np.random.default_rng(0).integers(0, 6, (7, 12, 2)).astype(float)  # with ties
    expected = [stats.spearmanr(*sample.T).statistic for sample in values]
    np.testing.assert_allclose(uncertainty.spearman(values), expected)


@pytest.mark.parametrize("values", [[[0.1, 0.2]], [[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.1], [0.5, 0.2], [0.5, 0.9]]])
def test_no_rank_correlation_of_two_patients_or_of_equal_ones(values):
    assert np.isnan(uncertainty.spearman(np.array(values)))


def patients(expected, model, true):
    return pd.DataFrame({"expected_dsc": expected, "model_dsc": model, "dsc_all": true})


def test_the_block_of_an_ensemble():
    true = [0.1, 0.2, 0.3, 0.6]
    block = uncertainty.uncertainty(patients([0.2, 0.4, 0.6, 0.8], [0.9, 0.7, 0.5, 0.1], true), 5, BOOTSTRAP)
    assert block["models"] == 5
    assert (block["expected_dsc"]["spearman"], block["model_dsc"]["spearman"]) == (1, -1)
    assert (block["expected_dsc"]["mean"], block["expected_dsc"]["excess"]) == pytest.approx((0.5, 0.2))


def test_one_model_has_none_to_disagree_with():
    block = uncertainty.uncertainty(patients([0.5], [None], [0.4]), 1, BOOTSTRAP)
    assert set(block) == {"models", "expected_dsc"}
    assert (block["expected_dsc"]["spearman"], block["expected_dsc"]["spearman_reason"]) == (None, uncertainty.FEW)


def lesion_table(*rows):
    return pd.DataFrame(rows, columns=["patient", "mean_probability", "outcome"])


FOUND = lesion_table(
    ("a", 0.9, "TP"), ("a", 0.5, "FP"), ("b", 0.6, "TP"), ("b", 0.6, "FP"), ("b", 0.7, "FP"), ("c", 0.4, "TP")
)


def test_the_area_is_mann_whitneys():
    block = uncertainty.lesion_auc(["a", "b", "c"], FOUND, BOOTSTRAP)
    confirmed, spurious = (FOUND.loc[FOUND["outcome"] == outcome, "mean_probability"] for outcome in ("TP", "FP"))
    assert block["auc"] == pytest.approx(stats.mannwhitneyu(confirmed, spurious).statistic / 9)
    assert (block["n_confirmed"], block["n_spurious"]) == (3, 3)


def test_the_area_of_resampled_patients_is_that_of_their_lesions_drawn_as_often():
    """By drawing the rows themselves, with the same patients."""
    areas = []
    for drawn in np.concatenate(list(BOOTSTRAP.draws(2))):
        rows = pd.concat([FOUND[FOUND["patient"] == "ab"[index]] for index in drawn])
        sides = [rows.loc[rows["outcome"] == outcome, "mean_probability"] for outcome in ("TP", "FP")]
        areas.append(stats.mannwhitneyu(*sides).statistic / (len(sides[0]) * len(sides[1])))
    block = uncertainty.lesion_auc(["a", "b"], FOUND, BOOTSTRAP)
    assert block["auc_ci95"] == pytest.approx(np.quantile(areas, [0.025, 0.975]).tolist())


def test_no_area_without_spurious_lesions_or_without_any():
    for found in (FOUND[FOUND["outcome"] == "TP"], FOUND[:0]):
        block = uncertainty.lesion_auc(["a", "b", "c"], found, BOOTSTRAP)
        assert (block["auc"], block["auc_reason"]) == (None, "there are not both confirmed and spurious lesions")
