"""The study as jobs of a stand-in for Kubernetes: what is asked for, what is tried again, and the same numbers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtvlib import cluster, params
from mtvlib.study import Study
from tests.cluster.slurm import end, wait_for
from tests.study.test_whole_study import outcome, write_inputs

MINUTES = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory, project):
    """A cohort, its parameters, and a copy of the profile that has two jobs at once and looks at them often."""
    folder = tmp_path_factory.mktemp("kubernetes")
    write_inputs(folder)
    (folder / "mine").mkdir()
    for file in (project / "profiles" / "kubernetes").iterdir():
        (folder / "mine" / file.name).write_text(file.read_text())
    profile = yaml.safe_load((folder / "mine" / "config.yaml").read_text())
    profile |= {"jobs": 2, "seconds-between-status-checks": 1, "latency-wait": 20}
    (folder / "mine" / "config.yaml").write_text(yaml.safe_dump(profile))
    return folder


@pytest.fixture(scope="module")
def pods(place):
    """The stand-in's folder; `kubectl` in its `bin` is the stand-in."""
    folder = place / "pods"
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "kubectl"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("kubectl.py")} "$@"\n')
    script.chmod(0o755)
    return folder


def start(place, pods):
    command = [sys.executable, "-m", "mtvlib.cli", "run", "tiny.yml", "--profile", "mine"]
    environment = os.environ | {"FAKE_KUBERNETES": str(pods), "PATH": f"{pods / 'bin'}:{os.environ['PATH']}"}
    with open(place / "out.txt", "a") as output:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT)


def records(pods):
    """Of all jobs in the order in which they were created."""
    return sorted((json.loads(file.read_text()) for file in pods.glob("mtv-*.json")), key=lambda one: one["created"])


def test_the_profile_is_planned_as_it_comes(place, pods, project, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", f"{pods / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_KUBERNETES", str(pods))
    study, profile = Study(params.read("tiny.yml")), project / "profiles" / "kubernetes"
    study.begin()
    told = [f"{name}={value}" for name, value in cluster.options("cluster-generic", profile).items()]
    command = [
        *(sys.executable, "-m", "mtvlib.flow", "--snakefile", str(project / "Snakefile"), "--profile", str(profile)),
        *("--directory", str(study.folder), "--nolock", "--dry-run", "--config", f"base={place}", *told),
        *cluster.arguments("cluster-generic", profile, study),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    assert re.search(r"^train_fold +2$", said, re.MULTILINE)
    assert "mem_mb=" in said
    assert "gpu=0" in said  # no node has one
    assert records(pods) == []


def test_an_interrupted_run_deletes_its_jobs(place, pods):
    process = start(place, pods)
    try:
        wait_for(lambda: any(one["pid"] for one in records(pods)), 120, "no job has begun")
    finally:
        end(process)
    assert "stopped; finished work is kept" in (place / "out.txt").read_text()
    assert all(one.get("deleted") or one["status"].get("succeeded") for one in records(pods))


def test_lost_jobs_change_no_number(place, pods, finished_study):
    known = {one["job"]["metadata"]["name"] for one in records(pods)}
    study = place / "studies" / "tiny"
    for fold, reason in enumerate(("OOMKilled", "DeadlineExceeded")):
        begun = study / "logs" / "jobs" / f"2_train_fold_{fold}.json"
        (pods / f"train-fold-{fold}.fate").write_text(f"{reason} {begun}")
    process = start(place, pods)
    try:
        process.wait(10 * MINUTES)
    finally:
        end(process)
    assert process.returncode == 0, (place / "out.txt").read_text()[-3000:]
    assert outcome(place) == outcome(finished_study)

    jobs = [one["job"] for one in records(pods) if one["job"]["metadata"]["name"] not in known]
    named = {}
    for job in jobs:
        named.setdefault(job["metadata"]["name"].removeprefix("mtv-").rpartition("-")[0], []).append(job)
    assert {"cohort", "train-fold-0", "external-testing", "evaluation", "manifest"} <= set(named)

    def asked(step):
        pods = [job["spec"]["template"]["spec"] for job in named[step]]
        return [(pod["containers"][0]["resources"]["limits"]["memory"], pod["activeDeadlineSeconds"]) for pod in pods]

    (first, second), (early, late) = asked("train-fold-0"), asked("train-fold-1")
    assert first[0] != second[0]  # killed for memory: more of it
    assert early[0] == late[0]  # killed for time: more time alone
    assert early[1] < late[1]
    assert all("nvidia.com/gpu" not in str(job) for job in jobs)  # no node has one
    costs = json.loads((study / "manifest.json").read_text())["steps"]
    assert costs["2_train_fold_0"]["jobs"] == 2
    assert costs["evaluation"]["cpu_hours"] > 0
