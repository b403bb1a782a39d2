"""The report's pages, filled for a study, under a linter made for Quarto (panache); Quarto itself is not needed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtvlib import report
from mtvlib.study import Study
from tests.test_report import study  # noqa: F401 (a fixture)

# The style of spaces before citations is ours; labels of figures lie in the notebooks, where the linter does not look.
IGNORED = ("citation-nonbreaking-space",)
CROSS_REFERENCE = re.compile(r"Cross-reference label '@((?:fig|tbl)-[\w-]+)' not found")


def lint(folder: Path, *files: str) -> list[str]:
    """What the linter finds in the .qmd files of a folder, or in `files`, a line each."""
    program = shutil.which("panache", path=str(Path(sys.executable).parent)) or shutil.which("panache")
    if program is None:
        pytest.skip("panache is not installed")
    ignored = [word for name in IGNORED for word in ("--ignore", name)]
    done = subprocess.run(
        [program, "lint", *(files or ["."]), "--message-format", "short", "--no-color", *ignored],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"\.(qmd|yml):\d+:\d+: ", line)]


@pytest.fixture
def book(study, tmp_path):  # noqa: F811
    return report.build_book(Study.open(study), tmp_path / "book", "html")


def labels_of(book: Path) -> set[str]:
    """Labels that the book defines, in pages and notebooks."""
    text = "".join(path.read_text() for path in [*book.glob("*.qmd"), *book.glob("*.ipynb")])
    return set(re.findall(r"\{#((?:fig|tbl)-[\w-]+)", text)) | set(
        re.findall(r'#\| label: \\"((?:fig|tbl)-[\w-]+)', text)
    )


def test_every_page_is_clean_and_every_cross_reference_leads_somewhere(book):
    labels = labels_of(book)
    assert {"tbl-glance", "tbl-parameters", "fig-dsc", "fig-training-1"} <= labels
    found = [line for line in lint(book) if (label := CROSS_REFERENCE.search(line)) is None or label[1] not in labels]
    assert found == []


def test_the_linter_finds_what_is_broken(tmp_path):
    (tmp_path / "page.qmd").write_text("# Title\n\n### Skipped a level\n\nSee @fig-nowhere and [a link][nowhere].\n")
    found = " ".join(lint(tmp_path))
    assert "heading-hierarchy" in found
    (tmp_path / "_quarto.yml").write_text("project:\n  type: book\nbook:\n  chapters: [index.qmd\n")
    assert "yaml-parse-error" in " ".join(lint(tmp_path, "_quarto.yml"))
    assert CROSS_REFERENCE.search(found)[1] == "fig-nowhere"


def test_the_books_file_is_yaml_whose_chapters_and_files_exist(book):
    text = (book / "_quarto.yml").read_text()
    settings = yaml.safe_load(text)
    assert all((book / chapter).exists() for chapter in settings["book"]["chapters"])
    assert all((book / file).exists() for file in (settings["bibliography"], "theme/report.scss", "theme/dark.scss"))
    assert settings["format"]["html"]["plotly-connected"] is False
    assert "{{" not in text
    assert lint(book, "_quarto.yml") == []
