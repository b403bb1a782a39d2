"""Contact sheets: every patient's PET at a glance, with the frame of what was kept of it; uncertain crops first.

The head is shown as it is, unlike in the viewers (`mtvlib.faces`): one coronal projection in 4 mm pixels has no depth
from which a face could be reconstructed.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from mtvlib import show
from mtvlib.prepare import OVERVIEW, OVERVIEW_SUV, RECORD
from mtvlib.study import Study

MOST = 48  # patients a sheet
COLUMNS = 8
CELL_PX, GAP_PX, HIGHEST_PX = 212, 14, 330
FONT_PX, MARK_PX = 17, 23
CERTAIN, UNCERTAIN, INK = "#2166AC", "#D1410C", "#222222"
_AIR = 247  # shades above it are air

Frame = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thumbnail:
    """A patient's coronal overview (row, column) uint8, the frame of the crop in its pixels, and what is in doubt."""

    patient: str
    shades: np.ndarray
    frame: Frame  # left, top, right, bottom; may reach beyond the picture
    pixel_mm: float
    doubts: tuple[str, ...] = ()


def thumbnails(study: Study, prepared: pd.DataFrame) -> list[Thumbnail]:
    """The patients of `prepare_cohort`'s table; those with an uncertain crop first, else in the table's order."""
    found = [_thumbnail(study, patient) for patient in prepared["patient"]]
    return sorted(found, key=lambda one: not one.doubts)


def _thumbnail(study: Study, patient: str) -> Thumbnail:
    folder = study.volumes / patient
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    with Image.open(folder / OVERVIEW) as picture:
        shades = np.asarray(picture.convert("L"))
    overview = record["overview"]
    return Thumbnail(patient, shades, tuple(overview["frame"]), overview["pixel_mm"], tuple(record["doubts"]))


def chosen(found: Sequence[Thumbnail]) -> list[list[Thumbnail]]:
    """Sheets of at most `MOST`: every uncertain crop, and of the others as many as the last of these sheets holds."""
    uncertain = sum(bool(one.doubts) for one in found)
    sheets = max(1, math.ceil(uncertain / MOST))
    return [list(found[i * MOST : (i + 1) * MOST]) for i in range(sheets)]


def show_crops(study: Study, prepared: pd.DataFrame) -> None:
    """Display the contact sheets of a cohort, and say how many patients they leave out."""
    found = thumbnails(study, prepared)
    sheets = chosen(found)
    for number, shown in enumerate(sheets, start=1):
        label = "fig-crop" if number == 1 else f"fig-crop-{number}"
        show.show_picture(sheet(shown), label, caption(shown), alt(shown))
    left = len(found) - sum(map(len, sheets))
    if left:
        show.text(f"{left} further patients, none of them with an uncertain crop, are not shown.")


def caption(shown: Sequence[Thumbnail]) -> str:
    uncertain = sum(bool(one.doubts) for one in shown)
    told = (
        f"Orange with a mark: {uncertain} of {len(shown)} crops are uncertain." if uncertain else "None is uncertain."
    )
    return (
        "What was kept of each field. Coronal maximum projections of the PET, SUV 0 (white) to "
        f"{OVERVIEW_SUV:g} (black), over the whole field, whose length stands beside the name; the frame is the crop. "
        f"{told} The patient's left is on the right."
    )


def alt(shown: Sequence[Thumbnail]) -> str:
    names = ", ".join(one.patient for one in shown if one.doubts) or "none"
    return f"Coronal PET projections of {len(shown)} patients with the frame of the crop; uncertain crops: {names}."


# --- drawing


