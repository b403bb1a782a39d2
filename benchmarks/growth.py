"""A study that grows: seconds and peak memory of each step, the graph's own share, and the size of what it leaves.

Cohorts of 100, 1 000 and 10 000 patients with small images (16 x 16 x 12 cm, 5 mm) go through the whole study: import's
table, preparation, a token training, prediction, evaluation, chapters, report. From the repository's root:

    python -m benchmarks.growth --patients 100 1000 10000

A cohort of 10 000 takes hours; `--keep DIR` keeps the studies, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.evaluate import blob
from benchmarks.measure import run, write_table
from mtvlib.files import write_text
from mtvlib.volume import Grid, to_image, write_image

SHAPE, SPACING_MM = (32, 32, 24), 5.0
SITES = 6
PARAMS = """\
name: growth
cohort: {cohort}
studies: {studies}
spacing_mm: 5.0
crop_shape: [32, 32]
patch_shape: [32, 32, 16]
patch_stride: 8
pet_normalization: window
filters: [8, 16, 32]
units_per_level: 1
attention_heads: 4
epochs: 2
batch_size: 4
steps_per_epoch: 10
threads: 1
"""
GROUPS = {  # what the table's rows add up
    "preparation": ("1_cohort",),
    "training and prediction": ("2_train_fold",),
    "external testing": ("3_external_testing",),
    "evaluation": ("evaluation",),
    "chapters": ("4_", "5_", "6_", "7_", "8_", "9_", "10_"),
}


# --- the cohort


def make_cohort(patients: int, folder: Path) -> Path:
    """A cohort of that many patients, a fifth of them external; what is there already is not made again."""
    table = folder / "cohort.csv"
    if not table.exists():
        rows = [_make_patient(number, number >= patients - patients // 5, folder) for number in range(patients)]
        write_text(table, pd.DataFrame(rows).to_csv(index=False))
    return table


def _make_patient(number: int, external: bool, folder: Path) -> dict[str, object]:
    random, patient = np.random.default_rng(number), f"P{number:05}"
    reference = np.zeros(SHAPE, np.uint8)
    for lesion in range(1 + random.integers(0, 4)):
        blob(reference, 1 if lesion == 0 else 2, random.uniform(9, 22, 3) * (1, 1, 0.7), random.uniform(1.5, 3))
    x, y = np.ogrid[:32, :32]
    body = ((x - 15.5) / 13) ** 2 + ((y - 15.5) / 11) ** 2 < 1
    noise = random.standard_normal(SHAPE, np.float32)
    # Enough structure of each patient's own that nobody is taken for another one's copy.
    hills = np.abs(ndimage.zoom(random.standard_normal((2, *(side // 2 for side in SHAPE))), (1, 2, 2, 2), order=1))
    images = {
        "pet": body[..., None] * np.maximum(0, hills[0] + 0.2 * noise + random.uniform(4, 12) * (reference > 0)),
        "ct": np.where(body[..., None], 200 * hills[1], -1000),
        "reference": reference,
    }
    for name, voxels in images.items():
        kind = np.uint8 if name == "reference" else np.int16 if name == "ct" else np.float32
        grid = Grid(size=SHAPE, spacing_mm=(SPACING_MM,) * 3, origin_mm=(0.0, 0.0, 0.0))
        write_image(to_image(voxels.astype(kind), grid), folder / patient / f"{name}.nii.gz")
    return {
        "patient": patient,
        "cohort": "external" if external else "main",
        "site": f"S{number % SITES}" + ("X" if external else ""),
        **{name: f"{patient}/{name}.nii.gz" for name in images},
        "survival_eligible": 1,
        "followup_months": round(6 + random.exponential(40), 1),
        "death": int(random.integers(0, 2)),
        "synthetic": 1,
    }


# --- the study


def mtv(*arguments: object) -> tuple[float, float]:
    """Seconds and peak memory, MB, of a command."""
    return run([sys.executable, "-m", "mtvlib.cli", *map(str, arguments)])


def grow(patients: int, home: Path, cores: int) -> dict[str, object]:
    """Run a study of that many patients and measure it."""
    folder = home / str(patients)
    cohort = make_cohort(patients, folder / "cohort")
    write_text(folder / "growth.yml", PARAMS.format(cohort=cohort, studies=folder / "studies"))
    study = folder / "studies" / "growth"
    seconds = _spent(folder / "seconds.json", mtv("run", folder / "growth.yml", "--cores", cores)[0])
    again, planner_mb = mtv("run", folder / "growth.yml", "--cores", cores)
    report_s, report_mb = mtv("report", study)
    return {
        "patients": patients,
        "seconds": seconds,
        "again": again,
        "planner_mb": planner_mb,
        "steps": _steps(study),
        "report": {"seconds": report_s, "peak_memory_mb": report_mb},
        "results_mb": _size_mb(study / "results"),
        "report_mb": _size_mb(study / "report"),
        "page_mb": max(path.stat().st_size for path in (study / "report").rglob("*.html")) / 1e6,
        "study_mb": _size_mb(study),
    }


def _spent(record: Path, seconds: float) -> float:
    """Seconds of the run and of those before it that were stopped."""
    seconds += json.loads(record.read_text(encoding="utf-8")) if record.exists() else 0
    write_text(record, json.dumps(seconds))
    return seconds


def _steps(study: Path) -> dict[str, dict[str, float]]:
    logs = [path for path in (study / "logs").glob("*.json") if not path.name.endswith(".error.json")]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in logs}


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _group(steps: dict[str, dict[str, float]], prefixes: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of the steps that begin so, added up, and the largest peak memory of one, MB."""
    chosen = [cost for name, cost in steps.items() if name.startswith(prefixes)]
    return sum(cost["seconds"] for cost in chosen), max((cost["peak_memory_mb"] for cost in chosen), default=0)


