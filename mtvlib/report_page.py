"""The report as one HTML page that needs neither Quarto nor a network: the same chapters, numbers and references.

Only as much of Quarto's Markdown is understood as the report's own templates and captions use: call-outs, captions of
tables, cross-references, citations and attributes of headings.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nbconvert.filters.markdown_mistune import markdown2html_mistune

from mtvlib.show import METADATA_KEY

KINDS = {"fig": "Figure", "tbl": "Table"}
TABLE_CAPTION = re.compile(r"((?:^\|[^\n]*\n)+)\n: (.+?) \{#(tbl-[\w-]+)\}", re.MULTILINE | re.DOTALL)
CALLOUT = re.compile(r"^::: \{\.callout-(\w+) title=\"([^\"]*)\"\}\n(.*?)^:::$", re.MULTILINE | re.DOTALL)
ATTRIBUTES = re.compile(r"^(#+ .*?)\s*\{[^}\n]*\}$", re.MULTILINE)
FIGURE = re.compile(r'^!\[(.+?)\]\(([^)\n]+)\)\{#(fig-[\w-]+) fig-alt="([^"]*)"\}$', re.MULTILINE | re.DOTALL)
CITATION, REFERENCE = re.compile(r"\[@([\w]+)\]"), re.compile(r"@((?:fig|tbl)-[\w-]+)")

MATH = re.compile(r"\$([^$\n]+)\$")

Notebook = dict[str, Any]


def write(
    before: Mapping[str, str], chapters: Mapping[str, Notebook], after: Mapping[str, str], bibliography: Path
) -> dict[str, Any]:
    """What the template page.html takes, from the pages before and after the chapters.

    `sections`, each with name, number, title and html; `references`.
    """
    parts: dict[str, list[Any]] = {name: [text] for name, text in before.items()}
    parts |= {name: list(_pieces(book)) for name, book in chapters.items()}
    parts |= {name: [text] for name, text in after.items()}
    numbers = number_labels(parts)
    entries = read_bibliography(bibliography.read_text(encoding="utf-8"))
    cited = list(dict.fromkeys(key for part in parts.values() for text in part for key in _citations(text)))
    page = Page(numbers, {key: place + 1 for place, key in enumerate(cited)})
    sections = [page.section(name, chapter, pieces) for chapter, (name, pieces) in enumerate(parts.items())]
    references = [(key, page.citations[key], entries[key]) for key in cited]
    return {"sections": sections, "references": references}


def _pieces(notebook: Notebook) -> Iterator[Any]:
    """Markdown as text, and outputs as they are; code and what it printed stay out."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            yield _joined(cell["source"])
        yield from (output for output in cell.get("outputs", []) if "data" in output)


def _citations(piece: Any) -> list[str]:
    return CITATION.findall(piece) if isinstance(piece, str) else []


def number_labels(parts: Mapping[str, list[Any]]) -> dict[str, str]:
    """`Figure 4.1` of each label, counted by chapter as Quarto does; the summary has no number."""
    numbers = {}
    for chapter, pieces in enumerate(parts.values()):
        counts = dict.fromkeys(KINDS, 0)
        for label in (label for piece in pieces for label in _labels(piece)):
            kind = label.split("-")[0]
            counts[kind] += 1
            numbers[label] = f"{KINDS[kind]} " + (f"{chapter}.{counts[kind]}" if chapter else f"{counts[kind]}")
    return numbers


def _labels(piece: Any) -> list[str]:
    if isinstance(piece, str):
        tables = [label for _, _, label in TABLE_CAPTION.findall(piece)]
        return tables + [label for _, _, label, _ in FIGURE.findall(piece)]
    about = piece.get("metadata", {}).get(METADATA_KEY)
    return [about["label"]] if about else []


