"""The paper's study rehearsed: 698 + 181 synthetic patients, its protocol and the report; what each step took.

On a graphics card in full, but for the number of epochs:

    python -m benchmarks.rehearsal --full --epochs 5 --keep DIR

On a processor the voxels, the patches, the network and the epochs are fewer (REDUCED), and what the paper's size would
take is extrapolated:

    python -m benchmarks.rehearsal --keep DIR

`--keep` leaves cohort, study and report in the folder, and goes on there after a kill.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.measure import costs_of_steps, mtv, spent, together, write_table
from mtvlib.params import Params, from_dict, read, write
from mtvlib.resources import training_work

ROOT = Path(__file__).resolve().parents[1]
PATIENTS, EXTERNAL = 698, 181  # of the paper
REDUCED: dict[str, Any] = {
    "spacing_mm": 5.0,
    "crop_shape": (48, 48),
    "patch_shape": (48, 48, 16),
    "patch_stride": 4,  # 75 % overlap, as the paper's 8 of 32
    "filters": (8, 16, 32, 64),
    "attention_heads": 4,
    "pet_normalization": "window",
    "pet_window_suv": (0.0, 20.0),
    "threads": 1,
}


def params_of(full: bool, epochs: int, home: Path) -> Params:
    place = {"name": "rehearsal", "cohort": str(home / "cohort" / "cohort.csv"), "studies": str(home / "studies")}
    paper = read(ROOT / "params" / "paper.yml").model_dump()
    own = {"epochs": epochs, "patience": epochs, "precision": "bfloat16"}
    return from_dict(paper | (({} if full else REDUCED) | own | place))


def rehearse(params: Params, home: Path, cores: int, patients: int, external: int) -> dict[str, Any]:
    """Seconds of the whole run, costs of its steps and of cohort and report, and what came out."""
    made = home / "made.json"
    if not made.exists():
        options = ("--patients", patients, "--external", external, "--seed", 2023)
        made.write_text(json.dumps(mtv("phantom", "--out", home / "cohort", *options)), encoding="utf-8")
    write(params, home / "rehearsal.yml")
    seconds = spent(home / "seconds.json", mtv("run", home / "rehearsal.yml", "--cores", cores)[0])
    study = home / "studies" / "rehearsal"
    report = mtv("report", study)
    return {
        "cohort": json.loads(made.read_text(encoding="utf-8")),
        "seconds": seconds,
        "steps": costs_of_steps(study),
        "training_s": sum(pd.read_csv(path)["seconds"].sum() for path in study.glob("folds/*/history.csv")),
        "report": report,
        "summary": json.loads((study / "results" / "summary.json").read_text(encoding="utf-8")),
    }


# --- the table


def lines_of(found: dict[str, Any], params: Params, patients: int, external: int, cores: int) -> list[str]:
    paper = read(ROOT / "params" / "paper.yml")
    training, network, voxels = factors(params, paper, patients)
    both = patients + external
    folds_s, folds_mb = together(found["steps"], ("2_train_fold",))
    chapters = together(found["steps"], ("4_", "5_", "6_", "7_", "8_", "9_", "10_", "manifest"))
    title = f"training, {params.folds} folds of {params.epochs} epochs"
    rows = [  # name, patients, (seconds, MB), factor to the paper's size of as many patients
        ("synthetic patients made", both, found["cohort"], None),
        ("preparation", both, together(found["steps"], ("1_cohort",)), 1.0),
        (title, patients, (found["training_s"], folds_mb), training),
        ("test patients of the folds", patients, (folds_s - found["training_s"], folds_mb), network),
        ("external testing, mean of the models", external, together(found["steps"], ("3_",)), network),
        ("evaluation", both, together(found["steps"], ("evaluation",)), voxels),
        ("chapters", both, chapters, voxels),
        ("report", both, found["report"], 1.0),
    ]
    all_of_paper = PATIENTS + EXTERNAL
    of_paper = [*(all_of_paper,) * 2, PATIENTS, PATIENTS, EXTERNAL, *(all_of_paper,) * 3]  # patients, row by row
    lines = [
        "| step | patients | seconds | patients an hour | peak memory, MB | at the paper's size, hours |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (name, number, (seconds, peak), factor), whole in zip(rows, of_paper, strict=True):
        then = "" if factor is None else _hours(factor * whole / number * seconds / 3600)
        lines.append(f"| {name} | {number} | {seconds:.0f} | {3600 * number / seconds:.0f} | {peak:.0f} | {then} |")
    return [
        f"{patients} + {external} synthetic patients, {params.folds} folds of {params.epochs} epochs, {cores} cores. "
        f"Whole run without cohort and report: {found['seconds'] / 60:.0f} minutes.",
        f"Voxels of {params.spacing_mm:g} mm, patches of {' x '.join(map(str, params.patch_shape))}, filters "
        f"{', '.join(map(str, params.filters))}, {params.precision}; the rest as params/paper.yml.",
        "",
        *lines,
        "",
        f"Seconds of the folds are added up; {cores} ran side by side, with {params.threads} thread each.",
        *_remarks(params, paper, (training, network, voxels)),
        "",
        *_results(found["summary"]),
    ]


def _hours(hours: float) -> str:
    """To two digits, without an exponent."""
    return f"{float(f'{hours:.2g}'):,g}".replace(",", "\u00a0")


def factors(params: Params, paper: Params, patients: int) -> tuple[float, float, float]:
    """How much more the paper's size is: a whole training, a network's look at a patient, a patient's voxels."""
    training = training_work(paper, patients) / training_work(params, patients)
    voxels = [math.prod(one.crop_shape) / one.spacing_mm for one in (paper, params)]
    looks = [
        math.prod(one.crop_shape) / one.spacing_mm * _overlap(one) * one.filters[0] ** 2 for one in (paper, params)
    ]
    return training, looks[0] / looks[1], voxels[0] / voxels[1]


