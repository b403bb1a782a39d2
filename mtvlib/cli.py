"""The `mtv` command: thin; what it does lies in the other modules."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mtvlib.errors import MtvError, WorkError

Device = Literal["auto", "cpu", "cuda"]
INTERRUPTED = 130  # typer's exit code after Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Metabolic tumour volume of head and neck cancer in FDG PET/CT: from a cohort to the report of a study.",
)
imports = typer.Typer(no_args_is_help=True, help="Turn images as they come into a cohort.")
app.add_typer(imports, name="import")


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Options of every command; `main` looks at them."""


def main() -> None:
    """Run the command; an error is one paragraph and an exit code: 1 failed while working, 2 bad input or usage."""
    debug = "--debug" in sys.argv  # before or behind the command
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="mtv")
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        print("mtv: stopped; finished work is kept, run the same command to go on.", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        known = error if isinstance(error, MtvError) else _unexpected(error)
        print(f"mtv: {known}", file=sys.stderr)
        sys.exit(known.exit_code)


def _unexpected(error: Exception) -> WorkError:
    what = str(error) if isinstance(error, OSError) else f"this should not happen: {type(error).__name__}: {error}"
    return WorkError(what, remedy="`mtv --debug ...` shows where; `mtv info` tells what a report of a bug needs.")


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder of the new cohort.")],
    patients: Annotated[int, typer.Option(min=0, help="Patients of the main cohort.")] = 30,
    external: Annotated[int, typer.Option(min=0, help="Patients of the external cohort.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same patients.")] = 2023,
) -> None:
    """Write a cohort of synthetic patients with known truth."""
    from mtvlib.phantom import write_cohort

    with _bar("synthetic patients") as progress:
        cohort = write_cohort(out, patients, external, seed, progress=progress)
    print(f"{patients} + {external} synthetic patients in {cohort}")


@imports.command()
def sts(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder that holds STS_001/ and so on")],
    out: Annotated[Path, typer.Option(help="Folder of the new cohort.")],
) -> None:
    """Soft-tissue sarcomas of the IBSI validation set: one lesion class, no outcomes."""
    from mtvlib.layouts import import_sts

    print(f"Cohort: {import_sts(source, out)}")


@app.command()
def check(
    cohort: Annotated[Path, typer.Argument(help="cohort.csv")],
    params: Annotated[Optional[Path], typer.Option(help="Parameter file of the study it is for.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
) -> None:
    """Check a cohort and its images; exit code 0 clean, 2 errors."""
    from mtvlib.cohort import check_cohort
    from mtvlib.params import read

    chosen = read(params) if params else None
    with _bar("patients") as progress:
        findings = check_cohort(cohort, chosen, progress=progress)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2, default=str))
    else:
        print(*findings, f"{errors} errors, {len(findings) - errors} warnings", sep="\n")
    raise typer.Exit(2 if errors else 0)


@app.command()
def run(
    params: Annotated[Path, typer.Argument(help="Parameter file of the study, such as params/demo.yml")],
    cores: Annotated[Optional[int], typer.Option(min=1, help="Processor cores; all by default.")] = None,  # noqa: UP045
    profile: Annotated[Optional[str], typer.Option(help="Snakemake profile: a name in profiles/, or a folder.")] = None,  # noqa: UP045
    device: Annotated[Optional[Device], typer.Option(help="In place of the parameter `device`.")] = None,  # noqa: UP045
) -> None:
    """Run a whole study, or what of it is unfinished or changed."""
    from mtvlib.flow import run_study
    from mtvlib.tables import table1_text

    study = run_study(params, cores=cores, profile=profile, device=device, show=Lines().show)
    print(f"\n{table1_text(study.summary, synthetic=study.synthetic)}\n")
    print(f"Results: {study.results}   Notebooks: {study.folder / 'notebooks'}")
    print(f"For the report: mtv report {study.folder}")


@app.command()
def evaluate(
    cohort: Annotated[Path, typer.Argument(help="cohort.csv, with references")],
    predictions: Annotated[Path, typer.Argument(help="Folder of PATIENT.nii.gz label maps of any tool")],
    out: Annotated[Path, typer.Option(help="Folder for patients.csv, lesions.csv and summary.json")],
    params: Annotated[Optional[Path], typer.Option(help="Parameter file; the paper's values by default.")] = None,  # noqa: UP045
) -> None:
    """Evaluate the masks of any tool as the study evaluates its own."""
    from mtvlib.evaluation import evaluate_cohort
    from mtvlib.params import Params, read
    from mtvlib.tables import table1_text

    chosen = read(params) if params else Params()
    with _bar("evaluating"):
        summary = evaluate_cohort(cohort, predictions, out, chosen)
    print(table1_text(summary))
    print(f"Results: {out}")


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study, such as studies/demo")],
    to: Annotated[Literal["html", "pdf"], typer.Option(help="The report's form.")] = "html",
) -> None:
    """Render the report of a finished study."""
    from mtvlib.report import render

    print(f"Report: {render(study, to, show=print)}")


@app.command()
def predict(
    models: Annotated[Path, typer.Option(help="Folder of models: a study's folds/, or one model")],
    pet: Annotated[Path, typer.Option(help="PET in SUV, NIfTI")],
    out: Annotated[Path, typer.Option(help="Folder for label maps, lesion table and record")],
    ct: Annotated[Optional[Path], typer.Option(help="CT in HU, NIfTI; models of PET alone need none")] = None,  # noqa: UP045
    device: Annotated[Device, typer.Option(help="Where the networks run.")] = "auto",
) -> None:
    """Delineate a new patient: label maps on the PET's and the CT's own grid, lesion table, JSON record."""
    from mtvlib.predict import predict_patient

    with _bar("delineating"):
        record = predict_patient(models, pet, ct, out, device=device)
    for warning in record["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for name, volume_ml in record["mtv_ml"].items():
        print(f"{name:8} {volume_ml:8.1f} ml")
    print(f"Written to {out}")


@app.command()
def info() -> None:
    """Versions, device, Quarto and browser found, as a Markdown table for bug reports."""
    from mtvlib.report import environment

    print("| what | found |\n| --- | --- |")
    for name, value in environment().items():
        print(f"| {name} | {value} |")


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the error stream, silent when that is no terminal; yields `progress(done, total)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console, silent = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=silent, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Lines:
    """Lines of a running study: all that matter, and of the many ("epoch 7 of 60 ...") one in five seconds a step."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def show(self, line: str) -> None:
        step, _, text = line.partition(": ")
        often = text.startswith(("epoch", "patient"))
        if often and time.monotonic() - self.last.get(step, 0) < 5:
            return
        self.last[step] = time.monotonic()
        print(line, flush=True)


if __name__ == "__main__":
    main()
