"""The errors that only the Lambda function has. Their bodies have the form of the server's errors."""

from __future__ import annotations

from whispercore.errors import WhisperError


class UnknownEvent(WhisperError):
    """An event of another shape than those that the function takes."""

    status = 400
    kind = "invalid_request_error"
    default_code = "unknown_event"


class Unauthorized(WhisperError):
    """No API key, or a wrong one."""

    status = 401
    kind = "invalid_request_error"
    default_code = "invalid_api_key"


class ReplyTooLarge(WhisperError):
    """The reply has more bytes than Lambda carries, and no bucket takes it."""

    status = 413
    kind = "invalid_request_error"
    default_code = "reply_too_large"


class TimeIsUp(WhisperError):
    """The invocation ends before the transcript is complete."""

    status = 504
    kind = "server_error"
    default_code = "timeout"


class SourceError(WhisperError):
    """A recording that the request names, or the place of a result, cannot be used: the caller can mend it."""

    status = 400
    kind = "invalid_request_error"
    default_code = "unreachable_source"


class AccessDenied(SourceError):
    """The function's role lacks a right."""

    status = 403
    default_code = "access_denied"


class Missing(SourceError):
    """A bucket or an object that does not exist."""

    status = 404
    default_code = "not_found"


class Replaced(SourceError):
    """The object has been overwritten since the event was sent. Its new content has an event of its own."""

    status = 409
    default_code = "replaced"


class Unavailable(WhisperError):
    """A service does not answer, or the transfer breaks off: worth another try."""

    status = 503
    kind = "server_error"
    default_code = "unavailable"


class RecordsFailed(WhisperError):
    """Some recordings of an event could not be transcribed. Raised, so that Lambda delivers the event again."""

    status = 500
    kind = "server_error"
    default_code = "records_failed"
