"""A recording's own clock: the time that the container gives each frame of audio.

A container gives every packet a time. Audio missing between two packets (a mute, packets lost on the network, a damaged
part) leaves a gap in these times, and joined or badly cut recordings overlap. Counting samples alone would place
everything after a gap too early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

TOLERANCE = 0.02
"""Seconds that a frame may be off without a correction.

Containers round times (webm and flv to 1 ms), Vorbis's jitter by 10 ms.
"""
_FOLLOWERS = 4
"""Following frames that must be off in the same direction, so that a single wrong time changes nothing."""
_SLOWEST = 0.25
"""Times that fall behind the samples by more than this share are not an overlap: the clock stands still."""
_LONGEST_OVERLAP = 10.0
"""Seconds. A clock that goes back further was reset, as in joined recordings, and the audio is kept."""
_RESTART = 0.1
"""A clock that goes back to within this many seconds of its first time was reset."""
_LONGEST_UNDECLARED_GAP = 3600.0
"""The longest gap, in seconds, without a declared duration or a clock with a fixed zero to confirm it."""
_LONGEST_GAP = 12 * 3600.0
"""The longest gap of all, in seconds."""

# Formats whose packets have times, by FFmpeg's names. All others (wav, flac, mp3, adts, amr, avi …) count samples or
# bytes.
_WITH_FIXED_ZERO = {"matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "flv", "nut", "asf"}
_WITH_ANY_START = {"ogg", "mpegts", "mpeg"}  # when cut from a broadcast, times start anywhere
_LONGEST_PRIMING = 0.2
_LATEST_FLV_START = 60.0  # broadcasts send FLV as well
_OGG_PAGE = 2.0


class Span(NamedTuple):
    """When consecutive frames begin, by the time of each of them and the samples before it: seconds by the container."""

    earliest: float
    latest: float


class Clock:
    """Compares the times of a stream's frames with the number of samples so far, and decides where to add silence or to
    cut.

    `aligned` yields the frames. Before a frame that needs a correction it increments `breaks`, and `take_shift` then
    returns the correction: the samples of silence to add before that frame, or, if negative, the samples to cut from
    its start. Errors up to `TOLERANCE` are not corrected, so jitter makes no gaps; they are not forgotten either, so
    rounding errors do not add up.
    """

    def __init__(self, container: Any, stream: Any, declared_duration: float | None, check_length: Callable[[float], None]) -> None:
        """`check_length` gets the recording's length in seconds with a gap in it, and raises if that is too long."""
        name: str = container.format.name
        self._has_times = name in _WITH_FIXED_ZERO | _WITH_ANY_START
        self.start = start_of(container, stream, declared_duration)
        self.jumps = 0
        self.breaks = 0
        self._shift = 0
        self._unit = float(stream.time_base or 0)
        self._expected = self.start  # the time of the next frame if nothing is missing
        self._offset = self.start  # the clock minus the seconds of the recording
        self._to_cut = 0.0  # seconds of overlap still to cut
        self._first = self.start  # the time of the first frame since the last reset
        self._fixed_zero = name in _WITH_FIXED_ZERO
        self._reports_late = name == "ogg" and stream.codec_context.name not in ("opus", "libopus", "vorbis", "libvorbis")
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
        """The correction before the last frame from `aligned`, in samples. A second call returns 0."""
        shift, self._shift = self._shift, 0
        return shift

    def aligned(self, frames: Iterable[Any], rate: int) -> Iterator[Any]:
        """The frames in order, all at `rate` Hz, without those that lie entirely in an overlap."""
        if not self._has_times:
            yield from frames
            return
        pending: list[Any] = []
        unit, rate_inverse = self._unit, 1 / rate
        for frame in frames:
            if not (pending or self._to_cut):  # the usual case, kept cheap
                pts = frame.pts
                if pts is None or -TOLERANCE <= pts * unit - self._expected <= TOLERANCE:
                    self._expected += frame.samples * rate_inverse
                    yield frame
                    continue
            pending.append(frame)
            if len(pending) > _FOLLOWERS:
                yield from self._place(pending, rate)
        while pending:
            yield from self._place(pending, rate)

    def span(self, frames: Iterable[Any], rate: int) -> Span | None:
        """The times of consecutive frames; None where they have none."""
        starts: list[float] = []
        elapsed = 0.0
        for frame in frames:
            if frame.pts is not None:
                starts.append(frame.pts * self._unit - elapsed)
            elapsed += frame.samples / rate
        return Span(min(starts), max(starts)) if starts and self._has_times else None

    def is_settled(self, frames: Sequence[Any], rate: int) -> bool:
        """Whether the last of consecutive frames agree, so that `aligned` needs none after them to place them."""
        span = self.span(frames[-_FOLLOWERS - 1 :], rate)
        return span is None or span.latest - span.earliest <= TOLERANCE

    def passes(self, span: Span | None, seconds: float) -> bool:
        """Whether the next frames, `seconds` in all, are on time, as most are. Then they count as read; else `aligned` must place them."""
        is_on_time = span is None or max(abs(span.earliest - self._expected), abs(span.latest - self._expected)) <= TOLERANCE
        if self._to_cut or not is_on_time:
            return False
        if self._has_times:
            self._expected += seconds
        return True

    def _place(self, pending: list[Any], rate: int) -> Iterator[Any]:
        """Decide by the following frames where the first pending frame belongs, and release it."""
        lead = self._lead(pending, rate)
        if lead > 0:
            self._open_gap(lead, rate)
        elif lead < 0:
            self._cut_overlap(-lead)
        yield from self._release(pending.pop(0), rate)
        while pending and (pending[0].pts is None or abs(pending[0].pts * self._unit - self._expected) <= TOLERANCE):
            # on time again: the others need not wait
            yield from self._release(pending.pop(0), rate)

    def _lead(self, pending: list[Any], rate: int) -> float:
        """Seconds by which all pending frames are late (positive) or early (negative); 0 if they disagree."""
        leads: list[float] = []
        expected = self._expected
        for frame in pending:
            if frame.pts is not None:
                leads.append(frame.pts * self._unit - expected)
            expected += frame.samples / rate
        if leads and pending[0].pts is not None:
            if min(leads) > TOLERANCE:
                return min(leads)
            if len(leads) > 1 and max(leads) < -TOLERANCE and leads[-1] - leads[0] >= -_SLOWEST * (expected - self._expected):
                return max(leads)
        return 0.0

    def _open_gap(self, seconds: float, rate: int) -> None:
        silence = max(0.0, seconds - self._to_cut)
        if not self._is_plausible(silence):
            self.jumps += self.position > 0
            self._reset(seconds)
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
        if self._reports_late and self.position < _OGG_PAGE and gap > _OGG_PAGE:
            return False  # cut from a broadcast: FFmpeg reports this codec's times one page late
        end = self.position + gap
        if self._declared_end is not None:
            return end <= self._declared_end
        trusted = self._fixed_zero and self.position > 0
        return gap <= (_LONGEST_GAP if trusted else _LONGEST_UNDECLARED_GAP)

    def _cut_overlap(self, seconds: float) -> None:
        restarts = self.position > _RESTART and self._expected - seconds < self._first + _RESTART
        if restarts:
            self._declared_end = None  # joined recordings: the header belongs to the first one
        elif seconds > _LONGEST_OVERLAP:
            self.jumps += 1
        if restarts or seconds > _LONGEST_OVERLAP:
            self._reset(-seconds)
        else:
            self._expected -= seconds
            self._to_cut += seconds

    def _reset(self, seconds: float) -> None:
        """The clock jumps, but the audio continues."""
        self._expected += seconds
        self._offset += seconds
        self._first = self._expected

    def _release(self, frame: Any, rate: int) -> Iterator[Any]:
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
    """Whether an mp4 is fragmented, as live recordings and streams are; its header then declares no duration."""
    return container.format.name.startswith("mov,") and not stream.frames


def start_of(container: Any, stream: Any, declared_duration: float | None) -> float:
    """The container's time, in seconds, at which the recording starts.

    If the format's clock has a fixed zero and the header declares the duration, a late start is part of the recording.
    A live recording, as from a browser's MediaRecorder, declares no duration, and its times may count from anything: it
    starts with its earliest stream, as in players. Times slightly below zero are the encoder's delay, which is no
    audio.
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
