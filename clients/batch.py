#!/usr/bin/env python3
"""Transcribe a folder, a list of recordings or an S3 prefix, on this machine or by Ray on many. Resumable.

python3 clients/batch.py podcasts/ transcripts/ --format text,srt
python3 clients/batch.py s3://BUCKET/talks s3://BUCKET/transcripts --runner ray
python3 clients/batch.py list.jsonl transcripts/ --model large-v3-turbo --language de
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from types import FrameType

import environment

environment.enter()

from failures import RequestFailed  # noqa: E402
from feeding import transcribed  # noqa: E402
from manifest import DONE, FAILED, Entry, Manifest, digest  # noqa: E402
from model_arguments import add_model_arguments, given_settings  # noqa: E402
from outcomes import CRASHED, TRANSIENT, Failure, Model, Outcome, truncation  # noqa: E402
from progress import BatchProgress, clock  # noqa: E402
from recordings import EXTENSIONS  # noqa: E402
from reports import log  # noqa: E402
from server_arguments import add_option_arguments, given_options  # noqa: E402
from storage import Folder, Place, Recording, fetched, find_recordings, open_place  # noqa: E402
from weights import prepared_settings  # noqa: E402

from whispercore.api.models import remarks  # noqa: E402
from whispercore.api.reply import render  # noqa: E402
from whispercore.api.request import Request, parse  # noqa: E402
from whispercore.errors import InvalidRequest, WhisperError  # noqa: E402
from whispercore.options import SUBTITLE_OPTIONS, Options  # noqa: E402
from whispercore.serving.transcriber import Transcriber  # noqa: E402
from whispercore.tokenizer import Tokenizer  # noqa: E402
from whispercore.types import Transcript  # noqa: E402

SUMMARY = "summary.json"
_SUBTITLES, _JSON = frozenset({"srt", "vtt"}), frozenset({"json", "verbose_json"})
_ONLY_IN = {
    **dict.fromkeys(SUBTITLE_OPTIONS, _SUBTITLES),
    **dict.fromkeys(("include", "include[]", "token_logprobs"), frozenset({"json"})),
    **dict.fromkeys(("timestamp_granularities", "timestamp_granularities[]"), _JSON),
}
"""Options that only some formats know."""
WRITERS = 8
"""Threads that write results, which takes tens of ms each in S3."""

Runner = Callable[[Sequence[Recording], bool], Iterator[Outcome]]
"""Transcribes recordings. One that gets no outcome was lost with its process. The flag: each by itself, as one of them may
be what ended the process."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run. `rtfx`: seconds of sound per second; `failures`: how many, by kind."""

    recordings: int
    skipped: int
    done: int
    failed: int
    audio_hours: float
    wall_seconds: float
    rtfx: float
    failures: Mapping[str, int]


