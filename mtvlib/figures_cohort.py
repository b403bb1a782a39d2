"""Figures of who was studied: the flow of patients (CONSORT, CLAIM 2024), and the DSC of subgroups as a forest plot."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from mtvlib.figures import SMALL, WIDTH, Panel, base_figure, tint
from mtvlib.palette import COLORS, HAIRLINE, INK, PAPER
from mtvlib.subgroups import MIN_PATIENTS, TITLES
from mtvlib.tables import PARTITION_NAMES, Block, count, number, p_relation
from mtvlib.tables_cohort import groups_by_variable, subgroup_blocks, variable_of

# --- flow of patients

LEFT, RIGHT = (8.0, 372.0), (388.0, 752.0)  # px: the two columns of boxes
LINE_PX, PAD_PX, GAP_PX = 17.0, 9.0, 30.0
WRAP = 44  # characters of a line: with room to spare, for a page narrower than the figure makes boxes narrower too
MOST_FOLDS = 6  # of more, only the range is told
SHADED = tint(COLORS["neutral"], 0.1)


@dataclass(frozen=True)
class Box:
    """A box of the flow: its heading and lines, and where it stands, px from the left and from the top."""

    lines: tuple[str, ...]
    across: tuple[float, float]
    top: float
    shaded: bool = False

    @property
    def bottom(self) -> float:
        return self.top + 2 * PAD_PX + LINE_PX * len(self.lines)

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def centre(self) -> float:
        return sum(self.across) / 2


def flow(
    counts: Mapping[str, Any], folds: Sequence[Mapping[str, int]], summary: Mapping[str, Any] | None = None
) -> go.Figure:
    """Registered, excluded by reason, analysed by partition and site, trained and tested, and in the survival analysis.

    `counts`: `cohort.flow`; `folds`: `cohort.fold_sizes`; `summary`: summary.json, if the survival analysis is to be
    shown.
    """
    main, external = (counts["partitions"][split] for split in PARTITION_NAMES)
    registered = Box(_registered(counts), LEFT, 8)
    excluded = Box(_excluded(counts), RIGHT, registered.bottom + 14, shaded=True)
    analysed = Box(_analysed(counts), LEFT, excluded.bottom + 14)
    columns = [
        _column(LEFT, analysed.bottom + GAP_PX, _partition("cross_validation", main), _folds(folds)),
        _column(RIGHT, analysed.bottom + GAP_PX, _partition("external_testing", external), _ensemble(external, folds)),
    ]
    top = max(column[-1].bottom for column in columns) + GAP_PX
    for column, split in zip(columns, PARTITION_NAMES, strict=True):
        if summary and "survival" in summary[split]:
            column.append(Box(_survival(summary[split]["survival"]), column[0].across, top))
    return _drawn(registered, excluded, analysed, columns)


def flow_alt(
    counts: Mapping[str, Any], folds: Sequence[Mapping[str, int]], summary: Mapping[str, Any] | None = None
) -> str:
    """Alternative text of `flow`."""
    main, external = (counts["partitions"][split] for split in PARTITION_NAMES)
    boxes = [_registered(counts), _excluded(counts, math.inf), _analysed(counts)]
    boxes += [_partition("cross_validation", main, math.inf), _folds(folds), _partition("external_testing", external)]
    blocks = (
        [summary[split]["survival"] for split in PARTITION_NAMES if "survival" in summary[split]] if summary else []
    )
    boxes += [_survival(block, math.inf) for block in blocks]
    texts = [html.unescape("; ".join(box)).replace("<b>", "").replace("</b>", "") for box in boxes]
    return "Flow of patients. " + ". ".join(texts) + "."


# --- what stands in the boxes


def _heading(text: str, n: int) -> str:
    return f"<b>{html.escape(text)}</b>, n = {n}"


def _wrapped(texts: Sequence[str], width: float = WRAP, indent: str = "") -> list[str]:
    """Each text on lines of its own; what does not fit into one goes on in the next."""
    lines = []
    for text in texts:
        parts = [text] if width == math.inf else textwrap.wrap(text, int(width), subsequent_indent=indent)
        lines += [html.escape(part).replace("  ", "\u2003") for part in parts]
    return lines


def _registered(counts: Mapping[str, Any]) -> tuple[str, ...]:
    return (_heading("Registered", counts["screened"]),)


def _excluded(counts: Mapping[str, Any], width: float = WRAP) -> tuple[str, ...]:
    reasons = [f"{reason} (n = {n})" for reason, n in counts["excluded"].items()]
    return (_heading("Excluded", sum(counts["excluded"].values())), *_wrapped(reasons, width, "  "))


def _analysed(counts: Mapping[str, Any]) -> tuple[str, ...]:
    return (_heading("Analysed", counts["included"]),)


def _partition(split: str, part: Mapping[str, Any], width: float = WRAP) -> tuple[str, ...]:
    sites = ", ".join(f"{site} {n}" for site, n in part["sites"].items())
    named = f"{count(len(part['sites']), 'site')}: {sites}" if part["n"] else "no patient of an external cohort"
    return (_heading(PARTITION_NAMES[split], part["n"]), *_wrapped([named], width))


def _folds(folds: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    """Patients who train, validate and test in each fold; of many folds the fewest and most."""
    head = f"<b>{count(len(folds), 'fold')}</b>: training / validation / test"
    if len(folds) > MOST_FOLDS:
        ends = [sorted(fold[part] for fold in folds) for part in ("train", "validation", "test")]
        return (head, " / ".join(f"{own[0]}–{own[-1]}" if own[0] < own[-1] else str(own[0]) for own in ends))
    return (head, *(f"fold {i}: {f['train']} / {f['validation']} / {f['test']}" for i, f in enumerate(folds)))


def _ensemble(external: Mapping[str, Any], folds: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    return (f"Tested by the mean of the {len(folds)} networks",) if external["n"] else ()


_NOT_IN_SURVIVAL = {
    "n_not_eligible": "not eligible",
    "n_outcome_unknown": "outcome unknown",
    "n_short_followup": "follow-up too short",
}


def _survival(block: Mapping[str, Any], width: float = WRAP) -> tuple[str, ...]:
    """Who is in a partition's survival analysis, from its block of summary.json, and why others are not."""
    known = block["missing"]
    reasons = [f"{why} (n = {known[key]})" for key, why in _NOT_IN_SURVIVAL.items() if known.get(key)]
    left_out = f"Left out: {', '.join(reasons)}" if reasons else known.get("reason", "")
    deaths = [count(block["events"], "death")] if block["events"] is not None else []
    return (
        _heading("Survival analysis", known["n_included"]),
        *deaths,
        *_wrapped([left_out] if left_out else [], width),
    )


