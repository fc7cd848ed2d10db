"""Every error that a caller may get, with its HTTP status.

WhisperError
 ├── InvalidRequest        400  an unknown field, a bad value (also a ValueError)
 ├── NotFound              404  no such path
 ├── TooLarge              413  more bytes or seconds than the limits allow
 ├── UnsupportedAudio      415  not audio, or no audio stream in it
 ├── UnreadableAudio       422  audio, but nothing in it can be decoded: zero seconds, broken from the start
 ├── Overloaded            503  too many open requests, or too much audio waiting
 ├── EngineError           500  the engine failed on the window (also a RuntimeError)
 │    └── OutOfMemory      503  the device's memory is too small, even for one window
 ├── Cancelled             499  the request was cancelled
 └── ConfigurationError         at start: bad settings, a missing or broken checkpoint
"""

from __future__ import annotations


class WhisperError(Exception):
    """The base class. `message` says what to do, `param` names the field, `code` is for programs.

    `retry_after`: the seconds after which to send the request again; None where that would not help.
    """

    status = 500
    kind = "server_error"
    default_code: str | None = None
    retry_after: float | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code


class InvalidRequest(WhisperError, ValueError):
    """An unknown field, or a value out of its range."""

    status = 400
    kind = "invalid_request_error"
    default_code = "invalid_value"


class NotFound(WhisperError):
    """An unknown path."""

    status = 404
    kind = "invalid_request_error"
    default_code = "not_found"


class TooLarge(WhisperError):
    """The recording exceeds the limit on bytes or on duration."""

    status = 413
    kind = "invalid_request_error"
    default_code = "too_large"


class UnsupportedAudio(WhisperError):
    """The upload is not audio in any known container, or has no audio stream."""

    status = 415
    kind = "invalid_request_error"
    default_code = "unsupported_audio"


class UnreadableAudio(WhisperError):
    """The upload is audio, but no sample can be decoded from it."""

    status = 422
    kind = "invalid_request_error"
    default_code = "unreadable_audio"


class Overloaded(WhisperError):
    """Too many requests are open; try again after `retry_after` seconds."""

    status = 503
    kind = "server_error"
    default_code = "overloaded"
    retry_after: float

    def __init__(self, message: str, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class EngineError(WhisperError, RuntimeError):
    """The engine failed on a window."""

    status = 500
    kind = "server_error"
    default_code = "engine_error"


class OutOfMemory(EngineError):
    """The device has no memory for the batch."""

    status = 503
    default_code = "out_of_memory"
    retry_after = 5.0


class Cancelled(WhisperError):
    """The request was cancelled before its transcript was complete."""

    status = 499
    kind = "server_error"
    default_code = "cancelled"


class ConfigurationError(WhisperError):
    """The server cannot start as configured."""

    kind = "configuration_error"
    default_code = "configuration"
