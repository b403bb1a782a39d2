import json
import signal
import subprocess

import pytest
import torch

from mtvlib import together, training
from mtvlib.checkpoints import STATE_FILE, read_about
from mtvlib.errors import InputError, WorkError
from mtvlib.prepare import Reader
from mtvlib.ranks import Ranks
from mtvlib.training import train_fold
from tests.tiny_fold import PARAMS, TRAIN, VALIDATION, WINDOWS, weights, write_prepared

# All that a step may do; 8 patches in batches of 7: the last batch has none for the second process.
RICH = PARAMS.model_copy(
    update=WINDOWS
    | {
        "batch_size": 7,
        "flip": True,
        "augment_share": 0.8,
        "augment_rotation_deg": 10.0,
        "augment_noise": 0.1,
        "ema": 0.9,
        "gradient_clip": 1.0,
    }
)
TOGETHER = {"devices_per_fold": 2}


@pytest.fixture
def patients(tmp_path):
    """Function that gives TRAIN and VALIDATION as another process can read them."""

    def of(params):
        write_prepared(tmp_path / "volumes", params)
        read = Reader(tmp_path / "volumes", params)
        return [training.Patients([name for name, *_ in part], read) for part in (TRAIN, VALIDATION)]

    return of


@pytest.fixture
def started(monkeypatch):
    """The processes that are started."""
    processes, popen = [], subprocess.Popen

    def start(*arguments, **options):
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(together.subprocess, "Popen", start)
    return processes


def test_two_processes_killed_and_resumed_train_as_one(tmp_path, patients, started):
    """After a process was killed the other ends too; to the end, losses and weights are those of one process.

    Sums are added in another order: losses agree within 1e-5 of their value, weights within 1e-3 of the way they went.
    """

    def kill(state):
        if started[1].poll() is None:
            started[1].kill()

    long = RICH.model_copy(update=TOGETHER | {"epochs": 400})
    with pytest.raises(WorkError, match=r"process 2 of the 2 that train this fold was killed \(SIGKILL\)"):
        train_fold(*patients(long), long, 0, tmp_path / "two", report=kill)
    assert all(process.poll() is not None for process in started)
    done = len(read_about(tmp_path / "two" / STATE_FILE)["history"])
    assert 0 < done < 400

    lines, reported = [], []
    rest = long.model_copy(update={"epochs": done + 1})
    two = train_fold(
        *patients(rest), rest, 0, tmp_path / "two", say=lines.append, report=lambda one: reported.append(one.best_epoch)
    )
    assert lines == [f"resumed after epoch {done}"]
    assert reported[-1] == two.best_epoch
    alone = rest.model_copy(update={"devices_per_fold": 1})
    one = train_fold(*patients(alone), alone, 0, tmp_path / "one")
    assert [len(one.history), one.best_epoch] == [len(two.history), two.best_epoch]
    for name in ("train_loss", "dice_loss", "cross_entropy", "gradient_norm", "soft_dsc_primary", "foreground_share"):
        expected = [getattr(epoch, name) for epoch in one.history]
        assert [getattr(epoch, name) for epoch in two.history] == pytest.approx(expected, rel=1e-5), name
    start = training.start(alone, 0, torch.device("cpu")).network.state_dict()
    for of in (weights, lambda state: state.mean.state_dict(), lambda state: state.best_weights):
        went = [torch.cat([(of(state)[name] - start[name]).ravel() for name in start]) for state in (one, two)]
        assert float((went[1] - went[0]).norm()) < 1e-3 * float(went[0].norm())


def test_a_process_leaves_its_error_for_the_one_that_started_it(tmp_path, monkeypatch):
    def work(job, ranks, started_here):
        assert (ranks, started_here) == (Ranks(1, 2, 1, 2), False)
        raise InputError("is damaged", file="pet.nii")

    for name, number in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(number))
    monkeypatch.setattr(together, "_work", work)
    assert together.main([str(tmp_path / "job.json")]) == 2
    with pytest.raises(InputError, match=r"^file pet\.nii: is damaged\.$"):
        raise together._failure([None, 2], tmp_path)


def failed(folder, codes, errors):
    for rank, (message, code, at) in errors.items():
        text = json.dumps({"message": message, "exit_code": code, "at": at})
        (folder / f"{rank}.error.json").write_text(text)
    for rank in range(len(codes)):
        (folder / f"{rank}.log").write_text("one\ntwo\n")
    return together._failure(codes, folder)


def test_the_error_told_is_that_of_the_process_that_failed_first(tmp_path):
    errors = {0: ("Connection closed by peer", 1, 20.0), 1: ("pet.nii is damaged", 2, 19.5)}
    error = failed(tmp_path, [1, 2, None], errors)
    assert (type(error), str(error)) == (InputError, "pet.nii is damaged.")


def test_a_process_that_could_not_tell_comes_before_those_that_missed_it(tmp_path):
    error = failed(tmp_path, [1, -signal.SIGKILL], {0: ("Connection closed by peer", 1, 20.0)})
    assert isinstance(error, WorkError)
    assert "process 2 of the 2 that train this fold was killed (SIGKILL) (found: one | two)" in str(error)


def test_patients_in_memory_cannot_be_shared(tmp_path):
    params = PARAMS.model_copy(update=TOGETHER)
    with pytest.raises(InputError, match=r"no other one can read them .found: devices_per_fold 2"):
        train_fold(TRAIN, VALIDATION, params, 0, tmp_path)
