"""The study's tables beside the paper's values: numbers as words, and great_tables built from summary.json.

Each row of the study is followed by the paper's, named `Nikulin et al. 2023`. Under an estimate stands its 95 %
interval. What could not be estimated is an en dash with a footnote that gives the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any

import pandas as pd

from mtvlib.cohort import Finding, fold_sizes
from mtvlib.params import Params
from mtvlib.typeset import Cell, Table

MISSING = "–"
JOIN = "\u00a0"  # a space at which no line breaks
PAPER = "Nikulin et al. 2023"
NOT_COMPARABLE = (
    f"{PAPER}: other patients (CC BY 4.0). "
    "A study of synthetic patients or of another disease cannot be compared with them."
)
ONE_CLASS = (
    "all voxels in both delineations are of one class in the reference, so telling the classes apart was not tested"
)
WITH_INTERVALS = "Below an estimate: its 95 % interval."
TARGET_NAMES = {"primary": "Primary tumour", "nodes": "Lymph node metastases", "all": "Primary + metastases"}
PARTITION_NAMES = {"cross_validation": "Cross-validation", "external_testing": "External testing"}
SOURCE_NAMES = {"man": "Manual", "cnn": "CNN"}


Block = Mapping[str, Any]


@cache
def paper_results() -> dict[str, Any]:
    """The values of Nikulin et al. 2023, with the keys of summary.json."""
    return json.loads((resources.files("mtvlib") / "data" / "paper_results.json").read_text(encoding="utf-8"))


# --- numbers as words


def number(value: float | None, digits: int) -> str:
    """A value with fixed decimals and a true minus sign; an en dash for None."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def thousands(n: int) -> str:
    """`801 384`, with narrow spaces at which no line breaks."""
    return f"{n:,}".replace(",", "\u202f")


def interval(ends: Sequence[float] | None, digits: int, factor: float = 1.0) -> str:
    """`0.86–0.95`, or `−2.1 to 0.3` with a negative end; an en dash for None. `factor` 100 gives per cent."""
    if ends is None:
        return MISSING
    low, high = (number(end * factor, digits) for end in ends)
    return f"{low}{JOIN}to{JOIN}{high}" if "−" in low + high else f"{low}–{high}"


def with_interval(block: Block, key: str, digits: int, factor: float = 1.0) -> str:
    """`0.95 (0.93–0.96)`: an estimate of summary.json and its 95 % interval, where there is one."""
    value, ends = block.get(key), block.get(f"{key}_ci95")
    shown = number(None if value is None else value * factor, digits)
    return shown + (f" ({interval(ends, digits, factor)})" if ends else "")


def count(n: int | None, noun: str) -> str:
    """`1 outlier`, `2 outliers`; an en dash for None."""
    return f"{MISSING if n is None else n} {noun}{'' if n == 1 else 's'}"


def p_relation(p: float | str | None) -> str:
    """`= 0.011`, `< 0.001`: a p value with the sign that belongs before it; an en dash for None."""
    if p is None:
        return MISSING
    if isinstance(p, str):  # the paper's own words
        p = p.replace(" ", "")
        return f"<{JOIN}{p[1:]}" if p.startswith("<") else f"={JOIN}{p}"
    digits = 3 if p < 0.1 else 2
    return f"<{JOIN}0.001" if p < 0.001 else f"={JOIN}{p:.{digits}f}"


def share(n: int | None, total: int) -> str:
    """`48 (6.9 %)`; an en dash for None."""
    return MISSING if n is None else f"{n}{JOIN}({100 * n / total:.1f}{JOIN}%)" if total else str(n)


# --- cells and rows


def estimate(block: Block, key: str, digits: int, factor: float = 1.0) -> Cell:
    """The cell of an estimate of summary.json or of the paper; an explicit null becomes its reason."""
    value = block.get(key)
    if value is None:
        return Cell(MISSING, reason=_reason(block, key)) if key in block else Cell("")
    ends = block.get(f"{key}_ci95")
    return Cell(number(value * factor, digits), interval(ends, digits, factor) if ends else "")


def _reason(block: Block, key: str) -> str:
    return block.get(f"{key}_reason") or block.get("reason") or "no reason was recorded"


