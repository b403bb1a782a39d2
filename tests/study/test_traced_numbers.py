"""Every number that a reader sees comes from the results: other values in summary.json, other values everywhere.

The same study is shown four times, with unlike sets of values in summary.json. A number that stays the same in text,
caption, alternative text or table was not taken from there, and has to have a reason.
"""

import json
import math
import random
import re
import shutil
from collections import defaultdict

import nbformat

from mtvlib import cases, figures_trust, params, report, report_text, show
from mtvlib.files import read_table, write_text
from mtvlib.params import Params
from mtvlib.study import Study
from mtvlib.typeset import csv_text
from tests.study.test_degenerate_cohorts import cohort, run_chapters, write_study

DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+")
# What may stay the same, and why.
PROTOCOL = {"0.7", "2.5", "0.1", "0.05", "0.5", "0.95", "5.0", "4.0", "0.39", "1.96"}  # parameters and definitions
OF_COUNTS = {"0.0", "100.0"}  # shares of whole numbers of patients, which are not changed here
LEAST_P = {"0.001"}  # "< 0.001"
IN_REASONS = {"12.8"}  # the words of a reason, which stand in summary.json as they are
ALLOWED = PROTOCOL | OF_COUNTS | LEAST_P | IN_REASONS
OTHER_FILES = {"fig-dsc": "patients.csv", "tbl-burden": "patients.csv", "tbl-burden-sites": "patients.csv"}


def other_values(value, numbers, key=""):
    """The same tree with every decimal number another one; p values lie where they are shown in full."""
    if isinstance(value, dict):
        return {name: other_values(one, numbers, name) for name, one in value.items()}
    if isinstance(value, list):
        return [other_values(one, numbers, key) for one in value]
    if not isinstance(value, float):
        return value
    if abs(value) <= 1 or key == "p" or key.endswith("_p"):
        return numbers.uniform(0.11, 0.97)
    return numbers.uniform(1.1, 9.9) * 10 ** math.floor(math.log10(abs(value)))


def shown_with(study, seed, project, monkeypatch):
    """Place -> text of all that chapters 4 to 7 and the report's own pages show of these values."""
    path, original = study.results / "summary.json", (study.results / "summary.json").read_text()
    path.write_text(json.dumps(other_values(json.loads(original), random.Random(seed))))
    places = defaultdict(str)
    opened = Study.open(study.folder)

    def table(one, label, caption):
        places[f"{label} caption"] += caption
        for row, line in enumerate(csv_text(one).splitlines()[1:]):
            cited = row < len(one.rows) and one.rows[row].cited
            places[f"{label} row {row}" + (" (paper)" if cited else "")] += line
        places[f"{label} notes"] += " ".join(one.notes)

    def figure(one, label, caption, alt):
        places[f"{label} caption"] += caption
        places[f"{label} alt"] += alt

    with monkeypatch.context() as patched:
        run_chapters(opened, project, patched, table=table, figure=figure, display=lambda data, **_: places.__setitem__(
            f"text {len(places)}", places[f"text {len(places)}"] + str(data.get("text/markdown", ""))
        ))  # fmt: skip
    known = report_text.context(opened, {}) | {"references": "", "pictures": []}
    for page in ("index", "model"):
        text = report.fill(report.template_folder() / f"{page}.qmd", known)
        for number, line in enumerate(text.splitlines()):
            places[f"{page} line {number}"] += _own_cells(line)
    path.write_text(original)
    return dict(places)


def _own_cells(line):
    """A line without the paper's columns of the table at a glance."""
    cells = line.split("|")
    return "|".join([*cells[:3], *cells[4:5]]) if len(cells) > 4 else line


def test_every_number_follows_summary_json(tmp_path, project, monkeypatch):
    """With four sets of values: that a rounded number is the same in all of them is no chance."""
    study = write_study(tmp_path, cohort(24, 8))
    shown = [shown_with(study, seed, project, monkeypatch) for seed in range(4)]
    assert all(one.keys() == shown[0].keys() for one in shown)
    stayed = {}
    for place in shown[0]:
        numbers = [DECIMAL.findall(one[place]) for one in shown]
        same = [found[0] for found in zip(*numbers, strict=True) if len(set(found)) == 1 and found[0] not in ALLOWED]
        if same and "(paper)" not in place and place.split()[0] not in OTHER_FILES:
            stayed[place] = same
    assert stayed == {}
    # It would pass if nothing were shown.
    assert sum(len(DECIMAL.findall(text)) for text in shown[0].values()) > 600
    assert sum(place.startswith("tbl-") for place in shown[0]) > 60


