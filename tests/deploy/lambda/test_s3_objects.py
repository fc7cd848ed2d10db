"""The function's own client for S3, which the other tests replace by one that they share."""

from __future__ import annotations

from typing import Any

import pytest
from function_errors import AccessDenied
from s3_objects import Objects, Place

PLACE = Place("recordings", "a/b c.wav")


def test_a_client_is_made_when_it_is_needed(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    objects = Objects()
    objects.write(PLACE, b"sound", "audio/wav", {"owner": "me"})
    assert objects.read(PLACE, 5) == (b"sound", {"owner": "me"}) and objects.metadata(PLACE) == {"owner": "me"}
    assert "recordings" in objects.link(PLACE) and "Signature=" in objects.link(PLACE)
    objects.delete(PLACE)
    assert objects.metadata(PLACE) is None


def test_a_function_without_a_role_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    class Client:
        def get_object(self, **_: Any) -> Any:
            raise NoCredentialsError

    monkeypatch.setattr(Objects, "_client", Client())
    with pytest.raises(AccessDenied, match="it needs a role"):
        Objects().read(PLACE, 5)
