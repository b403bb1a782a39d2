"""The lesions of a patient: `lesions.find_lesions` beside panoptica, on the same masks and with the same pairs.

Both find the connected components of each class and pair them one to one by IoU above 0.1. Ours also gives coverage,
volume, shape and, where it has the PET, SUV of every lesion; panoptica the overlap of the pairs, and by default their
surface distance. Timed is the analysis alone, in a process of its own that has imported everything and analysed one
patient before. From the repository's root:

    make bench
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import write_table

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
SHAPE, SPACING_MM, PATIENTS, LESIONS = (128, 128, 133), 2.5, 12, 10

OURS = """
from mtvlib import lesions

def analyse(case):
    suv = case["suv"] if SUV else None
    found = lesions.find_lesions(case["reference"], case["prediction"], suv, (2.5, 2.5, 2.5))
    return sum(one["matched_lesion"] is not None for one in found) // 2
"""

THEIRS = """
import warnings
from panoptica import ConnectedComponentsInstanceApproximator, InputType, MaxBipartiteMatching, Metric
from panoptica import Panoptica_Evaluator, disable_citation_reminder
from panoptica.utils.segmentation_class import LabelGroup, SegmentationClassGroups

warnings.simplefilter("ignore")
disable_citation_reminder()
evaluator = Panoptica_Evaluator(
    expected_input=InputType.SEMANTIC,
    instance_approximator=ConnectedComponentsInstanceApproximator(),
    instance_matcher=MaxBipartiteMatching(matching_metric=Metric.IOU, matching_threshold=0.1),
    segmentation_class_groups=SegmentationClassGroups({"primary": LabelGroup(1), "nodes": LabelGroup(2)}),
    instance_metrics=[Metric.DSC, Metric.IOU] + [Metric.ASSD, Metric.RVD] * ALL,
    global_metrics=[Metric.DSC],
)

def analyse(case):
    results = evaluator.evaluate(case["prediction"], case["reference"], verbose=False)
    return sum(result.tp for result in results.values())
"""

CLOCK = """
import glob, json, sys, time
import numpy as np

cases = [dict(np.load(file)) for file in sorted(glob.glob(sys.argv[1] + "/*.npz"))]
analyse(cases[0])
seconds, pairs = [], 0
for case in cases:
    began = time.perf_counter()
    pairs += analyse(case)
    seconds.append(time.perf_counter() - began)
print(json.dumps({"seconds": seconds, "pairs": pairs}))
"""


def write_cases(folder: Path) -> int:
    """Patients with ten lesions (balls of 4 to 18 mm radius, most of them nodes), nine in ten of them predicted."""
    random, grid, n = np.random.default_rng(1), np.indices(SHAPE), 0
    for patient in range(PATIENTS):
        reference, prediction = np.zeros((2, *SHAPE), np.uint8)
        for number in range(LESIONS):
            centre, radius = random.uniform(35, 90, 3), random.uniform(4, 18) / SPACING_MM
            label = 1 if number == 0 else 2
            reference[_ball(grid, centre, radius)] = label
            if random.random() < 0.9:
                moved = centre + random.normal(0, 0.8, 3)
                prediction[_ball(grid, moved, radius * random.uniform(0.8, 1.2))] = label
        suv = (np.where(reference > 0, 8, 1) + random.gamma(2, 0.5, SHAPE)).astype(np.float32)
        np.savez(folder / f"{patient:02d}.npz", reference=reference, prediction=prediction, suv=suv)
        n += np.count_nonzero(reference > 0)
    return n // PATIENTS


def _ball(grid: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    return ((grid - centre[:, None, None, None]) ** 2).sum(axis=0) <= radius**2


def time_patients(python: str | Path, code: str, folder: Path) -> tuple[list[float], int]:
    """Seconds of each patient, and the number of pairs in all of them."""
    done = subprocess.run(
        [python, "-c", code + CLOCK, str(folder)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    told = json.loads(done.stdout.splitlines()[-1])
    return told["seconds"], told["pairs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    tools = {
        "mtvlib: pairs and their IoU, coverage, volume, shape": (sys.executable, OURS.replace("SUV", "False")),
        "mtvlib: the same with SUVmax, mean, peak and TLG": (sys.executable, OURS.replace("SUV", "True")),
        "panoptica: pairs and their DSC, IoU": (PEERS, THEIRS.replace("ALL", "0")),
        "panoptica: its default metrics (with ASSD)": (PEERS, THEIRS.replace("ALL", "1")),
    }
    found: dict[str, list[float]] = {name: [] for name in tools}
    pairs: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        voxels = write_cases(Path(scratch))
        for number in range(rounds):
            for name, (python, code) in tools.items():
                seconds, pairs[name] = time_patients(python, code, Path(scratch))
                found[name] += seconds
                print(f"round {number + 1} of {rounds}  {name}: {1000 * statistics.median(seconds):.1f} ms", flush=True)
    ours = statistics.median(next(iter(found.values())))
    lines = [
        f"{PATIENTS} patients of {' x '.join(map(str, SHAPE))} voxels of {SPACING_MM} mm, {LESIONS} lesions each",
        f"({voxels} voxels together); the analysis alone, median (range) of {rounds} rounds in alternating order.",
        "",
        "| tool | ms a patient | times as long | pairs found |",
        "| --- | --- | --- | --- |",
    ]
    for name, seconds in found.items():
        median = statistics.median(seconds)
        spread = f"{1000 * min(seconds):.0f}–{1000 * max(seconds):.0f}"
        lines.append(f"| {name} | {1000 * median:.1f} ({spread}) | {median / ours:.1f} | {pairs[name]} |")
    peer = subprocess.run(
        [PEERS, "-c", "from importlib.metadata import version; print(version('panoptica'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    write_table(
        "lesions", "Lesions of a patient", [*lines, "", f"panoptica {peer.stdout.strip()}. Command: `make bench`."]
    )


if __name__ == "__main__":
    main()
