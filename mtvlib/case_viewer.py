"""The report's viewer of whole cases: three planes, CT, PET and fusion, MIP, lesion table; no kernel and no network.

The page holds the viewer (`viewer`) and the list of cases. A case's images and masks lie in a script of its own beside
the page (`case_script`), which the browser reads when the case is chosen: a script is the one thing that a page opened
from a disk may read. Its one statement hands the data to `mtvViewerCase`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from plotly.colors import sequential

from mtvlib.palette import COLORS
from mtvlib.viewer import COLOURS, CT_WINDOW_HU, ViewCase, image_sheets, slice_dsc, suv_limit

CNN_BITS = 2  # a voxel of the masks is the manual class + 4 x the CNN's


@dataclass(frozen=True)
class Listed:
    """A case of the viewer's picker."""

    patient: str
    why: str
    file: str  # of its script, from the page's folder
    place: str = ""  # heading in the picker: where the case was tested


def viewer(cases: Sequence[Listed], picture: str) -> str:
    """The viewer as HTML; `picture` (HTML) stays where no script runs and where a case's file is missing."""
    listed = json.dumps([vars(case) for case in cases], ensure_ascii=False)
    template = (resources.files("mtvlib") / "data" / "case_viewer.html").read_text(encoding="utf-8")
    parts = {
        "{{cases}}": html.escape(listed, quote=True),
        "{{colours}}": json.dumps({" ".join(key): colour for key, colour in COLOURS.items()}),
        "{{map}}": json.dumps(sequential.Inferno),
        "{{mark}}": COLORS["outlier"],
        "{{picture}}": picture,
    }
    for name, text in parts.items():
        template = template.replace(name, text)
    return template


def case_script(case: ViewCase, lesions: pd.DataFrame, *, face_removed: bool = False) -> str:
    """The script that hands a case to the viewer, at most about `viewer.VIEWER_BYTES`.

    `lesions`: the patient's rows of lesions.csv, with centroids in voxels of the masks. The case is shown as it is:
    crop it, and take the face away, before.
    """
    data = {
        "patient": case.patient,
        "size": list(case.reference.shape),
        "spacing": list(case.spacing_mm),
        "start": _start(case, lesions),
        "suv": suv_limit(case),
        "ctWindow": list(CT_WINDOW_HU),
        "labels": runs(case.reference + (case.prediction << CNN_BITS)),
        "dsc": [[_rounded(value) for value in slice_dsc(case, z).values()] for z in range(case.slices)],
        "lesions": [_lesion(row, case.reference.shape) for row in lesions.to_dict("records")],
        "faceRemoved": face_removed,
        **image_sheets(case),
    }
    return f"mtvViewerCase({json.dumps(data, separators=(',', ':'), allow_nan=False)});\n"


def runs(labels: np.ndarray) -> list[int]:
    """Run lengths of a label map (x, y, z), x fastest: value, length, value, length, ..."""
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    lengths = np.diff(np.r_[starts, flat.size])
    return np.column_stack([flat[starts], lengths]).ravel().tolist()


def _start(case: ViewCase, lesions: pd.DataFrame) -> list[int]:
    """The voxel that the viewer opens at: the centre of the largest lesion, else of the field."""
    if len(lesions):
        largest = lesions.sort_values(["source", "volume_ml"], ascending=[False, False]).iloc[0]  # manual before CNN
        return _centre(largest, case.reference.shape)
    return [side // 2 for side in case.reference.shape]


def _centre(row: Mapping[str, Any] | pd.Series, shape: Sequence[int]) -> list[int]:
    at = [row[f"centroid_{axis}_voxel"] for axis in "xyz"]
    return [int(np.clip(round(place), 0, side - 1)) for place, side in zip(at, shape, strict=True)]


def _lesion(row: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    return {
        "source": row["source"],
        "target": row["target"],
        "outcome": row["outcome"],
        "volume_ml": round(float(row["volume_ml"]), 3),
        "suv_max": None if pd.isna(row["suv_max"]) else round(float(row["suv_max"]), 2),
        "centre": _centre(row, shape),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
