import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID, PET_GRID, tiny_images, tiny_row, write_table
from PIL import Image
from scipy import ndimage

from mtvlib.cohort import assign_folds, check_cohort, read_cohort
from mtvlib.errors import InputError
from mtvlib.params import Params
from mtvlib.prepare import (
    load_patient,
    normalise_ct,
    normalise_pet,
    prepare_cohort,
    prepare_images,
    prepare_part,
    prepare_patient,
)
from mtvlib.study import Study
from mtvlib.volume import Grid, to_array, to_image, write_image

# 32 x 32 voxels of 2.5 mm: 80 mm across, more than the 64 mm of the tiny PET and the 72 mm of its CT.
PARAMS = Params(crop_shape=(32, 32), patch_shape=(32, 32, 32), folds=3)


def row_of(folder, **changes):
    row = tiny_row(folder, "P1") | changes
    return row | {name: str(folder / row[name]) if row[name] else "" for name in ("pet", "ct", "reference")}


def replaced(folder, **arrays):
    """The tiny patient with some images replaced by (array, grid)."""
    row = row_of(folder)
    for name, (array, grid) in arrays.items():
        write_image(to_image(array, grid), row[name])
    return row


def without(name):
    return PARAMS.model_copy(update={"channels": [channel for channel in PARAMS.channels if channel != name]})


# --- writing


def test_images_lie_on_the_study_grid_uncompressed_in_their_types(tmp_path):
    prepare_patient(row_of(tmp_path), PARAMS, tmp_path / "volumes")
    types = {"pet": np.float32, "ct": np.int16, "reference": np.uint8}
    assert {path.name for path in (tmp_path / "volumes/P1").iterdir()} == {
        *(f"{n}.nii" for n in types),
        "prepared.json",
        "overview.png",
    }
    for name, dtype in types.items():
        path = tmp_path / f"volumes/P1/{name}.nii"
        image = nib.load(path)
        assert (image.shape, image.get_data_dtype()) == ((32, 32, 19), dtype)
        assert path.stat().st_size == 352 + 32 * 32 * 19 * np.dtype(dtype).itemsize
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header.get_zooms() == (2.5, 2.5, 2.5)


def test_voxels_agree_with_scipy_and_padding_is_no_uptake_and_air(tmp_path):
    prepare_patient(row_of(tmp_path), PARAMS, tmp_path)
    loaded = load_patient(tmp_path, "P1", PARAMS)
    points = loaded.grid.to_mm(np.indices(loaded.grid.size).reshape(3, -1).T)
    expected = {}
    for name, outside in (("pet", 0), ("ct", -1000)):
        array, grid = tiny_images()[name]
        values = ndimage.map_coordinates(array.astype(float), grid.to_indices(points).T, order=1, mode="nearest")
        expected[name] = np.where(grid.contains(points), values, outside).reshape(loaded.grid.size)
    assert not PET_GRID.contains(points).all()
    assert not CT_GRID.contains(points).all()
    assert np.allclose(loaded.suv, expected["pet"], atol=1e-5)
    hu = np.asarray(nib.load(tmp_path / "P1/ct.nii").dataobj)
    assert np.abs(hu - expected["ct"]).max() <= 0.5 + 1e-3


def test_record_tells_grid_sources_crop_and_reference_but_no_folder(tmp_path):
    row = row_of(tmp_path)
    prepare_patient(row, PARAMS, tmp_path / "volumes")
    text = (tmp_path / "volumes/P1/prepared.json").read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert record["grid"]["size"] == [32, 32, 19]
    assert record["axial_mm"] == {"field": [-2, 46], "kept": [-1.5, 46], "brain": None}
    assert record["doubts"] == []
    assert record["sources"]["pet"]["file"] == "P1_pet.nii.gz"
    assert record["reference"]["fraction"] == 1
    assert record["reference"]["source_ml"] == pytest.approx({"primary": 64 * 0.064, "nodes": 8 * 0.064})
    reference = load_patient(tmp_path / "volumes", "P1", PARAMS).reference
    assert record["reference"]["prepared_ml"]["primary"] == pytest.approx((reference == 1).sum() * 0.015625)
    assert record["warnings"] == []
    assert record["seconds"] > 0


