"""The whole study in one call: checks what can be checked at once, then lets Snakemake run what is not yet done."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

import mtvlib.params
from mtvlib import cluster, devices, lease, status
from mtvlib.cohort import FILES, assign_folds, read_cohort
from mtvlib.errors import InputError, MtvError, WorkError
from mtvlib.files import read_table
from mtvlib.graph import PREDICT, PREPARE, RUN, TRAIN_FOLD
from mtvlib.prepare import OVERVIEW, RECORD
from mtvlib.steps import devices_of, die_with_parent, project_root
from mtvlib.study import VIEWER_INDEX, Study, check_folder

Show = Callable[[str], None]
FULL_DISK_MB = 10
PATIENCE_S = 5
CANCEL_S = 60  # until jobs of a cluster are cancelled


def run_study(
    params_file: str | Path,
    *,
    cores: int | None = None,
    profile: str | None = None,
    device: str | None = None,
    resume: bool = False,
    command: str = "",
    show: Show,
) -> Study:
    """Run or continue the study of a parameter file; `show` gets a line for each thing worth knowing.

    `device` takes the place of the parameter; `command` is what `mtv status` names to go on. With `resume` there must
    be trainings to go on with, and none that other parameters or images would begin anew; without it what is there is
    used as far as it goes. Raises `InputError` for anything wrong with parameters or cohort before work begins, and
    `MtvError` if a step fails.
    """
    params = mtvlib.params.read(params_file)
    params = params.model_copy(update={"device": device} if device else {})
    study, chosen = Study(params), _profile(profile) if profile else None
    cohort = read_cohort(study.source, params)
    check_folder(study.folder)
    if resume:
        check_resumable(study)
    with only_run(study.folder), status.recorded(study.folder, command or f"mtv run {params_file}"):
        mtvlib.params.write(params, study.folder / "params.yml")
        forget_lost_files(study)
        for batches in _batches(study, chosen, cohort):
            _snakemake(study, 1, chosen, show, batches)
        _snakemake(study, cores or os.cpu_count() or 1, chosen, show)
    return study


def _batches(study: Study, profile: Path | None, cohort: pd.DataFrame) -> Iterator[list[str]]:
    """What a cluster makes before the rest, so that steps 1 and 3 find their patients done; none that already are."""
    if profile is None or cluster.executor_of(profile) is None:
        return
    made = {path.name.partition("_of_")[0].rpartition("_")[0] for path in (study.folder / "batches").glob("*.txt")}
    external = int((assign_folds(cohort, study.params)["split"] == "external_testing").sum())
    for name, patients, index in (
        (PREPARE, len(cohort), study.volumes / "prepared.csv"),
        (PREDICT, external, study.predictions / "external.csv"),
    ):
        number = cluster.batches(profile, patients)
        if number > 1 and (name in made or not index.exists()):
            yield [f"batches/{name}_{part}_of_{number}.txt" for part in range(number)]


def check_resumable(study: Study) -> None:
    """Raise `InputError` unless the folds' checkpoints can be gone on with (`mtv run --resume`)."""
    from mtvlib import checkpoints, cohort  # PyTorch, which a run without --resume need not wait for

    def basis(fold: int) -> str | None:
        if not (study.volumes / "prepared.csv").exists() or not (study.folder / "cohort.csv").exists():
            return None  # step 1 has to be done again
        members = cohort.fold_patients(study.cohort, fold, study.params)
        return study.training_basis([*members.train, *members.validation])

    folders = [study.fold_folder(fold) for fold in range(study.params.folds)]
    checkpoints.check_resumable(folders, study.params, basis)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold the study's folder; `InputError` while another run holds it. A killed run holds nothing.

    A lock keeps a second run of this computer away, a lease one of another computer, also where there are no locks.
    """
    path = folder / lease.STUDY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise _unwritable(folder, error) from None
    with lock:
        if not lease.lock(lock):
            raise _busy(folder, lease.look(path))
        try:
            holder = lease.take(path)
        except OSError as error:
            raise _unwritable(folder, error) from None
        if isinstance(holder, lease.Seen):
            raise _busy(folder, holder)
        with lease.keep(path, holder, _lost_the_study):
            yield


def _unwritable(folder: Path, error: OSError) -> MtvError:
    kind = WorkError if error.errno in (errno.ENOSPC, errno.EDQUOT) else InputError
    return kind(
        f"the study's folder cannot be written: {error.strerror}",
        file=folder,
        remedy="check its permissions and the disk, then run the same command; finished steps are kept.",
    )


def _busy(folder: Path, seen: lease.Seen | None) -> InputError:
    who = None if seen is None else str(seen.holder)
    if seen is not None and seen.life == "silent":
        silence = status.seconds_text(seen.silent_s)
        return InputError(
            f"another run holds this study, but has given no sign of life for {silence}",
            file=folder,
            value=who,
            remedy=f"make sure that it is gone, delete {folder / lease.STUDY} and run the same command; finished steps "
            "are kept.",
        )
    return InputError(
        "another run is at work on this study", file=folder, value=who, remedy="wait until it ends, or stop it."
    )


def _lost_the_study() -> None:
    """End this run as Ctrl-C does: its lease was taken over, for instance after hours without the network."""
    print("mtv: the study's lease was removed or taken over by another run.", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGINT)


def forget_lost_files(study: Study) -> None:
    """Delete each index of volumes or predictions that names a file which is gone, so that its step makes it again.

    Snakemake itself knows the indices only; what they name and what is still there is not made a second time.
    """
    predicted = [*study.folder.glob("folds/*/predicted.csv"), study.predictions / "external.csv"]
    for index in [study.volumes / "prepared.csv", *predicted]:
        if index.exists() and not all(path.exists() for path in _named_files(study, index)):
            index.unlink()
    cases = study.viewers / VIEWER_INDEX
    files = read_table(cases, dtype=str)["file"] if cases.exists() else [VIEWER_INDEX]
    if not all((study.folder / file).exists() for file in files):
        (study.folder / "notebooks" / "8_cases.ipynb").unlink(missing_ok=True)


def _named_files(study: Study, index: Path) -> Iterator[Path]:
    for row in read_table(index, dtype=str).to_dict("records"):
        if index.parent != study.volumes:
            columns = {"labels": "sha256", "probability": "probability_sha256", "votes": "votes_sha256"}
            paths = study.prediction_paths(row["patient"])
            yield from (paths[name] for name, column in columns.items() if isinstance(row.get(column), str))
        else:
            yield from (study.volumes / row["patient"] / name for name in (RECORD, OVERVIEW))
            yield from (study.volumes / row["patient"] / f"{name}.nii" for name in FILES if isinstance(row[name], str))


def _snakemake(study: Study, cores: int, profile: Path | None, show: Show, targets: Sequence[str] = ()) -> None:
    executor = cluster.executor_of(profile)
    command = [
        *(sys.executable, "-m", "mtvlib.flow", *targets),
        *("--snakefile", str(project_root() / "Snakefile")),
        *("--directory", str(study.folder)),
        *_where(study, cores, executor, profile),
        *(() if profile else _device_limit(study)),  # a profile may send steps to other computers
        # Our own lock covers the study, and a kill must not leave Snakemake's behind.
        *("--nolock", "--rerun-incomplete", "--keep-going"),
        # Weights too are told by their contents, not by their time, which a copy of the folder changes.
        *("--max-checksum-file-size", "1TB"),
        *(("--profile", str(profile)) if profile else ()),
    ]
    log = study.logs / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for path in study.logs.glob("*.error.json"):
        path.unlink()
    offsets = {path: path.stat().st_size for path in study.logs.glob("*.log")}
    run = uuid.uuid4().hex
    with open(log, "w", encoding="utf-8") as output:
        output.write(cluster.heading(profile, run))
        output.flush()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {RUN: run},
            start_new_session=executor is not None,  # Ctrl-C comes from us, once: a second would leave jobs behind
        )
        try:
            watcher = Watcher(study.logs, offsets, show)
            while process.poll() is None:
                watcher.look()
                time.sleep(0.3)
            watcher.look()
        finally:
            _stop(process, CANCEL_S if executor else PATIENCE_S)
            if executor:
                cluster.cancel(log)
                cluster.gather(study)
    if process.returncode:
        for line in status.failures(study.folder):
            show(line)
        raise _failure(study, log)


def _device_limit(study: Study) -> tuple[str, ...]:
    """So many steps at once as there are graphics cards for them; no limit where there are none or none is known."""
    wanted = devices_of(f"{TRAIN_FOLD}_0", study.params)
    found = len(devices.visible()) if wanted else 0
    devices.check_enough(wanted, found)
    return ("--resources", f"gpu={found}") if found else ()


def _where(study: Study, cores: int, executor: str | None, profile: Path | None) -> list[str]:
    """Where steps run: on so many cores here, or as jobs, whose number the profile limits."""
    base = ["--config", f"base={os.getcwd()}"]
    if executor is None or profile is None:
        return [*base, "--cores", str(cores)]
    told = [f"{name}={value}" for name, value in cluster.options(executor, profile).items()]
    return [*base, *told, *cluster.arguments(executor, profile, study)]


def _stop(process: subprocess.Popen, patience_s: float) -> None:
    """End Snakemake: it cancels jobs, but waits for steps here, maybe for hours; so not for long, they end with it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT if patience_s == CANCEL_S else signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _profile(name: str) -> Path:
    path = Path(name) if Path(name).exists() else project_root() / "profiles" / name
    if not path.exists():
        known = ", ".join(sorted(entry.name for entry in (project_root() / "profiles").iterdir()))
        raise InputError("there is no such profile", value=name, remedy=f"use one of {known}, or a folder of your own.")
    return path


