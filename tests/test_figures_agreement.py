"""The Bland-Altman plot and its tables: what stands in them, whatever the cohort."""

import numpy as np
import pandas as pd
import pytest

from mtvlib import figures_agreement, tables_agreement
from mtvlib.agreement import agreement, outliers
from mtvlib.intervals import Bootstrap


def cohort(man, cnn, name="main"):
    rows = pd.DataFrame({"patient": [f"P{i}" for i in range(len(man))], "cohort": name})
    rows["ttb_man_ml"], rows["ttb_cnn_ml"] = np.asarray(man, float), np.asarray(cnn, float)
    return rows.assign(ttb_outlier=outliers(rows["ttb_man_ml"], rows["ttb_cnn_ml"]))


def block(rows):
    return agreement(rows["ttb_man_ml"], rows["ttb_cnn_ml"], 99.0, Bootstrap(100, seed=1))


def test_points_are_means_against_differences_and_ratios():
    rows = cohort([10, 20, 40, 8], [12, 20, 30, 8])
    figure = figures_agreement.bland_altman(rows, {"cross_validation": block(rows)})
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert [sorted(zip(t.x, t.y, strict=True)) for t in points[:2]] == [[(8, 0), (11, 2), (20, 0)], [(35, -10)]]
    ratios = sorted(np.concatenate([t.y for t in points[2:]]))
    assert ratios == pytest.approx([0.75, 1, 1, 1.2])


def test_lines_stand_at_the_mean_and_the_limits():
    rows = cohort([10, 20, 40, 8, 15], [12, 20, 41, 8, 13])
    own = block(rows)
    figure = figures_agreement.bland_altman(rows, {"cross_validation": own})
    heights = [trace.y[0] for trace in figure.data if trace.mode == "lines"]
    assert heights[:4] == pytest.approx([0, own["mean_difference_ml"], *own["limits_of_agreement_ml"]])
    assert heights[4:] == pytest.approx([1, own["ratio"], *own["limits_of_agreement_ratio"]])
    written = [one.y for one in figure.layout.annotations if one.text == f"{own['ratio']:.2f}"]
    assert written == pytest.approx([np.log10(own["ratio"])])  # where plotly expects it on a logarithmic axis


@pytest.mark.parametrize(("man", "cnn"), [([5], [6]), ([5, 5, 5], [5, 5, 5]), ([4, 9, 2], [0, 0, 0]), ([0, 0], [1, 2])])
def test_small_and_empty_cohorts_are_drawn(man, cnn):
    rows = cohort(man, cnn)
    own = {"cross_validation": block(rows)}
    figures_agreement.bland_altman(rows, own).to_json()
    assert figures_agreement.bland_altman_alt(own).startswith("Bland-Altman plots")


def test_what_cannot_be_estimated_is_a_dash_with_its_reason():
    rows = cohort([5, 6], [6, 5])
    summary = {"cross_validation": {"n_patients": 2, "ttb": block(rows)}, "external_testing": {"n_patients": 0}}
    table = tables_agreement.coefficients(summary)
    cells = table.rows[0].cells
    assert (cells["icc"].value, bool(cells["icc"].reason)) == ("–", True)
    assert (cells["limits"].value, bool(cells["limits"].reason)) == ("–", True)
    assert tables_agreement.quantities(summary).rows == []
