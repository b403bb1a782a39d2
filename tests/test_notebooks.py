"""What every notebook promises to its readers, to papermill and to git."""

import ast
import io
import re
import tokenize
from pathlib import Path

import nbformat
import pytest

from mtvlib.params import Params
from mtvlib.steps import notebook_of, step_names

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
ROOMS = {"explore", "review"}  # for people, no steps of the study
SOURCE = re.compile(r"#.+; (Paper|choice|MXNet)")
LONGEST_CELL = 30

every_notebook = pytest.mark.parametrize("name", NAMES)
every_step = pytest.mark.parametrize("name", sorted(set(NAMES) - ROOMS))


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


def assigned(source):
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(source).body}


def own_parameters(notebook):
    """Keywords of `Study.from_notebook(globals(), fold=0)`: parameters that only this notebook has."""
    for node in ast.walk(ast.parse("\n".join(code(notebook)))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Study.from_notebook":
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    raise AssertionError("no Study.from_notebook")


def test_there_is_one_for_every_step():
    assert {notebook_of(step)[0] for step in step_names(5)} - {"evaluation", "manifest"} == set(NAMES) - ROOMS


@every_notebook
def test_the_format_is_valid_and_ids_are_unique(name):
    notebook = read(name)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@every_notebook
def test_it_opens_with_its_title_and_then_its_parameters(name):
    title, first, *_ = read(name).cells
    assert title.source.startswith("# ")
    assert first.metadata.tags == ["parameters"]


@every_step
def test_parameters_are_those_of_the_study_with_the_papers_values(name):
    notebook = read(name)
    defaults = Params().model_dump(mode="json") | own_parameters(notebook)
    values = assigned(parameters(notebook))
    assert {"name", "studies", *own_parameters(notebook)} <= set(values)
    assert {key: value for key, value in values.items() if defaults.get(key, "unknown") != value} == {}


@every_notebook
def test_every_parameter_tells_what_it_is_and_where_it_comes_from(name):
    source = parameters(read(name))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    lines = {line.lineno: line.targets[0].id for line in ast.parse(source).body}
    assert [key for number, key in lines.items() if not SOURCE.match(comments.get(number, ""))] == []


@every_notebook
def test_it_holds_no_outputs_and_nothing_of_a_machine(name):
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"  # the kernel of whatever environment runs it
    assert not re.search(r"/(home|Users|root|work|mnt)/", nbformat.writes(notebook))


@every_notebook
def test_cells_are_short_and_logic_lies_in_the_library(name):
    notebook = read(name)
    assert [cell.id for cell in notebook.cells if len(cell.source.splitlines()) > LONGEST_CELL] == []
    tree = ast.parse("\n".join(code(notebook)))
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imported if "mtvlib" not in ast.unparse(node)] == []


@every_notebook
def test_no_import_takes_the_name_of_a_parameter(name):
    """A parameter file sets all parameters before the first import, so `import cohort` would replace a path."""
    tree = ast.parse("\n".join(code(read(name))))
    bound = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert bound & set(Params.model_fields) == set()


def test_every_label_of_the_report_is_given_once(project):
    """Twice the same label stops the PDF, and a reference would lead to the wrong table."""
    code = "\n".join(cell.source for name in NAMES for cell in read(name).cells if cell.cell_type == "code")
    pages = "\n".join(path.read_text() for path in (project / "report").glob("*.qmd"))
    labels = re.findall(r'"((?:tbl|fig)-[\w-]+)"', code) + re.findall(r"\{#((?:tbl|fig)-[\w-]+)\}", pages)
    assert len(labels) > 40
    assert sorted(label for label in set(labels) if labels.count(label) > 1) == []


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_opens_with_a_message_where_there_is_no_study(name, tmp_path):
    import papermill

    done = papermill.execute_notebook(
        FOLDER / f"{name}.ipynb", tmp_path / "out.ipynb", {"folder": str(tmp_path / "nowhere")}, progress_bar=False
    )
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type in ("error", "stream")]
