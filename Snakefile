# The study as a graph of notebooks. `mtv run params/x.yml` calls it with the study's folder as working directory; by hand:
#   snakemake --cores 2 --directory studies/demo --config base=$PWD
# A step is redone when its code, its parameters or its inputs changed; code and images enter as hashes of contents.
import os
import shlex
import sys

from mtvlib import cluster, params, resources, steps
from mtvlib.cohort import read_cohort
from mtvlib.study import Study

BASE = os.path.abspath(config.get("base", "."))
FOLDER = os.getcwd()  # the study's folder
os.chdir(BASE)
STUDY = Study.open(os.path.relpath(FOLDER))
SOURCE = steps.source_fingerprint(STUDY)
CORRECTIONS = steps.corrections_fingerprint(STUDY)
PATIENTS = len(read_cohort(STUDY.source))
os.chdir(FOLDER)
PARAMS = STUDY.params

# `exec`: the step takes the place of Snakemake's shell, so that it notices when Snakemake is gone.
STEP = (
    f"exec {shlex.quote(sys.executable)} -m mtvlib.steps --base {shlex.quote(BASE)}"
    f" --study {shlex.quote(os.path.relpath(FOLDER, BASE))}"
)
FOLDS = list(range(PARAMS.folds))
LOGS = os.path.join(FOLDER, "logs")


def asks(name, of):
    """What the jobs of a rule ask a cluster for, as a function of wildcards and attempt; on one computer nobody asks."""

    def value(wildcards, attempt):
        step = of.format(**dict(wildcards.items()))
        late = cluster.timeouts(steps.Path(LOGS), step, attempt)
        return getattr(resources.of_rule(step, PARAMS, PATIENTS, config, attempt, late), name)

    return value


# Every file, not the last one alone: what is missing in the middle Snakemake would not make again while the end is there.
rule all:
    input:
        "cohort.csv",
        "volumes/prepared.csv",
        expand(
            "folds/{fold}/{file}",
            fold=FOLDS,
            file=("weights.safetensors", "model.json", "history.csv", "predicted.csv"),
        ),
        "predictions/external.csv",
        expand("results/{file}.csv", file=("patients", "lesions", "lesion_choices", "comparators")),
        "results/summary.json",
        expand("notebooks/{step}.ipynb", step=sorted(set(steps.step_names(PARAMS.folds)) - set(steps.MODULES))),
        "manifest.json",


rule cohort:
    output:
        "cohort.csv",
        "volumes/prepared.csv",
        "notebooks/1_cohort.ipynb",
    params:
        code=steps.code_fingerprint("1_cohort"),
        values=PARAMS.part(("seed", *params.IMAGES, *params.FOLDS)),
        source=SOURCE,
    threads: PARAMS.threads
    resources:
        mem_mb=asks("mem_mb", "1_cohort"),
        runtime=asks("minutes", "1_cohort"),
    log:
        "logs/1_cohort.log",
    benchmark:
        "benchmarks/1_cohort.tsv"
    shell:
        "{STEP} 1_cohort >> {log} 2>&1"


# Asked for on a cluster alone, before the rest, and nobody's input: the graph is the same everywhere.
rule prepare:
    output:
        "batches/1_prepare_{part}_of_{parts}.txt",
    wildcard_constraints:
        part=r"\d+",
        parts=r"\d+",
    params:
        code=steps.code_fingerprint("1_prepare_0_of_1"),
        values=PARAMS.part(("seed", *params.IMAGES, *params.FOLDS)),
        source=SOURCE,
    threads: PARAMS.threads
    resources:
        mem_mb=asks("mem_mb", "1_prepare_{part}_of_{parts}"),
        runtime=asks("minutes", "1_prepare_{part}_of_{parts}"),
    log:
        "logs/1_prepare_{part}_of_{parts}.log",
    shell:
        "{STEP} 1_prepare_{wildcards.part}_of_{wildcards.parts} >> {log} 2>&1"


rule train_fold:
    input:
        "cohort.csv",
        "volumes/prepared.csv",
    output:
        "folds/{fold}/weights.safetensors",
        "folds/{fold}/model.json",
        "folds/{fold}/history.csv",
        "folds/{fold}/predicted.csv",
        "notebooks/2_train_fold_{fold}.ipynb",
    params:
        code=steps.code_fingerprint("2_train_fold_0"),
        values=PARAMS.part(
            (
                "seed",
                "threads",
                *params.IMAGES,
                *params.NORMALIZATION,
                *params.PATCHES,
                *params.NETWORK,
                *params.FOLDS,
                *params.TRAINING,
                *params.PREDICTION,
                *params.STOPPING,
                *params.SHARING,
            )
        ),
    threads: PARAMS.threads * PARAMS.devices_per_fold
    resources:
        gpu=asks("gpu", "2_train_fold_{fold}"),
        mem_mb=asks("mem_mb", "2_train_fold_{fold}"),
        runtime=asks("minutes", "2_train_fold_{fold}"),
    retries: int(config.get("train_retries", 0))  # 0: as the profile says
    log:
        "logs/2_train_fold_{fold}.log",
    benchmark:
        "benchmarks/2_train_fold_{fold}.tsv"
    shell:
        "{STEP} 2_train_fold_{wildcards.fold} >> {log} 2>&1"


