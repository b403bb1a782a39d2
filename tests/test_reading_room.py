"""The reading room without a browser: the table and its filters, a study that runs, and what is told where none is."""

import asyncio
import os

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from mtvlib import reading_room, review_room
from mtvlib.planes import OWN
from mtvlib.reading_room import Explore, PatientList, Room, lesion_table, patient_table
from tests.reading import delineated, evaluated, prepared_study, texts, trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    made = evaluated(delineated(prepared_study(tmp_path_factory.mktemp("project"))))
    trained(made, 0, 4, done=True)
    return made


def table(**columns) -> pd.DataFrame:
    """Three patients with results, of whom the last was not evaluated."""
    known = {"dsc_all": [0.5, 0.9, None], "ttb_man_ml": [5.0, 50.0, 20.0], "expected_dsc": [0.9, 0.3, 0.6]}
    about = {"patient": ["a", "b", "c"], "site": ["x", "x", "y"], "split": "cross_validation", "cnn": "yes"}
    return pd.DataFrame(about | known | columns)


def keys(patients: PatientList) -> list[str]:
    return [row["key"] for row in patients.table.rows]


# --- the table


def test_filters_by_name_site_dsc_volume_and_uncertainty():
    patients = PatientList(table())
    patients.site.value = "x"
    assert keys(patients) == ["a", "b"]
    patients.ranges["dsc_all"].value = (0.0, 0.6)
    assert keys(patients) == ["a"]
    assert patients.count.value == "1 of 3 patients"
    patients.site.value = "all sites"
    assert keys(patients) == ["a"]  # nobody knows c's DSC
    patients.ranges["dsc_all"].value = (0.0, 1.0)
    patients.ranges["ttb_man_ml"].value = (10.0, 50.0)
    assert keys(patients) == ["b", "c"]
    patients.ranges["expected_dsc"].value = (0.5, 1.0)
    assert keys(patients) == ["c"]
    patients.name.value = "a"
    assert keys(patients) == []


def test_a_head_sorts_up_and_down_and_what_is_unknown_comes_last():
    patients = PatientList(table())
    number = patients.table.heads.index("DSC") + 1
    patients.table.sorted = number
    assert keys(patients) == ["a", "b", "c"]
    patients.table.sorted = -number
    assert keys(patients) == ["b", "a", "c"]
    assert patients.table.rows[2]["cells"][number - 1] == {"text": "–", "sort": None}


def test_of_a_large_cohort_the_first_in_the_chosen_order_are_shown():
    n = 3 * reading_room.MOST_ROWS
    many = pd.DataFrame({"patient": [f"p{i:05}" for i in range(n)], "site": "x", "split": "y", "dsc_all": range(n)})
    patients = PatientList(many.assign(dsc_all=many["dsc_all"] / n))
    patients.table.sorted = -(patients.table.heads.index("DSC") + 1)
    assert len(keys(patients)) == reading_room.MOST_ROWS
    assert keys(patients)[0] == f"p{n - 1:05}"
    assert patients.count.value == "3000 of 3000 patients, the first 1000 shown"


def test_filters_stay_while_a_study_goes_on():
    patients = PatientList(table().drop(columns=["dsc_all", "expected_dsc"]))
    assert set(patients.ranges) == {"ttb_man_ml"}
    patients.site.value = "x"
    patients.load(table())
    assert set(patients.ranges) == {"dsc_all", "ttb_man_ml", "expected_dsc"}
    assert (patients.site.value, keys(patients)) == ("x", ["a", "b"])


def test_the_table_has_what_the_study_knows_of_everybody_but_the_excluded(finished):
    heads = PatientList(patient_table(finished)).table.heads
    assert heads[3:6] == ["CNN", "DSC", "DSC primary"]
    assert heads[-1] == "Expected DSC"
    row = patient_table(finished).iloc[0]
    assert (row["patient"], row["cnn"], row["dsc_primary"], row["dsc_nodes"]) == ("a", "yes", 1, 0)


