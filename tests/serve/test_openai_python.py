"""OpenAI's Python client from PyPI, unmodified, against the real server."""

from __future__ import annotations

import asyncio
import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile
from openai import AsyncOpenAI, OpenAI
from openai.types.audio import TranscriptionVerbose, TranslationVerbose

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, repeat, words
from tests.serve.server import FRONTS, Server, wait_for

TIMER = SAMPLES / "timer.flac"
EXPECTED = words(TRANSCRIPTS["timer.flac"])
pytestmark = FRONTS


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=server.openai_url, api_key="unused", max_retries=0, timeout=120)


def transcribe(client: OpenAI, **options: Any) -> Any:
    create: Any = client.audio.transcriptions.create
    return create(**({"file": TIMER, "model": "whisper-1"} | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"response_format": "json"},
        {"temperature": 0.0, "language": "en"},
        {"chunking_strategy": "auto"},
        {"chunking_strategy": {"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 500, "prefix_padding_ms": 300}},
        {"languages": ["en", "es"]},
        {"extra_body": {"beam_size": 2, "strategy": "sequential"}},
        {"file": ("timer.flac", TIMER.read_bytes(), "audio/flac")},
    ],
)
def test_json(client: OpenAI, options: dict[str, Any]) -> None:
    reply = transcribe(client, **options)
    assert words(reply.text) == EXPECTED
    assert (reply.usage.type, reply.usage.seconds) == ("duration", 3)


@pytest.mark.parametrize("options", [{"prompt": "A timer."}, {"keywords": ["timer", "minutes"]}, {"temperature": 0.4}])
def test_hints_are_taken(client: OpenAI, options: dict[str, Any]) -> None:
    """A prompt may mislead the small bundled model, so the reply only needs to have words."""
    assert words(transcribe(client, **options).text)


@pytest.mark.parametrize(("response_format", "mark"), [("text", ""), ("srt", "00:00:00,"), ("vtt", "WEBVTT\n")])
def test_text(client: OpenAI, response_format: str, mark: str) -> None:
    reply = transcribe(client, response_format=response_format)
    assert isinstance(reply, str) and mark in reply
    assert set(EXPECTED) <= set(words(reply))


@pytest.mark.parametrize(
    ("granularities", "segments", "timed_words"),
    [
        ([], True, False),
        (["segment"], True, False),
        (["word"], False, True),
        (["word", "segment"], True, True),
        (["segment", "word"], True, True),
    ],
)
def test_verbose_json(client: OpenAI, granularities: list[str], segments: bool, timed_words: bool) -> None:
    options = {"timestamp_granularities": granularities} if granularities else {}
    reply = transcribe(client, response_format="verbose_json", **options)
    assert isinstance(reply, TranscriptionVerbose)
    assert (words(reply.text), reply.language, reply.model_extra["task"]) == (EXPECTED, "english", "transcribe")  # type: ignore[index]
    assert reply.duration == pytest.approx(2.9, abs=0.1)
    assert bool(reply.segments) == segments and bool(reply.words) == timed_words
    if reply.segments:
        assert words(" ".join(segment.text for segment in reply.segments)) == EXPECTED
        assert reply.segments[0].model_fields_set >= set(type(reply.segments[0]).model_fields), "a field of OpenAI's is missing"
    if reply.words:
        assert words(" ".join(word.word for word in reply.words)) == EXPECTED
        times = [time for word in reply.words for time in (word.start, word.end)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= reply.duration


def test_logprobs(client: OpenAI) -> None:
    reply = transcribe(client, include=["logprobs"])
    assert words("".join(entry.token for entry in reply.logprobs)) == EXPECTED
    assert all(entry.logprob <= 0 and bytes(map(int, entry.bytes)).decode() == entry.token for entry in reply.logprobs)


@pytest.mark.parametrize("options", [{}, {"include": ["logprobs"]}, {"response_format": "text"}])
def test_stream(client: OpenAI, options: dict[str, Any]) -> None:
    *deltas, done = transcribe(client, stream=True, **options)
    assert deltas and {event.type for event in deltas} == {"transcript.text.delta"}
    assert (done.type, words(done.text)) == ("transcript.text.done", EXPECTED)
    assert "".join(event.delta for event in deltas) == done.text
    assert bool(done.logprobs) == ("include" in options)
    assert done.usage.type == "tokens" and done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens


def test_deltas_are_sent_while_the_audio_is_transcribed(client: OpenAI, tmp_path: Path) -> None:
    """Nearly twelve minutes of audio, and a delta for each batch."""
    stream = transcribe(client, file=repeat("home.flac", 15, tmp_path / "long.flac"), stream=True)
    events = list(stream)
    assert len(events) > 3
    assert "".join(event.delta for event in events[:-1]) == events[-1].text
    assert len(words(events[-1].text)) == pytest.approx(15 * len(words(TRANSCRIPTS["home.flac"])), rel=0.05)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI deprecated it; the server still has it
def test_translations(client: OpenAI) -> None:
    create = client.audio.translations.create
    assert words(create(file=TIMER, model="whisper-1").text)
    verbose = create(file=TIMER, model="whisper-1", response_format="verbose_json", prompt="A timer.", temperature=0)
    assert isinstance(verbose, TranslationVerbose)
    assert verbose.language == "english" and verbose.segments


def test_models(client: OpenAI) -> None:
    (served,) = client.models.list()
    assert client.models.retrieve(served.id) == served
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_asynchronous(server: Server) -> None:
    async def both() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=server.openai_url, api_key="unused", max_retries=0, timeout=120) as client:
            create = client.audio.transcriptions.create
            whole = create(file=TIMER, model="whisper-1")
            stream = await create(file=TIMER, model="whisper-1", stream=True)
            return (await whole).text, "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])

    whole, streamed = asyncio.run(both())
    assert words(whole) == words(streamed) == EXPECTED


@pytest.mark.parametrize(
    ("options", "error", "status", "param", "code"),
    [
        ({"temperature": 7}, openai.BadRequestError, 400, "temperature", "invalid_value"),
        ({"language": "xx"}, openai.BadRequestError, 400, "language", "invalid_value"),
        ({"language": "xx", "stream": True}, openai.BadRequestError, 400, "language", "invalid_value"),
        ({"extra_body": {"beam_sise": 5}}, openai.BadRequestError, 400, "beam_sise", "unknown_parameter"),
        ({"file": ("empty.wav", b"")}, openai.BadRequestError, 400, "file", "empty_file"),
        ({"file": ("letter.wav", b"words, not sounds " * 100)}, openai.APIStatusError, 415, None, "unsupported_audio"),
        ({"file": ("letter.wav", b"words, not sounds " * 100), "stream": True}, openai.APIStatusError, 415, None, "unsupported_audio"),
    ],
)
def test_errors(client: OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], status: int, param: str, code: str) -> None:
    with pytest.raises(error) as caught:
        transcribe(client, **options)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert param in (None, caught.value.param)
    assert caught.value.message and caught.value.type == "invalid_request_error" and caught.value.request_id


