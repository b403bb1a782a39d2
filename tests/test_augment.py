"""Where voxels go when a patch is turned, enlarged, bent or blurred."""

import numpy as np
import pytest
import torch

from mtvlib.augment import (
    Plan,
    apply,
    augment,
    blur_matrix,
    bspline_matrix,
    coarse_matrix,
    draw,
    shift_matrix,
    source_voxels,
    wanted,
    warp,
)
from mtvlib.params import Params
from mtvlib.training import train_fold
from tests.tiny_fold import PARAMS, TRAIN, VALIDATION, assert_same_weights

CHANNELS = ("pet", "ct")
STRONG = {
    "augment_share": 1.0,
    "augment_rotation_deg": 15.0,
    "augment_zoom": 0.2,
    "augment_elastic_mm": 5.0,
    "augment_misalignment_mm": 5.0,
    "augment_suv_scatter": 0.2,
    "augment_noise": 0.05,
    "augment_blur_mm": 8.0,
    "augment_low_resolution": 2.0,
}
NEUTRAL = {name: 1.0 if name == "augment_low_resolution" else 0.0 for name in STRONG if name != "augment_share"}


def patch(side=(32, 32, 16)):
    """A smooth image in both channels and a ball of radius 5 as label, away from the centre."""
    axes = np.meshgrid(*(np.arange(n) for n in side), indexing="ij")
    ball = sum((axis - at) ** 2 for axis, at in zip(axes, (20, 13, 8), strict=True)) <= 25
    waves = np.sin(axes[0] / 5) * np.cos(axes[1] / 6) * np.sin(axes[2] / 4 + 1)
    image = np.stack([0.5 + 0.2 * waves + 0.3 * ball, 0.5 - 0.4 * waves]).astype(np.float32)
    return torch.from_numpy(image), torch.from_numpy(ball.astype(np.int64))


def centre(labels):
    return torch.nonzero(labels == 1).double().mean(0)


# --- nothing happens where nothing is asked for


def test_the_neutral_values_leave_every_bit():
    image, labels = patch()
    out, found = apply(image, labels, Plan(), CHANNELS)
    assert torch.equal(out, image)
    assert torch.equal(found, labels)
    assert not wanted(Params())
    nothing = Params(augment_share=1.0, **NEUTRAL)
    assert not wanted(nothing)
    out, found = augment(image[None], labels[None], nothing, [1, 2])
    assert torch.equal(out[0], image)
    assert torch.equal(found[0], labels)


def test_no_patch_is_changed_with_a_share_of_nothing():
    image, labels = patch()
    out, _ = augment(image[None], labels[None], Params(**(STRONG | {"augment_share": 0.0})), [1])
    assert torch.equal(out[0], image)


def test_about_that_share_of_the_patches_is_changed():
    params = Params(augment_share=0.3, augment_rotation_deg=10.0)
    random = np.random.default_rng(1)
    turned = [draw(params, (8, 8, 8), random).rotation_deg != 0 for _ in range(1000)]
    assert np.mean(turned) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_strength_of_one_kind_does_not_change_the_others(name):
    strong = Params(**STRONG)
    without = strong.model_copy(update={name: NEUTRAL[name]})
    one, other = (draw(params, (16, 16, 8), np.random.default_rng(3)) for params in (strong, without))
    differ = {
        field for field in Plan.__dataclass_fields__ if not np.array_equal(getattr(one, field), getattr(other, field))
    }
    assert len(differ) == 1
    assert getattr(other, differ.pop()) in (0, 1, None, (0, 0, 0))


@pytest.mark.parametrize("name", NEUTRAL)
def test_every_kind_alone_changes_the_image(name):
    image, labels = patch()
    params = Params(augment_share=1.0, **{name: STRONG[name]})
    assert wanted(params)
    out, _ = augment(image[None], labels[None], params, [5])
    assert float((out[0] - image).abs().max()) > 0.005
    assert out.min() >= 0
    assert out.max() <= 1


# --- geometry


