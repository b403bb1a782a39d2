"""The log of what an import took and left out."""

import pandas as pd
import pytest

from mtvlib.import_log import COLUMNS, ImportLog


@pytest.fixture
def log():
    log = ImportLog()
    log.add("P1", "pet", "imported", "", "P1/pet.nii.gz")
    log.add("P1", "ct", "left out", "no_ct", 'is not there, or "lost"')
    log.add("", "notes.nii.gz", "left out", "not_used", "belongs to nobody", series=7)
    return log


def test_a_line_for_each_thing_in_the_order_in_which_it_was_met(log, tmp_path):
    log.write(tmp_path / "new" / "import_log.csv")
    table = pd.read_csv(tmp_path / "new" / "import_log.csv", keep_default_na=False, dtype=str)
    assert list(table.columns) == [*COLUMNS, "series"]
    assert table.values.tolist() == [
        ["P1", "pet", "imported", "", "P1/pet.nii.gz", ""],
        ["P1", "ct", "left out", "no_ct", 'is not there, or "lost"', ""],
        ["", "notes.nii.gz", "left out", "not_used", "belongs to nobody", "7"],
    ]


def test_what_was_left_out_is_counted_by_code(log):
    assert (log.left_out(), log.left_out("no_ct"), log.left_out("no_pet")) == (2, 1, 0)


@pytest.mark.parametrize(("code", "message"), [("", "is not there"), ("no_ct", "")])
def test_nothing_is_left_out_without_a_reason(code, message):
    with pytest.raises(ValueError, match="ct is left out without a reason"):
        ImportLog().add("P1", "ct", "left out", code, message)


def test_an_empty_log_still_names_its_columns(tmp_path):
    ImportLog().write(tmp_path / "import_log.csv")
    assert (tmp_path / "import_log.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_the_same_log_stays_untouched_and_another_one_replaces_it(log, tmp_path):
    path = tmp_path / "import_log.csv"
    log.write(path)
    before = path.stat().st_mtime_ns
    log.write(path)
    assert path.stat().st_mtime_ns == before
    log.add("P2", "pet", "imported", "", "P2/pet.nii.gz")
    log.write(path)
    assert "P2" in path.read_text()
