"""API keys: who may ask, and how much.

`python -m gateway.keys NAME` makes a key and prints the entry for the file. The file is YAML:

    keys:
      - name: alice
        sha256: "9f86d081…"          # of the key; the key itself is nowhere
        requests_per_minute: 60      # each limit is optional
        audio_seconds_per_day: 36000
        open_requests: 4
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from whispercore.errors import ConfigurationError

from .refusals import Unauthorized

PREFIX = "wk-"
"""Keys begin with it, so that scanners for leaked secrets can know them."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """`name` appears in metrics and logs. A limit of 0 is none."""

    name: str
    sha256: str = ""
    requests_per_minute: int = 0
    audio_seconds_per_day: float = 0.0
    open_requests: int = 0


class Keys:
    """The keys of a file. A changed file is read again; a broken one leaves the old keys in force."""

    def __init__(self, file: Path) -> None:
        """Raises ConfigurationError when the file cannot be used."""
        self._file = file
        self._changed = _changed(file)
        self._keys = read_keys(file)

    def __len__(self) -> int:
        return len(self._keys)

    def reload(self) -> str:
        """Read the file when it has changed. Returns what is wrong with it, or ""."""
        try:
            if (changed := _changed(self._file)) != self._changed:
                self._keys, self._changed = read_keys(self._file), changed
        except ConfigurationError as error:
            return error.message
        return ""

    def check(self, authorization: str) -> Key:
        """The key in an Authorization header, `Bearer KEY`. Raises Unauthorized.

        Every key of the file is compared, in constant time, so that the time tells nothing of which ones exist.
        """
        scheme, _, presented = authorization.partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise Unauthorized("this server needs an API key: send the header Authorization: Bearer KEY", code="missing_api_key")
        digest = hashlib.sha256(presented.strip().encode(errors="replace")).hexdigest()
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if not found:
            raise Unauthorized("the API key is not known here: check it, or ask the operator of this server for one")
        return found[0]


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises ConfigurationError with the place of the fault."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        entries = content["keys"]
    except OSError as error:
        raise ConfigurationError(f"the API keys {file} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise ConfigurationError(f"{file} must be YAML with a list `keys`: python -m gateway.keys NAME prints an entry") from None
    if not isinstance(entries, list | None):
        raise ConfigurationError(f"{file}: `keys` must be a list: python -m gateway.keys NAME prints an entry")
    keys = tuple(_key(entry, number, file) for number, entry in enumerate(entries or [], start=1))
    names = [key.name for key in keys]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"{file}: two keys have the name {repeated}")
    return keys


def new_key() -> str:
    """A random key of 256 bits. Its SHA-256 needs no salt: it cannot be guessed from a list of likely keys."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """What the file has of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _key(entry: Any, number: int, file: Path) -> Key:
    place = f"{file}, key {number}"
    known = {item.name for item in fields(Key)}
    if not isinstance(entry, dict) or (unknown := set(entry) - known):
        detail = f"has the unknown field {sorted(map(str, unknown))[0]}" if isinstance(entry, dict) else "is no mapping"
        raise ConfigurationError(f"{place} {detail}; known are {', '.join(sorted(known))}")
    name, sha256 = entry.get("name"), entry.get("sha256")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):  # YAML reads yes and 007 as other types
        raise ConfigurationError(f"{place}: name must be 1 to 64 letters, digits, dots, dashes or underscores, a number in quotes")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ConfigurationError(f"{place}: sha256 must be 64 hexadecimal digits in quotes, as python -m gateway.keys NAME prints them")
    for option in ("requests_per_minute", "audio_seconds_per_day", "open_requests"):
        limit = entry.get(option, 0)
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < float("inf"):
            raise ConfigurationError(f"{place}: {option} must be a number of at least 0")
    return Key(**entry)


def _changed(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigurationError(f"the API keys {file} cannot be read ({error.strerror})") from None
    return status.st_mtime_ns, status.st_ino


def main(arguments: list[str]) -> int:
    """Make a key: print it on standard error, and its entry for the file on standard output."""
    if len(arguments) != 1 or not _NAME.fullmatch(arguments[0]):
        print("usage: python -m gateway.keys NAME >> keys.yaml (letters, digits, dots, dashes, underscores)", file=sys.stderr)
        return 2
    key = new_key()
    print(f"the key, shown only now: {key}", file=sys.stderr)
    print(f'  - name: {arguments[0]}\n    sha256: "{digest_of(key)}"')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
