"""Putting a figure or a table into a notebook, so that it also reaches the HTML report, the PDF and an offline reader.

Every function displays ONE output, a bundle from which each reader takes the richest form it can show:

| reader                      | takes                                                                              |
|-----------------------------|------------------------------------------------------------------------------------|
| Quarto HTML, nbconvert HTML | `text/html`: interactive once the page offers `window.Plotly`, a picture until then |
| JupyterLab                  | the same; the first figure of a session brings the library along                   |
| Quarto typst (PDF)          | SVG of a figure, typst markup of a table, which travel in the metadata              |
| Quarto docx (Word)          | `image/png` or `image/jpeg` of a figure, a pipe table                               |
| anything else               | `text/plain`: label and caption                                                    |

The HTML never holds the plotly library (4.6 MB) and fetches nothing: the page that shows it loads one local
`plotly.min.js` (`plotly.offline.get_plotlyjs()`, plotly.js 3), at any place, before or after the figures. Without it,
or without scripts, the picture stays.

Label, caption and alternative text are given once, in the Python call, where they may hold the study's numbers. They
travel in the output's metadata (`METADATA_KEY`). `for_quarto(notebook, to)` turns them into the cell options by which
Quarto numbers and cross-references (`#| label`, `#| fig-cap`, `#| fig-alt`, `#| tbl-cap`), so a chapter is passed
through it before `quarto render`. It also keeps Quarto from adding require.js and jQuery from a public server, which it
does to every page with a `text/html` output. Labels begin with `fig-` or `tbl-` and are unique in the report.
"""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from IPython.display import display
from PIL import Image
from plotly.offline import get_plotlyjs

from mtvlib import palette
from mtvlib.tables import PARTITION_NAMES
from mtvlib.typeset import FONTS, Table, csv_text, great_table, markdown, typst

METADATA_KEY = "mtv"
PICTURE_SCALE = 2.5  # pixels of the twin per layout pixel: about 300 dpi at the width of a page
LARGE_PICTURE = 100_000  # bytes
KALEIDO_REMEDY = 'install the picture maker again: pip install "kaleido>=0.2.1,<0.3"'

_WAIT_FOR_PLOTLY = """
(function () {
  const figure = %(figure)s;
  const dark = %(dark)s;
  const config = {responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]]};
  const hours = window.matchMedia("(prefers-color-scheme: dark)");
  // Quarto's switch, JupyterLab's theme, else what the reader's system asks for.
  function isDark() {
    const body = document.body, theme = body.dataset.jpThemeLight;
    if (theme) return theme === "false";
    return body.classList.contains("quarto-dark") || (hours.matches && !body.classList.contains("quarto-light"));
  }
  function themed(part) {
    if (typeof part === "string") return darker(part);
    if (Array.isArray(part)) return part.map(themed);
    if (part === null || typeof part !== "object") return part;
    const parts = Object.entries(part).map(([name, value]) => [name, name === "text" ? inText(value) : themed(value)]);
    return Object.fromEntries(parts);
  }
  // A colour, or a tint of it as rgba, in its shade for the dark.
  function darker(colour) {
    const tint = /^rgba\\((\\d+),(\\d+),(\\d+),([\\d.]+)\\)$/.exec(colour);
    if (!tint) return dark[colour.toUpperCase()] || colour;
    const plain = "#" + tint.slice(1, 4).map((n) => (+n).toString(16).padStart(2, "0")).join("");
    const shade = dark[plain.toUpperCase()];
    if (!shade) return colour;
    const parts = [1, 3, 5].map((at) => parseInt(shade.slice(at, at + 2), 16));
    return `rgba(${parts.join(",")},${Math.min(1, 1.4 * tint[4])})`;  // a tint on black needs more of it
  }
  function inText(value) {
    return typeof value === "string" ? value.replace(/#[0-9a-f]{6}/gi, (colour) => themed(colour)) : themed(value);
  }
  let tries = 0, shown = null;
  function draw() {
    const box = document.getElementById("%(box)s");
    if (box && window.Plotly) {
      if (shown === null) box.replaceChildren();
      if (shown === isDark()) return;
      shown = isDark();
      const now = shown ? themed(figure) : figure;
      window.Plotly.react(box, structuredClone(now.data), structuredClone(now.layout), config);
    } else if (tries++ < 150) {
      setTimeout(draw, 200);
    }
  }
  hours.addEventListener("change", draw);
  new MutationObserver(draw).observe(document.body, {attributeFilter: ["class", "data-jp-theme-light"]});
  draw();
})();
"""