def test_a_quarter_turn_takes_x_to_y():
    """About the centre of 5 x 5 voxels: (4, 2) goes to (2, 4), z stays; labels and image alike."""
    image, labels = torch.zeros(1, 5, 5, 3), torch.zeros(5, 5, 3, dtype=torch.int64)
    image[0, 4, 2, 1], labels[4, 2, 1] = 1.0, 2
    turned, found = warp(image, labels, Plan(rotation_deg=90.0))
    assert torch.nonzero(found).tolist() == [[2, 4, 1]]
    assert found[2, 4, 1] == 2
    assert float(turned[0, 2, 4, 1]) == pytest.approx(1.0, abs=1e-5)
    assert float(turned.sum()) == pytest.approx(1.0, abs=1e-4)


def test_zoom_by_hand():
    """Twice as large about the centre (3, 3, 3): what was one voxel beside it is two voxels beside it."""
    labels = torch.zeros(7, 7, 7, dtype=torch.int64)
    labels[4, 3, 3] = 1
    _, found = warp(labels[None].float(), labels, Plan(zoom=2.0))
    assert found[5, 3, 3] == 1
    assert found[3, 3, 3] == 0


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (Plan(rotation_deg=15.0), Plan(rotation_deg=-15.0)),
        (Plan(zoom=1.2), Plan(zoom=1 / 1.2)),
        (Plan(rotation_deg=-40.0, zoom=0.9), Plan(rotation_deg=40.0, zoom=1 / 0.9)),
    ],
)
def test_a_lesion_is_back_at_its_place_after_the_inverse(there, back):
    image, labels = patch()
    moved, seen = warp(image, labels, there)
    returned, found = warp(moved, seen, back)
    assert float((centre(seen) - centre(labels)).norm()) > 0.9
    assert float((centre(found) - centre(labels)).norm()) < 0.3  # of a voxel: twice to the nearest one
    overlap = 2 * float((found * labels).sum()) / float(found.sum() + labels.sum())
    assert overlap > 0.9
    inside = (slice(None), slice(8, 24), slice(8, 24), slice(4, 12))
    assert float((returned - image)[inside].abs().mean()) < 0.02


@pytest.mark.parametrize("plan", [Plan(rotation_deg=25.0), Plan(zoom=1.15), Plan(rotation_deg=-12.0, zoom=0.85)])
def test_volumes_change_by_the_zoom_alone(plan):
    image, labels = patch()
    _, found = warp(image, labels, plan)
    assert int(found.sum()) == pytest.approx(int(labels.sum()) * plan.zoom**3, rel=0.06)


def test_an_elastic_deformation_is_smooth_keeps_volumes_about_and_has_its_size():
    params = Params(augment_share=1.0, augment_elastic_mm=3.0)
    shape, moves, sizes = (32, 32, 16), [], []
    still = source_voxels(shape, Plan())
    for seed in range(60):
        plan = draw(params, shape, np.random.default_rng(seed))
        field = (source_voxels(shape, plan) - still) * params.spacing_mm
        moves.append(float(field.square().mean()) ** 0.5)
        steepest = max(float(field.diff(dim=axis).abs().max()) for axis in range(3))
        assert steepest < 0.8 * params.spacing_mm  # at 1 it would fold
        _, found = warp(*patch(), plan)
        sizes.append(int(found.sum()) / int(patch()[1].sum()))
    assert np.sqrt(np.mean(np.square(moves))) == pytest.approx(3.0, rel=0.15)
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.05)
    assert min(sizes) > 0.6


def test_labels_stay_classes():
    image, _ = patch()
    labels = torch.randint(0, 3, (32, 32, 16))
    _, found = warp(image, labels, Plan(rotation_deg=33.0, zoom=1.1))
    assert found.dtype == torch.int64
    assert set(found.unique().tolist()) == {0, 1, 2}


# --- images alone


