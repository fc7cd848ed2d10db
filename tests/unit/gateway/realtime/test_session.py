"""A session's events for what its client sends; no network, no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.realtime.options import SessionOptions
from gateway.realtime.recognizer import RETRIES
from gateway.realtime.session import BUFFERED_SECONDS, MAX_ERRORS, TooManyErrors
from gateway.refusals import RateLimited

from .conversation import COMMIT, COMPLETED, DELTA, FAILED, MANUAL, Conversation, CountingBackend, append, appends, converse, sound

BUFFER = "input_audio_buffer"
ITEM = "conversation.item"


def test_the_events_of_a_turn() -> None:
    found = converse(appends(sound(1.0, 0) + sound(3.0) + sound(1.0, 0)), items=1)
    kinds = [kind for kind in found.kinds() if kind != DELTA]
    assert kinds == [
        "session.created",
        f"{BUFFER}.speech_started",
        f"{BUFFER}.speech_stopped",
        f"{BUFFER}.committed",
        f"{ITEM}.added",
        COMPLETED,
        f"{ITEM}.done",
    ]
    assert len({event.get("item_id") or event["item"]["id"] for event in found.events[1:]}) == 1
    (started,), (stopped,) = found.of(f"{BUFFER}.speech_started"), found.of(f"{BUFFER}.speech_stopped")
    assert started["audio_start_ms"] == pytest.approx(700, abs=40)
    assert stopped["audio_end_ms"] == pytest.approx(4_500, abs=60)
    (completed,) = found.of(COMPLETED)
    assert completed["usage"] == {"type": "duration", "seconds": pytest.approx(3.8, abs=0.1)}
    assert completed["languages"] == [{"code": "en"}]
    (done,) = found.of(f"{ITEM}.done")
    assert done["item"]["content"] == [{"type": "input_audio", "transcript": completed["transcript"]}]


def test_deltas_come_while_the_turn_is_open_and_add_up_to_the_transcript() -> None:
    found = converse(appends(sound(4.0) + sound(1.0, 0)), items=1)
    kinds = found.kinds()
    assert kinds.index(DELTA) < kinds.index(f"{BUFFER}.speech_stopped")
    assert len(found.of(DELTA)) >= 4
    assert "".join(event["delta"] for event in found.of(DELTA)) == found.of(COMPLETED)[0]["transcript"]
    assert found.backend.most_at_once == 1


def test_another_transcript_wins_over_the_deltas() -> None:
    found = converse(appends(sound(4.0) + sound(1.0, 0)), items=1, backend=CountingBackend(final="Something else."))
    assert found.of(COMPLETED)[0]["transcript"] == "Something else."
    assert "else" not in "".join(event["delta"] for event in found.of(DELTA))


def test_silence_costs_no_transcription() -> None:
    assert converse(appends(sound(20.0, 0))).backend.calls == []


def test_a_pause_within_a_turn_costs_one_more_transcription() -> None:
    """Without new voice there is only the one that makes the last word certain."""
    options = SessionOptions().updated({"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 9_000}}}})
    found = converse(appends(sound(2.0)), options=options)
    before = len(found.backend.calls)
    found = converse(appends(sound(2.0) + sound(8.0, 0)), options=options)
    assert len(found.backend.calls) > before
    assert max(found.backend.seconds) < 10.0


def test_without_turn_detection_the_client_commits() -> None:
    found = converse([MANUAL, *appends(sound(2.0)), COMMIT, *appends(sound(1.0)), COMMIT], items=2)
    first, second = found.of(f"{BUFFER}.committed")
    assert first["previous_item_id"] is None
    assert second["previous_item_id"] == first["item_id"]
    assert [event["item_id"] for event in found.of(COMPLETED)] == [first["item_id"], second["item_id"]]
    assert [event["transcript"] for event in found.of(COMPLETED)] == ["w0 w1 w2 w3", "w0 w1"]
    assert not found.of(f"{BUFFER}.speech_started")


def test_a_commit_within_a_turn_ends_it() -> None:
    found = converse([*appends(sound(2.0)), COMMIT, *appends(sound(2.0) + sound(1.0, 0))], items=2)
    assert len(found.of(f"{BUFFER}.speech_started")) == 2
    assert len(found.of(f"{BUFFER}.speech_stopped")) == 1
    assert sum(event["usage"]["seconds"] for event in found.of(COMPLETED)) == pytest.approx(4.5, abs=0.1)


def test_a_commit_after_a_turn_gives_an_item_of_the_rest() -> None:
    found = converse([*appends(sound(2.0) + sound(2.0, 0)), COMMIT], items=2)
    assert [event["transcript"] for event in found.of(COMPLETED)] == ["w0 w1 w2 w3 w4", ""]


def test_an_empty_commit_is_an_error() -> None:
    found = converse([MANUAL, append(sound(0.05)), {**COMMIT, "event_id": "mine"}])
    (error,) = found.of("error")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"
    assert error["error"]["event_id"] == "mine"


def test_clear_forgets_the_sound() -> None:
    found = converse([MANUAL, *appends(sound(2.0)), {"type": "input_audio_buffer.clear"}, *appends(sound(1.0)), COMMIT], items=1)
    assert len(found.of(f"{BUFFER}.cleared")) == 1
    assert found.of(COMPLETED)[0]["usage"]["seconds"] == pytest.approx(1.0, abs=0.02)


def test_sound_is_not_lost_between_the_pieces_of_a_long_turn() -> None:
    found = converse(appends(sound(75.0) + sound(1.0, 0), 1.0), items=3)
    items = found.of(COMPLETED)
    assert len(items) == 3
    assert 75.0 < sum(event["usage"]["seconds"] for event in items) < 75.6
    assert max(event["usage"]["seconds"] for event in items) <= 30.0


def test_sound_that_is_never_committed_is_committed_with_an_error() -> None:
    found = converse([MANUAL, *appends(sound(BUFFERED_SECONDS + 20), 10.0)], items=1)
    (error,) = found.of("error")
    assert error["error"]["code"] == "buffer_full"
    assert found.of(COMPLETED)[0]["usage"]["seconds"] > BUFFERED_SECONDS
    assert max(found.backend.seconds[:-1]) < 30.0, "an open turn is transcribed in windows"


def test_minutes_of_silence_without_turn_detection() -> None:
    found = converse([MANUAL, *appends(sound(90.0, 0), 1.0), COMMIT], items=1, backend=CountingBackend(hears=False))
    assert found.of(COMPLETED)[0]["transcript"] == ""
    assert not found.of("error")


def test_g711_and_a_change_of_the_format() -> None:
    telephone = {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}
    found = converse([MANUAL, append(sound(1.0)), telephone, append(b"\x10" * 8_000), COMMIT], items=1)
    assert found.of(COMPLETED)[0]["usage"]["seconds"] == pytest.approx(2.0, abs=0.02)


def test_options_reach_the_back_end() -> None:
    transcription = {"model": "mine", "language": "de", "prompt": "Bahn", "keywords": ["Gleis"]}
    session = {"type": "transcription", "audio": {"input": {"transcription": transcription}}}
    session |= {"include": ["item.input_audio_transcription.logprobs"]}
    found = converse([{"type": "session.update", "session": session}, *appends(sound(2.0) + sound(1.0, 0))], items=1)
    partial, final = found.backend.calls[0], found.backend.calls[-1]
    assert partial.fields == {"language": "de", "prompt": "Bahn", "keywords[]": ["Gleis"], "temperature": "0"}
    expected = {"language": "de", "prompt": "Bahn", "keywords[]": ["Gleis"], "model": "mine", "include[]": ["logprobs"]}
    assert (final.path, final.fields) == ("v1/audio/transcriptions", expected)


def test_an_engine_without_temperatures_has_deltas_too() -> None:
    found = converse(appends(sound(3.0) + sound(1.0, 0)), items=1, backend=CountingBackend(has_temperatures=False))
    assert found.of(DELTA)
    assert sum("temperature" in call.fields for call in found.backend.calls) == 1


def test_a_busy_back_end_is_asked_again() -> None:
    found = converse(appends(sound(2.0) + sound(1.0, 0)), items=1, backend=CountingBackend(errors=[503, 500, 503]))
    assert len(found.of(COMPLETED)) == 1


@pytest.mark.parametrize("errors", [[400], [503] * (RETRIES + 1)])
def test_a_failed_turn_is_told_and_the_session_goes_on(errors: list[int]) -> None:
    turn = appends(sound(2.0) + sound(1.0, 0))
    found = converse([*turn, *turn], items=2, backend=CountingBackend(errors=list(errors)))
    (failed,) = found.of(FAILED)
    assert failed["error"]["code"] == "overloaded"
    assert failed["item_id"] == found.of(f"{BUFFER}.committed")[0]["item_id"]
    assert len(found.of(COMPLETED)) == 1


def test_the_session_stops_reading_while_too_much_sound_waits(tmp_path: Path) -> None:
    async def run() -> None:
        backend = CountingBackend(gate=anyio.Event())
        conversation = Conversation(backend, tmp_path, options=SessionOptions(turn_detection=None))
        minute = [json.dumps(message) for message in (*appends(sound(60.0), 10.0), COMMIT)]
        read: list[int] = []

        async def flood() -> None:
            for i in range(10):
                for message in minute:
                    await conversation.session.receive(message)
                read.append(i)

        async with anyio.create_task_group() as group:
            group.start_soon(conversation.session.run)
            group.start_soon(flood)
            while len(read) < 5:
                await anyio.sleep(0.01)
            await anyio.wait_all_tasks_blocked()
            assert len(read) == 5
            backend.gate.set()
            done = await conversation.until(COMPLETED, 10)
            assert sum(event["usage"]["seconds"] for event in done) == pytest.approx(600, abs=0.1)
            group.cancel_scope.cancel()

    anyio.run(run)


def test_a_key_that_has_used_up_its_audio_ends_the_session(tmp_path: Path) -> None:
    async def run() -> None:
        counted: list[float] = []

        def on_transcript(transcript: Any) -> RateLimited:
            counted.append(transcript.seconds)
            return RateLimited("used up")

        conversation = Conversation(CountingBackend(), tmp_path, on_transcript=on_transcript)
        await conversation.session.begin()
        for message in appends(sound(2.0) + sound(1.0, 0)):
            await conversation.session.receive(json.dumps(message))
        with pytest.raises(RateLimited):
            await conversation.session.run()
        assert conversation.kinds()[-1] == f"{ITEM}.done"
        assert counted == [pytest.approx(2.5, abs=0.1)]

    anyio.run(run)


def test_the_beta_protocol() -> None:
    session = {
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"model": "whisper-1", "language": "en", "prompt": ""},
        "turn_detection": {"type": "server_vad", "threshold": 0.4, "prefix_padding_ms": 100, "silence_duration_ms": 200},
        "input_audio_noise_reduction": {"type": "near_field"},
        "include": ["item.input_audio_transcription.logprobs"],
    }
    update = {"type": "transcription_session.update", "session": session}
    found = converse([update, *appends(sound(2.0) + sound(1.0, 0))], items=1, beta=True)
    assert found.kinds()[:2] == ["transcription_session.created", "transcription_session.updated"]
    updated = found.events[1]["session"]
    assert updated["input_audio_transcription"]["language"] == "en"
    assert updated["turn_detection"]["threshold"] == 0.4
    assert updated["input_audio_noise_reduction"] is None
    assert f"{ITEM}.created" in found.kinds() and f"{ITEM}.done" not in found.kinds()


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("", "invalid_json", None),
        ("[]", "invalid_json", None),
        (b"\x00\x01", "invalid_value", None),
        ({"type": "response.create"}, "unsupported_event", "type"),
        ({"type": "conversation.item.create", "item": {}}, "unsupported_event", "type"),
        ({"type": "hello"}, "invalid_value", "type"),
        ({}, "invalid_value", "type"),
        ({"type": "input_audio_buffer.append"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "not base64"}, "invalid_base64", "audio"),
        ({"type": "session.update"}, "invalid_value", "session"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "invalid_value", "session.type"),
        ({"type": "session.update", "session": {"voice": "alloy"}}, "unknown_parameter", "session.voice"),
    ],
)
def test_bad_messages(message: Any, code: str, param: str | None) -> None:
    if isinstance(message, dict):
        message = {**message, "event_id": "e1"}
    found = converse([message, *appends(sound(2.0) + sound(1.0, 0))], items=1)
    (error,) = found.of("error")
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    assert error["error"]["event_id"] == ("e1" if isinstance(message, dict) else None)


@pytest.mark.parametrize(
    ("sound_options", "param"),
    [
        ({"format": {"type": "audio/mp3"}}, "format.type"),
        ({"format": {"type": "audio/pcm", "rate": 16_000}}, "format.rate"),
        ({"format": "pcm16"}, "format"),
        ({"transcription": None}, "transcription"),
        ({"transcription": {"language": "klingon"}}, "transcription.language"),
        ({"transcription": {"languages": "en"}}, "transcription.languages"),
        ({"transcription": {"keywords": [1]}}, "transcription.keywords"),
        ({"transcription": {"model": 1}}, "transcription.model"),
        ({"transcription": {"prompt": "x" * 10_001}}, "transcription.prompt"),
        ({"turn_detection": {"type": "semantic_vad"}}, "turn_detection.type"),
        ({"turn_detection": {"type": "server_vad", "threshold": 2}}, "turn_detection.threshold"),
        ({"turn_detection": {"threshold": True}}, "turn_detection.threshold"),
        ({"turn_detection": {"silence_duration_ms": float("inf")}}, "turn_detection.silence_duration_ms"),
        ({"turn_detection": {"idle_timeout_ms": 6_000}}, "turn_detection.idle_timeout_ms"),
        ({"noise_reduction": {"kind": "x"}}, "noise_reduction.kind"),
    ],
)
def test_bad_options_change_nothing(sound_options: dict[str, Any], param: str) -> None:
    good = {"format": {"type": "audio/pcma"}}
    found = converse(
        [
            {"type": "session.update", "session": {"audio": {"input": {**good, **sound_options}}}},
            {"type": "session.update", "session": {"type": "transcription"}},
        ]
    )
    assert found.of("error")[0]["error"]["param"] == f"session.audio.input.{param}"
    assert found.of("session.updated")[0]["session"] == found.of("session.created")[0]["session"]


def test_an_update_keeps_what_it_leaves_out() -> None:
    first = {"audio": {"input": {"transcription": {"language": "fr"}, "turn_detection": {"type": "server_vad", "threshold": 0.7}}}}
    second = {"audio": {"input": {"transcription": {"prompt": "Paris"}, "noise_reduction": {"type": "near_field"}}}}
    found = converse([{"type": "session.update", "session": session} for session in (first, second)])
    after = found.of("session.updated")[1]["session"]["audio"]["input"]
    assert after["transcription"] == {"model": "whisper-1", "language": "fr", "prompt": "Paris"}
    assert after["turn_detection"]["threshold"] == 0.7
    assert after["noise_reduction"] is None


def test_the_session_object_may_be_sent_back() -> None:
    async def run() -> None:
        options = SessionOptions()
        assert options.updated(json.loads(json.dumps(options.session("sess_1")))) == options
        assert options.updated_beta(json.loads(json.dumps(options.session_beta("sess_1")))) == options

    anyio.run(run)


def test_too_many_errors_in_a_row_end_the_session(tmp_path: Path) -> None:
    async def run() -> None:
        session = Conversation(CountingBackend(), tmp_path).session
        for message in [*["garbage"] * (MAX_ERRORS - 1), json.dumps(MANUAL), *["garbage"] * (MAX_ERRORS - 1)]:
            await session.receive(message)
        with pytest.raises(TooManyErrors):
            await session.receive("garbage")

    anyio.run(run)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["type", "session", "audio", "input", "format", "transcription", "turn_detection", "include", "rate", "language"])
kinds = st.sampled_from(["session.update", "transcription_session.update", "input_audio_buffer.append", COMMIT["type"], "response.create"])
objects = st.recursive(json_values, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=10)
messages = st.fixed_dictionaries({"type": kinds | json_values}, optional={"session": objects, "audio": objects, "event_id": json_values})


def needs_no_answer(message: str | bytes) -> bool:
    """Whether a message may be an append, which OpenAI's protocol does not confirm."""
    return isinstance(message, str) and "input_audio_buffer.append" in message


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 2)
@given(st.lists(st.text() | st.binary(max_size=40) | messages.map(json.dumps) | json_values.map(json.dumps), max_size=6))
def test_garbage_gets_an_answer_and_harms_nothing(garbage: list[str | bytes]) -> None:
    """Each message is obeyed or answered by an error, and sound is transcribed afterwards."""
    end: list[Any] = [MANUAL, {"type": "input_audio_buffer.clear"}, append(sound(1.0)), COMMIT]
    found = converse([*garbage, *end], items=1)
    kinds = ("error", "session.updated", "transcription_session.updated", f"{BUFFER}.committed")
    answers = [kind for kind in found.kinds() if kind in kinds]
    assert len(answers) >= 2 + len([message for message in garbage if not needs_no_answer(message)])
    assert found.of(COMPLETED)
