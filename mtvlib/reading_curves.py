"""The reading room's training curves: drawn as SVG in a millisecond, so that they can follow a fold that trains."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from mtvlib.errors import InputError
from mtvlib.files import read_table
from mtvlib.study import Study

NOT_YET = "not yet"
MODEL_FILE = "model.json"  # `inference.MODEL_FILE`, without loading torch for it
PANEL, GAP, TOP, LEFT, RIGHT, HEIGHT = 390, 60, 30, 46, 14, 190  # px of the drawing
# Mid-tones for light and dark themes, none of which means a class or a source elsewhere.
FOLD_COLOURS = (
    *("#5AA9E6", "#B98A2F", "#7D6CC9", "#5E9E8F", "#B06C9B"),
    *("#7C8794", "#8FB339", "#C27D5B", "#4F7CAC", "#9A9A5B"),
)
VALUE_STEPS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
COLUMNS = {"train_loss": "Training loss", "validation_soft_dsc": "Soft DSC, validation"}


def histories(study: Study) -> dict[int, pd.DataFrame]:
    """The epochs of each fold that has any."""
    found = {}
    for fold in range(study.params.folds):
        path = study.fold_folder(fold) / "history.csv"
        try:
            history = read_table(path) if path.exists() else None
        except InputError:  # Snakemake deletes it when the fold is trained anew
            continue
        if history is not None and len(history):
            found[fold] = history
    return found


def is_trained(study: Study, fold: int) -> bool:
    return (study.fold_folder(fold) / MODEL_FILE).exists()


def in_words(study: Study, found: Mapping[int, pd.DataFrame]) -> str:
    """A line a fold: epochs done, best soft DSC, and how long it may still take."""
    lines = []
    for fold in range(study.params.folds):
        if fold not in found:
            lines.append(f"Fold {fold}: {NOT_YET}.")
            continue
        history, epochs = found[fold], study.params.epochs
        best = history.loc[history["validation_soft_dsc"].idxmax()]
        left = max(epochs - len(history), 0) * float(history["seconds"].median()) / 60
        state = "trained" if is_trained(study, fold) else f"at most {left:.1f} min left"
        lines.append(
            f"Fold {fold}: epoch {len(history)} of {epochs}, best soft DSC {best['validation_soft_dsc']:.3f} in epoch "
            f"{best['epoch']:.0f}, {state}."
        )
    return "<br>".join(lines)


# --- the drawing


def svg(found: Mapping[int, pd.DataFrame]) -> str:
    """Training loss and validation soft DSC by epoch, a line a fold, its best epoch marked; '' without any epoch."""
    if not found:
        return ""
    width, height = LEFT + 2 * PANEL + GAP + RIGHT, TOP + HEIGHT + 40
    longest = max(int(history["epoch"].max()) for history in found.values())
    parts = [_legend(found)]
    for place, (column, title) in enumerate(COLUMNS.items()):
        highest = 1.0 if column == "validation_soft_dsc" else max(float(one[column].max()) for one in found.values())
        step = next(step for step in VALUE_STEPS if highest <= 5 * step or step == VALUE_STEPS[-1])
        scale = step, step * max(1, math.ceil(highest / step - 1e-9))
        parts.append(_panel(found, column, title, LEFT + place * (PANEL + GAP), longest, scale))
    label = html.escape("Training loss and validation soft DSC by epoch and fold")
    return (
        f'<svg class="mtv-curves-svg" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        'style="width:100%;max-width:960px;height:auto;font:12px var(--jp-ui-font-family,sans-serif);'
        f'color:var(--jp-ui-font-color1,#222)" fill="currentColor">{"".join(parts)}</svg>'
    )


def _legend(found: Mapping[int, pd.DataFrame]) -> str:
    return "".join(
        f'<path d="M{LEFT + 76 * place} 12h18" stroke="{_colour(fold)}" stroke-width="2.5"/>'
        f'<text x="{LEFT + 76 * place + 23}" y="16">fold {fold}</text>'
        for place, fold in enumerate(sorted(found))
    )


def _panel(
    found: Mapping[int, pd.DataFrame], column: str, title: str, left: int, longest: int, scale: tuple[float, float]
) -> str:
    most = scale[1]

    def x(epoch: float) -> float:
        return left + PANEL * epoch / max(longest, 1)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - min(max(value, 0.0), most) / most)

    parts = [_grid(left, x, y, longest, scale), f'<text x="{left}" y="{TOP + HEIGHT + 35}">{title} by epoch</text>']
    for fold, history in sorted(found.items()):
        points = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in zip(history["epoch"], history[column], strict=True))
        line = f'fill="none" stroke="{_colour(fold)}" stroke-width="1.8" stroke-linejoin="round"'
        parts.append(f'<polyline points="{points}" {line}/>')
        best = history.loc[history["validation_soft_dsc"].idxmax()]
        parts.append(f'<circle cx="{x(best["epoch"]):.1f}" cy="{y(best[column]):.1f}" r="3.5" fill="{_colour(fold)}"/>')
    return "".join(parts)


def _grid(
    left: int, x: Callable[[float], float], y: Callable[[float], float], longest: int, scale: tuple[float, float]
) -> str:
    lines = []
    for number in range(round(scale[1] / scale[0]) + 1):
        value = number * scale[0]
        lines.append(f'<path d="M{left} {y(value):.1f}h{PANEL}" stroke="currentColor" stroke-opacity=".18"/>')
        lines.append(f'<text x="{left - 7}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if longest / step <= 8)
    for epoch in range(0, longest + 1, step):
        lines.append(f'<text x="{x(epoch):.1f}" y="{TOP + HEIGHT + 17}" text-anchor="middle">{epoch}</text>')
    return "".join(lines)


def _colour(fold: int) -> str:
    return FOLD_COLOURS[fold % len(FOLD_COLOURS)]


# --- the widget


class Curves:
    """The training curves of all folds; `update` reads them anew."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.text = widgets.HTML().add_class("mtv-training")
        self.figure = widgets.HTML().add_class("mtv-curves")
        self.box = widgets.VBox([self.text, self.figure])
        self.update()

    def update(self) -> None:
        found = histories(self.study)
        self.text.value, self.figure.value = in_words(self.study, found), svg(found)


def files(study: Study) -> list[Path]:
    """What changes while a fold trains."""
    folders = [study.fold_folder(fold) for fold in range(study.params.folds)]
    return [folder / name for folder in folders for name in ("history.csv", MODEL_FILE)]
