"""A transcription server as the clients see it: where it takes recordings, how they are sent, and what its errors mean.

Two kinds of address take recordings. The native one, `/predictions/whisper`, takes the file as the body and the options as headers, and
streams lines of JSON. OpenAI's, `…/v1/audio/transcriptions`, takes a form, and streams server-sent events.
"""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError
from urllib3.filepost import encode_multipart_formdata

DEFAULT_URL = "http://localhost:8080/predictions/whisper"
DEFAULT_MAX_BYTES = 150 * 2**20
"""What a server takes unless its settings say otherwise."""
CONNECT_SECONDS = 10.0
MODELS_SECONDS = 30.0
BLOCK_BYTES = 64 * 1024
LINES, EVENTS = "application/x-ndjson", "text/event-stream"
WARNINGS_HEADER, MODEL_HEADER = "X-Whisper-Warnings", "X-Whisper-Model"
OPENAI_PATH = re.compile(r"/v1/audio/(transcriptions|translations)/?$")
WAYS_OUT = (
    "send its sound track only (transcribe.py --extract-audio), or start the server with a larger WHISPER_MAX_AUDIO_BYTES and "
    "TS_MAX_REQUEST_SIZE, both in bytes; a proxy has a limit of its own"
)

Line = dict[str, Any]
"""A line of a stream: `type` is segment, progress, delta (OpenAI's: a piece of the text) or, last, transcript."""


OnSent = Callable[[int, int], None]
"""Gets the bytes sent so far, and in all."""


class RequestFailed(Exception):
    """No transcript. `kind`: the same for all failures of one sort, to count them; the message says what to do."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def megabytes(size: int) -> str:
    """A size in bytes, as people read it: 12.3 MB."""
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"


# Finding the address


def locate(text: str) -> str:
    """The address that takes recordings, from what a user knows: HOST:8080, http://HOST, OpenAI's base_url, or the address itself.

    Asks the server when the path is missing. Raises RequestFailed.
    """
    url = f"http://{text}" if re.match(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d+(/|$)", text) else text
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise RequestFailed("bad request", f"cannot send to {text}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestFailed("bad request", f"cannot send to {text}: an address looks like http://HOST:8080")
    path = parts.path.rstrip("/")
    base = url.rstrip("/")
    if not path and not parts.query:
        return _ask_for_path(base)
    if path.endswith("/v1"):
        return f"{base}/audio/transcriptions"
    if path.endswith("/predictions"):
        return f"{base}/whisper"
    return base if OPENAI_PATH.search(path) or path.endswith(("/whisper", "/invocations")) else url


def _ask_for_path(base: str) -> str:
    """Where the server at `base` takes recordings. The native path is preferred, because it tells how far it is."""
    native = f"{base}/predictions/whisper"
    for url in (native, f"{base}/v1/audio/transcriptions"):
        try:
            if _models(requests.get(_models_url(url), timeout=(CONNECT_SECONDS, MODELS_SECONDS))):
                return url
        except requests.ConnectionError as error:
            if _is_unreachable(error):
                raise _unreachable(base) from None
        except requests.RequestException:
            continue
    return native


def _models_url(url: str) -> str:
    """Where the server that takes recordings at `url` lists its models."""
    return f"{url.rsplit('/audio/', 1)[0]}/models" if OPENAI_PATH.search(url) else f"{url}/1.0/v1/models"


def _models(response: requests.Response) -> list[dict[str, Any]]:
    """The models that the server lists; none when the answer is not such a list."""
    try:
        found = response.json()["data"] if response.ok else []
        return [model for model in found if isinstance(model["id"], str)]
    except (ValueError, KeyError, TypeError):
        return []


# Sending


class Upload:
    """The body of a request, read from the disk while it is sent. `sent`: bytes that the connection has taken."""

    def __init__(self, path: Path, file: BinaryIO, on_sent: OnSent, head: bytes = b"", tail: bytes = b"") -> None:
        self.sent = 0
        self._path, self._file, self._on_sent = path, file, on_sent
        self._head, self._tail = head, tail
        self._left = path.stat().st_size
        self._total = len(head) + self._left + len(tail)

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks():
            yield block
            self.sent += len(block)
            self._on_sent(self.sent, self._total)

    def _blocks(self) -> Iterator[bytes]:
        if self._head:
            yield self._head
        while self._left:
            block = self._read(min(BLOCK_BYTES, self._left))
            self._left -= len(block)
            yield block
        if self._tail:
            yield self._tail

    def _read(self, size: int) -> bytes:
        try:
            block = self._file.read(size)
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read {self._path}: {error.strerror}") from None
        if not block:
            raise RequestFailed("unreadable file", f"{self._path} became shorter while it was sent: is it still being written?")
        return block


def _nothing(done: int, total: int) -> None:
    """For an upload that is not watched."""


class _Patient(HTTPAdapter):
    """Sending may pause as long as receiving may. urllib3 keeps the short time-out of connecting while it sends the body."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> HTTPConnectionPool:
        """The pool for an address, with connections that are patient."""
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        seconds, kind = self.seconds, pool.ConnectionCls
        if not hasattr(kind, "patient"):

            def connect(connection: Any) -> None:
                kind.connect(connection)
                connection.sock.settimeout(seconds)

            pool.ConnectionCls = type("PatientConnection", (kind,), {"connect": connect, "patient": True})
        return pool  # type: ignore[no-any-return]


