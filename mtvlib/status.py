"""How far a study has come, told from its folder alone: also while it runs on another computer or on a cluster.

What a step's log, its lease and its product say is put together with the record of the last run and the table of jobs
that Snakemake printed for it. Nothing is computed, hashed or imported that takes time.
"""

from __future__ import annotations

import ast
import base64
import csv
import json
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from mtvlib import graph, lease
from mtvlib.errors import InputError, MtvError

RUN = ".run.json"  # in the study's folder: when the last run began, how it ended
TAIL_BYTES = 64 * 1024
TAIL_LINES = 10
_MARK = re.compile(r"^(started$|finished in |failed: |waiting for )", re.MULTILINE)
_PROGRESS = re.compile(r"^(epoch|patient) (\d+) of (\d+)", re.MULTILINE)
_FULL = re.compile("No space left on|Disk quota exceeded|File too large")  # the line itself may have found no room
_PLACE = ("name", "studies", "cohort", "device")

State = Literal["done", "running", "failed", "stopped", "waiting"]
Outcome = Literal["not begun", "running", "finished", "failed", "stopped", "killed", "silent"]


@dataclass(frozen=True)
class Step:
    """A step as it stands. `done` of `total` epochs or patients; seconds of work, and an estimate of those left."""

    step: str
    state: State
    done: int | None = None
    total: int | None = None
    unit: str = ""
    seconds: float | None = None
    seconds_left: float | None = None
    reason: str = ""  # why it failed, or is to be done again
    where: str = ""  # who is at work


@dataclass(frozen=True)
class Status:
    """A study as it stands."""

    study: str
    folder: str
    state: Outcome
    said: str  # the state as a sentence, with the remedy where one is needed
    began: float | None  # of the last run, seconds since 1970
    seconds: float | None
    seconds_left: float | None  # None: not known
    steps: list[Step]
    notes: list[str] = field(default_factory=list)

    @property
    def steps_done(self) -> int:
        return sum(step.state == "done" for step in self.steps)

    @property
    def steps_total(self) -> int:
        """Without batches, which stand there only while they are at work or have failed."""
        return sum(graph.part_of(step.step) is None for step in self.steps)


# --- the record of a run


@contextmanager
def recorded(folder: Path, command: str = "") -> Iterator[None]:
    """Keep in the study's folder when a run began, by which command, and how it ended."""
    record = {"began": time.time(), "ended": None, "outcome": "running", "command": command}
    _write_record(folder, record)
    outcome = "stopped"
    try:
        yield
        outcome = "finished"
    except MtvError as error:
        outcome = "failed"
        record["message"] = str(error)
        raise
    finally:
        with suppress(OSError, MtvError):  # what went wrong is told already
            _write_record(folder, record | {"ended": time.time(), "outcome": outcome})


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    from mtvlib.files import write_json  # pandas, which `mtv status` need not wait for

    write_json(folder / RUN, record)


# --- looking


def look(folder: Path, *, ended: bool = False) -> Status:
    """The state of the study in a folder; `InputError` where there is none. `ended`: its run has yet to say so."""
    values = _parameters(folder)
    folds = values.get("folds", 5)
    record, held = _read_json(folder / RUN), lease.look(folder / lease.STUDY)
    if ended:
        record, held = record | {"outcome": "failed"}, None
    running = held is not None and held.life == "alive"
    facts = _Facts(folder, values, record, running, _planned(folder / "logs" / "snakemake.log") if record else {})
    steps = [*facts.batches(), *(facts.step(name) for name in graph.step_names(folds))]
    steps = _with_estimates(steps, folder)
    state = _outcome(record, held, steps)
    began = record.get("began")
    seconds = None if began is None else (record.get("ended") or time.time()) - began
    if state in ("killed", "silent"):
        seconds = None
    return Status(
        study=str(values.get("name", folder.resolve().name)),
        folder=str(folder),
        state=state,
        said=_said(state, record, held, folder),
        began=began,
        seconds=seconds,
        seconds_left=_left(steps, graph.stages(folds)) if state != "finished" else 0.0,
        steps=steps,
    )


