"""Uploads that the gateway has written to files: their bodies do not pass through TorchServe.

The gateway posts a JSON object that names the files. TorchServe would keep a body in Java's heap, and hand it to the
worker at each call. When the gateway removes a file, the request is cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audio.source import MappedFile
from ..errors import InvalidRequest

KEY = "whisper_spool"
"""The one field of the JSON object."""
_TOKEN = re.compile(r"[0-9a-f]{32}")
"""The name of a file: 128 random bits, so that only the gateway can know it."""


@dataclass(frozen=True, slots=True)
class SpooledRequest:
    """A request whose uploads are files. `fields` and `headers` are those of the client's request."""

    fields: Mapping[str, Any]
    headers: Mapping[str, Any]
    files: tuple[Path, ...]

    @property
    def is_gone(self) -> bool:
        """Whether the gateway has cancelled the request."""
        return not all(file.exists() for file in self.files)


def message(fields: Mapping[str, Any], headers: Mapping[str, str], uploads: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The JSON object for a request. `uploads`: the names of the files by field."""
    return {KEY: {"fields": fields, "headers": headers, "uploads": {name: list(tokens) for name, tokens in uploads.items()}}}


def unpack(fields: Mapping[str, Any], headers: Mapping[str, Any], folder: Path) -> SpooledRequest | None:
    """The request that a row of TorchServe describes; None when the row is an ordinary request.

    Raises InvalidRequest when it names files that are not in `folder`.
    """
    body = fields.get("body")
    if not (isinstance(body, Mapping) and KEY in body):
        return None
    try:
        content = body[KEY]
        uploads: dict[str, Any] = {}
        files: list[Path] = []
        for name, tokens in content["uploads"].items():
            paths = [_file(token, folder) for token in tokens]
            views = [MappedFile.view(path) for path in paths]
            uploads[name] = views[0] if len(views) == 1 else views
            files += paths
        texts = {name: value for name, value in headers.items() if name.lower() == "url_path"}
        return SpooledRequest({**content["fields"], **uploads}, {**content["headers"], **texts}, tuple(files))
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        raise InvalidRequest(f"{KEY} is for the gateway only: send the recording itself", param=KEY) from None


def _file(token: str, folder: Path) -> Path:
    if not _TOKEN.fullmatch(token):
        raise ValueError
    return folder / token