def sheet(shown: Sequence[Thumbnail]) -> bytes:
    """The thumbnails as one PNG, row by row; each row is as high as its longest field."""
    rows = [_row(shown[start : start + COLUMNS]) for start in range(0, len(shown), COLUMNS)]
    width = min(COLUMNS, max(1, len(shown))) * (CELL_PX + GAP_PX) + GAP_PX
    canvas = Image.new("RGB", (width, GAP_PX + sum(row.height + GAP_PX for row in rows)), "white")
    y = GAP_PX
    for row in rows:
        canvas.paste(row, (GAP_PX, y))
        y += row.height + GAP_PX
    buffer = io.BytesIO()
    canvas.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _row(shown: Sequence[Thumbnail]) -> Image.Image:
    pictures, texts = [_framed(one) for one in shown], [_lines(one) for one in shown]
    step, height = round(FONT_PX * 1.3), max(picture.height for picture in pictures)
    size = (len(shown) * (CELL_PX + GAP_PX), height + 8 + step * max(map(len, texts)))
    row = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(FONT_PX)
    for column, (one, picture, lines) in enumerate(zip(shown, pictures, texts, strict=True)):
        x = column * (CELL_PX + GAP_PX)
        row.paste(picture, (x, height - picture.height))
        if one.doubts:
            _mark(draw, x, height + 8)
        for number, line in enumerate(lines):
            at = (x + (MARK_PX if one.doubts and number == 0 else 0), height + 8 + number * step)
            draw.text(at, line, UNCERTAIN if one.doubts else INK, font)
    return row


def _lines(one: Thumbnail) -> list[str]:
    """Name and length of the field, then what is in doubt, in lines that fit a cell."""
    length = f" ({one.shades.shape[0] * one.pixel_mm / 10:.0f} cm)"
    return [_shortened(one.patient, CELL_PX - _width(length) - MARK_PX) + length, *_wrapped(one.doubts)]


def _width(text: str) -> float:
    return ImageFont.load_default(FONT_PX).getlength(text)


def _shortened(name: str, width_px: float) -> str:
    """The name without its middle where it is too long."""
    kept = len(name)
    while kept > 2 and _width(short := name if kept == len(name) else _ends(name, kept)) > width_px:
        kept -= 1
    return short if kept > 2 else name


def _ends(name: str, kept: int) -> str:
    return f"{name[: kept - kept // 2]}…{name[-(kept // 2) :]}"


def _wrapped(doubts: Sequence[str]) -> list[str]:
    lines = []
    for doubt in doubts:
        line = ""
        for word in doubt.split():
            if line and _width(f"{line} {word}") > CELL_PX:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def _mark(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    """A warning triangle at a line's beginning."""
    side = FONT_PX
    draw.polygon([(x, y + side), (x + side, y + side), (x + side / 2, y + 1)], UNCERTAIN)
    draw.text((x + side / 2, y + side * 0.92), "!", "white", ImageFont.load_default(FONT_PX * 0.75), anchor="ms")


def _framed(one: Thumbnail) -> Image.Image:
    """The overview without the air beside it, paler outside of the frame, scaled to a cell, with the frame."""
    left, right = _sides(one)
    shades = _paler(one)[:, max(0, left) : right]
    shades = np.pad(shades, ((0, 0), (max(0, -left), max(0, right - one.shades.shape[1]))), constant_values=255)
    height, width = shades.shape
    scale = min(CELL_PX / width, HIGHEST_PX / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    x0, y0, x1, y1 = ((side - (left if i % 2 == 0 else 0)) * scale for i, side in enumerate(one.frame))
    # The line stays within the picture, however small that is.
    box = [min(max(0, x0), size[0] - 1), min(max(0, y0), size[1] - 1)]
    box += [max(box[0], min(size[0] - 1, x1)), max(box[1], min(size[1] - 1, y1))]
    ImageDraw.Draw(picture).rectangle(box, outline=UNCERTAIN if one.doubts else CERTAIN, width=3)
    return picture


def _sides(one: Thumbnail) -> tuple[int, int]:
    """First column and the one after the last that are shown: those of the body and of the frame."""
    body = np.flatnonzero((one.shades < _AIR).mean(axis=0) > 0.01)
    first, last = (body[0], body[-1] + 1) if body.size else (0, one.shades.shape[1])
    return math.floor(min(first, one.frame[0])) - 2, math.ceil(max(last, one.frame[2])) + 2


def _paler(one: Thumbnail) -> np.ndarray:
    rows, columns = np.indices(one.shades.shape) + 0.5
    x0, y0, x1, y1 = one.frame
    kept = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
    return np.where(kept, one.shades, 255 - (255 - one.shades.astype(int)) * 2 // 5).astype(np.uint8)
