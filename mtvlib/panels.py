"""The reading room's own widgets: a picture that tells where it was clicked, and a table that can be sorted.

Both are `anywidget`s: the script travels with the widget, so that nothing is fetched and no extension is built. A
picture is a JPEG that numpy made (5 to 60 KB), not a volume: a whole body of 192 x 192 x 500 voxels would be 74 MB for
a viewer that draws in the browser, on a hospital's remote desktop often without WebGL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

_FILES = Path(__file__).parent / "data" / "panels"


class Picture(anywidget.AnyWidget):
    """A picture that reports clicks, drags, the wheel, arrow keys and double clicks.

    A message is `{"steps": int, "place": [u, v] or null, "large": bool}`, `place` in shares of the picture's width and
    height from the upper left. It is answered by `drawn()`; until then the browser sums up what happens.
    """

    _esm = _FILES / "picture.js"
    _css = _FILES / "picture.css"
    picture = traitlets.Bytes(b"").tag(sync=True)  # JPEG
    title = traitlets.Unicode("").tag(sync=True)
    letters = traitlets.Unicode("").tag(sync=True)  # at the left and the right edge
    ratio = traitlets.Float(1.0).tag(sync=True)  # width by height
    size: traitlets.List[int] = traitlets.List([1, 1]).tag(sync=True)  # units of the lines, across and down
    lines: traitlets.List[Any] = traitlets.List().tag(sync=True)  # {"d": SVG path, "stroke": colour, "dash": bool}
    cross: traitlets.List[float] = traitlets.List().tag(sync=True)  # crosshair in shares; empty: none
    light = traitlets.Bool(False).tag(sync=True)  # the picture is light: write dark

    def drawn(self) -> None:
        """Tell the browser that its last message was dealt with."""
        self.send({"drawn": True})


class Table(anywidget.AnyWidget):
    """Rows to choose from; a head sorts them.

    `rows`: `{"key": str, "cells": [{"text": str, "sort": number, str or null}]}`; `chosen`: the key of a row; `sorted`:
    number of the head by which, from 1, negative for downwards, 0 for as they come.
    """

    _esm = _FILES / "table.js"
    _css = _FILES / "table.css"
    heads = traitlets.List(traitlets.Unicode()).tag(sync=True)
    rows: traitlets.List[Any] = traitlets.List().tag(sync=True)
    chosen = traitlets.Unicode("").tag(sync=True)
    sorted = traitlets.Int(0).tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
