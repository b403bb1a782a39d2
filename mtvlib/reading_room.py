"""The reading room: the patients, images, thresholds and training of a finished or running study in JupyterLab.

`explore(folder)` is one widget, to be shown by a notebook; `review_room.review(folder)` is the other room. What they
show is drawn by `planes`, what they compute by `pet` and `corrections`; here things are only put together. The full
images are shown, faces included: nothing of it goes into the report.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

from mtvlib import corrections, pet, planes, volume
from mtvlib.errors import InputError
from mtvlib.files import read_table
from mtvlib.panels import Picture, Table
from mtvlib.planes import AXES, OWN, View
from mtvlib.prepare import load_patient
from mtvlib.study import Study

LOOK_S = 2.0  # between looks at the histories of a training that runs
REACH_MM = 25.0
NOT_YET = "not yet"
_WORDS = {"description_width": "initial"}  # else long descriptions are cut off


# --- what is shown of a patient


def load_view(study: Study, patient: str) -> View:
    """A patient on the study's grid with the masks that there are: manual, and CNN or its last correction."""
    prepared = load_patient(study.volumes, patient, study.params)
    low, high = study.params.ct_window_hu
    ct = None
    if "ct" in study.params.channels:
        ct = low + prepared.inputs[study.params.channels.index("ct")] * (high - low)
    masks = {} if prepared.reference is None else {"man": prepared.reference}
    number = corrections.latest(study, patient)
    if number or study.prediction_path(patient).exists():
        path = corrections.map_path(study, patient, number)
        masks["cnn"] = volume.to_array(volume.read_labels(path, patient=patient)).astype(np.uint8)
    return View(patient, prepared.suv, ct, prepared.grid.spacing_mm, masks)


