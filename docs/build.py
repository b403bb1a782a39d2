"""The demo's report for readers who run nothing: docs/demo, at most 5 MB, and the README's picture (`make docs`).

    python docs/build.py studies/demo

The report of the study is rendered as one page and made small: pictures instead of interactive figures (their library
alone is 4.6 MB), smaller pictures, a few cases in the viewer. The README's picture needs a Chromium and Playwright.
"""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import sys
from pathlib import Path

from PIL import Image

from mtvlib import report
from mtvlib.study import Study

DOCS = Path(__file__).resolve().parent
MOST_MB = 5.0
CASES = 4  # in the viewer: best, median, and so on, in the report's order
WIDTH_PX, QUALITY = 820, 62


def main(folder: str) -> None:
    study = Study.open(folder)
    made = report.write_page(study)
    out = DOCS / "demo"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    page = _without_plotly(made.read_text(encoding="utf-8"))
    page = _fewer_cases(page, made.parent, out)
    for path in sorted((made.parent / report.PAGE_FILES).rglob("*")):
        if path.is_file() and path.name in page:
            _copy_small(path, out / path.relative_to(made.parent))
    (out / "report.html").write_text(page, encoding="utf-8")
    size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {size_mb:.1f} MB")
    if size_mb > MOST_MB:
        raise SystemExit(f"more than {MOST_MB:g} MB: lower WIDTH_PX, QUALITY or CASES in {Path(__file__).name}")
    _photograph(out / "report.html")


def _without_plotly(page: str) -> str:
    """The page whose figures stay the pictures that they are where no script runs."""
    page = page.replace('<script src="report_files/plotly.min.js" defer></script>\n', "")
    return re.sub(r"<script>\s*\(function \(\) \{\s*const figure = .*?</script>", "", page, flags=re.DOTALL)


def _fewer_cases(page: str, made: Path, out: Path) -> str:
    found = re.search(r'data-cases="([^"]*)"', page)
    if found is None:
        return page
    cases = json.loads(html.unescape(found[1]))[:CASES]
    for case in cases:
        (out / case["file"]).parent.mkdir(exist_ok=True)
        shutil.copyfile(made / case["file"], out / case["file"])
    kept = html.escape(json.dumps(cases, ensure_ascii=False), quote=True)
    page = page[: found.start(1)] + kept + page[found.end(1) :]
    patients = "|".join(re.escape(case["patient"]) for case in cases)
    return re.sub(rf'<p><a href="#fig-viewer" data-case="(?!(?:{patients})")[^"]*">[^<]*</a></p>', "", page)


def _copy_small(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".webp", ".png", ".jpeg"):
        shutil.copyfile(path, target)
        return
    picture = Image.open(path).convert("RGB")
    if picture.width > WIDTH_PX:
        picture = picture.resize((WIDTH_PX, round(picture.height * WIDTH_PX / picture.width)), Image.Resampling.LANCZOS)
    picture.save(target, quality=QUALITY)


def _photograph(page: Path) -> None:
    """docs/report.jpg: the summary, a figure and the viewer side by side."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("docs/report.jpg stays as it is: Playwright is not installed")
        return
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if program is None:
        print("docs/report.jpg stays as it is: there is no Chromium")
        return
    shots = []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        window = browser.new_page(viewport={"width": 860, "height": 1060})
        window.goto(page.as_uri())
        for place in ("#tbl-glance", "#fig-dsc", "#mtv-viewer"):
            window.locator(place).first.scroll_into_view_if_needed()
            window.evaluate("place => document.querySelector(place).scrollIntoView()", place)
            window.wait_for_timeout(2000)
            shots.append(window.screenshot())
        browser.close()
    pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in shots]
    sheet = Image.new("RGB", (sum(one.width for one in pictures) + 40, pictures[0].height), "#d5d8dd")
    left = 0
    for one in pictures:
        sheet.paste(one, (left, 0))
        left += one.width + 20
    sheet.resize((1560, round(sheet.height * 1560 / sheet.width)), Image.Resampling.LANCZOS).save(
        DOCS / "report.jpg", quality=82
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
