"""The reading room's viewer: three planes and the MIP of a patient, linked by a crosshair, as widgets with a kernel.

Tried on a whole body of 192 x 192 x 500 voxels, 2 cores, no graphics card: own pictures 3 to 20 ms in the kernel, about
90 ms until the browser shows them, at most 0.3 MB. plotly 6: 170 ms and 1.6 MB for three planes, 70 to 290 ms to draw,
4.6 MB of script. ipyniivue: WebGL2, 5 MB of script, 74 MB a volume before the first picture. See benchmarks/reading.py.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import ipywidgets as widgets
import numpy as np

from mtvlib import cases, corrections, planes, volume
from mtvlib.classes import CLASS_NAMES
from mtvlib.lesions import bounding_box
from mtvlib.panels import Picture
from mtvlib.planes import AXES, LETTERS, OWN, TURN, Mip, View
from mtvlib.prepare import AIR_HU, load_patient
from mtvlib.study import Study

WORDS = {"description_width": "initial"}  # else long descriptions are cut off
WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 14px"}
MIP = "MIP"
SOURCE_NAMES = {"man": "manual", "cnn": "CNN"}
LEAST_PX = 130  # narrowest picture
HIGH_PX = 520  # highest
LARGE_PX = 760  # widest and highest of one that was enlarged


# --- what is shown of a patient


def load_view(study: Study, patient: str, number: int | None = None) -> View:
    """A patient on the study's grid with the masks that there are: manual, and CNN or a correction.

    `number`: of the correction; None for the last one, 0 for the CNN's own map.
    """
    prepared = load_patient(study.volumes, patient, study.params)
    ct = None
    if "ct" in study.params.channels:
        low, high = study.params.ct_window_hu
        ct = low + prepared.inputs[study.params.channels.index("ct")] * (high - low)
    masks = {} if prepared.reference is None else {"man": prepared.reference}
    number = corrections.latest(study, patient) if number is None else number
    if number or study.prediction_path(patient).exists():
        path = corrections.map_path(study, patient, number)
        masks["cnn"] = volume.to_array(volume.read_labels(path, patient=patient)).astype(np.uint8)
    return View(patient, prepared.suv, ct, prepared.grid.spacing_mm, masks)


def load_fine(study: Study, patient: str) -> dict[str, np.ndarray]:
    """PET and CT in the pixels of the original images, as far as these still lie where they were; slow."""
    grid = load_patient(study.volumes, patient, study.params).grid
    row = study.cohort.set_index("patient").loc[patient]
    found: dict[str, np.ndarray] = {}
    for name, outside in {"pet": 0.0, "ct": AIR_HU}.items():
        file = study.source.parent / str(row.get(name))
        if name in study.params.channels and file.is_file():
            image = volume.read_scan(file, patient=patient)
            found[name] = volume.to_array(
                volume.resample(image, cases.finer(grid, cases.PIXEL_MM[name]), outside=outside)
            )
    return found


def start_of(view: View, first: Sequence[str] = ("man", "cnn")) -> list[int]:
    """The voxel to begin at: the hottest of the first source's lesions; else the middle."""
    for source in first:
        mask = view.masks.get(source)
        if mask is not None and mask.any():
            box = bounding_box(mask)
            hottest = np.where(mask[box] > 0, view.pet[box], -np.inf).argmax()
            found = np.unravel_index(int(hottest), mask[box].shape)
            return [int(at) + side.start for at, side in zip(found, box, strict=True)]
    return [side // 2 for side in view.shape]


def words_at(view: View, at: Sequence[int], shown: Sequence[str] = tuple(SOURCE_NAMES)) -> str:
    """What lies under the crosshair: voxel, SUV, HU and the classes of the masks that are shown."""
    x, y, z = at
    parts = [
        f"patient <b>{html.escape(view.patient)}</b>",
        f"voxel {x + 1}, {y + 1}, {z + 1}",
        f"SUV {view.pet[x, y, z]:.1f}",
    ]
    ct = view.fine.get("ct", view.ct)
    if ct is not None:
        k = ct.shape[0] // view.shape[0]
        parts.append(f"{ct[k * x + k // 2, k * y + k // 2, z]:.0f} HU".replace("-", "−"))
    for source, name in SOURCE_NAMES.items():
        if source in view.masks and source in shown:
            parts.append(f"{name}: {CLASS_NAMES[int(view.masks[source][x, y, z])]}")
    return " · ".join(parts)


# --- the widget


class Viewer:
    """Three planes and the MIP, linked by a crosshair; `box` is the widget, `moved` is called after each move."""

    def __init__(self, own: str = "threshold") -> None:
        self.view: View | None = None
        self.mip: Mip | None = None
        self.at = [0, 0, 0]
        self.large = ""  # the picture that was enlarged
        self.moved: Callable[[], None] = lambda: None
        self._quiet, self._drawn = False, dict[str, Any]()
        self._controls(own)
        self.pictures = {name: Picture() for name in (*AXES, MIP)}
        for name, panel in self.pictures.items():
            panel.add_class("mtv-picture").add_class(f"mtv-{name.lower()}")
        self.text = widgets.HTML().add_class("mtv-position")
        self._listen()
        bar = [self.layer, self.suv, *self.shown.values()]
        turning = [*self.slices.values(), self.angle]
        panels = [
            widgets.VBox([self.pictures[name], slider]).add_class("mtv-panel")
            for name, slider in zip(self.pictures, turning, strict=True)
        ]
        self.panels = dict(zip(self.pictures, panels, strict=True))
        self.grid = widgets.HBox(
            panels, layout={"flex_flow": "row wrap", "grid_gap": "8px", "align_items": "flex-start"}
        )
        self.box = widgets.VBox([widgets.HBox(bar, layout=WRAP), self.grid, self.text]).add_class("mtv-viewer")

    def _controls(self, own: str) -> None:
        self.layer = widgets.ToggleButtons(
            options=planes.LAYERS, style={"button_width": "92px"}, layout={"width": "auto"}
        ).add_class("mtv-layer")
        self.suv = widgets.FloatSlider(
            10, min=1, max=25, step=0.5, description="SUV 0 to", style=WORDS, readout_format=".1f"
        ).add_class("mtv-suv")
        self.shown = {
            name: widgets.Checkbox(True, description=text, indent=False, layout={"width": "auto"}).add_class(
                f"mtv-show-{name}"
            )
            for name, text in (*SOURCE_NAMES.items(), (OWN, own))
        }
        thin = {"width": "auto", "margin": "0 4px"}
        self.slices = {
            plane: widgets.IntSlider(readout=False, layout=thin).add_class(f"mtv-slice-{plane}") for plane in AXES
        }
        self.angle = widgets.IntSlider(0, -180, 180, TURN, readout=False, layout=thin).add_class("mtv-angle")

    # --- showing

    def show(self, view: View, at: list[int] | None = None) -> None:
        self.view, self.mip, self._drawn = view, Mip(view), {}
        self._quiet = True
        for plane, slider in self.slices.items():
            slider.max = view.shape[AXES[plane][2]] - 1
        self.layer.disabled = view.ct is None
        self.layer.value = self.layer.value if view.ct is not None else "PET"
        at = start_of(view) if at is None else at
        self.suv.value = float(np.clip(np.ceil(0.6 * view.pet[tuple(at)]), 5, 12))
        self._quiet = False
        self._lay_out()
        self.move_to(at)

    def clear(self) -> None:
        """Nothing to show."""
        self.view = self.mip = None
        for panel in self.pictures.values():
            panel.picture, panel.lines, panel.cross, panel.title = b"", [], [], ""
        self.text.value = ""

    def move_to(self, at: list[int]) -> None:
        self.at, self._quiet = [int(one) for one in at], True
        for plane, slider in self.slices.items():
            slider.value = self.at[AXES[plane][2]]
        self._quiet = False
        self.moved()
        self.draw()

    def forget_lines(self, *, own_alone: bool = False) -> None:
        """A mask of the view is another one (the threshold's, which the MIP does not show): draw contours anew."""
        for name in AXES if own_alone else (*AXES, MIP):
            self._drawn.pop(f"lines {name}", None)

    def draw(self) -> None:
        """Send what changed: a picture where slice, layer or window did, contours where slice or masks did."""
        if self.view is None or self.mip is None:
            return
        with ExitStack() as together:
            for panel in self.pictures.values():
                together.enter_context(panel.hold_sync())
            for plane in AXES:
                self._draw_plane(self.view, plane)
            self._draw_mip(self.mip)
        self.text.value = words_at(self.view, self.at, self._shown())

    def _draw_plane(self, view: View, plane: str) -> None:
        panel, index, layer = self.pictures[plane], self.at[AXES[plane][2]], self.layer.value
        shown = self._shown()
        if self._is_new(plane, (index, layer, self.suv.value, tuple(view.fine))):
            panel.picture = planes.picture(view, plane, self.at, layer=layer, suv=self.suv.value)
            panel.light = layer == "PET"
        if self._is_new(f"lines {plane}", (index, shown)):
            panel.size, panel.lines = list(planes.size(view, plane)), planes.contours(view, plane, self.at, shown)
        panel.cross = planes.place(view, plane, self.at)
        panel.title = f"{plane}, {index + 1} of {view.shape[AXES[plane][2]]}"

    def _draw_mip(self, mip: Mip) -> None:
        panel, degrees = self.pictures[MIP], self.angle.value % 360
        shown = self._shown()
        if self._is_new(MIP, (degrees, self.suv.value)):
            panel.picture, panel.light, panel.title = mip.picture(degrees, self.suv.value), True, _mip_title(degrees)
            panel.letters = {0: "RL", 90: "AP", 180: "LR", 270: "PA"}.get(degrees, "")
            panel.ratio = mip.ratio(degrees)
        if self._is_new(f"lines {MIP}", (degrees, tuple(name for name in shown if name != OWN))):
            panel.size, panel.lines = list(mip.size(degrees)), mip.contours(degrees, shown)
        panel.cross = mip.place(degrees, self.at)

    def _shown(self) -> tuple[str, ...]:
        return tuple(name for name, box in self.shown.items() if box.value)

    def _is_new(self, name: str, state: Any) -> bool:
        """Whether it was drawn from another state; remembers this one."""
        new = self._drawn.get(name) != state
        self._drawn[name] = state
        return new

    def _lay_out(self) -> None:
        """Pictures of one height side by side, as wide as they are; an enlarged one alone in its row."""
        assert self.view is not None
        for name, panel in self.panels.items():
            ratio = planes.ratio(self.view, "coronal" if name == MIP else name)
            self.pictures[name].ratio, self.pictures[name].letters = ratio, LETTERS.get(name, "RL")
            if name == self.large:
                wide = f"{min(LARGE_PX, round(LARGE_PX * ratio))}px"
                panel.layout = {"flex": "1 1 100%", "max_width": wide, "order": "-1"}
            else:
                least, most = f"{max(LEAST_PX, round(220 * ratio))}px", f"{max(LEAST_PX, round(HIGH_PX * ratio))}px"
                panel.layout = {"flex": f"{ratio:.3f} 1 0", "min_width": least, "max_width": most}

    # --- listening

    def _listen(self) -> None:
        for control in (self.layer, self.suv, self.angle, *self.shown.values()):
            control.observe(self._redraw, "value")
        for plane, slider in self.slices.items():
            slider.observe(lambda change, plane=plane: self._slid(plane, change["new"]), "value")
        for name, panel in self.pictures.items():
            panel.on_msg(lambda panel, message, _buffers, name=name: self.heard(name, panel, message))

    def _redraw(self, _change: Any) -> None:
        if not self._quiet:
            self.draw()

    def _slid(self, plane: str, index: int) -> None:
        if not self._quiet:
            at = list(self.at)
            at[AXES[plane][2]] = index
            self.move_to(at)

    def heard(self, name: str, panel: Picture, message: dict[str, Any]) -> None:
        """A click, a drag, the wheel, a key or a double click in a picture."""
        if self.view is not None and self.mip is not None:
            if message.get("large"):
                self.large = "" if self.large == name else name
                self._lay_out()
            if name == MIP:
                self._heard_mip(self.mip, message)
            else:
                place, axis = message["place"], AXES[name][2]
                at = planes.voxel_at(self.view, name, self.at, place) if place else list(self.at)
                at[axis] = int(np.clip(at[axis] + message["steps"], 0, self.view.shape[axis] - 1))
                self.move_to(at)
        panel.drawn()

    def _heard_mip(self, mip: Mip, message: dict[str, Any]) -> None:
        """A click goes to the hottest voxel along its ray; the wheel turns."""
        if message["steps"]:
            degrees = self.angle.value + TURN * message["steps"]
            self.angle.value = (degrees + 180) % 360 - 180
        if message["place"]:
            self.move_to(mip.voxel_at(self.angle.value % 360, message["place"]))

    # --- finer pixels, when they are there

    def sharpen(self, study: Study, patient: str) -> asyncio.Task[None] | None:
        """Read the original pixels beside the kernel's work, and then show these; nothing where there is no loop."""
        try:
            return asyncio.get_running_loop().create_task(self._sharpen(study, patient))
        except RuntimeError:
            return None

    async def _sharpen(self, study: Study, patient: str) -> None:
        view = self.view
        fine = await asyncio.get_running_loop().run_in_executor(None, load_fine, study, patient)
        if view is not None and self.view is view and fine:
            view.fine = fine
            self.draw()


def _mip_title(degrees: int) -> str:
    seen = {0: "from the front", 90: "from the left", 180: "from the back", 270: "from the right"}
    return f"MIP, {seen.get(degrees, f'turned {degrees}°')}"
