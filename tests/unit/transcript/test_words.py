"""Words and their times equal those of openai-whisper's `whisper.timing.add_word_timestamps`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import whisper.timing
from hypothesis import given, settings
from hypothesis import strategies as st

from whispercore.tokenizer import Tokenizer
from whispercore.transcript.words import add_words, clamp
from whispercore.types import Decoded, Segment, Word

TOKENIZER = Tokenizer(51_865)
PREPEND = "\"'“¿([{-"
APPEND = "\"'.。,，!！?？:：”)]}、"
PIECES = (
    " hello",
    " world",
    ".",
    ",",
    "?!",
    " “",
    "”",
    " (",
    ")",
    " -",
    "-",
    "'s",
    " ",
    "。",
    "你",
    "好",
    " a",
    "!",
    " 4",
    "th",
    "\n",
    "é",
    "🎉",
)


def decoded(tokens: list[int], times: list[float], probs: list[float], language: str = "en") -> Decoded:
    return Decoded(
        tokens=tuple(tokens),
        text=TOKENIZER.decode(tokens),
        language=language,
        temperature=0.0,
        avg_logprob=-0.1,
        no_speech_prob=0.0,
        compression_ratio=1.0,
        token_times=tuple(times),
        token_probs=tuple(probs),
    )


def ours(segments: list[Segment], result: Decoded, start: float, last_speech: float) -> list[Segment]:
    return add_words(segments, result, start=start, tokenizer=TOKENIZER, last_speech=last_speech, prepend=PREPEND, append=APPEND)


def of_whisper(
    segments: list[Segment], result: Decoded, start: float, last_speech: float, patch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """openai-whisper's function, with an alignment that has the same token times as `result`."""

    def find_alignment(model: None, tokenizer: Any, text_tokens: list[int], mel: None, num_frames: int) -> list[whisper.timing.WordTiming]:
        if not text_tokens:
            return []
        words, parts = tokenizer.split_to_word_tokens([*text_tokens, tokenizer.eot])
        edges = np.pad(np.cumsum([len(part) for part in parts[:-1]]), (1, 0))
        times = np.array(result.token_times)
        probs = [np.mean(result.token_probs[i:j]) for i, j in pairwise(edges)]
        timings = zip(words, parts, times[edges[:-1]], times[edges[1:]], probs, strict=False)
        return [whisper.timing.WordTiming(*item) for item in timings]

    patch.setattr(whisper.timing, "find_alignment", find_alignment)
    theirs = [{"tokens": list(s.tokens), "start": s.start, "end": s.end, "seek": round(start * 100)} for s in segments]
    tokenizer = TOKENIZER.openai_for(result.language, "transcribe")
    whisper.timing.add_word_timestamps(
        segments=theirs,
        model=None,
        tokenizer=tokenizer,
        mel=None,
        num_frames=3000,
        prepend_punctuations=PREPEND,
        append_punctuations=APPEND,
        last_speech_timestamp=last_speech,
    )
    return theirs


def segment(start: float, end: float, tokens: list[int], words: tuple[Word, ...] = ()) -> Segment:
    return Segment(start=start, end=end, text=TOKENIZER.decode(tokens), tokens=tuple(tokens), words=words)


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[Segment], Decoded, float, float]:
    """Segments of a window, timestamps among their tokens, token times that rise in steps of 0.02 s, and where the
    window begins.
    """
    start = draw(st.integers(0, 40_000)) / 100
    piece = st.sampled_from(PIECES).map(lambda text: list(TOKENIZER.encode(text)))
    texts = draw(st.lists(st.lists(piece, max_size=6), max_size=4))
    tokens = [[token for part in text for token in part] for text in texts]
    count = sum(map(len, tokens))
    steps = draw(st.lists(st.sampled_from((0, 0, 1, 5, 9, 10, 15, 40, 80, 150)), min_size=count + 1, max_size=count + 1))
    times = [float(time) for time in np.minimum(np.cumsum(steps), 1499) / 50]
    edges = sorted(draw(st.lists(st.integers(0, 1500), min_size=2 * len(texts), max_size=2 * len(texts))))
    probs = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    segments = []
    for text, first, last in zip(tokens, edges[::2], edges[1::2], strict=True):
        begin = TOKENIZER.timestamp_begin
        segments.append(segment(start + first * 0.02, start + last * 0.02, [begin + first, *text, begin + last]))
    language = draw(st.sampled_from(("en", "zh", "de")))
    last_speech = max(0.0, start - draw(st.sampled_from((0.0, 0.5, 3.0, 40.0))))
    return segments, decoded([token for text in tokens for token in text], times if count else [], probs, language), start, last_speech


