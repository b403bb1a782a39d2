"""The study's figures, as plotly figures: from tables of results to what a reader sees.

Nothing is estimated here: intervals, fits and survival curves come from the modules that know how. The visual language
(`FONT`, `TEMPLATE`, `base_figure`) stands at the top; its colours are those of palette.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtvlib import agreement
from mtvlib.classes import LESION_CLASSES
from mtvlib.palette import COLORS, HAIRLINE, INK, PAPER
from mtvlib.tables import MISSING, PARTITION_NAMES, SOURCE_NAMES, TARGET_NAMES, count, p_relation, with_interval

# --- the visual language

# Lato comes with kaleido, so static figures look alike on every machine; browsers take the reader's own sans.
FONT = "Lato, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FONT_SIZE, SMALL = 13, 11.5
WIDTH = 760  # px of the layout: a page's text width, where FONT_SIZE prints as 8 pt

COHORT_OF = {"cross_validation": "main", "external_testing": "external"}

_AXIS = {
    "showline": True,
    "linecolor": INK,
    "linewidth": 0.8,
    "ticks": "outside",
    "ticklen": 4,
    "tickwidth": 0.8,
    "tickcolor": INK,
    "showgrid": False,
    "zeroline": False,
    "tickfont": {"size": SMALL},
    "title": {"font": {"size": FONT_SIZE}, "standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": FONT_SIZE, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "colorway": [COLORS[name] for name in ("cnn", "primary", "nodes", "all", "manual")],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "showlegend": False,
        "margin": {"l": 64, "r": 16, "t": 40, "b": 52},
        "bargap": 0.06,
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": HAIRLINE,
            "font": {"family": FONT, "size": SMALL, "color": INK},
        },
        "annotationdefaults": {
            "showarrow": False,
            "xanchor": "center",
            "yanchor": "middle",
            "font": {"family": FONT, "size": FONT_SIZE, "color": INK},
        },
    }
)


def base_figure(height: int, rows: int = 1, columns: int = 1, **spacing: Any) -> go.Figure:
    """An empty figure in the study's style; `spacing` as in plotly's `make_subplots`. Height in px."""
    figure = make_subplots(rows=rows, cols=columns, **spacing)
    return figure.update_layout(template=TEMPLATE, width=WIDTH, height=height)


def tint(color: str, opacity: float) -> str:
    """A #RRGGBB colour as rgba, for bands and shading."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


