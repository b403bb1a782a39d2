"""The whole study on five real PET/CT pairs with one lesion class, no outcomes and fields smaller than the crop.

What cannot be computed is null with its reason, and the chapters and the report say so; nothing is invented.
"""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml

from mtvlib import report
from mtvlib.regions import label_map, read_names
from mtvlib.steps import step_names
from mtvlib.study import Study
from mtvlib.volume import Grid, read_image, to_array

TINY = {
    "spacing_mm": 6.0,
    "crop_shape": [32, 32],  # 19 cm: still wider than every field
    "patch_shape": [32, 32, 16],
    "filters": [4, 8, 8],
    "folds": 2,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "flip": True,
    "epochs": 10,
    "steps_per_epoch": 20,
    "bootstrap_resamples": 200,
}
FOLDS = TINY["folds"]
NO_OUTCOMES = "the cohort has no column survival_eligible, followup_months, death"


def mtv(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "mtvlib.cli", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared, project) -> tuple[Study, str]:
    """The study, and what `mtv run` said at its end."""
    folder = tmp_path_factory.mktemp("real")
    mtv(folder, "import", "sts", str(shared / "data" / "sts" / "nifti"), "--out", "cohorts/sts")
    params = yaml.safe_load((project / "params" / "sts.yml").read_text()) | TINY
    (folder / "sts.yml").write_text(yaml.safe_dump(params))
    said = mtv(folder, "run", "sts.yml", "--cores", "2")
    return Study.open(folder / "studies" / "sts"), said


@pytest.fixture
def study(finished) -> Study:
    return finished[0]


@pytest.fixture
def chapters(study) -> dict[str, str]:
    """Everything that the executed notebooks show, as text."""
    return {path.stem: shown(path) for path in (study.folder / "notebooks").glob("*.ipynb")}


