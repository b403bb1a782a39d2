"""The figure of the lesions found: a point for each bin that has lesions, where its share is."""

import pandas as pd
import pytest

from mtvlib import figures_lesions, matching
from mtvlib.intervals import Bootstrap
from mtvlib.palette import PAPER

PATIENTS = pd.Series([f"P{n}" for n in range(8)])


def lesions():
    """Eight primaries of 10 ml, all covered, half of them in pairs; a node of 0.5 ml that is missed."""
    primaries = [
        (patient, "man", "primary", 10.0, 12.0, "TP", 1 if n % 2 else None) for n, patient in enumerate(PATIENTS)
    ]
    node = ("P0", "man", "nodes", 0.5, 3.0, "FN", None)
    names = ("patient", "source", "target", "volume_ml", "suv_max", "outcome", "matched_lesion")
    return pd.DataFrame([*primaries, node], columns=names)


@pytest.fixture
def summary():
    blocks = {
        target: matching.sensitivities(PATIENTS, lesions(), target, Bootstrap(200, seed=1))
        for target in ("primary", "nodes", "all")
    }
    absent = {"n_patients": 0, "reason": "no patient of the external cohort was evaluated"}
    return {"cross_validation": {"n_patients": 8, "lesions": blocks}, "external_testing": absent}


def points(figure):
    """Name -> shares of each trace of points, of both panels."""
    return [(trace.name, list(trace.y)) for trace in figure.data if trace.mode == "markers"]


def test_points_lie_at_their_shares(summary):
    shown = points(figures_lesions.sensitivity(summary))
    by_volume, by_uptake = shown[:4], shown[4:]
    assert by_volume == [
        ("primary tumour, by coverage", [100]),
        ("primary tumour, in pairs", [50]),
        ("lymph node metastases, by coverage", [0]),
        ("lymph node metastases, in pairs", [0]),
    ]
    assert [shares for _, shares in by_uptake] == [[100], [50], [0], [0]]


def test_bins_stand_above_their_names(summary):
    figure = figures_lesions.sensitivity(summary)
    (primary, *_), nodes = (
        [trace for trace in figure.data if trace.mode == "markers" and target in trace.name]
        for target in ("primary", "node")
    )
    assert list(figure.layout.xaxis.ticktext) == ["< 1 ml", "1–5 ml", "> 5 ml"]
    assert (round(primary.x[0]), round(nodes[0].x[0])) == (2, 0)


def test_filled_is_by_coverage_and_open_in_pairs(summary):
    traces = [trace for trace in figures_lesions.sensitivity(summary).data if trace.mode == "markers"]
    assert {trace.name.split(", ")[1]: trace.marker.color == PAPER for trace in traces} == {
        "by coverage": False,
        "in pairs": True,
    }


def test_lines_span_the_intervals(summary):
    figure = figures_lesions.sensitivity(summary)
    low, high = summary["cross_validation"]["lesions"]["primary"]["sensitivity_by_volume"]["above_5_ml"][
        "sensitivity_ci95"
    ]
    lines = [list(trace.y) for trace in figure.data if trace.mode == "lines"]
    assert [100 * low, 100 * high] in lines


def test_alternative_text_tells_the_shares_and_their_lesions(summary):
    text = figures_lesions.sensitivity_alt(summary)
    assert (
        "primary tumour: < 1 ml – and – of 0 lesions; 1–5 ml – and – of 0 lesions; > 5 ml 100 % and 50 % of 8" in text
    )
    assert "lymph node metastases: SUVmax < 4 0 % and 0 % of 1 lesion;" in text
    assert "External" not in text
