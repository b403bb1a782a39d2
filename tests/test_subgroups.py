"""Subgroups counted by hand, their tests against scipy and R, and partitions in which there is little to divide."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtvlib.describe import as_categories
from mtvlib.params import Params
from mtvlib.subgroups import GROUPINGS, TITLES, heterogeneity, holm, labels, subgroups

PARAMS = Params(bootstrap_resamples=200)
GROUPING = {grouping.column: grouping for grouping in GROUPINGS}


def patients(n=12, **columns):
    """Patients of growing volume; patient i is hit by i / (n + 1) of it."""
    size = np.arange(1.0, n + 1)
    both = size * size / (n + 1)
    table = {"ttb_man_ml": size, "ttb_cnn_ml": size, "both_all_ml": both, "dsc_all": both / size}
    table |= {
        "site": ["a", "b"] * (n // 2) + ["a"] * (n % 2),
        "suvmax_man": size,
        "n_nodes_man": [0, 1] * (n // 2) + [0] * (n % 2),
    }
    return pd.DataFrame(table | columns)


def evaluated(table, persons=None):
    names = [f"P{i}" for i in range(len(table))]
    block = subgroups(table.assign(patient=names, person=persons or names), PARAMS)
    json.dumps(block, allow_nan=False)
    return block


def variable(block, name):
    (found,) = [one for one in block["variables"] if one["variable"] == name]
    return found


def test_mean_and_cohort_dsc_of_each_group_by_hand():
    site = variable(evaluated(patients()), "site")
    a, b = site["groups"]
    sizes = np.arange(1.0, 13)[::2]  # 1, 3, ..., 11
    assert (a["group"], a["n"], b["group"], b["n"]) == ("a", 6, "b", 6)
    assert a["mean_dsc"] == pytest.approx(sizes.mean() / 13)
    assert a["cohort_dsc"] == pytest.approx((sizes**2).sum() / 13 / sizes.sum())
    low, high = a["mean_dsc_ci95"]
    assert low < a["mean_dsc"] < high


def test_the_test_is_scipys():
    table = patients()
    site = variable(evaluated(table), "site")
    h, p = stats.kruskal(table["dsc_all"][::2], table["dsc_all"][1::2])
    assert (site["kruskal_h"], site["kruskal_df"], site["kruskal_p"]) == pytest.approx((h, 1, p))


def test_kruskal_wallis_by_hand():
    samples = [[2.9, 3.0, 2.5, 2.6, 3.2], [3.8, 2.7, 4.0, 2.4, 2.0], [2.8, 3.4, 3.7, 2.2, 2.0]]
    # Ranks: 9 10 5 6 11 = 41; 14 7 15 4 1.5 = 41.5; 8 12 13 3 1.5 = 37.5. One tie of two: 1 - 6 / (15^3 - 15).
    h = (12 / (15 * 16) * (41**2 + 41.5**2 + 37.5**2) / 5 - 3 * 16) / (1 - 6 / (15**3 - 15))
    found = heterogeneity([np.array(sample) for sample in samples])
    assert found["kruskal_h"] == pytest.approx(h)
    assert found["kruskal_p"] == pytest.approx(np.exp(-h / 2))  # chi-squared with two degrees of freedom


def test_holm_against_r():
    # > p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    # [1] 0.03 0.06 0.06 0.02
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("age", [64.9, 65, "", None], ["below 65", "65 or more", None, None]),
        ("ttb_man_ml", [0, 4.99, 5, 19.9, 20], ["below 5", "below 5", "5 to 20", "5 to 20", "20 or more"]),
        ("suvmax_man", [3.9, 4, 10, np.nan], ["below 4", "4 to 10", "10 or more", None]),
        ("n_nodes_man", [0, 1, 2, 3, 4, 9], ["none", "1", "2 or 3", "2 or 3", "4 or more", "4 or more"]),
        ("hpv", ["positive", "unknown", ""], ["positive", None, None]),
    ],
)
def test_groups_begin_at_their_edges(column, values, expected):
    found = labels(pd.Series(values), GROUPING[column])
    assert [None if pd.isna(name) else name for name in found] == expected


def test_missing_values_are_a_group_of_their_own_and_take_no_part_in_the_test():
    hpv = ["positive", "negative"] * 5 + ["", "unknown"]
    block = variable(evaluated(patients(hpv=hpv)), "hpv")
    assert [(group["group"], group["n"]) for group in block["groups"]] == [
        ("negative", 5),
        ("positive", 5),
        ("missing", 2),
    ]
    assert block["kruskal_df"] == 1


def test_a_group_of_four_has_no_interval_and_no_part_in_the_test():
    block = variable(evaluated(patients(9)), "site")
    five, four = block["groups"]
    assert (five["n"], four["n"]) == (5, 4)
    assert five["mean_dsc_ci95"]
    assert (four["mean_dsc_ci95"], four["cohort_dsc_ci95"]) == (None, None)
    assert four["mean_dsc_reason"] == "no interval: fewer than 5 patients"
    assert block["kruskal_p"] is None
    assert "fewer than two groups" in block["kruskal_p_reason"]
    assert block["kruskal_p_holm"] is None


def test_variables_that_the_table_lacks_or_nobody_knows_are_named():
    block = evaluated(patients(sex=[np.nan] * 12))
    assert block["absent"] == ["tumour_site", "stage", "hpv", "sex", "age"]
    assert [one["variable"] for one in block["variables"]] == ["site", "ttb_man_ml", "suvmax_man", "n_nodes_man"]


@pytest.mark.parametrize("n", [1, 3])
def test_very_small_partitions(n):
    block = evaluated(patients(n))
    for one in block["variables"]:
        assert sum(group["n"] for group in one["groups"]) == n
        assert one["kruskal_p"] is None


def test_no_lesion_at_all_and_all_alike():
    nothing = patients(ttb_man_ml=[0.0] * 12, ttb_cnn_ml=[0.0] * 12, both_all_ml=[0.0] * 12, dsc_all=[1.0] * 12)
    block = variable(evaluated(nothing.assign(suvmax_man=np.nan)), "site")
    assert block["groups"][0]["cohort_dsc"] is None
    assert "no patient of the group has a lesion" in block["groups"][0]["cohort_dsc_reason"]
    assert block["kruskal_p_reason"] == "all patients have the same DSC"
    low, high = block["groups"][0]["mean_dsc_ci95"]
    assert (round(low, 2), high) == (0.61, 1.0)  # Wilson's of 6 in 6


def test_persons_are_drawn_with_all_their_rows():
    alone = variable(evaluated(patients()), "site")["groups"][0]
    twice = variable(evaluated(patients(), [f"P{i // 4}" for i in range(12)]), "site")["groups"][0]
    assert alone["mean_dsc"] == twice["mean_dsc"]
    width = [high - low for low, high in (alone["mean_dsc_ci95"], twice["mean_dsc_ci95"])]
    assert width[1] != pytest.approx(width[0])


def test_a_group_of_three_sites_is_drawn_by_site():
    of_sites = {
        name: patients(site=sites, sex=["F"] * 12)
        for name, sites in (("one", ["a"] * 12), ("three", [*"aaaabbbbcccc"]))
    }
    ends = {name: variable(evaluated(table), "sex")["groups"][0]["mean_dsc_ci95"] for name, table in of_sites.items()}
    assert ends["three"][1] - ends["three"][0] > ends["one"][1] - ends["one"][0]


def test_titles_and_categories_are_those_of_the_description():
    assert set(TITLES) == set(GROUPING)
    assert as_categories(pd.Series(["IV", "unknown"])).dropna().tolist() == ["IV"]
