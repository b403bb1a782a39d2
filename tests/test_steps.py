import json
import os
import socket
import sys
from pathlib import Path

import nbformat
import pytest

from mtvlib import steps
from mtvlib.errors import InputError, MtvError, WorkError
from mtvlib.params import Params, write
from mtvlib.study import Study
from tests.conftest import tiny_row, write_table


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Params(name="x", folds=2), tmp_path / "studies" / "x" / "params.yml")
    rows = [tiny_row(tmp_path / "cohort", f"P{i}", seed=i, exclusion="") for i in range(2)]
    write_table(tmp_path / "cohort" / "cohort.csv", rows)
    return Study.open(Path("studies") / "x")


def fails_with(monkeypatch, error):
    def work(study, step):
        raise error

    monkeypatch.setattr(steps, "_work", work)


def test_steps_come_in_the_order_of_the_flow():
    assert steps.step_names(2) == [
        *("1_cohort", "2_train_fold_0", "2_train_fold_1", "3_external_testing", "evaluation"),
        *("4_delineation", "5_classification", "6_lesions", "7_survival", "8_cases", "9_trust", "10_corrections"),
        "manifest",
    ]


def test_every_step_has_its_notebook_and_folds_share_one():
    assert steps.notebook_of("2_train_fold_11") == ("2_train_fold", {"fold": 11})
    assert steps.notebook_of("3_external_testing") == ("3_external_testing", {})
    notebooks = {steps.notebook_path(step) for step in steps.step_names(3) if step not in steps.MODULES}
    rooms = {steps.project_root() / "notebooks" / f"{name}.ipynb" for name in ("explore", "review")}  # no steps
    assert notebooks == set((steps.project_root() / "notebooks").glob("*.ipynb")) - rooms


# --- what a step depends on


def test_steps_have_fingerprints_of_their_own_code():
    prints = {step: steps.code_fingerprint(step) for step in steps.step_names(2)}
    assert prints["2_train_fold_0"] == prints["2_train_fold_1"]
    assert len(set(prints.values())) == len(prints) - 1


def test_a_changed_cell_changes_the_fingerprint_of_its_step_alone(tmp_path, monkeypatch):
    def fingerprints():
        return {step: steps.code_fingerprint(step) for step in ("1_cohort", "4_delineation")}

    (tmp_path / "notebooks").mkdir()
    for step in ("1_cohort", "4_delineation"):
        (tmp_path / "notebooks" / f"{step}.ipynb").write_bytes(steps.notebook_path(step).read_bytes())
    before = fingerprints()
    monkeypatch.setattr(steps, "project_root", lambda: tmp_path)
    assert fingerprints() == before
    path = tmp_path / "notebooks" / "4_delineation.ipynb"
    path.write_text(path.read_text().replace("# Delineation", "# Delineations"))
    after = fingerprints()
    assert after["1_cohort"] == before["1_cohort"]
    assert after["4_delineation"] != before["4_delineation"]


def test_a_new_correction_changes_the_fingerprint_of_corrections(study):
    assert steps.corrections_fingerprint(study) == ""
    folder = study.folder / "corrections" / "P0"
    folder.mkdir(parents=True)
    (folder / "journal-AB.jsonl").write_text("{}")  # not saved yet
    assert steps.corrections_fingerprint(study) == ""
    (folder / "1.json").write_text("{}")
    first = steps.corrections_fingerprint(study)
    (folder / "2.json").write_text("{}")
    assert len({"", first, steps.corrections_fingerprint(study)}) == 3


def test_a_changed_table_or_image_is_another_source_and_a_touched_one_is_not(study):
    pet = Path("cohort/images/P0_pet.nii.gz")
    before = steps.source_fingerprint(study)
    os.utime(pet, ns=(0, pet.stat().st_mtime_ns + 1))
    assert steps.source_fingerprint(study) == before
    pet.write_bytes(pet.read_bytes() + b"\0")
    longer = steps.source_fingerprint(study)
    study.source.write_text(study.source.read_text().replace("Berlin", "Dresden"))
    assert len({before, longer, steps.source_fingerprint(study)}) == 3


