"""The steps of a study by name, in the order of the flow: what runs each, and what each leaves."""

from __future__ import annotations

import re

CHAPTERS = (
    *("4_delineation", "5_classification", "6_lesions", "7_survival", "8_cases", "9_trust"),
    "10_corrections",
)
TRAIN_FOLD = "2_train_fold"
MODULES = {"evaluation": "mtvlib.evaluation", "manifest": "mtvlib.changes"}  # steps that are no notebooks
_PRODUCTS = {"evaluation": "results/summary.json", "manifest": "manifest.json"}
# On a cluster: a batch of patients, before the step that then finds them done.
PREPARE, PREDICT = "1_prepare", "3_predict"
_BATCHES = {PREPARE: "prepare", PREDICT: "predict"}
# In the environment: which run of the study has started this step, and as which job of Kubernetes.
RUN, JOB = "MTV_RUN", "MTV_JOB"
_RULES = {"1_cohort": "cohort", "3_external_testing": "external_testing"}


def step_names(folds: int) -> list[str]:
    """All steps of a study in the order of the flow."""
    return [step for stage in stages(folds) for step in stage]


def stages(folds: int) -> list[list[str]]:
    """The steps, those together that wait for the same steps before them and not for each other."""
    training = [f"{TRAIN_FOLD}_{fold}" for fold in range(folds)]
    return [["1_cohort"], training, ["3_external_testing"], ["evaluation"], list(CHAPTERS), ["manifest"]]


def notebook_of(step: str) -> tuple[str, dict[str, int]]:
    """The notebook of a step and the parameters it takes beside the study's."""
    name, _, number = step.rpartition("_")
    return (TRAIN_FOLD, {"fold": int(number)}) if name == TRAIN_FOLD else (step, {})


def part_of(step: str) -> tuple[int, int] | None:
    """Number of a batch and of all batches of its kind, from `1_prepare_0_of_3`; None for a step that is no batch."""
    found = re.fullmatch(rf"(?:{'|'.join(_BATCHES)})_(\d+)_of_(\d+)", step)
    return (int(found.group(1)), int(found.group(2))) if found else None


def product_of(step: str) -> str:
    """The file, relative to the study's folder, without which a step is not done."""
    return _PRODUCTS.get(step, f"notebooks/{step}.ipynb")


def rule_of(step: str) -> str:
    """The step's rule in the Snakefile."""
    if step in CHAPTERS:
        return "chapter"
    if part_of(step):
        return _BATCHES[step.rsplit("_", 3)[0]]
    return "train_fold" if notebook_of(step)[1] else _RULES.get(step, step)
