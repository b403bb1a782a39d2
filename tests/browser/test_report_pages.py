"""The report in a browser, opened from the disk: nothing fetched, no error, legible in the dark and on a phone."""

from itertools import pairwise
from pathlib import Path

import pytest

WAYS = {"light": {}, "dark": {"dark": True}, "phone": {"width": 360}}
every_way = pytest.mark.parametrize("way", WAYS)

# What the checker of accessibility may find: Chromium reaches what scrolls by the Tab key without further ado.
ALLOWED = ("scrollable-region-focusable",)


@pytest.fixture(scope="module")
def pages(open_pages, one_page):
    """The one page opened in each of three ways, for tests that only look."""
    return {name: open_pages(one_page, **way) for name, way in WAYS.items()}


def overflow(page) -> list[str]:
    """What sticks out of the window on the right, if the page can be moved sideways."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("body *")]
          .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
          .map((one) => `${one.tagName} ${one.id} ${one.className}`).slice(0, 5)"""
    )


# --- alone with its folder


@every_way
def test_the_page_fetches_nothing_and_makes_no_error(pages, way):
    opened = pages[way]
    opened.viewer()
    opened.drawn()
    assert opened.requests == []
    assert opened.errors == []


@every_way
def test_the_page_is_not_wider_than_its_window(pages, way):
    pages[way].viewer()
    assert overflow(pages[way].drawn()) == []


@pytest.mark.parametrize("way", ["dark", "phone"])  # in the light: with their pictures
def test_the_book_fetches_nothing_makes_no_error_and_fits(open_page, book, way):
    found = {}
    for path in book:
        if path.stem in ("index", "7_survival", "8_cases", "methods"):
            opened = open_page(path.as_uri(), **WAYS[way])
            if opened.page.locator("#mtv-viewer").count():
                opened.viewer()
            found[path.name] = [*overflow(opened.drawn()), *opened.requests, *opened.errors]
            opened.page.close()
    assert len(found) == 4
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_request_would_be_noticed(open_page, tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "near.png").write_bytes(b"")
    (tmp_path / "inside" / "page.html").write_text(
        "<img src='https://example.org/a.png'><img src='../near.png'><script>missing()</script>"
    )
    opened = open_page((tmp_path / "inside" / "page.html").as_uri())
    assert [url.rsplit("/", 1)[-1] for url in sorted(opened.requests)] == ["near.png", "a.png"]
    assert any("missing is not defined" in error for error in opened.errors)


def test_the_pages_stay_light(one_page, studied):
    folder = studied / "report"
    assert (folder / "report.html").stat().st_size < 3_000_000
    assert all(path.stat().st_size < 2_000_000 for path in (folder / "viewers").glob("*.js"))


# --- everything is there


def test_every_interactive_figure_is_drawn_and_no_picture_is_broken(pages):
    page = pages["light"].drawn()
    boxes = page.locator("[id^=plot-fig]").count()
    assert page.locator(".js-plotly-plot").count() == boxes >= 8
    assert page.locator("figure[id^=fig]").count() >= boxes
    # Each with data, and a size that one can read.
    bare = page.evaluate(
        """() => [...document.querySelectorAll(".js-plotly-plot")].filter((plot) => {
          const box = plot.querySelector(".main-svg").getBoundingClientRect();
          return box.width < 250 || box.height < 150 || !plot.querySelector(".trace");
        }).map((plot) => plot.id)"""
    )
    assert bare == []
    broken = page.evaluate(
        """Promise.all([...document.images].map((one) => one.decode().then(() => "", () => one.src)))
          .then((all) => all.filter(Boolean))"""
    )
    assert broken == []


def test_tables_are_filled(pages):
    """Each has rows, and in each row something that can be seen."""
    page = pages["light"].page
    blank = page.evaluate(
        """() => [...document.querySelectorAll("main table")].filter((table) => {
          const rows = [...table.querySelectorAll("tbody tr")];
          const seen = (one) => one.innerText.trim() && one.checkVisibility({ visibilityProperty: true });
          return !rows.length || !rows.every((row) => [...row.cells].some(seen));
        }).map((table) => table.innerText.slice(0, 80))"""
    )
    assert blank == []
    assert page.locator("main table").count() >= 20


