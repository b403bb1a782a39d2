"""The paper's Table 3 under other definitions of a lesion: how much of it rests on choices that the paper leaves open.

The paper states neither which voxels are neighbours nor why 0.1 ml and half of a lesion are the limits. Each of the
three is varied alone, the two others as in the study, from the masks as they are before small ROIs are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mtvlib import pet
from mtvlib.classes import LESION_CLASSES, TARGETS
from mtvlib.intervals import Bootstrap
from mtvlib.lesions import COUNTS, Connectivity, bounding_box, components, detection_rates

CONNECTIVITIES: tuple[Connectivity, ...] = (6, 18, 26)
MIN_ROIS_ML = (0.0, 0.1, 0.5)
COVERAGES = (0.3, 0.5, 0.7)


class Choice(NamedTuple):
    """What makes a lesion (neighbours, smallest volume in ml) and what makes it found (covered share)."""

    connectivity: Connectivity
    min_roi_ml: float
    coverage: float


def choices(connectivity: Connectivity, min_roi_ml: float, coverage: float) -> list[Choice]:
    """The study's own choice, then those that differ from it in one respect."""
    own = Choice(connectivity, min_roi_ml, coverage)
    others = [own._replace(connectivity=value) for value in CONNECTIVITIES]
    others += [own._replace(min_roi_ml=value) for value in MIN_ROIS_ML]
    others += [own._replace(coverage=value) for value in COVERAGES]
    return list(dict.fromkeys([own, *others]))


def counts_by_choice(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], made: Sequence[Choice]
) -> np.ndarray:
    """A patient's lesions by outcome under each of k choices: (k, 2 classes, 4) int, in the order of `lesions.COUNTS`.

    Label maps (x, y, z) with all their ROIs. Only the voxels of a lesion are looked at, once a choice.
    """
    box = bounding_box(reference | prediction)
    masks = {"man": reference[box], "cnn": prediction[box]}
    lesion = (masks["man"] | masks["cnn"]) > 0
    labels = {source: mask[lesion] for source, mask in masks.items()}
    numbers = {
        connectivity: {source: components(mask, connectivity)[lesion] for source, mask in masks.items()}
        for connectivity in {choice.connectivity for choice in made}
    }
    found = [_counts(labels, numbers[choice.connectivity], pet.voxel_ml(spacing_mm), choice) for choice in made]
    return np.array(found, np.int64).reshape(len(made), len(LESION_CLASSES), len(COUNTS))


def _counts(
    labels: Mapping[str, np.ndarray], numbers: Mapping[str, np.ndarray], voxel_ml: float, choice: Choice
) -> list[list[int]]:
    """Counts by class and outcome from the class and the component of each of n voxels in both masks."""
    # The same limit as in lesions.remove_small_rois.
    limit = choice.min_roi_ml * (1 - 1e-9) / voxel_ml
    sizes = {source: np.bincount(numbers[source], minlength=1) for source in numbers}
    kept = {source: np.where(sizes[source][numbers[source]] >= limit, labels[source], 0) for source in numbers}
    both = kept["man"] == kept["cnn"]
    outcomes = {source: _outcomes(kept[source], numbers[source], sizes[source], both) for source in numbers}
    rows = []
    for label in LESION_CLASSES.values():
        man, cnn = (share[of_class == label] for share, of_class in (outcomes["man"], outcomes["cnn"]))
        tp_man, tp_cnn = int((man >= choice.coverage).sum()), int((cnn > choice.coverage).sum())
        rows.append([tp_man, tp_cnn, len(man) - tp_man, len(cnn) - tp_cnn])
    return rows