def test_a_file_of_zero_seconds(client: OpenAI) -> None:
    file = io.BytesIO()
    soundfile.write(file, [], 16000, format="WAV")
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        transcribe(client, file=("nothing.wav", file.getvalue()))
    assert caught.value.code == "unreadable_audio"


def test_an_unknown_path(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(input="x", model="y")
    assert caught.value.code == "not_found" and "/v1/audio/transcriptions" in caught.value.message


def test_ids(client: OpenAI, server: Server) -> None:
    """The log has the client's own id. TorchServe replies with its id in x-request-id, the gateway with the client's."""
    create = client.audio.transcriptions.with_raw_response.create
    reply = create(file=TIMER, model="whisper-1", extra_headers={"X-Request-Id": "order-66"})
    assert reply.headers["x-client-request-id"] == "order-66"
    name = f"{reply.request_id} (order-66)" if server.kind == "torchserve" else "order-66"
    wait_for(
        lambda: bool(re.search(rf"request .*{re.escape(name)}\)?: 2.9 s", server.log.read_text())), 10, "the request's line in the log"
    )
    without = create(file=TIMER, model="whisper-1")
    assert without.headers["x-client-request-id"] == without.request_id != reply.request_id


def test_a_repeated_request_shares_the_work(client: OpenAI, server: Server, tmp_path: Path) -> None:
    """A client that retries sends the same upload again while the first copy is being transcribed."""
    long = repeat("home.flac", 6, tmp_path / "long.flac")
    shared, windows = server.metric("whisper_shared_total"), server.metric("whisper_windows_total")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(transcribe, client, file=long)
        wait_for(lambda: server.metric("whisper_open_requests") == 1, 60, "the first copy is open")
        again = transcribe(client, file=long, response_format="text")
    assert again.strip() == first.result().text
    assert server.metric("whisper_shared_total") == shared + 1
    alone = server.metric("whisper_windows_total") - windows
    transcribe(client, file=long)
    assert server.metric("whisper_windows_total") - windows == pytest.approx(2 * alone, rel=0.1)
