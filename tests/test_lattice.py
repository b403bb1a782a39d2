"""Neighbour codes by hand, and the triangles of a cube that sum up to the mesh of a whole mask."""

import numpy as np
import pytest
from skimage.measure import marching_cubes

from mtvlib.lattice import CORNERS, areas_mm2, neighbour_code, normals, triangles


def test_codes_round_one_voxel():
    """Its eight corners see it in the opposite place each."""
    code = neighbour_code(np.ones((1, 1, 1), bool))
    assert code.shape == (2, 2, 2)
    for corner in CORNERS:
        seen = tuple(1 - step for step in corner)
        assert code[corner] == 1 << CORNERS.index(seen)


def test_codes_of_noise_agree_with_a_plain_count():
    mask = np.random.default_rng(2).random((5, 4, 3)) < 0.5
    padded = np.pad(mask, 1)
    for place, code in np.ndenumerate(neighbour_code(mask)):
        inside = [padded[tuple(np.add(place, corner))] for corner in CORNERS]
        assert code == sum(2**bit for bit, one in enumerate(inside) if one)


def test_a_mask_without_voxels_has_a_lattice_of_background():
    assert not neighbour_code(np.zeros((0, 3, 2), bool)).any()


@pytest.mark.parametrize("method", ["lewiner", "lorensen"])
def test_the_cubes_make_up_the_mesh_of_the_mask(method):
    mask, spacing = np.random.default_rng(3).random((7, 6, 5)) < 0.4, (0.9, 1.3, 3.27)
    points, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, method=method, spacing=spacing)
    a, b, c = (points[faces[:, place]].astype(float) for place in range(3))
    whole = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert areas_mm2(method, *spacing)[neighbour_code(mask)].sum() == pytest.approx(whole, rel=1e-6)


def test_no_mesh_where_all_voxels_are_alike():
    assert areas_mm2("lewiner", 1.0, 1.0, 1.0)[[0, 255]].tolist() == [0, 0]


def test_normals_are_those_of_the_triangles():
    """The cube with one voxel inside holds one triangle, between the middles of its three edges."""
    codes, corners = triangles("lorensen")
    (place,) = np.flatnonzero(codes == 1)
    assert sorted(corners[place].tolist()) == [[0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]
    assert np.abs(normals("lorensen")[place]).tolist() == [0.125, 0.125, 0.125]
