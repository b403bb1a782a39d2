"""Which patients the report shows slice by slice, and what is shown of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mtvlib import case_viewer, show, volume
from mtvlib.classes import TARGETS
from mtvlib.errors import InputError
from mtvlib.faces import without_face
from mtvlib.files import read_table, write_text
from mtvlib.lesions import remove_small_rois
from mtvlib.prepare import AIR_HU, Prepared, load_patient
from mtvlib.study import VIEWER_INDEX, Study
from mtvlib.tables import MISSING
from mtvlib.viewer import ViewCase, crop_box, cut_to, plate
from mtvlib.volume import Grid

_PLACE = {"main": "Cross-validation", "external": "External testing"}
GROUPS = ("delineated", "failed", "uncertain")
SUCCEEDED_DSC = 0.7  # "acceptable for practical use" (paper, Fig. 1)
PIXEL_MM = {"ct": 1.25, "pet": 2.5}  # finest pixels shown


@dataclass(frozen=True)
class Choice:
    """A patient to show, and why."""

    patient: str
    cohort: str  # main or external
    group: str  # delineated or failed, like the paper's Figs. 3 and 4, or uncertain
    why: str


# --- the choice


def choose_cases(
    patients: pd.DataFrame, lesions: pd.DataFrame, uncertainty: pd.DataFrame | None = None
) -> list[Choice]:
    """Up to ten patients of each cohort from patients.csv, lesions.csv and uncertainty.csv; nobody twice.

    By rule, so that nobody picks the pictures. Like the paper's Fig. 3: the best, the median, the most nodes and the
    faintest lesion found, among patients with a DSC of at least 0.7. Like its Fig. 4: the largest volume called the
    wrong class, spurious node, missed primary and missed node, and the lowest DSC. And the one whose lesions the
    network is least sure of, by the DSC that its own probabilities let expect. Ties go to the first name.
    """
    chosen: dict[str, Choice] = {}
    expected = pd.Series(dtype=float) if uncertainty is None else uncertainty.set_index("patient")["expected_dsc"]
    for cohort in ("main", "external"):
        own = patients[patients["cohort"] == cohort].set_index("patient").sort_index()
        rules = _rules(own, lesions[lesions["patient"].isin(own.index)], expected.reindex(own.index))
        for rule in rules:
            _choose(rule, cohort, chosen)
    return sorted(chosen.values(), key=lambda choice: (GROUPS.index(choice.group), choice.cohort != "main"))


@dataclass(frozen=True)
class _Rule:
    group: str
    why: Callable[[str], str]
    score: pd.Series  # the smallest is chosen; a patient without a value is no candidate
    extreme: bool = False  # nobody else will do: a patient who is shown already gets this reason as well


def _choose(rule: _Rule, cohort: str, chosen: dict[str, Choice]) -> None:
    """Add the rule's patient to those `chosen` already."""
    score = rule.score.dropna()
    left = score if rule.extreme else score[~score.index.isin(chosen)]
    if not len(left):
        return
    patient = str(left.index[int(left.argmin())])
    if patient in chosen:
        chosen[patient] = replace(chosen[patient], why=f"{chosen[patient].why}; {rule.why(patient)}")
    else:
        chosen[patient] = Choice(patient, cohort, rule.group, rule.why(patient))


