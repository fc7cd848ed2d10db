"""A long recording, decoded by several copies of this process: each of n decodes every n-th part of 20 s.

Each of them reads all packets, a tenth of the work for a file of sound alone, and decodes its own and those of the second before. Seeking
would not find the same packets in every container. No sample is lost or comes twice. The samples are those that one process decodes; but
decoders that add noise, such as AAC's, begin each part with another one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..types import Samples
from .budget import ReadingBudget
from .clock import Clock, Span
from .decoder import Decoder
from .fork import Fork
from .mixing import Mixer
from .pieces import BLOCK_SECONDS, enlarged, mono
from .source import Reader

LONG_SECONDS = 300.0
"""Recordings that are worth it: copying the process takes some milliseconds."""
_PART_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Part:
    """Mono samples (n,) at `rate` Hz of consecutive packets from number `first` on. `span`: the times of their frames.

    `is_settled`: as of `Clock`. `processor_seconds`: what the part took.
    """

    samples: Samples
    rate: int
    span: Span | None
    is_settled: bool
    processor_seconds: float
    corrupt_packets: int
    first: int
    is_last: bool

    @property
    def seconds(self) -> float:
        """The duration."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Forks:
    """The copies. `length`: packets of a part."""

    forks: tuple[Fork[Part], ...]
    length: int

    def parts(self) -> Iterator[Part]:
        """The parts in order. They end before a part that has anything unusual."""
        for fork in itertools.cycle(self.forks):
            if (part := fork.next()) is None:
                return
            yield part

    def close(self) -> None:
        """End them. Closing twice is harmless."""
        for fork in self.forks:
            fork.close()


def begin_forks(decoder: Decoder, clock: Clock, mixer: Mixer, file: Reader, count: int) -> Forks | None:
    """Begin to decode in `count` copies of this process. None where that gains nothing, or where a copy cannot be made or read the file."""
    length = round(_PART_SECONDS * decoder.packets_a_second)
    if count < 2 or not length or not file.has_own_position:
        return None
    begun: list[Fork[Part]] = []
    try:
        for number in range(count):
            parts = partial(_parts, decoder, clock, mixer, file.budget, number, count, length)
            begun.append(Fork(parts, keep=file.descriptors))
    except OSError:
        Forks(tuple(begun), length).close()
        return None
    return Forks(tuple(begun), length)


def _parts(decoder: Decoder, clock: Clock, mixer: Mixer, budget: ReadingBudget, number: int, count: int, length: int) -> Iterator[Part]:
    """Runs in a copy: part `number` and every `count`-th after it, of `length` packets each, until one has anything unusual.

    That is a change of the sample rate or the channels, or channels that cancel each other: one process decodes them, in order.
    """
    budget.begin_copy()
    with budget.measured():
        for first in itertools.count(number * length, count * length):
            began, corrupt = time.thread_time(), decoder.corrupt_packets
            frames = list(decoder.frames(first, length))
            kinds = {(frame.format.name, frame.layout.name, frame.sample_rate) for frame in frames}
            if decoder.position <= first or decoder.is_cut_off or len(kinds) != 1:
                return
            rate = frames[0].sample_rate
            span, is_settled = clock.span(frames, rate), clock.is_settled(frames, rate)
            samples = np.concatenate(list(mono(enlarged(frames, clock, BLOCK_SECONDS * rate), mixer, rate)))
            if mixer.cancelled:
                return
            took = time.thread_time() - began
            yield Part(samples, rate, span, is_settled, took, decoder.corrupt_packets - corrupt, first, decoder.is_at_end)
            if decoder.is_at_end:
                return