class Batch:
    """The recordings of a run on their way to results and lines of the manifest.

    `requests`: what to render, by format. `asked`: a digest of what was asked for.
    """

    def __init__(self, place: Place, manifest: Manifest, requests: Mapping[str, Request], asked: str, *, keep_truncated: bool) -> None:
        self._place, self._manifest, self._requests, self._asked = place, manifest, requests, asked
        self._keep_truncated = keep_truncated
        self.entries: list[Entry] = []

    def run(self, runner: Runner, recordings: Sequence[Recording], attempts: int, progress: BatchProgress) -> None:
        """Transcribe all recordings; those whose failure may pass up to `attempts` times. Raises RequestFailed."""
        for attempt in range(1, attempts + 1):
            again: list[Recording] = []
            with ThreadPoolExecutor(WRITERS) as pool:
                missing = {recording.name: recording for recording in recordings}
                written: deque[Future[None]] = deque()
                for outcome in runner(recordings, attempt > 1):
                    if missing.pop(outcome.recording.name, None) is None:
                        continue  # a task that was repeated has given it once more
                    if attempt < attempts and outcome.failure and outcome.failure.kind in TRANSIENT:
                        again.append(outcome.recording)
                        continue
                    written.append(pool.submit(self._finish, outcome, progress))
                    while written and written[0].done():
                        written.popleft().result()  # raises when no line can be written
            for one in written:
                one.result()
            recordings = [*again, *missing.values()]
            if not recordings:
                return
            if attempt < attempts:
                log(f"{len(recordings)} recordings are tried again: attempt {attempt + 1} of {attempts}")
        for recording in recordings:
            lost = Failure(CRASHED, f"the process that transcribes it ended {attempts} times: it is broken, or needs too much memory")
            self._finish(Outcome(recording, 0.0, failure=lost), progress)

    def _finish(self, outcome: Outcome, progress: BatchProgress) -> None:
        """Write the results of a recording, then its line. Raises RequestFailed when there can be no line."""
        entry = self._entry(outcome)
        self._manifest.add(entry)
        self.entries.append(entry)
        progress.done(outcome.recording.size, entry.duration, failed=entry.status == FAILED)
        if entry.status == FAILED:
            with progress.hidden():
                log(f"{entry.recording}: {entry.message}")

    def _entry(self, outcome: Outcome) -> Entry:
        recording, transcript, failure = outcome.recording, outcome.transcript, outcome.failure
        entry = Entry(
            recording=recording.name,
            status=FAILED,
            audio=recording.address,
            size=recording.size,
            version=recording.version,
            request=self._asked,
            seconds=round(outcome.seconds, 3),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        if transcript and not self._keep_truncated:
            failure = truncation(transcript)
        if failure or transcript is None or outcome.model is None:
            failure = failure or Failure.of(None)
            return replace(entry, error=failure.kind, message=failure.message)
        try:
            outputs = tuple(self._write(recording, transcript, outcome.model))
        except RequestFailed as error:
            return replace(entry, error=error.kind, message=str(error))
        return replace(
            entry,
            status=DONE,
            duration=transcript.duration,
            outputs=outputs,
            warnings=transcript.warnings,
            model=outcome.model.name,
        )

    def _write(self, recording: Recording, transcript: Transcript, model: Model) -> Iterator[str]:
        """The names of the results, each written as it is asked for."""
        notes = remarks("", model.name, demonstration=model.is_demonstration)
        whole = replace(transcript, warnings=(*notes, *transcript.warnings))
        for form, request in self._requests.items():
            tokenizer = Tokenizer(model.vocabulary) if request.reply.logprobs else None
            name = f"{recording.name}.{EXTENSIONS[form]}"
            self._place.write(name, render(whole, request.reply, tokenizer=tokenizer, model=model.name).payload)
            yield name


def run_here(settings: Mapping[str, str], options: Options, recordings: Sequence[Recording]) -> Iterator[Outcome]:
    """The runner `local`: several recordings at once in this process. Raises ConfigurationError."""
    with Transcriber(prepared_settings(settings)) as transcriber:
        model = model_of(transcriber)
        for ended in transcribed(transcriber, recordings, fetched, options, size=lambda recording: recording.size):
            failure = None if ended.transcript else Failure.of(ended.error)
            yield Outcome(ended.item, ended.seconds, ended.transcript, model, failure)


def model_of(transcriber: Transcriber) -> Model:
    """The model that a transcriber has loaded."""
    return Model(transcriber.settings.model_id, transcriber.is_demonstration, transcriber.engine.tokenizer.vocabulary)


# The command line


def _formats(text: str) -> list[str]:
    formats = text.split(",")
    if unknown := [name for name in formats if name not in EXTENSIONS]:
        raise argparse.ArgumentTypeError(f"no format {unknown[0]}; there are: {', '.join(EXTENSIONS)}")
    if {"json", "verbose_json"} <= set(formats):
        raise argparse.ArgumentTypeError("json and verbose_json have the same file name: choose one")
    return list(dict.fromkeys(formats))


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Transcribe a folder, a list of recordings or an S3 prefix, here or by Ray on many machines."
    )
    parser.add_argument("input", metavar="INPUT", help="a folder, a list (.jsonl, .txt), s3://BUCKET/PREFIX, or one recording")
    parser.add_argument("output", metavar="OUTPUT", help="a folder or s3://BUCKET/PREFIX for transcripts and manifest.jsonl")
    parser.add_argument("--format", type=_formats, default=["json"], metavar="F,F", help=f"{', '.join(EXTENSIONS)} (default: json)")
    parser.add_argument(
        "--runner", choices=("local", "ray"), default="local", help="local: in this process (default); ray: by Ray's actors"
    )
    add_model_arguments(parser)
    add_option_arguments(parser)
    parser.add_argument("--attempts", type=_count, default=3, metavar="N", help="for failures that may pass (default: %(default)s)")
    parser.add_argument("--keep-truncated", action="store_true", help="transcribe recordings that are cut off, instead of failing them")
    parser.add_argument("--redo", action="store_true", help="transcribe again what is done")
    parser.add_argument(
        "--actors", type=_count, metavar="N", help="ray: actors, each with a model (default: what the cluster has room for)"
    )
    parser.add_argument("--cpus-per-actor", type=_count, metavar="N", help="ray, without GPUs: cores of an actor (default: up to 4)")
    parser.add_argument("--gpus-per-actor", type=_positive, metavar="N", help="ray: GPUs of an actor (default: 1 where there are GPUs)")
    parser.add_argument("--part-minutes", type=_positive, default=20.0, metavar="N", help="ray: split longer recordings (default: 20)")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="the cluster (default: RAY_ADDRESS, else a new one of this machine)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--quiet", action="store_true", help="failures only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all done, 1 some failed or nothing could begin, 2 wrong arguments, 130 stopped."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.engine == "ray":  # no inference engine has this name
        arguments.runner, arguments.engine = "ray", None
    try:
        options = given_options(arguments)
        requests = {form: _request(form, arguments.format, options) for form in arguments.format}
    except InvalidRequest as error:
        parser.error(error.message)
    with _interruptible():
        try:
            return _run(arguments, options, requests)
        except (RequestFailed, WhisperError) as error:
            log(f"error: {error}")
            return 1


