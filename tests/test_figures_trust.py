"""Figures of trust: what is drawn is what the tables hold."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mtvlib import figures_trust, show
from mtvlib.froc import THRESHOLDS
from mtvlib.palette import COLORS
from mtvlib.triage import ORDERS, SHARES, TRIAGE


def with_ends(frame, *names):
    ends = {f"{name}_{end}": frame[name] + step for name in names for end, step in (("low", -0.1), ("high", 0.1))}
    return frame.assign(**ends)


def both(frame):
    return pd.concat([frame.assign(partition=name) for name in ("cross_validation", "external_testing")])


def bins():
    low = np.arange(10) / 10
    table = {"p_low": low, "p_high": low + 0.1, "volume_ml": 8.0, "probability": low + 0.05, "observed": low}
    table = pd.DataFrame(table)
    table.loc[4, ["volume_ml", "probability", "observed"]] = [0.0, np.nan, np.nan]
    return with_ends(table, "observed")


def curves():
    rows = [
        {"order": order, "share": share} | {key: 0.5 + share / 2 for key in TRIAGE}
        for order in ORDERS
        for share in SHARES
    ]
    return with_ends(pd.DataFrame(rows), *TRIAGE)


def froc_curve():
    table = {"threshold": THRESHOLDS, "sensitivity": 1 - np.array(THRESHOLDS), "false_positives": 3.0}
    return with_ends(pd.DataFrame(table), "sensitivity", "false_positives")


def patients():
    rows = [
        ("cross_validation", "a", 0.9, np.nan, 0.8),
        ("cross_validation", "b", 0.4, np.nan, 0.0),
        ("external_testing", "c", 0.7, 0.6, 0.5),
    ]
    return pd.DataFrame(rows, columns=["partition", "patient", "expected_dsc", "model_dsc", "dsc_all"])


def marks(figure):
    return [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "markers"]


def written(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def test_reliability_shows_each_tenth_with_its_interval_and_volume():
    figure = figures_trust.reliability(both(bins()))
    first, _ = marks(figure)
    assert [value for value in first.y if np.isfinite(value)] == pytest.approx([i / 10 for i in range(10) if i != 4])
    assert first.error_y.array[0] == pytest.approx(0.1)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert np.isnan(bars[0].y[4])  # nothing to draw on a logarithmic axis
    assert written(figure) == ["<b>Cross-validation</b>", "<b>External testing</b>"]


def test_reliability_in_words_leaves_empty_tenths_out():
    words = figures_trust.reliability_alt(bins().assign(partition="cross_validation"))
    assert "0.00 at 0.05, 0.10 at 0.15" in words
    assert "nan" not in words
    assert "External" not in words


def test_uncertainty_has_a_panel_a_source_and_failed_patients_stand_out():
    figure = figures_trust.uncertainty(patients())
    assert [axis.title.text for axis in figure.select_xaxes() if axis.title.text] == [
        *["Expected DSC"] * 2,
        "DSC among the models",
    ]
    colors = {trace.customdata[0]: trace.marker.color for trace in marks(figure) if len(trace.x)}
    assert colors["b"] == COLORS["outlier"]
    assert colors["a"] != colors["b"]


def test_uncertainty_in_words_names_the_correlation():
    block = {"uncertainty": {"expected_dsc": {"spearman": 0.756, "spearman_ci95": [0.5, 0.9]}}}
    summary = {"cross_validation": {"trust": block}, "external_testing": {"n_patients": 0}}
    words = figures_trust.uncertainty_alt(summary)
    assert "Cross-validation, expected DSC: rank correlation 0.76 (0.50–0.90)." in words


def test_triage_draws_three_orders_in_three_panels_and_names_each_once():
    figure = figures_trust.triage(both(curves()))
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(named) == sorted(figures_trust.ORDER_NAMES.values())
    lines = [trace for trace in figure.data if trace.name == "The least certain"]
    assert len(lines) == 6
    assert lines[0].x[-1] == 50
    assert lines[2].y[0] == 50  # failed, per cent
    assert sum(trace.fill == "tonexty" for trace in figure.data) == 6


def test_triage_without_intervals_has_no_bands():
    table = curves().assign(partition="external_testing")
    table[[name for name in table if name.endswith(("_low", "_high"))]] = np.nan
    figure = figures_trust.triage(table)
    assert not any(trace.fill == "tonexty" for trace in figure.data)


def test_triage_in_words():
    points = {order: {"mean_dsc": 0.8} for order in ORDERS}
    summary = {
        "cross_validation": {"trust": {"triage": {"share": 0.2, "nobody": {"mean_dsc": 0.7}} | points}},
        "external_testing": {"trust": {"reason": "no maps"}},
    }
    assert "mean DSC 0.700 without correction; with 20 % corrected: the least certain 0.800" in (
        figures_trust.triage_alt(summary)
    )


def test_froc_fills_the_threshold_of_a_half_and_names_the_ends():
    figure = figures_trust.froc(both(froc_curve()))
    (first, _) = marks(figure)
    filled = [y for y, color in zip(first.y, first.marker.color, strict=True) if color == COLORS["cnn"]]
    assert filled == [pytest.approx(50)] == [first.y[-1]]  # drawn last
    assert sorted(first.y) == pytest.approx(sorted(100 * (1 - np.array(THRESHOLDS))))
    assert written(figure)[:2] == ["p ≥ 0.05", "p ≥ 0.95"]
    assert "threshold 0.5: 50 % at 3.00" in figures_trust.froc_alt(both(froc_curve()))


def test_froc_without_lesions_or_intervals_is_no_error():
    table = froc_curve().assign(partition="cross_validation", sensitivity=np.nan)
    assert marks(figures_trust.froc(table)) == []
    assert figures_trust.froc_alt(table).count("threshold") == 0
    alone = froc_curve().assign(partition="cross_validation", sensitivity_low=np.nan, sensitivity_high=np.nan)
    assert len(marks(figures_trust.froc(alone))) == 1
    assert "threshold 0.5: 50 % at 3.00" in figures_trust.froc_alt(alone)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"n_patients": 0, "reason": "nobody"}, []),
        ({"n_patients": 2, "trust": {"froc": {}}}, []),
        ({"n_patients": 2, "trust": {"reason": "no maps"}}, ["Not estimable: no maps."]),
        ({"n_patients": 2}, ["Not estimable: the study was evaluated by an earlier version."]),
    ],
)
def test_what_is_not_known_is_said_with_its_reason(monkeypatch, block, said):
    notes = []
    monkeypatch.setattr(show, "note", lambda title, text: notes.append(text))
    summary = {"cross_validation": {"n_patients": 3, "trust": {}}, "external_testing": block}
    figures_trust.note_absent(SimpleNamespace(summary=summary))
    assert notes == said


def test_whoever_failed_altogether_is_shown_and_others_up_to_a_number(monkeypatch):
    shown, said = [], []
    monkeypatch.setattr(figures_trust.cases, "load_case", lambda study, patient: patient)
    monkeypatch.setattr(figures_trust, "plate", lambda case, px: case.encode())
    monkeypatch.setattr(show, "show_picture", lambda png, label, caption, alt: shown.append((png, label, caption)))
    monkeypatch.setattr(show, "text", said.append)
    rows = [
        {"patient": name, "man_ml": ml, "partition": "cross_validation", "target": "nodes", "why": None}
        for name, ml in (("a", 1.0), ("b", 3.0), ("c", 2.0))
    ]
    failures = pd.DataFrame(rows).assign(cnn_ml=0.0, what="nothing was predicted")
    figures_trust.show_failed(None, failures, 2)
    assert [(png, label) for png, label, _ in shown] == [(b"b", "fig-failed-1"), (b"c", "fig-failed-2")]
    assert shown[0][2].startswith("Patient b (cross-validation). Lymph node metastases: nothing was predicted.")
    assert said == ["Not shown: 1 further patient who failed in one class; results/failures.csv names all."]
    shown.clear()
    figures_trust.show_failed(None, failures.assign(target="all"), 0)
    assert [png for png, *_ in shown] == [b"b", b"c", b"a"]
    shown.clear()
    said.clear()
    many = [rows[0] | {"patient": f"p{number:03}", "target": "all"} for number in range(100)]
    figures_trust.show_failed(None, pd.DataFrame(many).assign(cnn_ml=0.0, what="nothing was predicted"), 12)
    assert len(shown) == 60
    assert said == [
        "Not shown: 40 further patients who failed altogether or in one class; results/failures.csv names all."
    ]