def test_an_unchanged_image_is_not_read_again(study, monkeypatch):
    before = steps.source_fingerprint(study)
    monkeypatch.setattr(steps, "sha256", None)
    assert steps.source_fingerprint(study) == before
    (study.folder / steps.HASHES).write_text("{")
    with pytest.raises(TypeError):  # it would have to be read
        steps.source_fingerprint(study)


def test_files_that_the_table_does_not_name_are_no_change(study):
    """Among them the study's own volumes and predictions, where its folder lies in the cohort's."""
    before = steps.source_fingerprint(study)
    Path("cohort/studies/x/volumes").mkdir(parents=True)
    Path("cohort/studies/x/volumes/pet.nii").touch()
    Path("cohort/notes.txt").touch()
    os.utime(study.source)
    assert steps.source_fingerprint(study) == before


def test_an_excluded_patient_may_have_lost_the_images(study):
    text = study.source.read_text().splitlines()
    study.source.write_text("\n".join([text[0], text[1] + "artefacts", text[2]]))
    before = steps.source_fingerprint(study)
    Path("cohort/images/P0_pet.nii.gz").unlink()
    assert steps.source_fingerprint(study) != before


def test_a_missing_cohort_is_said(study):
    study.source.unlink()
    with pytest.raises(InputError, match="no such cohort"):
        steps.source_fingerprint(study)


# --- running


@pytest.mark.parametrize(
    ("step", "changes", "wanted"),
    [
        ("2_train_fold_3", {}, 1),
        ("2_train_fold_3", {"devices_per_fold": 4}, 4),
        ("3_external_testing", {"devices_per_fold": 4}, 1),
        ("2_train_fold_3", {"device": "cpu", "devices_per_fold": 4}, 0),
        ("evaluation", {}, 0),
    ],
)
def test_only_steps_with_a_network_want_devices(step, changes, wanted):
    assert steps.devices_of(step, Params(**changes)) == wanted


def test_a_step_sees_the_devices_alone_that_it_holds(study, tmp_path, monkeypatch):
    two = [steps.devices.Device("0", "GPU-a"), steps.devices.Device("1", "GPU-b")]
    monkeypatch.setattr(steps.devices, "visible", lambda: two)
    monkeypatch.setattr(steps.devices.tempfile, "gettempdir", lambda: str(tmp_path))
    seen = []
    monkeypatch.setattr(steps, "_work", lambda study, step: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    with steps.devices.claim(1, pytest.fail):
        steps.run_step(study, "2_train_fold_0")
    assert seen == ["1"]


def test_a_step_leaves_its_log_and_its_cost(study, monkeypatch):
    study.say("evaluation")("of an earlier run")
    (study.logs / "evaluation.error.json").touch()
    monkeypatch.setattr(steps, "_work", lambda study, step: None)
    steps.run_step(study, "evaluation")
    cost = json.loads((study.logs / "evaluation.json").read_text())
    assert cost["seconds"] >= 0
    assert 10 < cost["peak_memory_mb"] < 100_000
    assert not (study.logs / "evaluation.error.json").exists()
    assert (study.logs / "evaluation.log").read_text().splitlines()[1:] == ["started", "finished in 0 s"]


@pytest.mark.parametrize(
    ("error", "run", "tries"),
    [
        (InputError("is damaged"), "a", 1),  # the same run, a scheduler's second try: it would end alike
        (steps.Killed("its process was killed"), "a", 2),
        (InputError("is damaged"), "another", 2),
        (InputError("is damaged"), "", 2),  # by hand
    ],
)
def test_within_a_run_an_error_of_the_steps_own_is_not_tried_again(study, monkeypatch, error, run, tries):
    done = []

    def work(*_):
        done.append(1)
        raise error

    monkeypatch.setattr(steps, "_work", work)
    for value in ("a", run):
        monkeypatch.setenv(steps.RUN, value)
        with pytest.raises(MtvError, match=error.problem):
            steps.run_step(study, "evaluation")
    assert len(done) == tries


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("is damaged", patient="P1", remedy="copy it."), 2, "patient P1: is damaged. Remedy: copy it."),
        (WorkError("the loss is nan"), 1, "the loss is nan."),
        (KeyError("dsc"), 1, "step evaluation failed: KeyError: 'dsc'."),
        (MemoryError("two\nlines"), 1, "step evaluation failed: MemoryError: two lines."),
    ],
)
def test_a_failed_step_says_why_and_passes_the_exit_code_on(study, monkeypatch, capsys, error, code, message):
    monkeypatch.setattr(steps, "die_with_parent", lambda: None)
    fails_with(monkeypatch, error)
    assert steps.main(["--study", "studies/x", "evaluation"]) == code
    told = json.loads((study.logs / "evaluation.error.json").read_text())
    assert told == {"message": message, "exit_code": code, "killed": False, "run": None}
    assert f"failed: {message}" in (study.logs / "evaluation.log").read_text()
    assert not (study.logs / "evaluation.json").exists()
    known = isinstance(error, (InputError, WorkError))
    assert ("Traceback" in capsys.readouterr().err) is not known  # for the log, where a bug must be found


