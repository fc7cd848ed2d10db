"""Words at the place where they were spoken, the segments they make, and voice that has no words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispercore.audio.cutting import SpeechChunk
from whispercore.audio.packing import PackedWindow
from whispercore.audio.silero import FRAME
from whispercore.options import Options
from whispercore.tokenizer import Tokenizer
from whispercore.transcript import coverage
from whispercore.transcript.placement import VOICE_MARGIN, PlacedWord, in_order, is_aligned, place_words, trimmed, voiced_spans
from whispercore.transcript.sentences import LEAD_IN, LONGEST, sentence_segments
from whispercore.types import SAMPLE_RATE, Decoded

TOKENIZER = Tokenizer(51_865)
DECODED = Decoded((), "", "en", 0.0, -0.2, 0.0, 1.0)


def chunk(start: float, seconds: float, *spans: tuple[float, float]) -> SpeechChunk:
    """Voice in these spans, in seconds from the chunk's beginning."""
    frames = np.arange(-(-round(seconds * SAMPLE_RATE) // FRAME)) * FRAME / SAMPLE_RATE
    voiced = np.zeros(len(frames), bool)
    for begin, end in spans:
        voiced |= (frames >= begin) & (frames < end)
    return SpeechChunk(np.zeros(round(seconds * SAMPLE_RATE), np.float32), start, 0.0, voiced)


def aligned(words: Sequence[tuple[str, float]], end: float) -> Decoded:
    """A window whose words of one token each begin at these seconds."""
    tokens = [TOKENIZER.encode(word) for word, _ in words]
    assert all(len(part) == 1 for part in tokens), "one token a word"
    times = (*(time for _, time in words), end)
    text = "".join(word for word, _ in words).strip()
    flat = tuple(token for part in tokens for token in part)
    return replace(DECODED, tokens=flat, text=text, token_times=times, token_probs=(0.9,) * len(flat))


def word(text: str, start: float, end: float, *, voice: float | None = 0.3, source: Decoded = DECODED) -> PlacedWord:
    return PlacedWord(text, start, end, voice, 0.9, TOKENIZER.encode(text), (-0.1,) * len(TOKENIZER.encode(text)), source)


def test_a_word_after_a_pause_begins_with_its_voice() -> None:
    packed = PackedWindow((chunk(100.0, 10.0, (0.5, 1.0), (7.0, 8.0)),))
    first, second = place_words(aligned([(" hello", 0.0), (" world", 1.0)], 9.5), packed, TOKENIZER, Options())
    assert (first.start, first.end) == pytest.approx((100.5, 101.0), abs=VOICE_MARGIN + 0.04)
    assert (second.start, second.end) == pytest.approx((107.0, 108.0), abs=VOICE_MARGIN + 0.04)


def test_words_of_a_window_with_a_silence_left_out_lie_on_its_two_sides() -> None:
    packed = PackedWindow((chunk(10.0, 3.0, (0.4, 2.6)), chunk(60.0, 3.0, (0.4, 2.6))))
    words = place_words(aligned([(" one", 0.3), (" two", 1.5), (" three", 2.6), (" four", 4.5)], 5.8), packed, TOKENIZER, Options())
    assert [placed.start < 30 for placed in words] == [True, True, False, False]
    assert all(placed.end <= 13.0 or placed.start >= 60.0 for placed in words)
    assert words[2].start == pytest.approx(60.4, abs=VOICE_MARGIN + 0.04)


def test_without_a_detector_words_keep_the_times_of_their_alignment() -> None:
    packed = PackedWindow((replace(chunk(0.0, 5.0), voiced=None),))
    words = place_words(aligned([(" one", 0.3), (" two", 1.5)], 2.5), packed, TOKENIZER, Options())
    assert [(placed.start, placed.end, placed.voice) for placed in words] == [(0.3, 1.5, None), (1.5, 2.5, None)]
    assert coverage.gaps(words, packed) == [] and coverage.voiced_seconds(packed) is None


@given(
    starts=st.lists(st.floats(0, 29), min_size=1, max_size=20).map(sorted),
    edges=st.lists(st.floats(0, 30), max_size=12).map(sorted),
    lengths=st.lists(st.floats(1, 12), min_size=1, max_size=4),
)
def test_words_are_in_order_and_within_their_window(starts: list[float], edges: list[float], lengths: list[float]) -> None:
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    position, chunks = 0.0, []
    for length in lengths:
        chunks.append(chunk(position, length, *spans))
        position += length + 7
    packed = PackedWindow(tuple(chunks))
    words = place_words(aligned([(" one", start) for start in starts], 30.0), packed, TOKENIZER, Options())
    assert [token for placed in words for token in placed.tokens] == [TOKENIZER.encode(" one")[0]] * len(starts)
    assert all(placed.start <= placed.end for placed in words)
    assert all(before.end <= after.start for before, after in itertools.pairwise(words))
    assert all(packed.start - 0.01 <= placed.start and placed.end <= packed.end + 0.01 for placed in words)
    segments = sentence_segments(words, packed, TOKENIZER, with_words=True)
    assert "".join(segment.text for segment in segments) == " one" * len(starts)
    assert all(before.end <= after.start for before, after in itertools.pairwise(segments))


@pytest.mark.parametrize(
    ("span", "voices", "expected"),
    [
        ((1.0, 2.0), [], (1.0, 2.0)),
        ((1.0, 5.0), [(0.0, 1.1), (4.0, 4.8)], (3.95, 4.85)),  # the end of the word before, a pause, the word
        ((1.0, 5.0), [(1.2, 2.0), (4.9, 6.0)], (1.15, 2.05)),  # the word, a pause, the next one's beginning
        ((1.0, 2.0), [(1.1, 1.4), (1.5, 1.9)], (1.05, 1.95)),  # a plosive within a word
    ],
)
def test_a_span_is_trimmed_to_most_of_its_voice(
    span: tuple[float, float], voices: list[tuple[float, float]], expected: tuple[float, float]
) -> None:
    assert trimmed(span, voices)[:2] == pytest.approx(expected)


def test_a_click_is_no_voice() -> None:
    assert voiced_spans(chunk(0.0, 3.0, (0.0, 0.03), (1.0, 2.0))) == [pytest.approx((1.0, 2.0), abs=0.04)]


def test_an_engine_that_gives_no_times_has_not_aligned() -> None:
    assert is_aligned(DECODED, TOKENIZER)
    assert not is_aligned(replace(DECODED, tokens=TOKENIZER.encode(" hello")), TOKENIZER)


# Sentences


PACK = PackedWindow((chunk(0.0, 30.0, (0.0, 30.0)),))


def test_sentences_become_segments_and_a_long_pause_ends_one() -> None:
    words = [word(" Yes", 1.0, 1.6), word(" sir.", 1.6, 2.4), word(" Come", 2.5, 3.0), word(" in", 3.0, 3.2), word(" now", 5.0, 5.4)]
    segments = sentence_segments(words, PACK, TOKENIZER, with_words=False)
    assert [segment.text for segment in segments] == [" Yes sir.", " Come in", " now"]
    assert [segment.start for segment in segments] == pytest.approx([1.0 - LEAD_IN, 2.45, 5.0 - LEAD_IN])
    assert all(not segment.words for segment in segments)


def test_a_list_is_not_a_segment_an_item() -> None:
    words = [word(" copy,", 1.0, 1.3), word(" merge,", 1.7, 2.0), word(" sell", 2.4, 2.7)]
    assert len(sentence_segments(words, PACK, TOKENIZER, with_words=False)) == 1


def test_a_long_sentence_is_divided_at_its_commas() -> None:
    words = [word(" and," if number % 8 == 7 else " word", number * 0.6, number * 0.6 + 0.5) for number in range(40)]
    segments = sentence_segments(words, PACK, TOKENIZER, with_words=True)
    assert len(segments) > 2 and all(segment.end - segment.start <= LONGEST + LEAD_IN for segment in segments)
    assert all(segment.text.endswith(",") for segment in segments[:-1])
    assert [placed for segment in segments for placed in segment.words] == [placed.word for placed in words]


def test_nothing_makes_nothing() -> None:
    assert sentence_segments([], PACK, TOKENIZER, with_words=True) == [] and in_order([]) == []


# Coverage


def test_voice_before_between_and_after_words_is_missed() -> None:
    packed = PackedWindow((chunk(50.0, 20.0, (0.0, 3.0), (8.0, 12.0), (15.0, 19.0)),))
    missed = coverage.gaps([word(" one", 58.0, 62.0, voice=1.0)], packed)
    assert [(gap.packed.start, gap.packed.end) for gap in missed] == [
        pytest.approx((50.0, 53.4), abs=0.05),
        pytest.approx((64.6, 69.4), abs=0.05),
    ]
    assert all(len(gap.packed.samples) == round((gap.packed.end - gap.packed.start) * SAMPLE_RATE) for gap in missed)


def test_words_that_tile_the_voice_miss_nothing() -> None:
    words = [word(" one", time, time + 0.5) for time in np.arange(0.0, 30.0, 0.5)]
    assert coverage.gaps(words, PACK) == []


def test_a_word_that_takes_too_long_is_heard_again() -> None:
    packed = PackedWindow((chunk(0.0, 10.0, (0.0, 9.0)),))
    long = word(" and", 2.0, 9.0, voice=7.0)
    (gap,) = coverage.gaps([word(" one", 0.0, 2.0, voice=1.2), long], packed)
    assert gap.words == (long,) and gap.packed.start == pytest.approx(2.0, abs=0.2)


def test_a_short_noise_is_not_worth_another_decoding() -> None:
    packed = PackedWindow((chunk(0.0, 10.0, (0.0, 2.0), (5.0, 5.5)),))
    assert coverage.gaps([word(" one", 0.0, 2.0, voice=1.0)], packed) == []


def test_words_without_length_are_no_alignment() -> None:
    spread = [word(" one", time, time + 0.3) for time in range(10)]
    crammed = [*spread[:5], *(word(" one", 5.0, 5.0) for _ in range(10))]
    assert coverage.has_spoken_durations(spread) and not coverage.is_collapsed(spread)
    assert not coverage.has_spoken_durations(crammed) and coverage.is_collapsed(crammed)