def _rules(patients: pd.DataFrame, lesions: pd.DataFrame, expected_dsc: pd.Series) -> list[_Rule]:
    dsc, nodes = patients["dsc_all"], patients["n_nodes_man"]
    good = dsc >= SUCCEEDED_DSC
    wrong_ml = (patients["f_primary_voxels"] + patients["f_nodes_voxels"]) * patients["voxel_ml"]
    # A lesion of the wrong class is neither missed nor spurious, though no voxel of its class covers it.
    apart = lesions[(lesions["coverage"] == 0) & lesions["patient"].isin(wrong_ml.index[wrong_ml == 0])]
    spurious = _largest_ml(apart, "cnn", "nodes")
    no_primary, no_node = _largest_ml(apart, "man", "primary"), _largest_ml(apart, "man", "nodes")
    found = lesions[(lesions["source"] == "man") & (lesions["outcome"] == "TP")]
    faintest = found.groupby("patient")["suv_max"].min()
    median, lowest, sure = (dsc - dsc.median()).abs().round(9), dsc[~good], expected_dsc.astype(float)
    faint = faintest[good[faintest.index]]
    return [
        _Rule("failed", lambda p: f"{wrong_ml[p]:.1f} ml called the wrong class", -wrong_ml[wrong_ml > 0]),
        _Rule("failed", lambda p: f"spurious node of {spurious[p]:.1f} ml", -spurious),
        _Rule("failed", lambda p: f"missed primary of {no_primary[p]:.1f} ml", -no_primary),
        _Rule("failed", lambda p: f"missed node of {no_node[p]:.1f} ml", -no_node),
        _Rule("failed", lambda p: f"lowest DSC of all lesions ({dsc[p]:.2f})", lowest, extreme=True),
        _Rule("delineated", lambda p: f"best DSC of all lesions ({dsc[p]:.2f})", -dsc[good], extreme=True),
        _Rule("delineated", lambda p: f"DSC nearest to the median of all ({dsc.median():.2f})", median[good]),
        _Rule("delineated", lambda p: f"most nodes ({nodes[p]:.0f})", -nodes[good & (nodes > 1)]),
        _Rule("delineated", lambda p: f"faintest lesion found (SUVmax {faintest[p]:.1f})", faint),
        _Rule("uncertain", lambda p: f"most uncertain (expected DSC {expected_dsc[p]:.2f})", sure, extreme=True),
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


def choices_of(study: Study) -> list[Choice]:
    """`choose_cases` of a study's results; without uncertainty.csv nobody is the most uncertain."""
    path = study.results / "uncertainty.csv"
    return choose_cases(study.patients, study.lesions, read_table(path) if path.exists() else None)


def show_viewer(study: Study, choices: Sequence[Choice]) -> None:
    """Display the viewer of all chosen cases, whose files it writes into the study's folder `viewers`."""
    listed = write_viewers(study, choices)
    if not choices:
        show.text("No patient of this study was evaluated.")
        return
    first = load_case(study, choices[0].patient)
    picture = show.small_picture(plate(first), alt(choices[0]))
    show.show_html(
        case_viewer.viewer(listed, picture),
        "fig-viewer",
        "The chosen patients, slice by slice: CT, PET and their fusion in three planes, with manual (solid) and CNN "
        "contours (dashed). Where no script runs, and in print, the slices of the first patient.",
        alt(choices[0]),
        png=plate(first),
    )


def write_viewers(study: Study, choices: Sequence[Choice]) -> list[case_viewer.Listed]:
    """Write the viewer's file of each chosen case, and delete those of others; returns the picker's list."""
    listed = []
    for choice in choices:
        whole = load_case(study, choice.patient)
        shown = whole if study.params.show_faces or _nobody(study, choice.patient) else without_face(whole)
        box = crop_box(whole)
        lesions = study.lesions[study.lesions["patient"] == choice.patient].copy()
        for axis, side in zip("xy", box, strict=True):
            lesions[f"centroid_{axis}_voxel"] -= side.start
        path = study.viewers / f"{choice.patient}.js"
        write_text(path, case_viewer.case_script(cut_to(shown, box), lesions, face_removed=shown is not whole))
        file = f"{study.viewers.name}/{path.name}"
        listed.append(case_viewer.Listed(choice.patient, choice.why, file, _PLACE[choice.cohort]))
    for path in set(study.viewers.glob("*.js")) - {study.folder / case.file for case in listed}:
        path.unlink()
    table = pd.DataFrame([vars(case) for case in listed], columns=["patient", "why", "file"])
    write_text(study.viewers / VIEWER_INDEX, table.to_csv(index=False))
    return listed


def _nobody(study: Study, patient: str) -> bool:
    """Whether a patient is a phantom: no person is behind the face."""
    table = study.cohort.set_index("patient")
    return "synthetic" in table and bool(pd.to_numeric(table["synthetic"])[patient] == 1)


def show_cases(study: Study, choices: Sequence[Choice], group: str) -> None:
    """Display the plates of a group's patients, each under its heading, with a way to the viewer."""
    for number, choice in enumerate(choices):
        if choice.group == group:
            show.text(f"### {_PLACE[choice.cohort]}, patient {choice.patient}: {choice.why}")
            picture = plate(load_case(study, choice.patient))
            fragment = show.small_picture(picture, alt(choice)) + (
                f'\n<p><a href="#fig-viewer" data-case="{choice.patient}">Open in the viewer</a></p>'
            )
            show.show_html(fragment, f"fig-case-{number + 1}", caption(study, choice), alt(choice), png=picture)
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