@dataclass(frozen=True)
class Panel:
    """One panel of a figure, and the strokes that panels are drawn with."""

    figure: go.Figure
    row: int
    column: int

    @property
    def place(self) -> dict[str, int]:
        return {"row": self.row, "col": self.column}

    def bars(self, x: Any, heights: Any, width: Any, color: Any, hover: Any) -> None:
        marker = {"color": color, "line_width": 0}
        template = "%{customdata}<extra></extra>"
        self.figure.add_bar(
            x=x, y=heights, width=width, marker=marker, customdata=hover, hovertemplate=template, **self.place
        )

    def line(self, x: Any, y: Any, color: str, width: float = 1.3, dash: str = "solid", **more: Any) -> None:
        stroke = {"color": color, "width": width, "dash": dash, "shape": more.pop("shape", "linear")}
        self.figure.add_scatter(x=x, y=y, mode="lines", line=stroke, **({"hoverinfo": "skip"} | more), **self.place)

    def points(self, x: Any, y: Any, marker: Mapping[str, Any], **more: Any) -> None:
        self.figure.add_scatter(x=x, y=y, mode="markers", marker=marker, **({"hoverinfo": "skip"} | more), **self.place)

    def band(self, x: Any, low: Any, high: Any, color: str, *, shape: str = "linear", **more: Any) -> None:
        """A tinted band: an invisible lower edge, then the upper edge filled down to it."""
        self.line(x, low, color, 0, shape=shape, showlegend=False)
        self.line(x, high, color, 0, shape=shape, fill="tonexty", fillcolor=tint(color, 0.13), **more)

    def write(self, text: str, x: float, y: float, **more: Any) -> None:
        """Text at data coordinates, unless `xref` and `yref` say otherwise."""
        self.figure.add_annotation(text=text, x=x, y=y, **more, **self.place)

    def write_beside(self, text: str, x: float, y: float, **more: Any) -> None:
        """Text outside the axes: x and y count from 0 to 1 along the panel's own sides."""
        (left, right), (low, high) = self.domains()
        place = {"x": left + x * (right - left), "y": low + y * (high - low), "xref": "paper", "yref": "paper"}
        self.figure.add_annotation(text=text, **place, **more)

    def heading(self, text: str, above: float = 44) -> None:
        """The title of a column of panels, centred, its upper edge `above` pixels over them."""
        self.write_beside(f"<b>{text}</b>", 0.5, 1, yshift=above, yanchor="top")

    def title(self, text: str, size: float = SMALL) -> None:
        """The title of this panel, at the left above it."""
        left = {"xanchor": "left", "yanchor": "bottom", "align": "left"}
        self.write_beside(text, 0, 1, yshift=6, font_size=size, **left)

    def x_axis(self, title: str | None = None, **more: Any) -> None:
        self.figure.update_xaxes(title_text=title, **more, **self.place)

    def y_axis(self, title: str | None = None, **more: Any) -> None:
        self.figure.update_yaxes(title_text=title, **more, **self.place)

    def domains(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where the panel's x and y axes lie, as fractions of the figure."""
        subplot = self.figure.get_subplot(self.row, self.column)
        return subplot.xaxis.domain, subplot.yaxis.domain


# --- partitions


def of_partition(patients: pd.DataFrame, partition: str) -> pd.DataFrame:
    """The rows of patients.csv that belong to a partition."""
    return patients[patients["cohort"] == COHORT_OF[partition]]


def partitions_in(patients: pd.DataFrame) -> list[str]:
    """Partitions that have patients, in reading order."""
    return [partition for partition in PARTITION_NAMES if len(of_partition(patients, partition))]


# --- figure 1 of the paper: Dice coefficients

DSC_EDGES = np.round(np.linspace(0, 1, 21), 10)  # rounded, so that a DSC of 0.7 lies in the bin that begins there


def dsc_histograms(patients: pd.DataFrame, threshold: float = 0.7) -> go.Figure:
    """Patients' DSC by target (columns) and partition (rows), with the share below and above `threshold`.

    Paper, Fig. 1. A DSC that equals the threshold counts as above it.
    """
    partitions = partitions_in(patients)
    spacing = {"horizontal_spacing": 0.07, "vertical_spacing": 0.14}
    figure = base_figure(60 + 215 * len(partitions), len(partitions), len(TARGET_NAMES), **spacing)
    for row, partition in enumerate(partitions, start=1):
        rows = of_partition(patients, partition)
        for column, (target, name) in enumerate(TARGET_NAMES.items(), start=1):
            panel = Panel(figure, row, column)
            _dsc_panel(panel, scored_dsc(rows, target), threshold, COLORS[target])
            panel.x_axis("DSC" if row == len(partitions) else None)
            if row == 1:
                panel.heading(name)
        first = Panel(figure, row, 1)
        first.title(f"{PARTITION_NAMES[partition]}, N = {len(rows)}")
        first.write_beside("Patients", 0, 0.5, xshift=-46, textangle=-90)  # in one line with the other rows'
    figure.update_xaxes(range=[-0.02, 1.02], tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1])
    return figure.update_layout(margin={"t": 64, "l": 58, "r": 12, "b": 46})


def dsc_alt(patients: pd.DataFrame, threshold: float = 0.7) -> str:
    """Alternative text of `dsc_histograms`."""
    sentences = ["Histograms of the patients' Dice coefficients."]
    for partition in partitions_in(patients):
        rows = of_partition(patients, partition)
        shares = {target: share_below(scored_dsc(rows, target), threshold)[1] for target in TARGET_NAMES}
        above = ", ".join(f"{name.lower()} {shares[target]}" for target, name in TARGET_NAMES.items())
        sentences.append(f"{PARTITION_NAMES[partition]}, N = {len(rows)}: at or above {threshold:g} are {above}.")
    return " ".join(sentences)


def scored_dsc(rows: pd.DataFrame, target: str) -> np.ndarray:
    """The patients' DSC of a target; of nobody if no patient has it, for then every 1 says only that it is absent."""
    volume = "ttb" if target == "all" else f"mtv_{target}"
    there = rows[[f"{volume}_man_ml", f"{volume}_cnn_ml"]].to_numpy().any()
    return rows[f"dsc_{target}"].dropna().to_numpy() if there else np.array([])


