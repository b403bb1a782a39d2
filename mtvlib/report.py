"""The report of a finished study: a Quarto book, or one offline HTML page where there is no Quarto.

Its chapters are the study's executed notebooks; summary and methods are written from summary.json, the parameters and
the manifest, so that every number in their text comes from a file. Nothing is computed here, and nothing is fetched
from a network, neither now nor when the report is read.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from mtvlib import report_page, steps
from mtvlib.errors import InputError, WorkError
from mtvlib.files import atomic_path, write_text
from mtvlib.report_pictures import summary_pictures, write_picture
from mtvlib.report_text import context
from mtvlib.show import METADATA_KEY, for_quarto
from mtvlib.study import Study

WHERE_QUARTO = "install it (conda install -c conda-forge quarto, or https://quarto.org/docs/get-started) and try again"
FACES = {"Lato-Regular", "Lato-Italic", "Lato-Semibold", "Lato-SemiboldItalic", "Lato-Bold", "Lato-BoldItalic"}
PAGE_FILES = "report_files"  # what lies beside the one page
PICTURES, NOTEBOOKS = "pictures", "notebooks"  # folders of the book
TRAINING = "2_training"  # the chapter of all folds
HIDDEN = {"parameters", "injected-parameters"}
FORMATS = {"html": "html", "pdf": "mtv-typst", "docx": "docx"}  # a report's form -> Quarto's format
PAGES = ("index", "model", "methods", "changes", "checklist")  # from templates; the chapters stand behind the first
REFERENCES = "## References {.unnumbered}\n\n::: {#refs}\n:::"

Show = Callable[[str], Any]


def render(folder: str | Path, to: str = "html", *, show: Show = print) -> Path:
    """Render the report of a study's folder to `html`, `pdf` or `docx`; returns the file to open.

    With Quarto: `report/html/index.html`, `report/<study>.pdf` by typst, or `report/<study>.docx`, whose tables can be
    edited. Without: `report/report.html`, one page with the same chapters (`report_files` and `viewers` lie beside it),
    and `show` says so; for the other forms that is an `InputError`. A failing Quarto is a `WorkError`.
    """
    study = Study.open(folder)
    if to not in FORMATS:
        raise InputError(f"a report is {', '.join(FORMATS)}", value=to)
    quarto = shutil.which("quarto")
    if quarto is None and to != "html":
        raise InputError(
            f"the {to.upper()} needs Quarto, which was not found", remedy=WHERE_QUARTO + "; --to html works without."
        )
    if quarto is None:
        show(f"Quarto was not found: the report becomes one HTML page. For the book and the PDF, {WHERE_QUARTO}.")
        return write_page(study)
    show("Quarto renders the report; this takes a minute.")
    with tempfile.TemporaryDirectory() as scratch:
        book = build_book(study, Path(scratch) / "book", "typst" if to == "pdf" else to)
        _run_quarto(quarto, book, FORMATS[to])
        return _keep(book / "_book", study, to)


def environment() -> dict[str, str]:
    """Versions, device and programs found, for bug reports."""
    import torch

    from mtvlib.manifest import processor, versions

    quarto = shutil.which("quarto")
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome", "firefox"))), None)
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "not available"
    return versions() | {
        "processor": processor(),
        "cuda": cuda,
        "quarto": _version(quarto) if quarto else "not found: the report is one HTML page, without PDF",
        "browser": browser or "not found",
    }


# --- the book


def build_book(study: Study, out: Path, to: str = "html") -> Path:
    """Write the sources of the book (`to` html, typst or docx) into `out`: template, chapters and `PAGES`."""
    shutil.copytree(template_folder(), out, ignore=shutil.ignore_patterns("page.html"))
    chapters = dict(read_chapters(study))
    pictures = summary_pictures(chapters, PICTURES, "webp" if to == "html" else "png")
    for picture in pictures:
        write_picture(picture, out)
    for name, notebook in chapters.items():
        ready = for_quarto(_one_output_a_cell(notebook), to)
        write_text(out / f"{name}.ipynb", json.dumps(ready, ensure_ascii=False))
    known = context(study, chapters) | {
        "chapters": [f"{name}.ipynb" for name in chapters],
        "pictures": pictures,
        "references": "" if to == "typst" else REFERENCES,  # typst sets them at the end by itself
    }
    for name in ("_quarto.yml", *(f"{page}.qmd" for page in PAGES)):
        write_text(out / name, fill(out / name, known))
    if to == "html":
        _copy_plotly(out)
        _copy_viewers(study, out)
        _copy_notebooks(chapters, out / NOTEBOOKS)
    elif to == "typst":
        _copy_fonts(out / "fonts")
    return out


def read_chapters(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and executed notebook of each chapter there is; the folds are one chapter. `InputError` if there is none."""
    folder = study.folder / "notebooks"
    names = [step for step in steps.step_names(study.params.folds) if (folder / f"{step}.ipynb").exists()]
    if not names or not (study.results / "summary.json").exists():
        raise InputError(
            "the study is not finished: it has no results or no executed notebooks",
            file=study.folder,
            remedy="run it with `mtv run` first.",
        )
    folds = [name for name in names if name.startswith(steps.TRAIN_FOLD)]
    for name in names:
        if name not in folds:
            yield name, _with_source(_read_notebook(folder / f"{name}.ipynb"), source_of(name))
        elif name == folds[0]:
            joined = _join({fold: _read_notebook(folder / f"{fold}.ipynb") for fold in folds})
            yield TRAINING, _with_source(joined, source_of(TRAINING))


