"""Masks of several methods, evaluated alike and compared: `mtv evaluate` with more than one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import thresholds, volume
from mtvlib.comparison import as_json, comparison
from mtvlib.errors import InputError
from mtvlib.evaluation import (
    Case,
    Missing,
    Progress,
    add_to_summary,
    evaluable,
    evaluate,
    evaluate_cohort,
    label_files,
    reference_and_suv,
)
from mtvlib.files import read_table, write_json, write_text
from mtvlib.lesions import remove_small_rois
from mtvlib.params import Params

METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PREDICTIONS = "predictions"  # the name of what is given without one
Stages = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Seeding:
    """Where the thresholds begin: seeds of a folder, else the reference's lesions; search region, mm round them."""

    folder: Path | None = None
    margin_mm: float = thresholds.MARGIN_MM

    @property
    def source(self) -> str:
        return "the reference's lesions" if self.folder is None else "label maps of seeds"


def method_folders(predictions: Path | None, specs: Sequence[str], *, with_thresholds: bool) -> dict[str, Path]:
    """Name -> folder of label maps, from `name=DIR` specs; `predictions` comes first, as `predictions`.

    Raises `InputError` for a spec of another form, a name that is no safe name of a folder, and one that is taken.
    """
    folders = {} if predictions is None else {PREDICTIONS: predictions}
    taken = {PREDICTIONS, *(thresholds.METHODS if with_thresholds else ())}
    for spec in specs:
        name, sign, folder = spec.partition("=")
        if not sign or not folder or not METHOD_NAME.fullmatch(name):
            raise InputError(
                "a method must be name=DIR, its name of letters, digits, `_` and `-`",
                value=spec,
                remedy="write for instance --method nnunet=nnunet_masks/.",
            )
        if name.casefold() in {other.casefold() for other in (*taken, *folders)}:
            raise InputError("two methods have one name", value=name, remedy="choose another name.")
        folders[name] = Path(folder)
    return folders


def evaluate_methods(
    cohort: str | Path,
    folders: Mapping[str, Path],
    out: str | Path,
    params: Params,
    *,
    seeding: Seeding | None = None,
    resample: bool = False,
    missing: Missing = "error",
    progress: Stages = lambda stage, done, total: None,
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame | None]:
    """Evaluate each folder's label maps into `out`/<name>, with a `seeding` the threshold methods too, and compare all.

    `folders`: name -> folder, see `evaluation.evaluate_cohort`. A missing file is found before anything is computed.
    Returns the summaries by name, and the comparison, which is written to comparison.csv and comparison.json; of a
    single method there is none.
    """
    table, out = evaluable(cohort), Path(out)
    for folder in folders.values():
        label_files(table, folder, missing=missing)
    if seeding and seeding.folder:
        label_files(table, seeding.folder, "seed map")
    summaries = {
        name: evaluate_cohort(
            cohort, folder, out / name, params, resample=resample, missing=missing, progress=partial(progress, name)
        )
        for name, folder in folders.items()
    }
    if seeding:
        for name in thresholds.METHODS:
            summaries[name] = evaluate_threshold(name, table, out / name, params, seeding, partial(progress, name))
    return summaries, _compare(summaries, out, params) if len(summaries) > 1 else None


def _compare(summaries: Mapping[str, Mapping[str, Any]], out: Path, params: Params) -> pd.DataFrame:
    compared = comparison({name: read_table(out / name / "patients.csv") for name in summaries}, params)
    seeded = [name for name, summary in summaries.items() if summary.get("needs_seed")]
    write_text(out / "comparison.csv", compared.to_csv(index=False))
    write_json(out / "comparison.json", {"methods": list(summaries), "needs_seed": seeded} | as_json(compared))
    return compared


def evaluate_threshold(
    method: str, table: pd.DataFrame, out: Path, params: Params, seeding: Seeding, progress: Progress
) -> dict[str, Any]:
    """Evaluate a threshold method on the rows of a cohort; the summary says that it was given seeds, and which."""

    def cases() -> Iterator[Case]:
        for number, (_, row) in enumerate(table.iterrows(), start=1):
            yield _threshold_case(method, row, params, seeding)
            progress(number, len(table))

    about = {"needs_seed": True, "seeds": seeding.source, "margin_mm": seeding.margin_mm}
    return add_to_summary(out, evaluate(cases(), table, out, params), about)


def _threshold_case(method: str, row: pd.Series, params: Params, seeding: Seeding) -> Case:
    grid, reference, suv = reference_and_suv(row)
    seeds = remove_small_rois(reference, grid.spacing_mm, params.min_roi_ml, params.connectivity)
    if seeding.folder:
        seeds = _seed_map(row["patient"], seeding.folder / f"{row['patient']}.nii.gz", grid)
    labels = thresholds.delineate(
        method, suv, seeds, grid.spacing_mm, margin_mm=seeding.margin_mm, connectivity=params.connectivity
    )
    return Case(row["patient"], reference, labels, suv, grid.spacing_mm)


def _seed_map(patient: str, file: Path, grid: volume.Grid) -> np.ndarray:
    """Seeds on the reference's own grid: a point would not survive resampling."""
    labels = volume.read_labels(file, patient=patient)
    volume.check_same_grid(grid, labels, patient=patient, file=file)
    return volume.to_array(labels)
