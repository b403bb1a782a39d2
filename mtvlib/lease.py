"""Who is at work: one lease for a study's run and one for each running step, so that nothing is done twice at once.

A lease is a small file that names its holder: host, process, job of the cluster. It appears in one piece by a hard
link, which is atomic on network file systems too, where locks may be missing and one computer sees late what another
did. Its time of change is the holder's heartbeat. Whether the holder lives is asked of the system where it is this one;
of another computer the heartbeat tells, on the clock of the disk that holds the file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import IO, Literal

from mtvlib.graph import JOB

BEAT_S = 15.0
SILENCE_S = 180.0  # attributes of files on NFS may be a minute old, and a busy holder a minute late
POLL_S = 2.0
STUDY = ".lease"  # in the study's folder
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

Life = Literal["alive", "dead", "silent"]


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    host: str
    system: str  # boot and process namespace: where process numbers mean the same
    pid: int
    started: str  # when the process began, in the system's own count; numbers of processes are used again
    began: float  # of the lease, seconds since 1970
    job: str  # of Slurm or Kubernetes; '' for none
    token: str
    inode: int = 0  # of the file: a copy of a lease has another; 0 where the disk does not tell

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began))
        return f"process {self.pid} on {self.host}{job}, begun {begun}"


@dataclass(frozen=True)
class Seen:
    """A lease as it is found: its holder, whether that is at work, and seconds since the last sign of life.

    `silent`: another computer's, and too long without a sign of life to be at work; only a person can know.
    """

    holder: Holder
    life: Life
    silent_s: float


# --- looking


def look(path: Path) -> Seen | None:
    """The lease in a file; None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:  # opening makes a network file system ask the server
            holder, found = _parse(file.read()), os.fstat(file.fileno())
    except OSError:
        return None
    if _same_system(holder):
        return Seen(holder, "alive" if _running(holder) else "dead", 0.0)
    silent_s = max(0.0, _now_on_disk(path.parent) - found.st_mtime)
    if silent_s < SILENCE_S:
        return Seen(holder, "alive", silent_s)
    # Nobody keeps the copy of a lease that a copied folder holds, or half of one; what ran before this computer was
    # started is gone.
    nobodys = found.st_ino != holder.inode if holder.inode else not holder.token
    return Seen(holder, "dead" if nobodys or holder.host == socket.gethostname() else "silent", silent_s)


def _parse(text: str) -> Holder:
    """What a lease's text says; a text that is none, for instance half of one, is nobody's that is known."""
    try:
        values = json.loads(text)
        return Holder(**{field.name: values[field.name] for field in fields(Holder)})
    except (ValueError, KeyError, TypeError):
        return Holder("an unknown computer", "", 0, "", 0.0, "", "")


def _same_system(holder: Holder) -> bool:
    return bool(holder.system) and (holder.host, holder.system) == (socket.gethostname(), _system())


def _running(holder: Holder) -> bool:
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return _process_start(holder.pid) == holder.started


@cache
def _system() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return sys.platform


def _process_start(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux: the number alone has to do
        return ""
    return text.rpartition(")")[2].split()[19]  # field 22 of proc(5); the second, a name in brackets, may hold spaces


def _now_on_disk(folder: Path) -> float:
    """The present time by the clock of the computer that has the disk; by our own where nothing can be written."""
    probe = folder / f".{uuid.uuid4().hex[:8]}.now"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now
    except OSError:
        return time.time()


# --- holding


def lock(file: IO[str]) -> bool:
    """Whether no other process of this computer holds the file; file systems without locks leave it to the lease."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, EOPNOTSUPP
        pass
    return True


def take(path: Path, over: tuple[Life, ...] = ("dead",)) -> Holder | Seen:
    """Take the lease of a file: the new holder, or the lease as it is seen while somebody else has it.

    That of a holder in a state of `over` is taken over. Raises `OSError` where nothing can be written.
    """
    mine = Holder(
        socket.gethostname(),
        _system(),
        os.getpid(),
        _process_start(os.getpid()),
        time.time(),
        os.environ.get("SLURM_JOB_ID") or os.environ.get(JOB, ""),
        uuid.uuid4().hex,
    )
    while (done := _create(path, mine)) is None:
        seen = look(path)
        if seen is not None and seen.life not in over:
            return seen
        if seen is not None:
            _put_aside(path, seen.holder)
    return done


def _create(path: Path, holder: Holder) -> Holder | None:
    """Make the file with this holder; None if it is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{holder.token[:8]}{path.name}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            holder = replace(holder, inode=_inode(temporary))
            file.write(json.dumps(asdict(holder)))
            file.flush()
            os.fsync(file.fileno())
        return holder if _link(temporary, path, holder) else None
    finally:
        temporary.unlink(missing_ok=True)


def _inode(path: Path) -> int:
    """The number of a file; 0 where two names of one file have different ones (sshfs), or there can be no two."""
    second = path.with_name(f"{path.name}.2")
    try:
        os.link(path, second)
        number, other = path.stat().st_ino, second.stat().st_ino
        return number if number == other else 0
    except OSError:
        return 0
    finally:
        second.unlink(missing_ok=True)


def _link(temporary: Path, path: Path, holder: Holder) -> bool:
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:  # maybe our own: the answer of an NFS server may get lost after the link was made
        with suppress(OSError):
            return _parse(path.read_text(encoding="utf-8")).token == holder.token
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _copy(temporary, path)


def _copy(temporary: Path, path: Path) -> bool:
    """In place of a link, where the file system has none: the file appears at once, its text a moment later."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(temporary.read_text(encoding="utf-8"))
    except FileExistsError:
        return False
    return True


def _put_aside(path: Path, stale: Holder) -> None:
    """Remove a stale lease, and none that somebody else has taken over a moment before."""
    aside = path.with_name(f".{uuid.uuid4().hex[:8]}{path.name}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        found = _parse(aside.read_text(encoding="utf-8"))
        if found.token != stale.token:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


@contextmanager
def keep(path: Path, holder: Holder, lost: Callable[[], None]) -> Iterator[None]:
    """Keep a lease alive until the block ends, then give it back; `lost` is called if somebody took or removed it."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            if not _beat(path, holder) and not ended.is_set():
                lost()
                return

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            if _parse(path.read_text(encoding="utf-8")).token == holder.token:
                path.unlink()


def _beat(path: Path, holder: Holder) -> bool:
    """Give a sign of life; whether the lease is still this holder's."""
    try:
        if _parse(path.read_text(encoding="utf-8")).token != holder.token:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:  # the server is away for a while
        pass
    return True


# --- a step


def step_path(logs: Path, step: str) -> Path:
    return logs / f"{step}.lease"


@contextmanager
def only_step(logs: Path, step: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a step; wait while another process, for instance an earlier job of a cluster, still works on it."""
    path, told = step_path(logs, step), False
    while isinstance(holder := take(path, over=("dead", "silent")), Seen):
        if not told:
            say(f"waiting for {holder.holder}, which is at work on this step")
            told = True
        time.sleep(POLL_S)

    def lost() -> None:
        say("ended: another process has taken this step over")
        os._exit(1)

    with keep(path, holder, lost):
        yield
