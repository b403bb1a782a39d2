"""Which patients the report shows slice by slice, and what is shown of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mtvlib import show, volume
from mtvlib.classes import TARGETS
from mtvlib.errors import InputError
from mtvlib.lesions import remove_small_rois
from mtvlib.prepare import AIR_HU, Prepared, load_patient
from mtvlib.study import Study
from mtvlib.tables import MISSING
from mtvlib.viewer import ViewCase, plate, slice_viewer
from mtvlib.volume import Grid

_PLACE = {"main": "Cross-validation", "external": "External testing"}
SUCCEEDED_DSC = 0.7  # "acceptable for practical use" (paper, Fig. 1)
PIXEL_MM = {"ct": 1.25, "pet": 2.5}  # finest pixels shown


@dataclass(frozen=True)
class Choice:
    """A patient to show, and why."""

    patient: str
    cohort: str  # main or external
    group: str  # delineated or failed, like the paper's Figs. 3 and 4
    why: str


# --- the choice


def choose_cases(patients: pd.DataFrame, lesions: pd.DataFrame) -> list[Choice]:
    """Up to eight patients of each cohort from patients.csv and lesions.csv; nobody twice, fewer where there are fewer.

    By rule, so that nobody picks the pictures. Like the paper's Fig. 3: the best, the median, the most nodes and the
    faintest lesion found, among patients with a DSC of at least 0.7. Like its Fig. 4: the largest volume called the
    wrong class, spurious node, missed primary and missed node. Ties go to the first name.
    """
    chosen: list[Choice] = []
    for cohort in ("main", "external"):
        own = patients[patients["cohort"] == cohort].set_index("patient").sort_index()
        taken: set[str] = set()
        for group, why, score in _rules(own, lesions[lesions["patient"].isin(own.index)]):
            left = score[~score.index.isin(taken)].dropna()
            if len(left):
                patient = str(left.index[int(left.argmin())])
                taken.add(patient)
                chosen.append(Choice(patient, cohort, group, why(patient)))
    return sorted(chosen, key=lambda choice: (choice.group, choice.cohort != "main"))


def _rules(patients: pd.DataFrame, lesions: pd.DataFrame) -> list[tuple[str, Callable[[str], str], pd.Series]]:
    """(group, words, what the rule makes smallest, by patient); a patient without a value is no candidate."""
    dsc, nodes = patients["dsc_all"], patients["n_nodes_man"]
    good = dsc >= SUCCEEDED_DSC
    wrong_ml = (patients["f_primary_voxels"] + patients["f_nodes_voxels"]) * patients["voxel_ml"]
    # A lesion of the wrong class is neither missed nor spurious, though no voxel of its class covers it.
    apart = lesions[(lesions["coverage"] == 0) & lesions["patient"].isin(wrong_ml.index[wrong_ml == 0])]
    spurious = _largest_ml(apart, "cnn", "nodes")
    no_primary, no_node = _largest_ml(apart, "man", "primary"), _largest_ml(apart, "man", "nodes")
    found = lesions[(lesions["source"] == "man") & (lesions["outcome"] == "TP")]
    faintest = found.groupby("patient")["suv_max"].min()
    return [
        ("failed", lambda p: f"{wrong_ml[p]:.1f} ml called the wrong class", -wrong_ml[wrong_ml > 0]),
        ("failed", lambda p: f"spurious node of {spurious[p]:.1f} ml", -spurious),
        ("failed", lambda p: f"missed primary of {no_primary[p]:.1f} ml", -no_primary),
        ("failed", lambda p: f"missed node of {no_node[p]:.1f} ml", -no_node),
        ("delineated", lambda p: "best DSC of all lesions", -dsc[good]),
        (
            "delineated",
            lambda p: f"DSC nearest to the median of all ({dsc.median():.2f})",
            (dsc - dsc.median()).abs().round(9)[good],
        ),
        ("delineated", lambda p: f"most nodes ({nodes[p]:.0f})", -nodes[good & (nodes > 1)]),
        ("delineated", lambda p: f"faintest lesion found (SUVmax {faintest[p]:.1f})", faintest[good[faintest.index]]),
    ]


def _largest_ml(lesions: pd.DataFrame, source: str, target: str) -> pd.Series:
    return lesions[(lesions["source"] == source) & (lesions["target"] == target)].groupby("patient")["volume_ml"].max()


# --- what is shown


def load_case(study: Study, patient: str) -> ViewCase:
    """A patient's masks on the study's grid with images of finer pixels, from the originals where these still lie."""
    prepared = load_patient(study.volumes, patient, study.params)
    if prepared.reference is None:
        raise InputError("has no reference", patient=patient, remedy="show patients that were evaluated.")
    prediction = volume.read_labels(study.prediction_path(patient), patient=patient)
    return ViewCase(
        patient,
        pet=_original(study, patient, "pet", prepared.grid, outside=0.0, otherwise=prepared.suv),
        ct=_ct(study, prepared),
        reference=_counted(study, prepared.reference, prepared.grid),
        prediction=_counted(study, volume.to_array(prediction), prepared.grid),
        spacing_mm=prepared.grid.spacing_mm,
    )


def _counted(study: Study, labels: np.ndarray, grid: Grid) -> np.ndarray:
    return remove_small_rois(labels, grid.spacing_mm, study.params.min_roi_ml, study.params.connectivity)


def _ct(study: Study, prepared: Prepared) -> np.ndarray | None:
    if "ct" not in study.params.channels:
        return None
    low, high = study.params.ct_window_hu
    windowed = low + prepared.inputs[study.params.channels.index("ct")] * (high - low)
    return _original(study, prepared.patient, "ct", prepared.grid, outside=AIR_HU, otherwise=windowed)


def _original(
    study: Study, patient: str, name: str, grid: Grid, *, outside: float, otherwise: np.ndarray
) -> np.ndarray:
    file = study.source.parent / str(study.cohort.set_index("patient").loc[patient, name])
    if not file.is_file():
        return otherwise
    image = volume.read_scan(file, patient=patient)
    return volume.to_array(volume.resample(image, finer(grid, PIXEL_MM[name]), outside=outside))


def finer(grid: Grid, pixel_mm: float) -> Grid:
    """The same field with pixels of at most `pixel_mm` where that needs whole fractions only; slices stay."""
    factor = max(1, math.floor(grid.spacing_mm[0] / pixel_mm + 1e-6))
    dx, dy, dz = grid.spacing_mm
    corner = (1 / factor - 1) / 2  # centre of the first new voxel, in old voxels
    origin = grid.to_mm(np.array([[corner, corner, 0.0]]))[0]
    nx, ny, nz = grid.size
    return replace(
        grid,
        size=(nx * factor, ny * factor, nz),
        spacing_mm=(dx / factor, dy / factor, dz),
        origin_mm=tuple(origin.tolist()),
    )


def show_cases(study: Study, choices: Sequence[Choice], group: str) -> None:
    """Display the patients of a group, each under its heading: a viewer for a page, with its plate for print."""
    for number, choice in enumerate(choices):
        if choice.group == group:
            case = load_case(study, choice.patient)
            show.text(f"### {_PLACE[choice.cohort]}, patient {choice.patient}: {choice.why}")
            show.show_html(
                slice_viewer(case), f"fig-case-{number + 1}", caption(study, choice), alt(choice), png=plate(case)
            )
    if all(choice.group != group for choice in choices):
        show.text("No patient of this study is such a case.")


def caption(study: Study, choice: Choice) -> str:
    row = study.patients.set_index("patient").loc[choice.patient]
    volume = {name: "ttb" if name == "all" else f"mtv_{name}" for name in TARGETS}
    absent = {name: row[f"{volume[name]}_man_ml"] == row[f"{volume[name]}_cnn_ml"] == 0 for name in TARGETS}
    dsc = ", ".join(f"{name} {MISSING if absent[name] else format(row[f'dsc_{name}'], '.2f')}" for name in TARGETS)
    return (
        f"Patient {choice.patient} ({_PLACE[choice.cohort].lower()}): {choice.why}. CT and PET, manual (solid) and CNN "
        f"contours (dashed). DSC of the whole patient: {dsc}. The patient's left is on the right."
    )


def alt(choice: Choice) -> str:
    return f"Transaxial CT and PET slices of patient {choice.patient} with manual and CNN contours: {choice.why}."
