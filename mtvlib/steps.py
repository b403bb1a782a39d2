"""One step of the study's graph, run by itself: `python -m mtvlib.steps --study studies/demo 2_train_fold_0`.

A step is a notebook, run by papermill, or the evaluation or the manifest. Snakemake calls this module for each step;
what a step depends on (code, parameters, inputs) is told to it as fingerprints of contents, so that neither a copied
folder nor a touched file makes work, and every real change does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtvlib import cluster, devices, fingerprint, lease
from mtvlib.cohort import FILES, read_cohort
from mtvlib.errors import InputError, MtvError, WorkError
from mtvlib.files import sha256, write_json, write_text
from mtvlib.graph import CHAPTERS as CHAPTERS  # as: whoever knows the steps knows their names
from mtvlib.graph import MODULES as MODULES
from mtvlib.graph import RUN as RUN
from mtvlib.graph import TRAIN_FOLD as TRAIN_FOLD
from mtvlib.graph import notebook_of as notebook_of
from mtvlib.graph import part_of, rule_of
from mtvlib.graph import step_names as step_names
from mtvlib.params import Params
from mtvlib.study import Study

_MODULES_OF_BATCHES = {"prepare": "mtvlib.prepare", "predict": "mtvlib.inference"}
HASHES = ".images.json"  # in the study's folder: what the images' contents were at the last look


def project_root() -> Path:
    """The folder with notebooks, Snakefile and report: of the clone, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent
    return package / "_study" if (package / "_study").exists() else package.parent


def notebook_path(step: str) -> Path:
    return project_root() / "notebooks" / f"{notebook_of(step)[0]}.ipynb"


def devices_of(step: str, params: Params) -> int:
    """Graphics cards that a step wants, where there are any."""
    wanted = {"train_fold": params.devices_per_fold, "external_testing": 1, "predict": 1}
    return 0 if params.device == "cpu" else wanted.get(rule_of(step), 0)


# --- what a step depends on


def code_fingerprint(step: str) -> str:
    """Hash of the step's own code: its notebook's cells and every module of mtvlib that these import, in turn."""
    module = MODULES.get(step) or _MODULES_OF_BATCHES.get(rule_of(step))
    if module:
        return fingerprint.of_modules([module])
    return fingerprint.of_notebook(notebook_path(step))


def source_fingerprint(study: Study) -> str:
    """Hash of the cohort's table and of the contents of every image that it names."""
    table = read_cohort(study.source)
    files = sorted({Path(file) for name in FILES for file in table[name] if file})
    digest = hashlib.sha256(study.source.read_bytes())
    # Images of excluded patients may be missing.
    hashes = content_hashes([path for path in files if path.exists()], study.folder / HASHES)
    for path in files:
        digest.update(f"{path.name} {hashes.get(path)}\n".encode())
    return digest.hexdigest()[:16]


