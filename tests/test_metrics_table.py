"""docs/metrics.md: every cell of its tables of edge cases, computed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtvlib.evaluation import Case, evaluate, evaluate_case
from mtvlib.params import Params

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
PARAMS = Params(min_roi_ml=0, bootstrap_resamples=100)
SHAPE, MM = (12, 12, 12), (2.5, 2.5, 2.5)


def cube(side, corner):
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(start, start + side) for start in corner)] = 1
    return mask


EMPTY, LESION, VOXEL, AT_BORDER = np.zeros(SHAPE, np.uint8), cube(3, (4, 4, 4)), cube(1, (4, 4, 4)), cube(3, (0, 0, 0))
MASKS = {
    "no reference": (EMPTY, LESION),
    "no prediction": (LESION, EMPTY),
    "neither": (EMPTY, EMPTY),
    "one voxel": (VOXEL, VOXEL),
    "at the border": (AT_BORDER, AT_BORDER * (np.arange(12) > 0)[:, None, None].astype(np.uint8)),
}


def table(heading):
    """Cells (name, case, text) of the table below a heading."""
    below = PAGE.split(f"\n### {heading}")[1].split("\n#")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in below.splitlines() if line.startswith("|")
    ]
    assert head[1:] == list(MASKS)
    return [(row[0].strip("`"), case, text) for row in rows for case, text in zip(head[1:], row[1:], strict=True)]


def case_of(name, patient="A"):
    return Case(patient, *MASKS[name], np.full(SHAPE, 2.0), MM)


def agree(value, text):
    if value is None or text == "–":
        assert (value, text) == (None, "–")
    elif isinstance(value, str):
        assert value == text
    else:
        assert float(value) == pytest.approx(float(text), abs=5e-4)


@pytest.mark.parametrize(("column", "name", "text"), table("A patient"))
def test_a_patient(column, name, text):
    agree(evaluate_case(case_of(name), PARAMS)[0][column], text)


@pytest.mark.parametrize(("column", "name", "text"), table("A lesion"))
def test_a_lesion(column, name, text):
    _, found = evaluate_case(case_of(name), PARAMS)
    agree(found[0][column] if found else None, text)


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    cohort = pd.DataFrame({"patient": ["A", "B"], "cohort": "main", "site": "Ash"})
    out = tmp_path_factory.mktemp("results")
    return {
        name: evaluate([case_of(name, "A"), case_of(name, "B")], cohort, out, PARAMS)["cross_validation"]
        for name in MASKS
    }


@pytest.mark.parametrize(("key", "name", "text"), table("A cohort"))
def test_a_cohort(key, name, text, summaries):
    block = summaries[name]["delineation"]["primary"] | summaries[name]["lesions"]["primary"]
    agree(block[key], text)
    if text == "–":
        assert block.get(f"{key}_reason") or summaries[name]["delineation"]["primary"]["reason"]
