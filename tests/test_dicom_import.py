"""Folders of DICOM to a cohort: what is taken, what is left out and why, again and again, and nothing of the source."""

import json
import shutil

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import generate_uid

from mtvlib import dicom_import
from mtvlib.cohort import check_cohort
from mtvlib.dicom_export import write_seg
from mtvlib.dicom_import import import_dicom, regions_in
from mtvlib.errors import InputError
from mtvlib.volume import Grid, read_image, same_grid, to_array, to_image
from tests import dicom_builder

PET = Grid((16, 14, 12), (4.0, 4.0, 3.0), (-32.0, -28.0, 100.0))
CT = Grid((36, 32, 24), (2.0, 2.0, 1.5), (-36.0, -32.0, 99.0))


def suv():
    values = np.full(PET.size, 0.9)
    values[:, :2] = 0.0
    values[4:8, 5:9, 3:7], values[11:13, 5:7, 8:10] = 8.0, 5.0
    return values


def hu():
    values = np.full(CT.size, -1000)
    values[4:32, 4:30] = 40
    return values


def box_contours(grid, low, high):
    """Contours round the voxels `low` to `high` (exclusive) of a grid, one in each slice."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return [grid.to_mm(np.array([(x - 0.5, y - 0.5, z) for x, y in corners])) for z in range(z0, z1)]


PRIMARY, NODE = ((4, 5, 3), (8, 9, 7)), ((11, 5, 8), (13, 7, 10))
REGIONS = {
    "GTVp": box_contours(PET, *PRIMARY),
    "GTVn1": box_contours(PET, *NODE),
    "Parotid_L": box_contours(PET, *NODE),
}


def labels():
    values = np.zeros(PET.size, np.uint8)
    values[4:8, 5:9, 3:7], values[11:13, 5:7, 8:10] = 1, 2
    return values


def write_series(folder, modality, patient, **tags):
    grid, values = (PET, suv()) if modality == "PT" else (CT, hu())
    study = {"StudyInstanceUID": generate_uid(entropy_srcs=[patient]), "PatientAge": "061Y"}
    own = {"Units": "GML"} if modality == "PT" else {}
    return dicom_builder.series(
        folder / patient / f"{patient}_{modality}",
        modality=modality,
        size=grid.size,
        spacing_mm=grid.spacing_mm,
        origin=grid.origin_mm,
        values=tags.pop("values", values),
        **(
            {"PatientID": patient, "FrameOfReferenceUID": generate_uid(entropy_srcs=[patient, "f"])}
            | study
            | own
            | tags
        ),
    )


def write_regions(folder, patient, regions=REGIONS, modality="PT", **tags):
    frame = tags.pop("frame_uid", generate_uid(entropy_srcs=[patient, "f"]))
    series = tags.pop("series_uids", [dicom_builder.series_uid(folder / f"{patient}_{modality}", modality)])
    dataset = dicom_builder.structure_set(
        regions,
        frame_uid=frame,
        series_uids=series,
        **({"PatientID": patient, "SeriesInstanceUID": generate_uid()} | tags),
    )
    path = folder / patient / f"rs_{dataset.SOPInstanceUID[-8:]}_{tags.get('StructureSetDate', '')}.dcm"
    return dicom_builder.save(dataset, path)


def write_patient(folder, patient, **tags):
    write_series(folder, "PT", patient, **tags)
    write_series(folder, "CT", patient)
    write_regions(folder, patient)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    write_patient(folder, "DOE-1")
    return folder


def run(source, out, **options):
    return import_dicom(source, out, jobs=1, **options)


def log_of(out):
    return pd.read_csv(out / "import_log.csv", keep_default_na=False)


def decisions(out, item):
    """(decision, code) of everything of a kind in the log."""
    log = log_of(out)
    return [tuple(row) for row in log.loc[log["item"] == item, ["decision", "code"]].to_numpy()]


# --- what an import gives


def test_a_patient_becomes_a_row_and_images_that_pass_the_checks(source, tmp_path):
    out = tmp_path / "cohort"
    found = run(source, out, site="Berlin")
    assert (found.patients, found.left_out, found.skipped) == (1, 0, 0)
    row = pd.read_csv(out / "cohort.csv").iloc[0]
    assert (row["cohort"], row["site"], row["age"], row["sex"], row["nodes_stated"]) == ("main", "Berlin", 61, "M", 1)
    pet, ct, reference = (read_image(out / row[name]) for name in ("pet", "ct", "reference"))
    assert same_grid(pet, PET)
    assert same_grid(ct, CT)
    assert same_grid(reference, PET)
    np.testing.assert_allclose(to_array(pet), suv(), atol=3e-4)
    np.testing.assert_array_equal(to_array(ct), hu())
    np.testing.assert_array_equal(to_array(reference), labels())
    assert [one for one in check_cohort(out / "cohort.csv") if one.severity == "error"] == []


def test_the_real_patient_equals_its_published_nifti(shared, tmp_path):
    data = shared / "data" / "sts"
    run(data / "dicom", tmp_path / "cohort", keep_ids=True)
    row = pd.read_csv(tmp_path / "cohort" / "cohort.csv").iloc[0]
    assert row["patient"] == "STS_002"
    for name, published in (("pet", "PET_image"), ("ct", "CT_image"), ("reference", "PET_mask")):
        found, expected = (
            read_image(tmp_path / "cohort" / row[name]),
            read_image(data / "nifti" / "STS_002" / f"{published}.nii.gz"),
        )
        assert same_grid(found, expected)
        np.testing.assert_allclose(to_array(found), to_array(expected), rtol=1e-6)


def test_several_processes_give_the_same_cohort(source, tmp_path):
    write_patient(source, "DOE-2")
    write_patient(source, "DOE-3")
    key = tmp_path / "key"
    run(source, tmp_path / "one", key=key)
    import_dicom(source, tmp_path / "two", jobs=2, key=key)
    assert (tmp_path / "one" / "cohort.csv").read_text() == (tmp_path / "two" / "cohort.csv").read_text()
    assert log_of(tmp_path / "one").equals(log_of(tmp_path / "two"))


def test_contours_on_the_ct_and_segmentations_make_the_same_labels(source, tmp_path):
    boxes = {"GTVp": ((4, 5, 3), (8, 9, 7)), "GTVn1": ((11, 5, 8), (13, 7, 10))}
    on_ct = {}
    for name, (low, high) in boxes.items():
        # The same box on the CT's grid: 2 mm voxels whose faces fall onto those of the PET's.
        faces = [
            (PET.to_mm(np.array([np.array(corner) - 0.5]))[0] - CT.origin_mm) / CT.spacing_mm for corner in (low, high)
        ]
        x0, y0, z0 = faces[0]
        x1, y1, z1 = faces[1]
        planes = np.arange(np.ceil(z0), z1)
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        on_ct[name] = [CT.to_mm(np.array([(x, y, z) for x, y in corners])) for z in planes]
    write_patient(source, "DOE-2")
    for path in (source / "DOE-2").glob("rs_*.dcm"):
        path.unlink()
    write_regions(source, "DOE-2", on_ct, modality="CT")
    write_patient(source, "DOE-3")
    for path in (source / "DOE-3").glob("rs_*.dcm"):
        path.unlink()
    headers = dicom_builder.headers(sorted((source / "DOE-3" / "DOE-3_PT").glob("*.dcm")))
    write_seg(to_image(labels(), PET), headers, source / "DOE-3" / "seg.dcm", algorithm="test", version="1")
    run(source, tmp_path / "cohort", keep_ids=True)
    table = pd.read_csv(tmp_path / "cohort" / "cohort.csv")
    assert len(table) == 3
    for file in table["reference"]:
        np.testing.assert_array_equal(to_array(read_image(tmp_path / "cohort" / file)), labels())


# --- names


def test_pseudonyms_stay_the_same_with_the_key_which_lies_beside_the_cohort(source, tmp_path):
    run(source, tmp_path / "a")
    assert (tmp_path / "a.key").exists()
    names = pd.read_csv(tmp_path / "a" / "cohort.csv")["patient"].tolist()
    run(source, tmp_path / "b", key=tmp_path / "a.key")
    assert pd.read_csv(tmp_path / "b" / "cohort.csv")["patient"].tolist() == names
    run(source, tmp_path / "c")
    assert pd.read_csv(tmp_path / "c" / "cohort.csv")["patient"].tolist() != names


def test_identifiers_that_cannot_be_file_names_are_not_kept(tmp_path):
    write_patient(tmp_path / "source", "DOE^JANE")
    with pytest.raises(InputError, match="without --keep-ids"):
        run(tmp_path / "source", tmp_path / "cohort", keep_ids=True)
    assert not (tmp_path / "cohort").exists()


def test_days_are_counted_from_the_first_examination_and_a_later_one_is_left_out(source, tmp_path):
    later = {"StudyDate": "20200401", "SeriesDate": "20200401", "StudyInstanceUID": generate_uid()}
    dicom_builder.series(source / "later", size=PET.size, values=suv() * 1.1, PatientID="DOE-1", Units="GML", **later)
    run(source, tmp_path / "cohort")
    log = log_of(tmp_path / "cohort")
    row = log[log["code"] == "later_examination"].iloc[0]
    assert (row["item"], int(row["day"])) == ("pet", 90)
    assert "2020" not in (tmp_path / "cohort" / "import_log.csv").read_text()


@pytest.mark.parametrize(("age", "expected"), [("061Y", 61), ("018M", 1), ("095Y", 90), ("", None), ("old", None)])
def test_ages_are_years_and_the_oldest_are_ninety(age, expected):
    header = pydicom.Dataset()
    header.PatientAge = age
    assert dicom_import.age_of(header) == expected


# --- the clinical table


def test_the_table_gives_outcomes_site_and_what_the_header_lacks(source, tmp_path):
    write_patient(source, "DOE-2", Units="BQML", PatientWeight=None, values=suv() * 4000)
    table = tmp_path / "clinical.csv"
    table.write_text(
        "PatientID,site,death,followup_months,weight_kg,name\nDOE-2,Munich,1,14,80,Jane Doe\nDOE-9,Ulm,0,3,,X\n"
    )
    found = run(source, tmp_path / "cohort", table=table, external=["Munich"], site="Berlin", keep_ids=True)
    assert (found.rows_without_images, found.dropped_columns) == (1, ("name",))
    rows = pd.read_csv(tmp_path / "cohort" / "cohort.csv").set_index("patient")
    assert rows.loc["DOE-2", ["cohort", "site", "death", "followup_months"]].tolist() == ["external", "Munich", 1, 14]
    assert rows.loc["DOE-1", ["cohort", "site"]].tolist() == ["main", "Berlin"]
    assert rows.loc["DOE-2", "import_flags"] == "weight_from_table"
    assert "Jane" not in (tmp_path / "cohort" / "cohort.csv").read_text()


# --- what is left out


def test_a_patient_without_ct_has_a_row_and_the_reason(tmp_path):
    write_series(tmp_path / "source", "PT", "DOE-1")
    write_regions(tmp_path / "source", "DOE-1")
    run(tmp_path / "source", tmp_path / "cohort")
    assert decisions(tmp_path / "cohort", "ct") == [("left out", "no_ct")]
    row = pd.read_csv(tmp_path / "cohort" / "cohort.csv").iloc[0]
    assert pd.isna(row["ct"])
    assert row["reference"]


def test_a_patient_without_a_usable_pet_has_no_row_but_a_reason(source, tmp_path):
    write_patient(source, "DOE-2", Units="PROPCPS")
    write_series(source, "CT", "DOE-3")
    found = run(source, tmp_path / "cohort", keep_ids=True)
    assert (found.patients, found.left_out) == (1, 2)
    log = log_of(tmp_path / "cohort")
    assert set(log.loc[(log["item"] == "pet") & (log["patient"] == "DOE-2"), "code"]) == {"units", "no_pet"}
    assert set(log.loc[(log["item"] == "pet") & (log["patient"] == "DOE-3"), "code"]) == {"no_pet"}


def test_the_right_pet_ct_and_reference_are_chosen_and_the_others_have_reasons(source, tmp_path):
    nac = source / "nac"
    write_series(nac, "PT", "DOE-1", CorrectedImage=["DECY"], SeriesInstanceUID=generate_uid())
    frame = generate_uid(entropy_srcs=["DOE-1", "f"])
    write_series(source / "thin", "CT", "DOE-1", FrameOfReferenceUID="1.2.3", SeriesInstanceUID=generate_uid())
    dicom_builder.series(
        source / "scout",
        modality="CT",
        size=(8, 8, 2),
        PatientID="DOE-1",
        FrameOfReferenceUID=frame,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    dicom_builder.series(
        source / "coarse",
        modality="CT",
        size=(16, 14, 12),
        spacing_mm=(4, 4, 3),
        origin=PET.origin_mm,
        PatientID="DOE-1",
        FrameOfReferenceUID=frame,
    )
    write_regions(
        source, "DOE-1", {"GTVp": REGIONS["GTVp"]}, frame_uid="1.2.3", SOPInstanceUID="1.2.3.1", series_uids=()
    )
    write_regions(source, "DOE-1", {"Bladder": REGIONS["GTVp"]}, SOPInstanceUID="1.2.3.2", StructureSetDate="20300101")
    run(source, tmp_path / "cohort", keep_ids=True)
    assert sorted(decisions(tmp_path / "cohort", "pet")) == [
        ("imported", ""),
        ("left out", "not_attenuation_corrected"),
    ]
    assert sorted(decisions(tmp_path / "cohort", "ct")) == [
        ("imported", ""),
        ("left out", "no_volume"),
        ("left out", "other_ct"),
        ("left out", "other_frame_of_reference"),
    ]
    assert ("imported", "") in decisions(tmp_path / "cohort", "reference")
    assert ("left out", "no_region_matched") in decisions(tmp_path / "cohort", "reference")
    row = pd.read_csv(tmp_path / "cohort" / "cohort.csv").iloc[0]
    assert same_grid(read_image(tmp_path / "cohort" / row["ct"]), CT)
    np.testing.assert_array_equal(to_array(read_image(tmp_path / "cohort" / row["reference"])), labels())


def test_files_that_are_no_dicom_are_counted_by_reason_and_their_names_kept_out(source, tmp_path):
    for name, content in {
        "DOE_notes.txt": b"x",
        "DOE.zip": b"PK",
        "DOE_empty.dcm": b"",
        "DICOMDIR": b"y",
        "DOE_cut.dcm": next((source / "DOE-1" / "DOE-1_PT").glob("*.dcm")).read_bytes()[:700],
    }.items():
        (source / name).write_bytes(content)
    nameless = pydicom.dcmread(next((source / "DOE-1" / "DOE-1_CT").glob("*.dcm")))
    nameless.PatientID, nameless.SeriesInstanceUID = "", generate_uid()
    nameless.save_as(source / "nameless.dcm")
    run(source, tmp_path / "cohort")
    log = log_of(tmp_path / "cohort")
    codes = dict(log.loc[log["item"] == "files", ["code", "message"]].to_numpy())
    assert set(codes) >= {"not_dicom", "archive", "empty_file", "index_file", "no_patient_id"}
    assert codes["archive"].startswith("1 files")
    assert "DOE" not in (tmp_path / "cohort" / "import_log.csv").read_text()
    assert pd.read_csv(tmp_path / "cohort" / "cohort.csv").shape[0] == 1


def test_one_series_of_two_patients_belongs_to_none(source, tmp_path):
    write_patient(source, "DOE-2")
    for path in list((source / "DOE-2" / "DOE-2_PT").glob("*.dcm"))[:3]:
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "SOMEBODY-ELSE"
        dataset.save_as(path)
    found = run(source, tmp_path / "cohort", keep_ids=True)
    assert pd.read_csv(tmp_path / "cohort" / "cohort.csv")["patient"].tolist() == ["DOE-1"]
    log = log_of(tmp_path / "cohort")
    assert log.loc[log["code"] == "mixed_patients", "message"].iloc[0].startswith(f"{PET.size[2]} files")
    assert found.left_out == 1


def test_two_patients_in_one_folder_are_two_patients(tmp_path):
    for patient in ("DOE-1", "DOE-2"):
        write_patient(tmp_path / "apart", patient)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, path in enumerate(sorted((tmp_path / "apart").rglob("*.dcm"))):
        shutil.copy(path, mixed / f"{number:04d}")
    assert run(mixed, tmp_path / "cohort").patients == 2


def test_names_of_regions_are_listed_for_the_user_and_stay_out_of_the_log(source, tmp_path):
    write_regions(source, "DOE-1", {"Herr Doe Tumor": REGIONS["GTVp"]}, SOPInstanceUID="1.2.3.9")
    run(source, tmp_path / "cohort")
    assert "Tumor" not in (tmp_path / "cohort" / "import_log.csv").read_text()
    assert ("Herr Doe Tumor", "unmatched", 1) in regions_in(source)
    assert ("GTVp", "primary", 1) in regions_in(source)


def test_a_patient_whose_regions_name_no_nodes_is_flagged(tmp_path):
    source = tmp_path / "source"
    write_series(source, "PT", "DOE-1")
    write_series(source, "CT", "DOE-1")
    write_regions(source, "DOE-1", {"GTVp": REGIONS["GTVp"]})
    run(source, tmp_path / "cohort")
    assert decisions(tmp_path / "cohort", "reference") == [("imported", "nodes_not_stated")]
    assert pd.read_csv(tmp_path / "cohort" / "cohort.csv")["nodes_stated"].tolist() == [0]


def test_an_unforeseen_error_of_one_patient_does_not_stop_the_others(source, tmp_path, monkeypatch):
    write_patient(source, "DOE-2")
    original = dicom_import.read_pet

    def broken(series, clinical):
        if series.header.PatientID == "DOE-1":
            raise RuntimeError("DOE-1 breaks")
        return original(series, clinical)

    monkeypatch.setattr(dicom_import, "read_pet", broken)
    assert run(source, tmp_path / "cohort", keep_ids=True).patients == 1
    log = log_of(tmp_path / "cohort")
    assert log.loc[log["code"] == "unexpected", "message"].tolist() == ["could not be imported (RuntimeError)"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no files"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("x")), "holds no DICOM object"),
    ],
)
def test_a_source_without_dicom_is_one_error_and_writes_no_cohort(tmp_path, make, words):
    make(tmp_path / "source")
    with pytest.raises(InputError, match=words):
        run(tmp_path / "source", tmp_path / "cohort")
    assert not (tmp_path / "cohort").exists()


def test_nobody_imported_is_an_error_that_names_the_log(tmp_path):
    write_series(tmp_path / "source", "CT", "DOE-1")
    with pytest.raises(InputError, match=r"import_log\.csv"):
        run(tmp_path / "source", tmp_path / "cohort")
    assert decisions(tmp_path / "cohort", "pet") == [("left out", "no_pet")]


# --- again


def stamps(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*")}


def test_a_second_import_redoes_what_changed_and_nothing_else(source, tmp_path):
    write_patient(source, "DOE-2")
    out = tmp_path / "cohort"
    run(source, out, keep_ids=True)
    before = stamps(out)
    assert run(source, out, keep_ids=True).skipped == 2
    assert stamps(out) == before
    write_series(source, "PT", "DOE-2", values=suv() * 1.5)
    write_patient(source, "DOE-3")
    found = run(source, out, keep_ids=True)
    assert (found.patients, found.skipped) == (3, 1)
    after = stamps(out)
    assert {name for name in before if after[name] == before[name]} == {
        f"DOE-1_{name}.nii.gz" for name in ("pet", "ct", "reference")
    }
    assert to_array(read_image(out / "images" / "DOE-2_pet.nii.gz")).max() == pytest.approx(12.0, abs=1e-3)


def test_a_lost_image_or_a_damaged_state_is_made_again(source, tmp_path):
    out = tmp_path / "cohort"
    run(source, out, keep_ids=True)
    (out / "images" / "DOE-1_pet.nii.gz").unlink()
    assert run(source, out, keep_ids=True).skipped == 0
    (out / "import_state" / "DOE-1.json").write_text("{")
    assert run(source, out, keep_ids=True).skipped == 0
    assert json.loads((out / "import_state" / "DOE-1.json").read_text())["row"]["patient"] == "DOE-1"


def test_a_cohort_that_the_user_changed_is_not_replaced(source, tmp_path):
    out = tmp_path / "cohort"
    run(source, out, keep_ids=True)
    edited = (out / "cohort.csv").read_text().replace("unknown", "Berlin")
    (out / "cohort.csv").write_text(edited)
    write_patient(source, "DOE-2")
    with pytest.raises(InputError, match=r"cohort\.imported\.csv"):
        run(source, out, keep_ids=True)
    assert (out / "cohort.csv").read_text() == edited
    assert pd.read_csv(out / "cohort.imported.csv")["patient"].tolist() == ["DOE-1", "DOE-2"]
