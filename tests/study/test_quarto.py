"""The book of a finished study by a real Quarto: HTML and PDF; skipped where there is none."""

import re
import shutil

import pytest

from mtvlib import report

pytestmark = pytest.mark.skipif(shutil.which("quarto") is None, reason="Quarto is not installed")


@pytest.fixture(scope="module")
def folder(finished_study, tmp_path_factory):
    target = tmp_path_factory.mktemp("quarto")
    for part in ("studies", "cohort"):
        shutil.copytree(finished_study / part, target / part)
    return target / "studies" / "tiny"


@pytest.fixture(scope="module")
def pages(folder):
    index = report.render(folder, "html", show=lambda line: None)
    return {path.stem: path.read_text(encoding="utf-8") for path in index.parent.glob("*.html")}


@pytest.fixture(scope="module")
def pdf(folder):
    return report.render(folder, "pdf", show=lambda line: None)


def test_there_is_a_page_for_each_chapter_and_none_is_heavy(pages):
    assert {"index", "1_cohort", "2_training", "4_delineation", "8_cases", "9_trust", "model", "methods"} <= set(pages)
    assert max(map(len, pages.values())) < 3_000_000


def test_no_cross_reference_and_no_citation_is_unresolved(pages):
    for name, text in pages.items():
        words = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r"\?@?(fig|tbl|sec)-|\?\?", re.sub(r"<[^>]*>", "", words)), name


def test_scripts_are_such_that_a_page_from_a_disk_may_load(pages):
    assert not [name for name, text in pages.items() if 'type="module"' in text]


def test_every_page_says_that_patients_are_synthetic_and_what_made_it(pages):
    for name, text in pages.items():
        footer = text[text.rindex('class="nav-footer"') :]
        assert "synthetic patients, no clinical claim" in footer, name
        assert re.search(r"Study tiny .* parameters [0-9a-f]{12}", footer, re.DOTALL), name


def test_the_pdf_is_whole_light_and_has_its_fonts(pdf):
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    assert pdf.stat().st_size < 10_000_000
    read = pypdf.PdfReader(pdf)
    texts = [page.extract_text() for page in read.pages]
    assert 30 < len(texts) < 120
    assert all("synthetic patients, no clinical claim" in text for text in texts[1:])
    assert not [text for text in texts if re.search(r"\?(fig|tbl)-|\?\?", text)]
    fonts = {font.removeprefix("/").split("+")[-1] for page in read.pages for font in _fonts(page)}
    assert any(font.startswith("Lato") for font in fonts)


def test_figures_of_the_pdf_are_vectors(pdf):
    """A page with a plot has its words as text: a picture of a plot has none."""
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    words = " ".join(page.extract_text() for page in pypdf.PdfReader(pdf).pages)
    assert "Overall survival (%)" in words
    assert "CNN TTB (ml)" in words


def _fonts(page):
    fonts = page["/Resources"].get("/Font", {})
    return [str(font.get_object()["/BaseFont"]) for font in fonts.values()]
