"""Surfaces drawn on paper, and the same numbers as DeepMind's surface-distance and MONAI where they mean the same."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from mtvlib import surface
from mtvlib.intervals import Bootstrap

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import surface_distance
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

MM = (2.5, 2.5, 2.5)
LONG = (0.9766, 1.3, 3.27)
BOOTSTRAP = Bootstrap(200, seed=1)


def box(*sides, shape=(12, 11, 10)):
    """A mask of a box given by its slices in x, y, z."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


EMPTY = box((0, 0), (0, 0), (0, 0))
ONE = box((5, 6), (5, 6), (5, 6))


def blobs(seed, shape=(23, 21, 19), share=0.25):
    """Smooth random shapes, which reach the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


# --- by hand


def test_the_areas_of_single_elements_by_hand():
    """One voxel of eight: a triangle between three edges' midpoints; four in a layer: a face of the lattice."""
    areas = surface.element_areas_mm2((2.0, 3.0, 6.0))
    corner = np.linalg.norm(np.cross([-1, 1.5, 0], [-1, 0, 3])) / 2
    assert areas[0b00000001] == areas[0b11111110] == pytest.approx(corner)
    assert areas[0b00001111] == pytest.approx(3 * 6)  # the four voxels of the lower x: the layer is y by z
    assert areas[0b00110011] == pytest.approx(2 * 6)
    assert areas[0b01010101] == pytest.approx(2 * 3)
    assert areas[0b10000001] == pytest.approx(2 * corner)  # voxels that meet in the corner alone
    assert (areas[0], areas[255]) == (0, 0)


def test_a_voxel_is_an_octahedron():
    one = surface.surface(ONE, MM)
    assert sorted(map(tuple, one.corners.tolist())) == [(x, y, z) for x in (5, 6) for y in (5, 6) for z in (5, 6)]
    assert one.area_mm2.sum() == pytest.approx(2 * math.sqrt(3) * (2.5 / math.sqrt(2)) ** 2)  # edge a: 2 sqrt(3) a^2


def test_the_area_of_a_ball():
    """Marching cubes overestimate a sphere by about 9 %."""
    points = np.indices((41, 41, 41)) - 20
    ball = surface.surface((points**2).sum(axis=0) <= 15**2, (1.0, 1.0, 1.0))
    assert ball.area_mm2.sum() / (4 * math.pi * 15**2) == pytest.approx(1.09, abs=0.01)


def test_two_voxels_two_voxels_apart():
    """One voxel lies between: half of each surface is 2.5 mm from the other, half 5 mm."""
    values = surface.boundary(ONE, box((7, 8), (5, 6), (5, 6)), MM)
    expected = {"surface_dsc_2_5mm": 0.5, "surface_dsc_5mm": 1.0, "hd95_mm": 5.0, "assd_mm": 3.75}
    assert values == pytest.approx(expected)


def test_a_distance_of_the_tolerance_is_within_it_whatever_the_rounding():
    spacing = (2.5 / 3 * (1 + 1e-12),) * 3
    one, other = box((2, 3), (5, 6), (5, 6)), box((5, 6), (5, 6), (5, 6))
    assert surface.boundary(one, other, spacing)["surface_dsc_2_5mm"] == 1


def test_equal_masks():
    same = surface.boundary(blobs(1), blobs(1), LONG)
    assert same == {"surface_dsc_2_5mm": 1.0, "surface_dsc_5mm": 1.0, "hd95_mm": 0.0, "assd_mm": 0.0}


def test_hd95_leaves_out_five_per_cent_of_the_area_and_not_more():
    """A stray of 8 of 8 + n elements: without weight in a large mask, the whole distance in a small one."""
    large, small = box((2, 9), (2, 9), (2, 9), shape=(40, 12, 12)), box((2, 4), (2, 4), (2, 4), shape=(40, 12, 12))
    stray = box((30, 31), (3, 4), (3, 4), shape=(40, 12, 12))
    assert surface.boundary(large, large | stray, MM)["hd95_mm"] == 0
    assert surface.boundary(small, small | stray, MM)["hd95_mm"] > 60


