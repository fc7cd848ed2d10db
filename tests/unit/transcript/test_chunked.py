"""Strategy chunked: alignment, gaps, repetition, noise and language."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whispercore.audio.cutting import SpeechChunk
from whispercore.audio.packing import PackedWindow
from whispercore.options import Options
from whispercore.tokenizer import Tokenizer
from whispercore.transcript.chunked import chunked
from whispercore.transcript.tasks import PartialTranscript, RecordingLanguage
from whispercore.types import Decoded, Window

TOKENIZER = Tokenizer(51_865)
BEGIN = TOKENIZER.timestamp_begin


def decoded(*, ratio: float = 1.0, logprob: float = -0.3, no_speech: float = 0.0, tokens: tuple[int, ...] = ()) -> Decoded:
    return Decoded(tokens, TOKENIZER.decode(tokens), "en", 0.0, logprob, no_speech, ratio)


def voiced(seconds: float) -> PackedWindow:
    """A window of uninterrupted speech."""
    samples = np.zeros(round(seconds * 16_000), np.float32)
    return PackedWindow((SpeechChunk(samples, 100.0, 0.0, np.ones(-(-len(samples) // 512), bool)),))


def said(text: str, begin: float, end: float, **rest: float) -> Decoded:
    """Words that are spread evenly over some seconds of a window."""
    tokens = TOKENIZER.encode(text)
    times = tuple(np.linspace(begin, end, len(tokens) + 1).tolist())
    return replace(decoded(tokens=tokens, **rest), token_times=times, token_probs=(0.9,) * len(tokens))


def transcribed(packed: PackedWindow, *answers: Decoded, options: Options | None = None) -> tuple[PartialTranscript, list[Window]]:
    """The transcript of a packed window when the engine gives these answers, and the windows it was asked to decode."""
    options = options or Options()
    (task,) = chunked([packed], options, RecordingLanguage(), TOKENIZER, aligns=True)
    assert task is not None
    windows = [next(task)]
    for answer in answers[:-1]:
        windows.append(task.send(answer))
    with pytest.raises(StopIteration) as end:
        task.send(answers[-1])
    return end.value.value, windows


def test_words_are_decoded_without_timestamp_tokens_and_aligned() -> None:
    part, (window,) = transcribed(voiced(4.0), said(" one two three four five six", 0.0, 4.0))
    assert not window.decoding.timestamps and window.decoding.alignment == "all"
    assert "".join(segment.text for segment in part.segments) == " one two three four five six"
    assert not part.dropped


def test_voice_after_the_last_word_is_decoded_again_on_its_own() -> None:
    first, rest = said(" one two three four five six", 0.0, 4.0), said(" seven eight nine ten", 0.1, 3.9)
    part, (_, again) = transcribed(voiced(8.0), first, rest)
    assert again.start == pytest.approx(104.0, abs=0.3) and again.duration == pytest.approx(4.0, abs=0.3)
    assert "".join(segment.text for segment in part.segments) == " one two three four five six seven eight nine ten"
    assert part.segments[-1].end == pytest.approx(108.0, abs=0.3)


@pytest.mark.parametrize("guess", [said(" hm", 0.0, 1.0, logprob=-0.9), said(" hm", 0.0, 1.0, no_speech=0.8), decoded()])
def test_a_guess_at_the_second_hearing_is_told_and_not_added(guess: Decoded) -> None:
    part, _ = transcribed(voiced(8.0), said(" one two three four five six", 0.0, 4.0), guess)
    assert "".join(segment.text for segment in part.segments) == " one two three four five six"
    (dropped,) = part.dropped
    assert dropped.reason == "no_speech" and dropped.start == pytest.approx(104.0, abs=0.3)


def test_a_sentence_that_is_said_three_times_is_no_loop() -> None:
    answer = said(" ask what you can do" * 3, 0.0, 6.0, ratio=3.0)
    part, windows = transcribed(voiced(6.0), answer)
    assert len(windows) == 1 and part.segments[0].temperature == 0.0


def test_a_loop_without_sound_is_decoded_again_at_the_next_temperature() -> None:
    crammed = said(" you know" * 40, 0.0, 1.0, ratio=9.0)
    part, windows = transcribed(voiced(4.0), crammed, said(" one two three four five six", 0.0, 4.0))
    assert [window.decoding.temperature for window in windows] == [0.0, 0.2]
    assert "you know" not in "".join(segment.text for segment in part.segments)


def test_where_the_alignment_collapses_the_window_is_decoded_by_timestamps() -> None:
    collapsed = said(" one two three four five six seven eight", 2.0, 2.0)
    timed = decoded(tokens=(BEGIN + 10, *TOKENIZER.encode(" one two three"), BEGIN + 190))
    part, (_, again) = transcribed(voiced(4.0), collapsed, timed)
    assert again.decoding.timestamps and again.duration == pytest.approx(4.0)
    assert [(segment.start, segment.end, segment.text) for segment in part.segments] == [(100.2, 103.8, " one two three")]


def test_voice_after_the_last_timestamp_is_decoded_again_too() -> None:
    collapsed = said(" one two three four five six seven eight", 2.0, 2.0)
    timed = decoded(tokens=(BEGIN, *TOKENIZER.encode(" one two three"), BEGIN + 150))
    rest = decoded(tokens=(BEGIN, *TOKENIZER.encode(" four five"), BEGIN + 200))
    part, _ = transcribed(voiced(7.0), collapsed, timed, rest)
    assert [segment.text for segment in part.segments] == [" one two three", " four five"]
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
    assert {segment.language for segment in transcribed(voiced(3.0), answer, options=Options(multilingual=True))[0].segments} == {"de"}
    assert {segment.language for segment in transcribed(voiced(3.0), answer)[0].segments} == {None}


def test_words_of_a_collapsed_alignment_are_not_heard_twice() -> None:
    options = Options(word_timestamps=True)
    words = " one two three four five six seven eight"
    collapsed, tokens = said(words, 2.0, 2.0), TOKENIZER.encode(words)
    timed = replace(collapsed, tokens=(BEGIN, *tokens, BEGIN + 200))
    part, windows = transcribed(voiced(4.0), collapsed, timed, options=options)
    assert len(windows) == 2, "its words lie at one moment, but what they say covers the window"
    assert "".join(segment.text for segment in part.segments) == words


def test_a_translation_is_not_completed_its_words_lie_in_another_order() -> None:
    options = Options(task="translate")
    part, windows = transcribed(voiced(8.0), said(" one two three four five six", 0.0, 4.0), options=options)
    assert len(windows) == 1 and not part.dropped
