"""Whether a screenshot shows the same page as a small reference picture: other fonts may, a missing figure may not.

Both are made small and grey, and cut into bands of blocks. A band of one is sought in the other at about the same
height, as lines of text move when a font is a little wider; a page differs where several bands in a row are not found.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH_PX, BLOCK_PX = 160, 8
LEVELS = 16  # of grey, as the references are kept
MOVED_PX = 10  # how far up or down a band is sought
INK = 5.0  # of 255: what the shades of a block that holds something vary by, at least
DARKER = 40.0  # of 255, mean of a block
FAINTER = 0.35  # a block that varies by so much less or more than the reference's
MOST_OF_A_BAND = 0.45  # share of the blocks that hold something
MOST_IN_A_ROW_PX = 64  # bands that are not found, one below the other
MOST_BANDS = 0.3  # share of all bands that are not found
TALLER = 1.2  # pages that differ so much in height have another layout


def small(picture: Image.Image, width: int | None = None) -> Image.Image:
    """As a reference is kept: narrow (a quarter at most, for pages of a phone), in a few shades of grey."""
    width = width or min(WIDTH_PX, picture.width // 4)
    height = max(1, round(width * picture.height / picture.width))
    shrunk = picture.convert("L").resize((width, height), Image.Resampling.BOX)
    step = 255 / (LEVELS - 1)
    return shrunk.point([round(round(shade / step) * step) for shade in range(256)])


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small(picture).quantize(LEVELS).save(path, optimize=True)


def difference(picture: Image.Image, reference: Image.Image) -> str:
    """What is not as in the reference; empty if nothing is."""
    taller = (picture.height / picture.width) / (reference.height / reference.width)
    if not 1 / TALLER < taller < TALLER:
        return f"it is {taller:.2f} times as high for its width"
    shades = [_shades(one, reference.size) for one in (small(picture, reference.width), reference)]
    lost = _not_found(*shades) | _not_found(*reversed(shades))
    row = BLOCK_PX * _longest_run(lost)
    if row > MOST_IN_A_ROW_PX or lost.mean() > MOST_BANDS:
        places = ", ".join(f"{100 * place / len(lost):.0f} %" for place in np.flatnonzero(lost))
        return f"{lost.mean():.0%} of it differs, {row} of {reference.height} px in a row (at {places} of its height)"
    return ""


def _shades(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Grey shades, rows x columns, brought to a size in whole blocks."""
    columns, rows = (max(1, round(side / BLOCK_PX)) * BLOCK_PX for side in size)
    return np.asarray(picture.convert("L").resize((columns, rows), Image.Resampling.BOX), float)


def _not_found(shades: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each band of the first, whether nothing in the second at about its height looks like it."""
    found = []
    for top in range(0, len(shades), BLOCK_PX):
        band = _features(shades[top : top + BLOCK_PX])
        near = range(max(0, top - MOVED_PX), min(len(other) - BLOCK_PX, top + MOVED_PX) + 1)
        found.append(min(_apart(band, _features(other[start : start + BLOCK_PX])) for start in near))
    return np.array(found) > MOST_OF_A_BAND


def _features(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each block of a band."""
    blocks = band.reshape(BLOCK_PX, -1, BLOCK_PX)
    return blocks.mean((0, 2)), blocks.std((0, 2))


def _apart(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Of the blocks that hold something in either band, the share that differs in its shade or in how much it holds."""
    mean, spread = (np.stack(pair) for pair in zip(one, other, strict=True))
    dark = np.abs(mean[0] - mean[1]) > DARKER
    ink = (spread.max(0) > INK) | dark
    apart = dark | (spread.min(0) < FAINTER * spread.max(0))
    return float(apart[ink].mean()) if ink.any() else 0.0


def _longest_run(flags: np.ndarray) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
