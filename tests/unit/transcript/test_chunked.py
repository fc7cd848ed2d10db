"""Fallback and the no-speech rule, against openai-whisper's table of cases; tokens split at timestamps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whispercore.audio.cutting import SpeechChunk
from whispercore.audio.packing import PackedWindow
from whispercore.options import Options
from whispercore.tokenizer import Tokenizer
from whispercore.transcript.chunked import (
    DetectedLanguage,
    PartialTranscript,
    chunked,
    is_silence,
    needs_fallback,
    prompt_tokens,
    with_fallback,
)
from whispercore.transcript.segments import in_recording, segments, spans
from whispercore.types import MAX_PROMPT, Decoded, Decoding, Window

TOKENIZER = Tokenizer(51_865)
BEGIN = TOKENIZER.timestamp_begin


def decoded(*, ratio: float = 1.0, logprob: float = -0.3, no_speech: float = 0.0, tokens: tuple[int, ...] = ()) -> Decoded:
    return Decoded(tokens, TOKENIZER.decode(tokens), "en", 0.0, logprob, no_speech, ratio)


@pytest.mark.parametrize(
    ("result", "again", "silent"),
    [
        (decoded(), False, False),
        (decoded(ratio=2.5), True, False),
        (decoded(logprob=-1.1), True, False),
        (decoded(logprob=-1.1, no_speech=0.7), False, True),
        (decoded(logprob=-0.5, no_speech=0.7), False, False),
        (decoded(ratio=2.5, logprob=-0.5, no_speech=0.7), True, False),
    ],
)
def test_which_windows_are_tried_again_and_which_are_silence(result: Decoded, again: bool, silent: bool) -> None:
    options = Options()
    assert needs_fallback(result, options) is again
    assert is_silence(result, options) is silent


def test_thresholds_can_be_switched_off() -> None:
    never = Options(compression_ratio_threshold=None, logprob_threshold=None, no_speech_threshold=None)
    wild = decoded(ratio=9.0, logprob=-9.0, no_speech=0.9)
    assert not needs_fallback(wild, never) and not is_silence(wild, never)


def test_a_strand_climbs_the_temperatures_with_the_language_it_found() -> None:
    options = Options(temperature=(0.0, 0.4, 0.8))
    first = Window(np.zeros(16_000, np.float32), 3.0, options.decoding(temperature=0.0, prompt=(7,)), margin=(320, 200), loudest=1.5)
    task = with_fallback(first, options)
    window = next(task)
    asked = [window]
    with pytest.raises(StopIteration) as end:
        for ratio in (3.0, 3.0, 1.0):
            asked.append(task.send(decoded(ratio=ratio)))
    assert [window.decoding.temperature for window in asked] == [0.0, 0.4, 0.8]
    assert [window.decoding.language for window in asked] == [None, "en", "en"]
    assert all(window.decoding.prompt == (7,) and window.start == 3.0 for window in asked)
    assert all((window.margin, window.loudest) == ((320, 200), 1.5) for window in asked)
    assert end.value.value.compression_ratio == 1.0


def test_when_every_attempt_fails_the_likeliest_that_is_no_loop_is_kept() -> None:
    attempts = [decoded(ratio=9.0, logprob=-0.1), decoded(logprob=-1.5), decoded(logprob=-1.2), decoded(logprob=-3.0)]
    task = with_fallback(Window(np.zeros(16_000, np.float32), 0.0, Decoding()), Options(temperature=(0.0, 0.2, 0.4, 0.6)))
    next(task)
    with pytest.raises(StopIteration) as end:
        for attempt in attempts:
            task.send(attempt)
    assert end.value.value == attempts[2]


def test_hot_words_take_half_of_the_prompt_at_most_and_the_latest_text_the_rest() -> None:
    options = Options(hotwords="Lovelace " * 200, initial_prompt="Ada")
    tokens = prompt_tokens(options, TOKENIZER, previous=tuple(range(1000, 1500)))
    assert len(tokens) == MAX_PROMPT
    assert tokens[: MAX_PROMPT // 2] == TOKENIZER.encode(" " + options.hotwords.strip())[: MAX_PROMPT // 2]
    assert tokens[MAX_PROMPT // 2 :] == tuple(range(1000, 1500))[-(MAX_PROMPT - MAX_PROMPT // 2) :]
    assert TOKENIZER.decode(prompt_tokens(Options(hotwords="Lovelace", initial_prompt="Ada"), TOKENIZER)) == " Lovelace Ada"


def test_beams_belong_to_temperature_zero_and_samples_above_it() -> None:
    options = Options(beam_size=5, best_of=3, patience=2.0)
    cold, warm = options.decoding(temperature=0.0), options.decoding(temperature=0.2)
    assert (cold.beam_size, cold.patience, cold.best_of) == (5, 2.0, None)
    assert (warm.beam_size, warm.patience, warm.best_of) == (None, None, 3)


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
    found = [(span.start, span.end, span.tokens) for span in spans(tokens, BEGIN)]
    assert found == [(pytest.approx(start), end if end is None else pytest.approx(end), text) for start, end, text in expected]


def test_segments_stand_on_the_recordings_time_line_and_stay_in_their_window() -> None:
    hello, there = TOKENIZER.encode(" Hello."), TOKENIZER.encode(" There.")
    result = decoded(tokens=(BEGIN, *hello, BEGIN + 100, BEGIN + 110, *there, BEGIN + 1500))
    pack = PackedWindow((SpeechChunk(np.zeros(72_000, np.float32), 60.0),))
    found = [in_recording(segment, pack) for segment in segments(result, duration=4.5, tokenizer=TOKENIZER)]
    assert [(segment.start, segment.end, segment.text) for segment in found] == [(60.0, 62.0, " Hello."), (62.2, 64.5, " There.")]
    assert all((segment.avg_logprob, segment.seek) == (-0.3, 6000) for segment in found)


# Strategy chunked


def voiced(seconds: float) -> PackedWindow:
    """A window in which somebody speaks all the time."""
    samples = np.zeros(round(seconds * 16_000), np.float32)
    return PackedWindow((SpeechChunk(samples, 100.0, 0.0, np.ones(-(-len(samples) // 512), bool)),))


def said(text: str, begin: float, end: float, **rest: float) -> Decoded:
    """Words that are spread evenly over some seconds of a window."""
    tokens = TOKENIZER.encode(text)
    times = tuple(np.linspace(begin, end, len(tokens) + 1).tolist())
    return replace(decoded(tokens=tokens, **rest), token_times=times, token_probs=(0.9,) * len(tokens))


def transcribed(pack: PackedWindow, *answers: Decoded, options: Options | None = None) -> tuple[PartialTranscript, list[Window]]:
    """What strategy chunked makes of a window when the engine answers so, and what it asked for."""
    options = options or Options()
    (task,) = chunked([pack], options, DetectedLanguage(), TOKENIZER, aligns=True)
    assert task is not None
    asked = [next(task)]
    for answer in answers[:-1]:
        asked.append(task.send(answer))
    with pytest.raises(StopIteration) as end:
        task.send(answers[-1])
    return end.value.value, asked


def test_words_are_decoded_without_timestamp_tokens_and_aligned() -> None:
    part, (window,) = transcribed(voiced(4.0), said(" one two three four five six", 0.0, 4.0))
    assert not window.decoding.timestamps and window.decoding.alignment == "all"
    assert "".join(one.text for one in part.segments) == " one two three four five six"
    assert not part.dropped


def test_voice_after_the_last_word_is_decoded_again_on_its_own() -> None:
    first, rest = said(" one two three four five six", 0.0, 4.0), said(" seven eight nine ten", 0.1, 3.9)
    part, (_, again) = transcribed(voiced(8.0), first, rest)
    assert again.start == pytest.approx(104.0, abs=0.3) and again.duration == pytest.approx(4.0, abs=0.3)
    assert "".join(one.text for one in part.segments) == " one two three four five six seven eight nine ten"
    assert part.segments[-1].end == pytest.approx(108.0, abs=0.3)


@pytest.mark.parametrize("guess", [said(" hm", 0.0, 1.0, logprob=-0.9), said(" hm", 0.0, 1.0, no_speech=0.8), decoded()])
def test_a_guess_at_the_second_hearing_is_told_and_not_added(guess: Decoded) -> None:
    part, _ = transcribed(voiced(8.0), said(" one two three four five six", 0.0, 4.0), guess)
    assert "".join(one.text for one in part.segments) == " one two three four five six"
    (dropped,) = part.dropped
    assert dropped.reason == "no_speech" and dropped.start == pytest.approx(104.0, abs=0.3)


def test_a_sentence_that_is_said_three_times_is_no_loop() -> None:
    answer = said(" ask what you can do" * 3, 0.0, 6.0, ratio=3.0)
    part, asked = transcribed(voiced(6.0), answer)
    assert len(asked) == 1 and part.segments[0].temperature == 0.0


def test_a_loop_without_sound_is_decoded_again_at_the_next_temperature() -> None:
    crammed = said(" you know" * 40, 0.0, 1.0, ratio=9.0)
    part, asked = transcribed(voiced(4.0), crammed, said(" one two three four five six", 0.0, 4.0))
    assert [window.decoding.temperature for window in asked] == [0.0, 0.2]
    assert "you know" not in "".join(one.text for one in part.segments)


def test_where_the_alignment_collapses_the_window_is_decoded_by_timestamps() -> None:
    collapsed = said(" one two three four five six seven eight", 2.0, 2.0)
    timed = decoded(tokens=(BEGIN + 10, *TOKENIZER.encode(" one two three"), BEGIN + 190))
    part, (_, again) = transcribed(voiced(4.0), collapsed, timed)
    assert again.decoding.timestamps and again.duration == pytest.approx(4.0)
    assert [(one.start, one.end, one.text) for one in part.segments] == [(100.2, 103.8, " one two three")]


def test_voice_after_the_last_timestamp_is_decoded_again_too() -> None:
    collapsed = said(" one two three four five six seven eight", 2.0, 2.0)
    timed = decoded(tokens=(BEGIN, *TOKENIZER.encode(" one two three"), BEGIN + 150))
    rest = decoded(tokens=(BEGIN, *TOKENIZER.encode(" four five"), BEGIN + 200))
    part, _ = transcribed(voiced(7.0), collapsed, timed, rest)
    assert [one.text for one in part.segments] == [" one two three", " four five"]
    assert part.segments[1].start == pytest.approx(103.0, abs=0.3)


def test_a_guess_at_a_moment_of_voice_is_noise() -> None:
    chunk = voiced(20.0).chunks[0]
    assert chunk.voiced is not None
    moment = PackedWindow((replace(chunk, voiced=np.arange(len(chunk.voiced)) < 5),))
    part, _ = transcribed(moment, said(" friends", 0.0, 1.0, logprob=-2.0), options=Options(temperature=(0.0,)))
    assert not part.segments and part.dropped[0].text == " friends"
    part, _ = transcribed(moment, said(" friends", 0.0, 1.0), options=Options(temperature=(0.0,)))
    assert part.segments


def test_the_language_of_each_window_is_told_when_each_has_its_own() -> None:
    answer = replace(said(" eins zwei drei vier", 0.0, 3.0), language="de")
    assert {one.language for one in transcribed(voiced(3.0), answer, options=Options(multilingual=True))[0].segments} == {"de"}
    assert {one.language for one in transcribed(voiced(3.0), answer)[0].segments} == {None}


def test_words_of_a_collapsed_alignment_are_not_heard_twice() -> None:
    options = Options(word_timestamps=True)
    words = " one two three four five six seven eight"
    collapsed, tokens = said(words, 2.0, 2.0), TOKENIZER.encode(words)
    timed = replace(collapsed, tokens=(BEGIN, *tokens, BEGIN + 200))
    part, asked = transcribed(voiced(4.0), collapsed, timed, options=options)
    assert len(asked) == 2, "its words lie at one moment, but what they say covers the window"
    assert "".join(one.text for one in part.segments) == words


def test_a_translation_is_not_completed_its_words_lie_in_another_order() -> None:
    options = Options(task="translate")
    part, asked = transcribed(voiced(8.0), said(" one two three four five six", 0.0, 4.0), options=options)
    assert len(asked) == 1 and not part.dropped
