"""What the report's viewer reads: images, masks and lesions of a case, told from the file as a browser would."""

import base64
import io
import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtvlib import case_viewer, viewer
from mtvlib.case_viewer import Listed
from mtvlib.classes import NODES, PRIMARY
from mtvlib.viewer import ViewCase


def case(size: int = 24, factor: int = 1, patient: str = "p1", ct: bool = True) -> ViewCase:
    """A cube-shaped patient with a primary on the left side and in front, which the CNN calls a node."""
    reference = np.zeros((size, size, 8), np.uint8)
    reference[18:20, 4:6, 2:5] = PRIMARY
    prediction = np.where(reference > 0, NODES, 0).astype(np.uint8)
    pet = np.full((factor * size, factor * size, 8), 1.0, np.float32)
    pet[(reference > 0).repeat(factor, 0).repeat(factor, 1)] = 25
    return ViewCase(patient, pet, reference, prediction, (5.0, 5.0, 6.0), np.full_like(pet, 40.0) if ct else None)


LESIONS = pd.DataFrame(
    [
        ("cnn", "nodes", "FP", 1.8, 25.0, 18.5, 4.5, 3.0),
        ("man", "primary", "FN", 1.8, np.nan, 18.5, 4.5, 3.0),
        ("man", "nodes", "TP", 0.2, 9.0, 2.0, 3.0, 7.9),
    ],
    columns=["source", "target", "outcome", "volume_ml", "suv_max"] + [f"centroid_{axis}_voxel" for axis in "xyz"],
)


def data_of(script: str) -> dict:
    return json.loads(re.fullmatch(r"mtvViewerCase\((\{.*\})\);\n", script).group(1))


def slices_of(data: dict, kind: str) -> np.ndarray:
    """The images (z, row, column) that the viewer cuts from the sheet."""
    about = data["sheets"][kind]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(about["jpeg"]))))
    cut = []
    for z in range(data["size"][2]):
        row, column = divmod(z, about["columns"])
        top, left = row * about["stepY"], column * about["stepX"]
        cut.append(sheet[top : top + about["height"], left : left + about["width"]])
    return np.array(cut)


def test_masks_come_back_from_their_runs():
    one = case()
    found = np.array(data_of(case_viewer.case_script(one, LESIONS))["labels"]).reshape(-1, 2)
    labels = np.repeat(found[:, 0], found[:, 1]).reshape(one.reference.shape, order="F")
    np.testing.assert_array_equal(labels & 3, one.reference)
    np.testing.assert_array_equal(labels >> 2, one.prediction)


def test_the_patients_left_front_is_the_pictures_right_upper_corner_and_slices_rise():
    images = slices_of(data_of(case_viewer.case_script(case(), LESIONS)), "pet")
    assert images.shape == (8, 24, 24)
    assert images[:, 4:6, 18:20].mean((1, 2)).argsort()[-3:].tolist() == [2, 3, 4] or (
        images[2:5, 4:6, 18:20].min() > 200 and images[[0, 1, 5, 6, 7]].max() < 100
    )


def test_pet_is_stored_so_that_low_uptake_keeps_its_shades():
    data = data_of(case_viewer.case_script(case(ct=False), LESIONS))
    assert (data["suvMost"], list(data["sheets"])) == (25, ["pet"])
    assert 25 * (np.median(slices_of(data, "pet")[0]) / 255) ** 2 == pytest.approx(1.0, abs=0.03)


def test_lesions_come_with_what_a_reader_wants_to_know_and_the_voxel_to_go_to():
    data = data_of(case_viewer.case_script(case(), LESIONS))
    assert data["lesions"][1] == {
        "source": "man",
        "target": "primary",
        "outcome": "FN",
        "volume_ml": 1.8,
        "suv_max": None,
        "centre": [18, 4, 3],
    }
    assert data["lesions"][2]["centre"] == [2, 3, 7]  # rounded, but within the field


def test_the_viewer_opens_at_the_largest_manual_lesion_else_in_the_middle():
    assert data_of(case_viewer.case_script(case(), LESIONS))["start"] == [18, 4, 3]
    assert data_of(case_viewer.case_script(case(), LESIONS[:0]))["start"] == [12, 12, 4]


def test_a_case_of_the_papers_size_keeps_the_weight():
    shape = (128, 128, 133)
    random = np.random.default_rng(0)
    masks = np.zeros(shape, np.uint8)
    ct = random.normal(40, 60, (256, 256, 133)).astype(np.float32)  # noise is the worst that JPEG can get
    pet = random.gamma(2, 1, shape).astype(np.float32)
    script = case_viewer.case_script(ViewCase("big", pet, masks, masks, (2.5, 2.5, 2.5), ct), LESIONS[:0])
    assert len(script) < 2_000_000


def test_the_page_lists_the_cases_and_keeps_the_picture_for_readers_without_scripts():
    best = Listed("p1", 'best "DSC" <0.9>', "viewers/p1.js")
    worst = Listed("p2", "worst", "viewers/p2.js", "External testing")
    page = case_viewer.viewer([best, worst], '<img alt="a plate">')
    listed = json.loads(unescape(re.search(r'data-cases="([^"]*)"', page).group(1)))
    assert [Listed(**one) for one in listed] == [best, worst]
    assert '<img alt="a plate"></div>' in page


def test_the_page_fetches_nothing_but_the_cases_files():
    page = case_viewer.viewer([Listed("p1", "best", "viewers/p1.js")], "")
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(|<link|<iframe", page)
    assert "{{" not in page


def test_viewer_colours_are_those_of_plates():
    page = case_viewer.viewer([Listed("p1", "best", "viewers/p1.js")], "")
    assert all(colour in page for colour in viewer.COLOURS.values())
