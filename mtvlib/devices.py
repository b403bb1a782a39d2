"""Graphics cards of this computer: which there are for us, and a claim on some of them while a step needs them.

Folds that run side by side each take a device that no other step of this user holds, whatever their numbers are. A
claim is a lock on a file, so one whose process is gone holds nothing. It is kept by the device's own identity (UUID):
jobs of a scheduler that call different devices 0 do not wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mtvlib.errors import InputError

CHOICE = "CUDA_VISIBLE_DEVICES"  # set by the user or by Slurm; what is claimed is told to PyTorch by it
LOOK_S = 1.0  # between two looks for a free device
_LISTED = re.compile(r"^(\s*)(?:GPU|MIG) .*\(UUID: ([^)]+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Device:
    name: str  # as CUDA_VISIBLE_DEVICES takes it: a number or a UUID
    identity: str  # the same in every process


def visible() -> list[Device]:
    """Devices that a step may use, in order: those that nvidia-smi lists, within CUDA_VISIBLE_DEVICES; [] without any.

    A card that is cut into parts (MIG) counts as its parts. Without nvidia-smi nothing is known and nothing is claimed:
    PyTorch then takes the first device that it finds.
    """
    cards = _listed()
    chosen = os.environ.get(CHOICE)
    if chosen is None:
        return [Device(uuid, uuid) for card, *parts in cards for uuid in parts or [card]]
    return _chosen(chosen.split(","), cards)


def _listed() -> list[list[str]]:
    """UUID of each card, then those of its parts, from `nvidia-smi -L`; [] where there is none."""
    try:
        text = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    cards: list[list[str]] = []
    for indent, uuid in _LISTED.findall(text):
        if indent and cards:
            cards[-1].append(uuid)
        else:
            cards.append([uuid])
    return cards


def _chosen(names: Sequence[str], cards: Sequence[Sequence[str]]) -> list[Device]:
    """Those that CUDA would take from the variable's value: it stops at the first name that means nothing."""
    found: list[Device] = []
    for name in (name.strip() for name in names):
        if name.isdecimal() and int(name) < len(cards):
            identity = cards[int(name)][0]
        else:
            identity = next((uuid for card in cards for uuid in card if name and uuid.startswith(name)), "")
        if not identity:
            break
        found.append(Device(name, identity))
    return found


def check_enough(wanted: int, found: int) -> None:
    """Raise `InputError` if a step wants more devices than there are; where none is known PyTorch will tell."""
    if 0 < found < wanted:
        raise InputError(
            f"devices_per_fold asks for {wanted} graphics cards, but there are {found} for this run",
            remedy=f"lower devices_per_fold, or widen {CHOICE} or the job's request.",
        )


# --- a claim


@contextmanager
def claim(count: int, say: Callable[[str], None]) -> Iterator[None]:
    """Hold `count` devices and let this process and its children see these alone; waits while too few are free."""
    found = visible() if count else []
    check_enough(count, len(found))
    if not found:
        yield
        return
    with ExitStack() as stack:
        held = _hold(found, count, stack)
        if not held:
            say(f"waits for {'a free device' if count == 1 else f'{count} free devices'}: other steps use them")
        while not held:
            time.sleep(LOOK_S)
            held = _hold(found, count, stack)
        before = os.environ.get(CHOICE)
        os.environ[CHOICE] = ",".join(device.name for device in held)
        try:
            yield
        finally:
            os.environ.pop(CHOICE)
            os.environ.update({} if before is None else {CHOICE: before})


def _hold(devices: Sequence[Device], count: int, stack: ExitStack) -> list[Device]:
    """Lock the first `count` that are free, for as long as `stack` lasts; none if there are fewer."""
    held: dict[Device, IO[str]] = {}
    with ExitStack() as attempt:
        for device in devices:
            lock = attempt.enter_context(open(_lock_file(device), "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            held[device] = lock
            if len(held) == count:
                stack.push(attempt.pop_all())
                return list(held)
    return []


def _lock_file(device: Device) -> Path:
    folder = Path(tempfile.gettempdir()) / f"mtv-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / re.sub(r"[^\w-]", "_", device.identity)
