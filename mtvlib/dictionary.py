"""The data dictionary of results/: what each column of its tables means, and in which unit it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

import pandas as pd
import yaml

from mtvlib.classes import TARGETS
from mtvlib.files import write_text

FILE = "dictionary.csv"
PLACES = {"target": "|".join(TARGETS), "source": "man|cnn"}
ENDS = {"_low": "lower", "_high": "upper"}


@cache
def _entries() -> dict[str, dict[str, tuple[str, str]]]:
    text = resources.files("mtvlib").joinpath("data/dictionary.yml").read_text(encoding="utf-8")
    return {
        file: {name: (unit, meaning) for name, (unit, meaning) in columns.items()}
        for file, columns in yaml.safe_load(text)["columns"].items()
    }


def describe(file: str, column: str) -> tuple[str, str] | None:
    """Unit and meaning of a column of a table in results/; None if the dictionary has none.

    `x_low` and `x_high` are the ends of the 95 % interval of `x`.
    """
    for table in (_entries().get(file, {}), _entries()["*"]):
        for pattern, (unit, meaning) in table.items():
            if re.fullmatch(_as_expression(pattern), column):
                return unit, meaning
    for end, word in ENDS.items():
        of = describe(file, column.removesuffix(end)) if column.endswith(end) else None
        if of:
            return of[0], f"{word} end of the 95 % interval: {of[1]}"
    return None


def _as_expression(pattern: str) -> str:
    """`dsc_{target}` as a regular expression."""
    return re.sub(r"\{(\w+)\}", lambda place: f"(?:{PLACES[place.group(1)]})", pattern)


def rows(results: Path) -> Iterator[dict[str, str]]:
    """A row for each column of each table there is: file, column, unit, meaning."""
    for path in sorted(results.glob("*.csv")):
        if path.name == FILE:
            continue
        for column in pd.read_csv(path, nrows=0).columns:
            unit, meaning = describe(path.name, column) or ("", "")
            yield {"file": path.name, "column": column, "unit": unit, "meaning": meaning}


def write(results: str | Path) -> Path:
    """Write `dictionary.csv` beside the tables of a folder of results."""
    results = Path(results)
    table = pd.DataFrame(list(rows(results)), columns=["file", "column", "unit", "meaning"])
    write_text(results / FILE, table.to_csv(index=False))
    return results / FILE
