"""Every number that a reader sees comes from the results: other values in summary.json, other values everywhere.

The same study is shown four times, with unlike sets of values in summary.json. A number that stays the same in text,
caption, alternative text or table was not taken from there, and has to have a reason.
"""

import json
import math
import random
import re
from collections import defaultdict

from mtvlib import report, report_text
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
