import re
import stat

import pytest

from mtvlib.errors import InputError
from mtvlib.pseudonyms import open_key


def test_the_same_key_gives_the_same_names_and_another_key_others(tmp_path):
    first = open_key(tmp_path / "one.key")
    again, other = open_key(tmp_path / "one.key"), open_key(tmp_path / "other.key")
    assert first.of("DOE^JANE 4711") == again.of("DOE^JANE 4711")
    assert first.of("DOE^JANE 4711") != other.of("DOE^JANE 4711")
    assert first.of("P1") != first.of("P2")


def test_white_space_and_letter_case_do_not_make_another_patient(tmp_path):
    names = open_key(tmp_path / "key")
    assert names.of(" ab 12 ") == names.of("AB 12")


def test_names_are_safe_as_file_names_and_hold_nothing_of_the_identifier(tmp_path):
    name = open_key(tmp_path / "key").of("../DOE^JANE")
    assert re.fullmatch(r"p[a-z2-7]{10}", name)
    assert "doe" not in name


def test_the_key_holds_no_patient_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "folder" / "key"
    open_key(path).of("DOE^JANE")
    assert re.fullmatch(r"[0-9a-f]{64}\n", path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff\xfe", b"00" * 31])
def test_what_is_no_key_is_an_error_and_stays(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(InputError, match="another key"):
        open_key(path)
    assert path.read_bytes() == content
