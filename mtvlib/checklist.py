"""Reporting guidelines, item by item: what of a study answers each, and what only its investigators can.

CLAIM 2024 (Tejani et al. 2024, doi 10.1148/ryai.240300), TRIPOD+AI (Collins et al. 2024, doi 10.1136/bmj-2023-078378).
An item counts as answered by something that the study holds: a number of summary.json, a file, a table or figure of the
report. Where it holds nothing of the kind the item stays open, whatever the text of the report says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from mtvlib.describe import as_categories
from mtvlib.inference import MODEL_FILE
from mtvlib.network import Network, count_parameters
from mtvlib.study import Study
from mtvlib.tables import PARTITION_NAMES, count, interval, number, thousands, with_interval
from mtvlib.training import network_config

NAMES = {"age": "age", "sex": "sex", "tumour_site": "tumour site", "stage": "stage", "hpv": "HPV"}


@dataclass(frozen=True)
class Answer:
    """What a study says to an item, and the labels of the tables and figures that show it."""

    text: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """An item of a guideline, answered by the study or open: then `answer` is what the investigators have to state."""

    item: str
    topic: str
    open: bool
    answer: str


@dataclass(frozen=True)
class Guideline:
    name: str
    title: str
    items: list[Item]

    @property
    def n_open(self) -> int:
        return sum(item.open for item in self.items)


@dataclass(frozen=True)
class Evidence:
    """A finished study as the answers see it; `manifest` may be empty."""

    study: Study
    manifest: dict[str, Any] = field(default_factory=dict)

    def partitions(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, title in PARTITION_NAMES.items():
            if self.study.summary[name]["n_patients"]:
                yield title, self.study.summary[name]


def checklists(study: Study, labels: Collection[str], manifest: dict[str, Any]) -> list[Guideline]:
    """The guidelines with this study's answers; `labels` are those of the report's tables and figures."""
    text = resources.files("mtvlib").joinpath("data/checklists.yml").read_text(encoding="utf-8")
    evidence = Evidence(study, manifest)
    return [
        Guideline(name, one["title"], [_item(entry, evidence, labels) for entry in one["items"]])
        for name, one in yaml.safe_load(text).items()
    ]


def _item(entry: dict[str, str], evidence: Evidence, labels: Collection[str]) -> Item:
    answer = ANSWERS[entry["evidence"]](evidence) if "evidence" in entry else None
    shown = [label for label in answer.labels if label in labels] if answer else []
    if answer is None or (answer.labels and not shown):  # nothing in the report to point to
        return Item(entry["item"], entry["topic"], True, f"{entry['ask'][0].upper()}{entry['ask'][1:]}.")
    places = f" See {', '.join(f'@{label}' for label in shown)}." if shown else ""
    return Item(entry["item"], entry["topic"], False, answer.text + places)


# --- the answers: each from the study's files, None where these hold nothing of the kind


def network(evidence: Evidence) -> Answer | None:
    params = evidence.study.params
    parameters = thousands(count_parameters(Network(network_config(params))))
    attention = " with multi-head self-attention" if params.attention else ""
    text = f"Residual 3D U-Net{attention}, {', '.join(map(str, params.filters))} filters, {parameters} parameters."
    return Answer(text, ("tbl-parameters", "tbl-models"))


def summary(evidence: Evidence) -> Answer | None:
    return Answer("Purpose, methods and results, from the study's numbers.", ("tbl-glance",))


def goal(evidence: Evidence) -> Answer | None:
    done = [f"{title.lower()} in {count(block['n_patients'], 'patient')}" for title, block in evidence.partitions()]
    return Answer(f"Development and evaluation: {' and '.join(done)}.", ("tbl-delineation",)) if done else None


def intended_use(evidence: Evidence) -> Answer | None:
    stated = _about_model(evidence.study, 0).get("intended_use")
    return Answer(stated, ("tbl-models",)) if stated else None


def _about_model(study: Study, fold: int) -> dict[str, Any]:
    path = study.fold_folder(fold) / MODEL_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def sites(evidence: Evidence) -> Answer | None:
    rows = evidence.study.cohort
    named = [f"{site} {n}" for site, n in rows["site"].value_counts().sort_index().items()]
    return Answer(f"{count(len(named), 'site')}: {', '.join(named)}.", ("tbl-sites",))


def exclusions(evidence: Evidence) -> Answer | None:
    rows = evidence.study.cohort
    excluded = rows["exclusion"].fillna("") != "" if "exclusion" in rows else rows["split"].isna()
    return Answer(f"{int(excluded.sum())} of {count(len(rows), 'patient')} excluded.", ("fig-flow", "tbl-findings"))


def preprocessing(evidence: Evidence) -> Answer | None:
    params = evidence.study.params
    pet = "its own range" if params.pet_normalization == "minmax" else f"SUV {interval(params.pet_window_suv, 0)}"
    ct = f", CT from {interval(params.ct_window_hu, 0)} HU" if "ct" in params.channels else ""
    size = " × ".join(map(str, params.crop_shape))
    text = f"{params.spacing_mm:g} mm voxels, {size} in plane, PET from {pet}{ct}."
    return Answer(text, ("tbl-parameters",))


def crops(evidence: Evidence) -> Answer | None:
    text = f"Head and neck, at most {evidence.study.params.axial_mm:g} mm down from the vertex; every crop is shown."
    return Answer(text, ("tbl-prepared",))


def deidentification(evidence: Evidence) -> Answer | None:
    log = evidence.study.source.parent / "import_log.csv"
    text = "Pseudonyms by a keyed hash, dates as day counts; the log of the import lies beside cohort.csv."
    return Answer(text) if log.exists() else None


def missing(evidence: Evidence) -> Answer | None:
    rows = evidence.study.cohort
    rows = rows[rows["split"].isin(PARTITION_NAMES)]
    counts = [f"{NAMES[name]} {int(as_categories(rows[name]).isna().sum())}" for name in NAMES if name in rows]
    if not counts:
        return None
    return Answer(f"Counted, none filled in. Missing: {', '.join(counts)}.", ("tbl-patients", "tbl-survival-patients"))


def synthetic_reference(evidence: Evidence) -> Answer | None:
    if not evidence.study.synthetic:
        return None
    return Answer("Synthetic patients: adaptive threshold of the known lesions, with simulated corrections.")


def partitions(evidence: Evidence) -> Answer | None:
    params = evidence.study.params
    how = "each testing one site" if params.split_by == "site" else "balanced over sites"
    return Answer(f"{params.folds} folds, {how}, from sorted names and seed {params.seed}.", ("tbl-folds", "fig-flow"))


def disjoint(evidence: Evidence) -> Answer | None:
    return Answer("The person: all scans of one are in one part, which is checked in every run.", ("tbl-audit",))


def software(evidence: Evidence) -> Answer | None:
    versions = evidence.manifest.get("versions")
    if not versions:
        return None
    named = ", ".join(f"{name} {versions[name]}" for name in ("mtvlib", "python", "torch") if name in versions)
    commit = evidence.manifest.get("commit")
    return Answer(f"{named}{f', commit {commit}' if commit else ''}.", ("tbl-software",))


def initialisation(evidence: Evidence) -> Answer | None:
    seed = evidence.study.params.seed
    return Answer(
        f"Random (He et al. 2015), seeds {seed * 1000} and up, one a fold; not pretrained.", ("tbl-parameters",)
    )


def training(evidence: Evidence) -> Answer | None:
    params = evidence.study.params
    folds = [fold for fold in range(params.folds) if (evidence.study.fold_folder(fold) / "history.csv").exists()]
    if not folds:
        return None
    epochs = [len(evidence.study.history(fold)) for fold in folds]
    spread = f"{min(epochs)} to {max(epochs)}" if min(epochs) < max(epochs) else epochs[0]
    text = f"{params.optimizer.capitalize()}, batches of {params.batch_size}, {spread} epochs."
    return Answer(text, ("fig-training-0", "tbl-parameters"))


def selection(evidence: Evidence) -> Answer | None:
    kept = [_about_model(evidence.study, fold) for fold in range(evidence.study.params.folds)]
    epochs = [str(one["training"]["best_epoch"]) for one in kept if one]
    if not epochs:
        return None
    return Answer(f"Best soft DSC in validation: epochs {', '.join(epochs)}.", ("fig-training-0", "tbl-models"))


def ensemble(evidence: Evidence) -> Answer | None:
    n = evidence.study.params.folds
    external = (
        " External patients: the mean of all." if evidence.study.summary["external_testing"]["n_patients"] else ""
    )
    return Answer(f"{n} models; each main patient by the one that had not seen him or her.{external}", ("tbl-models",))


def metrics(evidence: Evidence) -> Answer | None:
    labels = ("tbl-delineation", "tbl-boundary", "tbl-ttb", "tbl-classification", "tbl-lesions", "tbl-survival")
    return Answer(
        "Overlap, boundary, burden, classification, lesions, prognosis; each defined above its table.", labels
    )


def uncertainty(evidence: Evidence) -> Answer | None:
    n = evidence.study.params.bootstrap_resamples
    return Answer(f"95 % intervals from {n} resamples; methods and subgroups compared by Holm.", ("tbl-delineation",))


def sensitivity(evidence: Evidence) -> Answer | None:
    if not any("lesion_choices" in block for _, block in evidence.partitions()):
        return None
    return Answer(
        "Connectivity, smallest region and coverage varied; thresholds beside.", ("tbl-choices", "tbl-comparators")
    )


def calibration(evidence: Evidence) -> Answer | None:
    errors = []
    for title, block in evidence.partitions():
        own = block.get("trust", {}).get("calibration", {})
        if own.get("ece") is not None:
            errors.append(f"{title.lower()} {number(own['ece'], 3)}")
    if not errors:
        return None
    return Answer(f"No explanation; calibration error of the probabilities: {', '.join(errors)}.", ("fig-reliability",))


def internal(evidence: Evidence) -> Answer | None:
    return _overlap(evidence, "cross_validation")


def external(evidence: Evidence) -> Answer | None:
    return _overlap(evidence, "external_testing")


def _overlap(evidence: Evidence, partition: str) -> Answer | None:
    block = evidence.study.summary[partition]
    if not block["n_patients"] or block["delineation"]["all"]["cohort_dsc"] is None:
        return None
    dsc = with_interval(block["delineation"]["all"], "cohort_dsc", 3)
    text = f"{count(block['n_patients'], 'patient')}, cohort DSC {dsc}."
    return Answer(text, ("tbl-delineation",))


def performance(evidence: Evidence) -> Answer | None:
    found = [
        f"{title.lower()} {with_interval(block['delineation']['all'], 'cohort_dsc', 3)}"
        for title, block in evidence.partitions()
    ]
    return Answer(f"Cohort DSC: {'; '.join(found)}.", ("tbl-delineation", "tbl-boundary", "tbl-ttb")) if found else None


def detection(evidence: Evidence) -> Answer | None:
    found = [
        f"{title.lower()} {with_interval(block['lesions']['all'], 'tpr', 1, 100)} % found, "
        f"{with_interval(block['lesions']['all'], 'ppv', 1, 100)} % confirmed"
        for title, block in evidence.partitions()
    ]
    return Answer(f"Lesions: {'; '.join(found)}.", ("tbl-lesions", "tbl-sensitivity", "fig-froc")) if found else None


def failures(evidence: Evidence) -> Answer | None:
    failed = [
        f"{title.lower()} {block['delineation']['all']['n_failed']} of {block['n_patients']}"
        for title, block in evidence.partitions()
        if block["delineation"]["all"].get("n_failed") is not None
    ]
    if not failed:
        return None
    return Answer(f"DSC of 0: {', '.join(failed)}; each with its likely cause.", ("tbl-failures", "tbl-failed"))


def characteristics(evidence: Evidence) -> Answer | None:
    known = [word for name, word in NAMES.items() if name in evidence.study.cohort]
    if not known:
        return None
    text = f"By partition and site, with standardised differences: {', '.join(known)}, burden."
    return Answer(text, ("tbl-patients", "tbl-burden"))


def protocol(evidence: Evidence) -> Answer | None:
    return Answer("All parameters, and the hashes of images, weights and results.", ("tbl-parameters", "tbl-software"))


def availability(evidence: Evidence) -> Answer | None:
    about = _about_model(evidence.study, 0)
    if not about:
        return None
    licence = about.get("licence", "not stated")
    return Answer(
        f"Software: Apache 2.0. Models: the study's folds/; licence of the weights: {licence}.", ("tbl-models",)
    )


def outcome(evidence: Evidence) -> Answer | None:
    analysed = [block["survival"] for _, block in evidence.partitions() if not block["survival"].get("reason")]
    if not analysed:
        return None
    text = f"Overall survival, with at least {evidence.study.params.min_followup_months:g} months of follow-up."
    return Answer(text, ("tbl-survival",))


def predictors(evidence: Evidence) -> Answer | None:
    if outcome(evidence) is None:
        return None
    return Answer("Total tumour burden in ml, manual and by the CNN, as in the paper.", ("tbl-survival", "tbl-ttb"))


def continuous(evidence: Evidence) -> Answer | None:
    if outcome(evidence) is None:
        return None
    text = "One cutoff (paper), and log2(TTB + 1) with a spline's check of linearity."
    return Answer(text, ("tbl-survival-continuous", "fig-spline-cross"))


def heterogeneity(evidence: Evidence) -> Answer | None:
    return Answer(
        "By site: overlap, hazard ratio, bootstrap over sites.",
        ("tbl-subgroups", "fig-sites-cross", "tbl-burden-sites"),
    )


def no_updating(evidence: Evidence) -> Answer | None:
    return Answer("None: the models were tested as trained.", ("tbl-models",))


def imbalance(evidence: Evidence) -> Answer | None:
    own = evidence.study.params.foreground_share
    how = "Dice loss; patches as they come" if own is None else f"Dice loss; {own:.0%} of the patches hold a lesion"
    return Answer(f"{how}.", ("tbl-parameters",))


def subgroups(evidence: Evidence) -> Answer | None:
    if not any(block.get("subgroups", {}).get("variables") for _, block in evidence.partitions()):
        return None
    return Answer(
        "Overlap by site, sex, age, stage, HPV, lesion size and uptake, where known.",
        ("fig-subgroups", "tbl-subgroups"),
    )


def output(evidence: Evidence) -> Answer | None:
    text = (
        "A label map (background, primary tumour, node metastases) to be checked by a physician; shown slice by slice."
    )
    return Answer(text, ("tbl-models",))


def events(evidence: Evidence) -> Answer | None:
    found = [
        f"{title.lower()} {block['survival']['n']} patients, {block['survival']['events']} deaths"
        for title, block in evidence.partitions()
        if block["survival"].get("events") is not None
    ]
    return Answer(f"{'; '.join(found)}.".capitalize(), ("tbl-survival", "tbl-survival-patients")) if found else None


def bad_input(evidence: Evidence) -> Answer | None:
    text = "Images are checked before use and refused with the reason; doubtful crops are marked."
    return Answer(text, ("tbl-findings", "tbl-prepared"))


ANSWERS: dict[str, Callable[[Evidence], Answer | None]] = {
    one.__name__: one
    for one in (
        *(network, summary, goal, intended_use, sites, exclusions, preprocessing, crops, deidentification, missing),
        *(synthetic_reference, partitions, disjoint, software, initialisation, training, selection, ensemble),
        *(metrics, uncertainty, sensitivity, calibration, internal, external, performance, detection, failures),
        *(characteristics, protocol, availability, outcome, predictors, continuous, heterogeneity, no_updating),
        *(imbalance, subgroups, output, events, bad_input),
    )
}
