"""The outcome of a recording of a batch, whichever runner has transcribed it, and the kinds of failures."""

from __future__ import annotations

from dataclasses import dataclass

from failures import RequestFailed
from storage import CONNECTION, Recording

from whispercore.errors import WhisperError
from whispercore.types import Transcript

CRASHED, TRUNCATED = "crashed", "truncated"
TRANSIENT = {CONNECTION, CRASHED, "engine_error", "out_of_memory", "overloaded", "cancelled"}
"""Kinds of failures that may pass: the recording is tried again."""
_CUT_OFF = ("the file is truncated", "the file is cut off")
"""Warnings of the core about recordings that are not whole."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a recording has no transcript. `kind` is for counting; the message says what to do."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BaseException | None) -> Failure:
        """The failure that an exception stands for."""
        if isinstance(error, RequestFailed):
            return cls(error.kind, str(error))
        if isinstance(error, WhisperError):
            return cls(error.code or error.kind, error.message)
        return cls("unforeseen", f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Model:
    """The model that has answered. `vocabulary`: the number of its tokens."""

    name: str
    is_demonstration: bool
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A recording's transcript and its model, or its failure. `seconds`: of the work."""

    recording: Recording
    seconds: float
    transcript: Transcript | None = None
    model: Model | None = None
    failure: Failure | None = None


def truncation(transcript: Transcript) -> Failure | None:
    """The failure of a recording that is not whole."""
    warning = next((warning for warning in transcript.warnings if warning.startswith(_CUT_OFF)), None)
    if warning is None:
        return None
    return Failure(TRUNCATED, f"{warning}: is it still being uploaded? Run again when it is whole, or with --keep-truncated")
