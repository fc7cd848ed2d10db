"""The recording's own clock: audio is placed at the container's times, in every format that has times."""

from __future__ import annotations

import io
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from whispercore.audio.clock import TOLERANCE, Clock
from whispercore.audio.recording import open_recording
from whispercore.engines.fake import FakeEngine
from whispercore.errors import TooLarge
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Samples

CASES = Path(__file__).resolve().parents[4] / "shared" / "data" / "cases"
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "500000"}
LIVE = {"live": "1"}


@dataclass(frozen=True)
class Kind:
    """A container, a codec, and how they are written."""

    container: str
    codec: str
    rate: int = 48_000
    options: tuple[tuple[str, str], ...] = ()
    fixed_zero: bool = True

    def __str__(self) -> str:
        return "-".join([self.container, self.codec, *(value for _, value in self.options)])


FRAGMENTED = Kind("mp4", "aac", options=tuple(FRAGMENTS.items()), fixed_zero=False)
LIVE_WEBM = Kind("webm", "libopus", options=tuple(LIVE.items()), fixed_zero=False)
KINDS = [
    Kind("webm", "libopus"),
    LIVE_WEBM,
    Kind("webm", "libvorbis", 44_100),
    Kind("matroska", "aac", 16_000),
    Kind("matroska", "pcm_s16le"),
    Kind("matroska", "flac"),
    Kind("ogg", "libopus", fixed_zero=False),
    Kind("ogg", "libvorbis", fixed_zero=False),
    Kind("mp4", "aac"),
    Kind("ipod", "aac", 44_100),
    FRAGMENTED,
    Kind("flv", "aac", 44_100),
    Kind("mpegts", "aac", fixed_zero=False),
    Kind("mpeg", "mp2", fixed_zero=False),
    Kind("nut", "aac"),
]
NAMES = [str(kind) for kind in KINDS]


