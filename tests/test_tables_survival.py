"""The survival tables of blocks that the analysis made: their numbers, and what stands where there is none."""

import numpy as np
import pandas as pd
import pytest

from mtvlib import adjustment, prognosis, tables_survival
from mtvlib.intervals import Bootstrap
from mtvlib.params import Params
from mtvlib.typeset import great_table, typst

MAKERS = [
    tables_survival.patients,
    tables_survival.continuous,
    tables_survival.discrimination,
    tables_survival.adjusted,
    tables_survival.discordance,
]


def cohort(n, seed=1):
    random = np.random.default_rng(seed)
    ttb = np.exp(random.normal(2.4, 1, n))
    times, censored = random.exponential(40, n), random.uniform(10, 90, n)
    columns = {
        "patient": [f"P{seed}-{i}" for i in range(n)],
        "site": random.choice(["a", "b"], n),
        "ttb_man_ml": ttb,
        "ttb_cnn_ml": ttb * np.exp(random.normal(0, 0.2, n)),
        "survival_eligible": 1.0,
        "followup_months": 6 + np.minimum(times, censored),
        "death": (times <= censored) * 1.0,
        "age": random.integers(40, 80, n) * 1.0,
        "stage": random.choice(["III", "IV"], n),
        "hpv": random.choice(["positive", "negative", ""], n),
    }
    return pd.DataFrame(columns)


def survival(table, main):
    params = Params(bootstrap_resamples=100)
    blocks = prognosis.analysis(table, main, 10.0, params, Bootstrap(100, 1))
    missing = adjustment.missing(table, 6.0)
    return {"n": len(table), "events": int(table["death"].sum()), "missing": missing} | blocks


@pytest.fixture(scope="module")
def summary():
    main, external = cohort(150), cohort(14, 2)
    return {
        "cross_validation": {"n_patients": 150, "survival": survival(main, main)},
        "external_testing": {"n_patients": 14, "survival": survival(external, main)},
    }


def cells(table, group, name):
    (row,) = [row for row in table.rows if row.group.startswith(group) and row.name == name]
    return row.cells


@pytest.mark.parametrize("make", MAKERS)
def test_every_table_can_be_set_and_every_dash_has_a_reason(make, summary):
    table = make(summary)
    assert great_table(table, "tbl-x").as_raw_html()
    assert typst(table)
    for row in table.rows:
        assert [key for key, cell in row.cells.items() if cell.value == "–" and not cell.reason] == []


@pytest.mark.parametrize("make", MAKERS)
def test_without_any_analysis_the_notes_say_why(make):
    nothing = {"n_patients": 0, "reason": "no patient of the external cohort was evaluated"}
    table = make({"cross_validation": nothing, "external_testing": nothing})
    assert "no patient of the external cohort was evaluated" in " ".join(table.notes)
    assert great_table(table, "tbl-x").as_raw_html()


def test_who_is_in_and_who_is_not(summary):
    block = summary["cross_validation"]["survival"]
    table = tables_survival.patients(summary)
    assert cells(table, "Cross", "In the survival analysis")["value"].value == "150\u00a0(100.0\u00a0%)"
    assert cells(table, "Cross", "Deaths among these")["value"].value == str(block["events"])
    median = cells(table, "Cross", "Median follow-up, months")["value"]
    assert float(median.value) == pytest.approx(block["followup"]["median_months"], abs=0.05)
    assert median.below
    unknown = block["missing"]["covariates"]["hpv_positive"]["n_missing"]
    assert cells(table, "Cross", "Unknown HPV")["value"].value.startswith(f"{unknown}\u00a0(")


def test_the_hazard_ratio_and_its_tests(summary):
    block = summary["cross_validation"]["survival"]["continuous"]["cnn"]
    row = cells(tables_survival.continuous(summary), "Cross", "CNN TTB")
    assert row["hr"].value == f"{block['hr']:.2f}"
    assert row["hr"].below == "–".join(f"{end:.2f}" for end in block["hr_ci95"])
    assert row["ph"].value == tables_survival.p_relation(block["proportional_hazards"]["p"]).removeprefix("=\u00a0")
    few = cells(tables_survival.continuous(summary), "External", "CNN TTB")["linear"]
    assert "20 are needed" in few.reason


def test_the_difference_and_the_verdict(summary):
    survival = summary["cross_validation"]["survival"]
    table = tables_survival.discrimination(summary)
    row = cells(table, "Cross", "AUC, 24 months")
    difference = survival["discrimination"]["times"]["24"]["difference"]["auc"]
    assert row["difference"].value == tables_survival.number(difference, 3)
    verdict = survival["noninferiority"]["auc"]["noninferior"]
    assert row["verdict"].value == {True: "non-inferior", False: "not shown"}[verdict]
    assert cells(table, "Cross", "AUC, 36 months")["verdict"].value == ""  # one month was chosen beforehand
    late = cells(table, "External", "AUC, 60 months")
    assert late["cnn"].reason.startswith("fewer than 10 patients")
    assert any("−0.05" in note for note in table.notes)


def test_a_verdict_on_a_burden_no_better_than_chance_says_so(summary):
    cell = tables_survival._verdict({"noninferior": True, "caution": "says little"})
    assert (cell.value, cell.below) == ("non-inferior", "manual near chance")
    assert any("reaches 0.5" in note for note in tables_survival.discrimination(summary).notes)


def test_the_adjusted_model_names_who_is_missing(summary):
    block = summary["cross_validation"]["survival"]["adjusted"]
    table = tables_survival.adjusted(summary)
    row = cells(table, f"Cross-validation ({block['n']} of 150 patients", "TTB doubled, adjusted")
    assert row["man"].value == f"{block['man']['burden']['hr']:.2f}"
    notes = " ".join(table.notes)
    assert f"HPV {block['n_missing']['hpv_positive']}" in notes
    assert "External testing: not estimable: no adjusted model" in notes


def test_which_burden_was_right(summary):
    block = summary["cross_validation"]["survival"]["discordance"]
    table = tables_survival.discordance(summary)
    row = cells(table, "Cross", "High by CNN TTB only")
    assert row["n"].value == str(block["high_by_cnn"]["n"])
    assert row["right"].value == f"CNN {block['high_by_cnn']['n_dead']}, Manual {block['high_by_cnn']['n_alive']}"
    share = cells(table, "Cross", "CNN right, of those known")["right"]
    assert share.value == f"{100 * block['cnn_right']:.0f}\u00a0%"


def test_heterogeneity_in_words():
    block = {"q": 4.14, "df": 6, "q_p": 0.66, "i2": 0.0, "i2_ci95": [0.0, 0.577]}
    assert tables_survival.heterogeneity_words(block) == "Q 4.1 (6\u00a0df, p =\u00a00.66), I² 0\u00a0% (0–58\u00a0%)"
    assert tables_survival.heterogeneity_words({"reason": "two are needed"}) == "two are needed"
