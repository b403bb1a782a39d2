import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from mtvlib import cli, flow
from mtvlib.cohort import assign_folds, read_cohort
from mtvlib.errors import InputError, WorkError
from mtvlib.inference import load_model
from mtvlib.params import Params, write
from mtvlib.prepare import load_patient, prepare_cohort
from mtvlib.study import Study
from mtvlib.volume import Grid, read_labels, to_array, to_image, write_image
from tests import test_dicom_import
from tests.conftest import PET_GRID, tiny_images, tiny_row, write_table
from tests.test_predict import PARAMS, saved, write_patient


@pytest.fixture
def mtv(monkeypatch, capsys):
    """Function that runs the command in this process; returns exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mtv", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture
def predictions(tiny_cohort, tmp_path):
    """A cohort of four tiny patients, with their references as the predictions of a perfect tool."""
    cohort = tiny_cohort(4, {3: {"cohort": "external"}})
    for number in range(4):
        reference = tmp_path / "images" / f"P{number}_reference.nii.gz"
        (tmp_path / "predictions").mkdir(exist_ok=True)
        shutil.copy(reference, tmp_path / "predictions" / f"P{number}.nii.gz")
    (tmp_path / "quick.yml").write_text("bootstrap_resamples: 100")
    return cohort, tmp_path / "predictions"


# --- usage and errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment",),
        ("check",),
        ("check", "cohort.csv", "--jsn"),
        ("run", "x.yml", "--cores", "0"),
        ("run", "x.yml", "--cores", "many"),
        ("run", "x.yml", "--device", "gpu"),
        ("report", "studies/x", "--to", "epub"),
        ("predict", "--models", "folds", "--pet", "a.nii", "--out", "b", "--device", "tpu"),
        ("phantom", "--out", "x", "--patients", "-1"),
    ],
)
def test_wrong_usage_is_exit_code_2(mtv, arguments):
    code, out, err = mtv(*arguments)
    assert code == 2
    assert out == ""
    assert "Usage: mtv" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["phantom", "check", "run", "status", "predict", "evaluate", "report", "info"])
def test_every_command_explains_itself(mtv, command):
    code, out, _ = mtv(command, "--help")
    assert code == 0
    assert f"Usage: mtv {command}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "none.yml"), "file none.yml: there is no such parameter file"),
        (("report", "none"), "file none: is not the folder of a study"),
        (("evaluate", "none.csv", "p", "--out", "o"), "file none.csv: there is no such cohort"),
        (("predict", "--models", "none", "--pet", "a.nii", "--out", "o"), "file none: there is no model here"),
        (("check", "c.csv", "--params", "none.yml"), "file none.yml: there is no such parameter file"),
        (("phantom", "--patients", "0", "--out", "o"), "at least one main patient"),
        (("import", "sts", "none", "--out", "o"), "file none: holds no folders STS_0NN"),
        (("import", "dicom", "none", "--out", "o"), "file none: there is no such folder"),
        (("import", "dicom", "none"), "there is no folder for the cohort"),
        (("import", "dicom", "none", "--out", "o", "--table", "t.csv"), "file none: there is no such folder"),
        (("import", "hecktor", "none", "--out", "o"), "file none: "),
        (("import", "nnunet", "none", "--out", "o"), "file none"),
        (("predict", "--models", "m", "--pet", "a", "--pet", "b", "--ct", "c", "--out", "o"), "2 PET, 1 CT"),
    ],
)
def test_bad_input_is_one_paragraph_with_remedy_and_exit_code_2(mtv, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = mtv(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("mtv: ")
    assert said in err
    assert "Remedy: " in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("is damaged", file="a.nii"), 2, "mtv: file a.nii: is damaged.\n"),
        (WorkError("the loss is nan"), 1, "mtv: the loss is nan.\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), 1, "mtv: [Errno 28] No space left on device: '/x'. "),
        (KeyError("dsc"), 1, "mtv: this should not happen: KeyError: 'dsc'. Remedy: `mtv --debug"),
        (KeyboardInterrupt(), 1, "mtv: stopped; finished work is kept, run the same command to go on.\n"),
    ],
)
def test_errors_while_working(mtv, monkeypatch, error, code, said):
    def work(*_, **__):
        raise error

    monkeypatch.setattr(flow, "run_study", work)
    found, _, err = mtv("run", "x.yml")
    assert found == code
    assert err.startswith(said)
    assert "Traceback" not in err


@pytest.mark.parametrize(("arguments", "resume"), [((), False), (("--resume",), True)])
def test_a_run_goes_on_by_itself_and_must_where_asked_to(mtv, monkeypatch, arguments, resume):
    seen = {}

    def work(*_, **options):
        seen.update(options)
        raise WorkError("enough")

    monkeypatch.setattr(flow, "run_study", work)
    assert mtv("run", "x.yml", *arguments)[0] == 1
    assert seen["resume"] is resume


@pytest.mark.parametrize(("arguments", "hard"), [((), False), (("--hard",), True)])
def test_a_hard_cohort_is_drawn_where_asked_for(mtv, monkeypatch, tmp_path, arguments, hard):
    seen = {}
    monkeypatch.setattr("mtvlib.phantom.write_cohort", lambda *_, **options: seen.update(options))
    assert mtv("phantom", "--out", tmp_path / "c", *arguments)[0] == 0
    assert seen["hard"] is hard


@pytest.mark.parametrize("arguments", [("--debug", "run", "none.yml"), ("run", "none.yml", "--debug")])
def test_debug_shows_the_traceback(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["mtv", *arguments])
    with pytest.raises(InputError, match="no such parameter file"):
        cli.main()


def test_the_command_as_a_process_ends_with_the_same_code_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "mtvlib.cli", "run", "none.yml"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("mtv: file none.yml")


# --- progress


def test_progress_is_silent_where_there_is_no_terminal(mtv, tiny_cohort):
    assert mtv("check", tiny_cohort())[2] == ""


def test_progress_counts_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with cli._bar("patients") as progress:
        progress(3, 7)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/7" in err


def test_of_many_lines_of_a_step_one_in_five_seconds_is_shown(monkeypatch, capsys):
    now = iter([0.0, 1.0, 6.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(now))
    lines = cli.Lines()
    for text in ("started", "epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3", "finished in 9 s"):
        lines.show(f"step 1 of 2  2_train_fold_0: {text}")
    shown = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["started", "epoch 2 of 3", "finished in 9 s"]


# --- check and info


def test_a_clean_cohort_is_exit_code_0(mtv, tiny_cohort):
    assert mtv("check", tiny_cohort())[:2] == (0, "0 errors, 0 warnings\n")


def test_everything_wrong_with_a_cohort_is_listed_at_once(mtv, tiny_cohort, tmp_path):
    cohort = tiny_cohort(4, {0: {"pet": "../P0.nii.gz"}, 1: {"ct": "none.nii.gz"}, 2: {"patient": "P3"}})
    write_image(to_image(np.full(PET_GRID.size, 7, np.uint8), PET_GRID), tmp_path / "images" / "P3_reference.nii.gz")
    code, out, err = mtv("check", cohort)
    assert (code, err) == (2, "")
    *lines, last = out.splitlines()
    assert [line.split(":")[1].split(",")[0].strip() for line in lines] == ["row 2", "row 3", "row 5", "row 5"]
    assert all(line.startswith("error: ") and "Remedy: " in line for line in lines)
    assert last == "4 errors, 0 warnings"


def test_findings_as_json_can_be_read_by_a_program(mtv, tiny_cohort):
    code, out, _ = mtv("check", tiny_cohort(3, {1: {"ct": "none.nii.gz"}}), "--json")
    (finding,) = json.loads(out)
    assert code == 2
    assert (finding["severity"], finding["code"], finding["row"], finding["patient"]) == (
        "error",
        "missing_file",
        3,
        "P1",
    )
    code, out, _ = mtv("check", tiny_cohort(), "--json")
    assert (code, json.loads(out)) == (0, [])


def test_a_cohort_too_small_for_the_folds_of_a_study_is_an_error_of_its_check(mtv, tiny_cohort, tmp_path):
    write(Params(), tmp_path / "p.yml")
    code, out, _ = mtv("check", tiny_cohort(3), "--params", tmp_path / "p.yml")
    assert code == 2
    assert "5 folds need 5 persons" in out


def test_info_is_a_table_in_markdown(mtv):
    code, out, _ = mtv("info")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert code == 0
    assert rows[:2] == [["what", "found"], ["---", "---"]]
    assert all(len(row) == 2 and all(row) for row in rows)
    assert {"python", "mtvlib", "torch", "cuda", "quarto", "browser"} <= {row[0] for row in rows}


# --- status


@pytest.fixture
def half(tmp_path):
    """A study of two folds whose first step is done and whose second failed."""
    folder = tmp_path / "studies" / "half"
    for name in ("logs", "notebooks"):
        (folder / name).mkdir(parents=True)
    (folder / "params.yml").write_text("name: half\nfolds: 2\n")
    (folder / "notebooks" / "1_cohort.ipynb").touch()
    (folder / "logs" / "1_cohort.log").write_text("started\nfinished in 9 s\n")
    (folder / "logs" / "1_cohort.json").write_text('{"seconds": 9.0}')
    (folder / "logs" / "2_train_fold_0.log").write_text("started\nepoch 3 of 9\nfailed: [sad] diverged\n")
    return folder


def test_the_status_of_a_study_is_plain_text_where_it_is_piped(mtv, half):
    code, out, err = mtv("status", half)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert out.splitlines()[3:5] == [
        "1_cohort            done               9 s",
        "2_train_fold_0      failed",
    ]
    assert "2_train_fold_0 failed: [sad] diverged\nThe last lines of" in out
    assert "    epoch 3 of 9\nTo repeat it alone:\n    " in out


def test_the_status_as_json(mtv, half):
    code, out, _ = mtv("status", half, "--json", "--watch")  # ends, since nothing runs
    assert code == 0
    assert [step["state"] for step in json.loads(out)["steps"]][:3] == ["done", "failed", "waiting"]


def test_the_status_in_a_terminal_has_colours_and_the_same_words(mtv, half, monkeypatch):
    monkeypatch.setattr(cli, "Console", functools.partial(Console, force_terminal=True, width=100))
    _, out, _ = mtv("status", half)
    assert "\x1b[" in out
    words = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert re.search(r"^1_cohort +done +9 s", words, re.MULTILINE)
    assert "2_train_fold_0 failed: [sad] diverged" in words


def test_what_is_no_study_has_no_status(mtv, tmp_path):
    code, out, err = mtv("status", tmp_path)
    assert (code, out) == (2, "")
    assert "is not the folder of a study" in err


# --- evaluate


def test_perfect_masks_have_a_dsc_of_one(mtv, predictions, tmp_path):
    code, out, _ = mtv("evaluate", *predictions, "--out", tmp_path / "out", "--params", tmp_path / "quick.yml")
    assert code == 0
    assert "1.000" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for partition, patients in (("cross_validation", 3), ("external_testing", 1)):
        assert summary[partition]["n_patients"] == patients
        for target in ("primary", "nodes", "all"):
            assert summary[partition]["delineation"][target]["cohort_dsc"] == 1
    patients = pd.read_csv(tmp_path / "out" / "patients.csv")
    assert patients["ttb_cnn_ml"].tolist() == pytest.approx([72 * 0.064] * 4)  # 64 + 8 voxels of 4 mm
    assert (pd.read_csv(tmp_path / "out" / "lesions.csv")["outcome"] == "TP").all()


def spoil_by_absence(folder):
    (folder / "P1.nii.gz").unlink()


def spoil_by_grid(folder):
    grid = Grid(PET_GRID.size, PET_GRID.spacing_mm, (-30.0, -30.0, 0.002))
    write_image(to_image(tiny_images()["reference"][0], grid), folder / "P1.nii.gz")


def spoil_by_class(folder):
    write_image(to_image(tiny_images()["reference"][0] * 3, PET_GRID), folder / "P1.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_by_absence, "1 of 4 patients have no prediction: P1."),
        (spoil_by_grid, "P1.nii.gz: the grids are 0.002 mm apart, 0.001 mm are allowed"),
        (spoil_by_class, "P1.nii.gz: a label map may hold 0, 1, 2 only (found: 3, 6)"),
    ],
)
def test_a_prediction_that_does_not_fit_is_named(mtv, predictions, tmp_path, spoil, said):
    spoil(predictions[1])
    code, _, err = mtv("evaluate", *predictions, "--out", tmp_path / "out")
    assert code == 2
    assert said in err
    assert "P1" in err
    assert not (tmp_path / "out").exists()


def half_of(folder, name):
    """Beside a folder of label maps the same without nodes: another method."""
    for path in sorted(folder.iterdir()):
        labels = to_array(read_labels(path))
        write_image(to_image(np.where(labels == 1, 1, 0).astype(np.uint8), PET_GRID), folder.parent / name / path.name)
    return folder.parent / name


def test_several_methods_and_thresholds_are_compared(mtv, predictions, tmp_path):
    cohort, folder = predictions
    half = half_of(folder, "half")
    methods = ["--method", f"ours={folder}", "--method", f"theirs={half}", "--thresholds"]
    quick = ["--params", tmp_path / "quick.yml"]
    code, out, err = mtv("evaluate", cohort, *methods, "--out", tmp_path / "out", *quick)
    assert (code, err) == (0, "")
    names = ["ours", "theirs", "suv_2_5", "suv_4_0", "max_41", "max_50", "adaptive"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *names,
        *("comparison.csv", "comparison.json", "comparison.html"),
    }
    for name in names:
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert summary["external_testing"]["n_patients"] == 1
        assert summary.get("needs_seed", False) == (name not in names[:2])
    shown = [line.split() for line in out.splitlines()]
    assert ["theirs", "1.000", "0.000", "0.941", "1.000", "0.000", "0.941"] in shown  # 2 x 64 / (64 + 72)
    assert "(the reference's lesions)" in out
    assert "upper bound" in out
    compared = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(compared["other"]) == {"ours"}
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<script src" not in page
    assert "Plotly.newPlot" in page
    assert "upper bound" in page


def test_predictions_without_a_name_come_first_among_several(mtv, predictions, tmp_path):
    cohort, folder = predictions
    arguments = [cohort, folder, "--method", f"half={half_of(folder, 'half')}", "--out", tmp_path / "out"]
    code, _, _ = mtv("evaluate", *arguments, "--params", tmp_path / "quick.yml")
    assert code == 0
    compared = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(zip(compared["method"], compared["other"], strict=True)) == {("half", "predictions")}


def test_what_was_missing_or_resampled_is_printed(mtv, predictions, tmp_path):
    cohort, folder = predictions
    spoil_by_absence(folder)
    spoil_by_grid(folder.parent / "moved")
    os.replace(folder.parent / "moved" / "P1.nii.gz", folder / "P2.nii.gz")
    arguments = [cohort, folder, "--out", tmp_path / "out", "--params", tmp_path / "quick.yml"]
    code, out, _ = mtv("evaluate", *arguments, "--missing", "empty", "--resample")
    assert code == 0
    assert "missing, counted as empty: 1 (P1)\n" in out
    assert "resampled: 1 (P2), 4.6 ml became 4.6 ml\n" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["missing_predictions"] == ["P1"]
    assert [one["patient"] for one in summary["resampled_predictions"]] == ["P2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to evaluate. Remedy: give PREDICTIONS, --method NAME=DIR or --thresholds."),
        (["--method", "ours"], "a method must be name=DIR, its name of letters, digits, `_` and `-` (found: ours)"),
        (["--method", "max_41=x", "--thresholds"], "two methods have one name (found: max_41)"),
        (["--method", "ours=none"], "file none: there is no such folder. Remedy: name the folder of the predictions."),
        (["--seeds", "x"], "--seeds has no use without --thresholds (found: x). Remedy: give both."),
        (["--thresholds", "--seeds", "none"], "file none: there is no such folder. Remedy: name the folder of the"),
    ],
)
def test_methods_that_cannot_be_evaluated_are_one_paragraph(mtv, tiny_cohort, tmp_path, monkeypatch, arguments, said):
    cohort = tiny_cohort()
    monkeypatch.chdir(tmp_path)
    code, out, err = mtv("evaluate", cohort, *arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_evaluating_masks_needs_no_network(predictions, tmp_path):
    """torch takes seconds to start, and more memory than all else."""
    cohort, folder = predictions
    arguments = ["mtv", "evaluate", str(cohort), str(folder), "--thresholds", "--out", str(tmp_path / "out")]
    arguments += ["--params", str(tmp_path / "quick.yml")]
    program = (
        f"import sys; sys.argv = {arguments!r}\nfrom mtvlib.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"


# --- import


def test_import_dicom_says_what_it_took_and_where_the_reasons_are(mtv, tmp_path):
    test_dicom_import.write_patient(tmp_path / "source", "DOE-1")
    table = tmp_path / "table.csv"
    table.write_text("patient,age,name\nDOE-1,60,Jane\nDOE-2,50,Joe\n")
    out = tmp_path / "cohort"
    code, text, err = mtv("import", "dicom", tmp_path / "source", "--out", out, "--table", table, "--jobs", "1")
    assert (code, err) == (0, "")
    assert "1 patients imported, 0 left out, 0 of them done before" in text
    assert "not taken over: name" in text
    assert "Rows of the table without images: 1" in text
    assert f"{out / 'import_log.csv'}" in text
    assert (out / "cohort.csv").exists()


def test_import_dicom_lists_the_names_of_regions(mtv, tmp_path):
    test_dicom_import.write_patient(tmp_path / "source", "DOE-1")
    code, text, _ = mtv("import", "dicom", tmp_path / "source", "--list-regions")
    assert code == 0
    assert [line.split() for line in text.splitlines()] == [
        ["nodes", "1", "GTVn1"],
        ["primary", "1", "GTVp"],
        ["ignored", "1", "Parotid_L"],
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "source"]


# --- predict


def test_predict_takes_several_patients_and_ends_with_1_if_one_failed(mtv, tmp_path):
    model = saved(tmp_path / "model", params=PARAMS)
    pet, ct = write_patient(tmp_path)
    (tmp_path / "P2.nii.gz").write_bytes(b"no image")
    arguments = ["--pet", pet, "--ct", ct, "--pet", tmp_path / "P2.nii.gz", "--ct", ct]
    code, text, err = mtv("predict", "--models", model, *arguments, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert "1 of 2 patients delineated" in text
    assert "mtv: P2: file" in err
    assert (tmp_path / "out" / "pet" / "record.json").exists()


def test_predict_prints_volumes_and_warnings(mtv, tmp_path):
    model = saved(tmp_path / "model", params=PARAMS)
    hot = tiny_images()["pet"][0]
    hot[4, 4, 4] = 150
    pet, ct = write_patient(tmp_path, pet=(hot, PET_GRID))
    out = tmp_path / "[new] patient"  # no markup
    code, text, err = mtv("predict", "--models", model, "--pet", pet, "--ct", ct, "--out", out, "--device", "cpu")
    assert code == 0
    assert "warning: the PET has an SUV above 100" in err
    assert [line.split()[0] for line in text.splitlines()] == ["primary", "nodes", "all", "Written"]
    assert text.splitlines()[-1] == f"Written to {out}"
    assert json.loads((out / "record.json").read_text())["lesions"] >= 0


def test_a_ct_in_place_of_the_pet_is_refused(mtv, tmp_path):
    model = saved(tmp_path / "model", params=PARAMS)
    _, ct = write_patient(tmp_path)
    code, _, err = mtv("predict", "--models", model, "--pet", ct, "--ct", ct, "--out", tmp_path / "out")
    assert code == 2
    assert "ct.nii.gz: the PET cannot be SUV, it is below -0.5" in err


# --- a study's folder that was damaged: the file, the remedy, and that the remedy works


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A prepared study of two folds with one trained model."""
    monkeypatch.chdir(tmp_path)
    params = PARAMS.model_copy(update={"name": "x", "cohort": "cohort.csv", "folds": 2, "threads": 1})
    write_table(tmp_path / "cohort.csv", [tiny_row(tmp_path, f"P{i}", seed=i) for i in range(4)])
    write(params, tmp_path / "studies" / "x" / "params.yml")
    study = Study.open("studies/x")
    prepare_cohort(study, assign_folds(read_cohort("cohort.csv"), params), say=lambda line: None)
    saved(study.fold_folder(0), params=params)
    return study


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
def test_half_a_model_is_refused_and_named(study, name):
    truncate(study.fold_folder(0) / name)
    with pytest.raises(InputError, match=rf"folds/0/{name}.*Remedy: .*copy the model's folder again"):
        load_model(study.fold_folder(0))
    saved(study.fold_folder(0), params=study.params)
    load_model(study.fold_folder(0))


