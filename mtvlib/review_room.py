"""The correction of a case in JupyterLab: click, delete, change the class, accept a missed lesion, undo, save.

`review(folder)` is one widget, to be shown by a notebook. What an edit does and how it is kept is in `corrections`.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np

from mtvlib import corrections, pet
from mtvlib.classes import LESION_CLASSES
from mtvlib.errors import InputError
from mtvlib.planes import OWN, View
from mtvlib.reading_room import PatientList, Viewer, open_study, patient_table, show_patient, synthetic_note
from mtvlib.study import Study


def review(folder: str | Path) -> widgets.Widget:
    """The room to correct a case; a message where there is no study."""
    study, message = open_study(folder)
    return message if study is None else Review(study).box


class Review:
    """Choose a patient, sign with initials, click and edit; `box` is the widget."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.session: corrections.Session | None = None
        self.viewer = Viewer()
        self.viewer.shown[OWN].description = "proposal"
        table = patient_table(study)
        self.patients = PatientList(table)
        self.who = widgets.Text(placeholder="initials or role", description="Who", layout={"width": "220px"})
        self.target = widgets.ToggleButtons(options=list(LESION_CLASSES), style={"button_width": "76px"})
        self.buttons = {
            name: widgets.Button(description=text, disabled=True, tooltip=tip, layout={"width": "auto"})
            for name, text, tip in (
                ("delete", "Delete region", "the region at the crosshair is spurious"),
                ("reclass", "Primary ⇄ node", "the region at the crosshair has the wrong class"),
                ("propose", "Propose lesion", "delineate what lies at the crosshair, to look at"),
                ("accept", "Accept", "keep the proposed lesion"),
                ("undo", "Undo", "take the last edit back"),
                ("redo", "Redo", "do it again"),
                ("save", "Save", "keep as a new correction"),
            )
        }
        self.text = widgets.HTML()
        self.text.add_class("mtv-message")
        self.log = widgets.HTML()
        self._wire()
        edit = widgets.HBox(
            [
                self.buttons["delete"],
                self.buttons["reclass"],
                self.target,
                self.buttons["propose"],
                self.buttons["accept"],
            ],
            layout={"flex_flow": "row wrap"},
        )
        keep = widgets.HBox([self.who, *(self.buttons[name] for name in ("undo", "redo", "save"))])
        for row in (edit, keep):
            row.add_class("mtv-edit")
        self.box = widgets.VBox(
            [widgets.HTML(synthetic_note(study)), self.patients.box, keep, edit, self.text, self.viewer.box, self.log]
        )
        self._show_log()
        if len(table):
            self.patients.table.chosen = str(table["patient"].iloc[0])

    def open(self) -> None:
        """Begin, or go on with, the correction of the chosen patient, once the log knows who."""
        patient, who = self.patients.table.chosen, self.who.value.strip()
        self.session = None
        message = show_patient(self.viewer, self.study, patient)
        if who and not message:
            message = self._attempt(lambda: self._begin(patient, who))
        elif not message:
            message = "Give your initials or role to begin."
        self._refresh(message)

    def _begin(self, patient: str, who: str) -> str:
        self.session = corrections.open_session(self.study, patient, who)
        words = []
        if self.session.edits:
            words.append(f"Your {len(self.session.edits)} edits that were not saved are back.")
        if self.session.dropped:
            words.append(f"{len(self.session.dropped)} of them are not possible any more: the map is another since.")
        return " ".join(words)

    def act(self, name: str) -> None:
        """What a button does."""
        session, view, at = self.session, self.viewer.view, self.viewer.at
        if session is None or view is None:
            return
        actions: dict[str, Callable[[], Any]] = {
            "delete": lambda: session.delete(at),
            "reclass": lambda: session.reclass(at),
            "propose": lambda: self._propose(session, view),
            "accept": lambda: session.accept(at, self.target.value),
            "undo": session.undo,
            "redo": session.redo,
            "save": lambda: self._save(session),
        }
        view.masks.pop(OWN, None)
        self._refresh(self._attempt(actions[name]))

    def _propose(self, session: corrections.Session, view: View) -> str:
        mask = session.preview(self.viewer.at, self.target.value)
        view.masks[OWN] = mask.astype(np.uint8)
        volume_ml = float(mask.sum()) * pet.voxel_ml(session.grid.spacing_mm)
        return f"Proposed: {volume_ml:.1f} ml. Accept it, or click elsewhere."

    def _save(self, session: corrections.Session) -> str:
        path = session.save()
        return f"Saved as {path.name}." if path else ""

    def _attempt(self, action: Callable[[], Any]) -> str:
        """What the action says, or the error in words: nothing is raised into a notebook's log."""
        try:
            found = action()
        except InputError as error:
            return f"<b>{html.escape(str(error))}</b>"
        return found if isinstance(found, str) else ""

    def _refresh(self, message: str) -> None:
        session, view = self.session, self.viewer.view
        if session is not None and view is not None:
            view.masks["cnn"] = session.labels
            message = " ".join(filter(None, [message, corrections.what_changed(session)]))
        self.text.value = message
        proposed = view is not None and OWN in view.masks
        able = {"accept": proposed, "undo": bool(session and session.edits), "redo": bool(session and session.undone)}
        able["save"] = able["undo"]
        for name, button in self.buttons.items():
            button.disabled = session is None or not able.get(name, True)
        self.viewer.draw()
        self._show_log()

    def _wire(self) -> None:
        for name, button in self.buttons.items():
            button.on_click(lambda _button, name=name: self.act(name))
        self.patients.table.observe(lambda _: self.open(), "chosen")
        self.who.continuous_update = False
        self.who.observe(lambda _: self.open(), "value")

    def _show_log(self) -> None:
        try:
            table = corrections.log(self.study)
        except InputError as error:
            self.log.value = html.escape(str(error))
            return
        self.log.value = "" if table.empty else f"<h3>Corrections</h3>{table.to_html(index=False, border=0)}"
