"""Tables of who was studied: Table 1, the sites, the audit of the folds, and the DSC of subgroups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mtvlib.audit import Check
from mtvlib.cohort import SPLITS
from mtvlib.describe import Variable
from mtvlib.params import Params
from mtvlib.subgroups import MIN_PATIENTS, TITLES, in_order
from mtvlib.tables import JOIN, MISSING, PARTITION_NAMES, Block, interval, number, p_relation, share, with_interval
from mtvlib.typeset import Cell, Table

COHORT_NAMES = {cohort: PARTITION_NAMES[split] for cohort, split in SPLITS.items()}
INDENT = "\u2003"
SITE_HEADS = {  # column -> a head that leaves room for the others
    "survival_eligible": "Eligible for\nsurvival",
    "followup_months": "Follow-up\n(months)",
    "mtv_primary_man_ml": "MTV primary\n(ml)",
    "mtv_nodes_man_ml": "MTV nodes\n(ml)",
    "n_nodes_man": "Node\nmetastases",
}
ABOUT_SMD = (
    "SMD: standardised mean difference of the cohorts and its 95 % interval. Of numbers it is main − external, from "
    "means and standard deviations; of categories a distance, without an interval where there are more than two (Yang "
    "and Dalton 2012). Values beyond 0.1 are often called an imbalance."
)


# --- Table 1


def table_one(about: Block, variables: Sequence[Variable]) -> Table:
    """What `describe.table_one` found: a column a cohort, the missing values of each, and how far they differ."""
    cohorts = [cohort for cohort in COHORT_NAMES if cohort in about["n"]]
    heads = {cohort: f"{COHORT_NAMES[cohort]}\nN = {about['n'][cohort]}" for cohort in cohorts}
    table = Table(
        heads
        | {"missing": "Missing" + ("\nCV / ext." if len(cohorts) > 1 else "")}
        | ({"smd": "SMD"} if len(cohorts) > 1 else {})
    )
    for variable in (one for one in variables if one.column in about["variables"]):
        _add_variable(table, variable, about["variables"][variable.column], cohorts)
    if not table.rows:
        table.add("", "Nothing is recorded of the patients", {})
    table.notes.append(
        "Numbers: median (quartiles). Quartiles and shares are of the known values; missing are empty cells and words "
        "such as unknown."
    )
    table.notes += [ABOUT_SMD] if len(cohorts) > 1 else []
    table.notes += [not_known(about["absent"])] if about["absent"] else []
    return table


def not_known(titles: Iterable[str]) -> str:
    """The note that names what a cohort has no value of."""
    return f"Not recorded in this cohort: {', '.join(titles)}."


def _add_variable(table: Table, variable: Variable, block: Block, cohorts: Sequence[str]) -> None:
    cells = {cohort: _in_words(block[cohort], variable) for cohort in cohorts}
    cells["missing"] = Cell(" / ".join(str(block[cohort]["missing"]) for cohort in cohorts))
    cells["smd"] = _smd(block)
    table.add("", variable.title + {"number": "", "category": ", n (%)", "share": ", n (%)"}[variable.kind], cells)
    if variable.kind == "category":
        for name in sorted({name for cohort in cohorts for name in block[cohort]["counts"]}):
            shares = {cohort: share(block[cohort]["counts"].get(name, 0), block[cohort]["n"]) for cohort in cohorts}
            table.add("", INDENT + name, {cohort: Cell(text) for cohort, text in shares.items()})


def _in_words(block: Block, variable: Variable) -> Cell:
    if variable.kind == "category":
        return Cell("")
    if variable.kind == "share":
        return Cell(share(block["count"], block["n"]))
    return Cell(median_and_quartiles(block, variable.digits))


def median_and_quartiles(block: Block, digits: int) -> str:
    """`61 (56–67)`; `61` of one value, an en dash of none."""
    ends = f" ({interval(block['iqr'], digits)})" if block["n"] > 1 else ""
    return number(block["median"], digits) + ends


def _smd(block: Block) -> Cell:
    if block.get("smd") is None:
        return Cell(MISSING, reason=block["smd_reason"]) if "smd" in block else Cell("")
    ends = block["smd_ci95"]
    return Cell(number(block["smd"], 2), interval(ends, 2) if ends else "")


# --- sites


def by_site(rows: Sequence[Block], variables: Sequence[Variable]) -> Table:
    """What `describe.by_site` found: a row a site; categories have no place in it."""
    shown = [v for v in variables if v.kind != "category" and any(v.column in row["variables"] for row in rows)]
    scanners = any(row["scanners"] for row in rows)
    heads = {"n": "Patients"} | ({"scanners": "Scanners"} if scanners else {})
    table = Table(heads | {v.column: SITE_HEADS.get(v.column, v.title.replace(" (", "\n(")) for v in shown})
    for row in rows:
        cells = {"n": Cell(str(row["n"]))}
        names = [f"{name} ({n})" for name, n in row["scanners"].items()] or [MISSING]
        cells["scanners"] = Cell(names[0], ", ".join(names[1:]))
        cells |= {v.column: _of_site(row["variables"][v.column], v) for v in shown if v.column in row["variables"]}
        table.add(COHORT_NAMES[row["cohort"]], row["site"], cells)
    table.notes.append("Numbers: median (quartiles); below it how many values are missing, if any are.")
    return table


def _of_site(block: Block, variable: Variable) -> Cell:
    missing = f"{block['missing']} missing" if block["missing"] else ""
    return Cell(_in_words(block, variable).value, missing)


# --- folds


def how_divided(params: Params) -> str:
    """How the folds were made, as a paragraph (Markdown)."""
    rest = "All scans of one person stay in one part."
    if params.split_by == "site":
        return (
            "Each patient of the main cohort is tested exactly once: each fold tests one whole site by a network that "
            "has seen no patient of it (leave one site out). For validation "
            f"{100 * params.validation_fraction:g} % of the main cohort are drawn, evenly from the other sites. {rest}"
        )
    return (
        "Each patient of the main cohort is tested exactly once. In each of the folds the other patients are divided "
        f"into training and validation parts (in the paper 64 / 16 / 20 %), balanced over the sites. {rest}"
    )


def audit(checks: Sequence[Check]) -> Table:
    """What `audit.audit` looked for; an audit that found something has stopped the study."""
    table = Table({"counted": "Checked", "broken": "Violations"})
    for check in checks:
        name = check.name[0].upper() + check.name[1:]
        table.add("", name, {"counted": Cell(str(check.counted)), "broken": Cell(str(len(check.broken)))})
    return table


# --- subgroups


def subgroups(summary: Block) -> Table:
    """DSC of every subgroup, side by side for the partitions that were evaluated, with the tests of heterogeneity."""
    blocks = subgroup_blocks(summary)
    columns: dict[str, str] = {}
    for split in blocks:
        heads = ("n", "Mean DSC", "Cohort DSC", "p (Holm)")
        short = {"cross_validation": "CV", "external_testing": "Ext."}[split]
        columns |= {f"{split} {head}": f"{short}\n{head}" for head in heads}
    table = Table(columns)
    for variable, groups in groups_by_variable(blocks).items():
        table.add("", TITLES[variable], {f"{split} p (Holm)": _p(block, variable) for split, block in blocks.items()})
        for group in groups:
            table.add("", INDENT + group, _group_cells(blocks, variable, group))
    table.notes += [_about_subgroups(blocks), _about_test()]
    unknown = [title for column, title in TITLES.items() if all(column in block["absent"] for block in blocks.values())]
    table.notes += [not_known(unknown)] if unknown else []
    return table


def subgroup_blocks(summary: Block) -> dict[str, Block]:
    """The `subgroups` of the partitions that were evaluated."""
    return {split: summary[split]["subgroups"] for split in PARTITION_NAMES if "subgroups" in summary[split]}


def variable_of(block: Block, variable: str) -> Block | None:
    """What a partition's block of summary.json says of a variable."""
    return next((one for one in block["variables"] if one["variable"] == variable), None)


