#!/usr/bin/env python3
"""Send recordings to the server and print, or save, what they say.

python3 clients/transcribe.py meeting.mp4
python3 clients/transcribe.py podcasts/ --format srt --output-dir subtitles
python3 clients/transcribe.py lecture.mp3 --stream
python3 clients/transcribe.py interview.m4a --url http://HOST:8080 --language German
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import environment

environment.enter()

import requests  # noqa: E402
from endpoint import DEFAULT_MAX_BYTES, DEFAULT_URL, Line, RequestFailed, Server, locate, megabytes, open_session  # noqa: E402
from progress import ProgressBar, clock  # noqa: E402
from soundtrack import ExtractionFailed, Soundtrack, contents, extracted  # noqa: E402

EXTENSIONS = {"text": "txt", "json": "json", "verbose_json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}
AUDIO_SUFFIXES = (
    *(".aac", ".aif", ".aiff", ".amr", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mp3", ".mpga", ".oga", ".ogg", ".opus", ".wav", ".wma"),
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".webm", ".wmv"),
)
EMPTY_FORMS = {"", "WEBVTT", "start\tend\ttext"}
"""What is left of a transcript without words, in text and subtitle formats."""
KEEP = {"no_speech": "no_speech_threshold", "hallucination": "hallucination_silence_threshold"}
"""For each reason to leave a passage out, the option that decides it."""
MOST_SECONDS = 1e7
"""The longest time-out, which an operating system still takes."""
MOST_NAMES = 5
"""Recordings that the repeat of a warning names."""


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
    parser.add_argument(
        "--url", default=DEFAULT_URL, help="the server: http://HOST:8080, the whole address, or OpenAI's base_url (default: %(default)s)"
    )
    parser.add_argument("--language", help="the speech's language, as de or German (default: detected)")
    parser.add_argument("--task", choices=("transcribe", "translate"), help="translate: into English")
    parser.add_argument("--prompt", help="text that precedes the recording: names, style")
    parser.add_argument(
        "--option", action="append", default=[], type=_option, metavar="NAME=VALUE", help="any other option, as beam_size=5; repeatable"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=900.0,
        metavar="SECONDS",
        help="give up after so long without a byte sent or received; an answer that is not streamed sends none before its end "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--max-bytes",
        type=_bytes,
        metavar="N",
        help=f"the largest upload that the server takes (default: as it tells, {DEFAULT_MAX_BYTES})",
    )


def server(arguments: argparse.Namespace, response_format: str, **more: str) -> Server:
    """The server that the arguments tell of; `more` options. Raises RequestFailed when it must be asked and does not answer."""
    options = dict(arguments.option)
    named = {"language": arguments.language, "task": arguments.task, "prompt": arguments.prompt, "response_format": response_format}
    options |= {name: value for name, value in (named | more).items() if value}
    return Server(locate(arguments.url), options, arguments.timeout, arguments.max_bytes)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.replace("_", "").replace("-", "").isalnum() and name.isascii()):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name.replace("-", "_"), value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0, as 900")
    return seconds


def _bytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of bytes, as 157286400")
    return int(text)


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
    parser.add_argument("--skip-existing", action="store_true", help="with --output-dir: leave out recordings that have a transcript there")
    parser.add_argument("--stream", action="store_true", help="print each segment, with its times, as soon as it is final")
    parser.add_argument(
        "--extract-audio", action="store_true", default=None, help="send the sound track only (default: when the file is too large)"
    )
    parser.add_argument("--no-extract", dest="extract_audio", action="store_false", help="send files as they are")
    parser.add_argument("--no-progress", action="store_true", help="no bar (there is one when standard error is a terminal)")
    parser.add_argument("--quiet", action="store_true", help="transcripts, warnings and errors only")
    parser.add_argument("--verbose", action="store_true", help="say how long each recording took and which model answered")
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
        outputs = _outputs(files, arguments.output_dir, EXTENSIONS[arguments.format]) if arguments.output_dir else [None] * len(files)
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
        _say(str(error))
        return 1
    with open_session(arguments.timeout) as session:
        return Run(arguments, target, session, len(jobs)).all(jobs)


class Run:
    """All recordings of one call, one after the other."""

    def __init__(self, arguments: argparse.Namespace, target: Server, session: requests.Session, count: int) -> None:
        self._arguments, self._server, self._session, self._count = arguments, target, session, count
        self._has_bar = sys.stderr.isatty() and not (arguments.quiet or arguments.no_progress)
        self._tells = (self._has_bar or arguments.verbose) and not arguments.quiet
        self._announces = count > 1 and not arguments.quiet
        self._warned: dict[str, list[Path]] = {}

    def all(self, jobs: Sequence[tuple[Path, Path | None]]) -> int:
        """The exit status."""
        failed, began = 0, time.monotonic()
        for number, (path, output) in enumerate(jobs, start=1):
            try:
                self._one(path, output, number)
            except RequestFailed as error:
                _say(f"{path}: {error}")
                failed += 1
                if error.kind == "unreachable" and number < self._count:
                    _say(f"the other {self._count - number} were not sent")
                    failed += self._count - number
                    break
        self._repeat_warnings()
        if self._tells and self._count > 1:
            _say(f"{self._count - failed} of {self._count} recordings transcribed in {clock(time.monotonic() - began)}")
        if failed and self._arguments.output_dir and self._count > 1:
            _say(f"{failed} of {self._count} failed: the same command with --skip-existing sends only those")
        return 1 if failed else 0

    def _one(self, path: Path, output: Path | None, number: int) -> None:
        """Send one recording; save or print what it says. Raises RequestFailed."""
        began = time.monotonic()
        with ProgressBar(path.name, number, self._count, shown=self._has_bar) as bar, self._upload(path, bar) as upload:
            transcript = self._print_stream(path, upload, bar) if self._arguments.stream else self._last_line(upload, bar)
        if output:
            _save(_content(transcript), output)
            if not self._arguments.quiet and not self._tells:
                _say(f"{path} -> {output}")
        elif not self._arguments.stream:
            if self._announces:
                _say(f"==> {path}")
            print(_content(transcript).rstrip("\n"), flush=True)
        self._remark(path, transcript)
        if self._tells:
            _say(f"{path}{f' -> {output}' if output else ''}: {_summary(transcript, time.monotonic() - began)}")

    def _last_line(self, upload: Path, bar: ProgressBar) -> Line:
        """The transcript; the lines before it move the bar. Raises RequestFailed."""
        transcript: Line = {}
        for line in self._server.stream(self._session, upload, bar.sent):
            _move(bar, line)
            transcript = line
        return transcript

    def _print_stream(self, path: Path, upload: Path, bar: ProgressBar) -> Line:
        """Print a line per segment as it comes. Raises RequestFailed; when the connection is lost, with where to go on."""
        if self._announces:
            with bar.hidden():
                _say(f"==> {path}")
        heard, line = 0.0, Line()
        try:
            for line in self._server.stream(self._session, upload, bar.sent, in_pieces=True):
                if line["type"] in ("segment", "delta"):
                    heard = line.get("end", heard)
                    with bar.hidden():
                        print(_segment(line), flush=True)
                _move(bar, line)
        except RequestFailed as error:
            if heard and error.kind in ("connection lost", "timeout"):
                raise RequestFailed(error.kind, f"{error}; go on from here with --option clip_timestamps={heard:.2f}") from None
            raise
        return line

    # What is sent

    @contextmanager
    def _upload(self, path: Path, bar: ProgressBar) -> Iterator[Path]:
        """The file to send: the recording, what a pipe gave, or the sound track. Raises RequestFailed."""
        with _on_disk(path) as file:
            why = self._why_extract(file)
            if why is None:
                yield file
                return
            try:
                limit = self._server.limit(self._session)
                with extracted(file, limit, bar.extracted) as soundtrack:
                    self._tell_extracted(path, soundtrack, why, bar)
                    yield soundtrack.path
            except ExtractionFailed as error:
                self._check_size(file, f"; {error}")
                raise RequestFailed("no sound track", str(error)) from None

    def _why_extract(self, file: Path) -> str | None:
        """Why only the sound track is to be sent; None: the file is sent as it is. Raises RequestFailed for a file that cannot be sent."""
        wanted = self._arguments.extract_audio
        try:
            self._check_size(file)
        except RequestFailed as error:
            if wanted is False or error.kind != "too large":
                raise
            return "too large for the server"
        if not wanted:
            return None
        try:
            found = contents(file)
        except ExtractionFailed as error:
            raise RequestFailed("no sound track", str(error)) from None
        return "--extract-audio" if found.has_video or found.is_lossless else None

    def _check_size(self, file: Path, more: str = "") -> None:
        try:
            self._server.check_size(self._session, file)
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read it: {error.strerror}") from None
        except RequestFailed as error:
            raise RequestFailed(error.kind, f"{error}{more}") from None

    def _tell_extracted(self, path: Path, soundtrack: Soundtrack, why: str, bar: ProgressBar) -> None:
        if self._arguments.quiet:
            return
        how = f"{soundtrack.codec}, copied" if soundtrack.is_copied else f"encoded as {soundtrack.codec}, 16 kHz"
        sizes = f"{megabytes(soundtrack.path.stat().st_size)} instead of {megabytes(path.stat().st_size)}"
        with bar.hidden():
            _say(f"{path}: sending its sound track only ({how}: {sizes}): {why}")

    # What the server remarks

    def _remark(self, path: Path, transcript: Line) -> None:
        """Say each warning once, and why a transcript is empty."""
        warnings, is_empty = [str(one) for one in transcript.get("warnings") or []], _is_empty(transcript)
        for warning in warnings:
            if is_empty and ("no speech" in warning or "left out" in warning):
                continue  # told below, with what to do
            if warning not in self._warned:
                _say(f"{path}: warning: {warning}")
            self._warned.setdefault(warning, []).append(path)
        if is_empty:
            _say(f"{path}: {_why_empty(transcript, warnings)}")

    def _repeat_warnings(self) -> None:
        """Which other recordings a warning was for."""
        for warning, (_, *others) in self._warned.items():
            if others:
                names = ", ".join(path.name for path in others[:MOST_NAMES]) + (", …" if len(others) > MOST_NAMES else "")
                _say(f"the same warning for {len(others)} more ({names}): {_shortened(warning)}")


@contextmanager
def _on_disk(path: Path) -> Iterator[Path]:
    """The file itself, or, of a pipe, all that comes out of it, as a file. Raises RequestFailed."""
    if path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="whisper-upload-") as folder:
        copy = Path(folder) / path.name
        try:
            with path.open("rb") as source, copy.open("wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read it: {error.strerror}") from None
        yield copy


def _move(bar: ProgressBar, line: Line) -> None:
    if progress := line.get("progress"):
        bar.transcribed(progress["seconds"], progress["duration"])


def _segment(line: Mapping[str, Any]) -> str:
    """A segment with its times; OpenAI's streams tell none."""
    text: str = line["text"].strip()
    return f"{line['start']:9.2f} {line['end']:9.2f}  {text}" if line["type"] == "segment" else text


