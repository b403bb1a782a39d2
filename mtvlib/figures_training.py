"""What happened inside a training, epoch by epoch; the curves that the paper's reader wants are in `figures.py`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mtvlib.classes import LESION_CLASSES
from mtvlib.figures import SMALL, Panel, base_figure
from mtvlib.palette import COLORS
from mtvlib.tables import TARGET_NAMES


def learning_diagnostics(history: pd.DataFrame) -> go.Figure:
    """Loss terms, soft DSC of each class, gradient with learning rate, and speed; `history`: a fold's history.csv.

    What an older version of this package did not measure leaves its panel empty.
    """
    figure = base_figure(
        560, rows=2, columns=2, horizontal_spacing=0.15, vertical_spacing=0.2,
        specs=[[{}, {}], [{"secondary_y": True}] * 2],
    )  # fmt: skip
    loss, score, gradient, speed = (Panel(figure, row, column) for row in (1, 2) for column in (1, 2))
    epoch = history["epoch"]
    _line(loss, epoch, history["dice_loss"], COLORS["cnn"], "Dice")
    _line(loss, epoch, history["cross_entropy"], COLORS["manual"], "cross-entropy", dash="dash")
    for name in LESION_CLASSES:
        _line(score, epoch, history[f"soft_dsc_{name}"], COLORS[name], TARGET_NAMES[name].lower())
    _line(gradient, epoch, history["gradient_norm"], COLORS["cnn"], "gradient")
    _line(gradient, epoch, history["learning_rate"], COLORS["neutral"], "learning rate", dash="dot", secondary_y=True)
    _line(speed, epoch, history["patches_per_second"], COLORS["cnn"], "patches a second")
    _line(speed, epoch, history["foreground_share"], COLORS["neutral"], "with a lesion", dash="dot", secondary_y=True)
    for panel, title in (
        (loss, "Loss"),
        (score, "Soft DSC, validation"),
        (gradient, "Norm of the gradient"),
        (speed, "Patches a second"),
    ):
        panel.x_axis("Epoch", rangemode="tozero", dtick=1 if epoch.max() < 8 else None)
        panel.y_axis(title, rangemode="tozero", secondary_y=None if panel in (loss, score) else False)
    for panel, title in ((gradient, "Learning rate"), (speed, "Share of patches with a lesion")):
        panel.y_axis(title, rangemode="tozero", secondary_y=True)
    legend = {"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom", "font_size": SMALL}
    return figure.update_layout(showlegend=True, legend=legend)


def _line(panel: Panel, x: pd.Series, y: pd.Series, color: str, name: str, dash: str = "solid", **place: bool) -> None:
    hover = f"epoch %{{x}}<br>{name} %{{y:.4g}}<extra></extra>"
    stroke = {"color": color, "width": 1.3, "dash": dash}
    panel.figure.add_scatter(
        x=x, y=y, mode="lines", line=stroke, name=name, hovertemplate=hover, **panel.place, **place
    )
