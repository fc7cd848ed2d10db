"""The mailbox, called as TorchServe calls the handler: with every open request, again and again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.doubles import PATIENCE, Recorder, wav
from whispercore.engines.fake import FakeEngine
from whispercore.serving.response import Response
from whispercore.serving.transcriber import Transcriber
from whispercore.serving.watchdog import HEADER
from whispercore.settings import Settings
from whispercore.torchserve.mailbox import EARLY_FIRST_CHUNK_BYTES, LONGEST_WAIT, WAIT_PER_REQUEST, Mailbox, PolledRow
from whispercore.torchserve.spool import message
from whispercore.types import Decoded, Window

OPTIONS = {"vad_filter": b"false"}


@pytest.fixture
def engine() -> Recorder:
    return Recorder()


@pytest.fixture
def mailbox(engine: Recorder) -> Iterator[Mailbox]:
    with Transcriber(Settings(max_audio_bytes=8 * 1024 * 1024), engine=engine) as transcriber:
        yield Mailbox(transcriber)


def row(server_id: str, audio: bytes, **headers: str) -> PolledRow:
    return PolledRow(server_id, {"file": bytearray(audio), **OPTIONS}, headers)


class Stepper(FakeEngine):
    """Decodes one window for each `steps.release()`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(max_batch=1, **arguments)
        self.steps = threading.Semaphore(0)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        assert self.steps.acquire(timeout=PATIENCE)
        return super().decode(windows)


def ask(server_id: str, audio: bytes, path: str = "", **fields: str) -> PolledRow:
    """A request with form fields. `path`: after the version in the URL."""
    return PolledRow(
        server_id, {"file": bytearray(audio), **OPTIONS, **{name: value.encode() for name, value in fields.items()}}, {"url_path": path}
    )


def has_words(response: Response) -> bool:
    return b'"text":' in response.payload or b'"delta":' in response.payload