# --- where the boxes stand, and how they are drawn


def _column(across: tuple[float, float], top: float, *texts: tuple[str, ...]) -> list[Box]:
    """Boxes below each other; a box without a line is left out."""
    boxes: list[Box] = []
    for lines in texts:
        if lines:
            boxes.append(Box(lines, across, boxes[-1].bottom + GAP_PX if boxes else top))
    return boxes


def _drawn(registered: Box, excluded: Box, analysed: Box, columns: Sequence[Sequence[Box]]) -> go.Figure:
    boxes = [registered, excluded, analysed, *(box for column in columns for box in column)]
    height = max(box.bottom for box in boxes) + 8
    figure = base_figure(round(height)).update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0}, hovermode=False)
    figure.update_xaxes(visible=False, range=[0, WIDTH], fixedrange=True)
    figure.update_yaxes(visible=False, range=[height, 0], fixedrange=True)
    figure.add_scatter(x=[None], y=[None])  # axes need a trace
    _arrow(figure, (registered.centre, registered.bottom), (registered.centre, analysed.top))
    _arrow(figure, (registered.centre, excluded.middle), (excluded.across[0], excluded.middle))
    main, external = columns
    _arrow(figure, (analysed.centre, analysed.bottom), (analysed.centre, main[0].top))
    _line(figure, (analysed.across[1], analysed.middle), (external[0].centre, analysed.middle))
    _arrow(figure, (external[0].centre, analysed.middle), (external[0].centre, external[0].top))
    for column in columns:
        for upper, lower in pairwise(column):
            _arrow(figure, (upper.centre, upper.bottom), (lower.centre, lower.top))
    for box in boxes:
        _draw(figure, box)
    return figure


