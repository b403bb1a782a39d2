import hashlib
import json
import shutil
import subprocess

import pandas as pd
import pytest

from mtvlib import manifest
from mtvlib.files import write_json, write_text
from mtvlib.params import Params
from mtvlib.study import Study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """What a finished study of two folds leaves, in place of weights and tables a few letters."""
    monkeypatch.chdir(tmp_path)
    study = Study(Params(name="x", cohort="cohort.csv", folds=2))
    (tmp_path / "cohort.csv").write_text("patient\nP1\n")
    for fold in (0, 1):
        write_text(study.fold_folder(fold) / "weights.safetensors", f"weights {fold}")
    index = pd.DataFrame({"patient": ["007"], "pet": ["aa"], "ct": ["bb"], "reference": [""]})
    write_text(study.volumes / "prepared.csv", index.to_csv(index=False))
    write_json(study.results / "summary.json", {"a": 1})
    write_json(study.logs / "1_cohort.json", {"seconds": 1.5, "peak_memory_mb": 300})
    write_json(study.logs / "evaluation.error.json", {"message": "of an earlier run"})
    return study


def written(study):
    manifest.write_manifest(study)
    return json.loads((study.folder / "manifest.json").read_text())


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_hashes_are_those_of_the_files(study):
    told = written(study)
    assert told["inputs"]["cohort.csv"] == sha256("patient\nP1\n")
    assert told["inputs"]["images"][0]["patient"] == "007"
    assert told["weights"] == {"folds/0": sha256("weights 0"), "folds/1": sha256("weights 1")}
    assert set(told["results"]) == {"summary.json"}
    assert told["steps"] == {"1_cohort": {"seconds": 1.5, "peak_memory_mb": 300}}


def test_folds_of_an_earlier_run_and_copies_are_not_listed(study):
    for name in ("2", "0 copy"):
        write_text(study.folder / "folds" / name / "weights.safetensors", "old")
    assert set(written(study)["weights"]) == {"folds/0", "folds/1"}


def test_the_hash_of_parameters_follows_their_values_but_not_the_place(study):
    def of(**changes):
        return manifest.params_hash(Study(study.params.model_copy(update=changes)))

    assert of(name="y", studies="elsewhere", cohort="z.csv") == of()
    assert of(epochs=3) != of()


def test_versions_are_those_installed():
    found = manifest.versions()
    assert {"python", "mtvlib", "torch", "snakemake"} <= set(found)
    assert all(found.values())


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_is_that_of_the_clone_which_runs(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x")
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "mtvlib" / "manifest.py"))
    (tmp_path / "mtvlib").mkdir()
    (tmp_path / "a").write_text("1")
    git("init", "-q")
    git("add", "a")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD").stdout[:12]
    assert manifest.git_commit() == commit
    (tmp_path / "a").write_text("2")
    assert manifest.git_commit() == f"{commit}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_an_installed_copy_does_not_take_the_commit_of_the_clone_around_it(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    package = tmp_path / ".venv" / "lib" / "mtvlib"
    package.mkdir(parents=True)
    monkeypatch.setattr(manifest, "__file__", str(package / "manifest.py"))
    assert manifest.git_commit() is None