def open_session(timeout: float) -> requests.Session:
    """Connections to the server, kept open from one recording to the next."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Patient(timeout))
    return session


@dataclass(frozen=True)
class Server:
    """A server at `url`, and what is asked of it.

    `options`: of the transcription, by name. `timeout`: seconds without a sign of life (a byte sent or received) after which a request is
    given up. `max_bytes`: the largest upload; None: what the server tells, else 150 MiB. `headers`: sent with every request.
    """

    url: str
    options: Mapping[str, str]
    timeout: float
    max_bytes: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_openai(self) -> bool:
        """Whether the address is of OpenAI's API."""
        return bool(OPENAI_PATH.search(urlsplit(self.url).path))

    def limit(self, session: requests.Session) -> int:
        """The largest upload in bytes."""
        if self.max_bytes is not None:
            return self.max_bytes
        try:
            listed = _models(session.get(_models_url(self.url), headers=self.headers, timeout=(CONNECT_SECONDS, MODELS_SECONDS)))
        except requests.RequestException:
            return DEFAULT_MAX_BYTES
        told = listed[0].get("max_audio_bytes") if listed else None
        return told if isinstance(told, int) else DEFAULT_MAX_BYTES

    def check_size(self, session: requests.Session, path: Path) -> None:
        """Raise RequestFailed when the file is empty, or larger than the server takes."""
        size = path.stat().st_size
        if size == 0:
            raise RequestFailed("empty file", "the file is empty: 0 bytes")
        if size > min(DEFAULT_MAX_BYTES, self.max_bytes or DEFAULT_MAX_BYTES) and size > (limit := self.limit(session)):
            told = f"the file has {size:,} bytes, the server takes at most {limit:,} ({limit / 2**20:g} MiB)"
            raise RequestFailed("too large", f"{told}: {WAYS_OUT}. If the server's limit is higher, say so with --max-bytes")

    def transcribe(self, session: requests.Session, path: Path) -> requests.Response:
        """The whole answer to one recording. Raises RequestFailed. `timeout` covers all the time until the answer begins."""
        response, _ = self._post(session, path, self.options, _nothing)
        _check(response)
        return response

    def stream(self, session: requests.Session, path: Path, on_sent: OnSent = _nothing, *, in_pieces: bool = False) -> Iterator[Line]:
        """What the server tells of one recording, as it comes; the last line is the transcript. Raises RequestFailed.

        A server that answers in one piece gives one line, with the answer in `rendered`; with `in_pieces` that is an error. `on_sent`
        gets the bytes sent, and in all.
        """
        streams = not self.is_openai or self.options.get("response_format") == "text"
        options = {"stream": "true"} | dict(self.options) if streams else self.options
        response, upload = self._post(session, path, options, on_sent, stream=True)
        with response:
            try:
                yield from _lines_of(response, in_pieces)
            except (requests.RequestException, HTTPError) as error:
                raise self._failure(error, upload, begun=True) from None

    def _post(
        self,
        session: requests.Session,
        path: Path,
        options: Mapping[str, str],
        on_sent: OnSent,
        *,
        stream: bool = False,
    ) -> tuple[requests.Response, Upload]:
        upload: Upload | None = None
        try:
            with path.open("rb") as file:
                self.check_size(session, path)
                url, headers, upload = self._request(path, file, options, on_sent)
                timeout = (CONNECT_SECONDS, self.timeout)
                response = session.post(url, data=upload, headers=headers, timeout=timeout, stream=stream, allow_redirects=False)
        except requests.RequestException as error:
            raise self._failure(error, upload) from None
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read {path}: {error.strerror}") from None
        if response.is_redirect:
            moved = response.headers["Location"]
            raise RequestFailed(f"HTTP {response.status_code}", f"{self.url} has moved to {moved}: give that address with --url")
        return response, upload

    def _request(self, path: Path, file: BinaryIO, options: Mapping[str, str], on_sent: OnSent) -> tuple[str, dict[str, Any], Upload]:
        """Address, headers and body."""
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if not self.is_openai:
            told = {_header(name): " ".join(value.split()).encode() for name, value in options.items()}
            return self.url, {**self.headers, **told, "Content-Type": kind}, Upload(path, file, on_sent)
        fields = {"model": "whisper-1"} | dict(options)
        translated = fields.pop("task", "") == "translate"
        url = self.url.replace("/v1/audio/transcriptions", "/v1/audio/translations") if translated else self.url
        mark = b"<the recording>"
        form, form_type = encode_multipart_formdata([*fields.items(), ("file", (path.name.encode(errors="replace").decode(), mark, kind))])
        head, _, tail = form.rpartition(mark)
        return url, {**self.headers, "Content-Type": form_type}, Upload(path, file, on_sent, head, tail)

    def _failure(self, error: Exception, upload: Upload | None, *, begun: bool = False) -> RequestFailed:
        """Why a request has no answer, or only the beginning of one."""
        cause = error.args[0] if error.args else None
        if _is_unreachable(error):
            return _unreachable(self.url)
        if isinstance(error, requests.exceptions.SSLError):
            return RequestFailed("bad request", f"no secure connection to {self.url}: {getattr(cause, 'reason', error)}")
        if isinstance(error, requests.Timeout | ReadTimeoutError) or isinstance(cause, ReadTimeoutError):
            waited = f"no sign of life for {self.timeout:g} s from" if begun else f"no answer within {self.timeout:g} s from"
            return RequestFailed("timeout", f"{waited} {self.url}: allow more with --timeout")
        if upload and upload.sent < len(upload) and _is_pause(cause):
            return RequestFailed("timeout", f"{self.url} took no more of the upload for {self.timeout:g} s: allow more with --timeout")
        if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError | HTTPError):
            return RequestFailed("connection lost", f"{self.url} {_loss(upload, begun)}")
        return RequestFailed("bad request", f"cannot send to {self.url}: {error}")


