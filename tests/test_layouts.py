"""Cohorts made from data sets laid out as they are published."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mtvlib import cli
from mtvlib.cohort import check_cohort, read_cohort
from mtvlib.errors import InputError
from mtvlib.layouts import HECKTOR_LAYOUTS, KNOWN_OVERLAPS, import_hecktor, import_nnunet, import_sts
from mtvlib.volume import read_image, read_labels, same_grid, to_array, to_image, write_image
from tests.conftest import CT_GRID, PET_GRID, tiny_images, write_table


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
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.*") if path.is_file()}


def rows_of(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False).set_index("patient")


def log_of(path):
    """Lines of the log beside this cohort.csv: (patient, item, code), and messages by these."""
    log = pd.read_csv(path.with_name("import_log.csv"), dtype=str, keep_default_na=False)
    return dict(zip(zip(log["patient"], log["item"], log["code"], strict=True), log["message"], strict=True))


def write_images(files, seed=0, labels=lambda reference: reference):
    """Tiny images by their paths: pet, ct, reference (through `labels`); those whose path is None are not there."""
    for kind, path in files.items():
        if path is not None:
            array, grid = tiny_images(seed)[kind]
            write_image(to_image(labels(array) if kind == "reference" else array, grid), path)


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
    before = everything(out / "images")
    import_sts(source, out)
    assert everything(out / "images") == before
    lost = out / "images" / "STS_003_ct.nii.gz"
    lost.unlink()
    import_sts(source, out)
    assert lost.read_bytes() == before[lost][1]


def test_the_log_says_that_the_contour_on_the_ct_was_left_out(source, tmp_path):
    log = log_of(import_sts(source, tmp_path / "out"))
    assert log["STS_003", "reference", ""] == "STS_003/PET_mask.nii.gz"
    assert "on the CT's grid" in log["STS_003", "CT_mask", "not_used"]
    assert len(log) == 2 * 4


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


# --- HECKTOR

INFO_2021 = {
    "PatientID": "CHGJ007",
    "CenterID": "1",
    "Gender (1=M,0=F)": "0",
    "Age": "61",
    "Tobacco": "1",
    "TNM edition": "7",
    "TNM group": "IVA",
    "T-stage": "T2",
    "HPV status (0=-, 1=+)": "1.0",
    "Estimated weight (kg) for SUV": "75",
}
INFO_2022 = {
    "PatientID": "MDA-001",
    "CenterID": "5",
    "Gender": "M",
    "Age": "54.0",
    "Weight": "80",
    "HPV status (0=-, 1=+)": "",
    "Surgery": "0.0",
}
INFO_2025 = {
    "PatientID": "USZ-003",
    "CenterID": "8",
    "Age": "70",
    "Gender": "1",
    "HPV Status": "Positive",
    "M-stage": "M0",
}


def paths_2021(folder, name):
    kinds = {"pet": "pt", "ct": "ct", "reference": "gtvt"}
    return {kind: folder / "hecktor_nii" / f"{name}_{short}.nii.gz" for kind, short in kinds.items()}


def paths_2022(folder, name):
    pet, ct = (folder / "imagesTr" / f"{name}__{short}.nii.gz" for short in ("PT", "CT"))
    return {"pet": pet, "ct": ct, "reference": folder / "labelsTr" / f"{name}.nii.gz"}


def paths_2025(folder, name):
    pet, ct = (folder / name / f"{name}__{short}.nii.gz" for short in ("PT", "CT"))
    return {"pet": pet, "ct": ct, "reference": folder / name / f"{name}.nii.gz"}


def primary_only(reference):
    return (reference == 1).astype(np.uint8)


@pytest.fixture
def hecktor_2021(tmp_path):
    folder = tmp_path / "hecktor2021_train"
    for seed, name in enumerate(("CHGJ007", "CHUP021")):
        write_images(paths_2021(folder, name), seed, labels=primary_only)
    write_table(folder / "hecktor2021_patient_info_training.csv", [INFO_2021])
    endpoint = {"PatientID": "CHGJ007", "Progression": "1", "Progression free survival": "423"}
    write_table(folder / "hecktor2021_patient_endpoint_training.csv", [endpoint])
    write_table(folder / "hecktor2021_bbox_training.csv", [{"PatientID": "CHGJ007", "x1": "0", "x2": "144"}])
    return folder


@pytest.fixture
def hecktor_2022(tmp_path):
    folder = tmp_path / "hecktor2022"
    for seed, name in enumerate(("CHUM-001", "MDA-001", "MDA-002")):
        write_images(paths_2022(folder, name), seed)
    others = [INFO_2022 | {"PatientID": "CHUM-001", "HPV status (0=-, 1=+)": "0"}, INFO_2022 | {"PatientID": "MDA-002"}]
    write_table(folder / "hecktor2022_clinical_info_training.csv", [INFO_2022, *others])
    endpoint = {"PatientID": "MDA-001", "Relapse": "0", "RFS": "1704"}
    write_table(folder / "hecktor2022_endpoint_training.csv", [endpoint])
    return folder


@pytest.fixture
def hecktor_2025(tmp_path):
    """As downloaded: a folder for each task, images repeated, contours in Task 1 only."""
    folder = tmp_path / "hecktor2025_training"
    for task, name, seed in ((1, "CHUS-010", 0), (1, "USZ-003", 1), (2, "USZ-003", 1), (2, "MDA-009", 2)):
        files = paths_2025(folder / f"Task {task}", name)
        write_images(files if task == 1 else files | {"reference": None}, seed)
    for task, relapse in ((1, {}), (2, {"Relapse": "1.0", "RFS": "90"})):
        write_table(folder / f"Task {task}" / f"HECKTOR_2025_Training_Task_{task}.csv", [INFO_2025 | relapse])
    return folder


def test_2021_has_primary_tumours_only_and_says_so(hecktor_2021, tmp_path):
    path = import_hecktor(hecktor_2021, tmp_path / "out")
    assert check_cohort(path) == []
    rows = rows_of(path)
    assert list(rows["nodes_stated"]) == ["0", "0"]
    for name, row in rows.iterrows():
        assert (path.parent / row["reference"]).read_bytes() == paths_2021(hecktor_2021, name)["reference"].read_bytes()


def test_2021_tables_become_the_cohorts_columns(hecktor_2021, tmp_path):
    path = import_hecktor(hecktor_2021, tmp_path / "out")
    first, second = rows_of(path).to_dict("records")
    images = {name: f"images/CHGJ007_{name}.nii.gz" for name in ("pet", "ct", "reference")}
    assert first == {
        "cohort": "main",
        "site": "HGJ",
        **images,
        "nodes_stated": "0",
        "person": "HN-HGJ-007",
        "age": "61",
        "sex": "F",
        "hpv": "positive",
        "stage": "IVA",
        "tnm_edition": "7",
        "t_category": "T2",
        "progression": "1",
        "pfs_days": "423",
    }
    assert (second["person"], second["hpv"], second["age"]) == ("CHUP-021", "unknown", "")


def test_relapse_is_never_taken_for_death(hecktor_2022, tmp_path):
    table = rows_of(import_hecktor(hecktor_2022, tmp_path / "out"))
    assert {"death", "followup_months", "survival_eligible"} & set(table.columns) == set()
    assert table.loc["MDA-001", ["relapse", "rfs_days"]].tolist() == ["0", "1704"]
    assert table.loc["MDA-002", ["relapse", "rfs_days"]].tolist() == ["", ""]


def test_2022_has_both_classes_and_hospitals_by_name(hecktor_2022, tmp_path):
    path = import_hecktor(hecktor_2022, tmp_path / "out")
    assert check_cohort(path) == []
    rows = rows_of(path)
    assert rows["site"].to_dict() == {"CHUM-001": "CHUM", "MDA-001": "MDA", "MDA-002": "MDA"}
    assert rows["person"].to_dict() == {"CHUM-001": "HN-CHUM-001", "MDA-001": "MDA-001", "MDA-002": "MDA-002"}
    assert rows.loc["CHUM-001", ["age", "sex", "hpv", "surgery", "nodes_stated"]].tolist() == [
        "54",
        "M",
        "negative",
        "0",
        "1",
    ]
    assert rows.loc["MDA-001", "hpv"] == "unknown"
    labels = to_array(read_labels(path.parent / rows.loc["MDA-001", "reference"]))
    assert np.bincount(labels.ravel())[1:].tolist() == [64, 8]


@pytest.mark.parametrize(("patient", "label"), [("CHUM-001", "CHUM_001"), ("A_1", "A_1")])
def test_a_label_of_2022_may_have_a_low_line_in_its_name(tmp_path, patient, label):
    folder = tmp_path / "hecktor2022"
    write_images(paths_2022(folder, patient) | {"reference": folder / "labelsTr" / f"{label}.nii.gz"})
    rows = rows_of(import_hecktor(folder, tmp_path / "out"))
    assert rows["reference"].to_dict() == {patient: f"images/{patient}_reference.nii.gz"}


def test_weight_and_habits_are_left_out_and_the_log_says_so(hecktor_2021, tmp_path):
    path = import_hecktor(hecktor_2021, tmp_path / "out")
    text, log = path.read_text().lower(), log_of(path)
    assert "weight" not in text
    assert "tobacco" not in text
    assert ("", "column Estimated weight (kg) for SUV", "not_used") in log
    assert ("", "column Tobacco", "not_used") in log
    assert ("", "hecktor2021_bbox_training.csv", "not_used") in log


def test_2025_images_of_several_tasks_are_taken_once(hecktor_2025, tmp_path):
    extra = hecktor_2025 / "Task 2" / "USZ-003" / "USZ-003__RTDOSE.nii.gz"
    shutil.copy(paths_2025(hecktor_2025 / "Task 1", "USZ-003")["pet"], extra)
    path = import_hecktor(hecktor_2025, tmp_path / "out")
    assert [finding.code for finding in check_cohort(path)] == ["no_reference"]
    rows, log = rows_of(path), log_of(path)
    assert rows["nodes_stated"].to_dict() == {"CHUS-010": "1", "MDA-009": "", "USZ-003": "1"}
    assert rows["person"].to_dict() == {"CHUS-010": "HN-CHUS-010", "MDA-009": "MDA-009", "USZ-003": "USZ-003"}
    assert rows.loc["USZ-003", ["hpv", "sex", "m_category", "relapse"]].tolist() == ["positive", "M", "M0", "1"]
    assert log["USZ-003", "pet", ""] == "Task 1/USZ-003/USZ-003__PT.nii.gz"
    assert "the same as Task 1" in log["USZ-003", "Task 2/USZ-003/USZ-003__PT.nii.gz", "duplicate"]
    assert ("", "Task 2/USZ-003/USZ-003__RTDOSE.nii.gz", "not_used") in log


def test_two_different_scans_of_a_patient_are_an_error(hecktor_2025, tmp_path):
    write_images({"pet": paths_2025(hecktor_2025 / "Task 2", "USZ-003")["pet"]}, seed=9)
    with pytest.raises(InputError, match=r"patient USZ-003.*two different files as pet.*Task 1/.* and Task 2/"):
        import_hecktor(hecktor_2025, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_that_contradict_each_other_are_logged_and_the_first_counts(hecktor_2025, tmp_path):
    table = hecktor_2025 / "Task 2" / "HECKTOR_2025_Training_Task_2.csv"
    write_table(table, [INFO_2025 | {"Age": "71", "Relapse": "1"}])
    path = import_hecktor(hecktor_2025, tmp_path / "out")
    assert rows_of(path).loc["USZ-003", "age"] == "70"
    assert "says 71, an earlier table 70" in log_of(path)["USZ-003", "age", "contradiction"]


@pytest.mark.parametrize(
    ("header", "cell", "column", "empty"),
    [("Gender", "2", "sex", ""), ("HPV Status", "p16", "hpv", "unknown"), ("Age", "seventy", "age", "")],
)
def test_a_value_that_is_not_understood_is_logged(hecktor_2025, tmp_path, header, cell, column, empty):
    for number in "12":
        table = hecktor_2025 / f"Task {number}" / f"HECKTOR_2025_Training_Task_{number}.csv"
        known = INFO_2025 | {"PatientID": "CHUS-010"}
        write_table(table, [INFO_2025 | {header: cell}, known])
    path = import_hecktor(hecktor_2025, tmp_path / "out")
    assert rows_of(path).loc["USZ-003", column] == empty
    assert repr(cell) in log_of(path)["USZ-003", column, "unknown_value"]


def test_what_misses_is_logged_with_a_reason(hecktor_2022, tmp_path):
    paths_2022(hecktor_2022, "MDA-001")["ct"].unlink()
    paths_2022(hecktor_2022, "MDA-002")["reference"].unlink()
    paths_2022(hecktor_2022, "CHUM-001")["pet"].unlink()
    table = hecktor_2022 / "hecktor2022_clinical_info_training.csv"
    write_table(table, [INFO_2022, INFO_2022 | {"PatientID": "HMR-004"}])
    path = import_hecktor(hecktor_2022, tmp_path / "out")
    assert sorted(finding.code for finding in check_cohort(path)) == ["no_ct", "no_reference"]
    rows, log = rows_of(path), log_of(path)
    assert list(rows.index) == ["MDA-001", "MDA-002"]
    assert (rows.loc["MDA-001", "ct"], rows.loc["MDA-002", "reference"]) == ("", "")
    assert rows.loc["MDA-002", "nodes_stated"] == ""
    assert log["CHUM-001", "patient", "no_pet"] == "has no PET, only ct and reference: no row in cohort.csv"
    assert {("MDA-001", "ct", "no_ct"), ("MDA-002", "reference", "no_reference")} <= log.keys()
    assert ("HMR-004", "patient", "no_images") in log
    assert not list((path.parent / "images").glob("CHUM-001*"))


def test_a_reference_with_foreign_labels_is_left_out_with_the_labels(hecktor_2021, tmp_path):
    write_images({"reference": paths_2021(hecktor_2021, "CHUP021")["reference"]})  # holds nodes
    path = import_hecktor(hecktor_2021, tmp_path / "out")
    assert rows_of(path)["reference"].to_dict() == {"CHGJ007": "images/CHGJ007_reference.nii.gz", "CHUP021": ""}
    assert "0, 1 only (found: 2)" in log_of(path)["CHUP021", "reference", "bad_reference"]
    assert not (path.parent / "images" / "CHUP021_reference.nii.gz").exists()


def test_without_tables_the_images_are_imported_and_the_log_says_so(hecktor_2022, tmp_path):
    for table in hecktor_2022.glob("*.csv"):
        table.unlink()
    path = import_hecktor(hecktor_2022, tmp_path / "out")
    columns = ["cohort", "site", "pet", "ct", "reference", "nodes_stated", "person"]
    assert list(rows_of(path).columns) == columns
    assert ("", "tables", "no_tables") in log_of(path)


def test_chosen_sites_become_the_external_cohort(hecktor_2022, tmp_path):
    path = import_hecktor(hecktor_2022, tmp_path / "out", external=["MDA"])
    assert rows_of(path)["cohort"].to_dict() == {"CHUM-001": "main", "MDA-001": "external", "MDA-002": "external"}
    assert check_cohort(path) == []


def test_an_unknown_external_site_names_the_known_ones(hecktor_2022, tmp_path):
    with pytest.raises(InputError, match=r"found: CHUV\).*these sites: CHUM, MDA"):
        import_hecktor(hecktor_2022, tmp_path / "out", external=["CHUV", "MDA"])
    assert not (tmp_path / "out").exists()


def test_without_a_hospital_in_the_name_the_centres_number_is_the_site(tmp_path):
    folder = tmp_path / "hecktor2026"
    for seed, name in enumerate(("p_one", "p_two")):
        write_images(paths_2025(folder, name), seed)
    write_table(folder / "HECKTOR_2026_Training.csv", [{"PatientID": "p_one", "Center": "9.0", "T_stage": "T3"}])
    rows = rows_of(import_hecktor(folder, tmp_path / "out"))
    assert rows["site"].to_dict() == {"p_one": "HECKTOR 9", "p_two": "HECKTOR"}
    assert rows["person"].to_dict() == {"p_one": "p_one", "p_two": "p_two"}
    assert rows["t_category"].to_dict() == {"p_one": "T3", "p_two": ""}


def test_a_second_import_of_hecktor_touches_nothing_even_with_the_cohort_inside_of_the_source(hecktor_2022):
    out = hecktor_2022 / "cohort"
    path = import_hecktor(hecktor_2022, out)
    before = everything(out)
    assert import_hecktor(hecktor_2022, out) == path
    assert everything(out) == before
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(InputError, match="another cohort"):
        import_hecktor(hecktor_2022, out)


def test_progress_counts_the_checks_and_the_copies(hecktor_2022, tmp_path):
    steps = []
    import_hecktor(hecktor_2022, tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("folder", ["", "absent", "2022/labelsTr"])
def test_a_source_in_no_known_layout_is_told_what_was_looked_for(tmp_path, folder):
    (tmp_path / "2022" / "labelsTr").mkdir(parents=True)
    write_images({"reference": tmp_path / "2022" / "labelsTr" / "CHUM-001.nii.gz"})
    with pytest.raises(InputError, match="no images of HECKTOR") as error:
        import_hecktor(tmp_path / folder, tmp_path / "out")
    assert "hecktor_nii/ID_pt.nii.gz (2021), imagesTr/ID__PT.nii.gz (2022) or ID/ID__PT.nii.gz" in error.value.remedy


def test_two_editions_at_once_are_refused(hecktor_2021, hecktor_2022, tmp_path):
    with pytest.raises(InputError, match=r"several editions.*found: 2021, 2022"):
        import_hecktor(tmp_path, tmp_path / "out")


def test_without_any_pet_nothing_is_written(hecktor_2022, tmp_path):
    for file in hecktor_2022.rglob("*__PT.nii.gz"):
        file.unlink()
    with pytest.raises(InputError, match="no patient with a PET"):
        import_hecktor(hecktor_2022, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "edition", "patient"),
    [
        ("hecktor2021_train/hecktor_nii/CHUM001_ct.nii.gz", "2021", "CHUM001"),
        ("hecktor_nii_test/CHUP025_pt.nii.gz", "2021", "CHUP025"),
        ("hecktor_nii_resample_cropped/CHUM001_ct.nii.gz", None, None),
        ("a/hecktor2022/imagesTr/CHUM-001__CT.nii.gz", "2022", "CHUM-001"),
        ("imagesTr_resampled/CHUM-001__CT.nii.gz", None, None),
        ("imagesTr/CHUM-001__dosimetry_CT.nii.gz", None, None),
        ("hecktor2026_training/MDA-010/MDA-010__PT.nii.gz", "2025", "MDA-010"),
        ("Task 2/MDA-010/MDA-010__CTPlanning.nii.gz", None, None),
    ],
)
def test_published_paths_belong_to_one_edition(path, edition, patient):
    found = {name: match["patient"] for name, one in HECKTOR_LAYOUTS.items() if (match := one.fullmatch(path))}
    assert found == ({edition: patient} if edition else {})


def test_known_overlaps_name_a_source_and_make_names_of_the_other_collection():
    assert {(one.collection, one.other) for one in KNOWN_OVERLAPS} == {
        ("HECKTOR", "Head-Neck-PET-CT"),
        ("HECKTOR", "HNSCC"),
    }
    assert all(one.sites and "github.com/" in one.source for one in KNOWN_OVERLAPS)
    assert [one.person and one.person.format(site="HMR", number="004") for one in KNOWN_OVERLAPS] == [
        "HN-HMR-004",
        None,
    ]


def test_joined_with_head_neck_pet_ct_the_same_person_in_both_cohorts_is_an_error(hecktor_2022, tmp_path):
    path = import_hecktor(hecktor_2022, tmp_path / "out")
    table = pd.read_csv(path, dtype=str)
    write_images({"pet": path.parent / "images" / "other.nii.gz"}, seed=8)
    other = {"patient": "HN-CHUM-001", "cohort": "external", "site": "TCIA", "pet": "images/other.nii.gz"}
    pd.concat([table, pd.DataFrame([other])]).to_csv(path, index=False)
    assert [finding.code for finding in check_cohort(path) if finding.severity == "error"] == ["person_in_both"]


def test_the_command_imports_hecktor_with_external_sites(hecktor_2022, tmp_path):
    arguments = ["import", "hecktor", str(hecktor_2022), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, [*arguments, "--external", "CHUM", "--external", "MDA"])
    assert result.exit_code == 0
    assert str(tmp_path / "out" / "import_log.csv") in result.stdout.replace("\n", "")
    assert set(rows_of(tmp_path / "out" / "cohort.csv")["cohort"]) == {"external"}


# --- nnU-Net

DATASET = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "tumor": 1, "lymph node": 2},
    "file_ending": ".nii.gz",
    "numTraining": 2,
}


def write_dataset(
    folder, cases=("berlin_001", "dresden_001"), tests=(), *, labels=lambda reference: reference, **changes
):
    """A raw dataset: CT in channel 0, PET in channel 1; `changes` of dataset.json, None to leave a key out."""
    for letters, names in (("Tr", cases), ("Ts", tests)):
        for name in names:
            ct, pet = (folder / f"images{letters}" / f"{name}_000{number}.nii.gz" for number in (0, 1))
            files = {"ct": ct, "pet": pet, "reference": folder / f"labels{letters}" / f"{name}.nii.gz"}
            write_images(files, seed=(*cases, *tests).index(name), labels=labels)
    meta = {name: value for name, value in (DATASET | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(meta))
    return folder


def test_channels_and_labels_are_told_by_name(tmp_path):
    path = import_nnunet(write_dataset(tmp_path / "Dataset001_HN"), tmp_path / "out")
    assert check_cohort(path) == []
    rows = rows_of(path)
    assert list(rows.columns) == ["cohort", "site", "pet", "ct", "reference", "nodes_stated"]
    assert rows["site"].to_dict() == {"berlin_001": "berlin", "dresden_001": "dresden"}
    assert list(rows["nodes_stated"]) == ["1", "1"]
    for name, row in rows.iterrows():
        for kind, file in (
            ("ct", f"imagesTr/{name}_0000"),
            ("pet", f"imagesTr/{name}_0001"),
            ("reference", f"labelsTr/{name}"),
        ):
            assert (path.parent / row[kind]).read_bytes() == (
                tmp_path / "Dataset001_HN" / f"{file}.nii.gz"
            ).read_bytes()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"channel_names": {"0": "ct", "1": "SUV"}}, True),
        ({"channel_names": None, "modality": {"0": "CT", "1": "PT"}, "file_ending": None}, True),
        ({"channel_names": {"0": "CTres", "1": "FDG-PET"}}, True),
        ({"channel_names": {"0": "zscore", "1": "PET"}}, False),
    ],
)
def test_names_of_channels_in_use(tmp_path, changes, expected):
    path = import_nnunet(write_dataset(tmp_path / "data", **changes), tmp_path / "out")
    assert (rows_of(path)["ct"] != "").tolist() == [expected, expected]
    assert (("", "channel zscore", "not_used") in log_of(path)) is not expected
    assert (("berlin_001", "ct", "no_ct") in log_of(path)) is not expected


@pytest.mark.parametrize(
    "channels",
    [
        {"0": "CT", "1": "noNorm"},
        {"0": "PET/CT"},
        {"CT": "0", "PET": "1"},
        {"0": "PET", "1": "SUV"},
        {"0": "CT", "1": "CT", "2": "PET"},
        {},
        ["PET"],
    ],
)
def test_channels_that_do_not_tell_the_pet_are_refused(tmp_path, channels):
    with pytest.raises(InputError, match="do not tell one PET and at most one CT") as error:
        import_nnunet(write_dataset(tmp_path / "data", channel_names=channels), tmp_path / "out")
    assert error.value.remedy == "name them PET and CT in `channel_names`."
    assert not (tmp_path / "out").exists()


def test_labels_in_another_order_are_recoded_and_logged(tmp_path):
    labels = {"background": 0, "GTVn": 1, "GTV-p": 2}
    swapped = np.array([0, 2, 1], np.uint8)
    source = write_dataset(tmp_path / "data", labels=lambda reference: swapped[reference])
    (source / "dataset.json").write_text(json.dumps(DATASET | {"labels": labels}))
    path = import_nnunet(source, tmp_path / "out")
    assert check_cohort(path) == []
    recoded = read_labels(path.parent / rows_of(path).loc["berlin_001", "reference"])
    assert np.array_equal(to_array(recoded), tiny_images(0)["reference"][0])
    assert same_grid(recoded, PET_GRID)
    assert log_of(path)["berlin_001", "reference", "recoded"].endswith("labels 0 to 0, 1 to 2, 2 to 1")


def test_a_second_import_keeps_recoded_labels_and_replaces_a_broken_one(tmp_path):
    source = write_dataset(tmp_path / "data", labels=lambda reference: 3 * primary_only(reference))
    (source / "dataset.json").write_text(json.dumps(DATASET | {"labels": {"background": 0, "lesion": 3}}))
    path = import_nnunet(source, tmp_path / "out")
    before = everything(tmp_path / "out")
    import_nnunet(source, tmp_path / "out")
    assert everything(tmp_path / "out") == before
    broken = path.parent / rows_of(path).loc["berlin_001", "reference"]
    broken.write_bytes(before[broken][1][:100])
    import_nnunet(source, tmp_path / "out")
    assert np.array_equal(to_array(read_labels(broken)), primary_only(tiny_images(0)["reference"][0]))


@pytest.mark.parametrize(
    "labels", [{"background": 0, "tumour": 1}, {"background": "0", "Lesion": "1"}, {"0": "background", "1": "tumor"}]
)
def test_a_single_class_is_the_primary_tumour(tmp_path, labels):
    source = write_dataset(tmp_path / "data", labels=primary_only)
    (source / "dataset.json").write_text(json.dumps(DATASET | {"labels": labels}))
    path = import_nnunet(source, tmp_path / "out")
    assert check_cohort(path) == []
    assert list(rows_of(path)["nodes_stated"]) == ["0", "0"]
    assert np.unique(to_array(read_labels(path.parent / rows_of(path).loc["berlin_001", "reference"]))).tolist() == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"background": 0, "tumor": 1, "liver": 2, "ignore": 3}, r"unknown meaning.*found: liver, ignore"),
        ({"background": 0, "whole": [1, 2], "node": 2}, "regions in place of labels"),
        ({"background": 0, "tumor": 1, "lesion": 2}, "cannot be told apart"),
        ({"background": 0, "tumor": 1, "node": 1}, "cannot be told apart"),
        ({"background": 1, "tumor": 0}, "cannot be told apart"),
        ({"background": 0, "node": 1}, "cannot be told apart"),
        ({"background": 0, "tumor": 300}, "cannot be told apart"),
        ({}, "cannot be told apart"),
        ([0, 1], "names no labels"),
    ],
)
def test_labels_that_are_not_clear_are_refused(tmp_path, labels, said):
    source = write_dataset(tmp_path / "data")
    (source / "dataset.json").write_text(json.dumps(DATASET | {"labels": labels}))
    with pytest.raises(InputError, match=said) as error:
        import_nnunet(source, tmp_path / "out")
    assert error.value.file == source / "dataset.json"
    assert error.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_label_map_with_an_unnamed_label_is_left_out(tmp_path):
    source = write_dataset(tmp_path / "data")
    write_images({"reference": source / "labelsTr" / "berlin_001.nii.gz"}, labels=lambda reference: reference * 2)
    path = import_nnunet(source, tmp_path / "out")
    rows = rows_of(path)
    assert (rows.loc["berlin_001", "reference"], rows.loc["berlin_001", "nodes_stated"]) == ("", "")
    assert "(found: 4)" in log_of(path)["berlin_001", "reference", "bad_reference"]
    assert rows.loc["dresden_001", "nodes_stated"] == "1"


def test_test_cases_become_the_external_cohort_with_or_without_labels(tmp_path):
    source = write_dataset(tmp_path / "data", tests=("koeln_007", "koeln_008"))
    (source / "labelsTs" / "koeln_008.nii.gz").unlink()
    path = import_nnunet(source, tmp_path / "out")
    rows = rows_of(path)
    assert rows["cohort"].to_dict() == {
        "berlin_001": "main",
        "dresden_001": "main",
        "koeln_007": "external",
        "koeln_008": "external",
    }
    assert rows.loc["koeln_008", "reference"] == ""
    assert ("koeln_008", "reference", "no_reference") in log_of(path)
    assert [finding.code for finding in check_cohort(path)] == ["no_reference"]


@pytest.mark.parametrize(
    ("cases", "changes", "site"),
    [
        (("HN_001", "HN_002"), {}, "Dataset001_HN"),
        (("berlin_001", "odd"), {"name": "Mixed"}, "Mixed"),
        (("fdg_1_2001", "psma_2_2002"), {}, "Dataset001_HN"),
    ],
)
def test_without_hospitals_in_the_names_the_dataset_is_the_site(tmp_path, cases, changes, site):
    path = import_nnunet(write_dataset(tmp_path / "Dataset001_HN", cases, **changes), tmp_path / "out")
    assert set(rows_of(path)["site"]) == {site}


def test_a_case_without_pet_has_no_row_and_other_files_are_logged(tmp_path):
    source = write_dataset(tmp_path / "data")
    (source / "imagesTr" / "dresden_001_0001.nii.gz").unlink()
    (source / "imagesTr" / "notes.txt").write_text("not an image")
    path = import_nnunet(source, tmp_path / "out")
    assert list(rows_of(path).index) == ["berlin_001"]
    assert {("dresden_001", "patient", "no_pet"), ("", "imagesTr/notes.txt", "not_used")} <= log_of(path).keys()


def test_a_case_in_training_and_test_set_is_an_error(tmp_path):
    source = write_dataset(tmp_path / "data")
    shutil.copytree(source / "imagesTr", source / "imagesTs")
    with pytest.raises(InputError, match=r"patient berlin_001.*in the training and in the test set"):
        import_nnunet(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        (("case 1", "ok_1"), r"cannot be file names.*found: case 1\)"),
        (("x" * 65, "ok_1"), "cannot be file names"),
        (("p_1", "P_1"), r"upper and lower case only.*found: P_1, p_1"),
    ],
)
def test_names_that_cannot_be_files_or_collide_are_refused(tmp_path, cases, said):
    with pytest.raises(InputError, match=said):
        import_nnunet(write_dataset(tmp_path / "data", cases), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".png"])
def test_other_formats_than_nifti_are_refused_with_the_remedy(tmp_path, ending):
    with pytest.raises(InputError, match=rf"not NIfTI.*found: {re.escape(ending)}.*convert images and labels"):
        import_nnunet(write_dataset(tmp_path / "data", file_ending=ending), tmp_path / "out")


def test_uncompressed_nifti_stays_uncompressed(tmp_path):
    source = write_dataset(tmp_path / "data", file_ending=".nii")
    for file in list(source.rglob("*.nii.gz")):
        write_image(read_image(file), file.with_suffix(""))
        file.unlink()
    path = import_nnunet(source, tmp_path / "out")
    assert rows_of(path).loc["berlin_001", "pet"] == "images/berlin_001_pet.nii"
    assert check_cohort(path) == []


@pytest.mark.parametrize(
    ("text", "said"), [(None, "there is no such file"), ("{", "is not JSON"), ("[]", "names no labels")]
)
def test_a_dataset_json_that_is_absent_or_broken_is_named(tmp_path, text, said):
    source = write_dataset(tmp_path / "data")
    if text is None:
        (source / "dataset.json").unlink()
    else:
        (source / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=rf"dataset.json: {said}"):
        import_nnunet(source, tmp_path / "out")


def test_the_command_imports_nnunet(tmp_path):
    source = write_dataset(tmp_path / "data")
    result = CliRunner().invoke(cli.app, ["import", "nnunet", str(source), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert str(tmp_path / "out" / "cohort.csv") in result.stdout.replace("\n", "")
    assert check_cohort(tmp_path / "out" / "cohort.csv") == []
