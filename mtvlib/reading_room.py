"""The reading room: the patients, images, thresholds and training of a finished or running study in JupyterLab.

`explore(folder)` is one widget, to be shown by a notebook; `review_room.review(folder)` is the other room. Pictures
come from `planes`, numbers from `reading_threshold` and the study's tables; here things are only put together. The full
images are shown, faces included: nothing of it goes into the report.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

from mtvlib import corrections, reading_curves
from mtvlib.errors import InputError
from mtvlib.files import read_table
from mtvlib.panels import Table
from mtvlib.reading_curves import NOT_YET, Curves
from mtvlib.reading_threshold import Threshold
from mtvlib.reading_viewer import WORDS, WRAP, Viewer, load_view, start_of
from mtvlib.study import Study

LOOK_S = 2.0  # between looks at a study that runs
MOST_ROWS = 1000  # of the table: a browser is slow with more
HOW_TO_BEGIN = "`mtv run params/demo.yml`, or `make demo`, makes one of synthetic patients"


# --- the table of patients


HEADS = {  # column: head, decimals of a number, None for words
    "patient": ("Patient", None),
    "site": ("Site", None),
    "split": ("Part", None),
    "cnn": ("CNN", None),
    "dsc_all": ("DSC", 2),
    "dsc_primary": ("DSC primary", 2),
    "dsc_nodes": ("DSC nodes", 2),
    "ttb_man_ml": ("TTB manual (ml)", 1),
    "ttb_cnn_ml": ("TTB CNN (ml)", 1),
    "expected_dsc": ("Expected DSC", 2),
}
RANGES = {"dsc_all": "DSC", "ttb_man_ml": "TTB (ml)", "expected_dsc": "expected DSC"}
LESION_HEADS = {
    "source": ("Delineated", None),
    "target": ("Class", None),
    "outcome": ("Outcome", None),
    "volume_ml": ("Volume (ml)", 1),
    "suv_max": ("SUVmax", 1),
    "tlg": ("TLG (g)", 0),
    "coverage": ("Covered (%)", 0),
}
OUTCOMES = {("man", "TP"): "found", ("man", "FN"): "missed", ("cnn", "TP"): "confirmed", ("cnn", "FP"): "spurious"}


def patient_table(study: Study) -> pd.DataFrame:
    """A row for each patient who is not excluded: site, part, and as far as there CNN, DSC, volumes, expected DSC."""
    if not (study.folder / "cohort.csv").exists():
        return pd.DataFrame({"patient": [], "site": [], "split": []}, dtype=str)
    cohort = study.cohort
    table = cohort.loc[cohort["split"] != "excluded", ["patient", "site", "split"]].reset_index(drop=True)
    there = {path.name.removesuffix(".nii.gz") for path in study.predictions.glob("*.nii.gz")}
    corrected = set(corrections.corrected_patients(study))
    table["cnn"] = ["corrected" if one in corrected else "yes" if one in there else NOT_YET for one in table["patient"]]
    if (study.results / "patients.csv").exists():
        columns = ["patient", "dsc_all", "dsc_primary", "dsc_nodes", "ttb_man_ml", "ttb_cnn_ml"]
        table = table.merge(study.patients[columns], on="patient", how="left")
    if (study.results / "uncertainty.csv").exists():
        unsure = read_table(study.results / "uncertainty.csv")[["patient", "expected_dsc"]]
        table = table.merge(unsure, on="patient", how="left")
    return table


def lesion_table(study: Study, patient: str) -> pd.DataFrame:
    """A patient's lesions of lesions.csv in words, manual first, the largest first; empty before the evaluation."""
    if not (study.results / "lesions.csv").exists():
        return pd.DataFrame(columns=list(LESION_HEADS))
    own = study.lesions[study.lesions["patient"] == patient].copy()
    own["outcome"] = [OUTCOMES[pair] for pair in zip(own["source"], own["outcome"], strict=True)]
    own["coverage"] *= 100
    own["source"] = own["source"].map({"man": "manual", "cnn": "CNN"})
    return own.sort_values(["source", "volume_ml"], ascending=[False, False], ignore_index=True)


