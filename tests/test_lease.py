"""Leases: who is at work, on this computer or on another, with and without locks and links."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mtvlib import lease


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.lease"


def held(path):
    taken = lease.take(path)
    assert isinstance(taken, lease.Holder)
    return taken


def of_another(path, silent_s=0.0, **changes):
    """A lease of another computer, which gave its last sign of life so long ago."""
    holder = replace(held(path), host="node7", system="another boot", job="4711")
    with open(path, "r+") as file:
        file.truncate()
        json.dump(asdict(holder) | changes, file)
    stamp = time.time() - silent_s
    os.utime(path, (stamp, stamp))
    return holder


def dead_process():
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_first_takes_it_and_the_second_sees_who_has_it(path):
    holder = held(path)
    seen = lease.take(path)
    assert (seen.holder, seen.life) == (holder, "alive")
    assert seen.holder.pid == os.getpid()
    assert [file.name for file in path.parent.iterdir()] == ["x.lease"]  # nothing temporary stays


def test_nobody_holds_what_is_not_there(path):
    assert lease.look(path) is None


def test_of_many_at_once_one_gets_it(path):
    taken, start = [], threading.Barrier(16)

    def run():
        start.wait()
        taken.append(lease.take(path))

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, lease.Holder) for one in taken) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_there_are_no_links_one_gets_it_too(path, monkeypatch, number):
    def link(*_):
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", link)
    assert isinstance(lease.take(path), lease.Holder)
    assert isinstance(lease.take(path), lease.Seen)


def test_a_server_whose_answer_got_lost_has_made_the_link_all_the_same(path, monkeypatch):
    really = os.link

    def link(*names):
        really(*names)
        raise FileExistsError(errno.EEXIST, "the second try of a request that was done")

    monkeypatch.setattr(os, "link", link)
    assert isinstance(lease.take(path), lease.Holder)


def test_where_each_name_of_a_file_has_its_own_number_one_gets_it_and_silence_proves_nothing(path, monkeypatch):
    """As on sshfs, which tells neither how many names a file has nor that two are one."""

    def link(known, new):
        with open(new, "xb") as file:
            file.write(Path(known).read_bytes())

    monkeypatch.setattr(os, "link", link)
    assert isinstance(lease.take(path), lease.Holder)
    assert isinstance(lease.take(path), lease.Seen)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    path.unlink()
    of_another(path, silent_s=lease.SILENCE_S + 60)
    assert lease.look(path).life == "silent"


def test_a_full_disk_is_an_error_and_no_lease(path, monkeypatch):
    def link(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="No space left"):
        lease.take(path)
    assert list(path.parent.iterdir()) == []


# --- whose holder is gone


def test_that_of_a_dead_process_is_taken_over(path):
    path.write_text(json.dumps(asdict(replace(held(path), pid=dead_process()))))
    assert lease.look(path).life == "dead"
    assert isinstance(lease.take(path), lease.Holder)


def test_a_number_that_was_used_again_is_another_process(path):
    path.write_text(json.dumps(asdict(replace(held(path), started="7"))))
    assert lease.look(path).life == "dead"


def test_another_computers_is_held_as_long_as_it_gives_signs_of_life(path):
    of_another(path, silent_s=lease.SILENCE_S - 60)
    seen = lease.take(path, over=("dead", "silent"))
    assert seen.life == "alive"
    assert str(seen.holder).startswith(f"process {os.getpid()} on node7, job 4711, begun 20")


def test_another_computers_silence_is_no_proof_of_its_death(path):
    of_another(path, silent_s=lease.SILENCE_S + 60)
    seen = lease.take(path)
    assert seen.life == "silent"
    assert seen.silent_s == pytest.approx(lease.SILENCE_S + 60, abs=5)
    assert isinstance(lease.take(path, over=("dead", "silent")), lease.Holder)


def test_a_copied_lease_is_nobodys_once_it_is_silent(path, tmp_path):
    of_another(path, silent_s=lease.SILENCE_S + 60)
    copy = tmp_path / "copy" / "x.lease"
    copy.parent.mkdir()
    shutil.copy2(path, copy)
    assert lease.look(copy).life == "dead"
    assert lease.look(path).life == "silent"


def test_before_this_computer_was_started_anew_is_over(path):
    of_another(path, silent_s=lease.SILENCE_S + 60, host=held(path.with_name("y")).host)
    assert lease.look(path).life == "dead"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}'])
def test_half_a_lease_counts_by_its_age(path, text):
    path.write_text(text)
    assert lease.look(path).life == "alive"
    os.utime(path, (0, 0))
    assert lease.look(path).life == "dead"  # nothing says that it is this very file


def test_the_clock_that_counts_is_the_disks(path, monkeypatch):
    """Ours may be an hour ahead: the other's heartbeat, a moment ago, must not look an hour old."""
    of_another(path)
    monkeypatch.setattr(time, "time", lambda: 1e10)
    assert lease.look(path).life == "alive"


def test_taking_over_twice_at_once_gives_one_holder(path):
    """The second has judged the same dead lease, and finds the new one in its place."""
    dead = replace(held(path), pid=dead_process())
    path.write_text(json.dumps(asdict(dead)))
    winner = lease.take(path)
    lease._put_aside(path, dead)
    assert lease.look(path).holder == winner


# --- keeping


def test_it_is_given_back_at_the_end(path):
    with lease.keep(path, held(path), lost=pytest.fail):
        assert path.exists()
    assert not path.exists()


def test_a_sign_of_life_is_given_again_and_again(path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    holder = held(path)
    os.utime(path, (0, 0))
    with lease.keep(path, holder, lost=pytest.fail):
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1e9


@pytest.mark.parametrize("taken_over", [True, False])
def test_the_holder_learns_that_it_lost_its_lease(path, monkeypatch, taken_over):
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    lost = threading.Event()
    with lease.keep(path, held(path), lost.set):
        path.unlink()
        if taken_over:
            new = held(path)
        assert lost.wait(10)
    assert path.exists() == taken_over  # and does not give back what is another's
    if taken_over:
        assert lease.look(path).holder == new


# --- locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_leaves_it_to_the_lease(path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with open(path, "w") as file:
        assert lease.lock(file)


def test_a_lock_is_held_by_one(path):
    with open(path, "w") as first, open(path, "w") as second:
        assert lease.lock(first)
        assert not lease.lock(second)


# --- a step


def test_a_step_waits_until_another_process_has_done_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "POLL_S", 0.01)
    path, said, done = lease.step_path(tmp_path, "1_cohort"), [], threading.Event()
    of_another(path)

    def work():
        with lease.only_step(tmp_path, "1_cohort", said.append):
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not done.wait(0.1)
    path.unlink()
    thread.join()
    assert done.is_set()
    assert len(said) == 1
    assert "node7, job 4711" in said[0]


def test_a_step_of_a_silent_job_is_taken_over(tmp_path):
    of_another(lease.step_path(tmp_path, "1_cohort"), silent_s=lease.SILENCE_S + 1)
    with lease.only_step(tmp_path, "1_cohort", pytest.fail):
        assert lease.look(lease.step_path(tmp_path, "1_cohort")).holder.pid == os.getpid()