def _partitions(summary: Block, table: Table) -> Iterable[tuple[str, Block, Block]]:
    """Heading, block and paper's block of each partition that was evaluated; the others leave a note."""
    for partition, name in PARTITION_NAMES.items():
        block, paper = summary.get(partition) or {}, paper_results()[partition]
        if block.get("n_patients"):
            yield f"{name} (N = {block['n_patients']}; {PAPER}: N = {paper['n_patients']})", block, paper
        else:
            table.notes.append(f"{name}: not estimable: {block.get('reason', 'it was not evaluated')}.")


# --- the paper's tables


def delineation(summary: Block) -> Table:
    """Table 1 of the paper: DSC of the cohort and of the patients, by target."""
    table = Table(
        {
            "cohort_dsc": "Cohort DSC",
            "mean_dsc": "Mean DSC",
            "median_dsc": "Median DSC",
            "iqr": "50 % interval",
            "n_failed": "Failed\n(DSC = 0)",
        }
    )
    both_empty: list[str] = []
    for group, block, paper in _partitions(summary, table):
        for target, name in TARGET_NAMES.items():
            own, theirs = block["delineation"][target], paper["delineation"][target]
            table.add(group, name, _delineation_cells(own, block["n_patients"]))
            table.add(group, PAPER, _delineation_cells(theirs, paper["n_patients"]), cited=True)
            if own.get("n_both_empty") and own.get("mean_dsc") is not None:
                both_empty.append(_both_empty(group, name, own))
    table.notes += [WITH_INTERVALS, *both_empty, NOT_COMPARABLE]
    return table


def _delineation_cells(block: Block, n: int) -> dict[str, Cell]:
    cells = {key: estimate(block, key, 3) for key in ("cohort_dsc", "mean_dsc", "median_dsc")}
    reason = "" if block.get("iqr") else _reason(block, "iqr")
    cells["iqr"] = Cell(interval(block.get("iqr"), 3), reason=reason)
    failed = estimate(block, "n_failed", 0)
    return cells | {"n_failed": Cell(share(block["n_failed"], n), failed.below) if not failed.reason else failed}


def _both_empty(group: str, name: str, block: Block) -> str:
    patients, mean = count(block["n_both_empty"], "patient"), number(block["mean_dsc_without_both_empty"], 3)
    where = f"{group.split(' (')[0]}, {name.lower()}"
    return f"{where}: {patients} with the target in neither mask scored as DSC 1; mean of the others {mean}."


def ttb(summary: Block) -> Table:
    """Agreement of the total tumour burden (paper, Fig. 2 and Results), without the outliers and with all patients."""
    table = Table(
        {
            "n": "Patients",
            "r2": "R²",
            "mean_absolute_difference_ml": "Mean absolute\ndifference (ml)",
            "mean_difference_ml": "Mean\ndifference (ml)",
            "limits": "Limits of\nagreement (ml)",
            "volume_bias": "Volume\nbias (%)",
        }
    )
    for group, block, paper in _partitions(summary, table):
        own, n = block["ttb"], block["n_patients"]
        table.add(group, "Without outliers", {"n": Cell(str(n - own["n_outliers"]))} | _ttb_cells(own))
        table.add(group, PAPER, _ttb_cells(paper["ttb"]), cited=True)
        table.add(group, "All patients", {"n": Cell(str(n))} | _ttb_cells(own["all_patients"]))
    table.notes += [WITH_INTERVALS + " Differences are CNN − manual.", NOT_COMPARABLE]
    return table


def _ttb_cells(block: Block) -> dict[str, Cell]:
    cells = {
        "r2": estimate(block, "r2", 2),
        "mean_absolute_difference_ml": estimate(block, "mean_absolute_difference_ml", 2),
        "mean_difference_ml": estimate(block, "mean_difference_ml", 2),
        "volume_bias": estimate(block, "volume_bias", 1, 100),
    }
    if "limits_of_agreement_ml" not in block:
        return cells
    limits = block["limits_of_agreement_ml"]
    return cells | {"limits": Cell(interval(limits, 1), reason="" if limits else _reason(block, "limits_low"))}