@pytest.mark.parametrize("name", ["pet.nii", "ct.nii", "prepared.json"])
def test_a_damaged_volume_is_refused_named_and_prepared_again_once_deleted(study, name):
    before = load_patient(study.volumes, "P1", study.params).inputs
    truncate(study.volumes / "P1" / name)
    with pytest.raises(InputError, match=rf"P1/{name}: .*Remedy: delete it and run the study again"):
        load_patient(study.volumes, "P1", study.params)
    (study.volumes / "P1" / name).unlink()
    prepare_cohort(study, assign_folds(read_cohort("cohort.csv"), study.params), say=lambda line: None)
    np.testing.assert_array_equal(load_patient(study.volumes, "P1", study.params).inputs, before)


def test_half_a_summary_is_named(study):
    study.results.mkdir()
    (study.results / "summary.json").write_text('{"cross_validation": {')
    with pytest.raises(InputError, match=r"results/summary\.json: is damaged.*delete it and run the study again"):
        _ = study.summary


def test_a_study_without_params_is_named(study, mtv):
    (study.folder / "params.yml").write_text("")
    code, _, err = mtv("report", study.folder)
    assert code == 2
    assert "studies/x/params.yml: must be a list of `name: value` lines" in err


# --- a disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_nothing_is_lost_and_the_run_goes_on(small_disk, predictions, mtv, tmp_path):
    arguments = ("evaluate", *predictions, "--out", small_disk / "out", "--params", tmp_path / "quick.yml")
    assert mtv(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in (small_disk / "out").iterdir()}
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(bytes(4096))
    code, _, err = mtv(*arguments)
    assert code == 1
    assert "out/patients.csv: could not be written: No space left on device. Remedy: free disk space" in err
    assert {path.name: path.read_bytes() for path in (small_disk / "out").iterdir()} == before
    (small_disk / "ballast").unlink()
    assert mtv(*arguments)[0] == 0


@pytest.mark.parametrize("place", ["file/out", "file"])
def test_a_place_that_cannot_be_written_is_said(mtv, predictions, tmp_path, place):
    (tmp_path / "file").touch()
    code, _, err = mtv("evaluate", *predictions, "--out", tmp_path / place, "--params", tmp_path / "quick.yml")
    assert code == 1
    assert "could not be written" in err
    assert "Traceback" not in err


def test_a_run_says_where_its_results_lie(mtv, study, monkeypatch):
    study.results.mkdir()
    (study.results / "summary.json").write_text("{}")
    study.write_cohort(pd.DataFrame({"patient": ["P1"], "site": ["x"], "synthetic": [1]}))
    (study.base / "x.yml").write_text(yaml.safe_dump(study.params.model_dump(mode="json")))
    monkeypatch.setattr(flow, "_snakemake", lambda *_: None)
    code, out, err = mtv("run", "x.yml", "--cores", "1")
    assert (code, err) == (0, "")
    assert "For the report: mtv report studies/x" in out
    assert "Synthetic patients" in out
