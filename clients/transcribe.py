#!/usr/bin/env python3
"""Send recordings to the server; print or save their transcripts.

python3 clients/transcribe.py meeting.mp4
python3 clients/transcribe.py podcasts/ --format srt --output-dir subtitles
python3 clients/transcribe.py lecture.mp3 --stream
python3 clients/transcribe.py interview.m4a --url http://HOST:8080 --language German
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
from endpoint import Server, open_session  # noqa: E402
from failures import RequestFailed  # noqa: E402
from progress import ProgressBar, clock  # noqa: E402
from recordings import find_files, on_disk, output_paths  # noqa: E402
from replies import Line  # noqa: E402
from server_arguments import add_server_arguments, server  # noqa: E402
from soundtrack import ExtractionFailed, Soundtrack, contents, extracted  # noqa: E402
from transcript import content, is_empty, save, segment_line, shortened, summary, why_empty  # noqa: E402
from upload import megabytes  # noqa: E402

EXTENSIONS = {"text": "txt", "json": "json", "verbose_json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}
MAX_NAMES = 5
"""How many recordings a repeated warning names."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Send recordings to the server; print or save their transcripts.")
    add_server_arguments(parser)
    parser.add_argument("--format", choices=EXTENSIONS, default="text", help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="save each transcript there instead of printing it")
    parser.add_argument("--skip-existing", action="store_true", help="with --output-dir: leave out recordings that have a transcript there")
    parser.add_argument("--stream", action="store_true", help="print each segment, with its times, as soon as it is final")
    parser.add_argument(
        "--extract-audio", action="store_true", default=None, help="send the sound track only (default: when the file is too large)"
    )
    parser.add_argument("--no-extract", dest="extract_audio", action="store_false", help="send files as they are")
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bar (the default shows one if standard error is a terminal)"
    )
    parser.add_argument("--quiet", action="store_true", help="transcripts, warnings and errors only")
    parser.add_argument("--verbose", action="store_true", help="print each recording's processing time and the model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all transcribed, 1 some failed, 2 wrong arguments."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.stream and (arguments.output_dir or arguments.format != "text"):
        parser.error("--stream prints text as it comes: leave out --format and --output-dir")
    if arguments.skip_existing and not arguments.output_dir:
        parser.error("--skip-existing needs --output-dir")
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
    try:
        target = server(arguments, "json", stream="true") if arguments.stream else server(arguments, arguments.format)
    except RequestFailed as error:
        _log(str(error))
        return 1
    with open_session(arguments.timeout) as session:
        return Run(arguments, target, session, len(jobs)).all(jobs)


class Run:
    """Transcribes all recordings of a call, one after the other."""

    def __init__(self, arguments: argparse.Namespace, target: Server, session: requests.Session, count: int) -> None:
        self._arguments, self._server, self._session, self._count = arguments, target, session, count
        self._shows_bar = sys.stderr.isatty() and not (arguments.quiet or arguments.no_progress)
        self._summarizes = (self._shows_bar or arguments.verbose) and not arguments.quiet
        self._announces = count > 1 and not arguments.quiet
        self._warned: dict[str, list[Path]] = {}

    def all(self, jobs: Sequence[tuple[Path, Path | None]]) -> int:
        """Transcribe each recording into its output, None being standard output. Returns the exit status."""
        failed, began = 0, time.monotonic()
        for number, (path, output) in enumerate(jobs, start=1):
            try:
                self._transcribe(path, output, number)
            except RequestFailed as error:
                _log(f"{path}: {error}")
                failed += 1
                if error.kind == "unreachable" and number < self._count:
                    _log(f"the other {self._count - number} were not sent")
                    failed += self._count - number
                    break
        self._repeat_warnings()
        if self._summarizes and self._count > 1:
            _log(f"{self._count - failed} of {self._count} recordings transcribed in {clock(time.monotonic() - began)}")
        if failed and self._arguments.output_dir and self._count > 1:
            _log(f"{failed} of {self._count} failed: the same command with --skip-existing sends only those")
        return 1 if failed else 0

    def _transcribe(self, path: Path, output: Path | None, number: int) -> None:
        """Send a recording; save or print its transcript. Raises RequestFailed."""
        began = time.monotonic()
        with ProgressBar(path.name, number, self._count, shown=self._shows_bar) as bar, self._upload(path, bar) as upload:
            transcript = self._print_stream(path, upload, bar) if self._arguments.stream else self._last_line(upload, bar)
        if output:
            save(content(transcript), output)
            if not self._arguments.quiet and not self._summarizes:
                _log(f"{path} -> {output}")
        elif not self._arguments.stream:
            if self._announces:
                _log(f"==> {path}")
            print(content(transcript).rstrip("\n"), flush=True)
        self._print_warnings(path, transcript)
        if self._summarizes:
            _log(f"{path}{f' -> {output}' if output else ''}: {summary(transcript, time.monotonic() - began)}")

    def _last_line(self, upload: Path, bar: ProgressBar) -> Line:
        """The transcript. The lines before it update the progress bar. Raises RequestFailed."""
        transcript: Line = {}
        for line in self._server.stream(self._session, upload, bar.sent):
            _update(bar, line)
            transcript = line
        return transcript

    def _print_stream(self, path: Path, upload: Path, bar: ProgressBar) -> Line:
        """Print each segment as it arrives. Raises RequestFailed; after a lost connection it says how to resume."""
        if self._announces:
            with bar.hidden():
                _log(f"==> {path}")
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
            _log(f"{path}: sending its sound track only ({how}: {sizes}): {reason}")

    # Warnings

    def _print_warnings(self, path: Path, transcript: Line) -> None:
        """Print each warning once, and the reason of an empty transcript."""
        warnings, no_words = [str(warning) for warning in transcript.get("warnings") or []], is_empty(transcript)
        for warning in warnings:
            if no_words and ("no speech" in warning or "left out" in warning):
                continue  # the reason below covers it
            if warning not in self._warned:
                _log(f"{path}: warning: {warning}")
            self._warned.setdefault(warning, []).append(path)
        if no_words:
            _log(f"{path}: {why_empty(transcript, warnings)}")

    def _repeat_warnings(self) -> None:
        """Print which other recordings had the same warning."""
        for warning, (_, *others) in self._warned.items():
            if others:
                names = ", ".join(path.name for path in others[:MAX_NAMES]) + (", …" if len(others) > MAX_NAMES else "")
                _log(f"the same warning for {len(others)} more ({names}): {shortened(warning)}")


def _update(bar: ProgressBar, line: Line) -> None:
    if progress := line.get("progress"):
        bar.transcribed(progress["seconds"], progress["duration"])


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(environment.run(main))
