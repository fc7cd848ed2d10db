"""How a window enters a slot: its audio is encoded, its language detected, its prompt prefilled, and its rules are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...audio.log_mel import log_mels, log_mels_of
from ...audio.spectrogram import frame_range, loudest_or_nan
from ...tokenizer import Tokenizer
from ...types import WINDOW_FRAMES, Decoding, Window
from ..noise import streams
from ..pytorch.cache import Cache, SlotIndex
from ..pytorch.model import Model
from ..rules import LAST_TIMESTAMP, last_initial_timestamp, start_tokens, suppressed_tokens
from .buffers import SAMPLES, AdmissionBuffers, make_buffers
from .device import Device, slot_index
from .state import LENGTH, Detections, Rows

_MOST_MASKS = 64
"""Masks of suppressed tokens that are kept on the device."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished sequence: its tokens without <|endoftext|>, and the sum of their log-probabilities with it."""

    tokens: list[int]
    score: float


@dataclass(slots=True, eq=False)
class SlotState:
    """The host's record of a window in a slot: its start sequence and, in the end, its results.

    `sot`: the position of <|startoftranscript|>. `length`: the most tokens that it can have by now; `limit`: the most in the end.
    """

    window: Window
    slot: int
    start: list[int]
    sot: int
    length: int
    limit: int
    hypotheses: list[Hypothesis] = field(default_factory=list)
    language: str = "en"
    language_probability: float | None = None
    no_speech: float = 0.0

    @property
    def decoding(self) -> Decoding:
        """How the window is decoded."""
        return self.window.decoding


def make_slot_state(tokenizer: Tokenizer, window: Window, slot: int) -> SlotState:
    """The record of a window that enters `slot`. The start sequence names an arbitrary language where it is to be detected."""
    decoding = window.decoding
    start = start_tokens(tokenizer, decoding, decoding.language or tokenizer.languages[0])
    sot = len(start) - 1 - start[::-1].index(tokenizer.openai.sot)
    limit = min(len(start) + decoding.max_sampled, LENGTH)
    return SlotState(window, slot, start, sot, len(start), limit, language=(tokenizer.multilingual and decoding.language) or "en")


@dataclass(frozen=True, slots=True)
class AdmissionShape:
    """The shape of an admission: admissions of equal shapes are the same CUDA graph.

    `windows`: how many windows, one row of the buffers each. `group`: sequences that are decoded for a window (beams or
    samples), one element of `Rows` each. `width`: prefilled tokens; a start sequence has at most `width` + 1. `detect`:
    at least one window needs its language detected.
    """

    windows: int
    group: int
    width: int
    detect: bool