def share_below(values: Any, threshold: float) -> tuple[str, str]:
    """The percentages left and right of the threshold, which add up to 100; en dashes without patients."""
    if not len(values):
        return MISSING, MISSING
    below = round(100 * float(np.mean(np.asarray(values) < threshold)), 1)
    return f"{below:.1f} %", f"{100 - below:.1f} %"


def _dsc_panel(panel: Panel, values: np.ndarray, threshold: float, color: str) -> None:
    counts, edges = np.histogram(values, bins=DSC_EDGES)
    centres = (edges[:-1] + edges[1:]) / 2
    colors = [color if centre > threshold else tint(color, 0.45) for centre in centres]
    bins = zip(pairwise(edges), counts, strict=True)
    hover = [f"DSC {low:.2f}–{high:.2f}<br>{count(n, 'patient')}" for (low, high), n in bins]
    panel.bars(centres, counts, 0.046, colors, hover)
    top = max(1, int(counts.max())) * 1.22
    panel.line([threshold] * 2, [0, top], INK, 1, "dash")
    left, right = share_below(values, threshold)
    panel.write(left, threshold - 0.02, top, xanchor="right", yanchor="top")
    panel.write(right, threshold + 0.02, top, xanchor="left", yanchor="top")
    panel.y_axis(range=[0, top], dtick=1 if top < 6 else None)  # patients are whole
    if not len(values):
        panel.write("no patient has it", threshold / 2, top / 2, font={"color": COLORS["neutral"], "size": SMALL})


# --- figure 2 of the paper: total tumour burden

_POINT = {"size": 5.5, "color": tint(COLORS["cnn"], 0.45), "line": {"width": 0.6, "color": COLORS["cnn"]}}
_OUTLIER = {"size": 7.5, "color": COLORS["outlier"], "line": {"width": 0.8, "color": PAPER}}


def ttb_scatter(patients: pd.DataFrame, ttb: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """CNN against manual TTB: outliers, identity, least-squares line and 95 % prediction band, a panel a partition.

    Paper, Fig. 2. `ttb` holds the partitions' blocks of summary.json, whose R2 and mean absolute difference (MAD) stand
    in the panel. The line is drawn through the patients that patients.csv does not call outliers.
    """
    figure = base_figure(488, columns=2, horizontal_spacing=0.13)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)  # a lone panel stays a square, its neighbour empty
    for column, partition in enumerate(partitions_in(patients), start=1):
        panel, rows = Panel(figure, 1, column), of_partition(patients, partition)
        _ttb_panel(panel, rows, legend=column == 1)
        # Above the axes, where no patient can lie beneath the words.
        name = f"<b>{PARTITION_NAMES[partition]}</b>, N = {len(rows)}"
        words = f'<span style="font-size:{SMALL}px">{"<br>".join(_ttb_words(ttb[partition]))}</span>'
        panel.title(f"{name}<br>{words}", FONT_SIZE)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.2, "yanchor": "top", "traceorder": "normal"}
    return figure.update_layout(showlegend=True, legend=legend | {"font_size": SMALL}, margin={"t": 84, "b": 96})


def ttb_alt(summary: Mapping[str, Any]) -> str:
    """Alternative text of `ttb_scatter`."""
    sentences = ["Scatter plots of the total tumour burden by CNN against manual delineation."]
    for partition, name in PARTITION_NAMES.items():
        if block := summary[partition].get("ttb"):
            sentences.append(f"{name}: {', '.join(_ttb_words(block))}.")
    return " ".join(sentences)


def _ttb_words(block: Mapping[str, Any]) -> list[str]:
    mad = with_interval(block, "mean_absolute_difference_ml", 2)
    return [f"R² {with_interval(block, 'r2', 2)}", f"MAD {mad} ml", f"without {count(block['n_outliers'], 'outlier')}"]


