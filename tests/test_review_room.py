"""The review room without a browser: edits by its buttons, what is told, and what may not be seen before."""

import shutil

import numpy as np
import pytest

from mtvlib import corrections
from mtvlib.planes import OWN
from mtvlib.reading_viewer import load_view
from mtvlib.review_room import BUTTONS, Review
from tests.reading import delineated, evaluated, prepared_study, texts


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return evaluated(delineated(prepared_study(tmp_path_factory.mktemp("project"))))


@pytest.fixture
def study(shared):
    """The CNN found the primary, and missed the node; nothing is corrected."""
    shutil.rmtree(shared.folder / "corrections", ignore_errors=True)
    return shared


def begun(study, patient="a") -> Review:
    review = Review(study)
    review.patients.table.chosen = patient
    review.who.value = "AB"
    return review


def voxel(review: Review, target: int) -> list[int]:
    """A voxel of the manual primary (1) or node (2)."""
    return [int(at) for at in np.argwhere(review.viewer.view.masks["man"] == target)[0]]


def enabled(review: Review) -> set[str]:
    return {name for name, button in review.buttons.items() if not button.disabled}


def press(review: Review, name: str) -> None:
    assert not review.buttons[name].disabled
    review.buttons[name].click()


def test_it_opens_with_whom_the_network_is_least_sure_of(study):
    assert Review(study).patients.table.chosen == "b"  # expected DSC 0.3


def test_nothing_tells_of_the_manual_delineation_before_it_is_asked_for(study):
    review = begun(study)
    assert [head for head in review.patients.table.heads if "DSC" in head] == ["Expected DSC"]
    assert not any("manual" in head for head in review.patients.table.heads)
    assert "manual" not in review.viewer.text.value
    assert all(len(panel.lines) == 1 for panel in review.viewer.pictures.values())
    assert review.viewer.view.masks["cnn"][tuple(review.viewer.at)] == 1  # not at the missed node


def test_nothing_can_be_edited_before_the_log_knows_who(study):
    review = Review(study)
    assert enabled(review) == set()
    assert "initials or role" in review.text.value
    review.who.value = "no name!"
    assert "initials or a role" in review.text.value
    assert enabled(review) == set()
    review.who.value = "AB"
    assert enabled(review) == {"delete", "reclass", "propose", "unchanged"}
    assert not (study.folder / "corrections").exists()  # looking leaves nothing behind


def test_a_missed_node_is_proposed_looked_at_accepted_and_saved(study):
    review = begun(study)
    review.viewer.move_to(voxel(review, 2))
    review.target.value = "nodes"
    press(review, "propose")
    node = review.viewer.view.masks["man"] == 2
    np.testing.assert_array_equal(review.viewer.view.masks[OWN] > 0, node)
    volume_ml = node.sum() * 0.064
    assert f"Proposed, nodes: {volume_ml:.1f} ml" in review.text.value
    assert (review.session.labels == 2).sum() == 0  # a proposal is no edit
    review.viewer.move_to([0, 0, 0])  # looking about does not change what is accepted
    press(review, "accept")
    np.testing.assert_array_equal(review.session.labels, review.viewer.view.masks["man"])
    assert "1 primary, 1 node; 1 edit not yet saved" in review.text.value
    press(review, "save")
    assert "Saved as a/1-AB.nii.gz" in review.text.value
    assert enabled(review) == {"delete", "reclass", "propose", "unchanged"}
    assert [cell["text"] for cell in review.log.rows[0]["cells"]][:3] == ["a", "1", "AB"]
    np.testing.assert_array_equal(load_view(study, "a").masks["cnn"], review.viewer.view.masks["man"])
    assert load_view(study, "a", 0).masks["cnn"].max() == 1  # the CNN's own map stays


def test_a_proposal_follows_class_and_reach_and_can_be_discarded(study):
    review = begun(study)
    review.viewer.move_to(voxel(review, 2))
    press(review, "propose")
    large = review.viewer.view.masks[OWN].sum()
    review.reach.value = 5
    assert 0 < review.viewer.view.masks[OWN].sum() < large
    assert "runs on to 5 mm" in review.text.value
    review.target.value = "nodes"
    assert "Proposed, nodes" in review.text.value
    press(review, "reject")
    assert OWN not in review.viewer.view.masks
    assert "accept" not in enabled(review)
    assert review.session.edits == []