class Watcher:
    """Shows what the steps of a run append to their logs, with the number of the step: "step 3 of 12"."""

    def __init__(self, logs: Path, offsets: dict[Path, int], show: Show) -> None:
        self.logs, self.offsets, self.show = logs, offsets, show
        self.begun: dict[str, int] = {}

    def total(self) -> int | None:
        """Number of steps that this run has to do, from Snakemake's table of jobs; the target is not a step."""
        text = (self.logs / "snakemake.log").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^total\s+(\d+)$", text, re.MULTILINE)
        target = re.search(r"^all\s+1$", text, re.MULTILINE) is not None
        return int(found.group(1)) - target if found else None

    def look(self) -> None:
        for path in sorted(self.logs.glob("*.log"), key=lambda path: path.stat().st_mtime):
            if path.name != "snakemake.log":
                for line in self._new_lines(path):
                    self._say(path.stem, line)

    def _new_lines(self, path: Path) -> list[str]:
        with open(path, "rb") as log:
            offset = self.offsets.get(path, 0)
            offset = offset if offset <= path.stat().st_size else 0  # Snakemake begins a step with an empty log
            log.seek(offset)
            text = log.read()
        complete = text[: text.rfind(b"\n") + 1]
        self.offsets[path] = offset + len(complete)
        return complete.decode("utf-8", errors="replace").splitlines()

    def _say(self, step: str, line: str) -> None:
        if line == "started" and step not in self.begun:
            self.begun[step] = len(self.begun) + 1
        if step in self.begun and _worth_showing(line):
            self.show(f"step {self.begun[step]} of {self.total()}  {step}: {line}")


