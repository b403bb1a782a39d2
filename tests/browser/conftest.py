"""A real browser over the report of a tiny study: Debian's Chromium, driven by Playwright; skipped where there is none.

Every request that leaves the disk is refused and written down, as is every error on a page's console. Screenshots go
to `build/screenshots` (or the folder that the variable MTV_SCREENSHOTS names) and are compared, small, with
`tests/browser/pictures`; `pytest tests/browser --renew-pictures` writes these anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mtvlib import report

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOCAL = ("data:", "blob:")
PATIENCE_MS = 60_000  # with a busy machine
DRAWN = (
    "document.querySelectorAll('[id^=plot-fig].js-plotly-plot .main-svg').length"
    " >= document.querySelectorAll('[id^=plot-fig]').length"
)


# The browser's driver keeps an event loop in this thread, in which other tests could start none of their own: it ends
# with the last test of this folder.
@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """The running browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium or Chrome was found")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page and what went wrong on it."""

    page: Any
    requests: list[str] = field(default_factory=list)  # that were refused: not of the page's own folder
    errors: list[str] = field(default_factory=list)  # on the console, or of what could not be read

    def in_viewer(self, script: str) -> Any:
        """The value of a script in which `root` is the viewer's own tree."""
        return self.page.evaluate(
            f"(() => {{ const root = document.getElementById('mtv-viewer').shadowRoot; {script} }})()"
        )

    def viewer(self) -> Any:
        """Scroll to the viewer and wait until it shows a slice."""
        self.page.locator("#mtv-viewer").scroll_into_view_if_needed()
        self.page.wait_for_function("document.getElementById('mtv-viewer').dataset.slice !== undefined")
        return self.page.locator("#mtv-viewer")

    def drawn(self) -> Any:
        """The page, once each interactive figure has taken the place of its picture."""
        self.page.wait_for_function(DRAWN)
        return self.page

    def canvas(self, layer: str) -> str:
        """What the panel of the main row shows, as a data address."""
        return str(self.in_viewer(f"return root.querySelector('.main [data-layer={layer}] canvas').toDataURL()"))


def _watch(found: Opened, folder: str) -> None:
    def route(route: Any) -> None:
        if route.request.url.startswith((folder, *LOCAL)):
            route.continue_()
        else:
            found.requests.append(route.request.url)
            route.abort()

    page = found.page
    page.context.route("**/*", route)
    page.on("websocket", lambda socket: found.requests.append(socket.url))
    page.on("console", lambda message: message.type == "error" and found.errors.append(message.text))
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("requestfailed", lambda request: found.errors.append(f"not read: {request.url[:200]}"))


@pytest.fixture(scope="module")
def open_pages(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """Opens an address: `open_pages(url, width=1280, dark=False, scripts=True)`, until the end of the module."""
    contexts = []

    def opened(url: str, *, width: int = 1280, dark: bool = False, scripts: bool = True) -> Opened:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            has_touch=width < 500,
        )
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        found = Opened(context.new_page())
        _watch(found, url.rsplit("/", 1)[0] + "/")
        found.page.goto(url)
        return found

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(open_pages: Callable[..., Opened]) -> Iterator[Callable[..., Opened]]:
    """Opens an address for one test."""
    opened = []

    def open_one(url: str, **way: Any) -> Opened:
        opened.append(open_pages(url, **way))
        return opened[-1]

    yield open_one
    for one in opened:
        one.page.close()


@pytest.fixture(scope="session")
def studied(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study that these tests may change."""
    folder = tmp_path_factory.mktemp("browser")
    shutil.copytree(finished_study / "studies" / "tiny", folder / "studies" / "tiny")
    shutil.copytree(finished_study / "cohort", folder / "cohort")
    return folder / "studies" / "tiny"


@pytest.fixture(scope="session")
def one_page(studied: Path) -> str:
    """Address of the report as one page, as it is made without Quarto."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        made = report.render(studied, show=lambda text: None)
    assert made.name == "report.html"
    return made.as_uri()


@pytest.fixture(scope="session")
def book(studied: Path) -> list[Path]:
    """The pages of the report as a book, where there is a Quarto."""
    if shutil.which("quarto") is None:
        pytest.skip("Quarto is not installed")
    return sorted(report.render(studied, show=lambda text: None).parent.glob("*.html"))


@pytest.fixture(scope="session")
def screenshots() -> Path:
    folder = Path(os.environ.get("MTV_SCREENSHOTS", Path(__file__).parents[2] / "build" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