class Admission:
    """Puts windows into slots, at most `most` at once. Nothing here waits for the device."""

    def __init__(self, model: Model, cache: Cache, tokenizer: Tokenizer, device: Device, most: int) -> None:
        self._model, self._cache, self._tokenizer, self._device, self._most = model, cache, tokenizer, device, most
        self._masks: dict[tuple[object, ...], Tensor] = {}
        languages = tokenizer.openai.all_language_tokens if tokenizer.multilingual else ()
        self._languages = torch.tensor(languages, dtype=torch.long).to(device.torch)
        self._buffers = make_buffers(most, tokenizer.vocabulary, len(languages), device.torch, audio=device.captures)

    def admit(self, states: Sequence[SlotState], rows: Rows, detections: Detections, group: int) -> None:
        """Encode the windows and fill `group` rows for each, in batches of the sizes that the device prefers."""
        begin = 0
        for count in self._device.encoder_batches(min(len(states), self._most)):
            batch = states[begin : begin + count]
            self._fill_buffers(batch)
            # The prefill must reach <|startoftranscript|>, where the probability of no speech is read.
            width = max(max(len(state.start) - 1, state.sot + 1) for state in batch)
            detect = bool(len(self._languages)) and any(state.decoding.language is None for state in batch)
            self._run(AdmissionShape(count, group, self._device.prompt_width(width), detect), rows, detections, batch)
            begin += count
        if begin < len(states):
            self.admit(states[begin:], rows, detections, group)

    def warm(self, shape: AdmissionShape, rows: Rows, detections: Detections) -> None:
        """Run a shape on the windows that are still in the buffers, at first silence, so that it is compiled and captured."""
        self._run(shape, rows, detections, ())

    def _run(self, shape: AdmissionShape, rows: Rows, detections: Detections, states: Sequence[SlotState]) -> None:
        buffers, mel = self._buffers.head(shape.windows), None
        index: SlotIndex = buffers.number("slot")
        if not self._device.captures:
            mels = self._model.dims.n_mels
            mel = log_mels([state.window for state in states], mels) if states else torch.zeros(shape.windows, mels, WINDOW_FRAMES)
            index = slot_index([state.slot for state in states] or range(shape.windows), self._device)
        arguments = (self._model, self._cache, self._tokenizer, self._languages, buffers, index, rows, detections, shape, mel)
        self._device.run(shape, partial(admit_windows, *arguments))

    def _fill_buffers(self, states: Sequence[SlotState]) -> None:
        """Write the windows into the buffers."""
        buffers, device = self._buffers.head(len(states)), self._device
        device.fill(buffers.numbers, torch.tensor([_numbers(state, self._tokenizer.vocabulary) for state in states]))
        device.fill(buffers.reals, torch.tensor([_reals(state.window) for state in states]))
        device.fill(buffers.tokens, _padded([state.start for state in states]))
        if buffers.candidates.shape[1]:
            device.fill(buffers.candidates, torch.tensor([self._candidates(state.decoding) for state in states]))
        for mask, state in zip(buffers.suppressed, states, strict=True):
            mask.copy_(self._suppressed(state.decoding))
        if device.captures:
            device.fill(buffers.audio, _samples([state.window for state in states], device))

    def _candidates(self, decoding: Decoding) -> list[bool]:
        """Whether the window may be in each language, in the order of the language tokens."""
        languages = self._tokenizer.languages
        among = set(decoding.languages) & set(languages) or set(languages)
        return [language in among for language in languages]

    def _suppressed(self, decoding: Decoding) -> Tensor:
        """(vocabulary,): the tokens that are never sampled. The masks stay on the device, as most windows share one."""
        key = (decoding.suppress_tokens, decoding.timestamps, decoding.ignore_eot)
        if key not in self._masks:
            if len(self._masks) >= _MOST_MASKS:
                self._masks.clear()
            mask = torch.zeros(self._tokenizer.vocabulary, dtype=torch.bool)
            mask[suppressed_tokens(self._tokenizer, decoding.suppress_tokens)] = True
            mask[self._tokenizer.openai.no_timestamps] |= decoding.timestamps
            mask[self._tokenizer.eot] |= decoding.ignore_eot
            self._masks[key] = self._device.send(mask)
        return self._masks[key]


@torch.no_grad()
def admit_windows(
    model: Model,
    cache: Cache,
    tokenizer: Tokenizer,
    languages: Tensor,
    buffers: AdmissionBuffers,
    index: SlotIndex,
    rows: Rows,
    detections: Detections,
    shape: AdmissionShape,
    mel: Tensor | None,
) -> None:
    """Encode, detect, write and prefill new windows on the device, in place.

    `index`: their slots, as a slice where they are neighbours, which avoids a copy of the cache. `mel`: spectrograms made by
    the host; None: computed here from `buffers.audio`.
    """
    if mel is None:
        mel = log_mels_of(buffers.audio, buffers.frame_ranges, buffers.real("loudest"), model.dims.n_mels)
    slots = buffers.number("slot")
    model.cache_audio(model.encode(mel), cache, slots)
    if shape.detect:
        _detect(model, cache, tokenizer.openai.sot, languages, buffers, index, detections)
    row_indices = slots[:, None] * shape.group + torch.arange(shape.group, device=slots.device)
    _write_rows(buffers, rows, row_indices)
    _prefill(model, cache, tokenizer.openai.no_speech, buffers, index, detections, row_indices, shape.width)


