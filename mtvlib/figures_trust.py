"""Figures of the chapter on trust, from the tables that trust.py writes into results/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mtvlib import cases, show
from mtvlib.figures import FONT_SIZE, SMALL, Panel, base_figure, tint
from mtvlib.palette import COLORS, INK, PAPER
from mtvlib.study import Study
from mtvlib.tables import PARTITION_NAMES, count, number, with_interval
from mtvlib.tables_trust import NOT_EVALUATED, ORDER_NAMES, SOURCE_NAMES, failed_patients, failed_words
from mtvlib.viewer import plate

_POINT = {"size": 7, "color": COLORS["cnn"], "line": {"width": 0.8, "color": PAPER}}
_PATIENT = {"size": 5.5, "color": tint(COLORS["cnn"], 0.45), "line": {"width": 0.6, "color": COLORS["cnn"]}}
_FAILED = {"size": 7.5, "color": COLORS["outlier"], "line": {"width": 0.8, "color": PAPER}}
_ORDERS = {"uncertainty": (COLORS["cnn"], "solid"), "random": (COLORS["neutral"], "dash"), "worst_first": (INK, "dot")}
PLATE_PX = 260  # side of a picture of a plate: the chapter of a large study stays below 10 MB


def partitions_in(table: pd.DataFrame) -> list[str]:
    """Partitions that have rows, in reading order."""
    return [partition for partition in PARTITION_NAMES if (table["partition"] == partition).any()]


def note_absent(study: Study) -> None:
    """Say of which partitions nothing is known here, and why; nothing if the probabilities of all are there."""
    for partition, name in PARTITION_NAMES.items():
        block = study.summary[partition]
        reason = block.get("trust", {"reason": NOT_EVALUATED}).get("reason")
        if block.get("n_patients") and reason:
            show.note(f"{name}: no probabilities", f"Not estimable: {reason}.")


# --- calibration


def reliability(bins: pd.DataFrame) -> go.Figure:
    """Observed share of lesion against its probability (above) and the volume of each bin (below), by partition.

    `bins`: calibration.csv. Bars are 95 % intervals; a point below the diagonal is overconfident.
    """
    spacing = {"row_heights": [0.76, 0.24], "horizontal_spacing": 0.13, "vertical_spacing": 0.06}
    figure = base_figure(480, rows=2, columns=2, **spacing)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    for column, partition in enumerate(partitions_in(bins), start=1):
        rows = bins[bins["partition"] == partition]
        above, below = Panel(figure, 1, column), Panel(figure, 2, column)
        above.line([0, 1], [0, 1], COLORS["neutral"], dash="dot")
        bars = _bars(rows, "observed", COLORS["cnn"])
        above.points(rows["probability"], rows["observed"], _POINT, error_y=bars, **_hover(rows))
        above.title(f"<b>{PARTITION_NAMES[partition]}</b>", FONT_SIZE)
        above.x_axis(visible=True, range=[-0.02, 1.02], showticklabels=False, tickvals=_TENTHS)
        above.y_axis("Share in the reference", visible=True, range=[-0.02, 1.02], tickvals=_TENTHS)
        middle = (rows["p_low"] + rows["p_high"]) / 2
        words = [f"{volume:.1f} ml" for volume in rows["volume_ml"]]
        below.bars(middle, rows["volume_ml"].where(rows["volume_ml"] > 0), 0.094, tint(COLORS["cnn"], 0.45), words)
        below.x_axis("Probability of a lesion", visible=True, range=[-0.02, 1.02], tickvals=_TENTHS)
        below.y_axis("Volume (ml)", visible=True, type="log", dtick=1)
    return figure.update_layout(margin={"t": 36})


_TENTHS = [0, 0.2, 0.4, 0.6, 0.8, 1]


def _bars(rows: pd.DataFrame, key: str, color: str) -> dict[str, Any]:
    """Error bars from a value to the ends of its interval; none where there is no interval."""
    ends = {"array": rows[f"{key}_high"] - rows[key], "arrayminus": rows[key] - rows[f"{key}_low"]}
    return {"type": "data", "symmetric": False, "color": color, "thickness": 1.1, "width": 3, **ends}


def _hover(rows: pd.DataFrame) -> dict[str, Any]:
    words = [
        f"probability {row.p_low:.1f}–{row.p_high:.1f}<br>in the reference {row.observed:.2f}<br>{row.volume_ml:.1f} ml"
        for row in rows.itertuples()
    ]
    return {"customdata": words, "hovertemplate": "%{customdata}<extra></extra>", "hoverinfo": None}


def reliability_alt(bins: pd.DataFrame) -> str:
    """Alternative text of `reliability`."""
    sentences = ["Reliability diagrams: share of the voxels that lie in a manual lesion, by the network's probability."]
    for partition in partitions_in(bins):
        rows = bins[(bins["partition"] == partition) & bins["observed"].notna()]
        pairs = [f"{row.observed:.2f} at {row.probability:.2f}" for row in rows.itertuples()]
        sentences.append(f"{PARTITION_NAMES[partition]}: {', '.join(pairs)}.")
    return " ".join(sentences)


# --- uncertainty


def uncertainty(patients: pd.DataFrame) -> go.Figure:
    """True DSC of the patients against what was expected of it, and against the DSC among the models of an ensemble.

    `patients`: uncertainty.csv. One panel a partition and source; failed patients stand out.
    """
    panels = [
        (partition, source)
        for source in SOURCE_NAMES
        for partition in partitions_in(patients)
        if patients.loc[patients["partition"] == partition, source].notna().all()
    ]
    figure = base_figure(330, columns=max(2, len(panels)), horizontal_spacing=0.08)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    for column, (partition, source) in enumerate(panels, start=1):
        panel, rows = Panel(figure, 1, column), patients[patients["partition"] == partition]
        panel.line([0, 1], [0, 1], COLORS["neutral"], dash="dot")
        hover = "<b>%{customdata}</b><br>%{x:.2f}, true %{y:.2f}<extra></extra>"
        failed = rows["dsc_all"] == 0
        for chosen, marker in ((~failed, _PATIENT), (failed, _FAILED)):
            about = {"customdata": rows["patient"][chosen], "hovertemplate": hover, "hoverinfo": None}
            panel.points(rows[source][chosen], rows["dsc_all"][chosen], marker, **about)
        panel.title(f"<b>{PARTITION_NAMES[partition]}</b><br>{count(len(rows), 'patient')}", SMALL)
        panel.x_axis(SOURCE_NAMES[source], visible=True, range=[-0.03, 1.03], tickvals=_TENTHS)
        panel.y_axis("True DSC" if column == 1 else None, visible=True, range=[-0.03, 1.03], tickvals=_TENTHS)
    return figure.update_layout(margin={"t": 54})


def uncertainty_alt(summary: Mapping[str, Any]) -> str:
    """Alternative text of `uncertainty`."""
    sentences = ["Scatter plots of the patients' true DSC against what the network expected of it."]
    for partition, name in PARTITION_NAMES.items():
        for source, label in SOURCE_NAMES.items():
            block = ((summary[partition].get("trust") or {}).get("uncertainty") or {}).get(source)
            if block:
                words = with_interval(block, "spearman", 2)
                sentences.append(f"{name}, {label.replace('Expected', 'expected')}: rank correlation {words}.")
    return " ".join(sentences)


# --- triage

_TRIAGE = {"mean_dsc": ("Mean DSC", 1), "cohort_dsc": ("Cohort DSC", 1), "failed": ("Failed (%)", 100)}


def triage(curves: pd.DataFrame) -> go.Figure:
    """Mean DSC, cohort DSC and failed patients over the share of patients corrected by hand, a row a partition.

    `curves`: triage.csv. The band is the 95 % interval of the order by uncertainty.
    """
    partitions = partitions_in(curves)
    figure = base_figure(90 + 225 * len(partitions), len(partitions), 3, horizontal_spacing=0.1, vertical_spacing=0.2)
    for row, partition in enumerate(partitions, start=1):
        for column, (key, (title, factor)) in enumerate(_TRIAGE.items(), start=1):
            panel = Panel(figure, row, column)
            for order, (color, dash) in reversed(_ORDERS.items()):
                rows = curves[(curves["partition"] == partition) & (curves["order"] == order)]
                x = 100 * rows["share"]
                if order == "uncertainty" and rows[f"{key}_low"].notna().all():
                    panel.band(x, factor * rows[f"{key}_low"], factor * rows[f"{key}_high"], color, showlegend=False)
                about = {"name": ORDER_NAMES[order], "showlegend": row == column == 1, "legendgroup": order}
                hover = f"{ORDER_NAMES[order]}, %{{x:.0f}} %: %{{y:.3g}}<extra></extra>"
                panel.line(x, factor * rows[key], color, 1.8, dash, hovertemplate=hover, hoverinfo=None, **about)
            panel.x_axis("Corrected (%)" if row == len(partitions) else None, range=[0, 50], dtick=10)
            panel.y_axis(title, rangemode="tozero" if key == "failed" else "normal")
        Panel(figure, row, 1).title(f"<b>{PARTITION_NAMES[partition]}</b>")
    legend = {"orientation": "h", "xref": "container", "x": 0.07, "yref": "container", "y": 0.99, "yanchor": "top"}
    legend |= {"font_size": SMALL, "traceorder": "reversed"}
    return figure.update_layout(showlegend=True, legend=legend, margin={"t": 64, "l": 58})


def triage_alt(summary: Mapping[str, Any]) -> str:
    """Alternative text of `triage`."""
    sentences = ["Curves over the share of patients who are corrected by hand."]
    for partition, name in PARTITION_NAMES.items():
        block = (summary[partition].get("trust") or {}).get("triage")
        if block:
            orders = [f"{ORDER_NAMES[order].lower()} {number(block[order]['mean_dsc'], 3)}" for order in _ORDERS]
            words = f"mean DSC {number(block['nobody']['mean_dsc'], 3)} without correction"
            share = f"with {100 * block['share']:.0f} % corrected"
            sentences.append(f"{name}: {words}; {share}: {', '.join(orders)}.")
    return " ".join(sentences)


# --- FROC


def froc(curve: pd.DataFrame) -> go.Figure:
    """Manual lesions found against false positives a patient, over the threshold of the probability, by partition.

    `curve`: froc.csv. Bars are 95 % intervals; the threshold of 0.5 is filled.
    """
    figure = base_figure(360, columns=2, horizontal_spacing=0.13)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    curve = curve[curve["sensitivity"].notna()]  # none without a lesion in the reference
    for column, partition in enumerate(partitions_in(curve), start=1):
        panel, rows = Panel(figure, 1, column), curve[curve["partition"] == partition]
        panel.line(rows["false_positives"], 100 * rows["sensitivity"], COLORS["cnn"])
        _name_ends(panel, rows)
        rows = rows.iloc[(rows["threshold"] - 0.5).abs().argsort()[::-1]]  # the filled point above the others
        ends = ("sensitivity", "sensitivity_low", "sensitivity_high")
        percent = rows.assign(**{name: 100 * rows[name].astype(float) for name in ends})
        words = [
            f"threshold {row.threshold:g}<br>{row.sensitivity:.0f} % found<br>{row.false_positives:.2f} false a patient"
            for row in percent.itertuples()
        ]
        fill = [COLORS["cnn"] if threshold == 0.5 else PAPER for threshold in rows["threshold"]]
        marker = {"size": 7.5, "color": fill, "line": {"width": 1.3, "color": COLORS["cnn"]}}
        hover = {"customdata": words, "hovertemplate": "%{customdata}<extra></extra>", "hoverinfo": None}
        bars = _bars(percent, "sensitivity", tint(COLORS["cnn"], 0.45))
        panel.points(rows["false_positives"], percent["sensitivity"], marker, error_y=bars, cliponaxis=False, **hover)
        panel.title(f"<b>{PARTITION_NAMES[partition]}</b>", FONT_SIZE)
        panel.x_axis("False positives a patient", visible=True, rangemode="tozero")
        panel.y_axis("Manual lesions found (%)", visible=True, range=[0, 102])
    return figure.update_layout(margin={"t": 36})


def _name_ends(panel: Panel, rows: pd.DataFrame) -> None:
    """The thresholds at the ends of a curve: the lowest below its bar, where most is found, the highest beside."""
    low, high = rows.iloc[0], rows.iloc[-1]
    foot = low.sensitivity if pd.isna(low.sensitivity_low) else low.sensitivity_low
    panel.write(f"p ≥ {low.threshold:g}", low.false_positives, 100 * foot, yanchor="top", yshift=-4, font_size=SMALL)
    beside = {"xanchor": "left", "xshift": 8, "font_size": SMALL, "bgcolor": tint(PAPER, 0.8)}
    panel.write(f"p ≥ {high.threshold:g}", high.false_positives, 100 * high.sensitivity, **beside)


def froc_alt(curve: pd.DataFrame) -> str:
    """Alternative text of `froc`."""
    sentences = ["Free-response curves: share of the manual lesions found against false positives a patient."]
    curve = curve[curve["sensitivity"].notna()]
    for partition in partitions_in(curve):
        rows = curve[(curve["partition"] == partition) & curve["threshold"].isin([0.05, 0.5, 0.95])]
        words = [
            f"threshold {row.threshold:g}: {100 * row.sensitivity:.0f} % at {row.false_positives:.2f}"
            for row in rows.itertuples()
        ]
        sentences.append(f"{PARTITION_NAMES[partition]}: {', '.join(words)}.")
    return " ".join(sentences)


# --- failed patients

MOST_PLATES = 60


def show_failed(study: Study, failures: pd.DataFrame, most: int) -> None:
    """Display a plate of every patient who failed altogether, and of at most so many who failed in one class.

    In the order of `failed_patients`; of those who are not shown it is said how many they are. A page has room for 60
    plates: where more fail altogether, the network is of no use, and more pictures do not tell more.
    """
    groups = failed_patients(failures)
    altogether = sum(any(row["target"] == "all" for row in rows) for rows in groups)  # these come first
    shown = groups[: min(altogether + most, MOST_PLATES)]
    for place, rows in enumerate(shown, start=1):
        patient, words = rows[0]["patient"], failed_words(rows)
        of = f"Patient {patient} ({PARTITION_NAMES[rows[0]['partition']].lower()})"
        caption = (
            f"{of}. {words} Manual contours are solid, those of the CNN dashed; the patient's left is on the right."
        )
        alt = f"Transaxial CT and PET slices of patient {patient} with manual and CNN contours. {words}"
        show.show_picture(plate(cases.load_case(study, patient), PLATE_PX), f"fig-failed-{place}", caption, alt)
    if left := len(groups) - len(shown):
        how = "in one class" if altogether <= len(shown) else "altogether or in one class"
        show.text(f"Not shown: {count(left, 'further patient')} who failed {how}; results/failures.csv names all.")
