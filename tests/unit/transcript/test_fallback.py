"""Fallback and the no-speech rule, against openai-whisper's table of cases; the prompt."""

from __future__ import annotations

import numpy as np
import pytest

from whispercore.options import Options
from whispercore.tokenizer import Tokenizer
from whispercore.transcript.fallback import is_silence, needs_fallback, with_fallback
from whispercore.transcript.prompt import prompt_tokens
from whispercore.types import MAX_PROMPT, Decoded, Decoding, Window

TOKENIZER = Tokenizer(51_865)


def decoded(*, ratio: float = 1.0, logprob: float = -0.3, no_speech: float = 0.0) -> Decoded:
    return Decoded((), "", "en", 0.0, logprob, no_speech, ratio)


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


def test_a_task_climbs_the_temperatures_with_the_language_it_found() -> None:
    options = Options(temperature=(0.0, 0.4, 0.8))
    first = Window(np.zeros(16_000, np.float32), 3.0, options.decoding(temperature=0.0, prompt=(7,)), margin=(320, 200), loudest=1.5)
    task = with_fallback(first, options)
    window = next(task)
    windows = [window]
    with pytest.raises(StopIteration) as end:
        for ratio in (3.0, 3.0, 1.0):
            windows.append(task.send(decoded(ratio=ratio)))
    assert [window.decoding.temperature for window in windows] == [0.0, 0.4, 0.8]
    assert [window.decoding.language for window in windows] == [None, "en", "en"]
    assert all(window.decoding.prompt == (7,) and window.start == 3.0 for window in windows)
    assert all((window.margin, window.loudest) == ((320, 200), 1.5) for window in windows)
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
