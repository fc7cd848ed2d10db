"""Requests of clients that err or attack: damaged recordings, and options of all sorts, as the bytes that go over the wire.

The same seed and number give the same request. The options are those of the parser's own table, so a new one is tried without a change
here.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin
from urllib.parse import urlencode

from whispercore.api.fields import ALIASES, LIST_FIELDS, REFUSED, TYPES
from whispercore.options import Options, Reply

from .mutations import SAMPLES, damaged

NATIVE = "/predictions/whisper"
PATHS = (
    *(NATIVE, f"{NATIVE}/1.0", "/invocations", f"{NATIVE}/1.0/v1/audio/transcriptions", f"{NATIVE}/1.0/v1/audio/translations"),
    *("/v1/audio/transcriptions", "/v1/audio/translations"),
)
"""Paths to which recordings are posted. A server need not have all of them."""
OTHER_PATHS = (f"{NATIVE}/1.0/v1/models", f"{NATIVE}/1.0/v1/models/nano", f"{NATIVE}/1.0/health/ready", f"{NATIVE}/1.0/%2e%2e/x", "/ping")
FORM_PARSERS = ("/v1/audio/transcriptions",)
"""A server with one of these paths parses forms itself. TorchServe's own front end answers a malformed form with a 500."""
FORMATS = ("json", "text", "srt", "vtt", "tsv", "verbose_json")
_METADATA: Mapping[str, Any] = {item.name: item.metadata for kind in (Options, Reply) for item in dataclasses.fields(kind)}
_SPELLINGS = (
    *(*TYPES, *ALIASES, *REFUSED, *(f"{name}[]" for name in TYPES)),
    *("file[]", "audio_file", "data", "body", "url_path", "encode", "a" * 300, "vad_parameters[x][y]", "{}", "💥"),
)
_ODD = (
    *("", " ", "none", "null", "true", "0", "-1", "1", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 5_000, "٣", "0x10", "1_000"),
    *(
        "[]",
        "{}",
        "[[1]]",
        '{"type": "server_vad"}',
        "1,2",
        "1,,2",
        ",",
        "[" * 3_000,
        '{"start": 1}',
        "en",
        "English",
        "auto",
        "zz",
        "word",
    ),
    *("a" * 20_000, "\0", "\r\n", "💥" * 300, "\u202e", "../../etc/passwd", "%s%n", "<|endoftext|>", "<|nospeech|>" * 100, "\ufeff1"),
    *("1," * 2_000 + "1", "logprobs", "srt", "diarized_json", "separate", "sequential"),
)
_ODD_JSON: tuple[Any, ...] = (None, True, False, 0, -1, 1e308, 1 << 70, [], {}, [None], {"a": 1}, [[[[]]]], "\ud800", [1, "a", None])
_NAMED: Mapping[str, tuple[str, ...]] = {
    "language": ("en", "es", "English", "pt-BR", "auto", "none"),
    "languages": ("en", "es", "de", "auto"),
    "audio_track": ("0", "none", "auto"),
    "model": ("whisper-1", "nano", "large-v3"),
}
"""Values of the options whose type allows any text, but whose parser does not."""
_WORDS = ("en", "es", "English", "pt-BR", "auto", "a word", "names: Ana, Bo", "💥", "<|en|>")
_HEADERS: tuple[tuple[str, str], ...] = (
    *(("Accept", value) for value in ("*/*", "text/plain", "text/vtt;q=0.5, application/json;q=x", "image/png", "," * 500, "a/b;" * 400)),
    *(("X-Request-Id", value) for value in ("an id", "a" * 3_000, "[METRICS]x.Count:1|#|", '"><script>')),
    *(("Cache-Control", "no-cache"), ("Accept-Language", "tlh"), ("Accept-Encoding", "gzip, br"), ("Origin", "http://evil.example")),
    *(("Cookie", "a=" + "b" * 4_000), ("Authorization", "Bearer x"), ("Authorization", "Basic ====="), ("Range", "bytes=0-1")),
    *(("Content-Encoding", "gzip"), ("If-None-Match", "*"), ("X-Forwarded-For", "::1, 127.0.0.1"), ("X-HTTP-Method-Override", "DELETE")),
    *(("X-Whisper-Unknown", "1"), ("X-Whisper-", "1"), ("url_path", "v1/models"), ("describe", "True"), ("X-Whisper-File", "x")),
)
_TYPES = (
    "audio/wav",
    "audio/x-unknown",
    "application/octet-stream",
    "video/mp4",
    "text/plain; charset=utf-7",
    "",
    "a",
    "audio/flac; a=b; a=c",
)


@dataclass(frozen=True, slots=True)
class OddRequest:
    """A request as bytes. `what`: in words."""

    what: str
    data: bytes


Fields = Sequence[tuple[str, Any]]


