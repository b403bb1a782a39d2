"""Corrections of a small map drawn by hand: each edit, undo, the log, and what a crash or a second editor does."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mtvlib import corrections, params, volume
from mtvlib.classes import NODES, PRIMARY
from mtvlib.corrections import open_session
from mtvlib.errors import InputError
from mtvlib.files import sha256
from mtvlib.prepare import Prepared
from mtvlib.study import Study

SPACING_MM = (5.0, 5.0, 5.0)
INSIDE_PRIMARY, INSIDE_NODE, SPURIOUS, MISSED = (5, 5, 5), (12, 5, 5), (5, 14, 5), (14, 14, 6)


def cnn_map() -> np.ndarray:
    """A primary, a node beside it that touches it at a corner, and a spurious node; a fourth lesion is missed."""
    labels = np.zeros((20, 20, 12), np.uint8)
    labels[4:7, 4:7, 4:7] = PRIMARY
    labels[11:13, 4:6, 4:7] = NODES
    labels[5:6, 14:16, 5:6] = NODES
    return labels


def uptake() -> np.ndarray:
    suv = np.ones((20, 20, 12), np.float32)
    suv[cnn_map() > 0] = 9
    suv[13:16, 13:16, 5:8] = 6
    suv[14, 14, 6] = 8
    return suv


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with one predicted patient, whose prepared images come from memory."""
    made = Study(params.Params(name="s", studies=str(tmp_path)))
    made.begin()
    grid = volume.Grid((20, 20, 12), SPACING_MM, (0.0, 0.0, 0.0))
    volume.write_image(volume.to_image(cnn_map(), grid), made.prediction_path("p1"))
    prepared = Prepared("p1", np.zeros((2, 20, 20, 12), np.float32), suv=uptake(), reference=None, grid=grid)
    monkeypatch.setattr(corrections, "load_patient", lambda folder, patient, params: prepared)
    return made


# --- the edits


def test_a_spurious_region_is_deleted_and_no_other():
    found = corrections.delete(cnn_map(), SPURIOUS)
    assert found[5, 14:16, 5].tolist() == [0, 0]
    assert (found != cnn_map()).sum() == 2


def test_a_node_becomes_primary_and_back():
    once = corrections.reclass(cnn_map(), INSIDE_NODE)
    assert (once[11:13, 4:6, 4:7] == PRIMARY).all()
    assert (once != cnn_map()).sum() == 12
    np.testing.assert_array_equal(corrections.reclass(once, INSIDE_NODE), cnn_map())


def test_a_missed_lesion_is_delineated_from_a_click_beside_its_hottest_voxel():
    """Threshold 0.39 (8 - 1) + 1 = 3.7: the 27 voxels of SUV 6 and the one of 8."""
    found = corrections.accept(cnn_map(), uptake(), (15, 14, 6), "nodes", SPACING_MM)
    assert (found[13:16, 13:16, 5:8] == NODES).all()
    assert (found != cnn_map()).sum() == 27


