"""Bland-Altman plots of the total tumour burden: differences in ml and, since large tumours scatter more, ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mtvlib.figures import FONT_SIZE, SMALL, Panel, base_figure, of_partition, partitions_in
from mtvlib.palette import COLORS, INK, PAPER
from mtvlib.tables import PARTITION_NAMES, interval, number

_POINT = {"size": 5.5, "color": COLORS["cnn"], "opacity": 0.6, "line": {"width": 0}}
_OUTLIER = {"size": 7.5, "color": COLORS["outlier"], "line": {"width": 0.8, "color": PAPER}}
_VOLUME_TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
_RATIO_TICKS = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16]
_RATIO_WORDS = ["1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16"]


def bland_altman(patients: pd.DataFrame, ttb: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Difference (left) and ratio (right) of CNN and manual TTB against their mean, a row a partition.

    Mean and limits of agreement (mean -+ 1.96 standard deviations, Bland and Altman 1986; of the logarithms on the
    right, 1999) are those of `ttb`, the partitions' blocks of summary.json, without the outliers.
    """
    partitions = partitions_in(patients)
    rows = len(partitions)
    figure = base_figure(
        300 * rows + 60, rows=rows, columns=2, horizontal_spacing=0.16, vertical_spacing=0.24 if rows > 1 else 0
    )
    for row, partition in enumerate(partitions, start=1):
        chosen, block = of_partition(patients, partition), ttb[partition]
        _differences(Panel(figure, row, 1), chosen, block, PARTITION_NAMES[partition])
        _ratios(Panel(figure, row, 2), chosen, block)
    return figure.update_layout(margin={"t": 56, "r": 74})


def bland_altman_alt(ttb: Mapping[str, Mapping[str, Any]]) -> str:
    """Alternative text of `bland_altman`."""
    sentences = ["Bland-Altman plots of the total tumour burden, CNN and manual."]
    for partition, block in ttb.items():
        limits = interval(block["limits_of_agreement_ml"], 1)
        ratios = interval(block["limits_of_agreement_ratio"], 2)
        sentences.append(
            f"{PARTITION_NAMES[partition]}: mean difference {number(block['mean_difference_ml'], 1)} ml, limits of "
            f"agreement {limits} ml; ratio {number(block['ratio'], 2)}, limits {ratios}."
        )
    return " ".join(sentences)


def _differences(panel: Panel, rows: pd.DataFrame, block: Mapping[str, Any], name: str) -> None:
    man, cnn = rows["ttb_man_ml"].to_numpy(), rows["ttb_cnn_ml"].to_numpy()
    mean, difference = (man + cnn) / 2, cnn - man
    hover = "<b>%{customdata}</b><br>mean %{x:.1f} ml<br>CNN − manual %{y:.1f} ml<extra></extra>"
    _points(panel, rows, mean, difference, hover)
    end = max(float(mean.max()), 1.0) * 1.04
    _lines(panel, (0, end), block["mean_difference_ml"], block["limits_of_agreement_ml"], 0, 1)
    panel.title(f"<b>{name}</b>: difference", FONT_SIZE)
    panel.x_axis("Mean of manual and CNN TTB (ml)", range=[0, end])
    panel.y_axis("CNN − manual (ml)")


def _ratios(panel: Panel, rows: pd.DataFrame, block: Mapping[str, Any]) -> None:
    rows = rows[(rows["ttb_man_ml"] > 0) & (rows["ttb_cnn_ml"] > 0)]
    panel.title(f"<b>Ratio</b>, patients with a burden in both, N = {len(rows)}", FONT_SIZE)
    panel.x_axis("Geometric mean of manual and CNN TTB (ml)", type="log", tickvals=_VOLUME_TICKS)
    panel.y_axis("CNN : manual", type="log", tickvals=_RATIO_TICKS, ticktext=_RATIO_WORDS)
    if rows.empty:
        panel.x_axis("Geometric mean of manual and CNN TTB (ml)", range=[0, 2])
        panel.y_axis("CNN : manual", range=[-1, 1])
        return
    man, cnn = rows["ttb_man_ml"].to_numpy(), rows["ttb_cnn_ml"].to_numpy()
    mean, ratio = np.sqrt(man * cnn), cnn / man
    hover = "<b>%{customdata}</b><br>mean %{x:.1f} ml<br>CNN : manual %{y:.2f}<extra></extra>"
    _points(panel, rows, mean, ratio, hover)
    low, high = np.log10(mean.min()) - 0.1, np.log10(mean.max()) + 0.1
    _lines(panel, (10**low, 10**high), block["ratio"], block["limits_of_agreement_ratio"], 1, 2)
    panel.x_axis("Geometric mean of manual and CNN TTB (ml)", range=[low, high])


def _points(panel: Panel, rows: pd.DataFrame, x: np.ndarray, y: np.ndarray, hover: str) -> None:
    out = rows["ttb_outlier"].to_numpy(bool)
    for chosen, marker in ((~out, _POINT), (out, _OUTLIER)):
        about = {"customdata": rows["patient"][chosen], "hovertemplate": hover, "hoverinfo": None}
        panel.points(x[chosen], y[chosen], marker, **about)


def _lines(
    panel: Panel,
    x: tuple[float, float],
    middle: float | None,
    limits: Sequence[float] | None,
    equal: float,
    digits: int,
) -> None:
    """The mean and the limits of agreement, each with its value at the right, and a hairline where both are equal."""
    panel.line(x, [equal] * 2, COLORS["neutral"], 1, "dot")
    values = [(middle, INK, "solid"), *((limit, COLORS["manual"], "dash") for limit in limits or ())]
    for value, color, dash in values:
        if value is None:
            continue
        panel.line(x, [value] * 2, color, 1.2, dash)
        right = {"xref": "x domain", "xanchor": "left", "xshift": 4, "font_size": SMALL}
        height = float(np.log10(value)) if equal == 1 else value  # plotly wants the logarithm on such an axis
        panel.write(number(value, digits), 1, height, **right)
