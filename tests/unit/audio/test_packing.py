"""Packing: no chunk is lost or moved, and window times map back to recording times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispercore.audio.cutting import SpeechChunk
from whispercore.audio.packing import PackedWindow, pack_chunks
from whispercore.transcript.segments import in_recording
from whispercore.types import SAMPLE_RATE, WINDOW_SAMPLES, Segment, Word


def chunk(start: float, seconds: float, *, clip: float = 0.0) -> SpeechChunk:
    length = round(seconds * SAMPLE_RATE)
    return SpeechChunk(np.arange(length, dtype=np.float32) + round(start * SAMPLE_RATE), start, clip)


def spans(packed: PackedWindow) -> list[tuple[float, float]]:
    return [(part.start, part.start + part.duration) for part in packed.chunks]


LAYOUT = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 30_000)), max_size=30)


@given(layout=LAYOUT)
def test_every_sample_is_in_one_window_of_30_seconds_and_no_two_windows_would_fit_into_one(layout: list[tuple[int, int]]) -> None:
    chunks, position = [], 0
    for pause, milliseconds in layout:
        position += pause
        chunks.append(chunk(position / 1000, milliseconds / 1000))
        position += milliseconds
    windows = list(pack_chunks(chunks))
    lengths = [len(packed.samples) for packed in windows]
    assert all(length <= WINDOW_SAMPLES for length in lengths)
    assert all(length + len(after.chunks[0].samples) > WINDOW_SAMPLES for length, after in zip(lengths, windows[1:], strict=False))
    samples = [part.samples for part in chunks]
    if samples:
        np.testing.assert_array_equal(np.concatenate([packed.samples for packed in windows]), np.concatenate(samples))
    for packed in windows:
        assert (packed.start, packed.end) == (spans(packed)[0][0], spans(packed)[-1][1])


@given(layout=LAYOUT, middle=st.floats(0, 1), length=st.floats(0, 1))
def test_a_time_of_the_window_is_that_of_its_sample(layout: list[tuple[int, int]], middle: float, length: float) -> None:
    """The samples say where they come from."""
    position = 0
    chunks = []
    for pause, milliseconds in layout:
        position += pause
        chunks.append(chunk(position / 1000, milliseconds / 1000))
        position += milliseconds
    for packed in pack_chunks(chunks):
        seconds = len(packed.samples) / SAMPLE_RATE
        begin = middle * seconds
        end = begin + length * (seconds - begin)
        first, last = packed.in_recording(begin, end)
        assert packed.start <= first <= last <= packed.end + 1e-6
        assert last - first >= end - begin - 0.801
        for window_time, time in ((begin, first), (end, last)):
            truth = packed.samples[min(int(window_time * SAMPLE_RATE), len(packed.samples) - 1)] / SAMPLE_RATE
            joints = [border for span in spans(packed) for border in span]
            assert abs(time - truth) < 0.002 or any(abs(time - joint) < 0.401 for joint in joints)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((1.0, 4.0), (11.0, 14.0)),
        ((6.0, 9.0), (41.0, 44.0)),
        ((4.8, 9.0), (40.0, 44.0)),  # begins in what is kept of the silence: with the speech after it
        ((2.0, 5.3), (12.0, 15.0)),
        ((2.0, 7.0), (12.0, 42.0)),  # one sentence, a long silence in the middle
        ((4.9, 5.3), (40.0, 40.3)),  # a word: where most of it is
        ((4.7, 5.1), (14.7, 15.0)),
        ((5.0, 5.0), (15.0, 15.0)),
    ],
)
def test_what_is_said_at_a_joint_is_on_one_side_of_the_silence(span: tuple[float, float], expected: tuple[float, float]) -> None:
    packed = PackedWindow((chunk(10.0, 5.0), chunk(40.0, 6.0)))
    assert packed.in_recording(*span) == pytest.approx(expected)


def test_words_and_their_segment_are_placed_alike() -> None:
    packed = PackedWindow((chunk(10.0, 5.0), chunk(40.0, 6.0)))
    words = (Word(" one", 4.2, 4.5, 0.9), Word(" two", 4.9, 5.6, 0.8), Word(" three", 5.6, 6.0, 0.7))
    segment = Segment(4.2, 6.0, " one two three", (1, 2, 3), 0.0, -0.1, 1.0, 0.0, words=words)
    placed = in_recording(segment, packed)
    assert [(word.start, word.end) for word in placed.words] == [(14.2, 14.5), (40.0, 40.6), (40.6, 41.0)]
    assert (placed.start, placed.end, placed.seek) == (14.2, 41.0, 1000)


def test_what_goes_on_is_no_joint() -> None:
    (packed,) = pack_chunks([chunk(3.0, 20.0), chunk(23.0, 6.0)])
    assert len(packed.chunks) == 1
    assert packed.in_recording(19.9, 20.1) == pytest.approx((22.9, 23.1))


def test_clips_stay_apart() -> None:
    windows = list(pack_chunks([chunk(1.0, 2.0, clip=1.0), chunk(3.0, 2.0, clip=3.0), chunk(9.0, 2.0, clip=3.0)]))
    assert [spans(packed) for packed in windows] == [[(1.0, 3.0)], [(3.0, 5.0), (9.0, 11.0)]]
