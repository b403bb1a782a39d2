"""The whole evaluation with all intervals, for cohorts of the paper's size and larger: seconds and peak memory.

Masks are made, not read: an evaluation in memory, without reading images. From the repository's root:

    python -m benchmarks.evaluate --large
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from benchmarks.measure import run, write_table
from mtvlib.evaluation import Case, evaluate
from mtvlib.params import Params

SHAPE, SPACING_MM = (128, 128, 133), (2.5, 2.5, 2.5)
SITES = 6


def blob(labels: np.ndarray, label: int, centre: np.ndarray, radius: float) -> None:
    low = np.maximum(np.floor(centre - radius).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius).astype(int) + 1, labels.shape)
    axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    inside = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) <= radius**2
    labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][inside] = label


def case(patient: str, seed: int) -> Case:
    """A primary and up to six nodes; the prediction moves and resizes each, misses some and adds one at times."""
    random = np.random.default_rng(seed)
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for number in range(1 + random.integers(0, 7)):
        label, radius = (1, random.uniform(3, 8)) if number == 0 else (2, random.uniform(1.5, 5))
        centre = random.uniform(20, 108, 3)
        blob(reference, label, centre, radius)
        if random.random() < 0.85:
            blob(prediction, label, centre + random.normal(0, 1, 3), radius * random.uniform(0.8, 1.2))
    if random.random() < 0.3:
        blob(prediction, 2, random.uniform(20, 108, 3), 2.5)
    suv = random.random(SHAPE, np.float32) * 2 + 8 * (reference > 0)
    return Case(patient, reference, prediction, suv.astype(np.float32), SPACING_MM)


def cohort(main: int, external: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    n = main + external
    return pd.DataFrame(
        {
            "patient": [f"P{i:05}" for i in range(n)],
            "cohort": ["main"] * main + ["external"] * external,
            "site": [f"S{i % SITES}" for i in range(n)],
            "survival_eligible": 1,
            "followup_months": random.exponential(40, n).round(1) + 6,
            "death": random.integers(0, 2, n),
            "age": random.normal(61, 9, n).round(),
            "sex": random.choice(["female", "male"], n),
            "stage": random.choice(["I", "II", "III", "IV"], n),
        }
    )


def work(main: int, external: int) -> None:
    table = cohort(main, external)
    cases: Iterator[Case] = (case(patient, seed) for seed, patient in enumerate(table["patient"]))
    with tempfile.TemporaryDirectory() as out:
        evaluate(cases, table, out, Params())


def made(n: int) -> None:
    """The masks alone, which are part of the time of `work` but not of the evaluation."""
    for seed in range(n):
        case("", seed)


def measured(*arguments: object) -> tuple[float, float]:
    return run([sys.executable, "-m", "benchmarks.evaluate", *map(str, arguments)])


def report(sizes: Sequence[tuple[int, int]]) -> None:
    lines = [
        f"Patients of {' x '.join(map(str, SHAPE))} voxels with up to seven lesions, {SITES} sites; every table, every",
        f"interval ({Params().bootstrap_resamples} resamples). Seconds without the start and without making the masks.",
        "",
        "| patients | seconds | ms a patient | peak memory, MB |",
        "| --- | --- | --- | --- |",
    ]
    for main, external in sizes:
        n = main + external
        masks_s, _ = measured("--made", n)
        seconds, peak_mb = measured("--work", main, external)
        spent = seconds - masks_s
        lines.append(f"| {main} + {external} | {spent:.0f} | {1000 * spent / n:.0f} | {peak_mb:.0f} |")
        print(lines[-1], flush=True)
    write_table(
        "evaluate", "The evaluation of a cohort", [*lines, "", "Command: `python -m benchmarks.evaluate --large`."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--made", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--large", action="store_true", help="10 000 patients as well")
    options = parser.parse_args()
    if options.work:
        work(*options.work)
    elif options.made is not None:
        made(options.made)
    else:
        report([(100, 26), (698, 181), *([(8000, 2000)] if options.large else [])])


if __name__ == "__main__":
    main()
