"""The tables of the survival analysis beyond the paper's, from the survival blocks of summary.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mtvlib.tables import (
    JOIN,
    MISSING,
    PARTITION_NAMES,
    SOURCE_NAMES,
    WITH_INTERVALS,
    Block,
    count,
    estimate,
    number,
    p_relation,
    share,
)
from mtvlib.typeset import Cell, Table

COVARIATE_NAMES = {
    "burden_alone": "TTB doubled, alone",
    "burden": "TTB doubled, adjusted",
    "age": "Age, ten years more",
    "stage_iv": "Stage IV against lower",
    "hpv_positive": "HPV positive against negative",
}
COLUMN_NAMES = {"age": "age", "stage_iv": "stage", "hpv_positive": "HPV"}
VERDICTS = {True: "non-inferior", False: "not shown"}
CHANCE = "manual near chance"


def _blocks(summary: Block, table: Table, key: str) -> Iterator[tuple[str, Block, Block]]:
    """Heading, `survival.<key>` and the survival block of each partition; the others leave a note with the reason."""
    for partition, name in PARTITION_NAMES.items():
        part = summary.get(partition) or {}
        survival = part.get("survival") or {}
        block = survival.get(key) or {"reason": part.get("reason", "it was not evaluated")}
        if "reason" in block:
            table.notes.append(f"{name}: not estimable: {block['reason']}.")
        else:
            yield f"{name} (N = {survival['n']}, {count(survival['events'], 'death')})", block, survival


def _never_empty(table: Table) -> Table:
    """A table needs a row: this one says that there is nothing, the notes below say why."""
    if not table.rows:
        table.add("", "Nothing could be estimated", {})
    return table


def _cell(block: Block, key: str, digits: int, factor: float = 1.0) -> Cell:
    """As `tables.estimate`, but a block that has nothing but a reason gives it."""
    return estimate(block if key in block else {key: None, **block}, key, digits, factor)


def _p(block: Block, key: str = "p", reason: str = "hr") -> Cell:
    if block.get(key) is None:
        return Cell(MISSING, reason=block.get(f"{reason}_reason") or block.get("reason") or "no reason was recorded")
    return Cell(p_relation(block[key]).removeprefix(f"={JOIN}"))


# --- who is in


def patients(summary: Block) -> Table:
    """Patients in the survival analysis, why others are not, follow-up, and covariates that are unknown."""
    table = Table({"value": "Patients"})
    for partition, name in PARTITION_NAMES.items():
        part = summary.get(partition) or {}
        if "survival" not in part:
            table.notes.append(f"{name}: not estimable: {part.get('reason', 'it was not evaluated')}.")
            continue
        _add_patients(table, f"{name} (N = {part['n_patients']})", part["survival"])
    table.notes.append(
        "Patients who died before the least follow-up are left out too, as in the paper: survival is that of patients "
        "who lived that long. Median follow-up by reverse Kaplan-Meier, with its 95 % interval."
    )
    return _never_empty(table)


def _add_patients(table: Table, group: str, survival: Block) -> None:
    missing, total = survival["missing"], survival["missing"]["n"]
    if "reason" in missing:
        table.add(group, "In the survival analysis", {"value": Cell("0", reason=missing["reason"])})
        return
    deaths = count(missing["n_short_followup_deaths"], "death")
    rows = {
        "Not eligible": share(missing["n_not_eligible"], total),
        "Outcome unknown": share(missing["n_outcome_unknown"], total),
        f"Too short a follow-up ({deaths})": share(missing["n_short_followup"], total),
        "In the survival analysis": share(missing["n_included"], total),
    }
    for name, value in rows.items():
        table.add(group, name, {"value": Cell(value)})
    table.add(group, "Deaths among these", {"value": _cell(survival, "events", 0)})
    table.add(group, "Median follow-up, months", {"value": _cell(survival["followup"], "median_months", 1)})
    for name, column in COLUMN_NAMES.items():
        block = missing["covariates"][name]
        unknown = share(block["n_missing"], missing["n_included"])
        table.add(group, f"Unknown {column}", {"value": Cell(unknown, reason=block.get("reason", ""))})


# --- the burden as it is


def continuous(summary: Block) -> Table:
    """Hazard ratio per doubling of the burden, with the tests of linearity and of proportional hazards."""
    table = Table(
        {
            "hr": "Hazard ratio\nper doubling",
            "p": "p",
            "linear": "Linearity\np",
            "ph": "Proportional\nhazards p",
            "grouped": "Proportional\nhazards, groups p",
        }
    )
    for group, block, _ in _blocks(summary, table, "continuous"):
        for source, name in SOURCE_NAMES.items():
            own = block[source]
            cells = {"hr": _cell(own, "hr", 2), "p": _p(own), "linear": _p(own["linearity"])}
            cells |= {"ph": _p(own["proportional_hazards"]), "grouped": _p(own["proportional_hazards_grouped"])}
            table.add(group, f"{name} TTB", cells)
    table.notes += [
        WITH_INTERVALS
        + " Doubling: of TTB + 1 ml. A small p speaks against a straight line (restricted cubic spline) or "
        "against a hazard ratio that stays the same over time (Schoenfeld residuals); a large one proves neither."
    ]
    return _never_empty(table)


# --- discrimination


def discrimination(summary: Block) -> Table:
    """C, AUC and Brier score of both burdens, their difference, and whether the CNN's is non-inferior."""
    table = Table(
        {
            "support": "At risk\n(deaths)",
            "man": "Manual TTB",
            "cnn": "CNN TTB",
            "difference": "CNN − manual",
            "verdict": "Within the\nmargin",
        }
    )
    margins = set()
    for group, block, survival in _blocks(summary, table, "discrimination"):
        verdicts = survival["noninferiority"]
        margins.add(f"{verdicts['margin']:g}")
        for key, name in (("harrell_c", "Harrell's C"), ("uno_c", f"Uno's C, {block['tau_months']:g} months")):
            cells = {source: _cell(block[source], key, 3) for source in (*SOURCE_NAMES, "difference")}
            table.add(group, name, cells | {"verdict": _verdict(verdicts[key])})
        for key, name in (("auc", "AUC"), ("brier", "Brier score")):
            digits = 4 if key == "brier" else 3
            for month, at in block["times"].items():
                own = key == "auc" and float(month) == verdicts["months"]
                cells = _at_month(at, key, digits) | ({"verdict": _verdict(verdicts["auc"])} if own else {})
                table.add(group, f"{name}, {month} months", cells)
    margin = " and ".join(sorted(margins)) or "no margin"
    table.notes += [
        WITH_INTERVALS + " They are those of one bootstrap, so that the difference is of the same patients.",
        f"Within the margin: the lower limit of the difference lies above −{margin}. “Not shown” is not “inferior”. "
        f"“{CHANCE.capitalize()}”: the manual interval reaches 0.5, so the verdict is empty.",
        "Brier score: 0 is perfect. It is of the Cox model of the manual TTB in the main cohort: for cross-validation "
        "that is the model's own patients; for external testing model and censoring are the main cohort's.",
    ]
    return _never_empty(table)


