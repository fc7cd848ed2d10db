"""Windows in their slots: new ones go into free slots, all are decoded a few steps at a time, those that are done come out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...tokenizer import Tokenizer
from ...types import Decoding, Window
from .admission import Admission, Entry, Flight, Hypothesis, flight
from .cache import Cache
from .decoding import Shape, step
from .device import Device, Snapshot
from .logits import vocabulary
from .model import Model
from .state import Bank, make_bank, make_heard, make_rows

_MOST_BANKS = 16
"""Kinds of beam search whose tensors are kept."""
_START = 3
"""Tokens of a start without a prompt, the last one left out: it is the first step's."""
_COMMON_LENGTH = 256
"""Tokens of a window that says much."""


@dataclass(frozen=True, slots=True)
class Search:
    """How the windows of one batch are searched: `group` rows each, `places` for finished beams, 0: no beams."""

    group: int
    places: int = 0


def search(decoding: Decoding) -> Search:
    """Beams as openai-whisper counts them, or as many samples as are asked for."""
    if decoding.beam_size is not None:
        return Search(decoding.beam_size, max(1, round(decoding.beam_size * (decoding.patience or 1.0))))
    return Search((decoding.best_of or 1) if decoding.temperature > 0 else 1)


@dataclass(frozen=True, slots=True)
class _Look:
    """A snapshot on its way, and which flight was in which slot when it was taken."""

    snapshot: Snapshot
    flights: dict[int, Flight]


