"""Comparison of methods: tests against scipy and counting by hand, and cohorts in which nothing can be compared."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtvlib.comparison import COLUMNS, as_json, comparison, holm, pairs, rank_biserial, swap_p, wilcoxon_p
from mtvlib.errors import InputError
from mtvlib.params import Params

PARAMS = Params(bootstrap_resamples=200)


def table(dsc, cohort="main", **columns):
    """patients.csv of a method: every reference has 10 ml of primary tumour, of which the method finds a part."""
    n, dsc = len(dsc), np.asarray(dsc, float)
    both = 10 * dsc / (2 - dsc)  # a method that finds nothing else: dsc = 2 both / (10 + both)
    values = {"patient": [f"P{i}" for i in range(n)], "cohort": cohort}
    for target, volume in (("primary", "mtv_primary"), ("nodes", "mtv_nodes"), ("all", "ttb")):
        there = target != "nodes"
        values |= {f"dsc_{target}": dsc if there else 1.0, f"{volume}_man_ml": 10.0 * there}
        values |= {f"{volume}_cnn_ml": both * there, f"both_{target}_ml": both * there}
    return pd.DataFrame(values | columns)


def row_of(compared, measure="mean_dsc", target="primary", method="b"):
    chosen = compared[
        (compared["measure"] == measure) & (compared["target"] == target) & (compared["method"] == method)
    ]
    (row,) = chosen.to_dict("records")
    return row


def without_constants(block):
    """JSON without NaN, as it is read again."""
    return json.loads(json.dumps(block, allow_nan=False))


# --- the tests


def test_wilcoxon_without_ties_against_scipy():
    differences = np.array([1.5, -0.3, 2.2, 0.9, -1.1, 3.0, 0.2, 4.1])
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert wilcoxon_p(differences) == pytest.approx(expected)


def test_wilcoxon_with_ties_and_zeros_against_all_signs():
    """Pratt: |d| 0, 0, 1, 1, 2, 3 have the ranks 1.5, 1.5, 3.5, 3.5, 5, 6; of the 16 choices of signs six
    have W+ as far off its mean of 9 as the observed 14.5: 14.5 twice, 18, and their mirror images."""
    differences = np.array([0, 0, 1, -1, 2, 3.0])
    ranks = np.array([3.5, 3.5, 5, 6])
    w = np.array([ranks @ signs for signs in product((0, 1), repeat=4)])
    assert wilcoxon_p(differences) == pytest.approx((np.abs(w - 9) >= 5.5).mean()) == pytest.approx(6 / 16)


def test_wilcoxon_of_many_patients_against_scipy():
    random = np.random.default_rng(1)
    differences = np.round(random.normal(0.1, 1, 200), 1)  # with ties and zeros
    assert (differences == 0).sum() > 3
    expected = stats.wilcoxon(differences, zero_method="pratt", method="asymptotic").pvalue
    assert wilcoxon_p(differences) == pytest.approx(expected)


def test_exact_and_normal_p_meet_where_one_gives_way_to_the_other():
    differences = np.random.default_rng(2).normal(0.3, 1, 51)
    exact = stats.wilcoxon(differences, method="exact").pvalue
    assert wilcoxon_p(differences) == pytest.approx(exact, abs=0.003)


@pytest.mark.parametrize(("differences", "p"), [([0.0, 0, 0], 1), ([0.2], 1), ([0.2, 0.1, 0.4], 0.25), ([], 1)])
def test_wilcoxon_of_few_patients(differences, p):
    assert wilcoxon_p(np.array(differences)) == p


def test_rank_biserial_by_hand():
    """Ranks of 1, -2, 3, 4 are the values themselves: (8 - 2) / 10."""
    assert rank_biserial(np.array([1, -2, 3, 4.0])) == pytest.approx(0.6)
    assert rank_biserial(np.array([[0.1, 0.2], [-1, -3]])).tolist() == [1, -1]
    assert np.isnan(rank_biserial(np.zeros(3)))


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def paired(differences):
    """Counts of two methods whose values differ so."""
    other = np.linspace(1, 2, len(differences))
    return [np.column_stack([values, np.ones(len(other))]) for values in (other + differences, other)]


def test_swaps_of_a_mean_are_the_sign_flips_of_the_differences():
    differences = np.array([0.5, -0.2, 0.9, 0.4, 0.1, -0.3])
    sums = np.array([np.dot(signs, differences) for signs in product((-1, 1), repeat=6)])
    expected = (np.abs(sums) >= abs(differences.sum()) - 1e-9).mean()
    assert swap_p(*paired(differences), mean) == pytest.approx(expected)


def test_drawn_swaps_against_scipy():
    differences = np.random.default_rng(3).normal(0.35, 1, 40)
    found = stats.permutation_test(
        (differences, np.zeros(40)), lambda a, b: (a - b).mean(), permutation_type="samples", rng=1, n_resamples=20000
    )
    assert swap_p(*paired(differences), mean) == pytest.approx(found.pvalue, abs=0.01)
    assert swap_p(*paired(differences), mean, seed=1) == swap_p(*paired(differences), mean, seed=1)


def test_a_drawn_p_is_never_0():
    assert swap_p(*paired(np.ones(40)), mean) == 1 / 10000


def test_swapping_equal_methods_has_p_1():
    assert swap_p(*paired(np.zeros(5)), mean) == swap_p(*paired(np.zeros(50)), mean) == 1


def test_holm_by_hand():
    """4 x 0.01, 3 x 0.03, and 2 x 0.04, which may not lie below the one before."""
    found = holm(np.array([0.01, 0.04, 0.03, np.nan, 0.2]))
    np.testing.assert_allclose(found, [0.04, 0.09, 0.09, np.nan, 0.2])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm(np.array([])).size == 0


# --- cohorts


def test_which_methods_are_compared():
    assert pairs(["a", "b"]) == [("b", "a")]
    assert pairs(["a", "b", "c"]) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert pairs(["a", "b", "c", "d"]) == [("b", "a"), ("c", "a"), ("d", "a")]


def test_a_comparison_by_hand():
    a, b = table([0.5, 0.6, 0.7, 0.8]), table([0.6, 0.8, 0.6, 1.0])
    compared = comparison({"a": a, "b": b}, PARAMS)
    assert list(compared.columns) == list(COLUMNS)
    row = row_of(compared)
    assert (row["value"], row["other_value"]) == (pytest.approx(0.75), pytest.approx(0.65))
    assert row["difference"] == pytest.approx(0.1)  # of 0.1, 0.2, -0.1, 0.2
    assert row["difference_low"] < 0.1 < row["difference_high"]
    assert (row["n_persons"], row["n_better"], row["n_worse"], row["n_equal"]) == (4, 3, 1, 0)
    assert row["rank_biserial"] == pytest.approx((1.5 + 3.5 + 3.5 - 1.5) / 10)
    assert row["wilcoxon_p"] == pytest.approx(6 / 16)  # W+ 8.5 of 10: 8.5, 8.5, 10 and their mirror images
    assert row["permutation_p"] == pytest.approx(6 / 16)  # sums of 0.4 or more: 0.4, 0.4, 0.6 and their mirror images


def test_volume_errors_are_absolute_and_smaller_ones_are_better():
    a, b = table([1.0, 1.0, 1.0]), table([1.0, 1.0, 1.0])
    a["ttb_cnn_ml"], b["ttb_cnn_ml"] = [8.0, 13, 10], [11.0, 9, 10]
    row = row_of(comparison({"a": a, "b": b}, PARAMS), "mean_absolute_volume_error_ml", "all")
    assert (row["value"], row["other_value"]) == (pytest.approx(2 / 3), pytest.approx(5 / 3))
    assert row["difference"] == pytest.approx(-1)
    assert (row["n_better"], row["n_worse"], row["n_equal"], row["rank_biserial"]) == (2, 0, 1, 1)


def test_the_cohort_dsc_is_that_of_the_summed_volumes():
    """The large tumour decides: 90 of 100 ml and 1 of 2 ml found, against 50 and 2."""
    a, b = table([0.5, 0.5]), table([0.5, 0.5])
    for one, found in ((a, [50.0, 2]), (b, [90.0, 1])):
        one["ttb_man_ml"], one["ttb_cnn_ml"], one["both_all_ml"] = [100.0, 2], found, found
    row = row_of(comparison({"a": a, "b": b}, PARAMS), "cohort_dsc", "all")
    assert row["difference"] == pytest.approx(2 * 91 / 193 - 2 * 52 / 154)
    assert row["permutation_p"] == 1  # 2 of 4 swaps are the observed one and its mirror, swapping one only: 90 + 2
    assert np.isnan(row["wilcoxon_p"])


def test_the_interval_is_paired():
    """Patients differ much, the methods in each patient hardly: unpaired, the interval would hold 0."""
    dsc = np.linspace(0.1, 0.9, 30)
    b = table(dsc + 0.03 + 0.01 * np.sin(np.arange(30)))
    row = row_of(comparison({"a": table(dsc), "b": b}, PARAMS))
    assert 0.02 < row["difference_low"] < row["difference_high"] < 0.04
    assert row["wilcoxon_p"] < 1e-5


def test_columns_that_somebody_else_adds_are_compared_where_both_methods_have_them():
    surface = {"surface_dsc_2_5mm_all": [0.5, np.nan, 0.7], "hd95_all_mm": [4.0, 6, np.nan]}
    a = table([0.5, 0.6, 0.7], **surface)
    b = table([0.5, 0.6, 0.7], **surface | {"surface_dsc_2_5mm_all": [0.6, 0.9, 0.9]})
    compared = comparison({"a": a, "b": b}, PARAMS)
    row = row_of(compared, "mean_surface_dsc_2_5mm", "all")
    assert (row["n_persons"], row["n_left_out"]) == (2, 1)
    assert row["difference"] == pytest.approx(0.15)
    assert row_of(compared, "mean_hd95_mm", "all")["n_left_out"] == 1
    assert set(compared["measure"]) - set(comparison({"a": table([0.5]), "b": b[:1]}, PARAMS)["measure"]) == {
        "mean_surface_dsc_2_5mm",
        "mean_hd95_mm",
    }


def test_the_order_of_the_rows_does_not_matter():
    a, b = table([0.5, 0.6, 0.9]), table([0.6, 0.8, 0.1])
    pd.testing.assert_frame_equal(
        comparison({"a": a, "b": b[::-1].reset_index(drop=True)}, PARAMS), comparison({"a": a, "b": b}, PARAMS)
    )


def test_holm_counts_the_tests_of_a_partition():
    a, b = table([0.5, 0.6, 0.7, 0.8, 0.5, 0.6, 0.7]), table([0.6, 0.8, 0.8, 0.9, 0.7, 0.7, 0.8])
    compared = comparison({"a": a, "b": b}, PARAMS)
    tested = compared["wilcoxon_p"].notna()
    assert tested.sum() == 4  # primary and all: mean DSC and volume error
    assert compared.loc[tested, "wilcoxon_p_holm"].tolist() == pytest.approx([4 * 2 / 2**7] * 4)


def test_scans_of_one_person_count_once():
    """Everybody scanned twice alike: the same intervals and p values as with one scan each."""
    a, b = table([0.5, 0.6, 0.7, 0.8]), table([0.6, 0.8, 0.6, 1.0])
    once = comparison({"a": a, "b": b}, PARAMS)
    twice = {
        name: pd.concat([one, one.assign(patient=one["patient"] + "x")], ignore_index=True).assign(
            person=[*one["patient"], *one["patient"]]
        )
        for name, one in (("a", a), ("b", b))
    }
    pd.testing.assert_frame_equal(comparison(twice, PARAMS), once)


def test_partitions_are_compared_apart():
    a, b = (table(dsc, cohort=["main"] * 2 + ["external"]) for dsc in ([0.5, 0.6, 0.7], [0.6, 0.7, 0.6]))
    compared = comparison({"a": a, "b": b}, PARAMS)
    main, external = (compared[compared["partition"] == name] for name in ("cross_validation", "external_testing"))
    assert row_of(main)["difference"] == pytest.approx(0.1)
    assert row_of(external)["difference"] == pytest.approx(-0.1)


# --- nothing to compare: null with a reason, never NaN in JSON


def test_a_target_that_nobody_has():
    block = without_constants(as_json(comparison({"a": table([0.5, 0.6]), "b": table([0.6, 0.6])}, PARAMS)))
    nodes = [one for one in block["cross_validation"] if one["target"] == "nodes"]
    assert len(nodes) == 3
    assert all(one["difference"] is None and one["reason"].startswith("no patient has it") for one in nodes)
    assert block["external_testing"] == []


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_cohorts(n):
    a, b = table([0.5, 0.6, 0.9][:n]), table([0.6, 0.8, 0.95][:n])
    block = without_constants(as_json(comparison({"a": a, "b": b}, PARAMS)))
    one = next(x for x in block["cross_validation"] if (x["measure"], x["target"]) == ("mean_dsc", "primary"))
    assert one["wilcoxon"]["p"] == one["permutation"]["p"] == 2 ** (1 - n)
    assert one["rank_biserial"] == 1
    if n == 1:
        assert one["difference_ci95"] is None
        assert one["difference_reason"] == "no interval: one patient cannot be resampled"


def test_equal_methods():
    a = table([0.5, 0.6, 0.7, 0.8])
    block = without_constants(as_json(comparison({"a": a, "b": a.copy()}, PARAMS)))
    for one in block["cross_validation"]:
        if one["target"] != "nodes":
            assert (one["difference"], one["difference_ci95"], one["permutation"]["p"]) == (0, None, 1)
            assert "persons differ alike" in one["difference_reason"]
    mean_dsc = next(x for x in block["cross_validation"] if (x["measure"], x["target"]) == ("mean_dsc", "all"))
    assert (mean_dsc["n_equal"], mean_dsc["rank_biserial"], mean_dsc["wilcoxon"]["p"]) == (4, None, 1)
    assert mean_dsc["rank_biserial_reason"] == "no person differs"


def test_a_method_that_finds_nothing():
    nothing = table([0.0] * 6)
    block = without_constants(as_json(comparison({"a": table(np.linspace(0.4, 0.9, 6)), "b": nothing}, PARAMS)))
    one = next(x for x in block["cross_validation"] if (x["measure"], x["target"]) == ("cohort_dsc", "primary"))
    assert (one["value"], one["difference"]) == (0, -one["other_value"])
    assert one["permutation"]["p"] == 2 / 2**6


def test_a_target_of_one_method_alone_has_no_difference():
    """The reference has no node anywhere, and only one method made one up: the other's cohort DSC is 0 / 0."""
    a, b = table([0.5, 0.6]), table([0.5, 0.6])
    b["mtv_nodes_cnn_ml"], b["dsc_nodes"] = [2.0, 0.0], [0.0, 1.0]
    compared = comparison({"a": a, "b": b}, PARAMS)
    assert row_of(compared, "cohort_dsc", "nodes")["reason"].startswith("undefined: the target is in neither")
    assert row_of(compared, "mean_dsc", "nodes")["difference"] == pytest.approx(-0.5)


def test_no_patient_has_a_surface_by_both_methods():
    a = table([0.5, 0.6], hd95_all_mm=[np.nan, 3.0])
    b = table([0.5, 0.6], hd95_all_mm=[2.0, np.nan])
    row = row_of(comparison({"a": a, "b": b}, PARAMS), "mean_hd95_mm", "all")
    assert (row["n_left_out"], row["reason"]) == (2, "no patient has a value by both methods")


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"a": table([0.5])}, r"needs two methods or more \(found: a\)"),
        (
            {"a": table([0.5, 0.6]), "b": table([0.5])},
            r"methods a and b were evaluated on other patients \(found: P1\)",
        ),
        ({"a": table([0.5]), "b": pd.concat([table([0.5])] * 2)}, "patients that come twice"),
        ({"a": table([0.5]), "b": table([0.5], ttb_man_ml=[11.0])}, "a and b were evaluated against other references"),
    ],
)
def test_what_cannot_be_compared_is_refused(tables, problem):
    with pytest.raises(InputError, match=problem):
        comparison(tables, PARAMS)
