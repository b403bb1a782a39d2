"""Tables of the chapter on trust, from the blocks `trust` of summary.json and from failures.csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mtvlib.tables import MISSING, PARTITION_NAMES, TARGET_NAMES, WITH_INTERVALS, count, estimate, number
from mtvlib.typeset import Cell, Table

Block = Mapping[str, Any]

NOT_EVALUATED = "the study was evaluated by an earlier version"

ORDER_NAMES = {
    "uncertainty": "The least certain",
    "random": "At random",
    "worst_first": "The worst (needs the reference)",
}
SOURCE_NAMES = {"expected_dsc": "Expected DSC", "model_dsc": "DSC among the models"}


def trust_blocks(summary: Block, table: Table) -> Iterator[tuple[str, Block]]:
    """Heading and block `trust` of each partition that was evaluated; one without probabilities leaves a note."""
    for partition, name in PARTITION_NAMES.items():
        block = summary.get(partition) or {}
        trust = block.get("trust") or {"reason": NOT_EVALUATED}
        if block.get("n_patients") and "reason" not in trust:
            yield f"{name} (N = {block['n_patients']})", trust
        else:
            table.notes.append(f"{name}: not estimable: {block.get('reason') or trust['reason']}.")


def calibration(summary: Block) -> Table:
    """How far the probability of a lesion lies from the share of voxels that are in one."""
    table = Table(
        {
            "ece": "Calibration\nerror (%)",
            "ece_of_suspected": "… where p ≥ 0.1\n(%)",
            "brier": "Brier score",
            "brier_of_constant": "… of a constant",
            "volume_ratio": "Expected /\nmanual volume",
        }
    )
    for group, block in trust_blocks(summary, table):
        own = block["calibration"]
        cells = {key: estimate(own, key, 1, 100) for key in ("ece", "ece_of_suspected")}
        cells |= {key: estimate(own, key, 3) for key in ("brier", "brier_of_constant")}
        table.add("", group, cells | {"volume_ratio": estimate(own, "volume_ratio", 2)})
    table.notes.insert(0, WITH_INTERVALS)
    return table


def uncertainty(summary: Block) -> Table:
    """Whether what the network expects of a delineation tells how good it is."""
    table = Table(
        {"mean": "Mean", "excess": "Mean − mean of\nthe true DSC", "spearman": "Rank correlation\nwith the true DSC"}
    )
    for group, block in trust_blocks(summary, table):
        for source, name in SOURCE_NAMES.items():
            if own := block["uncertainty"].get(source):  # one model has none to disagree with
                table.add(group, name, {key: estimate(own, key, 2) for key in table.columns})
    table.notes.insert(0, WITH_INTERVALS)
    return table


def triage(summary: Block) -> Table:
    """What is gained where a fifth of the patients is corrected by hand, by who is corrected."""
    table = Table(
        {
            "n": "Corrected",
            "mean_dsc": "Mean DSC",
            "cohort_dsc": "Cohort DSC",
            "failed": "Failed (%)",
            "failed_of_rest": "… of the\nrest (%)",
            "gain": "Gain\n(%)",
        }
    )
    for group, block in trust_blocks(summary, table):
        own = block["triage"]
        table.add(group, "Nobody", {"n": Cell("0")} | _triage_cells(own["nobody"]))
        for order, name in ORDER_NAMES.items():
            gain = {"gain": estimate(own, "gain", 0, 100)} if order == "uncertainty" else {}
            table.add(group, name, {"n": Cell(str(own["n_corrected"]))} | _triage_cells(own[order]) | gain)
    possible = "Possible gain: what the worst first gain in mean DSC over a random order."
    table.notes[:0] = [WITH_INTERVALS, possible]
    return table


def _triage_cells(block: Block) -> dict[str, Cell]:
    cells = {key: estimate(block, key, 3) for key in ("mean_dsc", "cohort_dsc")}
    return cells | {key: estimate(block, key, 1, 100) for key in ("failed", "failed_of_rest")}


def lesions(summary: Block) -> Table:
    """Whether the probability tells confirmed from spurious lesions, and what the threshold can reach."""
    table = Table(
        {
            "n_confirmed": "Confirmed",
            "n_spurious": "Spurious",
            "auc": "AUC of the\nprobability",
            "sensitivity_at_0.5_fp": "Found at ≤ 0.5\nfalse (%)",
            "sensitivity_at_1_fp": "Found at ≤ 1\nfalse (%)",
            "sensitivity_at_2_fp": "Found at ≤ 2\nfalse (%)",
        }
    )
    for group, block in trust_blocks(summary, table):
        cells = {key: estimate(block["lesions"], key, 0) for key in ("n_confirmed", "n_spurious")}
        cells |= {"auc": estimate(block["lesions"], "auc", 2)}
        curve = {key: estimate(block["froc"], key, 1, 100) for key in table.columns if key.startswith("sens")}
        table.add("", group, cells | curve)
    table.notes[:0] = [WITH_INTERVALS, "Found: share of the manual lesions; false: false positives a patient."]
    return table


def models_agreeing(predicted: pd.DataFrame) -> Table:
    """Confirmed and spurious lesions of an ensemble by how many of its models see them, from lesion_uncertainty.csv."""
    table = Table({"TP": "Confirmed", "FP": "Spurious", "share": "Confirmed (%)"})
    for partition, name in PARTITION_NAMES.items():
        own = predicted[(predicted["partition"] == partition) & predicted["models_agreeing"].notna()]
        for (models, agreeing), rows in own.groupby(["models", "models_agreeing"], sort=True):
            counts = {outcome: int((rows["outcome"] == outcome).sum()) for outcome in ("TP", "FP")}
            cells = {outcome: Cell(str(n)) for outcome, n in counts.items()}
            percent = 100 * counts["TP"] / len(rows)
            table.add(name, f"{agreeing:.0f} of {models} models", cells | {"share": Cell(number(percent, 0))})
    return table


# --- failed patients


def failures_by_kind(failures: pd.DataFrame) -> Table:
    """Number of failed patients by what happened and by target, from failures.csv."""
    table = Table(TARGET_NAMES)
    for partition, name in PARTITION_NAMES.items():
        own = failures[failures["partition"] == partition]
        for what, rows in own.groupby("what"):
            counts = rows["target"].value_counts()
            table.add(name, str(what).capitalize(), {key: Cell(str(counts.get(key, 0))) for key in TARGET_NAMES})
    return table


def failures(failed: pd.DataFrame, most: int) -> Table:
    """The failed patients in the order of `failed_patients`: volumes, what happened, and what the data say of it.

    At most so many rows; a note says where the others are.
    """
    heads = {
        "target": "Target",
        "man_ml": "Manual (ml)",
        "cnn_ml": "CNN (ml)",
        "what": "What",
        "why": "What the data say",
    }
    table, groups = Table(heads, align="left"), failed_patients(failed)
    rows = [row for group in groups for row in group][:most]
    for partition, name in PARTITION_NAMES.items():
        for row in (row for row in rows if row["partition"] == partition):
            cells = {key: Cell(number(row[key], 2)) for key in ("man_ml", "cnn_ml")}
            cells |= {"target": Cell(TARGET_NAMES[row["target"]].lower()), "what": Cell(row["what"])}
            table.add(name, row["patient"], cells | {"why": Cell(row["why"] or MISSING)})
    if len(failed) > most:
        table.notes.append(f"The first {most} of {len(failed)}; results/failures.csv holds all.")
    return table


def failed_patients(failures: pd.DataFrame) -> list[list[dict[str, Any]]]:
    """Each patient's rows of failures.csv: who failed in all targets first, then the largest volume, ties by name."""
    groups = failures.fillna({"why": ""}).groupby(["partition", "patient"], sort=False)
    return sorted((rows.to_dict("records") for _, rows in groups), key=_gravity)


def _gravity(rows: list[dict[str, Any]]) -> tuple[bool, float, str]:
    everything = any(row["target"] == "all" for row in rows)
    return not everything, -max(max(row["man_ml"], row["cnn_ml"]) for row in rows), rows[0]["patient"]


def failed_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """One patient's failures, a sentence a target."""
    sentences = [f"{TARGET_NAMES[row['target']]}: {row['what']}" + f"; {row['why']}" * bool(row["why"]) for row in rows]
    return ". ".join(sentences) + "."


def failed_summary(failures: pd.DataFrame) -> str:
    """In how many patients each target failed, as a sentence."""
    patients = failures["target"].value_counts()
    numbers = [
        f"{count(int(patients.get(target, 0)), 'patient')} ({name.lower()})" for target, name in TARGET_NAMES.items()
    ]
    return f"Manual and automatic delineation share no voxel in {', '.join(numbers)}."
