import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Polygon

from mtvlib.contours import outlines, rasterise, stacked
from mtvlib.errors import Refusal
from mtvlib.volume import Grid

OBLIQUE = tuple(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.4).GetMatrix())
SAGITTAL = (0.0, 0, 1, 1, 0, 0, 0, -1, 0)
MIRRORED = (-1.0, 0, 0, 0, 1, 0, 0, 0, 1)


def square(half, z, centre=(0.0, 0.0)):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half + centre
    return np.column_stack([corners, np.full(4, float(z))])


def circle(radius, z, centre=(0.0, 0.0), n=720):
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.column_stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), np.full(n, z)])


def mask_of(contours, spacing_mm, grid):
    return rasterise(stacked(contours), spacing_mm, grid)[0]


def points_of(grid):
    return grid.to_mm(np.indices(grid.size).reshape(3, -1).T).reshape(*grid.size, 3)


# --- contours to masks


def test_square_with_a_hole_on_paper():
    grid = Grid((5, 5, 1), (1.0,) * 3, (-2.0, -2.0, 0.0))
    mask = mask_of([square(1.6, 0), square(0.6, 0)], 1.0, grid)
    assert mask[..., 0].astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]


def test_keyhole_is_the_same_as_a_contour_of_its_own():
    grid = Grid((40, 40, 1), (0.5,) * 3, (-10.0, -10.0, 0.0))
    outer, inner = square(8, 0), square(3, 0)
    # From the outer corner along a line to the hole, round it the other way, and back along the same line.
    keyhole = np.concatenate([outer, outer[:1], inner[[0, 3, 2, 1]], inner[:1]])
    assert np.array_equal(mask_of([keyhole], 1.0, grid), mask_of([outer, inner], 1.0, grid))
    assert not mask_of([keyhole], 1.0, grid)[20, 20, 0]


def test_arbitrary_polygons_agree_with_matplotlib():
    random = np.random.default_rng(3)
    grid = Grid((60, 50, 1), (1.3, 0.9, 1.0), (-40.0, -20.0, 0.0))
    points = points_of(grid)[..., :2].reshape(-1, 2)
    for _ in range(20):
        angle = np.sort(random.uniform(0, 2 * np.pi, 30))
        polygon = random.uniform(5, 25, (30, 1)) * np.column_stack([np.cos(angle), np.sin(angle)])
        expected = Polygon(polygon, closed=False).contains_points(points).reshape(grid.size)
        assert np.array_equal(mask_of([np.column_stack([polygon, np.zeros(30)])], 1.0, grid), expected)


def test_neighbouring_regions_share_no_voxel_and_leave_none_out():
    # The common edge runs through voxel centres, straight and slanted.
    grid = Grid((9, 9, 1), (1.0,) * 3, (0.0, 0.0, 0.0))
    left = np.array([[-1, -1, 0], [4, -1, 0], [4, 4, 0], [2, 8.5, 0], [-1, 8.5, 0.0]])
    right = np.array([[4, -1, 0], [8.5, -1, 0], [8.5, 8.5, 0], [2, 8.5, 0], [4, 4, 0.0]])
    a, b = mask_of([left], 1.0, grid), mask_of([right], 1.0, grid)
    assert not (a & b).any()
    assert (a | b).all()