# As `prepare`, after the folds.
rule predict:
    input:
        "cohort.csv",
        "volumes/prepared.csv",
        expand("folds/{fold}/weights.safetensors", fold=FOLDS),
        expand("folds/{fold}/model.json", fold=FOLDS),
    output:
        "batches/3_predict_{part}_of_{parts}.txt",
    wildcard_constraints:
        part=r"\d+",
        parts=r"\d+",
    params:
        code=steps.code_fingerprint("3_predict_0_of_1"),
        values=PARAMS.part(params.PREDICTION),
    threads: PARAMS.threads
    resources:
        gpu=asks("gpu", "3_predict_{part}_of_{parts}"),
        mem_mb=asks("mem_mb", "3_predict_{part}_of_{parts}"),
        runtime=asks("minutes", "3_predict_{part}_of_{parts}"),
    log:
        "logs/3_predict_{part}_of_{parts}.log",
    shell:
        "{STEP} 3_predict_{wildcards.part}_of_{wildcards.parts} >> {log} 2>&1"


rule external_testing:
    input:
        "cohort.csv",
        "volumes/prepared.csv",
        expand("folds/{fold}/weights.safetensors", fold=FOLDS),
        expand("folds/{fold}/model.json", fold=FOLDS),
    output:
        "predictions/external.csv",
        "notebooks/3_external_testing.ipynb",
    params:
        code=steps.code_fingerprint("3_external_testing"),
        values=PARAMS.part(params.PREDICTION),
    threads: PARAMS.threads
    resources:
        gpu=asks("gpu", "3_external_testing"),
        mem_mb=asks("mem_mb", "3_external_testing"),
        runtime=asks("minutes", "3_external_testing"),
    log:
        "logs/3_external_testing.log",
    benchmark:
        "benchmarks/3_external_testing.tsv"
    shell:
        "{STEP} 3_external_testing >> {log} 2>&1"


rule evaluation:
    input:
        "cohort.csv",
        "volumes/prepared.csv",
        "predictions/external.csv",
        expand("folds/{fold}/predicted.csv", fold=FOLDS),
    output:
        "results/summary.json",
        "results/patients.csv",
        "results/lesions.csv",
        "results/lesion_choices.csv",
        "results/comparators.csv",
    params:
        code=steps.code_fingerprint("evaluation"),
        values=PARAMS.part(("seed", *params.EVALUATION)),
    resources:
        mem_mb=asks("mem_mb", "evaluation"),
        runtime=asks("minutes", "evaluation"),
    log:
        "logs/evaluation.log",
    benchmark:
        "benchmarks/evaluation.tsv"
    shell:
        "{STEP} evaluation >> {log} 2>&1"


rule chapter:
    input:
        "results/summary.json",
        "results/patients.csv",
        "results/lesions.csv",
    output:
        "notebooks/{chapter}.ipynb",
    wildcard_constraints:
        chapter="|".join(steps.CHAPTERS),
    params:
        code=lambda wildcards: steps.code_fingerprint(wildcards.chapter),
        values=lambda wildcards: PARAMS.part(params.REPORT if wildcards.chapter == "8_cases" else ()),
        corrections=lambda wildcards: CORRECTIONS if wildcards.chapter == "10_corrections" else "",
    resources:
        mem_mb=asks("mem_mb", "{chapter}"),
        runtime=asks("minutes", "{chapter}"),
    log:
        "logs/{chapter}.log",
    benchmark:
        "benchmarks/{chapter}.tsv"
    shell:
        "{STEP} {wildcards.chapter} >> {log} 2>&1"


rule manifest:
    input:
        expand("notebooks/{chapter}.ipynb", chapter=steps.CHAPTERS),
        "notebooks/3_external_testing.ipynb",
        "results/summary.json",
    output:
        "manifest.json",
    params:
        code=steps.code_fingerprint("manifest"),
    resources:
        mem_mb=asks("mem_mb", "manifest"),
        runtime=asks("minutes", "manifest"),
    log:
        "logs/manifest.log",
    shell:
        "{STEP} manifest >> {log} 2>&1"
