"""What a notebook's output holds, and what Quarto is given of it."""

import base64
import io
import json
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from mtvlib import figures, show
from mtvlib.typeset import Cell, Table, csv_text, markdown

ALT = 'Two points, "low" & <high>.'
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def shown(monkeypatch):
    """The (data, metadata) of everything displayed."""
    outputs = []
    monkeypatch.setattr(show, "display", lambda data, raw, metadata=None: outputs.append((data, metadata or {})))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    show._bring_library_to_jupyterlab.cache_clear()
    return outputs


@pytest.fixture
def no_browser(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no browser\nlong story")

    monkeypatch.setattr(go.Figure, "to_image", fail)


def figure():
    return figures.base_figure(300).add_scatter(x=[1, 2], y=[3, 4], name="</script><b>")


def table():
    filled = Table({"dsc": "DSC"})
    filled.add("", "primary", {"dsc": Cell("0.9")})
    return filled


def notebook(outputs):
    """An executed notebook of one cell."""
    nb = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("f()")
    for data, metadata in outputs:
        cell.outputs.append(nbformat.v4.new_output("display_data", data, metadata=metadata))
    nb.cells = [cell]
    return json.loads(nbformat.writes(nb))  # sources and data as lists of lines, as on disk


# --- one output for all readers


@pytest.fixture(scope="module")
def real():
    """The output of a figure with its real picture (the browser that makes it takes seconds)."""
    outputs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JPY_SESSION_NAME", raising=False)
        patch.setattr(show, "display", lambda data, raw, metadata=None: outputs.append((data, metadata)))
        show.show_figure(figure(), "fig-x", "Caption with *italics* & N = 2.", ALT)
    return outputs


def test_a_figure_is_one_output_with_page_and_picture(real):
    ((data, metadata),) = real
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(PNG)
    assert "<em>italics</em> &amp; N = 2." in data["text/html"]
    assert data["text/plain"] == "fig-x: Caption with *italics* & N = 2."
    assert metadata["mtv"]["alt"] == ALT


def test_the_page_is_light_and_fetches_nothing(real):
    page = real[0][0]["text/html"]
    assert len(page) < 300_000 < len(get_plotlyjs())
    assert not re.search(r"https?://", page)
    assert not re.search(r"<script[^>]*\bsrc|\bimport\b|\brequire\(", page)


def test_the_page_holds_the_picture_until_plotly_is_there(real):
    page = real[0][0]["text/html"]
    assert '<img src="data:image/webp;base64,' in page
    assert 'alt="Two points, &quot;low&quot; &amp; &lt;high&gt;."' in page
    assert "window.Plotly" in page


def test_no_text_of_a_figure_can_leave_its_script(real):
    page = real[0][0]["text/html"]
    assert page.count("</script>") == 1
    assert "\\u003c/script>\\u003cb>" in page


def test_the_figure_survives_in_the_page(shown, no_browser):
    show.show_figure(figure(), "fig-x", "Caption", ALT)
    spec = json.loads(re.search(r"const figure = (\{.*\});", shown[0][0]["text/html"]).group(1))
    assert go.Figure(spec).data[0].x == (1, 2)
    assert "width" not in spec["layout"]  # a page decides


def test_a_missing_picture_is_named_with_its_remedy(shown, no_browser):
    show.show_figure(figure(), "fig-x", "Caption", ALT)
    data = shown[0][0]
    assert "image/png" not in data
    for text in (data["text/html"], data["text/plain"]):
        assert "The static picture is missing (no browser). Remedy:" in text
        assert "kaleido" in text


def test_jupyterlab_gets_the_library_once(shown, no_browser, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    for number in range(3):
        show.show_figure(figure(), f"fig-{number}", "Caption", ALT)
    assert [get_plotlyjs() in data["text/html"] for data, _ in shown] == [True, False, False, False]


def test_a_table_carries_its_typst_twin(shown):
    show.show_table(table(), "tbl-x", "Caption")
    data, metadata = shown[0]
    assert "<table" in data["text/html"]
    assert "#table(" in metadata["mtv"]["typst"]


def test_a_table_can_be_downloaded_as_csv_without_a_network(shown):
    show.show_table(table(), "tbl-x", "Caption")
    link = re.search(r'<a href="data:text/csv;base64,([^"]+)" download="tbl-x.csv"', shown[0][0]["text/html"])
    assert base64.b64decode(link.group(1)).decode() == csv_text(table())


def test_word_gets_pictures_and_tables_that_can_be_edited(chapter):
    _note, picture, tabular = (cell["outputs"][0]["data"] for cell in show.for_quarto(chapter, "docx")["cells"])
    assert "image/png" in picture
    assert tabular == {"text/markdown": markdown(table())}


# --- notes


def test_a_picture_reaches_page_and_pdf_with_its_alternative_text(shown):
    buffer = io.BytesIO()
    Image.new("RGB", (2400, 600), "red").save(buffer, "PNG")
    show.show_picture(buffer.getvalue(), "fig-crop", "A *picture*.", ALT)
    ((data, metadata),) = shown
    assert base64.b64decode(data["image/png"]) == buffer.getvalue()
    small = re.search(r"data:image/webp;base64,([^\"]+)", data["text/html"]).group(1)
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (1200, 300)
    assert 'alt="Two points, &quot;low&quot; &amp; &lt;high&gt;."' in data["text/html"]
    assert "<em>picture</em>" in data["text/html"]
    assert metadata[show.METADATA_KEY] == {"label": "fig-crop", "caption": "A *picture*.", "alt": ALT}


def test_banner_only_for_synthetic_patients(shown):
    show.banner(SimpleNamespace(synthetic=False))
    assert shown == []
    show.banner(SimpleNamespace(synthetic=True))
    data = shown[0][0]
    assert "callout-important" in data["text/markdown"]
    assert all("no clinical accuracy" in data[kind] for kind in ("text/markdown", "text/html", "text/plain"))


def test_absent_partitions_say_why(shown):
    part = {"n_patients": 0, "reason": "no patient of the external cohort was evaluated"}
    show.absent_partitions(SimpleNamespace(summary={"cross_validation": {"n_patients": 3}, "external_testing": part}))
    assert [data["text/plain"] for data, _ in shown] == [f"No external testing: Not estimable: {part['reason']}."]


# --- towards Quarto


@pytest.fixture
def chapter(shown, no_browser):
    show.note("Take care", "A note.")
    show.show_figure(figure(), "fig-x", 'A "quoted" caption: $R^2$', ALT)
    show.show_table(table(), "tbl-x", "Table")
    shown[1][0]["image/png"] = base64.b64encode(PNG).decode()
    return notebook(shown)


def test_each_output_gets_a_cell_with_its_options(chapter):
    cells = show.for_quarto(chapter, "html")["cells"]
    assert [len(cell["outputs"]) for cell in cells] == [1, 1, 1]
    assert "f()" in "".join(cells[0]["source"])
    assert len({cell["id"] for cell in cells}) == 3
    options = dict(re.findall(r"^#\| ([\w-]+): (.*)$", cells[1]["source"], re.MULTILINE))
    assert {key: json.loads(value) for key, value in options.items()} == {
        "label": "fig-x",
        "fig-cap": 'A "quoted" caption: $R^2$',
        "fig-alt": ALT,
    }
    assert '#| tbl-cap: "Table"' in cells[2]["source"]


def test_html_book_has_no_output_for_which_quarto_calls_a_public_server(chapter):
    outputs = [cell["outputs"][0]["data"] for cell in show.for_quarto(chapter, "html")["cells"]]
    assert [set(data) for data in outputs] == [{"text/markdown"}] * 3
    assert outputs[0]["text/markdown"].startswith("::: {.callout-note")
    assert outputs[1]["text/markdown"].startswith("```{=html}\n<div")
    assert "window.Plotly" in outputs[1]["text/markdown"]


def test_the_caption_is_not_said_twice(chapter):
    for cell in show.for_quarto(chapter, "html")["cells"]:
        assert "mtv-caption" not in json.dumps(cell["outputs"])


def test_pdf_gets_picture_and_typst_table(chapter):
    note, picture, tabular = (cell["outputs"][0]["data"] for cell in show.for_quarto(chapter, "typst")["cells"])
    assert "image/png" in picture
    assert tabular == {"text/markdown": tabular["text/markdown"]}
    assert tabular["text/markdown"].startswith("```{=typst}\n#block[")
    assert "text/markdown" in note


def test_the_notebook_itself_stays_as_it_is(chapter):
    before = json.dumps(chapter)
    show.for_quarto(chapter, "html")
    show.for_quarto(chapter, "typst")
    assert json.dumps(chapter) == before


def test_what_quarto_gets_is_a_notebook(chapter):
    for to in ("html", "typst"):
        nbformat.validate(nbformat.from_dict(show.for_quarto(chapter, to)))


def test_numbers_of_a_figure_are_kept_to_seven_digits_in_half_the_bytes():
    """plotly's own JSON holds float64; what the page holds is as long as the array times four bytes in base64."""
    values = np.linspace(0.1, 9_876.5, 3000)
    page = show._interactive(go.Figure(go.Scatter(x=values, y=[1, 2, None])), "fig-x", "Points.", "")
    (found,) = re.findall(r'"dtype":"f4","bdata":"([^"]+)"', page)
    assert len(found) == 3000 * 4 * 4 / 3
    kept = np.frombuffer(base64.b64decode(found), "<f4")
    assert np.abs(kept / values - 1).max() < 1e-7
