"""A table as rows of cells, set as HTML (great_tables) for pages and as typst for the PDF.

Two settings of one table, because HTML tables reach typst without their widths, alignment and small print. In heads,
`_{x}` is a subscript and a line break is a new line.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from great_tables import GT, loc, style
from great_tables import html as markup

MUTED, INK, HAIRLINE = "#6B7079", "#1F2430", "#D5D8DD"
FONTS = ["Lato", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
# JupyterLab sets tables in columns of one width, cuts off what is wider, and stripes the rows.
_NOT_AS_JUPYTER = "#{0} table {{table-layout:auto !important}} #{0} tbody tr {{background:none !important}}"
_SMALL_PRINT = "#{0} .gt_footnote {{text-align:left; font-size:11.5px; padding:2px 4px}}"
_ONE_LINE = "#{0} .gt_row, #{0} .gt_col_heading {{white-space:nowrap}}"  # else narrow columns break intervals in two
# A head for those who hear the table: above the rows' names nothing is seen.
_STUB_HEAD = '<span style="position:absolute;clip-path:inset(50%);white-space:nowrap">Row</span>'
_SUBSCRIPT = re.compile(r"_\{(.+?)\}")
PAGE_WIDTH, SHORT = 100, 24  # characters of a table's small type in a line of the PDF, and in a column left as it is


@dataclass(frozen=True)
class Cell:
    """What stands in a cell: the value, the interval in small print below it, the reason where there is no value."""

    value: str
    below: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Row:
    group: str  # heading above the rows that share it; '' for none
    name: str
    cells: dict[str, Cell]
    cited: bool = False  # others' values: set in italics and muted


@dataclass
class Table:
    """A table while it is filled, row by row; reasons become footnotes `a`, `b`, ..., notes stand below it."""

    columns: Mapping[str, str]  # key -> head
    align: str = "right"
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, group: str, name: str, cells: Mapping[str, Cell], *, cited: bool = False) -> None:
        """Add a row; columns that `cells` leaves out stay empty."""
        self.rows.append(Row(group, name, {key: cells.get(key, Cell("")) for key in self.columns}, cited))

    def footnotes(self) -> dict[str, str]:
        """Reason -> mark, in reading order."""
        reasons = dict.fromkeys(cell.reason for row in self.rows for cell in row.cells.values() if cell.reason)
        return {reason: chr(ord("a") + number) for number, reason in enumerate(reasons)}


# --- plain forms


def csv_text(table: Table) -> str:
    """The table for a spreadsheet, UTF-8 with a byte order mark: what stands below a value has a column of its own.

    What could not be estimated is an empty field, with its reason in the last column.
    """
    with_below = {key for row in table.rows for key, cell in row.cells.items() if cell.below}
    heads = [
        title
        for key, head in table.columns.items()
        for title in ([_one_line(head)] + ([f"{_one_line(head)}: interval"] if key in with_below else []))
    ]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["group", "row", *heads, "reasons"])
    for row in table.rows:
        fields = [
            text
            for key, cell in row.cells.items()
            for text in (["" if cell.reason else cell.value] + ([cell.below] if key in with_below else []))
        ]
        reasons = dict.fromkeys(cell.reason for cell in row.cells.values() if cell.reason)
        writer.writerow([row.group, _one_line(row.name), *fields, "; ".join(reasons)])
    return "\ufeff" + lines.getvalue()


def markdown(table: Table) -> str:
    """The table as a pipe table, for Word: group names as rows, intervals beside the values, notes below."""
    marks = table.footnotes()
    rule = ":--" if table.align == "left" else "--:"
    lines = [_pipes(["", *map(_one_line, table.columns.values())]), _pipes([":--", *[rule] * len(table.columns)])]
    group = ""
    for row in table.rows:
        if row.group != group:
            lines.append(_pipes([f"**{_plain(row.group)}**", *[""] * len(table.columns)]))
            group = row.group
        cells = (
            f"{_plain(cell.value)}{f' ({_plain(cell.below)})' if cell.below else ''}"
            f"{f'^{marks[cell.reason]}^' if cell.reason else ''}"
            for cell in row.cells.values()
        )
        lines.append(_pipes([_plain(row.name), *cells]))
    small = [f"^{mark}^ {_plain(_sentence(reason))}" for reason, mark in marks.items()] + [
        _plain(note) for note in table.notes
    ]
    return "\n".join(lines) + "".join(f"\n\n{line}" for line in small)


def _one_line(head: str) -> str:
    return _SUBSCRIPT.sub(r"_\1", head).replace("\n", " ")


def _pipes(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _plain(text: str) -> str:
    """Text in which no character has a meaning in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|^~#$@])", r"\\\1", text.replace("\n", " "))


