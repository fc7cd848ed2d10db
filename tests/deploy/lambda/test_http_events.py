"""Requests of a function URL and of API Gateway: the same bodies, options and errors as the server's."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.unit.doubles import Recorder, wav

from .conftest import Context

CLIP = wav(1.9)
URL_DOMAIN, GATEWAY_DOMAIN = "abc.lambda-url.eu-central-1.on.aws", "abc.execute-api.eu-central-1.amazonaws.com"
FORM = "multipart/form-data; boundary=X"


def form(**fields: bytes | str) -> bytes:
    parts = []
    for name, value in fields.items():
        content = value.encode() if isinstance(value, str) else value
        kind = '; filename="a.wav"' if isinstance(value, bytes) else ""
        parts.append(f'--X\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n\r\n'.encode() + content + b"\r\n")
    return b"".join(parts) + b"--X--\r\n"


def url_event(
    body: bytes | str | None, path: str = "/", query: str = "", domain: str = URL_DOMAIN, stage: str = "$default", **headers: str
) -> Any:
    """Payload version 2.0, which function URLs and HTTP APIs send."""
    event = {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
        "requestContext": {"domainName": domain, "stage": stage, "http": {"method": "POST", "path": path}},
        "isBase64Encoded": isinstance(body, bytes),
    }
    return event if body is None else {**event, "body": base64.b64encode(body).decode() if isinstance(body, bytes) else body}


def rest_event(body: bytes | str, path: str = "/", query: dict[str, list[str]] | None = None, **headers: str) -> Any:
    """Payload version 1.0, which REST APIs send."""
    return {
        "httpMethod": "POST",
        "path": path,
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
        "multiValueHeaders": None,
        "queryStringParameters": {name: values[-1] for name, values in (query or {}).items()} or None,
        "multiValueQueryStringParameters": query,
        "requestContext": {"domainName": GATEWAY_DOMAIN, "stage": "prod"},
        "isBase64Encoded": isinstance(body, bytes),
        "body": base64.b64encode(body).decode() if isinstance(body, bytes) else body,
    }


def error_of(result: Any) -> Any:
    return json.loads(result["body"])["error"]


@contextmanager
def closed(gate: threading.Event) -> Iterator[None]:
    """The engine waits."""
    gate.clear()
    try:
        yield
    finally:
        gate.set()


@pytest.mark.parametrize(
    "event",
    [
        url_event(CLIP, query="vad_filter=false", content_type="audio/wav"),
        url_event(CLIP, "/predictions/whisper", "vad_filter=false"),
        url_event(CLIP, "/invocations", "vad_filter=false"),
        url_event(CLIP, X_Whisper_Vad_Filter="false"),
        url_event(form(file=CLIP, vad_filter="false"), content_type=FORM),
        url_event(form(file=CLIP), query="vad_filter=false", Content_Type=FORM),
        url_event(json.dumps({"audio": base64.b64encode(CLIP).decode(), "vad_filter": False}), content_type="application/json"),
        url_event(CLIP, "/prod/predictions/whisper", "vad_filter=false", domain=GATEWAY_DOMAIN, stage="prod"),
        rest_event(CLIP, "/predictions/whisper", {"vad_filter": ["false"]}),
        rest_event(form(file=CLIP, vad_filter="false"), content_type=FORM),
    ],
)
def test_every_form_of_a_request_has_the_same_words(function: Any, context: Context, event: Any) -> None:
    result = function(event, context)
    expected = function(url_event(CLIP, query="vad_filter=false"), context)
    assert result["statusCode"] == 200 and result["headers"]["content-type"] == "application/json"
    assert result["isBase64Encoded"] is False
    assert json.loads(result["body"])["text"] and result["body"] == expected["body"]


def test_openai_clients_form_gets_openais_reply(function: Any, context: Context) -> None:
    body = form(file=CLIP, model="whisper-1", response_format="verbose_json", vad_filter="false", **{"timestamp_granularities[]": "word"})
    result = function(url_event(body, "/v1/audio/transcriptions", content_type=FORM), context)
    reply = json.loads(result["body"])
    assert result["statusCode"] == 200 and reply["task"] == "transcribe" and reply["words"] and "segments" not in reply


def test_text_formats_have_their_content_type(function: Any, context: Context) -> None:
    result = function(url_event(CLIP, query="response_format=srt&vad_filter=false"), context)
    assert result["headers"]["content-type"] == "application/x-subrip; charset=utf-8"
    assert result["body"].startswith("1\n00:00:00,000 --> ")
    assert result["headers"]["x-whisper-model"] and result["headers"]["x-client-request-id"] == context.aws_request_id


def test_a_stream_arrives_in_one_piece(function: Any, context: Context) -> None:
    result = function(url_event(CLIP, query="stream=true&vad_filter=false"), context)
    lines = [json.loads(line) for line in result["body"].splitlines()]
    assert [line["type"] for line in lines] == ["segment", "transcript"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/whisper-1"])
def test_models_are_listed(function: Any, context: Context, path: str) -> None:
    assert function(url_event(None, path), context)["statusCode"] == 200


def test_a_repeated_query_field_is_a_list(function: Any, context: Context, engine: Recorder) -> None:
    in_url = url_event(CLIP, query="languages[]=de&languages[]=fr&vad_filter=false")
    in_fields = rest_event(CLIP, query={"languages": ["de", "fr"], "vad_filter": ["false"]})
    for event in (in_url, in_fields):
        assert function(event, context)["statusCode"] == 200
        assert engine.windows[-1].decoding.languages == ("de", "fr")


@pytest.mark.parametrize(
    ("event", "status", "code", "words"),
    [
        (url_event(CLIP, query="beam_sise=5"), 400, "unknown_parameter", "did you mean 'beam_size'"),
        (url_event(b"no audio"), 415, "unsupported_audio", "known container"),
        (url_event(b""), 400, "empty_file", "0 bytes"),
        (url_event(None), 400, "missing_required_parameter", "missing file"),
        (url_event(CLIP, "/v2/audio"), 404, "not_found", "no such path: /v2/audio"),
        (url_event(form(file=CLIP)[:-200], content_type=FORM), 400, "invalid_form", "cut short"),
        (url_event("{", content_type="application/json"), 400, "invalid_json", "not valid JSON"),
        (url_event(wav(60.0)), 413, "too_large", "at most 1,048,576"),
        ({**url_event(CLIP), "body": "@@@"}, 400, "invalid_base64", "not valid base64"),
        (rest_event("RIFF\ufffd\ufffd", content_type="audio/wav"), 400, "invalid_value", "binary media types"),
        ({**url_event(CLIP), "headers": ["a"]}, 400, "unknown_event", "headers must be an object"),
        ({**url_event(CLIP), "body": 5}, 400, "unknown_event", "body must be text"),
    ],
)
def test_a_bad_request_gets_the_servers_error(function: Any, context: Context, event: Any, status: int, code: str, words: str) -> None:
    result = function(event, context)
    error = error_of(result)
    assert (result["statusCode"], error["code"]) == (status, code)
    assert words in error["message"] and {"message", "type", "param", "code"} == error.keys()


def test_a_client_cannot_choose_the_path_by_a_header(function: Any, context: Context) -> None:
    result = function(url_event(CLIP, query="vad_filter=false", url_path="v1/models", URL_PATH="v1/models"), context)
    assert "segments" in json.loads(result["body"])


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic secret", "Bearer sécret"])
def test_the_api_key_is_checked(make: Callable[..., Any], context: Context, header: str | None) -> None:
    function = make(WHISPER_API_KEY="secret")
    refused = function(url_event(CLIP, **({"authorization": header} if header else {})), context)
    assert refused["statusCode"] == 401 and error_of(refused)["code"] in ("missing_api_key", "invalid_api_key")
    assert function(url_event(CLIP, authorization="Bearer secret", X_Whisper_Vad_Filter="false"), context)["statusCode"] == 200
    assert function(url_event(None, "/health/ready"), context)["statusCode"] == 200


def test_before_time_is_up_the_function_says_what_to_do(function: Any, engine: Recorder) -> None:
    with closed(engine.gate):
        result = function(url_event(CLIP, query="vad_filter=false"), Context(seconds=0.5))
    assert result["statusCode"] == 504 and error_of(result)["code"] == "timeout"
    assert "more memory" in error_of(result)["message"] and function.intake.transcriber.open_requests == 0


def test_api_gateway_has_less_time_and_says_so(function: Any, engine: Recorder, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    import http_events

    monkeypatch.setattr(http_events, "GATEWAY_SECONDS", 0.2)
    with closed(engine.gate):
        result = function(rest_event(CLIP, query={"vad_filter": ["false"]}), context)
    assert result["statusCode"] == 504 and "use the function's URL" in error_of(result)["message"]


def test_a_reply_beyond_the_limit_says_so_or_goes_to_s3(
    make: Callable[..., Any], context: Context, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transcription_function

    whole = make()(url_event(CLIP, query="vad_filter=false"), context)["body"]
    monkeypatch.setattr(transcription_function, "MAX_REPLY", 100)
    refused = make()(url_event(CLIP, query="vad_filter=false"), context)
    assert refused["statusCode"] == 413 and "WHISPER_OUTPUT_BUCKET" in error_of(refused)["message"]
    event = url_event(CLIP, query="vad_filter=false", x_request_id="../the reply of another")
    result = make(WHISPER_OUTPUT_BUCKET="results")(event, context)
    assert result["statusCode"] == 303 and "transcripts/replies/request-1.json" in result["headers"]["location"]
    stored = s3.get_object(Bucket="results", Key="transcripts/replies/request-1.json")
    assert stored["Body"].read().decode() == whole and stored["ContentType"] == "application/json"


def test_a_bug_is_an_error_with_a_body(function: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function.intake, "receive", lambda *_, **__: 1 / 0)
    result = function(url_event(CLIP), context)
    assert result["statusCode"] == 500 and error_of(result)["code"] == "engine_error"


def test_openais_client_works_with_the_function(make: Callable[..., Any], context: Context) -> None:
    """Its requests become events as a function URL makes them."""
    function = make(WHISPER_API_KEY="secret")

    def send(request: httpx.Request) -> httpx.Response:
        headers = {name.replace("-", "_"): value for name, value in request.headers.items()}
        result = function(url_event(request.read(), request.url.path, request.url.query.decode(), **headers), context)
        return httpx.Response(result["statusCode"], headers=result["headers"], text=result["body"])

    http = httpx.Client(transport=httpx.MockTransport(send))
    client = openai.OpenAI(base_url=f"https://{URL_DOMAIN}/v1", api_key="secret", http_client=http, max_retries=0)
    reply = client.audio.transcriptions.create(
        file=("clip.wav", CLIP), model="whisper-1", response_format="verbose_json", extra_body={"vad_filter": False}
    )
    assert reply.text and reply.segments and reply.duration == 1.9
    assert client.models.list().data[0].object == "model"
    with pytest.raises(openai.BadRequestError, match="beam_size"):
        client.audio.transcriptions.create(file=("clip.wav", CLIP), model="whisper-1", extra_body={"beam_size": 400})
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.with_options(api_key="wrong").models.list()