def shown(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert all(output["output_type"] != "error" for output in outputs)
    return "\n".join("".join(text) for output in outputs for text in output.get("data", {}).values())


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_every_step_is_finished(study):
    for step in step_names(FOLDS):
        assert (study.logs / f"{step}.json").exists(), step
        assert not (study.logs / f"{step}.error.json").exists(), step


def test_the_summary_is_json_without_nan(study):
    text = (study.results / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse)["cross_validation"]["n_patients"] == 5


def test_the_absent_class_is_null_with_a_reason(study):
    block = study.summary["cross_validation"]
    nodes = block["delineation"]["nodes"]
    for key in ("cohort_dsc", "mean_dsc", "median_dsc", "iqr", "n_failed"):
        assert nodes[key] is None, key
        assert nodes[f"{key}_ci95"] is None, key
    assert nodes["reason"] == "no patient has a node metastasis in reference or prediction"
    assert block["lesions"]["nodes"]["tpr"] is None
    assert block["lesions"]["nodes"]["tpr_reason"] == "no lesion in the reference"
    assert block["classification"]["tpr_nodes"] is None
    assert block["delineation"]["primary"]["cohort_dsc"] > 0.3  # of about 0.65: real lesions are found


def test_survival_without_outcomes_is_null_with_a_reason(study):
    survival = study.summary["cross_validation"]["survival"]
    assert survival["reason"] == NO_OUTCOMES
    assert survival["n"] == 0
    assert survival["cutoff_ml"] is None
    assert set(survival["man"].values()) == set(survival["cnn"].values()) == {None}


def test_external_testing_without_patients_is_null_with_a_reason(study):
    assert study.summary["external_testing"] == {
        "n_patients": 0,
        "reason": "no patient of the external cohort was evaluated",
    }


def test_the_reference_keeps_the_volume_of_the_published_mask(study, shared):
    """17 to 54 ml in voxels of 4 to 5.5 mm, onto 6 mm: volumes keep within 12 %, their sum within 3 %."""
    burdens_ml = study.patients.set_index("patient")["ttb_man_ml"]
    volumes_ml = {}
    for patient in burdens_ml.index:
        mask = nib.load(shared / "data" / "sts" / "nifti" / patient / "PET_mask.nii.gz")
        volumes_ml[patient] = np.count_nonzero(mask.dataobj) * np.prod(mask.header.get_zooms()) / 1000
    assert burdens_ml.to_dict() == pytest.approx(volumes_ml, rel=0.12)
    assert burdens_ml.sum() == pytest.approx(sum(volumes_ml.values()), rel=0.03)
    assert (study.patients["mtv_nodes_man_ml"] == 0).all()


def test_fields_smaller_than_the_crop_are_padded_and_keep_every_lesion(study):
    for patient in study.patients["patient"]:
        record = json.loads((study.volumes / patient / "prepared.json").read_text())
        assert record["grid"]["size"][:2] == [32, 32]
        assert record["reference"]["fraction"] == 1
        pet = nib.load(study.volumes / patient / "pet.nii").get_fdata()
        assert not pet[0].any()  # the padding: no uptake
        assert not pet[-1].any()
        assert nib.load(study.volumes / patient / "ct.nii").get_fdata()[0].max() == -1000  # and air


def test_the_chapters_say_what_is_absent(chapters):
    assert "no external patients" in chapters["3_external_testing"]
    for name in ("4_delineation", "5_classification", "6_lesions", "7_survival"):
        assert "No external testing" in chapters[name], name
    assert "no survival analysis" in chapters["7_survival"]
    assert NO_OUTCOMES in chapters["7_survival"]
    assert "fig-survival-cross" not in chapters["7_survival"]
    assert "no patient has a node metastasis" in chapters["4_delineation"]
    assert "telling the classes apart was not tested" in chapters["5_classification"]
    assert "nodes –" in chapters["8_cases"]


def test_nothing_is_called_synthetic_or_shown_as_nan(chapters):
    assert len(chapters) == len([step for step in step_names(FOLDS) if step[0].isdigit()])
    for name, text in chapters.items():
        assert "Synthetic patients" not in text, name
        assert ">nan<" not in text.lower(), name


def test_the_run_ends_with_the_table_and_the_reason(finished):
    assert "External testing: no patient of the external cohort was evaluated" in finished[1]
    assert "Synthetic" not in finished[1]


def test_the_report_without_quarto_says_what_is_absent(study, monkeypatch):
    monkeypatch.setenv("PATH", "")
    page = report.render(study.folder, show=lambda line: None).read_text()
    assert "External testing was not done" in page
    assert f"Survival was not analysed: {NO_OUTCOMES}" in page
    assert "Synthetic patients" not in page


def test_the_trained_models_delineate_the_patients_dicom_and_send_it_back(study, shared, tmp_path):
    """STS_002 from its DICOM gives what its NIfTI twin gives; SEG and RTSTRUCT hold the label map to the voxel."""
    data, folds = shared / "data" / "sts", str(study.folder / "folds")
    dicom, nifti = data / "dicom" / "STS_002", data / "nifti" / "STS_002"
    models = ["predict", "--models", folds, "--device", "cpu"]
    images = ["--pet", str(dicom / "PET" / "image"), "--ct", str(dicom / "CT" / "image")]
    mtv(tmp_path, *models, *images, "--out", "a", "--to", "nifti,seg,rtstruct")
    images = ["--pet", str(nifti / "PET_image.nii.gz"), "--ct", str(nifti / "CT_image.nii.gz")]
    mtv(tmp_path, *models, *images, "--out", "b")
    for name in ("pet", "ct"):
        labels, twin = (read_image(tmp_path / place / f"labels_{name}.nii.gz") for place in ("a", "b"))
        assert (to_array(labels) != to_array(twin)).mean() < 1e-5  # rounding of HU and SUV
        assert to_array(labels).any()
        for form in ("seg", "rtstruct"):
            back = label_map(pydicom.dcmread(tmp_path / "a" / f"{form}_{name}.dcm"), Grid.of(labels), read_names(None))
            np.testing.assert_array_equal(to_array(back.image), to_array(labels))