def _ttb_panel(panel: Panel, rows: pd.DataFrame, *, legend: bool) -> None:
    man, cnn, out = (rows[name].to_numpy() for name in ("ttb_man_ml", "ttb_cnn_ml", "ttb_outlier"))
    out = out.astype(bool)
    end = float(max(man.max(), cnn.max(), 1.0)) * 1.04
    line = agreement.fit_line(man[~out], cnn[~out])
    x = np.linspace(0, end, 60)
    if line is not None:
        middle, low, high = line.predict(x)
        panel.band(x, low, high, COLORS["cnn"], name="95 % prediction band", showlegend=legend)
    panel.line([0, end], [0, end], COLORS["neutral"], dash="dot", name="identity", showlegend=legend)
    hover = "<b>%{customdata}</b><br>manual %{x:.1f} ml<br>CNN %{y:.1f} ml<extra></extra>"
    for chosen, marker, name in ((~out, _POINT, "patient"), (out, _OUTLIER, "outlier, left out of the fit")):
        about = {"name": name, "customdata": rows["patient"][chosen], "hovertemplate": hover, "hoverinfo": None}
        panel.points(man[chosen], cnn[chosen], marker, showlegend=legend, **about)
    if line is not None:
        panel.line(x, middle, COLORS["manual"], name="regression line", showlegend=legend)
    panel.x_axis("Manual TTB (ml)", range=[0, end], visible=True)
    panel.y_axis("CNN TTB (ml)", range=[0, end], visible=True)


# --- lesions found and missed

_OUTCOMES = {"man": {"TP": "found", "FN": "missed"}, "cnn": {"TP": "confirmed", "FP": "spurious"}}
_HEADINGS = {"man": "Manual lesions", "cnn": "Lesions of the CNN"}


def lesions_by_volume(lesions: pd.DataFrame) -> go.Figure:
    """How many lesions of which volume were found and missed (left), confirmed and spurious (right), by target (rows).

    Outcomes are those of lesions.csv (paper, Methods, structure-wise analysis); `lesions` is one partition's.
    """
    figure = base_figure(490, rows=2, columns=2, horizontal_spacing=0.12, vertical_spacing=0.26)
    decades = np.log10(lesions["volume_ml"].max()) if len(lesions) else 1
    edges = 10 ** np.arange(-1, max(decades, 1) + 0.25, 0.25)
    for row, target in enumerate(LESION_CLASSES, start=1):
        for column, source in enumerate(SOURCE_NAMES, start=1):
            chosen = lesions[(lesions["target"] == target) & (lesions["source"] == source)]
            panel = Panel(figure, row, column)
            _lesion_panel(panel, chosen, edges, COLORS[target], _OUTCOMES[source], TARGET_NAMES[target])
            panel.x_axis("Volume (ml)" if row == 2 else None)
            panel.y_axis("Lesions" if column == 1 else None)
            if row == 1:
                panel.heading(_HEADINGS[source], above=62)
    return figure.update_layout(barmode="stack", bargap=0, margin={"t": 74})


def lesions_alt(summary: Mapping[str, Any], partition: str) -> str:
    """Alternative text of `lesions_by_volume`."""
    sentences = [f"{PARTITION_NAMES[partition]}: histograms of lesion volumes."]
    for target in LESION_CLASSES:
        n = summary[partition]["lesions"][target]
        man = f"manual {n['tp_man']} found, {n['fn']} missed"
        sentences.append(f"{TARGET_NAMES[target]}: {man}; CNN {n['tp_cnn']} confirmed, {n['fp']} spurious.")
    return " ".join(sentences)


def _lesion_panel(
    panel: Panel, lesions: pd.DataFrame, edges: np.ndarray, color: str, outcomes: Mapping[str, str], name: str
) -> None:
    words, middle, width = [], np.sqrt(edges[:-1] * edges[1:]), np.diff(edges) * 0.94
    for (outcome, word), shade in zip(outcomes.items(), (tint(color, 0.8), COLORS["outlier"]), strict=True):
        volumes = lesions.loc[lesions["outcome"] == outcome, "volume_ml"]
        counts, _ = np.histogram(np.clip(volumes, edges[0], edges[-1]), bins=edges)
        bins = zip(pairwise(edges), counts, strict=True)
        panel.bars(middle, counts, width, shade, [f"{low:.2g}–{high:.2g} ml<br>{n} {word}" for (low, high), n in bins])
        words.append(f'<span style="color:{shade}"><b>{len(volumes)} {word}</b></span>')
    panel.title(f"{name}<br>{', '.join(words)}")
    top = max(1, int(np.histogram(np.clip(lesions["volume_ml"], edges[0], edges[-1]), bins=edges)[0].max()))
    panel.y_axis(range=[0, 1.05 * top], dtick=1 if top < 6 else None)
    panel.x_axis(type="log", range=[-1.05, np.log10(edges[-1]) + 0.05], dtick=1)


