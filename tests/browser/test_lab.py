"""JupyterLab in a browser: it starts, opens the two rooms, a widget moves and the picture changes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE_MS = 120_000
BOX = ".mtv-transaxial .mtv-picture-box"


@pytest.fixture(scope="module")
def lab(chromium, studied, tmp_path_factory):
    """Address of a running JupyterLab over the two notebooks and the study; its kernels end with it."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    root = tmp_path_factory.mktemp("lab")
    (root / "notebooks").mkdir()
    for name in ("explore", "review"):
        shutil.copyfile(PROJECT / "notebooks" / f"{name}.ipynb", root / "notebooks" / f"{name}.ipynb")
    shutil.copytree(studied, root / "studies" / "demo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "ServerApp.root_dir": root,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "",
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    own = {f"JUPYTER_{kind}_DIR": str(root / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with open(root / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | own, cwd=root,
        )  # fmt: skip
        try:
            wait_for_port(server, port, root / "log")
            yield f"http://127.0.0.1:{port}/lab/tree/notebooks"
        finally:
            server.terminate()
            server.wait(30)


def wait_for_port(server: subprocess.Popen, port: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-2000:]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("JupyterLab does not answer: " + log.read_text()[-2000:])


@pytest.fixture
def room(chromium, lab, screenshots):
    """Opens a room and runs it; the page, once its pictures are there."""
    context = chromium.new_context(viewport={"width": 1500, "height": 1300})
    context.set_default_timeout(PATIENCE_MS)
    outside: list[str] = []

    def route(route):
        inside = "://127.0.0.1" in route.request.url or route.request.url.startswith(("data:", "blob:"))
        if inside:
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route("**/*", route)

    def opened(name: str):
        page = context.new_page()
        page.goto(f"{lab}/{name}.ipynb?reset")
        page.locator(".jp-Notebook").wait_for()
        page.get_by_text("(ipykernel) | Idle").first.wait_for()  # without a kernel, Run asks which one
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        page.locator(f"{BOX} img[src^='blob:']").first.wait_for()
        page.locator(BOX).first.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        page.screenshot(path=screenshots / f"lab-{name}.jpg", type="jpeg", quality=80)
        return page

    yield opened
    context.close()
    assert outside == []


def picture(page) -> str:
    """What the transaxial picture shows: its own pixels."""
    return str(
        page.evaluate(
            """async (place) => {
              const image = document.querySelector(place + " img"), canvas = document.createElement("canvas");
              await image.decode();
              [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
              canvas.getContext("2d").drawImage(image, 0, 0);
              return canvas.toDataURL();
            }""",
            BOX,
        )
    )


class Watched:
    """Does something and waits until the transaxial picture was drawn anew."""

    def __init__(self, page):
        self.page = page

    def __enter__(self):
        self.drawn = self.page.locator(BOX).first.get_attribute("data-drawn")
        self.before = picture(self.page)

    def __exit__(self, *error):
        if error == (None, None, None):
            self.page.wait_for_function(
                f"document.querySelector('{BOX}').dataset.drawn !== '{self.drawn}'", timeout=PATIENCE_MS
            )
            assert picture(self.page) != self.before


def title(page) -> str:
    return page.locator(".mtv-transaxial .mtv-title").first.inner_text()


def test_in_the_reading_room_keys_widgets_and_table_change_the_picture(room):
    page = room("explore")
    place = title(page)
    with Watched(page):
        page.locator(BOX).first.focus()
        page.keyboard.press("ArrowUp")
    assert title(page) != place
    with Watched(page):  # the slider, a widget
        page.locator(".mtv-slice-transaxial .noUi-handle, .mtv-slice-transaxial input").first.focus()
        page.keyboard.press("ArrowLeft")
    with Watched(page):
        page.locator(".mtv-layer button", has_text="CT").last.click()
    patient = page.locator(".mtv-patients tr[aria-selected=true]").first.get_attribute("data-key")
    with Watched(page):
        page.locator(".mtv-patients tr[data-key][aria-selected=false]").first.click()
    assert page.locator(".mtv-patients tr[aria-selected=true]").first.get_attribute("data-key") != patient


def test_in_the_reading_room_a_threshold_tells_its_volume(room):
    page = room("explore")
    text = page.locator(".mtv-threshold-text").first
    before = text.inner_text()
    page.locator(".mtv-threshold-kind select").first.select_option(label="SUV 2.5")
    page.wait_for_function(
        "before => { const now = document.querySelector('.mtv-threshold-text').innerText;"
        " return now !== before && /MTV [0-9.]+ ml/.test(now); }",
        arg=before,
    )


def test_in_the_review_a_region_is_deleted_and_brought_back(room):
    page = room("review")
    who = page.locator(".mtv-who input").first
    who.fill("AB")
    who.press("Enter")
    lines = "document.querySelector('.mtv-transaxial .mtv-picture-box').dataset.lines"
    delete, undo = page.locator("button.mtv-delete").first, page.locator("button.mtv-undo").first
    page.wait_for_function("!document.querySelector('button.mtv-delete').disabled")
    before = page.evaluate(lines)
    delete.click()
    page.wait_for_function("!document.querySelector('button.mtv-undo').disabled")
    page.wait_for_function(f"{lines} !== '{before}'")
    undo.click()
    page.wait_for_function(f"{lines} === '{before}'")
