"""A track alone, without threads: the order of its parts, the windows it asks for, the language its parts share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from whispercore.serving.track import PartWindow, Track
from whispercore.transcript.tasks import PartialTranscript, PartTask, RecordingLanguage
from whispercore.types import Decoded, Decoding, Segment, Window


def window(start: float, language: str | None = None) -> Window:
    return Window(np.zeros(16, np.float32), start, Decoding(language=language))


def decoded(text: str, language: str = "en") -> Decoded:
    return Decoded((), text, language, 0.0, 0.0, 0.0, 0.0)


def part(start: float, language: RecordingLanguage, windows: int = 1) -> PartTask:
    """A part of a second that decodes some windows, one after the other."""
    texts = []
    for _ in range(windows):
        answer = yield window(start, language.language)
        texts.append(answer.text)
        if answer.text:
            language.settle(answer)
    return PartialTranscript(start + 1, (Segment(start, start + 1, " ".join(texts)),))


def begun(track: Track, parts: int) -> list[PartWindow]:
    """The first windows of the first parts."""
    return [request for _ in range(parts) for request in track.begin(track.read())]


def texts(track: Track) -> list[str]:
    return [segment.text for finished in track.take_finished() for segment in finished.segments]


ENGLISH = RecordingLanguage("en")


def test_parts_are_finished_in_order_whatever_the_order_of_their_windows() -> None:
    track = Track((part(start, ENGLISH) for start in range(3)), ENGLISH, max_running=4)
    first, second, third = begun(track, 3)
    assert track.receive(third, decoded("c")) == [] and texts(track) == [] and track.until == 0
    track.receive(first, decoded("a"))
    assert texts(track) == ["a"] and track.until == 1
    track.receive(second, decoded("b"))
    assert texts(track) == ["b", "c"] and track.until == 3


def test_a_part_may_ask_for_several_windows() -> None:
    track = Track(iter([part(0, ENGLISH, windows=3)]), ENGLISH)
    [request] = begun(track, 1)
    for text in ("a", "b"):
        [request] = track.receive(request, decoded(text))
    assert track.receive(request, decoded("c")) == [] and texts(track) == ["a b c"]


@pytest.mark.parametrize("max_running", [1, 2])
def test_only_so_many_parts_are_under_way(max_running: int) -> None:
    track = Track((part(start, ENGLISH) for start in range(3)), ENGLISH, max_running=max_running)
    requests = []
    while track.has_room:
        requests += begun(track, 1)
    assert len(requests) == track.begun == max_running
    track.receive(requests[0], decoded("a"))
    assert track.has_room


def test_a_track_is_over_when_all_is_read_and_finished() -> None:
    track = Track(iter([part(0, ENGLISH), None]), ENGLISH, max_running=4)
    [request] = begun(track, 1)
    assert begun(track, 1) == [] and track.has_room, "None: nothing to decode yet"
    assert begun(track, 1) == [] and not track.has_room and not track.is_over
    track.receive(request, decoded("a"))
    assert track.is_over


def test_reading_alone_changes_nothing_that_other_threads_look_at() -> None:
    track = Track(iter(()), ENGLISH)
    task = track.read()
    assert track.has_room and not track.is_over
    assert track.begin(task) == [] and track.is_over


def test_a_part_without_windows_is_finished_at_once() -> None:
    def silent() -> PartTask:
        return PartialTranscript(7.0)
        yield window(0)

    track = Track(iter([silent()]), ENGLISH)
    assert begun(track, 1) == [] and len(track.take_finished()) == 1 and track.until == 7


def test_the_first_part_with_words_decides_the_language_of_the_others() -> None:
    language = RecordingLanguage()
    track = Track((part(start, language) for start in range(3)), language, max_running=4)
    first, second, third = begun(track, 3)
    assert track.receive(second, decoded("zwei", "de")) == [] and track.receive(third, decoded("three")) == []
    [again] = track.receive(first, decoded("one"))
    assert (again.part, again.window.decoding.language) == (1, "en"), "decoded in another language: again in the recording's"
    assert texts(track) == ["one"], "the third waits for the second"
    track.receive(again, decoded("two"))
    assert texts(track) == ["two", "three"]


def test_until_a_part_has_words_the_next_one_is_asked() -> None:
    language = RecordingLanguage()
    track = Track((part(start, language) for start in range(2)), language, max_running=4)
    silent, spoken = begun(track, 2)
    track.receive(spoken, decoded("zwei", "de"))
    assert track.receive(silent, decoded("", "ja")) == [] and language.language == "de"
    assert texts(track) == ["", "zwei"]


def test_where_each_window_has_its_language_none_waits() -> None:
    language = RecordingLanguage()
    track = Track((part(start, RecordingLanguage()) for start in range(2)), language, multilingual=True, max_running=4)
    first, second = begun(track, 2)
    assert track.receive(second, decoded("zwei", "de")) == [] == track.receive(first, decoded("one"))
    assert texts(track) == ["one", "zwei"]


def test_an_error_of_a_part_goes_to_the_caller() -> None:
    def broken() -> Iterator[PartTask]:
        yield part(0, ENGLISH)
        raise ValueError("broken audio")

    track = Track(broken(), ENGLISH)
    begun(track, 1)
    with pytest.raises(ValueError, match="broken audio"):
        track.read()