def classification(summary: Block) -> Table:
    """Table 2 of the paper: which class the voxels in both delineations were given."""
    heads = {
        "t_primary": "T",
        "f_primary": "F",
        "t_nodes": "T",
        "f_nodes": "F",
        "tpr_primary": "TPR",
        "tpr_nodes": "TPR",
    }
    table = Table(
        {"n_voxels": "Voxels"}
        | {key: head + ("_{PT} (%)" if "primary" in key else "_{LN} (%)") for key, head in heads.items()}
        | {"accuracy": "ACC (%)", "scans": "Scans without\nerror"}
    )
    for group, block, paper in _partitions(summary, table):
        for name, part in (("This study", block), (PAPER, paper)):
            own, n = part["classification"], part["n_patients"]
            cells = {key: estimate(own, key, 1, 100) for key in (*heads, "accuracy")}
            scans = estimate(own, "scans_without_error", 0)
            cells |= {
                "n_voxels": Cell(thousands(own["n_voxels"])),
                "scans": Cell(share(own["scans_without_error"], n), scans.below),
            }
            table.add(group, name, cells, cited=part is paper)
        if one_class_only(block["classification"]):
            table.notes.append(f"{group.split(' (')[0]}: {ONE_CLASS}.")
    meaning = (
        "PT primary tumour, LN lymph node metastases; T rightly, F wrongly given that class; TPR true positive rate, "
        "ACC accuracy."
    )
    table.notes += [meaning, WITH_INTERVALS, NOT_COMPARABLE]
    return table


def one_class_only(classification: Block) -> bool:
    """Whether the accuracy of a partition's classification says nothing, since there was one class alone to find."""
    return (classification["tpr_primary"] is None) != (classification["tpr_nodes"] is None)


def lesions(summary: Block) -> Table:
    """Table 3 of the paper: lesions found and missed, by target."""
    counts = {"tp_man": "TP_{man}", "tp_cnn": "TP_{cnn}", "fn": "FN", "fp": "FP"}
    table = Table(counts | {"tpr": "TPR_{str} (%)", "ppv": "PPV_{str} (%)"})
    for group, block, paper in _partitions(summary, table):
        for target, name in TARGET_NAMES.items():
            for row, part in ((name, block), (PAPER, paper)):
                own = part["lesions"][target]
                cells = {key: estimate(own, key, 0) for key in counts}
                rates = {key: estimate(own, key, 1, 100) for key in ("tpr", "ppv")}
                table.add(group, row, cells | rates, cited=part is paper)
    table.notes += [WITH_INTERVALS, NOT_COMPARABLE]
    return table


def survival(summary: Block) -> Table:
    """Cox regression and log-rank test of the risk groups by manual and by CNN TTB (paper, Survival analysis)."""
    table = Table(
        {
            "n": "Patients",
            "events": "Deaths",
            "high": "High risk\n(deaths)",
            "hr": "Hazard ratio",
            "p": "p",
            "logrank_p": "Log-rank p",
            "concordance": "Concordance",
            "discordant": "Other group\nby CNN (%)",
        }
    )
    for group, block, paper in _partitions(summary, table):
        for source, name in SOURCE_NAMES.items():
            table.add(group, f"{name} TTB", _survival_cells(block["survival"], source))
            table.add(group, PAPER, _survival_cells(paper["survival"], source), cited=True)
    table.notes += [WITH_INTERVALS, NOT_COMPARABLE]
    return table


def _survival_cells(block: Block, source: str) -> dict[str, Cell]:
    own = {"reason": block.get("reason"), **block[source]}
    cells = {"n": Cell(str(block["n"])), "events": estimate(block, "events", 0)}
    cells |= {"hr": estimate(own, "hr", 1), "concordance": estimate(own, "concordance", 2)}
    if own.get("n_high") is not None:
        cells["high"] = Cell(f"{own['n_high']}{JOIN}({own['events_high']})")
    for key, reason in (("p", "hr"), ("logrank_p", "logrank")):
        if key in own:
            why = "" if own[key] is not None else _reason(own, reason)
            cells[key] = Cell(p_relation(own[key]).removeprefix(f"={JOIN}"), reason=why)
    return cells | ({"discordant": estimate(block, "discordant", 1, 100)} if source == "cnn" else {})


