import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtvlib import contact, show
from mtvlib.contact import CELL_PX, CERTAIN, COLUMNS, MOST, UNCERTAIN, Thumbnail, sheet


def thumbnail(name="P1", doubts=(), size=(90, 120), frame=(20.0, 5.0, 100.0, 85.0)):
    """A dark disc on white, as a head would look."""
    rows, columns = np.indices(size)
    disc = (rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 < 30**2
    return Thumbnail(name, np.where(disc, 40, 255).astype(np.uint8), frame, 4.0, tuple(doubts))


def drawn(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has(picture, colour):
    """Number of pixels about this colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - rgb).max(axis=2) < 24).sum())


def test_a_sheet_marks_an_uncertain_crop_by_colour_sign_and_words():
    certain, uncertain = (
        drawn(sheet([thumbnail(doubts=doubts)])) for doubts in ((), ("no brain was found in the PET",))
    )
    assert has(certain, CERTAIN) > 1000
    assert has(certain, UNCERTAIN) == 0
    assert has(uncertain, UNCERTAIN) > 1000
    assert has(uncertain, CERTAIN) == 0
    assert uncertain.shape[0] > certain.shape[0]  # for the words


def test_the_frame_lies_where_the_crop_is():
    # Columns 18 to 102 of the picture are shown, those of the frame and two more: 84 pixels become a cell's width.
    picture = np.asarray(contact._framed(thumbnail())).astype(int)
    scale = CELL_PX / 84
    assert picture.shape[:2] == (round(90 * scale), CELL_PX)
    blue = np.abs(picture - [0x21, 0x66, 0xAC]).max(axis=2) < 5
    rows, columns = np.flatnonzero(blue.mean(1) > 0.5), np.flatnonzero(blue.mean(0) > 0.5)
    assert (rows[0], rows[-1]) == pytest.approx((5 * scale, 85 * scale), abs=2)
    assert (columns[0], columns[-1]) == pytest.approx((2 * scale, 82 * scale), abs=2)


def test_what_was_cut_off_is_paler():
    shades = contact._paler(thumbnail(frame=(20.0, 45.0, 100.0, 90.0)))
    assert shades[60, 60] == 40
    assert shades[30, 60] == 255 - (255 - 40) * 2 // 5


@pytest.mark.parametrize("frame", [(-2.0, 0.0, 18.0, 12.0), (-5.0, -3.0, 200.0, 300.0)])
def test_a_frame_beyond_the_picture_and_a_field_of_few_pixels_are_drawn(frame):
    for size in ((12, 16), (1, 1), (450, 112)):
        picture = drawn(sheet([thumbnail(size=size, frame=frame)]))
        assert has(picture, CERTAIN) > 0


def test_long_names_lose_their_middle_and_words_are_broken_into_lines():
    name, *lines = contact._lines(thumbnail("a_pseudonym_that_is_far_too_long_for_a_cell", ["word " * 20]))
    assert "…" in name
    assert name.startswith("a_p")
    assert name.endswith("ell (36 cm)")
    assert len(lines) > 2
    assert max(map(contact._width, [name, *lines])) <= CELL_PX
    assert contact._lines(thumbnail("m0001")) == ["m0001 (36 cm)"]


def test_a_sheet_is_small_and_has_rows_of_eight():
    png = sheet([thumbnail(f"P{i}") for i in range(MOST)])
    assert len(png) < 400_000
    assert drawn(png).shape[1] < COLUMNS * (CELL_PX + 20)


def test_all_uncertain_crops_are_shown_and_of_the_others_what_fits():
    certain, uncertain = [thumbnail(f"P{i}") for i in range(200)], [thumbnail(f"U{i}", ["why"]) for i in range(60)]
    assert [len(one) for one in contact.chosen(certain)] == [MOST]
    sheets = contact.chosen([*uncertain, *certain])
    assert [len(one) for one in sheets] == [MOST, MOST]
    assert sum(bool(one.doubts) for part in sheets for one in part) == 60
    assert contact.chosen(certain[:3]) == [certain[:3]]


@pytest.fixture
def study(tmp_path):
    """Volumes of three patients, the last of which has an uncertain crop."""

    class Volumes:
        volumes = tmp_path

    for name, doubts in (("P1", []), ("P2", []), ("P3", ["no brain was found in the PET"])):
        (tmp_path / name).mkdir()
        one = thumbnail(name)
        Image.fromarray(one.shades).save(tmp_path / name / "overview.png")
        record = {"doubts": doubts, "overview": {"pixel_mm": 4.0, "frame": one.frame}}
        (tmp_path / name / "prepared.json").write_text(json.dumps(record))
    return Volumes()


def test_a_chapter_shows_uncertain_crops_first_and_names_them(study, monkeypatch):
    shown, told = [], []
    monkeypatch.setattr(show, "show_picture", lambda *what: shown.append(what))
    monkeypatch.setattr(show, "text", told.append)
    monkeypatch.setattr(contact, "MOST", 2)
    table = pd.DataFrame({"patient": ["P1", "P2", "P3"]})
    assert [one.patient for one in contact.thumbnails(study, table)] == ["P3", "P1", "P2"]
    contact.show_crops(study, table)
    ((png, label, caption, alt),) = shown
    assert png.startswith(b"\x89PNG")
    assert label == "fig-crop"
    assert "1 of 2 crops are uncertain" in caption
    assert alt.endswith("uncertain crops: P3.")
    assert told == ["1 further patients, none of them with an uncertain crop, are not shown."]