# --- the chapters on patients and on trust, and the methods


def stayed_the_same(shown, allowed):
    """Place -> decimals that are the same in all versions shown, though not `allowed`."""
    assert all(one.keys() == shown[0].keys() for one in shown)
    found = {}
    for place in shown[0]:
        numbers = zip(*(DECIMAL.findall(one[place]) for one in shown), strict=True)
        same = [versions[0] for versions in numbers if len(set(versions)) == 1 and versions[0] not in allowed]
        found |= {place: same} if same else {}
    return found


def chapter_places(study, chapter, project, monkeypatch):
    """Place -> text of all that one chapter shows; pictures are left out, their captions are not."""
    places = {}

    def keep(label, *texts):
        places[label] = " ".join(texts)

    with monkeypatch.context() as patched:
        patched.setattr(show, "show_picture", lambda png, label, caption, alt: keep(label, caption, alt))
        patched.setattr(show, "show_figure", lambda one, label, caption, alt: keep(label, caption, alt))
        patched.setattr(show, "show_html", lambda html, label, caption, alt, png: keep(label, caption, alt))
        patched.setattr(show, "show_table", lambda one, label, caption: keep(label, caption, csv_text(one), *one.notes))
        patched.setattr(show, "text", lambda words: keep(f"text {len(places)}", words))
        names = {"__name__": "__main__"}
        for cell in nbformat.read(project / "notebooks" / f"{chapter}.ipynb", 4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, chapter, "exec"), names)
                if "parameters" in cell.metadata.get("tags", []):
                    names |= {"name": study.params.name, "studies": study.params.studies}
    return places


def with_tables_changed(study, change):
    """Write every table of the results anew, its decimals as `change(column, values)` gives them."""
    for path in study.results.glob("*.csv"):
        if path.stem not in ("dictionary", "lesion_choices"):
            table = read_table(path)
            for column in table.select_dtypes("floating"):
                table[column] = change(column, table[column])
            write_text(path, table.to_csv(index=False))


def with_errors(study):
    """Tables in which one patient has three nodes, one a lesion of the wrong class, three a missed or spurious one."""
    patients, lesions = read_table(study.results / "patients.csv"), read_table(study.results / "lesions.csv")
    patients.loc[patients["patient"] == "P05", "n_nodes_man"] = 3
    patients.loc[patients["patient"] == "P04", "f_primary_voxels"] = 40
    for patient, source, target in (("P06", "man", "primary"), ("P07", "man", "nodes"), ("P09", "cnn", "nodes")):
        rows = (lesions["patient"] == patient) & (lesions["source"] == source) & (lesions["target"] == target)
        lesions.loc[rows, "coverage"] = 0.0
    write_text(study.results / "patients.csv", patients.to_csv(index=False))
    write_text(study.results / "lesions.csv", lesions.to_csv(index=False))


def test_chapter_on_patients_follows_the_tables(tmp_path, project, monkeypatch):
    """Volumes and SUV times 1, 3, 5, 7 and DSC a little lower keep the order, so the same patients are shown."""
    monkeypatch.setattr(cases, "load_case", lambda study, patient: None)
    monkeypatch.setattr(cases, "plate", lambda case: b"")
    monkeypatch.setattr(cases, "write_viewers", lambda study, choices: [])
    monkeypatch.setattr(show, "small_picture", lambda picture, alt: "")
    shown = []
    for version in range(4):
        study = write_study(tmp_path / str(version), cohort(24, 8))
        factors = {True: 1 - 0.01 * version, False: 1 + 2 * version}
        with_errors(study)
        with_tables_changed(study, lambda column, values, by=factors: values * by[column.startswith("dsc")])
        shown.append(chapter_places(Study.open(study.folder), "8_cases", project, monkeypatch))
    assert stayed_the_same(shown, {"0.00"}) == {}
    words = " ".join(shown[0].values())
    assert all(
        why in words for why in ("wrong class", "spurious node", "missed primary", "missed node", "most nodes (3)")
    )
    assert len(DECIMAL.findall(words)) > 40


