#!/usr/bin/env python3
"""Send recordings to the server and print, or save, what they say.

python clients/transcribe.py talk.mp3
python clients/transcribe.py talks/ --format srt --output-dir subtitles
python clients/transcribe.py lecture.mp3 --stream
"""

from __future__ import annotations

import argparse
import glob
import json
import mimetypes
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import requests
from urllib3.exceptions import NewConnectionError, ReadTimeoutError

DEFAULT_URL = "http://localhost:8080/predictions/whisper"
EXTENSIONS = {"text": "txt", "json": "json", "verbose_json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}
AUDIO_SUFFIXES = (
    *(".aac", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".m4b", ".mp3", ".mpga", ".oga", ".ogg", ".opus", ".wav", ".wma"),
    *(".mkv", ".mov", ".mp4", ".mpeg", ".webm"),
)
CONNECT_SECONDS = 10.0
STREAM_TYPE = "application/x-ndjson"
CLEAR_LINE = "\r\x1b[K"


class RequestFailed(Exception):
    """No transcript: `kind` for counting, the message for reading."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Server(NamedTuple):
    """Where to send, with which options (as headers), and how long to wait for an answer, in seconds."""

    url: str
    headers: Mapping[str, str | bytes]
    timeout: float

    def transcribe(self, session: requests.Session, path: Path) -> requests.Response:
        """The server's answer to one recording, streamed from the disk. Raises RequestFailed."""
        response = self._post(session, path)
        _check(response)
        return response

    def stream(self, session: requests.Session, path: Path) -> Iterator[dict[str, Any]]:
        """The lines of the server's answer as they come: segments, progress, the transcript. Raises RequestFailed."""
        with self._post(session, path, stream=True) as response:
            if not response.headers.get("Content-Type", "").startswith(STREAM_TYPE):
                _check(response)
                raise RequestFailed("no stream", f"{self.url} does not stream lines of JSON: its path must end in /predictions/whisper")
            try:
                for line in response.iter_lines():
                    yield _line(line)
            except requests.RequestException as error:
                raise self._failure(error) from None

    def _post(self, session: requests.Session, path: Path, *, stream: bool = False) -> requests.Response:
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            with path.open("rb") as file:
                headers = {**self.headers, "Content-Type": kind}
                return session.post(self.url, data=file, headers=headers, timeout=(CONNECT_SECONDS, self.timeout), stream=stream)
        except requests.RequestException as error:
            raise self._failure(error) from None
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read {path}: {error.strerror}") from None

    def _failure(self, error: requests.RequestException) -> RequestFailed:
        """What a request that got no answer failed of."""
        cause = error.args[0] if error.args else None
        if isinstance(error, requests.ConnectTimeout) or isinstance(getattr(cause, "reason", None), NewConnectionError):
            return RequestFailed("unreachable", f"no server at {self.url}: start one with ./serve.sh, or tell where it is with --url")
        if isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
            return RequestFailed("timeout", f"no answer within {self.timeout:g} s from {self.url}: allow more with --timeout")
        if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            return RequestFailed("connection lost", f"{self.url} closed the connection without an answer: is the file too large for it?")
        return RequestFailed("bad request", f"cannot send to {self.url}: {error}")


def _check(response: requests.Response) -> None:
    """Raise RequestFailed for an error status, or an error that came after the status was out."""
    # Long recordings get their 200 before they are decoded; what goes wrong later is told in the body.
    late = response.ok and response.content[:64].lstrip().startswith(b'{"error":')
    if response.ok and not late:
        return
    code, message = _error(response)
    status = "after the reply began" if late else f"HTTP {response.status_code}"
    raise RequestFailed(f"{status} {code}".strip(), f"{status}: {message}")


def _line(line: bytes) -> dict[str, Any]:
    """One line of a stream. Raises RequestFailed when it tells an error."""
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError:
        raise RequestFailed("connection lost", "the reply ended in the middle of a line: the server's log tells why") from None
    if error := fields.get("error"):
        raise RequestFailed(f"after the reply began {error.get('code') or ''}".strip(), f"after the reply began: {error['message']}")
    return fields


def _error(response: requests.Response) -> tuple[str, str]:
    """The server's code and message; TorchServe's own errors have a type and a message on top."""
    try:
        fields = response.json()
        if "error" in fields:
            return str(fields["error"].get("code") or ""), str(fields["error"]["message"])
        return str(fields.get("type") or ""), str(fields["message"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return "", " ".join(response.text.split())[:200] or response.reason


def find_files(arguments: Iterable[str]) -> list[Path]:
    """The recordings that files, folders (searched to the bottom) and patterns name. Raises FileNotFoundError."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            matches = sorted(one for one in path.rglob("*") if one.suffix.lower() in AUDIO_SUFFIXES and one.is_file())
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(one) for one in glob.glob(argument, recursive=True) if Path(one).is_file())  # noqa: PTH207
        if not matches:
            raise FileNotFoundError(f"no recordings in {argument}" if path.is_dir() else f"no such file: {argument}")
        found += matches
    return found


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where to send and what to ask for."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, folders of them, or patterns like 'talks/*.mp3'")
    parser.add_argument("--url", default=DEFAULT_URL, help="the server's address (default: %(default)s)")
    parser.add_argument("--language", help="the speech's language, as de or German (default: detected)")
    parser.add_argument("--task", choices=("transcribe", "translate"), help="translate: into English")
    parser.add_argument("--prompt", help="text that precedes the recording: names, style")
    parser.add_argument(
        "--option", action="append", default=[], type=_option, metavar="NAME=VALUE", help="any other option, as beam_size=5; repeatable"
    )
    parser.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="wait at most so long (default: %(default)g)")


def server(arguments: argparse.Namespace, response_format: str, **more: str) -> Server:
    """The server that the arguments tell of; `more` options."""
    options = dict(arguments.option)
    named = {"language": arguments.language, "task": arguments.task, "prompt": arguments.prompt, "response_format": response_format}
    options |= {name: value for name, value in (named | more).items() if value}
    return Server(arguments.url, {_header(name): " ".join(value.split()).encode() for name, value in options.items()}, arguments.timeout)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.replace("_", "").replace("-", "").isalnum() and name.isascii()):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name, value


def _header(option: str) -> str:
    return "X-Whisper-" + option.replace("_", "-").title()


def _outputs(files: Sequence[Path], folder: Path, extension: str) -> list[Path]:
    """Where each transcript goes: talk.txt, or talk.mp3.txt where talk.wav is sent too. Raises ValueError on a clash."""
    stems = [path.stem for path in files]
    outputs = [folder / f"{path.stem if stems.count(path.stem) == 1 else path.name}.{extension}" for path in files]
    clash = next((path for path in outputs if outputs.count(path) > 1), None)
    if clash:
        raise ValueError(f"two recordings would be written to {clash}: send them one by one")
    return outputs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Send recordings to the server and print, or save, what they say.")
    add_server_arguments(parser)
    parser.add_argument("--format", choices=EXTENSIONS, default="text", help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="save each transcript there instead of printing it")
    parser.add_argument("--stream", action="store_true", help="print each segment, with its times, as soon as it is final")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all transcribed, 1 some failed, 2 wrong arguments."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.stream and (arguments.output_dir or arguments.format != "text"):
        parser.error("--stream prints text as it comes: leave out --format and --output-dir")
    try:
        files = find_files(arguments.files)
        outputs = _outputs(files, arguments.output_dir, EXTENSIONS[arguments.format]) if arguments.output_dir else [None] * len(files)
        if arguments.output_dir:
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    failed = 0
    with requests.Session() as session:
        for path, output in zip(files, outputs, strict=True):
            try:
                _transcribe(session, path, output, arguments, announced=len(files) > 1)
            except RequestFailed as error:
                print(f"{path}: {error}", file=sys.stderr)
                failed += 1
    return 1 if failed else 0


def _transcribe(session: requests.Session, path: Path, output: Path | None, arguments: argparse.Namespace, *, announced: bool) -> None:
    """Send one recording; save or print what it says. Raises RequestFailed."""
    if arguments.stream:
        return _print_stream(server(arguments, "json", stream="true").stream(session, path), path if announced else None)
    reply = server(arguments, arguments.format).transcribe(session, path).content
    if output:
        output.write_bytes(reply)
        print(f"{path} -> {output}", file=sys.stderr)
    else:
        _print(reply, path if announced else None)


def _print_stream(lines: Iterable[Mapping[str, Any]], path: Path | None) -> None:
    """A line per segment; where standard error is a terminal, how far the server is, on it."""
    if path:
        print(f"==> {path}", file=sys.stderr, flush=True)
    watched = sys.stderr.isatty()
    for line in lines:
        if watched:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
        if line["type"] == "segment":
            print(f"{line['start']:9.2f} {line['end']:9.2f}  {line['text'].strip()}", flush=True)
        if watched and (progress := line.get("progress")):
            print(f"{progress['seconds']:.0f} of {progress['duration'] or 0:.0f} s", end="", file=sys.stderr, flush=True)


def _print(reply: bytes, path: Path | None) -> None:
    """The transcript on standard output; its file's name, when there are several, beside it on the other stream."""
    if path:
        print(f"==> {path}", file=sys.stderr, flush=True)
    print(reply.decode(errors="replace").rstrip("\n"), flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as in transcribe.py … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
