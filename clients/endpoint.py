"""A transcription server: its address, requests to it, and explanations of failed connections.

There are two kinds of address. The native one, `/predictions/whisper`, takes the file as the body and the options as
headers, and streams lines of JSON. OpenAI's, `…/v1/audio/transcriptions`, takes a form, and streams server-sent events.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import requests
from failures import SIZE_ADVICE, RequestFailed
from replies import Line, check, lines_of
from requests.adapters import HTTPAdapter
from upload import OnSent, Upload, ignore_progress, megabytes
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError
from urllib3.filepost import encode_multipart_formdata

DEFAULT_URL = "http://localhost:8080/predictions/whisper"
DEFAULT_MAX_BYTES = 150 * 2**20
"""The largest upload with the server's default settings."""
CONNECT_SECONDS = 10.0
MODELS_SECONDS = 30.0
OPENAI_PATH = re.compile(r"/v1/audio/(transcriptions|translations)/?$")


def locate(text: str) -> str:
    """The address for recordings, from a user's HOST:8080, http://HOST, OpenAI base_url, or the address itself.

    Without a path, the server is asked which API it has. Raises RequestFailed.
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
    """The address for recordings of the server at `base`. The native path is preferred because it reports progress."""
    native = f"{base}/predictions/whisper"
    for url in (native, f"{base}/v1/audio/transcriptions"):
        try:
            if models(requests.get(_models_url(url), timeout=(CONNECT_SECONDS, MODELS_SECONDS))):
                return url
        except requests.ConnectionError as error:
            if _is_unreachable(error):
                raise _unreachable(base) from None
        except requests.RequestException:
            continue
    return native


def _models_url(url: str) -> str:
    """The address of the list of models, given the address for recordings."""
    return f"{url.rsplit('/audio/', 1)[0]}/models" if OPENAI_PATH.search(url) else f"{url}/1.0/v1/models"


def models(response: requests.Response) -> list[dict[str, Any]]:
    """The models in a response; an empty list when it has no list of models."""
    try:
        listed = response.json()["data"] if response.ok else []
        return [model for model in listed if isinstance(model["id"], str)]
    except (ValueError, KeyError, TypeError):
        return []


class _SendTimeout(HTTPAdapter):
    """Gives sending the time-out of receiving. urllib3 keeps the short connect time-out while it sends the body."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> HTTPConnectionPool:
        """The pool for an address. Its connections get the longer time-out once they are open."""
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        seconds, kind = self.seconds, pool.ConnectionCls
        if not hasattr(kind, "has_send_timeout"):

            def connect(connection: Any) -> None:
                kind.connect(connection)
                connection.sock.settimeout(seconds)

            pool.ConnectionCls = type("SendTimeoutConnection", (kind,), {"connect": connect, "has_send_timeout": True})
        return pool  # type: ignore[no-any-return]


