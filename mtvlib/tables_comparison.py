"""Tables of several methods on the same patients: beside the network in a study, and beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mtvlib.comparison import VOLUME_ERROR, as_json
from mtvlib.tables import (
    JOIN,
    PARTITION_NAMES,
    SOURCE_NAMES,
    TARGET_NAMES,
    WITH_INTERVALS,
    Block,
    estimate,
    number,
    p_relation,
)
from mtvlib.thresholds import threshold_methods
from mtvlib.typeset import Cell, Table

SEEDED = (
    "The thresholds were given the lesions of the reference as seeds, with their classes: they can miss none above the "
    "threshold, invent none and confuse none, so their overlap is an upper bound. The network was given the images "
    "alone."
)
SAME_KIND = (
    "A reference that was drawn with an adaptive threshold, as the paper's was and that of synthetic patients is, "
    "resembles the adaptive threshold by construction."
)
MEASURE_NAMES = {  # name, digits
    "cohort_dsc": ("Cohort DSC", 3),
    "mean_dsc": ("Mean DSC", 3),
    "mean_surface_dsc_2_5mm": ("Mean surface DSC, 2.5 mm", 3),
    VOLUME_ERROR: ("Mean absolute volume error (ml)", 2),
    "mean_hd95_mm": ("Mean 95 % Hausdorff distance (mm)", 1),
}


@dataclass(frozen=True)
class Scores:
    """One method for readers: its name, whether it was given seeds, and Table 1 by partition and target."""

    label: str
    needs_seed: bool
    delineation: Mapping[str, Mapping[str, Block]]


def scores_of_study(summary: Block) -> list[Scores]:
    """The network and the threshold methods of a study's summary.json."""
    blocks = {partition: summary[partition] for partition in PARTITION_NAMES if "comparators" in summary[partition]}
    network = {partition: block["delineation"] for partition, block in blocks.items()}
    found = [Scores(SOURCE_NAMES["cnn"], False, network)]
    for method, label in threshold_methods().items():
        own = {partition: _of_comparator(block, method) for partition, block in blocks.items()}
        found.append(Scores(label, True, own))
    return found


def _of_comparator(block: Block, method: str) -> Block:
    return next(one["delineation"] for one in block["comparators"]["methods"] if one["method"] == method)


def scores_of_methods(summaries: Mapping[str, Block]) -> list[Scores]:
    """The same of several methods' own summary.json by name."""
    found = []
    for name, summary in summaries.items():
        parts = {key: summary[key] for key in PARTITION_NAMES if summary[key].get("n_patients")}
        own = {partition: block["delineation"] for partition, block in parts.items()}
        found.append(Scores(label_of(name), bool(summary.get("needs_seed")), own))
    return found


def label_of(method: str) -> str:
    """A method's name for readers: thresholds have a label, others are called as the user called them."""
    return threshold_methods().get(method, method)


# --- beside the network


def comparators(summary: Block) -> Table:
    """Cohort DSC of the network and of the seeded thresholds by target, and each one's difference to the network."""
    short = {"primary": "primary", "nodes": "nodes", "all": "both"}
    heads = {target: f"Cohort DSC,\n{name}" for target, name in short.items()}
    heads |= {f"{target}_difference": f"Difference,\n{name}" for target, name in short.items()}
    table = Table(heads)
    for partition, name in PARTITION_NAMES.items():
        block = summary[partition]
        if "comparators" not in block:
            continue
        group = f"{name} (N = {block['n_patients']})"
        for scores in scores_of_study(summary):
            cells = {
                target: estimate(scores.delineation[partition][target], "cohort_dsc", 3) for target in TARGET_NAMES
            }
            differences = block["comparators"]["differences"] if scores.needs_seed else []
            for row in differences:
                if row["measure"] == "cohort_dsc" and label_of(row["method"]) == scores.label:
                    cells[f"{row['target']}_difference"] = estimate(row, "difference", 3)
            table.add(group, scores.label, cells)
    table.notes += [SEEDED, SAME_KIND, f"{WITH_INTERVALS} Differences are threshold − network, in the same patients."]
    return table


# --- beside each other


def differences(compared: pd.DataFrame) -> Table:
    """Every comparison of comparison.csv: the two values, their difference, effect sizes, p values after Holm."""
    table = Table(
        {
            "value": "First",
            "other": "Second",
            "difference": "Difference",
            "better": "First better",
            "rank_biserial": "Rank-biserial\ncorrelation",
            "wilcoxon": "Wilcoxon p",
            "permutation": "Permutation p",
        }
    )
    for group, row in _comparisons(as_json(compared)):
        name, digits = f"{label_of(row['method'])} − {label_of(row['other'])}", MEASURE_NAMES[row["measure"]][1]
        cells = {"value": estimate(row, "value", digits), "other": Cell(number(row["other_value"], digits))}
        cells |= {"difference": estimate(row, "difference", digits)}
        cells |= {test: Cell(_p(row[test]["p_holm"])) for test in ("wilcoxon", "permutation") if test in row}
        if "n_better" in row:
            cells["better"] = Cell(f"{row['n_better']}{JOIN}of{JOIN}{row['n_persons']}")
            cells["rank_biserial"] = estimate(row, "rank_biserial", 2)
        table.add(group, name, cells)
    table.notes += [f"{WITH_INTERVALS} p values after Holm's correction over all comparisons of a partition."]
    return table


def _comparisons(blocks: Block) -> Iterator[tuple[str, dict[str, Any]]]:
    """Heading and block of each comparison, those of one measure and target together."""
    for partition, name in PARTITION_NAMES.items():
        for measure, (measure_name, _) in MEASURE_NAMES.items():
            for target, target_name in TARGET_NAMES.items():
                for row in blocks[partition]:
                    if (row["measure"], row["target"]) == (measure, target):
                        yield f"{name}: {measure_name}, {target_name.lower()}", row


def _p(value: float | None) -> str:
    return p_relation(value).removeprefix(f"={JOIN}")


def notes_on_seeds(summaries: Mapping[str, Block]) -> list[str]:
    """What a reader must know of the methods that were given seeds; nothing if none was."""
    seeded = {name: summary for name, summary in summaries.items() if summary.get("needs_seed")}
    if not seeded:
        return []
    one, names = next(iter(seeded.values())), ", ".join(label_of(name) for name in seeded)
    return [
        f"{names}: thresholds within {one['margin_mm']:g} mm of given seeds ({one['seeds']}), of the seed's class. "
        "They can invent no lesion elsewhere and confuse no class, so beside a method without seeds their overlap is "
        "an upper bound."
    ]


def scores_text(scores: list[Scores]) -> str:
    """Cohort and mean DSC of each method by target, as plain text for a terminal."""
    width, keys = max(len(one.label) for one in scores) + 4, {"cohort_dsc": "cohort DSC", "mean_dsc": "mean DSC"}
    lines = [" " * width + "".join(f"{name:<30}" for name in keys.values()).rstrip()]
    lines += [" " * width + "".join(f"{target:<10}" for target in (*TARGET_NAMES, *TARGET_NAMES)).rstrip()]
    for partition, name in PARTITION_NAMES.items():
        own = [one for one in scores if partition in one.delineation]
        lines += [name] if own else []
        for one in own:
            values = [one.delineation[partition][target].get(key) for key in keys for target in TARGET_NAMES]
            cells = "".join(f"{number(value, 3):<10}" for value in values)
            lines.append(f"  {one.label:<{width - 2}}{cells}".rstrip())
    return "\n".join(lines)
