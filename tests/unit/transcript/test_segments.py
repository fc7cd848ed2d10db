"""Tokens split at timestamps, and segments in the recording's time."""

from __future__ import annotations

import numpy as np
import pytest

from whispercore.audio.cutting import SpeechChunk
from whispercore.audio.packing import PackedWindow
from whispercore.tokenizer import Tokenizer
from whispercore.transcript.segments import decoded_segments, in_recording, timed_texts
from whispercore.types import Decoded

TOKENIZER = Tokenizer(51_865)
BEGIN = TOKENIZER.timestamp_begin


def decoded(tokens: tuple[int, ...]) -> Decoded:
    return Decoded(tokens, TOKENIZER.decode(tokens), "en", 0.0, -0.3, 0.0, 1.0)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((), []),
        ((BEGIN,), []),
        ((5, 6), [(0.0, None, (5, 6))]),
        ((BEGIN, 5, BEGIN + 50), [(0.0, 1.0, (5,))]),
        ((BEGIN + 10, 5, BEGIN + 50, BEGIN + 60, 6, 7), [(0.2, 1.0, (5,)), (1.2, None, (6, 7))]),
        ((BEGIN, 5, BEGIN + 50, BEGIN + 50, 6, BEGIN + 75, BEGIN + 75), [(0.0, 1.0, (5,)), (1.0, 1.5, (6,))]),
        ((BEGIN, 5, BEGIN + 50, 6, BEGIN + 75), [(0.0, 1.0, (5,)), (1.0, 1.5, (6,))]),
    ],
)
def test_tokens_are_split_at_timestamps(tokens: tuple[int, ...], expected: list[tuple[float, float | None, tuple[int, ...]]]) -> None:
    texts = [(text.start, text.end, text.tokens) for text in timed_texts(tokens, BEGIN)]
    assert texts == [(pytest.approx(start), end if end is None else pytest.approx(end), part) for start, end, part in expected]


def test_segments_stand_on_the_recordings_time_line_and_stay_in_their_window() -> None:
    hello, there = TOKENIZER.encode(" Hello."), TOKENIZER.encode(" There.")
    result = decoded((BEGIN, *hello, BEGIN + 100, BEGIN + 110, *there, BEGIN + 1500))
    packed = PackedWindow((SpeechChunk(np.zeros(72_000, np.float32), 60.0),))
    placed = [in_recording(segment, packed) for segment in decoded_segments(result, duration=4.5, tokenizer=TOKENIZER)]
    assert [(segment.start, segment.end, segment.text) for segment in placed] == [(60.0, 62.0, " Hello."), (62.2, 64.5, " There.")]
    assert all((segment.avg_logprob, segment.seek) == (-0.3, 6000) for segment in placed)
