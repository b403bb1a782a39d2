import gzip
import json
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from scipy import ndimage

from mtvlib import inference, predict
from mtvlib.dicom import read_ct, read_pet_suv, read_series
from mtvlib.errors import InputError
from mtvlib.files import sha256
from mtvlib.params import Params
from mtvlib.prepare import prepare_images
from mtvlib.regions import check_reference, label_map, read_names
from mtvlib.volume import Grid, read_image, same_grid, to_array, to_image, write_image
from tests import test_dicom_import
from tests.conftest import CT_GRID, PET_GRID, tiny_images
from tests.test_inference import saved

PARAMS = Params(
    spacing_mm=4.0,
    crop_shape=(16, 16),
    patch_shape=(16, 16, 16),
    patch_stride=4,
    pet_normalization="window",
    filters=[4, 4, 8],
    units_per_level=1,
    attention_heads=2,
)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # as a PET stored from left to right and front to back


def write_patient(folder, **changes):
    """PET and CT of a tiny patient; `changes`: (array, grid) of one of them."""
    images = tiny_images() | changes
    for name in ("pet", "ct"):
        write_image(to_image(*images[name]), folder / f"{name}.nii.gz")
    return folder / "pet.nii.gz", folder / "ct.nii.gz"


def hot_is_tumour(networks, inputs, depth, stride, from_slice=8):
    """In place of networks: uptake above SUV 5 is primary below slice 8 and node from there on."""
    hot = inputs[0] > 5 / 25
    nodes = hot & (np.arange(inputs.shape[-1]) >= from_slice)
    return np.stack([~hot, hot & ~nodes, nodes]).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path / "folds" / "0", params=PARAMS)


@pytest.fixture
def hot(monkeypatch):
    monkeypatch.setattr(predict, "predict_probabilities", hot_is_tumour)


def interpolated(probabilities, grid, target):
    """Class on another grid by scipy: each probability interpolated, then the highest; class 0 outside of the field."""
    points = target.to_mm(np.indices(target.size).reshape(3, -1).T)
    indices = grid.to_indices(points).T
    maps = [ndimage.map_coordinates(one, indices, order=1, mode="nearest") for one in probabilities]
    inside = grid.contains(points)
    return np.where(inside, np.argmax(maps, axis=0), 0).reshape(target.size), np.ptp(np.sort(maps, axis=0)[1:], axis=0)


def without_small(labels, voxel_ml):
    kept = np.zeros_like(labels)
    for number in (1, 2):
        parts, n = ndimage.label(labels == number, np.ones((3, 3, 3)))
        sizes = ndimage.sum_labels(labels == number, parts, range(1, n + 1)) * voxel_ml
        kept[np.isin(parts, np.flatnonzero(sizes >= 0.1) + 1)] = number
    return kept


def test_label_maps_lie_on_the_own_grids_and_probabilities_are_interpolated_first(tmp_path, model):
    pet, ct = write_patient(
        tmp_path, pet=(tiny_images()["pet"][0], Grid(PET_GRID.size, (4.1, 3.9, 4.3), (-29, -31, 2)))
    )
    predict.predict_patient(model, pet, ct, tmp_path / "out", device="cpu")
    prepared = prepare_images(read_image(pet), read_image(ct), PARAMS)
    networks = [inference.load_model(model).network]
    probabilities = inference.predict_probabilities(networks, prepared.inputs, 16, 4)
    for name, file in (("pet", pet), ("ct", ct)):
        image, grid = read_image(tmp_path / "out" / f"labels_{name}.nii.gz"), Grid.of(read_image(file))
        assert same_grid(image, grid, tolerance_mm=1e-6)
        np.testing.assert_allclose(
            nib.load(tmp_path / "out" / f"labels_{name}.nii.gz").affine, nib.load(file).affine, atol=1e-6
        )
        expected, margin = interpolated(probabilities, prepared.grid, grid)
        assert len(np.unique(expected)) > 1
        clear = margin.reshape(grid.size) > 1e-5  # where two classes are not equal but for rounding
        np.testing.assert_array_equal(to_array(image)[clear], without_small(expected, grid.voxel_ml)[clear])