# --- HTML


def great_table(table: Table, table_id: str) -> GT:
    """The table in the style of a journal: rules above, below and under the heads, numbers to the right.

    Its element's id is `<table_id>-table`, since the page gives `table_id` to the table with its caption.
    """
    element = f"{table_id}-table"
    frame = pd.DataFrame([{key: _cell_html(cell) for key, cell in row.cells.items()} for row in table.rows])
    frame.insert(0, "name", [row.name for row in table.rows])
    groups = [row.group for row in table.rows]
    if any(groups):
        frame.insert(0, "group", groups)
    columns, cited = [*table.columns], [index for index, row in enumerate(table.rows) if row.cited]
    setting = GT(frame, rowname_col="name", groupname_col="group" if any(groups) else None, id=element)
    setting = setting.cols_label({key: markup(_head_html(head)) for key, head in table.columns.items()})
    setting = setting.tab_stubhead(markup(_STUB_HEAD))
    setting = setting.cols_align(table.align, columns).fmt_passthrough(columns, escape=False)  # type: ignore[arg-type]
    setting = setting.tab_style(style.css("white-space:nowrap;"), loc.stub())
    if cited:
        muted = style.text(color=MUTED, style="italic")
        setting = setting.tab_style(muted, [loc.body(rows=cited), loc.stub(rows=cited)]).tab_stub_indent(cited, 2)
    css = [_NOT_AS_JUPYTER, _SMALL_PRINT, *([_ONE_LINE] if table.align == "right" else [])]
    setting = setting.tab_options(table_additional_css=[rule.format(element) for rule in css])
    return _rules(_small_print(setting, table), len(columns))


def _cell_html(cell: Cell) -> str:
    below = f'<br><span style="color:{MUTED};font-size:85%">{html.escape(cell.below)}</span>' if cell.below else ""
    return html.escape(cell.value) + below


def _head_html(head: str) -> str:
    return _SUBSCRIPT.sub(r"<sub>\1</sub>", html.escape(head)).replace("\n", "<br>")


def _small_print(setting: GT, table: Table) -> GT:
    for index, row in enumerate(table.rows):
        for key, cell in row.cells.items():
            if cell.reason:
                setting = setting.tab_footnote(_sentence(cell.reason), loc.body(columns=key, rows=[index]))
    for note in table.notes:
        setting = setting.tab_source_note(note)
    return setting


def _sentence(reason: str) -> str:
    return f"Not estimable: {reason}."


def _rules(setting: GT, columns: int) -> GT:
    options: dict[str, Any] = {}
    for place in ("table_border_top", "column_labels_border_bottom", "table_body_border_bottom"):
        options |= {f"{place}_style": "solid", f"{place}_color": INK, f"{place}_width": "1px"}
    for place in ("column_labels_border_top", "row_group_border_bottom", "table_body_hlines", "stub_border"):
        options[f"{place}_style"] = "none"
    options["table_border_bottom_style"] = "none"  # the small print stands below the last rule
    wide = columns > 7  # smaller, so that it fits the page
    for place in ("data_row", "column_labels", "row_group", "source_notes"):
        options[f"{place}_padding_horizontal"] = "3px" if wide else "4px"
    return setting.tab_options(
        **options,
        row_group_border_top_color=HAIRLINE,
        table_width="100%" if columns > 3 else "auto",
        table_font_names=FONTS,
        table_font_size="12px" if wide else "13px",
        table_font_color=INK,
        column_labels_font_weight="bold",
        row_group_font_weight="bold",
        data_row_padding="4px",
        row_group_padding="6px",
        container_padding_y="0px",
        table_margin_left="0px",  # below the beginning of the caption
        source_notes_font_size="11.5px",
        source_notes_padding="2px",
        footnotes_marks="letters",
    )


