"""The synthetic patients: images and geometry, truth against reference, the known outcome, and the cohort on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from lifelines import CoxPHFitter
from scipy import ndimage
from scipy.stats import rankdata

from mtvlib import anatomy, phantom
from mtvlib.cohort import read_cohort
from mtvlib.errors import InputError
from mtvlib.phantom import make_patient, write_cohort
from mtvlib.volume import Grid, read_image, resample, resample_labels, same_grid, to_array

SEED = 7
FLIPPED = next(i for i in range(200) if phantom._site("main", i, SEED).flip != (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def patients() -> list[phantom.Patient]:
    return [make_patient("main", index, SEED) for index in (0, FLIPPED)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One main and one external patient, drawn in two processes."""
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    write_cohort(out, 1, 1, SEED, processes=2)
    return out


@pytest.fixture(scope="module")
def plans() -> pd.DataFrame:
    """The lesions of 1500 main patients, not drawn: patient, label, volume, uptake, place in the scanner (mm)."""
    rows = []
    for patient in range(1500):
        rng = np.random.default_rng([SEED, patient])
        person = phantom._person(rng, "main")
        off_centre = rng.normal(0, 8)  # patients lie a little beside the middle of the field
        for lesion in phantom._lesions(rng, "main", person["tumour_site"]):
            x, _, z = np.add(lesion.centre, (off_centre, 0, 0))
            rows.append((patient, person["tumour_site"], lesion.label, lesion.volume_ml, lesion.suv, abs(x), z))
    return pd.DataFrame(rows, columns=["patient", "subsite", "label", "volume_ml", "suv", "from_midline", "height"])


