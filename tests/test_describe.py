"""Table 1 against values by hand and the R package tableone, and cohorts of which little or nothing is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtvlib import describe
from mtvlib.describe import (
    BURDEN,
    CLINICAL,
    Variable,
    as_categories,
    by_site,
    smd_of_categories,
    smd_of_numbers,
    table_one,
)

AGE = Variable("age", "Age", "number")
SEX = Variable("sex", "Sex", "category")
DEATH = Variable("death", "Deaths", "share")


def cohort(main=4, external=3, **columns):
    n = main + external
    table = {"cohort": ["main"] * main + ["external"] * external, "site": ["Berlin"] * main + ["Munich"] * external}
    return pd.DataFrame(table | {name: list(values)[:n] for name, values in columns.items()})


def described(table, variable):
    return table_one(table, [variable])["variables"][variable.column]


# --- standardised mean differences


def test_smd_of_numbers_by_hand():
    # means 2 and 5, variances 1 and 7: (2 - 5) / sqrt(4) = -1.5; SE^2 = 6 / 9 + 2.25 / 12 = 0.8542
    found = smd_of_numbers(np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 8.0]))
    assert found.value == pytest.approx(-1.5)
    half = stats.norm.ppf(0.975) * math.sqrt(6 / 9 + 2.25 / 12)
    assert found.ci95 == pytest.approx((-1.5 - half, -1.5 + half))


# R 4, tableone's vignette "introduction":
# > print(CreateTableOne(vars, strata = "trt", data = pbc, factorVars = catVars), smd = TRUE)
#                        1              2              SMD
#   n                    158            154
#   age (mean (SD))      51.42 (11.01)  48.58 (9.96)   0.270
#   sex = f (%)          137 (86.7)     139 (90.3)     0.111
#   edema (%)                                          0.058
#      0                 132 (83.5)     131 (85.1)
#      0.5                16 (10.1)      13 ( 8.4)
#      1                  10 ( 6.3)      10 ( 6.5)
#   stage (%)                                          0.246
#      1                  12 ( 7.6)       4 ( 2.6)
#      2                  35 (22.2)      32 (20.8)
#      3                  56 (35.4)      64 (41.6)
#      4                  55 (34.8)      54 (35.1)
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([21, 137], [15, 139], 0.111),
        ([132, 16, 10], [131, 13, 10], 0.058),
        ([12, 35, 56, 55], [4, 32, 64, 54], 0.246),
    ],
)
def test_smd_of_categories_against_r(first, second, expected):
    assert smd_of_categories(np.array(first), np.array(second)).value == pytest.approx(expected, abs=5e-4)


def sample(mean, sd, n):
    """n values of exactly this mean and standard deviation."""
    values = np.arange(n, dtype=float)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


def test_smd_of_numbers_against_r():
    found = smd_of_numbers(sample(51.42, 11.01, 158), sample(48.58, 9.96, 154))
    assert found.value == pytest.approx(0.270, abs=1e-3)


def test_two_categories_are_austins_formula():
    # |0.25 - 0.5| / sqrt((0.1875 + 0.25) / 2)
    found = smd_of_categories(np.array([1, 3]), np.array([2, 2]))
    assert found.value == pytest.approx(0.25 / math.sqrt(0.21875))
    assert found.ci95[0] == 0.0


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_it_does_not_matter_which_category_is_left_out(order):
    first, second = np.array([5, 1, 4])[order], np.array([3, 3, 3])[order]
    # Differences 1/6 and -7/30 of the first two; S = [[.2361, -.0806], [-.0806, .1561]], determinant .03037;
    # (.02778 * .1561 + .05444 * .2361 - 2 * .03889 * .0806) / .03037 = .3597
    assert smd_of_categories(first, second).value == pytest.approx(math.sqrt(0.3597), abs=1e-4)


def test_a_category_that_one_cohort_has_not_got_counts():
    alone = smd_of_categories(np.array([5, 5, 0]), np.array([5, 0, 5]))
    # Covariances [[.25, 0], [0, 0]] and [[0, 0], [0, .25]]: two independent differences of 0.5, each over sqrt(.125)
    assert alone.value == pytest.approx(math.sqrt(2 * 0.25 / 0.125))
    assert alone.ci95 is None


def test_a_category_that_nobody_has_changes_nothing():
    assert smd_of_categories(np.array([5, 0, 4]), np.array([3, 0, 3])) == smd_of_categories(
        np.array([5, 4]), np.array([3, 3])
    )


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [([5, 0], [0, 4], "no category in common"), ([5, 5, 0], [0, 0, 4], "in common"), ([5], [4], "of one category")],
)
def test_a_difference_of_categories_that_does_not_exist_has_a_reason(first, second, reason):
    found = smd_of_categories(np.array(first), np.array(second))
    assert (found.value, found.ci95) == (None, None)
    assert reason in found.reason


# --- Table 1


def test_numbers_categories_and_shares_by_cohort():
    table = cohort(age=[50, 60, np.nan, 70, 40, 44, 48], sex=[*"MMF", "", *"MFF"], death=[1, 0, 1, 1, 0, 0, np.nan])
    about = table_one(table, [AGE, SEX, DEATH])
    assert about["n"] == {"main": 4, "external": 3}
    age, sex, death = (about["variables"][name] for name in ("age", "sex", "death"))
    assert age["main"] == {"n": 3, "missing": 1, "median": 60.0, "iqr": [55.0, 65.0]}
    assert sex["main"] == {"n": 3, "missing": 1, "counts": {"F": 1, "M": 2}}
    assert death["external"] == {"n": 2, "missing": 1, "count": 0}
    assert age["smd"] == pytest.approx((60 - 44) / math.sqrt((100 + 16) / 2))  # of the known values
    assert sex["smd"] == pytest.approx((2 / 3 - 1 / 3) / math.sqrt(2 / 9))
    assert death["smd"] == pytest.approx(0.75 / math.sqrt((0.75 * 0.25 + 0) / 2))


def test_columns_that_are_absent_are_named_once():
    about = table_one(cohort(age=[50] * 7), CLINICAL)
    assert about["absent"] == [variable.title for variable in CLINICAL if variable.column != "age"]
    assert list(about["variables"]) == ["age"]
    assert table_one(cohort(), BURDEN)["variables"] == {}


@pytest.mark.parametrize("variable", [AGE, SEX, DEATH])
def test_a_column_in_which_all_is_missing(variable):
    about = described(cohort(**{variable.column: [np.nan] * 7}), variable)
    assert (about["main"]["n"], about["main"]["missing"], about["smd"]) == (0, 4, None)
    assert "fewer than two known values" in about["smd_reason"]
    assert about["main"].get("median") is None


def test_constant_age_has_no_difference():
    about = described(cohort(age=[60] * 7), AGE)
    assert (about["main"]["median"], about["smd"]) == (60.0, None)
    assert about["smd_reason"] == "no spread within the cohorts"


def test_one_cohort_has_nothing_to_differ_from():
    about = table_one(cohort(4, 0, age=[50, 60, 70, 80]), [AGE])
    assert about["n"] == {"main": 4}
    assert "smd" not in about["variables"]["age"]


@pytest.mark.parametrize(("main", "external"), [(1, 0), (2, 1), (0, 3)])
def test_cohorts_of_one_and_of_three(main, external):
    table = cohort(main, external, age=[61, 62, 63], sex=["M", "F", "M"], death=[1, 0, 0])
    about = table_one(table, [AGE, SEX, DEATH])
    assert sum(about["n"].values()) == main + external
    for block in about["variables"].values():
        assert block.get("smd") is None


@pytest.mark.parametrize("word", ["", " ", "unknown", "Unknown", "NA", "n/a", None, np.nan, "?"])
def test_words_for_unknown_are_missing(word):
    assert as_categories(pd.Series(["positive", word])).isna().tolist() == [False, True]


def test_a_stage_that_was_read_as_a_number_keeps_its_name():
    assert as_categories(pd.Series([4.0, 3.0, np.nan])).tolist()[:2] == ["4", "3"]


# --- by site


def test_sites_of_the_main_cohort_come_first_each_with_its_scanners():
    table = cohort(3, 2, age=[50, 60, 70, np.nan, 40]).assign(site=["b", "a", "b", "c", "b"])
    rows = by_site(table.assign(scanner=["mCT", "", "mCT", "GE", "GE"]), [AGE, SEX])
    assert [(row["cohort"], row["site"], row["n"]) for row in rows] == [
        ("main", "a", 1),
        ("main", "b", 2),
        ("external", "b", 1),
        ("external", "c", 1),
    ]
    assert [row["scanners"] for row in rows] == [{}, {"mCT": 2}, {"GE": 1}, {"GE": 1}]
    assert rows[1]["variables"] == {"age": {"n": 2, "missing": 0, "median": 60.0, "iqr": [55.0, 65.0]}}
    assert rows[3]["variables"]["age"] == {"n": 0, "missing": 1, "median": None, "iqr": None}
    assert by_site(table, [])[0]["scanners"] == {}


def test_every_variable_has_a_name_of_its_own():
    titles = [variable.title for variable in (*describe.CLINICAL, *describe.BURDEN)]
    assert len(set(titles)) == len(titles)