class Slots:
    """The static tensors and the windows in them. One `Search` at a time; not thread-safe."""

    def __init__(self, model: Model, cache: Cache, tokenizer: Tokenizer, device: Device, together: int) -> None:
        """`together`: windows that are encoded at once, at most."""
        self._model, self._cache, self._tokenizer, self._device = model, cache, tokenizer, device
        self.flights: dict[int, Flight] = {}
        self._rows = make_rows(cache.own.shape[2], model.dims.n_vocab, device.torch)
        self._heard = make_heard(cache.cross.shape[2], device.torch)
        self._vocabulary = vocabulary(tokenizer, device.torch)
        self._admission = Admission(model, cache, tokenizer, device, min(together, cache.cross.shape[2]))
        self._search = Search(1)
        self._banks: dict[Search, Bank] = {}
        self._looks: deque[_Look] = deque()

    @property
    def capacity(self) -> int:
        """Windows that have a slot under the present search."""
        return min(self._cache.cross.shape[2], self._cache.own.shape[2] // self._search.group)

    @property
    def free(self) -> int:
        """Slots that are free."""
        return self.capacity - len(self.flights)

    def begin(self, search: Search) -> None:
        """Empty all slots, for windows that are searched so from now on."""
        self.flights.clear()
        self._looks.clear()
        self._rows.done.fill_(True)
        self._search = search
        if search.places and search not in self._banks:
            if len(self._banks) >= _MOST_BANKS:
                self._banks.clear()
                self._device.forget()  # its graphs write into them
            self._banks[search] = make_bank(self.capacity, search.places, self._device.torch)

    def admit(self, windows: Sequence[Window]) -> None:
        """Encode windows, at most `free` of them, into free slots, and read their prompts."""
        vacant = (slot for slot in range(self.capacity) if slot not in self.flights)
        flights = [flight(self._tokenizer, window, slot) for window, slot in zip(windows, vacant, strict=False)]
        self._admission.admit(flights, self._rows, self._heard, self._search.group)
        if self._bank:
            for each in flights:
                self._bank.count[each.slot] = 0
        self.flights.update({each.slot: each for each in flights})

    def advance(self) -> None:
        """Queue a few steps for all windows, and a look at what came of them."""
        self._close_ranks()
        flights = self.flights.values()
        windows = self._device.bucket(max(self.flights) + 1, self.capacity)
        for _ in range(self._device.every):
            longest = max(each.length for each in flights)
            self._step(self._shape(windows, self._device.reach(longest, self._cache.own.shape[4])))
            for each in flights:
                each.length = min(each.length + 1, each.limit)
        self._looks.append(_Look(self._device.snapshot(self._seen(windows)), dict(self.flights)))

    def landed(self) -> list[Flight]:
        """The windows that are done, as far as is known by now; they keep their slots until `release`."""
        if len(self._looks) <= self._device.lag:
            return []
        look = self._looks.popleft()
        no_speech, language, probability, done, *sequences = look.snapshot.wait()
        ended, found = done.view(-1, self._search.group).all(dim=1).tolist(), []
        for slot, each in look.flights.items():
            if each.hypotheses or not ended[slot]:
                continue
            each.hypotheses = self._hypotheses(each, slot, sequences)
            each.no_speech = float(no_speech[slot])
            if each.decoding.language is None and self._tokenizer.multilingual:
                each.language = self._tokenizer.languages[int(language[slot])]
                each.language_probability = float(probability[slot])
            found.append(each)
        return found

    def release(self, flight: Flight) -> None:
        """Free its slot."""
        del self.flights[flight.slot]

    def warm(self, until: float, *, together: int, encodes: bool) -> int:
        """Run what common requests need, the likeliest first, until a time of `time.monotonic`; how many shapes that were.

        Empties all slots. What is captured is captured here: a shape's first two uses are this one's. `encodes`: encode silence too.
        """
        self.begin(Search(1))
        warmed = 0
        for warm in self._common(together if encodes else 0):
            for _ in range(2 if self._device.captures else 1):
                warm()
            self._device.snapshot([self._rows.done]).wait()
            warmed += 1
            if time.monotonic() > until:
                break
        self.begin(Search(1))
        return warmed

    def _common(self, together: int) -> Iterator[Callable[[], None]]:
        """Entries of windows without a prompt, then steps for ever more windows and longer texts."""
        device, most, longest = self._device, self.capacity, self._cache.own.shape[4]
        for count in sorted({device.parts(count)[0] for count in range(1, min(together, most) + 1)}):
            for detect in (False, True)[: 1 + self._tokenizer.multilingual]:
                entry = Entry(count, 1, device.width(_START), detect)
                yield partial(self._admission.warm, entry, self._rows, self._heard)
        for reach in sorted({device.reach(length, longest) for length in range(1, _COMMON_LENGTH + 1)}):
            for windows in sorted({device.bucket(count, most) for count in range(1, most + 1)}):
                yield partial(self._step, Shape(windows, 1, reach, sampled=False, ngram=None, places=0))

    def _step(self, shape: Shape) -> None:
        """One step; penalties are rare and of a hundred kinds: a graph for each would never be seen again."""
        run = partial(step, self._model, self._cache, self._rows, self._bank, self._vocabulary, shape)
        self._device.run(shape if shape.ngram is None else None, run)

    @property
    def _bank(self) -> Bank | None:
        return self._banks.get(self._search)

    def _shape(self, windows: int, reach: int) -> Shape:
        decodings = [each.decoding for each in self.flights.values()]
        penalised = [each for each in decodings if each.repetition_penalty != 1.0 or each.no_repeat_ngram_size]
        return Shape(
            windows=windows,
            group=self._search.group,
            reach=reach,
            sampled=any(each.temperature > 0 for each in decodings),
            ngram=max((each.no_repeat_ngram_size for each in penalised), default=None),
            places=self._search.places,
        )

    def _seen(self, windows: int) -> list[Tensor]:
        """What `landed` and `_hypotheses` read, of the windows in use."""
        rows = self._rows.first(windows * self._search.group)
        heard = [self._heard.no_speech, self._heard.language, self._heard.language_probability]
        bank = [self._bank.count, self._bank.tokens, self._bank.length, self._bank.score] if self._bank else []
        return [*(each[:windows] for each in heard), rows.done, rows.tokens, rows.length, rows.score, *(each[:windows] for each in bank)]

    def _hypotheses(self, flight: Flight, slot: int, sequences: list[Tensor]) -> list[Hypothesis]:
        """The rows' sequences; of beams the finished ones, and live ones only when too few are finished, as openai-whisper."""
        tokens, length, score, *bank = sequences
        group = self._search.group
        rows = range(slot * group, (slot + 1) * group)
        live = [self._hypothesis(flight, tokens[row], int(length[row]), float(score[row])) for row in rows]
        if not bank:
            return live
        count, tokens, length, score = (each[slot] for each in bank)
        finished = [self._hypothesis(flight, tokens[i], int(length[i]), float(score[i])) for i in range(int(count))]
        live.sort(key=lambda each: each.score, reverse=True)
        return finished + live[: max(0, group - len(finished))]

    def _hypothesis(self, flight: Flight, tokens: Tensor, length: int, score: float) -> Hypothesis:
        sampled: list[int] = tokens[len(flight.start) : length].tolist()
        return Hypothesis(sampled[:-1] if sampled[-1:] == [self._tokenizer.eot] else sampled, score)

    def _close_ranks(self) -> None:
        """Move the last windows into gaps, when the steps become smaller by that."""
        in_use = len(self.flights)
        bucket = self._device.bucket(in_use, self.capacity)
        while self._device.bucket(max(self.flights) + 1, self.capacity) > bucket:
            source = max(self.flights)
            target = min(set(range(in_use)) - self.flights.keys())
            self._cache.move(source, target, self._search.group)
            self._rows.move(source, target, self._search.group)
            self._heard.move(source, target)
            if self._bank:
                self._bank.move(source, target)
            self.flights[target] = self.flights.pop(source)
            self.flights[target].slot = target
