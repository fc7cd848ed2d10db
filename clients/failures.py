"""The error that all clients report: a request without a transcript."""

from __future__ import annotations

SIZE_ADVICE = (
    "send its sound track only (transcribe.py --extract-audio), or start the server with a larger WHISPER_MAX_AUDIO_BYTES and "
    "TS_MAX_REQUEST_SIZE, both in bytes; a proxy in front may have a lower limit"
)


class RequestFailed(Exception):
    """A request failed: there is no transcript.

    `kind` is for counting failures of a sort; the message says what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