def wait_for_response(mailbox: Mailbox, rows: list[PolledRow], matches: Callable[[Response], bool] = has_words) -> Response:
    """Call until the first row gets such a response."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        response = mailbox.exchange(rows).get(rows[0].server_id)
        if response and matches(response):
            return response
    raise AssertionError("no such response")


def lines(payload: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in payload.decode().splitlines()]


def events(payload: bytes) -> list[dict[str, Any]]:
    """The content of server-sent events, without comments."""
    blocks = payload.decode().split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block and not block.startswith(":")]


def drive(mailbox: Mailbox, rows: list[PolledRow]) -> dict[str, list[Response]]:
    """Call until every request has had its last response. As the server does, leave out those that have had it."""
    responses: dict[str, list[Response]] = {row.server_id: [] for row in rows}
    deadline = time.monotonic() + PATIENCE
    while rows and time.monotonic() < deadline:
        for server_id, response in mailbox.exchange(rows).items():
            responses[server_id].append(response)
        rows = [row for row in rows if not responses[row.server_id] or responses[row.server_id][-1].last is False]
    assert not rows and len(mailbox) == 0
    return responses


def test_each_request_gets_its_own_answer(mailbox: Mailbox) -> None:
    responses = drive(mailbox, [row(str(seed), wav(2, seed)) for seed in range(8)] + [row("bad", b"nothing to hear")])
    texts = {json.loads(responses[str(seed)][0].payload)["text"] for seed in range(8)}
    assert len(texts) == 8
    assert all(len(responses[str(seed)]) == 1 and responses[str(seed)][0].last is None for seed in range(8))
    refusal = responses["bad"][0]
    assert refusal.status == 415 and json.loads(refusal.payload)["error"].keys() == {"message", "type", "param", "code"}


def test_the_request_id_comes_back(mailbox: Mailbox) -> None:
    responses = drive(mailbox, [row("a", wav(1), **{"X-Request-Id": "abc-1"}), row("c", b"", **{"x-request-id": "c-3"})])
    assert responses["a"][0].request_id == "abc-1" and responses["c"][0].request_id == "c-3"


def test_a_large_body_gets_an_empty_first_chunk_as_soon_as_it_proves_readable(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    large = wav(EARLY_FIRST_CHUNK_BYTES / 32_000 + 5)
    rows = [row("large", large), row("not audio", bytes(2 * EARLY_FIRST_CHUNK_BYTES)), row("small", wav(1))]
    first: dict[str, Response] = {}
    deadline = time.monotonic() + PATIENCE
    while len(first) < 2 and time.monotonic() < deadline:
        first |= mailbox.exchange([row for row in rows if row.server_id != "not audio" or row.server_id not in first])
    assert first.keys() == {"large", "not audio"}
    assert first["large"].last is False and first["large"].status == 200 and first["large"].payload == b""
    assert first["not audio"].last is None and first["not audio"].status == 415
    engine.gate.set()
    rest = drive(mailbox, [PolledRow("large", {}, {}), rows[2]])
    assert rest["large"][-1].last is True and json.loads(rest["large"][-1].payload)["text"]
    assert rest["small"][-1].last is None


def test_of_many_small_bodies_the_largest_are_begun(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    seconds = 0.75 * EARLY_FIRST_CHUNK_BYTES / 32_000
    rows = [row(str(number), wav(seconds, seed=number)) for number in range(7)]
    begun: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while len(begun) < 2 and time.monotonic() < deadline:
        begun |= {server_id for server_id, response in mailbox.exchange(rows).items() if response.last is False}
    for _ in range(3):
        begun |= {server_id for server_id, response in mailbox.exchange(rows).items() if response.last is False}
    assert len(begun) == 2, "the other five have less than 4 MB together"
    engine.gate.set()
    responses = drive(mailbox, rows)
    assert all(responses[row.server_id][-1].last is (True if row.server_id in begun else None) for row in rows)


def test_a_begun_reply_gets_empty_chunks_so_that_the_server_notices_clients_that_have_gone(
    mailbox: Mailbox, engine: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whispercore.torchserve.mailbox.KEEP_ALIVE_SECONDS", 0.05)
    engine.gate.clear()
    large = row("large", wav(EARLY_FIRST_CHUNK_BYTES / 32_000 + 5))
    chunks: list[Response] = []
    deadline = time.monotonic() + PATIENCE
    while len(chunks) < 3 and time.monotonic() < deadline:
        chunks += mailbox.exchange([large]).values()
    assert [(chunk.last, chunk.payload) for chunk in chunks] == [(False, b"")] * 3
    engine.gate.set()
    assert drive(mailbox, [large])["large"][-1].last is True


def test_a_request_that_is_not_polled_any_more_is_cancelled(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    mailbox.exchange([row("stays", wav(1)), row("leaves", wav(200))])
    assert len(mailbox) == 2
    mailbox.exchange([row("stays", wav(1))])
    assert len(mailbox) == 1 and mailbox.intake.transcriber.open_requests == 1
    engine.gate.set()
    assert drive(mailbox, [row("stays", wav(1))])["stays"][0].status == 200


def test_a_call_without_news_returns_after_the_longest_wait(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    mailbox.exchange([row("waits", wav(1))])
    begun = time.monotonic()
    assert mailbox.exchange([row("waits", wav(1))]) == {}
    assert time.monotonic() - begun < LONGEST_WAIT + 1
    engine.gate.set()


def test_a_call_waits_on_when_an_event_leads_to_no_response(mailbox: Mailbox, engine: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHORTEST_WAIT", "LONGEST_WAIT"):
        monkeypatch.setattr(f"whispercore.torchserve.mailbox.{name}", PATIENCE)
    engine.gate.clear()

    def finish_once_opened() -> None:
        while not any(job.opened for job in mailbox.intake.transcriber._jobs):
            time.sleep(0.01)
        engine.gate.set()

    opener = threading.Thread(target=finish_once_opened, daemon=True)
    opener.start()
    begun = time.monotonic()
    assert mailbox.exchange([row("small", wav(1))])["small"].status == 200  # not the news that it has been opened
    assert time.monotonic() - begun < PATIENCE
    opener.join()


def test_a_call_with_many_requests_waits_longer(mailbox: Mailbox, engine: Recorder) -> None:
    """Because a call costs CPU for each open request and its body."""

    def seconds(rows: list[PolledRow]) -> float:
        mailbox.exchange(rows)
        begun = time.monotonic()
        assert mailbox.exchange(rows) == {}
        return time.monotonic() - begun

    engine.gate.clear()
    few = [row("0", wav(1))]
    many = [row(str(number), wav(1, seed=number)) for number in range(40)]
    assert min(seconds(few) for _ in range(3)) < WAIT_PER_REQUEST * len(many) <= seconds(many)
    engine.gate.set()
    drive(mailbox, many)


def test_an_engine_that_fails_is_a_500_of_its_own_request() -> None:
    engine = FakeEngine(fails=lambda window: len(window.samples) == 16_000)
    with Transcriber(Settings(), engine=engine) as transcriber:
        responses = drive(Mailbox(transcriber), [row("fails", wav(1)), row("works", wav(2))])
    assert responses["fails"][0].status == 500 and responses["works"][0].status == 200


def test_a_closing_mailbox_finishes_what_is_open_and_takes_nothing_new(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    assert mailbox.exchange([row("early", wav(1))]) == {}
    mailbox.intake.jobs.closing = True
    refusal = mailbox.exchange([row("early", wav(1)), row("late", wav(1))])["late"]
    assert refusal.status == 503 and json.loads(refusal.payload)["error"]["code"] == "stopping"
    engine.gate.set()
    assert drive(mailbox, [row("early", wav(1))])["early"][0].status == 200


def test_too_many_bytes_are_a_413(mailbox: Mailbox) -> None:
    assert drive(mailbox, [row("big", bytes(9 * 1024 * 1024))])["big"][0].status == 413


def test_the_list_of_models(mailbox: Mailbox) -> None:
    response = drive(mailbox, [PolledRow("models", {}, {"url_path": "v1/models"})])["models"][0]
    [listed] = json.loads(response.payload)["data"]
    assert (listed["id"], listed["max_audio_bytes"]) == ("nano", 8 * 1024 * 1024), "clients read the limit of these settings"


def test_a_model_by_its_id(mailbox: Mailbox) -> None:
    found = drive(
        mailbox, [PolledRow("nano", {}, {"url_path": "v1/models/nano"}), PolledRow("other", {}, {"url_path": "v1/models/some%2Fother"})]
    )
    assert json.loads(found["nano"][0].payload)["id"] == "nano"
    refused = json.loads(found["other"][0].payload)["error"]
    assert found["other"][0].status == 404 and refused["code"] == "model_not_found" and "some/other" in refused["message"]


TRANSCRIPTIONS = "v1/audio/transcriptions"


def test_a_native_stream_tells_segments_as_they_become_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.torchserve.mailbox.KEEP_ALIVE_SECONDS", 1e9)  # a busy machine may take longer than a second
    engine = Stepper()
    with Transcriber(Settings(), engine=engine) as transcriber:
        mailbox, rows = Mailbox(transcriber), [ask("a", wav(75), strategy="sequential", stream="true")]
        engine.steps.release()
        first = wait_for_response(mailbox, rows)
        assert (first.status, first.last, first.content_type) == (200, False, "application/x-ndjson")
        early = [line for line in lines(first.payload) if line["type"] == "segment"]
        assert early and early[-1]["progress"]["duration"] == 75.0 and early[-1]["progress"]["seconds"] <= 30
        assert mailbox.exchange(rows) == {}, "nothing new, yet there was a response"
        engine.steps.release(10)
        rest = drive(mailbox, rows)["a"]
    *streamed, whole = lines(b"".join(response.payload for response in [first, *rest]))
    assert (rest[-1].last, whole["type"]) == (True, "transcript")
    sent = [{key: line[key] for key in ("id", "start", "end", "text")} for line in streamed if line["type"] == "segment"]
    assert sent == [{key: segment[key] for key in ("id", "start", "end", "text")} for segment in whole["segments"]]
    assert streamed[-1]["progress"] == {"seconds": 75.0, "duration": 75.0}
    assert rest[-1].audio_seconds == 75.0


def test_deltas_on_openais_path_make_the_text(mailbox: Mailbox) -> None:
    responses = drive(mailbox, [ask("a", wav(75), TRANSCRIPTIONS, stream="true")])["a"]
    *deltas, done = events(b"".join(response.payload for response in responses))
    assert {response.content_type for response in responses} == {"text/event-stream"}
    assert done["type"] == "transcript.text.done" and {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert "".join(event["delta"] for event in deltas) == done["text"] != ""


def test_a_begun_event_stream_is_kept_alive_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.torchserve.mailbox.KEEP_ALIVE_SECONDS", 0.05)
    engine = Stepper()
    with Transcriber(Settings(), engine=engine) as transcriber:
        mailbox, rows = Mailbox(transcriber), [ask("a", wav(75), TRANSCRIPTIONS, stream="true", strategy="sequential")]
        engine.steps.release()
        assert events(wait_for_response(mailbox, rows).payload)
        assert wait_for_response(mailbox, rows, lambda response: not has_words(response)).payload == b":\n\n"
        engine.steps.release(10)
        drive(mailbox, rows)


@pytest.mark.parametrize("path", ["", TRANSCRIPTIONS])
def test_a_stream_whose_recording_cannot_be_opened_has_the_errors_own_status(mailbox: Mailbox, path: str) -> None:
    audio = {"words": b"no sound", "none": b"", "no seconds": wav(0)}
    responses = drive(mailbox, [ask(name, content, path, stream="true") for name, content in audio.items()])
    assert [[(response.status, response.last) for response in responses[name]] for name in audio] == [
        [(415, None)],
        [(400, None)],
        [(422, None)],
    ]
    assert {response.content_type for name in audio for response in responses[name]} == {"application/json"}


@pytest.mark.parametrize(("path", "sign"), [("", b'{"type":"progress"'), (TRANSCRIPTIONS, b":\n\n")])
def test_a_stream_gives_signs_of_life_before_its_first_segment(path: str, sign: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.torchserve.mailbox.KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr("whispercore.torchserve.mailbox.UNOPENED_SECONDS", PATIENCE)  # also on a machine that opens slowly
    engine = Stepper()
    with Transcriber(Settings(model="nano"), engine=engine) as transcriber:
        mailbox, rows = Mailbox(transcriber), [ask("a", wav(75), path, stream="true")]
        signs: list[Response] = []
        deadline = time.monotonic() + PATIENCE
        while len(signs) < 4 and time.monotonic() < deadline:
            signs += mailbox.exchange(rows).values()
        assert [(response.status, response.last, response.payload.startswith(sign)) for response in signs] == [(200, False, True)] * 4
        if not path:
            assert lines(signs[0].payload)[0]["progress"] == {"seconds": 0.0, "duration": 75.0}
        engine.steps.release(10)
        assert drive(mailbox, rows)["a"][-1].last is True


def test_a_stream_begins_also_while_its_recording_waits_to_be_opened(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.torchserve.mailbox.UNOPENED_SECONDS", 0.2)
    readers, held = mailbox.intake.transcriber._readers, threading.Event()
    busy = [readers.threads.submit(held.wait, PATIENCE) for _ in range(readers.threads.count)]
    rows = [ask("a", wav(2), stream="true")]
    first = wait_for_response(mailbox, rows, lambda response: b"progress" in response.payload)
    assert lines(first.payload) == [{"type": "progress", "progress": {"seconds": 0.0, "duration": None}}]
    held.set()
    assert all(reader.result(PATIENCE) for reader in busy)
    assert drive(mailbox, rows)["a"][-1].last is True


@pytest.fixture
def two_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mailbox, threading.Event]]:
    """A mailbox of the models `first` and `second`, and an event that lets `second` be loaded."""
    gate = threading.Event()
    monkeypatch.setattr("whispercore.serving.models.prepare", lambda settings: gate.wait(PATIENCE))
    mailbox = Mailbox(Transcriber(Settings(engine="fake", model="first", models="first,second")))
    yield mailbox, gate
    gate.set()
    mailbox.intake.models.close()


def listed(mailbox: Mailbox) -> dict[str, bool]:
    """The models of the list, and whether they are loaded."""
    models = json.loads(mailbox.exchange([PolledRow("list", {}, {"url_path": "v1/models"})])["list"].payload)["data"]
    return {model["id"]: model["loaded"] for model in models}


def test_a_request_waits_for_its_model_and_the_others_do_not(two_models: tuple[Mailbox, threading.Event]) -> None:
    mailbox, _ = two_models
    second = [ask("second", wav(2), TRANSCRIPTIONS, model="whisper-second"), ask("again", wav(2), TRANSCRIPTIONS, model="second")]
    first = [ask(name, wav(2), TRANSCRIPTIONS, model=name) for name in ("whisper-1", "unknown")]
    answered: dict[str, Response] = {}
    while len(answered) < 2:
        answered |= mailbox.exchange([*second, *(row for row in first if row.server_id not in answered)])
    assert answered.keys() == {"whisper-1", "unknown"} and len(mailbox) == 2
    assert "asks for model unknown, but first is served" in json.loads(answered["unknown"].payload)["warnings"][0]
    assert listed(mailbox) == {"first": True, "second": False}


def test_the_replies_of_a_model_that_has_been_loaded(two_models: tuple[Mailbox, threading.Event]) -> None:
    mailbox, gate = two_models
    rows = [ask("second", wav(2), TRANSCRIPTIONS, model="second"), ask("stream", wav(2), TRANSCRIPTIONS, model="second", stream="true")]
    assert mailbox.exchange(rows) == {}
    gate.set()
    responses = {name: sent[-1] for name, sent in drive(mailbox, rows).items()}
    assert {response.headers.get("x-whisper-model") for response in responses.values()} == {"second"}
    assert json.loads(responses["second"].payload)["text"] and "warnings" not in json.loads(responses["second"].payload)
    assert listed(mailbox) == {"first": True, "second": True}


def test_a_client_that_leaves_does_not_wait_for_its_model(two_models: tuple[Mailbox, threading.Event]) -> None:
    mailbox, gate = two_models
    assert mailbox.exchange([ask("second", wav(2), model="second")]) == {} and len(mailbox) == 1
    mailbox.exchange([])
    assert len(mailbox) == 0 and len(mailbox.intake.jobs) == 0
    gate.set()
    assert drive(mailbox, [ask("next", wav(2), model="second")])["next"][-1].status == 200
    assert mailbox.intake.transcriber.scheduler.counters.windows == 1


def test_equal_requests_for_two_models_share_no_job(two_models: tuple[Mailbox, threading.Event]) -> None:
    mailbox, gate = two_models
    gate.set()
    rows = [ask(name, wav(2), model=name) for name in ("first", "second")]
    responses = {name: response for name, [response] in drive(mailbox, rows).items()}
    assert [json.loads(responses[name].payload)["model"] for name in ("first", "second")] == ["first", "second"]
    assert mailbox.intake.jobs.shared == 0


class Nano(FakeEngine):
    """Replaces an engine that has loaded the checkpoint of the settings."""

    name = "ct2"


@pytest.mark.parametrize("path", ["", TRANSCRIPTIONS])
def test_a_reply_names_its_model_and_says_that_it_is_not_the_one_asked_for(mailbox: Mailbox, path: str) -> None:
    served = mailbox.intake.transcriber.settings.model_id
    rows = [ask("other", wav(2), path, model="large-v3"), ask("same", wav(2, 1), path, model=f"openai/whisper-{served}")]
    rows += [
        ask("srt", wav(2, 2), path, model="large-v3\n\u2028é", response_format="srt"),
        ask("openai", wav(2, 3), path, model="whisper-1"),
    ]
    responses = {name: response for name, [response] in drive(mailbox, rows).items()}
    bodies = {name: json.loads(responses[name].payload) for name in ("other", "same", "openai")}
    assert [body["model"] for body in bodies.values()] == [served] * 3
    assert {response.headers["x-whisper-model"] for response in responses.values()} == {served}
    assert "large-v3" in bodies["other"]["warnings"][0] and not any("warnings" in bodies[name] for name in ("same", "openai"))
    header = responses["srt"].headers["x-whisper-warnings"]
    assert "large-v3" in header and header.isascii() and header.isprintable()
    assert "x-whisper-warnings" not in responses["other"].headers


@pytest.mark.parametrize("form", ["json", "verbose_json", "text", "srt", "vtt", "tsv"])
def test_the_demonstration_model_says_so(form: str) -> None:
    with Transcriber(Settings(model="nano"), engine=Nano()) as transcriber:
        mailbox = Mailbox(transcriber)
        [response] = drive(mailbox, [ask("a", wav(2), response_format=form)])["a"]
        listed = json.loads(drive(mailbox, [PolledRow("models", {}, {"url_path": "v1/models"})])["models"][0].payload)
    warning = json.loads(response.payload)["warnings"][0] if "json" in form else response.headers["x-whisper-warnings"]
    assert "demonstration" in warning and "download_model.py base" in warning
    assert "demonstration" in listed["data"][0]["warnings"][0]


def test_a_begun_reply_has_the_headers_from_its_first_chunk_on(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    rows = [ask("large", wav(EARLY_FIRST_CHUNK_BYTES / 32_000 + 5), response_format="text", model="large-v3")]
    first = wait_for_response(mailbox, rows, lambda response: response.last is False)
    assert "large-v3" in first.headers["x-whisper-warnings"] and first.headers["x-whisper-model"]
    engine.gate.set()
    drive(mailbox, rows)


def test_an_empty_text_says_why_in_a_header(mailbox: Mailbox) -> None:
    silence = wav(0)[:-4] + (64_000).to_bytes(4, "little") + bytes(64_000)
    [response] = drive(mailbox, [ask("a", silence, response_format="text")])["a"]
    assert (response.status, response.payload) == (200, b"\n")
    assert response.headers["x-whisper-warnings"]


@pytest.mark.parametrize("path", ["", TRANSCRIPTIONS])
def test_a_stream_that_fails_later_ends_with_the_error(path: str) -> None:
    engine = Stepper(fails=lambda window: window.start > 0)
    with Transcriber(Settings(), engine=engine) as transcriber:
        mailbox, rows = Mailbox(transcriber), [ask("a", wav(75), path, stream="true", strategy="sequential")]
        engine.steps.release()
        first = wait_for_response(mailbox, rows)
        engine.steps.release(10)
        last = drive(mailbox, rows)["a"][-1]
    assert (first.last, last.last, last.content_type) == (False, True, first.content_type)
    [error] = events(last.payload) if path else lines(last.payload)
    assert error["error"]["code"] == "engine_error"


def test_after_a_reply_the_next_calls_wait_less(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = mailbox._seconds_to_wait()
    drive(mailbox, [ask("a", wav(2))])
    assert mailbox._seconds_to_wait() < usual
    monkeypatch.setattr("whispercore.torchserve.mailbox.AFTER_REPLIES_SECONDS", 0.0)
    assert mailbox._seconds_to_wait() == usual


def test_equal_uploads_share_a_job_and_keep_their_response_formats(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    audio = wav(2)
    rows = [ask("json", audio), ask("srt", audio, response_format="srt"), ask("sse", audio, TRANSCRIPTIONS, stream="true")]
    mailbox.exchange(rows[:1])
    mailbox.exchange(rows)
    assert (mailbox.intake.jobs.shared, mailbox.intake.transcriber.open_requests, len(mailbox)) == (2, 1, 3)
    engine.gate.set()
    responses = drive(mailbox, rows)
    assert len(engine.windows) == 1
    text = json.loads(responses["json"][0].payload)["text"]
    assert text in responses["srt"][0].payload.decode() and responses["srt"][0].content_type.startswith("application/x-subrip")
    assert events(responses["sse"][-1].payload)[-1]["text"] == text


@pytest.mark.parametrize("other", [{"audio": wav(2, 1)}, {"audio": wav(2)[:-2] + b"xx"}, {"audio": wav(3)}, {"language": "en"}])
def test_other_audio_or_options_are_a_job_of_their_own(mailbox: Mailbox, engine: Recorder, other: dict[str, Any]) -> None:
    engine.gate.clear()
    mailbox.exchange([ask("a", wav(2)), ask("b", **({"audio": wav(2)} | other))])
    assert (mailbox.intake.jobs.shared, mailbox.intake.transcriber.open_requests) == (0, 2)
    engine.gate.set()


def test_a_request_with_no_cache_shares_no_job(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    mailbox.exchange([row("first", wav(2)), row("second", wav(2), **{"Cache-Control": "no-cache"})])
    assert (mailbox.intake.jobs.shared, mailbox.intake.transcriber.open_requests) == (0, 2)
    engine.gate.set()


def test_a_shared_job_is_cancelled_when_its_last_request_goes_away(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    rows = [ask("first", wav(2)), ask("second", wav(2)), ask("third", wav(2))]
    mailbox.exchange(rows)
    mailbox.exchange(rows[1:])
    assert (len(mailbox), mailbox.intake.transcriber.open_requests) == (2, 1)
    mailbox.exchange([])
    assert (len(mailbox), mailbox.intake.transcriber.open_requests) == (0, 0)
    mailbox.exchange([ask("fourth", wav(2))])
    assert mailbox.intake.jobs.shared == 2, "a cancelled job was shared"
    engine.gate.set()


def test_a_request_that_joins_a_stream_late_gets_the_earlier_segments_at_once() -> None:
    engine = Stepper()
    with Transcriber(Settings(), engine=engine) as transcriber:
        mailbox = Mailbox(transcriber)
        early, late = (ask(name, wav(75), stream="true", strategy="sequential") for name in ("early", "late"))
        engine.steps.release()
        first = wait_for_response(mailbox, [early])
        joined = wait_for_response(mailbox, [late, early])
        assert (joined.payload, mailbox.intake.jobs.shared) == (first.payload, 1)
        engine.steps.release(10)
        responses = drive(mailbox, [early, late])
    assert lines(responses["early"][-1].payload)[-1] == lines(responses["late"][-1].payload)[-1]


def test_a_request_without_an_id_gets_the_servers(mailbox: Mailbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="whispercore")
    rows = [row("uuid-1", wav(1)), row("uuid-2", wav(2), **{"x-request-id": "mine"}), row("uuid-3", b"", **{"x-request-id": "bad"})]
    responses = drive(mailbox, rows)
    assert [responses[row.server_id][0].request_id for row in rows] == ["uuid-1", "mine", "bad"]
    assert "request uuid-1: 1.0 s" in caplog.text and "request uuid-2 (mine): 2.0 s" in caplog.text
    assert "request uuid-3 (bad) refused with 400" in caplog.text


def test_readiness_follows_the_engine(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = mailbox.intake.transcriber.scheduler
    row = PolledRow("r", {}, {"url_path": "health/ready"})
    assert mailbox.exchange([row])["r"].status == 200
    monkeypatch.setattr(type(scheduler), "stalled_seconds", 100.0)
    assert mailbox.exchange([row])["r"].status == 503 and not mailbox.intake.health.is_stalled
    monkeypatch.setattr(type(scheduler), "stalled_seconds", 200.0)
    assert mailbox.intake.health.is_stalled
    scheduler.longest_seconds = 30.0  # a large model on a small machine may need as long
    assert not mailbox.intake.health.is_stalled and mailbox.exchange([row])["r"].status == 200
    scheduler.longest_seconds = 0.0
    monkeypatch.setattr(type(scheduler), "stalled_seconds", 0.0)
    mailbox.intake.jobs.closing = True
    reply = mailbox.exchange([row])["r"]
    assert reply.status == 503


def test_a_form_of_too_many_fields_is_refused(mailbox: Mailbox) -> None:
    forms: tuple[dict[str, Any], ...] = ({f"f{number}": b"" for number in range(1001)}, {"f[]": [b""] * 1001})
    for number, fields in enumerate(forms):
        (response,) = mailbox.exchange([PolledRow(str(number), fields, {})]).values()
        assert response.status == 400 and b"too_many_fields" in response.payload


def test_a_refusal_for_load_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Stepper()
    with Transcriber(Settings(max_open_requests=1), engine=engine) as transcriber:
        mailbox = Mailbox(transcriber)
        assert mailbox.exchange([row("first", wav(1.0))]) == {}
        deadline = time.monotonic() + PATIENCE
        while transcriber.waiting_audio_seconds != 1.0 and time.monotonic() < deadline:  # more is guessed until it has been opened
            time.sleep(0.001)
        monkeypatch.setattr(type(transcriber.scheduler), "speed", 0.08)  # of the one second that waits
        response = mailbox.exchange([row("first", wav(1.0)), row("second", wav(2.0))])["second"]
        assert response.status == 503 and response.headers["Retry-After"] == "13"
        mailbox.intake.jobs.closing = True
        assert mailbox.exchange([row("first", wav(1.0)), row("third", wav(2.0))])["third"].headers["Retry-After"] == "60"
        engine.steps.release(10)


def test_the_header_of_a_trusted_front_names_the_client(engine: Recorder) -> None:
    engine.gate.clear()
    with Transcriber(Settings(client_header="X-Whisper-Client", max_open_requests=4), engine=engine) as transcriber:
        mailbox = Mailbox(transcriber)
        rows = [row(str(seed), wav(1, seed), **{"x-whisper-client": "a"}) for seed in range(3)] + [row("other", wav(2))]
        (refused,) = mailbox.exchange(rows).values()
        assert refused.status == 503 and json.loads(refused.payload)["error"]["code"] == "client_overloaded"
        assert int(refused.headers["Retry-After"]) >= 1
        assert [request.attachment.client for request in mailbox._open.values()] == ["a", "a", ""]
        engine.gate.set()
        drive(mailbox, [rows[0], rows[1], rows[3]])


def test_without_that_setting_the_header_is_an_unknown_option(mailbox: Mailbox) -> None:
    response = mailbox.exchange([row("a", wav(1), **{"x-whisper-client": "a"})])["a"]
    assert response.status == 400 and b"Client" in response.payload.title()


def test_a_request_that_has_waited_long_beside_others_gets_an_empty_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.torchserve.mailbox.QUEUED_SECONDS", 0.05)
    engine = Recorder(max_batch=4)
    engine.gate.clear()
    with Transcriber(Settings(), engine=engine) as transcriber:
        mailbox = Mailbox(transcriber)
        rows = [row(str(seed), wav(1, seed)) for seed in range(6)]
        few, deadline = rows[:4], time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert mailbox.exchange(few) == {}, "no more than share a batch: their errors keep their status"
        assert wait_for_response(mailbox, rows, lambda response: response.last is False).payload == b""
        mailbox.exchange(rows[3:])
        assert len(mailbox) == 3 and transcriber.open_requests == 3, "TorchServe leaves out who has left"
        engine.gate.set()
        drive(mailbox, rows[3:])


def test_the_watchdogs_token_transcribes_ahead_of_the_queue_and_is_not_counted(engine: Recorder) -> None:
    engine.gate.clear()
    with Transcriber(Settings(max_open_requests=1), engine=engine) as transcriber:
        mailbox = Mailbox(transcriber, watchdog_token="secret")
        path = {"url_path": "health/ready"}
        full = row("full", wav(1))
        test = PolledRow("test", {}, {**path, HEADER.title(): "secret"})
        assert mailbox.exchange([full, test]) == {}
        assert mailbox.exchange([full, test, PolledRow("guess", {}, {**path, HEADER: "guess"})])["guess"].status == 200
        engine.gate.set()
        answers = drive(mailbox, [full, test])
    assert [response.is_test for response in (answers["full"][-1], answers["test"][-1])] == [False, True]
    assert answers["test"][-1].status == 200


def test_nothing_is_the_watchdogs_without_a_token(mailbox: Mailbox) -> None:
    response = mailbox.exchange([PolledRow("a", {}, {"url_path": "health/ready", HEADER: ""})])["a"]
    assert not response.is_test and b'"status"' in response.payload


def test_readiness_tells_what_the_watchdog_found(mailbox: Mailbox) -> None:
    drive(mailbox, [row("a", wav(1))])
    ready = mailbox.exchange([PolledRow("b", {}, {"url_path": "health/ready"})])["b"]
    report = json.loads(ready.payload)
    assert ready.status == 200 and report["watchdog"] == "passed" and report["waiting_audio_seconds"] == 0.0
    assert abs(time.time() - report["last_success_timestamp"]) < PATIENCE
    mailbox.intake.health.watchdog_failed = True
    ready = mailbox.exchange([PolledRow("c", {}, {"url_path": "health/ready"})])["c"]
    assert ready.status == 503 and json.loads(ready.payload)["status"] == "not ready" and not mailbox.intake.is_ready


def test_the_gateway_names_the_client_in_the_headers_that_it_passes_on(engine: Recorder, tmp_path: Path) -> None:
    engine.gate.clear()
    with Transcriber(Settings(client_header="x-whisper-client"), engine=engine) as transcriber:
        mailbox = Mailbox(transcriber, tmp_path)
        token = "0" * 32
        (tmp_path / token).write_bytes(wav(1))
        body = message({"vad_filter": "false"}, {"x-whisper-client": "a"}, {"file": [token]})
        assert mailbox.exchange([PolledRow("a", {"body": body}, {"x-whisper-client": "forged"})]) == {}
        assert [request.attachment.client for request in mailbox._open.values()] == ["a"]
        engine.gate.set()
