"""Tables of agreement beyond the paper's: coefficients, lines, ratios, and the PET quantities of the patients."""

from __future__ import annotations

from mtvlib.tables import PARTITION_NAMES, WITH_INTERVALS, Block, estimate, interval
from mtvlib.typeset import Cell, Table

QUANTITY_NAMES = {
    "mtv_ml": "Total tumour burden (ml)",
    "mtv_primary_ml": "MTV, primary tumour (ml)",
    "mtv_nodes_ml": "MTV, nodes (ml)",
    "tlg_g": "TLG (g)",
    "suv_max": "SUVmax",
    "suv_mean": "SUVmean",
    "suv_peak": "SUVpeak",
    "n_nodes": "Nodes (number)",
    "largest_node_ml": "Largest node (ml)",
    "dmax_mm": "Distance between lesions (mm)",
}
_DIGITS = {"n_nodes": 0, "dmax_mm": 0}


def coefficients(summary: Block) -> Table:
    """How alike the burdens are, whatever the line through them, without the outliers and with all patients."""
    table = Table(
        {
            "icc": "ICC(2,1)",
            "ccc": "CCC",
            "slope": "Slope\n(least squares)",
            "deming_slope": "Slope\n(Deming)",
            "deming_intercept_ml": "Intercept (ml)\n(Deming)",
            "ratio": "Ratio\nCNN : manual",
            "limits": "Limits of the\nratio",
        }
    )
    for partition, group in PARTITION_NAMES.items():
        if not summary[partition]["n_patients"]:
            continue
        block = summary[partition]["ttb"]
        table.add(group, "Without outliers", _coefficients(block))
        table.add(group, "All patients", _coefficients(block["all_patients"]))
    table.notes += [
        WITH_INTERVALS,
        "ICC(2,1): two-way random effects, absolute agreement of single measurements. CCC: Lin's concordance "
        "correlation. Deming regression takes both delineations to err alike. Ratio: geometric mean, of the patients "
        "with a burden in both; its limits hold 95 % of the patients if the logarithms are normal.",
    ]
    return table


def _coefficients(block: Block) -> dict[str, Cell]:
    cells = {key: estimate(block, key, 2) for key in ("icc", "ccc", "slope", "deming_slope", "deming_intercept_ml")}
    limits = block["limits_of_agreement_ratio"]
    reason = block.get("limits_of_agreement_ratio_reason", "")
    return cells | {"ratio": estimate(block, "ratio", 2), "limits": Cell(interval(limits, 2), reason=reason)}


def quantities(summary: Block) -> Table:
    """What PET says of the patients by either delineation: medians, their difference, and agreement."""
    table = Table(
        {
            "n": "Patients",
            "man": "Manual,\nmedian",
            "cnn": "CNN,\nmedian",
            "median_difference": "Difference,\nmedian",
            "icc": "ICC(2,1)",
        }
    )
    for partition, group in PARTITION_NAMES.items():
        for name, block in summary[partition].get("quantities", {}).items():
            digits = _DIGITS.get(name, 1)
            cells = {key: estimate(block, key, digits) for key in ("man", "cnn", "median_difference")}
            cells |= {"n": Cell(str(block["n"])), "icc": estimate(block, "icc", 2)}
            table.add(group, QUANTITY_NAMES[name], cells)
    table.notes += [
        WITH_INTERVALS + " Differences are CNN − manual.",
        "Of the patients who have the quantity by both delineations: SUV values need a lesion in each, the distance "
        "two. TLG: total lesion glycolysis, MTV × SUVmean. SUVpeak: the largest mean in a sphere of 1 ml centred in a "
        "lesion. Distance: the largest between the centroids of two lesions.",
    ]
    return table
