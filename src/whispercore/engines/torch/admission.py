"""The way into a slot: a window's sound, its language, the probability of silence, the prompt's keys and values, its rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...audio.log_mel import frame_range, log_mels, log_mels_of, loudest_or_nan
from ...tokenizer import Tokenizer
from ...types import WINDOW_FRAMES, Decoding, Window
from ..noise import streams
from ..rules import LAST_TIMESTAMP, last_initial_timestamp, start_tokens, suppressed_tokens
from .arrivals import SAMPLES, Arrivals, make_arrivals
from .cache import Cache, Places, places
from .device import Device
from .model import Model
from .state import LENGTH, Heard, Rows


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished sequence: its tokens without <|endoftext|>, and the sum of their log-probabilities with it."""

    tokens: list[int]
    score: float


@dataclass(slots=True, eq=False)
class Flight:
    """A window in a slot, what it begins with, and in the end what came of it.

    `sot`: where <|startoftranscript|> is; `length`: it has at most so many tokens by now, and `limit` in the end.
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
        """How it is decoded."""
        return self.window.decoding


def flight(tokenizer: Tokenizer, window: Window, slot: int) -> Flight:
    """A window on its way into a slot; a language that is to be detected is any one for now."""
    decoding = window.decoding
    start = start_tokens(tokenizer, decoding, decoding.language or tokenizer.languages[0])
    sot = len(start) - 1 - start[::-1].index(tokenizer.openai.sot)
    limit = min(len(start) + decoding.max_sampled, LENGTH)
    return Flight(window, slot, start, sot, len(start), limit, language=(tokenizer.multilingual and decoding.language) or "en")


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry is made for: entries of equal shapes are the same CUDA graph.

    The first `windows` arrivals, with `group` rows each; none of their starts has more than `width` + 1 tokens. `detect`: some
    window's language is to be detected.
    """

    windows: int
    group: int
    width: int
    detect: bool


class Admission:
    """Takes windows into slots, at most `most` at once. Nothing here waits for the device."""

    def __init__(self, model: Model, cache: Cache, tokenizer: Tokenizer, device: Device, most: int) -> None:
        self._model, self._cache, self._tokenizer, self._device, self._most = model, cache, tokenizer, device, most
        self._masks: dict[tuple[object, ...], Tensor] = {}
        languages = tokenizer.openai.all_language_tokens if tokenizer.multilingual else ()
        self._languages = torch.tensor(languages, dtype=torch.long).to(device.torch)
        self._arrivals = make_arrivals(most, tokenizer.vocabulary, len(languages), device.torch, audio=device.captures)

    def admit(self, flights: Sequence[Flight], rows: Rows, heard: Heard, group: int) -> None:
        """Encode the flights' windows and seat them in `group` rows each, as many together as the device encodes at its best."""
        begin = 0
        for count in self._device.parts(min(len(flights), self._most)):
            some = flights[begin : begin + count]
            self._announce(some)
            width = max(max(len(each.start) - 1, each.sot + 1) for each in some)
            detect = bool(len(self._languages)) and any(each.decoding.language is None for each in some)
            self._enter(Entry(count, group, self._device.width(width), detect), rows, heard, some)
            begin += count
        if begin < len(flights):
            self.admit(flights[begin:], rows, heard, group)

    def warm(self, entry: Entry, rows: Rows, heard: Heard) -> None:
        """The entry of whoever came last, or of silence, so that what it needs is there when somebody comes."""
        self._enter(entry, rows, heard, ())

    def _enter(self, entry: Entry, rows: Rows, heard: Heard, flights: Sequence[Flight]) -> None:
        new, mel = self._arrivals.first(entry.windows), None
        where: Places = new.number("slot")
        if not self._device.captures:
            mels = self._model.dims.n_mels
            mel = log_mels([each.window for each in flights], mels) if flights else torch.zeros(entry.windows, mels, WINDOW_FRAMES)
            where = places([each.slot for each in flights] or range(entry.windows), self._device)
        arguments = (self._model, self._cache, self._tokenizer, self._languages, new, where, rows, heard, entry, mel)
        self._device.run(entry, partial(enter, *arguments))

    def _announce(self, flights: Sequence[Flight]) -> None:
        """Write what is known of windows into the arrivals."""
        new, device = self._arrivals.first(len(flights)), self._device
        device.fill(new.numbers, torch.tensor([_numbers(each, self._tokenizer.vocabulary) for each in flights]))
        device.fill(new.reals, torch.tensor([_reals(each.window) for each in flights]))
        device.fill(new.tokens, _padded([each.start for each in flights]))
        if new.candidates.shape[1]:
            device.fill(new.candidates, torch.tensor([self._candidates(each.decoding) for each in flights]))
        for mask, each in zip(new.suppressed, flights, strict=True):
            mask.copy_(self._suppressed(each.decoding))
        if device.captures:
            device.fill(new.audio, _samples([each.window for each in flights], device))

    def _candidates(self, decoding: Decoding) -> list[bool]:
        """Of all languages in the tokens' order, which one it may be."""
        known = self._tokenizer.languages
        among = set(decoding.languages) & set(known) or set(known)
        return [language in among for language in known]

    def _suppressed(self, decoding: Decoding) -> Tensor:
        """(vocabulary,): what is never sampled; kept on the device, for most windows suppress the same."""
        key = (decoding.suppress_tokens, decoding.timestamps, decoding.ignore_eot)
        if key not in self._masks:
            if len(self._masks) >= 64:
                self._masks.clear()
            mask = torch.zeros(self._tokenizer.vocabulary, dtype=torch.bool)
            mask[suppressed_tokens(self._tokenizer, decoding.suppress_tokens)] = True
            mask[self._tokenizer.openai.no_timestamps] |= decoding.timestamps
            mask[self._tokenizer.eot] |= decoding.ignore_eot
            self._masks[key] = self._device.send(mask)
        return self._masks[key]