def test_the_lesion_table_holds_what_one_counts_by_hand(tmp_path, model, hot):
    """Cubes of 4 and 2 voxels of 4 mm: 64 x 0.064 ml and 8 x 0.064 ml, centres at voxel 4.5 and (10.5, 10.5, 8.5)."""
    record = predict.predict_patient(model, *write_patient(tmp_path), tmp_path / "out", device="cpu")
    table = pd.read_csv(tmp_path / "out" / "lesions.csv")
    assert table["target"].tolist() == ["primary", "nodes"]
    assert table["volume_ml"].tolist() == pytest.approx([4.096, 0.512])
    suv, reference = tiny_images()["pet"][0], tiny_images()["reference"][0]
    assert table["suv_max"].tolist() == pytest.approx([suv[reference == 1].max(), suv[reference == 2].max()])
    assert table["tlg"][0] == pytest.approx(suv[reference == 1].sum() * 0.064)
    assert table[["centre_x_mm", "centre_y_mm", "centre_z_mm"]].to_numpy().tolist() == [[-12, -12, 18], [12, 12, 34]]
    assert not table["touches_border"].any()
    assert record["mtv_ml"] == pytest.approx({"primary": 4.096, "nodes": 0.512, "all": 4.608})


@pytest.mark.parametrize("direction", [FLIPPED, (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)])
def test_a_turned_pet_keeps_its_lesions_where_they_are(tmp_path, model, hot, direction):
    """The same voxels under another direction: label map voxel by voxel the same, centre moved with the geometry."""
    # The origin is chosen so that the field stays centred, as the study's grid then falls onto the PET's voxels.
    origin = tuple(-np.reshape(direction, (3, 3)) @ np.array([30.0, 30.0, 0.0]))
    grid = Grid(PET_GRID.size, PET_GRID.spacing_mm, origin, direction)
    pet, ct = write_patient(tmp_path, pet=(tiny_images()["pet"][0], grid))
    predict.predict_patient(model, pet, ct, tmp_path / "out", device="cpu")
    labels = to_array(read_image(tmp_path / "out" / "labels_pet.nii.gz"))
    np.testing.assert_array_equal(labels, tiny_images()["reference"][0])
    table = pd.read_csv(tmp_path / "out" / "lesions.csv")
    x, y, z = np.reshape(direction, (3, 3)) @ [18.0, 18.0, 18.0] + origin  # 4.5 voxels of 4 mm from the origin
    assert table.loc[0, ["centre_x_mm", "centre_y_mm", "centre_z_mm"]].tolist() == pytest.approx([x, y, z])


def test_centres_follow_an_oblique_direction():
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    grid = Grid((5, 5, 5), (2.0, 3.0, 4.0), (10.0, 20.0, 30.0), (cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0))
    labels = np.zeros(grid.size, np.uint8)
    labels[1:3, 2, 1] = 1  # centre (1.5, 2, 1): 3 mm, 6 mm and 4 mm along the axes
    table = predict.lesion_table(to_image(labels, grid), to_image(np.ones(grid.size, np.float32), grid), PARAMS)
    centre = table.loc[0, ["centre_x_mm", "centre_y_mm", "centre_z_mm"]].tolist()
    assert centre == pytest.approx([10 + 3 * cos - 6 * sin, 20 + 3 * sin + 6 * cos, 34], abs=0.05)


def test_no_lesion_is_an_empty_table_and_zero_millilitres(tmp_path, model, monkeypatch):
    def nothing(networks, inputs, depth, stride):
        return np.stack([np.ones(inputs.shape[1:]), *np.zeros((2, *inputs.shape[1:]))])

    monkeypatch.setattr(predict, "predict_probabilities", nothing)
    record = predict.predict_patient(model, *write_patient(tmp_path), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "lesions.csv")
    assert table.empty
    assert list(table.columns) == list(predict.LESION_COLUMNS)
    assert record["mtv_ml"] == {"primary": 0.0, "nodes": 0.0, "all": 0.0}


