"""The reading room's thresholds: tried by hand, around the crosshair or around lesions, while MTV and TLG follow.

The same searches as in `thresholds`: what is found hangs together with the hottest voxel of its seed.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np

from mtvlib import pet, thresholds
from mtvlib.classes import TARGETS, target_mask
from mtvlib.lesions import Box, bounding_box
from mtvlib.planes import OWN, View
from mtvlib.reading_viewer import SOURCE_NAMES, WORDS, WRAP, Viewer
from mtvlib.thresholds import Search

OFF, HERE = "off", "the crosshair"
KINDS: dict[str, Callable[[Search, float], np.ndarray]] = {
    "SUV 2.5": lambda search, _: thresholds.fixed(search, 2.5),
    "41 % of SUVmax": lambda search, _: thresholds.relative(search, 0.41),
    "adaptive": lambda search, _: thresholds.adaptive(search),
    "own SUV": thresholds.fixed,
    "own %": lambda search, percent: thresholds.relative(search, percent / 100),
}


@dataclass(frozen=True)
class Searches:
    """Where a threshold is tried: searches in a part of the volume."""

    part: Box
    each: list[Search]

    def apply(self, kind: str, own: float, shape: Sequence[int]) -> np.ndarray:
        """Label map (x, y, z) uint8 of what reaches the threshold; `own` is the SUV or per cent of the own kinds."""
        labels = np.zeros(tuple(shape), np.uint8)
        for search in self.each:
            labels[self.part][search.box][KINDS[kind](search, own)] = search.label
        return labels


def around_place(view: View, at: Sequence[int], radius_mm: float) -> Searches:
    """One search: a sphere round a voxel, with its hottest voxel as the seed."""
    part = _box(view, at, radius_mm + thresholds.SHELL_MM[1])
    axes = np.ogrid[part]
    squared = sum(((axis - place) * side) ** 2 for axis, place, side in zip(axes, at, view.spacing_mm, strict=True))
    sphere = np.asarray(squared <= radius_mm**2)
    suv = np.asarray(view.pet[part])
    hottest = np.unravel_index(int(np.where(sphere, suv, -np.inf).argmax()), suv.shape)
    whole = (slice(0, suv.shape[0]), slice(0, suv.shape[1]), slice(0, suv.shape[2]))
    seed = tuple(int(one) for one in hottest)
    return Searches(part, [Search(1, whole, suv, sphere, np.zeros_like(sphere), seed, view.spacing_mm, 26)])


def around_lesions(view: View, source: str) -> Searches:
    """A search for each lesion of the manual or the CNN's map, within 10 mm of it."""
    return Searches(*thresholds.searches(view.pet, view.masks[source], view.spacing_mm))


def _box(view: View, at: Sequence[int], reach_mm: float) -> Box:
    steps = [int(np.ceil(reach_mm / side)) for side in view.spacing_mm]
    first, second, third = (
        slice(max(0, place - step), min(length, place + step + 1))
        for place, step, length in zip(at, steps, view.shape, strict=True)
    )
    return first, second, third


# --- numbers


def mtv_and_tlg(view: View, labels: np.ndarray) -> dict[str, tuple[float, float]]:
    """MTV (ml) and TLG (g) of each target of a label map, as `pet.uptake` defines them."""
    box = bounding_box(labels)
    inside = labels[box] > 0
    values, classes = view.pet[box][inside].astype(np.float64), labels[box][inside]
    voxel_ml = pet.voxel_ml(view.spacing_mm)
    return {
        target: (
            int(target_mask(classes, target).sum()) * voxel_ml,
            float(values[target_mask(classes, target)].sum()) * voxel_ml,
        )
        for target in TARGETS
    }


def named(kind: str, own: float) -> str:
    """A threshold's name with its own value: `SUV ≥ 4.0`."""
    return {"own SUV": f"SUV ≥ {own:.1f}", "own %": f"≥ {own:.0f} % of SUVmax"}.get(kind, kind)