def _content(transcript: Line) -> str:
    """The transcript as the file that was asked for: as the server wrote it, or its JSON."""
    if "rendered" in transcript:
        return str(transcript["rendered"])
    fields = {name: value for name, value in transcript.items() if name != "type"}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _save(content: str, output: Path) -> None:
    """Write the file whole, or not at all. Raises RequestFailed."""
    part = output.with_name(output.name + ".part")
    try:
        part.write_bytes(content.encode(errors="replace"))
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RequestFailed("not saved", f"cannot write {output}: {error.strerror}") from None


def _is_empty(transcript: Line) -> bool:
    """Whether it has no words."""
    said = transcript["text"] if isinstance(transcript.get("text"), str) else transcript.get("rendered", "")
    return said.strip() in EMPTY_FORMS


def _why_empty(transcript: Line, warnings: Sequence[str]) -> str:
    """Why there are no words, with what to do."""
    dropped = transcript.get("dropped") or []
    if not dropped:
        left_out = next((warning for warning in warnings if "left out" in warning), "no speech was found")
        return f"no words: {left_out}. If there is speech in it, try --option vad_filter=false, and --language"
    passages = "1 passage was" if len(dropped) == 1 else f"{len(dropped)} passages were"
    reasons = ", ".join(sorted({str(one["reason"]).replace("_", " ") for one in dropped}))
    text = _shortened(" ".join(" ".join(str(one["text"]) for one in dropped).split()))
    keep = " ".join(f"--option {option}=none" for reason, option in KEEP.items() if any(one["reason"] == reason for one in dropped))
    return f"no words: {passages} left out as {reasons}: “{text}”; to keep what was left out: {keep}"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def _summary(transcript: Line, seconds: float) -> str:
    """How long it took, in which language and by which model, as far as the reply tells."""
    duration = transcript.get("duration")
    told = [f"{clock(duration)} of sound in {clock(seconds)}" if duration else f"done in {clock(seconds)}"]
    if duration and seconds:
        told.append(f"{duration / seconds:.1f} x real time")
    if language := transcript.get("language"):
        told.append(f"language {language}")
    if model := transcript.get("model"):
        told.append(f"model {model}")
    return ", ".join(told)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(environment.run(main))
