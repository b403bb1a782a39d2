"""The reading room's viewer without a browser: what is set or clicked changes what is shown, and nothing else."""

import asyncio

import numpy as np
import pytest

from mtvlib import planes, reading_viewer
from mtvlib.reading_viewer import Viewer, load_fine, load_view, start_of, words_at
from tests.reading import delineated, prepared_study

PLANES = {"transaxial", "coronal", "sagittal"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return delineated(prepared_study(tmp_path_factory.mktemp("project")))


@pytest.fixture
def viewer(study):
    made = Viewer()
    made.show(load_view(study, "a"))
    return made


def pictures(viewer) -> dict[str, bytes]:
    return {name: panel.picture for name, panel in viewer.pictures.items()}


def lines(viewer) -> dict[str, list]:
    return {name: panel.lines for name, panel in viewer.pictures.items()}


def changed(read, viewer, act) -> set[str]:
    before = read(viewer)
    act()
    return {name for name, value in read(viewer).items() if value != before[name]}


def heard(viewer, name, *, steps=0, place=None, large=False):
    viewer.heard(name, viewer.pictures[name], {"steps": steps, "place": place, "large": large})


def test_a_patient_is_loaded_as_far_as_he_is_there(study):
    view = load_view(study, "a")
    assert set(view.masks) == {"man", "cnn"}
    assert view.shape == view.ct.shape == view.masks["cnn"].shape
    assert view.ct.min() == -150  # air, within the network's window


def test_it_opens_at_the_hottest_voxel_of_a_lesion(study, viewer):
    assert viewer.view.masks["man"][tuple(viewer.at)] == 1
    inside = viewer.view.pet[viewer.view.masks["man"] > 0]
    assert viewer.view.pet[tuple(viewer.at)] == inside.max()
    assert {name: slider.value for name, slider in viewer.slices.items()} == dict(
        zip(("sagittal", "coronal", "transaxial"), viewer.at, strict=True)
    )
    assert start_of(viewer.view, []) == [side // 2 for side in viewer.view.shape]


def test_each_control_changes_the_pictures_it_should(viewer):
    assert changed(pictures, viewer, lambda: setattr(viewer.suv, "value", 3.0)) == {*PLANES, "MIP"}
    assert changed(pictures, viewer, lambda: setattr(viewer.layer, "value", "CT")) == PLANES
    assert changed(pictures, viewer, lambda: setattr(viewer.slices["transaxial"], "value", 9)) == {"transaxial"}
    assert viewer.at[2] == 9
    assert changed(pictures, viewer, lambda: setattr(viewer.angle, "value", 90)) == {"MIP"}
    assert viewer.pictures["MIP"].title == "MIP, from the left"


def test_contours_can_be_hidden_and_pictures_stay(viewer):
    both = lines(viewer)
    assert changed(pictures, viewer, lambda: setattr(viewer.shown["man"], "value", False)) == set()
    assert all(len(lines(viewer)[name]) == len(both[name]) - 1 for name in PLANES)
    viewer.shown["man"].value = True
    assert lines(viewer) == both


def test_a_click_takes_all_planes_there(viewer):
    heard(viewer, "transaxial", place=[0.97, 0.03])
    assert viewer.at[:2] == [15, 0]
    assert viewer.pictures["coronal"].cross == planes.place(viewer.view, "coronal", viewer.at)
    heard(viewer, "coronal", place=[0.03, 0.001])
    assert viewer.at == [0, 0, viewer.view.shape[2] - 1]


def test_wheel_and_keys_turn_the_slices_of_that_plane_and_stop_at_the_ends(viewer):
    x, y, z = viewer.at
    heard(viewer, "sagittal", steps=2)
    assert viewer.at == [x + 2, y, z]
    heard(viewer, "coronal", steps=-99)
    assert viewer.at == [x + 2, 0, z]


def test_in_the_projection_the_wheel_turns_and_a_click_goes_to_the_hottest_voxel(viewer):
    heard(viewer, "MIP", steps=-1)
    assert viewer.angle.value == -15
    heard(viewer, "MIP", steps=-12)
    assert viewer.angle.value == 165  # once round
    node = np.argwhere(viewer.view.masks["man"] == 2)[0]
    heard(viewer, "MIP", place=viewer.mip.place(165, node))
    assert viewer.view.pet[tuple(viewer.at)] > 5


def test_every_message_is_answered_so_that_the_browser_may_send_the_next(viewer, monkeypatch):
    answers = []
    monkeypatch.setattr(viewer.pictures["coronal"], "send", answers.append)
    heard(viewer, "coronal", steps=1)
    viewer.clear()
    heard(viewer, "coronal", steps=1)
    assert answers == [{"drawn": True}] * 2


def test_a_double_click_enlarges_and_makes_small_again(viewer):
    heard(viewer, "coronal", large=True)
    assert viewer.panels["coronal"].layout.order == "-1"
    heard(viewer, "coronal", large=True)
    assert viewer.panels["coronal"].layout.order is None


def test_what_lies_under_the_crosshair_is_told_for_the_masks_that_are_shown(viewer):
    x, y, z = viewer.at
    suv = viewer.view.pet[x, y, z]
    text = words_at(viewer.view, viewer.at, ("man", "cnn"))
    assert f"voxel {x + 1}, {y + 1}, {z + 1} · SUV {suv:.1f}" in text
    assert "manual: primary · CNN: primary" in text
    viewer.shown["man"].value = False
    assert "manual" not in viewer.text.value
    assert "CNN: primary" in viewer.text.value


def test_without_ct_there_is_one_layer(tmp_path):
    study = delineated(prepared_study(tmp_path, ct=False))
    viewer = Viewer()
    viewer.show(load_view(study, "a"))
    assert (viewer.layer.value, viewer.layer.disabled) == ("PET", True)
    assert "HU" not in viewer.text.value
    assert load_fine(study, "a").keys() <= {"pet"}


def test_finer_pixels_come_in_when_they_are_read(study, monkeypatch):
    found = {"ct": np.full((64, 64, load_view(study, "a").shape[2]), 40.0, np.float32)}
    monkeypatch.setattr(reading_viewer, "load_fine", lambda study, patient: found)
    viewer = Viewer()

    async def open_and_wait():
        viewer.show(load_view(study, "a"))
        before = viewer.pictures["coronal"].picture
        await viewer.sharpen(study, "a")
        return before

    assert asyncio.run(open_and_wait()) != viewer.pictures["coronal"].picture
    assert viewer.sharpen(study, "a") is None  # no kernel, no loop


def test_pixels_of_the_original_images_are_read_where_these_lie(tmp_path, monkeypatch):
    study = prepared_study(tmp_path)
    assert load_fine(study, "a") == {}  # not from here
    monkeypatch.chdir(tmp_path)
    fine = load_fine(study, "a")
    assert fine["ct"].shape[:2] == (48, 48)  # 4 mm by whole fractions of at least 1.25 mm
    assert fine["pet"].shape[:2] == (16, 16)
