"""Texts from the 8-bit decoder: greedy or above temperature 0, under openai-whisper's rules (LogitFilter in its decoding.py).

The rules of one row are a few slices of its logits, so they are applied with NumPy, row by row.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...tokenizer import Tokenizer
from ...types import Decoding, Window
from ..alignment import attention_matrix, jumps
from ..batched import TokenTimes, best_sequence
from ..noise import drawn, seeds
from ..rules import LAST_TIMESTAMP, AlignmentText, group_indices, last_initial_timestamp, suppressed_tokens
from .cached_attention import AudioKeys
from .decoder import Decoder, TextKeys
from .step_threads import StepThreads
from .trace import Trace, TracedSequence

Logits = npt.NDArray[np.float32]
_OUT = np.float32(-np.inf)
_MOST_ROWS_KEPT = 8
"""Texts for whose keys a thread keeps memory: 11 MB each with base."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """The tokens that may come next, for one way of decoding. `suppressed`: never sampled; `blanks`: not at first."""

    eot: int
    begin: int
    timed: bool
    latest_first: int
    suppressed: Tensor
    blanks: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, decoding: Decoding) -> TokenRules:
        """The rules of `decoding`."""
        eot, begin, steps = tokenizer.eot, tokenizer.timestamp_begin, last_initial_timestamp(decoding)
        suppressed = set(suppressed_tokens(tokenizer, decoding.suppress_tokens))
        suppressed |= {tokenizer.openai.no_timestamps} if decoding.timestamps else set()
        suppressed |= {eot} if decoding.ignore_eot else set()
        return cls(
            eot=eot,
            begin=begin,
            timed=decoding.timestamps,
            latest_first=begin + (LAST_TIMESTAMP if steps is None else steps),
            suppressed=torch.tensor(sorted(suppressed)),
            blanks=(*tokenizer.encode(" "), eot) if decoding.suppress_blank else (),
        )

    def apply(self, logits: Logits, sampled: Sequence[int]) -> None:
        """Exclude tokens from logits (vocabulary,), in place, after the tokens `sampled` so far."""
        if not sampled:
            logits[list(self.blanks)] = _OUT
        if not self.timed:
            return
        if not sampled:
            logits[: self.begin] = _OUT
            logits[self.latest_first + 1 :] = _OUT
            return
        self._pair_timestamps(logits, sampled)
        times = logits[self.begin :]
        if _log_sum(times) > logits[: self.begin].max():
            logits[: self.begin] = _OUT

    def _pair_timestamps(self, logits: Logits, sampled: Sequence[int]) -> None:
        """Timestamps come in pairs except before the end, and never decrease; a segment is never empty."""
        last = sampled[-1] >= self.begin
        before = len(sampled) < 2 or sampled[-2] >= self.begin
        latest = max((token for token in sampled if token >= self.begin), default=self.begin - 1)
        if last and before:
            logits[self.begin :] = _OUT
        elif last:
            logits[: self.eot] = _OUT
        logits[self.begin : latest + (0 if last and not before else 1)] = _OUT


@dataclass(slots=True, eq=False)
class _Row:
    """A text on its way. `start`: tokens of its start sequence. `room`: the text context. `score`: the sum of its log-probabilities.

    A text with a trace has one more step after its end, in which the decoder reads <|endoftext|> (`closing`), as in an alignment.
    """

    window: int
    start: int
    limit: int
    room: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    closing: bool = False
    ended: bool = False
    trace: Trace | None = None

    def append(self, token: int, logprob: float, eot: int) -> None:
        """Take the next token, unless the text has ended."""
        if self.closing or self.ended:
            self.ended = True
            return
        self.score += logprob
        if token != eot:
            self.tokens.append(token)
            self.ended = len(self.tokens) >= self.limit
        elif self.trace and self.start + len(self.tokens) < self.room:
            self.closing = True
        else:
            self.ended = True

    def next_input(self, eot: int) -> tuple[int, int]:
        """The token that the decoder reads next, and its position."""
        if self.closing:
            return eot, self.start + len(self.tokens)
        return self.tokens[-1] if self.tokens else eot, self.start + max(len(self.tokens), 1) - 1


@dataclass  # without slots: threads would share what lies in them
class _Rooms(threading.local):
    """Memory that a thread uses again for every batch. Fresh memory costs more than filling it, and large blocks of many sizes
    take twice their memory from the C library."""

    audio: AudioKeys | None = None
    text: TextKeys | None = None


@dataclass(frozen=True, slots=True)
class Sampler:
    """The decoder with what it takes to make texts. `audio`: always of the windows in question."""

    decoder: Decoder
    _rooms: _Rooms = field(default_factory=_Rooms)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return Tokenizer(self.decoder.dims.n_vocab)

    @torch.inference_mode()
    def audio_keys(self, features: Tensor) -> AudioKeys:
        """The keys and values of the encoder's output, float32 (windows, 1500, width); valid until this thread's next call."""
        room = self._rooms.audio
        if room is None or room.windows < len(features):
            room = self._rooms.audio = self.decoder.room_for_audio(len(features))
        keys = room.of(range(len(features)))
        self.decoder.fill_audio(features, keys)
        return keys

    def _text_keys(self, rows: int) -> TextKeys:
        room = self._rooms.text
        if room is None or len(room.keys[0]) < rows:
            room = self.decoder.room_for_text(rows)
            if rows <= _MOST_ROWS_KEPT:
                self._rooms.text = room
        return room

    @torch.inference_mode()
    def detect_languages(self, audio: AudioKeys) -> list[Mapping[str, float]]:
        """The probability of every language for each window."""
        tokenizer = self.tokenizer
        tokens = torch.full((audio.windows, 1), tokenizer.openai.sot)
        logits = self.decoder.unembed(self.decoder.read(tokens, audio)[0][:, 0])
        probabilities = logits[:, list(tokenizer.openai.all_language_tokens)].softmax(dim=1)
        return [dict(zip(tokenizer.languages, row, strict=True)) for row in probabilities.tolist()]

    @torch.inference_mode()
    def sample(
        self, audio: AudioKeys, windows: Sequence[Window], starts: Sequence[Sequence[int]], step_threads: StepThreads | None = None
    ) -> list[TracedSequence]:
        """The best text of each window. `starts`: their start sequences.

        The windows share a `batch_key` whose decoding has no beams and no penalties. `step_threads`: chooses PyTorch's threads for
        each step; None: they stay as they are.
        """
        decoder, decoding = self.decoder, windows[0].decoding
        group = (decoding.best_of or 1) if decoding.temperature > 0 else 1
        # the last token that the context has room for is sampled, but never read
        limits = [min(decoding.max_sampled, decoder.dims.n_text_ctx + 1 - len(start)) for start in starts]
        noise = seeds(windows, group).tolist()
        rows = [
            _Row(i // group, len(starts[i // group]), limits[i // group], decoder.dims.n_text_ctx, seed) for i, seed in enumerate(noise)
        ]
        text = self._text_keys(len(rows))
        hidden, no_speech, traces = _read_starts(decoder, audio, text, starts, group, self.tokenizer)
        if group == 1:
            for row, window, trace in zip(rows, windows, traces, strict=True):
                row.trace = trace if _is_aligned_as_sampled(window.decoding) else None
        rules = TokenRules.of(self.tokenizer, decoding)
        _extend(decoder, audio, text, rows, group, hidden, rules, decoding.temperature, step_threads)
        texts = [rows[first : first + group] for first in range(0, len(rows), group)]
        best = (
            best_sequence([row.tokens for row in some], [row.score for row in some], silence, decoding.length_penalty)
            for some, silence in zip(texts, no_speech, strict=True)
        )
        return [
            TracedSequence(sequence.tokens, sequence.avg_logprob, sequence.no_speech_prob, some[0].trace)
            for sequence, some in zip(best, texts, strict=True)
        ]

    @torch.inference_mode()
    def align(self, audio: AudioKeys, texts: Sequence[AlignmentText], traces: Sequence[Trace | None]) -> list[TokenTimes]:
        """The times of the tokens of each text, as `alignment.align_by`. A text whose trace is missing or of other tokens costs a pass."""
        no_timestamps, eot = self.tokenizer.openai.no_timestamps, self.tokenizer.eot
        fed = [[*text.start, no_timestamps, *text.tokens, eot] for text in texts]
        queries, probs = dict[int, Tensor](), dict[int, list[float]]()
        for i, trace in enumerate(traces):
            if trace and trace.tokens == fed[i]:
                queries[i], probs[i] = trace.all_queries(), trace.probs
        if others := [i for i in range(len(texts)) if i not in queries]:
            rows = pad_sequence([torch.tensor(fed[i]) for i in others], batch_first=True, padding_value=eot)
            hidden, asked = self.decoder.read(rows, audio.of(others))
            queries |= zip(others, asked, strict=True)
            probs |= {i: self._probs(states, texts[i]) for i, states in zip(others, hidden, strict=True)}
        matrices = [attention_matrix(self.decoder.alignment_scores(queries[i], audio, i), text) for i, text in enumerate(texts)]
        steps = jumps([-matrix.double().numpy() for matrix in matrices])
        return [(entered.tolist(), probs[i]) for i, entered in enumerate(steps)]

    def _probs(self, hidden: Tensor, text: AlignmentText) -> list[float]:
        """The probability of each token among all text tokens. `hidden`: the text's states (length, width)."""
        begin = len(text.start)
        logits = self.decoder.unembed(hidden[begin : begin + len(text.tokens)])[:, : self.tokenizer.eot]
        probs: list[float] = logits.softmax(dim=1).gather(1, torch.tensor(text.tokens)[:, None])[:, 0].tolist()
        return probs