def _at_month(at: Block, key: str, digits: int) -> dict[str, Cell]:
    support = {"support": Cell(f"{at['n_at_risk']}{JOIN}({at['events']})")}
    if "reason" in at:
        return support | {source: Cell(MISSING, reason=at["reason"]) for source in (*SOURCE_NAMES, "difference")}
    return support | {source: _cell(at[source], key, digits) for source in (*SOURCE_NAMES, "difference")}


def _verdict(block: Block) -> Cell:
    if block["noninferior"] is None:
        return Cell(MISSING, reason=block["noninferior_reason"])
    return Cell(VERDICTS[block["noninferior"]], CHANCE if "caution" in block else "")


# --- adjusted model and discordant patients


def adjusted(summary: Block) -> Table:
    """Cox model of the burden with age, stage and HPV, stratified by site."""
    table = Table({"man": "Manual TTB\nhazard ratio", "man_p": "p", "cnn": "CNN TTB\nhazard ratio", "cnn_p": "p "})
    for group, block, survival in _blocks(summary, table, "adjusted"):
        strata = "stratified by site" if block["stratified_by_site"] else "not stratified"
        complete = f"{block['n']} of {survival['n']} patients, {count(block['events'], 'death')}, {strata}"
        heading = f"{group.split(' (')[0]} ({complete})"
        for name, words in COVARIATE_NAMES.items():
            if name in block["man"]:
                table.add(heading, words, _adjusted_cells(block, name))
        table.notes += [_left_out(group.split(" (")[0], block)]
    table.notes.insert(0, WITH_INTERVALS + " Of patients in whom every covariate is known.")
    return _never_empty(table)


