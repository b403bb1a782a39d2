"""The errors a user meets: what is wrong, where, with which value, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class MtvError(Exception):
    """Anything this package raises on purpose; the command line shows it as one paragraph."""

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        patient: str | None = None,
        file: str | Path | None = None,
        value: Any = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.patient, self.file, self.value, self.remedy = problem, patient, file, value, remedy
        super().__init__(problem)

    def __str__(self) -> str:
        where = [f"patient {self.patient}"] if self.patient is not None else []
        where += [f"file {self.file}"] if self.file is not None else []
        text = (", ".join(where) + ": " if where else "") + self.problem.rstrip(".")
        text += f" (found: {self.value})" if self.value is not None else ""
        return text + "." + (f" Remedy: {self.remedy}" if self.remedy else "")


class InputError(MtvError, ValueError):
    """Bad input or usage; nothing was computed and nothing was written."""

    exit_code = 2


class Refusal(InputError):  # noqa: N818
    """Input that was understood and turned down; `code` names the reason in a way that programs and logs can count."""

    def __init__(self, code: str, problem: str, **where: Any) -> None:
        super().__init__(problem, **where)
        self.code = code


class WorkError(MtvError, RuntimeError):
    """The input was sound, but the work could not be finished (full disk, divergence, a failed step)."""
