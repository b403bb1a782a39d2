"""Thresholds: spheres and slabs whose answer can be drawn on paper."""

import numpy as np
import pytest
from scipy import ndimage

from mtvlib import lesions, metrics
from mtvlib.errors import InputError
from mtvlib.thresholds import METHODS, delineate, delineate_all, threshold_methods

MM = (2.5, 2.5, 2.5)
SHAPE = (40, 40, 40)


def distance_mm(centre, shape=SHAPE, spacing_mm=MM):
    """Of each voxel's centre from that of the voxel `centre`."""
    steps = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return np.sqrt(((steps * np.reshape(spacing_mm, (3, 1, 1, 1))) ** 2).sum(0))


def sphere(centre, radius_mm, shape=SHAPE, spacing_mm=MM):
    return distance_mm(centre, shape, spacing_mm) <= radius_mm


def image(*spheres, background=1.0, shape=SHAPE):
    """SUV of spheres (mask, SUV) in a background; later ones cover earlier ones."""
    suv = np.full(shape, background, np.float32)
    for mask, value in spheres:
        suv[mask] = value
    return suv


def seeds(*lesions_, shape=SHAPE):
    labels = np.zeros(shape, np.uint8)
    for mask, label in lesions_:
        labels[mask] = label
    return labels


def test_names_are_safe_for_folders_and_labels_are_for_readers():
    assert threshold_methods()["max_41"] == "41 % of SUVmax"
    assert all(name.replace("_", "").isalnum() for name in threshold_methods())


# --- one lesion


def test_the_methods_take_the_shells_above_their_threshold():
    """An onion of SUV 10, 4.5, 3 and 2 in a background of 1; the seed is its core."""
    core, second, third, fourth = (sphere((20, 20, 20), radius) for radius in (5, 8, 11, 14))
    suv = image((fourth, 2.0), (third, 3.0), (second, 4.5), (core, 10.0))
    found = delineate_all(suv, seeds((core, 1)), MM)
    assert found["suv_2_5"].sum() == third.sum()
    assert found["suv_4_0"].sum() == second.sum()
    assert found["max_41"].sum() == second.sum()  # from 4.1
    assert found["max_50"].sum() == core.sum()  # from 5.0


def test_a_hard_sphere_is_found_whole_by_every_method():
    ball = sphere((20, 20, 20), 12.5)
    assert ball.sum() == 515  # voxels with x2 + y2 + z2 <= 25
    for name, labels in delineate_all(image((ball, 10.0)), seeds((ball, 2)), MM).items():
        np.testing.assert_array_equal(labels, 2 * ball, err_msg=name)


def test_the_adaptive_threshold_settles_where_the_formula_says():
    """SUV falls from 10 at 5 mm to the background of 1 at 15 mm: 0.39 (10 - 1) + 1 = 4.51 is met at 15 - 3.9 mm."""
    away = distance_mm((20, 20, 20))
    suv = 1 + 9 * np.clip((15 - away) / 10, 0, 1)
    found = delineate("adaptive", suv, seeds((away <= 5, 1)), MM)
    np.testing.assert_array_equal(found == 1, away <= 15 - 3.9)
    without_background = delineate("suv_4_0", suv, seeds((away <= 5, 1)), MM)
    assert without_background.sum() > found.sum()


def test_a_warm_background_raises_the_adaptive_threshold_alone():
    away = distance_mm((20, 20, 20))
    suv = 4 + 6 * np.clip((15 - away) / 10, 0, 1)
    found = delineate_all(suv, seeds((away <= 5, 1)), MM)
    np.testing.assert_array_equal(found["adaptive"] == 1, away <= 15 - 3.9)  # 0.39 (10 - 4) + 4
    search_region = delineate("suv_2_5", np.full(SHAPE, 9.0), seeds((away <= 5, 1)), MM)
    np.testing.assert_array_equal(found["suv_4_0"], search_region)  # leaks as far as it may


def test_a_lesion_below_the_threshold_is_empty():
    ball = sphere((20, 20, 20), 10)
    found = delineate_all(image((ball, 2.0)), seeds((ball, 1)), MM)
    assert {name for name, labels in found.items() if not labels.any()} == {"suv_2_5", "suv_4_0"}
    leak = found["max_50"][:, 20, 20]  # the background is at 50 %: to the end of the search region, 10 mm on
    assert leak.tolist() == [0] * 12 + [1] * 17 + [0] * 11


