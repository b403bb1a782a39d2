"""Arms of the ablations: what is compared with what, and how sure the difference is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ablations
from benchmarks.ablations import Arm, cohort_dsc, compared, read_plan
from mtvlib.errors import InputError
from mtvlib.params import from_dict

PLAN = Path(ablations.__file__).with_name("ablations.yml")


@pytest.fixture
def plan(tmp_path):
    return read_plan(PLAN, tmp_path, seeds=3)


def counts(seeds, patients, both):
    """Reference and prediction of 100 voxels in each class, of which `both` agree: DSC = both / 100."""
    table = np.tile([100.0, 100.0, 0.0] * 2, (seeds, patients, 1))
    table[..., [2, 5]] = np.asarray(both, float).reshape(-1, 1, 1) if np.ndim(both) else both
    return table


def test_the_plan_has_the_arms_that_are_asked_for(plan):
    assert plan.arms[0] == Arm("base", {})
    changed = {name for arm in plan.arms for name in arm.changes}
    assert {"attention", "augment_share", "pet_normalization", "loss"} <= changed
    assert plan.ensembles == (1, 2, 3, 4, 5)
    assert plan.base_seeds == (1, 2, 3, 4, 5)
    assert sorted({arm.share for arm in plan.arms}) == [0.25, 0.5, 1.0]
    assert len(plan.runs) == 5 + 3 * (len(plan.arms) - 1)


def test_every_arm_has_the_budget_of_the_base(plan):
    budget = ("epochs", "steps_per_epoch", "batch_size", "patience")
    for arm in plan.arms:
        own = arm.params(plan.base, 7)
        assert own.seed == 7
        assert {name: getattr(own, name) for name in budget} == {name: getattr(plan.base, name) for name in budget}


def test_an_arm_that_differs_in_testing_alone_is_not_trained_again(plan):
    base, flipped = plan.arms[0], next(arm for arm in plan.arms if "test_time_flip" in arm.changes)
    assert flipped.training_key(plan.base, 1) == base.training_key(plan.base, 1)
    keys = {arm.training_key(plan.base, seed) for arm, seed in plan.runs}
    assert len(keys) == len(plan.runs) - 3  # its three seeds


def test_a_wrong_parameter_of_an_arm_is_named(plan):
    with pytest.raises(InputError, match="did you mean 'attention'"):
        Arm("x", {"atention": False}).params(plan.base, 1)


def test_dsc_by_hand():
    """Primary 2 * 30 / (40 + 60), nodes 2 * 10 / (20 + 20): the mean of 0.6 and 0.5."""
    assert cohort_dsc(np.array([40.0, 60, 30, 20, 20, 10])) == pytest.approx(0.55)


def test_the_same_counts_differ_by_nothing():
    one = counts(3, 20, 70)
    found = compared(one, one, "both")
    assert found == {"value": pytest.approx(0.7), "difference": 0, "low": 0, "high": 0}


def test_pairing_finds_a_small_difference_between_very_different_patients():
    """Patients differ by 0.8, the arms by 0.02 in each: unpaired, the interval would hold 0."""
    levels = np.linspace(10, 90, 40)
    base = np.stack([counts(1, 40, 0)[0]] * 3)
    base[..., 2] = base[..., 5] = levels
    better = base.copy()
    better[..., [2, 5]] += 2
    found = compared(better, base, "both")
    assert found["difference"] == pytest.approx(0.02)
    assert found["low"] > 0.015


def test_seeds_that_disagree_widen_the_interval():
    """The arm gains 0.1 with one seed and loses as much with another; the third changes nothing."""
    base = counts(3, 30, 50)
    found = compared(counts(3, 30, [60, 50, 40]), base, "both")
    assert found["difference"] == pytest.approx(0, abs=1e-9)
    assert found["low"] < -0.05
    assert found["high"] > 0.05
    fixed = compared(counts(3, 30, [60, 50, 40]), base, "both", draw_seeds=False)
    assert fixed["high"] - fixed["low"] < 1e-9


def test_what_did_not_help_is_said():
    rows = [
        {"arm": "base", "low": 0, "high": 0, "value": 0.7},
        {"arm": "more", "low": 0.01, "high": 0.02, "value": 0.72},
        {"arm": "less", "low": -0.02, "high": -0.01, "value": 0.68},
        {"arm": "odd", "low": -0.02, "high": 0.01, "value": 0.69},
        {"arm": "ensemble of 1", "low": 0, "high": 0, "value": 0.7},
        {"arm": "ensemble of 2", "low": 0.01, "high": 0.02, "value": 0.72},
    ]
    assert ablations.plainly(pd.DataFrame(rows)) == [
        "Better than the base: more, ensemble of 2.",
        "Worse than the base: less.",
        "Made no difference that this many patients and seeds could show: odd.",
        "What an arm leaves out helped only where leaving it out is worse.",
        "What a further network of the ensemble adds: 1 to 2: +0.020.",
    ]


def test_fewer_patients_are_some_of_the_more(monkeypatch, plan):
    class Parts:
        train, validation, test = [f"P{i}" for i in range(40)], ["V"], ["T"]

    class Study:
        cohort = None

        @staticmethod
        def patients_of(split):
            return ["E"]

    monkeypatch.setattr(ablations, "fold_patients", lambda *_: Parts)
    sizes = {share: ablations.members(Study, plan.base, share) for share in (0.25, 0.5, 1.0)}
    assert [len(one.train) for one in sizes.values()] == [10, 20, 40]
    assert set(sizes[0.25].train) < set(sizes[0.5].train) < set(sizes[1.0].train)
    assert all(one.validation == ["V"] and one.test == ["T", "E"] for one in sizes.values())


def test_the_base_is_a_study_of_its_own(plan):
    assert from_dict(plan.base.model_dump()) == plan.base
