"""What several test files share: the folder of real data, and tiny cohorts of NIfTI images."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from mtvlib.volume import Grid, to_image, write_image

PET_GRID = Grid((16, 16, 12), (4.0, 4.0, 4.0), (-30.0, -30.0, 0.0))
CT_GRID = Grid((36, 36, 26), (2.0, 2.0, 2.0), (-35.0, -35.0, -3.0))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with real public data."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]


def tiny_images(seed: int = 0) -> dict[str, tuple[np.ndarray, Grid]]:
    """PET with two hot cubes, CT with a body in air, and the cubes as reference (1: 4 x 4 x 4, 2: 2 x 2 x 2 voxels)."""
    random = np.random.default_rng(seed)
    reference = np.zeros(PET_GRID.size, np.uint8)
    reference[3:7, 3:7, 3:7], reference[10:12, 10:12, 8:10] = 1, 2
    pet = random.uniform(0.5, 1.0, PET_GRID.size) + 8.0 * (reference > 0)
    ct = np.full(CT_GRID.size, -1000, np.int16)
    ct[6:30, 6:30] = random.integers(-50, 80, (24, 24, CT_GRID.size[2]))
    return {"pet": (pet.astype(np.float32), PET_GRID), "ct": (ct, CT_GRID), "reference": (reference, PET_GRID)}


def tiny_row(folder: Path, patient: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Write a patient's tiny images below `folder`; returns the row for cohort.csv, with `changes`."""
    for name, (array, grid) in tiny_images(seed).items():
        write_image(to_image(array, grid), folder / "images" / f"{patient}_{name}.nii.gz")
    files = {name: f"images/{patient}_{name}.nii.gz" for name in ("pet", "ct", "reference")}
    return {"patient": patient, "cohort": "main", "site": "Berlin", **files, **changes}


def write_table(path: Path, rows: list[dict[str, Any]], separator: str = ",", encoding: str = "utf-8") -> Path:
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def tiny_cohort(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes `n` tiny patients P0.. with images and their cohort.csv; `changes` by number of the row."""

    def write(n: int = 3, changes: dict[int, dict[str, Any]] | None = None) -> Path:
        rows = [tiny_row(tmp_path, f"P{i}", seed=i) | (changes or {}).get(i, {}) for i in range(n)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return write_table(tmp_path / "cohort.csv", [{name: row.get(name, "") for name in columns} for row in rows])

    return write


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-pictures", action="store_true", help="write the browser tests' reference pictures anew")


@pytest.fixture
def renew_pictures(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--renew-pictures"))


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny cohort and its finished study, `studies/tiny`; not to be changed: copy it.

    Made once for all of pytest's workers, by the first that asks for it.
    """
    from tests.study.test_whole_study import run, write_inputs

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "finished"
    with FileLock(base / "finished.lock"):
        if not folder.exists():
            write_inputs(base / "being_made")
            assert run(base / "being_made")[0] == "1_cohort"
            (base / "being_made").rename(folder)
    return folder
