"""The state of a study, told from its folder alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import yaml

from mtvlib import graph, lease, params, status
from mtvlib.errors import InputError, WorkError

VALUES = {"name": "x", "studies": "studies", "folds": 2, "epochs": 50, "min_roi_ml": 0.1, "crop_shape": [16, 16]}
TABLE = "job      count\n-------  -----\n{}total        9\n\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a study that was never begun."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies" / "x" / "logs").mkdir(parents=True)
    path = tmp_path / "studies" / "x"
    (path / "params.yml").write_text(yaml.safe_dump(VALUES))
    return path.relative_to(tmp_path)


def say(folder, step, *lines, age_s=0):
    path = folder / "logs" / f"{step}.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    stamp = time.time() - age_s
    os.utime(path, (stamp, stamp))


def finish(folder, *steps, seconds=60.0, age_s=0):
    for step in steps:
        say(folder, step, "started", "finished in 60 s", age_s=age_s)
        (folder / "logs" / f"{step}.json").write_text(json.dumps({"seconds": seconds, "peak_memory_mb": 1}))
        product = folder / graph.product_of(step)
        product.parent.mkdir(exist_ok=True)
        product.touch()


def begin(folder, **values):
    record = {"began": time.time() - 100, "ended": None, "outcome": "running", "command": "mtv run x.yml"}
    (folder / status.RUN).write_text(json.dumps(record | values))


def hold(path, host="node7", silent_s=0.0, began_s=100.0, job=""):
    """A lease of another computer, or (host=None) of this process."""
    holder = lease.take(path)
    if host:
        holder = replace(holder, host=host, system="another", job=job)
    path.write_text(json.dumps(asdict(replace(holder, began=time.time() - began_s))))
    os.utime(path, (time.time() - silent_s,) * 2)


def run_on(folder, **values):
    begin(folder, **values)
    hold(folder / lease.STUDY)


def work(folder, step, *lines, **values):
    say(folder, step, "started", *lines)
    hold(lease.step_path(folder / "logs", step), **values)


def states(folder):
    return {step.step: step.state for step in status.look(folder).steps}


def found(folder, name):
    return next(step for step in status.look(folder).steps if step.step == name)


# --- the study


def test_what_is_no_study_is_said(tmp_path):
    with pytest.raises(InputError, match=r"nothing: is not the folder of a study.*a folder that `mtv run` made"):
        status.look(tmp_path / "nothing")


def test_a_study_that_was_never_begun(folder):
    state = status.look(folder)
    assert (state.state, state.steps_done, state.seconds_left) == ("not begun", 0, None)
    assert {step.state for step in state.steps} == {"waiting"}
    assert status.heading(state) == "Study x: not begun: `mtv run PARAMS` begins it."


def test_a_finished_study(folder):
    finish(folder, *graph.step_names(2))
    begin(folder, outcome="finished", ended=time.mktime((2026, 11, 28, 6, 37, 0, 0, 0, -1)))
    assert status.heading(status.look(folder)) == "Study x: finished 2026-11-28 06:37."


def test_a_study_of_an_earlier_version_has_no_record_of_its_run(folder):
    finish(folder, *graph.step_names(2))
    assert status.look(folder).state == "finished"
    (folder / "manifest.json").unlink()
    assert status.look(folder).state == "stopped"


def test_a_run_on_another_computer_is_seen_by_its_heartbeat(folder):
    run_on(folder)
    os.utime(folder / lease.STUDY, (time.time() - 90,) * 2)
    state = status.look(folder)
    assert state.state == "running"
    assert "on node7" in status.heading(state)
    assert "last sign of life" in status.heading(state)


def test_a_run_of_another_computer_that_went_silent_is_told_with_the_remedy(folder):
    run_on(folder)
    os.utime(folder / lease.STUDY, (time.time() - 3600,) * 2)
    state = status.look(folder)
    assert state.state == "silent"
    assert "no sign of life for 60 min; if it is gone, delete studies/x/.lease and run again" in state.said


@pytest.mark.parametrize("with_lease", [True, False])
def test_a_killed_run_is_known_by_its_dead_process(folder, with_lease):
    if with_lease:
        hold(folder / lease.STUDY, host=None)
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        dead = json.loads((folder / lease.STUDY).read_text()) | {"pid": process.pid}
        (folder / lease.STUDY).write_text(json.dumps(dead))
    begin(folder)
    finish(folder, "1_cohort")
    say(folder, "2_train_fold_0", "started", "epoch 7 of 50, loss 1")
    state = status.look(folder)
    assert state.state == "killed"
    assert "`mtv run x.yml` goes on, finished steps are kept; 1 of 13 steps done" in status.heading(state)
    fold = found(folder, "2_train_fold_0")
    assert (fold.state, fold.done, fold.total) == ("stopped", 7, 50)


# --- its steps


def test_a_training_says_its_epoch_and_the_time_left_at_its_own_pace(folder):
    run_on(folder)
    finish(folder, "1_cohort")
    (folder / "folds" / "0").mkdir(parents=True)
    (folder / "folds" / "0" / "history.csv").write_text("epoch,seconds\n1,30\n2,4\n3,4\n")  # the first took longer
    work(folder, "2_train_fold_0", "epoch 2 of 50, loss 1", "epoch 3 of 50, loss 1, soft DSC 0.1", job="12")
    step = found(folder, "2_train_fold_0")
    assert (step.state, step.done, step.total, step.unit, step.where) == ("running", 3, 50, "epochs", "node7 job 12")
    assert step.seconds == pytest.approx(100, abs=5)
    assert step.seconds_left == 4 * 47
    assert status.row(step) == ("2_train_fold_0", "running", "epoch 3 of 50 on node7 job 12", "2 min", "3 min")


def test_patients_are_counted_from_the_last_beginning_on(folder):
    run_on(folder)
    work(folder, "1_cohort", "patient 9 of 20 prepared", "started", "patient 5 of 20 prepared")
    step = found(folder, "1_cohort")
    assert (step.done, step.total, step.unit) == (5, 20, "patients")
    assert step.seconds_left == pytest.approx(300, abs=15)  # 100 s for 5


def test_test_patients_of_a_fold_are_timed_from_its_last_epoch_on(folder):
    run_on(folder)
    (folder / "folds" / "1").mkdir(parents=True)
    (folder / "folds" / "1" / "history.csv").write_text("epoch,seconds\n1,30\n")
    os.utime(folder / "folds" / "1" / "history.csv", (time.time() - 20,) * 2)
    work(folder, "2_train_fold_1", "epoch 50 of 50, loss 1", "patient 2 of 6 delineated")
    assert found(folder, "2_train_fold_1").seconds_left == pytest.approx(40, abs=4)


def test_what_waits_takes_as_long_as_the_last_time_or_as_one_like_it(folder):
    run_on(folder)
    finish(folder, "1_cohort", "2_train_fold_0", seconds=600)
    (folder / "logs" / "evaluation.json").write_text('{"seconds": 30}')
    left = {step.step: step.seconds_left for step in status.look(folder).steps}
    assert left["2_train_fold_1"] == 600
    assert left["evaluation"] == 30
    assert left["3_external_testing"] is None
    state = status.look(folder)
    assert state.seconds_left == 630
    assert "2 of 13 steps done, at least 10 min left" in status.heading(state)


def test_steps_side_by_side_share_the_time_left(folder):
    run_on(folder)
    finish(folder, "1_cohort")
    for fold, seconds in ((0, 10), (1, 20)):
        (folder / "folds" / str(fold)).mkdir(parents=True)
        (folder / "folds" / str(fold) / "history.csv").write_text(f"epoch,seconds\n1,{seconds}\n")
        work(folder, f"2_train_fold_{fold}", "epoch 40 of 50, loss 1")
    assert status.look(folder).seconds_left == 200  # of the slower; not 300


def test_a_failed_step_shows_its_log_and_how_to_repeat_it(folder):
    begin(folder, outcome="failed", ended=time.time())
    lines = [f"line {number}" for number in range(30)]
    reason = "patient P1: is damaged. Remedy: copy it again."
    say(folder, "1_cohort", "started", *lines, f"failed: step 1_cohort failed: {reason}")
    error = {"message": f"step 1_cohort failed: {reason}", "exit_code": 2}
    (folder / "logs" / "1_cohort.error.json").write_text(json.dumps(error))
    text = "\n".join(status.lines(status.look(folder)))
    assert f"1_cohort failed: {reason}\nThe last lines of studies/x/logs/1_cohort.log:\n    line 20\n" in text
    assert text.count(reason) == 1
    assert text.endswith(f"To repeat it alone:\n    {sys.executable} -m mtvlib.steps --study studies/x 1_cohort")
    assert "mend the cause, then `mtv run x.yml` goes on" in text


def test_the_command_works_from_another_folder_too(folder, tmp_path, monkeypatch):
    (tmp_path / "else where").mkdir()
    monkeypatch.chdir(tmp_path / "else where")
    place = tmp_path / folder
    assert status.repeat_command(place, "evaluation").startswith(f"cd {tmp_path} && ")
    assert status.repeat_command(place, "evaluation").endswith("--study studies/x evaluation")


def test_a_step_that_was_killed_in_a_failed_run_has_a_reason_as_well(folder):
    begin(folder, outcome="failed", ended=time.time())
    say(folder, "2_train_fold_0", "started", "epoch 7 of 50, loss 1")
    step = found(folder, "2_train_fold_0")
    assert step.state == "failed"
    assert "killed, most often for want of memory or time" in step.reason


def test_a_step_for_whose_last_words_the_disk_had_no_room(folder):
    begin(folder, outcome="failed", ended=time.time())
    say(folder, "1_cohort", "started", "patient 1 of 9 prepared", "OSError: [Errno 28] No space left on")
    assert found(folder, "1_cohort").reason.endswith("after: No space left on")


def test_failures_of_a_run_that_is_just_ending(folder):
    run_on(folder)
    say(folder, "2_train_fold_0", "started", "failed: diverged")
    say(folder, "2_train_fold_1", "started", "epoch 7 of 50, loss 1")
    text = "\n".join(status.failures(folder))
    assert "2_train_fold_0 failed: diverged" in text
    assert "2_train_fold_1 failed: its process ended without a word" in text


def test_a_failure_of_an_earlier_run_waits_for_its_turn(folder):
    say(folder, "evaluation", "started", "failed: full disk", age_s=500)
    run_on(folder)
    assert found(folder, "evaluation").state == "waiting"
    assert found(folder, "evaluation").reason == "failed before"


# --- what was done before and is to be done again


def test_what_the_run_plans_to_do_again_waits(folder):
    finish(folder, *graph.step_names(2), age_s=500)
    finish(folder, "evaluation")
    (folder / "logs" / "snakemake.log").write_text(TABLE.format("evaluation     1\nchapter     7\nmanifest     1\n"))
    run_on(folder)
    done = {step for step, state in states(folder).items() if state == "done"}
    assert done == {"1_cohort", "2_train_fold_0", "2_train_fold_1", "3_external_testing", "evaluation"}


def test_before_snakemake_has_planned_everything_is_as_it_was(folder):
    finish(folder, *graph.step_names(2), age_s=500)
    run_on(folder)
    assert set(states(folder).values()) == {"done"}


def test_a_product_that_is_gone_is_not_done(folder):
    finish(folder, "1_cohort")
    (folder / "notebooks" / "1_cohort.ipynb").unlink()
    assert states(folder)["1_cohort"] == "waiting"


def test_a_changed_parameter_is_named_at_the_steps_that_depend_on_it(folder):
    finish(folder, *graph.step_names(2))
    made = {"evaluation": {"min_roi_ml": 0.2}, "1_cohort": {"crop_shape": (16, 16)}}
    (folder / ".snakemake" / "metadata").mkdir(parents=True)
    for step, values in made.items():
        name = base64.urlsafe_b64encode(graph.product_of(step).encode()).decode()
        (folder / ".snakemake" / "metadata" / name).write_text(json.dumps({"params": ["'a hash'", repr(values)]}))
    begin(folder, outcome="finished", ended=time.time())
    state = status.look(folder)
    assert state.state == "stopped"
    assert found(folder, "evaluation").reason == "to be done again: min_roi_ml was 0.2, is 0.1"
    assert [step.step for step in state.steps if step.state != "done"] == ["evaluation"]


def test_a_parameter_file_tells_what_it_changed(folder):
    finish(folder, *graph.step_names(2))
    path, values = folder.parents[1] / "x.yml", {"name": "x", "folds": 2, "epochs": 50}
    path.write_text(yaml.safe_dump(values | {"epochs": 60}))
    params.write(params.from_dict(values), folder / "params.yml")
    assert status.look_at(path).notes == [
        "Changed in x.yml since the last run: epochs was 50, is 60. `mtv run x.yml` redoes what depends on it."
    ]
    path.write_text(yaml.safe_dump(values | {"device": "cpu"}))  # where it runs is no change
    assert status.look_at(path).notes == []
    path.write_text(yaml.safe_dump(values | {"name": "new"}))
    assert status.heading(status.look_at(path)) == "Study new: not begun: `mtv run x.yml` begins it."


# --- how it is told


def test_json_holds_the_numbers_and_the_way_to_repeat(folder):
    begin(folder, outcome="failed", ended=time.time())
    say(folder, "1_cohort", "started", "failed: why")
    told = json.loads(json.dumps(status.as_dict(status.look(folder))))
    assert (told["state"], told["steps_done"], told["steps_total"]) == ("failed", 0, 13)
    assert told["steps"][0]["reason"] == "why"
    assert told["steps"][0]["repeat"].endswith("1_cohort")
    assert told["steps"][1]["state"] == "waiting"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3599, "60 min"), (7260, "2 h 1 min"), (187_200, "2 d 4 h")],
)
def test_seconds_in_words(seconds, text):
    assert status.seconds_text(seconds) == text


def test_watching_ends_with_the_run(folder, monkeypatch):
    run_on(folder)
    shown = []

    def sleep(_):
        (folder / lease.STUDY).unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    status.watch(folder, lambda state: shown.append(state.state))
    assert shown == ["running", "killed"]


# --- the record of a run


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "finished"), (WorkError("x"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_run_leaves_how_it_ended(folder, error, outcome):
    try:
        with status.recorded(folder, "mtv run x.yml"):
            assert json.loads((folder / status.RUN).read_text())["outcome"] == "running"
            if error:
                raise error
    except (WorkError, KeyboardInterrupt):
        pass
    record = json.loads((folder / status.RUN).read_text())
    assert (record["outcome"], record["command"]) == (outcome, "mtv run x.yml")


def test_looking_needs_no_heavy_library():
    heavy = ("torch", "pandas", "numpy", "pydantic", "SimpleITK")
    code = f"import sys; import mtvlib.cli, mtvlib.status; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- batches of patients, on a cluster


def test_batches_are_told_while_they_are_at_work_or_have_failed(folder):
    run_on(folder)
    finish(folder, "1_prepare_0_of_4")
    work(folder, "1_prepare_1_of_4", "patient 12 of 50 prepared", job="33")
    say(folder, "1_prepare_2_of_4", "started", "failed: P7: the PET is truncated")
    say(folder, "1_prepare_3_of_4", "started", "failed: of a run before", age_s=1000)
    state = status.look(folder)
    assert [step.step for step in state.steps if step.state != "waiting"] == ["1_prepare_1_of_4", "1_prepare_2_of_4"]
    assert status.row(state.steps[0])[:3] == ("1_prepare_1_of_4", "running", "patient 12 of 50 on node7 job 33")
    assert state.steps_total == len(graph.step_names(2))
    (failed,) = [step for step in status.as_dict(state)["steps"] if step["state"] == "failed"]
    assert failed["reason"] == "P7: the PET is truncated"
    assert failed["repeat"].endswith("1_prepare_2_of_4")
