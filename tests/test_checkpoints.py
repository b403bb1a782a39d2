"""A fold that is stopped, goes on, is extended, or meets a checkpoint that is none of its own."""

import json
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mtvlib import checkpoints, training
from mtvlib.checkpoints import check_resumable, read_state
from mtvlib.errors import InputError, WorkError
from mtvlib.training import train_fold
from tests.tiny_fold import PARAMS, TRAIN, VALIDATION, assert_same_weights


class KilledError(BaseException):
    pass


def by_class(score):
    return torch.tensor([torch.nan, score, torch.nan])


@pytest.mark.parametrize(
    ("killed_after", "extras"),
    [
        (1, {}),
        (2, {"flip": True, "ema": 0.9, "foreground_share": 0.5}),
        (3, {"optimizer": "adamw", "learning_rate": 1e-3, "learning_rate_power": 0.9}),
    ],
)
def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path, killed_after, extras):
    params = PARAMS.model_copy(update=extras)
    whole = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(state):
        if len(state.history) == killed_after:
            raise KilledError

    with pytest.raises(KilledError):
        train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "resumed", report=kill)
    resumed = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "resumed")
    assert_same_weights(whole, resumed)
    assert [e.validation_soft_dsc for e in whole.history] == [e.validation_soft_dsc for e in resumed.history]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_resume_after_the_best_epoch_keeps_its_weights(tmp_path, monkeypatch, ema):
    scores = iter([0.3, 0.5, 0.4, 0.2])
    monkeypatch.setattr(training, "soft_dsc_by_class", lambda *_: by_class(next(scores)))
    params = PARAMS.model_copy(update={"ema": ema})
    best = train_fold(TRAIN, VALIDATION, params.model_copy(update={"epochs": 2}), 0, tmp_path).best_weights
    train_fold(TRAIN, VALIDATION, params.model_copy(update={"epochs": 3}), 0, tmp_path)  # ends in a worse epoch
    resumed = train_fold(TRAIN, VALIDATION, params, 0, tmp_path)
    assert [len(resumed.history), resumed.best_epoch, resumed.best_soft_dsc] == [4, 2, 0.5]
    assert all(torch.equal(value, resumed.best_weights[name]) for name, value in best.items())
    assert not torch.equal(best["head.weight"], resumed.validated.head.weight)


def test_a_finished_fold_can_be_extended(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 2}), 0, tmp_path / "part")
    extended = train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path / "part")
    assert_same_weights(train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path / "whole"), extended)


def test_more_epochs_start_anew_where_the_learning_rate_falls_towards_the_last(tmp_path):
    falling, lines = PARAMS.model_copy(update={"learning_rate_power": 1.0}), []
    train_fold(TRAIN, VALIDATION, falling.model_copy(update={"epochs": 2}), 0, tmp_path)
    train_fold(TRAIN, VALIDATION, falling, 0, tmp_path, say=lines.append)
    assert "epochs was 2, is 4" in lines[0]


