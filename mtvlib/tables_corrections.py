"""Tables and words of the chapter on corrections."""

from __future__ import annotations

import pandas as pd

from mtvlib import corrected
from mtvlib.cohort import SPLITS
from mtvlib.comparison import as_json
from mtvlib.corrected import CNN, CORRECTED, Corrected
from mtvlib.params import Params
from mtvlib.tables import PARTITION_NAMES, TARGET_NAMES, WITH_INTERVALS, count, estimate, number
from mtvlib.tables_comparison import MEASURE_NAMES
from mtvlib.typeset import Cell, Table

HOW = (
    "No patient of this study has been corrected. `make lab` opens JupyterLab; the notebook `review.ipynb` shows a "
    "patient, and there a region is deleted, its class changed or a missed lesion accepted by a click. `mtv run` then "
    "makes this chapter anew."
)
CHOSEN = (
    "Only corrected patients, and of each the last correction. Whoever corrects chooses the patients, and may know "
    "the manual delineation: this is no estimate for the others."
)
KIND_NAMES = {
    "deleted": "Regions deleted",
    "reclassified": "Regions that changed their class",
    "accepted": "Missed lesions accepted",
}


def overlap(found: Corrected, params: Params) -> Table:
    """DSC and volume error of the CNN and after correction, with the paired difference, by measure and target."""
    table = Table({"cnn": CNN, "corrected": CORRECTED, "difference": "Difference"})
    blocks = as_json(corrected.differences(found, params))
    for partition, name in PARTITION_NAMES.items():
        for row in blocks[partition]:
            measure, digits = MEASURE_NAMES[row["measure"]]
            cells = {"cnn": Cell(number(row["other_value"], digits)), "corrected": Cell(number(row["value"], digits))}
            cells["difference"] = estimate(row, "difference", digits)
            table.add(f"{name} (N = {row['n_persons']}): {measure}", TARGET_NAMES[row["target"]], cells)
    table.notes += [CHOSEN, f"{WITH_INTERVALS} Differences are {CORRECTED} − {CNN}, in the same patients."]
    return table


def lesions(found: Corrected, params: Params) -> Table:
    """Lesions found and confirmed before and after, with the paired difference in percentage points."""
    heads = {f"{key}_{name}": f"{title},\n{name} (%)" for key, title in _RATES.items() for name in (CNN, CORRECTED)}
    heads |= {f"{key}_difference": f"{title},\ndifference (points)" for key, title in _RATES.items()}
    order = [f"{key}_{end}" for key in _RATES for end in (CNN, CORRECTED, "difference")]
    table = Table({key: heads[key] for key in order})
    for cohort, partition in SPLITS.items():
        n = int((found.patients[CNN]["cohort"] == cohort).sum())
        if n:
            for target, block in corrected.detection(found, cohort, params).items():
                cells = {key: estimate(block, key, 1, 100) for key in order}
                table.add(f"{PARTITION_NAMES[partition]} (N = {n})", TARGET_NAMES[target], cells)
    table.notes += [CHOSEN, f"{WITH_INTERVALS} Both delineations of a patient are resampled together."]
    return table


_RATES = {"tpr": "Found", "ppv": "Confirmed"}


def work(found: Corrected) -> Table:
    """What was done, and how long it took."""
    done = corrected.work(found.log)
    table = Table({"value": "Number"})
    table.add("", "Patients corrected", {"value": Cell(str(done.patients))})
    table.add("", "Editors", {"value": Cell(str(done.editors))})
    table.add("", "Corrections saved", {"value": Cell(str(done.corrections))})
    for kind, name in KIND_NAMES.items():
        table.add("", name, {"value": Cell(str(done.counts[kind]))})
    table.add("", "Edits taken back", {"value": Cell(str(done.undone))})
    table.add("", "Corrections with the manual delineation shown", {"value": Cell(str(done.manual_shown))})
    table.add("", "Minutes of editing, all", {"value": Cell(number(done.seconds / 60, 1))})
    table.add("", "Seconds of editing, median patient", {"value": Cell(number(done.median_seconds, 0))})
    return table


def work_text(log: pd.DataFrame) -> str:
    """The work in words; what it saves depends on what a manual delineation takes at the hospital."""
    done = corrected.work(log)
    edits = sum(done.counts.values())
    each, seconds = number(edits / done.patients, 1), number(done.median_seconds, 0)
    return (
        f"{count(done.patients, 'patient')} corrected by {count(edits, 'edit')} ({each} a patient) in "
        f"{number(done.seconds / 60, 1)} minutes of editing, {seconds} seconds for the median patient. What that saves "
        "is the time of a manual delineation, which this study does not measure, less these seconds."
    )


def left_out(found: Corrected) -> str:
    """Which corrected patients the comparison lacks; '' for none."""
    reasons = {
        "no manual delineation to compare with": found.without_reference,
        "the network was trained anew since, and it is another delineation that was corrected": found.outdated,
    }
    parts = [f"{count(len(patients), 'patient')} ({why})" for why, patients in reasons.items() if patients]
    return f"Corrected, but not compared: {'; '.join(parts)}." if parts else ""


def nothing_to_compare(found: Corrected) -> bool:
    return not len(found.patients[CNN])
