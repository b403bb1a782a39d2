import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from mtvlib import devices
from mtvlib.errors import InputError

TWO = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-2)
"""
IN_PARTS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccc-3)
  MIG 3g.20gb     Device  1: (UUID: MIG-dddd-4)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-2)
"""


@pytest.fixture
def computer(tmp_path, monkeypatch):
    """Function that makes this a computer whose `nvidia-smi -L` prints a text, with a place for locks of its own."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(devices.CHOICE, raising=False)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(devices, "LOOK_S", 0.01)

    def of(listing):
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n[ $1 = -L ] && printf '%s' '{listing}'\n")
        script.chmod(0o755)

    return of


def names():
    return [device.name for device in devices.visible()]


def identities():
    return [device.identity for device in devices.visible()]


# --- which there are


def test_without_nvidia_smi_there_is_none(computer):
    assert names() == []


def test_all_cards_that_are_listed(computer):
    computer(TWO)
    assert names() == identities() == ["GPU-aaaa-1", "GPU-bbbb-2"]


def test_a_card_cut_into_parts_counts_as_its_parts(computer):
    computer(IN_PARTS)
    assert names() == ["MIG-cccc-3", "MIG-dddd-4", "GPU-bbbb-2"]


@pytest.mark.parametrize(
    ("choice", "expected", "meant"),
    [
        ("1", ["1"], ["GPU-bbbb-2"]),
        ("1,0", ["1", "0"], ["GPU-bbbb-2", "GPU-aaaa-1"]),
        ("GPU-bb", ["GPU-bb"], ["GPU-bbbb-2"]),
        ("", [], []),
        ("-1", [], []),
        ("NoDevFiles", [], []),  # Slurm's, for a job without devices
        ("0,7,1", ["0"], ["GPU-aaaa-1"]),
    ],
)
def test_only_what_the_user_or_slurm_chose(computer, monkeypatch, choice, expected, meant):
    """As CUDA reads it: what follows a name that means nothing is not seen (CUDA C++ Programming Guide)."""
    computer(TWO)
    monkeypatch.setenv(devices.CHOICE, choice)
    assert (names(), identities()) == (expected, meant)


# --- a claim


def seen():
    return os.environ.get(devices.CHOICE)


def test_steps_side_by_side_hold_different_devices(computer):
    computer(TWO)
    with devices.claim(1, pytest.fail):
        assert seen() == "GPU-aaaa-1"
        del os.environ[devices.CHOICE]  # another step is another process, with the environment of the first's parent
        with devices.claim(1, pytest.fail):
            assert seen() == "GPU-bbbb-2"
        os.environ[devices.CHOICE] = "GPU-aaaa-1"
    assert seen() is None


def test_a_step_waits_until_enough_devices_are_free_and_keeps_none_meanwhile(computer):
    """It wants both, one is held: the free one stays free for others until the first is given back."""
    computer(TWO)
    lines = []
    with ExitStack() as first:
        first.enter_context(devices.claim(1, pytest.fail))
        del os.environ[devices.CHOICE]

        def give_back(line):
            lines.append(line)
            with devices.claim(1, pytest.fail):
                assert seen() == "GPU-bbbb-2"
            os.environ[devices.CHOICE] = ""
            first.close()

        with devices.claim(2, give_back):
            assert seen() == "GPU-aaaa-1,GPU-bbbb-2"
    assert lines == ["waits for 2 free devices: other steps use them"]


def test_a_killed_step_holds_nothing(computer, tmp_path):
    computer(TWO)
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from mtvlib import devices\n"
        "with devices.claim(2, print): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    step = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert step.stdout
    assert step.stdout.readline() == "held\n"
    lines = []
    with devices.claim(1, lambda line: (lines.append(line), step.kill(), step.wait())):
        assert seen() == "GPU-aaaa-1"
    assert lines == ["waits for a free device: other steps use them"]
    step.communicate()


def test_jobs_that_number_their_devices_anew_do_not_wait_for_each_other(computer, monkeypatch):
    """In each job Slurm shows other devices, and calls the first of them 0."""
    first, second = TWO.splitlines()
    monkeypatch.setenv(devices.CHOICE, "0")
    computer(first)
    with devices.claim(1, pytest.fail):
        computer(second.replace("GPU 1", "GPU 0"))
        with devices.claim(1, pytest.fail):
            assert seen() == "0"


def test_more_devices_than_there_are_is_an_error(computer):
    computer(TWO)
    with (
        pytest.raises(InputError, match="asks for 3 graphics cards, but there are 2 for this run"),
        devices.claim(3, print),
    ):
        pass


def test_where_no_device_is_known_nothing_changes(computer, monkeypatch):
    monkeypatch.setenv(devices.CHOICE, "3")
    with devices.claim(2, pytest.fail):
        assert seen() == "3"
    computer(TWO)
    with devices.claim(0, pytest.fail):
        assert seen() == "3"
