"""What a step asks of a cluster: memory, minutes and graphics cards, from the parameters and the cohort's size.

Estimates on the safe side: a request that is too small costs a job, which is then started again with more (`attempt`),
one that is too large costs a wait in the queue. None of them touches a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mtvlib.graph import part_of, rule_of
from mtvlib.params import Params
from mtvlib.steps import devices_of

PROCESS_MB = 2000  # Python, PyTorch, a kernel for the notebook and Snakemake around them (seen: 950 in all)
CUDA_MB = 4000  # the driver's and the libraries' part of the computer's memory
SOURCE_MB = 3000  # PET and CT of one patient at full resolution, as numbers and resampled
CHAPTER_MB_PER_PATIENT = 2
VOLUMES_MB_AT_MOST = 32_000  # what does not fit into memory is read from a file (patching.Store)
COPIES = (
    14  # activations of a training step in units of its first level's, by following every tensor (docs/training.md)
)
RATE_OF_THREAD, RATE_OF_DEVICE = 1e8, 1e10  # voxels x filters^2 trained in a second, on the slow side
MOST_FACTOR = 8  # of memory, over all attempts


@dataclass(frozen=True)
class Request:
    """Of one job; `gpu` cards, memory in MB, wall time in minutes."""

    mem_mb: int
    minutes: int
    gpu: int


def request(
    step: str, params: Params, patients: int, *, attempt: int = 1, timeouts: int = 0, most_minutes: int | None = None
) -> Request:
    """What the job of a step asks for at its `attempt`th try, of which `timeouts` ended at their time limit.

    `patients` of the whole cohort. Each try after a kill asks for more memory, unless time alone was too short, and for
    more time, at most `most_minutes`, which the cluster grants.
    """
    gpu = devices_of(step, params)
    rule = rule_of(step)
    part = part_of(step)
    patients = math.ceil(patients / part[1]) if part else patients
    memory = PROCESS_MB + CUDA_MB * bool(gpu) + _memory(rule, params, patients, bool(gpu))
    minutes = 30 + _minutes(rule, params, patients, gpu)
    memory *= min(attempt - timeouts, MOST_FACTOR)
    minutes *= attempt
    return Request(math.ceil(memory), math.ceil(min(minutes, most_minutes or minutes)), gpu)


def _memory(rule: str, params: Params, patients: int, on_device: bool) -> float:
    if rule in ("cohort", "prepare"):
        return SOURCE_MB * params.threads
    if rule == "train_fold":
        inputs = min(VOLUMES_MB_AT_MOST, patients * volume_mb(params))
        return inputs + (0 if on_device else _step_mb(params))
    if rule in ("external_testing", "predict"):
        return 16 * (params.folds + 1) * volume_mb(params)
    return CHAPTER_MB_PER_PATIENT * patients


def volume_mb(params: Params) -> float:
    """A prepared patient in memory: each channel as float32 and the reference as one byte."""
    x, y = params.crop_shape
    return x * y * math.ceil(params.axial_mm / params.spacing_mm) * (4 * len(params.channels) + 1) / 1e6


def _step_mb(params: Params) -> float:
    patch = math.prod(params.patch_shape) * params.filters[0] * 4 / 1e6
    return COPIES * patch * math.ceil(params.batch_size / params.accumulate)


def _minutes(rule: str, params: Params, patients: int, gpu: int) -> float:
    if rule == "train_fold":
        rate = RATE_OF_DEVICE * gpu if gpu else RATE_OF_THREAD * params.threads
        return 2 * training_work(params, patients) / rate / 60 + patients
    return 2 * patients / (params.threads if rule in ("cohort", "prepare") else 1)


def training_work(params: Params, patients: int) -> float:
    """Voxels x filters^2 of a whole training; how often a voxel is seen in an epoch depends on the stride."""
    slices = params.axial_mm / params.spacing_mm
    patches = patients * max(1.0, slices / params.patch_stride)
    per_epoch = params.steps_per_epoch * params.batch_size if params.steps_per_epoch else patches
    return params.epochs * per_epoch * math.prod(params.patch_shape) * params.filters[0] ** 2


def of_rule(step: str, params: Params, patients: int, options: dict[str, Any], attempt: int, timeouts: int) -> Request:
    """`request` for the Snakefile: `options` are what a cluster's run was told (`cluster.options`), if it is one.

    On a cluster without graphics cards `auto` is the processor; no job asks for more memory than its largest node has.
    """
    most = {name: int(value) for name, value in options.items() if name in ("most_minutes", "most_mb", "gpus")}
    if most.get("gpus") == 0:
        params = params.model_copy(update={"device": "cpu"})
    limit = most.get("most_minutes")
    found = request(step, params, patients, attempt=attempt, timeouts=timeouts, most_minutes=limit)
    return replace(found, mem_mb=min(found.mem_mb, most.get("most_mb", found.mem_mb)))
