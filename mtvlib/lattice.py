"""Between the voxels: which of the eight voxels round a corner of the lattice are inside a mask, and the mesh there.

Marching cubes lays triangles into each cube of 2 x 2 x 2 voxel centres, whose middle is a corner of the lattice. In a
mask there are 256 such cubes, so that what a mesh adds up to is a table lookup at each corner.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal

import numpy as np

CORNERS = tuple(np.ndindex(2, 2, 2))  # the eight voxels round a corner of the lattice, in the order of the code's bits
Method = Literal["lewiner", "lorensen"]


def neighbour_code(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels round each corner of the lattice are inside: bits, (x + 1, y + 1, z + 1) uint8.

    Beyond the mask (x, y, z) bool there is background.
    """
    code: np.ndarray = np.zeros(np.add(mask.shape, 2), np.uint8)
    code[1:-1, 1:-1, 1:-1] = mask
    code = code[:, :, :-1] | code[:, :, 1:] << 1
    code = code[:, :-1] | code[:, 1:] << 2
    return code[:-1] | code[1:] << 4


@cache
def triangles(method: Method) -> tuple[np.ndarray, np.ndarray]:
    """The triangles in the cubes of all neighbour codes: whose they are (n,), and corners (n, 3, 3) from 0 to 1."""
    from skimage.measure import marching_cubes  # a slow import that delineating a patient does not need

    found = []
    for code in range(1, 255):
        cube = np.zeros((2, 2, 2), np.float32)
        for bit, corner in enumerate(CORNERS):
            cube[corner] = code >> bit & 1
        points, faces, _, _ = marching_cubes(cube, 0.5, method=method)
        found.append(points[faces].astype(float))
    return np.repeat(np.arange(1, 255), [len(corners) for corners in found]), np.concatenate(found)


@cache
def normals(method: Method) -> np.ndarray:
    """Normals of these triangles, each as long as its triangle's area, (n, 3)."""
    _, corners = triangles(method)
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2


@lru_cache(maxsize=16)
def areas_mm2(method: Method, x_mm: float, y_mm: float, z_mm: float) -> np.ndarray:
    """Area of the triangles in the cube of each neighbour code, (256,), between voxels of these sides."""
    codes, _ = triangles(method)
    scaled = normals(method) * (y_mm * z_mm, x_mm * z_mm, x_mm * y_mm)
    return np.bincount(codes, np.linalg.norm(scaled, axis=1), minlength=256)