def _adjusted_cells(block: Block, name: str) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for source in SOURCE_NAMES:
        cells |= {source: _cell(block[source][name], "hr", 2), f"{source}_p": _p(block[source][name])}
    return cells


def _left_out(name: str, block: Block) -> str:
    unknown = ", ".join(f"{COLUMN_NAMES[key]} {n}" for key, n in block["n_missing"].items())
    why = "; ".join(f"{COLUMN_NAMES[key]}: {reason}" for key, reason in block["left_out"].items())
    return f"{name}: unknown in patients: {unknown}. Not in the model: {why or 'none'}."


def discordance(summary: Block) -> Table:
    """What became of the patients whom the two burdens put into different risk groups."""
    table = Table(
        {
            "n": "Patients",
            "dead": "Dead",
            "alive": "Alive",
            "unknown": "Not known",
            "survival": "Survival (%)",
            "right": "Right",
        }
    )
    months = set()
    for group, block, _ in _blocks(summary, table, "discordance"):
        months.add(f"{block['months']:g}")
        for key, name in (("high_by_man", "High by manual TTB only"), ("high_by_cnn", "High by CNN TTB only")):
            table.add(group, name, _direction(block[key], key))
        right = _cell(block, "cnn_right", 0, 100)
        share_right = Cell(right.value + (f"{JOIN}%" if not right.reason else ""), right.below, right.reason)
        table.add(group, "CNN right, of those known", {"n": Cell(str(block["n"])), "right": share_right})
    when = " and ".join(sorted(months)) or "the stated number of"
    table.notes.append(
        f"At {when} months. Right is high risk and dead by then, or low risk and alive; with the CNN right in half of "
        f"the patients neither is better. Survival by Kaplan-Meier. {WITH_INTERVALS}"
    )
    return _never_empty(table)


def _direction(block: Mapping[str, Any], key: str) -> dict[str, Cell]:
    source = key.removeprefix("high_by_")
    other = "cnn" if source == "man" else "man"
    return {
        "n": Cell(str(block["n"])),
        "dead": Cell(str(block["n_dead"])),
        "alive": Cell(str(block["n_alive"])),
        "unknown": Cell(str(block["n"] - block["n_dead"] - block["n_alive"])),
        "survival": _cell(block, "survival", 0, 100),
        "right": Cell(f"{SOURCE_NAMES[source]} {block['n_dead']}, {SOURCE_NAMES[other]} {block['n_alive']}"),
    }


def heterogeneity_words(block: Block) -> str:
    """`Q 4.1 (6 df, p = 0.66), I² 0 % (0–57 %)`, or why there is none."""
    if "reason" in block:
        return block["reason"]
    ends = block["i2_ci95"]
    limits = f" ({number(100 * ends[0], 0)}–{number(100 * ends[1], 0)}{JOIN}%)" if ends else ""
    q = f"Q {number(block['q'], 1)} ({block['df']}{JOIN}df, p {p_relation(block['q_p'])})"
    return f"{q}, I² {number(100 * block['i2'], 0)}{JOIN}%{limits}"
