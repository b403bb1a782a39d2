"""Versions of a study, and what is said of the difference between two."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from mtvlib import changes, params
from mtvlib.errors import InputError
from mtvlib.study import Study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of three patients that is finished as far as a version needs it."""
    monkeypatch.setattr(changes, "git_commit", lambda: "aaaa")
    made = Study(params.Params(name="s", studies=str(tmp_path)))
    made.begin()
    write(made, {"b": "main 0 p1 r1", "a": "main 1 p2 r2", "x": "external - p3 r3"}, dsc=0.75)
    return made


def write(study, patients, dsc):
    """cohort.csv, prepared.csv and summary.json; `patients`: name -> 'cohort fold pet reference'."""
    rows = [(name, *words.split()) for name, words in patients.items()]
    splits = {"main": "cross_validation", "external": "external_testing", "out": "excluded"}
    cohort = [(name, splits[cohort], None if fold == "-" else int(fold)) for name, cohort, fold, _, _ in rows]
    study.write_cohort(pd.DataFrame(cohort, columns=["patient", "split", "fold"]))
    study.volumes.mkdir(exist_ok=True)
    images = [(name, pet, "", reference) for name, _, _, pet, reference in rows if pet != "-"]
    pd.DataFrame(images, columns=["patient", "pet", "ct", "reference"]).to_csv(
        study.volumes / "prepared.csv", index=False
    )
    study.results.mkdir(exist_ok=True)
    summary = {"cross_validation": {"delineation": {"all": {"cohort_dsc": dsc}}}}
    (study.results / "summary.json").write_text(json.dumps(summary))


def again(study):
    """The study as another process would open it."""
    return Study.open(study.folder)


def test_a_version_is_kept_only_when_results_or_patients_changed(study):
    assert changes.record(study).name == "0001.json"
    assert changes.record(again(study)) is None
    write(study, {"b": "main 0 p1 r1", "a": "main 1 p2 r2", "x": "external - p3 r3"}, dsc=0.80)
    assert changes.record(again(study)).name == "0002.json"
    assert [version["summary"]["cross_validation"]["delineation"]["all"]["cohort_dsc"] for version in
            changes.versions(study)] == [0.75, 0.80]  # fmt: skip


def test_one_version_has_nothing_to_be_compared_with(study):
    assert changes.since_last_version(study) is None
    changes.record(study)
    assert changes.since_last_version(study) is None


def test_each_kind_of_difference_is_told_apart(study, monkeypatch):
    changes.record(study)
    write(
        study,
        {"a": "main 1 p2 corrected", "b": "main 2 p1 r1", "c": "main 0 p9 r9", "d": "out - - -", "e": "main 1 p8 r8"},
        dsc=0.8,
    )
    monkeypatch.setattr(changes, "git_commit", lambda: "bbbb")
    changes.record(again(study))

    found = changes.since_last_version(study)

    assert (found.added, found.removed) == (["c", "d", "e"], ["x"])
    assert (found.new_reference, found.new_images, found.moved) == (["a"], [], ["b"])
    assert found.parameters == {}
    assert changes.causes(found) == [
        "3 patients (c, d, e) were added.",
        "Patient x was taken out.",
        "Patient a has a new reference.",
        "Patient b plays another part: fold, external testing or excluded.",
        "The code is another: commit aaaa, now bbbb.",
    ]


def test_a_new_site_is_told_and_an_earlier_version_without_sites_is_no_change(study):
    path = changes.record(study)
    kept = json.loads(path.read_text())
    for one in kept["patients"].values():
        del one["site"]
    path.write_text(json.dumps(kept))
    assert changes.record(again(study)) is None
    path.unlink()

    def with_sites(*sites):
        cohort = again(study).cohort.assign(site=sites)
        study.write_cohort(cohort)
        return changes.record(again(study))

    with_sites("Berlin", "Berlin", "Kiel")
    with_sites("Berlin", "Bern", "Kiel")
    found = changes.since_last_version(again(study))
    assert found.new_sites == ["Bern"]
    assert changes.causes(found) == ["The site Bern is new."]


def test_a_changed_parameter_is_told_with_both_values(study):
    changes.record(study)
    other = Study(study.params.model_copy(update={"epochs": 10, "threads": 7}))
    write(other, {"a": "main 1 p2 r2"}, dsc=0.1)
    changes.record(other)
    found = changes.since_last_version(other)
    assert found.parameters == {"epochs": (200, 10)}  # threads do not belong to the protocol
    assert "The parameter `epochs` was 200 and is 10." in changes.causes(found)


def test_many_patients_are_counted_and_not_named(study):
    changes.record(study)
    write(study, {f"p{number:02d}": "main 0 p r" for number in range(11)}, dsc=0.5)
    changes.record(again(study))
    assert changes.causes(changes.since_last_version(study))[0] == "11 patients were added."


def test_a_damaged_version_is_named_with_its_remedy(study):
    changes.record(study)
    path = study.folder / "versions" / "0001.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"0001\.json.*delete it"):
        changes.record(study)


def test_a_version_names_no_place_of_this_computer(study, tmp_path):
    text = changes.record(study).read_text()
    assert str(tmp_path) not in text
