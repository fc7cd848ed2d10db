"""`transcribe` without a server: several recordings at once through the core, in this process."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from failures import RequestFailed
from feeding import Ended, Running, transcribed
from model_arguments import given_settings
from progress import ProgressBars
from recordings import on_disk
from replies import Line
from reports import Report, log
from server_arguments import given_options
from transcript import segment_line
from weights import prepared_settings

from whispercore.api.models import remarks
from whispercore.api.request import Request, parse
from whispercore.api.stream import stream_end
from whispercore.errors import ConfigurationError, InvalidRequest, WhisperError
from whispercore.serving.transcriber import Transcriber
from whispercore.types import Transcript

Recording = tuple[int, Path, "Path | None"]
"""Its number, from 1, its path, and the path of its transcript, None being standard output."""


def read_request(options: Mapping[str, str]) -> Request:
    """The options as a server reads them. Raises InvalidRequest."""
    return parse({"body": b"\0", **options}, {})


def reply_line(transcript: Transcript, request: Request, transcriber: Transcriber) -> Line:
    """The transcript as the last line of the server's stream."""
    model = transcriber.settings.model_id
    notes = remarks("", model, demonstration=transcriber.is_demonstration)
    transcript = replace(transcript, warnings=(*notes, *transcript.warnings))
    line: Line = json.loads(stream_end(transcript, request.reply, tokenizer=transcriber.engine.tokenizer, model=model))
    return line


def transcribe_here(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, form: Mapping[str, str], jobs: Sequence[tuple[Path, Path | None]]
) -> int:
    """Transcribe each recording into its output. Returns the exit status: 1 also when there is no model."""
    try:
        request = read_request(given_options(arguments, **form))
    except InvalidRequest as error:
        parser.error(error.message)
    recordings = [(number, path, output) for number, (path, output) in enumerate(jobs, start=1)]
    try:
        settings = prepared_settings(given_settings(arguments), quiet=arguments.quiet)
        transcriber = Transcriber(settings)
    except ConfigurationError as error:
        log(f"error: {error.message}")
        return 1
    with transcriber:
        run = LocalRun(arguments, transcriber, request, recordings)
        return run.stream() if arguments.stream else run.all()


class LocalRun:
    """Transcribes all recordings of a call in this process."""

    def __init__(self, arguments: argparse.Namespace, transcriber: Transcriber, request: Request, recordings: Sequence[Recording]) -> None:
        self._transcriber, self._request, self._recordings = transcriber, request, recordings
        self._report = Report(arguments, len(recordings))
        self._printed = 0
        self._held: dict[int, Ended[Recording]] = {}

    def all(self) -> int:
        """Transcribe several at once; print what goes to standard output in the order of the arguments."""
        sizes = {number: _size(path) for number, path, _ in self._recordings}
        with ProgressBars(sizes, shown=self._report.shows_bar) as bars:
            outcomes = transcribed(
                self._transcriber,
                self._recordings,
                _fetch,
                self._request.options,
                size=lambda recording: sizes[recording[0]],
                on_wait=lambda running: _show(running, bars),
            )
            for ended in outcomes:
                bars.done(ended.item[0])
                self._deliver_in_order(ended, bars)
        return self._report.finish()

    def _deliver_in_order(self, ended: Ended[Recording], bars: ProgressBars) -> None:
        """Report an outcome; one for standard output waits for those before it."""
        number, _, output = ended.item
        if output:
            with bars.hidden():
                self._deliver(ended)
            return
        self._held[number] = ended
        while following := self._held.pop(self._printed + 1, None):
            with bars.hidden():
                self._deliver(following)
            self._printed += 1

    def _deliver(self, ended: Ended[Recording]) -> None:
        _, path, output = ended.item
        try:
            if ended.transcript is None:
                raise ended.error or RuntimeError("it has no transcript")
            self._report.done(path, output, reply_line(ended.transcript, self._request, self._transcriber), ended.seconds)
        except (WhisperError, RequestFailed) as error:
            self._report.failed(path, error)

    def stream(self) -> int:
        """Transcribe one after the other; print each segment as soon as it is final."""
        for recording in self._recordings:
            try:
                self._print_segments(*recording)
            except (WhisperError, RequestFailed) as error:
                self._report.failed(recording[1], error)
        return self._report.finish()

    def _print_segments(self, number: int, path: Path, output: Path | None) -> None:
        began, printed = time.monotonic(), 0
        news = threading.Event()
        self._report.announce(path)
        with on_disk(path) as file:
            job = self._transcriber.submit(file, self._request.options, on_news=news.set, on_progress=news.set)
            try:
                while not (ended := job.ended) or printed < len(job.progress.segments):
                    if not ended:
                        news.wait()
                        news.clear()
                    segments = job.progress.segments
                    for segment in segments[printed:]:
                        line = {"type": "segment", "start": segment.start, "end": segment.end, "text": segment.text}
                        print(segment_line(line), flush=True)
                    printed = len(segments)
            finally:
                job.cancel()
        self._report.done(path, output, reply_line(job.result(), self._request, self._transcriber), time.monotonic() - began)


def _fetch(recording: Recording) -> AbstractContextManager[Path]:
    return on_disk(recording[1])


def _size(path: Path) -> int:
    """Bytes; 0 for a pipe, and for a file that cannot be read, whose error comes when it is opened."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _show(running: Sequence[Running[Recording]], bars: ProgressBars) -> None:
    for one in running:
        progress = one.job.progress
        number, path, _ = one.item
        bars.transcribed(number, path.name, progress.seconds, progress.duration, time.monotonic() - one.began)
