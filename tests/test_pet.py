"""Volumes and SUV values by hand and against the IBSI digital phantom."""

import math

import nibabel as nib
import numpy as np
import pytest
from skimage.measure import marching_cubes

from mtvlib import pet


def test_voxel_volume():
    assert pet.voxel_ml((2.5, 2.5, 2.5)) == 0.015625  # paper: (2.5 mm)^3
    assert pet.voxel_ml((4.0, 4.0, 3.0)) == pytest.approx(0.048)


def test_the_peak_sphere_holds_one_millilitre():
    assert 4 / 3 * math.pi * pet.PEAK_RADIUS_MM**3 == pytest.approx(1000)


@pytest.fixture
def phantom(shared):
    """IBSI 1 digital phantom: 5 x 4 x 4 voxels of 2 mm, intensities 1 to 9, 74 voxels in the mask."""
    folder = shared / "data" / "ibsi_phantom"
    image, mask = (nib.load(folder / f"{name}.nii.gz") for name in ("phantom", "mask"))
    spacing = tuple(float(side) for side in image.header.get_zooms())
    return np.asarray(image.dataobj).astype(float), np.argwhere(np.asarray(mask.dataobj) > 0), spacing


def test_ibsi_phantom_intensity_peaks(phantom):
    """Consensus values: loc_peak_loc 2.6, loc_peak_glob 3.1 (tolerance 0, printed to one decimal)."""
    assert round(pet.suv_peak_local(*phantom), 1) == 2.6
    assert round(pet.suv_peak(*phantom), 1) == 3.1


def test_ibsi_phantom_mean_maximum_and_volume(phantom):
    """Consensus values: stat_mean 2.15, stat_max 6, morph_vol_approx 592 mm3 (tolerance 4)."""
    uptake = pet.uptake(*phantom)
    assert (round(uptake.suv_mean, 2), uptake.suv_max) == (2.15, 6)
    assert len(phantom[1]) * pet.voxel_ml(phantom[2]) * 1000 == pytest.approx(592, abs=4)


def test_uptake_by_hand():
    suv = np.zeros((20, 20, 20))
    suv[9:11, 10, 10] = [4, 8]
    uptake = pet.uptake(suv, np.array([[9, 10, 10], [10, 10, 10]]), (10.0, 10.0, 10.0))
    assert (uptake.suv_max, uptake.suv_mean) == (8, 6)
    assert uptake.tlg == pytest.approx(2.0 * 6)  # 2 ml x SUVmean 6
    assert uptake.suv_peak == 8  # at 10 mm the sphere of 6.2 mm radius holds its centre alone


def test_peaks_of_a_large_region_come_in_pieces(monkeypatch):
    suv, region = np.random.default_rng(1).random((9, 8, 7)), np.argwhere(np.ones((9, 8, 7), bool))
    whole = pet.peak_means(suv, region, (2.5, 3.0, 4.0))
    monkeypatch.setattr(pet, "CHUNK", 100)
    assert np.array_equal(pet.peak_means(suv, region, (2.5, 3.0, 4.0)), whole)


def test_peak_averages_the_sphere_also_beyond_the_region():
    suv = np.zeros((9, 9, 9))
    suv[4, 4, 4] = 7
    # At 5 mm: the centre and its six neighbours (5 mm), the twelve at 7.1 mm lie outside.
    assert pet.suv_peak(suv, np.array([[4, 4, 4]]), (5.0, 5.0, 5.0)) == pytest.approx(1)
    # At 4 mm: these and the twelve at 5.7 mm.
    assert pet.suv_peak(suv, np.array([[4, 4, 4]]), (4.0, 4.0, 4.0)) == pytest.approx(7 / 19)
    # Anisotropic: only along x is a neighbour near enough.
    assert pet.suv_peak(suv, np.array([[4, 4, 4]]), (5.0, 7.0, 8.0)) == pytest.approx(7 / 3)


def test_peak_of_uniform_uptake_is_that_uptake_up_to_the_corner_of_the_image():
    suv = np.full((6, 6, 6), 3.0, np.float32)
    assert pet.suv_peak(suv, np.array([[0, 0, 0]]), (2.5, 2.5, 2.5)) == pytest.approx(3)
    assert pet.suv_peak(suv, np.argwhere(suv > 0), (2.5, 2.5, 2.5)) == pytest.approx(3)