def _detect(
    model: Model, cache: Cache, sot: int, languages: Tensor, buffers: AdmissionBuffers, index: SlotIndex, detections: Detections
) -> None:
    """Write the likeliest language into the start sequences of the windows whose language is to be detected."""
    start = torch.full((len(buffers.tokens), 1), sot, device=languages.device)
    logits = model.unembed(model.prefill(start, cache, index)[:, 0]).float()[:, languages]
    likeliest = logits.masked_fill(~buffers.candidates, -torch.inf).softmax(dim=1).max(dim=1)
    position = buffers.number("sot")[:, None] + 1
    present = buffers.tokens.gather(1, position)[:, 0]
    token = torch.where(buffers.number("detect").bool(), languages[likeliest.indices], present)
    buffers.tokens.scatter_(1, position, token[:, None])
    detections.language.index_copy_(0, buffers.number("slot"), likeliest.indices)
    detections.language_probability.index_copy_(0, buffers.number("slot"), likeliest.values)


def _write_rows(buffers: AdmissionBuffers, rows: Rows, row_indices: Tensor) -> None:
    """Write start sequences and rules into the rows `row_indices` (windows, group)."""
    values = {
        "tokens": buffers.tokens,
        "length": buffers.number("begin"),
        "begin": buffers.number("begin"),
        "limit": buffers.number("limit"),
        "score": torch.zeros_like(buffers.real("penalty")),
        "done": torch.zeros_like(buffers.number("begin"), dtype=torch.bool),
        "temperature": buffers.real("temperature"),
        "suppressed": buffers.suppressed,
        "blank": buffers.number("blank").bool(),
        "timed": buffers.number("timed").bool(),
        "latest_first": buffers.number("latest_first"),
        "penalty": buffers.real("penalty"),
        "ngram": buffers.number("ngram"),
    }
    group = row_indices.shape[1]
    for name, value in values.items():
        copies = value[:, None].expand(-1, group, *value.shape[1:]).flatten(0, 1)
        getattr(rows, name).index_copy_(0, row_indices.flatten(), copies)
    rows.seed.index_copy_(0, row_indices.flatten(), streams(buffers.number("seed"), group).flatten())


def _prefill(
    model: Model,
    cache: Cache,
    no_speech: int,
    buffers: AdmissionBuffers,
    index: SlotIndex,
    detections: Detections,
    row_indices: Tensor,
    width: int,
) -> None:
    """Compute the KV cache of the start sequences, and the probability of <|nospeech|> at <|startoftranscript|>.

    The last token of each start sequence is left to the first decoding step, whose output is sampled from.
    """
    hidden = model.prefill(buffers.tokens[:, :width], cache, index, rows=row_indices)
    at_sot = hidden.gather(1, buffers.number("sot")[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
    probability = model.unembed(at_sot).float().softmax(dim=1)[:, no_speech]
    detections.no_speech.index_copy_(0, buffers.number("slot"), probability)


def _numbers(state: SlotState, vocabulary: int) -> list[int]:
    """`buffers.NUMBERS` of a window."""
    decoding = state.decoding
    steps = last_initial_timestamp(decoding)
    latest = vocabulary - 1 - LAST_TIMESTAMP + (LAST_TIMESTAMP if steps is None else steps)
    rules = (decoding.suppress_blank, decoding.timestamps, latest, decoding.no_repeat_ngram_size)
    seed = state.window.seed if decoding.temperature > 0 else 0
    return [state.slot, state.sot, decoding.language is None, *frame_range(state.window), len(state.start), state.limit, *rules, seed]


def _reals(window: Window) -> list[float]:
    """`buffers.REALS` of a window."""
    return [loudest_or_nan(window), window.decoding.temperature, window.decoding.repetition_penalty]


def _samples(windows: Sequence[Window], device: Device) -> Tensor:
    """(windows, SAMPLES): each window's samples, then silence."""
    audio = device.staging(len(windows), SAMPLES)
    for row, window in zip(audio, windows, strict=True):
        row[: len(window.samples)] = torch.from_numpy(window.samples)
        row[len(window.samples) :] = 0.0
    return audio


def _padded(starts: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences of different lengths → (windows, LENGTH + 1), zeros after them."""
    padded = torch.zeros(len(starts), LENGTH + 1, dtype=torch.long)
    for row, start in zip(padded, starts, strict=True):
        row[: len(start)] = torch.tensor(start)
    return padded
