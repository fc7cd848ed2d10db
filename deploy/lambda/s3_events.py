"""S3's notifications: each new recording of a bucket gets its transcripts beside it, under a prefix or in another bucket."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_plus

from function_errors import RecordsFailed, Replaced, SourceError, TimeIsUp, UnknownEvent
from invocation import Deadline, answer
from s3_objects import Objects, Place

from whispercore.api.fields import OPTION_HEADER, RAW_FIELD
from whispercore.api.reply import render
from whispercore.api.values import for_message
from whispercore.errors import ConfigurationError, WhisperError
from whispercore.options import ResponseFormat
from whispercore.serving.intake import Intake
from whispercore.serving.response import Response, error_response

logger = logging.getLogger(__name__)

SUFFIXES: Mapping[ResponseFormat, str] = {
    "json": ".json",
    "verbose_json": ".verbose.json",
    "text": ".txt",
    "srt": ".srt",
    "vtt": ".vtt",
    "tsv": ".tsv",
}
"""What a result's key has after the recording's."""
ERROR_SUFFIX = ".error.json"
PREFIX = "transcripts/"
SEQUENCER = "whisper-sequencer"
"""The metadata of a result that names the event it was made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where results go and what they are.

    `bucket`: empty for the recording's own. `prefix`: before the recording's key. `options`: those of every
    transcription; the metadata of an object, such as x-amz-meta-whisper-language, comes before them.
    """

    bucket: str = ""
    prefix: str = PREFIX
    formats: tuple[ResponseFormat, ...] = ("json",)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Output:
        """The variables WHISPER_OUTPUT_BUCKET, _PREFIX, _FORMATS (with commas) and _OPTIONS (a JSON object).

        Raises ConfigurationError.
        """
        formats = [name.strip() for name in environ.get("WHISPER_OUTPUT_FORMATS", "json").split(",")]
        known: Mapping[str, ResponseFormat] = {name: name for name in SUFFIXES}
        if wrong := [name for name in formats if name not in known]:
            raise ConfigurationError(f"WHISPER_OUTPUT_FORMATS: '{wrong[0]}' is no format; there are {', '.join(SUFFIXES)}")
        try:
            options = json.loads(environ.get("WHISPER_OUTPUT_OPTIONS") or "{}")
        except ValueError:
            options = None
        if not isinstance(options, dict) or options.keys() & {"response_format", "stream"}:
            rule = "must be a JSON object with options of a request, without response_format (WHISPER_OUTPUT_FORMATS has it) and stream"
            raise ConfigurationError(f'WHISPER_OUTPUT_OPTIONS {rule}, as in {{"language": "en"}}')
        return cls(
            bucket=environ.get("WHISPER_OUTPUT_BUCKET", ""),
            prefix=environ.get("WHISPER_OUTPUT_PREFIX", PREFIX).lstrip("/"),
            formats=tuple(known[name] for name in formats),
            options=options,
        )

    def place(self, recording: Place, suffix: str) -> Place:
        """Where the result for a recording goes."""
        return Place(self.bucket or recording.bucket, f"{self.prefix}{recording.key}{suffix}")

    def has(self, place: Place) -> bool:
        """Whether an object is a result of this function, which must not be transcribed in turn."""
        if place.bucket != (self.bucket or place.bucket):
            return False
        return (bool(self.prefix) and place.key.startswith(self.prefix)) or place.key.endswith((*SUFFIXES.values(), ERROR_SUFFIX))


@dataclass(frozen=True, slots=True)
class Record:
    """A new object: its place, the version and ETag of its content, and the event's place in the order of the key's events."""

    place: Place
    version: str = ""
    etag: str = ""
    sequencer: str = ""


def is_s3(event: Mapping[str, Any]) -> bool:
    """Whether the event is a notification of S3, or the test that S3 sends when notifications are set up."""
    records = event.get("Records")
    first = records[0] if isinstance(records, list) and records else None
    is_notification = isinstance(first, Mapping) and first.get("eventSource") == "aws:s3"
    return is_notification or event.get("Event") == "s3:TestEvent"


def transcribe_all(intake: Intake, objects: Objects, output: Output, event: Mapping[str, Any], request_id: str, deadline: Deadline) -> Any:
    """Transcribe the objects of an event. Returns the places of what was written, and of what was skipped.

    An error that the recording itself causes is written beside the results, as KEY.error.json: trying again would not
    help. Raises RecordsFailed for any other error, after the other objects, so that Lambda delivers the event again
    and in the end keeps it in the failure queue. What is done by then is not done again.
    """
    written: list[str] = []
    skipped: list[str] = []
    failed: list[str] = []
    for number, record in enumerate(_records(event)):
        place = record.place
        try:
            if output.has(place) or place.key.endswith("/"):
                skipped.append(str(place))
            elif _is_done(objects, output, record):
                logger.info("%s is transcribed already: the event was delivered twice", for_message(str(place)))
                skipped.append(str(place))
            else:
                may_wait = bool(written or failed)
                deadline.check()
                written += _transcribe(intake, objects, output, record, f"{request_id}-{number}", deadline, may_wait=may_wait)
        except Replaced as error:
            logger.info("%s", error.message)
            skipped.append(str(place))
        except WhisperError as error:
            logger.error("%s: %s", for_message(str(place)), error.message)
            failed.append(f"{for_message(str(place))}: {error.message}")
    if failed:
        count = len(failed) + len(written) + len(skipped)
        raise RecordsFailed(f"{len(failed)} of {count} objects could not be transcribed: {'; '.join(failed)}")
    return {"written": written, "skipped": skipped}


def _records(event: Mapping[str, Any]) -> Iterator[Record]:
    """The new objects of an event. Raises UnknownEvent."""
    for record in event.get("Records", ()):
        try:
            if not str(record["eventName"]).startswith("ObjectCreated:"):
                continue
            found = {name: str(value) for name, value in record["s3"]["object"].items()}
            place = Place(record["s3"]["bucket"]["name"], unquote_plus(found["key"]))
            yield Record(place, found.get("versionId", ""), found.get("eTag", ""), found.get("sequencer", ""))
        except (KeyError, TypeError, AttributeError) as error:
            raise UnknownEvent(f"a record of the S3 event lacks {error}") from None


def _is_done(objects: Objects, output: Output, record: Record) -> bool:
    """Whether there are results for this event, or for a later one of the same key.

    Results are written in order, so the last one tells.
    """
    if not record.sequencer:
        return False
    last = output.place(record.place, SUFFIXES[output.formats[-1]])
    found = [objects.metadata(place) or {} for place in (last, output.place(record.place, ERROR_SUFFIX))]
    return any(_comes_after(metadata[SEQUENCER], record.sequencer) for metadata in found if SEQUENCER in metadata)


def _comes_after(one: str, other: str) -> bool:
    """Whether an event is the other one or comes after it. S3's sequencers are hexadecimal, and end where zeros follow."""
    width = max(len(one), len(other))
    return one.upper().ljust(width, "0") >= other.upper().ljust(width, "0")


