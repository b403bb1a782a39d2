"""Flow of patients and forest plot: every number is in them, nothing is outside, whatever the cohort."""

import itertools

import pytest
from test_figures import trace, written
from test_tables_cohort import summary

from mtvlib import figures_cohort
from mtvlib.figures import WIDTH

FOLDS = [{"train": 5, "validation": 1, "test": 2}] * 4
LONG = "severe metal artefacts in the field of the tumour, which made its delineation impossible on both images"


def counts(excluded=None, external=2, sites=None):
    excluded, sites = excluded or {}, sites or {"Berlin": 5, "Dresden": 3}
    main = sum(sites.values())
    left_out = sum(excluded.values())
    parts = {"cross_validation": {"n": main, "sites": sites}}
    parts["external_testing"] = {"n": external, "sites": {"Munich": external} if external else {}}
    return {
        "screened": main + external + left_out,
        "excluded": excluded,
        "included": main + external,
        "partitions": parts,
    }


NO_SHORT = {"n_outcome_unknown": 0, "n_short_followup": 0}
SURVIVAL = {
    "cross_validation": {"survival": {"events": 1, "missing": NO_SHORT | {"n_included": 6, "n_not_eligible": 2}}},
    "external_testing": {"survival": {"events": 0, "missing": NO_SHORT | {"n_included": 2, "n_not_eligible": 0}}},
}
NO_EXTERNAL = {"external_testing": {"n_patients": 0, "reason": "nobody"}}


def boxes(figure):
    return [shape for shape in figure.layout.shapes if shape.type != "line"]


MANY = {f"reason number {i}": 40 - i for i in range(10)}
COHORTS = {
    "plain": (counts(), FOLDS, None),
    "survival": (counts({"no CT": 3}), FOLDS, SURVIVAL),
    "ten reasons": (counts(MANY), FOLDS, SURVIVAL),
    "long reason": (counts({LONG: 1, "X" * 120: 2}), FOLDS, None),
    "no external cohort": (
        counts(external=0),
        FOLDS,
        SURVIVAL | NO_EXTERNAL,
    ),
    "one site, ten folds": (counts(sites={"Berlin": 20}), FOLDS * 3, None),
    "forty sites": (counts(sites={f"hospital {i}": 1 for i in range(40)}), FOLDS, SURVIVAL),
}


