"""The user's table of patients: outcomes and staging for cohort.csv, and what a PET's header may lack for SUV."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mtvlib.errors import InputError
from mtvlib.suv import Clinical

PATIENT = ("patient", "patientid", "patient id", "patient_id", "patient #", "patient no", "id", "tcia code", "subject")
# What goes into cohort.csv. Everything else may tell who a patient is, so it stays in the user's table.
KEPT = (
    *("cohort", "site", "exclusion", "survival_eligible", "followup_months", "death"),
    *("age", "sex", "tumour_site", "stage", "hpv"),
)
FOR_SUV = ("weight_kg", "height_cm", "sex", "dose_mbq", "injection_time")


@dataclass(frozen=True)
class ClinicalTable:
    """Rows by patient identifier, as text; `dropped` names the columns that are not used."""

    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def row(self, patient: str) -> Mapping[str, str] | None:
        return self.rows.get(_plain(patient))

    def for_suv(self, patient: str) -> Clinical:
        """What the table says in place of the header; a cell that is no number is an error (`read_table`)."""
        row = self.row(patient) or {}
        numbers = {name: _number(row.get(name, "")) for name in ("weight_kg", "height_cm", "dose_mbq")}
        return Clinical(**numbers, sex=row.get("sex") or None, injection_time=row.get("injection_time") or None)

    def kept(self, patient: str) -> dict[str, str]:
        """The patient's columns for cohort.csv."""
        row = self.row(patient) or {}
        return {name: row.get(name, "") for name in KEPT if name in self.columns}


def read_table(path: Path | None) -> ClinicalTable:
    """Read a .csv or .xlsx table with one row a patient (of an .xlsx, every sheet that has a column of patients).

    A column of patients is named `patient`, `PatientID` or the like and holds the source's own identifiers. Columns
    `KEPT` and `FOR_SUV` are used, whatever their letter case. Raises `InputError` for a table without patients, one
    patient in two rows, or a weight, height, dose or time that is none; patients are named by their row.
    """
    if path is None:
        return ClinicalTable()
    tables = [_with_patients(table) for table in _tables(Path(path))]
    found = [table for table in tables if table is not None]
    if not found:
        remedy = "name one column `patient`, with the identifiers that the images have."
        raise InputError("has no column of patients", file=path, remedy=remedy)
    table = pd.concat(found).fillna("") if len(found) > 1 else found[0]
    rows = {_plain(row["patient"]): row for row in table.to_dict("records") if row["patient"]}
    _check(table, path)
    columns = [str(name) for name in table.columns]
    used = {"patient", *KEPT, *FOR_SUV}
    return ClinicalTable(rows, tuple(columns), tuple(name for name in columns if name not in used))


def _tables(path: Path) -> list[pd.DataFrame]:
    try:
        if path.suffix.lower() == ".xlsx":
            return list(pd.read_excel(path, sheet_name=None, dtype=str, na_filter=False, engine="openpyxl").values())
        with open(path, encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)  # spreadsheets in many languages write the latter two
        return [pd.read_csv(path, dtype=str, na_filter=False, sep=separator, encoding="utf-8-sig")]
    except FileNotFoundError:
        raise InputError("there is no such table", file=path, remedy="correct the path.") from None
    except (OSError, ValueError, KeyError, pd.errors.ParserError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"cannot be read as a table ({what})", file=path, remedy="save it as CSV UTF-8.") from None
    except Exception as error:  # of a damaged .xlsx: zipfile, xml, openpyxl
        what = type(error).__name__
        raise InputError(f"cannot be read as a table ({what})", file=path, remedy="save it as CSV UTF-8.") from None


def _with_patients(table: pd.DataFrame) -> pd.DataFrame | None:
    """The table with plain lower-case names of columns and a column `patient`; None if it has no patients."""
    table = table.rename(columns={name: _column(str(name)) for name in table.columns})
    patient = next((name for name in PATIENT if name in table.columns), None)
    if patient is None:
        return None
    table = table.rename(columns={patient: "patient"}).loc[:, lambda one: ~one.columns.duplicated()]
    return table.map(lambda cell: str(cell).strip())


def _column(name: str) -> str:
    plain = " ".join(name.split()).casefold()
    underscored = re.sub(r"[ \-]+", "_", plain)
    return underscored if underscored in {*KEPT, *FOR_SUV} else plain


def _plain(patient: Any) -> str:
    return " ".join(str(patient).split()).casefold()


def _number(text: str) -> float | None:
    try:
        return float(str(text).replace(",", "."))
    except ValueError:
        return None


def _check(table: pd.DataFrame, path: Path | str) -> None:
    numbers = [name for name in ("weight_kg", "height_cm", "dose_mbq") if name in table]
    wrong = [
        f"row {row}: {name} is no number"
        for row, values in enumerate(table.to_dict("records"), start=2)
        for name in numbers
        if values[name] and _number(values[name]) is None
    ]
    names = table["patient"].map(_plain)
    wrong += [
        f"row {row + 2}: a patient of an earlier row"
        for row, twice in enumerate(names[names != ""].duplicated())
        if twice
    ]
    if wrong:
        raise InputError("; ".join(wrong), file=path, remedy="correct these cells.")
