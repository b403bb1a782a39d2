"""Preparation: from two .nii.gz to the network's input, mtvlib beside MONAI's LoadImaged, Spacingd and crop.

A phantom's head and neck at the size scanners write: CT 512 x 512 x 120 (int16), PET 200 x 200 x 110 (float32), with
noise, since noise is what makes unpacking long. Both ways end with PET and CT of 2.5 mm, 128 x 128 voxels in plane,
normalised, in memory; mtvlib checks the images besides. Then `mtv run`'s whole step for a patient (reference, checks,
hashes, writing, overview) and from it the time of a study. From the repository's root, on an idle machine:

    python -m benchmarks.prepare [--quick]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.measure import write_table
from mtvlib.params import Params, read
from mtvlib.phantom import write_cohort
from mtvlib.predict import open_patient
from mtvlib.prepare import prepare_images, prepare_patient
from mtvlib.volume import Grid, read_image, resample, resample_labels, to_array, to_image, write_image

ROOT = Path(__file__).resolve().parents[1]
PAPER_PATIENTS = 879  # of cross-validation and external testing
CT_SIZE, PET_SIZE = (512, 512, 120), (200, 200, 110)
OURS, WHOLE = "mtvlib: read, check, resample onto the crop, normalise", "mtvlib: the whole step of a study"
MONAI = "MONAI: LoadImaged, Spacingd, CenterSpatialCropd, ScaleIntensityRanged"
WAYS = (OURS, MONAI, WHOLE)


def write_case(folder: Path) -> None:
    """`ct.nii.gz`, `pet.nii.gz` and `reference.nii.gz` of a phantom, brought to the sizes above, with noise."""
    cohort = write_cohort(folder / "phantom", 1, 0, 7)
    row = dict(zip(*(line.split(",") for line in cohort.read_text().splitlines()[:2]), strict=True))
    images = {name: read_image(cohort.parent / row[name]) for name in ("ct", "pet", "reference")}
    random = np.random.default_rng(0)
    hu, grid = at_size(images["ct"], CT_SIZE, -1000.0)
    hu = np.clip(np.rint(hu + random.normal(0, 12, CT_SIZE)), -1024, 3000).astype(np.int16)
    write_image(to_image(hu, grid), folder / "ct.nii.gz")
    suv, grid = at_size(images["pet"], PET_SIZE, 0.0)
    suv = (suv * (1 + random.normal(0, 0.05, PET_SIZE))).astype(np.float32)
    write_image(to_image(suv, grid), folder / "pet.nii.gz")
    write_image(resample_labels(images["reference"], grid), folder / "reference.nii.gz")


def at_size(image: sitk.Image, size: tuple[int, int, int], outside: float) -> tuple[np.ndarray, Grid]:
    low, high = Grid.of(image).box_mm()
    spacing = (high - low) / np.array(size)
    grid = Grid(size, tuple(spacing.tolist()), tuple((low + spacing / 2).tolist()))
    return to_array(resample(image, grid, outside=outside)), grid


# --- one way, in its own process


def ours(folder: Path, params: Params) -> np.ndarray:
    images = open_patient(folder / "pet.nii.gz", folder / "ct.nii.gz", params).images
    return prepare_images(images.pet, images.ct, params).inputs


def whole(folder: Path, params: Params) -> None:
    files = {name: str(folder / f"{name}.nii.gz") for name in ("pet", "ct", "reference")}
    prepare_patient({"patient": "P1", **files}, params, folder / "volumes")


def monai(params: Params) -> Callable[[dict[str, str]], Any]:
    from monai import transforms as t

    keys, side = ("pet", "ct"), params.spacing_mm
    scales = {"pet": params.pet_window_suv, "ct": params.ct_window_hu}
    return t.Compose(
        [
            t.LoadImaged(keys, image_only=True, ensure_channel_first=True),
            t.Spacingd(keys, pixdim=(side,) * 3, mode="bilinear"),
            t.CenterSpatialCropd(keys, roi_size=(*params.crop_shape, -1)),
            *(t.ScaleIntensityRanged(name, *scale, 0.0, 1.0, clip=True) for name, scale in scales.items()),
        ]
    )


def one_way(way: str, folder: Path, params: Params, times: int) -> dict[str, Any]:
    """Seconds, wall-clock and of the processor, after a first time that warms up; peak memory, MB."""
    files = {name: str(folder / f"{name}.nii.gz") for name in ("pet", "ct")}
    theirs = monai(params) if way == MONAI else None
    seconds, processor = [], []
    for _ in range(times + 1):
        began, used = time.perf_counter(), time.process_time()
        if theirs:
            theirs(dict(files))
        else:
            (ours if way == OURS else whole)(folder, params)
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": seconds[1:], "processor": processor[1:], "peak_mb": peak}
    return found | ({"apart": apart(theirs(dict(files)), folder, params)} if theirs else {})


def apart(theirs: dict[str, Any], folder: Path, params: Params) -> dict[str, float]:
    """Largest difference of a voxel from mtvlib's resampling onto the very grid that MONAI chose; HU and SUV.

    Without the outermost voxels, beyond which the two continue an image differently.
    """
    largest = {}
    for name, (low, high) in (("pet", params.pet_window_suv), ("ct", params.ct_window_hu)):
        image = theirs[name]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(image.affine)  # RAS to LPS
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = tuple((affine[:3, :3] / spacing).ravel().tolist())
        size = tuple(int(side) for side in image.shape[1:])
        grid = Grid(size, tuple(spacing.tolist()), tuple(affine[:3, 3].tolist()), direction)
        own = np.clip(to_array(resample(read_image(folder / f"{name}.nii.gz"), grid, outside=low)), low, high)
        difference = np.abs(own - (low + (high - low) * np.asarray(image[0])))
        largest[name] = float(difference[2:-2, 2:-2, 2:-2].max())
    return largest


# --- side by side


def in_process(way: str, folder: Path, times: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.prepare", "--way", way, "--folder", str(folder), "--times", str(times)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, rounds: int, times: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {way: {"seconds": [], "processor": [], "peak_mb": 0.0} for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            result, kept = in_process(way, folder, times), found[way]
            kept["seconds"] += result["seconds"]
            kept["processor"] += result["processor"]
            kept["peak_mb"] = max(kept["peak_mb"], result["peak_mb"])
            kept["apart"] = result.get("apart")
            print(f"round {number + 1}  {way}: {statistics.median(result['seconds']):.2f} s", flush=True)
    return found


def lines_of(found: dict[str, dict[str, Any]], rounds: int, times: int) -> list[str]:
    reference = statistics.median(found[MONAI]["seconds"])
    apart, each = found[MONAI]["apart"], statistics.median(found[WHOLE]["processor"])
    lines = [
        f"CT {' x '.join(map(str, CT_SIZE))}, PET {' x '.join(map(str, PET_SIZE))}, .nii.gz in the system's cache.",
        f"Medians over {rounds} rounds of {times} times after a first one.",
        "",
        "| way | seconds (range) | times faster than MONAI | seconds of processors | peak memory, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, row in found.items():
        median, seconds = statistics.median(row["seconds"]), row["seconds"]
        faster = "" if way == WHOLE else f"{reference / median:.1f}"
        lines.append(
            f"| {way} | {median:.2f} ({min(seconds):.2f}–{max(seconds):.2f}) | {faster} | "
            f"{statistics.median(row['processor']):.2f} | {row['peak_mb']:.0f} |"
        )
    minutes = each * PAPER_PATIENTS / 2 / 60
    return [
        *lines,
        "",
        f"On MONAI's grid voxels differ by at most {apart['ct']:.2g} HU (in the window) and {apart['pet']:.2g} SUV.",
        "",
        f"A study of {PAPER_PATIENTS} patients on two cores: {minutes:.1f} minutes, extrapolated from the "
        "seconds of processors of the whole step (patients run side by side); a slow disk is not in it.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of two times")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    params = read(ROOT / "params" / "paper.yml").model_copy(update={"pet_normalization": "window"})
    if options.way:
        print(json.dumps(one_way(options.way, options.folder, params, options.times)))
        return
    rounds, times = (1, 2) if options.quick else (3, options.times)
    with tempfile.TemporaryDirectory() as scratch:
        write_case(Path(scratch))
        found = compare(Path(scratch), rounds, times)
    command = ["", "Targets: three times MONAI's speed, ten minutes.", "", "Command: `python -m benchmarks.prepare`."]
    write_table("prepare", "Preparing a patient", [*lines_of(found, rounds, times), *command])


if __name__ == "__main__":
    main()
