"""What summary and methods of the report say: a study's files as the values that the templates in report/ take."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import mtvlib
from mtvlib import changes
from mtvlib.checklist import checklists
from mtvlib.inference import MODEL_FILE
from mtvlib.network import Network, count_parameters
from mtvlib.params import Params
from mtvlib.show import METADATA_KEY
from mtvlib.study import Study
from mtvlib.tables import MISSING, ONE_CLASS, count, interval, number, one_class_only, thousands
from mtvlib.training import network_config

PARTITIONS = {"cross_validation": "Cross-validation", "external_testing": "External testing"}
FEW_PATIENTS = 50
GLANCE = (  # row, where in summary.json, key, digits, digits of the paper, factor
    ("Cohort DSC, primary tumour", ("delineation", "primary"), "cohort_dsc", 3, 3, 1),
    ("Cohort DSC, lymph node metastases", ("delineation", "nodes"), "cohort_dsc", 3, 3, 1),
    ("Cohort DSC, both together", ("delineation", "all"), "cohort_dsc", 3, 3, 1),
    ("Mean absolute difference of TTB, ml", ("ttb",), "mean_absolute_difference_ml", 2, 2, 1),
    ("R² of TTB", ("ttb",), "r2", 2, 2, 1),
    ("Voxels of the right class, %", ("classification",), "accuracy", 1, 1, 100),
    ("Reference lesions found, %", ("lesions", "all"), "tpr", 1, 1, 100),
    ("Predicted lesions confirmed, %", ("lesions", "all"), "ppv", 1, 1, 100),
    ("HR of high TTB, manual", ("survival", "man"), "hr", 2, 1, 1),
    ("HR of high TTB, CNN", ("survival", "cnn"), "hr", 2, 1, 1),
)
CHAPTERS = {  # chapter -> its name and the question that it answers
    "1_cohort": ("Patients and images", "who was studied, who was left out and why?"),
    "2_training": ("Training", "how did the network learn in each fold?"),
    "3_external_testing": ("External testing", "how were the external patients delineated?"),
    "4_delineation": ("Delineation", "how well do the volumes agree?"),
    "5_classification": ("Classification", "are primary tumour and nodes told apart?"),
    "6_lesions": ("Lesions", "which lesions are found, which missed, which made up?"),
    "7_survival": ("Survival", "does the automatic volume carry the same prognosis?"),
    "8_cases": ("Patients slice by slice", "what does it look like?"),
    "9_trust": ("Trust", "when can the network be believed, and why did it fail?"),
    "10_corrections": ("Corrections", "what does a physician's correction change, and what does it take?"),
}


def context(study: Study, chapters: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Every value that the templates name; `chapters` are the executed notebooks by name."""
    summary, manifest = study.summary, _manifest(study)
    splits = study.cohort["split"].value_counts()
    parameters = [_parameter(study.params, name) for name in Params.model_fields if name not in ("name", "studies")]
    return {
        "params": study.params,
        "version": mtvlib.__version__,
        "date": datetime.date.today().isoformat(),
        "synthetic": study.synthetic,
        "footer": footer(study, manifest),
        "n_main": int(splits.get("cross_validation", 0)),
        "n_external": int(splits.get("external_testing", 0)),
        "partitions": [(title, summary[key]) for key, title in PARTITIONS.items()],
        "said": said,
        "count": count,
        "one_class_only": one_class_only,
        "glance": glance(summary, study.paper),
        "warnings": warnings(study, manifest),
        "uncomputed": uncomputed(study),
        "contents": [CHAPTERS[name] for name in chapters if name in CHAPTERS],
        "parameters": parameters,
        "different": [row["name"] for row in parameters if row["different"]],
        "models": models(study),
        "parameters_count": count_parameters(Network(network_config(study.params))),
        "thousands": thousands,
        "record": _record(manifest),
        "costs": _costs(manifest),
        "reserved": _reserved(manifest),
        "changes": changes_since(study),
        "checklists": checklists(study, _labels(study, chapters), manifest),
    }


def _labels(study: Study, chapters: Mapping[str, dict[str, Any]]) -> set[str]:
    """Labels of the report's tables and figures, those of the templates in report/ among them."""
    rows = {"glance": glance(study.summary, study.paper), "models": models(study)}
    pages = ("parameters", "software", *(page for page, found in rows.items() if found))
    shown = (output for book in chapters.values() for cell in book["cells"] for output in cell.get("outputs", []))
    about = (output.get("metadata", {}).get(METADATA_KEY) for output in shown)
    return {one["label"] for one in about if one} | {f"tbl-{page}" for page in pages}


