"""The `mtv` command: thin; what it does lies in the other modules."""

from __future__ import annotations

import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mtvlib.errors import InputError, MtvError, WorkError

Device = Literal["auto", "cpu", "cuda"]
STATE_STYLES = {"done": "green", "running": "bold cyan", "failed": "bold red", "stopped": "yellow", "waiting": "dim"}
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
    gc.set_threshold(100_000)  # libraries make 250 000 objects that stay: to look through them again and again is slow
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
    finally:
        gc.freeze()  # nor once more at the end


def _unexpected(error: Exception) -> WorkError:
    what = str(error) if isinstance(error, OSError) else f"this should not happen: {type(error).__name__}: {error}"
    return WorkError(what, remedy="`mtv --debug ...` shows where; `mtv info` tells what a report of a bug needs.")


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder of the new cohort.")],
    patients: Annotated[int, typer.Option(min=0, help="Patients of the main cohort.")] = 30,
    external: Annotated[int, typer.Option(min=0, help="Patients of the external cohort.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same patients.")] = 2023,
    hard: Annotated[
        bool, typer.Option("--hard", help="Pale nodes, many inflamed ones, external scanners unlike the others.")
    ] = False,
) -> None:
    """Write a cohort of synthetic patients with known truth."""
    from mtvlib.phantom import write_cohort

    with _bar("synthetic patients") as progress:
        cohort = write_cohort(out, patients, external, seed, hard=hard, progress=progress)
    print(f"{patients} + {external} synthetic patients in {cohort}")


@imports.command()
def dicom(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of DICOM files, however they are sorted")],
    out: Annotated[Optional[Path], typer.Option(help="Folder of the cohort, new or to go on with.")] = None,  # noqa: UP045
    table: Annotated[Optional[Path], typer.Option(help="Outcomes and staging: .csv or .xlsx, a row a patient.")] = None,  # noqa: UP045
    roi_names: Annotated[Optional[Path], typer.Option(help="Your table of the regions' names, YAML.")] = None,  # noqa: UP045
    key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Key of the pseudonyms; by default OUT.key, beside OUT. Keep it: the cohort does not hold it."
        ),
    ] = None,
    site: Annotated[str, typer.Option(help="Site of patients for whom the table has none.")] = "unknown",
    external: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="SITE", help="Site of the external cohort; may be given several times."),
    ] = None,
    keep_ids: Annotated[bool, typer.Option(help="Keep PatientID as the name: for de-identified collections.")] = False,
    jobs: Annotated[Optional[int], typer.Option(min=1, help="Patients at once; the processor's cores.")] = None,  # noqa: UP045
    list_regions: Annotated[bool, typer.Option(help="Only print the regions' names and what they count as.")] = False,
) -> None:
    """PET, CT and regions (RTSTRUCT, SEG) of every patient in a folder: SUV, HU and labels under pseudonyms."""
    from mtvlib.dicom_import import LOG, import_dicom, regions_in

    if list_regions:
        for name, category, n in regions_in(source, roi_names):
            print(f"{category:10} {n:6}  {name}")
        return
    if out is None:
        raise InputError("there is no folder for the cohort", remedy="give --out DIR.")
    with _stages() as progress:
        found = import_dicom(
            source,
            out,
            table=table,
            roi_names=roi_names,
            key=key,
            site=site,
            external=external or (),
            keep_ids=keep_ids,
            jobs=jobs,
            progress=progress,
        )
    print(f"{found.patients} patients imported, {found.left_out} left out, {found.skipped} of them done before")
    if found.dropped_columns:
        print(f"Columns of the table that were not taken over: {', '.join(found.dropped_columns)}")
    if found.rows_without_images:
        print(f"Rows of the table without images: {found.rows_without_images}")
    print(f"Cohort: {found.cohort}\nWhat was left out, and why: {found.cohort.with_name(LOG)}")


@imports.command()
def sts(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder that holds STS_001/ and so on")],
    out: Annotated[Path, typer.Option(help="Folder of the new cohort.")],
) -> None:
    """Soft-tissue sarcomas of the IBSI validation set: one lesion class, no outcomes."""
    from mtvlib.layouts import import_sts

    print(f"Cohort: {import_sts(source, out)}")


@imports.command()
def hecktor(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of one edition: 2021, 2022, 2025 or 2026")],
    out: Annotated[Path, typer.Option(help="Folder of the new cohort.")],
    external: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="SITE", help="Site of the external cohort, such as MDA; may be given several times."),
    ] = None,
) -> None:
    """Training or test cases of the HECKTOR challenge: primary tumours and, but for 2021, nodes; relapse, not death."""
    from mtvlib.layouts import LOG, import_hecktor

    with _bar("patients") as progress:
        cohort = import_hecktor(source, out, external=external or (), progress=progress)
    print(f"Cohort: {cohort}\nWhat was left out, and why: {cohort.with_name(LOG)}")


