"""The finished parts of all tracks → one transcript in order of time, while it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..audio.parts import Part
from ..audio.reading import OpenRecording
from ..options import Options
from ..transcript.tasks import RecordingLanguage
from ..types import Dropped, Segment, Transcript
from .track import Track


class Assembly:
    """The transcript of a recording. No threads, no locks. `segments`: those that are final."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._early: list[Segment] = []
        self._dropped: list[Dropped] = []

    def update(self, tracks: Sequence[Track]) -> bool:
        """Take what the tracks have finished; whether that was anything.

        With several tracks a segment is final when no other track can have an earlier one any more. Until then it waits
        in `_early`.
        """
        parts = [(track.channel, part) for track in tracks for part in track.take_finished()]
        for channel, part in parts:
            self._early += [replace(segment, channel=channel) for segment in part.segments]
            self._dropped += part.dropped
        if len(tracks) == 1:
            self.segments += self._early
            self._early = []
        else:
            until = min((track.until for track in tracks if not track.is_over), default=math.inf)
            final = (segment for segment in self._early if segment.start < until)
            self.segments += sorted(final, key=lambda segment: (segment.start, segment.channel or 0))
            self._early = [segment for segment in self._early if segment.start >= until]
        return bool(parts)

    def transcript(self, options: Options, language: RecordingLanguage, recordings: Sequence[OpenRecording | Part]) -> Transcript:
        """The whole transcript, when all tracks are over.

        `recordings`: each pass over the recording, read to its end.
        """
        audio_tracks = recordings[0].tracks
        return Transcript(
            text="".join(segment.text for segment in self.segments).strip(),
            language=language.language or "en",
            duration=round(max(recording.duration for recording in recordings), 3),
            task=options.task,
            segments=tuple(self.segments),
            warnings=tuple(dict.fromkeys(warning for recording in recordings for warning in recording.warnings)),
            dropped=tuple(sorted(self._dropped, key=lambda dropped: dropped.start)),
            language_probability=language.probability,
            audio_tracks=audio_tracks if len(audio_tracks) > 1 else (),
        )


def joined(parts: Sequence[Transcript]) -> Transcript:
    """The transcript of a recording from those of its parts, in order. The language is that of the first part with words."""
    spoken = next((part for part in parts if part.segments), parts[0])
    segments = tuple(segment for part in parts for segment in part.segments)
    return replace(
        parts[-1],
        text="".join(segment.text for segment in segments).strip(),
        language=spoken.language,
        language_probability=spoken.language_probability,
        segments=segments,
        dropped=tuple(sorted((dropped for part in parts for dropped in part.dropped), key=lambda dropped: dropped.start)),
    )


def in_another_language(parts: Sequence[Transcript]) -> list[int]:
    """The parts, by number, to transcribe again in the language of `joined`, when no language was asked for.

    A part detects the language by its own first words. A part without words may have lost some, in any language.
    """
    language = joined(parts).language
    first = next((number for number, part in enumerate(parts) if part.segments), len(parts))
    later = [(number, part) for number, part in enumerate(parts) if number > first]
    return [number for number, part in later if (part.language != language if part.segments else part.dropped)]
