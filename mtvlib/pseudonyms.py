"""Pseudonyms that are the same at every import and tell nothing: a keyed hash of what the source calls a patient.

The key is a file that stays with the user. It holds no patient; with it and an identifier the pseudonym can be computed
again, without it nobody can go from one to the other (HMAC-SHA-256, 50 bits of it in a name).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from mtvlib.errors import InputError
from mtvlib.files import atomic_path

_LENGTH = 10  # characters of five bits each


@dataclass(frozen=True)
class Pseudonyms:
    """Names for patients, and marks for other identifiers such as UIDs, under one key."""

    key: bytes

    def of(self, identifier: str) -> str:
        """The pseudonym of a patient's identifier; white space and letter case do not matter."""
        return "p" + self.mark(" ".join(identifier.split()).casefold())

    def mark(self, text: str) -> str:
        digest = hmac.new(self.key, text.encode(), hashlib.sha256).digest()
        return base64.b32encode(digest).decode().lower()[:_LENGTH]


def open_key(path: Path) -> Pseudonyms:
    """The pseudonyms under the key in a file, which is made where there is none (readable by its owner alone)."""
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        raise _no_key(path) from None
    if len(key) != 32:
        raise _no_key(path)
    return Pseudonyms(key)


def _no_key(path: Path) -> InputError:
    remedy = "name the key of the earlier import, or a new file; with another key all pseudonyms change."
    return InputError("is not a key for pseudonyms", file=path, remedy=remedy)