def test_peak_is_the_same_in_a_larger_image():
    random = np.random.default_rng(3)
    suv = random.random((30, 30, 30))
    voxels = np.argwhere(np.pad(np.ones((4, 3, 5), bool), 12, constant_values=False))
    shifted = np.pad(suv, ((5, 0), (0, 7), (2, 2)))
    spacing = (2.0, 2.5, 3.0)
    assert pet.suv_peak(shifted, voxels + np.array([5, 0, 2]), spacing) == pytest.approx(
        pet.suv_peak(suv, voxels, spacing)
    )


def test_uptake_of_nothing_is_unknown_and_its_glycolysis_zero():
    assert pet.uptake(np.ones((3, 3, 3)), np.empty((0, 3), int), (2.5, 2.5, 2.5)) == pet.Uptake(None, None, None, 0.0)


def test_ibsi_phantom_mesh_and_asphericity(phantom):
    """Consensus values: morph_area_mesh 388 (tolerance 3), morph_volume 556 (4), morph_asphericity 0.186 (0.001)."""
    _, voxels, spacing = phantom
    area, volume = pet.mesh_area_and_volume(voxels, spacing)
    assert area == pytest.approx(388, abs=3)
    assert volume == pytest.approx(556, abs=4)
    assert pet.asphericity(voxels, spacing) == pytest.approx(0.186, abs=0.001)


def ball(radius_mm, spacing_mm, stretch=1.0):
    sides = [math.ceil(radius_mm * stretch / side) + 1 for side in spacing_mm]
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in sides), indexing="ij"), axis=-1)
    distance = (grid * spacing_mm / radius_mm / np.array([1, 1, stretch])) ** 2
    return np.argwhere(distance.sum(axis=-1) <= 1)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)])
def test_a_ball_of_voxels_has_an_asphericity_of_about_a_tenth(spacing_mm):
    assert 0.08 < pet.asphericity(ball(15, spacing_mm), spacing_mm) < 0.13


def test_a_long_ellipsoid_is_more_aspherical_by_what_geometry_says():
    """A prolate ellipsoid of axes 1, 1, 3: S = 2 pi (1 + 3 arcsin(e) / e), V = 4 pi, e^2 = 8 / 9: 0.182."""
    e = math.sqrt(8 / 9)
    area, volume = 2 * math.pi * (1 + 3 * math.asin(e) / e), 4 * math.pi
    expected = (area**3 / (36 * math.pi * volume**2)) ** (1 / 3)
    spacing = (1.0, 1.0, 1.0)
    long, round_ = (1 + pet.asphericity(ball(12, spacing, stretch), spacing) for stretch in (3, 1))
    assert expected == pytest.approx(1.182, abs=0.001)
    assert long / round_ == pytest.approx(expected, rel=0.02)


def test_one_voxel_has_a_shape():
    """Marching cubes round one voxel: an octahedron with corners half a voxel away, V = 1/6, S = sqrt(3)."""
    area, volume = pet.mesh_area_and_volume(np.array([[3, 4, 5]]), (1.0, 1.0, 1.0))
    assert (area, volume) == (pytest.approx(math.sqrt(3), rel=1e-5), pytest.approx(1 / 6, rel=1e-5))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.3, 3.27)])
def test_the_mesh_is_that_of_marching_cubes(spacing):
    """Of random voxels, among them every ambiguous neighbourhood."""
    region = np.add(np.argwhere(np.random.default_rng(7).random((9, 8, 7)) < 0.5), (3, 0, 5))
    mask = np.zeros((14, 10, 14), np.float32)
    mask[tuple((region + 1).T)] = 1
    corners, faces, _, _ = marching_cubes(mask, 0.5, spacing=spacing)
    a, b, c = (corners[faces[:, place]].astype(float) for place in range(3))
    area, volume = pet.mesh_area_and_volume(region, spacing)
    assert area == pytest.approx(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2, rel=1e-6)
    assert volume == pytest.approx(abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6, rel=1e-6)