def _parameters(folder: Path) -> dict[str, Any]:
    """The study's own parameters, unchecked: `mtvlib.params` takes half a second to load."""
    path = folder / "params.yml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "is not the folder of a study: it has no params.yml",
            file=folder,
            remedy="name a folder that `mtv run` made, such as studies/demo, or a parameter file.",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"cannot be read: {what}", file=path, remedy="`mtv run` writes it anew.") from None
    if not isinstance(values, dict):
        raise InputError("is no list of parameters", file=path, remedy="`mtv run` writes it anew.")
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _planned(log: Path) -> dict[str, int]:
    """Jobs of each rule that the last run has to do, from Snakemake's table; empty before it is printed."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = re.search(r"^job +count\n[- ]+\n((?:\w+ +\d+\n)+)", text, re.MULTILINE)
    return {rule: int(n) for rule, n in (line.split() for line in found.group(1).splitlines())} if found else {}


@dataclass(frozen=True)
class _Facts:
    """What the steps' states are told from."""

    folder: Path
    values: Mapping[str, Any]
    record: Mapping[str, Any]
    running: bool  # the run
    planned: Mapping[str, int]

    def batches(self) -> list[Step]:
        """Batches of patients, on a cluster, that are at work or have failed."""
        names = [path.stem for path in sorted((self.folder / "logs").glob("*_of_*.log"))]
        found = [self.step(name) for name in names if graph.part_of(name)]
        return [step for step in found if step.state in ("running", "failed")]

    def step(self, name: str) -> Step:
        log = self.folder / "logs" / f"{name}.log"
        text, mark = _tail(log), ""
        marks = [found.group(1) for found in _MARK.finditer(text)]
        mark = marks[-1].split()[0].rstrip(":") if marks else ("started" if text else "")
        held = lease.look(lease.step_path(log.parent, name))
        if held is not None and held.life == "alive" and mark in ("started", "waiting"):
            return self._running(name, text, held)
        if mark == "failed" and self._of_this_run(log):
            return Step(name, "failed", reason=self._reason(name, text))
        if mark == "started" and self._of_this_run(log):
            return self._ended_without_a_word(name, text)
        if self._is_done(name, mark):
            seconds = _read_json(log.with_suffix(".json")).get("seconds")
            changed = self._changed(name)
            return Step(name, "waiting", reason=changed) if changed else Step(name, "done", seconds=seconds)
        return Step(name, "waiting", reason="failed before" if mark == "failed" else "")

    def _of_this_run(self, log: Path) -> bool:
        try:
            return log.stat().st_mtime >= self.record.get("began", 0) - 2  # the clock of the disk may be another
        except OSError:
            return False

    def _running(self, name: str, text: str, held: lease.Seen) -> Step:
        where = "" if held.holder.host == _host() else held.holder.host
        where += f" job {held.holder.job}" if held.holder.job else ""
        seconds = max(0.0, time.time() - held.holder.began)
        done, total, unit = _progress(text)
        left = _pace(self.folder, name, done, total, unit, seconds)
        return Step(name, "running", done, total, unit, seconds, left, where=where.strip())

    def _reason(self, name: str, text: str) -> str:
        told = _read_json(self.folder / "logs" / f"{name}.error.json").get("message")
        told = told or text[text.rindex("failed: ") :].splitlines()[0].removeprefix("failed: ")
        return told.removeprefix(f"step {name} failed: ")

    def _ended_without_a_word(self, name: str, text: str) -> Step:
        done, total, unit = _progress(text)
        if self.record.get("outcome") == "failed":
            reason = "its process ended without a word: killed, most often for want of memory or time"
            full = _FULL.search(text[text.rfind("started\n") :])
            reason = f"its process ended without a word of its own, after: {full.group()}" if full else reason
            return Step(name, "failed", done, total, unit, reason=reason)
        return Step(name, "stopped", done, total, unit, reason="" if self.running else "goes on with the next run")

    def _is_done(self, name: str, mark: str) -> bool:
        if mark not in ("finished", "") or not (self.folder / graph.product_of(name)).exists():
            return False
        if self.record.get("outcome") in (None, "finished") or not self.planned:
            return True
        return not self._still_planned(name)

    def _still_planned(self, name: str) -> bool:
        """Whether the last run wanted to do this step and has not begun with it; of several alike, whether with all."""
        rule = graph.rule_of(name)
        alike = [step for step in graph.step_names(self.values.get("folds", 5)) if graph.rule_of(step) == rule]
        begun = [step for step in alike if self._of_this_run(self.folder / "logs" / f"{step}.log")]
        return name not in begun and self.planned.get(rule, 0) - len(begun) >= len(alike) - len(begun)

    def _changed(self, name: str) -> str:
        """Parameters that a finished step was made with and that are others now."""
        then = made_with(self.folder, graph.product_of(name))
        found = [
            f"{key} was {value}, is {self.values[key]}"
            for key, value in then.items()
            if key in self.values and _plain(value) != _plain(self.values[key])
        ]
        return "to be done again: " + "; ".join(found) if found else ""


