"""A small study on disk for the reading room's tests: images of three patients, delineated and evaluated or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mtvlib import evaluation, params, prepare, volume
from mtvlib.evaluation import Case
from mtvlib.params import Params
from mtvlib.study import Study
from tests.conftest import tiny_row, write_table

PATIENTS = ("a", "b", "c")
CHOSEN = {
    "spacing_mm": 4.0,
    "crop_shape": [16, 16],
    "patch_shape": [16, 16, 16],
    "pet_normalization": "window",
    "folds": 2,
    "epochs": 4,
}


def prepared_study(root: Path, *, ct: bool = True, nodes: bool = True, name: str = "s") -> Study:
    """`root`/studies/`name`, as it is after the step 1_cohort: primary in voxel (5, 5, 5), node in (10, 10, 8)."""
    channels = ["pet", "ct"] if ct else ["pet"]
    chosen = Params(name=name, studies=str(root / "studies"), cohort="cohort/cohort.csv", channels=channels, **CHOSEN)
    study = Study(chosen)
    study.begin()
    params.write(chosen.model_copy(update={"studies": "studies"}), study.folder / "params.yml")
    rows = [tiny_row(root / "cohort", one, seed=number, synthetic=1) for number, one in enumerate(PATIENTS)]
    write_table(root / "cohort" / "cohort.csv", rows)
    for row in rows:
        paths = {one: str(root / "cohort" / row[one]) for one in ("pet", "ct", "reference")}
        if not nodes:
            _without_nodes(paths["reference"])
        prepare.prepare_patient(row | paths | ({} if ct else {"ct": ""}), chosen, study.volumes)
    (study.volumes / "prepared.csv").write_text("patient\n")
    split = {"split": "cross_validation", "fold": 0}
    study.write_cohort(pd.DataFrame([row | split for row in rows]))
    return Study.open(study.folder)


def _without_nodes(path: str) -> None:
    labels = volume.read_labels(path)
    array = volume.to_array(labels)
    volume.write_image(volume.to_image(np.where(array == 2, 0, array).astype(np.uint8), volume.Grid.of(labels)), path)


def delineated(study: Study) -> Study:
    """With the CNN's maps: the primary as it is; the node is missed."""
    for patient in PATIENTS:
        prepared = prepare.load_patient(study.volumes, patient, study.params)
        labels = np.where(prepared.reference == 1, 1, 0).astype(np.uint8)
        volume.write_image(volume.to_image(labels, prepared.grid), study.prediction_path(patient))
    return study


def evaluated(study: Study) -> Study:
    """With results and uncertainty."""

    def case(patient: str) -> Case:
        prepared = prepare.load_patient(study.volumes, patient, study.params)
        labels = volume.to_array(volume.read_labels(study.prediction_path(patient)))
        return Case(patient, prepared.reference, labels, prepared.suv, prepared.grid.spacing_mm)

    evaluation.evaluate(map(case, PATIENTS), study.cohort, study.results, study.params)
    unsure = pd.DataFrame({"patient": PATIENTS, "expected_dsc": [0.9, 0.3, 0.6]})
    unsure.to_csv(study.results / "uncertainty.csv", index=False)
    return Study.open(study.folder)


def trained(study: Study, fold: int, epochs: int, *, done: bool = False) -> None:
    """The history of a fold whose soft DSC grows by 0.1 an epoch."""
    numbers = np.arange(1, epochs + 1)
    history = {"epoch": numbers, "train_loss": 1.5 / numbers, "validation_soft_dsc": 0.1 * numbers, "seconds": 30.0}
    study.fold_folder(fold).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(history).to_csv(study.fold_folder(fold) / "history.csv", index=False)
    if done:
        (study.fold_folder(fold) / "model.json").write_text("{}")


def texts(widget: object) -> str:
    """All that a widget and those in it say."""
    own = getattr(widget, "value", "")
    return (own if isinstance(own, str) else "") + "\n".join(map(texts, getattr(widget, "children", ())))