def corrections_fingerprint(study: Study) -> str:
    """Hash of the records of all corrections, which name the sha256 of their maps; '' without any."""
    files = sorted((study.folder / "corrections").glob("*/[0-9]*.json"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.parent.name} {path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()[:16] if files else ""


def content_hashes(paths: Sequence[Path], known: Path) -> dict[Path, str]:
    """sha256 of each file. What has the size and the time of change that the file `known` tells is not read again."""
    before = _read_json(known)
    names = {path: os.path.relpath(path, known.parent) for path in paths}
    stamps = {path: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    found = {path: before[name][2] for path, name in names.items() if before.get(name, [])[:2] == stamps[path]}
    unknown = [path for path in paths if path not in found]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashing releases Python's lock
        found |= dict(zip(unknown, pool.map(sha256, unknown), strict=True))
    if unknown and known.parent.is_dir():
        write_json(known, {name: [*stamps[path], found[path]] for path, name in names.items()})
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# --- running


def run_step(study: Study, step: str) -> None:
    """Run a step; its result, log, seconds and peak memory lie in the study's folder. Raises `MtvError`.

    Waits while another process works on the same step, such as a job of a cluster that outlived its run.
    """
    say = study.say(step)
    with lease.only_step(study.logs, step, say):
        _run_alone(study, step, say)


def _run_alone(study: Study, step: str, say: Callable[[str], None]) -> None:
    """The step, unless this run has seen it fail by an error of its own: a scheduler's next try would end alike."""
    file = study.logs / f"{step}.error.json"
    again = _error_of_this_run(file)
    if again is not None:
        raise again
    say("started")
    with cluster.recorded(study.logs, step) as cost:
        try:
            _attempt(study, step)
        except MtvError as error:
            told = {"message": str(error), "exit_code": error.exit_code, "killed": isinstance(error, Killed)}
            write_json(file, told | {"run": os.environ.get(RUN)})
            say(f"failed: {error}")
            raise
    file.unlink(missing_ok=True)
    write_json(study.logs / f"{step}.json", {name: cost[name] for name in ("seconds", "cpu_seconds", "peak_memory_mb")})
    say(f"finished in {cost['seconds']:.0f} s")


class Killed(WorkError):  # noqa: N818
    """The notebook's process was ended from outside; with more memory the same work may succeed."""


def _error_of_this_run(file: Path) -> MtvError | None:
    error = _read_json(file)
    if not os.environ.get(RUN) or error.get("run") != os.environ[RUN] or error.get("killed"):
        return None
    return (InputError if error["exit_code"] == InputError.exit_code else WorkError)(error["message"])


def _attempt(study: Study, step: str) -> None:
    """Do the step's work; what no module foresaw becomes a `WorkError`, its traceback goes into the step's log."""
    try:
        with devices.claim(devices_of(step, study.params), study.say(step)):
            _work(study, step)
    except MtvError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise WorkError(f"step {step} failed: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _work(study: Study, step: str) -> None:
    part = part_of(step)
    if part:
        _batch(study, step, *part)
        write_text(study.folder / "batches" / f"{step}.txt", "done\n")
    elif step == "evaluation":
        from mtvlib.evaluation import evaluate_study

        evaluate_study(study)
    elif step == "manifest":
        from mtvlib.changes import record
        from mtvlib.manifest import write_manifest

        write_manifest(study)
        record(study)
    else:
        run_notebook(study, step)


def _batch(study: Study, step: str, part: int, parts: int) -> None:
    """Every `parts`th patient from the `part`th on, for the step that follows."""
    if rule_of(step) == "prepare":
        from mtvlib.cohort import assign_folds
        from mtvlib.prepare import prepare_part

        prepare_part(study, assign_folds(read_cohort(study.source), study.params), part, parts, say=study.say(step))
    else:
        from mtvlib.inference import predict_patients, study_models

        patients = study.patients_of("external_testing")[part::parts]
        predict_patients(study_models(study), study, patients, say=study.say(step))


def run_notebook(study: Study, step: str) -> Path:
    """Execute a step's notebook into the study's folder, without anything that names this machine or its user."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    name, own = notebook_of(step)
    out = study.folder / "notebooks" / f"{step}.ipynb"
    running = study.logs / f"{step}.ipynb"
    running.parent.mkdir(parents=True, exist_ok=True)
    place = {"name": study.params.name, "studies": study.params.studies}
    try:
        papermill.execute_notebook(
            project_root() / "notebooks" / f"{name}.ipynb",
            running,
            place | own,
            kernel_name="python3",
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        raise _failure(step, error, running) from None
    except DeadKernelError:
        raise Killed(
            f"step {step} failed: its process was killed, most often for want of memory",
            file=running,
            remedy="use fewer --cores or a machine with more memory.",
        ) from None
    notebook = nbformat.read(running, as_version=4)
    write_text(out, scrub(nbformat.writes(notebook)))
    running.unlink()
    return out


def _failure(step: str, error, notebook: Path) -> MtvError:
    """What went wrong in a notebook as our own error: the message of a known error as it is, else its last line."""
    kind = InputError if error.ename == "InputError" else WorkError
    message = f"{error.ename}: {error.evalue}" if error.ename not in ("InputError", "WorkError") else error.evalue
    return kind(f"step {step} failed: {message.strip()} (the notebook as far as it ran: {notebook})")


def scrub(text: str) -> str:
    """A notebook's JSON without the absolute paths, the user and the host of the machine that ran it."""
    notebook = json.loads(text)
    for part in (notebook, *notebook["cells"]):
        for name in ("papermill", "execution"):
            part["metadata"].pop(name, None)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            _scrub_host(output)
    places = {str(Path.cwd()): ".", str(project_root()): ".", sys.prefix: "<env>", str(Path.home()): "~"}
    for path in sorted(places, key=len, reverse=True):  # a folder before the one that it lies in
        if len(path) > 1:
            notebook = _replaced(notebook, re.escape(path) + r"(?![\w-])", places[path])
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _scrub_host(output: dict[str, Any]) -> None:
    """Only in plain text, where a library may name it: elsewhere "data" or "code" is more than the name of a host."""
    pattern = rf"(?<![\w-]){re.escape(socket.gethostname())}(?![\w-])"
    for holder, key in ((output, "text"), (output, "traceback"), (output.get("data", {}), "text/plain")):
        if key in holder:
            holder[key] = _replaced(holder[key], pattern, "<host>")


def _replaced(value: Any, pattern: str, text: str) -> Any:
    """A JSON value with every match in its texts replaced; keys stay."""
    if isinstance(value, dict):
        return {key: _replaced(item, pattern, text) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, pattern, text) for item in value]
    return re.sub(pattern, lambda _: text, value) if isinstance(value, str) else value


def die_with_parent(patience_s: float = 0) -> None:
    """End this process when the one that started it is gone, so that a killed study leaves no worker behind.

    With a patience it is interrupted first, and has so many seconds to end what it has begun elsewhere.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if patience_s:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(patience_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m mtvlib.steps", description=__doc__)
    parser.add_argument("step")
    parser.add_argument("--study", required=True, help="the study's folder")
    parser.add_argument("--base", default=".", help="the folder that relative paths in the parameters count from")
    options = parser.parse_args(arguments)
    die_with_parent()
    os.chdir(options.base)
    try:
        run_step(Study.open(options.study), options.step)
    except MtvError as error:
        with contextlib.suppress(OSError):
            print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
