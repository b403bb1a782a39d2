"""Which patients are shown: by a table made by hand. What is shown of them: the same field in finer pixels."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mtvlib import cases, viewer, volume
from mtvlib.lesions import find_lesions
from mtvlib.volume import Grid


def patient(name: str, dsc: float, *, cohort: str = "main", nodes: int = 1, wrong: int = 0) -> dict:
    counts = {"f_primary_voxels": wrong, "f_nodes_voxels": 0, "voxel_ml": 0.1, "n_nodes_man": nodes}
    return {"patient": name, "cohort": cohort, "dsc_all": dsc, **counts}


def lesion(name: str, source: str, target: str, outcome: str, volume_ml: float = 1.0, **more) -> dict:
    row = {"patient": name, "source": source, "target": target, "outcome": outcome, "volume_ml": volume_ml}
    return row | {"coverage": 1.0 if outcome == "TP" else 0.0, "suv_max": 9.0} | more


PATIENTS = pd.DataFrame(
    [
        patient("best", 0.95),
        patient("average", 0.80),
        patient("many", 0.75, nodes=4),
        patient("faint", 0.72),
        patient("swapped", 0.85, wrong=30),
        patient("spurious", 0.90),
        patient("no_primary", 0.10),
        patient("no_node", 0.60),
        patient("outside", 0.88, cohort="external"),
    ]
)
LESIONS = pd.DataFrame(
    [
        *(lesion(name, "man", "primary", "TP") for name in ("best", "average", "many", "outside")),
        lesion("faint", "man", "nodes", "TP", suv_max=3.1),
        lesion("swapped", "man", "primary", "FN", 9.0),  # called a node: neither missed nor spurious
        lesion("swapped", "cnn", "nodes", "FP", 9.0),
        lesion("spurious", "cnn", "nodes", "FP", 2.0),
        lesion("best", "cnn", "nodes", "FP", 5.0, coverage=0.4),  # touches a node: not spurious
        lesion("no_primary", "man", "primary", "FN", 4.0),
        lesion("no_node", "man", "nodes", "FN", 3.0),
    ]
)


def test_every_rule_finds_its_patient():
    chosen = {choice.patient: (choice.group, choice.why) for choice in cases.choose_cases(PATIENTS, LESIONS)}
    assert chosen == {
        "best": ("delineated", "best DSC of all lesions (0.95)"),
        "average": ("delineated", "DSC nearest to the median of all (0.78)"),
        "many": ("delineated", "most nodes (4)"),
        "faint": ("delineated", "faintest lesion found (SUVmax 3.1)"),
        "outside": ("delineated", "best DSC of all lesions (0.88)"),
        "swapped": ("failed", "3.0 ml called the wrong class"),
        "spurious": ("failed", "spurious node of 2.0 ml"),
        "no_primary": ("failed", "missed primary of 4.0 ml; lowest DSC of all lesions (0.10)"),
        "no_node": ("failed", "missed node of 3.0 ml"),
    }


def test_groups_and_cohorts_come_in_reading_order():
    order = [(choice.group, choice.cohort) for choice in cases.choose_cases(PATIENTS, LESIONS)]
    assert order == sorted(order, key=lambda one: (one[0] != "delineated", one[1] != "main"))


def test_the_choice_does_not_depend_on_the_order_of_rows():
    shuffled = PATIENTS.sample(frac=1, random_state=1), LESIONS.sample(frac=1, random_state=2)
    assert cases.choose_cases(*shuffled) == cases.choose_cases(PATIENTS, LESIONS)


def test_nobody_is_shown_twice_and_few_patients_give_few_cases():
    two = PATIENTS[PATIENTS["patient"].isin(["best", "many"])]
    chosen = cases.choose_cases(two, LESIONS[LESIONS["patient"].isin(two["patient"])])
    assert [choice.patient for choice in chosen] == ["best", "many"]
    assert cases.choose_cases(PATIENTS[:0], LESIONS[:0]) == []


def test_columns_are_those_that_the_evaluation_writes():
    """The choice runs on what `lesions` makes of masks, not only on the table above."""
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:3, 1:3, 1:3] = 2
    found = find_lesions(np.zeros_like(labels), labels, np.ones(labels.shape, np.float32), (5.0, 5.0, 5.0))
    chosen = cases.choose_cases(pd.DataFrame([patient("p", 0.0)]), pd.DataFrame(found).assign(patient="p"))
    assert [choice.why for choice in chosen] == ["spurious node of 1.0 ml; lowest DSC of all lesions (0.00)"]


def test_the_most_uncertain_patient_is_shown_once_also_if_another_rule_found_it():
    table = pd.DataFrame({"patient": ["best", "average", "outside"], "expected_dsc": [0.9, 0.4, 0.7]})
    chosen = {choice.patient: choice for choice in cases.choose_cases(PATIENTS, LESIONS, table)}
    assert chosen["average"].why == "DSC nearest to the median of all (0.78); most uncertain (expected DSC 0.40)"
    assert [name for name, choice in chosen.items() if "uncertain" in choice.why] == ["average", "outside"]
    only = pd.concat([PATIENTS, pd.DataFrame([patient("doubtful", 0.86)])])
    table = pd.DataFrame({"patient": ["best", "doubtful"], "expected_dsc": [0.9, 0.2]})
    last = cases.choose_cases(only, LESIONS, table)[-1]
    assert (last.patient, last.group, last.why) == ("doubtful", "uncertain", "most uncertain (expected DSC 0.20)")


# --- the files of the viewer


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of a person and a phantom, with what `write_viewers` asks it for."""
    masks = np.zeros((24, 24, 4), np.uint8)
    masks[10:14, 10:14, 1:3] = 1
    whole = viewer.ViewCase("p", np.ones(masks.shape, np.float32), masks, masks, (5.0,) * 3)
    monkeypatch.setattr(cases, "load_case", lambda study, patient: replace(whole, patient=patient))
    monkeypatch.setattr(cases, "without_face", lambda case: replace(case, pet=case.pet * 0))
    monkeypatch.setattr(cases, "crop_box", lambda case: (slice(4, 20), slice(6, 24)))
    lesion = ("man", "primary", "TP", 4.0, 1.0, 11.5, 11.5, 1.5)
    columns = ["source", "target", "outcome", "volume_ml", "suv_max", *(f"centroid_{axis}_voxel" for axis in "xyz")]
    table = pd.DataFrame([lesion] * 2, columns=columns).assign(patient=["person", "phantom"])
    return SimpleNamespace(
        folder=tmp_path,
        viewers=tmp_path / "viewers",
        lesions=table,
        cohort=pd.DataFrame({"patient": ["person", "phantom"], "synthetic": [0, 1]}),
        params=SimpleNamespace(show_faces=False),
    )


