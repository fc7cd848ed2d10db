"""The description of the API, and that a server behaves as it says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup

from tests.unit.gateway.conftest import Served
from whispercore.api.fields import OPTION_TYPES, REPLY_TYPES

pytestmark = pytest.mark.slow


def test_it_has_every_option(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    body = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
    assert {*OPTION_TYPES, *REPLY_TYPES, "file", "url", "model"} == set(body["multipart/form-data"]["schema"]["properties"])
    assert document["paths"]["/v1/jobs/{job_id}/result"]["get"]["responses"]["409"]
    assert served.client.get("/docs").status_code == 200


def test_requests_made_from_it_are_never_a_server_error(served: Served) -> None:
    """Schemathesis sends valid and invalid requests to every route."""
    schema: Any = schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json")
    failures = [failure for result in schema.get_all_operations() for failure in _failures(result.ok(), served.port)]
    assert not failures, "\n".join(failures)


def _failures(operation: Any, port: int) -> list[str]:
    found: list[str] = []

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        try:
            case.call_and_validate(base_url=f"http://127.0.0.1:{port}", checks=(not_a_server_error,), timeout=60)
        except FailureGroup as failure:
            found.append(f"{operation.method} {operation.path}: {failure}")

    check()
    return found