def in_words(view: View, labels: np.ndarray, name: str, where: str) -> str:
    """MTV and TLG as HTML: of the one region at the crosshair, or by target beside manual and CNN."""
    found = mtv_and_tlg(view, labels)
    if where == HERE:
        ml, tlg = found["all"]
        return (
            f"{html.escape(name)}: <b>MTV {ml:.1f} ml</b>, TLG {tlg:.0f} g" if ml else f"{html.escape(name)}: nothing"
        )
    rows = {name: found} | {
        text: mtv_and_tlg(view, view.masks[source]) for source, text in SOURCE_NAMES.items() if source in view.masks
    }
    heads = "".join(f"<th>{text}, MTV (ml)</th><th>TLG (g)</th>" for text in ("primary", "nodes", "both"))
    lines = "".join(
        f"<tr><td style='text-align:left'>{html.escape(title)}</td>"
        f"{''.join(f'<td>{ml:.1f}</td><td>{tlg:.0f}</td>' for ml, tlg in own.values())}</tr>"
        for title, own in rows.items()
    )
    style = "border-spacing:16px 0;margin-left:-16px;text-align:right;font-variant-numeric:tabular-nums"
    return f'<table style="{style}"><tr><th></th>{heads}</tr>{lines}</table>'


# --- the widget


class Threshold:
    """A live threshold: its kind, where it is tried, its own value; MTV, TLG and the viewer's contour follow."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.kind = widgets.Dropdown(options=[OFF, *KINDS], description="Threshold", style=WORDS)
        self.where = widgets.Dropdown(options=[HERE], description="around", style=WORDS)
        self.radius = _slider(25, 5, 100, 5, "within (mm)", ".0f")
        self.suv = _slider(4.0, 0.5, 20, 0.1, "SUV ≥", ".1f")
        self.percent = _slider(50, 10, 90, 1, "≥ % of SUVmax", ".0f")
        self.text = widgets.HTML().add_class("mtv-threshold-text")
        self._known: tuple[Any, Searches] | None = None
        self._controls = (self.kind, self.where, self.radius, self.suv, self.percent)
        for name, control in zip(("kind", "where", "radius", "suv", "percent"), self._controls, strict=True):
            control.observe(self._changed, "value")
            control.add_class(f"mtv-threshold-{name}")
        for control in self._controls[:2]:
            control.layout.width = "auto"
        self.box = widgets.VBox([widgets.HBox(self._controls, layout=WRAP), self.text]).add_class("mtv-threshold")
        self.update()

    def offer(self) -> None:
        """Another patient: the lesions that there are."""
        masks = {} if self.viewer.view is None else self.viewer.view.masks
        before = self.where.value
        sources = [name for name in SOURCE_NAMES if name in masks and masks[name].any()]
        options = [(HERE, HERE), *((f"lesions, {SOURCE_NAMES[name]}", name) for name in sources)]
        self.where.options = options
        self.where.value = before if before in sources else HERE
        self._known = None
        self.update()

    def update(self) -> None:
        """Compute the mask anew; the viewer is not drawn."""
        view, kind = self.viewer.view, self.kind.value
        for control, needed in (
            (self.radius, kind != OFF and self.where.value == HERE),
            (self.suv, kind == "own SUV"),
            (self.percent, kind == "own %"),
        ):
            control.layout.display = "" if needed else "none"
        self.where.layout.display = "none" if kind == OFF else ""
        if view is None or kind == OFF:
            if view is not None:
                view.masks.pop(OWN, None)
            self.text.value = ""
            return
        own = self.percent.value if kind == "own %" else self.suv.value
        labels = self._searches(view).apply(kind, own, view.shape)
        view.masks[OWN] = labels
        self.text.value = in_words(view, labels, named(kind, own), self.where.value)

    def follow(self) -> None:
        """The crosshair moved; the viewer draws next."""
        if self.kind.value != OFF and self.where.value == HERE:
            self.update()
            self.viewer.forget_lines(own_alone=True)

    def _searches(self, view: View) -> Searches:
        """As far as they are known already: a threshold that is moved works on the same ones."""
        here = (tuple(self.viewer.at), self.radius.value) if self.where.value == HERE else None
        state = (id(view), self.where.value, here)
        if self._known is None or self._known[0] != state:
            made = around_lesions(view, self.where.value) if here is None else around_place(view, *here)
            self._known = state, made
        return self._known[1]

    def _changed(self, _change: Any = None) -> None:
        self.update()
        self.viewer.forget_lines(own_alone=True)
        self.viewer.draw()


def _slider(value: float, low: float, high: float, step: float, text: str, digits: str) -> widgets.FloatSlider:
    return widgets.FloatSlider(
        value, min=low, max=high, step=step, description=text, style=WORDS, readout_format=digits
    )