def test_the_threshold_itself_counts():
    ball = sphere((20, 20, 20), 10)
    assert delineate("suv_2_5", image((ball, 2.5)), seeds((ball, 1)), MM).sum() == ball.sum()


def test_only_what_is_connected_to_the_hottest_voxel_counts():
    ball, apart = sphere((16, 20, 20), 5), sphere((22, 20, 20), 2.5)
    suv = image((ball, 10.0), (apart, 9.0))
    region = seeds((sphere((16, 20, 20), 15), 1))  # a region that holds both
    np.testing.assert_array_equal(delineate("max_41", suv, region, MM) > 0, ball)


def test_the_search_ends_at_the_margin():
    rod = np.zeros(SHAPE, bool)
    rod[20, 20, :] = True
    point = seeds()
    point[20, 20, 20] = 1
    for margin_mm, voxels in ((10.0, 9), (9.9, 7), (0.0, 1)):
        assert delineate("max_41", image((rod, 8.0)), point, MM, margin_mm=margin_mm).sum() == voxels


def test_voxels_of_unequal_sides():
    """A sphere of 12 mm in voxels of 2 x 3 x 5 mm; search regions and shells are spheres in mm as well."""
    spacing_mm, shape = (2.0, 3.0, 5.0), (50, 40, 30)
    away = distance_mm((25, 20, 15), shape, spacing_mm)
    suv = 1 + 9 * np.clip((15 - away) / 10, 0, 1)
    found = delineate("adaptive", suv, seeds((away <= 5, 1), shape=shape), spacing_mm)
    np.testing.assert_array_equal(found == 1, away <= 15 - 3.9)
    point = seeds((away == 0, 2), shape=shape)
    everywhere = delineate("suv_2_5", np.full(shape, 9.0), point, spacing_mm)
    np.testing.assert_array_equal(everywhere == 2, away <= 10)


@pytest.mark.parametrize("method", METHODS)
def test_a_lesion_on_the_border(method):
    ball = sphere((0, 0, 39), 10)
    np.testing.assert_array_equal(delineate(method, image((ball, 10.0)), seeds((ball, 1)), MM) > 0, ball)


def test_a_flat_image():
    """The seed's SUV is that of everything: a threshold relative to it takes the search region, a fixed one nothing."""
    point = seeds()
    point[20, 20, 20] = 1
    found = delineate_all(image(), point, MM)
    for name in ("max_41", "max_50", "adaptive"):
        np.testing.assert_array_equal(found[name] > 0, sphere((20, 20, 20), 10))
    assert not found["suv_2_5"].any()


def test_an_image_without_uptake():
    """SUV 0 everywhere: 41 % of 0 is 0, and every voxel reaches it."""
    ball = sphere((20, 20, 20), 5)
    found = delineate_all(image(background=0.0), seeds((ball, 1)), MM)
    assert not found["suv_2_5"].any()
    assert found["adaptive"].any()


# --- several lesions and none


def test_two_lesions_close_by_are_parted_halfway_and_keep_their_classes():
    """Hot all along x, seeds at x = 15 and 20: voxel 17 is nearer to the first, 18 to the second."""
    bar = np.zeros(SHAPE, bool)
    bar[10:26, 20, 20] = True
    points = seeds()
    points[15, 20, 20], points[20, 20, 20] = 1, 2
    found = delineate("suv_2_5", image((bar, 8.0)), points, MM)
    assert found[:, 20, 20].tolist() == [0] * 11 + [1] * 7 + [2] * 7 + [0] * 15
    assert found.sum() == 7 + 14