def _is_unreachable(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(getattr(cause, "reason", None), NewConnectionError)


def _is_pause(cause: object) -> bool:
    """Whether the connection's error is that nothing could be sent for a while."""
    return isinstance(cause, HTTPError) and any(isinstance(one, TimeoutError) for one in cause.args)


def _unreachable(url: str) -> RequestFailed:
    return RequestFailed("unreachable", f"no server at {url}: start one with ./serve.sh, or tell where it is with --url")


def _loss(upload: Upload | None, begun: bool) -> str:
    """What a lost connection probably means."""
    if upload and 0 < upload.sent < len(upload):
        sent = f"{megabytes(upload.sent)} of {megabytes(len(upload))}"
        return f"closed the connection after {sent}: the file is probably too large for it: {WAYS_OUT}"
    when = "in the middle of the answer" if begun else "without an answer"
    return f"closed the connection {when}: send the recording again; if that happens every time, the server's log tells why"


def _header(option: str) -> str:
    return "X-Whisper-" + option.replace("_", "-").title()


# Reading the answer


def _lines_of(response: requests.Response, in_pieces: bool) -> Iterator[Line]:
    """The lines of a stream; of any other answer one, with all of it. Raises RequestFailed."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if kind not in (LINES, EVENTS):
        _check(response)
        if in_pieces:
            raise RequestFailed("no stream", f"{response.url} does not stream lines of JSON: its path must end in /predictions/whisper")
        yield _whole(response)
        return
    if not response.ok:
        _check(response)
    last = ""
    for text in _texts(response):
        if line := _line(text) if kind == LINES else _event(text):
            last = str(line.get("type"))
            yield line
    if last != "transcript":
        raise RequestFailed("connection lost", "the reply ended before the transcript was whole: send the recording again")


def _texts(response: requests.Response) -> Iterator[bytes]:
    """The lines of the body, each as soon as it has arrived."""
    pieces: list[bytes] = []
    while block := response.raw.read1(BLOCK_BYTES, decode_content=True):
        *ended, rest = block.split(b"\n")
        for end in ended:
            yield b"".join([*pieces, end]).rstrip(b"\r")
            pieces = []
        pieces.append(rest)
    if text := b"".join(pieces):
        yield text


def _whole(response: requests.Response) -> Line:
    """An answer in one piece, as the last line of a stream."""
    text = response.content.decode(errors="replace")
    fields = _json_object(response) if "json" in response.headers.get("Content-Type", "") else {}
    model = {"model": response.headers[MODEL_HEADER]} if MODEL_HEADER in response.headers else {}
    return {**model, **fields, "warnings": reply_warnings(response), "type": "transcript", "rendered": text}


def reply_warnings(response: requests.Response) -> list[str]:
    """What the server warns of: in the JSON, or in a header beside text."""
    found = _json_object(response).get("warnings") or response.headers.get(WARNINGS_HEADER) or []
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = [found]
    return [str(one) for one in found] if isinstance(found, list) else [str(found)]


def _json_object(response: requests.Response) -> dict[str, Any]:
    try:
        fields = response.json()
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _line(text: bytes) -> Line | None:
    """One line of a native stream; None for an empty one. Raises RequestFailed when it tells an error."""
    if not text.strip():
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        raise RequestFailed("connection lost", "the reply ended in the middle of a line: send the recording again") from None
    if not isinstance(fields, dict):
        raise RequestFailed("no transcript", f"the server's answer is not a transcript but {text[:60]!r}: is --url right?")
    _check_fields(fields)
    return fields


def _event(text: bytes) -> Line | None:
    """One of OpenAI's events; None for a comment, an empty line and an unknown event. Raises RequestFailed when it tells an error."""
    if not text.startswith(b"data:") or (data := text[5:].strip()) == b"[DONE]":
        return None
    fields = _line(data) or {}
    if fields.get("type") == "transcript.text.delta":
        return {"type": "delta", "text": fields.get("delta", "")}
    if fields.get("type") == "transcript.text.done":
        return {**fields, "type": "transcript", "rendered": fields.get("text", "") + "\n"}
    return None


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Raise RequestFailed for an error that is told after the status was sent."""
    if error := fields.get("error"):
        told = error if isinstance(error, dict) else {"message": error}
        message = f"after the reply began: {told.get('message')}"
        raise RequestFailed(f"after the reply began {told.get('code') or ''}".strip(), message)


def _check(response: requests.Response) -> None:
    """Raise RequestFailed for an error status, or an error that came after the status was sent."""
    # A large recording gets its 200 before it is decoded; an error after that is told in the body.
    if response.ok:
        if response.content[:64].lstrip().startswith(b'{"error":'):
            _check_fields(_json_object(response))
        return
    code, message = _error(response)
    status = f"HTTP {response.status_code}"
    raise RequestFailed(f"{status} {code}".strip(), f"{status}: {message}{_advice(response.status_code, code)}")


def _error(response: requests.Response) -> tuple[str, str]:
    """The server's code and message. TorchServe's own errors have `type` and `message` at the top."""
    try:
        fields = response.json()
        if "error" in fields:
            return str(fields["error"].get("code") or ""), str(fields["error"]["message"])
        return str(fields.get("type") or ""), str(fields["message"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return "", " ".join(response.text.split())[:200] or response.reason


def _advice(status: int, code: str) -> str:
    """What a user can do about an error whose message does not say it."""
    if status == 413 and code == "too_long":
        return ", or start the server with a larger WHISPER_MAX_AUDIO_SECONDS"
    if status == 413:
        return f"; the upload is too large for the server or for a proxy: {WAYS_OUT}"
    if status in (404, 405):
        return "; is --url right? http://HOST:8080 is enough: the path is found"
    return ""