def test_chapter_on_trust_follows_its_tables(finished_study, tmp_path, project, monkeypatch):
    """Its tables are summary.json's and those of the files beside it, which its figures show."""
    shutil.copytree(finished_study / "studies", tmp_path / "studies")
    study, shown = Study.open(tmp_path / "studies" / "tiny"), []
    monkeypatch.setattr(figures_trust, "show_failed", lambda *_: None)
    originals = {path: path.read_text() for path in (*study.results.glob("*.csv"), study.results / "summary.json")}
    for seed in range(4):
        numbers = random.Random(seed)
        for path, text in originals.items():
            path.write_text(text)
        with_tables_changed(study, lambda column, values, by=numbers: lower(column, values, by))
        with_causes_changed(study, numbers)
        path = study.results / "summary.json"
        path.write_text(json.dumps(other_values(json.loads(originals[path]), numbers)))
        shown.append(chapter_places(Study.open(study.folder), "9_trust", project, monkeypatch))
    definitions = {"0.05", "0.95", "0.5", "0.1"}  # thresholds and false positives a patient
    assert stayed_the_same(shown, definitions | {"0.00", "0.01"}) == {}
    assert {"fig-reliability", "fig-uncertainty", "fig-triage", "fig-froc", "tbl-failed"} <= set(shown[0])
    assert sum(len(DECIMAL.findall(text)) for text in shown[0].values()) > 150


def lower(column, values, numbers):
    """Each value times a number of its own, so that order and range stay; a threshold is what rows are named by."""
    return values if column == "threshold" else values * numbers.uniform(0.3, 0.9)


def with_causes_changed(study, numbers):
    """Causes of failures are words in the file: they get other numbers, too."""
    path = study.results / "failures.csv"
    table = read_table(path)
    for column in ("what", "why"):
        table[column] = table[column].map(
            lambda words: DECIMAL.sub(lambda _: f"{numbers.uniform(1, 9):.2f}", str(words))
        )
    write_text(path, table.to_csv(index=False))


OTHER = {  # of every parameter whose number the methods state; the study of the other tests is of the defaults
    "spacing_mm": 5.25, "crop_shape": (48, 56), "axial_mm": 333.0, "ct_window_hu": (-170.0, 210.0),
    "patch_shape": (48, 56, 12), "patch_stride": 7, "pet_normalization": "window", "pet_window_suv": (1.5, 17.0),
    "folds": 3, "validation_fraction": 0.27, "epochs": 77, "patience": 33, "batch_size": 9, "connectivity": 18,
    "min_roi_ml": 0.6, "lesion_coverage": 0.35, "outlier_percentile": 96.5, "min_followup_months": 8.5,
    "bootstrap_resamples": 190, "noninferiority_margin": 0.07, "attention": False, "units_per_level": 1,
    "filters": [8, 16, 24],
}  # fmt: skip
# What the methods define, and no parameter changes: thresholds, tenths, distances; years are those of references.
DEFINED = {"0", "0.1", "1", "2", "2.5", "3", "4.0", "5", "10", "41", "50", "95", "255"}


def test_methods_follow_the_parameters(tmp_path):
    """A number that both methods state is a definition; every parameter stands in the table with its own value."""
    texts = []
    for number, changes in enumerate(({}, OTHER)):
        study = write_study(tmp_path / str(number), cohort())
        chosen = Params(name="small", studies=study.params.studies, **changes)
        params.write(chosen, study.folder / "params.yml")
        known = report_text.context(Study.open(study.folder), {}) | {"references": ""}
        texts.append(report.fill(report.template_folder() / "methods.qmd", known))
    stated = [set(re.findall(r"\d+(?:\.\d+)?", re.sub(r"@\w+", "", text.split("## Parameters")[0]))) for text in texts]
    assert stated[0] & stated[1] <= DEFINED
    for value in (
        "5.25",
        "48",
        "333",
        "210",
        "17",
        "27",
        "77",
        "33",
        "9",
        "7",
        "18",
        "0.6",
        "35",
        "96.5",
        "8.5",
        "190",
        "0.07",
    ):
        assert value in stated[1] - stated[0]
    for name, value in OTHER.items():
        words = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        words = words.replace("-", "−")
        assert f"| **`{name}`** | **{words}** |" in texts[1]
