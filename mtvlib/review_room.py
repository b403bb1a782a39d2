"""The correction of a case in JupyterLab: click, delete, change the class, accept a missed lesion, undo, save.

`review(folder)` is one widget, to be shown by a notebook. What an edit does and how it is kept is in `corrections`. The
manual delineation is hidden at first, and whatever is known from it: else the correction would be a copy of what it is
compared with. Whether it was looked at stands in the log.
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

from mtvlib import corrections, pet
from mtvlib.classes import LESION_CLASSES
from mtvlib.errors import InputError
from mtvlib.panels import Table
from mtvlib.planes import OWN, View
from mtvlib.reading_room import (
    Explore,
    PatientList,
    open_study,
    patient_table,
    seen,
    show_patient,
    status,
    synthetic_note,
    table_rows,
)
from mtvlib.reading_viewer import WORDS, WRAP, Viewer
from mtvlib.study import Study

BUTTONS = {  # name: text, what it is for, style, icon
    "delete": ("Delete region", "the region at the crosshair is spurious", "", "trash"),
    "reclass": ("Primary ⇄ node", "the region at the crosshair has the wrong class", "", "exchange"),
    "propose": ("Propose lesion", "delineate what lies at the crosshair, to look at first", "", "crosshairs"),
    "accept": ("Accept", "add the proposed lesion", "success", "check"),
    "reject": ("Discard", "forget the proposal", "", "times"),
    "undo": ("Undo", "take the last edit back", "", "undo"),
    "redo": ("Redo", "do it again", "", "repeat"),
    "save": ("Save", "keep as a new correction", "primary", "save"),
    "unchanged": ("Nothing to correct", "keep that somebody looked and found the delineation right", "", "thumbs-up"),
}
BLINDED = ["dsc_all", "dsc_primary", "dsc_nodes", "ttb_man_ml"]  # columns that tell of the manual delineation
LOG_HEADS = {  # column: head, decimals of a number, None for words
    "patient": ("Patient", None),
    "number": ("Correction", 0),
    "who": ("Who", None),
    "when": ("When (UTC)", None),
    "deleted": ("Deleted", 0),
    "reclassified": ("Class changed", 0),
    "accepted": ("Accepted", 0),
    "undone": ("Undone", 0),
    "seconds": ("Seconds", 0),
    "manual_shown": ("Manual shown", None),
}


class Review:
    """Choose a patient, sign with initials, click and edit; `box` is the widget."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.session: corrections.Session | None = None
        self.proposal: tuple[list[int], str, float] | None = None  # voxel, class and reach
        self.viewer = Viewer("proposal")
        self.viewer.moved = self._moved
        self.viewer.shown["man"].value = False
        self.patients = PatientList(_blinded(study))
        self.status = widgets.HTML(status(study)).add_class("mtv-status")
        self.who = widgets.Text(
            placeholder="initials or role", description="Who", style=WORDS, layout={"width": "210px"}
        ).add_class("mtv-who")
        self.target = widgets.ToggleButtons(
            options=list(LESION_CLASSES), style={"button_width": "76px"}, layout={"width": "auto"}
        ).add_class("mtv-target")
        self.reach = widgets.IntSlider(
            int(corrections.REACH_MM), 5, 60, 5, description="reaching (mm)", style=WORDS, layout={"width": "230px"}
        ).add_class("mtv-reach")
        self.buttons = {name: _button(name) for name in BUTTONS}
        self.text = widgets.HTML().add_class("mtv-message")
        self.log = Table(label="Corrections", heads=[head for head, _ in LOG_HEADS.values()]).add_class("mtv-log")
        self.damaged = widgets.HTML()
        self.loading: asyncio.Task[None] | None = None
        self._seen = seen(study)
        self._wire()
        self.box = self._put_together()
        self._show_log()
        if len(self.patients.data):
            self.patients.table.chosen = _least_sure(self.patients.data)

    def _put_together(self) -> widgets.VBox:
        named = self.buttons
        rows = [
            [self.who, named["undo"], named["redo"], named["save"], named["unchanged"]],
            [named["delete"], named["reclass"]],
            [self.target, self.reach, named["propose"], named["accept"], named["reject"]],
        ]
        boxes = [widgets.HBox(row, layout=WRAP).add_class("mtv-edit") for row in rows]
        parts = [widgets.HTML(synthetic_note(self.study)), self.status, self.patients.box, *boxes, self.text]
        return widgets.VBox(
            [*parts, self.viewer.box, widgets.HTML("<h3>Corrections of this study</h3>"), self.damaged, self.log],
            layout={"grid_gap": "6px"},
        ).add_class("mtv-review")

    # --- a patient

    def open(self) -> None:
        """Begin, or go on with, the correction of the chosen patient, once the log knows who."""
        patient, who = self.patients.table.chosen, self.who.value.strip()
        if self.session is not None:
            self.session.close()
        self.session = None
        self.proposal = None
        message = ""
        if self.viewer.view is None or self.viewer.view.patient != patient:
            message = show_patient(self.viewer, self.study, patient, ["cnn"])
            self.loading = self.viewer.sharpen(self.study, patient) if self.viewer.view is not None else None
        elif "cnn" not in self.viewer.view.masks:
            message = f"Patient {html.escape(patient)}: the CNN's delineation is not yet there."
        if not message:
            message = (
                self._attempt(lambda: self._begin(patient, who)) if who else "Give your initials or role to begin."
            )
        self._refresh(message)

    def _begin(self, patient: str, who: str) -> str:
        self.session = corrections.open_session(self.study, patient, who)
        self._look_at_manual()
        base, words = self.session.base, []
        if base:
            words.append(f"This goes on from correction {base}.")
        if self.session.edits:
            n = len(self.session.edits)
            words.append(f"{n} {'edit that was' if n == 1 else 'edits that were'} not saved: back again.")
        if self.session.dropped:
            n = len(self.session.dropped)
            words.append(f"{n} more {'is' if n == 1 else 'are'} not possible any longer: the map is another one since.")
        return " ".join(words)

    # --- editing

    def act(self, name: str) -> None:
        """What a button does."""
        session, view, at = self.session, self.viewer.view, self.viewer.at
        if session is None or view is None:
            return
        proposal, self.proposal = self.proposal, None
        actions: dict[str, Callable[[], Any]] = {
            "delete": lambda: session.delete(at),
            "reclass": lambda: session.reclass(at),
            "propose": lambda: self._propose(session, view),
            "accept": lambda: session.accept(*proposal) if proposal else None,
            "reject": lambda: None,
            "undo": session.undo,
            "redo": session.redo,
            "save": lambda: self._save(session.save()),
            "unchanged": lambda: self._save(session.save(unchanged=True)),
        }
        view.masks.pop(OWN, None)
        self._refresh(self._attempt(actions[name]))

    def _propose(self, session: corrections.Session, view: View) -> str:
        at, target, reach_mm = list(self.viewer.at), self.target.value, float(self.reach.value)
        mask = session.preview(at, target, reach_mm)
        view.masks[OWN], self.proposal = mask.astype(np.uint8), (at, target, reach_mm)
        values = np.asarray(view.pet[mask])
        far = corrections.runs_on(mask, view.pet, session.grid.spacing_mm, reach_mm)
        volume_ml = len(values) * pet.voxel_ml(session.grid.spacing_mm)
        return (
            f"Proposed, {target}: {volume_ml:.1f} ml, SUV {values.min():.1f} to {values.max():.1f}. Accept or discard "
            "it; another class or reach makes another proposal."
            + (f" <b>It runs on to {reach_mm:g} mm: look whether it is a lesion.</b>" if far else "")
        )

    def _save(self, path: Path | None) -> str:
        if path is None:
            return ""
        self.patients.load(_blinded(self.study))
        self._show_log()
        self._look_at_manual()  # for what follows
        return f"Saved as {path.parent.name}/{path.name}."

    def _attempt(self, action: Callable[[], Any]) -> str:
        """What the action says, or the error in words: nothing is raised into a notebook's log."""
        try:
            found = action()
        except InputError as error:
            return f"<b>{html.escape(str(error))}</b>"
        return found if isinstance(found, str) else ""

    def _look_at_manual(self, _change: Any = None) -> None:
        if self.session is not None and self.viewer.shown["man"].value and "man" in self._masks():
            self.session.manual_shown = True

    def _masks(self) -> dict[str, np.ndarray]:
        return {} if self.viewer.view is None else self.viewer.view.masks

    def _moved(self) -> None:
        if self.session is not None:
            self.session.touch()

    def _proposed_other(self, _change: Any) -> None:
        """Class or reach were changed while a proposal was looked at: make it anew."""
        if self.proposal is not None:
            self.viewer.at = list(self.proposal[0])
            self.act("propose")

    # --- what is shown

    def _refresh(self, message: str) -> None:
        session, view = self.session, self.viewer.view
        if session is not None and view is not None:
            view.masks["cnn"] = session.labels
            message = " ".join(filter(None, [message, f"Now {corrections.what_changed(session)}."]))
        self.text.value = message
        edited = bool(session and session.edits)
        able = {
            "accept": self.proposal is not None,
            "reject": self.proposal is not None,
            "undo": edited,
            "save": edited,
        }
        able |= {"redo": bool(session and session.undone), "unchanged": bool(session and not edited)}
        for name, button in self.buttons.items():
            button.disabled = session is None or not able.get(name, True)
        self.viewer.forget_lines()
        self.viewer.draw()

    def look(self) -> bool:
        """Show what is new in a study that runs."""
        now = seen(self.study)
        if now == self._seen:
            return False
        self.study = open_study(self.study.folder)
        self.status.value = status(self.study)
        self.patients.load(_blinded(self.study))
        self._show_log()
        if self.session is None and self.patients.table.chosen:
            self.viewer.clear()
            self.open()
        self._seen = now
        return True

    def _wire(self) -> None:
        for name, button in self.buttons.items():
            button.on_click(lambda _button, name=name: self.act(name))
        self.patients.table.observe(lambda _: self.open(), "chosen")
        self.who.continuous_update = False
        self.who.observe(lambda _: self.open(), "value")
        self.viewer.shown["man"].observe(self._look_at_manual, "value")
        for control in (self.target, self.reach):
            control.observe(self._proposed_other, "value")

    def _show_log(self) -> None:
        self.damaged.value = ""
        try:
            table = corrections.log(self.study).sort_values("when", ascending=False)
        except InputError as error:
            self.damaged.value = f"<b>{html.escape(str(error))}</b>"
            return
        table["when"] = table["when"].str.slice(0, 16).str.replace("T", " ")
        table["manual_shown"] = table["manual_shown"].map({True: "yes", False: "no"})
        self.log.rows = table_rows(table, LOG_HEADS)


def _button(name: str) -> widgets.Button:
    text, tip, style, icon = BUTTONS[name]
    button = widgets.Button(description=text, tooltip=tip, button_style=style, icon=icon, disabled=True)
    button.layout.width = "auto"
    return button.add_class(f"mtv-{name}")


def _blinded(study: Study) -> pd.DataFrame:
    return patient_table(study).drop(columns=BLINDED, errors="ignore")


def _least_sure(table: pd.DataFrame) -> str:
    """Who needs a look first: the lowest expected DSC, else the first patient."""
    known = "expected_dsc" in table and table["expected_dsc"].notna().any()
    return str(table.loc[table["expected_dsc"].idxmin() if known else table.index[0], "patient"])


def review(folder: str | Path) -> widgets.Widget:
    """The room to correct a case; one clear message where there is no study."""
    return Explore(folder, Review).box