def _request(form: str, forms: Sequence[str], options: Mapping[str, str]) -> Request:
    """The request for one format. An option that only other formats know is left out if one of those is asked for.

    Raises InvalidRequest.
    """
    elsewhere = {name for name, known in _ONLY_IN.items() if form not in known and known & set(forms)}
    return parse({"body": b"\0", **{name: value for name, value in options.items() if name not in elsewhere}, "response_format": form}, {})


def _united(options: Sequence[Options]) -> Options:
    """The options of the one transcription that all formats come from: it has what each of them needs."""
    words, logprobs = any(one.word_timestamps for one in options), any(one.token_logprobs for one in options)
    return replace(options[0], word_timestamps=words, token_logprobs=logprobs)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does: the manifest is written."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace, options: Mapping[str, str], requests: Mapping[str, Request]) -> int:
    settings = given_settings(arguments)
    united = _united([request.options for request in requests.values()])
    asked = digest(options, settings, os.environ.get("WHISPER_MODEL", ""), sorted(requests))
    found = find_recordings(arguments.input)
    place = open_place(arguments.output)
    with _locked(place):
        manifest = Manifest(place)
        names = place.names()
        done = [] if arguments.redo else [one for one in found if _is_done(manifest, one, asked, names)]
        waiting = sorted(set(found) - set(done), key=lambda recording: -recording.size)  # the longest first: none holds the end
        if not arguments.quiet:
            log(f"{len(found)} recordings, {len(done)} done before, {len(waiting)} to do")
        batch = Batch(place, manifest, requests, asked, keep_truncated=arguments.keep_truncated)
        began = time.monotonic()
        try:
            shown = not (arguments.quiet or arguments.no_progress)
            with BatchProgress(len(waiting), sum(max(0, one.size) for one in waiting), shown=shown) as progress:
                if waiting:
                    with _runner(arguments, settings, united) as runner:
                        batch.run(runner, waiting, arguments.attempts, progress)
        finally:
            manifest.close()
            summary = _summary(batch.entries, len(found), len(done), time.monotonic() - began)
            place.write(SUMMARY, (json.dumps(asdict(summary), indent=1) + "\n").encode())
    if not arguments.quiet:
        _report(summary, place)
    return 1 if summary.failed else 0


@contextlib.contextmanager
def _runner(arguments: argparse.Namespace, settings: Mapping[str, str], options: Options) -> Iterator[Runner]:
    """The runner that the arguments ask for. Raises RequestFailed."""
    if arguments.runner == "local":
        yield lambda recordings, alone: run_here(settings, options, recordings)
        return
    try:
        from actors import Cluster, run_by_ray  # here: the runner local needs no Ray
    except ModuleNotFoundError as error:
        raise RequestFailed("no_package", f"--runner ray needs {error.name}: pip install 'whispercore[ray]'") from None
    cluster = Cluster(arguments.ray_address, arguments.actors, arguments.cpus_per_actor, arguments.gpus_per_actor)
    try:
        yield partial(run_by_ray, cluster, settings, options, 60 * arguments.part_minutes)
    finally:
        cluster.close()


def _is_done(manifest: Manifest, recording: Recording, asked: str, names: set[str]) -> bool:
    entry = manifest.entries.get(recording.name)
    return entry is not None and entry.covers(recording, asked, names)


@contextlib.contextmanager
def _locked(place: Place) -> Iterator[None]:
    """Keep other runs of this machine out of a folder. Raises RequestFailed when one is at work."""
    if not isinstance(place, Folder):
        yield
        return
    descriptor = os.open(place.path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RequestFailed("busy", f"another batch is writing into {place.path}: wait for its end") from None
    finally:
        os.close(descriptor)


def _summary(entries: Sequence[Entry], found: int, skipped: int, wall: float) -> Summary:
    audio = sum(entry.duration for entry in entries)
    failures = Counter(entry.error for entry in entries if entry.status == FAILED)
    return Summary(
        recordings=found,
        skipped=skipped,
        done=sum(entry.status == DONE for entry in entries),
        failed=failures.total(),
        audio_hours=round(audio / 3600, 4),
        wall_seconds=round(wall, 2),
        rtfx=round(audio / wall, 2) if wall else 0.0,
        failures=dict(failures.most_common()),
    )


def _report(summary: Summary, place: Place) -> None:
    """Print the summary on standard error."""
    rate = f"{summary.audio_hours:.2f} h of sound in {clock(summary.wall_seconds)}, {summary.rtfx:.1f} x real time"
    log(f"{summary.done} done ({rate}), {summary.skipped} done before, {summary.failed} failed; results in {place.address}")
    for kind, count in summary.failures.items():
        log(f"  {count} x {kind}")
    if summary.failed:
        log("the same command takes up those that failed; manifest.jsonl has their messages")


if __name__ == "__main__":
    sys.exit(environment.run(main))
