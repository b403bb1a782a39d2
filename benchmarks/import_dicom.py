"""`mtv import dicom`: seconds and peak memory per patient by size of the examination, and of a folder of many files.

Synthetic examinations: PET of 168 x 168 voxels of 4 mm, CT of 512 x 512 of 1 mm, slices of 3 mm, and an RTSTRUCT.
From the repository's root: python -m benchmarks.import_dicom
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from benchmarks.measure import run, write_table
from mtvlib.clinical import read_table
from mtvlib.dicom import files_below
from mtvlib.dicom_import import Options, PatientImport, look_at, plan
from mtvlib.pseudonyms import open_key
from mtvlib.regions import read_names
from mtvlib.volume import Grid
from tests import dicom_builder

LENGTHS_CM = (40, 100)


def write_examination(folder: Path, patient: str, length_cm: int) -> int:
    """One patient; returns the number of files."""
    slices = round(length_cm * 10 / 3)
    pet = Grid((168, 168, slices), (4.0, 4.0, 3.0), (-334.0, -334.0, 0.0))
    ct = Grid((512, 512, slices), (1.0, 1.0, 3.0), (-255.5, -255.5, 0.0))
    random, frame = np.random.default_rng(0), generate_uid()
    tags = {"PatientID": patient, "FrameOfReferenceUID": frame, "StudyInstanceUID": generate_uid()}
    suv = random.uniform(0.5, 1.5, pet.size)
    suv[70:80, 70:80, 40:60] = 9.0
    hu = np.full(ct.size, -1000)
    hu[100:400, 150:350] = random.integers(-50, 100, (300, 200, slices))
    for modality, grid, values, own in (("PT", pet, suv, {"Units": "GML"}), ("CT", ct, hu, {})):
        dicom_builder.series(
            folder / patient / modality,
            modality=modality,
            size=grid.size,
            spacing_mm=grid.spacing_mm,
            origin=grid.origin_mm,
            values=values,
            SeriesInstanceUID=generate_uid(),
            **tags,
            **own,
        )
    corners = [(69.5, 69.5), (79.5, 69.5), (79.5, 79.5), (69.5, 79.5)]
    contours = [pet.to_mm(np.array([(x, y, z) for x, y in corners])) for z in range(40, 60)]
    regions = dicom_builder.structure_set({"GTVp": contours}, frame_uid=frame, SeriesInstanceUID=generate_uid(), **tags)
    dicom_builder.save(regions, folder / patient / "rs.dcm")
    return 2 * slices + 1


def import_all(source: Path, out: Path, *more: str) -> tuple[float, float]:
    return run([sys.executable, "-m", "mtvlib.cli", "import", "dicom", str(source), "--out", str(out), *more])


def phases(source: Path, out: Path) -> str:
    """Seconds of each phase of one patient, in this process."""
    pseudonyms = open_key(out.with_suffix(".key"))
    options = Options(out, read_names(None), read_table(None), pseudonyms, "unknown", frozenset())
    seconds, clock = {}, time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[phase], clock = now - clock, now

    entries = [look_at(str(path)) for path in files_below(source)]
    lap("sort the files")
    work = PatientImport(plan(entries, source, options)[0])
    images, regions = work.open_series()
    lap("read headers")
    pet = work.take_pet([one for one in images if one.modality == "PT"])
    lap("read PET")
    ct = work.take_ct([one for one in images if one.modality == "CT"], pet)
    lap("read CT")
    labelled = work.take_reference(regions, pet, ct)
    lap("contours to labels")
    work.write(pet, ct, labelled)
    lap("write")
    return ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())


def main() -> None:
    told = []
    lines = [
        "| source | files | seconds | a patient | peak memory of a process, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for length_cm in LENGTHS_CM:
            source = folder / f"{length_cm}"
            files = sum(write_examination(source, f"P{number}", length_cm) for number in range(4))
            for jobs in (1, 2):
                seconds, peak_mb = import_all(source, folder / f"out{length_cm}{jobs}", "--jobs", str(jobs))
                what = f"4 patients, {length_cm} cm, {jobs} process{'es' if jobs > 1 else ''}"
                lines.append(f"| {what} | {files} | {seconds:.1f} | {seconds / 4:.1f} | {peak_mb:.0f} |")
            one = source / "P0"
            told += ["", f"Seconds by phase, one patient of {length_cm} cm: {phases(one, folder / f'one{length_cm}')}."]
            seconds, peak_mb = import_all(source, folder / f"out{length_cm}2", "--jobs", "2")
            lines.append(f"| the same again, nothing changed | {files} | {seconds:.1f} | | {peak_mb:.0f} |")
        many, number = folder / "many", 0
        write_examination(many, "P0", 40)
        file = next((many / "P0" / "PT").glob("*.dcm")).read_bytes()[:2000]
        for number in range(100_000):
            place = many / f"{number // 1000}"
            place.mkdir(exist_ok=True)
            (place / f"{number}.txt").write_bytes(file[:200])
        seconds, peak_mb = import_all(many, folder / "outmany", "--jobs", "2")
        lines.append(f"| 1 patient among {number + 1} other files | {number + 1} | {seconds:.1f} | | {peak_mb:.0f} |")
    write_table("import_dicom", "Importing DICOM", [*lines, *told, "", "Command: `python -m benchmarks.import_dicom`."])


if __name__ == "__main__":
    main()
