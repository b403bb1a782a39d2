"""A patient's slices with the manual and the CNN contours: for a page, for print and for JupyterLab.

All pictures are transaxial and in radiological convention: the patient's left is on the right of the picture, the face
is up. Arrays are (x, y, z) with x towards the patient's left, y towards the back and z towards the head.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import util
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mtvlib import lesions, metrics
from mtvlib.classes import LESION_CLASSES, TARGETS
from mtvlib.errors import InputError
from mtvlib.palette import COLORS

if TYPE_CHECKING:
    import ipywidgets as widgets

CT_WINDOW_HU = (-135.0, 215.0)  # soft tissue: level 40, width 350
VIEWER_BYTES = 1_500_000  # of a case, whose file may have 2 MB
PLATE_COLUMNS = 4
SOURCES = {"man": "manual", "cnn": "CNN"}
# The report's colours of the classes; the CNN's are lighter, and dashed.
COLOURS = {
    ("man", "primary"): COLORS["primary"],
    ("cnn", "primary"): "#FFB84D",
    ("man", "nodes"): COLORS["nodes"],
    ("cnn", "nodes"): "#5CF2C4",
}

Polygon = list[tuple[int, int]]


@dataclass(frozen=True)
class ViewCase:
    """What is shown of one patient. The images cover the masks' field, in plane by whole multiples of their voxels."""

    patient: str
    pet: np.ndarray  # (k x, k y, z) SUV
    reference: np.ndarray  # (x, y, z) classes, manual
    prediction: np.ndarray  # (x, y, z) classes, CNN
    spacing_mm: tuple[float, float, float]  # of the masks
    ct: np.ndarray | None = None  # (m x, m y, z) HU

    def __post_init__(self) -> None:
        images = {"pet": self.pet} | ({"ct": self.ct} if self.ct is not None else {})
        fits = self.reference.shape == self.prediction.shape and all(
            image.shape == self._finer(image.shape[0] // self.reference.shape[0]) for image in images.values()
        )
        if not fits:
            shapes = images | {"reference": self.reference, "prediction": self.prediction}
            raise InputError(
                "images and masks do not cover the same field",
                patient=self.patient,
                value=", ".join(f"{name} {array.shape}" for name, array in shapes.items()),
                remedy="bring them onto the study's grid first.",
            )

    def _finer(self, factor: int) -> tuple[int, int, int]:
        nx, ny, nz = self.reference.shape
        return factor * nx, factor * ny, nz

    @property
    def slices(self) -> int:
        return self.reference.shape[2]

    def masks(self) -> dict[str, np.ndarray]:
        return {"man": self.reference, "cnn": self.prediction}

    def any_lesion(self) -> np.ndarray:
        """Voxels of a lesion in either mask, bool (x, y, z)."""
        return (self.reference > 0) | (self.prediction > 0)


# --- what the three views share


def grey(plane: np.ndarray, window: tuple[float, float], *, inverted: bool = False) -> np.ndarray:
    """A plane (x, y) as a picture (row, column) of uint8: row = y, column = x, which is radiological convention."""
    low, high = window
    shade = np.clip((plane.T - low) / (high - low), 0, 1)
    return np.round(255 * (1 - shade if inverted else shade)).astype(np.uint8)


def outline(mask: np.ndarray) -> list[Polygon]:
    """Closed polygons along the voxel edges of a plane (x, y): their corners only, the first not repeated.

    Corner (0, 0) is the outer corner of voxel (0, 0). Holes are polygons too. Voxels that touch at a corner only
    stay apart.
    """
    followers = _edges(np.pad(mask.astype(bool), 1))
    polygons = []
    while followers:
        start = next(iter(followers))
        loop, step = [start], (0, 0)
        while not loop[1:] or loop[-1] != start:
            step = _next_step(followers, loop[-1], step)
            loop.append((loop[-1][0] + step[0], loop[-1][1] + step[1]))
        polygons.append(_corners(loop[:-1]))
    return polygons


def _edges(padded: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Steps that leave each corner, with the mask on the right hand (in picture coordinates, y downwards)."""
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    sides = {(0, -1): ((0, 0), (1, 0)), (1, 0): ((1, 0), (0, 1)), (0, 1): ((1, 1), (-1, 0)), (-1, 0): ((0, 1), (0, -1))}
    for (dx, dy), (corner, step) in sides.items():
        outside = ~np.roll(padded, (-dx, -dy), (0, 1))
        for x, y in np.argwhere(padded & outside).tolist():
            steps.setdefault((x - 1 + corner[0], y - 1 + corner[1]), []).append(step)
    return steps


def _next_step(followers: dict, corner: tuple[int, int], came: tuple[int, int]) -> tuple[int, int]:
    options = followers[corner]
    # Where two voxels touch at a corner, turning right stays with the same voxel.
    right = (-came[1], came[0])
    step = options.pop(options.index(right) if right in options else 0)
    if not options:
        del followers[corner]
    return step


def _corners(loop: Polygon) -> Polygon:
    kept = []
    for before, here, after in zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True):
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1]):
            kept.append(here)
    return kept


def contours(case: ViewCase, z: int) -> Iterator[tuple[str, str, list[Polygon]]]:
    """(source, target, polygons) of a slice; manual first, so that the dashed CNN lies above."""
    for source, labels in case.masks().items():
        for target, value in LESION_CLASSES.items():
            if (labels[:, :, z] == value).any():
                yield source, target, outline(labels[:, :, z] == value)


def slice_dsc(case: ViewCase, z: int) -> dict[str, float | None]:
    """DSC of each target in one slice, as the paper's Figs. 3 and 4 give it; None where neither mask has any of it."""
    table = metrics.contingency(case.reference[:, :, z], case.prediction[:, :, z])
    values = {}
    for target in TARGETS:
        man, cnn, both = metrics.overlap(table, target)
        values[target] = float(metrics.dsc(man, cnn, both)) if man + cnn else None
    return values


def cropped(case: ViewCase) -> ViewCase:
    """The case without the air round the patient (and without the couch, where it lies apart)."""
    return cut_to(case, crop_box(case))


def crop_box(case: ViewCase, slices: Sequence[int] | None = None, margin_mm: float = 8.0) -> tuple[slice, slice]:
    """Voxels of the masks along x and y that hold patient and lesions, in all slices or only these, with a margin."""
    image, threshold = (case.pet, 0.2) if case.ct is None else (case.ct, -300.0)
    factor = image.shape[0] // case.reference.shape[0]
    body = _largest(image[factor // 2 :: factor, factor // 2 :: factor] > threshold)
    lesion = case.any_lesion()
    # A line counts if it crosses the patient for 4 cm in several slices: noise does not.
    least = 3
    if slices is not None:
        body, lesion, least = body[:, :, list(slices)], lesion[:, :, list(slices)], 1
    sides = []
    for axis in (0, 1):
        across = (body.sum(1 - axis) * case.spacing_mm[1 - axis] > 40).sum(1) >= least
        across |= lesion.any((1 - axis, 2))
        hit, margin = np.flatnonzero(across), math.ceil(margin_mm / case.spacing_mm[axis])
        n = case.reference.shape[axis]
        sides.append(slice(max(hit[0] - margin, 0), min(hit[-1] + 1 + margin, n)) if hit.size else slice(0, n))
    return sides[0], sides[1]


def _largest(body: np.ndarray) -> np.ndarray:
    """The largest piece of a body: a couch, parted from it by thin bridges at most, is none of it."""
    opened = ndimage.binary_opening(body, np.ones((3, 3, 1)))
    pieces, n = ndimage.label(opened)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if n else body


def cut_to(case: ViewCase, box: tuple[slice, slice]) -> ViewCase:
    """The part of the case in a box of the masks' voxels."""

    def cut(array: np.ndarray) -> np.ndarray:
        k = array.shape[0] // case.reference.shape[0]
        return array[tuple(slice(k * side.start, k * side.stop) for side in box)]

    ct = None if case.ct is None else cut(case.ct)
    return replace(case, pet=cut(case.pet), ct=ct, reference=cut(case.reference), prediction=cut(case.prediction))


def suv_limit(case: ViewCase) -> float:
    """Upper end of the SUV window: 60 % of the hottest lesion, but 5 to 12, so that low uptake is seen beside high."""
    factor = case.pet.shape[0] // case.reference.shape[0]
    uptake = case.pet[case.any_lesion().repeat(factor, 0).repeat(factor, 1)]
    return float(np.clip(math.ceil(0.6 * uptake.max()), 5, 12)) if uptake.size else 10.0


def best_slice(case: ViewCase) -> int:
    """The slice with most lesion in both masks together; the middle one where there is none."""
    area = ((case.reference > 0).astype(int) + (case.prediction > 0)).sum((0, 1))
    return int(area.argmax()) if area.any() else case.slices // 2


# --- images for a page


def image_sheets(case: ViewCase) -> dict[str, Any]:
    """Sheets of all slices. PET is stored as the root of SUV, so that 8 bits resolve low uptake in any window."""
    most = max(float(case.pet.max()), 1.0)
    images = {"pet": np.sqrt(np.clip(case.pet / most, 0, 1))}
    if case.ct is not None:
        low, high = CT_WINDOW_HU
        images["ct"] = np.clip((case.ct - low) / (high - low), 0, 1)
    for step, quality in ((1, 88), (1, 75), (1, 60), (2, 80), (2, 60), (4, 60)):
        sheets = {name: _sheet(image[::step, ::step], quality) for name, image in images.items()}
        if sum(len(sheet["jpeg"]) for sheet in sheets.values()) < 0.9 * VIEWER_BYTES:
            break
    return {"suvMost": most, "sheets": sheets}


def _sheet(image: np.ndarray, quality: int) -> dict[str, Any]:
    """All slices of an image (x, y, z) in [0, 1] side by side in one JPEG, with what a page needs to cut them out."""
    width, height, depth = image.shape
    # Tiles of whole JPEG blocks, or one slice would shine into the next.
    padded = np.pad(image, ((0, -width % 8), (0, -height % 8), (0, 0)), mode="edge")
    columns = math.ceil(math.sqrt(depth * padded.shape[1] / padded.shape[0]))
    rows = math.ceil(depth / columns)
    sheet = np.zeros((rows * padded.shape[1], columns * padded.shape[0]), np.uint8)
    for z in range(depth):
        row, column = divmod(z, columns)
        top, left = row * padded.shape[1], column * padded.shape[0]
        sheet[top : top + padded.shape[1], left : left + padded.shape[0]] = grey(padded[:, :, z], (0, 1))
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=quality, optimize=True)
    tile = {"width": width, "height": height, "stepX": padded.shape[0], "stepY": padded.shape[1], "columns": columns}
    return tile | {"jpeg": base64.b64encode(buffer.getvalue()).decode()}


# --- static: the same as a plate, like the paper's Figs. 3 and 4


def plate_slices(case: ViewCase, most: int = PLATE_COLUMNS) -> list[int]:
    """Slices for print: through the largest section of each ROI, largest ROIs first, no two within 10 mm; ascending."""
    chosen: list[int] = []
    for z in _roi_slices(case) or [best_slice(case)]:
        if len(chosen) < most and all(abs(z - other) * case.spacing_mm[2] >= 10 for other in chosen):
            chosen.append(z)
    return sorted(chosen, reverse=True)


def _roi_slices(case: ViewCase) -> list[int]:
    found = []
    for labels in case.masks().values():
        numbers = lesions.components(labels, 26)
        for number in range(1, int(numbers.max()) + 1):
            areas = (numbers == number).sum((0, 1))
            found.append((int(areas.sum()), int(areas.argmax())))
    return [z for _, z in sorted(found, reverse=True)]


def plate(case: ViewCase, panel_px: int = 480) -> bytes:
    """Chosen slices as PNG: CT and PET with both contours and the slice's DSC, on a canvas four panels wide.

    Up to two slices have their PET beside the CT; more have it below, as in the paper.
    """
    slices = plate_slices(case)
    case = cut_to(case, crop_box(case, slices))
    shown = [_pictures(case, z, panel_px) for z in slices]
    kinds, gap, line = len(shown[0]), panel_px // 40, panel_px // 13
    beside = len(slices) * kinds <= PLATE_COLUMNS
    step_x, step_y = panel_px + gap, shown[0][0].height + gap
    rows, texts = 1 if beside else kinds, [_dsc_lines(case, z) for z in slices]
    size = (PLATE_COLUMNS * step_x - gap, rows * step_y + (max(map(len, texts)) + 2) * line)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), typeface(panel_px / 16)
    for number, (pictures, lines) in enumerate(zip(shown, texts, strict=True)):
        column = number * kinds if beside else number
        for kind, picture in enumerate(pictures):
            place = (column + kind, 0) if beside else (column, kind)
            sheet.paste(picture, (place[0] * step_x, place[1] * step_y))
        for row, text in enumerate(lines):
            draw.text((column * step_x, rows * step_y + row * line), text, "#222222", font)
    _write_legend(draw, size, panel_px)
    return _png(sheet)


@cache
def _typeface_file() -> Path | None:
    kaleido = util.find_spec("kaleido")
    places = kaleido.submodule_search_locations if kaleido else None
    return next((path for place in places or [] for path in Path(place).rglob("Lato-Regular.ttf")), None)


def typeface(px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Lato, the figures' typeface, which comes with kaleido; Pillow's own, which lacks accents, where it does not."""
    path = _typeface_file()
    return ImageFont.truetype(str(path), px) if path else ImageFont.load_default(px)


def preview(case: ViewCase, panel_px: int = 480) -> bytes:
    """A delineation at a glance as PNG: the coronal MIP of the PET, and CT and PET of a slice through each lesion.

    For whoever has the images anyway; no report shows it, so the face stays.
    """
    case = cropped(case)
    front = _mip(case, panel_px)
    columns = [_pictures(case, z, panel_px, sources=("cnn",)) for z in plate_slices(case)]
    gap, height = panel_px // 40, columns[0][0].height
    rows = max(len(column) for column in columns)
    size = (len(columns) * (panel_px + gap) + front.width, max(front.height, rows * (height + gap) - gap))
    sheet = Image.new("RGB", size, "white")
    sheet.paste(front, (0, 0))
    for number, column in enumerate(columns):
        for row, picture in enumerate(column):
            sheet.paste(picture, (front.width + gap + number * (panel_px + gap), row * (height + gap)))
    return _png(sheet)


def _mip(case: ViewCase, width_px: int) -> Image.Image:
    """Coronal maximum intensity projection of the PET, the CNN's lesions outlined; the head is up."""
    (nx, _, nz), (dx, _, dz) = case.prediction.shape, case.spacing_mm
    shades = grey(case.pet.max(axis=1)[:, ::-1], (0.0, suv_limit(case)), inverted=True)
    size = (width_px, round(width_px * nz * dz / (nx * dx)))
    picture = Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for target, value in LESION_CLASSES.items():
        for polygon in outline((case.prediction == value).any(axis=1)[:, ::-1]):
            corners = [(x * size[0] / nx, y * size[1] / nz) for x, y in [*polygon, polygon[0]]]
            draw.line(corners, "#333333", round(width_px / 110), joint="curve")
            draw.line(corners, COLOURS["man", target], round(width_px / 200), joint="curve")
    _write_orientation(draw, size, f"PET, MIP\nSUV 0 to {suv_limit(case):g}", nx * dx, "RLHF")
    return picture


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(
    case: ViewCase, z: int, width_px: int, suv: float | None = None, sources: Collection[str] = ("man", "cnn")
) -> list[Image.Image]:
    """A slice of CT (if there is one) and of PET, with the contours of `sources`, window and orientation."""
    suv, (low, high) = suv or suv_limit(case), CT_WINDOW_HU
    pet = grey(case.pet[:, :, z], (0.0, suv), inverted=True)
    pictures = [_picture(case, z, pet, width_px, f"PET\nSUV 0 to {suv:g}", sources)]
    if case.ct is not None:
        ct = grey(case.ct[:, :, z], CT_WINDOW_HU)
        text = f"CT\n{low:g} to {high:g} HU".replace("-", "\N{MINUS SIGN}")
        pictures.insert(0, _picture(case, z, ct, width_px, text, sources))
    return pictures


def _picture(
    case: ViewCase, z: int, shades: np.ndarray, width_px: int, text: str, sources: Collection[str]
) -> Image.Image:
    (nx, ny, _), (dx, dy, _) = case.reference.shape, case.spacing_mm
    height_px = round(width_px * ny * dy / (nx * dx))
    picture = Image.fromarray(shades).resize((width_px, height_px), Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(picture)
    lines = [
        ([(x * width_px / nx, y * height_px / ny) for x, y in [*polygon, polygon[0]]], source, COLOURS[source, target])
        for source, target, polygons in contours(case, z)
        for polygon in polygons
        if source in sources
    ]
    for corners, _, _ in lines:
        _line(draw, corners, "#333333", width_px / 110, dashed=False)  # light colours on white need an edge
    for corners, source, colour in lines:
        _line(draw, corners, colour, width_px / 180, dashed=source == "cnn")
    _write_orientation(draw, picture.size, text, nx * dx)
    return picture


def _line(
    draw: ImageDraw.ImageDraw, corners: list[tuple[float, float]], colour: str, width: float, dashed: bool
) -> None:
    if not dashed:
        draw.line(corners, colour, round(width), joint="curve")
        return
    dash, done = 4 * width, 0.0
    for (x0, y0), (x1, y1) in pairwise(corners):
        length = abs(x1 - x0) + abs(y1 - y0)
        # Each dash is cut at the corners; `done` carries the phase round them.
        first = math.floor(done / (2 * dash)) * 2 * dash
        for start in np.arange(first, done + length, 2 * dash):
            begin, end = max(start, done), min(start + dash, done + length)
            if begin < end:
                ends = [(begin - done) / length, (end - done) / length]
                draw.line([(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in ends], colour, round(width))
        done += length


def _write_orientation(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], text: str, wide_mm: float, letters: str = "RLAP"
) -> None:
    """What is shown, the patient's sides (left, right, top, bottom of the picture) and a scale."""
    (width, height), font = size, typeface(size[0] / 19)
    edge, inks = width / 60, ("#333333", "white") if text.startswith("PET") else ("white", "black")
    style: dict[str, Any] = {"font": font, "fill": inks[0], "stroke_width": 3, "stroke_fill": inks[1]}
    draw.multiline_text((edge, edge), text, anchor="la", spacing=width / 100, **style)
    middle = [(edge, height / 2, "lm"), (width - edge, height / 2, "rm"), (width / 2, edge, "ma")]
    for letter, (x, y, anchor) in zip(letters, [*middle, (width / 2, height - edge, "md")], strict=True):
        draw.text((x, y), letter, anchor=anchor, **style)
    cm = next(length for length in (10, 5, 2, 1) if 30 * length < wide_mm or length == 1)
    right, y, length = width - 2 * edge, height - 1.5 * edge, 10 * cm * width / wide_mm
    for colour, thick in ((inks[1], width / 70), (inks[0], width / 140)):
        draw.line([(right - length, y), (right, y)], colour, max(1, round(thick)))
    draw.text((right - length / 2, y - edge / 2), f"{cm} cm", anchor="md", **style)


def _dsc_lines(case: ViewCase, z: int) -> list[str]:
    dsc = [f"DSC {target}: {value:.2f}" for target, value in slice_dsc(case, z).items() if value is not None]
    return [f"slice {z + 1} of {case.slices}", *(dsc or ["no lesion"])]


def _write_legend(draw: ImageDraw.ImageDraw, size: tuple[int, int], width: int) -> None:
    left, y, font = 0.0, size[1] - width / 24, typeface(width / 16)
    for (source, target), colour in COLOURS.items():
        _line(draw, [(left, y), (left + width / 10, y)], colour, width / 120, dashed=source == "cnn")
        text = f"{SOURCES[source]}, {target}"
        draw.text((left + width / 8, y), text, "#222222", font, anchor="lm")
        left += width / 6 + font.getlength(text)


# --- JupyterLab: the same with a kernel


def widget(case: ViewCase) -> widgets.VBox:
    """Slider, SUV window and contours as ipywidgets, for a notebook with a running kernel."""
    import ipywidgets as widgets  # brings IPython, which delineating a patient does not need

    case = cropped(case)
    z = widgets.IntSlider(best_slice(case), 0, case.slices - 1, description="slice")
    suv = widgets.FloatSlider(suv_limit(case), min=1, max=25, step=0.5, description="SUV up to")
    shown = widgets.SelectMultiple(options=[("manual", "man"), ("CNN", "cnn")], value=("man", "cnn"), rows=2)
    picture, text = widgets.Image(format="png"), widgets.HTML()

    def draw(_: Any = None) -> None:
        pictures = _pictures(case, z.value, 480, suv.value, shown.value)
        picture.value = _png(Image.fromarray(np.hstack([np.asarray(one) for one in pictures])))
        text.value = " · ".join(_dsc_lines(case, z.value))

    for control in (z, suv, shown):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([widgets.HBox([z, suv, shown]), picture, text])
