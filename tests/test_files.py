import errno
import json
import os

import numpy as np
import pytest

from mtvlib.errors import InputError, WorkError
from mtvlib.files import atomic_path, read_table, sha256, write_json, write_text


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"a\.txt.*No space left on device.*free disk space") as error:
        write_text(path, "new")
    assert error.value.exit_code == 1
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_that_a_library_tells_of_is_said_too(tmp_path):
    class RustError(Exception):
        pass

    said = r"a\.st: could not be written: No space left on device\. Remedy: free disk space"
    with pytest.raises(WorkError, match=said), atomic_path(tmp_path / "a.st"):
        raise RustError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RustError), atomic_path(tmp_path / "a.st"):
        raise RustError("dtype not understood")
    assert os.listdir(tmp_path) == []


def test_temporary_files_keep_the_suffix(tmp_path):
    with atomic_path(tmp_path / "image.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.touch()


def test_json_has_null_for_what_is_not_a_number(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [np.float32("inf"), np.int64(3)], 1: np.float64(0.5)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 3], "1": 0.5}


def test_sha256_of_the_standards_example(tmp_path):
    """FIPS 180-2, appendix B.1: the message "abc"."""
    (tmp_path / "a").write_text("abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_error_says_where_what_and_what_to_do():
    error = InputError(
        "maximum is too high for SUV", patient="P7", file="p7_pet.nii.gz", value=31000, remedy="convert it."
    )
    assert (
        str(error) == "patient P7, file p7_pet.nii.gz: maximum is too high for SUV (found: 31000). Remedy: convert it."
    )
    assert error.exit_code == 2


def test_a_table_keeps_names_as_text_and_only_empty_cells_are_missing(tmp_path):
    write_text(tmp_path / "x.csv", "patient,site,dsc\n007,NA,0.1\nNA,,\n")
    table = read_table(tmp_path / "x.csv")
    assert table["patient"].tolist() == ["007", "NA"]
    assert table["site"].tolist()[0] == "NA"
    assert table["site"].isna().tolist() == [False, True]
    assert table["dsc"].isna().tolist() == [False, True]


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n1,2,3\n", b"\xff\xfe\x00"])
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.csv: is no readable table"):
        read_table(tmp_path / "x.csv")
