"""A recording's own clock: where the container says that each frame of sound belongs.

Containers give every packet a time. Sound that is missing between two packets (a mute, packets lost on the network, a damaged
part) leaves a gap in these times, and joined or badly cut recordings overlap. Counting samples alone would place everything
after a gap too early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

TOLERANCE = 0.02
"""Seconds a frame may be off before it counts. Containers round times (webm and flv to 1 ms), and Vorbis's times jitter by 10 ms."""
_FOLLOWERS = 4
"""So many frames after one that is off must be off in the same direction: a single wrong time moves nothing."""
_SLOWEST = 0.25
"""Times that fall behind the samples by more than this share do not tell an overlap: the clock stands still."""
_LONGEST_OVERLAP = 10.0
"""Seconds. A clock that goes back further has been set anew, as in joined recordings: their sound is kept."""
_RESTART = 0.1
"""Seconds from the first time of all within which a clock that goes back has been set anew."""
_LONGEST_UNDECLARED_GAP = 3600.0
"""Seconds that a gap may last where neither a declared duration nor a clock with a fixed zero vouches for it."""
_LONGEST_GAP = 12 * 3600.0
"""Seconds that any gap may last."""

# Formats whose packets carry times, by FFmpeg's names. All others (wav, flac, mp3, adts, amr, avi …) count samples or bytes.
_WITH_FIXED_ZERO = {"matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "flv", "nut", "asf"}
_WITH_ANY_START = {"ogg", "mpegts", "mpeg"}  # cut from a broadcast, they start anywhere
_LONGEST_PRIMING = 0.2
_LATEST_FLV_START = 60.0  # broadcasts send FLV, too
_OGG_PAGE = 2.0


class Clock:
    """Compares the times of a stream's frames with the samples that have come, and says where to add silence or to cut.

    `steady` yields the frames. Before a frame that needs a correction it raises `breaks` by one; `take_shift` then gives the
    correction: so many samples of silence before that frame, or, when negative, so many samples to cut from its beginning.
    Small errors are left alone until they exceed `TOLERANCE`, so that neither jitter makes gaps nor rounding adds up.
    """

    def __init__(self, container: Any, stream: Any, declared_duration: float | None, check_length: Callable[[float], None]) -> None:
        """`check_length` is called with the seconds that the recording would have with a gap, and raises where that is too long."""
        name: str = container.format.name
        self.ticks = name in _WITH_FIXED_ZERO | _WITH_ANY_START
        self.start = start_of(container, stream, declared_duration)
        self.jumps = 0
        self.breaks = 0
        self._shift = 0
        self._unit = float(stream.time_base or 0)
        self._expected = self.start  # the time that the next frame should have
        self._offset = self.start  # of the clock, against the seconds of the recording
        self._to_cut = 0.0  # seconds still to be left out
        self._first = self.start  # the time of the first frame since the clock was set
        self._fixed_zero = name in _WITH_FIXED_ZERO
        self._tells_late = name == "ogg" and stream.codec_context.name not in ("opus", "libopus", "vorbis", "libvorbis")
        self._declared_end = None
        if declared_duration is not None:
            late = max(0.0, float((stream.start_time or 0) * (stream.time_base or 0)) - self.start)
            self._declared_end = declared_duration + late + _LONGEST_OVERLAP
        self._check_length = check_length

    @property
    def position(self) -> float:
        """Seconds of the recording so far, silence included."""
        return self._expected - self._offset + self._to_cut

    def take_shift(self) -> int:
        """The correction before the frame that `steady` gave last, in samples, once."""
        shift, self._shift = self._shift, 0
        return shift

    def steady(self, frames: Iterable[Any], rate: int) -> Iterator[Any]:
        """The frames in order, all at `rate` Hz, without those that lie wholly in an overlap."""
        if not self.ticks:
            yield from frames
            return
        held: list[Any] = []
        unit, rate_inverse = self._unit, 1 / rate
        for frame in frames:
            if not (held or self._to_cut):  # nearly always: this costs what a frame may cost
                pts = frame.pts
                if pts is None or -TOLERANCE <= pts * unit - self._expected <= TOLERANCE:
                    self._expected += frame.samples * rate_inverse
                    yield frame
                    continue
            held.append(frame)
            if len(held) > _FOLLOWERS:
                yield from self._place(held, rate)
        while held:
            yield from self._place(held, rate)

    def _place(self, held: list[Any], rate: int) -> Iterator[Any]:
        """Decide where the first of the frames held belongs, by those after it, and let it go."""
        lead = self._lead(held, rate)
        if lead > 0:
            self._open_gap(lead, rate)
        elif lead < 0:
            self._cut_overlap(-lead)
        yield from self._let_go(held.pop(0), rate)
        while held and (held[0].pts is None or abs(held[0].pts * self._unit - self._expected) <= TOLERANCE):
            # on time again: the others need not wait
            yield from self._let_go(held.pop(0), rate)

    def _lead(self, held: list[Any], rate: int) -> float:
        """By how many seconds all frames held are late (above 0) or early (below): the least of them; 0 when they do not agree."""
        leads: list[float] = []
        expected = self._expected
        for frame in held:
            if frame.pts is not None:
                leads.append(frame.pts * self._unit - expected)
            expected += frame.samples / rate
        if leads and held[0].pts is not None:
            if min(leads) > TOLERANCE:
                return min(leads)
            if len(leads) > 1 and max(leads) < -TOLERANCE and leads[-1] - leads[0] >= -_SLOWEST * (expected - self._expected):
                return max(leads)
        return 0.0

    def _open_gap(self, seconds: float, rate: int) -> None:
        silence = max(0.0, seconds - self._to_cut)
        if not self._is_plausible(silence):
            self.jumps += self.position > 0
            self._set_anew(seconds)
            return
        if not self.position:
            self._first = self._expected + seconds
        self._expected += seconds
        self._to_cut = max(0.0, self._to_cut - seconds)
        if silence:
            self._check_length(self.position)
            self._shift += round(silence * rate)
            self.breaks += 1

    def _is_plausible(self, gap: float) -> bool:
        if self._tells_late and self.position < _OGG_PAGE and gap > _OGG_PAGE:
            return False  # a broadcast that was cut: FFmpeg tells this codec's times one page late
        end = self.position + gap
        if self._declared_end is not None:
            return end <= self._declared_end
        trusted = self._fixed_zero and self.position > 0
        return gap <= (_LONGEST_GAP if trusted else _LONGEST_UNDECLARED_GAP)

    def _cut_overlap(self, seconds: float) -> None:
        begins_again = self.position > _RESTART and self._expected - seconds < self._first + _RESTART
        if begins_again:
            self._declared_end = None  # recordings joined: the header is the first one's
        elif seconds > _LONGEST_OVERLAP:
            self.jumps += 1
        if begins_again or seconds > _LONGEST_OVERLAP:
            self._set_anew(-seconds)
        else:
            self._expected -= seconds
            self._to_cut += seconds

    def _set_anew(self, seconds: float) -> None:
        """The clock jumps; the sound goes on."""
        self._expected += seconds
        self._offset += seconds
        self._first = self._expected

    def _let_go(self, frame: Any, rate: int) -> Iterator[Any]:
        seconds = frame.samples / rate
        self._expected += seconds
        if self._to_cut >= seconds:
            self._to_cut -= seconds
            return
        if cut := round(self._to_cut * rate):
            self._shift -= cut
            self.breaks += 1
        self._to_cut = 0.0
        yield frame


def is_fragmented(container: Any, stream: Any) -> bool:
    """Whether an mp4 has its index in fragments, as written while it is recorded or sent; its header then tells no duration."""
    return container.format.name.startswith("mov,") and not stream.frames


def start_of(container: Any, stream: Any, declared_duration: float | None) -> float:
    """The container's time, in seconds, at which the recording begins.

    A player shows sound relative to the earliest stream. Where the format's clock has a fixed zero and the header tells the
    duration, a late start is part of the recording. A live recording has no duration in its header (as from a browser's
    MediaRecorder), and its times may count from anything: it begins with its earliest stream. Times slightly below zero belong
    to the encoder's delay, which is no sound.
    """
    name: str = container.format.name
    if name not in _WITH_FIXED_ZERO | _WITH_ANY_START or container.start_time is None:
        return 0.0
    start = container.start_time / 1_000_000
    if name in _WITH_FIXED_ZERO:
        if -_LONGEST_PRIMING <= start <= 0:
            return 0.0
        by_header = declared_duration is not None and not is_fragmented(container, stream)
        if by_header and 0 <= start < (_LATEST_FLV_START if name == "flv" else declared_duration):
            return 0.0
    return float(start)