# --- figure 5 of the paper: survival

RISK_COLORS = {"high": COLORS["high_risk"], "low": COLORS["low_risk"]}
LABEL_APART = 8.0  # least distance of two labels, % of survival


def kaplan_meier(curves: Mapping[str, Mapping[str, pd.DataFrame]], block: Mapping[str, Any]) -> go.Figure:
    """Overall survival of the high and low risk group by manual (left) and CNN TTB (right). Paper, Fig. 5.

    `curves`: source (`man`, `cnn`) -> risk (`high`, `low`) -> table of `survival.kaplan_meier`; a group of nobody is
    left out. `block`: the partition's survival block of summary.json. Bands are 95 % intervals, ticks are censored
    patients, and the patients at risk stand below the axis.
    """
    spacing = {"row_heights": [0.85, 0.15], "horizontal_spacing": 0.17, "vertical_spacing": 0.19}
    figure = base_figure(440, rows=2, columns=2, **spacing)
    end = max([curve["months"].max() for groups in curves.values() for curve in groups.values()], default=12)
    ticks = list(range(0, int(end) + 1, 12 if end <= 84 else 24))
    for column, (source, name) in enumerate(SOURCE_NAMES.items(), start=1):
        panel, groups = Panel(figure, 1, column), curves.get(source, {})
        for risk in (risk for risk in RISK_COLORS if risk in groups):
            _survival_curve(panel, groups[risk], RISK_COLORS[risk], f"{risk} risk")
        _label_ends(panel, groups)
        panel.title(f"<b>{name} TTB</b><br>{_hazard_words(block[source])}")
        panel.x_axis("Months", title_standoff=6, tickvals=ticks)
        panel.y_axis("Overall survival (%)", range=[0, 103], tickvals=[0, 25, 50, 75, 100])
        _numbers_at_risk(Panel(figure, 2, column), groups, ticks)
    figure.update_xaxes(range=[0, end * 1.02])
    return figure.update_layout(margin={"t": 50, "r": 44, "b": 8, "l": 70})


def survival_alt(block: Mapping[str, Any]) -> str:
    """Alternative text of `kaplan_meier`."""
    sentences = [f"Kaplan-Meier curves of {count(block['n'], 'patient')}, high against low total tumour burden."]
    sentences += [f"{name} TTB: {_hazard_words(block[source])}." for source, name in SOURCE_NAMES.items()]
    return " ".join(sentences)


def count_at_risk(curve: pd.DataFrame, months: float) -> int:
    """Patients under observation just before `months`: the curve's next row knows; after its last row nobody is."""
    later = curve.loc[curve["months"] >= months, "at_risk"]
    return int(later.iloc[0]) if len(later) else 0


def _survival_curve(panel: Panel, curve: pd.DataFrame, color: str, name: str) -> None:
    months, percent = curve["months"], 100 * curve["survival"]
    low, high = (100 * curve[limit].astype(float).fillna(curve["survival"]) for limit in ("low", "high"))
    panel.band(months, low, high, color, shape="hv")
    interval = "%{customdata[0]:.0f}–%{customdata[1]:.0f}"
    hover = f"month %{{x:.0f}}: %{{y:.0f}} % ({interval}), %{{customdata[2]}} at risk<extra></extra>"
    numbers = np.column_stack([low, high, curve["at_risk"]])
    about: dict[str, Any] = {"name": name, "customdata": numbers, "hovertemplate": hover, "hoverinfo": None}
    panel.line(months, percent, color, 1.8, shape="hv", **about)
    censored = curve["censored"] > 0
    tick = {"symbol": "line-ns-open", "size": 6, "color": color, "line": {"width": 1}}
    panel.points(months[censored], percent[censored], tick, name="censored")


