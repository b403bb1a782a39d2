"""Training curves: what is told and drawn of the folds' histories."""

import re

import pytest

from mtvlib import inference, reading_curves
from mtvlib.reading_curves import Curves
from tests.reading import prepared_study, trained


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Fold 0 is trained, fold 1 not begun."""
    made = prepared_study(tmp_path_factory.mktemp("project"))
    trained(made, 0, 4, done=True)
    return made


def test_each_fold_is_told_how_far_it_is(tmp_path):
    study = prepared_study(tmp_path)
    curves = Curves(study)
    assert curves.text.value == "Fold 0: not yet.<br>Fold 1: not yet."
    assert curves.figure.value == ""
    trained(study, 1, 2)
    curves.update()
    assert curves.text.value == (
        "Fold 0: not yet.<br>Fold 1: epoch 2 of 4, best soft DSC 0.200 in epoch 2, at most 1.0 min left."
    )
    trained(study, 1, 4, done=True)
    curves.update()
    assert curves.text.value.endswith("Fold 1: epoch 4 of 4, best soft DSC 0.400 in epoch 4, trained.")


def test_the_curves_lie_where_the_numbers_are(study):
    """Loss 1.5, 0.75, 0.5, 0.375 on an axis to 1.5; soft DSC 0.1 to 0.4 on one to 1; four epochs over 390 px."""
    drawn = reading_curves.svg(reading_curves.histories(study))
    loss, score = (
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'polyline points="([^"]+)"', drawn)
    )
    left, top, high = reading_curves.LEFT, reading_curves.TOP, reading_curves.HEIGHT
    assert loss[0] == pytest.approx((left + 390 / 4, top), abs=0.06)
    assert loss[3] == pytest.approx((left + 390, top + high * 0.75), abs=0.06)
    assert score[3][1] == pytest.approx(top + high * 0.6, abs=0.06)
    assert ">fold 0</text>" in drawn
    assert [tick for tick in re.findall(r'text-anchor="end">([^<]+)<', drawn)] == [
        *("0", "0.5", "1", "1.5"),
        *("0", "0.2", "0.4", "0.6", "0.8", "1"),
    ]
    assert f'viewBox="0 0 {reading_curves.LEFT + 2 * 390 + 60 + 14} ' in drawn  # room for the last number


def test_a_table_that_is_written_just_now_or_empty_is_no_error(tmp_path):
    study = prepared_study(tmp_path)
    trained(study, 0, 2)
    path = study.fold_folder(0) / "history.csv"
    path.write_text("")
    assert reading_curves.histories(study) == {}
    path.write_text("epoch,train_loss,validation_soft_dsc,seconds\n")
    assert reading_curves.histories(study) == {}


def test_the_file_of_a_trained_fold_is_that_of_inference():
    assert reading_curves.MODEL_FILE == inference.MODEL_FILE
