"""Real images: five-fold cross-validation on PET/CT of soft-tissue sarcomas, mtvlib's network beside nnU-Net v2.

The data are those of the Soft-tissue-Sarcoma validation set (theibsi/data_sets, CC BY 3.0): as many patients as lie in
the folder. Each way trains each fold for the same wall-clock time on the same patients, and is tested on the ones left
out, on the PET's own grid, where the reference was drawn. mtvlib: params/sts.yml (the paper's protocol at a reduced
size), and a network of that size with the training of params/modern.yml. nnU-Net: 3d_fullres as its own planner plans
it, PET and CT on the PET's grid; the number of its epochs is what fits into the time by the speed that is measured
first, so that its learning rate falls to zero. What was finished is not done again. From the repository's root, on an
idle machine:

    python -m benchmarks.sts --minutes 10

takes three times ten minutes and some for preparation and testing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from benchmarks.measure import write_table
from mtvlib.cohort import assign_folds, fold_patients, read_cohort, relative_paths
from mtvlib.files import read_table, write_json, write_text
from mtvlib.inference import predict_probabilities
from mtvlib.layouts import import_sts
from mtvlib.lesions import remove_small_rois
from mtvlib.metrics import contingency, overlap
from mtvlib.network import BothSides, build, count_parameters
from mtvlib.params import Params, from_dict, read
from mtvlib.predict import labels_on
from mtvlib.prepare import load_patient, prepare_cohort
from mtvlib.study import Study
from mtvlib.training import Patients, Training, network_config, train_fold
from mtvlib.volume import Grid, read_image, resample, resample_labels, to_array, write_image

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin"
DATA = ROOT.parent / "shared" / "data" / "sts" / "nifti"
PAPER, MODERN, NNUNET = "mtvlib, paper's protocol", "mtvlib, modern protocol", "nnU-Net v2, 3d_fullres"
ARMS = (PAPER, MODERN, NNUNET)
# Of params/modern.yml what is no image, no size of the network and no threads.
NOT_TAKEN = {"name", "cohort", "studies", "units_per_level", "patience", "pet_window_suv", "pet_normalization"}
COLUMNS = ["patient", "man", "cnn", "both"]
RESAMPLES = 10_000


def params_of(arm: str, work: Path, seconds: float) -> Params:
    """Parameters of an arm; `seconds` only makes another budget another study."""
    values = read(ROOT / "params" / "sts.yml").model_dump()
    place = {"name": f"sts-{seconds:.0f}s", "cohort": str(work / "cohort" / "cohort.csv"), "studies": str(work)}
    if arm == MODERN:
        given = read(ROOT / "params" / "modern.yml")
        values |= {name: getattr(given, name) for name in given.model_fields_set - NOT_TAKEN}
        values |= {"units_per_level": [1, 3, 4, 6][: len(values["filters"])], "warmup_epochs": 0}
    return from_dict(values | place | {"threads": 2})


def prepared(params: Params, data: Path) -> Study:
    study = Study(params)
    if not study.source.exists():
        import_sts(data, study.source.parent)
    study.begin()
    cohort = assign_folds(read_cohort(study.source, params), params)
    study.write_cohort(relative_paths(cohort, study.folder))
    prepare_cohort(study, cohort, say=lambda line: None)
    return study


# --- mtvlib


def ours(study: Study, arm: str, params: Params, fold: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Train a fold for about so long, test it; returns what it took. The probe's time is no part of it."""
    parts = fold_patients(study.cohort, fold, params)

    def one(name: str) -> tuple[str, np.ndarray, np.ndarray]:
        patient = load_patient(study.volumes, name, params)
        assert patient.reference is not None
        return patient.patient, patient.inputs, patient.reference

    def trained(epochs: int, place: Path) -> Training:
        own = params.model_copy(update={"epochs": epochs, "patience": epochs})
        return train_fold(Patients(parts.train, one), Patients(parts.validation, one), own, fold, place)

    probe = trained(2, folder / "probe")  # a finished training is read, not done again: so a kill changes no budget
    epochs = max(1, int(seconds / probe.history[-1].seconds))
    training = trained(epochs, folder / f"{epochs}_epochs")
    spent = sum(epoch.seconds for epoch in training.history)
    network = build(network_config(params), 0).eval()
    network.load_state_dict(training.best_weights)
    network = BothSides(network) if params.test_time_flip else network
    rows = [tested(study, network, name, params) for name in parts.test]
    write_text(folder / "counts.csv", pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
    size = {"parameters": count_parameters(network), "batch": params.batch_size, "patch": list(params.patch_shape)}
    size |= {"spacing_mm": [params.spacing_mm] * 3}
    return {"seconds": spent, "epochs": epochs, "steps": epochs * (params.steps_per_epoch or 0), **size}


def tested(study: Study, network: Any, name: str, params: Params) -> list[Any]:
    patient = load_patient(study.volumes, name, params)
    found = predict_probabilities([network], patient.inputs, params.patch_shape[2], params.patch_stride)
    reference = read_image(image(study, name, "reference"))
    return counted(name, reference, labels_on(found, patient.grid, Grid.of(reference), params), params)


def image(study: Study, patient: str, name: str) -> Path:
    return study.source.parent / "images" / f"{patient}_{name}.nii.gz"


def counted(patient: str, reference: sitk.Image, labels: sitk.Image, params: Params) -> list[Any]:
    """Voxels of the reference, the prediction and both, of every way alike: without components below `min_roi_ml`."""
    spacing = Grid.of(reference).spacing_mm
    masks = [
        remove_small_rois(to_array(one), spacing, params.min_roi_ml, params.connectivity) for one in (reference, labels)
    ]
    return [patient, *(int(number) for number in overlap(contingency(*masks), "all"))]


# --- nnU-Net

TRAINER = """
import json, sys, time, torch
from nnunetv2.run.run_training import get_trainer_from_args
ITERATIONS, SECONDS, FOLD = 10, float(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(2)

def trainer(epochs):
    made = get_trainer_from_args("1", "3d_fullres", FOLD, device=torch.device("cpu"))
    made.num_epochs, made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = epochs, ITERATIONS, 1
    made.save_every = 10 ** 6
    return made

probe = trainer(3)
ends = []
end = probe.on_epoch_end
probe.on_epoch_end = lambda: (end(), ends.append(time.perf_counter()))
began = time.perf_counter()
probe.run_training()
epoch = ends[-1] - ends[-2]
start = max(0.0, ends[0] - began - epoch)  # until data flow; it counts, so it leaves less for the epochs
epochs = max(1, int((SECONDS - start) / epoch))
began = time.perf_counter()
real = trainer(epochs)
real.run_training()
spent = time.perf_counter() - began
real.perform_actual_validation()
plan = real.configuration_manager
size = {"parameters": sum(one.numel() for one in real.network.parameters()), "batch": int(plan.batch_size)}
size |= {"patch": [int(side) for side in plan.patch_size[::-1]], "spacing_mm": [float(mm) for mm in plan.spacing[::-1]]}
cost = {"seconds": spent, "epochs": epochs, "steps": epochs * ITERATIONS, "output": real.output_folder}
print(json.dumps(cost | size))
"""


def nnunet_environment(work: Path) -> dict[str, str]:
    places = {f"nnUNet_{name}": str(work / "nnunet" / name) for name in ("raw", "preprocessed", "results")}
    return {**os.environ, **places, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}


def write_nnunet(study: Study, work: Path, params: Params) -> None:
    """The data set on the PETs' grids, its plan, and our folds: of each, train and validation together to train on."""
    raw, preprocessed = (work / "nnunet" / name / "Dataset001_STS" for name in ("raw", "preprocessed"))
    if (preprocessed / "splits_final.json").exists():
        return
    names = study.patients_of("cross_validation")
    for name in names:
        pet, ct, reference = (read_image(image(study, name, kind)) for kind in ("pet", "ct", "reference"))
        grid = Grid.of(pet)
        write_image(pet, raw / "imagesTr" / f"{name}_0000.nii.gz")
        write_image(resample(ct, grid, outside=-1000.0), raw / "imagesTr" / f"{name}_0001.nii.gz")
        write_image(resample_labels(reference, grid), raw / "labelsTr" / f"{name}.nii.gz")
    about = {"channel_names": {"0": "PET", "1": "CT"}, "labels": {"background": 0, "tumour": 1}}
    write_json(raw / "dataset.json", about | {"numTraining": len(names), "file_ending": ".nii.gz"})
    plan = [str(PEERS / "nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    checked(plan, nnunet_environment(work))
    folds = [fold_patients(study.cohort, fold, params) for fold in range(params.folds)]
    splits = [{"train": [*parts.train, *parts.validation], "val": list(parts.test)} for parts in folds]
    write_text(preprocessed / "splits_final.json", json.dumps(splits))


def nnunet(study: Study, work: Path, fold: int, seconds: float, folder: Path) -> dict[str, Any]:
    command = [str(PEERS / "python"), "-c", TRAINER, str(seconds), str(fold)]
    cost = json.loads(checked(command, nnunet_environment(work)).splitlines()[-1])
    rows = []
    for path in sorted(Path(cost.pop("output"), "validation").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        reference = read_image(image(study, name, "reference"))
        labels = resample_labels(read_image(path), Grid.of(reference))
        rows.append(counted(name, reference, labels, study.params))
    write_text(folder / "counts.csv", pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
    return cost


def checked(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


# --- side by side


def run(work: Path, data: Path, seconds: float, folds: Sequence[int]) -> Study:
    study = prepared(params_of(PAPER, work, seconds), data)
    write_nnunet(study, work, study.params)
    for fold in folds:
        for arm in ARMS:
            folder = place(work, arm, fold, seconds)
            if (folder / "cost.json").exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if arm == NNUNET:
                cost = nnunet(study, work, fold, seconds, folder)
            else:
                cost = ours(study, arm, params_of(arm, work, seconds), fold, seconds, folder)
            write_json(folder / "cost.json", cost)
            print(f"fold {fold}  {arm}: {cost['seconds']:.0f} s, {cost['steps']} steps", flush=True)
    return study


def place(work: Path, arm: str, fold: int, seconds: float) -> Path:
    return work / f"{seconds:.0f}_seconds" / arm.replace(" ", "_").replace(",", "").replace("'", "") / str(fold)


def lines_of(work: Path, seconds: float, folds: Sequence[int]) -> list[str]:
    lines = [
        "| way | patients | seconds a fold | steps a fold | mean DSC (95 % interval) | DSC of all voxels together | "
        "DSC of each patient |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm in ARMS:
        folders = [place(work, arm, fold, seconds) for fold in folds]
        table = pd.concat([read_table(folder / "counts.csv") for folder in folders]).sort_values("patient")
        costs = [json.loads((folder / "cost.json").read_text()) for folder in folders]
        each = dice(table[COLUMNS[1:]].to_numpy(float))
        low, high = interval(each)
        lines.append(
            f"| {arm} | {len(table)} | {np.mean([cost['seconds'] for cost in costs]):.0f} | "
            f"{np.mean([cost['steps'] for cost in costs]):.0f} | {each.mean():.2f} ({low:.2f} to {high:.2f}) | "
            f"{dice(table[COLUMNS[1:]].sum().to_numpy(float)):.2f} | {', '.join(f'{one:.2f}' for one in each)} |"
        )
    return [*lines, "", *(size_line(arm, place(work, arm, folds[0], seconds)) for arm in ARMS)]


def size_line(arm: str, folder: Path) -> str:
    cost = json.loads((folder / "cost.json").read_text())
    patch, spacing = " x ".join(map(str, cost["patch"])), " x ".join(f"{mm:.3g}" for mm in cost["spacing_mm"])
    batch = f"batches of {cost['batch']} patches of {patch} voxels of {spacing} mm"
    return f"- {arm}: {cost['parameters'] / 1e6:.2f} million parameters, {batch}."


def dice(counts: np.ndarray) -> Any:
    """Of counts (..., 3): voxels of the reference, of the prediction and of both."""
    return 2 * counts[..., 2] / np.maximum(1, counts[..., 0] + counts[..., 1])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Percentiles of the mean over patients drawn anew; of few patients it is too narrow."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="training of each way, all folds together")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=ROOT / "studies" / "sts-benchmark", help="kept; resumed from")
    parser.add_argument("--folds", type=int, nargs="*", default=None, help="some of the folds only: to try it")
    options = parser.parse_args(arguments)
    folds = options.folds or list(range(params_of(PAPER, options.work, 0).folds))
    seconds = options.minutes * 60 / 5
    study = run(options.work, options.data, seconds, folds)
    n, all_patients = len(folds), len(study.patients_of("cross_validation"))
    lines = [
        f"{all_patients} patients of the set's 51, {n} of 5 folds, {seconds:.0f} seconds of training for each way and "
        "fold on two cores. A patient is tested once, by a network that never saw him or her; DSC by mtvlib on the "
        "PET's grid.",
        "The folds are the same. Of the patients that are not tested, mtvlib keeps one aside to choose the epoch by; "
        "nnU-Net, which takes the last epoch, trains on all of them.",
        "",
        *lines_of(options.work, seconds, folds),
        "",
        f"{all_patients} patients and minutes of training prove nothing about accuracy, least of all which way is the "
        "better: the table shows that real images go all the way through each. The intervals are bootstraps over these "
        "patients and too narrow for so few.",
        "",
        "Data: Vallières et al., soft-tissue sarcoma, as in theibsi/data_sets, CC BY 3.0.",
    ]
    command = f"python -m benchmarks.sts --minutes {options.minutes:g}"
    write_table(
        "sts",
        "Real images: soft-tissue sarcoma",
        [*lines, "", f"Command: `{command}`."],
    )


if __name__ == "__main__":
    main()
