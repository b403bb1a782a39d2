"""Steps as jobs of Kubernetes, through Snakemake's plugin for any cluster: it calls this module to submit and to look.

Kubernetes is spoken to by `kubectl`, which knows clusters, rights and namespaces. What a job looks like stands in the
profile's `job.yaml`; name, command, processors, memory, cards and time are filled in here. As on any cluster, cohort
and study lie on a disk that every pod sees at the same place, and every pod has the image that `mtv run` runs in.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mtvlib.errors import InputError
from mtvlib.graph import JOB, RUN

EXECUTOR = "cluster-generic"
TEMPLATE = "job.yaml"  # in the profile
LABEL = "mtv-run"  # which run of a study has made a job
PREFIX = "mtv-"  # of jobs' names
CPUS, GPUS = "MTV_JOB_CPUS", "MTV_JOB_GPUS"  # what a job is told of itself, beside RUN and JOB
CARD = "nvidia.com/gpu"
_ASK_S = 60
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {f"{one}i": 1024.0**n for n, one in enumerate("KMGT", 1)}


# --- before a run


def template_of(profile: Path) -> Path | None:
    """The job's template if a profile, a folder, is one for Kubernetes."""
    path = profile / TEMPLATE
    return path if path.exists() else None


def arguments(template: Path) -> list[str]:
    """What Snakemake has to be told beside the profile. Raises `InputError` where something is missing or damaged."""
    if shutil.which("kubectl") is None:
        raise InputError(
            "this computer cannot speak to Kubernetes: there is no `kubectl`",
            value=f"--profile {template.parent}",
            remedy="run in a pod of the image, or install kubectl (docs/cluster.md).",
        )
    from importlib.util import find_spec

    if find_spec("snakemake_executor_plugin_cluster_generic") is None:
        raise InputError(
            "Snakemake's plugin for clusters is not installed",
            remedy='pip install -c constraints.txt ".[cluster]" in the environment of mtv.',
        )
    manifest(read_template(template), {"rule": "check", "threads": 1, "resources": {}}, Path("job.sh"), "", template)
    here = f"{shlex.quote(sys.executable)} -m mtvlib.kubernetes"
    return [
        *("--cluster-generic-submit-cmd", f"{here} submit {shlex.quote(str(template.resolve()))}"),
        *("--cluster-generic-status-cmd", f"{here} status"),
        *("--cluster-generic-cancel-cmd", str(Path(__file__).with_name("kubernetes_cancel.sh"))),
    ]


def limits() -> dict[str, int]:
    """From the nodes, if they may be looked at: whether there are graphics cards, and the most MB that one has."""
    nodes = _items("get", "nodes", "-o", "json")
    free = [node["status"].get("allocatable", {}) for node in nodes]
    if not free:
        return {}
    memory = [size for one in free if (size := megabytes(str(one.get("memory", "")))) is not None]
    return {"gpus": int(any(int(one.get(CARD, 0)) for one in free))} | ({"most_mb": max(memory)} if memory else {})