def groups_by_variable(blocks: Mapping[str, Block]) -> dict[str, list[str]]:
    """Variable -> its groups in any of the partitions, in reading order; `blocks`: partition -> its `subgroups`."""
    rows: dict[str, list[str]] = {}
    for variable in TITLES:
        found = [variable_of(block, variable) for block in blocks.values()]
        names = [group["group"] for one in found if one for group in one["groups"]]
        if names:
            rows[variable] = in_order(variable, names)
    return rows


def _group_cells(blocks: Mapping[str, Block], variable: str, group: str) -> dict[str, Cell]:
    cells = {}
    for split, block in blocks.items():
        one = variable_of(block, variable)
        own = next((found for found in one["groups"] if found["group"] == group), None) if one else None
        if own:
            cells[f"{split} n"] = Cell(str(own["n"]))
            cells[f"{split} Mean DSC"] = Cell(with_interval(own, "mean_dsc", 2), reason=_why(own, "mean_dsc"))
            cells[f"{split} Cohort DSC"] = Cell(number(own["cohort_dsc"], 2), reason=_why(own, "cohort_dsc"))
    return cells


def _why(block: Block, key: str) -> str:
    return "" if block[key] is not None else block[f"{key}_reason"]


def _p(block: Block, variable: str) -> Cell:
    one = variable_of(block, variable)
    if one is None:
        return Cell("")
    if one["kruskal_p"] is None:
        return Cell(MISSING, reason=one["kruskal_p_reason"])
    p, adjusted = (p_relation(one[key]).removeprefix(f"={JOIN}") for key in ("kruskal_p", "kruskal_p_holm"))
    return Cell(f"{p} ({adjusted})")


def _about_subgroups(blocks: Mapping[str, Block]) -> str:
    where = {"cross_validation": "CV: cross-validation", "external_testing": "Ext.: external testing"}
    return (
        f"{'; '.join(where[split] for split in blocks)}. DSC of primary tumour and lymph nodes together, with its 95 % "
        "interval (bootstrap over persons, and over sites in groups of three or more), which groups of fewer than "
        f"{MIN_PATIENTS} patients have not. Age, TTB, SUVmax and nodes are divided at fixed values (choice), by the "
        "manual delineation."
    )


def _about_test() -> str:
    return (
        f"p: Kruskal-Wallis test of the patients' DSC in the groups of at least {MIN_PATIENTS} patients, what is "
        "missing left out; in brackets adjusted for the number of variables (Holm). Exploratory: the study was not "
        "planned for these comparisons."
    )