def table_rows(table: pd.DataFrame, heads: dict[str, tuple[str, int | None]], key: str = "") -> list[dict[str, Any]]:
    """The table's rows as `panels.Table` takes them; `key` names the column of the rows' keys, else their number."""

    def cell(name: str, value: Any) -> dict[str, Any]:
        digits = heads[name][1]
        if digits is None:
            text = str(value).replace("_", " ")
            return {"text": text, "sort": text}
        return {"text": "–", "sort": None} if pd.isna(value) else {"text": f"{value:.{digits}f}", "sort": float(value)}

    names = [name for name in heads if name in table]
    return [
        {"key": str(row[key] if key else number), "cells": [cell(name, row[name]) for name in names]}
        for number, row in enumerate(table.to_dict("records"))
    ]


class PatientList:
    """The patients' table with filters by name, site, and ranges of DSC, volume and uncertainty."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.data = table
        self.name = widgets.Text(placeholder="patient", layout={"width": "130px"}).add_class("mtv-filter-name")
        self.site = widgets.Dropdown(options=["all sites"], layout={"width": "150px"}).add_class("mtv-filter-site")
        self.ranges: dict[str, widgets.FloatRangeSlider] = {}
        self.table = Table(label="Patients").add_class("mtv-table")
        self.count = widgets.HTML().add_class("mtv-count")
        self.bar = widgets.HBox(layout=WRAP).add_class("mtv-filters")
        self.box = widgets.VBox([self.bar, self.table]).add_class("mtv-patients")
        for control in (self.name, self.site):
            control.observe(self._filter, "value")
        self.table.observe(self._filter, "sorted")
        self.load(table)

    def load(self, table: pd.DataFrame) -> None:
        """Show another state of the table; filters stay as far as they still have a meaning."""
        self.data = table
        self.site.options = ["all sites", *sorted(table["site"].astype(str).unique())]
        for name, text in RANGES.items():
            if name in table and name not in self.ranges and table[name].notna().any():
                self.ranges[name] = _range_slider(table[name], text).add_class(f"mtv-filter-{name.replace('_', '-')}")
                self.ranges[name].observe(self._filter, "value")
        self.bar.children = (self.name, self.site, *self.ranges.values(), self.count)
        self.table.heads = [HEADS[name][0] for name in HEADS if name in table]
        self.filter()

    def filter(self) -> None:
        """Show the patients whom every filter keeps, in the chosen order."""
        kept = self.data["patient"].astype(str).str.contains(self.name.value.strip(), regex=False).to_numpy(bool)
        if self.site.value != "all sites":
            kept &= (self.data["site"].astype(str) == self.site.value).to_numpy()
        for name, slider in self.ranges.items():
            low, high = slider.value
            if (low, high) != (slider.min, slider.max):  # the whole range keeps patients without a value as well
                kept &= self.data[name].between(low - 1e-9, high + 1e-9).to_numpy()
        rows = self._ordered(self.data[kept])
        self.table.rows = table_rows(rows.iloc[:MOST_ROWS], HEADS, "patient")
        cut = f", the first {MOST_ROWS} shown" if len(rows) > MOST_ROWS else ""
        self.count.value = f"{len(rows)} of {len(kept)} patients{cut}"

    def _ordered(self, rows: pd.DataFrame) -> pd.DataFrame:
        by = self.table.sorted
        if not by:
            return rows
        name = [name for name in HEADS if name in rows][abs(by) - 1]
        return rows.sort_values(name, ascending=by > 0, kind="stable", na_position="last")

    def _filter(self, _change: Any) -> None:
        self.filter()


def _range_slider(values: pd.Series, text: str) -> widgets.FloatRangeSlider:
    most = 1.0 if text != RANGES["ttb_man_ml"] else float(np.ceil(values.max()))
    digits, step = (".2f", 0.01) if most <= 1 else (".0f", 1.0)
    whole = {"value": (0.0, most), "min": 0.0, "max": most}
    return widgets.FloatRangeSlider(**whole, step=step, description=text, style=WORDS, readout_format=digits)


# --- the room of one study


class Room:
    """A study's patients, viewer, lesions, threshold and training; while the study runs it is looked at anew."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.status = widgets.HTML(status(study)).add_class("mtv-status")
        self.patients = PatientList(patient_table(study))
        self.message = widgets.HTML().add_class("mtv-message")
        self.viewer = Viewer()
        self.threshold = Threshold(self.viewer)
        self.viewer.moved = self.threshold.follow
        self.lesions = Table(label="Lesions", heads=[head for head, _ in LESION_HEADS.values()]).add_class(
            "mtv-lesions"
        )
        self.curves = Curves(study)
        self.loading: asyncio.Task[None] | None = None  # finer pixels
        self._lesions = pd.DataFrame()
        self._seen = seen(study)
        self.patients.table.observe(lambda change: self.choose(change["new"]), "chosen")
        self.lesions.observe(lambda change: self._to_lesion(change["new"]), "chosen")
        self.box = widgets.VBox(
            [
                widgets.HTML(synthetic_note(study)),
                self.status,
                self.patients.box,
                self.message,
                self.viewer.box,
                self.threshold.box,
                _heading("Lesions"),
                self.lesions,
                _heading("Training"),
                self.curves.box,
            ],
            layout={"grid_gap": "6px"},
        ).add_class("mtv-room")
        self.choose_first()

    def choose_first(self) -> None:
        if not self.patients.table.chosen and len(self.patients.data):
            self.patients.table.chosen = str(self.patients.data["patient"].iloc[0])

    def choose(self, patient: str) -> None:
        """Show a patient, as far as he or she is there."""
        self.message.value = show_patient(self.viewer, self.study, patient)
        self._lesions = lesion_table(self.study, patient)
        self.lesions.chosen, self.lesions.rows = "", table_rows(self._lesions, LESION_HEADS)
        self.threshold.offer()
        self.viewer.forget_lines()
        self.viewer.draw()
        if self.viewer.view is not None:
            self.loading = self.viewer.sharpen(self.study, patient)

    def _to_lesion(self, number: str) -> None:
        if number and self.viewer.view is not None:
            row = self._lesions.iloc[int(number)]
            self.viewer.move_to([round(row[f"centroid_{axis}_voxel"]) for axis in "xyz"])

    # --- a study that runs

    def look(self) -> bool:
        """Show what is new in the study's folder; whether there was anything."""
        now = seen(self.study)
        if now == self._seen:
            return False
        self.study = open_study(self.study.folder)
        self.curves.study = self.study
        self.curves.update()
        self.status.value = status(self.study)
        self.patients.load(patient_table(self.study))
        self.choose_first()
        chosen = self.patients.table.chosen
        if chosen and (self.viewer.view is None or "cnn" not in self.viewer.view.masks):
            self.choose(chosen)
        self._seen = now
        return True


