"""Tables of what goes beyond the paper's Tables 1 and 3: boundaries, one-to-one pairs, and other choices."""

from __future__ import annotations

from mtvlib.lesion_choices import Choice
from mtvlib.tables import (
    MISSING,
    PARTITION_NAMES,
    TARGET_NAMES,
    WITH_INTERVALS,
    Block,
    count,
    estimate,
    number,
)
from mtvlib.typeset import Cell, Table

SHORT_NAMES = {"primary": "PT", "nodes": "LN", "all": "Both"}
MEANING = "PT primary tumour, LN lymph node metastases."
BIN_NAMES = {
    "sensitivity_by_volume": {"below_1_ml": "< 1 ml", "1_to_5_ml": "1–5 ml", "above_5_ml": "> 5 ml"},
    "sensitivity_by_suv_max": {"below_4": "SUVmax < 4", "4_to_10": "SUVmax 4–10", "above_10": "SUVmax > 10"},
}


def _partitions(summary: Block, table: Table) -> list[tuple[str, Block]]:
    """Heading and block of each partition that was evaluated; the others leave a note."""
    found = []
    for partition, name in PARTITION_NAMES.items():
        block = summary.get(partition) or {}
        if block.get("n_patients"):
            found.append((f"{name} (N = {block['n_patients']})", block))
        else:
            table.notes.append(f"{name}: not estimable: {block.get('reason', 'it was not evaluated')}.")
    return found


def boundary(summary: Block) -> Table:
    """Surface DSC, distances and false volumes by target."""
    table = Table(
        {
            "mean_surface_dsc_2_5mm": "Surface DSC\nat 2.5 mm",
            "mean_surface_dsc_5mm": "Surface DSC\nat 5 mm",
            "median_hd95_mm": "HD95\n(mm)",
            "median_assd_mm": "ASSD\n(mm)",
            "undefined": "No\ndistance",
            "mean_fpv_ml": "FPV\n(ml)",
            "mean_fnv_ml": "FNV\n(ml)",
        }
    )
    digits = {"median_hd95_mm": 1, "median_assd_mm": 2, "mean_fpv_ml": 2, "mean_fnv_ml": 2}
    for group, block in _partitions(summary, table):
        for target, name in TARGET_NAMES.items():
            own = block["delineation"][target]
            cells = {key: estimate(own, key, digits.get(key, 3)) for key in table.columns if key != "undefined"}
            cells["undefined"] = Cell(str(own["n_distance_undefined"]), f"one empty: {own['n_one_empty']}")
            table.add(group, name, cells)
            if own["n_both_empty"] and own["mean_surface_dsc_5mm"] is not None:
                table.notes.append(_both_empty(group, name, own))
    means = (
        "Means over the patients; of HD95 and ASSD the medians of those in whom neither mask is empty. FPV, FNV: "
        "false-positive and false-negative volume."
    )
    table.notes = [f"{means} {WITH_INTERVALS}", *table.notes]
    return table


def _both_empty(group: str, name: str, block: Block) -> str:
    ends = (number(block[f"mean_surface_dsc_{mm}_without_both_empty"], 3) for mm in ("2_5mm", "5mm"))
    where, patients = f"{group.split(' (')[0]}, {name.lower()}", count(block["n_both_empty"], "patient")
    return f"{where}: {patients} with the target in neither mask, surface DSC 1; means of the others {', '.join(ends)}."


def matched(summary: Block) -> Table:
    """Lesions in one-to-one pairs by target: sensitivity, precision and F1."""
    table = Table(
        {
            "n_man": "Manual\nlesions",
            "n_cnn": "CNN\nlesions",
            "n_matched": "Pairs",
            "sensitivity": "Sensitivity (%)",
            "precision": "Precision (%)",
            "f1": "F1 (%)",
        }
    )
    for group, block in _partitions(summary, table):
        for target, name in TARGET_NAMES.items():
            own = block["lesions"][target]
            cells = {key: estimate(own, key, 0) for key in ("n_man", "n_cnn", "n_matched")}
            table.add(
                group, name, cells | {key: estimate(own, key, 1, 100) for key in ("sensitivity", "precision", "f1")}
            )
    table.notes.append(WITH_INTERVALS)
    return table


def sensitivity(summary: Block) -> Table:
    """Share of the manual lesions that were found, by volume and by SUVmax, for each target."""
    columns: dict[str, str] = {}
    for target, name in SHORT_NAMES.items():
        columns |= {f"{target}/n": f"{name}\nlesions", f"{target}/tpr": f"{name}\nTPR_{{str}} (%)"}
        columns |= {f"{target}/sensitivity": f"{name}\nsens. (%)"}
    table = Table(columns)
    for group, block in _partitions(summary, table):
        for by, names in BIN_NAMES.items():
            for key, name in names.items():
                cells: dict[str, Cell] = {}
                for target in TARGET_NAMES:
                    own = block["lesions"][target][by][key]
                    cells |= _sensitivity_cells(own, target)
                table.add(group, name, cells)
    table.notes.append(f"{MEANING} Sens.: sensitivity by one-to-one pairs. {WITH_INTERVALS}")
    return table


def _sensitivity_cells(block: Block, target: str) -> dict[str, Cell]:
    """Lesions of a bin, found by coverage and in pairs; without any the number says enough."""
    cells = {f"{target}/n": Cell(str(block["n"]))}
    for key in ("tpr", "sensitivity"):
        cells[f"{target}/{key}"] = estimate(block, key, 1, 100) if block["n"] else Cell(MISSING)
    return cells


def choices(summary: Block) -> Table:
    """TPR and PPV of the paper's Table 3 under other neighbours, smallest ROIs and coverages."""
    columns: dict[str, str] = {}
    for target, name in SHORT_NAMES.items():
        columns |= {f"{target}/tpr": f"{name}\nTPR_{{str}} (%)", f"{target}/ppv": f"{name}\nPPV_{{str}} (%)"}
    table = Table(columns)
    partitions = _partitions(summary, table)
    absent = table.notes
    for group, block in partitions:
        own = block["lesion_choices"][0]
        for made in block["lesion_choices"]:
            changed = [field for field in Choice._fields if made[field] != own[field]]
            name = ", ".join(_choice_words(made)[field] for field in changed) or "as in the study"
            table.add(group, name[0].upper() + name[1:], _choice_cells(made))
        table.notes = [f"In the study: {', '.join(_choice_words(own).values())}."]
    table.notes += [*absent, f"{MEANING} {WITH_INTERVALS}"]
    return table


def _choice_words(made: Block) -> dict[str, str]:
    return {
        "connectivity": f"{made['connectivity']} neighbours",
        "min_roi_ml": f"ROIs from {made['min_roi_ml']:g} ml" if made["min_roi_ml"] else "ROIs of any size",
        "coverage": f"coverage {100 * made['coverage']:.0f} %",
    }


def _choice_cells(made: Block) -> dict[str, Cell]:
    return {f"{target}/{key}": estimate(made[target], key, 1, 100) for target in TARGET_NAMES for key in ("tpr", "ppv")}