def _draw(figure: go.Figure, box: Box) -> None:
    (left, right), fill = box.across, SHADED if box.shaded else PAPER
    figure.add_shape(x0=left, x1=right, y0=box.top, y1=box.bottom, fillcolor=fill, line={"color": INK, "width": 0.9})
    corner = {"xanchor": "left", "yanchor": "middle", "xshift": 12, "align": "left"}
    for number_of, line in enumerate(box.lines):
        height = box.top + PAD_PX + LINE_PX * (number_of + 0.5)
        figure.add_annotation(text=line, x=left, y=height, font_size=12.5, **corner)


def _arrow(figure: go.Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    head = {"showarrow": True, "arrowhead": 2, "arrowsize": 1, "arrowwidth": 1.1, "arrowcolor": INK}
    place = {"x": end[0], "y": end[1], "ax": start[0], "ay": start[1], "axref": "x", "ayref": "y", "text": ""}
    _line(figure, start, end)  # an arrow by itself begins some pixels late
    figure.add_annotation(**place, **head)


def _line(figure: go.Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    stroke = {"color": INK, "width": 1.1}
    figure.add_shape(type="line", x0=start[0], y0=start[1], x1=end[0], y1=end[1], line=stroke)


# --- forest plot of subgroups

ROW_PX = 18.0
_MEAN = {"symbol": "square", "size": 7, "color": COLORS["all"]}
_SMALL_GROUP = {"symbol": "square-open", "size": 6.5, "color": COLORS["all"], "line": {"width": 1.2}}
_COHORT = {"symbol": "line-ns-open", "size": 10, "color": INK, "line": {"width": 1.5}}
_WORDS = {"mean_dsc": "mean DSC", "cohort_dsc": "cohort DSC"}
NAMES_PX, LONGEST_NAME = 164, 24  # room for the names of the rows, and characters that fit into it


@dataclass(frozen=True)
class _Line:
    """A line of the forest plot: a variable's heading (`group` None) or one of its groups."""

    variable: str
    group: str | None


def subgroup_forest(summary: Mapping[str, Any]) -> go.Figure:
    """Mean DSC with its 95 % interval, and cohort DSC, in every subgroup: a row a group, a panel a partition.

    The dashed line is the mean of all patients. Beside a variable stands the p value of its test of heterogeneity,
    adjusted for the number of variables.
    """
    blocks = subgroup_blocks(summary)
    lines = _lines(blocks)
    figure = base_figure(round(118 + ROW_PX * len(lines)), columns=len(blocks), horizontal_spacing=0.04)
    start = _start(blocks)
    for column, (split, block) in enumerate(blocks.items(), start=1):
        panel = Panel(figure, 1, column)
        _forest_panel(panel, lines, block, summary[split]["delineation"]["all"].get("mean_dsc"), legend=column == 1)
        panel.title(f"<b>{PARTITION_NAMES[split]}</b>, N = {summary[split]['n_patients']}")
        panel.x_axis("DSC", range=[start - 0.02, 1 + (1 - start) * 0.14], tickvals=_ticks(start), title_standoff=10)
        panel.y_axis(range=[len(lines) - 0.4, -0.6], showline=False, ticks="", showticklabels=False)
        panel.write_beside("n", 1, 1, xanchor="right", yanchor="bottom", xshift=-14, yshift=6, font_size=SMALL)
    _write_names(figure, lines)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_layout(showlegend=True, legend=legend | {"font_size": SMALL})
    return figure.update_layout(margin={"l": NAMES_PX, "r": 10, "t": 34, "b": 84})


def subgroup_alt(summary: Mapping[str, Any]) -> str:
    """Alternative text of `subgroup_forest`: the lowest and highest mean DSC of groups that have an interval."""
    sentences = ["Forest plots of the mean Dice coefficient of subgroups of patients."]
    for split, block in subgroup_blocks(summary).items():
        known = [
            (group["mean_dsc"], f"{TITLES[one['variable']]} {group['group']}")
            for one in block["variables"]
            for group in one["groups"]
            if group.get("mean_dsc_ci95")
        ]
        name = PARTITION_NAMES[split]
        if known:
            (low, lowest), (high, highest) = min(known), max(known)
            sentences.append(f"{name}: from {number(low, 2)} ({lowest}) to {number(high, 2)} ({highest}).")
        else:
            sentences.append(f"{name}: no group is large enough for an interval.")
    return " ".join(sentences)


def _lines(blocks: Mapping[str, Block]) -> list[_Line]:
    lines = []
    for variable, names in groups_by_variable(blocks).items():
        lines += [_Line(variable, None), *(_Line(variable, name) for name in names)]
    return lines


def _write_names(figure: go.Figure, lines: Sequence[_Line]) -> None:
    """Left of the first panel: variables in bold, their groups below and a little to the right."""
    for row, line in enumerate(lines):
        text = f"<b>{TITLES[line.variable]}</b>" if line.group is None else html.escape(_short(line.group))
        place = {"x": 0, "xref": "paper", "y": row, "yref": "y", "xanchor": "left"}
        indent = 8 if line.group is None else 20
        figure.add_annotation(text=text, **place, xshift=indent - NAMES_PX, font_size=12.5)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _start(blocks: Mapping[str, Block]) -> float:
    """Where the axis of DSC begins: the tenth below everything drawn."""
    groups = [group for block in blocks.values() for one in block["variables"] for group in one["groups"]]
    values = [group[key] for group in groups for key in ("mean_dsc", "cohort_dsc") if group[key] is not None]
    values += [group["mean_dsc_ci95"][0] for group in groups if group["mean_dsc_ci95"]]
    return min(math.floor(10 * min(values, default=0.0)) / 10, 0.9)


def _ticks(start: float) -> list[float]:
    step = 0.2 if start < 0.5 else 0.1
    return [round(1 - i * step, 1) for i in range(int((1 - start) / step + 1e-6), -1, -1)]


def _forest_panel(
    panel: Panel, lines: Sequence[_Line], block: Mapping[str, Any], overall: float | None, *, legend: bool
) -> None:
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for row, line in enumerate(lines):
        one = variable_of(block, line.variable)
        if one and line.group is None:
            panel.write(_p_words(one), 1, row, xanchor="right", font={"size": SMALL - 1, "color": COLORS["neutral"]})
        rows += [(row, group) for group in (one["groups"] if one else []) if group["group"] == line.group]
    for row, line in enumerate(lines):
        if line.group is None:
            panel.line([0, 2], [row - 0.5] * 2, HAIRLINE, 0.8, showlegend=False)
    if overall is not None:
        name = "all patients"
        panel.line([overall] * 2, [-0.6, len(lines)], COLORS["neutral"], 1, "dash", name=name, showlegend=legend)
    _intervals(panel, rows)
    large = [(row, group) for row, group in rows if group["mean_dsc_ci95"]]
    small = [(row, group) for row, group in rows if not group["mean_dsc_ci95"]]
    _markers(panel, rows, "cohort_dsc", _COHORT, "cohort DSC", legend)
    _markers(panel, large, "mean_dsc", _MEAN, "mean and interval", legend)
    _markers(panel, small, "mean_dsc", _SMALL_GROUP, f"mean, n < {MIN_PATIENTS}", legend)
    for row, group in rows:
        panel.write(str(group["n"]), 1.0, row, xanchor="left", xshift=10, font_size=SMALL - 1)


def _intervals(panel: Panel, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    for row, group in rows:
        if group["mean_dsc_ci95"]:
            x += [*group["mean_dsc_ci95"], None]
            y += [row, row, None]
    panel.line(x, y, COLORS["all"], 1.5, showlegend=False)


def _markers(
    panel: Panel,
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    key: str,
    marker: Mapping[str, Any],
    name: str,
    legend: bool,
) -> None:
    drawn = [(row, group) for row, group in rows if group[key] is not None]
    hover = [f"{html.escape(group['group'])}, n = {group['n']}" for _, group in drawn]
    template = "<b>%{customdata}</b><br>" + _WORDS[key] + " %{x:.3f}<extra></extra>"
    about: dict[str, Any] = {"customdata": hover, "hovertemplate": template, "hoverinfo": None}
    x, y = [group[key] for _, group in drawn], [row for row, _ in drawn]
    panel.points(x, y, marker, name=name, showlegend=legend, **about)


def _p_words(one: Mapping[str, Any]) -> str:
    return f"p {p_relation(one['kruskal_p_holm'])}" if one["kruskal_p_holm"] is not None else ""
