"""The data dictionary: every column that a study writes is in it."""

import pandas as pd
import pytest

from mtvlib import dictionary
from mtvlib.files import write_text


@pytest.mark.parametrize(
    ("file", "column", "unit", "words"),
    [
        ("patients.csv", "mtv_nodes_cnn_ml", "ml", "metabolic tumour volume"),
        ("patients.csv", "hd95_all_mm", "mm", "Hausdorff"),
        ("lesions.csv", "coverage", "", "share of the lesion's voxels"),
        ("lesion_choices.csv", "coverage", "", "covered share that makes a lesion found"),
        ("froc.csv", "sensitivity_low", "", "lower end of the 95 % interval: share of reference lesions found"),
    ],
)
def test_a_column_has_unit_and_meaning(file, column, unit, words):
    found = dictionary.describe(file, column)
    assert found is not None
    assert found[0] == unit
    assert words in found[1]


def test_an_unknown_column_has_none():
    assert dictionary.describe("patients.csv", "shoe_size") is None
    assert dictionary.describe("patients.csv", "shoe_size_low") is None
    assert dictionary.describe("patients.csv", "dsc_brain") is None


def test_the_file_lists_the_columns_of_the_tables_that_there_are(tmp_path):
    write_text(tmp_path / "froc.csv", "partition,threshold\n")
    write_text(tmp_path / "own.csv", "unknown\n")
    dictionary.write(tmp_path)
    dictionary.write(tmp_path)  # is not part of itself
    table = pd.read_csv(tmp_path / dictionary.FILE, keep_default_na=False)
    assert table[["file", "column"]].to_numpy().tolist() == [
        ["froc.csv", "partition"],
        ["froc.csv", "threshold"],
        ["own.csv", "unknown"],
    ]
    assert table["meaning"].tolist()[0] == "cross_validation or external_testing"
    assert table["meaning"].tolist()[2] == ""
