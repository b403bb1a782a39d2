"""Runs whose steps are jobs of a scheduler: what the profile says, what the cluster grants, what each job has cost.

Every job that worked on a step stands in the study's `logs/jobs/<step>.json`, in order. What the job cannot tell
itself, since it was killed, is asked of the scheduler afterwards: of Slurm's sacct where there is accounting, else of
its controller, which remembers ended jobs for some minutes; of Kubernetes' pods.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mtvlib import kubernetes
from mtvlib.errors import InputError
from mtvlib.files import write_json
from mtvlib.graph import JOB
from mtvlib.study import Study

JOBS = "jobs"  # in the folder of logs
PATIENTS_PER_JOB = 50  # a job's start takes as long as one or two of them
TRAIN_RETRIES = 30  # training makes progress in each job, however short
_ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
_ASK_S = 60


# --- before a run


def executor_of(profile: Path | None) -> str | None:
    """Snakemake's executor that a profile names; None for this computer. Raises `InputError` for a damaged profile."""
    values = _settings(profile)
    name = values.get("executor")
    return None if name in (None, "local") else str(name)


def _settings(profile: Path | None) -> dict[str, Any]:
    if profile is None:
        return {}
    files = [profile] if profile.is_file() else [*sorted(profile.glob("config.v*+.yaml")), profile / "config.yaml"]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise InputError("the profile has no config.yaml", file=profile, remedy="copy profiles/slurm and change it.")
    return _read(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the profile cannot be read ({' '.join(str(error).split())})", file=file) from None
    return values if isinstance(values, dict) else {}


def batches(profile: Path, patients: int) -> int:
    """Jobs over which work on so many patients is spread: `patients_per_job` of the profile's file mtv.yaml in each."""
    file = profile / "mtv.yaml" if profile.is_dir() else profile.with_name("mtv.yaml")
    each = _read(file).get("patients_per_job", PATIENTS_PER_JOB) if file.exists() else PATIENTS_PER_JOB
    if not isinstance(each, int) or each < 1:
        raise InputError("patients_per_job must be a number from 1 on", file=file, value=each)
    return -(-patients // each)


def arguments(executor: str, profile: Path, study: Study) -> list[str]:
    """What Snakemake has to be told beside the profile: where logs go, and how the state of jobs is asked for."""
    template = _template(executor, profile)
    if template:
        return kubernetes.arguments(template)
    if executor != "slurm":
        return []
    check_slurm()
    logs = [] if "slurm-logdir" in _settings(profile) else ["--slurm-logdir", str(study.logs.resolve() / "slurm")]
    given = "slurm-status-command" in _settings(profile)
    return logs if given or has_accounting() else [*logs, "--slurm-status-command", "squeue"]


def _template(executor: str | None, profile: Path | None) -> Path | None:
    """The template of a job of Kubernetes, if that is where the profile sends steps."""
    return kubernetes.template_of(profile) if profile and executor == kubernetes.EXECUTOR else None


def options(executor: str, profile: Path) -> dict[str, int]:
    """What the Snakefile has to know: retries of a training, most minutes and MB of a job, whether there are GPUs."""
    found = {"train_retries": TRAIN_RETRIES}
    if executor == "slurm":
        default = _settings(profile).get("default-resources")
        partition = default.get("slurm_partition") if isinstance(default, dict) else None
        found |= _limits(_say("sinfo", "-h", "-N", "-o", "%P|%l|%G|%m"), partition)
    return found | (kubernetes.limits() if _template(executor, profile) else {})


def _limits(nodes: str, partition: str | None) -> dict[str, int]:
    """From lines `partition|time limit|generic resources|MB` of sinfo, one a node; `*` marks the default."""
    rows = [line.split("|") for line in nodes.splitlines() if line.count("|") == 3]
    mine = [row for row in rows if row[0].rstrip("*") == partition or (partition is None and row[0].endswith("*"))]
    minutes = [found for row in mine if (found := minutes_of(row[1])) is not None]
    limit = {"most_minutes": min(minutes)} if minutes else {}
    memory = [int(row[3].rstrip("+")) for row in mine if row[3].rstrip("+").isdecimal()]
    limit |= {"most_mb": max(memory)} if memory else {}
    return limit | ({"gpus": int(any("gpu" in row[2] for row in rows))} if rows else {})


def minutes_of(text: str) -> int | None:
    """Minutes of Slurm's [days-]hours:minutes:seconds or minutes:seconds; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not found:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + minutes


def check_slurm() -> None:
    """Raise `InputError` where there is no Slurm, or Snakemake cannot speak to it."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "this computer knows no Slurm: there is no `sbatch`",
            value="--profile slurm",
            remedy="run on a login node of the cluster, or without the profile.",
        )
    from importlib.util import find_spec

    if find_spec("snakemake_executor_plugin_slurm") is None:
        raise InputError(
            "Snakemake's plugin for Slurm is not installed",
            remedy='pip install -c constraints.txt ".[cluster]" in the environment of mtv.',
        )


def has_accounting() -> bool:
    """Whether sacct answers; the program may be there where accounting is not."""
    return shutil.which("sacct") is not None and _run("sacct", "-n", "-X", "-o", "JobID") is not None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _say(*command: str) -> str:
    return _run(*command) or ""


def heading(profile: Path | None, run: str) -> str:
    """What a run's log has to begin with, so that `cancel` can tell its jobs."""
    return f"Kubernetes run ID: {run}\n" if _template(executor_of(profile), profile) else ""


def cancel(log: Path) -> None:
    """Cancel what is left of the jobs of a run on a cluster, told by its log; those that have ended are no matter.

    Snakemake cancels those that it has counted, which a job submitted a moment ago may not be.
    """
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    for run in re.findall(r"^SLURM run ID: (\S+)$", text, re.MULTILINE):
        _run("scancel", "--name", run)
    for run in re.findall(r"^Kubernetes run ID: (\S+)$", text, re.MULTILINE):
        kubernetes.cancel(run)


def refusal(text: str) -> str | None:
    """That and why a cluster has refused a job, from Snakemake's log; None if it has not."""
    found = re.search(r"SLURM sbatch failed\. The error message was '(.*?)'\.\n", text, re.DOTALL)
    if found:
        return "Slurm refused a job: " + " ".join(found.group(1).replace("sbatch: error: ", "").split())
    found = re.search(r"^mtv: (Kubernetes refused a job: .*)$", text, re.MULTILINE)
    return found.group(1) if found else None


# --- in a job


@contextmanager
def recorded(logs: Path, step: str) -> Iterator[dict[str, Any]]:
    """Write down this job of a cluster, if it is one, and when the block ends what it has cost; yields that record.

    Outside of clusters the record is kept in memory only. A killed job leaves its beginning, see `gather`.
    """
    began, slurms = time.time(), "SLURM_JOB_ID" in os.environ
    job = os.environ.get("SLURM_JOB_ID" if slurms else JOB, "")
    record: dict[str, Any] = {"job": job, "began": round(began, 1)}
    record["cpus"] = _number("SLURM_CPUS_ON_NODE" if slurms else kubernetes.CPUS)
    cards = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS") if slurms else (kubernetes.GPUS,)
    record["gpus"] = next((found for name in cards if (found := _number(name)) is not None), 0)
    path, before = logs / JOBS / f"{step}.json", read_jobs(logs, step)
    before = [] if before and before[-1].get("done") else before  # that was another time
    if job:
        write_json(path, [*before, record])
    try:
        yield record
        record["done"] = True
    finally:
        record |= usage() | {"seconds": round(time.time() - began, 1)}
        if job:
            write_json(path, [*before, record])


def usage() -> dict[str, Any]:
    """Processor seconds and largest memory, MB, of this process and of those that it has waited for."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    scale = 1024 if sys.platform == "darwin" else 1  # bytes there, kilobytes elsewhere
    return {
        "cpu_seconds": round(sum(part.ru_utime + part.ru_stime for part in parts), 1),
        "peak_memory_mb": max(part.ru_maxrss for part in parts) // (1024 * scale),
    }


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None


def read_jobs(logs: Path, step: str) -> list[dict[str, Any]]:
    """The jobs that have worked on a step, in order; [] for none."""
    try:
        found = json.loads((logs / JOBS / f"{step}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


# --- after jobs


def timeouts(logs: Path, step: str, attempt: int) -> int:
    """How many of the tries before this one ended at their time limit, as far as the scheduler tells."""
    jobs = read_jobs(logs, step)[-(attempt - 1) :] if attempt > 1 else []
    states = [job.get("state") or asked(job["job"]).get("state") for job in jobs]
    return states.count("TIMEOUT")


def asked(job: str) -> dict[str, Any]:
    """State, seconds, processor seconds, largest memory and energy of an ended job, as far as its scheduler knows."""
    if job.startswith(kubernetes.PREFIX):
        return kubernetes.asked(job)
    lines = _say(
        *("sacct", "-j", job, "-n", "-P"),
        *("-o", "State,ElapsedRaw,TotalCPU,MaxRSS,ConsumedEnergyRaw,AllocCPUS"),
    ).splitlines()
    found = _of_sacct([line.split("|") for line in lines if line.count("|") == 5])
    return found or _of_controller(_say("scontrol", "show", "job", "-o", job))


def _of_sacct(rows: list[list[str]]) -> dict[str, Any]:
    """From sacct's rows of a job and its steps; the steps' memory and energy, the job's state and time."""
    if not rows or rows[0][0].split(" ")[0] not in _ENDED:
        return {}
    found: dict[str, Any] = {"state": rows[0][0].split(" ")[0], "seconds": float(rows[0][1] or 0)}
    memory = [size for row in rows if (size := _megabytes(row[3])) is not None]
    joules = [int(row[4]) for row in rows if row[4].isdecimal() and int(row[4])]
    found |= {"peak_memory_mb": max(memory)} if memory else {}
    found |= {"energy_joules": max(joules)} if joules else {}
    return found


def _megabytes(text: str) -> int | None:
    found = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return (
        round(float(found.group(1)) * 1024 ** ("KMGT".find(found.group(2)) - 1)) if found and found.group(2) else None
    )


def _of_controller(text: str) -> dict[str, Any]:
    values = dict(re.findall(r"(\w+)=(\S*)", text))
    if values.get("JobState") not in _ENDED:
        return {}
    spent = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", values.get("RunTime", ""))
    days, hours, minutes, seconds = (int(part or 0) for part in spent.groups()) if spent else (0, 0, 0, 0)
    return {"state": values["JobState"], "seconds": float(days * 86400 + hours * 3600 + minutes * 60 + seconds)}


def gather(study: Study) -> None:
    """Add to the study's jobs what the scheduler knows of ended ones; what they have told themselves stays."""
    for step in sorted(path.stem for path in (study.logs / JOBS).glob("*.json")):
        jobs = read_jobs(study.logs, step)
        unknown = [job for job in jobs if "state" not in job]
        for job in unknown:
            told = {name: value for name, value in job.items() if value is not None}
            job |= asked(job["job"]) | told
        if any("state" in job for job in unknown):
            write_json(study.logs / JOBS / f"{step}.json", jobs)


def costs_of_jobs(jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All tries of a step together; {} if no scheduler ran it. Hours are of what was reserved, busy or not."""
    if not jobs:
        return {}
    hours = [job.get("seconds", 0) / 3600 for job in jobs]
    joules = sum(job.get("energy_joules", 0) for job in jobs)
    return {
        "jobs": len(jobs),
        "cpu_hours": round(sum(h * (job.get("cpus") or 1) for h, job in zip(hours, jobs, strict=True)), 4),
        "gpu_hours": round(sum(h * job.get("gpus", 0) for h, job in zip(hours, jobs, strict=True)), 4),
    } | ({"energy_kwh": round(joules / 3.6e6, 4)} if joules else {})