@pytest.mark.parametrize("name", COHORTS)
def test_no_box_lies_on_another_or_outside_and_each_holds_its_lines(name):
    figure = figures_cohort.flow(*COHORTS[name])
    found = boxes(figure)
    for one, other in itertools.combinations(found, 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
        assert apart, (one, other)
    assert all(0 <= box.x0 < box.x1 <= WIDTH and 0 <= box.y0 < box.y1 <= figure.layout.height for box in found)
    lines = [note for note in figure.layout.annotations if note.text]
    inside = [sum(box.x0 <= note.x < box.x1 and box.y0 < note.y < box.y1 for box in found) for note in lines]
    assert set(inside) == {1}
    plain = [note.text.replace("<b>", "").replace("</b>", "") for note in lines]
    assert max(map(len, plain)) <= 50


def test_every_count_is_in_the_flow():
    texts = written(figures_cohort.flow(counts({"no CT": 3}), FOLDS, SURVIVAL))
    assert "<b>Registered</b>, n = 13" in texts
    assert {"<b>Excluded</b>, n = 3", "no CT (n = 3)", "<b>Analysed</b>, n = 10"} <= set(texts)
    assert {"<b>Cross-validation</b>, n = 8", "2 sites: Berlin 5, Dresden 3", "1 site: Munich 2"} <= set(texts)
    assert {"fold 3: 5 / 1 / 2", "Tested by the mean of the 4 networks"} <= set(texts)
    assert {"<b>Survival analysis</b>, n = 6", "1 death", "Left out: not eligible (n = 2)", "0 deaths"} <= set(texts)


def test_a_cohort_without_outcomes_says_so():
    unknown = {"n_included": 0, "reason": "the cohort has no column death"}
    block = {"survival": {"events": None, "missing": unknown}}
    texts = written(figures_cohort.flow(counts(external=0), FOLDS, {"cross_validation": block} | NO_EXTERNAL))
    assert {"<b>Survival analysis</b>, n = 0", "the cohort has no column death"} <= set(texts)
    assert not any(text.endswith("deaths") for text in texts)


def test_nobody_is_excluded_and_nobody_external():
    texts = written(figures_cohort.flow(counts(external=0), FOLDS))
    assert "<b>Excluded</b>, n = 0" in texts
    assert "<b>External testing</b>, n = 0" in texts
    assert not any("mean of the" in text for text in texts)


def test_of_many_folds_the_range_is_told():
    folds = [{"train": 20 + i % 2, "validation": 5, "test": 3 - i % 2} for i in range(8)]
    assert "20–21 / 5 / 2–3" in written(figures_cohort.flow(counts(), folds))


def test_markup_in_a_reason_is_text():
    texts = written(figures_cohort.flow(counts({"SUV < 2 & <b>cold</b>": 1}), FOLDS))
    assert "SUV &lt; 2 &amp; &lt;b&gt;cold&lt;/b&gt; (n = 1)" in texts


def test_the_alternative_text_tells_it_all():
    alt = figures_cohort.flow_alt(counts({LONG: 1}), FOLDS, SURVIVAL)
    assert f"Excluded, n = 1; {LONG} (n = 1). Analysed, n = 10." in alt
    assert "Survival analysis, n = 6; 1 death; Left out: not eligible (n = 2)." in alt
    assert "<" not in alt


# --- forest plot


def with_means(blocks):
    """A summary with the mean of all patients, which the forest plot's dashed line shows."""
    for block in blocks.values():
        block["delineation"] = {"all": {"mean_dsc": 0.5}}
    return blocks


def test_each_group_has_its_mean_interval_and_number():
    blocks = with_means(summary(hpv=["positive", "", *["negative"] * 11]))
    figure = figures_cohort.subgroup_forest(blocks)
    large, small = trace(figure, "mean and interval"), trace(figure, "mean, n < 5")
    site = blocks["cross_validation"]["subgroups"]["variables"][0]["groups"]
    assert list(large.x[:2]) == [group["mean_dsc"] for group in site]
    assert list(large.y[:2]) == [2, 3]  # below the heading and the external site "0"
    assert [text for text in large.customdata[:2]] == ["a, n = 5", "b, n = 5"]
    assert "positive, n = 1" in list(small.customdata)
    assert trace(figure, "cohort DSC").x[0] == site[0]["cohort_dsc"]
    assert {"<b>Site</b>", "<b>HPV</b>", "missing", "n"} <= set(written(figure))
    assert any(text.startswith("p =") for text in written(figure))


def test_one_partition_has_one_panel():
    figure = figures_cohort.subgroup_forest(with_means(summary(external=False)))
    assert not any("External" in text for text in written(figure))


def test_the_axis_holds_everything_drawn():
    figure = figures_cohort.subgroup_forest(with_means(summary()))
    low, high = figure.layout.xaxis.range
    drawn = [x for one in figure.data if one.name for x in one.x if x is not None]
    assert low <= min(drawn)
    assert max(drawn) <= high


def test_a_long_name_of_a_site_is_cut_off():
    name = "University Hospital of a very long name"
    texts = written(figures_cohort.subgroup_forest(with_means(summary(site=[name] * 13))))
    assert "University Hospital of …" in texts


def test_alt_text_of_the_forest_names_the_extremes():
    alt = figures_cohort.subgroup_alt(with_means(summary()))
    assert "Cross-validation: from 0.47 (Site a) to 0.50 (Site b)." in alt
    assert "External testing: no group is large enough for an interval." in alt
