"""The report of large studies: seconds and peak memory of each chapter and of the rendering, and sizes of pages.

Cohorts of the paper's size, and of 10 000 patients, with small images (16 x 16 x 12 cm, 5 mm). Nothing is trained: the
predictions are the references, each lesion moved, some missed and some made up. Chapters run two at a time, each in a
process of its own, as the study's graph runs them. From the repository's root:

    python -m benchmarks.report --large

`--keep DIR` keeps the evaluated studies, so that the report alone is measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.growth import PARAMS, SHAPE, _home, _make_patient, _size_mb
from benchmarks.measure import run, write_table
from mtvlib import inference, params, steps
from mtvlib.files import sha256, write_text
from mtvlib.prepare import load_patient
from mtvlib.study import Study
from mtvlib.volume import to_image, write_image

PAPER, LARGE = (698, 181), (8000, 2000)
CORES = 2
MODELS = 5
CLINICAL = {
    "sex": ["female", "male"],
    "stage": ["I", "II", "III", "IV"],
    "tumour_site": ["oropharynx", "larynx", "hypopharynx", "oral cavity"],
    "hpv": ["positive", "negative", "unknown"],
}
RENDER_S, MEMORY_MB, PAGE_MB = 90, 4000, 3.0  # what the report must keep to: 879 patients, 10 000 patients, every page


# --- a study as the steps leave it


def evaluated(sizes: tuple[int, int], home: Path) -> Study:
    """A study of so many main and external patients, up to its results; what is there already stays."""
    folder = home / f"{sum(sizes)}"
    cohort = make_cohort(sizes, folder / "cohort")
    write_text(folder / "report.yml", PARAMS.format(cohort=cohort, studies=folder / "studies"))
    study = Study(params.read(folder / "report.yml"))
    study.begin()
    if not (study.folder / "notebooks" / "1_cohort.ipynb").exists():
        steps.run_step(study, "1_cohort")
    study = Study.open(study.folder)
    if not (study.predictions / "external.csv").exists():
        predict(study)
    if not (study.results / "triage.csv").exists():
        steps.run_step(study, "evaluation")
    return study


def make_cohort(sizes: tuple[int, int], folder: Path) -> Path:
    """Patients of `benchmarks.growth` with what the tables of subgroups need."""
    table, n = folder / "cohort.csv", sum(sizes)
    if not table.exists():
        random = np.random.default_rng(0)
        rows = pd.DataFrame([_make_patient(number, number >= sizes[0], folder) for number in range(n)])
        rows["age"] = random.normal(61, 9, n).round()
        for name, values in CLINICAL.items():
            rows[name] = random.choice(values, n)
        write_text(table, rows.to_csv(index=False))
    return table


def predict(study: Study) -> None:
    """Predictions with their indices, as the folds' models and their mean would leave them."""
    inside = study.cohort[study.cohort["split"] == "cross_validation"]
    for fold, rows in inside.groupby("fold"):
        index = [_predict(study, patient, 1) for patient in rows["patient"]]
        write_text(study.fold_folder(int(fold)) / "predicted.csv", pd.DataFrame(index).to_csv(index=False))
    outside = study.cohort.loc[study.cohort["split"] == "external_testing", "patient"]
    index = [_predict(study, patient, MODELS) for patient in outside]
    write_text(study.predictions / "external.csv", pd.DataFrame(index).to_csv(index=False))


def _predict(study: Study, patient: str, models: int) -> dict[str, Any]:
    """Write a patient's maps; returns his or her row of the index."""
    prepared = load_patient(study.volumes, patient, study.params)
    assert prepared.reference is not None
    random = np.random.default_rng(int(patient[1:]))
    each = [made_up(prepared.reference, random) for _ in range(models)]
    mean = np.mean(each, axis=0)
    maps = {"labels": inference.predict_labels(mean), "probability": inference.quantised_lesion_probability(mean)}
    if models > 1:
        maps["votes"] = inference.votes(np.array([inference.predict_labels(one) for one in each]))
    paths = study.prediction_paths(patient)
    for name, voxels in maps.items():
        write_image(to_image(voxels, prepared.grid), paths[name])
    digests = [sha256(paths[name]) if name in maps else "" for name in ("labels", "probability", "votes")]
    return dict(zip(inference.INDEX_COLUMNS, [patient, *digests, models], strict=True))