@imports.command()
def nnunet(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder that holds dataset.json, imagesTr/, labelsTr/")],
    out: Annotated[Path, typer.Option(help="Folder of the new cohort.")],
) -> None:
    """Raw dataset of nnU-Net with a PET channel; its test cases become the external cohort."""
    from mtvlib.layouts import LOG, import_nnunet

    with _bar("patients") as progress:
        cohort = import_nnunet(source, out, progress=progress)
    print(f"Cohort: {cohort}\nWhat was left out, and why: {cohort.with_name(LOG)}")


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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with trainings that were stopped; an error where there are none.")
    ] = False,
) -> None:
    """Run a whole study, or what of it is unfinished or changed."""
    from mtvlib.flow import run_study
    from mtvlib.tables import table1_text

    show, command = Lines().show, shlex.join(["mtv", *sys.argv[1:]])
    study = run_study(params, cores=cores, profile=profile, device=device, resume=resume, command=command, show=show)
    print(f"\n{table1_text(study.summary, synthetic=study.synthetic)}\n")
    print(f"Results: {study.results}   Notebooks: {study.folder / 'notebooks'}")
    print(f"For the report: mtv report {study.folder}")


@app.command()
def status(
    study: Annotated[Path, typer.Argument(help="Folder of a study, or its parameter file")],
    as_json: Annotated[bool, typer.Option("--json", help="The state as JSON.")] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Show it anew until no run is at work.")] = False,
) -> None:
    """How far a study has come, also while it runs elsewhere: steps, why one failed, how to repeat it, time left."""
    from mtvlib import status as state

    show = _as_json if as_json else _status_shower()
    with suppress(KeyboardInterrupt):
        if follow:
            state.watch(study, show)
        else:
            show(state.look_at(study))


def _as_json(found: Any) -> None:
    from mtvlib.status import as_dict

    print(json.dumps(as_dict(found), indent=2), flush=True)


def _status_shower() -> Callable[[Any], None]:
    """A function that shows a status: as a table that takes the place of the last one in a terminal, else as text."""
    from mtvlib import status as state

    console, last = Console(highlight=False), [""]

    def show(found: state.Status) -> None:
        text = "\n".join(state.lines(found))
        if not console.is_terminal:
            if text != last[0]:
                print(text, flush=True)
        else:
            if last[0]:
                console.clear()
            console.print(_status_table(found), *map(escape, state.after(found)), sep="\n", soft_wrap=True)
        last[0] = text

    return show


def _status_table(found: Any) -> Any:
    from rich.table import Table

    from mtvlib import status as state

    table = Table(
        title=escape(state.heading(found)), title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for name in state.COLUMNS:
        table.add_column(name, header_style="dim", justify="right" if name in ("time", "left") else "left")
    for step in found.steps:
        cells = map(escape, state.row(step))
        table.add_row(*cells, style=STATE_STYLES.get(step.state))
    return table


@app.command()
def evaluate(
    cohort: Annotated[Path, typer.Argument(help="cohort.csv, with references")],
    out: Annotated[Path, typer.Option(help="Folder for patients.csv, lesions.csv and summary.json")],
    predictions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="Folder of PATIENT.nii.gz label maps of any tool"),
    ] = None,
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=DIR", help="Label maps of one of several methods; repeat for each."),
    ] = None,
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="Also thresholds of the SUV, seeded by the reference's lesions.")
    ] = False,
    seeds: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of PATIENT.nii.gz label maps of seeds for --thresholds, in place of the reference."),
    ] = None,
    margin_mm: Annotated[float, typer.Option(min=0, help="How far from its seed a threshold may reach, mm.")] = 10.0,
    resample: Annotated[bool, typer.Option("--resample", help="Bring label maps onto the reference's grid.")] = False,
    missing: Annotated[Literal["error", "empty"], typer.Option(help="What a missing label map is.")] = "error",
    params: Annotated[Optional[Path], typer.Option(help="Parameter file; the paper's values by default.")] = None,  # noqa: UP045
) -> None:
    """Evaluate the masks of any tool as the study evaluates its own; those of several tools are compared too."""
    from mtvlib.evaluation import evaluate_cohort
    from mtvlib.methods import Seeding, evaluate_methods, method_folders
    from mtvlib.params import Params, read
    from mtvlib.tables import table1_text

    if seeds and not thresholds:
        raise InputError("--seeds has no use without --thresholds", value=seeds, remedy="give both.")
    folders = method_folders(predictions, method or (), with_thresholds=thresholds)
    if not folders and not thresholds:
        raise InputError("there is nothing to evaluate", remedy="give PREDICTIONS, --method NAME=DIR or --thresholds.")
    chosen = read(params) if params else Params()
    if predictions and not method and not thresholds:
        with _bar("evaluating") as progress:
            summary = evaluate_cohort(
                cohort, predictions, out, chosen, resample=resample, missing=missing, progress=progress
            )
        print(*_changes(summary), table1_text(summary), f"Results: {out}", sep="\n")
        return
    seeding = Seeding(seeds, margin_mm) if thresholds else None
    with _stages() as stages:
        summaries, compared = evaluate_methods(
            cohort, folders, out, chosen, seeding=seeding, resample=resample, missing=missing, progress=stages
        )
    _show_methods(summaries, compared, out)