def ticking(seconds: float, rate: int) -> Samples:
    """A tone of 40 ms in the middle of every second."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.8 * np.sin(2 * np.pi * 1000 * t) * (abs(t % 1 - 0.52) < 0.02)).astype(np.float32)


def mux(
    kind: Kind,
    seconds: float,
    *,
    keeps: Callable[[float], bool] = lambda _: True,
    moves: Callable[[float], float] = lambda time: time,
    picture: bool = False,
) -> tuple[bytes, list[float]]:
    """A file of ticks, of which the packets at the times that `keeps` refuses are left out and the others are moved by
    `moves`.

    Also the times, by the container's clock and from its zero, at which each whole tick begins.
    """
    with TemporaryDirectory() as folder, av.open(f"{folder}/file", "w", format=kind.container, options=dict(kind.options)) as output:
        stream = output.add_stream(kind.codec, rate=kind.rate, layout="mono")
        video = output.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p") if picture else None
        packets = list(_packets(stream, ticking(seconds, kind.rate), kind.rate))
        times = [float(packet.pts * packet.time_base) for packet in packets]
        kept = [(packet, time) for packet, time in zip(packets, times, strict=True) if keeps(time)]
        for index in range(15 if video else 0):
            image = av.VideoFrame(32, 32, "yuv420p")
            image.pts = index
            output.mux(video.encode(image))
        for packet, time in kept:
            packet.pts = packet.dts = round(moves(time) / packet.time_base)
            output.mux(packet)
        if video:
            output.mux(video.encode(None))
        output.close()
        ticks = [second + 0.5 for second in range(int(seconds)) if all(keeps(second + offset) for offset in (0.4, 0.5, 0.6))]
        return Path(folder, "file").read_bytes(), [moves(tick) for tick in ticks]


def _packets(stream: Any, signal: Samples, rate: int) -> Iterator[Any]:
    frame = av.AudioFrame.from_ndarray(signal[None], format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size or 1024)
    written = 0
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        piece.pts, piece.time_base, written = written, Fraction(1, rate), written + piece.samples
        yield from (packet for packet in stream.encode(piece) if packet.pts is not None)
    yield from (packet for packet in stream.encode(None) if packet.pts is not None)


def read(data: bytes, max_seconds: float = 4 * 3600) -> tuple[Samples, list[str]]:
    with open_recording(data, max_seconds=max_seconds) as recording:
        return np.concatenate(list(recording.blocks())), recording.warnings


def tick_times(samples: Samples) -> list[float]:
    """The start of each tick in seconds."""
    loud = np.flatnonzero(np.abs(samples) > 0.25)
    return [float(loud[index]) / SAMPLE_RATE for index in range(len(loud)) if not index or loud[index] - loud[index - 1] > 3000]


@cache
def delay(kind: Kind) -> float:
    """The encoder delay that the container does not declare, measured on an intact file."""
    data, ticks = mux(kind, 3)
    return float(np.median(np.array(tick_times(read(data)[0])) - ticks))


def check(kind: Kind, data: bytes, ticks: list[float]) -> list[str]:
    samples, warnings = read(data)
    assert delay(kind) < 0.03
    np.testing.assert_allclose(tick_times(samples), np.array(ticks) + delay(kind), atol=TOLERANCE + 0.003)
    return warnings


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_gap_becomes_silence(kind: Kind) -> None:
    data, ticks = mux(kind, 16, keeps=lambda time: not 4.2 <= time < 13.2)
    assert check(kind, data, ticks) == []
    assert ticks[4] == 13.5


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_the_clock_starts_at_its_zero_or_with_the_earliest_stream(kind: Kind) -> None:
    data, ticks = mux(kind, 4, moves=lambda time: time + 5)
    samples, warnings = read(data)
    start = 5.0 if kind.fixed_zero else 0.0
    np.testing.assert_allclose(tick_times(samples), [start + second + 0.5 for second in range(4)], atol=0.025)
    assert warnings == []
    assert ticks[0] == 5.5


@pytest.mark.parametrize(
    "kind", [Kind("matroska", "aac", 16_000), Kind("mp4", "aac"), FRAGMENTED, Kind("mpegts", "aac"), Kind("nut", "aac")], ids=str
)
def test_sound_that_starts_later_than_the_picture_stays_late(kind: Kind) -> None:
    data, ticks = mux(kind, 4, moves=lambda time: time + 5, picture=True)
    np.testing.assert_allclose(tick_times(read(data)[0]), ticks, atol=0.025)


@pytest.mark.parametrize("seed", range(len(KINDS) - 2))
def test_random_gaps_and_jitter_never_add_up(seed: int) -> None:
    generator = random.Random(seed)
    kind = [kind for kind in KINDS if kind.container != "ogg"][seed]  # ogg loses whole pages, not packets
    lengths = [0.02, 0.05, 0.5, 2.0]
    gaps = [(start, start + generator.choice(lengths)) for start in (generator.uniform(0.5, 28) for _ in range(10))]
    data, ticks = mux(kind, 30, keeps=lambda time: not any(start <= time < end for start, end in gaps))
    ticks = [tick for tick in ticks if not any(start - 0.2 < tick < end + 0.1 for start, end in gaps)]
    starts = np.array(tick_times(read(data)[0]))
    assert len(ticks) > 5
    for tick in ticks:
        assert abs(starts - tick - delay(kind)).min() < TOLERANCE + 0.005, (tick, starts)


def test_joined_files_are_read_whole_however_their_clocks_go_on() -> None:
    for kind in (Kind("ogg", "libopus"), Kind("ogg", "libvorbis"), Kind("mpegts", "aac"), Kind("webm", "libopus")):
        (first, _), (second, _) = mux(kind, 5), mux(kind, 6)
        samples, warnings = read(first + second)
        assert len(tick_times(samples)) == 11, kind
        assert warnings == [], kind
    overlapping = mux(Kind("mpegts", "aac"), 6)[0] + mux(Kind("mpegts", "aac"), 6, moves=lambda time: time + 4)[0]
    np.testing.assert_allclose(tick_times(read(overlapping)[0]), np.arange(10) + 0.5, atol=0.05)
    far = mux(Kind("mpegts", "aac"), 6)[0] + mux(Kind("mpegts", "aac"), 6, moves=lambda time: time + 20 * 3600)[0]
    samples, warnings = read(far)
    assert len(tick_times(samples)) == 12 and len(samples) < 13 * SAMPLE_RATE
    assert warnings == ["the recording's clock jumps: its times go on as if it did not"]


def test_a_broadcast_that_was_cut_begins_at_zero() -> None:
    data, _ = mux(Kind("ogg", "libopus"), 12)
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    samples, _ = read(b"".join(pages[:2] + pages[6:]))
    assert tick_times(samples)[0] < 1.1 and len(samples) < 9 * SAMPLE_RATE
    for container in ("flv", "webm"):
        kind = Kind(container, "aac" if container == "flv" else "libopus", 44_100 if container == "flv" else 48_000, LIVE_WEBM.options)
        samples, warnings = read(mux(kind, 4, moves=lambda time: time + 3600)[0])
        assert len(samples) < 5 * SAMPLE_RATE and len(tick_times(samples)) == 4 and warnings == [], container


def test_lost_pages_of_an_ogg_file_are_silence() -> None:
    data, _ = mux(Kind("ogg", "libopus"), 16)
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    samples, warnings = read(b"".join(pages[:8] + pages[11:]))
    ticks = tick_times(samples)
    assert ticks[-1] == pytest.approx(15.5, abs=0.02) and len(ticks) == 13 and warnings == []


def test_a_gap_counts_as_length() -> None:
    data, _ = mux(LIVE_WEBM, 6, keeps=lambda time: time < 3, moves=lambda time: time)
    assert len(read(data, max_seconds=10)[0]) == pytest.approx(3 * SAMPLE_RATE, abs=1000)
    data, _ = mux(LIVE_WEBM, 6, moves=lambda time: time + (20 if time > 3 else 0))
    assert len(read(data, max_seconds=30)[0]) > 25 * SAMPLE_RATE
    with open_recording(data, max_seconds=20) as recording, pytest.raises(TooLarge):
        for _ in recording.blocks():
            assert recording.duration < 5, "the gap is refused before its silence is made"


def test_a_truncated_file_with_a_gap_is_still_told() -> None:
    data, _ = mux(Kind("webm", "libopus"), 20, keeps=lambda time: not 4 <= time < 8)
    samples, warnings = read(data[: len(data) // 2])
    assert any("truncated" in warning for warning in warnings)
    assert len(samples) < 15 * SAMPLE_RATE


def test_every_pass_gives_the_same_samples() -> None:
    data, _ = mux(Kind("webm", "libopus"), 30, keeps=lambda time: not 4.2 <= time < 13.2)
    np.testing.assert_array_equal(read(data)[0], read(data)[0])


@pytest.mark.parametrize(("strategy", "channels"), [("chunked", "mono"), ("sequential", "mono"), ("chunked", "separate")])
def test_segments_stand_on_the_recordings_clock(strategy: Any, channels: Any) -> None:
    data, _ = mux(Kind("webm", "libopus"), 50, keeps=lambda time: not 5 <= time < 15)
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        transcript = transcriber.submit(data, Options(vad_filter=False, strategy=strategy, channels=channels)).result(30)
    assert transcript.duration == pytest.approx(50, abs=0.05)
    assert transcript.segments[-1].end == pytest.approx(50, abs=0.1)
    assert transcript.warnings == ()


@pytest.mark.parametrize(
    ("name", "silence"), [("gap.webm", (11.2, 19.8)), ("gap.m4a", (11.2, 19.8)), ("off5.mkv", (0, 4.9)), ("dmg.m4a", (8, 23.5))]
)
def test_recordings_that_came_out_early(name: str, silence: tuple[float, float]) -> None:
    if not (CASES / name).exists():
        pytest.skip(f"{name} is not there")
    samples, warnings = read((CASES / name).read_bytes())
    begin, end = (round(second * SAMPLE_RATE) for second in silence)
    assert np.abs(samples[begin:end]).max() < 1e-3 < np.abs(samples[end : end + SAMPLE_RATE]).max()
    assert not any("truncated" in warning for warning in warnings)


# The clock by itself, with times that no muxer writes


@dataclass
class Frame:
    """The attributes of a frame that the clock reads."""

    pts: int | None
    samples: int = 960


def placed(
    times: list[float | None], *, declared: float | None = None, name: str = "matroska,webm", max_seconds: float = 1e9
) -> tuple[list[float], Clock]:
    """Where each frame of 20 ms begins in the recording, None for one that was cut."""

    def check_length(seconds: float) -> None:
        if seconds > max_seconds:
            raise TooLarge("too long")

    first = next(time for time in times if time is not None)
    container = SimpleNamespace(format=SimpleNamespace(name=name), start_time=round(first * 1e6))
    context = SimpleNamespace(name="opus")
    stream = SimpleNamespace(time_base=Fraction(1, 1000), start_time=round(first * 1000), codec_context=context, frames=1)
    clock = Clock(container, stream, declared, check_length)
    frames = [Frame(None if time is None else round(time * 1000)) for time in times]
    position, starts = 0, []
    for frame in clock.aligned(frames, 48_000):
        position += max(0, shift := clock.take_shift())
        starts.append(position / 48_000)
        position += frame.samples + min(0, shift)
    return starts, clock


def steps(count: int, start: float = 0.0) -> list[float]:
    return [start + 0.02 * index for index in range(count)]


@pytest.mark.parametrize(
    "bogus",
    [[36_000.0], [-36_000.0], [None], [1e9], [-5.0], [9.0, None], [9.0, -9.0, 9.0]],
    ids=["hours on", "hours back", "none", "years", "back", "two", "back and forth"],
)
def test_a_few_wrong_times_move_nothing(bogus: list[float | None]) -> None:
    times: list[float | None] = [*steps(50)]
    times[20 : 20 + len(bogus)] = bogus
    starts, clock = placed(times)
    np.testing.assert_allclose(starts, steps(50), atol=1e-6)
    assert clock.jumps == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_gaps_and_overlaps_are_where_the_clock_says(seed: int) -> None:
    """Overlaps leave out frames; every frame that stays begins within the tolerance of its time."""
    generator = random.Random(seed)
    times: list[float] = []
    time = 0.0
    for _ in range(12):
        run = generator.randint(15, 60)
        times += [time + 0.02 * index + generator.uniform(-0.008, 0.008) * (index > 0) for index in range(run)]
        time += 0.02 * run + generator.choice([0.0, 0.021, 0.06, 0.5, 7.0, -0.1, -0.25])
    starts, clock = placed([*times])
    expected = iter(times)
    for begin in starts:  # frames that were cut are skipped
        assert any(abs(time - begin) <= TOLERANCE + 0.0105 for time in expected), begin
    assert clock.position == pytest.approx(max(times) + 0.02, abs=0.05)
    assert clock.jumps == 0


def test_jitter_makes_no_gaps_and_a_slow_drift_is_followed() -> None:
    generator = random.Random(0)
    starts, clock = placed([time + generator.uniform(-0.025, 0.025) for time in steps(2000, 0.05)], declared=41)
    assert clock.breaks <= 6  # until it has found their middle
    starts, clock = placed([time * 1.001 for time in steps(50_000)])
    assert 30 <= clock.breaks <= 55
    np.testing.assert_allclose(starts, [time * 1.001 for time in steps(50_000)], atol=0.03)


def test_a_clock_that_stands_still_loses_no_sound() -> None:
    starts, _ = placed([*steps(100), *[2.0] * 200])
    assert len(starts) == 300


def test_a_jump_far_beyond_the_declared_end_is_no_gap() -> None:
    starts, clock = placed([*steps(100), *steps(100, 30_000.0)], declared=4.0)
    np.testing.assert_allclose(starts, steps(200), atol=1e-6)
    assert clock.jumps == 1
    with pytest.raises(TooLarge):
        placed([*steps(100), *steps(100, 30_000.0)], max_seconds=14_400)
    starts, clock = placed([*steps(100), *steps(100, 3_000_000.0)])
    assert clock.jumps == 1 and starts[-1] < 5


def test_a_live_clock_that_counts_from_anywhere() -> None:
    for start in (1.5, 7200.0, 1.7e9, -40.0):
        starts, _ = placed([*steps(100, start)])
        assert starts[0] == 0.0 and len(starts) == 100


def test_hours_of_silence_are_made_block_by_block() -> None:
    data, _ = mux(LIVE_WEBM, 6, moves=lambda time: time + (3000 if time > 3 else 0))
    tracemalloc.start()
    with open_recording(io.BytesIO(data)) as recording:
        longest = max(len(block) for block in recording.blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recording.duration == pytest.approx(3006, abs=0.1)
    assert longest <= 10 * SAMPLE_RATE and peak < 16 * 2**20