def start_of(view: View) -> list[int]:
    """The voxel to begin at: the hottest of a lesion, manual before CNN; else the middle."""
    for source in ("man", "cnn"):
        mask = view.masks.get(source)
        if mask is not None and mask.any():
            place = np.argmax(np.where(mask > 0, view.pet, -1))
            return [int(at) for at in np.unravel_index(int(place), view.shape)]
    return [side // 2 for side in view.shape]


class Viewer:
    """Three planes and the MIP, linked by a crosshair; `box` is the widget, `moved` is called after each move."""

    def __init__(self) -> None:
        self.view: View | None = None
        self.at = [0, 0, 0]
        self.moved: Callable[[], None] = lambda: None
        self.layer = widgets.ToggleButtons(options=["PET on CT", "PET", "CT"], style={"button_width": "104px"})
        self.suv = widgets.FloatSlider(10, min=1, max=25, step=0.5, description="SUV 0 to", style=_WORDS)
        self.shown = {
            name: widgets.Checkbox(True, description=text, indent=False, layout={"width": "auto"})
            for name, text in (("man", "manual"), ("cnn", "CNN"), (OWN, "threshold"))
        }
        self.slices = {plane: widgets.IntSlider(readout=False, layout={"width": "auto"}) for plane in AXES}
        self.pictures = {name: Picture() for name in (*AXES, "MIP")}
        self._quiet = False
        self._listen()
        bar = widgets.HBox([self.layer, self.suv, *self.shown.values()], layout={"flex_flow": "row wrap"})
        panels = [widgets.VBox([self.pictures[plane], self.slices[plane]]) for plane in AXES]
        grid = widgets.GridBox(
            [*panels, self.pictures["MIP"]],
            layout={"grid_template_columns": "repeat(auto-fit, minmax(200px, 1fr))", "grid_gap": "8px"},
        )
        self.box = widgets.VBox([bar, grid])
        self.box.add_class("mtv-viewer")

    def show(self, view: View) -> None:
        self.view, self.at = view, start_of(view)
        self._quiet = True
        for plane, slider in self.slices.items():
            slider.max = view.shape[AXES[plane][2]] - 1
        self.suv.value = float(np.clip(np.ceil(0.6 * view.pet[tuple(self.at)]), 5, 12))
        self._quiet = False
        self.move_to(self.at)

    def move_to(self, at: list[int]) -> None:
        self.at, self._quiet = list(at), True
        for plane, slider in self.slices.items():
            slider.value = at[AXES[plane][2]]
        self._quiet = False
        self.draw()
        self.moved()

    def draw(self) -> None:
        if self.view is None:
            return
        shown = [name for name, box in self.shown.items() if box.value]
        for plane in AXES:
            panel = self.pictures[plane]
            panel.picture = planes.picture(
                self.view, plane, self.at, layer=self.layer.value, suv=self.suv.value, shown=shown
            )
            panel.title = f"{plane}, slice {self.at[AXES[plane][2]] + 1} of {self.view.shape[AXES[plane][2]]}"
        self.pictures["MIP"].picture = planes.mip(self.view, self.at, suv=self.suv.value)
        self.pictures["MIP"].title = "MIP"

    def _listen(self) -> None:
        for control in (self.layer, self.suv, *self.shown.values()):
            control.observe(self._redraw, "value")
        for plane, slider in self.slices.items():
            slider.observe(lambda change, plane=plane: self._slid(plane, change["new"]), "value")
        for name, panel in self.pictures.items():
            panel.on_msg(lambda panel, message, _buffers, name=name: self._heard(name, panel, message))

    def _redraw(self, _change: Any) -> None:
        if not self._quiet:
            self.draw()

    def _slid(self, plane: str, index: int) -> None:
        if not self._quiet:
            at = list(self.at)
            at[AXES[plane][2]] = index
            self.move_to(at)

    def _heard(self, name: str, panel: Picture, message: dict[str, Any]) -> None:
        """A click, a drag, the wheel or a key in a picture."""
        if self.view is not None:
            plane = "coronal" if name == "MIP" else name
            at = planes.voxel_at(self.view, plane, self.at, message["place"]) if message["place"] else list(self.at)
            if name == "MIP":
                at[0] = self.at[0]
            axis = 2 if name == "MIP" else AXES[plane][2]
            at[axis] = int(np.clip(at[axis] + message["steps"], 0, self.view.shape[axis] - 1))
            self.move_to(at)
        panel.drawn()


# --- a threshold that is being tried


class Threshold:
    """A live threshold in a sphere around the crosshair: SUV 2.5, 41 % of its SUVmax, or any; MTV and TLG follow."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.kind = widgets.ToggleButtons(options=["off", "SUV 2.5", "41 %", "own"], style={"button_width": "76px"})
        self.own = widgets.FloatSlider(4.0, min=0.5, max=20, step=0.1, description="SUV ≥", disabled=True, style=_WORDS)
        self.radius = widgets.IntSlider(25, min=5, max=100, step=5, description="within, mm", style=_WORDS)
        self.text = widgets.HTML()
        self.text.add_class("mtv-threshold")
        for control in (self.kind, self.own, self.radius):
            control.observe(self._changed, "value")
        self.box = widgets.HBox([self.kind, self.own, self.radius, self.text], layout={"flex_flow": "row wrap"})

    def update(self) -> None:
        """Compute the mask at the crosshair anew; the viewer is not drawn."""
        view = self.viewer.view
        self.own.disabled = self.kind.value != "own"
        if view is None or self.kind.value == "off":
            if view is not None:
                view.masks.pop(OWN, None)
            self.text.value = ""
            return
        mask, limit = threshold_mask(view, self.viewer.at, self.kind.value, self.own.value, self.radius.value)
        view.masks[OWN] = mask.astype(np.uint8)
        self.text.value = threshold_words(view, mask, limit)

    def follow(self) -> None:
        """The crosshair moved."""
        if self.kind.value != "off":
            self._changed()

    def _changed(self, _change: Any = None) -> None:
        self.update()
        self.viewer.draw()


def threshold_mask(view: View, at: list[int], kind: str, own_suv: float, radius_mm: float) -> tuple[np.ndarray, float]:
    """Voxels at or above the threshold in the sphere round a voxel, bool (x, y, z), and the threshold, SUV."""
    axes = np.ogrid[tuple(slice(side) for side in view.shape)]
    squared = sum(((axis - place) * side) ** 2 for axis, place, side in zip(axes, at, view.spacing_mm, strict=True))
    sphere = squared <= radius_mm**2
    limits = {"SUV 2.5": 2.5, "own": own_suv, "41 %": 0.41 * float(view.pet[sphere].max())}
    return sphere & (view.pet >= limits[kind]), limits[kind]


def threshold_words(view: View, mask: np.ndarray, limit: float) -> str:
    volume_ml = float(mask.sum()) * pet.voxel_ml(view.spacing_mm)
    if not mask.any():
        return f"SUV ≥ {limit:.1f}: nothing"
    tlg = pet.uptake(view.pet, np.argwhere(mask), view.spacing_mm).tlg
    return f"SUV ≥ {limit:.1f}: <b>MTV {volume_ml:.1f} ml</b>, TLG {tlg:.0f}"


# --- the table of patients


def patient_table(study: Study) -> pd.DataFrame:
    """A row for each patient who is not excluded: site, part, and as far as there DSC, volumes, expected DSC."""
    cohort = study.cohort
    table = cohort.loc[cohort["split"] != "excluded", ["patient", "site", "split"]].reset_index(drop=True)
    if (study.results / "patients.csv").exists():
        columns = ["patient", "dsc_all", "dsc_primary", "dsc_nodes", "ttb_man_ml", "ttb_cnn_ml"]
        table = table.merge(study.patients[columns], on="patient", how="left")
    if (study.results / "uncertainty.csv").exists():
        unsure = read_table(study.results / "uncertainty.csv")[["patient", "expected_dsc"]]
        table = table.merge(unsure, on="patient", how="left")
    return table


HEADS = {
    "patient": ("Patient", None),
    "site": ("Site", None),
    "split": ("Part", None),
    "dsc_all": ("DSC", 2),
    "dsc_primary": ("DSC primary", 2),
    "dsc_nodes": ("DSC nodes", 2),
    "ttb_man_ml": ("TTB manual (ml)", 1),
    "ttb_cnn_ml": ("TTB CNN (ml)", 1),
    "expected_dsc": ("Expected DSC", 2),
}
RANGES = {"dsc_all": "DSC", "ttb_man_ml": "TTB, ml", "expected_dsc": "expected DSC"}


def table_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The table's rows as `panels.Table` takes them."""

    def cell(name: str, value: Any) -> dict[str, Any]:
        digits = HEADS[name][1]
        if digits is None:
            text = str(value).replace("_", " ")
            return {"text": text, "sort": text}
        return {"text": "–", "sort": None} if pd.isna(value) else {"text": f"{value:.{digits}f}", "sort": float(value)}

    names = [name for name in HEADS if name in table]
    return [
        {"key": str(row["patient"]), "cells": [cell(name, row[name]) for name in names]}
        for row in table.to_dict("records")
    ]


class PatientList:
    """The patients' table with filters by site and by ranges of DSC, volume and uncertainty."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.data = table
        sites = sorted(table["site"].astype(str).unique())
        self.site = widgets.Dropdown(options=["all sites", *sites], layout={"width": "160px"})
        self.ranges = {name: _range_slider(table[name], text) for name, text in RANGES.items() if name in table}
        self.table = Table(heads=[HEADS[name][0] for name in HEADS if name in table])
        self.count = widgets.HTML()
        for control in (self.site, *self.ranges.values()):
            control.observe(lambda _: self.filter(), "value")
        bar = widgets.HBox([self.site, *self.ranges.values(), self.count], layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([bar, self.table])
        self.box.add_class("mtv-patients")
        self.filter()

    def filter(self) -> None:
        kept = np.ones(len(self.data), bool)
        if self.site.value != "all sites":
            kept &= (self.data["site"].astype(str) == self.site.value).to_numpy()
        for name, slider in self.ranges.items():
            low, high = slider.value
            if (low, high) != (slider.min, slider.max):  # the whole range keeps patients without a value as well
                kept &= self.data[name].between(low - 1e-9, high + 1e-9).to_numpy()
        self.table.rows = table_rows(self.data[kept])
        self.count.value = f"{kept.sum()} of {len(kept)} patients"


def _range_slider(values: pd.Series, text: str) -> widgets.FloatRangeSlider:
    known = values.dropna()
    most = 1.0 if text != RANGES["ttb_man_ml"] else float(np.ceil(known.max() if len(known) else 1.0))
    step = 0.01 if most <= 1 else 0.1
    return widgets.FloatRangeSlider(
        value=(0.0, most),
        min=0.0,
        max=most,
        step=step,
        description=text,
        style=_WORDS,
        readout_format=".2f" if most <= 1 else ".1f",
    )


# --- training curves


class Curves:
    """The training curves of all folds; while the study runs they are read anew every two seconds."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.figure = widgets.Image(format="png", layout={"max_width": "760px"})
        self.text = widgets.HTML()
        self.box = widgets.VBox([self.text, self.figure])
        self.box.add_class("mtv-curves")
        self._seen: tuple[int, ...] = ()
        self.task: asyncio.Task[None] | None = None
        self.update()

    def histories(self) -> dict[int, pd.DataFrame]:
        found = {}
        for fold in range(self.study.params.folds):
            path = self.study.fold_folder(fold) / "history.csv"
            if path.exists():
                found[fold] = read_table(path)
        return {fold: history for fold, history in found.items() if len(history)}

    def update(self) -> bool:
        """Draw what is new; whether every fold is trained."""
        histories = self.histories()
        seen = tuple(len(histories.get(fold, ())) for fold in range(self.study.params.folds))
        if seen != self._seen:
            self._seen = seen
            self.text.value = self._words(histories)
            if histories:
                self.figure.value = _curves_png(histories)
        return all((self.study.fold_folder(fold) / "model.json").exists() for fold in range(self.study.params.folds))

    def follow(self) -> None:
        """Keep looking, in the kernel's own loop, until every fold is trained; nothing where there is no loop."""
        try:
            self.task = asyncio.get_running_loop().create_task(self._look())
        except RuntimeError:
            self.task = None

    async def _look(self) -> None:
        while not self.update():
            await asyncio.sleep(LOOK_S)

    def _words(self, histories: dict[int, pd.DataFrame]) -> str:
        if not histories:
            return f"Training: {NOT_YET}."
        parts = [
            f"fold {fold}: epoch {len(history)}, best soft DSC {history['validation_soft_dsc'].max():.3f}"
            for fold, history in histories.items()
        ]
        return "; ".join(parts)


def _curves_png(histories: dict[int, pd.DataFrame]) -> bytes:
    from mtvlib.figures import training_curves

    best = {fold: int(history["validation_soft_dsc"].idxmax()) + 1 for fold, history in histories.items()}
    return training_curves(histories, best).to_image(format="png", scale=1.5)


# --- the room


def explore(folder: str | Path) -> widgets.Widget:
    """The room to look at a study; a message where there is none."""
    study, message = open_study(folder)
    if study is None:
        return message
    table = patient_table(study)
    viewer = Viewer()
    threshold = Threshold(viewer)
    viewer.moved = threshold.follow
    patients, about, curves = PatientList(table), widgets.HTML(), Curves(study)

    def choose(change: dict[str, Any]) -> None:
        about.value = show_patient(viewer, study, change["new"])
        threshold.update()

    patients.table.observe(choose, "chosen")
    if len(table):
        patients.table.chosen = str(table["patient"].iloc[0])
    curves.follow()
    evaluated = "" if "dsc_all" in table else f"<p>Evaluation: {NOT_YET}.</p>"
    parts = [widgets.HTML(synthetic_note(study) + evaluated), patients.box, about, viewer.box, threshold.box]
    return widgets.VBox([*parts, widgets.HTML("<h3>Training</h3>"), curves.box])


def open_study(folder: str | Path) -> tuple[Study | None, widgets.HTML]:
    """The study, or what to tell where it cannot be looked at yet."""
    message = widgets.HTML()
    message.add_class("mtv-message")
    base = Path("..") if Path.cwd().name == "notebooks" and not Path(folder).exists() else Path()
    try:
        study = Study.open(base / folder)
        _ = study.cohort
    except InputError as error:
        message.value = f"<b>{html.escape(str(error))}</b>"
        return None, message
    return study, message


def show_patient(viewer: Viewer, study: Study, patient: str) -> str:
    """Show a patient; a message where he or she is not prepared yet."""
    try:
        viewer.show(load_view(study, patient))
    except InputError as error:
        viewer.view = None
        return f"Patient {html.escape(patient)}: {NOT_YET} ({html.escape(str(error))})"
    assert viewer.view is not None
    return (
        ""
        if "cnn" in viewer.view.masks
        else f"Patient {html.escape(patient)}: the CNN's delineation is {NOT_YET} there."
    )


def synthetic_note(study: Study) -> str:
    words = "<p><b>Synthetic patients:</b> they verify the software and claim nothing clinical.</p>"
    return words if study.synthetic else ""