def _read_starts(
    decoder: Decoder, audio: AudioKeys, text: TextKeys, starts: Sequence[Sequence[int]], group: int, tokenizer: Tokenizer
) -> tuple[Tensor, list[float], list[Trace]]:
    """The hidden states after the start sequences (rows, width), each window's probability of <|nospeech|>, and the traces so far."""
    last = torch.empty(len(starts), group, decoder.dims.n_text_state)
    at_sot = torch.empty(len(starts), decoder.dims.n_text_state)
    traces: dict[int, Trace] = {}
    for windows in group_indices([len(start) for start in starts]):
        rows = torch.tensor(windows)[:, None] * group + torch.arange(group)
        hidden, queries = decoder.read(torch.tensor([starts[window] for window in windows]), audio.of(windows), text, rows)
        for window, states, asked in zip(windows, hidden, queries, strict=True):
            start = starts[window]
            traces[window] = Trace(list(start), [asked])
            last[window] = states[-1]
            at_sot[window] = states[len(start) - 1 - start[::-1].index(tokenizer.openai.sot)]
    no_speech: list[float] = decoder.unembed(at_sot).softmax(dim=1)[:, tokenizer.openai.no_speech].tolist()
    return last.flatten(0, 1), no_speech, [traces[window] for window in range(len(starts))]