def dsc(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    return 2 * sum((a & b).sum() for a, b in pairs) / sum(a.sum() + b.sum() for a, b in pairs)


def auc(a: np.ndarray, b: np.ndarray) -> float:
    """Area under the ROC curve of a feature with values `a` and `b` in two groups, whichever is higher."""
    area = (rankdata(np.concatenate([a, b]))[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / len(a) / len(b)
    return max(area, 1 - area)


# --- images


def test_pet_and_ct_lie_on_different_grids_and_the_reference_on_the_pets(patients):
    for patient in patients:
        assert same_grid(patient.reference, patient.pet)
        assert not same_grid(patient.ct, patient.pet)
        assert (patient.pet.GetPixelID(), patient.ct.GetPixelID()) == (sitk.sitkFloat32, sitk.sitkInt16)
        assert 215 <= Grid.of(patient.pet).size[2] * Grid.of(patient.pet).spacing_mm[2] <= 405


def test_flipped_axes_move_nothing_in_the_room(patients):
    """PET and CT of the flipped site still show the same body at the same place, the nose in front."""
    flipped = patients[1]
    assert Grid.of(flipped.pet).direction != Grid.of(flipped.ct).direction
    grid = Grid.of(resampled := resample(flipped.ct, Grid.of(flipped.pet), outside=-1000.0))
    body_ct, body_pet = to_array(resampled) > -400, to_array(flipped.pet) > 0.15
    assert dsc([(body_ct, body_pet)]) > 0.85
    warm = grid.to_mm(np.argwhere(to_array(flipped.pet) > 4.5))  # mostly the brain: above the middle of the field
    low, high = grid.box_mm()
    assert np.median(warm[:, 2]) > (low[2] + high[2]) / 2


def test_ct_numbers_and_uptake_of_air_body_and_brain(patients):
    for patient in patients:
        pet, ct = to_array(patient.pet), to_array(patient.ct)
        assert np.median(ct[:8, :8]) == pytest.approx(-1000, abs=6)
        assert ct.min() >= -1024
        assert 600 < ct.max() <= 3071
        assert pet.min() >= 0
        assert np.median(pet[:4, :4]) < 0.1
        soft = to_array(resample(patient.ct, Grid.of(patient.pet), outside=-1000.0))
        tissue = pet[(soft > 30) & (soft < 80) & (pet < 4)]
        assert 0.5 < np.median(tissue) < 1.4
        bright, _ = ndimage.label(pet > 3.5)
        brain = pet[bright == np.bincount(bright.ravel())[1:].argmax() + 1]
        assert 4 < np.median(brain) < 16


def test_two_patients_differ_and_the_same_patient_is_bit_identical(patients, written):
    """Alone in this process, and beside another patient in a worker process: the same voxels."""
    mine = patients[0]
    for kind in ("pet", "ct", "reference"):
        theirs = read_image(written / "images" / f"{mine.name}_{kind}.nii.gz")
        np.testing.assert_array_equal(to_array(theirs), to_array(getattr(mine, kind)))
        assert same_grid(theirs, getattr(mine, kind))
    row = pd.read_csv(written / "cohort.csv").iloc[0]
    assert row["true_ttb_ml"] == mine.truth["true_ttb_ml"]
    assert patients[1].truth["true_ttb_ml"] != mine.truth["true_ttb_ml"]


# --- the drawing


def test_enlarging_a_linear_field_gives_the_linear_field():
    x, y, z = np.meshgrid(np.arange(4), np.arange(3), np.arange(5), indexing="ij")
    coarse = (2 * x - 3 * y + 0.5 * z).astype(np.float32)
    fine = anatomy.enlarge(coarse, 4, (11, 8, 15))
    x, y, z = np.meshgrid(*(np.arange(n) / 4 for n in (11, 8, 15)), indexing="ij")
    np.testing.assert_allclose(fine, 2 * x - 3 * y + 0.5 * z, atol=1e-5)


def test_distance_to_a_swept_ellipsoid_against_values_by_hand():
    """Semi-axes 2, 4, 1 swept from (0, 0, 0) to (0, 0, 10): 1 on the surface, beside the middle and beyond an end."""
    ends, radii = np.array([[0.0, 0, 0], [0, 0, 10]]), np.array([2.0, 4, 1])
    points = np.array([[2, 0, 5], [0, 4, 0], [0, 0, 11], [0, 0, 12], [4, 0, 10], [0, 0, 4]], np.float32)
    distance = anatomy.swept_distance(points.T.reshape(3, -1, 1, 1), ends, radii)
    np.testing.assert_allclose(distance.ravel(), [1, 1, 1, 2, 2, 0], atol=1e-6)


def test_the_head_turns_about_the_neck_and_the_chest_stays():
    warp = anatomy.Warp(np.random.default_rng(0), female=False)
    warp.size, warp.amplitudes = np.ones(3), np.zeros((8, 3))
    warp.angles = np.radians([10.0, 0.0, 0.0])
    chest, vertex = warp(np.array([[30.0, 0.0, -120.0], [0.0, 15.0, 200.0]]))
    np.testing.assert_allclose(chest, [30, 0, -120], atol=1e-9)
    np.testing.assert_allclose(vertex, [0, 15 - 270 * np.sin(np.radians(10)), -70 + 270 * np.cos(np.radians(10))])


# --- lesions and reference


def test_a_lesion_is_drawn_with_its_exact_volume_in_free_soft_tissue():
    body = anatomy.draw_body(np.random.default_rng(1), female=True, contrast=False)
    owner = np.zeros(anatomy.SHAPE, np.uint8)
    place = anatomy.LEVELS["II"]
    first = phantom.Lesion(2, place, 1, 5.0, 8.0)
    phantom._grow(body, first, owner, 1, np.random.default_rng(2))
    phantom._grow(body, first, owner, 2, np.random.default_rng(3))  # at the same place: it takes what is left
    for number in (1, 2):
        assert (owner == number).sum() * anatomy.SPACING_MM**3 / 1000 == pytest.approx(5.0, abs=0.02)
    assert np.median(body.suv[owner == 1]) == pytest.approx(8.0, rel=0.15)
    assert body.hu[owner > 0].max() < 300
    assert not body.in_cranium((slice(None),) * 3)[owner > 0].any()


def test_adaptive_threshold_against_values_by_hand():
    """Peak 10 over a background of 2: T = 0.39 (10 - 2) + 2 = 5.12, so the ramp 10, 9, ..., 2 keeps 10 to 6."""
    x = np.arange(41)
    pet = np.broadcast_to(np.maximum(10.0 - np.abs(x - 20), 2.0)[:, None, None], (41, 41, 41)).copy()
    truth = np.zeros(pet.shape, bool)
    truth[16:25, 20, 20] = True
    distance = ndimage.distance_transform_edt(~truth)
    pet[distance > 7.5] = 2.0
    random = np.random.default_rng(0)  # its first number leaves a primary uncorrected
    roi = phantom._delineate(pet, truth, distance, np.ones(pet.shape, bool), phantom.PRIMARY, random)
    np.testing.assert_array_equal(roi, (pet > 5.12) & (distance <= 7))
    assert roi[16:25, 20, 20].all()
    assert not roi[15, 20, 20]


def test_a_touching_neighbour_keeps_its_own_voxels():
    owner = np.zeros((30, 12, 12), np.uint8)
    owner[8:15, 4:8, 4:8], owner[15:20, 4:8, 4:8] = 1, 2
    pet = ndimage.gaussian_filter(np.where(owner > 0, 9.0, 1.0), 1.0)
    reference = phantom._reference(pet, owner, (3.0, 3.0, 3.0), [1, 2], np.random.default_rng(0))
    assert set(np.unique(reference)) == {0, 1, 2}
    assert not (reference[:15] == 2).any()
    assert not (reference[15:] == 1).any()


def test_the_reference_holds_what_is_true(patients):
    for patient in patients:
        labels, voxel_ml = to_array(patient.reference), Grid.of(patient.reference).voxel_ml
        assert set(np.unique(labels)) <= {0, 1, 2}
        assert (labels == 1).any() == (patient.truth["true_primary_ml"] > 0)
        assert (labels == 2).any() == (patient.truth["true_nodes"] > 0)
        assert (labels > 0).sum() * voxel_ml == pytest.approx(patient.truth["true_ttb_ml"], rel=0.5)
        pet = to_array(patient.pet)
        assert np.median(pet[labels > 0]) > 2 * np.median(pet[pet > 0.3])


def test_a_fixed_threshold_does_not_solve_the_task(patients):
    pairs = [(to_array(p.pet) > 2.5, to_array(p.reference) > 0) for p in patients]
    assert dsc(pairs) < 0.35


def test_at_the_networks_voxels_the_lesions_keep_their_volume(patients):
    """Reference onto 2.5 mm as in preparation: nothing is lost that the study would need."""
    reference = patients[0].reference
    grid = Grid.of(reference)
    size = tuple(int(n * s / 2.5) for n, s in zip(grid.size, grid.spacing_mm, strict=True))
    fine = Grid(size, (2.5, 2.5, 2.5), grid.origin_mm, grid.direction)
    volume = (to_array(resample_labels(reference, fine)) > 0).sum() * fine.voxel_ml
    assert volume == pytest.approx((to_array(reference) > 0).sum() * grid.voxel_ml, rel=0.15)


# --- distributions


def test_no_single_feature_tells_node_from_primary(plans):
    primary, node = plans[plans.label == 1], plans[plans.label == 2]
    for feature in ("volume_ml", "suv", "from_midline", "height"):
        assert auc(primary[feature].to_numpy(), node[feature].to_numpy()) < 0.85, feature


def test_lesions_follow_the_papers_numbers(plans):
    """Medians 8.16 and 2.74 ml; 643 primaries in 698 patients, 63 % in the oropharynx; up to 8 nodes."""
    primary, node = plans[plans.label == 1], plans[plans.label == 2]
    assert primary.volume_ml.median() == pytest.approx(8.16, rel=0.15)
    assert node.volume_ml.median() == pytest.approx(2.74, rel=0.15)
    assert len(primary) / 1500 == pytest.approx(643 / 698, abs=0.03)
    assert (primary.subsite == "oropharynx").mean() == pytest.approx(0.63, abs=0.05)
    assert 1.5 < len(node) / 1500 < 2.0
    assert node.groupby("patient").size().max() <= 8
    assert (plans.groupby("patient").label.max() > 0).all()


def test_in_the_hard_world_inflamed_nodes_look_like_metastases(plans):
    """Uptake alone tells the two apart in the usual world, hardly in the hard one; primaries are the same."""
    hard = []
    for patient in range(600):
        rng = np.random.default_rng([SEED, patient])
        lesions = phantom._lesions(rng, "main", phantom._person(rng, "main")["tumour_site"], phantom.HARD)
        hard += [(lesion.label, lesion.suv, lesion.volume_ml) for lesion in lesions]
    hard = pd.DataFrame(hard, columns=["label", "suv", "volume_ml"])
    uptake = {
        name: auc(table.suv[table.label == 2].to_numpy(), table.suv[table.label == 0].to_numpy())
        for name, table in (("usual", plans), ("hard", hard))
    }
    assert uptake["usual"] > 0.85
    assert uptake["hard"] < 0.65
    assert (hard.label == 0).sum() / 600 > 2.5 * (plans.label == 0).sum() / 1500
    assert hard[hard.label == 1].suv.median() == pytest.approx(plans[plans.label == 1].suv.median(), rel=0.1)
    assert hard[hard.label == 2].volume_ml.median() == pytest.approx(
        plans[plans.label == 2].volume_ml.median(), rel=0.1
    )


def test_external_scanners_of_the_hard_world_resolve_less_than_any_of_the_main_ones():
    main = [phantom.HARD.site("main", site) for site in phantom.SITES["main"]]
    assert tuple(main) == phantom.SITES["main"]
    for site in phantom.SITES["external"]:
        assert phantom.HARD.site("external", site).fwhm_mm > max(one.fwhm_mm for one in main)
        assert phantom.USUAL.site("external", site) is site


def test_a_hard_cohort_and_a_usual_one_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "_work", lambda jobs, processes: iter(()))
    monkeypatch.setattr(phantom, "make_patient", lambda *_: pytest.fail("drawn"))
    with pytest.raises(FileNotFoundError):  # nobody was drawn, so there is no table to write
        write_cohort(tmp_path, 1, 0, SEED, hard=True)
    with pytest.raises(InputError, match=r"holds another synthetic cohort: .*'hard': True"):
        write_cohort(tmp_path, 1, 0, SEED)


def test_the_cox_model_finds_the_hazard_ratio_that_was_put_in():
    rng = np.random.default_rng(3)
    ttb = rng.lognormal(np.log(14), 0.9, 4000)
    table = pd.DataFrame([phantom._outcome(rng, float(v), "main") for v in ttb])
    table["doubling"], table["high"] = np.log2(ttb + 1), (ttb > np.median(ttb)).astype(int)

    def hazard_ratio(column: str) -> float:
        columns = table[["followup_months", "death", column]]
        return float(CoxPHFitter().fit(columns, "followup_months", "death").hazard_ratios_[column])

    assert hazard_ratio("doubling") == pytest.approx(phantom.HAZARD_PER_DOUBLING, abs=0.08)
    assert 1.6 < hazard_ratio("high") < 2.2
    assert table.death.mean() == pytest.approx(0.4, abs=0.06)
    assert 28 < table.followup_months.median() < 42
    assert 0.01 < (table.followup_months < 6).mean() < 0.1
    assert table.survival_eligible.mean() == pytest.approx(585 / 698, abs=0.03)


def test_sites_keep_their_shares_from_the_first_patients_on():
    names = [phantom._site("main", i, SEED).name for i in range(100)]
    assert names.count("site_a") == pytest.approx(100 * 269 / 698, abs=4)
    assert {"site_a", "site_b", "site_c"} <= set(names[:8])


# --- the cohort on disk


def test_the_cohort_is_one_the_study_reads(written):
    cohort = read_cohort(written / "cohort.csv")
    assert cohort["patient"].tolist() == ["m0001", "e0001"]
    assert cohort["cohort"].tolist() == ["main", "external"]
    raw = pd.read_csv(written / "cohort.csv")
    assert list(raw.columns) == list(phantom.COLUMNS)
    assert (raw["synthetic"] == 1).all()
    assert (raw["person"] == raw["patient"]).all()
    assert raw["pet"].tolist() == ["images/m0001_pet.nii.gz", "images/e0001_pet.nii.gz"]


def test_the_same_command_completes_what_is_missing_and_keeps_the_rest(written, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(written, out)
    lost, kept = out / "images" / "m0001_pet.nii.gz", out / "images" / "e0001_pet.nii.gz"
    before, untouched = lost.read_bytes(), kept.stat().st_mtime_ns
    table = (out / "cohort.csv").read_bytes()
    lost.unlink()
    (out / "cohort.csv").unlink()
    calls: list[tuple[int, int]] = []
    path = write_cohort(out, 1, 1, SEED, processes=1, progress=lambda done, total: calls.append((done, total)))
    assert path.read_bytes() == table
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == untouched
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize("change", [{"patients": 2}, {"external": 0}, {"seed": SEED + 1}])
def test_a_folder_with_another_cohort_is_refused(written, change):
    arguments = {"patients": 1, "external": 1, "seed": SEED} | change
    with pytest.raises(InputError, match="another synthetic cohort"):
        write_cohort(written, **arguments)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        write_cohort(tmp_path, 1, 0, SEED)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("patients", "external", "seed"), [(0, 3, 1), (-1, 0, 1), (2, -1, 1), (2, 0, -5)])
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, patients, external, seed):
    with pytest.raises(InputError, match=r"found: -?\d"):
        write_cohort(tmp_path / "out", patients, external, seed)
    assert not (tmp_path / "out").exists()