def test_the_overview_shows_the_whole_field_from_the_front_with_the_frame_of_the_crop(tmp_path):
    prepare_patient(row_of(tmp_path), PARAMS, tmp_path)
    record = json.loads((tmp_path / "P1/prepared.json").read_text())
    with Image.open(tmp_path / "P1/overview.png") as picture:
        shades = np.asarray(picture)
    # Pixels of 4 mm are the PET's own voxels: rows from the head down, columns from the right side to the left.
    array, _ = tiny_images()["pet"]
    expected = np.rint(255 * (1 - np.clip(array.max(axis=1) / 8, 0, 1))).T[::-1]
    assert np.abs(shades - expected).max() <= 1
    # The field is 64 x 48 mm, the crop 80 mm wide about its middle and 47.5 mm high from the field's top.
    assert record["overview"] == {"file": "overview.png", "pixel_mm": 4.0, "frame": [-2, 0, 18, 11.88]}


def test_a_doubt_about_the_crop_is_a_warning_and_in_the_table(tmp_path, study):
    short = PARAMS.model_copy(update={"axial_mm": 80.0})
    study = Study(study.params.model_copy(update={"axial_mm": 80.0}))
    tall = Grid((16, 16, 30), (4.0,) * 3, (-30.0, -30.0, -72.0))
    pet = np.random.default_rng(0).uniform(0.5, 1.0, tall.size).astype(np.float32)
    row = replaced(tmp_path / "one", pet=(pet, tall))
    prepare_patient(row, short, tmp_path)
    record = json.loads((tmp_path / "P1/prepared.json").read_text())
    assert record["doubts"][0] == "no brain was found in the PET"
    assert "crop uncertain: no brain was found in the PET" in record["warnings"]
    write_image(to_image(pet, tall), study.source.parent / "images/P2_pet.nii.gz")
    table = prepare_cohort(study, assign_folds(read_cohort(study.source), study.params), say=lambda line: None)
    doubts = table.set_index("patient")["crop_doubts"]
    assert doubts["P2"].startswith("no brain")
    assert doubts["P0"] == ""


def test_a_reference_that_the_crop_cuts_is_told(tmp_path):
    reference = np.zeros(PET_GRID.size, np.uint8)
    reference[:4, 4:8, 4:8] = 2  # its first voxel lies at x = -30 mm; the crop begins at -20 mm
    prepare_patient(
        replaced(tmp_path, reference=(reference, PET_GRID)),
        PARAMS.model_copy(update={"crop_shape": (16, 16)}),
        tmp_path,
    )
    record = json.loads((tmp_path / "P1/prepared.json").read_text())
    assert record["reference"]["fraction"] == 0.25
    assert any("cuts off 75.0 %" in warning for warning in record["warnings"])


def test_a_patient_without_lesions_is_prepared_with_a_warning(tmp_path):
    prepare_patient(replaced(tmp_path, reference=(np.zeros(PET_GRID.size, np.uint8), PET_GRID)), PARAMS, tmp_path)
    record = json.loads((tmp_path / "P1/prepared.json").read_text())
    assert (record["reference"]["fraction"], record["warnings"]) == (None, ["the reference has no lesion"])
    assert load_patient(tmp_path, "P1", PARAMS).reference.max() == 0


def test_a_new_patient_without_reference_and_one_without_ct(tmp_path):
    prepare_patient(row_of(tmp_path), PARAMS, tmp_path)
    prepare_patient(row_of(tmp_path, reference=""), PARAMS, tmp_path)  # what was there before is gone
    assert load_patient(tmp_path, "P1", PARAMS).reference is None
    assert not (tmp_path / "P1/reference.nii").exists()
    prepare_patient(row_of(tmp_path, ct=""), without("ct"), tmp_path)
    loaded = load_patient(tmp_path, "P1", without("ct"))
    assert loaded.inputs.shape == (1, 32, 32, 19)
    with pytest.raises(InputError, match=r"P1.*no CT.*channels"):
        prepare_patient(row_of(tmp_path, ct=""), PARAMS, tmp_path)
    with pytest.raises(InputError, match="no ct"):
        load_patient(tmp_path, "P1", PARAMS)


@pytest.mark.parametrize(("order", "flips"), [((0, 1, 2), (True, True, False)), ((2, 0, 1), (False, True, True))])
def test_a_pet_stored_otherwise_gives_the_same_input(tmp_path, order, flips):
    row = row_of(tmp_path)
    prepare_patient(row, PARAMS, tmp_path / "a")
    for name in ("pet", "reference"):
        stored = sitk.Flip(sitk.PermuteAxes(to_image(*tiny_images()[name]), order), flips, flipAboutOrigin=False)
        write_image(stored, row[name])
    prepare_patient(row, PARAMS, tmp_path / "b")
    a, b = (load_patient(tmp_path / folder, "P1", PARAMS) for folder in "ab")
    assert np.allclose(a.inputs, b.inputs, atol=1e-5)
    assert np.array_equal(a.reference, b.reference)


