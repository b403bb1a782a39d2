"""Writing files so that a kill, a full disk or a second reader never meets half of one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from mtvlib.errors import InputError, WorkError

_SYSTEM_ERROR = re.compile(
    r"\(os error (\d+)\)"
)  # how libraries written in Rust, such as safetensors, end their message


def read_table(path: str | Path, dtype: Any = None) -> pd.DataFrame:
    """A table that this package wrote: numbers to the last bit, names like 007 as text, only empty cells missing.

    pandas alone would take a patient or a site called NA for a missing one. Raises `InputError` if it is damaged.
    """
    text = {"patient": str, "site": str, "person": str}
    try:
        return pd.read_csv(
            path, dtype=dtype or text, keep_default_na=False, na_values=[""], float_precision="round_trip"
        )
    except (ValueError, OSError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"is no readable table ({what})", file=path, remedy="delete it and run again.") from None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffixes); on success it replaces `path` in one step.

    If the block raises, `path` is as it was. A full disk or a missing permission becomes a `WorkError`, also where a
    library tells of it by an error of its own.
    """
    path = Path(path)
    # The suffix is kept because image writers choose the format by it.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        why = _system_error(error)
        if why is None:
            raise
        raise WorkError(
            f"could not be written: {why}",
            file=path,
            remedy="free disk space or check the folder's permissions, then run the same command again; "
            "finished work is kept.",
        ) from error
    finally:
        with suppress(OSError):  # what went wrong is told already
            temporary.unlink(missing_ok=True)


def _system_error(error: Exception) -> str | None:
    """What the operating system refused, in its own words; None if it was something else that went wrong."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = _SYSTEM_ERROR.search(str(error))
    return os.strerror(int(found.group(1))) if found else None


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON; NaN and infinities become null, since they are not JSON."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):  # numpy scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sha256(path: str | Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