def test_names_of_columns_and_of_measures_go_together():
    labels = np.where(ONE, 1, 0).astype(np.uint8)
    row = surface.boundaries(labels, np.where(EMPTY, 1, 0).astype(np.uint8), MM)
    assert list(row) == [name for target in ("primary", "nodes", "all") for name in surface.columns(target)]
    assert surface.columns("nodes") == [
        "surface_dsc_2_5mm_nodes",
        "surface_dsc_5mm_nodes",
        "hd95_nodes_mm",
        "assd_nodes_mm",
    ]
    assert (row["surface_dsc_5mm_primary"], row["surface_dsc_5mm_nodes"], row["hd95_all_mm"]) == (0, 1, None)


# --- beside surface-distance and MONAI


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), LONG])
def test_all_256_areas_are_those_of_surface_distance(spacing):
    theirs = create_table_neighbour_code_to_surface_area(spacing)
    reversed_bits = [int(f"{code:08b}"[::-1], 2) for code in range(256)]  # their first bit is our last
    assert surface.element_areas_mm2(spacing)[reversed_bits] == pytest.approx(theirs, abs=1e-6)


def peer(reference, prediction, spacing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = surface_distance.compute_surface_distances(reference, prediction, spacing)
    areas = [found[f"surfel_areas_{side}"] for side in ("gt", "pred")]
    means = surface_distance.compute_average_surface_distance(found)
    return {
        "surface_dsc_2_5mm": surface_distance.compute_surface_dice_at_tolerance(found, 2.5),
        "surface_dsc_5mm": surface_distance.compute_surface_dice_at_tolerance(found, 5),
        "hd95_mm": surface_distance.compute_robust_hausdorff(found, 95),
        "assd_mm": sum(mean * area.sum() for mean, area in zip(means, areas, strict=True)) / sum(map(np.sum, areas)),
    }


MASKS = {
    "blobs": (blobs(1), blobs(2)),
    "one inside the other": (blobs(3, share=0.1), blobs(3, share=0.3)),
    "noise": (np.random.default_rng(4).random((14, 13, 12)) < 0.3, np.random.default_rng(5).random((14, 13, 12)) < 0.5),
    "far apart": (ONE, box((10, 12), (0, 2), (0, 1))),
    "whole array": (np.ones((5, 6, 4), bool), np.ones((5, 6, 4), bool) & (np.indices((5, 6, 4))[0] > 1)),
}


@pytest.mark.parametrize("spacing", [MM, LONG])
@pytest.mark.parametrize("name", MASKS)
def test_the_values_of_surface_distance(name, spacing):
    expected = peer(*MASKS[name], spacing)
    assert surface.boundary(*MASKS[name], spacing) == pytest.approx(expected, abs=1e-6)


def one_hot(mask):
    return torch.tensor(np.stack([~mask, mask])[None])


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing", [MM, LONG])
@pytest.mark.parametrize("name", ["blobs", "one inside the other", "far apart"])
def test_the_surface_dsc_of_monai_with_subvoxels(name, spacing):
    reference, prediction = (np.pad(mask, 1) for mask in MASKS[name])
    for key, tolerance in (("surface_dsc_2_5mm", 2.5), ("surface_dsc_5mm", 5.0)):
        hot = one_hot(prediction), one_hot(reference)
        theirs = compute_surface_dice(*hot, [tolerance], spacing=spacing, use_subvoxels=True)
        assert surface.boundary(reference, prediction, spacing)[key] == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_monais_hd95_is_another_quantity():
    """It takes voxels' centres, each with the same weight: docs/metrics.md."""
    reference, prediction = MASKS["blobs"]
    theirs = compute_hausdorff_distance(one_hot(prediction), one_hot(reference), percentile=95, spacing=MM)
    ours = surface.boundary(reference, prediction, MM)["hd95_mm"]
    assert ours != pytest.approx(float(theirs), abs=1e-6)
    assert ours == pytest.approx(float(theirs), abs=2 * 2.5)


# --- properties


def test_the_border_of_the_array_is_background():
    reference, prediction = blobs(6), blobs(7)
    padded = (np.pad(mask, ((3, 1), (0, 2), (4, 0))) for mask in (reference, prediction))
    assert surface.boundary(*padded, LONG) == surface.boundary(reference, prediction, LONG)


def test_swapping_mirroring_and_memory_order_change_nothing():
    reference, prediction = blobs(8), blobs(9)
    values = surface.boundary(reference, prediction, LONG)
    assert surface.boundary(prediction, reference, LONG) == pytest.approx(values)
    assert surface.boundary(reference[::-1], prediction[::-1], LONG) == pytest.approx(values)
    assert surface.boundary(np.asfortranarray(reference), np.asfortranarray(prediction), LONG) == values


# --- docs/metrics.md is about these; see test_metrics_table


@pytest.mark.parametrize(
    ("reference", "prediction", "overlap"), [(EMPTY, EMPTY, 1.0), (EMPTY, ONE, 0.0), (ONE, EMPTY, 0.0)]
)
def test_empty_masks_have_an_overlap_and_no_distance(reference, prediction, overlap):
    values = surface.boundary(reference, prediction, MM)
    assert values == {"surface_dsc_2_5mm": overlap, "surface_dsc_5mm": overlap, "hd95_mm": None, "assd_mm": None}


def test_an_array_without_voxels_is_empty():
    nothing = np.zeros((0, 0, 0), bool)
    assert surface.boundary(nothing, nothing, MM)["surface_dsc_5mm"] == 1


# --- the summary


def rows(*patients):
    """Volumes and values of patients, each with (man, cnn, surface DSC at 2.5 and 5 mm, HD95, ASSD)."""
    table = np.array([[math.nan if value is None else value for value in patient] for patient in patients], float)
    return table[:, 0], table[:, 1], table[:, 2:]


def test_summary_by_hand():
    given = rows(
        (5, 6, 0.5, 0.9, 4.0, 1.0),
        (2, 2, 0.7, 1.0, 6.0, 2.0),
        (3, 0, 0.0, 0.0, None, None),
        (0, 0, 1.0, 1.0, None, None),
    )
    block = surface.summarise_boundary(*given, BOOTSTRAP, "absent")
    assert block["mean_surface_dsc_2_5mm"] == pytest.approx((0.5 + 0.7 + 0 + 1) / 4)
    assert block["mean_surface_dsc_2_5mm_without_both_empty"] == pytest.approx((0.5 + 0.7) / 3)
    assert block["mean_surface_dsc_5mm"] == pytest.approx(2.9 / 4)
    assert block["median_surface_dsc_5mm"] == pytest.approx(0.95)
    assert (block["median_hd95_mm"], block["median_assd_mm"]) == (5.0, 1.5)
    assert (block["n_distance_undefined"], block["n_one_empty"]) == (2, 1)
    low, high = block["mean_surface_dsc_2_5mm_ci95"]
    assert 0 <= low < block["mean_surface_dsc_2_5mm"] < high <= 1


def test_the_median_is_that_of_the_defined_values():
    sample = np.random.default_rng(3).normal(size=(50, 31, 4))
    sample[np.random.default_rng(4).random(sample.shape) < 0.4] = np.nan
    sample[0, :, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.nanmedian(sample, axis=1)
    assert surface._median(sample) == pytest.approx(expected, nan_ok=True)


def test_distances_that_are_undefined_in_everybody_are_null_with_a_reason():
    block = surface.summarise_boundary(*rows(*[(3, 0, 0, 0, None, None)] * 3), BOOTSTRAP, "absent")
    assert (block["mean_surface_dsc_5mm"], block["median_hd95_mm"], block["n_distance_undefined"]) == (0, None, 3)
    assert block["median_hd95_mm_reason"] == "in no patient do both masks hold the target"
    assert block["mean_surface_dsc_5mm_ci95"][1] > 0  # Wilson: three failures of three are no certainty


def test_nobody_with_the_target_is_null_for_that_reason():
    block = surface.summarise_boundary(*rows(*[(0, 0, 1, 1, None, None)] * 3), BOOTSTRAP, "absent")
    assert (block["reason"], block["mean_surface_dsc_5mm"], block["n_distance_undefined"]) == ("absent", None, 3)


@pytest.mark.parametrize("n", [1, 3])
def test_few_patients_leave_valid_json(n):
    block = surface.summarise_boundary(*rows(*[(5, 6, 0.5, 0.9, 4.0, 1.0)] * n), BOOTSTRAP, "absent")
    json.dumps(block, allow_nan=False)
    assert (block["median_hd95_mm"], block["median_hd95_mm_ci95"] is None) == (4, n == 1)