def _outcomes(
    kept: np.ndarray, numbers: np.ndarray, sizes: np.ndarray, both: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and class of each component that is kept."""
    inside = kept > 0
    owners, first = np.unique(numbers[inside], return_index=True)
    covered = np.bincount(numbers[inside & both], minlength=len(sizes))
    return covered[owners] / sizes[owners], kept[inside][first]


# --- the table and its summary

COLUMNS = ("patient", "target", *Choice._fields, *COUNTS)


def choice_table(patients: Sequence[str], counts: Iterable[np.ndarray], made: Sequence[Choice]) -> pd.DataFrame:
    """lesion_choices.csv: a row for each patient, class and choice, from the patients' counts (k, 2, 4)."""
    stacked = np.array(list(counts), np.int64).reshape(-1, len(COUNTS))
    rows = pd.MultiIndex.from_product([patients, range(len(made)), LESION_CLASSES])
    table = pd.DataFrame(stacked, columns=list(COUNTS))
    table["patient"], table["target"] = rows.get_level_values(0), rows.get_level_values(2)
    for field, values in zip(Choice._fields, zip(*made, strict=True), strict=True):
        table[field] = np.asarray(values)[rows.get_level_values(1)]
    return table[list(COLUMNS)]


def summarise_choices(patients: pd.Series, table: pd.DataFrame, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """One mapping a choice, the study's own first: the choice, and Table 3's counts and rates of each target."""
    own = table[table["patient"].isin(patients)]
    made = [Choice(*row) for row in own[list(Choice._fields)].drop_duplicates().itertuples(index=False)]
    counts = _with_all(_patients_counts(patients, own, made))
    names = [f"{number}/{target}" for number in range(len(made)) for target in TARGETS]
    of_names = counts.reshape(len(counts), len(names), len(COUNTS))
    estimates = bootstrap.of_sums(
        of_names.reshape(len(counts), -1),
        lambda sums: _rates(sums.reshape(*sums.shape[:-1], len(names), len(COUNTS)), names),
        _reasons(names),
        _shares(of_names, names),
    )
    totals = dict(zip(names, of_names.sum(axis=0).tolist(), strict=True))
    blocks: list[dict[str, Any]] = [choice._asdict() for choice in made]
    for name in names:
        number, target = name.split("/")
        blocks[int(number)][target] = (
            dict(zip(COUNTS, totals[name], strict=True))
            | estimates[f"{name}/tpr"].entries("tpr")
            | estimates[f"{name}/ppv"].entries("ppv")
        )
    return blocks


def _patients_counts(patients: pd.Series, table: pd.DataFrame, made: Sequence[Choice]) -> np.ndarray:
    """Counts of n patients under k choices by class, (n, k, 2, 4), from rows in any order."""
    keys = [(patient, target, *choice) for patient in patients for choice in made for target in LESION_CLASSES]
    rows = table.set_index(["patient", "target", *Choice._fields]).loc[keys, list(COUNTS)]
    return rows.to_numpy().reshape(len(patients), len(made), len(LESION_CLASSES), len(COUNTS))


def _with_all(counts: np.ndarray) -> np.ndarray:
    """(n, k, 2, 4) to (n, k, 3, 4): as in the paper, "Primary + metastases" is the sum of both classes."""
    return np.concatenate([counts, counts.sum(axis=2, keepdims=True)], axis=2)


def _rates(sums: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """TPR and PPV of each name from sums (..., names, 4)."""
    rates = detection_rates(sums)
    return {f"{name}/{key}": values[..., place] for key, values in rates.items() for place, name in enumerate(names)}


def _reasons(names: Sequence[str]) -> dict[str, str]:
    sides = {"tpr": "no lesion in the reference", "ppv": "no lesion in the prediction"}
    return {f"{name}/{key}": reason for name in names for key, reason in sides.items()}


def _shares(counts: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Patients with a lesion in the reference (tpr) and in the prediction (ppv), from counts (n, names, 4)."""
    tp_man, tp_cnn, fn, fp = np.moveaxis(counts, -1, 0)
    with_lesion = {"tpr": (tp_man + fn > 0).sum(axis=0), "ppv": (tp_cnn + fp > 0).sum(axis=0)}
    return {f"{name}/{key}": int(n[place]) for key, n in with_lesion.items() for place, name in enumerate(names)}