def test_wrong_clicks_say_what_to_do_and_change_nothing(study):
    review = begun(study)
    review.viewer.move_to([0, 0, 0])
    before = review.session.labels.tobytes()
    press(review, "delete")
    assert "click inside of a contour" in review.text.value
    assert review.session.labels.tobytes() == before


def test_undo_and_redo_change_contours_and_words(study):
    review = begun(study)
    review.viewer.move_to(voxel(review, 1))
    colour = [line["stroke"] for line in review.viewer.pictures["transaxial"].lines]
    press(review, "reclass")
    assert "0 primary, 1 node" in review.text.value
    assert [line["stroke"] for line in review.viewer.pictures["transaxial"].lines] != colour
    press(review, "undo")
    assert [line["stroke"] for line in review.viewer.pictures["transaxial"].lines] == colour
    press(review, "redo")
    press(review, "delete")
    assert review.viewer.pictures["MIP"].lines == []
    assert "redo" not in enabled(review)


def test_that_nothing_is_to_correct_is_kept_too(study):
    review = begun(study)
    press(review, "unchanged")
    assert corrections.log(study)[["who", "edits"]].to_numpy().tolist() == [["AB", 0]]


def test_edits_that_were_not_saved_come_back(study):
    begun(study).act("delete")
    again = begun(study)
    assert "1 edit that was not saved: back again. Now 0 primary, 0 nodes; 1 edit not yet saved." in again.text.value
    again.patients.table.chosen = "c"  # going to another patient loses none
    again.patients.table.chosen = "a"
    assert len(again.session.edits) == 1


def test_the_next_one_goes_on_from_the_last_correction(study):
    first = begun(study)
    first.act("delete")
    first.act("save")
    second = Review(study)
    second.who.value = "CD"
    second.patients.table.chosen = "a"
    assert "This goes on from correction 1. Now 0 primary, 0 nodes." in second.text.value
    assert next(row for row in second.patients.table.rows if row["key"] == "a")["cells"][3]["text"] == "corrected"


def test_who_saves_second_is_told_and_finds_the_edits_again(study):
    late = Review(study)
    late.who.value, late.patients.table.chosen = "CD", "a"
    late.act("reclass")
    first = begun(study)
    first.viewer.move_to(voxel(first, 2))
    first.act("propose")
    first.act("accept")
    first.act("save")
    late.act("save")
    assert "correction 1 was saved by AB meanwhile" in late.text.value
    again = Review(study)
    again.who.value, again.patients.table.chosen = "CD", "a"
    again.act("save")
    assert sorted(corrections.log(study)["number"]) == [1, 2]


def test_the_log_tells_whether_the_manual_delineation_was_looked_at(study):
    review = begun(study)
    review.viewer.shown["man"].value = True
    review.viewer.shown["man"].value = False
    review.act("delete")
    again = begun(study)  # the kernel died
    again.act("save")
    blind = begun(study, "c")
    blind.act("delete")
    blind.act("save")
    assert corrections.log(study).set_index("patient")["manual_shown"].to_dict() == {"a": True, "c": False}


def test_a_damaged_correction_is_told_and_others_can_be_corrected(study):
    review = begun(study)
    review.act("delete")
    review.act("save")
    (study.folder / "corrections" / "a" / "1-AB.nii.gz").write_bytes(b"changed")
    again = Review(study)
    assert "damaged" in texts(again.box)
    again.who.value, again.patients.table.chosen = "CD", "c"
    again.act("delete")
    assert len(again.session.edits) == 1


def test_a_patient_that_is_not_delineated_yet_is_told(tmp_path):
    study = prepared_study(tmp_path)
    review = Review(study)
    review.who.value = "AB"
    assert "the CNN's delineation is not yet there" in review.text.value
    assert enabled(review) == set()
    evaluated(delineated(study))
    assert review.look()
    assert "delete" in enabled(review)


def test_every_button_has_a_class_and_says_what_it_is_for(study):
    for name, button in Review(study).buttons.items():
        assert f"mtv-{name}" in button._dom_classes
        assert button.tooltip == BUTTONS[name][1]
