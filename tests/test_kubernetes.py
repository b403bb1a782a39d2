"""Jobs of Kubernetes: what a job is made of, and what its state and end are called."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from mtvlib import cluster, kubernetes
from mtvlib.errors import InputError
from mtvlib.params import Params
from mtvlib.study import Study

SCRIPT = """#!/bin/sh
# properties = {"rule": "train_fold", "wildcards": {"fold": "3"}, "threads": 4, "resources": {"mem_mb": 9000, \
"runtime": 90, "gpu": 1}}
cd /volume && python -m snakemake
"""
FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}], "failed": 1}


@pytest.fixture
def template(project):
    return project / "profiles" / "kubernetes" / "job.yaml"


@pytest.fixture
def answers(monkeypatch):
    """Function that sets what kubectl answers; the list is what it was called with."""
    calls = []

    def answer(text, code=0, error=""):
        def run(*command, told=None):
            calls.append((command, told))
            return subprocess.CompletedProcess(
                command, code, text if isinstance(text, str) else json.dumps(text), error
            )

        monkeypatch.setattr(kubernetes, "_kubectl", run)
        return calls

    return answer


def pod_of(job):
    spec = job["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def test_a_job_asks_for_what_the_step_needs(template, tmp_path):
    (tmp_path / "job.sh").write_text(SCRIPT)
    asked = kubernetes.properties(tmp_path / "job.sh")
    job = kubernetes.manifest(kubernetes.read_template(template), asked, tmp_path / "job.sh", "abc")
    pod, container = pod_of(job)
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "9000M"},
        "limits": {"memory": "9000M", "nvidia.com/gpu": "1"},
    }
    assert pod["activeDeadlineSeconds"] == 5400
    assert (pod["restartPolicy"], job["spec"]["backoffLimit"]) == ("Never", 0)  # Snakemake tries again, with more
    assert container["command"] == ["bash", str(tmp_path / "job.sh")]
    assert job["metadata"]["name"].startswith("mtv-train-fold-3-")
    assert job["metadata"]["labels"] == {"mtv-run": "abc"}
    told = {one["name"]: one["value"] for one in container["env"]}
    assert told == {"MTV_RUN": "abc", "MTV_JOB": job["metadata"]["name"], "MTV_JOB_CPUS": "4", "MTV_JOB_GPUS": "1"}


def test_what_the_template_says_beside_is_kept_and_the_template_itself_as_it_was(template):
    own = kubernetes.read_template(template)
    pod, container = pod_of(own)
    pod["nodeSelector"] = {"disk": "fast"}
    container |= {
        "env": [{"name": "TZ", "value": "UTC"}],
        "resources": {"limits": {"ephemeral-storage": "9G"}, "requests": {"memory": "1G"}},
    }
    before = json.dumps(own)
    asked = {"rule": "cohort", "wildcards": {}, "threads": 2, "resources": {"mem_mb": 3000}}
    filled, inside = pod_of(kubernetes.manifest(own, asked, Path("/volume/job.sh"), "abc"))
    assert json.dumps(own) == before
    assert filled["nodeSelector"] == {"disk": "fast"}
    assert inside["env"][0] == {"name": "TZ", "value": "UTC"}
    assert inside["resources"] == {
        "limits": {"ephemeral-storage": "9G", "memory": "3000M"},
        "requests": {"memory": "3000M", "cpu": "2"},
    }
    assert filled["volumes"] == pod["volumes"]


def test_two_jobs_of_a_step_have_two_names(template):
    asked = {"rule": "Evaluation_of.all" * 9, "threads": 1, "resources": {}}
    names = {
        kubernetes.manifest(kubernetes.read_template(template), asked, Path("x"), "")["metadata"]["name"]
        for _ in range(2)
    }
    assert len(names) == 2
    assert all(len(name) <= 63 and name == name.lower() and "_" not in name and "." not in name for name in names)


@pytest.mark.parametrize("text", ["kind: Job", "[]", "spec: {template: {spec: {containers: []}}}", ""])
def test_a_template_that_is_no_job_is_named(tmp_path, text):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    asked = {"rule": "cohort", "threads": 1, "resources": {}}
    with pytest.raises(InputError, match=r"no job of Kubernetes.*profiles/kubernetes/job.yaml") as error:
        kubernetes.manifest(kubernetes.read_template(file), asked, Path("x"), "", file)
    assert str(file) in str(error.value)


def test_a_template_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "job.yaml").write_text("a: [")
    with pytest.raises(InputError, match="cannot be read"):
        kubernetes.read_template(tmp_path / "job.yaml")


def test_a_job_is_created_and_its_name_told(template, tmp_path, answers, monkeypatch):
    monkeypatch.setenv("MTV_RUN", "abc")
    (tmp_path / "job.sh").write_text(SCRIPT)
    calls = answers("job.batch/mtv-train-fold-3-1234\n")
    assert kubernetes.submit(template, tmp_path / "job.sh") == "mtv-train-fold-3-1234"
    ((command, told),) = calls
    assert command[0] == "create"
    assert yaml.safe_load(told)["metadata"]["labels"]["mtv-run"] == "abc"


def test_a_refusal_is_told_in_kubernetes_words(template, tmp_path, answers, capsys):
    (tmp_path / "job.sh").write_text(SCRIPT)
    answers("", 1, "Error from server (Forbidden): exceeded\nquota: 4 cards")
    assert kubernetes.main(["submit", str(template), str(tmp_path / "job.sh")]) != 0
    said = capsys.readouterr().err
    wanted = "Kubernetes refused a job: Error from server (Forbidden): exceeded quota: 4 cards"
    assert cluster.refusal(f"x\n{said}y\n").rstrip(".") == wanted


@pytest.mark.parametrize(
    ("answer", "code", "state"),
    [
        ({"status": {}}, 0, "running"),
        ({"status": {"active": 1}}, 0, "running"),
        ({"status": {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}}, 0, "success"),
        ({"status": FAILED}, 0, "failed"),
        ("", 0, "failed"),  # somebody deleted it
        ("", 1, "running"),  # no answer now: it may come
    ],
)
def test_states(answers, answer, code, state):
    answers(answer, code)
    assert kubernetes.state("mtv-x") == state


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, {"state": "TIMEOUT"}),
        ({"phase": "Failed", "reason": "Evicted"}, {"state": "NODE_FAIL"}),
        (
            {
                "phase": "Failed",
                "containerStatuses": [
                    {
                        "state": {
                            "terminated": {
                                "reason": "OOMKilled",
                                "startedAt": "2026-01-31T23:59:50Z",
                                "finishedAt": "2026-02-01T00:01:00Z",
                            }
                        }
                    }
                ],
            },
            {"state": "OUT_OF_MEMORY", "seconds": 70.0},
        ),
        ({"phase": "Succeeded"}, {"state": "COMPLETED"}),
        ({"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}, {}),
    ],
)
def test_the_end_of_a_job_is_its_pods(answers, status, state):
    answers({"items": [{"status": status}]})
    assert cluster.asked("mtv-train-fold-0-12345678") == state


def test_of_a_forgotten_job_nothing_is_known(answers):
    answers({"items": []})
    assert cluster.asked("mtv-train-fold-0-12345678") == {}


@pytest.mark.parametrize(
    ("quantity", "mb"), [("64Gi", 68719), ("500M", 500), ("2000000", 2), ("1.5G", 1500), ("9x", None), ("", None)]
)
def test_quantities(quantity, mb):
    assert kubernetes.megabytes(quantity) == mb


def test_nodes_tell_what_can_be_asked_for(answers):
    sizes = [{"memory": "64Gi"}, {"memory": "500G", "nvidia.com/gpu": "4"}]
    answers({"items": [{"status": {"allocatable": one}} for one in sizes]})
    assert kubernetes.limits() == {"gpus": 1, "most_mb": 500_000}
    answers("", 1, "forbidden")
    assert kubernetes.limits() == {}


def test_a_computer_without_kubectl_is_told(template, monkeypatch):
    monkeypatch.setattr(kubernetes.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no `kubectl`"):
        kubernetes.arguments(template)


def test_a_job_leaves_what_it_has_cost(tmp_path, monkeypatch):
    study = Study(Params(name="x", studies=str(tmp_path)))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in (("MTV_JOB", "mtv-evaluation-1"), ("MTV_JOB_CPUS", "4"), ("MTV_JOB_GPUS", "2")):
        monkeypatch.setenv(name, value)
    with cluster.recorded(study.logs, "evaluation"):
        pass
    (job,) = cluster.read_jobs(study.logs, "evaluation")
    assert {name: job[name] for name in ("job", "cpus", "gpus")} == {"job": "mtv-evaluation-1", "cpus": 4, "gpus": 2}


def test_what_is_left_of_a_run_is_deleted_by_its_label(project, tmp_path, answers):
    calls = answers("")
    (tmp_path / "log").write_text(cluster.heading(project / "profiles" / "kubernetes", "5d5e"))
    cluster.cancel(tmp_path / "log")
    assert [command for command, _ in calls] == [("delete", "jobs", "-l", "mtv-run=5d5e", "--wait=false")]
    assert cluster.heading(project / "profiles" / "slurm", "5d5e") == ""