def test_a_lesion_at_the_edge_of_what_was_analysed_is_said(tmp_path, hot, model):
    """The PET goes on below the study's grid, which cuts the lesion; on the PET's grid it touches no border."""
    array = np.full((16, 16, 30), 0.5, np.float32)
    array[0, 0, 0] = 0.6
    array[4:8, 4:8, 15:22] = 9.0
    ct = np.full((16, 16, 30), -1000, np.int16)
    ct[2:14, 2:14] = 0
    grid = Grid((16, 16, 30), (4.0, 4.0, 4.0), (-30.0, -30.0, 0.0))
    short = saved(tmp_path / "short", params=PARAMS.model_copy(update={"axial_mm": 48.0}))
    files = write_patient(tmp_path, pet=(array, grid), ct=(ct, grid))
    record = predict.predict_patient(short, *files, tmp_path / "out")
    assert record["warnings"][0] == "crop uncertain: no brain was found in the PET"
    assert record["warnings"][-1] == predict.CUT
    assert record["lesions"] > 0
    assert predict.predict_patient(model, *files, tmp_path / "out")["warnings"] == []


def test_the_record_tells_what_it_was_made_from(tmp_path, model):
    pet, ct = write_patient(tmp_path)
    returned = predict.predict_patient(model.parent, pet, ct, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record == returned
    assert record["inputs"] == {"pet": {"sha256": sha256(pet)}, "ct": {"sha256": sha256(ct)}}
    assert record["models"] == [{"weights.safetensors": sha256(model / "weights.safetensors"), "fold": 0}]
    assert record["lesions"] == len(pd.read_csv(tmp_path / "out" / "lesions.csv"))
    assert str(tmp_path) not in json.dumps(record)


def test_several_models_give_the_class_of_the_mean(tmp_path, model):
    saved(tmp_path / "folds" / "1", seed=2, params=PARAMS)
    pet, ct = write_patient(tmp_path)
    predict.predict_patient(tmp_path / "folds", pet, ct, tmp_path / "out")
    prepared = prepare_images(read_image(pet), read_image(ct), PARAMS)
    maps = [
        inference.predict_probabilities(
            [inference.load_model(tmp_path / "folds" / fold).network], prepared.inputs, 16, 4
        )
        for fold in "01"
    ]
    expected = without_small(np.mean(maps, axis=0).argmax(0).astype(np.uint8), PET_GRID.voxel_ml)
    np.testing.assert_array_equal(to_array(read_image(tmp_path / "out" / "labels_pet.nii.gz")), expected)


@pytest.mark.parametrize(
    ("change", "said"), [({"spacing_mm": 5.0}, r"spacing_mm 5\.0, not 4\.0"), ({"folds": 2}, "folds 2")]
)
def test_models_of_two_studies_are_refused(tmp_path, model, change, said):
    saved(tmp_path / "folds" / "1", params=PARAMS.model_copy(update=change))
    with pytest.raises(InputError, match=rf"folds/1/model\.json.*{said}.*one study only"):
        predict.predict_patient(model.parent, *write_patient(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no model here"):
        predict.find_models(tmp_path)


def test_models_of_pet_and_ct_need_a_ct(tmp_path, model):
    pet, _ = write_patient(tmp_path)
    with pytest.raises(InputError, match=r"need a CT.*--ct"):
        predict.predict_patient(model, pet, None, tmp_path / "out")


def test_models_of_pet_alone_need_none_and_take_the_grid_of_one(tmp_path, hot):
    model = saved(tmp_path / "model", params=PARAMS.model_copy(update={"channels": ["pet"]}))
    pet, ct = write_patient(tmp_path)
    with_ct = predict.predict_patient(model, pet, ct, tmp_path / "out")
    assert same_grid(read_image(tmp_path / "out" / "labels_ct.nii.gz"), CT_GRID)
    without = predict.predict_patient(model, pet, None, tmp_path / "out")
    assert with_ct["mtv_ml"] == without["mtv_ml"]
    # Nothing of the earlier run lies beside the new record.
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"labels_pet.nii.gz", "lesions.csv", "preview.png", "record.json"}


def test_a_pet_in_becquerels_is_refused_with_its_file(tmp_path, model):
    files = write_patient(tmp_path, pet=(tiny_images()["pet"][0] * 3000, PET_GRID))
    with pytest.raises(InputError, match=r"pet\.nii\.gz.*cannot be SUV.*Bq/ml.*found: maximum"):
        predict.predict_patient(model, *files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_doubtful_pet_is_a_warning_in_the_record(tmp_path, model):
    files = write_patient(tmp_path, pet=(tiny_images()["pet"][0] / 10, PET_GRID))
    assert "no SUV above 1" in predict.predict_patient(model, *files, tmp_path / "out")["warnings"][0]


def test_the_record_tells_seconds_by_phase_and_memory(tmp_path, model):
    record = predict.predict_patient(model, *write_patient(tmp_path), tmp_path / "out")
    assert set(record["seconds"]) == {"read", "resample", "network", "write"}
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert 50 < record["peak_memory_mb"] < 20_000


def test_the_preview_is_a_picture_of_the_patient_with_the_head_up(tmp_path, model, hot):
    predict.predict_patient(model, *write_patient(tmp_path), tmp_path / "out")
    picture = np.asarray(Image.open(tmp_path / "out" / "preview.png").convert("RGB")).astype(int)
    mip = picture[:, :480]
    inverted = mip.max(axis=2) < 60  # the hot cubes: black in inverted grey
    rows = np.flatnonzero(inverted[:, 60:200].sum(axis=1) > 40)  # the patient's right: the primary, slices 3 to 6
    other = np.flatnonzero(inverted[:, 290:400].sum(axis=1) > 25)  # the left: the node, slices 8 and 9, nearer the head
    assert other.mean() < rows.mean()


# --- DICOM in, DICOM out


@pytest.fixture
def examination(tmp_path):
    """A folder with PET and CT of one examination as DICOM: a primary of 4 x 4 x 4 voxels and a node of 2 x 2 x 2."""
    suv = test_dicom_import.suv()
    suv[11:13, 5:7, 8:10] = 7.0
    folder = tmp_path / "examination"
    test_dicom_import.write_series(folder, "PT", "DOE-1", values=suv)
    test_dicom_import.write_series(folder, "CT", "DOE-1")
    return folder


def test_dicom_gives_what_the_same_images_give_as_nifti(tmp_path, model, hot, examination):
    pet, ct = (folder for folder in sorted((examination / "DOE-1").iterdir(), reverse=True))
    record = predict.predict_patient(model, pet, ct, tmp_path / "out")
    assert predict.predict_patient(model, examination, None, tmp_path / "one")["mtv_ml"] == record["mtv_ml"]
    images = {"pet": read_pet_suv(pet), "ct": read_ct(read_series(ct.glob("*.dcm"))[0]).image}
    for name, image in images.items():
        write_image(image, tmp_path / f"{name}.nii.gz")
    again = predict.predict_patient(model, tmp_path / "pet.nii.gz", tmp_path / "ct.nii.gz", tmp_path / "nifti")
    assert again["mtv_ml"] == pytest.approx(record["mtv_ml"])
    for name in ("pet", "ct"):
        found, expected = (read_image(tmp_path / place / f"labels_{name}.nii.gz") for place in ("out", "nifti"))
        assert same_grid(found, expected)
        np.testing.assert_array_equal(to_array(found), to_array(expected))


def test_segmentation_and_structure_set_hold_the_label_map_and_the_patients_own_header(
    tmp_path, model, monkeypatch, examination
):
    monkeypatch.setattr(predict, "predict_probabilities", partial(hot_is_tumour, from_slice=6))
    predict.predict_patient(model, examination, None, tmp_path / "out", to=("nifti", "seg", "rtstruct"))
    names = read_names(None)
    for image in ("pet", "ct"):
        labels = read_image(tmp_path / "out" / f"labels_{image}.nii.gz")
        assert set(np.unique(to_array(labels))) == {0, 1, 2}
        for form in ("seg", "rtstruct"):
            dataset = pydicom.dcmread(tmp_path / "out" / f"{form}_{image}.dcm")
            assert (dataset.PatientID, str(dataset.PatientName)) == ("DOE-1", "Müller^Jörg")
            modality = {"pet": "PT", "ct": "CT"}[image]
            source = pydicom.dcmread(next((examination / "DOE-1" / f"DOE-1_{modality}").glob("*.dcm")))
            check_reference(dataset, source.FrameOfReferenceUID, [source.SeriesInstanceUID])
            found = label_map(dataset, Grid.of(labels), names)
            np.testing.assert_array_equal(to_array(found.image), to_array(labels))


def test_nothing_but_segmentation_and_structure_set_names_the_patient(tmp_path, model, hot, examination, capfd):
    predict.predict_patient(model, examination, None, tmp_path / "out", to=("nifti", "seg", "rtstruct"))
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".dcm":
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            for secret in (b"DOE", "Müller".encode(), b"19500203"):
                assert secret not in content, path.name
    assert "Müller" not in "".join(capfd.readouterr())


def test_forms_that_need_dicom_are_refused_for_nifti_and_unknown_ones_always(tmp_path, model, examination):
    with pytest.raises(InputError, match="refer to DICOM images"):
        predict.predict_patient(model, *write_patient(tmp_path), tmp_path / "out", to=("seg",))
    with pytest.raises(InputError, match=r"unknown form.*found: dicom.*rtstruct"):
        predict.predict_patient(model, examination, None, tmp_path / "out", to=("dicom",))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pet_or_ct_says_which(tmp_path, model, examination):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no PET series"):
        predict.predict_patient(model, tmp_path / "empty", None, tmp_path / "out")
    with pytest.raises(InputError, match=r"DOE-1_PT: holds no CT series"):
        predict.predict_patient(model, examination / "DOE-1" / "DOE-1_PT", None, tmp_path / "out")


# --- many patients


def test_one_bad_patient_does_not_stop_the_rest(tmp_path, model, hot):
    pet, ct = write_patient(tmp_path)
    patients = [("a", pet, ct), ("b", tmp_path / "none.nii.gz", ct), ("c", pet, ct)]
    seen = []
    results = predict.predict_many(
        model, patients, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    assert isinstance(results["b"], InputError)
    assert results["a"]["mtv_ml"] == results["c"]["mtv_ml"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "c"}
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_patients_are_named_by_their_pet_and_need_a_ct_each(tmp_path):
    pets = [tmp_path / "P1.nii.gz", tmp_path / "P2"]
    pets[0].touch()
    assert [name for name, _, _ in predict.patients_of(pets, [])] == ["P1", "P2"]
    with pytest.raises(InputError, match="2 PET, 1 CT"):
        predict.patients_of(pets, pets[:1])


def test_two_patients_of_one_name_are_refused(tmp_path, model):
    with pytest.raises(InputError, match="same name"):
        predict.predict_many(model, [("a", tmp_path, None)] * 2, tmp_path / "out")


def test_the_record_comes_last_so_that_a_failure_leaves_none(tmp_path, model, hot, monkeypatch):
    files = write_patient(tmp_path)
    predict.predict_patient(model, *files, tmp_path / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        predict.predict_patient(model, *files, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