def test_lesions_are_told_in_words(finished):
    found = lesion_table(finished, "a")
    assert found[["source", "target", "outcome"]].to_numpy().tolist() == [
        ["manual", "primary", "found"],
        ["manual", "nodes", "missed"],
        ["CNN", "primary", "confirmed"],
    ]


# --- a room


def test_a_finished_study_shows_a_patient_lesions_and_curves(finished):
    room = Room(finished)
    assert room.patients.table.chosen == "a"
    assert all(panel.picture for panel in room.viewer.pictures.values())
    assert "Synthetic patients" in texts(room.box)
    assert "1 of 2 folds trained · 3 patients delineated · evaluated" in room.status.value
    assert "<svg" in room.curves.figure.value


def test_choosing_a_row_opens_the_patient_and_a_lesion_moves_the_crosshair(finished):
    room = Room(finished)
    before = room.viewer.pictures["coronal"].picture
    room.patients.table.chosen = "b"
    assert room.viewer.view.patient == "b"
    assert room.viewer.pictures["coronal"].picture != before
    room.lesions.chosen = "1"  # the missed node
    assert room.viewer.view.masks["man"][tuple(room.viewer.at)] == 2
    room.patients.table.chosen = "a"
    room.lesions.chosen = "1"  # of another patient: the same number moves again
    assert room.viewer.view.masks["man"][tuple(room.viewer.at)] == 2


def test_a_threshold_stays_while_patients_are_gone_through(finished):
    room = Room(finished)
    room.threshold.kind.value, room.threshold.where.value = "41 % of SUVmax", "man"
    room.patients.table.chosen = "b"
    assert room.threshold.where.value == "man"
    assert "41 % of SUVmax" in room.threshold.text.value
    assert room.viewer.view.patient == "b"
    assert room.viewer.view.masks[OWN].any()
    assert len(room.viewer.pictures["transaxial"].lines) == 3


def test_a_running_study_shows_what_there_is_and_then_what_comes(tmp_path):
    study = prepared_study(tmp_path)
    room = Room(study)
    assert "delineated: not yet · evaluated: not yet" in room.status.value
    assert "Patient a: the CNN's delineation is not yet there." in room.message.value
    assert room.viewer.pictures["transaxial"].picture  # the images are there already
    assert room.patients.table.heads == ["Patient", "Site", "Part", "CNN"]
    assert not room.look()
    trained(study, 0, 1)
    assert room.look()
    assert "epoch 1 of 4" in room.curves.text.value
    evaluated(delineated(study))
    assert room.look()
    assert room.message.value == ""
    assert "DSC" in room.patients.table.heads
    assert "3 patients delineated · evaluated" in room.status.value
    assert len(room.viewer.pictures["transaxial"].lines) == 2


def test_a_study_that_has_only_begun_is_no_error(tmp_path):
    study = prepared_study(tmp_path)
    (study.folder / "cohort.csv").rename(tmp_path / "cohort.csv")
    room = Room(study)
    assert room.patients.table.rows == []
    assert "patients prepared" in room.status.value
    (tmp_path / "cohort.csv").rename(study.folder / "cohort.csv")
    assert room.look()
    assert room.patients.table.chosen == "a"


def test_a_patient_whose_images_are_gone_is_told(finished):
    room = Room(finished)
    folder = finished.volumes / "c"
    folder.rename(folder.with_name("elsewhere"))
    try:
        room.patients.table.chosen = "c"
        assert room.message.value.startswith("Patient c: not yet (")
        assert room.viewer.pictures["coronal"].picture == b""
        room.patients.table.chosen = "b"
        assert room.viewer.pictures["coronal"].picture
    finally:
        folder.with_name("elsewhere").rename(folder)


# --- the choice of a study


@pytest.mark.parametrize("room", [reading_room.explore, review_room.review])
def test_where_there_is_no_study_one_message_tells_how_to_make_one(room, tmp_path):
    said = texts(room(tmp_path / "studies" / "demo")).strip()
    assert said == (
        "There is no study in the folder studies yet: <code>mtv run params/demo.yml</code>, or "
        "<code>make demo</code>, makes one of synthetic patients."
    )