def _label_ends(panel: Panel, groups: Mapping[str, pd.DataFrame]) -> None:
    """The groups' names at the ends of their curves, kept apart where the curves end close together."""
    ends = {risk: 100 * float(curve["survival"].iloc[-1]) for risk, curve in groups.items()}
    if len(ends) == 2 and abs(ends["high"] - ends["low"]) < LABEL_APART:
        upper, middle = max(ends, key=lambda risk: ends[risk]), sum(ends.values()) / 2
        ends = {risk: middle + (0.5 if risk == upper else -0.5) * LABEL_APART for risk in ends}
    for risk, percent in ends.items():
        end, color = float(groups[risk]["months"].max()), RISK_COLORS[risk]
        panel.write(f"<b>{risk}</b>", end, max(percent, 3), font_color=color, xanchor="left", xshift=4)


def _numbers_at_risk(panel: Panel, groups: Mapping[str, pd.DataFrame], ticks: list[int]) -> None:
    """The line of a risk group begins with its name, left of the axis."""
    names = {"xanchor": "right", "xshift": -16, "font_size": SMALL}
    panel.write_beside("At risk", 0, 1, yshift=10, **names)
    for height, risk in ((0.75, "high"), (0.25, "low")):
        if risk in groups:
            panel.write_beside(risk, 0, height, font_color=RISK_COLORS[risk], **names)
            for tick in ticks:
                number = str(count_at_risk(groups[risk], tick))
                panel.write(number, tick, height, font={"color": RISK_COLORS[risk], "size": SMALL})
    panel.x_axis(visible=False)
    panel.y_axis(visible=False, range=[0, 1])


def _hazard_words(result: Mapping[str, Any]) -> str:
    if result.get("hr") is None:
        return "hazard ratio not estimable"
    p, logrank_p = p_relation(result["p"]), p_relation(result["logrank_p"])
    return f"HR {with_interval(result, 'hr', 1)}, p {p}; log-rank p {logrank_p}"


# --- training


def training_curves(histories: Mapping[int, pd.DataFrame], best: Mapping[int, int]) -> go.Figure:
    """Training loss and validation soft DSC by epoch, a line a fold, with the best epoch marked.

    `histories`: fold -> columns `epoch`, `train_loss`, `validation_soft_dsc`, `seconds`; `best`: fold -> best epoch.
    """
    figure = base_figure(330, columns=2, horizontal_spacing=0.13)
    loss, score, several = Panel(figure, 1, 1), Panel(figure, 1, 2), len(histories) > 1
    longest = max(history["epoch"].max() for history in histories.values())
    for fold, color in zip(sorted(histories), shades(len(histories)), strict=True):
        history = histories[fold]
        about: dict[str, Any] = {"legendgroup": str(fold), "hoverinfo": None}
        seconds = f"{history['seconds'].median():.3g} s an epoch"
        about["hovertemplate"] = f"fold {fold}, epoch %{{x}}<br>%{{y:.4f}}<br>{seconds}<extra></extra>"
        loss.line(history["epoch"], history["train_loss"], color, name=f"fold {fold}", showlegend=several, **about)
        score.line(history["epoch"], history["validation_soft_dsc"], color, showlegend=False, **about)
        mark = history[history["epoch"] == best.get(fold)]
        dot = {"color": color, "size": 9, "line": {"color": PAPER, "width": 1.2}}
        score.points(mark["epoch"], mark["validation_soft_dsc"], dot, name="best epoch", showlegend=False, **about)
    for panel, title in ((loss, "Training loss"), (score, "Soft DSC, validation")):
        panel.x_axis("Epoch", rangemode="tozero", dtick=1 if longest < 8 else None)
        panel.y_axis(title)
    legend = {"orientation": "h", "x": 0, "y": 1.06, "yanchor": "bottom", "font_size": SMALL}
    return figure.update_layout(showlegend=several, legend=legend)


def shades(n: int) -> list[str]:
    """n steps from a dark to a light shade of the CNN's colour; the colour itself for one."""
    base = np.array([int(COLORS["cnn"][i : i + 2], 16) for i in (1, 3, 5)])
    steps = np.linspace(-0.45, 0.55, n) if n > 1 else [0.0]
    mixed = [base * (1 + step) if step < 0 else base + (255 - base) * step for step in steps]
    return ["#" + "".join(f"{round(part):02X}" for part in color) for color in mixed]
