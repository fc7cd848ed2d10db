"""The sound tracks of a file, and the one that a request asks for, by its number or its language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InvalidRequest, UnsupportedAudio
from ..languages import whisper_code
from ..types import AudioTrack

_MOST_TOLD = 16
_UNKNOWN = ("", "und", "mis", "mul", "zxx")


def audio_tracks(container: Any) -> tuple[AudioTrack, ...]:
    """The container's sound tracks, in the order of the file."""
    return tuple(_track(index, stream) for index, stream in enumerate(container.streams.audio))


def choose(container: Any, wanted: str | None) -> tuple[int, Any]:
    """The track to read, its index and its stream; FFmpeg's best one when none is `wanted`.

    Raises UnsupportedAudio when there is no sound, or its codec is unknown, and InvalidRequest when there is no such track.
    """
    streams = list(container.streams.audio)
    best = container.streams.best("audio")  # never a cover picture
    if not streams or best is None:
        raise UnsupportedAudio("the file has no audio stream: send one with sound", code="no_audio_stream")
    chosen = next(index for index, stream in enumerate(streams) if stream.index == best.index)
    if wanted is not None:
        chosen = _find(audio_tracks(container), wanted, chosen)
    if streams[chosen].codec_context is None:
        raise UnsupportedAudio("the file's audio codec is unknown: send wav, flac, mp3, aac, opus or vorbis")
    return chosen, streams[chosen]


def described(tracks: Sequence[AudioTrack]) -> str:
    """The tracks in words: `0 (deu), 1 (eng, Commentary)`."""
    more = [f"and {len(tracks) - _MOST_TOLD} more"] if len(tracks) > _MOST_TOLD else []
    return ", ".join([*map(_described, tracks[:_MOST_TOLD]), *more])


def _find(tracks: Sequence[AudioTrack], wanted: str, best: int) -> int:
    """The index of the track asked for; of several in a language the best one, or the first."""
    if wanted.isdecimal():
        found = [track.index for track in tracks if track.index == int(wanted)]
    else:
        found = [track.index for track in tracks if track.language and _short(track.language) == _short(wanted)]
    if not found:
        count = "only one sound track" if len(tracks) == 1 else f"{len(tracks)} sound tracks"
        kind = "with the number" if wanted.isdecimal() else "in the language"
        message = f"audio_track: no sound track {kind} '{wanted}'; the recording has {count}: {described(tracks)}"
        raise InvalidRequest(message, param="audio_track")
    return best if best in found else found[0]


def _short(language: str) -> str:
    """Whisper's code of a code, a tag such as `de-AT`, or a name; a language that Whisper does not know stays as it is."""
    try:
        return whisper_code(language) or language
    except KeyError:
        return language.strip().lower()


def _track(index: int, stream: Any) -> AudioTrack:
    language, title = _line(stream.metadata.get("language")), _line(stream.metadata.get("title"))
    return AudioTrack(index, None if language.lower() in _UNKNOWN else language, title or None)


def _line(text: str | None) -> str:
    """A file's text as one line of bounded length."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in (text or "")[:200]).split())


def _described(track: AudioTrack) -> str:
    told = ", ".join(filter(None, (track.language, track.title and track.title[:40])))
    return f"{track.index} ({told})" if told else f"{track.index}"
