"""The report from a study's folder: what its text says follows its files, and nothing is fetched from a network."""

import copy
import json
import os
import re
import shutil

import pandas as pd
import pytest
import yaml

from mtvlib import params, report, report_page, report_text
from mtvlib.errors import InputError, WorkError
from mtvlib.files import write_json, write_text
from mtvlib.params import Params
from mtvlib.study import Study
from mtvlib.tables import paper_results


def code(*outputs, source="secret_code()", tags=()):
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": list(outputs)}


def prose(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def shown(label, caption="A caption."):
    html = f'<div id="plot-{label}"></div><div class="mtv-caption"><p>{caption}</p></div>'
    about = {"mtv": {"label": label, "caption": caption, "alt": "what is seen"}}
    return {"output_type": "display_data", "data": {"text/html": html, "text/plain": label}, "metadata": about}


def printed(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def notebook(*cells):
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    cells = [code(source="name = 'hidden'", tags=["parameters"]), *cells]
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def fold(number):
    return notebook(prose("# Training"), code(), prose("How it learns."), code(shown(f"fig-training-{number}")))


@pytest.fixture
def study(tmp_path):
    """A finished study whose results are the paper's; nothing in it was computed."""
    folder = tmp_path / "studies" / "small"
    params.write(Params(name="small", folds=2, epochs=7), folder / "params.yml")
    rows = [
        {"patient": f"p{i}", "site": "A", "split": split, "fold": 0} for i, split in enumerate(["cross_validation"] * 3)
    ]
    write_text(folder / "cohort.csv", pd.DataFrame(rows).to_csv(index=False))
    summary = copy.deepcopy({key: paper_results()[key] for key in report_text.PARTITIONS})
    for block in summary.values():
        block["ttb"]["n_outliers"] = 1
        block["survival"] = json.loads(json.dumps(block["survival"]).replace('"<0.001"', "0.0004"))
    write_json(folder / "results" / "summary.json", summary)
    lesions = pd.DataFrame([{"patient": "p0", "touches_border": False}])
    write_text(folder / "results" / "lesions.csv", lesions.to_csv(index=False))
    write_json(folder / "notebooks" / "2_train_fold_0.ipynb", fold(0))
    write_json(folder / "notebooks" / "2_train_fold_1.ipynb", fold(1))
    delineation = notebook(
        prose("# Delineation\n\nSee @fig-dsc and $T_{PT}$ [@moe2021]."),
        code(printed("progress"), shown("tbl-one"), shown("fig-dsc", "Dice, *all*.")),
        code({"output_type": "execute_result", "data": {"text/plain": "<42>"}, "metadata": {}}),
    )
    write_json(folder / "notebooks" / "4_delineation.ipynb", delineation)
    return folder


@pytest.fixture
def no_quarto(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def change(folder, partition, path, **values):
    file = folder / "results" / "summary.json"
    summary = json.loads(file.read_text())
    block = summary[partition]
    for name in path:
        block = block[name]
    block.update(values)
    write_json(file, summary)


def page(folder):
    return report.render(folder, "html", show=lambda line: None).read_text()


def add_models(folder, **changes):
    """Descriptions of both folds' models, as a training leaves them."""
    for fold in range(2):
        about = {
            "intended_use": "Research only.",
            "limits": "Other cancers.",
            "licence": "CC BY 4.0",
            "classes": {"0": "background", "1": "primary", "2": "nodes"},
            "architecture": {"filters": [8, 16], "attention": True},
            "training": {
                "fold": fold,
                "patients": {"train": 5, "validation": 1, "test": 2},
                "sites": {"Berlin": 3, "Ulm": 2},
                "synthetic": False,
                "epochs": 7,
                "best_epoch": 4 + fold,
            },
            "sha256": {"weights.safetensors": f"{fold}abcdef0123456789ffff"},
        }
        write_json(folder / "folds" / str(fold) / "model.json", about | changes)


# --- the model card


def test_the_model_card_tells_what_a_colleague_must_know(study, no_quarto):
    add_models(study)
    text = re.sub(r"<[^>]+>", "", page(study))
    for words in (
        "Research only.",
        "Other cancers.",
        "CC BY 4.0",
        "Berlin\u00a03, Ulm\u00a02",
        "4 of 7",
        "0abcdef012345678",
    ):
        assert words in text, words
    assert "cohort DSC 0.870" in text  # the study's own figure, from summary.json
    change(study, "cross_validation", ("delineation", "all"), cohort_dsc=0.123)
    assert "cohort DSC 0.123" in re.sub(r"<[^>]+>", "", page(study))


def test_a_study_without_models_has_a_card_that_says_so(study, no_quarto):
    assert "The study holds no trained models." in page(study)


# --- without Quarto


def test_without_quarto_the_report_is_one_offline_page_and_says_so(study, no_quarto):
    said = []
    path = report.render(study, "html", show=said.append)
    assert path == study / "report" / "report.html"
    assert "Quarto was not found" in said[0]
    assert "conda-forge quarto" in said[0]
    html = path.read_text()
    assert '<script src="report_files/plotly.min.js" defer></script>' in html
    assert (path.parent / "report_files" / "plotly.min.js").stat().st_size > 1_000_000
    body = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["']https?:|@import|url\(""", body)


def test_page_holds_all_chapters_in_order_without_code(study, no_quarto):
    html = page(study)
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections == [
        "index",
        "2_training",
        "4_delineation",
        "model",
        "methods",
        "changes",
        "checklist",
        "references",
    ]
    assert "secret_code" not in html
    assert "<pre>&lt;42&gt;</pre>" in html
    assert "progress" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert "hidden" not in html.split("</style>")[1].split("<main>")[1]


def test_every_table_of_a_page_keeps_its_own_caption(study, no_quarto):
    html = page(study)
    assert "{#tbl" not in html
    captions = dict(re.findall(r'<p class="caption" id="(tbl-[a-z]+)">Table [0-9.]+: (\w+)', html))
    assert captions["tbl-parameters"] == "All"
    assert captions["tbl-software"] == "What"


def test_page_numbers_captions_references_and_citations(study, no_quarto):
    html = page(study)
    link = ' <a class="made-by" href="report_files/notebooks/{}.ipynb">Notebook</a></figcaption>'
    assert "<figcaption>Figure 1.2: A caption." + link.format("2_train_fold") in html  # the second fold's figure
    assert "<figcaption>Table 2.1: A caption." + link.format("4_delineation") in html
    assert "<figcaption>Figure 2.1: Dice, <em>all</em>." + link.format("4_delineation") in html
    assert (study / "report" / "report_files" / "notebooks" / "2_train_fold.ipynb").exists()
    assert 'See <a href="#fig-dsc">Figure 2.1</a> and <em>T</em><sub>PT</sub> <a href="#ref-moe2021">[2]</a>' in html
    assert 'id="ref-moe2021">2. Moe, Groendahl, Tomic et al.' in html
    assert "@" not in re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)


def test_pdf_without_quarto_is_refused_with_the_remedy(study, no_quarto):
    with pytest.raises(InputError, match=r"needs Quarto.*Remedy: install it .*--to html"):
        report.render(study, "pdf")


def test_other_formats_and_unfinished_studies_are_refused(study, tmp_path):
    with pytest.raises(InputError, match="a report is html, pdf, docx"):
        report.render(study, "epub")
    with pytest.raises(InputError, match="not the folder of a study"):
        report.render(tmp_path, "html")
    (study / "results" / "summary.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        report.render(study, "html", show=lambda line: None)


# --- the text


def test_summary_says_the_numbers_of_summary_json(study, no_quarto):
    assert "0.885 for primary" in " ".join(page(study).split())
    change(study, "cross_validation", ["delineation", "primary"], cohort_dsc=0.1234, cohort_dsc_ci95=[0.1, 0.2])
    text = " ".join(page(study).split())
    assert "0.123 (95 % CI 0.100–0.200) for primary" in text
    assert '<td style="text-align:left">0.123 (0.100–0.200)</td> <td style="text-align:left">0.885</td>' in text


def test_what_could_not_be_computed_is_said_with_its_reason(study, no_quarto):
    change(study, "external_testing", ["survival", "cnn"], hr=None, hr_ci95=None, hr_reason="nobody died")
    text = " ".join(page(study).split())
    assert "not computable by automatic delineation" in text
    assert "External testing, survival, CNN, hazard ratio not computable: nobody died." in text


def test_a_study_of_one_class_without_outcomes_claims_neither(study, no_quarto):
    change(study, "cross_validation", ["classification"], accuracy=1.0, tpr_nodes=None)
    change(study, "cross_validation", ["survival"], reason="the cohort has no column death")
    text = page(study)
    assert "so telling the classes apart was not tested" in text
    assert "Survival was not analysed: the cohort has no column death." in text
    assert "100.0" not in text


def test_a_partition_without_patients_is_said_once_and_gets_no_column(study, no_quarto):
    file = study / "results" / "summary.json"
    summary = json.loads(file.read_text()) | {"external_testing": {"n_patients": 0, "reason": "no external patient"}}
    write_json(file, summary)
    html = page(study)
    assert "External testing was not done: no external patient." in html
    assert ">External testing</th>" not in html


def test_synthetic_patients_are_named_on_every_page(study, no_quarto):
    assert "computed phantoms" not in page(study)
    table = pd.read_csv(study / "cohort.csv").assign(synthetic=1)
    write_text(study / "cohort.csv", table.to_csv(index=False))
    html = page(study)
    assert html.count("computed phantoms") == 5
    assert "synthetic patients, no clinical claim" in html


def test_warnings_follow_the_data(study):
    def warnings():
        return " ".join(report_text.warnings(Study.open(study), {"commit": "abc"}))

    assert "wide and approximate" not in warnings()
    change(study, "cross_validation", [], n_patients=12)
    assert "Cross-validation rests on 12 patients" in warnings()
    change(study, "cross_validation", [], n_persons=12)
    assert "take scans as independent" not in warnings()
    change(study, "cross_validation", [], n_persons=10)
    assert "The 12 scans of cross-validation are of 10 persons" in warnings()
    write_text(study / "results" / "lesions.csv", "patient,touches_border\np0,True\np0,True\n")
    assert "In 1 patient a lesion touches the border" in warnings()
    assert "no manifest" in " ".join(report_text.warnings(Study.open(study), {}))
    assert "not what a commit holds" in " ".join(report_text.warnings(Study.open(study), {"commit": "abc-dirty"}))


def test_methods_list_every_parameter_and_mark_what_differs_from_the_paper(study):
    context = report_text.context(Study.open(study), {})
    listed = {row["name"].strip("*`"): row for row in context["parameters"]}
    assert set(listed) == set(Params.model_fields) - {"name", "studies"}
    assert [name.strip("*`") for name in context["different"]] == ["folds", "epochs"]
    assert listed["spacing_mm"]["meaning"] == "isotropic voxel side, mm"
    assert listed["spacing_mm"]["source"] == "Paper, Methods"
    assert listed["epochs"]["value"] == "**7**"


# --- the book


def test_book_has_the_chapters_that_there_are(study, tmp_path):
    book = report.build_book(Study.open(study), tmp_path / "book")
    config = yaml.safe_load((book / "_quarto.yml").read_text())
    assert config["book"]["chapters"] == [
        "index.qmd",
        "2_training.ipynb",
        "4_delineation.ipynb",
        "model.qmd",
        "methods.qmd",
        "changes.qmd",
        "checklist.qmd",
    ]
    assert all((book / name).exists() for name in config["book"]["chapters"])
    assert (book / "plotly.min.js").stat().st_size > 1_000_000
    assert not re.search(r"https?://", (book / "theme" / "header.html").read_text())


def test_chapters_of_the_book_have_one_output_a_cell_and_no_code(study, tmp_path):
    book = report.build_book(Study.open(study), tmp_path / "book")
    chapter = json.loads((book / "4_delineation.ipynb").read_text())
    cells = [cell for cell in chapter["cells"] if cell["cell_type"] == "code"]
    assert [len(cell["outputs"]) for cell in cells] == [1, 1, 1]
    assert '#| label: "tbl-one"' in cells[0]["source"]
    assert '#| fig-cap: "Dice, *all*. [Notebook](notebooks/4_delineation.ipynb){.made-by}"' in cells[1]["source"]
    assert "secret_code" not in json.dumps(chapter)


def test_the_folds_are_one_chapter(study, tmp_path):
    book = report.build_book(Study.open(study), tmp_path / "book")
    cells = json.loads((book / "2_training.ipynb").read_text())["cells"]
    text = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    assert text == ["# Training", "How it learns.", "## Fold 1"]
    assert sum("fig-training" in cell["source"] for cell in cells) == 2
    (study / "notebooks" / "2_train_fold_0.ipynb").unlink()
    chapters = dict(report.read_chapters(Study.open(study)))
    assert "fig-training-1" in json.dumps(chapters["2_training"])


def test_every_citation_has_its_reference_and_every_reference_is_cited():
    folder = report.template_folder()
    entries = report_page.read_bibliography((folder / "references.bib").read_text())
    texts = "".join(
        (folder / name).read_text()
        for name in ("index.qmd", "model.qmd", "methods.qmd", "changes.qmd", "checklist.qmd")
    )
    assert set(report_page.CITATION.findall(texts)) == set(entries)
    assert all(re.search(r"\(\d{4}\)", entry) for entry in entries.values())


# --- Quarto as a program


def fake_quarto(folder, monkeypatch, script):
    program = folder / "bin" / "quarto"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_quarto_renders_html_pdf_and_word_in_calls_of_their_own(study, tmp_path, monkeypatch):
    fake_quarto(
        tmp_path,
        monkeypatch,
        'mkdir _book; echo "$*" > _book/index.html; echo "$*" > _book/Any-Title.pdf; cp _book/*.pdf _book/x.docx\n',
    )
    assert report.render(study, "html") == study / "report" / "html" / "index.html"
    assert report.render(study, "pdf") == study / "report" / "small.pdf"
    assert (study / "report" / "html" / "index.html").read_text() == "render . --to html\n"
    assert (study / "report" / "small.pdf").read_text() == "render . --to mtv-typst\n"
    assert report.render(study, "docx").read_text() == "render . --to docx\n"


def test_a_failing_quarto_is_an_error_that_keeps_the_old_report(study, tmp_path, monkeypatch):
    write_text(study / "report" / "html" / "index.html", "old")
    fake_quarto(tmp_path, monkeypatch, "echo 'ERROR: no such theme' >&2; exit 1\n")
    with pytest.raises(WorkError, match="no such theme"):
        report.render(study, "html")
    assert (study / "report" / "html" / "index.html").read_text() == "old"


def test_the_error_of_typst_is_said_rather_than_its_first_warning(study, tmp_path, monkeypatch):
    said = "ERROR: error: warning: unknown font family\\nerror: label <tbl-x> occurs twice\\nERROR: compilation failed"
    fake_quarto(tmp_path, monkeypatch, f"printf '{said}\\n' >&2; exit 1\n")
    with pytest.raises(WorkError, match="report: error: label <tbl-x> occurs twice"):
        report.render(study, "pdf")


@pytest.mark.skipif(shutil.which("quarto") is None, reason="Quarto is not installed")
def test_the_real_quarto_takes_the_templates(study):
    assert report.render(study, "pdf").read_bytes().startswith(b"%PDF")


def test_environment_names_versions_device_and_programs(no_quarto):
    found = report.environment()
    assert {"python", "mtvlib", "torch", "processor", "cuda"} <= set(found)
    assert found["quarto"].startswith("not found")
    assert all(isinstance(value, str) for value in found.values())


# --- what changed


def test_a_first_version_says_so_and_a_second_sets_the_numbers_side_by_side(study, no_quarto):
    assert "These are the first results of this study" in page(study)
    patients = {name: {"pet": "1", "ct": "", "reference": "r", "part": "fold 0"} for name in ("p0", "p1")}
    version = {"format": "mtv-version-1", "date": "2026-01-02", "commit": "a", "parameters": {}, "patients": patients}
    summary = json.loads((study / "results" / "summary.json").read_text())
    write_json(study / "versions" / "0001.json", version | {"summary": summary})
    summary["cross_validation"]["n_patients"] += 1
    summary["cross_validation"]["delineation"]["primary"]["cohort_dsc"] = 0.875
    patients = patients | {"p2": patients["p0"]}
    write_json(study / "versions" / "0002.json", version | {"summary": summary, "patients": patients})
    text = " ".join(re.sub(r"<[^>]*>", " ", page(study)).split())
    assert "Patient p2 was added." in text
    assert "Cross-validation Patients 698 699 +1" in text
    assert "Cross-validation Cohort DSC, primary tumour 0.885 0.875 −0.010" in text
    assert "External testing Cohort DSC, primary tumour 0.850 0.850 +0.000" in text
