"""What each part of the improved training brings: arms that differ from a base in one thing, at equal budget.

Synthetic patients of the hard world (`mtv phantom --hard`: pale nodes, many inflamed ones), tested on patients of the
training's scanners and on external ones whose scanners are unlike any of these. Every arm has the same patients, steps
and seeds; differences to the base are paired by patient and seed, intervals come from a bootstrap that draws both. What
is done stays in `--work`, so a run that was stopped goes on. From the repository's root, on an idle machine:

    python -m benchmarks.ablations [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save_file

from benchmarks.measure import RESULTS, write_table
from mtvlib.cohort import assign_folds, fold_patients, read_cohort, relative_paths
from mtvlib.files import atomic_path, read_table, write_json, write_text
from mtvlib.inference import predict_labels, predict_probabilities
from mtvlib.metrics import contingency, overlap
from mtvlib.network import BothSides, build
from mtvlib.params import PREDICTION, Params, from_dict
from mtvlib.phantom import write_cohort
from mtvlib.prepare import load_patient, prepare_cohort
from mtvlib.study import Study
from mtvlib.training import Patients, network_config, train_fold, use_processor

ROOT = Path(__file__).resolve().parents[1]
BASE = "base"
CLASSES = ("primary", "nodes")
COLUMNS = [f"{target}_{what}" for target in CLASSES for what in ("man", "cnn", "both")]
PARTITIONS = {"main": "the training's scanners", "external": "other scanners"}
RESAMPLES = 4000


@dataclass(frozen=True)
class Arm:
    """One way to train or test; `share` of the training patients are seen."""

    name: str
    changes: Mapping[str, Any]
    share: float = 1.0

    def params(self, base: Params, seed: int) -> Params:
        return from_dict(base.model_dump() | dict(self.changes) | {"seed": seed})

    def training_key(self, base: Params, seed: int) -> str:
        """Arms that train alike, such as one that differs in testing alone, share a training."""
        values = self.params(base, seed).model_dump(mode="json", exclude=set(PREDICTION))
        text = json.dumps([values, self.share], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Plan:
    base: Params
    arms: tuple[Arm, ...]
    ensembles: tuple[int, ...]
    seeds: tuple[int, ...]  # of every arm
    base_seeds: tuple[int, ...]  # of the base, as many as the largest ensemble needs

    @property
    def runs(self) -> list[tuple[Arm, int]]:
        """Every training, the base's first, and each arm's first seed before its second."""
        base, *others = self.arms
        return [(base, seed) for seed in self.base_seeds] + [(arm, seed) for seed in self.seeds for arm in others]


def read_plan(path: Path, work: Path, seeds: int, **changes: Any) -> Plan:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    place = {"name": "ablations", "cohort": str(work / "cohort" / "cohort.csv"), "studies": str(work / "studies")}
    base = from_dict(values["base"] | place | changes, file=path)
    arms = [Arm(BASE, {})]
    for name, own in values["arms"].items():
        arms.append(Arm(name, {key: one for key, one in own.items() if key != "patients"}, own.get("patients", 1.0)))
    largest = max(values["ensembles"], default=1)
    numbers = tuple(range(1, max(seeds, largest) + 1))
    return Plan(base, tuple(arms), tuple(values["ensembles"]), numbers[:seeds], numbers)


# --- patients


def prepared(base: Params, patients: int, external: int) -> Study:
    """The study's folder with its patients drawn, divided and brought onto the grid."""
    study = Study(base.model_copy(update={"threads": 2}))
    shown = Progress("patients drawn")
    write_cohort(study.source.parent, patients, external, base.seed, hard=True, progress=shown)
    study.begin()
    cohort = assign_folds(read_cohort(study.source, base), base)
    study.write_cohort(relative_paths(cohort, study.folder))
    prepare_cohort(study, cohort, say=lambda line: None)
    return study


class Progress:
    """A line now and then."""

    def __init__(self, what: str) -> None:
        self.what, self.shown = what, 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.shown > 20 or done == total:
            self.shown = time.monotonic()
            print(f"{self.what}: {done} of {total}", flush=True)


@dataclass(frozen=True)
class Members:
    train: list[str]
    validation: list[str]
    test: list[str]  # of the main cohort, then all external patients


