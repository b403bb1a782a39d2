"""The reading room's own widgets: they bring their scripts along and fetch nothing."""

import re

import pytest

from mtvlib.panels import Picture, Table


@pytest.mark.parametrize("widget", [Picture, Table])
def test_scripts_and_styles_travel_with_the_widget_and_fetch_nothing(widget):
    made = widget()
    assert "export function render" in made._esm
    assert "." + {Picture: "mtv-picture-box", Table: "mtv-table-box"}[widget] in made._css
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|\bimport\b|\bfetch\(", made._esm + made._css)


def test_what_the_browser_must_know_is_synchronised():
    for widget, names in (
        (Picture, {"picture", "title", "letters", "ratio", "size", "lines", "cross", "light"}),
        (Table, {"heads", "rows", "chosen", "sorted", "label"}),
    ):
        made = widget()
        assert names <= set(made.keys)
        read = set(re.findall(r'model\.get\("(\w+)"\)', made._esm))
        assert read == names - ({"letters"} - read)