def media(seed: int, number: int, paths: Sequence[str]) -> OddRequest:
    """A damaged recording: mostly the body as it is, else in a form or in JSON."""
    chance, file = random.Random(f"media {seed} {number}"), damaged(f"{seed} {number}")
    fields: list[tuple[str, Any]] = [("response_format", chance.choice(FORMATS))] if chance.random() < 0.5 else []
    for name, value, share in (("strategy", "sequential", 0.1), ("channels", "separate", 0.1), ("word_timestamps", "true", 0.1)):
        fields += [(name, value)] if chance.random() < share else []
    fields += [("stream", "true")] if not fields and chance.random() < 0.3 else []
    form = chance.choices(("headers", "form", "json", "query"), (6, 2, 1, 1))[0]
    return OddRequest(file.what, _request(chance, chance.choice(paths), form, file.data, fields))


def options(seed: int, number: int, paths: Sequence[str]) -> OddRequest:
    """A good recording with options of all sorts, in a form, in JSON, in headers or in the query."""
    chance = random.Random(f"options {seed} {number}")
    if chance.random() < 0.02:
        path = chance.choice(OTHER_PATHS)
        return OddRequest(path, _http(chance, chance.choice(("GET", "POST")), path, [("Content-Type", chance.choice(_TYPES))], b""))
    if chance.random() < 0.03 and any(path in FORM_PARSERS for path in paths):
        return _malformed_form(chance, chance.choice(paths))
    how = chance.choices((_valid, _bound, _absurd), (6, 2, 3))[0]
    form = chance.choice(("headers", "form", "json", "query", "urlencoded"))
    fields = [(name, _valid(chance, name)) for name in chance.sample(list(TYPES), chance.choice((0, 0, 1, 2, 3)))]
    last = chance.choice(_SPELLINGS if how is _absurd else list(TYPES))
    fields += [(_spelled(chance, last), how(chance, last)) for _ in range(1 if how is _valid else chance.choice((1, 1, 2, 3)))]
    fields = [*fields, ("response_format", chance.choice(FORMATS))] if chance.random() < 0.3 else fields
    fields = [*fields, ("stream", "true")] if chance.random() < 0.2 else fields
    what = f"{form}: {', '.join(f'{name}={value!s:.40}' for name, value in fields)}"
    return OddRequest(what, _request(chance, chance.choice(paths), form, chance.choice(_recordings()), fields))


def good(path: str, recording: bytes) -> bytes:
    """A request without a fault, of the kind that shares no work with others."""
    headers = [("Content-Type", "audio/flac"), ("Cache-Control", "no-cache")]
    return _http(random.Random(0), "POST", path, headers, recording)


@cache
def _recordings() -> tuple[bytes, ...]:
    return tuple((SAMPLES / name).read_bytes() for name in ("code.ogg", "timer.flac", "weather.mp3"))


# Values


def _valid(chance: random.Random, name: str) -> Any:
    """A value of the option's type and in its range; for a list sometimes several."""
    metadata, hint = _METADATA.get(name, {}), TYPES.get(name, str)
    if get_origin(hint) is tuple and chance.random() < 0.5:
        items = [_valid_item(chance, name, metadata, hint) for _ in range(chance.choice((1, 2, 4)))]
        return chance.choice((items, json.dumps(items), ",".join(map(str, items))))
    return _valid_item(chance, name, metadata, hint)


def _valid_item(chance: random.Random, name: str, metadata: Mapping[str, Any], hint: Any) -> Any:
    choices = metadata.get("choices") or _NAMED.get(name) or [value for value in get_args(hint) if isinstance(value, str)]
    if choices:
        return chance.choice(choices)
    low, high = _range(metadata)
    if "int" in str(hint):
        return chance.randint(int(low), int(high))
    if "float" in str(hint):
        return round(chance.uniform(low, high), 3)
    return chance.choice((True, False, "true", "0", "yes", "off") if "bool" in str(hint) else _WORDS)


def _bound(chance: random.Random, name: str) -> Any:
    """A value at the bounds of the option's range, or just outside."""
    low, high = _range(_METADATA.get(name, {}))
    return chance.choice((low, high)) + chance.choice((-1, -0.001, 0, 0, 0.001, 1))


def _absurd(chance: random.Random, name: str) -> Any:
    return chance.choice(_ODD_JSON if chance.random() < 0.3 else _ODD)


def _range(metadata: Mapping[str, Any]) -> tuple[float, float]:
    low, high = metadata.get("minimum"), metadata.get("maximum")
    return (low if low is not None else -5.0 if high == 0 else 0.0), (high if high is not None else 100.0)


def _spelled(chance: random.Random, name: str) -> str:
    """The option's own name, another server's name for it, or the form of a repeated field."""
    names = [name, name, *(alias for alias, own in ALIASES.items() if own == name), *([f"{name}[]"] if name in LIST_FIELDS else [])]
    return chance.choice(names)