@every_way
def test_without_scripts_pictures_stand_in_for_figures_and_viewer(open_page, one_page, way):
    page = open_page(one_page, scripts=False, **WAYS[way]).page
    boxes = page.locator("[id^=plot-fig], #mtv-viewer")
    twins = page.locator("[id^=plot-fig] img, #mtv-viewer img")
    assert twins.count() >= boxes.count() >= 8
    for box in (boxes.first, boxes.last, page.locator("#mtv-viewer")):
        box.scroll_into_view_if_needed()
        size = box.locator("img").first.bounding_box()
        assert min(size["width"], size["height"]) > 50


# --- for who cannot see it, or has no mouse


def test_figures_say_what_they_show_to_who_cannot_see_them(pages):
    page = pages["light"].drawn()
    silent = page.evaluate("[...document.images].filter((image) => !image.alt.trim()).map((image) => image.src)")
    assert silent == []
    nameless = page.evaluate(
        """[...document.querySelectorAll("[id^=plot-fig]")].filter((box) => !(box.ariaLabel || "").trim())
          .map((box) => box.id)"""
    )
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en-GB"


def test_headings_do_not_skip_a_level(pages):
    levels = pages["light"].page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_names_in_the_page_are_unique_and_links_lead_somewhere(pages):
    page = pages["light"].page
    twice = page.evaluate(
        """() => { const all = [...document.querySelectorAll("[id]")].filter((one) => !one.closest(".js-plotly-plot"))
          .map((one) => one.id); return all.filter((name, i) => all.indexOf(name) !== i); }"""
    )
    assert twice == []
    lost = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map((link) => link.getAttribute('href').slice(1))"
        ".filter((name) => name && !document.getElementById(name))"
    )
    assert lost == []


def test_files_that_links_lead_to_lie_beside_the_page(pages, one_page):
    addresses = pages["light"].page.evaluate(
        "[...document.querySelectorAll('a[href]')].map((link) => link.href).filter((url) => url.startsWith('file:'))"
    )
    files = {address.split("#")[0].removeprefix("file://") for address in addresses}
    assert len(files) >= 7  # the page itself and the notebooks
    assert [path for path in files if not Path(path).is_file()] == []


@every_way
def test_a_checker_of_accessibility_finds_nothing_serious(pages, way):
    """axe-core over the summary, the survival chapter and the one with the viewer."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    pages[way].viewer()
    page = pages[way].drawn()
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate(
        """() => axe.run({ include: ["nav", "header", "#index", "[id='7_survival']", "[id='8_cases']"],
          exclude: [".js-plotly-plot"] },
          { resultTypes: ["violations"] }).then(({ violations }) => violations.map(({ id, impact, nodes }) =>
            [id, impact, nodes.length, nodes[0].html.slice(0, 200), (nodes[0].any[0] || {}).message]))"""
    )
    assert [one for one in found if one[0] not in ALLOWED and one[1] in ("serious", "critical")] == []


def test_the_tab_key_goes_through_the_page_from_top_to_bottom(open_page, one_page):
    page = open_page(one_page).page
    assert page.locator("[tabindex]:not([tabindex='0']):not([tabindex='-1'])").count() == 0
    places = []
    for _ in range(30):
        page.keyboard.press("Tab")
        places.append(
            page.evaluate(
                """() => { const one = document.activeElement, style = getComputedStyle(one);
                  const number = [...document.querySelectorAll("*")].indexOf(one);
                  return [number, one.innerText, style.outlineStyle !== "none"]; }"""
            )
        )
    numbers = [number for number, _, _ in places]
    assert numbers == sorted(set(numbers))
    assert places[0][1] == "Summary"
    assert all(outlined for _, _, outlined in places)  # one sees where one is
