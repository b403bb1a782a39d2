"""One fold on several devices: starts a process for each, hears what the first one has to tell, ends all if one fails.

Each process is `python -m mtvlib.together JOB`; the job is a JSON file. Which of them it is stands in the environment,
in the variables that torchrun sets (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE), so that torchrun can start it too.
They speak by NCCL on graphics cards and by Gloo on processors, and find each other by a file, under torchrun by its
address.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtvlib import training as one_fold
from mtvlib.checkpoints import STATE_FILE, Epoch, Training, read_state, restore
from mtvlib.errors import InputError, MtvError, WorkError
from mtvlib.files import write_json
from mtvlib.params import Params, from_dict
from mtvlib.prepare import Reader
from mtvlib.ranks import Ranks

LOOK_S = 0.1  # between two looks at the processes
SETTLE_S = 1.0  # in which those that fail after the first one end by themselves
PATIENCE_S = 5.0  # before a process that was asked to end is killed
WAIT = timedelta(hours=1)  # of ranks for each other: reading a large fold from a slow disk takes long
JOB, NEWS, RENDEZVOUS = "job.json", "news.jsonl", "rendezvous"  # in a folder of the fold's own


# --- the one that starts them


def train_together(
    train: Sequence[tuple[str, np.ndarray, np.ndarray]],
    validation: Sequence[tuple[str, np.ndarray, np.ndarray]],
    params: Params,
    fold: int,
    folder: Path,
    *,
    basis: str,
    report: Callable[[Training], None],
    say: Callable[[str], None],
) -> Training:
    """`training.train_fold` by `devices_per_fold` processes. Raises the error of the process that failed first."""
    with tempfile.TemporaryDirectory(prefix="mtv-fold-") as name:
        job = Path(name) / JOB
        write_json(job, _job(train, validation, params, fold, folder, basis))
        training = one_fold.start(params.model_copy(update={"compile": False}), fold, torch.device("cpu"))
        with _processes(job, params.devices_per_fold) as processes:
            _follow(processes, job.parent, training, report, say)
    restore(training, *read_state(folder / STATE_FILE))
    return training


def _job(
    train: Sequence[tuple[str, np.ndarray, np.ndarray]],
    validation: Sequence[tuple[str, np.ndarray, np.ndarray]],
    params: Params,
    fold: int,
    folder: Path,
    basis: str,
) -> dict[str, Any]:
    names: list[list[str]] = []
    for one in (train, validation):
        if not isinstance(one, one_fold.Patients) or not isinstance(one.read, Reader):
            raise InputError(
                "these patients lie in the memory of this process, where no other one can read them",
                value=f"devices_per_fold {params.devices_per_fold}",
                remedy="give training.Patients with a prepare.Reader, or set devices_per_fold to 1.",
            )
        names.append(list(one.names))
        volumes = one.read.volumes.resolve()
    return {
        "params": params.model_dump(mode="json"),
        "fold": fold,
        "folder": str(folder.resolve()),
        "volumes": str(volumes),
        "train": names[0],
        "validation": names[1],
        "basis": basis,
    }


@contextmanager
def _processes(job: Path, size: int) -> Iterator[list[subprocess.Popen]]:
    """The ranks at work; whatever happens, none of them outlives the block."""
    processes = []
    try:
        for rank in range(size):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            environment = os.environ | {name: str(number) for name, number in numbers.items()}
            with open(job.parent / f"{rank}.log", "w", encoding="utf-8") as log:
                command = [sys.executable, "-m", "mtvlib.together", str(job), "--started-here"]
                processes.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
                )
        yield processes
    finally:
        _end(processes)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()


def _follow(
    processes: Sequence[subprocess.Popen],
    folder: Path,
    training: Training,
    report: Callable[[Training], None],
    say: Callable[[str], None],
) -> None:
    """Pass on what the first rank tells until all are done. Raises the error of the first that fails."""
    heard = 0
    while True:
        done = [process.poll() for process in processes]
        heard = _hear(folder / NEWS, heard, training, report, say)
        if any(done):
            time.sleep(SETTLE_S)
            raise _failure([process.poll() for process in processes], folder)
        if None not in done:
            return
        time.sleep(LOOK_S)


def _hear(
    news: Path, heard: int, training: Training, report: Callable[[Training], None], say: Callable[[str], None]
) -> int:
    """Pass on the lines after the first `heard` bytes; returns how many have been heard then."""
    if not news.exists():
        return heard
    with open(news, "rb") as file:
        file.seek(heard)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.splitlines():
        told = json.loads(line)
        if "say" in told:
            say(told["say"])
        else:
            training.history, training.best_epoch = [Epoch(**epoch) for epoch in told["history"]], told["best_epoch"]
            report(training)
    return heard + len(whole)


def _failure(done: Sequence[int | None], folder: Path) -> MtvError:
    """The error of the rank that failed first; the others lost a partner and fail because of it."""
    failed = [rank for rank, code in enumerate(done) if code]
    errors = {rank: _error(folder, rank) for rank in failed}
    for rank in failed:
        if not errors[rank]:
            return _fell_silent(rank, done, folder)
    rank = min(failed, key=lambda rank: errors[rank]["at"])
    kind = InputError if errors[rank]["exit_code"] == InputError.exit_code else WorkError
    return kind(errors[rank]["message"])


def _error(folder: Path, rank: int) -> dict[str, Any]:
    try:
        return json.loads((folder / f"{rank}.error.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _fell_silent(rank: int, done: Sequence[int | None], folder: Path) -> WorkError:
    """The error of a rank that could not say what happened."""
    code = done[rank] or 0
    why = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
    tail = (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    return WorkError(
        f"process {rank + 1} of the {len(done)} that train this fold {why}",
        value=" | ".join(tail) or None,
        remedy="most often memory is short: use a computer with more, or fewer devices_per_fold; "
        "the same command goes on after the last epoch.",
    )


# --- each one of them


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mtvlib.together", description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--started-here", action="store_true", help="by this package: end with it, meet by a file")
    options = parser.parse_args(arguments)
    if options.started_here:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    try:
        _work(options.job, ranks, options.started_here)
    except Exception as error:
        known = isinstance(error, MtvError)
        message = str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
        code = error.exit_code if isinstance(error, MtvError) else MtvError.exit_code
        about = {"message": message, "exit_code": code, "at": time.time()}
        write_json(options.job.parent / f"{ranks.rank}.error.json", about)
        traceback.print_exc()
        return code
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):  # ends when the one that holds the other end is gone
        pass
    os._exit(1)


def _work(path: Path, ranks: Ranks, started_here: bool) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    params = from_dict(job["params"])
    device = one_fold.choose_device(params.device, ranks)
    _meet(device, ranks, path.parent / RENDEZVOUS if started_here else None)
    read = Reader(Path(job["volumes"]), params)
    tell = _teller(path.parent / NEWS) if ranks.first else lambda told: None

    def report(training: Training) -> None:
        tell({"history": [asdict(epoch) for epoch in training.history], "best_epoch": training.best_epoch})

    one_fold.train_fold(
        one_fold.Patients(job["train"], read),
        one_fold.Patients(job["validation"], read),
        params,
        job["fold"],
        Path(job["folder"]),
        basis=job["basis"],
        report=report,
        say=lambda line: tell({"say": line}),
        ranks=ranks,
    )
    torch.distributed.destroy_process_group()


def _meet(device: torch.device, ranks: Ranks, file: Path | None) -> None:
    """Wait until all ranks are there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif file:  # all on this computer, whose own name may lead nowhere
        loops = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loops[0] if loops else "lo")
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{file}" if file else "env://",
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=WAIT,
    )


def _teller(path: Path) -> Callable[[dict[str, Any]], None]:
    def tell(told: dict[str, Any]) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    return tell


if __name__ == "__main__":
    sys.exit(main())
