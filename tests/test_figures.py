"""Figures: the numbers that stand in them are those of the data, counted here by hand."""

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mtvlib import figures, survival


def patients(**columns):
    """Four patients of the main and one of the external cohort."""
    table = {
        "patient": ["M1", "M2", "M3", "M4", "E1"],
        "cohort": ["main"] * 4 + ["external"],
        "dsc_primary": [0.0, 0.69, 0.7, 0.95, 1.0],
        "dsc_nodes": [0.1, 0.2, 0.3, 0.4, 0.5],
        "dsc_all": [0.8, 0.8, 0.9, 1.0, 0.6],
        "ttb_man_ml": [1.0, 2.0, 3.0, 10.0, 5.0],
        "ttb_cnn_ml": [1.0, 2.0, 3.0, 40.0, 4.0],
        "ttb_outlier": [False, False, False, True, False],
        "mtv_primary_man_ml": [1.0] * 5,
        "mtv_primary_cnn_ml": [1.0] * 5,
        "mtv_nodes_man_ml": [0.0, 0.0, 0.0, 9.0, 4.0],
        "mtv_nodes_cnn_ml": [0.0] * 5,
    }
    return pd.DataFrame(table | columns)


def written(figure: go.Figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def trace(figure: go.Figure, name: str, number: int = 0) -> go.Scatter:
    return [trace for trace in figure.data if trace.name == name][number]


# --- visual language


def test_each_meaning_has_a_colour_of_its_own():
    assert len(set(figures.COLORS.values())) == len(figures.COLORS)
    assert set(figures.COLORS) >= {"manual", "cnn", "primary", "nodes", "all", "high_risk", "low_risk", "outlier"}


def lightness(color):
    """CIE L* of a #RRGGBB colour (IEC 61966-2-1), what is left of it in grey print."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


@pytest.mark.parametrize("pair", [("manual", "cnn"), ("high_risk", "low_risk")])
def test_colours_that_meet_differ_in_grey_print(pair):
    one, other = (lightness(figures.COLORS[name]) for name in pair)
    assert abs(one - other) > 12


def test_text_is_readable_on_white():
    for name, color in figures.COLORS.items():
        assert lightness(color) < 62, name


def test_tint():
    assert figures.tint("#FF8000", 0.5) == "rgba(255,128,0,0.5)"


# --- Dice coefficients


def test_dsc_percentages_of_each_panel():
    figure = figures.dsc_histograms(patients())
    texts = written(figure)
    left_and_right = [text for text in texts if text.endswith(" %")]
    main, external = left_and_right[:6], left_and_right[6:]
    assert main == ["50.0 %", "50.0 %", "100.0 %", "0.0 %", "0.0 %", "100.0 %"]  # primary, nodes, all
    assert external == ["0.0 %", "100.0 %", "100.0 %", "0.0 %", "100.0 %", "0.0 %"]
    assert "Cross-validation, N = 4" in texts
    assert "External testing, N = 1" in texts


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.69, 0.7, 0.95], ("50.0 %", "50.0 %")), ([0.1, 0.8, 0.9], ("33.3 %", "66.7 %")), ([], ("–", "–"))],
)
def test_share_below(values, expected):
    assert figures.share_below(values, 0.7) == expected


def test_a_dsc_at_the_threshold_lies_in_a_full_coloured_bar():
    bar = figures.dsc_histograms(patients(dsc_primary=[0.7] * 5)).data[0]
    (filled,) = np.flatnonzero(bar.y)
    assert bar.marker.color[filled] == figures.COLORS["primary"]
    assert bar.customdata[filled] == "DSC 0.70–0.75<br>4 patients"


def test_dsc_without_external_patients():
    figure = figures.dsc_histograms(patients().iloc[:4])
    assert len([trace for trace in figure.data if trace.type == "bar"]) == 3
    assert not any("External" in text for text in written(figure))


def test_a_class_that_no_patient_has_is_no_success():
    """All count with a DSC of 1 then (contract), which must not look like five good delineations."""
    absent = patients(dsc_nodes=[1.0] * 5, mtv_nodes_man_ml=[0.0] * 5)
    figure = figures.dsc_histograms(absent)
    assert [int(np.sum(bar.y)) for bar in figure.data if bar.type == "bar"] == [4, 0, 4, 1, 0, 1]
    assert written(figure).count("no patient has it") == 2
    assert "lymph node metastases –" in figures.dsc_alt(absent)


def test_dsc_alt_text_gives_the_shares():
    alt = figures.dsc_alt(patients())
    assert "Cross-validation, N = 4: at or above 0.7 are primary tumour 50.0 %" in alt


# --- total tumour burden

TTB = {
    "cross_validation": {"r2": 0.954, "r2_ci95": [0.91, 0.98], "mean_absolute_difference_ml": 2.615, "n_outliers": 1},
    "external_testing": {"r2": None, "mean_absolute_difference_ml": 1.0, "n_outliers": 0},
}


def test_ttb_panel_says_what_the_summary_says():
    texts = " ".join(written(figures.ttb_scatter(patients(), TTB)))
    assert "R² 0.95 (0.91–0.98)<br>MAD 2.62 ml<br>without 1 outlier" in texts
    assert "R² –<br>MAD 1.00 ml<br>without 0 outliers" in texts


def test_ttb_outliers_are_marked_and_left_out_of_the_line():
    figure = figures.ttb_scatter(patients(), TTB)
    outlier = trace(figure, "outlier, left out of the fit")
    assert list(outlier.customdata) == ["M4"]
    assert outlier.marker.color == figures.COLORS["outlier"]
    line = trace(figure, "regression line")
    np.testing.assert_allclose(line.y, line.x, atol=1e-12)  # the other three lie on the identity


def test_ttb_axes_are_equal_and_hold_every_patient():
    figure = figures.ttb_scatter(patients(), TTB)
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert figure.layout.xaxis.range[1] > 40


def test_ttb_of_one_partition_leaves_the_other_panel_empty():
    figure = figures.ttb_scatter(patients().iloc[:4], TTB)
    assert (figure.layout.xaxis.visible, figure.layout.xaxis2.visible) == (True, False)


def test_ttb_of_one_patient_has_no_line():
    figure = figures.ttb_scatter(patients().iloc[4:], TTB)
    assert "regression line" not in [trace.name for trace in figure.data]


# --- lesions


def lesions():
    rows = [
        ("man", "primary", 0.2, "TP"),
        ("man", "primary", 5.0, "FN"),
        ("man", "nodes", 1.0, "FN"),
        ("cnn", "primary", 0.2, "TP"),
        ("cnn", "nodes", 300.0, "FP"),
    ]
    return pd.DataFrame(rows, columns=["source", "target", "volume_ml", "outcome"])


def test_lesions_are_counted_by_outcome():
    figure = figures.lesions_by_volume(lesions())
    titles = [text for text in written(figure) if "found" in text or "confirmed" in text]
    assert ["1 found" in title and "1 missed" in title for title in titles] == [True, False, False, False]
    assert "0 confirmed" in titles[3]
    assert "1 spurious" in titles[3]
    assert sum(int(np.sum(bar.y)) for bar in figure.data) == len(lesions())


def test_lesions_of_nobody():
    figure = figures.lesions_by_volume(lesions().iloc[:0])
    assert sum(int(np.sum(bar.y)) for bar in figure.data) == 0
    assert all(axis.range == (0, 1.05) for axis in figure.select_yaxes())  # no lesions below zero


# --- survival


def curves():
    low = survival.kaplan_meier([10, 20, 30, 40], [0, 1, 0, 0])
    high = survival.kaplan_meier([5, 12, 12, 25], [1, 1, 0, 1])
    return {"man": {"low": low, "high": high}, "cnn": {"low": low, "high": high}}


BLOCK = {
    "n": 8,
    "man": {"hr": 1.94, "hr_ci95": [1.02, 3.68], "p": 0.0004, "logrank_p": 0.0123},
    "cnn": {"hr": None, "hr_reason": "nobody died", "p": None, "logrank_p": None},
}


@pytest.mark.parametrize(("months", "expected"), [(0, 4), (5, 4), (6, 3), (12, 3), (13, 1), (25, 1), (26, 0)])
def test_numbers_at_risk_by_hand(months, expected):
    assert figures.count_at_risk(curves()["man"]["high"], months) == expected


def test_kaplan_meier_writes_hazard_ratio_and_numbers_at_risk():
    texts = written(figures.kaplan_meier(curves(), BLOCK))
    assert any("HR 1.9 (1.0–3.7), p <\u00a00.001; log-rank p =\u00a00.012" in text for text in texts)
    assert any("hazard ratio not estimable" in text for text in texts)
    first, second = texts.index("high", texts.index("At risk")), texts.index("low", texts.index("At risk"))
    assert texts[first + 1 : second] == ["4", "3", "1", "0"]  # at 0, 12, 24, 36 months
    assert texts[second + 1 : second + 5] == ["4", "3", "2", "1"]


def test_kaplan_meier_curve_and_censor_ticks():
    figure = figures.kaplan_meier(curves(), BLOCK)
    np.testing.assert_allclose(trace(figure, "low risk").y, [100, 100, 200 / 3, 200 / 3, 200 / 3])
    assert list(trace(figure, "censored", 1).x) == [10, 30, 40]  # the high risk group comes first
    assert trace(figure, "low risk").line.shape == "hv"


def test_labels_at_close_ends_stay_apart():
    same = survival.kaplan_meier([10, 20], [0, 0])
    figure = figures.kaplan_meier({"man": {"low": same, "high": same}}, BLOCK)
    heights = [note.y for note in figure.layout.annotations if note.text in ("<b>high</b>", "<b>low</b>")]
    assert abs(heights[0] - heights[1]) >= figures.LABEL_APART


def test_kaplan_meier_of_one_group():
    one = {"man": {"low": curves()["man"]["low"]}}
    assert "<b>high</b>" not in written(figures.kaplan_meier(one, BLOCK))


# --- training


def history(best):
    score = [0.1, 0.2, 0.3]
    score[best - 1] = 0.9
    return pd.DataFrame(
        {"epoch": [1, 2, 3], "train_loss": [3, 2, 1], "validation_soft_dsc": score, "seconds": [7.0] * 3}
    )


def test_training_curves_mark_the_best_epoch_of_each_fold():
    figure = figures.training_curves({0: history(2), 1: history(3)}, {0: 2, 1: 3})
    marks = [mark for mark in figure.data if mark.name == "best epoch"]
    assert [(list(mark.x), list(mark.y)) for mark in marks] == [([2], [0.9]), ([3], [0.9])]
    assert marks[0].marker.color != marks[1].marker.color
    assert figure.layout.showlegend


def test_training_curve_of_one_fold_needs_no_legend():
    assert not figures.training_curves({3: history(1)}, {3: 1}).layout.showlegend


def test_shades_differ():
    for one, other in itertools.combinations(figures.shades(5), 2):
        assert one != other
    assert figures.shades(1) == [figures.COLORS["cnn"]]