IMAGES = {name: array for name, (array, _) in tiny_images().items()}
AWAY = Grid((16, 16, 12), (4.0,) * 3, (900.0, 0.0, 0.0))
IN_BQ = {"pet": (IMAGES["pet"] * 5000, PET_GRID)}
BAD = {
    "Bq/ml": (IN_BQ, "cannot be SUV"),
    "NaN": ({"pet": (np.where(IMAGES["reference"] == 2, np.nan, IMAGES["pet"]), PET_GRID)}, "NaN"),
    "constant": ({"ct": (np.zeros(CT_GRID.size, np.int16), CT_GRID)}, "same value"),
    "far apart": ({"reference": (IMAGES["reference"], AWAY)}, "field"),
    "two at once": (IN_BQ | {"ct": (IMAGES["ct"] + 1024, CT_GRID)}, "2 problems"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_and_nothing_is_written(tmp_path, name):
    arrays, problem = BAD[name]
    with pytest.raises(InputError, match=problem) as error:
        prepare_patient(replaced(tmp_path, **arrays), PARAMS, tmp_path / "volumes")
    assert "P1" in str(error.value)
    assert not (tmp_path / "volumes").exists()


# --- loading


def test_pet_is_normalised_by_its_own_extremes_or_by_a_window():
    suv = np.float32([0, 5, 10, 50]).reshape(4, 1, 1)
    by_itself = normalise_pet(suv, PARAMS)
    assert by_itself.ravel() == pytest.approx([0, 0.1, 0.2, 1])
    assert by_itself.dtype == np.float32
    windowed = PARAMS.model_copy(update={"pet_normalization": "window", "pet_window_suv": (0.0, 25.0)})
    assert normalise_pet(suv, windowed).ravel() == pytest.approx([0, 0.2, 0.4, 1])


def test_ct_is_windowed():
    hu = np.int16([-1000, -150, -75, 0, 150, 3000]).reshape(6, 1, 1)
    assert normalise_ct(hu, PARAMS).ravel() == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


def test_channels_come_in_the_order_of_the_parameters(tmp_path):
    prepare_patient(row_of(tmp_path), PARAMS, tmp_path)
    loaded = load_patient(tmp_path, "P1", PARAMS)
    turned = load_patient(tmp_path, "P1", PARAMS.model_copy(update={"channels": ["ct", "pet"]}))
    assert np.array_equal(turned.inputs, loaded.inputs[::-1])
    assert np.array_equal(loaded.inputs[0], normalise_pet(loaded.suv, PARAMS))
    assert (loaded.inputs.dtype, loaded.inputs.min(), loaded.inputs.max()) == (np.float32, 0, 1)


def test_images_in_memory_give_the_same_input_as_files(tmp_path):
    prepare_patient(row_of(tmp_path), PARAMS, tmp_path)
    images = [to_image(*tiny_images()[name]) for name in ("pet", "ct")]
    prepared, loaded = prepare_images(*images, PARAMS), load_patient(tmp_path, "P1", PARAMS)
    assert np.array_equal(prepared.inputs, loaded.inputs)
    assert prepared.grid == loaded.grid
    with pytest.raises(InputError, match="cannot be SUV"):
        prepare_images(images[0] * 5000, images[1], PARAMS)
    with pytest.raises(InputError, match="no CT"):
        prepare_images(images[0], None, PARAMS)


def test_what_cannot_be_loaded_says_so(tmp_path):
    with pytest.raises(InputError, match="not prepared yet"):
        load_patient(tmp_path, "P1", PARAMS)
    prepare_patient(row_of(tmp_path), PARAMS, tmp_path)
    with pytest.raises(InputError, match=r"spacing_mm 2.5 there, 3.0 here"):
        load_patient(tmp_path, "P1", PARAMS.model_copy(update={"spacing_mm": 3.0}))
    pet = tmp_path / "P1/pet.nii"
    pet.write_bytes(pet.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        load_patient(tmp_path, "P1", PARAMS)
    (tmp_path / "P1/prepared.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        load_patient(tmp_path, "P1", PARAMS)


# --- a whole cohort


@pytest.fixture
def study(tiny_cohort, tmp_path):
    path = tiny_cohort(5, {1: {"exclusion": "metal artefacts"}, 4: {"cohort": "external"}})
    return Study(PARAMS.model_copy(update={"cohort": str(path), "studies": str(tmp_path / "studies")}))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}


def test_cohort_is_prepared_once_and_again_only_where_something_changed(study):
    table = assign_folds(read_cohort(study.source), study.params)
    lines = []
    prepared = prepare_cohort(study, table, say=lines.append)
    assert prepared["patient"].tolist() == ["P0", "P2", "P3", "P4"]
    assert sorted(lines) == [f"patient {n} of 4 prepared" for n in (1, 2, 3, 4)]
    written = study.volumes / "prepared.csv"
    before, index = times(study.volumes), written.read_bytes()
    prepare_cohort(study, table, say=lines.append)
    assert times(study.volumes) == before
    assert written.read_bytes() == index
    pet = study.source.parent / "images/P2_pet.nii.gz"
    write_image(to_image(tiny_images(seed=99)["pet"][0], PET_GRID), pet)
    prepare_cohort(study, table, say=lines.append)
    after = times(study.volumes)
    assert {path.parent.name for path in after if after[path] != before[path]} == {"P2"}
    assert written.read_bytes() != index


def test_a_lost_overview_is_made_again(study):
    table = assign_folds(read_cohort(study.source), study.params)
    prepare_cohort(study, table, say=lambda line: None)
    (study.volumes / "P3/overview.png").unlink()
    prepare_cohort(study, table, say=lambda line: None)
    assert (study.volumes / "P3/overview.png").exists()


def test_other_parameters_prepare_again_and_pet_alone_is_kept_though_there_is_a_ct(study):
    table = assign_folds(read_cohort(study.source), study.params)
    prepare_cohort(study, table, say=lambda line: None)
    before = times(study.volumes)
    alone = Study(study.params.model_copy(update={"channels": ["pet"]}))
    prepare_cohort(alone, table, say=lambda line: None)
    after = times(study.volumes)
    assert not any(path.name == "ct.nii" for path in after)
    assert all(after[path] != before[path] for path in after)
    prepare_cohort(alone, table, say=lambda line: None)
    assert times(study.volumes) == after


# --- real data


def centre_of_uptake_mm(suv, grid):
    return grid.to_mm(np.array([ndimage.center_of_mass(suv.astype(float) ** 2)]))[0]


def test_real_scans_shorter_than_the_crop(shared, tmp_path):
    params = Params()
    source = shared / "data/sts/nifti"
    names = {"pet": "PET_image", "ct": "CT_image", "reference": "CT_mask"}
    for folder in sorted(source.iterdir()):
        row = {"patient": folder.name} | {name: str(folder / f"{file}.nii.gz") for name, file in names.items()}
        prepare_patient(row, params, tmp_path)
        loaded = load_patient(tmp_path, folder.name, params)
        assert loaded.inputs.shape[:3] == (2, 128, 128)
        pet = sitk.ReadImage(row["pet"])
        low, high = Grid.of(pet).box_mm()
        assert 0 <= (high - low)[2] - 2.5 * loaded.inputs.shape[3] < 2.5
        # Linear interpolation between 4-5 mm voxels lowers a single hot voxel.
        assert 0.85 < loaded.suv.max() / sitk.GetArrayViewFromImage(pet).max() <= 1
        assert centre_of_uptake_mm(loaded.suv, loaded.grid) == pytest.approx(
            centre_of_uptake_mm(to_array(pet), Grid.of(pet)), abs=1
        )
        volume_ml = loaded.reference.sum() * loaded.grid.voxel_ml
        mask = sitk.ReadImage(row["reference"])
        assert volume_ml == pytest.approx(to_array(mask).sum() * Grid.of(mask).voxel_ml, rel=0.01)


def test_parts_prepare_everyone_once_and_the_cohort_finds_them_done(study):
    table = assign_folds(read_cohort(study.source), study.params)
    for part in (0, 1):
        prepare_part(study, table, part, 2, say=lambda line: None)
    assert not (study.volumes / "prepared.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in study.volumes.rglob("*.*")}
    assert {path.parent.name for path in before} == {"P0", "P2", "P3", "P4"}
    prepared = prepare_cohort(study, table, say=lambda line: None)
    assert prepared["patient"].tolist() == ["P0", "P2", "P3", "P4"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_real_cohort_passes_every_check(shared, tmp_path):
    rows = []
    for folder in sorted((shared / "data/sts/nifti").iterdir()):
        for file in ("PET_image", "CT_image", "PET_mask"):
            (tmp_path / folder.name).mkdir(exist_ok=True)
            (tmp_path / folder.name / f"{file}.nii.gz").write_bytes((folder / f"{file}.nii.gz").read_bytes())
        files = {"pet": "PET_image", "ct": "CT_image", "reference": "PET_mask"}
        paths = {name: f"{folder.name}/{file}.nii.gz" for name, file in files.items()}
        rows.append({"patient": folder.name, "cohort": "main", "site": "TCIA", **paths})
    assert check_cohort(write_table(tmp_path / "cohort.csv", rows), Params()) == []
