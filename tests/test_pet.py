"""Volumes and SUV values by hand and against the IBSI digital phantom."""

import math

import nibabel as nib
import numpy as np
import pytest

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
