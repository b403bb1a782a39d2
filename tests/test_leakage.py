import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import tiny_images, tiny_row, write_table
from scipy.spatial.distance import cdist

from mtvlib.cohort import check_cohort
from mtvlib.leakage import Cells, ImagePrint, image_print, same_images, shared_collections
from mtvlib.phantom import make_patient
from mtvlib.volume import Grid, read_scan, resample, to_array, to_image, write_image


@pytest.fixture(scope="module")
def patients():
    """Three phantoms of one site, so of one scanner and one grid."""
    return [make_patient("main", index, 1) for index in (0, 5, 7)]


@pytest.fixture(scope="module")
def prints(patients):
    return {
        "pet": [image_print(patient.pet, "pet") for patient in patients],
        "ct": [image_print(patient.ct, "ct") for patient in patients],
    }


def changed(image, change):
    return to_image(change(to_array(image).astype(np.float32)), Grid.of(image))


def cut(image, low, high, spacing_mm):
    """A part of the field, given as shares of its length along each axis, on other voxels."""
    first, last = Grid.of(image).box_mm()
    start, end = first + np.array(low) * (last - first), first + np.array(high) * (last - first)
    size = tuple(int(side) for side in (end - start) / spacing_mm)
    origin = tuple(float(side) for side in start + spacing_mm / 2)
    outside = float(sitk.GetArrayViewFromImage(image).min())
    return resample(image, Grid(size, (spacing_mm,) * 3, origin), outside=outside)


def turned(image):
    return sitk.PermuteAxes(sitk.Flip(image, (True, False, True), flipAboutOrigin=False), (2, 0, 1))


def without_origin(image):
    grid = Grid.of(image)
    return to_image(to_array(image), Grid(grid.size, grid.spacing_mm, (0.0, 0.0, 0.0), grid.direction))


WHOLE = ((0.03, 0.03, 0.03), (0.97, 0.97, 0.97))
REIMPORTS = {
    "other axes": turned,
    "lost origin": without_origin,
    "2.5 mm": lambda image: cut(image, *WHOLE, 2.5),
    "4 mm": lambda image: cut(image, *WHOLE, 4.0),
    "upper half, 3 mm": lambda image: cut(image, (0, 0, 0.5), (1, 1, 1), 3.0),
    "lower half, 3 mm": lambda image: cut(image, (0, 0, 0), (1, 1, 0.5), 3.0),
    "middle": lambda image: cut(image, (0.3, 0.3, 0.3), (0.7, 0.7, 0.8), 2.0),
}
OF_PET = {
    "Bq/ml": lambda image: changed(image, lambda suv: np.rint(suv * 5230)),
    "wrong scale": lambda image: changed(image, lambda suv: suv * 1.17),
    "half precision": lambda image: changed(image, lambda suv: suv.astype(np.float16).astype(np.float32)),
    "all at once": lambda image: turned(cut(changed(image, lambda suv: np.rint(suv * 900)), (0, 0, 0.4), (1, 1, 1), 4)),
}
OF_CT = {
    "steps of 8 HU": lambda image: changed(image, lambda hu: 8 * np.rint(hu / 8)),
    "clipped": lambda image: changed(image, lambda hu: hu.clip(-1000, 1000)),
}
CASES = [("pet", name) for name in REIMPORTS | OF_PET] + [("ct", name) for name in REIMPORTS | OF_CT]


# --- images


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_another_copy_of_a_scan_is_found_and_taken_for_no_other_patient(patients, prints, kind, name):
    change = (REIMPORTS | (OF_PET if kind == "pet" else OF_CT))[name]
    copy = image_print(change(getattr(patients[1], kind)), kind)
    (pair,) = same_images([*prints[kind], copy])
    assert (pair.first, pair.second) == (1, 3)
    if pair.shift_mm and name != "lost origin":
        assert pair.shift_mm == pytest.approx((0, 0, 0), abs=1)


def test_scans_of_different_patients_are_not_the_same(prints):
    for kind in ("pet", "ct"):
        assert min(len(one.marks_mm) for one in prints[kind]) > 40
        assert same_images(prints[kind]) == []


