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
PATIENCE_MS = 90_000


@pytest.fixture(scope="module")
def lab(studied, tmp_path_factory):
    """Address of a running JupyterLab over the two notebooks and the study."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    root = tmp_path_factory.mktemp("lab")
    (root / "notebooks").mkdir()
    for name in ("explore", "review"):
        shutil.copyfile(PROJECT / "notebooks" / f"{name}.ipynb", root / "notebooks" / f"{name}.ipynb")
    shutil.copytree(studied, root / "studies" / "demo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"root_dir": root, "port": port, "port_retries": 0, "open_browser": False, "allow_root": True}
    arguments = [f"--ServerApp.{name}={value}" for name, value in settings.items()]
    environment = {"JUPYTER_CONFIG_DIR": str(root / "config"), "JUPYTER_DATA_DIR": str(root / "data")}
    with open(root / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments, "--IdentityProvider.token="],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment, cwd=root,
        )  # fmt: skip
        try:
            for _ in range(240):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, (root / "log").read_text()[-2000:]
                time.sleep(0.25)
            yield f"http://127.0.0.1:{port}/lab/tree/notebooks"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture
def room(chromium, lab, screenshots):
    """Opens a room and runs it; the page, once its pictures are there."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1200})

    def opened(name: str):
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{lab}/{name}.ipynb?reset")
        page.locator(".jp-Notebook").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        page.locator(".mtv-picture img[src]").first.wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=screenshots / f"lab-{name}.png")
        return page

    yield opened
    context.close()


def drawn(page) -> int:
    return int(page.locator(".mtv-picture").first.get_attribute("data-drawn"))


def wait_for_drawing(page, before: int) -> None:
    page.wait_for_function(f"Number(document.querySelector('.mtv-picture').dataset.drawn) > {before}")


def test_in_the_reading_room_the_wheel_and_the_table_change_the_picture(room):
    page = room("explore")
    before, title = drawn(page), page.locator(".mtv-picture").first.get_attribute("aria-label")
    page.locator(".mtv-picture").first.hover()
    page.mouse.wheel(0, -100)
    wait_for_drawing(page, before)
    assert page.locator(".mtv-picture").first.get_attribute("aria-label") != title
    before = drawn(page)
    page.locator(".mtv-table tbody tr[aria-selected=false]").first.click()
    wait_for_drawing(page, before)


def test_in_the_review_a_region_is_deleted_and_brought_back(room):
    page = room("review")
    assert page.get_by_role("button", name="Delete region").is_disabled()
    who = page.get_by_placeholder("initials or role")
    who.fill("AB")
    who.press("Enter")
    page.wait_for_function("document.querySelector('.mtv-message').innerText.match(/primary/)")
    before = drawn(page)
    page.locator(".mtv-picture").first.hover()
    page.mouse.wheel(0, -100)
    wait_for_drawing(page, before)
    page.wait_for_function(
        "![...document.querySelectorAll('button')].find((one) => one.innerText === 'Delete region').disabled"
    )
