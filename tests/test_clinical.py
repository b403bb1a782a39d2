import pandas as pd
import pytest

from mtvlib.clinical import read_table
from mtvlib.errors import InputError
from mtvlib.suv import Clinical

ROWS = {
    "Patient ID": ["HN-1", "hn-2 "],
    "Age": ["61", ""],
    "death": ["1", "0"],
    "Followup Months": ["12.5", "40"],
    "weight_kg": ["70,5", ""],
    "Birth date": ["1950-01-02", ""],
}


def write(path, rows=ROWS):
    table = pd.DataFrame(rows)
    table.to_excel(path, index=False) if path.suffix == ".xlsx" else table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.xlsx"])
def test_a_row_is_found_by_the_identifier_whatever_its_case(tmp_path, name):
    table = read_table(write(tmp_path / name))
    assert table.kept("hn-1") == {"age": "61", "death": "1", "followup_months": "12.5"}
    assert table.kept("HN-2") == {"age": "", "death": "0", "followup_months": "40"}
    assert table.kept("HN-3") == {"age": "", "death": "", "followup_months": ""}


def test_what_may_tell_who_a_patient_is_stays_in_the_table(tmp_path):
    assert read_table(write(tmp_path / "t.csv")).dropped == ("birth date",)


def test_values_for_suv_come_as_numbers(tmp_path):
    table = read_table(write(tmp_path / "t.csv"))
    assert table.for_suv("HN-1") == Clinical(weight_kg=70.5)
    assert table.for_suv("HN-2") == Clinical()


def test_no_table_is_a_table_without_rows():
    table = read_table(None)
    assert table.kept("HN-1") == {}
    assert table.for_suv("HN-1") == Clinical()


def test_a_sheet_of_explanations_is_passed_over(tmp_path):
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as writer:
        pd.DataFrame({"Read me": ["units are months"]}).to_excel(writer, sheet_name="notes", index=False)
        pd.DataFrame(ROWS).to_excel(writer, sheet_name="patients", index=False)
    assert read_table(path).kept("HN-1")["age"] == "61"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"Name": ["x"]}, "no column of patients"),
        ({"patient": ["A", "a"]}, "row 3: a patient of an earlier row"),
        ({"patient": ["A"], "weight_kg": ["heavy"]}, "row 2: weight_kg is no number"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(tmp_path, rows, words):
    with pytest.raises(InputError, match=words):
        read_table(write(tmp_path / "t.csv", rows))


@pytest.mark.parametrize("content", [None, b"PK\x03\x04broken"])
def test_a_missing_or_damaged_table_is_one_error(tmp_path, content):
    path = tmp_path / "t.xlsx"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.xlsx"):
        read_table(path)