# --- patients and folds


def findings(found: Sequence[Finding]) -> Table:
    """What the checks of the cohort found, each with its remedy; one row that says so if they found nothing."""
    heads = {"severity": "Severity", "row": "Row", "file": "File", "message": "Finding", "remedy": "Remedy"}
    table = Table(heads, align="left")
    for finding in found:
        value = "" if finding.value is None else f" (found: {finding.value})"
        cells = {
            "severity": Cell(finding.severity),
            "row": Cell("" if finding.row is None else str(finding.row)),
            "file": Cell(PurePath(finding.file).name if finding.file else ""),  # no folder of this machine in a report
            "message": Cell(finding.message + value),
            "remedy": Cell(finding.remedy),
        }
        table.add("", finding.patient or "cohort", cells)
    if not found:
        table.add("", "all patients", {"message": Cell("nothing to report")})
    return table


def folds(cohort: pd.DataFrame, params: Params) -> Table:
    """How many patients train, validate and test in each fold, and which site it tests if it tests a whole one."""
    table = Table({"train": "Training", "validation": "Validation", "test": "Test"})
    for fold, sizes in enumerate(fold_sizes(cohort, params)):
        site = cohort.loc[cohort["fold"] == fold, "site"].iloc[0] if params.split_by == "site" else ""
        name = f"Fold {fold}, {site}" if site else f"Fold {fold}"
        table.add("", name, {part: Cell(str(sizes[part])) for part in table.columns})
    return table


def prepared(volumes: pd.DataFrame) -> Table:
    """What `prepare.prepare_cohort` made: patients, slices, references and their volumes, each warning by patient."""
    slices, with_reference = volumes["slices"], int((volumes["reference"].fillna("") != "").sum())
    table = Table({"value": "Prepared"}, align="left")
    table.add("", "Patients", {"value": Cell(str(len(volumes)))})
    table.add("", "with a reference", {"value": Cell(str(with_reference))})
    table.add("", "Slices, median (range)", {"value": Cell(f"{slices.median():g} ({slices.min()}–{slices.max()})")})
    change = 100 * volumes["volume_change"].dropna()
    if len(change):
        ends = f"{number(change.min(), 1)} to {number(change.max(), 1)}"
        name = "Reference volume, change by resampling, %, median (range)"
        table.add("", name, {"value": Cell(f"{number(change.median(), 1)} ({ends})")})
    for row in volumes[volumes["warnings"].fillna("") != ""].itertuples():
        table.add("", f"Warning, patient {row.patient}", {"value": Cell(row.warnings)})
    return table


# --- the end of a run in a terminal


def table1_text(summary: Block, *, synthetic: bool = False) -> str:
    """Table 1 as plain text: the study's values beside the paper's; `synthetic` adds that they cannot be compared."""
    width, keys = (
        25,
        {"cohort_dsc": "cohort DSC", "mean_dsc": "mean DSC", "median_dsc": "median DSC", "n_failed": "failed"},
    )
    lines = [" " * width + "".join(f"{head:>16}" for head in keys.values())]
    lines += [" " * width + f"{'study':>9}{'paper':>7}" * len(keys)]
    for partition, name in PARTITION_NAMES.items():
        block, paper = summary.get(partition) or {}, paper_results()[partition]
        if not block.get("n_patients"):
            lines.append(f"{name}: {block.get('reason', 'it was not evaluated')}")
            continue
        lines.append(f"{name} (N = {block['n_patients']}, paper {paper['n_patients']})")
        for target, row in TARGET_NAMES.items():
            pairs = [(source["delineation"][target].get(key), key) for key in keys for source in (block, paper)]
            texts = [number(value, 0 if key == "n_failed" else 3) for value, key in pairs]
            cells = [f"{text:>{7 if index % 2 else 9}}" for index, text in enumerate(texts)]
            lines.append(f"  {row:<{width - 2}}" + "".join(cells))
    if synthetic:
        lines.append("Synthetic patients: these numbers verify the software; they cannot be compared with the paper's.")
    return "\n".join(lines)