def said(block: dict[str, Any], key: str, digits: int, unit: str = "", factor: float = 1.0) -> str:
    """An estimate as words: `0.87 (95 % CI 0.85–0.89)`; the reason of a missing one is among the warnings."""
    if block.get(key) is None:
        return "not computable"
    ends = block.get(f"{key}_ci95")
    within = f" (95\u00a0% CI\u00a0{interval(ends, digits, factor)})" if ends else ""  # no break before the % sign
    return number(block[key] * factor, digits) + unit + within


def glance(summary: dict[str, Any], paper: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the summary's table: for each partition that was evaluated, the study's value and the paper's."""
    there = [key for key in PARTITIONS if summary[key].get("n_patients")]
    rows = []
    for name, path, key, digits, paper_digits, factor in GLANCE if there else ():
        cells = []
        for partition in there:
            own, theirs = _at(summary[partition], path), _at(paper[partition], path)
            ends = own.get(f"{key}_ci95")
            if own.get(key) is None or (key == "accuracy" and one_class_only(own)):
                cells += [MISSING]
            else:
                cells += [number(own[key] * factor, digits) + (f" ({interval(ends, digits, factor)})" if ends else "")]
            cells += [number(theirs[key] * factor, paper_digits)]
        rows.append((name, cells))
    return rows


def _at(block: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        block = block.get(name, {})
    return block


# --- what is different from the version before


def changes_since(study: Study) -> dict[str, Any] | None:
    """Causes, and rows of numbers then and now, between the last two versions of the study; None for its first."""
    found = changes.since_last_version(study)
    if found is None:
        return None
    then, now = found.before["summary"], found.now["summary"]
    return {
        "dates": (found.before["date"], found.now["date"]),
        "causes": changes.causes(found),
        "rows": list(_then_and_now(then, now)),
    }


def _then_and_now(then: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """(partition, what, then, now, difference): number of patients, and the values of the table at a glance."""
    for partition, title in PARTITIONS.items():
        old, new = then.get(partition, {}), now.get(partition, {})
        counts = [block.get("n_patients", 0) for block in (old, new)]
        if any(counts):
            yield title, "Patients", str(counts[0]), str(counts[1]), f"{counts[1] - counts[0]:+d}"
        for name, path, key, digits, _, factor in GLANCE if all(counts) else ():
            before, after = (_at(block, path).get(key) for block in (old, new))
            words = [MISSING if value is None else number(value * factor, digits) for value in (before, after)]
            apart = MISSING
            if before is not None and after is not None:
                apart = f"{(after - before) * factor:+.{digits}f}".replace("-", "−")
            yield title, name, words[0], words[1], apart


# --- what a reader must know


def warnings(study: Study, manifest: dict[str, Any]) -> list[str]:
    """What limits the numbers: few patients, what could not be computed, cut lesions, code that no commit holds."""
    found = ["This is research software, not a medical device, and no basis for the care of a patient."]
    for key, title in PARTITIONS.items():
        block = study.summary[key]
        if 0 < block.get("n_patients", 0) < FEW_PATIENTS:
            found.append(
                f"{title} rests on {count(block['n_patients'], 'patient')}: its intervals are wide and approximate."
            )
        if "n_persons" in block and block["n_persons"] < block["n_patients"]:
            scans, persons = count(block["n_patients"], "scan"), count(block["n_persons"], "person")
            found.append(
                f"The {scans} of {title.lower()} are of {persons}. The bootstrap draws persons; survival analysis and "
                "shares of patients take scans as independent: their intervals are too narrow, p values too small."
            )
        found += [_words(title, where, why) for where, why in _uncomputed(block) if _is_headline(where)]
        if block.get("n_patients") and one_class_only(block["classification"]):
            found.append(f"{title}, classification: {ONE_CLASS}.")
    cut = study.lesions.loc[study.lesions["touches_border"].astype(bool), "patient"].nunique()
    if cut:
        found.append(
            f"In {count(cut, 'patient')} a lesion touches the border of the field, so that part of it may be missing."
        )
    if others := uncomputed(study):
        found.append(
            f"{count(len(others), 'further value')} could not be computed: the methods list them with the reason."
        )
    if not manifest:
        found.append("The study has no manifest yet: versions and commit are not known.")
    elif (manifest.get("commit") or "-dirty").endswith("-dirty"):
        found.append("The code that made this study is not what a commit holds: it cannot be had again by its commit.")
    return found


def uncomputed(study: Study) -> list[tuple[str, str, list[str]]]:
    """What else could not be computed, beside the values of the summary: (partition, reason, what)."""
    found: dict[tuple[str, str], list[str]] = {}
    for key, title in PARTITIONS.items():
        for where, why in _uncomputed(study.summary[key]):
            if not _is_headline(where):
                found.setdefault((title, why), []).append(", ".join(where))
    return [(title, why, what) for (title, why), what in found.items()]


def _words(title: str, where: tuple[str, ...], why: str) -> str:
    return f"{', '.join([title, *where])} not computable: {why}."


def _is_headline(where: tuple[str, ...]) -> bool:
    """Whether it is a value that the summary gives, or a whole block: `survival`, or `survival, CNN, hazard ratio`."""
    return len(where) < 2 or (len(where) < 4 and where[1] in _HEADLINES)


_HEADLINES = {"primary tumour", "lymph node metastases", "both together", "manual delineation", "CNN"}
IN_WORDS = {
    "primary": "primary tumour",
    "nodes": "lymph node metastases",
    "all": "both together",
    "ttb": "total tumour burden",
    "man": "manual delineation",
    "cnn": "CNN",
    "hr": "hazard ratio",
    "logrank": "log-rank test",
    "cohort_dsc": "cohort DSC",
    "sensitivity_at_0.5_fp": "lesions found with 0.5 false positives a patient",
    "sensitivity_at_1_fp": "lesions found with 1 false positive a patient",
    "sensitivity_at_2_fp": "lesions found with 2 false positives a patient",
    "tpr": "share of lesions found",
    "ppv": "share of lesions confirmed",
    "tpr_primary": "true positive rate of primary tumour",
    "tpr_nodes": "true positive rate of lymph node metastases",
}


def _uncomputed(block: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in block.items():
        name = key.removesuffix("_reason")
        inside = (*where, IN_WORDS.get(name, name))
        if isinstance(value, dict):
            yield from _uncomputed(value, inside)
        elif value and key.endswith("reason"):
            yield where if key == "reason" else inside, str(value)


# --- the models


def models(study: Study) -> list[dict[str, Any]]:
    """The description of each fold's model, as far as they are trained."""
    paths = [study.fold_folder(fold) / MODEL_FILE for fold in range(study.params.folds)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


# --- the record


def _manifest(study: Study) -> dict[str, Any]:
    path = study.folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def footer(study: Study, manifest: dict[str, Any]) -> str:
    parts = [f"Study {study.params.name}"]
    parts += ["synthetic patients, no clinical claim"] if study.synthetic else []
    parts += [f"commit {manifest['commit']}"] if manifest.get("commit") else []
    parts += [f"parameters {manifest['params']['sha256'][:12]}"] if manifest else []
    return " · ".join([*parts, datetime.date.today().isoformat()])


def _parameter(params: Params, name: str) -> dict[str, Any]:
    field = Params.model_fields[name]
    meaning, _, source = (field.description or "").rpartition("; ")
    value = getattr(params, name)
    # Where data lie is no part of the protocol.
    different = name != "cohort" and value != field.get_default()
    bold = "**" if different else ""
    # With a minus sign as in the text: a line may end behind a hyphen.
    parts = [re.sub(r"^-(?=\d)", "−", str(one)) for one in (value if isinstance(value, list | tuple) else [value])]
    text = ", ".join(parts)
    return {
        "name": f"{bold}`{name}`{bold}",
        "value": f"{bold}{_plain(text)}{bold}",
        "meaning": _plain(meaning),
        "source": source,
        "different": different,
    }


def _plain(text: str) -> str:
    """Text for a cell of a Markdown table: brackets are no links, bars no columns."""
    return re.sub(r"([\[\]|])", r"\\\1", text)


def _record(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    if not manifest:
        return [("manifest.json", "not there yet")]
    machine = [(name, str(value)) for name, value in manifest["machine"].items()]
    places = {"commit": manifest["commit"] or "unknown", "seed": manifest["seed"]}
    places |= {"hash of the parameters": manifest["params"]["sha256"][:12]}
    return [(name, str(value)) for name, value in places.items()] + machine + list(manifest["versions"].items())


def _costs(manifest: dict[str, Any]) -> list[tuple[str, str, str]]:
    def row(name: str, cost: dict[str, Any]) -> tuple[str, str, str]:
        minutes, seconds = divmod(round(cost["seconds"]), 60)
        return name, f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s", f"{cost['peak_memory_mb']} MB"

    return [row(name, cost) for name, cost in manifest.get("steps", {}).items()]


def _reserved(manifest: dict[str, Any]) -> str:
    """What a cluster reserved for all steps together, in a sentence; '' for a study of one computer."""
    costs = [cost for cost in manifest.get("steps", {}).values() if "jobs" in cost]
    if not costs:
        return ""
    jobs, cpu, gpu, energy = (
        sum(c.get(key, 0) for c in costs) for key in ("jobs", "cpu_hours", "gpu_hours", "energy_kwh")
    )
    peak = max(cost["peak_memory_mb"] for cost in costs)
    used = f"{cpu:.3g} CPU-hours and {gpu:.3g} GPU-hours" + (f", {energy:.3g} kWh" if energy else "")
    unknown = "" if energy else " Its energy is not known."
    return f"A cluster ran {len(costs)} steps in {jobs} jobs: {used}; the largest process took {peak} MB.{unknown}"
