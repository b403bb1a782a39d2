"""import_log.csv: what an import took and what it left out, with a reason for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mtvlib.files import write_text

COLUMNS = ("patient", "item", "decision", "code", "message")
Decision = Literal["imported", "left out"]


class ImportLog:
    """One line for each thing that an import met, in the order in which it was met.

    `patient` is the pseudonym ('' where the thing belongs to nobody), `item` what it is (pet, ct, reference, a file, a
    column), `decision` imported or left out, `code` the reason in a form that can be counted ('' where nothing needs
    one), `message` the same for a reader. Further columns, for instance of a DICOM series, follow these five.
    """

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, patient: str, item: str, decision: Decision, code: str, message: str, **more: Any) -> None:
        """Note one thing; everything left out needs a code and a message."""
        if decision == "left out" and not (code and message):
            raise ValueError(f"{item} is left out without a reason")
        self.lines.append(dict(zip(COLUMNS, (patient, item, decision, code, message), strict=True)) | more)

    def left_out(self, code: str | None = None) -> int:
        """How many things were left out, all or those with this code."""
        return sum(line["decision"] == "left out" and code in (None, line["code"]) for line in self.lines)

    def write(self, path: Path) -> None:
        """Write the log as a table, atomically; a file that holds the same already stays untouched."""
        more = [name for line in self.lines for name in line if name not in COLUMNS]
        columns = [*COLUMNS, *dict.fromkeys(more)]
        # As objects: a column of numbers with gaps would become one of fractions.
        table = pd.DataFrame(self.lines, columns=columns, dtype=object).to_csv(index=False)
        if not (path.exists() and path.read_text(encoding="utf-8") == table):
            write_text(path, table)