def test_a_lesion_beside_a_region_does_not_take_its_voxels():
    labels = cnn_map()
    labels[13, 13:16, 5:8] = PRIMARY
    found = corrections.accept(labels, uptake(), MISSED, "nodes", SPACING_MM)
    assert (found[13, 13:16, 5:8] == PRIMARY).all()
    assert (found == NODES).sum() - (labels == NODES).sum() == 18


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: corrections.delete(cnn_map(), MISSED), "no region lies there"),
        (lambda: corrections.reclass(cnn_map(), (0, 0, 0)), "no region lies there"),
        (lambda: corrections.delete(cnn_map(), (-1, 5, 5)), "outside of the image"),
        (lambda: corrections.accept(cnn_map(), uptake(), (5, 20, 5), "nodes", SPACING_MM), "outside of the image"),
        (lambda: corrections.accept(cnn_map(), uptake(), MISSED, "brain", SPACING_MM), "is no class"),
        (lambda: corrections.accept(np.ones_like(cnn_map()), uptake(), MISSED, "nodes", SPACING_MM), "already"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(edit, message):
    with pytest.raises(InputError, match=rf"{message}.*Remedy|{message}"):
        edit()


def test_a_click_into_the_brain_does_not_make_a_lesion_of_it():
    suv = np.full((40, 40, 40), 10.0, np.float32)
    with pytest.raises(InputError, match=r"no lesion stands out"):
        corrections.accept(np.zeros(suv.shape, np.uint8), suv, (20, 20, 20), "nodes", SPACING_MM)


# --- a session


def edited(study, who="AB"):
    session = open_session(study, "p1", who)
    session.delete(SPURIOUS)
    session.accept(MISSED, "nodes")
    session.reclass(INSIDE_NODE)
    return session


def test_undo_and_redo_give_the_same_map_to_the_byte(study):
    session = edited(study)
    last = session.labels.tobytes()
    assert session.undo()
    assert session.undo()
    assert session.undo()
    assert not session.undo()
    assert session.labels.tobytes() == cnn_map().tobytes()
    assert session.redo()
    assert session.redo()
    assert session.redo()
    assert not session.redo()
    assert session.labels.tobytes() == last


def test_saving_keeps_the_cnns_map_and_tells_who_when_and_what(study):
    before = sha256(study.prediction_path("p1"))
    session = edited(study)
    session.undo()
    path = session.save()
    assert path == study.folder / "corrections" / "p1" / "1-AB.nii.gz"
    assert sha256(study.prediction_path("p1")) == before
    np.testing.assert_array_equal(volume.to_array(volume.read_labels(path)), session.labels)
    (row,) = corrections.log(study).to_dict("records")
    counts = {"base": 0, "edits": 2, "deleted": 1, "reclassified": 0, "accepted": 1, "undone": 1}
    expected = {"patient": "p1", "number": 1, "who": "AB", **counts}
    assert {name: row[name] for name in expected} == expected
    assert row["when"].endswith("+00:00")
    assert (study.folder / "corrections" / "log.csv").read_text().startswith("patient,number,who,when")
    assert not session.journal.exists()


def test_a_second_correction_goes_on_from_the_first_and_keeps_it(study):
    first = edited(study).save().read_bytes()
    session = open_session(study, "p1", "CD")
    assert session.base == 1
    session.delete(INSIDE_PRIMARY)
    assert session.save().name == "2-CD.nii.gz"
    assert (study.folder / "corrections" / "p1" / "1-AB.nii.gz").read_bytes() == first
    assert corrections.latest(study, "p1") == 2
    assert corrections.corrected_patients(study) == ["p1"]


def test_nothing_is_saved_without_an_edit(study):
    assert open_session(study, "p1", "AB").save() is None
    assert corrections.corrected_patients(study) == []
    assert corrections.log(study).empty


def test_a_dead_kernel_loses_no_edit(study):
    session = edited(study)
    session.undo()
    again = open_session(study, "p1", "AB")
    assert again.edits == session.edits
    assert again.labels.tobytes() == session.labels.tobytes()
    assert again.times_undone == 1


def test_a_map_whose_record_was_not_written_does_not_count(study, monkeypatch):
    session = edited(study)
    monkeypatch.setattr(corrections, "_write_once", lambda path, about: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        session.save()
    monkeypatch.undo()
    assert corrections.latest(study, "p1") == 0
    assert session.journal.exists()  # and so nothing is lost


def test_who_saves_second_is_refused_and_keeps_the_edits(study):
    one, other = edited(study, "AB"), open_session(study, "p1", "CD")
    other.delete(INSIDE_PRIMARY)
    other.delete(SPURIOUS)
    one.save()
    with pytest.raises(InputError, match="saved by AB meanwhile"):
        other.save()
    again = open_session(study, "p1", "CD")
    assert [edit.voxel for edit in again.edits] == [INSIDE_PRIMARY]
    assert [edit.voxel for edit in again.dropped] == [SPURIOUS]  # AB deleted it already
    assert again.save().name == "2-CD.nii.gz"


def test_two_who_save_at_once_do_not_get_one_number(study, monkeypatch):
    one, other = edited(study, "AB"), open_session(study, "p1", "CD")
    other.delete(INSIDE_PRIMARY)
    one.save()
    monkeypatch.setattr(corrections, "latest", lambda study, patient: 0)  # as CD saw it a moment before
    monkeypatch.setattr(corrections.Session, "_late", lambda self: InputError("somebody was faster"))
    with pytest.raises(InputError, match="somebody was faster"):
        other.save()
    monkeypatch.undo()
    assert json.loads((study.folder / "corrections" / "p1" / "1.json").read_text())["who"] == "AB"


@pytest.mark.parametrize("who", ["", "A B", "../x", "x" * 21])
def test_a_name_that_is_no_file_name_is_refused(study, who):
    with pytest.raises(InputError, match="initials or a role"):
        open_session(study, "p1", who)


def test_a_changed_map_is_noticed(study):
    edited(study).save().write_bytes(b"changed")
    with pytest.raises(InputError, match=r"damaged, or its map was changed"):
        open_session(study, "p1", "AB")


def test_a_damaged_journal_names_its_line(study):
    session = edited(study)
    with open(session.journal, "a") as journal:
        journal.write('{"action": "dele\n')
    with pytest.raises(InputError, match=r"damaged in line 5"):
        open_session(study, "p1", "AB")


def test_a_line_that_was_written_in_part_is_no_edit(study):
    session = edited(study)
    with open(session.journal, "a") as journal:
        journal.write('{"action": "dele')
    again = open_session(study, "p1", "AB")
    assert again.edits == session.edits
    again.undo()
    assert len(open_session(study, "p1", "AB").edits) == 2  # the journal can be read on


def test_a_kernel_that_dies_after_saving_does_not_do_the_edits_twice(study):
    session = edited(study)
    journal = session.journal.read_text()
    session.save()
    session.journal.write_text(journal)
    again = open_session(study, "p1", "AB")
    assert (again.base, again.edits, again.labels.tobytes()) == (1, [], session.labels.tobytes())
    assert not again.journal.exists()


def test_one_name_cannot_edit_a_patient_in_two_kernels(study):
    session = edited(study)
    code = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    session.close()
    lock = session.journal.with_name(".AB.lock")
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match=r"AB corrects this patient in another window"):
            open_session(study, "p1", "AB")
        assert open_session(study, "p1", "CD").edits == []
        other.kill()
    assert open_session(study, "p1", "AB").edits == session.edits


def test_a_patient_who_was_opened_again_is_edited_there_alone(study):
    old, new = edited(study), open_session(study, "p1", "AB")
    with pytest.raises(InputError, match="opened again"):
        old.delete(INSIDE_PRIMARY)
    new.delete(INSIDE_PRIMARY)
    assert len(new.edits) == 4


def test_long_pauses_are_no_time_of_editing(study, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(corrections.time, "monotonic", lambda: now)
    session = open_session(study, "p1", "AB")
    now += 20
    session.delete(SPURIOUS)
    now += 3600
    session.reclass(INSIDE_NODE)
    assert session.seconds == 20 + 60
    session.close()
    again = open_session(study, "p1", "AB")
    now += 5
    again.save()
    assert corrections.log(study)["seconds"].tolist() == [85]


def test_that_nothing_was_to_correct_can_be_kept(study):
    session = open_session(study, "p1", "AB")
    assert session.save(unchanged=True).name == "1-AB.nii.gz"
    assert corrections.log(study)["edits"].tolist() == [0]
    np.testing.assert_array_equal(open_session(study, "p1", "CD").labels, cnn_map())


def test_a_lesion_reaches_no_farther_than_allowed(study):
    """Within 6 mm of the hottest voxel lie its six neighbours of 5 mm."""
    found = corrections.accept(cnn_map(), uptake(), MISSED, "nodes", SPACING_MM, reach_mm=6.0)
    assert (found != cnn_map()).sum() == 7
    session = open_session(study, "p1", "AB")
    session.accept(MISSED, "nodes", 6.0)
    assert open_session(study, "p1", "AB").labels.tobytes() == found.tobytes()


def test_a_patient_without_a_prediction_is_named(study):
    with pytest.raises(InputError, match=r"patient p2.*no delineation yet"):
        open_session(study, "p2", "AB")