@pytest.mark.parametrize("direction", [(1.0, 0, 0, 0, 1, 0, 0, 0, 1), SAGITTAL, MIRRORED, OBLIQUE])
@pytest.mark.parametrize(("plane_mm", "voxel_mm"), [(1.5, (4.0, 4.0, 4.0)), (3.0, (1.0, 1.0, 1.0)), (3.0, (4, 4, 3))])
def test_ball_is_right_to_the_voxel_on_any_grid(direction, plane_mm, voxel_mm):
    radius, centre = 30.0, np.array([3.3, -2.1, 7.7])
    heights = np.arange(-29, 29.5, plane_mm) + 0.25
    contours = [circle(np.sqrt(radius**2 - h**2), h + centre[2], centre[:2]) for h in heights]
    size = tuple(int(90 / side) for side in voxel_mm)
    grid = Grid(size, tuple(map(float, voxel_mm)), (0.0,) * 3, direction)
    shift = centre - grid.to_mm((np.array([size]) - 1) / 2)[0]
    grid = Grid(size, grid.spacing_mm, tuple(shift.tolist()), direction)
    mask, outside = rasterise(stacked(contours), plane_mm, grid)

    x, y, z = np.moveaxis(points_of(grid) - centre, -1, 0)
    nearest = heights[np.argmin(np.abs(z[..., None] - heights), axis=-1)]
    expected = (np.hypot(x, y) < np.sqrt(radius**2 - nearest**2)) & (np.abs(z - nearest) < plane_mm / 2)
    undecided = np.abs(np.hypot(x, y) - np.sqrt(radius**2 - nearest**2)) < 0.01  # a polygon is no circle
    undecided |= np.abs(np.abs(z - nearest) - plane_mm / 2) < 1e-3
    assert np.array_equal(mask[~undecided], expected[~undecided])
    assert outside == 0
    assert mask.sum() * grid.voxel_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.015)


def test_contours_in_tilted_planes():
    turn = np.reshape(OBLIQUE, (3, 3))
    planes = [np.concatenate([square(10, z)[:3], [[-10, 30, z]]]) for z in np.arange(0, 20, 2.0)]
    tilted = [points @ turn.T + (5, 6, 7) for points in planes]
    grid = Grid((60, 60, 50), (1.0,) * 3, (-25.0, -25.0, -10.0))
    inside = (points_of(grid) - (5, 6, 7)) @ turn  # coordinates in which the planes are level
    x, y, z = np.moveaxis(inside, -1, 0)
    expected = (np.abs(x) < 10) & (y > -10) & (y < 20 - x) & (z > -1) & (z < 19)
    assert np.array_equal(mask_of(tilted, 2.0, grid), expected)
    # and on a grid with the same tilt
    grid = Grid((40, 60, 30), (0.9, 0.8, 1.7), tuple(turn @ (-15.03, -13.01, -5) + (5, 6, 7)), OBLIQUE)
    x, y, z = np.moveaxis((points_of(grid) - (5, 6, 7)) @ turn, -1, 0)
    expected = (np.abs(x) < 10) & (y > -10) & (y < 20 - x) & (z > -1) & (z < 19)
    assert np.array_equal(mask_of(tilted, 2.0, grid), expected)


def test_a_slice_half_way_between_two_planes_belongs_to_the_lower_one():
    grid = Grid((9, 9, 5), (1.0,) * 3, (-4.0, -4.0, -1.0))
    mask = mask_of([square(1.5, 0), square(3.5, 2), square(1.5, 4)], 2.0, grid)
    assert mask.sum(axis=(0, 1)).tolist() == [0, 9, 9, 49, 49]  # z -1 to 3


def test_one_missing_plane_is_bridged_where_both_neighbours_agree():
    grid = Grid((60, 21, 7), (1.0,) * 3, (-10.0, -10.0, 0.0))
    forgotten = [square(5.5, 0), square(5.5, 1), square(5.5, 2), square(4.5, 4), square(4.5, 5)]
    stack = stacked(forgotten)
    assert stack.missing(1.0)[0] == 1
    assert rasterise(stack, 1.0, grid)[0].sum(axis=(0, 1)).tolist() == [121, 121, 121, 81, 81, 81, 0]
    two_lesions = [square(5.5, 0), square(5.5, 1), square(5.5, 3, (30, 0)), square(5.5, 4, (30, 0))]
    assert mask_of(two_lesions, 1.0, grid).sum(axis=(0, 1)).tolist() == [121, 121, 0, 121, 121, 0, 0]


