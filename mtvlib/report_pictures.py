"""The pictures of the report's summary: a Kaplan-Meier figure and three patients, taken from the executed chapters."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mtvlib.show import METADATA_KEY

SURVIVAL = ("fig-survival-cross", "fig-survival-external")  # the first that there is
PATIENTS = {"best": "best DSC", "median": "nearest to the median", "worst": "lowest DSC"}  # what a case's rule says
WEB_PX = 1200

Figure = tuple[dict[str, Any], bytes]  # what the output's metadata tell, and the picture


@dataclass(frozen=True)
class SummaryPicture:
    """A picture of the summary; `path` from the page, `source` the label of the figure that it repeats."""

    label: str
    path: str
    caption: str
    alt: str
    source: str
    content: bytes  # PNG or JPEG


def summary_pictures(chapters: Mapping[str, dict[str, Any]], folder: str, kind: str) -> list[SummaryPicture]:
    """The pictures there are; `kind` of their files: png, or webp for pages."""
    chosen = {"survival": _survival(chapters), **_patients(chapters)}
    return [
        SummaryPicture(
            f"fig-summary-{name}",
            f"{folder}/summary-{name}.{kind}",
            about["caption"],
            about["alt"],
            about["label"],
            content,
        )
        for name, figures in chosen.items()
        for about, content in figures[:1]
    ]


def write_picture(picture: SummaryPicture, root: Path) -> None:
    """Write the picture to its place below `root`, in the form that its name tells."""
    path = root / picture.path
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(picture.content)).convert("RGB")
    if path.suffix == ".png":
        image.save(path)
        return
    image.thumbnail((WEB_PX, WEB_PX * 4), Image.Resampling.LANCZOS)
    image.save(path, quality=80)


def _survival(chapters: Mapping[str, dict[str, Any]]) -> list[Figure]:
    figures = {about["label"]: (about, content) for about, content in _figures(chapters.get("7_survival", {}))}
    return [figures[label] for label in SURVIVAL if label in figures]


def _patients(chapters: Mapping[str, dict[str, Any]]) -> dict[str, list[Figure]]:
    """The patients of each rule; those of the cross-validation come first."""
    cases = [one for one in _figures(chapters.get("8_cases", {})) if one[0]["label"].startswith("fig-case-")]
    return {name: [one for one in cases if words in one[0]["caption"]] for name, words in PATIENTS.items()}


def _figures(notebook: Mapping[str, Any]) -> Iterator[Figure]:
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            about = output.get("metadata", {}).get(METADATA_KEY)
            data = output.get("data", {})
            for kind in (kind for kind in ("image/png", "image/jpeg") if about and kind in data):
                yield about, base64.b64decode("".join(data[kind]))
