"""The text of a turn while it is spoken: what two transcriptions in a row agree on.

LocalAgreement-2 of Macháček, Dabre and Bojar, "Turning Whisper into Real-Time Transcription System" (2023): the open turn
is transcribed again and again, and the longest common prefix of the last two transcriptions is certain. Words are
compared without case and punctuation. The mark after the last certain word is held back until a word follows it:
Whisper ends every unfinished sentence with a full stop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KEEP_SECONDS = 8.0
"""A window shorter than this is transcribed as a whole. Of a longer one, sentences that are certain are left out."""
LONGEST_SECONDS = 25.0
"""A window longer than this loses all sentences but the last, certain or not: it must not exceed Whisper's 30 s."""
SILENCE_KEPT = 1.0
"""Seconds of a long window without words that may hold the beginning of one."""
_WITHOUT_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without blanks: there a character counts as a word."""
_WORD = re.compile(rf"\s*(?:[{_WITHOUT_BLANKS}]|[^\s{_WITHOUT_BLANKS}]+)")
_CORE = re.compile(r"^(\s*[^\w\s]*)(.*?)([^\w\s]*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence of a transcription, with its times in seconds of the window."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Word:
    """A word with the blank and the marks before it in `text`, and the marks after it in `mark`. `key`: for comparison."""

    text: str
    mark: str
    key: str


def words(text: str) -> list[Word]:
    """The words of a text. Joined, their `text` and `mark` are the text without blanks at its end."""
    found: list[Word] = []
    for match in _WORD.finditer(text):
        before, core, mark = _CORE.fullmatch(match[0]).groups()  # type: ignore[union-attr]
        if core:
            found.append(Word(before + core, mark, core.casefold()))
        elif found:  # marks that stand alone, as between Chinese characters or before a dash
            last = found[-1]
            found[-1] = Word(last.text, last.mark + before + mark, last.key)
    return found


class Captions:
    """The certain text of one turn, which only grows.

    `offset`: the second of the turn at which the next window must begin. `sent`: the text so far.
    """

    def __init__(self) -> None:
        self.offset = 0.0
        self.sent = ""
        self._window: list[Word] = []
        """The certain words of the current window."""
        self._tail: list[Word] = []
        """The words after them in the last transcription."""
        self._held = ""
        """The mark after the last certain word."""

    @property
    def settled(self) -> bool:
        """Whether the last transcription had no words beyond the certain ones."""
        return not self._tail

    def update(self, segments: Sequence[Segment], seconds: float) -> str:
        """Take a transcription of the window, whose length is `seconds`. Returns the text that has become certain."""
        heard = words("".join(segment.text for segment in segments))
        certain = _aligned(self._window, heard)
        tail = heard[certain:]
        if certain and self._window and heard[certain - 1].key == self._window[-1].key:
            self._held = heard[certain - 1].mark
        agreed = _common(self._tail, tail)
        if seconds > LONGEST_SECONDS:
            spoken = words("".join(segment.text for segment in segments[:-1] or segments))
            agreed = max(agreed, len(spoken) - certain)
        delta = self._take(tail[:agreed])
        self._tail = tail[agreed:]
        return delta + self._shorten(segments, seconds, len(heard) - len(self._tail))

    def finish(self, transcript: str) -> str:
        """The rest of the turn's transcript, when the certain text is its beginning; otherwise empty."""
        if not transcript.startswith(self.sent):
            return ""
        rest = transcript[len(self.sent) :]
        self.sent = transcript
        return rest

    def _take(self, certain: Sequence[Word]) -> str:
        delta = ""
        for word in certain:
            delta += self._held + word.text
            self._held = word.mark
        self._window += certain
        return self._send(delta)

    def _send(self, text: str) -> str:
        if not self.sent:
            text = text.lstrip()
        self.sent += text
        return text

    def _shorten(self, segments: Sequence[Segment], seconds: float, certain: int) -> str:
        """Move the window's beginning behind the last sentence that is certain and followed by another one.

        `certain`: the number of certain words in the transcription. Returns the mark that ends that sentence, when it
        was held back.
        """
        too_long = seconds > LONGEST_SECONDS
        counts = [len(words("".join(segment.text for segment in segments[: i + 1]))) for i in range(len(segments))]
        over = [i for i in range(len(segments) - 1) if counts[i] <= certain]
        if seconds < KEEP_SECONDS or not (over or too_long):
            return ""
        if over:
            sentence, following = segments[over[-1] : over[-1] + 2]
            border, left = (sentence.end + max(following.start, sentence.end)) / 2, counts[over[-1]]
        else:
            border, left = segments[0].end if segments else seconds - SILENCE_KEPT, certain
        self.offset += min(seconds, max(border, seconds - LONGEST_SECONDS))
        kept = certain - left
        self._window = self._window[-kept:] if kept else []
        if kept:
            return ""
        held, self._held = self._held, ""
        return self._send(held)


def _common(first: Sequence[Word], second: Sequence[Word]) -> int:
    """The length of the longest common prefix."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one.key != other.key), min(len(first), len(second)))


def _aligned(certain: Sequence[Word], heard: Sequence[Word]) -> int:
    """How many words of a transcription stand for the certain ones: the prefix with the least edit distance to them."""
    if _common(certain, heard) == len(certain):
        return len(certain)
    row = list(range(len(heard) + 1))
    for i, word in enumerate(certain, start=1):
        before, row = row, [i]
        for j, other in enumerate(heard, start=1):
            row.append(min(before[j - 1] + (word.key != other.key), before[j] + 1, row[j - 1] + 1))
    return min(range(len(heard) + 1), key=lambda j: (row[j], abs(j - len(certain))))