def status(study: Study) -> str:
    """How far the study has come, in a line."""
    delineated = len(list(study.predictions.glob("*.nii.gz")))
    trained = sum(reading_curves.is_trained(study, fold) for fold in range(study.params.folds))
    parts = [
        f"Study <b>{html.escape(study.params.name)}</b>",
        "patients prepared" if (study.volumes / "prepared.csv").exists() else f"patients prepared: {NOT_YET}",
        f"{trained} of {study.params.folds} folds trained",
        f"{delineated} patients delineated" if delineated else f"delineated: {NOT_YET}",
        "evaluated" if (study.results / "summary.json").exists() else f"evaluated: {NOT_YET}",
    ]
    return " · ".join(parts)


def seen(study: Study) -> tuple[Any, ...]:
    """What would be another if the study had come on since: changes of its files."""
    tables = [study.folder / "cohort.csv", study.volumes / "prepared.csv"]
    tables += [study.results / name for name in ("patients.csv", "uncertainty.csv", "summary.json")]
    stamps = []
    for path in (*tables, *reading_curves.files(study), study.predictions):
        try:
            stamps.append(path.stat().st_mtime_ns)
        except FileNotFoundError:
            stamps.append(0)
    return tuple(stamps)


def is_finished(study: Study) -> bool:
    return (study.folder / "manifest.json").exists()