def test_small_images_without_marks_are_the_same_only_voxel_by_voxel():
    tiny = [image_print(to_image(*tiny_images(seed)["pet"]), "pet") for seed in (0, 1, 0)]
    (pair,) = same_images(tiny)
    assert (pair.first, pair.second, pair.shift_mm) == (0, 2, None)
    assert str(pair) == "every voxel is the same"
    assert same_images([]) == []


def test_the_shift_leads_from_the_first_to_the_second(patients, prints):
    moved = without_origin(patients[0].pet)
    moved = cut(moved, *WHOLE, 3.0)
    (pair,) = same_images([prints["pet"][0], image_print(moved, "pet")])
    assert np.array(pair.shift_mm) == pytest.approx(-np.array(patients[0].pet.GetOrigin()), abs=1)
    assert f"{pair.marks} of {pair.of} marks agree, moved by" in str(pair)


def crowd(n, marks=60, seed=0):
    """Prints of `n` images of 40 cm whose patterns have nothing in common."""
    random = np.random.default_rng(seed)
    low, high = np.zeros(3), np.full(3, 400.0)
    return [
        ImagePrint(bytes([i // 256, i % 256]), low, high, random.uniform(20, 380, (marks, 3)),
                   random.uniform(0.2, 1.0, (marks, 24)))
        for i in range(n)
    ]  # fmt: skip


def test_one_copy_is_found_among_many_images():
    many = crowd(150)
    known = many[123]
    moved = known.marks_mm[:40] + np.array([5.0, -3.0, 100.0])
    many.append(ImagePrint(b"copy", known.low_mm, known.high_mm, moved, known.patterns[:40] + 0.02))
    (pair,) = same_images(many)
    assert (pair.first, pair.second, pair.marks) == (123, 150, 40)
    assert pair.shift_mm == pytest.approx((5, -3, 100))


def test_what_lies_alike_in_two_fields_without_filling_them_is_not_the_same():
    # A couch or a head holder: a few equal marks at one shift among many others.
    one, other = crowd(2)
    other.marks_mm[:8], other.patterns[:8] = one.marks_mm[:8], one.patterns[:8]
    assert same_images([one, other]) == []
    other.marks_mm[:35], other.patterns[:35] = one.marks_mm[:35], one.patterns[:35]
    assert len(same_images([one, other])) == 1


def test_real_scans_are_known_again_by_their_voxels_at_another_size(shared):
    files = sorted((shared / "data/sts/nifti").glob("*/PET_image.nii.gz"))
    images = [read_scan(file) for file in files]
    real = [image_print(image, "pet") for image in images]
    assert (len(real), same_images(real)) == (5, [])
    for number, image in enumerate(images):
        copy = image_print(cut(image * 0.9, *WHOLE, 3.0), "pet")
        assert [pair.first for pair in same_images([*real, copy])] == [number]


def test_two_scans_of_a_person_who_lay_the_same_way_are_told_from_a_copy():
    first, copy, second = crowd(3)
    copy.marks_mm[:55], copy.patterns[:55] = first.marks_mm[:55], first.patterns[:55]
    second.marks_mm[:30], second.patterns[:30] = first.marks_mm[:30], first.patterns[:30]
    (exact,) = same_images([first, dataclasses.replace(first)])
    (stored,) = same_images([first, copy])
    (again,) = same_images([first, second])
    assert (exact.copy, stored.copy, again.copy) == (True, True, False)


# --- the check of a cohort


def written(folder, patient, pet, ct, **changes):
    row = {"patient": patient, "cohort": "main", "site": "A", "pet": f"{patient}_pet.nii.gz"}
    write_image(pet, folder / row["pet"])
    write_image(ct, folder / f"{patient}_ct.nii.gz")
    return row | {"ct": f"{patient}_ct.nii.gz", "reference": "", "person": ""} | changes


def duplicates(folder, rows):
    findings = check_cohort(write_table(folder / "cohort.csv", rows))
    return [finding for finding in findings if finding.code == "duplicate_image"]


@pytest.fixture
def two_rows(patients, tmp_path):
    """Two patients' upper halves on 4 mm voxels, to be quick."""
    small = [[cut(image, (0, 0, 0.4), (1, 1, 1), 4.0) for image in (one.pet, one.ct)] for one in patients[:2]]
    return small, [written(tmp_path, f"P{i}", *images) for i, images in enumerate(small)]


def test_the_same_scan_in_both_cohorts_is_an_error_that_tells_so(two_rows, tmp_path):
    small, rows = two_rows
    assert duplicates(tmp_path, rows) == []
    again = written(tmp_path, "E1", turned(small[0][0] * 1.2), turned(small[0][1]), cohort="external", person="X")
    (finding,) = duplicates(tmp_path, [*rows, again])
    assert (finding.severity, finding.row, finding.patient) == ("error", 4, "E1")
    assert "same PET, stored in another way" in finding.message
    assert "row 2 of the other cohort: external testing would not be external" in finding.message
    assert finding.file.endswith("E1_pet.nii.gz")
    assert "marks agree" in finding.value


def test_the_same_scan_is_an_error_though_the_person_is_the_same(two_rows, tmp_path):
    small, rows = two_rows
    again = written(tmp_path, "P9", *small[0], person="P0")
    (finding,) = duplicates(tmp_path, [*rows, again])
    assert "the same PET, bit for bit, as row 2" in finding.message


@pytest.mark.parametrize(("person", "found"), [("", 1), ("P0", 0)])
def test_a_ct_beside_another_pet_is_an_error_unless_the_person_is_the_same(two_rows, tmp_path, person, found):
    small, rows = two_rows
    mixed = written(tmp_path, "P9", changed(small[0][0], lambda suv: np.roll(suv, 40, 0)[::-1]), small[0][1])
    mixed["person"] = person
    findings = duplicates(tmp_path, [*rows, mixed])
    assert len(findings) == found
    assert all("the same CT" in one.message and "`person`" in one.remedy for one in findings)


# --- collections


def test_collections_that_share_patients_are_known_by_site_collection_or_patient():
    own = {2: ["Head-Neck-PET-CT", "HN-CHUM-001"], 3: ["CHUM", "HN-CHUM-002"], 4: ["Berlin", "P1"]}
    assert shared_collections(own) == []
    (shared,) = shared_collections(own | {5: ["CHUS", "CHUS-010"], 6: ["CHUP", "CHUP-001"]})
    assert (shared.overlap.names, shared.rows) == (("Head-Neck-PET-CT", "HECKTOR"), ([2, 3], [5]))
    (shared,) = shared_collections({2: ["MDA", "MDA-001"], 3: ["MD Anderson", "HNSCC-01-0001"]})
    assert (shared.overlap.names, shared.rows) == (("HNSCC", "HECKTOR"), ([3], [2]))
    assert shared_collections({2: ["MDA", "MDA-001"], 3: ["TCGA-HNSC", "TCGA-BA-4077"]}) == []


@pytest.mark.parametrize(("person", "warned"), [("", True), ("HN-CHUM-001", False)])
def test_overlapping_collections_are_a_warning_until_persons_are_named(tmp_path, person, warned):
    rows = [
        tiny_row(tmp_path, "HN-CHUM-001", seed=0, site="Head-Neck-PET-CT", person=""),
        tiny_row(tmp_path, "CHUM-001", seed=1, site="CHUM", person=person),
    ]
    found = [one for one in check_cohort(write_table(tmp_path / "cohort.csv", rows)) if "collections" in one.code]
    assert len(found) == warned
    for finding in found:
        assert (finding.severity, finding.code) == ("warning", "overlapping_collections")
        assert "Head-Neck-PET-CT and HECKTOR" in finding.message
        assert "`person`" in finding.remedy
        assert "rows 2 and 3" in finding.value


def test_near_patterns_are_those_that_a_comparison_of_all_finds():
    """Ten clouds of a width that makes several hundred pairs near; every third pattern is asked for."""
    random = np.random.default_rng(4)
    patterns = np.repeat(random.normal(0, 0.5, (10, 24)), 60, 0) + random.normal(0, 0.035, (600, 24))
    asked = np.arange(600) % 3 == 0
    near = cdist(patterns, patterns) < 0.2
    expected = {(one, other) for one, other in np.argwhere(near).tolist() if asked[one]}
    assert 1000 < len(expected) < 10_000
    cells = Cells(patterns, 0.2)
    found = [pair for pairs in cells.near(asked) for pair in np.column_stack(pairs).tolist()]
    assert len(found) == len(expected)
    assert set(map(tuple, found)) == expected
    assert (near.sum(axis=1) <= cells.crowd()).all()
    assert list(Cells(np.zeros((0, 24)), 0.2).near(np.zeros(0, bool))) == []