def made_up(reference: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Probabilities (3, x, y, z): a tenth of the lesions missed, some of the wrong class, at times one more."""
    found = np.zeros((3, *reference.shape), np.float32)
    lesions = cc3d.connected_components(np.array(reference))
    for number in range(1, int(lesions.max()) + 1):
        inside = lesions == number
        label = int(reference[inside][0]) if random.random() < 0.95 else random.integers(1, 3)
        if random.random() < 0.9:
            shift = random.integers(-1, 2, 3)
            found[label] += np.roll(inside, shift, (0, 1, 2))
    if random.random() < 0.2:
        x, y, z = random.integers(6, 20, 3)
        found[2, x : x + 3, y : y + 3, z : z + 2] = 1
    found[1:] = ndimage.gaussian_filter(np.clip(found[1:], 0, 1), (0, 0.6, 0.6, 0.6))
    found[0] = np.clip(1 - found[1:].sum(0), 0, 1)
    return found


# --- the report


def measured(study: Study) -> dict[str, Any]:
    """Seconds and peak memory of chapters and rendering, the wall clock of all, and what the report weighs."""
    began = time.perf_counter()
    place = ["--study", str(study.folder)]
    commands = {step: [sys.executable, "-m", "mtvlib.steps", step, *place] for step in steps.CHAPTERS}
    with ThreadPoolExecutor(CORES) as pool:
        costs = dict(zip(commands, pool.map(run, commands.values()), strict=True))
    chapters_s = time.perf_counter() - began
    costs["rendering"] = run([sys.executable, "-m", "mtvlib.cli", "report", str(study.folder)])
    folder = study.folder / "report"
    return {
        "patients": len(study.patients),
        "costs": costs,
        "chapters_s": chapters_s,
        "wall_s": time.perf_counter() - began,
        "page_mb": max(path.stat().st_size for path in folder.rglob("*.html")) / 1e6,
        "viewer_mb": max((path.stat().st_size for path in folder.rglob("viewers/*.js")), default=0) / 1e6,
        "report_mb": _size_mb(folder),
    }


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    heads = [f"{one['patients']:,} patients".replace(",", "\u00a0") for one in found]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(found)}"]
    for name in found[0]["costs"]:
        cells = [f"{one['costs'][name][0]:.0f} s, {one['costs'][name][1]:.0f} MB" for one in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rows = {
        "chapters together, wall clock": [f"{one['chapters_s']:.0f} s" for one in found],
        "chapters and rendering, wall clock": [f"**{one['wall_s']:.0f} s**" for one in found],
        "largest process": [f"**{max(mb for _, mb in one['costs'].values()):.0f} MB**" for one in found],
        "largest page": [f"{one['page_mb']:.1f} MB" for one in found],
        "largest viewer of a case": [f"{one['viewer_mb']:.1f} MB" for one in found],
        "the report's folder": [f"{one['report_mb']:.1f} MB" for one in found],
    }
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="10 000 patients as well")
    parser.add_argument("--patients", nargs=2, type=int, metavar=("MAIN", "EXTERNAL"), help="another size")
    parser.add_argument("--keep", type=Path, help="folder in which cohorts and studies stay")
    options = parser.parse_args()
    sizes = [tuple(options.patients)] if options.patients else [PAPER, *([LARGE] if options.large else [])]
    with _home(options.keep) as home:
        found = []
        for size in sizes:
            found.append(measured(evaluated(size, home)))
            print(json.dumps(found[-1]), flush=True)
    if options.patients:
        print("\n".join(table(found)))
        return
    quarto = "with Quarto" if shutil.which("quarto") else "as one page, without Quarto"
    lines = [
        f"Chapters and report after the evaluation, {CORES} chapters at a time, each in a process of its own.",
        f"Images of {' x '.join(map(str, SHAPE))} voxels; the report is rendered {quarto}. Aimed at: {RENDER_S} s",
        f"for 879 patients, {MEMORY_MB} MB for 10 000, {PAGE_MB:g} MB a page. There is no chapter on training.",
        "",
        *table(found),
        "",
        f"Command: `python -m benchmarks.report{' --large' if options.large else ''}`.",
    ]
    write_table("report", "The report of a large study", lines)


if __name__ == "__main__":
    main()
