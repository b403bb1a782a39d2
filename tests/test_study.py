import json

import pandas as pd
import pytest

from mtvlib.errors import InputError
from mtvlib.params import Params, write
from mtvlib.study import Study, check_folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notebook(*cells, **variables):
    """What `globals()` holds in a notebook after cells of code."""
    return {"In": ["", *cells], "Out": {}, "exit": None, **variables}


def test_parameters_come_from_cells_of_plain_assignments(here):
    study = Study.from_notebook(notebook("name = 'x'\nepochs = 7", "import os", name="x", epochs=7, other=3))
    assert (study.params.name, study.params.epochs) == ("x", 7)
    assert study.params.batch_size == Params().batch_size


def test_the_last_cell_wins_as_with_papermill(here):
    study = Study.from_notebook(notebook("epochs = 200", "# Parameters\nepochs = 3", epochs=3))
    assert study.params.epochs == 3


def test_an_unknown_parameter_fails_with_its_name(here):
    with pytest.raises(InputError, match="unknown parameter 'epoch', did you mean 'epochs'"):
        Study.from_notebook(notebook("epoch = 3", epoch=3))


def test_a_wrong_value_fails_with_its_name(here):
    with pytest.raises(InputError, match="batch_size = 'many'"):
        Study.from_notebook(notebook("batch_size = 'many'", batch_size="many"))


def test_own_parameters_are_kept_apart(here):
    study = Study.from_notebook(notebook("fold = 3", fold=3), fold=0)
    assert study.own == {"fold": 3}
    assert Study.from_notebook(notebook(""), fold=0).own == {"fold": 0}


def test_a_study_is_found_from_the_notebooks_folder_too(here, monkeypatch):
    write(Params(name="x", epochs=5), here / "studies" / "x" / "params.yml")
    (here / "notebooks").mkdir()
    monkeypatch.chdir(here / "notebooks")
    study = Study.from_notebook(notebook("name = 'x'", name="x"))
    assert study.params.epochs == 5
    assert study.folder.resolve() == here / "studies" / "x"


def test_defaults_follow_the_study_and_other_differences_are_refused(here):
    write(Params(name="x", epochs=5), here / "studies" / "x" / "params.yml")
    default = notebook("name = 'x'\nepochs = 200", name="x", epochs=200)
    assert Study.from_notebook(default).params.epochs == 5
    with pytest.raises(InputError, match="epochs is 7 here, 5 there"):
        Study.from_notebook(notebook("name = 'x'\nepochs = 7", name="x", epochs=7))


def test_a_value_given_to_papermill_is_no_default_even_if_it_is_the_papers(here):
    write(Params(name="x", epochs=5), here / "studies" / "x" / "params.yml")
    given = ("name = 'paper'\nepochs = 200", "# Parameters\nname = 'x'\nepochs = 200")
    with pytest.raises(InputError, match="epochs is 200 here, 5 there"):
        Study.from_notebook(notebook(*given, name="x", epochs=200))


def test_a_moved_study_is_the_same_study(here):
    write(Params(name="x", epochs=5), here / "elsewhere" / "y" / "params.yml")
    study = Study.open(here / "elsewhere" / "y")
    assert (study.params.name, study.params.epochs) == ("y", 5)
    assert study.folder == here / "elsewhere" / "y"


def test_what_is_no_study_is_refused(here):
    with pytest.raises(InputError, match=r"no params\.yml"):
        Study.open(here)
    (here / "taken").mkdir()
    check_folder(here / "taken")
    (here / "taken" / "letter.txt").touch()
    with pytest.raises(InputError, match="is not a study"):
        check_folder(here / "taken")
    with pytest.raises(InputError, match="in the way"):
        check_folder(here / "taken" / "letter.txt")


def test_what_is_not_there_yet_names_the_step(here):
    study = Study(Params(name="x"))
    with pytest.raises(InputError, match="1_cohort writes it"):
        _ = study.cohort
    with pytest.raises(InputError, match="the evaluation writes it"):
        _ = study.summary


def test_names_like_numbers_stay_text(here):
    study = Study(Params(name="x"))
    study.write_cohort(pd.DataFrame({"patient": ["007"], "site": ["01"], "synthetic": [1]}))
    assert study.cohort["patient"].tolist() == ["007"]
    assert study.cohort["site"].tolist() == ["01"]
    assert study.synthetic


@pytest.mark.parametrize(("column", "synthetic"), [(["1", ""], True), (["0", "0"], False), (None, False)])
def test_one_phantom_makes_a_study_synthetic(here, column, synthetic):
    study = Study(Params(name="x"))
    study.write_cohort(pd.DataFrame({"patient": ["a", "b"]} | ({"synthetic": column} if column else {})))
    assert study.synthetic is synthetic


def test_the_papers_values_are_the_published_ones(shared):
    assert Study(Params()).paper == json.loads((shared / "paper" / "results.json").read_text())
