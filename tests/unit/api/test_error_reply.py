"""Error replies and their status lines."""

from __future__ import annotations

import json

from whispercore import errors
from whispercore.api.error_reply import render_error, status_phrase
from whispercore.errors import InvalidRequest, WhisperError


def test_an_error_has_the_four_keys_of_openais() -> None:
    status, body = render_error(InvalidRequest("language must be …", param="language"))
    assert status == 400
    assert json.loads(body.payload) == {
        "error": {"message": "language must be …", "type": "invalid_request_error", "param": "language", "code": "invalid_value"}
    }


def test_every_status_has_a_phrase() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WhisperError)]
    assert {kind.status: status_phrase(kind.status) for kind in kinds}[413]
    assert status_phrase(499) == "Client Closed Request"
