#!/usr/bin/env python3
"""Transcribe recordings, by a server or with --local in this process; print or save their transcripts.

python3 clients/transcribe.py meeting.mp4
python3 clients/transcribe.py podcasts/ --format srt --output-dir subtitles
python3 clients/transcribe.py lecture.mp3 --stream
python3 clients/transcribe.py interview.m4a --url http://HOST:8080 --language German
python3 clients/transcribe.py talk.mp3 --local --model large-v3-turbo
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import environment

environment.enter()

import requests  # noqa: E402
from endpoint import DEFAULT_URL, Server, open_session  # noqa: E402
from failures import RequestFailed  # noqa: E402
from model_arguments import add_model_arguments, given_settings  # noqa: E402
from progress import ProgressBar  # noqa: E402
from recordings import EXTENSIONS, find_files, on_disk, output_paths  # noqa: E402
from replies import Line  # noqa: E402
from reports import Report, log  # noqa: E402
from server_arguments import add_server_arguments, server  # noqa: E402
from soundtrack import ExtractionFailed, Soundtrack, contents, extracted  # noqa: E402
from transcript import segment_line  # noqa: E402
from upload import megabytes  # noqa: E402


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Transcribe recordings, in this process or by a server; print or save the transcripts.")
    add_server_arguments(parser, default_url=None)
    parser.add_argument("--local", action="store_true", help="transcribe in this process, without a server")
    add_model_arguments(parser)
    parser.add_argument("--format", choices=EXTENSIONS, default="text", help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="save each transcript there instead of printing it")
    parser.add_argument("--skip-existing", action="store_true", help="with --output-dir: leave out recordings that have a transcript there")
    parser.add_argument("--stream", action="store_true", help="print each segment, with its times, as soon as it is final")
    parser.add_argument(
        "--extract-audio",
        action="store_true",
        default=None,
        help="send the sound track only (default: when the file is too large for the server)",
    )
    parser.add_argument("--no-extract", dest="extract_audio", action="store_false", help="send files as they are")
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bar (the default shows one if standard error is a terminal)"
    )
    parser.add_argument("--quiet", action="store_true", help="transcripts, warnings and errors only")
    parser.add_argument("--verbose", action="store_true", help="print each recording's processing time and the model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The script: by the server on this machine, unless --url or --local say otherwise.

    Exit status: 0 all transcribed, 1 some failed, 2 wrong arguments.
    """
    return _main(argv, DEFAULT_URL)


def main_here(argv: Sequence[str] | None = None) -> int:
    """`whispercore transcribe`: in this process, unless --url names a server."""
    return _main(argv, None)


def _main(argv: Sequence[str] | None, default_url: str | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    is_local = arguments.local or not (arguments.url or default_url)
    _check(parser, arguments, is_local)
    outputs: Sequence[Path | None]
    try:
        files = find_files(arguments.files)
        outputs = output_paths(files, arguments.output_dir, EXTENSIONS[arguments.format]) if arguments.output_dir else [None] * len(files)
        if arguments.output_dir:
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    jobs = list(zip(files, outputs, strict=True))
    if arguments.skip_existing:
        jobs = [(path, output) for path, output in jobs if output and not output.exists()]
        if not jobs:
            return 0
    form = {"response_format": "json", "stream": "true"} if arguments.stream else {"response_format": arguments.format}
    if is_local:
        from local import transcribe_here  # here: a client of a server needs no engine

        return transcribe_here(parser, arguments, form, jobs)
    arguments.url = arguments.url or default_url
    try:
        target = server(arguments, **form)
    except RequestFailed as error:
        log(str(error))
        return 1
    with open_session(arguments.timeout) as session:
        return Sending(arguments, target, session, len(jobs)).all(jobs)


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace, is_local: bool) -> None:
    """End the program for arguments that contradict each other."""
    if arguments.stream and (arguments.output_dir or arguments.format != "text"):
        parser.error("--stream prints text as it comes: leave out --format and --output-dir")
    if arguments.skip_existing and not arguments.output_dir:
        parser.error("--skip-existing needs --output-dir")
    if arguments.local and arguments.url:
        parser.error("--local needs no server: leave out --url, or --local")
    if is_local and (arguments.extract_audio is not None or arguments.max_bytes):
        parser.error("--extract-audio, --no-extract and --max-bytes are for a server: name one with --url, or leave them out")
    if not is_local and given_settings(arguments):
        parser.error("--model, --engine and --setting are for transcribing without a server: its own settings decide; leave them out")