# --- typst


def typst(table: Table) -> str:
    """The same table as typst markup, for a raw block."""
    marks, width = table.footnotes(), len(table.columns) + 1
    lines = ["table.hline(stroke: 0.6pt),"]
    lines += [f"table.header([], {', '.join(f'[*{_head_typst(head)}*]' for head in table.columns.values())}),"]
    lines += ["table.hline(stroke: 0.6pt),"]
    group = ""
    for row in table.rows:
        if row.group != group:
            lines.append(f"table.cell(colspan: {width})[*{_words(row.group)}*],")
            group = row.group
        lines.append(_row_typst(row, marks, whole=table.align == "right"))
    lines.append("table.hline(stroke: 0.6pt),")
    small = [f"#super[{mark}] {_words(_sentence(reason))}" for reason, mark in marks.items()]
    small += [_words(note) for note in table.notes]
    align = f"align: (x, y) => if x == 0 {{ left }} else {{ {table.align} }}"
    inset = 4 if width < 9 else 2.5  # pt; the widest table fills the page
    settings = f"columns: {_columns_typst(table)}, stroke: none, inset: (x: {inset}pt, y: 2.5pt), {align},"
    body = "\n  ".join([settings, *lines])
    below = f"#block(above: 0.6em, text(size: 7pt)[{' #linebreak() '.join(small)}])\n" if small else ""
    type_size = 8 if width < 9 else 7.5  # pt
    setting = f"#set text(size: {type_size}pt)\n#set par(justify: false, leading: 0.4em)"
    return f"#block[\n{setting}\n#table(\n  {body}\n)\n{below}]"


def _columns_typst(table: Table) -> str:
    """Columns as wide as what they hold; in a table of sentences the long ones share what is left.

    By the root of their length: shares by the length itself would leave the shorter ones a word a line.
    """
    cells = [[row.name for row in table.rows]] + [[row.cells[key].value for row in table.rows] for key in table.columns]
    longest = [max(map(len, texts), default=0) for texts in cells]
    if table.align == "right" or sum(longest) <= PAGE_WIDTH:
        return str(len(cells))
    return f"({', '.join('auto' if n <= SHORT else f'{n**0.5:.1f}fr' for n in longest)})"


def _row_typst(row: Row, marks: Mapping[str, str], *, whole: bool) -> str:
    """Cells of a row; those of numbers are kept `whole`, since an interval could be broken behind its dash."""
    texts = [_words(row.name), *(_cell_typst(cell, marks) for cell in row.cells.values())]
    if whole:
        texts[1:] = [f"#box[{text}]" if text else "" for text in texts[1:]]
    if row.cited:
        texts = [f'#text(fill: rgb("{MUTED}"))[_{text}_]' if text else "" for text in texts]
        texts[0] = f"#h(0.8em){texts[0]}"
    return ", ".join(f"[{text}]" for text in texts) + ","


def _cell_typst(cell: Cell, marks: Mapping[str, str]) -> str:
    text = _words(cell.value) + (f"#super[{marks[cell.reason]}]" if cell.reason else "")
    return text + (
        f' #linebreak() #text(size: 0.85em, fill: rgb("{MUTED}"))[{_words(cell.below)}]' if cell.below else ""
    )


def _head_typst(head: str) -> str:
    parts = _SUBSCRIPT.split(head)  # every second part is a subscript
    set_parts = [f"#sub[{_words(part)}]" if number % 2 else _words(part) for number, part in enumerate(parts)]
    return "".join(set_parts)


def _words(text: str) -> str:
    """Text as typst strings, in which no character has a meaning; typst escapes quotes and backslashes as JSON does."""
    return " #linebreak() ".join(
        f"#{json.dumps(line, ensure_ascii=False)}" if line else "" for line in text.split("\n")
    )
