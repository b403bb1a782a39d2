"""The reading room's own widgets: a picture that tells where it was clicked, and a table that can be sorted.

Both are `anywidget`s: the script travels with the widget, so that nothing is fetched and no extension is built. A
picture is a JPEG that numpy made (20 to 60 KB), not a volume: a whole body of 192 x 192 x 500 voxels would be 74 MB for
a viewer that draws in the browser, on a hospital's remote desktop often without WebGL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

_FILES = Path(__file__).parent / "data" / "panels"


class Picture(anywidget.AnyWidget):
    """A picture that reports clicks, drags, the wheel and arrow keys: `{"steps": int, "place": [u, v] or null}`.

    `place` is in shares of the picture's width and height, from the upper left. A message is answered by `drawn()`,
    until then the browser sums up what happens.
    """

    _esm = _FILES / "picture.js"
    _css = _FILES / "picture.css"
    picture = traitlets.Bytes(b"").tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)

    def drawn(self) -> None:
        """Tell the browser that its last message was dealt with."""
        self.send({"drawn": True})


class Table(anywidget.AnyWidget):
    """Rows to choose from; a head sorts them.

    `rows`: `{"key": str, "cells": [{"text": str, "sort": number, str or null}]}`; `chosen`: the key of a row.
    """

    _esm = _FILES / "table.js"
    _css = _FILES / "table.css"
    heads = traitlets.List(traitlets.Unicode()).tag(sync=True)
    rows: traitlets.List[Any] = traitlets.List().tag(sync=True)
    chosen = traitlets.Unicode("").tag(sync=True)
