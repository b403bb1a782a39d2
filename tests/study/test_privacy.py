"""From DICOM to the report with PET alone: it works without any CT, and nothing of who the patients are is written.

Every text that the DICOM files hold carries a mark: names, identifiers, addresses, descriptions, comments, names of
regions, private elements, names of files and folders. Then the bytes of everything that import, study, evaluation,
prediction and report wrote are searched for it, compressed files opened, and what they printed as well.
"""

import gzip
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from pydicom.uid import generate_uid

from mtvlib.study import Study
from mtvlib.volume import Grid
from tests import dicom_builder

MARK = "Zzyzxqwvj"  # so long that no picture in base64 holds it by chance
BIRTH, EXAMINED = "19500203", "20200102"
SECRETS = re.compile(
    rb"zzyzxqwvj|(?<!\d)(19500203|1950-02-03|20200102|2020-01-02)(?!\d)|1\.2\.826\.0\.1\.3680043\.8\.498\.",
    re.IGNORECASE,
)
PARAMS = {
    "name": "pet_alone",
    "cohort": "cohort/cohort.csv",
    "channels": ["pet"],
    "spacing_mm": 8.0,
    "crop_shape": [16, 16],
    "patch_shape": [16, 16, 8],
    "patch_stride": 4,
    "pet_normalization": "window",
    "pet_window_suv": [0.0, 10.0],
    "filters": [4, 8],
    "units_per_level": 1,
    "attention_heads": 2,
    "folds": 2,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "epochs": 12,
    "steps_per_epoch": 20,
    "batch_size": 2,
    "bootstrap_resamples": 100,
    "threads": 1,
}
PET = Grid((16, 16, 20), (8.0, 8.0, 6.0), (-60.0, -60.0, 0.0))
CT = Grid((30, 30, 20), (4.0, 4.0, 6.0), (-58.0, -58.0, 0.0))
TEXT_TAGS = (
    *("InstitutionName", "InstitutionAddress", "ReferringPhysicianName", "StationName", "StudyDescription"),
    *("SeriesDescription", "PhysiciansOfRecord", "OperatorsName", "OtherPatientNames", "PatientAddress"),
    *("PatientTelephoneNumbers", "EthnicGroup", "Occupation", "AdditionalPatientHistory", "PatientComments"),
    *("ProtocolName", "DeviceSerialNumber", "ImageComments", "RequestedProcedureDescription", "AccessionNumber"),
    *("StudyID", "MilitaryRank", "PatientBirthName", "PatientMotherBirthName", "MedicalRecordLocator"),
    *("NameOfPhysiciansReadingStudy", "PerformedProcedureStepDescription", "Manufacturer", "ManufacturerModelName"),
    *("SoftwareVersions", "ConvolutionKernel", "StructureSetLabel", "StructureSetName", "StructureSetDescription"),
)


def mark(path):
    """Put the mark into every text of a file."""
    dataset = pydicom.dcmread(path)
    dataset.PatientName = f"{MARK}^Jane"
    for name in TEXT_TAGS:
        setattr(dataset, name, f"{MARK} {name}"[:15])
    dataset.private_block(0x0011, f"{MARK} PRIVATE", create=True).add_new(0x01, "LO", f"{MARK} private")
    for element in dataset.iterall():
        if element.VR in ("ST", "LT", "UT") or element.keyword in ("Radiopharmaceutical", "ROIDescription"):
            element.value = f"{MARK} text"
    dataset.save_as(path)


def write_patient(folder, number):
    """A patient with one hot cube (primary) and a smaller one (node); only some have a CT."""
    patient = f"{MARK}-{number}"
    frame = generate_uid(entropy_srcs=[patient])
    tags = {
        "PatientID": patient,
        "FrameOfReferenceUID": frame,
        "StudyInstanceUID": generate_uid(),
        "PatientAge": "061Y",
    }
    random = np.random.default_rng(number)
    suv = random.uniform(0.7, 1.1, PET.size)
    x, y, z = 4 + number % 3, 5, 4 + number % 4
    suv[x : x + 4, y : y + 4, z : z + 5], suv[x + 5 : x + 7, y : y + 2, z + 7 : z + 9] = 8.0, 6.0
    place = folder / f"{MARK} {number}"
    grid = {"size": PET.size, "spacing_mm": PET.spacing_mm, "origin": PET.origin_mm}
    dicom_builder.series(
        place / f"{MARK}_PT", values=suv, Units="GML", SeriesInstanceUID=generate_uid(), **grid, **tags
    )
    if number % 2:
        hu = np.full(CT.size, -1000)
        hu[3:27, 3:27] = random.integers(0, 80, (24, 24, CT.size[2]))
        grid = {"size": CT.size, "spacing_mm": CT.spacing_mm, "origin": CT.origin_mm}
        dicom_builder.series(
            place / f"{MARK}_CT", modality="CT", values=hu, SeriesInstanceUID=generate_uid(), **grid, **tags
        )
    boxes = {"GTVp": ((x, y, z), (x + 4, y + 4, z + 5)), "GTVn": ((x + 5, y, z + 7), (x + 7, y + 2, z + 9))}
    regions = {name: contours(*box) for name, box in boxes.items()} | {f"{MARK} region": contours(*boxes["GTVp"])}
    dataset = dicom_builder.structure_set(regions, frame_uid=frame, **{**tags, "SeriesInstanceUID": generate_uid()})
    dicom_builder.save(dataset, place / f"{MARK}_rs.dcm")


