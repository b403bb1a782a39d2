"""A new patient from NIfTI to NIfTI: `mtv predict` with one and with five models beside one fold of `nnUNetv2_predict`.

All weights are random: time and memory hardly depend on them. The case is a phantom's head and neck, PET and CT on one
grid of 200 x 200 x 133 voxels of 2.5 mm, as nnU-Net wants its channels; ours is the network of params/paper.yml.
nnU-Net: its own plan for such a case (3d_fullres, default size), `--disable_tta`. From the repository's root:

    make bench
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import run, side_by_side, write_table
from mtvlib.inference import predict_probabilities, save_model
from mtvlib.network import build
from mtvlib.params import Params, read
from mtvlib.phantom import write_cohort
from mtvlib.prepare import prepare_images
from mtvlib.training import Epoch, Training, make_optimizer, network_config
from mtvlib.volume import Grid, read_image, read_scan, resample, to_image, write_image

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin"
SIZE, SPACING_MM = (200, 200, 133), 2.5


def write_case(folder: Path) -> dict[str, Path]:
    """PET and CT of a phantom on one grid, and a reference for nnU-Net's planner."""
    cohort = write_cohort(folder / "phantom", 1, 0, 7)
    row = dict(zip(*(line.split(",") for line in cohort.read_text().splitlines()[:2]), strict=True))
    pet = read_image(cohort.parent / row["pet"])
    low, high = Grid.of(pet).box_mm()
    origin = (low + high) / 2 - (np.array(SIZE) - 1) / 2 * SPACING_MM
    grid = Grid(SIZE, (SPACING_MM,) * 3, tuple(origin.tolist()))
    files = {}
    for name, outside in (("pet", 0.0), ("ct", -1000.0)):
        files[name] = folder / f"{name}.nii.gz"
        write_image(resample(read_image(cohort.parent / row[name]), grid, outside=outside), files[name])
    labels = np.zeros(SIZE, np.uint8)
    labels[90:110, 90:110, 60:70], labels[60:70, 60:70, 60:70] = 1, 2
    files["labels"] = folder / "labels.nii.gz"
    write_image(to_image(labels, grid), files["labels"])
    return files


def write_models(folder: Path, params: Params, case: dict[str, Path]) -> None:
    """Five models of random weights, but for a bias of the background that leaves few per mille of the field lesion."""
    prepared = prepare_images(read_scan(case["pet"]), read_scan(case["ct"]), params)
    for fold in range(5):
        network = build(network_config(params), fold)
        probabilities = predict_probabilities([network.eval()], prepared.inputs, params.patch_shape[2], 32)
        with torch.no_grad():
            network.head.bias[0] += float(np.quantile(np.log(probabilities[1:].max(0) / probabilities[0]), 0.995))
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        training = Training(network, make_optimizer(network, params), None, [Epoch(1, 1.0, 0.5, 1.0)], 1, weights)
        save_model(training, folder / str(fold), params, fold, {"train": 0, "validation": 0, "test": 0})


NNUNET = """
import shutil, sys, torch
from nnunetv2.run.run_training import get_trainer_from_args
trainer = get_trainer_from_args("1", "3d_fullres", 0, device=torch.device("cpu"))
trainer.initialize()
trainer.save_checkpoint(trainer.output_folder + "/checkpoint_final.pth")
for name, kept in (("nnUNetPlans", "plans"), ("dataset", "dataset")):
    shutil.copy(f"{sys.argv[1]}/preprocessed/Dataset001_Case/{name}.json", f"{trainer.output_folder_base}/{kept}.json")
"""


def write_nnunet(folder: Path, case: dict[str, Path]) -> dict[str, str]:
    """A model of nnU-Net's default size for this case, with random weights; returns its environment."""
    raw = folder / "raw" / "Dataset001_Case"
    for number in (1, 2):
        for place, name in (("imagesTr/P{n}_0000", "pet"), ("imagesTr/P{n}_0001", "ct"), ("labelsTr/P{n}", "labels")):
            target = raw / f"{place.format(n=number)}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(case[name].read_bytes())
    about = {"channel_names": {"0": "PET", "1": "CT"}, "labels": {"background": 0, "primary": 1, "nodes": 2}}
    (raw / "dataset.json").write_text(json.dumps(about | {"numTraining": 2, "file_ending": ".nii.gz"}))
    places = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    environment = {**os.environ, **places, "nnUNet_n_proc_DA": "2"}
    plan = [str(PEERS / "nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    subprocess.run(plan, env=environment, check=True, capture_output=True)
    subprocess.run([str(PEERS / "python"), "-c", NNUNET, str(folder)], env=environment, check=True, capture_output=True)
    inputs = folder / "input"
    inputs.mkdir()
    for number, name in enumerate(("pet", "ct")):
        (inputs / f"case_{number:04d}.nii.gz").write_bytes(case[name].read_bytes())
    return places


def phases(out: Path) -> str:
    record = json.loads((out / "record.json").read_text())
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in record["seconds"].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        case, params = write_case(folder), read(ROOT / "params" / "paper.yml")
        write_models(folder / "folds", params, case)
        places = write_nnunet(folder / "nnunet", case)

        def ours(models: str, out: str) -> list[str]:
            images = ["--pet", str(case["pet"]), "--ct", str(case["ct"]), "--out", str(folder / out)]
            return [sys.executable, "-m", "mtvlib.cli", "predict", "--models", str(folder / models), *images]

        theirs = [str(PEERS / "nnUNetv2_predict"), "-i", str(folder / "nnunet" / "input"), "-o", str(folder / "theirs")]
        theirs += [
            "-d",
            "1",
            "-c",
            "3d_fullres",
            "-f",
            "0",
            "--disable_tta",
            "-device",
            "cpu",
            "-npp",
            "1",
            "-nps",
            "1",
        ]
        found = side_by_side(
            {
                "mtv predict, one model": lambda: run(ours("folds/0", "one")),
                "mtv predict, five models": lambda: run(ours("folds", "five")),
                "nnUNetv2_predict, one fold": lambda: run(theirs, places),
            },
            rounds,
        )
        reference = found["nnUNetv2_predict, one fold"]
        lines = [
            f"A case of {' x '.join(map(str, SIZE))} voxels of {SPACING_MM} mm, PET and CT, NIfTI in and out, no GPU;",
            f"the whole command with its start, median (range) of {rounds} rounds. Random weights: time, not accuracy.",
            "",
            "| command | seconds | times faster than nnU-Net | peak memory, MB |",
            "| --- | --- | --- | --- |",
        ]
        for name, runs in found.items():
            ratio = reference.median_s / runs.median_s
            lines.append(f"| {name} | {runs.median_s:.1f} ({runs.spread}) | {ratio:.1f} | {max(runs.peak_mb):.0f} |")
        lines += ["", f"Seconds by phase: one model {phases(folder / 'one')}; five models {phases(folder / 'five')}."]
        write_table("predict", "Delineating a new patient", [*lines, "", "Command: `make bench`."])


if __name__ == "__main__":
    main()
