"""A long recording, decoded by several copies of this process: each of n decodes every n-th part of 20 s.

Each of them reads all packets, a tenth of the work, and decodes its own and those of the second before. Seeking would not find the same
packets in every container. What comes out are the samples that one process decodes, none lost and none twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..types import Samples
from .clock import Clock, Span
from .decoder import Decoder
from .fork import Fork
from .mixing import Mixer
from .pieces import BLOCK_SECONDS, enlarged, mono

LONG_SECONDS = 300.0
"""Recordings that are worth it: copying the process takes some milliseconds."""
_PART_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Part:
    """Mono samples (n,) at `rate` Hz of consecutive packets from number `first` on. `span`: the times of their frames."""

    samples: Samples
    rate: int
    span: Span | None
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


def forks(decoder: Decoder, clock: Clock, mixer: Mixer, count: int) -> Forks | None:
    """Begin to decode in `count` copies of this process. None where that gains nothing, or where no process can be made."""
    length = round(_PART_SECONDS * decoder.packets_a_second)
    if not length:
        return None
    begun: list[Fork[Part]] = []
    try:
        for number in range(count):
            begun.append(Fork(partial(_parts, decoder, clock, mixer, number, count, length)))
    except OSError:
        Forks(tuple(begun), length).close()
        return None
    return Forks(tuple(begun), length)


def _parts(decoder: Decoder, clock: Clock, mixer: Mixer, number: int, count: int, length: int) -> Iterator[Part]:
    """Runs in a copy: part `number` and every `count`-th after it, of `length` packets each, until one has anything unusual.

    That is a change of the sample rate or the channels, or channels that cancel each other: one process decodes them, in order.
    """
    for first in itertools.count(number * length, count * length):
        corrupt = decoder.corrupt_packets
        frames = list(decoder.frames(first, length))
        kinds = {(frame.format.name, frame.layout.name, frame.sample_rate) for frame in frames}
        if decoder.position <= first or decoder.is_cut_off or len(kinds) != 1:
            return
        rate = frames[0].sample_rate
        span = clock.span(frames, rate)
        samples = np.concatenate(list(mono(enlarged(frames, clock, BLOCK_SECONDS * rate), mixer, rate)))
        if mixer.cancelled:
            return
        yield Part(samples, rate, span, decoder.corrupt_packets - corrupt, first, decoder.is_at_end)
        if decoder.is_at_end:
            return