def test_a_damaged_checkpoint_is_refused_and_named(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    state = tmp_path / checkpoints.STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"training_state.safetensors.*not a readable checkpoint"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


def rewrite(state, *, about=None, without=""):
    """The checkpoint with other metadata, or without the tensors whose name begins so."""
    with safe_open(state, framework="pt") as file:
        metadata = file.metadata() if about is None else {"mtv_training": about}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(
        {name: value for name, value in tensors.items() if not (without and name.startswith(without))}, state, metadata
    )


@pytest.mark.parametrize("about", ["{}", "[]", "7", '"text"', "null", "{", '{"study": "paper", "fold": 0}'])
def test_a_checkpoint_with_damaged_metadata_is_refused_and_named(tmp_path, about):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    rewrite(tmp_path / checkpoints.STATE_FILE, about=about)
    with pytest.raises(InputError, match=r"training_state.safetensors.*not a readable checkpoint.*Remedy: delete it"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


@pytest.mark.parametrize("change", [{"history": [{}]}, {"history": 3}, {"best_epoch": 9}, {"params": []}])
def test_a_checkpoint_whose_history_makes_no_sense_is_refused(tmp_path, change):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    about, _ = read_state(tmp_path / checkpoints.STATE_FILE)
    rewrite(tmp_path / checkpoints.STATE_FILE, about=json.dumps(about | change))
    with pytest.raises(InputError, match=r"not a readable checkpoint.*Remedy: delete it"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


@pytest.mark.parametrize(
    "missing", ["network.head.bias", "mean.head.bias", "best.head.bias", "best.", "optimizer.0.step"]
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_the_tensor_named(tmp_path, missing):
    params = PARAMS.model_copy(update={"ema": 0.9})
    train_fold(TRAIN, VALIDATION, params.model_copy(update={"epochs": 1}), 0, tmp_path)
    rewrite(tmp_path / checkpoints.STATE_FILE, without=missing)
    with pytest.raises(InputError, match=rf"not a whole checkpoint.*found: {missing}.*Remedy: delete it") as error:
        train_fold(TRAIN, VALIDATION, params, 0, tmp_path)
    assert error.value.file == tmp_path / checkpoints.STATE_FILE


def test_a_full_disk_during_a_checkpoint_is_said_and_the_one_before_kept(tmp_path, monkeypatch):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    before = (tmp_path / checkpoints.STATE_FILE).read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(WorkError, match=r"training_state.*No space left on device\. Remedy: free disk space"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)
    assert (tmp_path / checkpoints.STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.STATE_FILE]


def test_a_checkpoint_larger_than_files_may_be_is_said(tmp_path):
    """The system itself refuses to write, as it does where the disk is full or a quota is used up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    result = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path / "whole")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(WorkError, match=r"training_state.*File too large\. Remedy: free disk space"):
            checkpoints.save_state(result, tmp_path / checkpoints.STATE_FILE, PARAMS, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_pickle_in_place_of_a_checkpoint_is_not_opened(tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("opened").touch, ())

    torch.save({"state": Attack()}, tmp_path / checkpoints.STATE_FILE)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)
    assert not (tmp_path / "opened").exists()


def test_a_renamed_study_goes_on(tmp_path):
    one, two = (PARAMS.model_copy(update={"epochs": epochs}) for epochs in (1, 2))
    train_fold(TRAIN, VALIDATION, one, 0, tmp_path, basis="the same")
    said = []
    renamed = two.model_copy(update={"name": "another"})
    train_fold(TRAIN, VALIDATION, renamed, 0, tmp_path, basis="the same", say=said.append)
    assert said == ["resumed after epoch 1"]


def test_a_foreign_checkpoint_is_refused(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    with pytest.raises(InputError, match="belongs to study paper, fold 0"):
        train_fold(TRAIN, VALIDATION, PARAMS, 1, tmp_path)
    with pytest.raises(InputError, match="belongs to study paper, fold 0"):
        train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"name": "other"}), 0, tmp_path)


@pytest.mark.parametrize(
    ("changed", "basis", "said"), [({"batch_size": 3}, "a", "batch_size was 2, is 3"), ({}, "b", "the images")]
)
def test_a_changed_training_starts_anew_and_keeps_the_old_checkpoint(tmp_path, changed, basis, said):
    train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path / "changed", basis="a")
    old = (tmp_path / "changed" / checkpoints.STATE_FILE).read_bytes()
    params, lines = PARAMS.model_copy(update=changed), []
    anew = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "changed", basis=basis, say=lines.append)
    assert said in lines[0]
    assert (tmp_path / "changed" / checkpoints.PREVIOUS_FILE).read_bytes() == old
    assert_same_weights(anew, train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "fresh"))


RICH = PARAMS.model_copy(
    update={
        "epochs": 3,
        "flip": True,
        "ema": 0.9,
        "foreground_share": 0.5,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "learning_rate_power": 0.9,
        "warmup_epochs": 2,
        "gradient_clip": 1.0,
        "accumulate": 2,
        "augment_share": 1.0,
        "augment_rotation_deg": 10.0,
        "augment_elastic_mm": 3.0,
        "augment_noise": 0.05,
    }
)
STEPS = 4  # of an epoch: 4 patients, 2 patches each, in twos


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {
        name: train_fold(TRAIN, VALIDATION, params, 0, tmp_path_factory.mktemp(name)) for name, params in ALL.items()
    }


ALL = {"paper": PARAMS.model_copy(update={"epochs": 3}), "rich": RICH}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("killed_before", range(3 * STEPS))
def test_a_kill_at_any_step_and_a_resume_give_the_same_weights(tmp_path, monkeypatch, whole, name, killed_before):
    steps, own = iter(range(100)), training.limit_gradient

    def maybe_killed(*arguments):
        if next(steps) == killed_before:
            raise KilledError
        return own(*arguments)

    monkeypatch.setattr(training, "limit_gradient", maybe_killed)
    with pytest.raises(KilledError):
        train_fold(TRAIN, VALIDATION, ALL[name], 0, tmp_path)
    lines = []
    resumed = train_fold(TRAIN, VALIDATION, ALL[name], 0, tmp_path, say=lines.append)
    done = killed_before // STEPS
    assert lines == ([f"resumed after epoch {done}"] if done else [])
    assert_same_weights(whole[name], resumed)


def test_killed_again_and_again_it_ends_the_same(tmp_path, monkeypatch, whole):
    own = training.run_epoch

    def one_epoch_and_a_bit(state, *arguments):
        if len(state.history) > started[-1]:
            raise KilledError
        own(state, *arguments)

    monkeypatch.setattr(training, "run_epoch", one_epoch_and_a_bit)
    started = []
    for done in range(3):
        started.append(done)
        if done < 2:
            with pytest.raises(KilledError):
                train_fold(TRAIN, VALIDATION, RICH, 0, tmp_path)
    assert_same_weights(whole["rich"], train_fold(TRAIN, VALIDATION, RICH, 0, tmp_path))


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from mtvlib import checkpoints, files
from mtvlib.training import train_fold
from tests.tiny_fold import TRAIN, VALIDATION
from tests.test_checkpoints import RICH
writes, save = [], checkpoints.save_file

def half(tensors, path, metadata):
    writes.append(path)
    save(tensors, path, metadata)
    if len(writes) == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

def renamed(source, target, replace=os.replace):
    replace(source, target)
    if len(writes) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.save_file = half
if sys.argv[2] == "renamed":
    checkpoints.save_file = lambda *a: (writes.append(a), save(*a))
    files.os.replace = renamed
train_fold(TRAIN, VALIDATION, RICH, 0, Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("when", "epochs_kept"), [("half", 1), ("renamed", 2)])
def test_a_kill_while_a_checkpoint_is_written(tmp_path, project, whole, when, epochs_kept):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), when]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.iterdir())) == (2 if when == "half" else 1)
    lines = []
    resumed = train_fold(TRAIN, VALIDATION, RICH, 0, tmp_path, say=lines.append)
    assert lines == [f"resumed after epoch {epochs_kept}"]
    assert_same_weights(whole["rich"], resumed)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.STATE_FILE]  # the half one is gone


def test_a_fold_that_ended_for_want_of_patience_goes_on_with_more(tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, 0.3, 0.6])
    monkeypatch.setattr(training, "soft_dsc_by_class", lambda *_: by_class(next(scores)))
    stopped = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"patience": 2}), 0, tmp_path)
    assert len(stopped.history) == 3
    again = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"patience": 3}), 0, tmp_path)
    assert [len(again.history), again.best_epoch] == [4, 4]


def test_less_memory_may_be_asked_for_on_the_way(tmp_path, whole):
    """`checkpoint_activations` changes no number, so a fold that ran out of memory goes on with it."""
    params = ALL["paper"]
    train_fold(TRAIN, VALIDATION, params.model_copy(update={"epochs": 1}), 0, tmp_path)
    lines = []
    saving = params.model_copy(update={"checkpoint_activations": True})
    resumed = train_fold(TRAIN, VALIDATION, saving, 0, tmp_path, say=lines.append)
    assert lines == ["resumed after epoch 1"]
    assert_same_weights(whole["paper"], resumed)


# --- a run that must go on


def test_resuming_what_never_began_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"nothing to resume: no fold of this study has a checkpoint.*--resume"):
        check_resumable([tmp_path / "folds" / "0"], PARAMS, lambda fold: None)


def test_resuming_with_other_parameters_or_images_is_an_error(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path, basis="a")
    folders = [tmp_path, tmp_path / "not_yet"]
    check_resumable(folders, PARAMS, lambda fold: "a")
    check_resumable(folders, PARAMS, lambda fold: None)  # the images are not known yet
    with pytest.raises(InputError, match=r"fold 0 cannot be resumed: .*images.*changed"):
        check_resumable(folders, PARAMS, lambda fold: "b")
    with pytest.raises(InputError, match="fold 0 cannot be resumed: batch_size was 2, is 3"):
        check_resumable(folders, PARAMS.model_copy(update={"batch_size": 3}), lambda fold: "a")