def test_wide_gaps_stay_open_and_are_told():
    grid = Grid((21, 21, 10), (1.0,) * 3, (-10.0, -10.0, 0.0))
    stack = stacked([square(5.5, z) for z in (0, 1, 2, 6, 7)])
    assert stack.missing(1.0)[1].tolist() == [4]
    assert (
        rasterise(stack, 1.0, grid)[0].any(axis=(0, 1)).tolist() == [True] * 3 + [False] * 3 + [True] * 2 + [False] * 2
    )


def test_contours_stored_twice_do_not_cancel_each_other():
    grid = Grid((21, 21, 1), (1.0,) * 3, (-10.0, -10.0, 0.0))
    stack = stacked([square(5.5, 0), square(5.5, 0)])
    assert stack.repeated == 1
    assert rasterise(stack, 1.0, grid)[0].sum() == 121


def test_voxels_beyond_the_grid_are_counted():
    # 11 x 11 x 3 voxels, of which those with x > 4 and z > 1 lie beyond; and all of them when the grid lies elsewhere.
    contours = [square(5.5, z) for z in (0, 1, 2)]
    mask, outside = rasterise(stacked(contours), 1.0, Grid((15, 21, 2), (1.0,) * 3, (-10.0, -10.0, 0.0)))
    assert (mask.sum(), outside) == (10 * 11 * 2, 121 * 3 - 10 * 11 * 2)
    for origin in [(100.0, 0, 0), (-100.0, 0, 0), (0, 0, 50.0), (0, 0, -50.0)]:
        mask, outside = rasterise(stacked(contours), 1.0, Grid((9, 9, 9), (1.0,) * 3, origin))
        assert (mask.any(), outside) == (False, 363)


def test_contours_that_have_no_plane_are_refused():
    bent = square(10, 0)
    bent[0, 2] = 5
    cases = {"flat": [square(10, 0), bent], "parallel": [square(10, 0), square(10, 0)[:, [2, 0, 1]]]}
    for contours in cases.values():
        with pytest.raises(Refusal, match="not flat and parallel") as error:
            stacked(contours)
        assert error.value.code == "broken_contours"
    with pytest.raises(Refusal, match=r"too far apart.*1e\+05 mm"):
        stacked([square(10, 0), square(10, 1e5)])


# --- masks to contours


def test_outlines_on_paper():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1], mask[1, 2] = True, True  # an L of three pixels: six corners
    (outline,) = outlines(mask)
    corners = [[0.5, 0.5], [2.5, 0.5], [2.5, 1.5], [1.5, 1.5], [1.5, 2.5], [0.5, 2.5]]
    assert sorted(outline.tolist()) == sorted(corners)
    assert area(outline) == 3
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert sorted(area(outline) for outline in outlines(ring)) == [-1, 9]  # the hole runs the other way round
    assert [area(outline) for outline in outlines(np.eye(2, dtype=bool))] == [1, 1]  # a corner does not join
    assert outlines(np.zeros((3, 3), bool)) == []


def area(outline):
    x, y = outline.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_any_mask_comes_back_from_its_outlines():
    random = np.random.default_rng(5)
    grid = Grid((17, 13, 1), (1.0,) * 3, (0.0,) * 3)
    for density in (0.1, 0.3, 0.5, 0.7, 0.95):
        mask = random.random(grid.size[:2]) < density
        found = outlines(mask)
        assert sum(map(area, found)) == mask.sum()
        for outline in found:  # corners only, each once
            steps = np.diff(np.concatenate([outline, outline[:1]]), axis=0)
            assert np.all((steps != 0).sum(axis=1) == 1)
            assert np.all((steps * np.roll(steps, 1, axis=0)).sum(axis=1) == 0)
        again = mask_of([np.column_stack([one, np.zeros(len(one))]) for one in found], 1.0, grid)
        assert np.array_equal(again[..., 0], mask)