def open_session(timeout: float) -> requests.Session:
    """A session whose connections stay open between recordings."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _SendTimeout(timeout))
    return session


@dataclass(frozen=True)
class Server:
    """A server at `url`, and the options of requests to it.

    `options`: of the transcription, by name. `timeout`: a request fails after this many seconds without a byte sent or
    received. `max_bytes`: the largest upload; None: the limit that the server reports, else 150 MiB. `headers`: sent
    with every request.
    """

    url: str
    options: Mapping[str, str]
    timeout: float
    max_bytes: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_openai(self) -> bool:
        """Whether the address is one of OpenAI's API."""
        return bool(OPENAI_PATH.search(urlsplit(self.url).path))

    def limit(self, session: requests.Session) -> int:
        """The largest upload in bytes."""
        if self.max_bytes is not None:
            return self.max_bytes
        try:
            listed = models(session.get(_models_url(self.url), headers=self.headers, timeout=(CONNECT_SECONDS, MODELS_SECONDS)))
        except requests.RequestException:
            return DEFAULT_MAX_BYTES
        limit = listed[0].get("max_audio_bytes") if listed else None
        return limit if isinstance(limit, int) else DEFAULT_MAX_BYTES

    def check_size(self, session: requests.Session, path: Path) -> None:
        """Raise RequestFailed when the file is empty or larger than the server's limit."""
        size = path.stat().st_size
        if size == 0:
            raise RequestFailed("empty file", "the file is empty: 0 bytes")
        if size > min(DEFAULT_MAX_BYTES, self.max_bytes or DEFAULT_MAX_BYTES) and size > (limit := self.limit(session)):
            sizes = f"the file has {size:,} bytes, the server takes at most {limit:,} ({limit / 2**20:g} MiB)"
            raise RequestFailed("too large", f"{sizes}: {SIZE_ADVICE}. If the server's limit is higher, say so with --max-bytes")

    def transcribe(self, session: requests.Session, path: Path) -> requests.Response:
        """The complete response for a recording. `timeout` covers the time until the response begins.

        Raises RequestFailed.
        """
        response, _ = self._post(session, path, self.options, ignore_progress)
        check(response)
        return response

    def stream(
        self, session: requests.Session, path: Path, on_sent: OnSent = ignore_progress, *, in_pieces: bool = False
    ) -> Iterator[Line]:
        """The lines of a recording's reply as they arrive; the last one is the transcript. Raises RequestFailed.

        A reply that is not a stream gives a single line with its text in `rendered`; with `in_pieces` it is an error.
        """
        streams = not self.is_openai or self.options.get("response_format") == "text"
        options = {"stream": "true"} | dict(self.options) if streams else self.options
        response, upload = self._post(session, path, options, on_sent, stream=True)
        with response:
            try:
                yield from lines_of(response, in_pieces)
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
        """The request's address, headers and body."""
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if not self.is_openai:
            option_headers = {_option_header(name): " ".join(value.split()).encode() for name, value in options.items()}
            return self.url, {**self.headers, **option_headers, "Content-Type": kind}, Upload(path, file, on_sent)
        fields = {"model": "whisper-1"} | dict(options)
        translated = fields.pop("task", "") == "translate"
        url = self.url.replace("/v1/audio/transcriptions", "/v1/audio/translations") if translated else self.url
        placeholder = b"<the recording>"
        form, form_type = encode_multipart_formdata(
            [*fields.items(), ("file", (path.name.encode(errors="replace").decode(), placeholder, kind))]
        )
        head, _, tail = form.rpartition(placeholder)
        return url, {**self.headers, "Content-Type": form_type}, Upload(path, file, on_sent, head, tail)

    def _failure(self, error: Exception, upload: Upload | None, *, begun: bool = False) -> RequestFailed:
        """The reason for a missing or incomplete reply. `begun`: the reply had begun."""
        cause = error.args[0] if error.args else None
        if _is_unreachable(error):
            return _unreachable(self.url)
        if isinstance(error, requests.exceptions.SSLError):
            return RequestFailed("bad request", f"no secure connection to {self.url}: {getattr(cause, 'reason', error)}")
        if isinstance(error, requests.Timeout | ReadTimeoutError) or isinstance(cause, ReadTimeoutError):
            waited = f"no sign of life for {self.timeout:g} s from" if begun else f"no answer within {self.timeout:g} s from"
            return RequestFailed("timeout", f"{waited} {self.url}: allow more with --timeout")
        if upload and upload.sent < len(upload) and _is_send_timeout(cause):
            return RequestFailed("timeout", f"{self.url} took no more of the upload for {self.timeout:g} s: allow more with --timeout")
        if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError | HTTPError):
            return RequestFailed("connection lost", f"{self.url} {_connection_loss(upload, begun)}")
        return RequestFailed("bad request", f"cannot send to {self.url}: {error}")


def _is_unreachable(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(getattr(cause, "reason", None), NewConnectionError)


def _is_send_timeout(cause: object) -> bool:
    """Whether the connection failed because sending timed out."""
    return isinstance(cause, HTTPError) and any(isinstance(argument, TimeoutError) for argument in cause.args)


def _unreachable(url: str) -> RequestFailed:
    return RequestFailed("unreachable", f"no server at {url}: start one with ./serve.sh, or tell where it is with --url")


def _connection_loss(upload: Upload | None, begun: bool) -> str:
    """The probable reason of a lost connection."""
    if upload and 0 < upload.sent < len(upload):
        sent = f"{megabytes(upload.sent)} of {megabytes(len(upload))}"
        return f"closed the connection after {sent}: the file is probably too large for it: {SIZE_ADVICE}"
    when = "in the middle of the answer" if begun else "without an answer"
    return f"closed the connection {when}: send the recording again; if that happens every time, the server's log tells why"


def _option_header(option: str) -> str:
    return "X-Whisper-" + option.replace("_", "-").title()