def _worth_showing(line: str) -> bool:
    """Not what libraries print beside our own lines."""
    return line.startswith(("started", "finished", "failed", "epoch", "patient", "resumed", "stopped", "waits"))


def _failure(study: Study, log: Path) -> MtvError:
    for path in sorted(study.logs.glob("*.error.json")):
        error = json.loads(path.read_text(encoding="utf-8"))
        kind = InputError if error["exit_code"] == InputError.exit_code else WorkError
        message = error["message"].rstrip(".")
        if "Remedy: " in message:
            return kind(f"{message}; then run the same command; finished steps are kept")
        return kind(message, remedy="mend the cause and run the same command; finished steps are kept.")
    free_mb = shutil.disk_usage(study.folder).free / 1e6
    if free_mb < FULL_DISK_MB:  # then no step can say so
        remedy = "free disk space and run the same command; finished steps are kept."
        return WorkError("the disk is full", file=study.folder, value=f"{free_mb:.1f} MB free", remedy=remedy)
    unwritten = _refused(study.logs)
    if unwritten:
        remedy = "check the quota and the folder's permissions, and run the same command; finished steps are kept."
        return WorkError(f"nothing can be written any more: {unwritten}", file=study.folder, remedy=remedy)
    text = log.read_text(encoding="utf-8", errors="replace")
    refused = cluster.refusal(text)
    if refused is not None:
        remedy = "change what is asked for in a copy of the profile (docs/cluster.md); finished steps are kept."
        return WorkError(refused.rstrip("."), file=log, remedy=remedy)
    tail = text.strip().splitlines()[-12:]
    return WorkError("Snakemake could not run the study: " + " | ".join(tail), file=log)


def _refused(folder: Path) -> str | None:
    """What the system says to a megabyte in a folder, where a quota or a server may refuse what the disk could take."""
    probe = folder / f".{uuid.uuid4().hex[:8]}.probe"
    try:
        probe.write_bytes(bytes(2**20))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            probe.unlink()
    return None


def _main() -> None:
    """Snakemake, which ends with the run that started it; jobs elsewhere are cancelled before."""
    from snakemake.cli import main

    elsewhere = "--cores" not in sys.argv
    if elsewhere:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` switches off
    die_with_parent(CANCEL_S if elsewhere else 0)
    try:
        main()
    finally:
        if elsewhere:
            cluster.cancel(Path(sys.argv[sys.argv.index("--directory") + 1]) / "logs" / "snakemake.log")


if __name__ == "__main__":
    _main()
