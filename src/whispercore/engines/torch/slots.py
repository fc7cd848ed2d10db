"""The slots: windows enter free ones, all are decoded together a few steps at a time, and finished windows leave."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...tokenizer import Tokenizer
from ...types import Decoding, Window
from ..pytorch.cache import Cache
from ..pytorch.model import Model
from .admission import Admission, AdmissionShape, Hypothesis, SlotState, make_slot_state
from .decoding import StepShape, step
from .device import Device, Snapshot
from .logits import vocabulary
from .state import FinishedBeams, make_detections, make_finished_beams, make_rows

_MOST_LAYOUTS = 16
"""Layouts with beams whose tensors are kept."""
_START = 3
"""Prefilled tokens of a start sequence without a prompt: all but the last, which the first step takes."""
_COMMON_LENGTH = 256
"""Tokens of a window with much speech."""


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """What a slot holds: `group` rows, and room for `max_finished` finished beams; 0: no beams."""

    group: int
    max_finished: int = 0


def slot_layout(decoding: Decoding) -> SlotLayout:
    """Beams, with room for as many finished ones as openai-whisper's patience asks for; or `best_of` samples."""
    if decoding.beam_size is not None:
        return SlotLayout(decoding.beam_size, max(1, round(decoding.beam_size * (decoding.patience or 1.0))))
    return SlotLayout((decoding.best_of or 1) if decoding.temperature > 0 else 1)


@dataclass(frozen=True, slots=True)
class _PendingSnapshot:
    """A snapshot on its way to the host, and the windows in the slots when it was taken."""

    snapshot: Snapshot
    states: dict[int, SlotState]


