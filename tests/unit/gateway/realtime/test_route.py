"""Sessions over a real WebSocket, with a back end that counts."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from openai import OpenAI
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from gateway.keys import digest_of
from gateway.realtime import route
from tests.unit.gateway.conftest import Served, serve, wait_for

from .conversation import COMMIT, COMPLETED, MANUAL, CountingBackend, append, appends, sound

TURN = appends(sound(2.0) + sound(1.0, 0))


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


@pytest.fixture
def server(tmp_path: Path, backend: CountingBackend) -> Iterator[Served]:
    with serve(tmp_path, backend=backend, realtime_sessions=3) as running:
        yield running


def opened(server: Served, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription", **options)


def say(client: ClientConnection, *messages: dict[str, Any]) -> None:
    for message in messages:
        client.send(json.dumps(message))


def events(client: ClientConnection, last: str) -> list[dict[str, Any]]:
    """The events up to one of the type `last`."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != last:
        found.append(json.loads(client.recv(timeout=30)))
    return found


def commits(client: ClientConnection) -> None:
    """The session works: sound is committed and transcribed."""
    say(client, MANUAL, append(sound(1.0)), COMMIT)
    assert events(client, COMPLETED)[-1]["transcript"] == "w0 w1"


def refusal(client: ClientConnection) -> tuple[str, int]:
    """The code of the error event, and the close code that follows."""
    error = events(client, "error")[-1]
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=30)
    assert closed.value.rcvd
    return error["error"]["code"], closed.value.rcvd.code


def test_the_official_client_transcribes(server: Served) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        assert connection.recv().type == "session.updated"
        connection.input_audio_buffer.append(audio=append(sound(2.0))["audio"])
        connection.input_audio_buffer.commit()
        for event in connection:
            if event.type == "conversation.item.input_audio_transcription.completed":
                assert event.transcript == "w0 w1 w2 w3"
                assert event.usage.type == "duration"
                break


def test_a_client_that_vanishes_frees_everything(server: Served, backend: CountingBackend) -> None:
    backend.gate = anyio.Event()
    with opened(server) as client:
        say(client, MANUAL, append(sound(1.0)), COMMIT)
        wait_for(lambda: backend.at_once == 1)
        assert len(server.app.state.realtime.open) == 1
        client.socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: server.app.state.realtime.open == set() and backend.at_once == 0)
    assert list(server.app.state.gateway.spool.folder.iterdir()) == []


def test_garbage_and_floods_harm_no_other_session(server: Served) -> None:
    with opened(server) as good, opened(server) as flooding, opened(server) as bad:
        thread = threading.Thread(target=say, args=(flooding, MANUAL, *appends(sound(600.0), 10.0), COMMIT))
        thread.start()
        for _ in range(100):
            try:
                bad.send("garbage")
            except ConnectionClosed:
                break
        assert refusal_after_errors(bad) == ("too_many_errors", 1008)
        commits(good)
        thread.join(60)
        found = [event for _ in range(2) for event in events(flooding, COMPLETED)]
        seconds = sum(event["usage"]["seconds"] for event in found if event["type"] == COMPLETED)
        assert seconds == pytest.approx(600.0, abs=0.1)


def refusal_after_errors(client: ClientConnection) -> tuple[str, int]:
    codes = []
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            event = json.loads(client.recv(timeout=30))
            codes += [event["error"]["code"]] if event["type"] == "error" else []
    assert closed.value.rcvd
    return codes[-1], closed.value.rcvd.code


def test_there_are_no_more_sessions_than_allowed(server: Served) -> None:
    with opened(server) as first, opened(server) as second, opened(server) as third:
        for client in (first, second, third):
            events(client, "session.created")
        with opened(server) as refused:
            assert refusal(refused) == ("too_many_sessions", 1013)
        assert "whisper_realtime_sessions 3.0" in server.app.state.gateway.telemetry.text()
    wait_for(lambda: server.app.state.realtime.open == set())
    with opened(server) as client:
        commits(client)


def test_a_message_that_is_too_large_closes_the_session(server: Served) -> None:
    with opened(server) as client:
        events(client, "session.created")
        client.send("x" * (2 * 1024 * 1024 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=30)
        assert closed.value.rcvd.code == 1009


def test_an_idle_session_ends(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound that was not committed is transcribed before."""
    monkeypatch.setattr(route, "IDLE_SECONDS", 0.5)
    with opened(server) as client:
        say(client, MANUAL, append(sound(1.0)))
        assert events(client, COMPLETED)[-1]["transcript"] == "w0 w1"
        assert refusal(client) == ("session_idle", 1000)


def test_another_intent_is_refused(server: Served) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/v1/realtime?intent=conversation") as client:
        assert refusal(client) == ("invalid_value", 1008)


def test_a_bug_ends_the_session_with_an_error(server: Served, backend: CountingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: CountingBackend, call: Any, seconds: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CountingBackend, "_reply", broken)
    with opened(server) as client:
        say(client, MANUAL, append(sound(1.0)), COMMIT)
        assert refusal(client) == ("engine_error", 1011)


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [("http://127.0.0.1:{port}", True), ("https://friend.example", True), ("https://foe.example", False), ("null", False)],
)
def test_without_keys_only_known_pages_are_let_in(tmp_path: Path, backend: CountingBackend, origin: str, is_allowed: bool) -> None:
    with (
        serve(tmp_path, backend=backend, cors_origins=("https://friend.example",)) as server,
        opened(server, origin=origin.format(port=server.port)) as client,
    ):
        if is_allowed:
            commits(client)
        else:
            assert refusal(client) == ("forbidden_origin", 1008)


KEYS = """
keys:
  - name: alice
    sha256: {digest}
    audio_seconds_per_day: 5
"""


@pytest.fixture
def locked(tmp_path: Path, backend: CountingBackend) -> Iterator[Served]:
    file = tmp_path / "keys.yaml"
    file.write_text(KEYS.format(digest=digest_of("wk-secret")))
    with serve(tmp_path, backend=backend, keys_file=file) as running:
        yield running


def test_a_key_is_needed(locked: Served) -> None:
    with opened(locked) as client:
        assert refusal(client) == ("missing_api_key", 3000)
    with opened(locked, additional_headers={"Authorization": "Bearer wk-wrong"}) as client:
        assert refusal(client) == ("invalid_api_key", 3000)


def test_a_key_in_the_header_or_among_the_subprotocols(locked: Served) -> None:
    with opened(locked, additional_headers={"Authorization": "Bearer wk-secret"}) as client:
        commits(client)
    protocols = ["realtime", "openai-insecure-api-key.wk-secret", "openai-beta.realtime-v1"]
    with opened(locked, subprotocols=protocols, origin="https://any.example") as client:
        assert client.subprotocol == "realtime"
        assert events(client, "transcription_session.created")
        commits(client)


def test_the_audio_of_a_key_is_counted_and_limited(locked: Served) -> None:
    with opened(locked, additional_headers={"Authorization": "Bearer wk-secret"}) as client:
        commits(client)
        assert 'whisper_gateway_audio_seconds_total{key="alice"} 1.0' in locked.app.state.gateway.telemetry.text()
        say(client, append(sound(5.0)), COMMIT)
        assert events(client, COMPLETED)
        assert refusal(client) == ("insufficient_quota", 1013)
    with opened(locked, additional_headers={"Authorization": "Bearer wk-secret"}) as client:
        assert refusal(client) == ("insufficient_quota", 1013)