def _read_notebook(path: Path) -> dict[str, Any]:
    """An executed notebook without its cells of parameters, which the methods list."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if not HIDDEN & set(cell["metadata"].get("tags", []))]
    return notebook


def _with_source(notebook: dict[str, Any], source: str) -> dict[str, Any]:
    """The notebook, each of whose figures and tables knows what made it."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if METADATA_KEY in output.get("metadata", {}):
                output["metadata"][METADATA_KEY]["source"] = source
    return notebook


def _join(folds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The folds' notebooks as one: prose and banner of the first, outputs of all, the others under headings."""
    first, *others = folds
    joined = copy.deepcopy(folds[first])
    for name in others:
        code = [cell for cell in folds[name]["cells"] if cell["cell_type"] == "code"][1:]
        title = f"## Fold {name.removeprefix(steps.TRAIN_FOLD)[1:]}"
        heading = {"cell_type": "markdown", "metadata": {}, "source": title}
        joined["cells"] += [heading, *copy.deepcopy(code)]
    return joined


def _one_output_a_cell(notebook: dict[str, Any]) -> dict[str, Any]:
    """Quarto numbers and captions cells: each output gets its own. What was printed is left out, as is the code."""
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
        for output in cell.get("outputs", []):
            if "data" in output:
                cells.append({**cell, "source": "", "metadata": {}, "outputs": [output]})
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {**notebook, "cells": cells}


def write_page(study: Study) -> Path:
    """Write the report as one page, without Quarto; what it shows lies beside it. Returns the page."""
    chapters = dict(read_chapters(study))
    pictures = summary_pictures(chapters, PAGE_FILES, "webp")
    known = context(study, chapters) | {"pictures": pictures}
    texts = {name: fill(template_folder() / f"{name}.qmd", known | {"references": ""}) for name in PAGES}
    path = study.folder / "report" / "report.html"
    first, *last = PAGES
    page = report_page.write(
        {first: texts[first]}, chapters, {name: texts[name] for name in last}, template_folder() / "references.bib"
    )
    fresh = path.parent / f".{PAGE_FILES}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _copy_plotly(fresh)
    for picture in pictures:
        write_picture(replace(picture, path=Path(picture.path).name), fresh)
    _copy_notebooks(chapters, fresh / NOTEBOOKS)
    text = _pictures_beside(fill(template_folder() / "page.html", known | page), fresh)
    _copy_viewers(study, path.parent)
    _replace_folder(fresh, path.parent / PAGE_FILES)
    write_text(path, text)
    return path


def _pictures_beside(page: str, folder: Path) -> str:
    """The page with its pictures as files of `PAGE_FILES`, written to `folder`: what must be read at once is small."""

    def put(match: re.Match[str]) -> str:
        content = base64.b64decode(match["data"])
        name = f"{hashlib.sha256(content).hexdigest()[:16]}.{match['kind']}"
        (folder / name).write_bytes(content)
        return f'src="{PAGE_FILES}/{name}"'

    return re.sub(r'src="data:image/(?P<kind>png|webp|jpeg);base64,(?P<data>[A-Za-z0-9+/=]{4000,})"', put, page)


def _replace_folder(fresh: Path, target: Path) -> None:
    """The old folder goes only when the new one lies beside it."""
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def _run_quarto(quarto: str, book: Path, to: str) -> None:
    done = subprocess.run([quarto, "render", ".", "--to", to], cwd=book, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        # An error of typst tells more than Quarto's own line, which may begin with typst's first warning.
        named = [line for sign in ("error: ", "ERROR") for line in lines if sign in line and "warning:" not in line]
        error = named[0] if named else " ".join(lines[-3:])
        raise WorkError(f"Quarto could not render the report: {error}", remedy="see `quarto check`.")


def _keep(made: Path, study: Study, to: str) -> Path:
    target = study.folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    if to != "html":
        with atomic_path(target / f"{study.params.name}.{to}") as temporary:
            shutil.copyfile(next(made.glob(f"*.{to}")), temporary)
        return target / f"{study.params.name}.{to}"
    _plain_scripts(made)
    fresh = target / ".html"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.move(made, fresh)
    _replace_folder(fresh, target / "html")
    return target / "html" / "index.html"


def _plain_scripts(book: Path) -> None:
    """Quarto's own scripts as plain ones: a browser reads no module from a disk, and says so on its console."""
    folder = book / "site_libs" / "quarto-html"
    tag = r'<script src="site_libs/quarto-html/tabsets/tabsets\.js" type="module"></script>\n?'
    module, tabs = folder / "quarto.js", folder / "tabsets" / "tabsets.js"
    if not (module.exists() and tabs.exists()):  # another version of Quarto: its pages are left as they are
        return
    plain = re.sub(r"^export ", "", tabs.read_text(encoding="utf-8"), flags=re.MULTILINE)
    rest = re.sub(r"^import .*$", "", module.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = f"(function () {{\n{plain}\nconst tabsets = {{ init }};\n{rest}\n}})();\n"
    write_text(folder / "quarto-plain.js", text)
    for page in book.glob("*.html"):
        before = page.read_text(encoding="utf-8")
        after = re.sub(tag, "", before)
        after = after.replace('quarto-html/quarto.js" type="module"', 'quarto-html/quarto-plain.js" defer')
        write_text(page, after)


def template_folder() -> Path:
    return steps.project_root() / "report"


def _copy_plotly(out: Path) -> None:
    import plotly

    shutil.copyfile(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", out / "plotly.min.js")


def _copy_viewers(study: Study, out: Path) -> None:
    """The files of the slice viewer, beside the page that reads them; those of an older report go."""
    shutil.rmtree(out / study.viewers.name, ignore_errors=True)
    if study.viewers.exists():
        shutil.copytree(study.viewers, out / study.viewers.name)


def _copy_notebooks(chapters: Iterable[str], out: Path) -> None:
    """The notebooks that made the chapters, as they are kept: code without outputs."""
    out.mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        shutil.copyfile(steps.project_root() / "notebooks" / source_of(chapter), out / source_of(chapter))


def source_of(chapter: str) -> str:
    """File name of the notebook that made a chapter."""
    return f"{steps.TRAIN_FOLD if chapter == TRAINING else chapter}.ipynb"


def _copy_fonts(out: Path) -> None:
    """Lato, the typeface of the figures: it comes with kaleido. Without it, typst takes a sans it finds."""
    import kaleido

    out.mkdir()
    for path in Path(kaleido.__file__).parent.rglob("Lato-*.ttf"):
        if path.stem in FACES:
            shutil.copyfile(path, out / path.name)


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()


def fill(path: Path, values: dict[str, Any]) -> str:
    # Quarto writes attributes as {#label}, which jinja would take for a comment.
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, comment_start_string="<#", comment_end_string="#>",
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.from_string(path.read_text(encoding="utf-8")).render(values)