class Slots:
    """The static tensors and the windows in them. One `SlotLayout` at a time; not thread-safe."""

    def __init__(self, model: Model, cache: Cache, tokenizer: Tokenizer, device: Device, together: int) -> None:
        """`together`: the most windows that are encoded at once."""
        self._model, self._cache, self._tokenizer, self._device = model, cache, tokenizer, device
        self.states: dict[int, SlotState] = {}
        self.rounds_since_admission = 0
        self._rows = make_rows(cache.own.shape[2], model.dims.n_vocab, device.torch)
        self._detections = make_detections(cache.cross.shape[2], device.torch)
        self._vocabulary = vocabulary(tokenizer, device.torch)
        self._admission = Admission(model, cache, tokenizer, device, min(together, cache.cross.shape[2]))
        self._layout = SlotLayout(1)
        self._finished_beams: dict[SlotLayout, FinishedBeams] = {}
        self._snapshots: deque[_PendingSnapshot] = deque()

    @property
    def capacity(self) -> int:
        """The number of slots in the present layout."""
        return min(self._cache.cross.shape[2], self._cache.own.shape[2] // self._layout.group)

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self.capacity - len(self.states)

    def reset(self, layout: SlotLayout) -> None:
        """Empty all slots and give them another layout."""
        self.states.clear()
        self._snapshots.clear()
        self._rows.done.fill_(True)
        self._layout = layout
        if layout.max_finished and layout not in self._finished_beams:
            if len(self._finished_beams) >= _MOST_LAYOUTS:
                self._finished_beams.clear()
                self._device.free_memory()  # its graphs write into the tensors that have gone
            self._finished_beams[layout] = make_finished_beams(self.capacity, layout.max_finished, self._device.torch)

    def admit(self, windows: Sequence[Window]) -> None:
        """Put windows, at most `free` of them, into free slots: encode them and prefill their prompts."""
        vacant = (slot for slot in range(self.capacity) if slot not in self.states)
        states = [make_slot_state(self._tokenizer, window, slot) for window, slot in zip(windows, vacant, strict=False)]
        self._admission.admit(states, self._rows, self._detections, self._layout.group)
        if self._beams:
            for state in states:
                self._beams.count[state.slot] = 0
        self.rounds_since_admission = 0
        self.states.update({state.slot: state for state in states})

    def advance(self) -> None:
        """Queue a few steps for all windows, and a snapshot of the results."""
        self._compact()
        states = self.states.values()
        windows = self._device.bucket(max(self.states) + 1, self.capacity)
        for _ in range(self._device.steps_per_snapshot):
            longest = max(state.length for state in states)
            self.step(self._step_shape(windows, self._device.kv_length(longest, self._cache.own.shape[4])))
            for state in states:
                state.length = min(state.length + 1, state.limit)
        self.rounds_since_admission += 1
        self._snapshots.append(_PendingSnapshot(self._device.snapshot(self._results(windows)), dict(self.states)))

    def finished(self) -> list[SlotState]:
        """The windows that are done by the latest snapshot that is due. They keep their slots until `release`."""
        if len(self._snapshots) <= self._device.snapshots_in_flight:
            return []
        pending = self._snapshots.popleft()
        no_speech, language, probability, done, *sequences = pending.snapshot.wait()
        ended = done.view(-1, self._layout.group).all(dim=1).tolist()
        finished = []
        for slot, state in pending.states.items():
            if state.hypotheses or not ended[slot]:
                continue
            state.hypotheses = self._hypotheses(state, slot, sequences)
            state.no_speech = float(no_speech[slot])
            if state.decoding.language is None and self._tokenizer.multilingual:
                state.language = self._tokenizer.languages[int(language[slot])]
                state.language_probability = float(probability[slot])
            finished.append(state)
        return finished

    def release(self, state: SlotState) -> None:
        """Free the window's slot."""
        del self.states[state.slot]

    def warm(self, until: float, *, together: int, encodes: bool) -> int:
        """Run the shapes that common requests need, the likeliest first, until a time of `time.monotonic`; returns their number.

        Empties all slots. Each shape runs twice where steps are captured, so that the second run captures it. `encodes`: admissions too.
        """
        self.reset(SlotLayout(1))
        warmed = 0
        for run in self._common_shapes(together if encodes else 0):
            for _ in range(2 if self._device.captures else 1):
                run()
            self._device.snapshot([self._rows.done]).wait()
            warmed += 1
            if time.monotonic() > until:
                break
        self.reset(SlotLayout(1))
        return warmed

    def warm_admission(self, shape: AdmissionShape) -> None:
        """Run an admission of this shape on the windows that are still in its buffers."""
        self._admission.warm(shape, self._rows, self._detections)

    def step(self, shape: StepShape) -> None:
        """Queue one step. Penalties are rare and of many kinds, so steps with them are not captured."""
        run = partial(step, self._model, self._cache, self._rows, self._beams, self._vocabulary, shape)
        self._device.run(shape if shape.ngram is None else None, run)

    def _common_shapes(self, together: int) -> Iterator[Callable[[], None]]:
        """Admissions of windows without a prompt, then steps for more and more windows and longer texts."""
        device, most, longest = self._device, self.capacity, self._cache.own.shape[4]
        for count in sorted({device.encoder_batches(count)[0] for count in range(1, min(together, most) + 1)}):
            for detect in (False, True)[: 1 + self._tokenizer.multilingual]:
                yield partial(self.warm_admission, AdmissionShape(count, 1, device.prompt_width(_START), detect))
        for kv_length in sorted({device.kv_length(length, longest) for length in range(1, _COMMON_LENGTH + 1)}):
            for windows in sorted({device.bucket(count, most) for count in range(1, most + 1)}):
                yield partial(self.step, StepShape(windows, 1, kv_length, sampled=False, ngram=None, max_finished=0))

    @property
    def _beams(self) -> FinishedBeams | None:
        return self._finished_beams.get(self._layout)

    def _step_shape(self, windows: int, kv_length: int) -> StepShape:
        decodings = [state.decoding for state in self.states.values()]
        penalised = [decoding for decoding in decodings if decoding.repetition_penalty != 1.0 or decoding.no_repeat_ngram_size]
        return StepShape(
            windows=windows,
            group=self._layout.group,
            kv_length=kv_length,
            sampled=any(decoding.temperature > 0 for decoding in decodings),
            ngram=max((decoding.no_repeat_ngram_size for decoding in penalised), default=None),
            max_finished=self._layout.max_finished,
        )

    def _results(self, windows: int) -> list[Tensor]:
        """The tensors that `finished` and `_hypotheses` read, of the first `windows` slots."""
        rows, detections, beams = self._rows.first(windows * self._layout.group), self._detections, self._beams
        detected = [detections.no_speech, detections.language, detections.language_probability]
        kept = [beams.count, beams.tokens, beams.length, beams.score] if beams else []
        of_windows, of_beams = ([tensor[:windows] for tensor in tensors] for tensors in (detected, kept))
        return [*of_windows, rows.done, rows.tokens, rows.length, rows.score, *of_beams]

    def _hypotheses(self, state: SlotState, slot: int, sequences: list[Tensor]) -> list[Hypothesis]:
        """The rows' sequences. Of beams the finished ones, filled up with live ones to `group`, as openai-whisper does."""
        tokens, length, score, *beams = sequences
        group = self._layout.group
        rows = range(slot * group, (slot + 1) * group)
        live = [self._hypothesis(state, tokens[row], int(length[row]), float(score[row])) for row in rows]
        if not beams:
            return live
        count, tokens, length, score = (tensor[slot] for tensor in beams)
        finished = [self._hypothesis(state, tokens[i], int(length[i]), float(score[i])) for i in range(int(count))]
        live.sort(key=lambda hypothesis: hypothesis.score, reverse=True)
        return finished + live[: max(0, group - len(finished))]

    def _hypothesis(self, state: SlotState, tokens: Tensor, length: int, score: float) -> Hypothesis:
        sampled: list[int] = tokens[len(state.start) : length].tolist()
        return Hypothesis(sampled[:-1] if sampled[-1:] == [self._tokenizer.eot] else sampled, score)

    def _compact(self) -> None:
        """Move the windows of the last slots into free ones, where that makes the steps smaller."""
        in_use = len(self.states)
        bucket = self._device.bucket(in_use, self.capacity)
        while self._device.bucket(max(self.states) + 1, self.capacity) > bucket:
            source = max(self.states)
            target = min(set(range(in_use)) - self.states.keys())
            self._cache.move(source, target, self._layout.group)
            self._rows.move(source, target, self._layout.group)
            self._detections.move(source, target)
            if self._beams:
                self._beams.move(source, target)
            self.states[target] = self.states.pop(source)
            self.states[target].slot = target