CHOSEN = [cases.Choice(name, "main", "delineated", "best") for name in ("person", "phantom")]


def told(study, patient: str) -> dict:
    text = (study.viewers / f"{patient}.js").read_text()
    return json.loads(text.removeprefix("mtvViewerCase(").removesuffix(");\n"))


def test_each_chosen_case_has_a_file_and_the_lesion_lies_where_the_crop_puts_it(study):
    listed = cases.write_viewers(study, CHOSEN)
    assert [(one.patient, one.file, one.place) for one in listed] == [
        ("person", "viewers/person.js", "Cross-validation"),
        ("phantom", "viewers/phantom.js", "Cross-validation"),
    ]
    data = told(study, "person")
    assert data["size"] == [16, 18, 4]
    assert data["lesions"][0]["centre"] == [8, 6, 2]  # 11.5 - 4, 11.5 - 6 and 1.5, each rounded
    assert pd.read_csv(study.viewers / "cases.csv")["file"].tolist() == ["viewers/person.js", "viewers/phantom.js"]


def test_only_persons_lose_their_faces_and_only_if_no_parameter_shows_them(study):
    cases.write_viewers(study, CHOSEN)
    assert [told(study, name)["faceRemoved"] for name in ("person", "phantom")] == [True, False]
    study.params.show_faces = True
    cases.write_viewers(study, CHOSEN)
    assert [told(study, name)["faceRemoved"] for name in ("person", "phantom")] == [False, False]
    study.params.show_faces, study.cohort = False, study.cohort.drop(columns="synthetic")
    cases.write_viewers(study, CHOSEN)
    assert [told(study, name)["faceRemoved"] for name in ("person", "phantom")] == [True, True]


def test_files_of_cases_that_are_no_longer_chosen_go(study):
    cases.write_viewers(study, CHOSEN)
    cases.write_viewers(study, CHOSEN[1:])
    assert sorted(path.name for path in study.viewers.iterdir()) == ["cases.csv", "phantom.js"]


@pytest.mark.parametrize(("spacing_mm", "factor"), [(2.5, 2), (5.0, 4), (1.0, 1)])
def test_finer_pixels_cover_the_same_field(spacing_mm, factor):
    coarse = Grid((6, 4, 3), (spacing_mm,) * 3, (10.0, -20.0, 30.0))
    fine = cases.finer(coarse, 1.25)
    assert fine.size == (6 * factor, 4 * factor, 3)
    np.testing.assert_allclose(fine.box_mm(), coarse.box_mm())


def test_finer_image_lies_where_the_coarse_one_lies():
    """A ramp along x keeps its value at every place, whatever the pixels."""
    coarse = Grid((8, 8, 3), (5.0, 5.0, 5.0), (-17.5, -17.5, 0.0))
    x_mm = coarse.to_mm(np.argwhere(np.ones(coarse.size)))[:, 0].reshape(coarse.size)
    fine = cases.finer(coarse, 2.5)
    ramp = volume.to_array(volume.resample(volume.to_image(x_mm.astype(np.float32), coarse), fine, outside=0))
    assert ramp[8, 8, 1] == pytest.approx(1.25)
    assert ramp[7, 8, 1] == pytest.approx(-1.25)
