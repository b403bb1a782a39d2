"""The book for Quarto and the page without it show the same: chapters, figures, tables, viewers and numbers."""

import copy
import json
import re
import shutil

import pytest
from bs4 import BeautifulSoup

from mtvlib import report
from mtvlib.study import Study

LABEL = re.compile(r"(?:fig|tbl)-[\w-]+")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
RAW = re.compile(r"```\{=html\}\n(.*?)\n```", re.DOTALL)
OPTION = re.compile(r'^#\| ([\w-]+): (".*")$', re.MULTILINE)


@pytest.fixture(scope="module")
def study(finished_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    for part in ("studies", "cohort"):
        shutil.copytree(finished_study / part, folder / part)
    return Study.open(folder / "studies" / "tiny")


@pytest.fixture(scope="module")
def page(study):
    return BeautifulSoup(report.write_page(study).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def book(study, tmp_path_factory):
    return report.build_book(study, tmp_path_factory.mktemp("book") / "book")


@pytest.fixture(scope="module")
def cells(book):
    """Label -> options of its cell (caption, alternative text) and what it shows, of every chapter in the book."""
    found = {}
    for path in sorted(book.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            options = {name: json.loads(text) for name, text in OPTION.findall("".join(cell["source"]))}
            if "label" in options:
                (output,) = cell["outputs"]
                shown = "".join(output["data"]["text/markdown"])
                found[options["label"]] = options | {"html": "".join(RAW.findall(shown))}
    return found


def words(html):
    """What a reader sees, without the numbers in styles and scripts."""
    soup = html if hasattr(html, "find_all") else BeautifulSoup(html, "html.parser")
    for hidden in soup.find_all(["style", "script"]):
        hidden.extract()
    return " ".join(soup.get_text(" ").split())


def test_both_have_the_same_chapters_in_the_same_order(page, book):
    listed = re.findall(r"^\s+- (\w+)\.(?:ipynb|qmd)$", (book / "_quarto.yml").read_text(), re.MULTILINE)
    assert [part["id"] for part in page.select("section[id]")] == [*listed, "references"]
    assert {"index", "1_cohort", "8_cases", "methods", "checklist"} <= set(listed)


def test_both_have_the_same_figures_and_tables(page, book, cells):
    templates = "".join((book / f"{name}.qmd").read_text(encoding="utf-8") for name in report.PAGES)
    written = set(re.findall(rf"\{{#({LABEL.pattern})", templates))
    shown = [found["id"] for found in page.select('[id^="fig-"], [id^="tbl-"]') if found.name in ("figure", "p")]
    assert sorted(shown) == sorted({*cells, *written})
    assert {"fig-viewer", "fig-survival-cross", "tbl-delineation", "tbl-glance", "tbl-parameters"} <= set(shown)


def test_captions_numbers_and_alternative_texts_are_the_same(page, cells):
    compared = 0
    for label, cell in cells.items():
        figure = copy.copy(page.find(id=label))
        caption = figure.find("figcaption").extract()
        kind = label.split("-")[0]
        theirs = re.sub(r" \[Notebook\].*$", "", cell[f"{kind}-cap"])
        ours = re.sub(r"^(Figure|Table) [\d.]+:| Notebook$", "", words(caption)).strip()
        assert NUMBER.findall(re.sub(r"@[\w-]+", "", ours)) == NUMBER.findall(theirs), label
        assert NUMBER.findall(words(figure)) == NUMBER.findall(words(cell["html"])), label
        if kind == "fig":
            alternatives = {one.get("aria-label") or one.get("alt") for one in figure.select("[aria-label], img[alt]")}
            assert cell["fig-alt"] in alternatives, label
        compared += len(NUMBER.findall(words(figure)))
    assert compared > 1000


def test_both_have_the_viewer_of_the_same_patients(study, page, book):
    files = sorted(path.name for path in study.viewers.glob("*.js"))
    assert files
    assert sorted(path.name for path in (book / "viewers").glob("*.js")) == files
    assert sorted(path.name for path in (study.folder / "report" / "viewers").glob("*.js")) == files


@pytest.mark.skipif(shutil.which("quarto") is None, reason="Quarto is not installed")
def test_quarto_gives_the_same_numbers_to_figures_and_tables(study, page):
    """`Figure 4.2` is the same figure in both."""
    rendered = report.render(study.folder, "html", show=lambda line: None).parent
    theirs = {}
    for path in rendered.glob("*.html"):
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for caption in soup.find_all("figcaption"):
            theirs[next(one["id"] for one in caption.parents if LABEL.fullmatch(one.get("id", "")))] = number(caption)
    ours = {one["id"]: number(one.find("figcaption") or one) for one in page.select("figure[id], p.caption[id]")}
    assert ours == theirs
    assert ours["fig-survival-cross"] == "Figure 7.2"


def number(caption):
    found = re.match(r"(Figure|Table) [\d.]+(?= ?:)", words(caption))
    assert found, words(caption)
    return found.group()
