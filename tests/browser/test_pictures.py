"""How the report looks: screenshots, kept for who builds it, against small reference pictures.

A change that is meant is taken over by `pytest tests/browser --renew-pictures`; look at the screenshots first.
"""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import compare

PICTURES = Path(__file__).parent / "pictures"
CHAPTERS = [
    "index",
    "1_cohort",
    "2_training",
    "3_external_testing",
    "4_delineation",
    "5_classification",
    "6_lesions",
    "7_survival",
    "8_cases",
    "9_trust",
    "10_corrections",
    "changes",
    "model",
    "methods",
    "checklist",
]
PARTS = {
    "figure": "#fig-survival-cross",
    "table": "[id='tbl-glance'] + table, [id='tbl-glance'] table",
    "viewer": "#mtv-viewer",
}
BOOK_PX = 3000  # of a page's height: enough for its layout


@pytest.fixture(scope="module")
def page(open_pages, one_page):
    opened = open_pages(one_page)
    opened.viewer()
    return opened.drawn()


@pytest.fixture
def looks(screenshots, renew_pictures):
    """Compares a screenshot, taken as `name`, with its reference; or writes the reference."""

    def look(name: str, picture: bytes) -> None:
        path, reference = screenshots / f"{name}.jpg", PICTURES / f"{name}.png"
        path.write_bytes(picture)
        if renew_pictures:
            compare.save(Image.open(path), reference)
        assert reference.exists(), f"there is no {reference}: pytest tests/browser --renew-pictures makes it"
        assert compare.difference(Image.open(path), Image.open(reference)) == "", path

    return look


def shot(page, place: str) -> bytes:
    return page.locator(place).first.screenshot(type="jpeg", quality=80)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_looks_like_its_picture(page, looks, name):
    looks(name, shot(page, f"main > section[id='{name}']"))


def test_no_chapter_is_without_a_picture(page):
    names = page.evaluate("[...document.querySelectorAll('main > section')].map((one) => one.id)")
    assert set(names) - set(CHAPTERS) == {"references"}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_looks_like_its_picture(page, looks, name):
    looks(name, shot(page, PARTS[name]))


@pytest.mark.parametrize("way", ["dark", "phone"])
def test_summary_and_viewer_look_like_their_pictures(open_page, one_page, looks, way):
    opened = open_page(one_page, **{"dark": {"dark": True}, "phone": {"width": 360}}[way])
    for name, place in {"index": "#index", "viewer": "#mtv-viewer"}.items():
        opened.viewer()
        opened.drawn()
        looks(f"{name}-{way}", shot(opened.page, place))


def test_pages_of_the_book_fetch_nothing_make_no_error_and_look_like_their_pictures(open_page, book, looks):
    for path in book:
        opened = open_page(path.as_uri())
        if opened.page.locator("#mtv-viewer").count():
            opened.viewer()
        wide, high = opened.drawn().evaluate("[document.documentElement.scrollWidth, document.body.scrollHeight]")
        assert (path.name, wide, opened.requests, opened.errors) == (path.name, 1280, [], [])
        clip = {"x": 0, "y": 0, "width": 1280, "height": min(high, BOOK_PX)}
        looks(f"book-{path.stem}", opened.page.screenshot(type="jpeg", quality=80, full_page=True, clip=clip))
        opened.page.close()


# --- what the comparison notices, and what it does not


BROKEN = {
    "a figure that is not drawn": ("7_survival", "#plot-fig-survival-cross { visibility: hidden }"),
    "a figure that is gone": ("figure", "#plot-fig-survival-cross { display: none }"),
    "a picture that is gone": ("index", "#index figure img { visibility: hidden }"),
    "a blank table": ("table", "#index td { visibility: hidden }"),
    "blank tables": ("4_delineation", ".gt_table td { visibility: hidden }"),
    "a blank viewer": ("8_cases", "#mtv-viewer { visibility: hidden }"),
    "a page without its measures": ("index", "section { max-width: none !important } main { margin: 0 !important }"),
}


def changed(page, name: str, style: str) -> str:
    """How the place differs from its picture while the page has a further style."""
    handle = page.add_style_tag(content=style)
    try:
        picture = shot(page, PARTS.get(name, f"main > section[id='{name}']"))
        return compare.difference(Image.open(io.BytesIO(picture)), Image.open(PICTURES / f"{name}.png"))
    finally:
        handle.evaluate("(one) => one.remove()")


@pytest.mark.parametrize("name", BROKEN)
def test_the_comparison_notices(page, name):
    assert changed(page, *BROKEN[name]) != ""


@pytest.mark.parametrize("font", ["DejaVu Sans", "Liberation Sans"])
def test_the_comparison_allows_another_font(page, font):
    assert changed(page, "index", f"* {{ font-family: '{font}' !important }}") == ""


def test_the_pictures_are_small():
    sizes = [path.stat().st_size for path in PICTURES.glob("*.png")]
    assert max(sizes) < 60_000
    assert sum(sizes) < 1_000_000
