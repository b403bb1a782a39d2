"""The reading room without a browser: setting a control changes what is shown; numbers as computed elsewhere."""

import numpy as np
import pandas as pd
import pytest

from mtvlib import params, pet, reading_room, review_room, volume
from mtvlib.planes import OWN, View
from mtvlib.prepare import Prepared
from mtvlib.study import Study

SPACING_MM = (5.0, 5.0, 5.0)
GRID = volume.Grid((20, 20, 12), SPACING_MM, (0.0, 0.0, 0.0))


def reference() -> np.ndarray:
    labels = np.zeros((20, 20, 12), np.uint8)
    labels[4:7, 4:7, 4:7] = 1
    labels[13:16, 13:16, 5:8] = 2
    return labels


def suv() -> np.ndarray:
    values = np.ones((20, 20, 12), np.float32)
    values[reference() > 0] = 6
    values[5, 5, 5], values[14, 14, 6] = 9, 8
    return values


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of four patients, one of them excluded; the CNN delineated the first, and missed the node."""
    made = Study(params.Params(name="s", studies=str(tmp_path), folds=2))
    made.begin()
    splits = ["cross_validation", "cross_validation", "external_testing", "excluded"]
    cohort = {"patient": ["a", "b", "c", "d"], "site": ["x", "x", "y", "y"], "split": splits, "synthetic": 1}
    made.write_cohort(pd.DataFrame(cohort))
    found = reference()
    found[found == 2] = 0
    volume.write_image(volume.to_image(found, GRID), made.prediction_path("a"))
    inputs = np.zeros((2, 20, 20, 12), np.float32)
    known = {name: Prepared(name, inputs, reference(), suv(), GRID) for name in ("a", "b", "c")}

    def load(folder, patient, params):
        return known[patient]

    monkeypatch.setattr(reading_room, "load_patient", load)
    monkeypatch.setattr("mtvlib.corrections.load_patient", load)
    return made


def with_results(study: Study) -> Study:
    study.results.mkdir(exist_ok=True)
    scores = {"patient": ["a", "b", "c"], "dsc_all": [0.5, 0.9, np.nan], "dsc_primary": 0.7, "dsc_nodes": 0.1}
    pd.DataFrame(scores | {"ttb_man_ml": [5.0, 50.0, 20.0], "ttb_cnn_ml": 4.0}).to_csv(
        study.results / "patients.csv", index=False
    )
    unsure = {"patient": ["a", "b", "c"], "expected_dsc": [0.9, 0.3, 0.6]}
    pd.DataFrame(unsure).to_csv(study.results / "uncertainty.csv", index=False)
    return Study.open(study.folder)


def keys(patients: reading_room.PatientList) -> list[str]:
    return [row["key"] for row in patients.table.rows]


# --- the table


def test_the_table_has_everybody_but_the_excluded_and_what_is_known_so_far(study):
    running = reading_room.PatientList(reading_room.patient_table(study))
    assert keys(running) == ["a", "b", "c"]
    assert running.table.heads == ["Patient", "Site", "Part"]
    finished = reading_room.PatientList(reading_room.patient_table(with_results(study)))
    assert finished.table.heads[3:] == [
        "DSC", "DSC primary", "DSC nodes", "TTB manual (ml)", "TTB CNN (ml)", "Expected DSC"
    ]  # fmt: skip
    assert [cell["text"] for cell in finished.table.rows[2]["cells"]][:4] == ["c", "y", "external testing", "–"]


def test_filters_by_site_dsc_volume_and_uncertainty(study):
    patients = reading_room.PatientList(reading_room.patient_table(with_results(study)))
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


# --- the viewer


def test_a_patient_opens_at_the_hottest_voxel_of_the_manual_lesions(study):
    viewer = reading_room.Viewer()
    viewer.show(reading_room.load_view(study, "a"))
    assert viewer.at == [5, 5, 5]
    assert {plane: slider.value for plane, slider in viewer.slices.items()} == {
        "transaxial": 5, "coronal": 5, "sagittal": 5
    }  # fmt: skip


def test_each_control_changes_the_picture(study):
    viewer = reading_room.Viewer()
    viewer.show(reading_room.load_view(study, "a"))

    def changed(act) -> set[str]:
        before = {name: panel.picture for name, panel in viewer.pictures.items()}
        act()
        return {name for name, panel in viewer.pictures.items() if panel.picture != before[name]}

    assert changed(lambda: setattr(viewer.suv, "value", 3.0)) == {"transaxial", "coronal", "sagittal", "MIP"}
    assert changed(lambda: setattr(viewer.layer, "value", "CT")) == {"transaxial", "coronal", "sagittal"}
    assert changed(lambda: setattr(viewer.shown["man"], "value", False)) == {"transaxial", "coronal", "sagittal"}
    assert "transaxial" in changed(lambda: setattr(viewer.slices["transaxial"], "value", 8))
    assert viewer.at == [5, 5, 8]


def test_clicks_wheel_and_keys_in_a_picture_move_all_planes(study):
    viewer = reading_room.Viewer()
    viewer.show(reading_room.load_view(study, "a"))
    viewer._heard("transaxial", viewer.pictures["transaxial"], {"steps": 0, "place": [0.725, 0.725]})
    assert viewer.at == [14, 14, 5]
    viewer._heard("coronal", viewer.pictures["coronal"], {"steps": -3, "place": None})
    assert viewer.at == [14, 11, 5]
    viewer._heard("MIP", viewer.pictures["MIP"], {"steps": 0, "place": [0.1, 0.0]})
    assert viewer.at == [14, 11, 11]  # only the level: a projection has no depth
    viewer._heard("sagittal", viewer.pictures["sagittal"], {"steps": 99, "place": None})
    assert viewer.at == [19, 11, 11]


# --- the threshold


def view() -> View:
    return View("a", suv(), None, SPACING_MM, {"man": reference()})


def test_the_threshold_says_what_pet_says():
    mask, limit = reading_room.threshold_mask(view(), [14, 14, 6], "41 %", 4.0, 20)
    assert limit == pytest.approx(0.41 * 8)
    np.testing.assert_array_equal(mask, reference() == 2)  # 27 voxels of 0.125 ml
    words = reading_room.threshold_words(view(), mask, limit)
    tlg = pet.uptake(suv(), np.argwhere(mask), SPACING_MM).tlg
    assert words == f"SUV ≥ 3.3: <b>MTV 3.4 ml</b>, TLG {tlg:.0f}"
    assert tlg == pytest.approx((26 * 6 + 8) * 0.125)


def test_fixed_and_own_thresholds_stay_within_the_sphere():
    fixed, limit = reading_room.threshold_mask(view(), [5, 5, 5], "SUV 2.5", 4.0, 5)
    assert (limit, fixed.sum()) == (2.5, 7)  # a sphere of 5 mm: the voxel and its six neighbours
    own, limit = reading_room.threshold_mask(view(), [5, 5, 5], "own", 8.5, 50)
    assert (limit, own.sum()) == (8.5, 1)


def test_mtv_follows_the_controls_and_the_crosshair(study):
    viewer = reading_room.Viewer()
    threshold = reading_room.Threshold(viewer)
    viewer.moved = threshold.follow
    viewer.show(reading_room.load_view(study, "a"))
    threshold.kind.value = "SUV 2.5"
    assert "MTV 3.4 ml" in threshold.text.value
    viewer.move_to([0, 0, 0])
    assert threshold.text.value == "SUV ≥ 2.5: nothing"
    threshold.kind.value = "off"
    assert OWN not in viewer.view.masks


# --- training


def test_curves_grow_while_a_fold_trains_and_say_not_yet_before(study):
    curves = reading_room.Curves(study)
    assert curves.text.value == "Training: not yet."
    folder = study.fold_folder(1)
    folder.mkdir(parents=True)
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.9], "validation_soft_dsc": [0.2, 0.5], "seconds": 1})
    history.to_csv(folder / "history.csv", index=False)
    assert not curves.update()
    assert curves.text.value == "fold 1: epoch 2, best soft DSC 0.500"
    before = curves.figure.value
    history.iloc[:1].to_csv(folder / "history.csv", index=False)
    curves.update()
    assert curves.figure.value != before
    for fold in (0, 1):
        study.fold_folder(fold).mkdir(exist_ok=True)
        (study.fold_folder(fold) / "model.json").write_text("{}")
    assert curves.update()


# --- rooms


def texts(widget) -> str:
    own = getattr(widget, "value", "") if isinstance(getattr(widget, "value", ""), str) else ""
    return own + "".join(texts(child) for child in getattr(widget, "children", ()))


def test_a_folder_that_is_no_study_gives_one_clear_message(tmp_path):
    for room in (reading_room.explore, review_room.review):
        assert "is not the folder of a study" in texts(room(tmp_path))


def test_a_running_study_shows_what_there_is(study):
    room = texts(reading_room.explore(study.folder))
    assert "Evaluation: not yet" in room
    assert "Training: not yet" in room
    assert "Synthetic patients" in room


def test_a_patient_that_is_not_delineated_yet_is_told(study):
    review = review_room.Review(study)
    review.patients.table.chosen = "b"
    assert "the CNN's delineation is not yet there" in review.text.value


# --- review


def begun(study: Study) -> review_room.Review:
    review = review_room.Review(study)
    review.patients.table.chosen = "a"
    review.who.value = "AB"
    return review


def test_nothing_can_be_edited_before_the_log_knows_who(study):
    review = review_room.Review(study)
    assert all(button.disabled for button in review.buttons.values())
    assert "initials or role" in review.text.value
    review.who.value = "no name!"
    assert "initials or a role" in review.text.value
    assert all(button.disabled for button in review.buttons.values())


def test_a_missed_node_is_proposed_accepted_and_saved(study):
    review = begun(study)
    review.viewer.move_to([14, 14, 6])
    review.target.value = "nodes"
    review.act("propose")
    assert "Proposed: 3.4 ml" in review.text.value
    assert not review.buttons["accept"].disabled
    review.act("accept")
    np.testing.assert_array_equal(review.session.labels, reference())
    assert "1 edit not yet saved" in review.text.value
    review.act("save")
    assert "Saved as 1-AB.nii.gz" in review.text.value
    assert "<td>AB</td>" in review.log.value
    again = reading_room.load_view(study, "a")
    np.testing.assert_array_equal(again.masks["cnn"], reference())  # the correction is what is shown from now on


def test_wrong_clicks_say_what_to_do_and_undo_brings_back(study):
    review = begun(study)
    review.viewer.move_to([0, 0, 0])
    review.act("delete")
    assert "click inside of a contour" in review.text.value
    review.viewer.move_to([5, 5, 5])
    review.act("reclass")
    assert "0 primary, 1 nodes" in review.text.value
    review.act("undo")
    assert "1 primary, 0 nodes" in review.text.value
    review.act("redo")
    review.act("delete")
    assert not review.session.labels.any()


def test_edits_that_were_not_saved_come_back(study):
    review = begun(study)
    review.act("delete")
    assert "Your 1 edits that were not saved are back" in begun(study).text.value