def contours(low, high):
    (x0, y0, z0), (x1, y1, z1) = low, high
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return [PET.to_mm(np.array([(x - 0.5, y - 0.5, z) for x, y in corners])) for z in range(z0, z1)]


def mtv(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "mtvlib.cli", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The folder of the whole work, source beside it, and all that was printed."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("work")
    for number in range(6):
        write_patient(source, number)
    for path in source.rglob("*.dcm"):
        mark(path)
    (source / f"{MARK}.txt").write_text(MARK)
    (folder / "params.yml").write_text(yaml.safe_dump(PARAMS))
    printed = [mtv(folder, "import", "dicom", str(source), "--out", "cohort", "--site", "Berlin", "--jobs", "1")]
    printed.append(mtv(folder, "check", "cohort/cohort.csv"))
    printed.append(mtv(folder, "run", "params.yml", "--cores", "2"))
    pet = str(source / f"{MARK} 0" / f"{MARK}_PT")
    models = "studies/pet_alone/folds"
    printed.append(
        mtv(folder, "predict", "--models", models, "--pet", pet, "--out", "new", "--to", "nifti,seg,rtstruct")
    )
    masks(folder)
    printed.append(mtv(folder, "evaluate", "cohort/cohort.csv", "masks", "--out", "other"))
    printed.append(mtv(folder, "report", "studies/pet_alone"))
    return folder, "\n".join(printed)


def masks(folder: Path) -> None:
    """The references as the masks of a perfect tool."""
    table = pd.read_csv(folder / "cohort" / "cohort.csv")
    (folder / "masks").mkdir()
    for row in table.to_dict("records"):
        (folder / "masks" / f"{row['patient']}.nii.gz").write_bytes((folder / "cohort" / row["reference"]).read_bytes())


def contents(data: bytes):
    """A file's bytes, and those of what is packed in it."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(data))
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from contents(archive.read(name))


def test_patients_without_ct_are_imported_trained_tested_and_reported(finished):
    study = Study.open(finished[0] / "studies" / "pet_alone")
    assert study.summary["cross_validation"]["n_patients"] == 6
    assert (study.cohort["ct"].fillna("") == "").sum() == 3
    assert (study.cohort["split"] == "cross_validation").all()
    assert study.summary["cross_validation"]["delineation"]["all"]["cohort_dsc"] > 0.3
    assert not list(study.volumes.glob("*/ct.nii"))
    assert (finished[0] / "new" / "labels_pet.nii.gz").exists()


def test_nothing_that_was_written_tells_who_the_patients_are(finished):
    """But for the SEG and the RTSTRUCT made to go back, which carry the patient's own header."""
    found, searched = [], 0
    for path in sorted(finished[0].rglob("*")):
        back = path.name in ("seg_pet.dcm", "rtstruct_pet.dcm")
        assert not SECRETS.search(str(path.relative_to(finished[0])).encode()), path
        if path.is_file() and not back:
            searched += 1
            found += [
                (path, match.group())
                for data in contents(path.read_bytes())
                for match in [SECRETS.search(data)]
                if match
            ]
    assert found == []
    assert searched > 60


def test_nothing_that_was_printed_tells_who_the_patients_are(finished):
    """The command's own arguments are the user's; the source's name and the files in it are not repeated."""
    assert not SECRETS.search(finished[1].encode())


def test_what_goes_back_carries_the_patients_own_header(finished):
    for name in ("seg_pet.dcm", "rtstruct_pet.dcm"):
        path = finished[0] / "new" / name
        if path.exists():
            assert str(pydicom.dcmread(path).PatientName).startswith(MARK)
    assert (finished[0] / "new" / "record.json").exists()
