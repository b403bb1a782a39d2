"""One table, two settings: what a page and what typst receive."""

import csv
import io

import pytest

from mtvlib.typeset import Cell, Table, csv_text, great_table, markdown, typst


@pytest.fixture
def table():
    table = Table({"dsc": "DSC", "tpr": "TPR_{LN}\n(%)"})
    table.add("Main", "Ours", {"dsc": Cell("0.9", "0.8–1.0"), "tpr": Cell("–", reason="no lesion")})
    table.add("Main", "Theirs", {"dsc": Cell("0.7")}, cited=True)
    table.add("External", "Ours", {"tpr": Cell("–", reason="no lesion")})
    table.notes.append("A note.")
    return table


def test_footnotes_share_the_mark_of_one_reason(table):
    assert table.footnotes() == {"no lesion": "a"}
    table.add("External", "Theirs", {"dsc": Cell("–", reason="nobody")})
    assert table.footnotes() == {"no lesion": "a", "nobody": "b"}


def test_page_holds_heads_values_intervals_and_small_print(table):
    page = great_table(table, "tbl-x").as_raw_html()
    assert "TPR<sub>LN</sub><br>(%)" in page
    assert "0.8–1.0" in page
    assert page.count("Not estimable: no lesion.") == 1
    assert "A note." in page
    assert 'id="tbl-x-table"' in page  # the report gives the label itself to the table with its caption


def test_only_tables_of_numbers_keep_their_cells_on_one_line(table):
    rule = ".gt_row, #tbl-x-table .gt_col_heading {white-space:nowrap}"
    assert rule in great_table(table, "tbl-x").as_raw_html()
    table.align = "left"
    assert rule not in great_table(table, "tbl-x").as_raw_html()


def test_page_is_the_same_every_time(table):
    assert great_table(table, "tbl-x").as_raw_html() == great_table(table, "tbl-x").as_raw_html()


def test_typst_holds_the_same(table):
    text = typst(table)
    assert '[*#"TPR"#sub[#"LN"] #linebreak() #"(%)"*]' in text
    assert text.count('colspan: 3)[*#"Main"*]') == 1  # one heading for both rows
    assert text.count("#super[a]") == 3  # two cells and the note
    assert '#"Not estimable: no lesion."' in text
    assert '_#"Theirs"_' in text


@pytest.mark.parametrize("text", ['say "x" \\ #let', "*bold* _it_ $m$ <b> @ref [x] `c`", "50 % – 3 < 4"])
def test_typst_leaves_no_character_a_meaning(text):
    table = Table({"x": "X"})
    table.add("", "n", {"x": Cell(text)})
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    assert f'[#box[#"{escaped}"]]' in typst(table)


def test_typst_breaks_no_interval_and_gives_sentences_the_room_they_need(table):
    assert '#box[#"0.9" #linebreak()' in typst(table)
    assert "columns: 3," in typst(table)
    table.add("", "Nobody", {"dsc": Cell("so it says " * 12), "tpr": Cell("and why it says so " * 4)})
    table.align = "left"
    assert "columns: (auto, 11.5fr, 8.7fr)," in typst(table)
    assert "#box" not in typst(table)


def test_page_escapes_what_users_wrote():
    table = Table({"x": "X"})
    table.add("", "n", {"x": Cell("<script>alert(1)</script>")})
    assert "<script>" not in great_table(table, "tbl-x").as_raw_html()


def test_names_of_users_are_escaped_too():
    table = Table({"x": "X"})
    table.add("<b>site</b>", "<i>name</i>", {"x": Cell("1")})
    table.notes.append("<u>note</u>")
    page = great_table(table, "tbl-x").as_raw_html()
    assert not any(tag in page for tag in ("<b>site", "<i>name", "<u>note"))


def test_csv_holds_values_intervals_and_reasons(table):
    text = csv_text(table)
    assert text.startswith("\ufeff")  # else a spreadsheet takes it for another encoding
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    assert rows == [
        ["group", "row", "DSC", "DSC: interval", "TPR_LN (%)", "reasons"],
        ["Main", "Ours", "0.9", "0.8–1.0", "", "no lesion"],
        ["Main", "Theirs", "0.7", "", "", ""],
        ["External", "Ours", "", "", "", "no lesion"],
    ]


def test_csv_keeps_separators_and_quotes_of_users():
    table = Table({"x": "X"})
    table.add("a, b", 'say "c"', {"x": Cell("1\n2")})
    assert list(csv.reader(io.StringIO(csv_text(table))))[1] == ["a, b", 'say "c"', "1\n2", ""]


def test_markdown_for_word_holds_the_same(table):
    lines = markdown(table).split("\n")
    assert lines[:4] == [
        "|  | DSC | TPR_LN (%) |",
        "| :-- | --: | --: |",
        "| **Main** |  |  |",
        "| Ours | 0.9 (0.8–1.0) | –^a^ |",
    ]
    assert lines[-3:] == ["^a^ Not estimable: no lesion.", "", "A note."]


def test_markdown_leaves_no_character_a_meaning():
    table = Table({"x": "X"})
    table.add("", "a|b", {"x": Cell("*5* <b> @fig-x [1] ^2^")})
    assert markdown(table).split("\n")[-1] == r"| a\|b | \*5\* \<b\> \@fig-x \[1\] \^2\^ |"