def megabytes(quantity: str) -> int | None:
    """MB (10^6 bytes) of a quantity as Kubernetes writes it, such as 64Gi, 500M or 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", quantity)
    if not found or found.group(2) not in _UNITS:
        return None
    return int(float(found.group(1)) * _UNITS[found.group(2)] / 1e6)


# --- a job


def read_template(template: Path) -> Any:
    try:
        return yaml.safe_load(template.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"the template of jobs cannot be read ({' '.join(str(error).split())})", file=template
        ) from None


def properties(script: Path) -> dict[str, Any]:
    """What Snakemake writes at the head of a job's script: rule, wildcards, threads, resources."""
    found = re.search(r"^# properties = (.*)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    return json.loads(found.group(1)) if found else {}


def manifest(
    template: Any, asked: Mapping[str, Any], script: Path, run: str, source: Path | str = TEMPLATE
) -> dict[str, Any]:
    """The job that runs a script: a filled copy of the template, to be created once and never tried again by itself.

    `asked` are the script's `properties`; `run` marks what belongs together; `source` is named in errors. The time
    limit is the pod's, so that waiting for a place does not count.
    """
    resources = asked["resources"]
    gpus, step = int(resources.get("gpu", 0)), [asked["rule"], *dict(asked.get("wildcards") or {}).values()]
    name = re.sub("[^a-z0-9]+", "-", "-".join(map(str, step)).lower())[:40].strip("-")
    name = f"{PREFIX}{name}-{uuid.uuid4().hex[:8]}"
    job = copy.deepcopy(template)
    try:
        pod = job["spec"]["template"]["spec"]
        container = pod["containers"][0]
        job["metadata"] = (job.get("metadata") or {}) | {"name": name}
        job["metadata"]["labels"] = (job["metadata"].get("labels") or {}) | {LABEL: run}
        job["spec"]["backoffLimit"] = 0
        pod["restartPolicy"] = "Never"
        if "runtime" in resources:
            pod["activeDeadlineSeconds"] = 60 * int(resources["runtime"])
        container["command"] = ["bash", str(script)]
        needs = container["resources"] = {"requests": {}, "limits": {}} | (container.get("resources") or {})
        needs["requests"] = needs["requests"] | {"cpu": str(asked["threads"])}
        if "mem_mb" in resources:
            memory = {"memory": f"{resources['mem_mb']}M"}
            needs["requests"], needs["limits"] = needs["requests"] | memory, needs["limits"] | memory
        if gpus:
            needs["limits"] = needs["limits"] | {CARD: str(gpus)}
        told = {RUN: run, JOB: name, CPUS: asked["threads"], GPUS: gpus}
        container["env"] = [*(container.get("env") or []), *({"name": k, "value": str(v)} for k, v in told.items())]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise InputError(
            "the template is no job of Kubernetes: spec, template, spec, containers are looked for",
            file=source,
            remedy="begin with a copy of profiles/kubernetes/job.yaml.",
        ) from None
    return job


def submit(template: Path, script: Path) -> str:
    """Create the job of a script; its name. Raises `InputError` with kubectl's words where that is refused."""
    job = manifest(read_template(template), properties(script), script.absolute(), os.environ.get(RUN, ""), template)
    done = _kubectl("create", "-f", "-", "-o", "name", told=json.dumps(job))
    if done is None or done.returncode:
        said = "no answer" if done is None else " ".join(done.stderr.split())
        raise InputError(f"Kubernetes refused a job: {said}")
    return done.stdout.strip().rpartition("/")[2]


def state(job: str) -> str:
    """How a job stands, in the words of Snakemake's plugin. Without an answer it counts as running: it may come."""
    done = _kubectl("get", "job", job, "-o", "json", "--ignore-not-found")
    if done is None or done.returncode:
        return "running"
    status = json.loads(done.stdout).get("status", {}) if done.stdout.strip() else None
    if status is None:  # deleted
        return "failed"
    if status.get("succeeded"):
        return "success"
    over = [one["type"] for one in status.get("conditions", []) if one.get("status") == "True"]
    return "failed" if "Failed" in over else "running"


def asked(job: str) -> dict[str, Any]:
    """State in Slurm's words and seconds of an ended job, as far as its pod is still known."""
    for pod in _items("get", "pods", "-l", f"job-name={job}", "-o", "json"):
        status = pod["status"]
        ends = [one.get("state", {}).get("terminated") for one in status.get("containerStatuses", [])]
        end = next((one for one in ends if one), None)
        if status.get("phase") not in ("Succeeded", "Failed"):
            continue
        reasons = {status.get("reason"), (end or {}).get("reason")}
        told = next((word for reason, word in _STATES.items() if reason in reasons), None)
        found: dict[str, Any] = {"state": told or ("COMPLETED" if status["phase"] == "Succeeded" else "FAILED")}
        if end and end.get("startedAt") and end.get("finishedAt"):
            began, ended = (datetime.fromisoformat(end[name]) for name in ("startedAt", "finishedAt"))
            found["seconds"] = (ended - began).total_seconds()
        return found
    return {}


_STATES = {"DeadlineExceeded": "TIMEOUT", "OOMKilled": "OUT_OF_MEMORY", "Evicted": "NODE_FAIL", "NodeLost": "NODE_FAIL"}


def cancel(run: str) -> None:
    """Delete what is left of the jobs of a run."""
    _kubectl("delete", "jobs", "-l", f"{LABEL}={run}", "--wait=false")


def _items(*command: str) -> list[dict[str, Any]]:
    done = _kubectl(*command)
    return [] if done is None or done.returncode else json.loads(done.stdout)["items"]


def _kubectl(*command: str, told: str | None = None) -> subprocess.CompletedProcess | None:
    try:
        return subprocess.run(
            ["kubectl", *command], input=told, capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None


def main(arguments: Sequence[str]) -> int:
    """`submit TEMPLATE SCRIPT` prints the job's name, `status JOB` its state; as Snakemake's plugin calls them."""
    try:
        print(submit(Path(arguments[1]), Path(arguments[2])) if arguments[0] == "submit" else state(arguments[1]))
    except InputError as error:
        print(f"mtv: {error}", file=sys.stderr)
        return InputError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
