"""Thresholds tried by hand: numbers as `thresholds` and `pet` give them, and what follows which control."""

import numpy as np
import pytest

from mtvlib import pet, thresholds
from mtvlib.planes import OWN, View
from mtvlib.reading_threshold import HERE, KINDS, OFF, Threshold, around_lesions, around_place, in_words, mtv_and_tlg
from mtvlib.reading_viewer import Viewer

SPACING_MM = (5.0, 5.0, 5.0)
METHODS = {"SUV 2.5": "suv_2_5", "41 % of SUVmax": "max_41", "adaptive": "adaptive"}


def reference() -> np.ndarray:
    labels = np.zeros((24, 24, 16), np.uint8)
    labels[4:7, 4:7, 4:7] = 1
    labels[15:18, 15:18, 7:10] = 2
    return labels


def view(seed: int = 0) -> View:
    """Two lesions of SUV 6 on noise, with hottest voxels of 9 and 8."""
    suv = np.random.default_rng(seed).uniform(0.5, 3.0, (24, 24, 16)).astype(np.float32)
    suv[reference() > 0] = 6
    suv[5, 5, 5], suv[16, 16, 8] = 9, 8
    return View("p", suv, None, SPACING_MM, {"man": reference(), "cnn": np.zeros_like(reference())})


@pytest.fixture
def threshold():
    viewer = Viewer()
    made = Threshold(viewer)
    viewer.moved = made.follow
    viewer.show(view())
    made.offer()
    return made


# --- the numbers


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_around_lesions_it_finds_what_thresholds_finds(kind, seed):
    one = view(seed)
    found = around_lesions(one, "man").apply(kind, 0, one.shape)
    np.testing.assert_array_equal(found, thresholds.delineate(METHODS[kind], one.pet, reference(), SPACING_MM))


@pytest.mark.parametrize("kind", METHODS)
def test_around_the_crosshair_it_finds_what_thresholds_finds_from_the_hottest_voxel(kind):
    one = view()
    seed = np.zeros_like(reference())
    seed[16, 16, 8] = 1
    found = around_place(one, (15, 15, 8), 30).apply(kind, 0, one.shape)
    expected = thresholds.delineate(METHODS[kind], one.pet, seed, SPACING_MM, margin_mm=22)
    assert found[16, 16, 8] == 1
    if kind != "SUV 2.5":  # which runs into the noise, to the spheres' different borders
        np.testing.assert_array_equal(found, expected)


def test_own_values_are_suv_and_per_cent():
    one = view()
    assert around_lesions(one, "man").apply("own SUV", 7, one.shape).sum() == 1 + 2  # the two hottest voxels
    percent = around_lesions(one, "man").apply("own %", 70, one.shape)  # 6.3 of 9, 5.6 of 8
    assert [(percent == label).sum() for label in (1, 2)] == [1, 27]


def test_mtv_and_tlg_are_those_of_pet():
    one = view()
    labels = around_lesions(one, "man").apply("41 % of SUVmax", 0, one.shape)
    for target, classes in (("primary", [1]), ("nodes", [2]), ("all", [1, 2])):
        voxels = np.argwhere(np.isin(labels, classes))
        ml, tlg = mtv_and_tlg(one, labels)[target]
        assert ml == pytest.approx(len(voxels) * 0.125)
        assert tlg == pytest.approx(pet.uptake(one.pet, voxels, SPACING_MM).tlg)
    assert mtv_and_tlg(one, np.zeros_like(labels))["all"] == (0, 0)


def test_words_name_the_threshold_and_the_numbers_beside_it():
    one = view()
    labels = around_lesions(one, "man").apply("own %", 70, one.shape)
    assert in_words(one, (labels == 2).astype(np.uint8), "≥ 70 % of SUVmax", HERE) == (
        "≥ 70 % of SUVmax: <b>MTV 3.4 ml</b>, TLG 20 g"
    )
    text = in_words(one, labels, "≥ 70 % of SUVmax", "man")
    assert "<td>0.1</td><td>1</td><td>3.4</td><td>20</td><td>3.5</td><td>22</td>" in text
    assert "manual</td><td>3.4</td><td>21</td>" in text


# --- the controls


def test_every_kind_gives_numbers_and_a_contour_and_off_takes_them_away(threshold):
    for kind in KINDS:
        threshold.kind.value = kind
        assert "MTV" in threshold.text.value
        assert threshold.viewer.view.masks[OWN].any()
        assert any(line["stroke"] == "#E0218A" for line in threshold.viewer.pictures["transaxial"].lines)
    threshold.kind.value = OFF
    assert threshold.text.value == ""
    assert OWN not in threshold.viewer.view.masks
    assert all(line["stroke"] != "#E0218A" for line in threshold.viewer.pictures["transaxial"].lines)


def test_mtv_follows_the_slider_and_the_crosshair(threshold):
    threshold.kind.value = "own SUV"
    assert "SUV ≥ 4.0: <b>MTV 3.4 ml</b>" in threshold.text.value
    threshold.suv.value = 8.5
    assert "SUV ≥ 8.5: <b>MTV 0.1 ml</b>" in threshold.text.value
    threshold.viewer.move_to([16, 16, 8])
    assert threshold.text.value == "SUV ≥ 8.5: nothing"
    threshold.radius.value = 100  # now the other one is within reach
    assert "MTV 0.1 ml" in threshold.text.value


def test_only_the_controls_that_matter_are_there(threshold):
    def there():
        controls = {"radius": threshold.radius, "suv": threshold.suv, "percent": threshold.percent}
        return {name for name, control in controls.items() if control.layout.display != "none"}

    assert there() == set()
    threshold.kind.value = "SUV 2.5"
    assert there() == {"radius"}
    threshold.kind.value = "own %"
    assert there() == {"radius", "percent"}
    threshold.where.value = "man"
    assert there() == {"percent"}


def test_only_delineations_with_lesions_are_offered(threshold):
    assert [value for _, value in threshold.where.options] == [HERE, "man"]  # the CNN found nothing
    threshold.where.value = "man"
    one = view()
    del one.masks["man"]
    threshold.viewer.show(one)
    threshold.offer()
    assert threshold.where.value == HERE