def _show_methods(summaries: dict[str, dict[str, Any]], compared: Any, out: Path) -> None:
    from mtvlib.tables_comparison import notes_on_seeds, scores_of_methods, scores_text

    scores = scores_of_methods(summaries)
    notes = [line for name, summary in summaries.items() for line in _changes(summary, f"{name}: ")]
    notes += notes_on_seeds(summaries)
    print(scores_text(scores), *notes, sep="\n")
    if compared is not None:
        from mtvlib.figures_comparison import write_page

        write_page(out / "comparison.html", scores, compared, notes)
        print(f"Comparison: {out / 'comparison.html'}")
    print(f"Results: {out}")


def _changes(summary: dict[str, Any], name: str = "") -> list[str]:
    """Which label maps were missing, and which were brought onto another grid: a line each, if any were."""
    absent, resampled = summary.get("missing_predictions", ()), summary.get("resampled_predictions", ())
    lines = [f"{name}missing, counted as empty: {len(absent)} ({_few(absent)})"] if absent else []
    if resampled:
        before, after = (sum(one[key] for one in resampled) for key in ("before_ml", "after_ml"))
        patients = _few([one["patient"] for one in resampled])
        lines.append(f"{name}resampled: {len(resampled)} ({patients}), {before:.1f} ml became {after:.1f} ml")
    return lines


def _few(names: Sequence[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more, see summary.json" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study, such as studies/demo")],
    to: Annotated[Literal["html", "pdf", "docx"], typer.Option(help="The report's form.")] = "html",
) -> None:
    """Render the report of a finished study."""
    from mtvlib.report import render

    print(f"Report: {render(study, to, show=print)}")


@app.command()
def predict(
    models: Annotated[Path, typer.Option(help="Folder of models: a study's folds/, or one model")],
    pet: Annotated[
        list[Path], typer.Option(help="PET in SUV as NIfTI, or a folder of DICOM; repeat for more patients")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; of several patients, one folder each in it")],
    ct: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="CT in HU as NIfTI, or its folder if that is not the PET's; in the order of the PETs"),
    ] = None,
    to: Annotated[str, typer.Option(help="Forms of the labels: nifti, seg, rtstruct, with commas between")] = "nifti",
    device: Annotated[Device, typer.Option(help="Where the networks run.")] = "auto",
) -> None:
    """Delineate new patients: label maps on the PET's and the CT's own grid, lesion table, preview, JSON record."""
    from mtvlib.predict import patients_of, predict_many, predict_patient

    forms = [form.strip() for form in to.split(",")]
    patients = patients_of(pet, ct or [])
    if len(patients) == 1:
        with _bar("delineating"):
            record = predict_patient(models, pet[0], ct[0] if ct else None, out, device=device, to=forms)
        _print_record(record)
        print(f"Written to {out}")
        return
    with _bar("delineating") as progress:
        results = predict_many(models, patients, out, device=device, to=forms, progress=progress)
    failed = {name: result for name, result in results.items() if isinstance(result, MtvError)}
    for name, result in results.items():
        print(f"{name}:")
        if isinstance(result, MtvError):
            print(f"mtv: {name}: {result}", file=sys.stderr)
        else:
            _print_record(result)
    print(f"{len(results) - len(failed)} of {len(results)} patients delineated, written to {out}")
    raise typer.Exit(1 if failed else 0)


def _print_record(record: dict[str, Any]) -> None:
    for warning in record["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for name, volume_ml in record["mtv_ml"].items():
        print(f"{name:8} {volume_ml:8.1f} ml")


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
    with _stages() as progress:
        yield lambda done, total: progress(label, done, total)


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Progress over work in stages, one bar after the other; yields `progress(stage, done, total)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console, silent = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=silent, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress


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