def _is_aligned_as_sampled(decoding: Decoding) -> bool:
    """Whether times are asked for, and an alignment would feed the decoder what the sampling fed it."""
    return decoding.alignment != "none" and not decoding.timestamps and not decoding.prompt


def _extend(
    decoder: Decoder,
    audio: AudioKeys,
    text: TextKeys,
    rows: Sequence[_Row],
    group: int,
    hidden: Tensor,
    rules: TokenRules,
    temperature: float,
    step_threads: StepThreads | None,
) -> None:
    """Extend all texts to their ends. `hidden`: after their start sequences (rows, width)."""
    alive, traced = list(rows), any(row.trace for row in rows)
    while True:
        began, threads = time.perf_counter(), step_threads.choose() if step_threads else 0
        if threads:
            torch.set_num_threads(threads)
        logits = decoder.unembed(hidden)
        of_text = logits[:, : rules.eot].logsumexp(dim=1).tolist() if traced else None
        tokens, logprobs = _chosen(logits, alive, rules, temperature)
        if of_text:
            for row, token, total, own in zip(alive, tokens, of_text, logits, strict=True):
                if row.trace and token != rules.eot and not row.closing:
                    row.trace.probs.append(math.exp(float(own[token]) - total))
        for row, token, logprob in zip(alive, tokens, logprobs, strict=True):
            row.append(token, logprob, rules.eot)
        _drop_ended(alive, group, text)
        if not alive:
            return
        inputs = [row.next_input(rules.eot) for row in alive]
        fed, at = torch.tensor(inputs).unbind(1)
        hidden, queries = decoder.step(fed, at, audio, [row.window for row in alive[::group]], text)
        for row, (token, _), asked in zip(alive, inputs, queries, strict=group == 1):
            if row.trace:
                row.trace.feed(token, asked)
        if step_threads:
            step_threads.note(threads, time.perf_counter() - began)


def _chosen(logits: Tensor, rows: Sequence[_Row], rules: TokenRules, temperature: float) -> tuple[list[int], list[float]]:
    """The next token of each row, and its log-probability. Changes `logits` (rows, vocabulary)."""
    logits.index_fill_(1, rules.suppressed, -torch.inf)
    arrays: list[Logits] = list(logits.numpy())
    for row, array in zip(rows, arrays, strict=True):
        rules.apply(array, row.tokens)
    if temperature > 0:
        steps = torch.tensor([len(row.tokens) for row in rows])
        tokens = drawn(logits, temperature, torch.tensor([row.seed for row in rows]), steps).tolist()
    else:
        tokens = [int(array.argmax()) for array in arrays]
    return tokens, [float(array[token]) - _log_sum(array) for token, array in zip(tokens, arrays, strict=True)]


def _drop_ended(alive: list[_Row], group: int, text: TextKeys) -> None:
    """Leave out the windows whose texts have all ended. The last window's rows take the place of theirs in `text`."""
    for first in reversed(range(0, len(alive), group)):
        if not all(row.ended for row in alive[first : first + group]):
            continue
        end = len(alive) - group
        if first < end:
            for row in range(group):
                text.move(end + row, first + row)
            alive[first : first + group] = alive[end:]
        del alive[end:]


def _log_sum(logits: Logits) -> float:
    """The logarithm of the sum of exponentials."""
    largest = float(logits.max())
    return largest + math.log(float(np.exp(logits - largest).sum())) if math.isfinite(largest) else -math.inf
