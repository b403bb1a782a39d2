"""On a real Slurm of two nodes: a study that loses jobs and its controller ends with the numbers of a local run."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from tests.cluster.slurm import Slurm, end, missing, wait_for
from tests.study.test_whole_study import outcome, write_inputs

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
MINUTES = 60
# Snakemake looks after its jobs every two seconds, not every 10, 20, 30, ...: most of the test's time was that wait.
LOOKS = """\
import asyncio
sleep = asyncio.sleep
asyncio.sleep = lambda seconds, *result: sleep(min(seconds, 2), *result)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory, project):
    """A cohort, its parameters, and a copy of the profile with frequent looks and too little memory for one job."""
    folder = tmp_path_factory.mktemp("cluster")
    write_inputs(folder)
    profile = yaml.safe_load((project / "profiles" / "slurm" / "config.yaml").read_text())
    profile |= {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 20}
    profile["set-resources"] = {
        "prepare": {"mem_mb": 1500},
        "cohort": {"mem_mb": 1500},
        "evaluation": {"mem_mb": "200 if attempt == 1 else 2000"},
    }
    (folder / "mine").mkdir()
    (folder / "mine" / "config.yaml").write_text(yaml.safe_dump(profile))
    (folder / "mine" / "mtv.yaml").write_text("patients_per_job: 1")
    (folder / "looks").mkdir()
    (folder / "looks" / "sitecustomize.py").write_text(LOOKS)
    return folder


def start(place, slurm, more=None):
    command = [sys.executable, "-m", "mtvlib.cli", "run", "tiny.yml", "--profile", "mine"]
    environment = slurm.environment | (more or {})
    with open(place / "out.txt", "a") as output:
        return subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
        )


def waits_for(process, ready, what):
    wait_for(lambda: process.poll() is not None or ready(), 180, what)
    assert process.poll() is None, what


def job_of(study, fold):
    return json.loads((study / "logs" / "jobs" / f"2_train_fold_{fold}.json").read_text())[-1]["job"]


def suspend(study, fold):
    """Stop a fold's step where it stands, as if its computer had grown slow."""
    name = f"2_train_fold_{fold}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if {"mtvlib.steps", name} <= set(process.cmdline()) and process.cwd() == str(study.parent.parent):
                for one in (*process.children(recursive=True), process):
                    one.suspend()
                return
    raise AssertionError(f"no process works on {name}")


def test_an_interrupted_run_leaves_no_job_behind(place, slurm):
    process = start(place, slurm)
    try:
        waits_for(process, lambda: "RUNNING" in {job["state"] for job in slurm.jobs()}, "no job has begun")
    finally:
        end(process)
    assert "stopped; finished work is kept" in (place / "out.txt").read_text()
    wait_for(lambda: slurm.say("squeue", "-h") == "", 20, "a job is left")


def test_lost_jobs_and_a_lost_controller_change_no_number(place, slurm, finished_study):
    study = place / "studies" / "tiny"
    logs = {fold: study / "logs" / f"2_train_fold_{fold}.log" for fold in (0, 1)}
    losses = {0: lambda: slurm.kill_job(job_of(study, fold=0)), 1: lambda: suspend(study, fold=1)}

    def both_lost():
        for fold in [fold for fold in losses if logs[fold].exists() and "epoch 3 of" in logs[fold].read_text()]:
            losses.pop(fold)()
        return not losses

    process = start(place, slurm, {"PYTHONPATH": str(place / "looks")})
    try:
        waits_for(process, both_lost, "training does not begin")
        slurm.stop_controller()
        time.sleep(2)
        slurm.start_controller()
        slurm.allow_minutes(job_of(study, fold=1), 1)
        process.wait(10 * MINUTES)
    finally:
        end(process)
    assert process.returncode == 0, (place / "out.txt").read_text()[-3000:]
    assert outcome(place) == outcome(finished_study)
    assert all("resumed after epoch" in log.read_text() for log in logs.values())

    tries = {}
    for job in sorted(slurm.jobs(), key=lambda job: int(job["job"])):
        tries.setdefault(job["rule"].removeprefix("rule_"), []).append(job)
    states = {rule: [job["state"] for job in jobs] for rule, jobs in tries.items()}
    assert states["train_fold_wildcards_0"] in (["CANCELLED", "COMPLETED"], ["FAILED", "COMPLETED"])
    assert states["evaluation"] == ["FAILED", "COMPLETED"]  # more memory than it asked for, then enough
    more = {rule: [job["memory"] for job in jobs] for rule, jobs in tries.items()}
    assert len(set(more["train_fold_wildcards_0"])) == 2
    assert states["train_fold_wildcards_1"] == ["TIMEOUT", "COMPLETED"]
    assert len(set(more["train_fold_wildcards_1"])) == 1  # more memory would not have helped
    assert {job["node"] for job in slurm.jobs() if "train_fold" in job["rule"]} == {"node1", "node2"}

    assert {job["rule"].split("_")[1] for job in slurm.jobs()} >= {
        "prepare",
        "cohort",
        "train",
        "predict",
        "evaluation",
        "manifest",
    }
    costs = json.loads((study / "manifest.json").read_text())["steps"]
    assert costs["2_train_fold_0"]["jobs"] == 2
    assert costs["2_train_fold_0"]["cpu_hours"] > costs["2_train_fold_0"]["seconds"] / 3600
    assert costs["2_train_fold_0"]["gpu_hours"] == 0
    assert costs["2_train_fold_1"]["jobs"] == 2
