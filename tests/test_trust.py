"""The trust of a whole study: from maps on disk to the blocks of summary.json, the tables and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from mtvlib import inference, trust, volume
from mtvlib.cohort import read_cohort
from mtvlib.errors import InputError
from mtvlib.evaluation import evaluate_cohort, evaluate_study
from mtvlib.files import sha256, write_text
from mtvlib.network import build
from mtvlib.params import Params
from mtvlib.prepare import load_patient, prepare_patient
from mtvlib.study import Study
from mtvlib.training import network_config


@pytest.fixture
def study(tiny_cohort, tmp_path):
    """Five tiny patients, the last two external, prepared; predictions come from the tests."""
    cohort = tiny_cohort(5, {number: {"cohort": "external"} for number in (3, 4)})
    params = Params(
        name="tiny",
        cohort=str(cohort),
        studies=str(tmp_path / "studies"),
        spacing_mm=4.0,
        crop_shape=(16, 16),
        patch_shape=(16, 16, 16),
        patch_stride=4,
        filters=[4, 4, 8],
        units_per_level=1,
        attention_heads=2,
        pet_normalization="window",
        bootstrap_resamples=100,
    )
    study = Study(params)
    study.begin()
    table = read_cohort(cohort)
    table["fold"] = 0
    table["split"] = table["cohort"].map({"main": "cross_validation", "external": "external_testing"})
    study.write_cohort(table)
    for _, row in table.iterrows():
        prepare_patient(row, params, study.volumes)
    return study


def indices(study):
    return {"folds/0/predicted.csv": ["P0", "P1", "P2"], "predictions/external.csv": ["P3", "P4"]}


def predict(study, labels_of, models=3):
    """Write predictions: label maps by `labels_of(reference)`, as sure as can be; the external ones of some models."""
    for index, patients in indices(study).items():
        rows, ensemble = [], models if "external" in index else 1
        for patient in patients:
            prepared = load_patient(study.volumes, patient, study.params)
            labels = labels_of(prepared.reference).astype(np.uint8)
            maps = {"labels": labels, "probability": np.where(labels > 0, 255, 0).astype(np.uint8)}
            if ensemble > 1:
                maps["votes"] = inference.votes(np.stack([labels] * ensemble))
            paths = study.prediction_paths(patient)
            for name, array in maps.items():
                volume.write_image(volume.to_image(array, prepared.grid), paths[name])
            digests = [sha256(paths[name]) if name in maps else "" for name in ("labels", "probability", "votes")]
            rows.append([patient, *digests, ensemble])
        table = pd.DataFrame(rows, columns=inference.INDEX_COLUMNS)
        write_text(study.folder / index, table.to_csv(index=False))
    return study


def same(reference):
    return reference


def nothing(reference):
    return np.zeros_like(reference)


def blocks(study):
    summary = evaluate_study(study)
    return {name: summary[name]["trust"] for name in ("cross_validation", "external_testing")}


def test_a_perfect_and_certain_network(study):
    block = blocks(predict(study, same))["external_testing"]
    assert (block["calibration"]["ece"], block["calibration"]["brier"]) == (0, 0)
    assert (block["uncertainty"]["expected_dsc"]["mean"], block["uncertainty"]["model_dsc"]["mean"]) == (1, 1)
    assert block["uncertainty"]["models"] == 3
    assert block["lesions"] | {"auc": None} == block["lesions"]
    assert (block["lesions"]["n_confirmed"], block["lesions"]["n_spurious"]) == (4, 0)
    assert block["froc"]["sensitivity_at_0.5_fp"] == 1
    assert block["n_failures"] == {}
    assert block["triage"]["nobody"]["mean_dsc"] == 1


def test_what_predicts_nothing(study):
    block = blocks(predict(study, nothing))["cross_validation"]
    assert block["calibration"]["volume_ratio"] == 0
    assert (
        block["uncertainty"]["expected_dsc"] | {"spearman": None, "mean": 1, "excess": 1}
        == (block["uncertainty"]["expected_dsc"])
    )
    assert block["froc"]["sensitivity_at_2_fp"] == 0
    assert block["n_failures"] == {"nothing was predicted": 9}
    assert (block["triage"]["nobody"]["failed"], block["triage"]["uncertainty"]["failed"]) == (1, pytest.approx(2 / 3))


def test_the_tables_hold_every_patient_lesion_and_point(study):
    blocks(predict(study, lambda reference: np.where(reference == 1, 2, 0)))
    tables = trust.read_tables(study)
    assert {name: tuple(table.columns[1:]) for name, table in tables.items()} == trust.TABLES
    assert tables["uncertainty"]["patient"].tolist() == ["P0", "P1", "P2", "P3", "P4"]
    assert tables["uncertainty"]["model_dsc"].isna().tolist() == [True] * 3 + [False] * 2
    assert tables["lesion_uncertainty"]["models_agreeing"].dropna().tolist() == [3, 3]
    assert tables["lesion_uncertainty"]["outcome"].tolist() == ["FP"] * 5  # of the wrong class
    assert len(tables["calibration"]) == 20
    assert tables["froc"].groupby("partition")["threshold"].nunique().tolist() == [15, 15]
    assert set(tables["failures"]["what"]) == {"called the other class", "predicted elsewhere"}


def test_the_summary_on_disk_is_the_one_returned_and_the_next_is_the_same(study):
    first = evaluate_study(predict(study, same))
    assert json.loads((study.results / "summary.json").read_text()) == json.loads(json.dumps(first))
    files = {path.name: path.read_bytes() for path in study.results.glob("*")}
    evaluate_study(Study(study.params))
    assert {path.name: path.read_bytes() for path in study.results.glob("*")} == files


def test_without_external_patients_there_is_no_block_for_them(study):
    predict(study, same)
    table = study.cohort[study.cohort["cohort"] == "main"]
    study.write_cohort(table)
    summary = evaluate_study(Study(study.params))
    assert "trust" not in summary["external_testing"]
    assert summary["cross_validation"]["trust"]["uncertainty"]["models"] == 1


def test_a_cohort_of_one(study):
    predict(study, same)
    study.write_cohort(study.cohort[study.cohort["patient"] == "P4"])
    block = evaluate_study(Study(study.params))["external_testing"]["trust"]
    assert (block["uncertainty"]["expected_dsc"]["mean"], block["calibration"]["ece_ci95"]) == (1, None)


def forget_probabilities(study):
    for index in indices(study):
        table = pd.read_csv(study.folder / index)[["patient", "sha256"]]
        table.to_csv(study.folder / index, index=False)


def test_a_study_predicted_without_probabilities_says_so(study):
    predict(study, same)
    forget_probabilities(study)
    assert blocks(study)["cross_validation"] == {"reason": "3 of 3 predictions keep no probabilities"}
    assert all(table.empty for table in trust.read_tables(study).values())


def test_masks_of_another_tool_have_no_probabilities(tiny_cohort, tmp_path):
    cohort = tiny_cohort(2)
    for row in read_cohort(cohort).itertuples():
        volume.write_image(volume.read_image(row.reference), tmp_path / "masks" / f"{row.patient}.nii.gz")
    params = Params(bootstrap_resamples=100)
    summary = evaluate_cohort(cohort, tmp_path / "masks", tmp_path / "out", params)
    assert summary["cross_validation"]["trust"] == {"reason": trust.NO_MAPS}
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["cross_validation"]["trust"] == {"reason": trust.NO_MAPS}


@pytest.mark.parametrize("name", ["probability", "votes"])
@pytest.mark.parametrize("spoil", ["remove", "damage", "replace"])
def test_a_map_that_is_not_the_predicted_one_is_refused(study, name, spoil):
    predict(study, same)
    path = study.prediction_paths("P3")[name]
    if spoil == "remove":
        path.unlink()
    elif spoil == "damage":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        volume.write_image(volume.read_image(path) * 0, path)
    with pytest.raises(InputError, match=rf"patient P3, file .*{name}/P3\.nii\.gz: .*not the one.*Remedy: delete it"):
        evaluate_study(study)


# --- with what the networks write


@pytest.fixture
def models(study):
    about = {"preprocessing": study.params.part(inference.PREPROCESSING)}
    networks = [build(network_config(study.params), seed).eval() for seed in (1, 2, 3)]
    return [inference.Model(network, about) for network in networks]


def test_one_network_leaves_its_probability_and_no_votes(study, models):
    index = study.folder / "folds" / "0" / "predicted.csv"
    (row,) = inference.predict_patients(models[:1], study, ["P0"], index).to_dict("records")
    paths = study.prediction_paths("P0")
    assert (row["models"], row["votes_sha256"], paths["votes"].exists()) == (1, "", False)
    assert row["probability_sha256"] == sha256(paths["probability"])
    prepared = load_patient(study.volumes, "P0", study.params)
    p = inference.predict_probabilities([models[0].network], prepared.inputs, 16, 4)
    stored = volume.to_array(volume.read_image(paths["probability"]))
    np.testing.assert_allclose(stored / 255, 1 - p[0], atol=0.5 / 255 + 1e-6)


def test_an_ensemble_leaves_the_votes_of_each(study, models):
    index = study.predictions / "external.csv"
    (row,) = inference.predict_patients(models, study, ["P3"], index).to_dict("records")
    output = trust.load_output(study, {key: str(value) for key, value in row.items()})
    assert output.models == 3
    prepared = load_patient(study.volumes, "P3", study.params)
    for number, model in enumerate(models):
        own = inference.predict_probabilities([model.network], prepared.inputs, 16, 4)
        np.testing.assert_array_equal((output.votes >> number) & 1, inference.predict_labels(own) > 0)


@pytest.mark.parametrize("models", [8, 9, 17, 33])
def test_votes_of_many_models_are_read_as_they_were_written(tmp_path, models):
    found = inference.votes(np.random.default_rng(0).integers(0, 2, (models, 3, 4, 5)).astype(np.uint8))
    grid = volume.Grid((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    volume.write_image(volume.to_image(found, grid), tmp_path / "votes.nii.gz")
    np.testing.assert_array_equal(volume.to_array(volume.read_image(tmp_path / "votes.nii.gz")), found)


def test_predicting_again_writes_the_same_bytes(study, models):
    index = study.predictions / "external.csv"
    first = inference.predict_patients(models, study, ["P3", "P4"], index)
    pd.testing.assert_frame_equal(first, inference.predict_patients(models, study, ["P3", "P4"], index))
    assert pd.read_csv(index)["sha256"].tolist() == first["sha256"].tolist()


def test_a_patient_keeps_the_maps_that_the_same_weights_made_from_the_same_images(study, models):
    """And no others: not with other weights, nor a damaged map, nor another PET."""
    index, said = study.predictions / "external.csv", {"sha256": {inference.WEIGHTS_FILE: "aa"}}
    known = [inference.Model(model.network, model.about | said) for model in models]
    other = [
        inference.Model(model.network, model.about | {"sha256": {inference.WEIGHTS_FILE: "b"}}) for model in models
    ]

    def made_anew(by):
        before = {patient: study.prediction_path(patient).stat().st_ino for patient in ("P3", "P4")}
        row = inference.predict_patients(by, study, ["P3", "P4"], index)
        assert row["sha256"].tolist() == first["sha256"].tolist()
        return [patient for patient, inode in before.items() if study.prediction_path(patient).stat().st_ino != inode]

    first = inference.predict_patients(known, study, ["P3", "P4"], index)
    assert made_anew(known) == []
    study.prediction_paths("P4")["votes"].write_bytes(b"half")
    assert made_anew(known) == ["P4"]
    record = study.volumes / "P3" / "prepared.json"
    values = json.loads(record.read_text())
    values["sources"]["reference"]["sha256"] = "another mask"  # the network does not see it
    record.write_text(json.dumps(values))
    assert made_anew(known) == []
    values["sources"]["pet"]["sha256"] = "another PET"
    record.write_text(json.dumps(values))
    assert made_anew(known) == ["P3"]
    assert made_anew(other) == ["P3", "P4"]


def test_identical_models_do_not_disagree(study, models):
    inference.predict_patients([models[0]] * 3, study, ["P3", "P4"], study.predictions / "external.csv")
    inference.predict_patients(models[:1], study, ["P0", "P1", "P2"], study.folder / "folds" / "0" / "predicted.csv")
    assert blocks(study)["external_testing"]["uncertainty"]["model_dsc"]["mean"] == 1