def show_figure(figure: go.Figure, label: str, caption: str, alt: str) -> None:
    """Display a plotly figure with its static twin, caption (Markdown) and alternative text.

    If the twin cannot be made, the output names it as missing, with the remedy; the interactive figure is kept.
    """
    _bring_library_to_jupyterlab()
    try:
        png = figure.to_image(format="png", scale=PICTURE_SCALE)
        svg = figure.to_image(format="svg").decode()
        fallback = _picture(figure.to_image(format="webp", scale=1.5), "image/webp", alt)
        missing = ""
    except Exception as error:  # kaleido raises whatever its browser does; a missing picture must not stop the chapter
        png, svg, missing = None, "", f"The static picture is missing ({_first_line(error)}). Remedy: {KALEIDO_REMEDY}."
        fallback = f"<p>{html.escape(missing)}</p>"
    twins = {"svg": svg} if svg else {}
    page = _interactive(figure, label, alt, fallback)
    show_html(page, label, caption, alt, png=png, twins=twins, missing=missing)


def show_table(table: Table, label: str, caption: str) -> None:
    """Display a table with its caption (Markdown) and a link to its CSV; twins for PDF and Word are metadata."""
    data = base64.b64encode(csv_text(table).encode()).decode()
    style = f"font:11.5px {', '.join(FONTS)};padding:0 4px"
    link = f'<a href="data:text/csv;base64,{data}" download="{label}.csv" style="{html.escape(style)}">CSV</a>'
    link = f'<div style="text-align:left">{link}</div>'
    fragment = f'<div style="overflow-x:auto">{great_table(table, label).as_raw_html()}</div>\n{link}'
    show_html(fragment, label, caption, twins={"typst": typst(table), "docx": markdown(table)})


def show_html(
    fragment: str,
    label: str,
    caption: str,
    alt: str = "",
    *,
    png: bytes | None = None,
    twins: Mapping[str, str] | None = None,
    missing: str = "",
) -> None:
    """Display any HTML without a network, with a PNG or `twins` (typst, docx, svg) for print, or why one is `missing`.

    A large photograph among PNGs, such as a plate of slices, is kept as JPEG.
    """
    data = {
        "text/html": f'{fragment}\n<div class="mtv-caption"><p>{_inline_markdown(caption)}</p></div>',
        "text/plain": " ".join(f"{label}: {caption} {missing}".split()),
    }
    if png is not None:
        kind, content = print_picture(png)
        data[kind] = base64.b64encode(content).decode()
    about = {"label": label, "caption": caption, "alt": alt, **(twins or {})}
    display(data, raw=True, metadata={METADATA_KEY: about})


def print_picture(png: bytes) -> tuple[str, bytes]:
    """A picture for print, with its kind: JPEG where that is clearly less than the PNG, as it is of plates."""
    if len(png) < LARGE_PICTURE:
        return "image/png", png
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "JPEG", quality=85)
    return ("image/jpeg", buffer.getvalue()) if buffer.tell() < 0.8 * len(png) else ("image/png", png)


def show_picture(png: bytes, label: str, caption: str, alt: str) -> None:
    """Display a PNG with its caption (Markdown) and alternative text."""
    show_html(small_picture(png, alt), label, caption, alt, png=png)


def small_picture(png: bytes, alt: str, width_px: int = 1200) -> str:
    """A picture for a page as HTML: WebP of at most that width, a tenth of the PNG that print gets."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.width > width_px:
        size = (width_px, round(picture.height * width_px / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=78, method=5)
    return _picture(buffer.getvalue(), "image/webp", alt)


def note(title: str, text: str, kind: str = "note") -> None:
    """Display a call-out (`note`, `important` or `warning`): Quarto's own in the report, a bordered box elsewhere."""
    box = (
        '<div style="border-left:4px solid #8A8F98;padding:.4em 1em;margin:1em 0">'
        f"<strong>{html.escape(title)}</strong><p>{_inline_markdown(text)}</p></div>"
    )
    callout = f'::: {{.callout-{kind} title="{title}"}}\n{text}\n:::'
    display({"text/html": box, "text/markdown": callout, "text/plain": f"{title}: {text}"}, raw=True)


def text(markdown: str) -> None:
    """Display a paragraph of prose whose numbers come from data."""
    display({"text/markdown": markdown, "text/plain": markdown}, raw=True)


def banner(study: Any) -> None:
    """Say at the head of a chapter that a synthetic study makes no clinical claim; nothing for real patients."""
    if study.synthetic:
        note(
            "Synthetic patients",
            "The patients of this study are computed phantoms. Its figures and tables verify the software; they claim "
            "no clinical accuracy and cannot be compared with the values of Nikulin et al. 2023 shown beside them.",
            kind="important",
        )


def absent_partitions(study: Any) -> None:
    """Say which of cross-validation and external testing the study has not got, and why; nothing if it has both."""
    for partition, name in PARTITION_NAMES.items():
        block = study.summary.get(partition) or {}
        if not block.get("n_patients"):
            note(f"No {name.lower()}", f"Not estimable: {block.get('reason', 'it was not evaluated')}.")


# --- towards Quarto


