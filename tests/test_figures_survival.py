"""The survival figures: every estimate is drawn where it belongs, and what cannot be estimated says so."""

import numpy as np
import pytest
from test_tables_survival import cohort, survival

from mtvlib import figures_survival, prognosis
from mtvlib.palette import COLORS
from mtvlib.survival import CannotEstimateError


@pytest.fixture(scope="module")
def main():
    return cohort(150)


@pytest.fixture(scope="module")
def block(main):
    return survival(main, main)


@pytest.fixture(scope="module")
def few():
    table = cohort(14, 2)
    return survival(table, table)


def texts(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def test_splines_pass_one_and_tick_every_patient(main, block):
    curves = {source: prognosis.spline(main, source) for source in ("man", "cnn")}
    figure = figures_survival.spline(curves, main, block["continuous"])
    lines = [trace for trace in figure.data if trace.line.width == 2]
    assert [trace.line.color for trace in lines] == [COLORS["manual"], COLORS["cnn"]]
    assert np.asarray(lines[0].y) == pytest.approx(curves["man"]["hr"])
    assert np.asarray(lines[0].x) == pytest.approx(np.log2(curves["man"]["ttb_ml"] + 1))
    ticks = [trace for trace in figure.data if trace.marker.symbol == "line-ns-open"]
    assert len(ticks[0].x) == pytest.approx(0.98 * len(main), abs=2)  # within the curve's 1st to 99th percentile
    assert any("linearity: p" in text for text in texts(figure))


def test_what_cannot_be_estimated_says_so(few):
    for figure in (
        figures_survival.spline({}, cohort(14, 2), few["continuous"]),
        figures_survival.schoenfeld({}, few["continuous"]),
        figures_survival.calibration(few["calibration"]),
    ):
        assert sum("not estimable" in text for text in texts(figure)) == 2


def test_residuals_trend_and_coefficient(main, block):
    trends = {source: prognosis.schoenfeld(main, source) for source in ("man", "cnn")}
    figure = figures_survival.schoenfeld(trends, block["continuous"])
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert [len(trace.x) for trace in points] == [main["death"].sum()] * 2
    dashed = [trace for trace in figure.data if trace.line.dash == "dash"]
    assert dashed[1].y[0] == pytest.approx(np.log(block["continuous"]["cnn"]["hr"]))
    months = [int(tick) for tick in figure.layout.xaxis.ticktext]
    assert months == sorted(months)


def test_calibration_shows_each_group_once(block):
    figure = figures_survival.calibration(block["calibration"])
    points = [trace for trace in figure.data if trace.mode == "markers"]
    groups = block["calibration"]["man"]["groups"]
    assert list(points[0].x) == pytest.approx([100 * group["predicted"] for group in groups])
    upper = np.asarray(points[0].y) + np.asarray(points[0].error_y.array)
    assert upper == pytest.approx([100 * group["observed_ci95"][1] for group in groups])
    assert "slope 1.00" in figures_survival.calibration_alt(block["calibration"])


def test_forest_has_a_row_a_site_and_a_pooled_one(block):
    figure = figures_survival.forest(block["sites"])
    assert list(figure.layout.yaxis.ticktext) == ["<b>Pooled</b>", "b", "a"]
    drawn = [trace.x[0] for trace in figure.data if trace.mode == "markers" and trace.x[0] is not None]
    sites = block["sites"]
    expected = [sites[source]["sites"][site]["hr"] for site in ("b", "a") for source in ("man", "cnn")]
    expected += [sites[source]["heterogeneity"]["hr"] for source in ("man", "cnn")]
    assert drawn == pytest.approx(expected)
    assert [trace.name for trace in figure.data if trace.showlegend] == ["Manual TTB", "CNN TTB"]


def test_forest_of_sites_without_an_estimate(few):
    figure = figures_survival.forest(few["sites"])
    assert texts(figure).count("fewer than 5 deaths") >= 1
    assert any("two are needed" in text for text in texts(figure))


def test_every_figure_can_be_told(block, few):
    for blocks in (block, few):
        assert "linearity" in figures_survival.spline_alt(blocks["continuous"])
        assert "Schoenfeld" in figures_survival.schoenfeld_alt(blocks["continuous"])
        assert "24 months" in figures_survival.calibration_alt(blocks["calibration"])
        assert "2 sites" in figures_survival.forest_alt(blocks["sites"])


def test_few_deaths_have_no_curve_to_draw():
    with pytest.raises(CannotEstimateError):
        prognosis.spline(cohort(14, 2), "man")
