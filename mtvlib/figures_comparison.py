"""Figures of several methods on the same patients, and the page that shows them with their table."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from mtvlib.comparison import TESTS
from mtvlib.figures import SMALL, Panel, base_figure
from mtvlib.files import write_text
from mtvlib.palette import COLORS, PAPER
from mtvlib.tables import MISSING, PARTITION_NAMES, TARGET_NAMES, with_interval
from mtvlib.tables_comparison import Scores, differences
from mtvlib.typeset import great_table

ROW = 24  # px of one method
LONGEST_LABEL = 28  # characters


def dsc_by_method(scores: Sequence[Scores]) -> go.Figure:
    """Cohort DSC of each method with its 95 % interval, by target (columns) and partition (rows).

    Filled: the method was given the images alone; open: it was given seeds.
    """
    partitions = partitions_of(scores)
    height = 86 + len(partitions) * (50 + ROW * len(scores))
    spacing = {"horizontal_spacing": 0.04, "vertical_spacing": 62 / height}
    figure = base_figure(height, len(partitions), len(TARGET_NAMES), **spacing)
    for row, partition in enumerate(partitions, start=1):
        for column, (target, name) in enumerate(TARGET_NAMES.items(), start=1):
            panel = Panel(figure, row, column)
            _dsc_panel(panel, scores, partition, target)
            panel.y_axis(showticklabels=column == 1)
            panel.x_axis("Cohort DSC" if row == len(partitions) else None)
            if row == 1:
                panel.heading(name)
        Panel(figure, row, 1).title(PARTITION_NAMES[partition])
    widest = max(len(_short(one.label)) for one in scores)
    return figure.update_layout(margin={"t": 58, "l": 24 + 7 * widest, "r": 12, "b": 46})


def dsc_by_method_alt(scores: Sequence[Scores]) -> str:
    """Alternative text of `dsc_by_method`."""
    sentences = ["Cohort Dice coefficients by method."]
    for partition in partitions_of(scores):
        for target, name in TARGET_NAMES.items():
            values = [f"{one.label} {_words(one, partition, target)}" for one in scores]
            sentences.append(f"{PARTITION_NAMES[partition]}, {name.lower()}: {', '.join(values)}.")
    return " ".join(sentences)


def partitions_of(scores: Sequence[Scores]) -> list[str]:
    return [partition for partition in PARTITION_NAMES if any(partition in one.delineation for one in scores)]


def _words(scores: Scores, partition: str, target: str) -> str:
    block = scores.delineation[partition][target]
    return with_interval(block, "cohort_dsc", 2) if block["cohort_dsc"] is not None else MISSING


def _dsc_panel(panel: Panel, scores: Sequence[Scores], partition: str, target: str) -> None:
    """The methods from top to bottom, the place of each its number."""
    color = COLORS[target]
    for place, one in enumerate(scores):
        block = one.delineation[partition][target]
        value, ends = block["cohort_dsc"], block["cohort_dsc_ci95"]
        if value is None:
            continue
        if ends:
            panel.line(ends, [place, place], color, 1.4)
        marker = {"size": 9, "color": PAPER if one.needs_seed else color, "line": {"width": 1.6, "color": color}}
        hover = f"<b>{html.escape(one.label)}</b><br>{_words(one, partition, target)}<extra></extra>"
        panel.points([value], [place], marker, hovertemplate=hover, hoverinfo=None)
    if all(one.delineation[partition][target]["cohort_dsc"] is None for one in scores):
        panel.write("no patient has it", 0.5, (len(scores) - 1) / 2, font={"color": COLORS["neutral"], "size": SMALL})
    labels = [html.escape(_short(one.label)) for one in scores]
    panel.y_axis(range=[len(scores) - 0.4, -0.6], tickvals=list(range(len(scores))), ticktext=labels)
    panel.x_axis(range=[-0.02, 1.02], tickvals=[0, 0.25, 0.5, 0.75, 1], showgrid=True)


def _short(label: str) -> str:
    """A label that leaves room for the panels; the whole one is shown on hovering."""
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


# --- a page of its own


def write_page(path: str | Path, scores: Sequence[Scores], compared: pd.DataFrame, notes: Sequence[str]) -> None:
    """comparison.html: figure, notes and table of differences, and how these were tested; it fetches nothing."""
    plot = dsc_by_method(scores).to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False})
    table = great_table(differences(compared), "tbl-differences").as_raw_html()
    markers = ["Filled: the method was given the images alone. Open: it was given seeds. Lines: 95 % intervals."]
    text = "".join(f"<p>{html.escape(note)}</p>" for note in [*markers, *notes])
    alt = html.escape(dsc_by_method_alt(scores), quote=True)
    write_text(
        path,
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Comparison of methods</title>'
        "<style>body{font-family:Lato,'Segoe UI',Roboto,Arial,sans-serif;max-width:980px;margin:2em auto;padding:0 1em}"
        "p{font-size:14px;line-height:1.45}"
        f'</style></head><body><h1>Comparison of methods</h1><div role="img" aria-label="{alt}">{plot}</div>{text}'
        f'<div style="overflow-x:auto">{table}</div><p>{html.escape(TESTS)}.</p></body></html>\n',
    )