def for_quarto(notebook: dict[str, Any], to: str) -> dict[str, Any]:
    """A copy of an executed notebook (nbformat 4 as a dict) ready for `quarto render` to `html`, `typst` or `docx`.

    Each output gets a cell of its own, and captions become cell options, since Quarto numbers cells. In HTML, raw
    blocks replace `text/html`: Quarto shows both alike, but for the latter it loads two libraries from a public server
    (its `src/core/jupyter/widgets.ts`), which an offline page waits for in vain.
    """
    cells = [part for cell in notebook["cells"] for part in _one_output_each(cell)]
    for cell in cells:
        for output in cell.get("outputs", []):
            about = output.get("metadata", {}).pop(METADATA_KEY, None)
            if about:
                cell["source"] = _options(about, to) + _joined(cell["source"])
            if "data" in output:
                output["data"] = _for_format(output["data"], about or {}, to)
    return {**notebook, "cells": cells}


def _one_output_each(cell: dict[str, Any]) -> list[dict[str, Any]]:
    cell = copy.deepcopy(cell)
    outputs = cell.get("outputs", [])
    if len(outputs) < 2:
        return [cell]
    first = {**cell, "outputs": outputs[:1]}
    rest = [
        {**cell, "id": f"{cell['id']}-{number}", "source": "", "metadata": {}, "outputs": [output]}
        for number, output in enumerate(outputs[1:], start=2)
    ]
    return [first, *rest]


def _options(about: dict[str, Any], to: str) -> str:
    """Quarto's cell options, which it reads from comments at the head of a cell; JSON strings are YAML strings."""
    kind = about["label"].split("-")[0]
    caption = about["caption"]
    if to == "html" and about.get("source"):  # print has no files beside it
        caption += f" [Notebook](notebooks/{about['source']}){{.made-by}}"
    options = {"label": about["label"], f"{kind}-cap": caption}
    if kind == "fig":
        options["fig-alt"] = about["alt"]
    else:
        options["html-table-processing"] = "none"  # else Quarto restyles the table
    return "".join(f"#| {name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in options.items())


def _for_format(data: dict[str, Any], about: dict[str, Any], to: str) -> dict[str, Any]:
    if to == "typst" and about.get("typst"):
        return {"text/markdown": f"```{{=typst}}\n{about['typst']}\n```"}
    if to == "typst" and about.get("svg"):
        return {"image/svg+xml": about["svg"], "text/plain": data["text/plain"]}
    if to == "docx" and about.get("docx"):
        return {"text/markdown": about["docx"]}
    if to != "html" or "text/html" not in data:
        return data
    if "text/markdown" in data:
        return {"text/markdown": _joined(data["text/markdown"])}
    fragment = re.sub(r'<div class="mtv-caption">.*?</div>', "", _joined(data["text/html"]), flags=re.DOTALL)
    return {"text/markdown": f"```{{=html}}\n{fragment.strip()}\n```"}


def _interactive(figure: go.Figure, label: str, alt: str, fallback: str) -> str:
    width = figure.layout.width or 700
    spec = json.loads(figure.to_json(), object_hook=_single_precision)
    spec["layout"].pop("width", None)  # the page decides, up to the width of the static twin
    values = {"figure": _script_json(spec), "dark": _script_json(palette.DARK), "box": f"plot-{label}"}
    script = _WAIT_FOR_PLOTLY % values
    style = f"max-width:{width}px;min-width:{min(width, 560)}px;margin:auto"
    box = f'<div id="plot-{label}" role="img" aria-label="{html.escape(alt)}" style="{style}">{fallback}</div>'
    return f'<div style="overflow-x:auto">{box}</div>\n<script>{script}</script>'


def _single_precision(value: dict[str, Any]) -> dict[str, Any]:
    """An array of plotly's JSON in half the bytes: seven digits are more than a screen shows."""
    if value.get("dtype") != "f8":
        return value
    numbers = np.frombuffer(base64.b64decode(value["bdata"]), "<f8").astype("<f4")
    return value | {"dtype": "f4", "bdata": base64.b64encode(numbers.tobytes()).decode()}


def _script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can close the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _picture(image: bytes, mime: str, alt: str) -> str:
    source = f"data:{mime};base64,{base64.b64encode(image).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt, quote=True)}" style="width:100%;height:auto">'


@cache
def _bring_library_to_jupyterlab() -> None:
    """Once a session: JupyterLab offers no plotly of its own, and reads no file outside its root folder."""
    if "JPY_SESSION_NAME" in os.environ:  # set by Jupyter's server, not by papermill
        library = f"<script>{get_plotlyjs()}</script>"
        display({"text/html": library, "text/plain": "plotly.js, for the figures of this notebook"}, raw=True)


def _inline_markdown(text: str) -> str:
    """Captions are Markdown in the report; here only bold and italics are needed."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text, quote=False))
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", text)


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
