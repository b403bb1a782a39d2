"""Cohorts made from data sets laid out as they are published."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mtvlib import cli
from mtvlib.cohort import check_cohort, read_cohort
from mtvlib.errors import InputError
from mtvlib.layouts import import_sts
from mtvlib.volume import read_image, read_labels, same_grid, to_array, to_image, write_image
from tests.conftest import CT_GRID, PET_GRID, tiny_images


@pytest.fixture
def source(tmp_path):
    """Two patients laid out like the validation set, with a GTV of 4 x 4 x 4 voxels."""
    for number, patient in enumerate(("STS_007", "STS_003")):
        write_patient(tmp_path / "source" / patient, number)
    (tmp_path / "source" / "README.md").write_text("not a patient")
    return tmp_path / "source"


def write_patient(folder, seed):
    images = tiny_images(seed)
    gtv = (images["reference"][0] == 1).astype(np.uint8)
    ct_mask = np.zeros(CT_GRID.size, np.uint8)
    files = {
        "PET_image": images["pet"],
        "CT_image": images["ct"],
        "PET_mask": (gtv, PET_GRID),
        "CT_mask": (ct_mask, CT_GRID),
    }
    for name, (array, grid) in files.items():
        write_image(to_image(array, grid), folder / f"{name}.nii.gz")


def change_mask(source, change, grid=PET_GRID):
    file = source / "STS_003" / "PET_mask.nii.gz"
    write_image(to_image(change(to_array(read_image(file))), grid), file)


def everything(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.nii.gz")}


def test_the_cohort_has_a_row_a_patient_and_invents_no_outcome(source, tmp_path):
    path = import_sts(source, tmp_path / "out")
    table = pd.read_csv(path)
    assert list(table.columns) == ["patient", "cohort", "site", "pet", "ct", "reference"]
    assert list(table["patient"]) == ["STS_003", "STS_007"]
    assert set(table["cohort"]) == {"main"}
    assert table.notna().all(axis=None)
    assert check_cohort(path) == []


def test_the_gtv_becomes_the_primary_tumour_on_the_pets_grid(source, tmp_path):
    for _, row in read_cohort(import_sts(source, tmp_path / "out")).iterrows():
        reference = read_labels(row["reference"])
        assert same_grid(reference, read_image(row["pet"]))
        assert np.bincount(to_array(reference).ravel()).tolist() == [16 * 16 * 12 - 64, 64]


def test_a_second_import_touches_nothing_and_completes_what_is_missing(source, tmp_path):
    out = tmp_path / "out"
    import_sts(source, out)
    before = everything(out)
    import_sts(source, out)
    assert everything(out) == before
    lost = out / "images" / "STS_003_ct.nii.gz"
    lost.unlink()
    import_sts(source, out)
    assert lost.read_bytes() == before[lost][1]


def test_another_cohort_is_not_overwritten(source, tmp_path):
    path = import_sts(source, tmp_path / "out")
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(InputError, match="another cohort") as error:
        import_sts(source, tmp_path / "out")
    assert error.value.file == path
    assert path.read_text().endswith("# mine\n")


@pytest.mark.parametrize("folder", ["", "absent", "source/STS_003"])
def test_a_source_without_patients_is_refused(source, tmp_path, folder):
    with pytest.raises(InputError, match="no folders STS_0NN"):
        import_sts(tmp_path / folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_missing_file_is_named(source, tmp_path):
    os.remove(source / "STS_003" / "CT_image.nii.gz")
    os.remove(source / "STS_007" / "PET_mask.nii.gz")
    with pytest.raises(InputError, match=r"2 files are missing: STS_003/CT_image.+STS_007/PET_mask"):
        import_sts(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_class_in_the_gtv_is_refused(source, tmp_path):
    change_mask(source, lambda gtv: gtv * 2)
    with pytest.raises(InputError, match=r"patient STS_003.*0, 1 only.*found: 2"):
        import_sts(source, tmp_path / "out")


def test_a_mask_on_another_grid_than_its_pet_is_refused(source, tmp_path):
    shutil.copy(source / "STS_003" / "CT_mask.nii.gz", source / "STS_003" / "PET_mask.nii.gz")
    with pytest.raises(InputError, match=r"patient STS_003.*of different size"):
        import_sts(source, tmp_path / "out")


def test_the_command_names_the_cohort(source, tmp_path):
    result = CliRunner().invoke(cli.app, ["import", "sts", str(source), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert str(tmp_path / "out" / "cohort.csv") in result.stdout.replace("\n", "")


def test_the_five_real_patients(shared, tmp_path):
    """Volumes by counting the published masks' voxels times their size."""
    path = import_sts(shared / "data" / "sts" / "nifti", tmp_path / "out")
    assert check_cohort(path) == []
    table = read_cohort(path)
    assert list(table["patient"]) == ["STS_002", "STS_008", "STS_019", "STS_025", "STS_042"]
    volumes_ml = []
    for file in table["reference"]:
        labels = read_labels(file)
        volumes_ml.append(np.count_nonzero(to_array(labels) == 1) * np.prod(labels.GetSpacing()) / 1000)
    assert volumes_ml == pytest.approx([54.28, 27.88, 17.17, 30.24, 34.82], abs=0.01)