def test_an_error_in_a_notebook_comes_out_as_it_went_in(study, tmp_path, monkeypatch):
    """One real kernel: the message, the kind of the error and the notebook as far as it ran."""
    raises = "from mtvlib.errors import InputError\nraise InputError('is damaged', file='a.nii')"
    cells = [
        nbformat.v4.new_code_cell("name = 'x'\nstudies = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(raises),
    ]
    (tmp_path / "notebooks").mkdir()
    metadata = {"language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "notebooks" / "1_cohort.ipynb")
    monkeypatch.setattr(steps, "project_root", lambda: tmp_path)
    with pytest.raises(InputError, match=r"^step 1_cohort failed: file a\.nii: is damaged\. \(the notebook as far"):
        steps.run_notebook(study, "1_cohort")
    assert "is damaged" in (study.logs / "1_cohort.ipynb").read_text()
    assert not (study.folder / "notebooks" / "1_cohort.ipynb").exists()


def test_a_killed_kernel_is_said(study, monkeypatch):
    import papermill
    from nbclient.exceptions import DeadKernelError

    def killed(*_, **__):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", killed)
    with pytest.raises(WorkError, match=r"2_train_fold_0 failed: its process was killed.*fewer --cores"):
        steps.run_notebook(study, "2_train_fold_0")


# --- nothing that names the machine or its user


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A base folder inside of the user's home, on a host with the name of a common word."""
    (tmp_path / "erika" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "erika"))
    monkeypatch.chdir(tmp_path / "erika" / "work")
    monkeypatch.setattr(socket, "gethostname", lambda: "data")
    return tmp_path / "erika"


def scrubbed(*outputs, source="1"):
    cell = nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"papermill": {"x": 1}, "execution": {}})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"output_path": "/secret"}})
    return nbformat.reads(steps.scrub(nbformat.writes(notebook)), as_version=4)


def stream(text):
    return nbformat.v4.new_output("stream", text=text)


def test_places_become_short_names_wherever_they_stand(machine):
    lines = f"{Path.cwd()}/a {steps.project_root()}/b {machine}/c {sys.prefix}/d"
    notebook = scrubbed(stream(lines), source=f"studies = '{Path.cwd()}/studies'")
    assert notebook.cells[0].outputs[0].text == "./a ./b ~/c <env>/d"
    assert notebook.cells[0].source == "studies = './studies'"


def test_a_place_that_is_the_beginning_of_another_name_stays(machine):
    assert scrubbed(stream(f"{machine.parent}/erikas/x")).cells[0].outputs[0].text == f"{machine.parent}/erikas/x"


def test_traces_of_papermill_go(machine):
    notebook = scrubbed()
    assert "papermill" not in notebook.metadata
    assert notebook.cells[0].metadata == {}


def test_the_host_goes_from_plain_text_and_nothing_breaks(machine):
    """Host "data": the key of every output, and a word in our own tables."""
    shown = {"text/plain": "on data", "text/html": "<td data-x='1'>data</td>"}
    outputs = scrubbed(stream("data: 3 database"), nbformat.v4.new_output("display_data", data=shown)).cells[0].outputs
    assert outputs[0].text == "<host>: 3 database"
    assert outputs[1].data == {"text/plain": "on <host>", "text/html": "<td data-x='1'>data</td>"}