class Sending:
    """Sends all recordings of a call to a server, one after the other."""

    def __init__(self, arguments: argparse.Namespace, target: Server, session: requests.Session, count: int) -> None:
        self._arguments, self._server, self._session, self._count = arguments, target, session, count
        self._report = Report(arguments, count)

    def all(self, jobs: Sequence[tuple[Path, Path | None]]) -> int:
        """Transcribe each recording into its output, None being standard output. Returns the exit status."""
        for number, (path, output) in enumerate(jobs, start=1):
            try:
                self._transcribe(path, output, number)
            except RequestFailed as error:
                self._report.failed(path, error)
                if error.kind == "unreachable" and number < self._count:
                    self._report.not_tried(self._count - number, "were not sent")
                    break
        return self._report.finish()

    def _transcribe(self, path: Path, output: Path | None, number: int) -> None:
        """Send a recording; save or print its transcript. Raises RequestFailed."""
        began = time.monotonic()
        shown = self._report.shows_bar
        with ProgressBar(path.name, number, self._count, shown=shown) as bar, self._upload(path, bar) as upload:
            transcript = self._print_stream(path, upload, bar) if self._arguments.stream else self._last_line(upload, bar)
        self._report.done(path, output, transcript, time.monotonic() - began)

    def _last_line(self, upload: Path, bar: ProgressBar) -> Line:
        """The transcript. The lines before it update the progress bar. Raises RequestFailed."""
        transcript: Line = {}
        for line in self._server.stream(self._session, upload, bar.sent):
            _update(bar, line)
            transcript = line
        return transcript

    def _print_stream(self, path: Path, upload: Path, bar: ProgressBar) -> Line:
        """Print each segment as it arrives. Raises RequestFailed; after a lost connection it says how to resume."""
        with bar.hidden():
            self._report.announce(path)
        end, line = 0.0, Line()
        try:
            for line in self._server.stream(self._session, upload, bar.sent, in_pieces=True):
                if line["type"] in ("segment", "delta"):
                    end = line.get("end", end)
                    with bar.hidden():
                        print(segment_line(line), flush=True)
                _update(bar, line)
        except RequestFailed as error:
            if end and error.kind in ("connection lost", "timeout"):
                raise RequestFailed(error.kind, f"{error}; go on from here with --option clip_timestamps={end:.2f}") from None
            raise
        return line

    # The upload

    @contextmanager
    def _upload(self, path: Path, bar: ProgressBar) -> Iterator[Path]:
        """The file to send: the recording, a pipe's content, or the sound track. Raises RequestFailed."""
        with on_disk(path) as file:
            reason = self._reason_to_extract(file)
            if reason is None:
                yield file
                return
            try:
                limit = self._server.limit(self._session)
                with extracted(file, limit, bar.extracted) as soundtrack:
                    self._report_extracted(path, soundtrack, reason, bar)
                    yield soundtrack.path
            except ExtractionFailed as error:
                self._check_size(file, f"; {error}")
                raise RequestFailed("no sound track", str(error)) from None

    def _reason_to_extract(self, file: Path) -> str | None:
        """The reason to send the sound track only; None: send the file unchanged.

        Raises RequestFailed for a file that cannot be sent.
        """
        extract = self._arguments.extract_audio
        try:
            self._check_size(file)
        except RequestFailed as error:
            if extract is False or error.kind != "too large":
                raise
            return "too large for the server"
        if not extract:
            return None
        try:
            streams = contents(file)
        except ExtractionFailed as error:
            raise RequestFailed("no sound track", str(error)) from None
        return "--extract-audio" if streams.has_video or streams.is_lossless else None

    def _check_size(self, file: Path, more: str = "") -> None:
        try:
            self._server.check_size(self._session, file)
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read it: {error.strerror}") from None
        except RequestFailed as error:
            raise RequestFailed(error.kind, f"{error}{more}") from None

    def _report_extracted(self, path: Path, soundtrack: Soundtrack, reason: str, bar: ProgressBar) -> None:
        if self._arguments.quiet:
            return
        how = f"{soundtrack.codec}, copied" if soundtrack.is_copied else f"encoded as {soundtrack.codec}, 16 kHz"
        sizes = f"{megabytes(soundtrack.path.stat().st_size)} instead of {megabytes(path.stat().st_size)}"
        with bar.hidden():
            log(f"{path}: sending its sound track only ({how}: {sizes}): {reason}")


def _update(bar: ProgressBar, line: Line) -> None:
    if progress := line.get("progress"):
        bar.transcribed(progress["seconds"], progress["duration"])


if __name__ == "__main__":
    sys.exit(environment.run(main))
