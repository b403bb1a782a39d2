"""Colours that meet in a figure stay apart for the colour-blind, and stand out on paper and on a dark page."""

import numpy as np
import pytest

from mtvlib.palette import COLORS, DARK, DARK_PAPER, HAIRLINE, INK, PAPER

MEET = [("manual", "cnn"), ("primary", "nodes"), ("high_risk", "low_risk"), ("cnn", "outlier"), ("primary", "all"),
        ("nodes", "all"), ("primary", "outlier")]  # fmt: skip
# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ @ np.ones(3)


def linear(colour: str) -> np.ndarray:
    shades = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.clip(XYZ @ np.clip(rgb, 0, 1) / WHITE, 1e-9, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour: str, ground: str) -> float:
    """WCAG 2.1's contrast ratio."""
    light, dark = sorted((float(XYZ[1] @ linear(one)) for one in (colour, ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("eye", DEFICIENCIES)
@pytest.mark.parametrize("pair", MEET, ids="-".join)
@pytest.mark.parametrize("page", ["light", "dark"])
def test_colours_that_meet_stay_apart(eye, pair, page):
    colours = [DARK[COLORS[name]] if page == "dark" else COLORS[name] for name in pair]
    one, other = (lab(np.array(DEFICIENCIES[eye]) @ linear(colour)) for colour in colours)
    assert np.linalg.norm(one - other) > 12  # 2.3 is just noticeable side by side


@pytest.mark.parametrize("name", COLORS)
def test_each_colour_stands_out_on_paper_and_on_a_dark_page(name):
    assert contrast(COLORS[name], PAPER) >= 3  # WCAG 2.1, 1.4.11: graphics
    assert contrast(DARK[COLORS[name]], DARK_PAPER) >= 3


def test_text_is_legible_in_both():
    assert contrast(INK, PAPER) >= 7
    assert contrast(DARK[INK], DARK[PAPER]) >= 7
    assert contrast("#6B7079", PAPER) >= 4.5  # small print
    assert contrast(DARK["#6B7079"], DARK_PAPER) >= 4.5


def test_every_colour_of_figures_has_its_counterpart_in_the_dark():
    assert set(COLORS.values()) | {INK, HAIRLINE, PAPER} <= set(DARK)