def _host() -> str:
    import socket

    return socket.gethostname()


def made_with(folder: Path, product: str) -> dict[str, Any]:
    """The parameters that a product was made with, from Snakemake's records; empty where there are none."""
    name = base64.urlsafe_b64encode(product.encode()).decode()
    record = _read_json(folder / ".snakemake" / "metadata" / name)
    found: dict[str, Any] = {}
    for text in record.get("params") or ():
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
            found |= value if isinstance(value, dict) else {}
    return found


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tail(path: Path, most: int = TAIL_BYTES) -> str:
    """The end of a log, from the beginning of a line on."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if size > most else text


def _progress(text: str) -> tuple[int | None, int | None, str]:
    """How far a running step says it is: done, total, and of what; since it began for the last time."""
    since = text[text.rfind("started\n") :] if "started\n" in text else text
    found = list(_PROGRESS.finditer(since))
    if not found:
        return None, None, ""
    unit, done, total = found[-1].groups()
    return int(done), int(total), f"{unit}s"


# --- time left


def _pace(folder: Path, step: str, done: int | None, total: int | None, unit: str, seconds: float) -> float | None:
    """Seconds left of a running step at its own pace; epochs: at most, since training may stop early."""
    if not done or total is None:
        before = _read_json(folder / "logs" / f"{step}.json").get("seconds")  # how long it took the last time
        return max(0.0, before - seconds) if before else None
    fold = graph.notebook_of(step)[1].get("fold")
    history = folder / "folds" / str(fold) / "history.csv"
    if unit == "epochs":
        each = _seconds_of_epochs(history)
        return statistics.median(each) * (total - done) if each else None
    if fold is not None:  # the patients' turn comes after the last epoch
        with suppress(OSError):
            seconds = max(0.0, time.time() - history.stat().st_mtime)
    return seconds / done * (total - done)


def _seconds_of_epochs(history: Path) -> list[float]:
    try:
        with open(history, newline="", encoding="utf-8") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file) if row.get("seconds")]
    except (OSError, ValueError, csv.Error):
        return []


def _with_estimates(steps: Sequence[Step], folder: Path) -> list[Step]:
    """For steps that wait: as long as they took the last time, or as a step like them takes."""
    found = []
    for step in steps:
        if step.state in ("waiting", "stopped") and step.seconds_left is None:
            before = _read_json(folder / "logs" / f"{step.step}.json").get("seconds")
            found.append(replace(step, seconds_left=before or _like(step, steps)))
        else:
            found.append(step)
    return found


def _like(step: Step, steps: Sequence[Step]) -> float | None:
    alike = [other for other in steps if graph.rule_of(other.step) == graph.rule_of(step.step) == "train_fold"]
    known = [other.seconds for other in alike if other.state == "done" and other.seconds is not None]
    known += [
        other.seconds + other.seconds_left
        for other in alike
        if other.state == "running" and other.seconds is not None and other.seconds_left is not None
    ]
    return statistics.mean(known) if known else None


def _left(steps: Sequence[Step], stages: Sequence[Sequence[str]]) -> float | None:
    """Seconds until the study is finished, if as many steps run side by side as do now; None if nothing is known.

    A stage waits for the one before. What never ran and has none like it counts as nothing: so it is a lower bound.
    """
    by_name, total, known = {step.step: step for step in steps}, 0.0, False
    side_by_side = max(1, sum(step.state == "running" for step in steps))
    for stage in stages:
        left = [by_name[name].seconds_left for name in stage if by_name[name].state != "done"]
        numbers = [seconds for seconds in left if seconds is not None]
        known = known or bool(numbers)
        total += max([sum(numbers) / min(side_by_side, len(stage)), *numbers], default=0.0) if numbers else 0.0
    return total if known else None


def is_bound(status: Status) -> bool:
    """Whether the time left is a lower bound, since nothing is known of some step."""
    return any(step.state != "done" and step.seconds_left is None for step in status.steps)


# --- in words


def _outcome(record: Mapping[str, Any], held: lease.Seen | None, steps: Sequence[Step]) -> Outcome:
    if held is not None and held.life in ("alive", "silent"):
        return "running" if held.life == "alive" else "silent"
    begun = any(step.state != "waiting" for step in steps)
    if not record:  # made by an earlier version, or step by step
        return "finished" if all(step.state == "done" for step in steps) else "stopped" if begun else "not begun"
    if record["outcome"] == "running":
        return "killed"
    if record["outcome"] == "finished" and not all(step.state == "done" for step in steps):
        return "stopped"
    return record["outcome"]


def _said(state: Outcome, record: Mapping[str, Any], held: lease.Seen | None, folder: Path) -> str:
    again = f"`{record.get('command') or 'mtv run PARAMS'}`"
    if state == "running":
        assert held is not None
        last = f", last sign of life {seconds_text(held.silent_s)} ago" if held.silent_s > 2 * lease.BEAT_S else ""
        return f"running: {held.holder}{last}"
    if state == "silent":
        assert held is not None
        return silent_text(held, folder / lease.STUDY)
    return {
        "not begun": f"not begun: {again} begins it",
        "finished": f"finished{_when(record)}",
        "failed": f"failed{_when(record)}; mend the cause, then {again} goes on",
        "stopped": f"stopped{_when(record)}; {again} goes on",
        "killed": f"killed: its run ended without a word; {again} goes on, finished steps are kept",
    }[state]


def silent_text(held: lease.Seen, file: Path) -> str:
    """What is to be said of a run of another computer that gives no sign of life."""
    return (
        f"unknown: {held.holder}, has given no sign of life for {seconds_text(held.silent_s)}; if it is gone, delete "
        f"{file} and run again: finished steps are kept"
    )


def _when(record: Mapping[str, Any]) -> str:
    ended = record.get("ended")
    return f" {time.strftime('%Y-%m-%d %H:%M', time.localtime(ended))}" if ended else ""


def seconds_text(seconds: float) -> str:
    """12 s, 5 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{hours // 24} d {hours % 24} h"


def heading(status: Status) -> str:
    """The study's state in one line."""
    text = f"Study {status.study}: {status.said}"
    if status.state in ("running", "failed", "stopped", "killed", "silent"):
        text += f"; {status.steps_done} of {status.steps_total} steps done"
    if status.state == "running" and (status.seconds_left or 0) >= 1:
        text += f", {'at least' if is_bound(status) else 'about'} {seconds_text(status.seconds_left or 0)} left"
    return text + "."


def row(step: Step) -> tuple[str, str, str, str, str]:
    """A step as words: name, state, progress, time, time left."""
    progress = f"{step.unit[:-1]} {step.done} of {step.total}" if step.done is not None else ""
    if step.where:
        progress = f"{progress} on {step.where}".strip()
    time_ = "" if step.seconds is None else seconds_text(step.seconds)
    left = "" if step.seconds_left is None or step.state == "done" else seconds_text(step.seconds_left)
    return step.step, step.state, progress, time_, left


COLUMNS = ("step", "state", "progress", "time", "left")


def lines(status: Status) -> list[str]:
    """The status as plain text."""
    rows = [COLUMNS, *map(row, status.steps)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    return [heading(status), "", *table, *after(status)]


def after(status: Status) -> list[str]:
    """What stands below the table: reasons, and of a failed step the end of its log and how to repeat it."""
    found = [*status.notes]
    found += [f"{step.step}: {step.reason}" for step in status.steps if step.reason and step.state != "failed"]
    failed = [line for step in status.steps if step.state == "failed" for line in failure(Path(status.folder), step)]
    return [*([""] if found else []), *found, *failed]


def failure(folder: Path, step: Step) -> list[str]:
    """A failed step: why, the last lines of its log, and the command that repeats it alone."""
    log = folder / "logs" / f"{step.step}.log"
    return [
        "",
        f"{step.step} failed: {step.reason}",
        f"The last lines of {log}:",
        *(f"    {line[:300]}" for line in _last_lines(log, step.reason)),
        "To repeat it alone:",
        f"    {repeat_command(folder, step.step)}",
    ]


def _last_lines(log: Path, reason: str) -> list[str]:
    """Without the reason, which is told already, and what every kernel of a notebook says at its start."""
    found = _tail(log, 16 * 1024).splitlines()
    found = [line for line in found if line.strip() and reason not in line and not line.startswith("[IPKernelApp]")]
    return found[-TAIL_LINES:]


def repeat_command(folder: Path, step: str) -> str:
    """The command that runs one step by itself, from the folder that its parameters' paths count from."""
    base = _base(folder)
    place = os.path.relpath(folder.resolve(), base)
    command = shlex.join([sys.executable, "-m", "mtvlib.steps", "--study", place, step])
    return command if base == Path.cwd() else f"cd {shlex.quote(str(base))} && {command}"


def _base(folder: Path) -> Path:
    """Where the study's relative paths count from: above studies/<name>, if it still lies there."""
    values, here = _read_parameters(folder), folder.resolve()
    below = Path(str(values.get("studies", "studies"))) / str(values.get("name", here.name))
    parts = below.parts
    if not below.is_absolute() and ".." not in parts and here.parts[-len(parts) :] == parts:
        return here.parents[len(parts) - 1]
    return Path.cwd()


def _read_parameters(folder: Path) -> dict[str, Any]:
    try:
        return _parameters(folder)
    except InputError:
        return {}


def failures(folder: Path) -> list[str]:
    """Of each failed step of a run that has just ended: why, the end of its log, and how to repeat it."""
    try:
        status = look(folder, ended=True)
    except InputError:
        return []
    return [line for step in status.steps if step.state == "failed" for line in failure(folder, step)]


def as_dict(status: Status) -> dict[str, Any]:
    """The status as JSON, with the command that repeats each failed step."""
    folder = Path(status.folder)
    steps = [
        asdict(step)
        | ({"log": str(folder / "logs" / f"{step.step}.log"), "repeat": repeat_command(folder, step.step)}
           if step.state == "failed" else {})
        for step in status.steps
    ]  # fmt: skip
    counts = {"steps_done": status.steps_done, "steps_total": status.steps_total}
    return asdict(status) | counts | {"seconds_left_is_lower_bound": is_bound(status), "steps": steps}


# --- for a parameter file


def look_at(place: Path) -> Status:
    """The status of a study's folder, or of the study of a parameter file, with what the file has changed since."""
    if not place.is_file():
        return look(place)
    from mtvlib import params  # checks take half a second, and are wanted here only

    wanted = params.read(place)
    if not (wanted.study_folder / "params.yml").exists():
        return _not_begun(wanted.name, wanted.study_folder, place, wanted.folds)
    status = look(wanted.study_folder)
    there, here = _parameters(wanted.study_folder), wanted.model_dump(mode="json")
    changed = [
        f"{name} was {there.get(name)}, is {value}"
        for name, value in here.items()
        if name not in _PLACE and _plain(there.get(name)) != _plain(value)
    ]
    note = f"Changed in {place} since the last run: {'; '.join(changed)}. `mtv run {place}` redoes what depends on it."
    return replace(status, notes=[*status.notes, note]) if changed else status


def _not_begun(name: str, folder: Path, place: Path, folds: int) -> Status:
    steps = [Step(step, "waiting") for step in graph.step_names(folds)]
    return Status(name, str(folder), "not begun", f"not begun: `mtv run {place}` begins it", None, None, None, steps)


def watch(place: Path, show: Callable[[Status], None], every_s: float = 2.0) -> Status:
    """Show the status again and again until no run is at work; returns the last."""
    while True:
        status = look_at(place)
        show(status)
        if status.state != "running":
            return status
        time.sleep(every_s)
