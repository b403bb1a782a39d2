"""The audit of the folds: silent on sound ones, and each way in which folds can leak is found and named."""

import pandas as pd
import pytest

from mtvlib import audit
from mtvlib.cohort import Finding, FoldPatients, assign_folds
from mtvlib.errors import InputError
from mtvlib.params import Params

PARAMS = Params(folds=3, validation_fraction=0.2)


def folds(n=12, external=3, params=PARAMS):
    names = [f"P{i:02d}" for i in range(n + external)]
    table = pd.DataFrame({"patient": names, "site": ["a", "b", "c"] * ((n + external) // 3)})
    table = table.assign(cohort=["main"] * n + ["external"] * external, pet="p", ct="c", reference="r", exclusion="")
    return assign_folds(table.assign(person=names), params)


def leaking(monkeypatch, change):
    """Parts of the folds as `change` made them."""
    sound = audit.fold_patients
    monkeypatch.setattr(audit, "fold_patients", lambda *arguments: change(sound(*arguments)))


def test_sound_folds_pass_every_check():
    checks = audit.audit(folds(), PARAMS)
    assert [check.counted for check in checks] == [12, 12, 12, 12, 12, 15, 15]
    assert all(not check.broken for check in checks)


def test_each_site_is_tested_by_networks_that_have_not_seen_it():
    params = PARAMS.model_copy(update={"split_by": "site"})
    checks = audit.audit(folds(params=params), params)
    assert sum("sites tested and learnt from" in check.name for check in checks) == 3
    with pytest.raises(InputError, match=r"sites tested and learnt from, or more than one tested \(found: a, b, c\)"):
        audit.audit(folds(), params)  # folds over all sites


def test_a_person_in_training_and_test_is_named():
    table = folds()
    table.loc[table["fold"].isin([0, 1]), "person"] = [f"human {i % 4}" for i in range(8)]
    with pytest.raises(InputError, match=r"fold 0: persons in two of training, validation and test \(found: human"):
        audit.audit(table, PARAMS)


def test_a_patient_in_two_parts_is_named(monkeypatch):
    leaking(monkeypatch, lambda parts: FoldPatients([*parts.train, parts.test[0]], parts.validation, parts.test))
    with pytest.raises(InputError, match="fold 0: persons in two of training, validation and test"):
        audit.audit(folds(), PARAMS)


def test_a_patient_without_a_part_is_named(monkeypatch):
    leaking(monkeypatch, lambda parts: FoldPatients(parts.train[1:], parts.validation, parts.test))
    with pytest.raises(InputError, match=r"without a part or with two, and others with one \(found: P\d\d"):
        audit.audit(folds(), PARAMS)


def test_a_patient_of_the_external_cohort_in_training_is_named(monkeypatch):
    leaking(monkeypatch, lambda parts: FoldPatients([*parts.train, "P13"], parts.validation, parts.test))
    with pytest.raises(InputError, match=r"others with one \(found: P13\)"):
        audit.audit(folds(), PARAMS)


def test_a_patient_that_is_tested_twice_or_never_is_named():
    table = folds()
    moved = table.index[table["fold"] == 2][0]
    checks = audit.audit(table.assign(fold=table["fold"].where(table.index != moved, 1)), PARAMS)
    assert all(not check.broken for check in checks)  # still once
    parts = [FoldPatients([], [], ["A"]), FoldPatients([], [], ["A"])]
    assert audit._tested_once(parts, pd.DataFrame({"patient": ["A", "B"]})).broken == ["A", "B"]


def test_a_person_in_both_cohorts_is_named():
    table = folds()
    table.loc[12, "person"] = table.loc[0, "person"]
    with pytest.raises(InputError, match=r"persons in both the main and the external cohort \(found: P00\)"):
        audit.audit(table, PARAMS)


def test_a_scan_under_two_names_is_named_and_a_warning_is_not():
    copy = Finding("error", "duplicate_image", "the same PET as row 2", "", row=3, patient="P01")
    with pytest.raises(InputError, match=r"under two names, by the images' own marks \(found: P01\)"):
        audit.audit(folds(), PARAMS, [copy])
    warning = Finding("warning", "duplicate_image", "the same CT", "", row=3, patient="P01")
    assert not audit.audit(folds(), PARAMS, [warning])[-1].broken


def test_excluded_patients_are_no_part_of_it():
    table = folds()
    table.loc[12, ["split", "person"]] = "excluded", table.loc[0, "person"]
    assert audit.audit(table, PARAMS)[-2].counted == 14


def test_no_external_cohort():
    assert audit.audit(folds(12, 0), PARAMS)[-2].counted == 12