# --- the table


def table(found: list[dict], cores: int) -> list[str]:
    heads = [f"{one['patients']:,}".replace(",", "\u00a0") for one in found]
    lines = [
        f"| | {' | '.join(f'{head} patients' for head in heads)} |",
        f"| --- |{' ---: |' * len(found)}",
    ]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} |")

    for name, prefixes in GROUPS.items():
        costs = [_group(one["steps"], prefixes) for one in found]
        cells = [
            f"{seconds:.0f} s ({1000 * seconds / one['patients']:.0f} ms), {mb:.0f} MB"
            for (seconds, mb), one in zip(costs, found, strict=True)
        ]
        row(name, cells)
    row("report", [f"{one['report']['seconds']:.0f} s, {one['report']['peak_memory_mb']:.0f} MB" for one in found])
    row("whole run, wall clock", [f"{one['seconds']:.0f} s" for one in found])
    row("run again, nothing to do", [f"{one['again']:.1f} s, {one['planner_mb']:.0f} MB" for one in found])
    row("the graph's share of the run", [f"{100 * one['again'] / one['seconds']:.1f} %" for one in found])
    row("results", [f"{one['results_mb']:.1f} MB" for one in found])
    row("report's folder, largest page", [f"{one['report_mb']:.1f} MB, {one['page_mb']:.1f} MB" for one in found])
    row("the whole study", [f"{one['study_mb']:.0f} MB" for one in found])
    return [
        f"Whole studies of small images ({' x '.join(map(str, SHAPE))} voxels of 5 mm), {cores} cores. Seconds of a",
        "step are added up over the folds and chapters that are part of it (ms: a patient); MB is the largest process.",
        "",
        *lines,
        "",
        "The graph's share is the time of a run that finds everything done: start, plan, hashes of the images.",
        "",
        "Command: `python -m benchmarks.growth --patients " + " ".join(str(one["patients"]) for one in found) + "`.",
    ]


@contextlib.contextmanager
def _home(keep: Path | None) -> Iterator[Path]:
    if keep:
        yield keep.resolve()
        return
    home = Path(tempfile.mkdtemp(prefix="growth-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder in which cohorts and studies stay")
    options = parser.parse_args()
    with _home(options.keep) as home:
        found = []
        for patients in options.patients:
            began = time.perf_counter()
            found.append(grow(patients, home, options.cores))
            print(f"{patients} patients: {time.perf_counter() - began:.0f} s", flush=True)
        write_table("growth", "A study that grows", table(found, options.cores))


if __name__ == "__main__":
    main()
