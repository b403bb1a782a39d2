"""The reading room's interactions on a whole body: milliseconds of the kernel, and what goes to the browser.

PET and CT of 192 x 192 x 500 voxels of noise with twenty lesions in either delineation. Timed is everything between the
message of an interaction and the new state of the widgets; a JupyterLab adds the way to the browser and back. From the
repository's root:

    python -m benchmarks.reading
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measure import write_table
from mtvlib import corrections
from mtvlib.planes import View
from mtvlib.reading_threshold import Threshold
from mtvlib.reading_viewer import Viewer

SHAPE, SPACING_MM, LESIONS, TIMES = (192, 192, 500), (4.07, 4.07, 3.0), 20, 15
MOST_MS = 200


def whole_body() -> View:
    random = np.random.default_rng(0)
    pet = random.gamma(2, 0.4, SHAPE).astype(np.float32)
    man = np.zeros(SHAPE, np.uint8)
    x, y, z = np.ogrid[tuple(slice(side) for side in SHAPE)]
    for number in range(LESIONS):
        a, b, c = random.integers(30, 160, 3) * (1, 1, 3)
        ball = (x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 < random.integers(3, 9) ** 2
        man[ball] = 1 + number % 2
        pet[ball] += 8
    pet[(x - 96) ** 2 + (y - 96) ** 2 + (z - 460) ** 2 < 30**2] += 9  # the brain
    ct = random.normal(0, 200, SHAPE).astype(np.float32)
    return View("whole body", pet, ct, SPACING_MM, {"man": man, "cnn": np.roll(man, 2, 0)})


def milliseconds(act: Callable[[int], object], times: int = TIMES) -> list[float]:
    found = []
    for number in range(times):
        began = time.perf_counter()
        act(number)
        found.append(1000 * (time.perf_counter() - began))
    return found


def interactions(view: View) -> dict[str, tuple[list[float], int]]:
    """Milliseconds of each interaction, and KB of pictures and contours that it sent at most."""
    viewer = Viewer()
    threshold = Threshold(viewer)
    viewer.moved = threshold.follow
    found: dict[str, tuple[list[float], int]] = {}

    def timed(name: str, act: Callable[[int], object], times: int = TIMES) -> None:
        before = {key: (panel.picture, panel.lines) for key, panel in viewer.pictures.items()}
        spent = milliseconds(act, times)
        sent = 0
        for key, panel in viewer.pictures.items():
            sent += len(panel.picture) * (panel.picture != before[key][0])
            sent += len(str(panel.lines)) * (panel.lines != before[key][1])
        found[name] = spent, sent // 1000

    def heard(plane: str, steps: int, place: list[float] | None) -> None:
        viewer.heard(plane, viewer.pictures[plane], {"steps": steps, "place": place, "large": False})

    random = np.random.default_rng(1)
    timed("open the patient", lambda _: viewer.show(view), 3)
    threshold.offer()
    for layer in ("PET", "CT", "PET on CT"):
        viewer.layer.value = layer
        for plane in ("transaxial", "coronal", "sagittal"):
            timed(f"next slice, {plane}, {layer}", lambda number, plane=plane: heard(plane, 1 - 2 * (number % 2), None))
    timed("click, all planes", lambda _: heard("transaxial", 0, random.random(2).tolist()))
    timed("click in the MIP", lambda _: heard("MIP", 0, random.random(2).tolist()))
    timed("SUV window", lambda number: setattr(viewer.suv, "value", 4 + number))
    timed("turn the MIP", lambda number: setattr(viewer.angle, "value", 15 * (number % 12) - 90))
    timed("contours on and off", lambda number: setattr(viewer.shown["man"], "value", bool(number % 2)))
    threshold.kind.value = "own SUV"
    timed("threshold at the crosshair", lambda number: setattr(threshold.suv, "value", 1 + 0.5 * number))
    timed("crosshair with a threshold", lambda _: heard("transaxial", 0, random.random(2).tolist()))
    threshold.radius.value = 100
    viewer.move_to([96, 96, 455])
    timed("threshold in 10 cm round it", lambda number: setattr(threshold.suv, "value", 1.2 + 0.5 * number))
    timed("threshold round all lesions, first", lambda _: setattr(threshold.where, "value", "cnn"), 1)
    timed("threshold round all lesions", lambda number: setattr(threshold.suv, "value", 1 + 0.5 * number))
    return found


def edits(view: View) -> dict[str, tuple[list[float], int]]:
    labels = view.masks["cnn"]
    at = [int(one) for one in np.argwhere(labels)[0]]
    return {
        "delete a region": (milliseconds(lambda _: corrections.delete(labels, at)), 0),
        "change its class": (milliseconds(lambda _: corrections.reclass(labels, at)), 0),
        "propose a lesion": (
            milliseconds(lambda _: corrections.accept(np.zeros_like(labels), view.pet, at, "nodes", SPACING_MM)),
            0,
        ),
    }


def main() -> None:
    view = whole_body()
    found = interactions(view) | edits(view)
    lines = [
        f"PET and CT of {' x '.join(map(str, SHAPE))} voxels, {LESIONS} lesions in either delineation.",
        "The kernel's time; JupyterLab adds the way to the browser and back.",
        "",
        "| interaction | median ms | longest ms | KB to the browser |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, (spent, kilobytes) in found.items():
        lines.append(f"| {name} | {statistics.median(spent):.0f} | {max(spent):.0f} | {kilobytes or '–'} |")
    slow = [name for name, (spent, _) in found.items() if statistics.median(spent) > MOST_MS]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines += ["", f"Above {MOST_MS} ms: {', '.join(slow) or 'none'}. Peak memory {peak_mb:.0f} MB."]
    write_table("reading", "The reading room on a whole body", [*lines, "", "Command: `python -m benchmarks.reading`."])


if __name__ == "__main__":
    main()