def test_search_regions_against_all_distances():
    """Nine seeds at random, in voxels of unequal sides: every voxel's nearest seed by all distances."""
    random, spacing_mm, shape = np.random.default_rng(4), np.array([2.0, 3.0, 4.0]), (30, 24, 20)
    points = random.permutation(np.argwhere(np.ones(np.array(shape) // 3)))[:9] * 3 + 1  # no two touch
    labels = seeds(shape=shape)
    labels[tuple(points.T)] = np.arange(9) % 2 + 1
    found = delineate("suv_2_5", np.full(shape, 9.0), labels, spacing_mm, margin_mm=13.0)
    apart = np.argwhere(np.ones(shape))[:, None] * spacing_mm - points * spacing_mm
    away = np.sqrt((apart**2).sum(-1)).reshape(*shape, 9)
    classes = labels[tuple(points.T)]
    first, second = np.sort(away)[..., :2].transpose(3, 0, 1, 2)
    expected = np.where(first <= 13.0, classes[away.argmin(-1)], 0)
    clear = second - first > 1e-6
    assert clear.mean() > 0.8
    assert (found == expected)[clear].all()


def test_a_component_of_a_search_region_is_that_of_another_labelling():
    """Noise above 2.5: what is connected to the seed by faces, edges and corners, or by faces alone."""
    suv = np.random.default_rng(5).uniform(0, 4, SHAPE)
    suv[20, 20, 20] = 9.0
    point = seeds()
    point[20, 20, 20] = 1
    hot = (suv >= 2.5) & sphere((20, 20, 20), 20)
    for connectivity, structure in ((26, np.ones((3, 3, 3))), (6, None)):
        numbers, _ = ndimage.label(hot, structure)
        found = delineate("suv_2_5", suv, point, MM, margin_mm=20.0, connectivity=connectivity)
        np.testing.assert_array_equal(found > 0, numbers == numbers[20, 20, 20])


def test_a_voxel_midway_goes_to_one_of_the_two():
    points = seeds()
    points[16, 20, 20], points[20, 20, 20] = 1, 2
    found = delineate("suv_2_5", image(background=8.0), points, MM)
    assert found[18, 20, 20] == 1
    assert set(found[[17, 19], 20, 20]) == {1, 2}


def test_touching_lesions_of_two_classes_are_two_lesions():
    left, right = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    left[16:20, 18:22, 18:22], right[20:24, 18:22, 18:22] = True, True
    suv = image((left, 10.0), (right, 4.0))
    found = delineate("max_50", suv, seeds((left, 1), (right, 2)), MM)
    assert ((found == 1) == left).all()
    assert ((found == 2) == right).all()  # of its own SUVmax, not of its neighbour's


def test_a_hot_neighbour_is_no_background():
    """An organ of SUV 9 fills most of the shell; with a seed of its own it leaves the lesion's background at 1."""
    away = distance_mm((20, 20, 20))
    organ = (away > 12) & (away < 35) & (np.arange(SHAPE[2]) >= 16)
    suv = np.where(organ, 9.0, 1 + 9 * np.clip((10 - away) / 10, 0, 1))
    alone = delineate("adaptive", suv, seeds((away <= 4, 1)), MM)
    beside = delineate("adaptive", suv, seeds((away <= 4, 1), (organ, 2)), MM) == 1
    np.testing.assert_array_equal(beside, away <= 10 - 3.9)
    assert alone.sum() < beside.sum()


def test_no_lesion_at_all():
    assert not any(labels.any() for labels in delineate_all(image(), seeds(), MM).values())


def test_what_a_reference_as_seed_gives():
    """No lesion is missed, invented or given the other class, so there is no error of classification."""
    primary, node, organ = sphere((12, 12, 12), 9), sphere((26, 26, 26), 5), sphere((12, 30, 30), 10)
    suv = image((primary, 12.0), (node, 6.0), (organ, 15.0))
    reference = seeds((primary, 1), (node, 2))
    for labels in delineate_all(suv, reference, MM).values():
        found = lesions.find_lesions(reference, labels, suv, MM)
        assert [lesion["outcome"] for lesion in found] == ["TP"] * 4
        assert metrics.classification_counts(metrics.contingency(reference, labels))[[1, 3]].tolist() == [0, 0]


def test_memory_order_and_type_of_the_seeds_do_not_matter():
    ball = sphere((20, 20, 20), 9)
    suv, labels = image((ball, 10.0)), seeds((ball, 2))
    expected = delineate("adaptive", suv, labels, MM)
    other = delineate("adaptive", np.asfortranarray(suv), np.asfortranarray(labels.astype(np.int16)), MM)
    np.testing.assert_array_equal(other, expected)
    assert other.dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"method": "otsu"}, r"is no threshold method \(found: otsu\).*suv_2_5"),
        ({"suv": np.ones((3, 4, 5))}, "differ in shape"),
        ({"seeds": np.full(SHAPE, 3, np.uint8)}, "integer classes 0, 1, 2"),
        ({"seeds": np.full(SHAPE, -1, np.int8)}, "integer classes 0, 1, 2"),
        ({"seeds": np.ones(SHAPE)}, "integer classes 0, 1, 2"),
    ],
)
def test_unfit_input_is_refused(change, problem):
    given = {"method": "suv_2_5", "suv": image(), "seeds": seeds()} | change
    with pytest.raises(InputError, match=problem):
        delineate(given["method"], given["suv"], given["seeds"], MM)