def _transcribe(
    intake: Intake, objects: Objects, output: Output, record: Record, request_id: str, deadline: Deadline, *, may_wait: bool
) -> list[str]:
    """Transcribe one object and write its results, or what is wrong with it. Returns their places.

    `may_wait`: the next delivery of the event will have more time for this object. Raises WhisperError.
    """
    try:
        audio, metadata = objects.read(record.place, intake.transcriber.settings.max_audio_bytes, version=record.version, etag=record.etag)
    except SourceError:
        raise
    except WhisperError as error:
        if error.status >= 500:
            raise
        return _write(objects, output, record, {ERROR_SUFFIX: error_response(error, request_id)})
    headers = {f"x-{name}": value for name, value in metadata.items() if f"x-{name}".startswith(OPTION_HEADER) and name != SEQUENCER}
    named = {name.removeprefix(OPTION_HEADER).replace("-", "_") for name in headers}
    options = {name: value for name, value in output.options.items() if name not in named}
    fields = {**options, "response_format": output.formats[0], RAW_FIELD: audio}
    answered = answer(intake, request_id, fields, headers, deadline)
    response, opened = answered.response, answered.opened
    if opened is None:
        problem = json.loads(response.payload)["error"]
        if response.status >= 500 and (may_wait or problem["code"] != TimeIsUp.default_code):
            raise WhisperError(problem["message"], code=problem["code"])
        return _write(objects, output, record, {ERROR_SUFFIX: response})
    transcript = opened.job.result(0)
    transcript = replace(transcript, warnings=(*opened.remarks, *transcript.warnings))
    results = {SUFFIXES[output.formats[0]]: response}
    for name in output.formats[1:]:
        reply = replace(opened.attachment.request.reply, response_format=name)
        body = render(transcript, reply, tokenizer=opened.job.tokenizer, model=opened.model)
        results[SUFFIXES[name]] = replace(response, content_type=body.content_type, payload=body.payload)
    places = _write(objects, output, record, results)
    _forget_error(objects, output, record)
    return places


def _write(objects: Objects, output: Output, record: Record, results: Mapping[str, Response]) -> list[str]:
    places = {output.place(record.place, suffix): response for suffix, response in results.items()}
    for place, response in places.items():
        objects.write(place, response.payload, response.content_type, {SEQUENCER: record.sequencer} if record.sequencer else {})
    return [str(place) for place in places]


def _forget_error(objects: Objects, output: Output, record: Record) -> None:
    """Delete what an earlier recording of the same key may have left."""
    try:
        objects.delete(output.place(record.place, ERROR_SUFFIX))
    except WhisperError as error:
        logger.warning("an error of an earlier recording may remain beside the results: %s", error.message)
