"""The summary's pictures are those of the chapters, and say where they come from."""

import base64
import io

import pytest
from PIL import Image

from mtvlib.report_pictures import summary_pictures, write_picture


def png(colour: str, size: tuple[int, int] = (1500, 300)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def figure(label: str, caption: str, colour: str = "red") -> dict:
    about = {"mtv": {"label": label, "caption": caption, "alt": f"alt of {label}"}}
    output = {"output_type": "display_data", "data": {"image/png": png(colour)}, "metadata": about}
    return {"cell_type": "code", "outputs": [output]}


CHAPTERS = {
    "7_survival": {"cells": [figure("fig-survival-external", "External."), figure("fig-survival-cross", "Cross.")]},
    "8_cases": {
        "cells": [
            figure("fig-viewer", "best DSC of all lesions, in the viewer"),
            figure("fig-case-1", "Patient a: best DSC of all lesions (0.93).", "green"),
            figure("fig-case-5", "Patient e: best DSC of all lesions (0.90).", "blue"),
            figure("fig-case-9", "Patient w: missed node; lowest DSC of all lesions (0.10).", "black"),
        ]
    },
}


def test_survival_of_the_cross_validation_and_the_first_patient_of_each_rule():
    found = summary_pictures(CHAPTERS, "pictures", "webp")
    assert [(one.label, one.source, one.path) for one in found] == [
        ("fig-summary-survival", "fig-survival-cross", "pictures/summary-survival.webp"),
        ("fig-summary-best", "fig-case-1", "pictures/summary-best.webp"),
        ("fig-summary-worst", "fig-case-9", "pictures/summary-worst.webp"),
    ]
    assert (found[1].caption, found[1].alt) == ("Patient a: best DSC of all lesions (0.93).", "alt of fig-case-1")


def test_without_cross_validation_the_external_survival_stands_in():
    only = {"7_survival": {"cells": CHAPTERS["7_survival"]["cells"][:1]}}
    assert [one.source for one in summary_pictures(only, "p", "png")] == ["fig-survival-external"]
    assert summary_pictures({}, "p", "png") == []


@pytest.mark.parametrize(("kind", "size"), [("webp", (1200, 240)), ("png", (1500, 300))])
def test_pages_get_small_pictures_and_print_gets_all(tmp_path, kind, size):
    picture = summary_pictures(CHAPTERS, "pictures", kind)[1]
    write_picture(picture, tmp_path)
    written = Image.open(tmp_path / "pictures" / f"summary-best.{kind}")
    assert written.size == size
    assert written.convert("RGB").getpixel((5, 5)) == pytest.approx((0, 128, 0), abs=6)
