import pytest

from mtvlib.params import Params
from mtvlib.resources import Request, of_rule, request, volume_mb

PAPER = Params(device="cuda")


def test_a_prepared_patient_of_the_paper_takes_as_much_as_its_voxels():
    # 128 x 128 x 140 voxels, PET and CT of 4 bytes and the reference of one
    assert volume_mb(PAPER) == pytest.approx(128 * 128 * 140 * 9 / 1e6)


@pytest.mark.parametrize(
    ("step", "gpus"),
    [("1_cohort", 0), ("2_train_fold_3", 1), ("3_external_testing", 1), ("3_predict_0_of_2", 1), ("evaluation", 0)],
)
def test_only_networks_ask_for_a_graphics_card(step, gpus):
    assert request(step, PAPER, 100).gpu == gpus
    assert request(step, PAPER.model_copy(update={"device": "cpu"}), 100).gpu == 0


def test_a_training_on_processors_asks_for_its_activations_and_for_more_time():
    # 7.2 GB: peak of a step of the paper's network, found by following every tensor (docs/training.md)
    card = request("2_train_fold_0", PAPER, 100)
    processor = request("2_train_fold_0", PAPER.model_copy(update={"device": "cpu"}), 100)
    assert processor.mem_mb - (card.mem_mb - 4000) == pytest.approx(7.2 * 1024, rel=0.03)
    assert processor.minutes > 20 * card.minutes


def test_memory_does_not_grow_with_a_large_cohort():
    assert request("2_train_fold_0", PAPER, 10_000).mem_mb == request("2_train_fold_0", PAPER, 100_000).mem_mb


def test_after_a_kill_more_is_asked_for():
    first, second, third = (request("evaluation", PAPER, 100, attempt=attempt) for attempt in (1, 2, 3))
    assert (second.mem_mb, third.mem_mb) == (2 * first.mem_mb, 3 * first.mem_mb)
    assert (second.minutes, third.minutes) == (2 * first.minutes, 3 * first.minutes)


def test_after_a_time_limit_only_more_time_is_asked_for_and_no_more_than_the_cluster_grants():
    first = request("2_train_fold_0", PAPER, 100, most_minutes=60)
    later = request("2_train_fold_0", PAPER, 100, attempt=20, timeouts=19, most_minutes=60)
    assert later == first
    assert first.minutes == 60


def test_what_the_cluster_has_not_is_not_asked_for():
    options = {"gpus": "0", "most_minutes": "50", "most_mb": "8000"}  # as Snakemake's --config may hand them on
    assert of_rule("2_train_fold_0", PAPER, 10, options, attempt=1, timeouts=0) == Request(8000, 50, 0)
    processor = of_rule("2_train_fold_0", PAPER, 10, {"gpus": 0}, attempt=1, timeouts=0)
    assert processor == request("2_train_fold_0", PAPER.model_copy(update={"device": "cpu"}), 10)
    assert of_rule("2_train_fold_0", PAPER, 10, {}, attempt=1, timeouts=0).gpu == 1