def test_the_study_that_changed_last_is_opened_unless_another_is_named(tmp_path):
    for name in ("s", "t"):
        prepared_study(tmp_path, name=name)
    for name, age in (("s", 10), ("t", 20)):
        for path in (tmp_path / "studies" / name, tmp_path / "studies" / name / "params.yml"):
            os.utime(path, (age, age))
    room = Explore(tmp_path / "studies" / "demo")
    assert [label for label, _ in room.study.options] == ["t", "s"]
    assert room.room.study.params.name == "t"
    room.study.value = str(tmp_path / "studies" / "s")
    assert room.room.study.params.name == "s"
    assert Explore(tmp_path / "studies" / "s").room.study.params.name == "s"


def test_a_damaged_study_is_named_and_another_can_be_chosen(tmp_path):
    for name in ("s", "t"):
        prepared_study(tmp_path, name=name)
    (tmp_path / "studies" / "t" / "params.yml").write_text("epochs: many")
    room = Explore(tmp_path / "studies" / "t")
    assert "params.yml" in room.message.value
    room.study.value = str(tmp_path / "studies" / "s")
    assert room.message.value == ""
    assert room.room.study.params.name == "s"


def test_a_running_study_is_looked_at_until_it_is_finished_or_another_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(reading_room, "LOOK_S", 0.01)
    study = prepared_study(tmp_path)

    async def watch():
        room = Explore(study.folder)
        trained(study, 0, 3)
        while "epoch 3" not in room.room.curves.text.value:
            await asyncio.sleep(0.01)
        (study.folder / "manifest.json").write_text("{}")
        await asyncio.wait_for(room.task, 10)
        old = Explore(study.folder).task
        room.open(str(study.folder))
        await asyncio.wait_for(old, 10)  # a finished study is not looked at
        return room.task

    asyncio.run(asyncio.wait_for(watch(), 60))


def test_an_error_while_the_study_writes_does_not_end_the_looking(tmp_path):
    room = Explore(prepared_study(tmp_path).folder)
    cohort = room.room.study.folder / "cohort.csv"
    whole = cohort.read_text()
    cohort.write_text("")  # no table
    room.look_once()
    assert "cohort.csv" in room.message.value
    cohort.write_text(whole + "\n")
    room.look_once()
    assert room.message.value == ""


# --- the notebooks


STATES = {
    "finished": lambda root: evaluated(delineated(prepared_study(root))),
    "unfinished": prepared_study,
    "without CT": lambda root: evaluated(delineated(prepared_study(root, ct=False))),
    "without nodes": lambda root: evaluated(delineated(prepared_study(root, nodes=False))),
    "no study": lambda root: None,
}
STATE = "application/vnd.jupyter.widget-state+json"


def test_both_notebooks_run_from_top_to_bottom_in_every_state_of_a_study(tmp_path, project):
    """In one kernel, from a folder `notebooks` beside `studies`, as JupyterLab runs them."""
    all_states = nbformat.v4.new_notebook()
    for state, make in STATES.items():
        make(tmp_path / state)
        (tmp_path / state / "notebooks").mkdir(parents=True, exist_ok=True)
        all_states.cells.append(
            nbformat.v4.new_code_cell(f"import os; os.chdir({str(tmp_path / state / 'notebooks')!r})")
        )
        for name in ("explore", "review"):
            notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", 4)
            all_states.cells += [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in all_states.cells:
        cell["id"] = nbformat.v4.new_code_cell()["id"]
    NotebookClient(all_states, kernel_name="python3", timeout=120).execute()
    shown = [output for cell in all_states.cells for output in cell["outputs"]]
    assert [output["output_type"] for output in shown] == ["execute_result"] * 2 * len(STATES)  # and no stray line
    assert all("application/vnd.jupyter.widget-view+json" in output["data"] for output in shown)
    widgets = all_states.metadata.widgets[STATE]["state"].values()
    said = [one["state"].get("value") for one in widgets if isinstance(one["state"].get("value"), str)]
    assert sum("There is no study in the folder studies yet" in text for text in said) == 2
    assert sum("Give your initials or role to begin" in text for text in said) == 3
    assert sum("the CNN's delineation is not yet there" in text for text in said) == 2
