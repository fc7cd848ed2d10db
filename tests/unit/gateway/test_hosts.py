"""The Host header of a gateway without keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.hosts import is_trusted
from gateway.keys import digest_of, new_key
from tests.unit.gateway.conftest import serve


@pytest.mark.parametrize(
    "header",
    [
        *(
            "localhost",
            "localhost:8000",
            "LOCALHOST.",
            "127.0.0.1:8000",
            "192.168.1.7",
            "[::1]:8000",
            "[fe80::1]",
            "whisper",
            "whisper:8000",
        ),
        *("nas.local", "a.localhost:1", "whisper.speech.svc", "whisper.speech.svc.cluster.local:8000", "asr.corp.internal"),
    ],
)
def test_names_of_this_network_are_trusted(header: str) -> None:
    assert is_trusted(header, ())


@pytest.mark.parametrize(
    "header", [" ", ".", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "1.2.3.4.5"]
)
def test_names_that_a_stranger_could_register_are_not(header: str) -> None:
    assert not is_trusted(header, ("asr.example",))


def test_the_operator_can_allow_a_name() -> None:
    assert is_trusted("ASR.example:443", ("asr.Example",)) and not is_trusted("x.asr.example", ("asr.example",))


def test_a_page_with_a_name_of_its_own_reads_nothing(tmp_path: Path) -> None:
    with serve(tmp_path / "open", allowed_hosts=("asr.example",)) as served:
        reply = served.client.get("/v1/jobs", headers={"host": "evil.example"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host_not_allowed") and reply.headers["x-request-id"]
        assert served.client.get("/v1/jobs", headers={"host": "asr.example"}).status_code == 200
        assert served.client.head("/health/live").status_code == 200
    key = new_key()
    (tmp_path / "keys.yaml").write_text(f'keys: [{{name: a, sha256: "{digest_of(key)}"}}]')
    with serve(tmp_path / "keys", keys_file=tmp_path / "keys.yaml") as served:
        headers = {"host": "asr.example", "authorization": f"Bearer {key}"}
        assert served.client.get("/v1/jobs", headers=headers).status_code == 200, "with keys every name is answered to"