# Requests


def _request(chance: random.Random, path: str, form: str, recording: bytes, fields: Fields) -> bytes:
    """The recording and the fields in this form, with headers that mean something, nothing or nonsense."""
    pairs = [(name, item) for name, value in fields for item in (value if isinstance(value, list) and form != "json" else [value])]
    texts = [(name, _text(value)) for name, value in pairs]
    headers = chance.sample(_HEADERS, chance.choice((0, 0, 0, 1, 2)))
    if form == "json":
        body = json.dumps({chance.choice(("audio", "file", "data")): base64.b64encode(recording).decode(), **dict(fields)}).encode()
        return _http(chance, "POST", path, [("Content-Type", "application/json"), *headers], body)
    if form == "form":
        boundary = "b" * chance.choice((1, 8, 60))
        body = multipart(boundary, [*texts, ("file", recording)] if chance.random() < 0.5 else [("file", recording), *texts])
        return _http(chance, "POST", path, [("Content-Type", f"multipart/form-data; boundary={boundary}"), *headers], body)
    if form == "urlencoded":
        body = urlencode([*texts, ("audio", base64.b64encode(recording))], errors="replace").encode()
        return _http(chance, "POST", path, [("Content-Type", "application/x-www-form-urlencoded"), *headers], body)
    kind = ("Content-Type", chance.choice(_TYPES))
    if form == "query":
        query = urlencode([(name, text[:500]) for name, text in texts], errors="replace")
        return _http(chance, "POST", f"{path}?{query}", [kind, *headers], recording)
    spelled = [(_header_name(chance, name), _printable(text)) for name, text in texts]
    return _http(chance, "POST", path, [kind, *spelled, *headers], recording)


def _malformed_form(chance: random.Random, path: str) -> OddRequest:
    """A form that breaks the rules of forms."""
    parts = multipart("b", [("language", "en"), ("file", _recordings()[0])])
    changes: dict[str, Callable[[], tuple[str, bytes]]] = {
        "no boundary": lambda: ("multipart/form-data", parts),
        "another boundary": lambda: ("multipart/form-data; boundary=c", parts),
        "an empty boundary": lambda: ("multipart/form-data; boundary=", parts),
        "no end": lambda: ("multipart/form-data; boundary=b", parts[:-5]),
        "cut off": lambda: ("multipart/form-data; boundary=b", parts[: chance.randrange(len(parts))]),
        "no name": lambda: ("multipart/form-data; boundary=b", parts.replace(b'name="language"', b"")),
        "an unknown charset": lambda: (
            "multipart/form-data; boundary=b",
            parts.replace(b"\r\n\r\nen", b"\r\nContent-Type: a; charset=x\r\n\r\nen"),
        ),
        "an encoding": lambda: (
            "multipart/form-data; boundary=b",
            parts.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
        ),
        "an empty name": lambda: ("multipart/form-data; boundary=b", parts.replace(b'"language"', b'""')),
        "a name of blanks": lambda: ("application/x-www-form-urlencoded", b"+=1&language=en"),
        "percent signs": lambda: ("application/x-www-form-urlencoded", b"language=%&file=%zz"),
    }
    what = chance.choice(list(changes))
    kind, body = changes[what]()
    return OddRequest(f"a malformed form: {what}", _http(chance, "POST", path, [("Content-Type", kind)], body))


def multipart(boundary: str, fields: Sequence[tuple[str, str | bytes]]) -> bytes:
    """The body of a form. A value of bytes is a file."""
    parts = []
    for name, value in fields:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", " ")
        is_file = isinstance(value, bytes)
        head = f'Content-Disposition: form-data; name="{quoted}"' + ('; filename="clip"' if is_file else "")
        content = value if isinstance(value, bytes) else value.encode(errors="replace")
        parts.append(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(errors="replace"), content))
    return b"".join(parts) + b"--%s--\r\n" % boundary.encode()


def _http(chance: random.Random, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """The request, its body in one piece or chunked."""
    chunked = bool(body) and chance.random() < 0.1
    length = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
    head = "".join(f"{name}: {value}\r\n" for name, value in (("Host", "localhost"), *headers, length))
    if chunked:
        size = chance.choice((1_000, 8_192, 1_000_000))
        pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode(errors="replace") + body


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _header_name(chance: random.Random, name: str) -> str:
    """The header of an option, in any case; what a header's name cannot hold is left out."""
    header = "X-Whisper-" + "".join(letter for letter in name if letter.isascii() and (letter.isalnum() or letter in "_-")).replace(
        "_", "-"
    )
    return chance.choice((header, header.lower(), header.upper(), header.title()))


def _printable(text: str) -> str:
    """What one line of a header can hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:4_000].strip()
