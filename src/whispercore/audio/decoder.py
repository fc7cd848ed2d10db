"""The packets of one audio stream, and the frames that they decode to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av

from .budget import ReadingBudget

_LEAD_IN_SECONDS = 1.0
"""Decoded and thrown away before the first packet that is wanted. What a packet decodes to depends on those before it: of mp3 on ten at
most, a quarter of a second, of Opus on 80 ms."""
_PACKETS_A_CHECK = 8
"""A check of the budget takes longer than to read a packet."""
_PACKET_SAMPLES = {"aac": 1024, "ac3": 1536, "alac": 4096, "eac3": 1536, "flac": 4096, "mp2": 1152, "mp3": 1152, "opus": 960}
"""About the samples of a packet of codecs that forget what came before.

Others have packets of any size, a state that stays, or, as Vorbis in joined files, headers among the packets.
"""


class Decoder:
    """Reads a stream once.

    `position`: the number of the next packet. `is_at_end`: there is none. `corrupt_packets`: those that could not be decoded so far.
    `is_cut_off`: the container broke off.
    """

    def __init__(self, container: Any, stream: Any, budget: ReadingBudget) -> None:
        self.position, self.is_at_end = 0, False
        self.corrupt_packets, self.is_cut_off = 0, False
        self._container, self._context, self._stream, self._budget = container, stream.codec_context, stream, budget
        self._packets = self.packets()

    @property
    def packets_a_second(self) -> float:
        """About so many; 0.0 where a part of the stream cannot be decoded by itself, or costs nothing to decode, as with PCM."""
        samples = _PACKET_SAMPLES.get(self._context.codec.canonical_name)
        return float(self._context.sample_rate / (self._context.frame_size or samples)) if samples else 0.0

    def packets(self) -> Iterator[Any]:
        """The stream's packets, then the one that flushes the decoder, even if the container breaks midway."""
        try:
            for number, packet in enumerate(self._container.demux(self._stream)):
                if not number % _PACKETS_A_CHECK:
                    self._budget.check()
                yield packet
        except IndexError:  # PyAV's, at the end of a file in which further streams began on the way (PyAV issue 692)
            yield None
        except (av.FFmpegError, OSError, ValueError):
            self.is_cut_off = True
            yield None

    def frames(self, first: int = 0, count: int | None = None) -> Iterator[Any]:
        """The frames of the packets from number `first` on, of `count` of them or of all. `first` is at least `position`.

        Packets that cannot be decoded are skipped and counted.
        """
        begin = first
        if first > self.position:
            self._context.flush_buffers()
            begin -= round(_LEAD_IN_SECONDS * self.packets_a_second)
        for packet in self._packets:
            self.position += 1
            # joined recordings may have the next one's headers beside a packet (AV_PKT_DATA_NEW_EXTRADATA)
            if self.position <= begin and not (packet is not None and packet.has_sidedata("new_extradata")):
                continue
            self.is_at_end = packet is None or not packet.size
            yield from self._decoded(packet, is_wanted=self.position > first)
            if count is not None and self.position >= first + count:
                return

    def _decoded(self, packet: Any, *, is_wanted: bool) -> Iterator[Any]:
        """The frames of a packet; none of one that is decoded for those after it."""
        try:
            frames = self._context.decode(packet)
        except EOFError:
            return
        except (av.FFmpegError, ValueError):
            self.corrupt_packets += is_wanted
            return
        for frame in frames if is_wanted else ():
            if frame.samples:
                self._budget.sound_seconds += frame.samples / max(frame.sample_rate, 1)
                yield frame
