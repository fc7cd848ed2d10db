"""Every option with all sorts of values, from the dataclasses that declare them: the reply is a 200 or a 4xx, and the
worker lives."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any, get_type_hints

import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.recordings import SAMPLES
from tests.serve.server import FRONTS, Server
from whispercore.api.fields import ALIASES
from whispercore.options import Options, Reply

CLIP = (SAMPLES / "code.ogg").read_bytes()
pytestmark = FRONTS
PATHS = ("", "/1.0/v1/audio/transcriptions", "/1.0/v1/audio/translations")
HINTS = get_type_hints(Options) | get_type_hints(Reply)
FIELDS = {item.name: item.metadata for kind in (Options, Reply) for item in dataclasses.fields(kind)}
NAMES = (*FIELDS, *ALIASES, *(f"{name}[]" for name in FIELDS), "file", "audio", "data", "body", "chunking_strategy[type]", "url_path")
ODD = (
    *("", " ", "none", "null", "true", "0", "-1", "1", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 5000, "٣", "0x10", "1_000"),
    *(
        "[]",
        "{}",
        "[[1]]",
        '{"type": "server_vad"}',
        "1,2",
        "1,,2",
        ",",
        "en",
        "English",
        "auto",
        "word",
        "logprobs",
        "srt",
        "verbose_json",
    ),
    *("a" * 20_000, "\0", "\r\n", "💥" * 300, "\u202e", "../../etc/passwd", "%s%n", "<|endoftext|>", "<|nospeech|>" * 100),
)


def plausible(name: str) -> st.SearchStrategy[str]:
    """Values of the option's type, at the bounds of its range and slightly outside."""
    metadata, hint = FIELDS[name], str(HINTS[name])
    if metadata["choices"]:
        return st.sampled_from(metadata["choices"])
    if "int" in hint or "float" in hint:
        low, high = metadata["minimum"] or 0, metadata["maximum"] or 100
        within = st.integers(int(low), int(high)).map(str) | st.floats(low, high).map("{:.3f}".format)
        return within | st.sampled_from([f"{bound + step:g}" for bound in (low, high) for step in (-1, -0.01, 0, 0.01, 1)])
    return st.sampled_from(["true", "false"] if "bool" in hint else ["en", "es", "English", "auto", "a word", "💥"])


TEXTS = st.sampled_from(ODD) | st.text(max_size=50)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@st.composite
def pairs(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> list[tuple[str, Any]]:
    """Up to three valid fields, and in half of the cases a fourth one with any values, once or several times."""
    fields: list[tuple[str, Any]] = [(name, draw(plausible(name))) for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=3))]
    if not fields or draw(st.booleans()):
        name = draw(st.sampled_from(NAMES))
        fields += [(name, value) for value in draw(st.lists(values, min_size=1, max_size=3))]
    return fields


def send(url: str, form: str, fields: list[tuple[str, Any]]) -> requests.Response:
    if form == "json":
        body = json.dumps({"audio": base64.b64encode(CLIP).decode()} | dict(fields))
        return requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=120)
    if form == "headers":
        headers = {f"X-Whisper-{name.strip('[]').replace('_', '-')}": header(value) for name, value in fields}
        return requests.post(url, data=CLIP, headers=headers, timeout=120)
    parts = [(name, (None, value)) for name, value in fields]
    return requests.post(url, files=[("file", ("clip.ogg", CLIP)), *parts], timeout=120)


def header(value: str | bytes) -> bytes:
    """The bytes of a value that a header may have, on one line."""
    raw = value if isinstance(value, bytes) else value.encode(errors="replace")
    return bytes(byte for byte in raw if byte >= 32)[:4000].strip()


REQUESTS = st.one_of(
    st.tuples(st.just("json"), pairs(JSON_VALUES)),
    st.tuples(st.sampled_from(["form", "headers"]), pairs(TEXTS | st.binary(max_size=50))),
)


def test_every_option(server: Server) -> None:
    workers = server.processes("model_service_worker")

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(path=st.sampled_from(PATHS), request=REQUESTS)
    def fuzz(path: str, request: tuple[str, list[tuple[str, Any]]]) -> None:
        reply = send(server.url + path, *request)
        assert reply.status_code // 100 in (2, 4), reply.text
        if reply.status_code != 200:
            assert reply.json()["error"].keys() == {"message", "type", "param", "code"}

    fuzz()
    assert server.processes("model_service_worker") == workers, "the worker died"
    assert server.metric("whisper_open_requests") == 0
