"""The audio tracks of a file, and the choice of one by number or language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InvalidRequest, UnsupportedAudio
from ..languages import whisper_code
from ..types import AudioTrack

_MAX_LISTED = 16
_UNKNOWN = ("", "und", "mis", "mul", "zxx")


def audio_tracks(container: Any) -> tuple[AudioTrack, ...]:
    """The container's audio tracks, in the order of the file."""
    return tuple(_track(index, stream) for index, stream in enumerate(container.streams.audio))


def choose(container: Any, requested: str | None) -> tuple[int, Any]:
    """The index and the stream of the track to read; FFmpeg's best one when none is `requested`.

    Raises UnsupportedAudio when the file has no audio or the codec is unknown, and InvalidRequest when there is no such
    track.
    """
    streams = list(container.streams.audio)
    best = container.streams.best("audio")  # FFmpeg's default audio stream
    if not streams or best is None:
        raise UnsupportedAudio("the file has no audio stream: send one with sound", code="no_audio_stream")
    chosen = next(index for index, stream in enumerate(streams) if stream.index == best.index)
    if requested is not None:
        chosen = _find(audio_tracks(container), requested, chosen)
    if streams[chosen].codec_context is None:
        raise UnsupportedAudio("the file's audio codec is unknown: send wav, flac, mp3, aac, opus or vorbis")
    return chosen, streams[chosen]


def described(tracks: Sequence[AudioTrack]) -> str:
    """The tracks as text for a message: `0 (deu), 1 (eng, Commentary)`."""
    more = [f"and {len(tracks) - _MAX_LISTED} more"] if len(tracks) > _MAX_LISTED else []
    return ", ".join([*map(_described, tracks[:_MAX_LISTED]), *more])


def _find(tracks: Sequence[AudioTrack], requested: str, best: int) -> int:
    """The index of the requested track. If several have the language: the best one, or the first."""
    if requested.isdecimal():
        matches = [track.index for track in tracks if track.index == int(requested)]
    else:
        matches = [track.index for track in tracks if track.language and _code(track.language) == _code(requested)]
    if not matches:
        count = "only one sound track" if len(tracks) == 1 else f"{len(tracks)} sound tracks"
        kind = "with the number" if requested.isdecimal() else "in the language"
        message = f"audio_track: no sound track {kind} '{requested}'; the recording has {count}: {described(tracks)}"
        raise InvalidRequest(message, param="audio_track")
    return best if best in matches else matches[0]


def _code(language: str) -> str:
    """Whisper's code of a language code, tag or name. A language unknown to Whisper is returned in lower case."""
    try:
        return whisper_code(language) or language
    except KeyError:
        return language.strip().lower()


def _track(index: int, stream: Any) -> AudioTrack:
    language, title = _line(stream.metadata.get("language")), _line(stream.metadata.get("title"))
    return AudioTrack(index, None if language.lower() in _UNKNOWN else language, title or None)


def _line(text: str | None) -> str:
    """A file's text as one line of at most 200 characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in (text or "")[:200]).split())


def _described(track: AudioTrack) -> str:
    details = ", ".join(filter(None, (track.language, track.title and track.title[:40])))
    return f"{track.index} ({details})" if details else f"{track.index}"
