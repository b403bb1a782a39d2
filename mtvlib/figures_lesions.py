"""Figure of the manual lesions that were found, by their volume and uptake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from mtvlib.classes import LESION_CLASSES
from mtvlib.figures import SMALL, Panel, base_figure
from mtvlib.palette import COLORS, PAPER
from mtvlib.tables import MISSING, PARTITION_NAMES, TARGET_NAMES, count, number
from mtvlib.tables_lesions import BIN_NAMES

HEADINGS = {"sensitivity_by_volume": "By volume", "sensitivity_by_suv_max": "By SUVmax"}
RATE_NAMES = {"tpr": "by coverage", "sensitivity": "in pairs"}
_PLACES = {"primary": {"tpr": -0.26, "sensitivity": -0.1}, "nodes": {"tpr": 0.1, "sensitivity": 0.26}}


def sensitivity(summary: Mapping[str, Any]) -> go.Figure:
    """Share of the manual lesions found by volume and SUVmax (columns), by class and partition (rows), with intervals.

    Filled: by coverage (the paper's TPR); open: in one-to-one pairs.
    """
    partitions = _partitions(summary)
    figure = base_figure(96 + 190 * len(partitions), len(partitions), 2, horizontal_spacing=0.06, vertical_spacing=0.2)
    for row, partition in enumerate(partitions, start=1):
        for column, (by, heading) in enumerate(HEADINGS.items(), start=1):
            panel = Panel(figure, row, column)
            _panel(panel, summary[partition]["lesions"], by, legend=(row, column) == (1, 1))
            panel.y_axis("Lesions found (%)" if column == 1 else None, showticklabels=column == 1)
            if row == 1:
                panel.heading(heading)
        Panel(figure, row, 1).title(PARTITION_NAMES[partition])
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 0, "yref": "container", "yanchor": "bottom"}
    margin = {"t": 58, "r": 12, "b": 74}
    return figure.update_layout(showlegend=True, legend=legend | {"font_size": SMALL}, margin=margin)


def sensitivity_alt(summary: Mapping[str, Any]) -> str:
    """Alternative text of `sensitivity`."""
    sentences = ["Share of the manual lesions found, by coverage and in pairs."]
    for partition in _partitions(summary):
        for by, names in BIN_NAMES.items():
            for target in LESION_CLASSES:
                block = summary[partition]["lesions"][target][by]
                values = "; ".join(f"{name} {_words(block[key])}" for key, name in names.items())
                sentences.append(f"{PARTITION_NAMES[partition]}, {TARGET_NAMES[target].lower()}: {values}.")
    return " ".join(sentences)


def _partitions(summary: Mapping[str, Any]) -> list[str]:
    return [partition for partition in PARTITION_NAMES if summary[partition].get("n_patients")]


def _words(block: Mapping[str, Any]) -> str:
    rates = (number(block[key] * 100, 0) + " %" if block[key] is not None else MISSING for key in RATE_NAMES)
    return f"{' and '.join(rates)} of {count(block['n'], 'lesion')}"


def _panel(panel: Panel, lesions: Mapping[str, Any], by: str, *, legend: bool) -> None:
    names = BIN_NAMES[by]
    for target in LESION_CLASSES:
        for rate, place in _PLACES[target].items():
            _points(panel, lesions[target][by], names, target, rate, place, legend=legend)
    panel.x_axis(range=[-0.5, 2.5], tickvals=[0, 1, 2], ticktext=list(names.values()))
    panel.y_axis(range=[-4, 104], tickvals=[0, 25, 50, 75, 100], showgrid=True)


def _points(
    panel: Panel,
    bins: Mapping[str, Any],
    names: Mapping[str, str],
    target: str,
    rate: str,
    place: float,
    *,
    legend: bool,
) -> None:
    """The bins' shares of one class by one rate; a bin without lesions has no point."""
    color, known = COLORS[target], [(x, key) for x, key in enumerate(names) if bins[key][rate] is not None]
    for x, key in known:
        if ends := bins[key][f"{rate}_ci95"]:
            panel.line([x + place] * 2, [100 * end for end in ends], color, 1.2, showlegend=False)
    marker = {"size": 8, "color": color if rate == "tpr" else PAPER, "line": {"width": 1.6, "color": color}}
    about = [f"{names[key]}: {_words(bins[key])}" for _, key in known]
    panel.points(
        [x + place for x, _ in known],
        [100 * bins[key][rate] for _, key in known],
        marker,
        name=f"{TARGET_NAMES[target].lower()}, {RATE_NAMES[rate]}",
        showlegend=legend,
        customdata=about,
        hovertemplate="%{customdata}<extra></extra>",
        hoverinfo=None,
    )
