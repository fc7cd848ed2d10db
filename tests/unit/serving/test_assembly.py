"""The segments of several tracks in one order of time."""

from __future__ import annotations

from whispercore.serving.assembly import Assembly
from whispercore.serving.track import Track
from whispercore.transcript.tasks import PartialTranscript, PartTask, RecordingLanguage
from whispercore.types import Dropped, Segment

ENGLISH = RecordingLanguage("en")


def spoken(start: float, until: float) -> PartTask:
    """A part that is finished without a window."""
    dropped = (Dropped(start, until, "noise", "no_speech"),)
    return PartialTranscript(until, (Segment(start, until, f" {start:g}"),), dropped)
    yield


def tracks(*starts: tuple[float, ...]) -> list[Track]:
    """A track for each channel, with a part of two seconds at each of its starts."""
    return [Track((spoken(start, start + 2) for start in own), ENGLISH, channel=channel) for channel, own in enumerate(starts)]


def read(track: Track) -> None:
    track.begin(track.read())


def final(assembly: Assembly) -> list[tuple[float, int | None]]:
    return [(segment.start, segment.channel) for segment in assembly.segments]


def test_a_single_track_is_final_at_once() -> None:
    [track] = tracks((0, 2))
    assembly = Assembly()
    assert not assembly.update([track])
    read(track)
    assert assembly.update([track]) and final(assembly) == [(0, 0)]


def test_a_segment_waits_until_no_other_channel_can_have_an_earlier_one() -> None:
    left, right = both = tracks((0, 4), (1, 5))
    assembly = Assembly()
    read(left)
    assert assembly.update(both) and final(assembly) == [], "the right channel may still begin at 0"
    read(right)
    assembly.update(both)
    assert final(assembly) == [(0, 0), (1, 1)]
    read(right)
    assembly.update(both)
    assert final(assembly) == [(0, 0), (1, 1)], "the left channel is finished up to 2 s only"
    read(left)
    assembly.update(both)
    assert final(assembly) == [(0, 0), (1, 1), (4, 0), (5, 1)]


def test_a_track_that_is_over_holds_nothing_back() -> None:
    short, long = both = tracks((0,), (1, 7))
    assembly = Assembly()
    for track in (short, short, long, long):
        read(track)
    assembly.update(both)
    assert final(assembly) == [(0, 0), (1, 1), (7, 1)]