def test_misalignment_moves_the_ct_alone_and_by_that_much():
    image, labels = patch()
    out, found = apply(image, labels, Plan(shift=(2.0, -1.0, 0.0)), CHANNELS)
    assert torch.equal(out[0], image[0])
    assert torch.equal(found, labels)
    torch.testing.assert_close(out[1, 2:, :-1], image[1, :-2, 1:])
    half, _ = apply(image, labels, Plan(shift=(0.5, 0.0, 0.0)), CHANNELS)
    torch.testing.assert_close(half[1, 1:], (image[1, 1:] + image[1, :-1]) / 2)


@pytest.mark.parametrize("plan", [Plan(suv_factor=0.9), Plan(blur=3.0)])
def test_uptake_and_sharpness_are_the_pets_alone(plan):
    image, labels = patch()
    out, found = apply(image, labels, plan, CHANNELS)
    assert torch.equal(out[1], image[1])
    assert torch.equal(found, labels)
    assert not torch.equal(out[0], image[0])


def test_a_factor_on_the_suv_is_a_factor():
    image, labels = patch()
    out, _ = apply(image, labels, Plan(suv_factor=1.5), CHANNELS)
    torch.testing.assert_close(out[0], (1.5 * image[0]).clamp(max=1))


def test_a_study_of_pet_alone_is_augmented_as_well():
    image, labels = patch()
    out, _ = augment(image[None, :1], labels[None], Params(channels=["pet"], **STRONG), [1])
    assert out.shape == (1, 1, 32, 32, 16)


def test_blur_keeps_the_total_and_has_its_width():
    """A point far from the border becomes a Gaussian of 5 voxels full width at half maximum: half at 2.5 voxels."""
    matrix = blur_matrix(61, 5.0)
    column = matrix[:, 30]
    assert column.sum() == pytest.approx(1.0, abs=1e-6)
    assert (column[32] + column[33]) / 2 / column[30] == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(matrix.sum(1), 1)


def test_coarser_voxels_by_hand():
    """Four voxels in pairs: means a, b at 0.5 and 2.5; between them linear, beyond them constant."""
    image = np.array([1.0, 3.0, 5.0, 9.0])
    np.testing.assert_allclose(coarse_matrix(4, 2.0) @ image, [2.0, 3.25, 5.75, 7.0])
    np.testing.assert_allclose(coarse_matrix(4, 1.0), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(coarse_matrix(10, 1.7).sum(1), 1)


def test_a_shift_repeats_the_outermost_value():
    np.testing.assert_allclose(shift_matrix(4, 1.0) @ np.array([1.0, 2.0, 3.0, 4.0]), [1, 1, 2, 3])
    np.testing.assert_allclose(shift_matrix(4, -0.25) @ np.array([1.0, 2.0, 3.0, 4.0]), [1.25, 2.25, 3.25, 4])


def test_b_splines_sum_to_one_and_meet_their_values():
    """At a control point the weights are 1/6, 2/3, 1/6."""
    matrix = bspline_matrix(9, 5)
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(matrix[0], [1 / 6, 2 / 3, 1 / 6, 0, 0])
    np.testing.assert_allclose(matrix[4], [0, 1 / 6, 2 / 3, 1 / 6, 0])


# --- the same again


def test_the_same_seed_gives_the_same_bits_and_another_gives_others():
    image, labels = patch()
    batch, params = (image[None].repeat(3, 1, 1, 1, 1), labels[None].repeat(3, 1, 1, 1)), Params(**STRONG)
    first, again, other = (
        augment(*batch, params, seed) for seed in ([1, 0, 5, 2, 7], [1, 0, 5, 2, 7], [1, 0, 5, 2, 8])
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][0], first[0][1])  # each patch has a plan of its own


def test_training_with_augmentation_repeats_and_differs_from_one_without(tmp_path):
    params = PARAMS.model_copy(update={"epochs": 1, **STRONG})
    first = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "first")
    assert_same_weights(first, train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "again"))
    plain = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path / "plain")
    assert plain.history[0].train_loss != first.history[0].train_loss
