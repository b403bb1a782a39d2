"""The figures of the survival analysis beyond the paper's; nothing is estimated here (see `mtvlib.prognosis`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mtvlib.figures import SMALL, Panel, base_figure, tint
from mtvlib.palette import COLORS, INK, PAPER
from mtvlib.prognosis import Trend
from mtvlib.tables import SOURCE_NAMES, count, p_relation, with_interval
from mtvlib.tables_survival import heterogeneity_words

SOURCE_COLORS = {"man": COLORS["manual"], "cnn": COLORS["cnn"]}
RATIOS = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
WIDEST = (0.05, 20.0)  # hazard ratios that are drawn; a band of few patients leaves the panel
VOLUMES_ML = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]


def _two_panels(height: int) -> tuple[go.Figure, dict[str, Panel]]:
    """A figure with a panel for each source, manual at the left."""
    figure = base_figure(height, columns=2, horizontal_spacing=0.13)
    return figure, {source: Panel(figure, 1, column) for column, source in enumerate(SOURCE_NAMES, start=1)}


def _absent(panel: Panel, reason: str) -> None:
    """A panel without an estimate, its reason in the middle."""
    panel.x_axis(visible=False, range=[0, 1])
    panel.y_axis(visible=False, range=[0, 1])
    words = reason.replace(" (", "<br>(")
    panel.write(f"not estimable:<br>{words}", 0.5, 0.5, font={"color": COLORS["neutral"], "size": SMALL})


# --- shape of the hazard


def spline(curves: Mapping[str, pd.DataFrame], rows: pd.DataFrame, block: Mapping[str, Any]) -> go.Figure:
    """Hazard ratio by TTB against the median patient: spline with 95 % band, and the straight line of the model.

    `curves`: source -> table of `prognosis.spline`; `rows`: the included patients, whose burdens are ticks at the foot;
    `block`: `survival.continuous`.
    """
    figure, panels = _two_panels(350)
    low = max(min([0.5, *(curve["low"].min() for curve in curves.values())]), WIDEST[0])
    high = min(max([2.0, *(curve["high"].max() for curve in curves.values())]), WIDEST[1])
    for source, panel in panels.items():
        test = block[source]["linearity"]
        panel.title(f"<b>{SOURCE_NAMES[source]} TTB</b><br>{_linearity_words(test)}")
        if source in curves:
            _spline_panel(panel, curves[source], rows[f"ttb_{source}_ml"], SOURCE_COLORS[source], (low, high))
        else:
            _absent(panel, test.get("reason", ""))
    return figure.update_layout(margin={"t": 54})


def spline_alt(block: Mapping[str, Any]) -> str:
    """Alternative text of `spline`."""
    sentences = ["Hazard ratio by total tumour burden against the median patient, as a spline beside a straight line."]
    sentences += [
        f"{name} TTB: {_linearity_words(block[source]['linearity'])}." for source, name in SOURCE_NAMES.items()
    ]
    return " ".join(sentences)


def _linearity_words(test: Mapping[str, Any]) -> str:
    return "linearity not tested" if "reason" in test else f"linearity: p {p_relation(test['p'])}"


def _spline_panel(
    panel: Panel, curve: pd.DataFrame, burdens_ml: pd.Series, color: str, ends: tuple[float, float]
) -> None:
    x = np.log2(curve["ttb_ml"] + 1)
    panel.line([x.min(), x.max()], [1, 1], COLORS["neutral"], 1, "dot")
    panel.band(x, curve["low"], curve["high"], color)
    panel.line(x, curve["hr_linear"], color, 1.3, "dash")
    hover = "TTB %{customdata:.1f} ml<br>hazard ratio %{y:.2f}<extra></extra>"
    panel.line(x, curve["hr"], color, 2, customdata=curve["ttb_ml"], hovertemplate=hover, hoverinfo=None)
    low, high = ends
    foot = low / (high / low) ** 0.06
    inside = np.log2(burdens_ml[burdens_ml.between(curve["ttb_ml"].min(), curve["ttb_ml"].max())] + 1)
    tick = {"symbol": "line-ns-open", "size": 5, "color": tint(color, 0.5), "line": {"width": 0.7}}
    panel.points(inside, np.full(len(inside), foot), tick)
    ticks = [volume for volume in VOLUMES_ML if x.min() <= np.log2(volume + 1) <= x.max()]
    panel.x_axis("TTB (ml)", tickvals=np.log2(np.array(ticks) + 1), ticktext=[str(volume) for volume in ticks])
    bounds = [np.log10(foot / (high / low) ** 0.03), np.log10(high * 1.05)]
    panel.y_axis("Hazard ratio", type="log", tickvals=RATIOS, ticktext=[f"{ratio:g}" for ratio in RATIOS], range=bounds)


# --- proportional hazards


def schoenfeld(trends: Mapping[str, Trend], block: Mapping[str, Any]) -> go.Figure:
    """Scaled Schoenfeld residuals over time with their trend: the log hazard ratio per doubling as it may change.

    `trends`: source -> `prognosis.schoenfeld`; `block`: `survival.continuous`. The axis of time is spread so that the
    deaths are even (1 - Kaplan-Meier). The dashed line is the model's one coefficient, the dotted one no effect.
    """
    figure, panels = _two_panels(350)
    for source, panel in panels.items():
        test = block[source]["proportional_hazards"]
        panel.title(f"<b>{SOURCE_NAMES[source]} TTB</b><br>{_proportional_words(test)}")
        if source in trends:
            _schoenfeld_panel(panel, trends[source], SOURCE_COLORS[source])
        else:
            _absent(panel, test.get("reason", "too few deaths for a trend"))
    if len(trends) == 2:
        figure.update_yaxes(matches="y")
    return figure.update_layout(margin={"t": 54})


def schoenfeld_alt(block: Mapping[str, Any]) -> str:
    """Alternative text of `schoenfeld`."""
    sentences = ["Scaled Schoenfeld residuals of the burden over time, with a smooth trend and its 95 % band."]
    for source, name in SOURCE_NAMES.items():
        sentences.append(f"{name} TTB: {_proportional_words(block[source]['proportional_hazards'])}.")
    return " ".join(sentences)


def _proportional_words(test: Mapping[str, Any]) -> str:
    return "not tested" if "reason" in test else f"proportional hazards: p {p_relation(test['p'])}"


def _schoenfeld_panel(panel: Panel, found: Trend, color: str) -> None:
    residuals, trend = found.residuals, found.trend
    ends = [residuals["transformed"].min(), residuals["transformed"].max()]
    point = {"size": 4.5, "color": tint(color, 0.3), "line": {"width": 0.5, "color": tint(color, 0.6)}}
    hover = "month %{customdata:.0f}<extra></extra>"
    panel.points(
        residuals["transformed"],
        residuals["burden"],
        point,
        customdata=residuals["months"],
        hovertemplate=hover,
        hoverinfo=None,
    )
    panel.line(ends, [0, 0], COLORS["neutral"], 1, "dot")
    panel.line(ends, [found.beta] * 2, color, 1.3, "dash")
    panel.band(trend["transformed"], trend["low"], trend["high"], color)
    panel.line(trend["transformed"], trend["beta"], color, 2)
    places, months = _time_ticks(residuals)
    panel.x_axis("Months (spread by deaths)", tickvals=places, ticktext=months)
    panel.y_axis("Log hazard ratio per doubling")


def _time_ticks(residuals: pd.DataFrame) -> tuple[list[float], list[str]]:
    """Six deaths at even places of the axis, and their months."""
    places = np.linspace(residuals["transformed"].min(), residuals["transformed"].max(), 6)
    nearest = [int((residuals["transformed"] - place).abs().to_numpy().argmin()) for place in places]
    chosen = residuals.iloc[sorted(set(nearest))]
    return chosen["transformed"].tolist(), [f"{month:.0f}" for month in chosen["months"]]


# --- calibration


def calibration(block: Mapping[str, Any]) -> go.Figure:
    """Observed (Kaplan-Meier, 95 %) against predicted survival by groups of risk, a panel a source.

    `block`: `survival.calibration`. On the dotted diagonal the model is right.
    """
    figure, panels = _two_panels(400)
    for source, panel in panels.items():
        own = block[source]
        panel.title(f"<b>{SOURCE_NAMES[source]} TTB</b><br>{'<br>'.join(_calibration_words(own))}")
        if own["groups"]:
            _calibration_panel(panel, own["groups"], block["months"], SOURCE_COLORS[source])
        else:
            _absent(panel, own["groups_reason"])
    return figure.update_layout(margin={"t": 72})


def calibration_alt(block: Mapping[str, Any]) -> str:
    """Alternative text of `calibration`."""
    sentences = [f"Observed against predicted survival at {block['months']:g} months by groups of risk."]
    sentences += [
        f"{name} TTB: {', '.join(_calibration_words(block[source]))}." for source, name in SOURCE_NAMES.items()
    ]
    return " ".join(sentences)


def _calibration_words(own: Mapping[str, Any]) -> list[str]:
    slope, ratio = with_interval(own, "slope", 2), with_interval(own, "observed_expected", 2)
    return [f"slope {slope}", f"observed / expected deaths {ratio}"]


def _calibration_panel(panel: Panel, groups: list[dict[str, Any]], months: float, color: str) -> None:
    known = [group for group in groups if group["observed"] is not None]
    ends = [100 * (group["observed_ci95"] or [group["observed"]] * 2)[side] for group in known for side in (0, 1)]
    low = min([100 * group["predicted"] for group in groups] + ends) - 3
    panel.line([low, 100], [low, 100], COLORS["neutral"], 1, "dot")
    x, y = ([100 * group[key] for group in known] for key in ("predicted", "observed"))
    limits = [[100 * end for end in group["observed_ci95"] or [group["observed"]] * 2] for group in known]
    bars = {
        "type": "data",
        "array": [high - at for (_, high), at in zip(limits, y, strict=True)],
        "arrayminus": [at - below for (below, _), at in zip(limits, y, strict=True)],
        "color": color,
        "thickness": 1.3,
        "width": 4,
    }
    marker = {"size": 8, "color": color, "line": {"width": 1, "color": PAPER}}
    about = [f"{count(group['n'], 'patient')}, {count(group['events'], 'death')}" for group in known]
    hover = "%{customdata}<br>predicted %{x:.0f} %, observed %{y:.0f} %<extra></extra>"
    panel.points(x, y, marker, error_y=bars, customdata=about, hovertemplate=hover, hoverinfo=None)
    panel.x_axis(f"Predicted survival at {months:g} months (%)", range=[low, 102])
    panel.y_axis("Observed survival (%)", range=[low, 102])


# --- sites

_APART = {"man": 0.17, "cnn": -0.17}  # of the two burdens from the middle of a row
_NUMBERS, _RATIOS = 66, 178  # px from the axis to the right edges of the two columns of text


def forest(block: Mapping[str, Any]) -> go.Figure:
    """Hazard ratio per doubling of both burdens in each site and pooled; a site without one has its reason.

    `block`: `survival.sites`. Squares grow with the number of deaths, diamonds are pooled.
    """
    sites = list(block["man"]["sites"])
    figure = base_figure(120 + 42 * (len(sites) + 1))
    panel = Panel(figure, 1, 1)
    ends = [end for source in SOURCE_NAMES for row in _rows(block[source]) for end in row.get("hr_ci95") or []]
    low, high = min([0.4, *ends]), max([2.5, *ends])
    panel.line([1, 1], [-0.6, len(sites) + 0.6], COLORS["neutral"], 1, "dot", showlegend=False)
    for height, site in enumerate(reversed(sites), start=1):
        rows = {source: block[source]["sites"][site] for source in SOURCE_NAMES}
        first = rows["man"]
        _column(panel, f"{first['n']} ({first['events']})", height, _NUMBERS)
        _forest_row(panel, rows, height, low, "square", 4 + np.sqrt(first["events"]))
    pooled = {source: {"hr": None, **block[source]["heterogeneity"]} for source in SOURCE_NAMES}
    _forest_row(panel, pooled, 0, low, "diamond", 11)
    for head, right in (("Patients<br>(deaths)", _NUMBERS), ("Hazard ratio<br>(95 %)", _RATIOS)):
        _column(panel, head, 1, right, yref="y domain", yanchor="bottom", yshift=4)
    names = ["<b>Pooled</b>", *(str(site) for site in reversed(sites))]
    panel.y_axis(tickvals=list(range(len(names))), ticktext=names, range=[-0.7, len(sites) + 0.6])
    title, bounds = "Hazard ratio per doubling of TTB", [np.log10(low / 1.1), np.log10(high * 1.1)]
    panel.x_axis(title, type="log", tickvals=RATIOS, ticktext=[f"{ratio:g}" for ratio in RATIOS], range=bounds)
    for source, name in SOURCE_NAMES.items():  # for the legend alone
        marker = {"size": 9, "symbol": "square", "color": SOURCE_COLORS[source]}
        panel.points([None], [None], marker, name=f"{name} TTB", showlegend=True)
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font_size": SMALL}
    return figure.update_layout(showlegend=True, legend=legend, margin={"l": 110, "r": 190, "t": 50})


def forest_alt(block: Mapping[str, Any]) -> str:
    """Alternative text of `forest`."""
    sentences = [f"Hazard ratios per doubling of the burden in {count(len(block['man']['sites']), 'site')}."]
    for source, name in SOURCE_NAMES.items():
        pooled = block[source]["heterogeneity"]
        hr = "" if "reason" in pooled else f"pooled {with_interval(pooled, 'hr', 2)}, "
        sentences.append(f"{name} TTB: {hr}{heterogeneity_words(pooled)}.")
    return " ".join(sentences)


def _rows(block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*block["sites"].values(), block["heterogeneity"]]


def _forest_row(
    panel: Panel, rows: Mapping[str, Mapping[str, Any]], height: float, low: float, symbol: str, size: float
) -> None:
    """Both burdens of a site, or the reason why neither can be estimated."""
    for source, row in rows.items():
        if row["hr"] is not None:
            _interval(panel, row, height + _APART[source], source, symbol, size)
    if all(row["hr"] is None for row in rows.values()):
        first = rows["man"]
        grey = {"color": COLORS["neutral"], "size": SMALL}
        reason = first.get("hr_reason") or first["reason"]
        panel.write(reason, np.log10(low), height, xanchor="left", font=grey, bgcolor=PAPER)


def _interval(panel: Panel, row: Mapping[str, Any], height: float, source: str, symbol: str, size: float) -> None:
    color = SOURCE_COLORS[source]
    panel.line(row["hr_ci95"], [height] * 2, color, 1.5, showlegend=False)
    marker = {"size": size, "symbol": symbol, "color": color, "line": {"width": 1, "color": PAPER}}
    words = with_interval(row, "hr", 2)
    hover = f"{SOURCE_NAMES[source]} TTB<br>hazard ratio {words}<extra></extra>"
    panel.points([row["hr"]], [height], marker, hovertemplate=hover, hoverinfo=None, showlegend=False)
    _column(panel, words, height, _RATIOS, color)


def _column(panel: Panel, text: str, height: float, right: float, color: str = INK, **more: Any) -> None:
    """Text beside the panel, its right edge so many pixels from it."""
    beside = {"xref": "x domain", "xanchor": "right", "xshift": right, "align": "right"} | more
    panel.write(text, 1, height, font={"color": color, "size": SMALL}, **beside)
