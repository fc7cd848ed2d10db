"""Decoded frames, a few hundredths of a second each, joined into pieces of seconds and mixed to mono."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import av
import numpy as np

from ..types import Samples
from .clock import Clock
from .mixing import Mixer, Planes, planes_of

BLOCK_SECONDS = 5


class Piece(NamedTuple):
    """A decoded frame. `shift`: samples of silence before it, or, if negative, samples to cut from its start."""

    frame: Any
    shift: int


def enlarged(frames: Iterable[Any], clock: Clock, at_least: int) -> Iterator[Piece]:
    """Mono and stereo frames joined into frames of `at_least` samples: numpy's cost per frame is half of the decoding
    time.

    Other layouts are passed on unchanged: PyAV's FIFO frees a custom channel layout twice (PyAV pull request 2284).
    """
    for (_, layout, _), run in groupby(frames, key=lambda frame: (frame.format.name, frame.layout.name, clock.breaks)):
        shift = clock.take_shift()
        if layout not in ("mono", "stereo", "1 channels", "2 channels"):  # a WAV header names no channel order
            for frame in run:
                yield Piece(frame, shift)
                shift = 0
            continue
        fifo = av.AudioFifo()
        for frame in run:
            frame.pts = None  # the FIFO would demand contiguous times
            fifo.write(frame)
            if fifo.samples >= at_least:
                yield Piece(fifo.read(), shift)
                shift = 0
        if fifo.samples:
            yield Piece(fifo.read(), shift)


def batched(pieces: Iterable[Piece], at_least: int) -> Iterator[list[Piece]]:
    """The pieces in batches of `at_least` values over all channels, so that threads hand over rarely."""
    batch: list[Piece] = []
    values = 0
    for piece in pieces:
        batch.append(piece)
        values += piece.frame.samples * piece.frame.layout.nb_channels
        if values >= at_least:
            yield batch
            batch, values = [], 0
    if batch:
        yield batch


def mono(pieces: Iterable[Piece], mixer: Mixer, rate: int) -> Iterator[Samples]:
    """The pieces mixed to mono, and the silence between them."""
    for silence, planes, scale in _gathered(pieces, rate):
        for begin in range(0, silence, rate):
            yield np.zeros(min(rate, silence - begin), np.float32)
        yield mixer.mono(planes, scale, rate)


def _gathered(pieces: Iterable[Piece], at_least: int) -> Iterator[tuple[int, Planes, float]]:
    """Samples of silence, the samples after it, shape (channels, n), and their full scale. Short pieces are joined."""
    group: list[Planes] = []
    silence, length, scale = 0, 0, 1.0
    for frame, shift in pieces:
        planes, frame_scale = planes_of(frame)
        planes = planes[:, max(0, -shift) :]
        if group and (shift > 0 or frame_scale != scale or len(planes) != len(group[0])):
            yield silence, np.concatenate(group, axis=1), scale
            group, length = [], 0
        if not group:
            silence, scale = max(0, shift), frame_scale
        group.append(planes)
        length += planes.shape[1]
        if length >= at_least:
            yield silence, group[0] if len(group) == 1 else np.concatenate(group, axis=1), scale
            group, length = [], 0
    if group:
        yield silence, np.concatenate(group, axis=1), scale


def joined(pieces: Iterable[Samples], at_least: int) -> Iterator[Samples]:
    """Blocks of `at_least` samples; the last may be shorter."""
    group: list[Samples] = []
    length = 0
    for piece in pieces:
        group.append(piece)
        length += len(piece)
        if length >= at_least:
            yield group[0] if len(group) == 1 else np.concatenate(group)
            group, length = [], 0
    if group:
        yield np.concatenate(group)