class Page:
    """Turns pieces of chapters into HTML, with the numbers of labels and citations."""

    def __init__(self, numbers: Mapping[str, str], citations: Mapping[str, int]) -> None:
        self.numbers, self.citations = numbers, citations

    def section(self, name: str, chapter: int, pieces: list[Any]) -> dict[str, Any]:
        body = "\n".join(self.markdown(piece) if isinstance(piece, str) else self.output(piece) for piece in pieces)
        title = re.search(r"<h1[^>]*>(.*?)<a class", body, re.DOTALL)
        if chapter and title:
            body = body[: title.start(1)] + f'<span class="number">{chapter}</span> ' + body[title.start(1) :]
        return {"name": name, "number": chapter or "", "title": title.group(1) if title else name, "html": body}

    def markdown(self, text: str) -> str:
        text = CALLOUT.sub(r'<div class="callout \1">\n\n**\2**\n\n\3\n</div>', ATTRIBUTES.sub(r"\1", text))
        text = FIGURE.sub(self._figure, TABLE_CAPTION.sub(self._table, text))
        text = MATH.sub(_plain_math, CITATION.sub(self._citation, text))
        return markdown2html_mistune(REFERENCE.sub(self._reference, text))

    def _table(self, match: re.Match[str]) -> str:
        rows, caption, label = match.groups()
        caption = self._inline(" ".join(caption.split()))
        return f'<p class="caption" id="{label}">{self.numbers[label]}: {caption}</p>\n\n{rows}'

    def _figure(self, match: re.Match[str]) -> str:
        caption, path, label, alt = match.groups()
        words = f"{self.numbers[label]}: {self._inline(' '.join(caption.split()))}"
        return f'<figure id="{label}"><img src="{path}" alt="{alt}"><figcaption>{words}</figcaption></figure>'

    def _citation(self, match: re.Match[str]) -> str:
        key = match.group(1)
        return f'<a href="#ref-{key}">[{self.citations[key]}]</a>'

    def _reference(self, match: re.Match[str]) -> str:
        label = match.group(1)
        return f'<a href="#{label}">{self.numbers[label]}</a>' if label in self.numbers else match.group(0)

    def _inline(self, text: str) -> str:
        return self.markdown(text).strip().removeprefix("<p>").removesuffix("</p>")

    def output(self, output: dict[str, Any]) -> str:
        data, about = output["data"], output.get("metadata", {}).get(METADATA_KEY)
        if about is None:
            return self._plain_output(data)
        shown = re.sub(r'<div class="mtv-caption">.*?</div>', "", _joined(data["text/html"]), flags=re.DOTALL)
        label = about["label"]
        made_by = f' <a class="made-by" href="report_files/notebooks/{about["source"]}">Notebook</a>'
        words = self._inline(about["caption"]) + (made_by if about.get("source") else "")
        caption = f"<figcaption>{self.numbers[label]}: {words}</figcaption>"
        parts = [shown, caption] if label.startswith("fig-") else [caption, shown]
        return f'<figure id="{label}">{"".join(parts)}</figure>'

    def _plain_output(self, data: dict[str, Any]) -> str:
        if "text/html" in data:
            return _joined(data["text/html"])
        if "text/markdown" in data:
            return self.markdown(_joined(data["text/markdown"]))
        return f"<pre>{html.escape(_joined(data.get('text/plain', '')))}</pre>"


def _plain_math(match: re.Match[str]) -> str:
    """Names with an index, which is all the mathematics there is in the chapters."""
    return re.sub(r"([A-Za-z]+)_\{(\w+)\}", r"<em>\1</em><sub>\2</sub>", match.group(1))


def read_bibliography(text: str) -> dict[str, str]:
    """References of a BibTeX file as HTML, by key; one field a line, as in report/references.bib."""
    entries = {}
    for key, body in re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, re.MULTILINE))
        authors = [name.split(",")[0] for name in fields["author"].split(" and ")]
        names = ", ".join(authors[:3]) + (" et al." if len(authors) > 3 else "")
        place = fields.get("journal") or fields.get("booktitle") or fields.get("note", "")
        volume = f" {fields['volume']}" if "volume" in fields else ""
        pages = f":{fields['pages'].replace('--', '–')}" if "pages" in fields else ""
        entries[key] = (
            f"{names.removesuffix('.')}. {fields['title']}. <em>{place}</em>{volume}{pages} ({fields['year']})."
        )
        entries[key] += f" doi:{fields['doi']}" if "doi" in fields else ""
    return entries


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
