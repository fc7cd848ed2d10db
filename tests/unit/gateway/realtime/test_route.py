"""Sessions over a real WebSocket, with a back end that counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from openai import OpenAI
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from gateway.keys import digest_of
from gateway.realtime import route

from .conversation import COMMIT, COMPLETED, MANUAL, CountingBackend, append, appends, sound
from .serving import served, wait_until

TURN = appends(sound(2.0) + sound(1.0, 0))


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


@pytest.fixture
def server(tmp_path: Path, backend: CountingBackend) -> Iterator[tuple[str, FastAPI]]:
    with served(tmp_path, backend, realtime_sessions=3) as running:
        yield running


def opened(address: str, **options: Any) -> ClientConnection:
    return connect(f"ws://{address}/v1/realtime?intent=transcription", **options)


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


def test_the_official_client_transcribes(server: tuple[str, FastAPI]) -> None:
    client = OpenAI(base_url=f"http://{server[0]}/v1", api_key="none")
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


def test_a_client_that_vanishes_frees_everything(server: tuple[str, FastAPI], backend: CountingBackend) -> None:
    address, app = server
    backend.gate = anyio.Event()
    client = opened(address)
    say(client, MANUAL, append(sound(1.0)), COMMIT)
    wait_until(lambda: backend.at_once == 1)
    assert app.state.realtime.open == 1
    client.socket.close()
    wait_until(lambda: app.state.realtime.open == 0 and backend.at_once == 0)
    assert list(app.state.gateway.spool.folder.iterdir()) == []


def test_garbage_and_floods_harm_no_other_session(server: tuple[str, FastAPI]) -> None:
    address, _ = server
    with opened(address) as good, opened(address) as flooding, opened(address) as bad:
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


def test_there_are_no_more_sessions_than_allowed(server: tuple[str, FastAPI]) -> None:
    address, app = server
    with opened(address) as first, opened(address) as second, opened(address) as third:
        for client in (first, second, third):
            events(client, "session.created")
        with opened(address) as refused:
            assert refusal(refused) == ("too_many_sessions", 1013)
        assert "whisper_realtime_sessions 3.0" in app.state.gateway.telemetry.text()
    wait_until(lambda: app.state.realtime.open == 0)
    with opened(address) as client:
        commits(client)


def test_a_message_that_is_too_large_closes_the_session(server: tuple[str, FastAPI]) -> None:
    with opened(server[0]) as client:
        events(client, "session.created")
        client.send("x" * (2 * 1024 * 1024 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=30)
        assert closed.value.rcvd.code == 1009


def test_an_idle_session_ends(server: tuple[str, FastAPI], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "IDLE_SECONDS", 0.2)
    with opened(server[0]) as client:
        assert refusal(client) == ("session_idle", 1000)


def test_another_intent_is_refused(server: tuple[str, FastAPI]) -> None:
    with connect(f"ws://{server[0]}/v1/realtime?intent=conversation") as client:
        assert refusal(client) == ("invalid_value", 1008)


def test_a_bug_ends_the_session_with_an_error(
    server: tuple[str, FastAPI], backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: CountingBackend, call: Any, seconds: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CountingBackend, "_reply", broken)
    with opened(server[0]) as client:
        say(client, MANUAL, append(sound(1.0)), COMMIT)
        assert refusal(client) == ("engine_error", 1011)


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [("http://{address}", True), ("https://friend.example", True), ("https://foe.example", False), ("null", False)],
)
def test_without_keys_only_known_pages_are_let_in(tmp_path: Path, backend: CountingBackend, origin: str, is_allowed: bool) -> None:
    with served(tmp_path, backend, cors_origins=("https://friend.example",)) as (address, _):
        with opened(address, origin=origin.format(address=address)) as client:
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
def locked(tmp_path: Path, backend: CountingBackend) -> Iterator[tuple[str, FastAPI]]:
    file = tmp_path / "keys.yaml"
    file.write_text(KEYS.format(digest=digest_of("wk-secret")))
    with served(tmp_path, backend, keys_file=file) as running:
        yield running


def test_a_key_is_needed(locked: tuple[str, FastAPI]) -> None:
    with opened(locked[0]) as client:
        assert refusal(client) == ("missing_api_key", 3000)
    with opened(locked[0], additional_headers={"Authorization": "Bearer wk-wrong"}) as client:
        assert refusal(client) == ("invalid_api_key", 3000)


def test_a_key_in_the_header_or_among_the_subprotocols(locked: tuple[str, FastAPI]) -> None:
    with opened(locked[0], additional_headers={"Authorization": "Bearer wk-secret"}) as client:
        commits(client)
    protocols = ["realtime", "openai-insecure-api-key.wk-secret", "openai-beta.realtime-v1"]
    with opened(locked[0], subprotocols=protocols, origin="https://any.example") as client:
        assert client.subprotocol == "realtime"
        assert events(client, "transcription_session.created")
        commits(client)


def test_the_audio_of_a_key_is_counted_and_limited(locked: tuple[str, FastAPI]) -> None:
    address, app = locked
    with opened(address, additional_headers={"Authorization": "Bearer wk-secret"}) as client:
        commits(client)
        assert 'whisper_gateway_audio_seconds_total{key="alice"} 1.0' in app.state.gateway.telemetry.text()
        say(client, append(sound(5.0)), COMMIT)
        assert events(client, COMPLETED)
        assert refusal(client) == ("insufficient_quota", 1013)
    with opened(address, additional_headers={"Authorization": "Bearer wk-secret"}) as client:
        assert refusal(client) == ("insufficient_quota", 1013)
