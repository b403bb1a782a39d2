"""A new slice in the report's viewer: milliseconds from a key to the frame that shows it, in Chromium.

A page with one case on the paper's grid (128 x 128 x 128 voxels of 2.5 mm, PET and CT of finer pixels, eight lesions in
either delineation) is opened from the disk. In the page, keys are sent to the viewer, and the time is taken from the
event to after the next frame. From the repository's root:

    python -m benchmarks.viewer

Other programs should be closed.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import write_table
from mtvlib import case_viewer
from mtvlib.case_viewer import Listed
from mtvlib.viewer import ViewCase

SHAPE, SPACING_MM, FINER, LESIONS = (128, 128, 128), (2.5, 2.5, 2.5), 2, 8
TARGET_MS = 50
KEYS = 60
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PLANES = {"1": "transaxial", "2": "coronal", "3": "sagittal"}
WIDTHS_PX = {"desktop": 1280, "phone": 360}
PRESS = """async ([key, times]) => {
  const root = document.getElementById("mtv-viewer").shadowRoot, stage = root.querySelector(".stage"), spent = [];
  const press = (one) => stage.dispatchEvent(new KeyboardEvent("keydown", { key: one, bubbles: true, composed: true }));
  press(key);
  await new Promise((done) => setTimeout(done, 300));
  for (let i = 0; i < times; i++) {
    const began = performance.now();
    press(i % 20 < 10 ? "ArrowUp" : "ArrowDown");
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    spent.push(performance.now() - began);
  }
  return spent;
}"""


def make_case() -> tuple[ViewCase, pd.DataFrame]:
    """A case of noise with balls of high uptake, and its lesion table."""
    random, rows = np.random.default_rng(0), []
    man = np.zeros(SHAPE, np.uint8)
    x, y, z = np.ogrid[tuple(slice(side) for side in SHAPE)]
    for number in range(LESIONS):
        centre, target = random.integers(25, 100, 3), 1 + number % 2
        man[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < random.integers(4, 11) ** 2] = target
        rows.append(("man", ["primary", "nodes"][number % 2], "TP", 5.0, 12.0, *map(float, centre)))
    fine = (FINER * SHAPE[0], FINER * SHAPE[1], SHAPE[2])
    pet = random.gamma(2, 0.5, fine) + 8.0 * (man > 0).repeat(FINER, 0).repeat(FINER, 1)
    ct = random.normal(0, 100, fine)
    columns = ["source", "target", "outcome", "volume_ml", "suv_max", *(f"centroid_{axis}_voxel" for axis in "xyz")]
    case = ViewCase("P1", pet.astype(np.float32), man, np.roll(man, 2, 0), SPACING_MM, ct.astype(np.float32))
    return case, pd.DataFrame(rows, columns=columns)


def write_page(folder: Path) -> Path:
    """A page that holds nothing but the viewer."""
    case, lesions = make_case()
    (folder / "P1.js").write_text(case_viewer.case_script(case, lesions), encoding="utf-8")
    viewer = case_viewer.viewer([Listed("P1", "noise", "P1.js")], "")
    head = "<!doctype html><html lang=en><meta name=viewport content='width=device-width'>"
    (folder / "page.html").write_text(
        f"{head}<div style='max-width:50rem;margin:auto'>{viewer}</div>", encoding="utf-8"
    )
    return folder / "page.html"


def measure(browser: Any, page: Path, width: int) -> dict[str, list[float]]:
    """Milliseconds of each key press, by plane."""
    context = browser.new_context(viewport={"width": width, "height": 900}, device_scale_factor=1 if width > 500 else 2)
    opened = context.new_page()
    opened.goto(page.resolve().as_uri())
    opened.locator("#mtv-viewer").scroll_into_view_if_needed()
    opened.wait_for_function("document.getElementById('mtv-viewer').dataset.slice !== undefined")
    opened.wait_for_timeout(2000)
    found = {plane: opened.evaluate(PRESS, [key, KEYS]) for key, plane in PLANES.items()}
    context.close()
    return found


def table(found: dict[str, dict[str, list[float]]], size_mb: float) -> list[str]:
    lines = [
        f"One case of {' x '.join(map(str, SHAPE))} voxels ({size_mb:.1f} MB), {KEYS} keys a row, from the key to",
        f"after the frame that shows the slice in all six pictures. Target: a median below {TARGET_MS} ms.",
        "",
        "| window | plane | median ms | 95 % below ms | longest ms |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for window, planes in found.items():
        for plane, spent in planes.items():
            most = sorted(spent)[int(0.95 * len(spent))]
            lines.append(f"| {window} | {plane} | {statistics.median(spent):.0f} | {most:.0f} | {max(spent):.0f} |")
    medians = [statistics.median(spent) for planes in found.values() for spent in planes.values()]
    lines += ["", f"Medians above the target: {sum(one > TARGET_MS for one in medians)} of {len(medians)}."]
    return [*lines, "", "Command: `python -m benchmarks.viewer`."]


def main() -> None:
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SystemExit("no Chromium or Chrome was found")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        page = write_page(Path(scratch))
        size_mb = page.with_name("P1.js").stat().st_size / 1e6
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        found = {window: measure(browser, page, width) for window, width in WIDTHS_PX.items()}
        browser.close()
    write_table("viewer", "A new slice in the report's viewer", table(found, size_mb))


if __name__ == "__main__":
    main()