@torch.no_grad()
def enter(
    model: Model,
    cache: Cache,
    tokenizer: Tokenizer,
    languages: Tensor,
    new: Arrivals,
    where: Places,
    rows: Rows,
    heard: Heard,
    entry: Entry,
    mel: Tensor | None,
) -> None:
    """Everything that a device does for new windows, in place. `where`: their slots; `mel`: made by the host, None: of their samples."""
    if mel is None:
        mel = log_mels_of(new.audio, new.cuts, new.real("loudest"), model.dims.n_mels)
    slots = new.number("slot")
    model.listen(model.encode(mel), cache, slots)
    if entry.detect:
        _detect(model, cache, tokenizer.openai.sot, languages, new, where, heard)
    seats = slots[:, None] * entry.group + torch.arange(entry.group, device=slots.device)
    _seat(new, rows, seats)
    _read(model, cache, tokenizer.openai.no_speech, new, where, heard, seats, entry.width)


def _detect(model: Model, cache: Cache, sot: int, languages: Tensor, new: Arrivals, where: Places, heard: Heard) -> None:
    """Write the likeliest language into the starts of those windows whose language is not given."""
    start = torch.full((len(new.tokens), 1), sot, device=languages.device)
    logits = model.unembed(model.read(start, cache, where)[:, 0]).float()[:, languages]
    likeliest = logits.masked_fill(~new.candidates, -torch.inf).softmax(dim=1).max(dim=1)
    after = new.number("sot")[:, None] + 1
    told = new.tokens.gather(1, after)[:, 0]
    token = torch.where(new.number("detect").bool(), languages[likeliest.indices], told)
    new.tokens.scatter_(1, after, token[:, None])
    heard.language.index_copy_(0, new.number("slot"), likeliest.indices)
    heard.language_probability.index_copy_(0, new.number("slot"), likeliest.values)


def _seat(new: Arrivals, rows: Rows, seats: Tensor) -> None:
    """Write what the rows `seats` (windows, group) begin with, and their rules."""
    values = {
        "tokens": new.tokens,
        "length": new.number("begin"),
        "begin": new.number("begin"),
        "limit": new.number("limit"),
        "score": torch.zeros_like(new.real("penalty")),
        "done": torch.zeros_like(new.number("begin"), dtype=torch.bool),
        "temperature": new.real("temperature"),
        "suppressed": new.suppressed,
        "blank": new.number("blank").bool(),
        "timed": new.number("timed").bool(),
        "latest_first": new.number("latest_first"),
        "penalty": new.real("penalty"),
        "ngram": new.number("ngram"),
    }
    for name, value in values.items():
        copies = value[:, None].expand(-1, seats.shape[1], *value.shape[1:]).flatten(0, 1)
        getattr(rows, name).index_copy_(0, seats.flatten(), copies)
    rows.seed.index_copy_(0, seats.flatten(), streams(new.number("seed"), seats.shape[1]).flatten())


def _read(model: Model, cache: Cache, no_speech: int, new: Arrivals, where: Places, heard: Heard, seats: Tensor, width: int) -> None:
    """Keep the keys and values of the starts; <|nospeech|> is judged at <|startoftranscript|>.

    The last token of the start is left to the first step, whose output is wanted.
    """
    hidden = model.read(new.tokens[:, :width], cache, where, keep=seats)
    at_sot = hidden.gather(1, new.number("sot")[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
    probability = model.unembed(at_sot).float().softmax(dim=1)[:, no_speech]
    heard.no_speech.index_copy_(0, new.number("slot"), probability)


def _numbers(flight: Flight, vocabulary: int) -> list[int]:
    """`arrivals.NUMBERS`."""
    decoding = flight.decoding
    steps = last_initial_timestamp(decoding)
    latest = vocabulary - 1 - LAST_TIMESTAMP + (LAST_TIMESTAMP if steps is None else steps)
    rules = (decoding.suppress_blank, decoding.timestamps, latest, decoding.no_repeat_ngram_size)
    seed = flight.window.seed if decoding.temperature > 0 else 0
    return [flight.slot, flight.sot, decoding.language is None, *frame_range(flight.window), len(flight.start), flight.limit, *rules, seed]


def _reals(window: Window) -> list[float]:
    """`arrivals.REALS`."""
    return [loudest_or_nan(window), window.decoding.temperature, window.decoding.repetition_penalty]


def _samples(windows: Sequence[Window], device: Device) -> Tensor:
    """(windows, SAMPLES): silence after each."""
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
