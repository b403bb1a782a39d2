import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mtvlib import flow, lease, status
from mtvlib.cohort import assign_folds, read_cohort, relative_paths
from mtvlib.errors import InputError, WorkError
from mtvlib.params import Params, read
from mtvlib.prepare import prepare_cohort
from mtvlib.steps import source_fingerprint
from mtvlib.study import Study
from mtvlib.training import train_fold
from tests.conftest import tiny_row, write_table
from tests.tiny_fold import PARAMS, TRAIN, VALIDATION

VALUES = {"name": "x", "cohort": "cohort.csv", "spacing_mm": 4.0, "crop_shape": [16, 16], "patch_shape": [16, 16, 16]}
JOBS = (
    "job         count\n--------  -------\nall             1\ncohort          1\nevaluation      1\ntotal           3\n"
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the parameters and the cohort of a study of two folds, and no Snakemake."""
    monkeypatch.chdir(tmp_path)
    rows = [tiny_row(tmp_path, f"P{i}", seed=i) for i in range(4)]
    rows += [tiny_row(tmp_path, f"E{i}", seed=i, cohort="external", site=f"Rome {i}") for i in range(3)]
    write_table(tmp_path / "cohort.csv", rows)
    (tmp_path / "x.yml").write_text(yaml.safe_dump(VALUES | {"folds": 2, "threads": 1}))
    monkeypatch.setattr(flow, "_snakemake", lambda *_: None)
    return tmp_path


def run(**options):
    return flow.run_study("x.yml", show=print, **options)


# --- before any work


def test_parameters_lie_resolved_in_the_studys_folder(here):
    study = run(device="cpu")
    assert read(study.folder / "params.yml") == read("x.yml").model_copy(update={"device": "cpu"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"x\.yml: parameters: unknown parameter 'epoch', did you mean 'epochs'"),
        ({"cohort": "none.csv"}, r"none\.csv: there is no such cohort"),
        ({"folds": 5}, "5 folds need 5 persons in the main cohort, 4 can be used.*lower `folds`"),
    ],
)
def test_what_is_wrong_is_said_before_a_folder_is_made(here, values, message):
    (here / "x.yml").write_text(yaml.safe_dump(VALUES | {"folds": 2} | values))
    with pytest.raises(InputError, match=message):
        run()
    assert not (here / "studies").exists()


def test_a_run_that_must_go_on_needs_something_to_go_on_with(here):
    with pytest.raises(InputError, match=r"studies/x/folds: there is nothing to resume.*leave --resume out"):
        run(resume=True)
    assert not (here / "studies").exists()


def trained(here, basis):
    """A study whose first fold has a checkpoint, made on other patients; its parameters are in x.yml."""
    small = PARAMS.model_dump(mode="json", include={"filters", "units_per_level", "attention_heads", "batch_size"})
    values = VALUES | {"folds": 2, "threads": 1, "epochs": 1, "patch_stride": 8} | small
    (here / "x.yml").write_text(yaml.safe_dump(values))
    study = run()
    train_fold(TRAIN, VALIDATION, study.params, 0, study.fold_folder(0), basis=basis)
    return study, values


def test_a_run_that_must_go_on_begins_nothing_anew(here):
    _, values = trained(here, "of some images")
    run(resume=True)  # nothing is prepared yet, so no image is known to have changed
    (here / "x.yml").write_text(yaml.safe_dump(values | {"learning_rate": 0.5}))
    with pytest.raises(InputError, match=r"fold 0 cannot be resumed: learning_rate was 1.0, is 0.5"):
        run(resume=True)
    run()


def test_a_run_that_must_go_on_notices_other_images(here):
    study, _ = trained(here, "of other images")
    cohort = assign_folds(read_cohort("cohort.csv", study.params), study.params)
    study.write_cohort(relative_paths(cohort, here))
    prepare_cohort(study, cohort, say=lambda line: None)
    with pytest.raises(InputError, match=r"fold 0 cannot be resumed: the code, the images or the patients changed"):
        run(resume=True)


@pytest.mark.parametrize(
    ("cards", "changes", "limit"),
    [
        (4, {}, ("--resources", "gpu=4")),
        (4, {"devices_per_fold": 4}, ("--resources", "gpu=4")),
        (4, {"device": "cpu"}, ()),
        (0, {"devices_per_fold": 2}, ()),  # processes on the processor
    ],
)
def test_as_many_steps_at_once_as_there_are_cards(monkeypatch, cards, changes, limit):
    monkeypatch.setattr(flow.devices, "visible", lambda: [None] * cards)
    assert flow._device_limit(Study(Params(**changes))) == limit


def test_a_fold_that_wants_more_cards_than_there_are_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(flow.devices, "visible", lambda: [None] * 2)
    with pytest.raises(InputError, match="asks for 4 graphics cards, but there are 2"):
        flow._device_limit(Study(Params(devices_per_fold=4)))


def test_a_missing_image_is_said_with_row_patient_and_file(here):
    (here / "images" / "P2_ct.nii.gz").unlink()
    with pytest.raises(InputError, match=r"patient P2, file images/P2_ct\.nii\.gz: row 4: `ct` does not exist"):
        run()
    assert not (here / "studies").exists()


def test_a_folder_that_is_something_else_is_left_alone(here):
    (here / "studies" / "x").mkdir(parents=True)
    (here / "studies" / "x" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"studies/x: exists and is not a study.*change `name`"):
        run()
    assert [path.name for path in (here / "studies" / "x").iterdir()] == ["thesis.txt"]


def test_an_unknown_profile_names_the_known_ones(here):
    with pytest.raises(InputError, match=r"no such profile \(found: cloud\).*local"):
        run(profile="cloud")
    assert not (here / "studies").exists()


def test_a_folder_that_cannot_be_written_is_said(here):
    (here / "studies").write_text("a file in the place of the folder")
    with pytest.raises(InputError, match="studies/x: the study's folder cannot be written: Not a directory"):
        run()


def test_half_a_params_yml_is_written_anew(here):
    path = here / "studies" / "x" / "params.yml"
    path.parent.mkdir(parents=True)
    path.write_text("name: x\ncohort: [")
    with pytest.raises(InputError, match=r"params\.yml: is not YAML"):
        Study.open(path.parent)
    assert Study.open(run().folder).params.folds == 2


def test_only_one_run_holds_the_folder(tmp_path):
    with flow.only_run(tmp_path), pytest.raises(InputError, match="another run is at work"), flow.only_run(tmp_path):
        pass
    with flow.only_run(tmp_path):
        pass


HOLD = """
import errno, fcntl, sys
from pathlib import Path
from mtvlib import errors, flow

def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

if sys.argv[2] == "no locks":
    fcntl.flock = flock
try:
    with flow.only_run(Path(sys.argv[1])):
        print("holds it", flush=True)
        sys.stdin.readline()
except errors.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_of_two_processes_the_second_is_refused_and_after_a_kill_is_not(tmp_path, locks):
    def start():
        command = [sys.executable, "-c", HOLD, str(tmp_path), locks]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as first, start() as second:
        said = {process.stdout.readline(): process for process in (first, second)}
        holder = said.pop("holds it\n")
        (refusal, _) = said.popitem()
        assert "another run is at work on this study" in refusal
        assert "Remedy: wait until it ends, or stop it." in refusal
        assert locks == "locks" or f"process {holder.pid} on " in refusal
        with start() as third:
            assert f"process {holder.pid} on " in third.stdout.readline()
        holder.kill()
        holder.wait()
        with start() as fourth:
            assert fourth.stdout.readline() == "holds it\n"
            fourth.communicate("\n")
    assert not (tmp_path / ".lease").exists()


def lease_of_another_computer(folder, silent_s):
    holder = replace(lease.take(folder / lease.STUDY), host="node7", system="another")
    (folder / lease.STUDY).write_text(json.dumps(asdict(holder)))
    os.utime(folder / lease.STUDY, (time.time() - silent_s,) * 2)


def test_a_run_on_another_computer_is_named(tmp_path):
    lease_of_another_computer(tmp_path, 30)
    with pytest.raises(InputError, match=r"another run is at work.*on node7, begun.*wait until it ends"):
        flow.only_run(tmp_path).__enter__()


def test_a_silent_run_of_another_computer_is_told_with_the_remedy_which_helps(tmp_path):
    lease_of_another_computer(tmp_path, 1200)
    with pytest.raises(
        InputError, match=rf"no sign of life for 20 min \(found: .*node7.*delete {tmp_path}/\.lease and"
    ):
        flow.only_run(tmp_path).__enter__()
    (tmp_path / ".lease").unlink()
    with flow.only_run(tmp_path):
        pass


@pytest.fixture
def asked(here, monkeypatch):
    """What Snakemake was asked for by a run with a profile for a cluster, two patients a job."""
    (here / "mine").mkdir()
    (here / "mine" / "config.yaml").write_text("executor: slurm")
    (here / "mine" / "mtv.yaml").write_text("patients_per_job: 2")
    calls = []
    monkeypatch.setattr(flow, "_snakemake", lambda *arguments: calls.append(arguments[4:]))
    return calls


def test_a_cluster_prepares_and_predicts_in_batches_first_and_this_computer_does_not(asked):
    study = run(profile="mine")
    patients = len(read_cohort(study.source))
    ((prepare,), (predict,), rest) = asked
    assert prepare == [f"batches/1_prepare_{part}_of_4.txt" for part in range(-(-patients // 2))]
    assert predict == ["batches/3_predict_0_of_2.txt", "batches/3_predict_1_of_2.txt"]  # three external patients
    assert rest == ()
    asked.clear()
    run()
    assert asked == [()]


def test_a_study_that_was_done_elsewhere_needs_no_batches(asked):
    study = run()
    for index in (study.volumes / "prepared.csv", study.predictions / "external.csv"):
        index.parent.mkdir()
        index.write_text("patient\n")
    asked.clear()
    run(profile="mine")
    assert asked == [()]


# --- what was deleted from the study's folder


@pytest.fixture
def prepared(here):
    study, params = run(), read("x.yml")
    cohort = assign_folds(read_cohort("cohort.csv", params), params)
    study.write_cohort(relative_paths(cohort, here))
    prepare_cohort(study, cohort, say=lambda line: None)
    for index, patients in (("folds/0/predicted.csv", ["P0", "P1"]), ("predictions/external.csv", [])):
        (study.folder / index).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"patient": patients, "sha256": "?"}).to_csv(study.folder / index, index=False)
    for patient in ("P0", "P1"):
        study.prediction_path(patient).touch()
    return study


def indices(study):
    return {path.name for path in (study.volumes / "prepared.csv", *study.folder.rglob("*/*d.csv")) if path.exists()}


def test_nothing_is_forgotten_of_a_whole_study(prepared):
    run()
    assert indices(prepared) == {"prepared.csv", "predicted.csv"}
    assert (prepared.predictions / "external.csv").exists()


@pytest.mark.parametrize("name", ["pet.nii", "reference.nii", "overview.png", "prepared.json"])
def test_a_deleted_volume_is_prepared_again_and_the_others_are_kept(prepared, name):
    (prepared.volumes / "P1" / name).unlink()
    kept = (prepared.volumes / "P2" / "pet.nii").stat().st_mtime_ns
    run()
    assert indices(prepared) == {"predicted.csv"}
    prepare_cohort(prepared, assign_folds(read_cohort("cohort.csv"), prepared.params), say=lambda line: None)
    assert (prepared.volumes / "P1" / name).exists()
    assert (prepared.volumes / "P2" / "pet.nii").stat().st_mtime_ns == kept


def test_a_deleted_prediction_is_predicted_again(prepared):
    prepared.prediction_path("P1").unlink()
    run()
    assert indices(prepared) == {"prepared.csv"}


@pytest.mark.parametrize("name", ["probability", "votes"])
def test_a_deleted_map_is_predicted_again_and_one_that_never_was_is_not_missed(prepared, name):
    index = prepared.predictions / "external.csv"
    row = {"patient": ["P0"], "sha256": "?", "probability_sha256": "?", "votes_sha256": ""}
    pd.DataFrame(row | {f"{name}_sha256": ["?"]}).to_csv(index, index=False)
    path = prepared.prediction_paths("P0")
    for one in ("probability", name):
        path[one].parent.mkdir(exist_ok=True)
        path[one].touch()
    flow.forget_lost_files(prepared)
    assert index.exists()
    path[name].unlink()
    flow.forget_lost_files(prepared)
    assert not index.exists()


# --- what a run shows


@pytest.fixture
def watched(tmp_path):
    """Function that appends text to a step's log and returns the lines shown for it."""
    (tmp_path / "snakemake.log").write_text(JOBS)
    (tmp_path / "evaluation.log").write_text("started\nfinished in 9 s\n")  # of an earlier run
    shown = []
    watcher = flow.Watcher(tmp_path, {tmp_path / "evaluation.log": 24}, shown.append)

    def append(step, text, mode="a"):
        with open(tmp_path / f"{step}.log", mode) as log:
            log.write(text)
        watcher.look()
        lines, shown[:] = list(shown), []
        return lines

    return append


def test_steps_are_numbered_in_the_order_of_their_beginning(watched):
    assert watched("1_cohort", "started\n") == ["step 1 of 2  1_cohort: started"]
    assert watched("evaluation", "started\n", mode="w") == ["step 2 of 2  evaluation: started"]
    assert watched("1_cohort", "finished in 3 s\n") == ["step 1 of 2  1_cohort: finished in 3 s"]


def test_a_line_is_shown_once_it_is_whole_and_only_once(watched):
    watched("1_cohort", "started\n")
    assert watched("1_cohort", "patient 1 of 9 pre") == []
    assert watched("1_cohort", "pared\n") == ["step 1 of 2  1_cohort: patient 1 of 9 prepared"]
    assert watched("1_cohort", "") == []


def test_a_log_that_was_emptied_is_read_from_its_beginning(watched):
    assert watched("evaluation", "", mode="w") == []
    assert watched("evaluation", "started\n") == ["step 1 of 2  evaluation: started"]


def test_what_libraries_print_is_not_shown(watched):
    text = "a warning: x\nstarted\nUserWarning: y\nepoch 1 of 3\n"
    assert [line.rpartition(": ")[2] for line in watched("2_train_fold_0", text)] == ["started", "epoch 1 of 3"]


# --- what a failed run says


@pytest.fixture
def failed(tmp_path):
    study = Study(Params(name="x", studies=str(tmp_path)))
    study.logs.mkdir(parents=True)
    (study.logs / "snakemake.log").write_text("".join(f"line {i}\n" for i in range(30)))
    return study


@pytest.mark.parametrize(("code", "kind"), [(1, WorkError), (2, InputError)])
def test_the_steps_own_error_is_the_runs(failed, code, kind):
    text = json.dumps({"message": "patient P1: is damaged.", "exit_code": code})
    (failed.logs / "1_cohort.error.json").write_text(text)
    error = flow._failure(failed, failed.logs / "snakemake.log")
    assert type(error) is kind
    assert str(error).startswith("patient P1: is damaged. Remedy: mend the cause and run the same command")


def test_without_one_the_end_of_snakemakes_log_is_shown(failed):
    error = flow._failure(failed, failed.logs / "snakemake.log")
    assert str(error).endswith("line 28 | line 29.")
    assert "line 17 |" not in str(error)


def test_a_full_disk_is_the_cause_when_nobody_could_write_it_down(failed, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = flow._failure(failed, failed.logs / "snakemake.log")
    assert str(error).startswith(f"file {failed.folder}: the disk is full (found: 0.0 MB free)")
    assert error.exit_code == 1


def test_a_quota_is_the_cause_though_the_disk_has_room(failed):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        error = flow._failure(failed, failed.logs / "snakemake.log")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "nothing can be written any more: File too large. Remedy: check the quota" in str(error)
    assert error.exit_code == 1
    assert [path.name for path in failed.logs.iterdir()] == ["snakemake.log"]


@contextmanager
def read_only(folder):
    """A folder mounted read-only, since nothing else keeps root from writing."""
    try:
        for options in (["--bind", folder], ["-o", "remount,ro,bind"]):
            subprocess.run(["mount", *options, folder], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        subprocess.run(["umount", folder], capture_output=True, check=False)
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_folder_is_said_and_the_run_goes_on_when_it_is_no_more(here):
    study = run()
    refused = pytest.raises(InputError, match="studies/x: the study's folder cannot be written: Read-only file system")
    with read_only(study.folder):
        with refused:
            run()
        assert status.look(study.folder).state == "stopped"  # can be looked at all the same
    run()


def test_a_cohort_that_can_only_be_read_is_enough(here):
    with read_only(here / "images"):
        study = run()
        cohort = assign_folds(read_cohort("cohort.csv", study.params), study.params)
        assert len(prepare_cohort(study, cohort, say=lambda line: None)) == 7
        assert len(source_fingerprint(study)) == 16


@pytest.mark.parametrize("step", ["lease", "record", "params"])
def test_a_disk_that_is_full_from_the_beginning_is_said(here, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "lease":
        monkeypatch.setattr(lease, "_create", full)
    else:
        names = {"record": status.RUN, "params": "params.yml"}
        really = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: full() if Path(b).name == names[step] else really(a, b))
    with pytest.raises(WorkError, match=r"No space left on device.*then run the same command"):
        run()
    monkeypatch.undo()
    assert not (here / "studies" / "x" / ".lease").exists()
