"""The demonstration's report in docs/demo: small, whole, and without a trace of the computer that made it."""

import re
from pathlib import Path

DEMO = Path(__file__).resolve().parents[1] / "docs" / "demo"


def test_it_is_small():
    sizes = [path.stat().st_size for path in DEMO.rglob("*") if path.is_file()]
    assert sum(sizes) < 5_000_000
    assert max(sizes) < 2_000_000


def test_every_file_that_the_page_names_lies_beside_it_and_no_other_is_fetched():
    page = (DEMO / "report.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="((?:report_files|viewers)/[^"#]+)"', page))
    named |= set(re.findall(r"viewers/[\w.-]+\.js", page))
    assert len(named) > 20
    assert [name for name in named if not (DEMO / name).exists()] == []
    assert not re.search(r"""src=["']https?:|@import|url\(""", page)


def test_it_says_that_patients_are_synthetic_and_names_no_place():
    page = (DEMO / "report.html").read_text(encoding="utf-8")
    assert "computed phantoms" in page
    assert "synthetic patients, no clinical claim" in page
    assert not re.search(r"/(home|root|tmp|Users)/", page)
