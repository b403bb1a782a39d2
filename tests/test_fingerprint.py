import json

from mtvlib import fingerprint


def test_a_module_stands_with_all_that_it_imports():
    modules = fingerprint.closure("mtvlib.training")
    assert {"mtvlib.network", "mtvlib.patching", "mtvlib.params", "mtvlib.errors"} <= modules
    assert not {"mtvlib.figures", "mtvlib.report", "mtvlib.evaluation"} & modules


def test_no_early_step_depends_on_how_results_look():
    """Or a change of a figure's colour would train all folds again."""
    for module in ("mtvlib.prepare", "mtvlib.training", "mtvlib.inference", "mtvlib.evaluation"):
        assert not {"mtvlib.figures", "mtvlib.tables", "mtvlib.show", "mtvlib.viewer"} & fingerprint.closure(module)


def test_a_notebooks_hash_follows_its_cells_and_not_its_outputs(tmp_path):
    def write(source, outputs):
        cell = {"cell_type": "code", "source": [source], "outputs": outputs, "metadata": {}}
        (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
        return fingerprint.of_notebook(tmp_path / "a.ipynb")

    first = write("from mtvlib import metrics", [])
    assert write("from mtvlib import metrics", [{"text": "x"}]) == first
    assert write("from mtvlib import metrics  # y", []) != first
