"""Figures of several methods: the points are the values, and the page needs no network."""

import numpy as np
import pytest

from mtvlib import figures_comparison as figures
from mtvlib.comparison import comparison
from mtvlib.palette import COLORS, PAPER
from mtvlib.params import Params
from mtvlib.tables_comparison import Scores, scores_of_study
from tests.test_comparison import table as patients_of
from tests.test_tables_comparison import delineation, summary


def points(figure, axis):
    """(x, y, fill) of each marker in a panel."""
    return [
        (trace.x[0], trace.y[0], trace.marker.color)
        for trace in figure.data
        if trace.mode == "markers" and trace.xaxis == axis
    ]


def test_each_method_has_its_point_and_interval_in_its_row():
    figure = figures.dsc_by_method(scores_of_study(summary()))
    found = points(figure, "x")
    assert [place for _, place, _ in found] == list(range(6))
    assert [value for value, _, _ in found] == pytest.approx([0.5 + 0.05 * number for number in range(6)])
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.xaxis == "x"]
    assert [tuple(np.round(trace.x, 3)) for trace in lines][:2] == [(0.4, 0.6), (0.45, 0.65)]
    assert [tuple(trace.y) for trace in lines][:2] == [(0, 0), (1, 1)]
    assert figure.layout.yaxis.ticktext[:2] == ("CNN", "SUV 2.5")
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first method on top


def test_methods_with_seeds_are_open_and_colours_are_those_of_the_targets():
    figure = figures.dsc_by_method(scores_of_study(summary()))
    assert [fill for _, _, fill in points(figure, "x")] == [COLORS["primary"]] + [PAPER] * 5
    assert points(figure, "x3")[0][2] == COLORS["all"]


def test_a_target_that_nobody_has_is_said():
    figure = figures.dsc_by_method(scores_of_study(summary()))
    assert points(figure, "x2") == []
    assert "no patient has it" in [annotation.text for annotation in figure.layout.annotations]


def test_partitions_without_patients_get_no_row():
    one = figures.dsc_by_method(scores_of_study(summary()))
    both = figures.dsc_by_method(
        [Scores("a", False, {name: delineation(0.5) for name in ("cross_validation", "external_testing")})] * 2
    )
    assert len(points(one, "x4")) == 0
    assert len(points(both, "x4")) == 2


def test_a_single_patient_has_no_interval():
    block = delineation(0.5)
    block["primary"] = block["primary"] | {"cohort_dsc_ci95": None}
    figure = figures.dsc_by_method([Scores("a", False, {"cross_validation": block})])
    assert [trace.mode for trace in figure.data if trace.xaxis == "x"] == ["markers"]


def test_the_alternative_text_holds_the_values():
    text = figures.dsc_by_method_alt(scores_of_study(summary()))
    assert "Cross-validation, primary tumour: CNN 0.50 (0.40–0.60), SUV 2.5 0.55 (0.45–0.65)," in text
    assert "lymph node metastases: CNN –, SUV 2.5 –" in text
    assert "External" not in text


def test_the_page_stands_alone(tmp_path):
    compared = comparison({"a": patients_of([0.5]), "b": patients_of([0.6])}, Params())
    scores = [Scores("<i>a</i>", False, {"cross_validation": delineation(0.5)})]
    figures.write_page(tmp_path / "comparison.html", scores, compared, ["Seeds & masks"])
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert not [part for part in ("<script src", "<link", "@import") if part in page]
    assert "Seeds &amp; masks" in body
    assert "&lt;i&gt;a&lt;/i&gt; 0.50" in body
    assert "<i>a" not in body
