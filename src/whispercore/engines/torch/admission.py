"""The way into a slot: what a window's rows begin with, its language, the probability of silence, the prompt's keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...tokenizer import Tokenizer
from ...types import Decoding, Window
from ..rules import LAST_TIMESTAMP, last_initial_timestamp, sampled_length, start_tokens, suppressed_tokens
from .cache import Cache
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
    limit = min(len(start) + sampled_length(decoding), LENGTH)
    return Flight(window, slot, start, sot, len(start), limit, language=decoding.language or "en")


class Admission:
    """Fills the static tensors of new windows. Nothing here waits for the device."""

    def __init__(self, model: Model, cache: Cache, tokenizer: Tokenizer, device: Device) -> None:
        self._model, self._cache, self._tokenizer, self._device = model, cache, tokenizer, device
        self._masks: dict[tuple[object, ...], Tensor] = {}
        self._languages = device.send(torch.tensor(tokenizer.openai.all_language_tokens)) if tokenizer.multilingual else None

    def admit(self, flights: Sequence[Flight], mel: Tensor, rows: Rows, heard: Heard, group: int) -> None:
        """Encode the windows of `mel` (windows, mels, 3000) and seat them in `group` rows each."""
        slots = self._device.send(torch.tensor([each.slot for each in flights]))
        self._model.listen(self._model.encode(mel), self._cache, slots)
        tokens = self._device.send(_padded([each.start for each in flights]))
        self._detect(flights, tokens, heard)
        seats = slots[:, None] * group + torch.arange(group, device=slots.device)
        self._seat(flights, tokens, rows, seats)
        self._read(flights, tokens, seats, heard.no_speech, slots)

    def _detect(self, flights: Sequence[Flight], tokens: Tensor, heard: Heard) -> None:
        """Write the likeliest language into the starts (windows, LENGTH + 1) of those windows whose language is not given."""
        unknown = [index for index, each in enumerate(flights) if each.decoding.language is None]
        if self._languages is None or not unknown:
            return
        slots = [flights[index].slot for index in unknown]
        sot = torch.full((len(unknown), 1), self._tokenizer.openai.sot, device=tokens.device)
        logits = self._logits(self._model.read(sot, self._cache, slots)[:, 0])[:, self._languages]
        allowed = torch.tensor([self._candidates(flights[index].decoding) for index in unknown])
        likeliest = logits.masked_fill(~self._device.send(allowed), -torch.inf).softmax(dim=1).max(dim=1)
        found = self._languages[likeliest.indices]
        at = self._device.send(torch.tensor([[index, flights[index].sot + 1, flights[index].slot] for index in unknown]))
        tokens.index_put_((at[:, 0], at[:, 1]), found)
        heard.language.index_copy_(0, at[:, 2], likeliest.indices)
        heard.language_probability.index_copy_(0, at[:, 2], likeliest.values)

    def _candidates(self, decoding: Decoding) -> list[bool]:
        """Of all languages in the tokens' order, which one it may be."""
        known = self._tokenizer.languages
        among = set(decoding.languages) & set(known) or set(known)
        return [language in among for language in known]

    def _seat(self, flights: Sequence[Flight], tokens: Tensor, rows: Rows, seats: Tensor) -> None:
        """Write what the rows `seats` (windows, group) begin with, and their rules."""
        where, copies = seats.flatten(), seats.shape[1]
        integers = self._device.send(torch.tensor([_integers(each, self._tokenizer.vocabulary) for each in flights]))
        reals = self._device.send(torch.tensor([[each.decoding.temperature, each.decoding.repetition_penalty] for each in flights]))
        begin, limit, blank, timed, latest_first, ngram = integers.repeat_interleave(copies, dim=0).unbind(1)
        temperature, penalty = reals.repeat_interleave(copies, dim=0).unbind(1)
        masks = torch.stack([self._suppressed(each.decoding) for each in flights])
        values = {
            "tokens": tokens.repeat_interleave(copies, dim=0),
            "length": begin,
            "begin": begin,
            "limit": limit,
            "score": torch.zeros_like(temperature),
            "done": torch.zeros_like(blank, dtype=torch.bool),
            "temperature": temperature,
            "suppressed": masks.repeat_interleave(copies, dim=0),
            "blank": blank.bool(),
            "timed": timed.bool(),
            "latest_first": latest_first,
            "penalty": penalty,
            "ngram": ngram,
        }
        for name, value in values.items():
            getattr(rows, name).index_copy_(0, where, value)

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

    def _read(self, flights: Sequence[Flight], tokens: Tensor, seats: Tensor, no_speech: Tensor, slots: Tensor) -> None:
        """Keep the keys and values of the starts; <|nospeech|> is judged at <|startoftranscript|>.

        The last token of the start is left to the first step, whose output is wanted.
        """
        width = max(max(len(each.start) for each in flights) - 1, max(each.sot for each in flights) + 1)
        hidden = self._model.read(tokens[:, :width], self._cache, [each.slot for each in flights], keep=seats)
        sot = self._device.send(torch.tensor([each.sot for each in flights]))
        at_sot = hidden.gather(1, sot[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        no_speech.index_copy_(0, slots, self._logits(at_sot).softmax(dim=1)[:, self._tokenizer.openai.no_speech])

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._model.unembed(hidden).float()


def _integers(flight: Flight, vocabulary: int) -> list[int]:
    """begin, limit, blank, timed, latest_first, ngram, as `Rows` has them."""
    decoding = flight.decoding
    steps = last_initial_timestamp(decoding)
    latest = vocabulary - 1 - LAST_TIMESTAMP + (LAST_TIMESTAMP if steps is None else steps)
    return [len(flight.start), flight.limit, decoding.suppress_blank, decoding.timestamps, latest, decoding.no_repeat_ngram_size]


def _padded(starts: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences of different lengths → (windows, LENGTH + 1), zeros after them."""
    padded = torch.zeros(len(starts), LENGTH + 1, dtype=torch.long)
    for row, start in zip(padded, starts, strict=True):
        row[: len(start)] = torch.tensor(start)
    return padded