def members(study: Study, base: Params, share: float = 1.0) -> Members:
    """The first fold's patients, whatever the seed of the training; of those to train the first `share`, by a hash."""
    parts = fold_patients(study.cohort, 0, base)
    order = sorted(parts.train, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return Members(
        sorted(order[: math.ceil(share * len(order))]),
        list(parts.validation),
        [*parts.test, *study.patients_of("external_testing")],
    )


# --- one training


def run_folder(work: Path, arm: Arm, base: Params, seed: int) -> Path:
    return work / "runs" / arm.training_key(base, seed)


def run(work: Path, arm: Arm, base: Params, seed: int) -> str:
    """Train unless that is done, test unless that is done; returns a line about it. Runs in a process of its own."""
    folder, params = run_folder(work, arm, base, seed), arm.params(base, seed)
    counts = counts_file(work, arm, base, seed)
    if counts.exists():
        return f"{arm.name}, seed {seed}: done before"
    began, study = time.perf_counter(), Study(base)
    who = members(study, base, arm.share)
    if not (folder / "weights.safetensors").exists():
        train(study, who, params, folder)
    network = load(folder, params)
    write_text(counts, tested(network, study, who.test, params).to_csv(index=False))
    return f"{arm.name}, seed {seed}: {time.perf_counter() - began:.0f} s"


def train(study: Study, who: Members, params: Params, folder: Path) -> None:
    def one(name: str) -> tuple[str, np.ndarray, np.ndarray]:
        patient = load_patient(study.volumes, name, params)
        assert patient.reference is not None
        return patient.patient, patient.inputs, patient.reference

    trained = train_fold(Patients(who.train, one), Patients(who.validation, one), params, 0, folder)
    seconds = sum(epoch.seconds for epoch in trained.history)
    write_json(folder / "cost.json", {"seconds": seconds, "best_epoch": trained.best_epoch})
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in trained.best_weights.items()}, temporary)