def show_patient(viewer: Viewer, study: Study, patient: str, first: Sequence[str] = ("man", "cnn")) -> str:
    """Show a patient at a lesion of the `first` source; a message where he or she is not there yet."""
    name = html.escape(patient)
    try:
        view = load_view(study, patient)
        viewer.show(view, start_of(view, first))
    except InputError as error:
        viewer.clear()
        return f"Patient {name}: {NOT_YET} ({html.escape(str(error))})"
    there = viewer.view is not None and "cnn" in viewer.view.masks
    return "" if there else f"Patient {name}: the CNN's delineation is {NOT_YET} there."


def synthetic_note(study: Study) -> str:
    """The banner of a study of synthetic patients; '' for others, and before it is known."""
    if not (study.folder / "cohort.csv").exists() or not study.synthetic:
        return ""
    return "<b>Synthetic patients:</b> they verify the software and claim nothing clinical."


def _heading(text: str) -> widgets.HTML:
    return widgets.HTML(f"<h3>{text}</h3>")


# --- the choice of a study


class Explore:
    """A room, and the choice of its study among those that lie side by side; `box` is the widget."""

    def __init__(self, folder: str | Path, make: Callable[[Study], Any] = Room) -> None:
        self.make = make
        self.room: Any = None
        self.task: asyncio.Task[None] | None = None
        self.message = widgets.HTML().add_class("mtv-message")
        self.place = widgets.VBox()
        wanted, folders = place_of(folder), studies_beside(place_of(folder))
        options = [(one.name, str(one)) for one in folders]
        self.study = widgets.Dropdown(options=options, description="Study", style=WORDS, layout={"width": "260px"})
        self.study.add_class("mtv-study")
        self.box = widgets.VBox([self.study, self.message, self.place]).add_class("mtv-rooms")
        if not folders:
            self.study.layout.display = "none"
            self.message.value = (
                f"There is no study in the folder {html.escape(wanted.parent.name)} yet: {_code(HOW_TO_BEGIN)}."
            )
            return
        self.study.value = str(wanted if wanted in folders else folders[0])
        self.study.observe(lambda change: self.open(change["new"]), "value")
        self.open(self.study.value)

    def open(self, folder: str) -> None:
        """Go to a study's room."""
        if self.task is not None:
            self.task.cancel()
        self.message.value = ""
        try:
            self.room = self.make(open_study(folder))
        except InputError as error:
            self.room, self.place.children = None, ()
            self.message.value = f"<b>{html.escape(str(error))}</b>"
            return
        self.place.children = (self.room.box,)
        self.task = self._follow()

    def _follow(self) -> asyncio.Task[None] | None:
        """Keep looking in the kernel's own loop while the study runs; nothing where there is no loop."""
        try:
            return asyncio.get_running_loop().create_task(self._look())
        except RuntimeError:
            return None

    async def _look(self) -> None:
        room = self.room
        while room is self.room and not is_finished(room.study):
            await asyncio.sleep(LOOK_S)
            self.look_once()

    def look_once(self) -> None:
        """Whatever goes wrong while a study writes its files must not end the looking."""
        try:
            self.room.look()
            self.message.value = ""
        except (InputError, OSError, KeyError, ValueError) as error:
            self.message.value = html.escape(str(error))


def place_of(folder: str | Path) -> Path:
    """A folder as the project names it; notebooks lie one folder below the project's."""
    folder = Path(folder)
    here = not folder.parent.exists() and Path.cwd().name == "notebooks"
    return Path("..") / folder if here else folder


def open_study(folder: str | Path) -> Study:
    """The study in a folder, from whose parameters' paths count from the project's folder; see `place_of`."""
    study, parts = Study.open(folder), Path(folder).parts
    if parts[0] != "..":
        return study
    return Study(study.params.model_copy(update={"studies": Path(*parts[1:-1]).as_posix()}), Path(".."))


def studies_beside(folder: Path) -> list[Path]:
    """The studies in the same folder, the one that changed last first."""
    found = list(folder.parent.glob("*/params.yml"))
    return [path.parent for path in sorted(found, key=lambda path: _changed(path.parent), reverse=True)]


def _changed(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, folder / "params.yml", *folder.glob("logs")))


def _code(text: str) -> str:
    """Text with `code` as HTML."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def explore(folder: str | Path) -> widgets.Widget:
    """The room to look at studies; one clear message where there is none."""
    return Explore(folder).box