def _overlap(params: Params) -> float:
    return params.patch_shape[2] / params.patch_stride


def _remarks(params: Params, paper: Params, found: tuple[float, float, float]) -> list[str]:
    training, network, voxels = found
    if voxels == 1:
        return [f"This is the paper's size, but for the epochs; the last column is for {paper.epochs}."]
    return [
        f"The last column extrapolates to the paper's {PATIENTS} + {EXTERNAL} patients, {paper.epochs} epochs, "
        f"{paper.spacing_mm:g} mm and network on "
        f"this machine: times {training:.0f} for training and {network:.0f} for prediction (voxels seen x filters²; "
        f"small convolutions reach less of a processor, so this is too much), times {voxels:.0f} for what goes by "
        "voxels, as it is for what goes by patients. `training.md` measures a step at the paper's size, and its hours "
        "are the ones to go by.",
    ]


def _results(summary: dict[str, Any]) -> list[str]:
    lines = [
        "| synthetic patients | cohort DSC, both classes | primary tumours | nodes |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, title in (("cross_validation", "cross-validation"), ("external_testing", "external testing")):
        found = summary[name]["delineation"]
        cells = [f"{found[part]['cohort_dsc']:.3f}" for part in ("all", "primary", "nodes")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return [*lines, "", "So few epochs show that the study runs; they say nothing about clinical accuracy."]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's voxels, patches and network")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--patients", type=int, default=PATIENTS)
    parser.add_argument("--external", type=int, default=EXTERNAL)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder in which all stays")
    options = parser.parse_args(arguments)

    def rehearsed(home: Path) -> list[str]:
        params = params_of(options.full, options.epochs, home)
        found = rehearse(params, home, options.cores, options.patients, options.external)
        return lines_of(found, params, options.patients, options.external, options.cores)

    lines = _in_folder(options.keep, rehearsed)
    command = "python -m benchmarks.rehearsal" + (" --full" if options.full else "")
    command += f" --epochs {options.epochs} --patients {options.patients} --external {options.external}"
    name = "rehearsal_gpu" if options.full else "rehearsal"
    write_table(name, "The paper's study, rehearsed", [*lines, "", f"Command: `{command}`."])


def _in_folder(keep: Path | None, work: Callable[[Path], list[str]]) -> list[str]:
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        return work(keep.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        return work(Path(scratch))


if __name__ == "__main__":
    main()