def load(folder: Path, params: Params) -> Any:
    network = build(network_config(params), 0)
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    network = network.to(memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    return BothSides(network) if params.test_time_flip else network


def counts_file(work: Path, arm: Arm, base: Params, seed: int) -> Path:
    both = "_both_sides" if arm.params(base, seed).test_time_flip else ""
    return run_folder(work, arm, base, seed) / f"counts{both}.csv"


def tested(network: Any, study: Study, patients: Iterable[str], params: Params) -> pd.DataFrame:
    """Voxels of reference, prediction and both, for each class of each patient."""
    use_processor(params.threads)
    rows = []
    for name in patients:
        patient = load_patient(study.volumes, name, params)
        probabilities = predict_probabilities([network], patient.inputs, params.patch_shape[2], params.patch_stride)
        rows.append([name, *counted(np.asarray(patient.reference), predict_labels(probabilities))])
    return pd.DataFrame(rows, columns=["patient", *COLUMNS])


def counted(reference: np.ndarray, labels: np.ndarray) -> list[int]:
    table = contingency(reference, labels)
    return [int(count) for target in CLASSES for count in overlap(table, target)]


def run_ensembles(work: Path, plan: Plan) -> None:
    """Mean probabilities of k trainings of the base: for each k every run of k neighbours in the ring of seeds."""
    n = len(plan.base_seeds)
    rings = [(size, first) for size in plan.ensembles for first in range(n if size < n else 1)]
    if all(ensemble_file(work, *ring).exists() for ring in rings):
        return
    study, base, params = Study(plan.base), plan.arms[0], plan.base
    networks = [load(run_folder(work, base, params, seed), params) for seed in plan.base_seeds]
    rows: dict[tuple[int, int], list[list[Any]]] = {ring: [] for ring in rings}
    use_processor(2)
    for name in members(study, params).test:
        patient = load_patient(study.volumes, name, params)
        window = (patient.inputs, params.patch_shape[2], params.patch_stride)
        each = np.stack([predict_probabilities([network], *window) for network in networks])
        for size, first in rings:
            mean = each[[(first + i) % n for i in range(size)]].mean(0)
            rows[size, first].append([name, *counted(np.asarray(patient.reference), predict_labels(mean))])
    for ring, found in rows.items():
        table = pd.DataFrame(found, columns=["patient", *COLUMNS])
        write_text(ensemble_file(work, *ring), table.to_csv(index=False))


def ensemble_file(work: Path, size: int, first: int) -> Path:
    return work / "ensembles" / f"{size}_{first}.csv"


# --- what came out


def cohort_dsc(sums: np.ndarray) -> np.ndarray:
    """Mean of both classes' cohort DSC from sums (..., 6); nan where a class has no voxel in either mask."""
    pairs = sums.reshape(*sums.shape[:-1], len(CLASSES), 3)
    with np.errstate(invalid="ignore"):
        return (2 * pairs[..., 2] / (pairs[..., 0] + pairs[..., 1])).mean(-1)


def class_dsc(sums: np.ndarray, target: str) -> np.ndarray:
    first = 3 * CLASSES.index(target)
    with np.errstate(invalid="ignore"):
        return 2 * sums[..., first + 2] / (sums[..., first] + sums[..., first + 1])


MEASURES = {
    "both": cohort_dsc,
    "primary": lambda sums: class_dsc(sums, "primary"),
    "nodes": lambda sums: class_dsc(sums, "nodes"),
}


def weights(n: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """How often each of n is drawn in each resample (resamples, n)."""
    return random.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)


def compared(own: np.ndarray, base: np.ndarray, measure: str, *, draw_seeds: bool = True) -> dict[str, float]:
    """Value of an arm and its difference to the base, with the 95 % interval; counts (seeds, patients, 6) of each.

    Patients are drawn for both alike, and seeds too where both have the same ones: then the k-th of one is paired with
    the k-th of the other. Among three seeds the interval is rather too narrow.
    """
    random, statistic = np.random.default_rng(0), MEASURES[measure]
    patients = weights(own.shape[1], RESAMPLES, random)
    value, other = (statistic(counts.sum(1)).mean() for counts in (own, base))
    drawn = [statistic(np.einsum("bn,snk->bsk", patients, counts)) for counts in (own, base)]  # each (b, seeds)
    if draw_seeds:
        seeds = weights(len(own), RESAMPLES, random) / len(own)
        replicates = ((drawn[0] - drawn[1]) * seeds).sum(1)
    else:
        replicates = drawn[0].mean(1) - drawn[1].mean(1)
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return {"value": value, "difference": value - other, "low": low, "high": high}


def results(work: Path, plan: Plan) -> pd.DataFrame:
    """A row for each arm, part of the test patients and measure."""
    study, rows = Study(plan.base), []
    cohort = study.cohort.set_index("patient")["cohort"]
    base = plan.arms[0]
    paired = _counts([counts_file(work, base, plan.base, seed) for seed in plan.seeds])
    for arm in plan.arms:
        files = [counts_file(work, arm, plan.base, seed) for seed in plan.seeds]
        if all(file.exists() for file in files):
            rows += _rows(arm.name, _counts(files), paired, cohort, _seconds(work, arm, plan))
    rings = {size: sorted((work / "ensembles").glob(f"{size}_*.csv")) for size in plan.ensembles}
    for size, files in rings.items():
        if files and rings.get(1):
            single, mean = _counts(rings[1]), _counts(files)
            rows += _rows(f"ensemble of {size}", mean, single, cohort, math.nan, draw_seeds=False)
    return pd.DataFrame(rows)


def _seconds(work: Path, arm: Arm, plan: Plan) -> float:
    files = [run_folder(work, arm, plan.base, seed) / "cost.json" for seed in plan.seeds]
    return float(np.median([json.loads(file.read_text())["seconds"] for file in files]))


def _counts(files: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    tables = [read_table(file).sort_values("patient") for file in files]
    return tables[0]["patient"].tolist(), np.stack([table[COLUMNS].to_numpy(float) for table in tables])


def _rows(
    name: str,
    own: tuple[list[str], np.ndarray],
    base: tuple[list[str], np.ndarray],
    cohort: pd.Series,
    seconds: float,
    *,
    draw_seeds: bool = True,
) -> list[dict[str, Any]]:
    of = cohort.loc[own[0]].to_numpy()
    rows = []
    for part in ("all", *PARTITIONS):
        inside = np.full(len(of), True) if part == "all" else of == part
        for measure in MEASURES:
            found = compared(own[1][:, inside], base[1][:, inside], measure, draw_seeds=draw_seeds)
            about = {"arm": name, "part": part, "measure": measure, "runs": len(own[1]), "patients": int(inside.sum())}
            rows.append(about | found | {"seconds": seconds})
    return rows


# --- the chapter


def verdict(row: Mapping[str, Any]) -> str:
    if row["arm"] in (BASE, "ensemble of 1"):
        return ""
    return "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "no difference shown"


def chapter(table: pd.DataFrame, plan: Plan, patients: Mapping[str, int]) -> list[str]:
    main = table[(table["part"] == "all") & (table["measure"] == "both")]
    lines = [
        f"Synthetic patients of the hard world: {patients['train']} to train, {patients['validation']} to validate, "
        f"{patients['main']} of the training's scanners and {patients['external']} of other scanners to test; grid of "
        f"{plan.base.spacing_mm:g} mm. Every training: {plan.base.epochs} epochs of {plan.base.steps_per_epoch} steps "
        f"of {plan.base.batch_size} patches; {len(plan.seeds)} seeds an arm. They verify software and compare ways of "
        "training; they say nothing about patients.",
        "",
        "DSC: sums over all test patients, mean of primary tumours and nodes. Difference: to the base, paired by "
        "patient and seed, with the 95 % interval of a bootstrap over both (of ensembles: over patients). Not "
        "corrected for the number of arms.",
        "",
        "| arm | DSC | difference | 95 % interval | nodes, other scanners: difference | 95 % interval "
        "| seconds a training | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for _, row in main.iterrows():
        (nodes,) = table[
            (table["arm"] == row["arm"]) & (table["part"] == "external") & (table["measure"] == "nodes")
        ].to_dict("records")
        reference = row["arm"] in (BASE, "ensemble of 1")
        cells = [] if reference else [_signed(row["difference"]), _interval(row)]
        cells += [] if reference else [_signed(nodes["difference"]), _interval(nodes)]
        seconds = "" if math.isnan(row["seconds"]) else f"{row['seconds']:.0f}"
        line = [row["arm"], f"{row['value']:.3f}", *(cells or [""] * 4), seconds, verdict(row)]
        lines.append("| " + " | ".join(line) + " |")
    return [*lines, "", *plainly(main)]


def plainly(main: pd.DataFrame) -> list[str]:
    """Which arms made no difference, in words; an arm that takes something away is about what it takes."""
    words = {"better": "Better than the base", "worse": "Worse than the base", "no difference shown": "Did not help"}
    found = {word: [row["arm"] for _, row in main.iterrows() if verdict(row) == word] for word in words}
    lines = [f"{words[word]}: {', '.join(arms) or 'none'}." for word, arms in found.items()]
    lines[-1] = lines[-1].replace("Did not help", "Made no difference that this many patients and seeds could show")
    return [*lines, "What an arm leaves out helped only where leaving it out is worse.", *ensemble_gains(main)]


def ensemble_gains(main: pd.DataFrame) -> list[str]:
    """The ensembles one by one: how much each further network adds."""
    sizes = main[main["arm"].str.fullmatch(r"ensemble of \d+")]
    gains = [
        f"{int(re.sub(r'[^0-9]', '', one['arm']))} to {int(re.sub(r'[^0-9]', '', other['arm']))}: "
        f"{_signed(other['value'] - one['value'])}"
        for (_, one), (_, other) in pairwise(sizes.iterrows())
    ]
    return [f"What a further network of the ensemble adds: {'; '.join(gains)}."] if gains else []


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_signed(row['low'])} to {_signed(row['high'])}"


# --- all of it


def work_off(work: Path, plan: Plan, processes: int) -> None:
    began, context = time.monotonic(), multiprocessing.get_context("spawn")
    shared: dict[str, tuple[Arm, int]] = {}
    again = []
    for arm, seed in plan.runs:  # arms that share a training wait for it
        key = arm.training_key(plan.base, seed)
        again += [(arm, seed)] if key in shared else []
        shared.setdefault(key, (arm, seed))
    for jobs in (list(shared.values()), again):
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            futures = [pool.submit(run, work, arm, plan.base, seed) for arm, seed in jobs]
            for done, future in enumerate(as_completed(futures), start=1):
                minutes = (time.monotonic() - began) / 60
                print(f"{done} of {len(jobs)}  {future.result()}  ({minutes:.1f} min)", flush=True)


def write_results(work: Path, plan: Plan, command: str, *, keep: bool) -> None:
    study = Study(plan.base)
    who, cohort = members(study, plan.base), study.cohort.set_index("patient")["cohort"]
    sizes = {"train": len(who.train), "validation": len(who.validation)}
    sizes |= {part: int((cohort.loc[who.test] == part).sum()) for part in PARTITIONS}
    table = results(work, plan)
    lines = chapter(table, plan, sizes)
    if not keep:
        print("\n".join(lines))
        return
    write_text(RESULTS / "ablations.csv", table.to_csv(index=False, float_format="%.4f"))
    write_table("ablations", "Ablations", [*lines, "", "All measures: ablations.csv, beside this file.", "", command])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_name("ablations.yml"))
    parser.add_argument("--work", type=Path, default=ROOT / "studies" / "ablations_work")
    parser.add_argument("--patients", type=int, default=160, help="main patients, of which 64 %% train")
    parser.add_argument("--external", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="in place of the plan's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="24 + 8 patients, 2 epochs, 2 seeds, nothing kept: to see it run"
    )
    options = parser.parse_args(arguments)
    changes: dict[str, Any] = {"epochs": options.epochs, "patience": options.epochs} if options.epochs else {}
    if options.quick:
        options.patients, options.external, options.seeds = 24, 8, 2
        changes |= {"epochs": 2, "patience": 2, "steps_per_epoch": 10}
        options.work = options.work.with_name(options.work.name + "_quick")
    plan = read_plan(options.plan, options.work, options.seeds, **changes)
    prepared(plan.base, options.patients, options.external)
    work_off(options.work, plan, options.processes)
    run_ensembles(options.work, plan)
    size = f"--patients {options.patients} --external {options.external} --seeds {options.seeds}"
    write_results(options.work, plan, f"Command: `python -m benchmarks.ablations {size}`.", keep=not options.quick)


if __name__ == "__main__":
    main()