@settings(max_examples=settings().max_examples * 4)
@given(window=windows())
def test_words_are_those_of_openai_whisper(window: tuple[list[Segment], Decoded, float, float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        theirs = of_whisper(*window, patch)
    with_words = ours(*window)
    assert len(with_words) == len(theirs)
    for own, other in zip(with_words, theirs, strict=True):
        assert [(word.word, word.start, word.end, word.probability) for word in own.words] == [
            (word["word"], word["start"], word["end"], word["probability"]) for word in other["words"]
        ]
        assert (own.start, own.end) == (other["start"], other["end"])


@settings(max_examples=settings().max_examples * 4)
@given(window=windows())
def test_clamped_words_are_in_order_and_inside_their_segment(window: tuple[list[Segment], Decoded, float, float]) -> None:
    segments, result, start, last_speech = window
    end = start + 30.0
    with_words = ours(segments, result, start, last_speech)
    clamped = clamp(with_words, start, end)
    edges = [time for item in clamped for time in (item.start, item.end)]
    assert edges == sorted(edges)
    assert all(start <= edge <= end for edge in edges)
    for item in clamped:
        times = [item.start, *(time for word in item.words for time in (word.start, word.end)), item.end]
        assert times == sorted(times)
    assert [word.word for item in clamped for word in item.words] == [word.word for item in with_words for word in item.words]


@settings(max_examples=settings().max_examples * 3)
@given(tokens=st.lists(st.integers(0, 50_256), min_size=1, max_size=30), language=st.sampled_from(("en", "ja")))
def test_every_sequence_of_tokens_has_words(tokens: list[int], language: str) -> None:
    times = [index * 0.1 for index in range(len(tokens) + 1)]
    (with_words,) = ours([segment(0.0, 30.0, tokens)], decoded(tokens, times, [0.5] * len(tokens), language), 0.0, 0.0)
    # Which letters broken bytes make depends on where the bytes are divided: words are divided at tokens, the text is not.
    assert "\ufffd" in with_words.text or "".join(word.word for word in with_words.words) == with_words.text


def test_a_sentence_has_its_words() -> None:
    tokens = [token for text in (" Hello", " world", ".", " Bye", "!") for token in TOKENIZER.encode(text)]
    result = decoded(tokens, [0.0, 0.4, 0.8, 0.8, 1.3, 1.3], [0.9, 0.8, 0.7, 0.6, 0.5])
    (with_words,) = ours([segment(10.0, 12.0, tokens)], result, 10.0, 10.0)
    assert with_words.words == (Word(" Hello", 10.0, 10.4, 0.9), Word(" world.", 10.4, 10.8, 0.8), Word(" Bye!", 10.8, 11.3, 0.6))
    assert (with_words.start, with_words.end) == (10.0, 11.3)


def test_chinese_is_split_at_characters() -> None:
    tokens = list(TOKENIZER.encode("你好"))
    times = [index * 0.2 for index in range(len(tokens) + 1)]
    chinese, english = (
        ours([segment(0.0, 1.0, tokens)], decoded(tokens, times, [1.0] * len(tokens), language), 0.0, 0.0) for language in ("zh", "en")
    )
    assert len(english[0].words) == 1
    assert "".join(word.word for word in chinese[0].words) == "你好"


def test_times_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        ours([segment(0.0, 1.0, [440, 441])], decoded([440], [0.0, 0.1], [1.0]), 0.0, 0.0)


def test_no_segments_have_no_words() -> None:
    assert ours([], decoded([], [], []), 0.0, 0.0) == []
    silent = segment(1.0, 2.0, [TOKENIZER.timestamp_begin + 50])
    assert ours([silent], decoded([], [], []), 0.0, 0.0) == [silent]


@pytest.mark.parametrize("tokens", [[0, 156, 94], [156, 94, 0], [156, 94], [156]])
def test_an_unfinished_letter_takes_no_words_away(tokens: list[int]) -> None:
    times = [index * 0.1 for index in range(len(tokens) + 1)]
    (with_words,) = ours([segment(0.0, 30.0, tokens)], decoded(tokens, times, [0.5] * len(tokens), "en"), 0.0, 0.0)
    assert "".join(word.word for word in with_words.words) == with_words.text
    assert with_words.words[-1].end == pytest.approx(times[-1])
