"""A recording decoded by several copies of this process has the samples that one process decodes."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from tests.unit.audio.test_clock import Kind
from tests.unit.audio.test_clock import mux as mux_ticks
from tests.unit.audio.test_recording import encode, sweep
from whispercore.audio import recording as recording_module
from whispercore.audio import side_by_side
from whispercore.audio.budget import FIXED_SECONDS, ReadingBudget
from whispercore.audio.clock import Clock
from whispercore.audio.decoder import Decoder
from whispercore.audio.fork import Fork
from whispercore.audio.recording import open_recording
from whispercore.audio.threads import AudioThreads
from whispercore.errors import TooLarge, UnreadableAudio
from whispercore.types import Samples

PROCESSES = 3
EXACT = [
    ("mp3", "libmp3lame", 44_100, 2),
    ("mp3", "libmp3lame", 16_000, 1),
    ("ogg", "libopus", 48_000, 1),
    ("webm", "libopus", 48_000, 2),
    ("flac", "flac", 44_100, 1),
    ("mp4", "alac", 44_100, 1),
]
WITH_NOISE = [
    ("ipod", "aac", 44_100, 1),
    ("matroska", "aac", 48_000, 2),
    ("adts", "aac", 16_000, 1),
    ("ac3", "ac3", 48_000, 1),
    ("mpeg", "mp2", 48_000, 1),
]
"""These decoders fill bands with noise, or dither, from a generator whose state differs."""


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four seconds, and every recording is long enough."""
    monkeypatch.setattr(side_by_side, "_PART_SECONDS", 4.0)
    monkeypatch.setattr(recording_module, "LONG_SECONDS", 5.0)


@pytest.fixture(params=[False, True], ids=["alone", "threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[AudioThreads | None]:
    audio_threads = AudioThreads(2) if request.param else None
    yield audio_threads
    if audio_threads:
        audio_threads.close()


class Passed:
    """Counts the parts that came from copies, and those that this process had to decode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[bool] = []
        passes = Clock.passes

        def counted(clock: Clock, *arguments: Any) -> bool:
            self.parts.append(passes(clock, *arguments))
            return self.parts[-1]

        monkeypatch.setattr(Clock, "passes", counted)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Passed:
    return Passed(monkeypatch)


def stereo(seconds: float, rate: int, channels: int) -> Samples:
    return np.stack([sweep(seconds, rate), 0.3 * sweep(seconds, rate)][:channels])


def read(data: Any, processes: int, threads: AudioThreads | None = None, **options: Any) -> tuple[Samples, list[str]]:
    with open_recording(data, processes=processes, threads=threads, **options) as recording:
        samples = np.concatenate(list(recording.blocks()))
        return samples, recording.warnings


def check(data: Any, threads: AudioThreads | None = None, *, error: float = 0.0) -> list[str]:
    """The same samples and warnings as from one process; returns the warnings."""
    one, several = read(data, 1), read(data, PROCESSES, threads)
    assert len(several[0]) == len(one[0]) and several[1] == one[1]
    assert np.linalg.norm(several[0] - one[0]) <= error * np.linalg.norm(one[0])
    return one[1]


@pytest.mark.parametrize(("container", "codec", "rate", "channels"), EXACT)
def test_the_samples_are_those_of_one_process(
    container: str, codec: str, rate: int, channels: int, threads: AudioThreads | None, passed: Passed
) -> None:
    assert check(encode(stereo(18, rate, channels), container, codec, rate), threads) == []
    assert passed.parts.count(True) >= 3


@pytest.mark.parametrize(("container", "codec", "rate", "channels"), WITH_NOISE)
def test_no_sample_is_lost_or_doubled(container: str, codec: str, rate: int, channels: int, passed: Passed) -> None:
    check(encode(stereo(18, rate, channels), container, codec, rate), error=0.02)
    assert passed.parts.count(True) >= 3


def test_a_part_with_a_gap_in_its_times_is_decoded_here(threads: AudioThreads | None, passed: Passed) -> None:
    data, _ = mux_ticks(Kind("webm", "libopus"), 24, keeps=lambda time: not 9 < time < 10.5, moves=lambda time: time + 2 * (time > 17))
    check(data, threads)
    assert True in passed.parts and False in passed.parts


@pytest.mark.parametrize("kind", [Kind("ogg", "libopus"), Kind("mp4", "aac"), Kind("mpegts", "aac"), Kind("flv", "aac", 44_100)], ids=str)
def test_times_that_jump_change_nothing(kind: Kind, passed: Passed) -> None:
    for moves in (lambda time: time + 3 * (time > 12), lambda time: time * 1.004, lambda time: time + 0.05 * (time // 7)):
        check(mux_ticks(kind, 20, moves=moves)[0], error=0.02)
    assert True in passed.parts


def test_damage_changes_nothing(threads: AudioThreads | None, passed: Passed) -> None:
    data = bytearray(encode(sweep(20, 44_100), "mp3", "libmp3lame", 44_100))
    for begin in (len(data) // 4, len(data) // 2):
        data[begin : begin + 2_000] = bytes(range(250)) * 8
    check(bytes(data), threads)
    assert any("truncated" in warning or "broken" in warning for warning in check(encode(sweep(20), "flac", "flac")[:-20_000], threads))
    assert passed.parts.count(True) >= 4


def test_channels_that_cancel_each_other_are_left_to_one_process(threads: AudioThreads | None, passed: Passed) -> None:
    signal = sweep(20, 44_100)
    opposite = np.stack([signal, np.where(np.arange(len(signal)) > 9 * 44_100, -signal, signal)])
    # where they begin to cancel, decisions for half a second at a time begin at another sample
    assert any("out of phase" in warning for warning in check(encode(opposite, "flac", "flac", 44_100), threads, error=0.05))
    assert passed.parts == [True, True]


@pytest.mark.parametrize("seconds", [(12, 30), (5, 40)])
def test_recordings_one_after_the_other_in_a_file(seconds: tuple[int, int], threads: AudioThreads | None, passed: Passed) -> None:
    """The second one has another rate and other channels."""
    first, second = encode(stereo(seconds[0], 44_100, 2), "mp3", "libmp3lame", 44_100), stereo(seconds[1], 22_050, 1)
    check(first + encode(second, "mp3", "libmp3lame", 22_050), threads)
    assert True in passed.parts


@pytest.mark.parametrize("second", ["48k", "128k"])
def test_headers_among_the_packets_are_read(second: str) -> None:
    """Chained Ogg: the second recording has the same rate and channels, and with another bit rate other code books."""
    links = [encode(sweep(20, 44_100), "ogg", "libvorbis", 44_100, codec_options={"b": rate}) for rate in ("48k", second)]
    check(b"".join(links))


class Packet:
    """A packet that may have headers beside it."""

    size = 1

    def __init__(self, number: int) -> None:
        self.number = number

    def has_sidedata(self, kind: str) -> bool:
        return kind == "new_extradata" and self.number in (3, 60)


def test_headers_beside_a_packet_are_read_before_the_lead_in() -> None:
    decoded: list[int] = []
    context = SimpleNamespace(codec=SimpleNamespace(canonical_name="opus"), sample_rate=48_000, frame_size=960)
    context.decode, context.flush_buffers = lambda packet: decoded.append(packet.number) or [], lambda: None
    container = SimpleNamespace(demux=lambda stream: map(Packet, range(200)))
    decoder = Decoder(container, SimpleNamespace(codec_context=context), ReadingBudget(1000))
    assert list(decoder.frames(150, 10)) == []
    assert decoded == [3, 60, *range(100, 160)]
    assert list(decoder.frames(160, 5)) == [] and decoded[-5:] == [160, 161, 162, 163, 164]


def test_the_processor_time_of_copies_counts() -> None:
    budget = ReadingBudget(0)
    with budget.measured():
        budget._began = dict.fromkeys(budget._began, -1e9)  # as in a copy of the process, whose clock is another one
        budget.begin_copy()
        with budget.measured():
            budget.check()
        budget._began = {}
        budget.charge(FIXED_SECONDS + 1)
        with pytest.raises(UnreadableAudio, match="processor time"):
            budget.check()
        budget._began = {threading.get_ident(): 0.0}


def test_a_copy_keeps_only_the_descriptors_that_it_needs() -> None:
    reading, writing = os.pipe()
    kept, unneeded = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))

    def states() -> Iterator[list[bool]]:
        yield [Path(f"/proc/self/fd/{descriptor}").exists() for descriptor in (kept, unneeded, writing)]

    fork = Fork(states, keep=[kept])
    assert fork.next() == [True, False, False]
    assert fork.next() is None
    for _ in range(2):
        fork.close()
    for descriptor in (reading, writing, kept, unneeded):
        os.close(descriptor)


def test_a_failure_in_a_copy_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    def failing() -> Iterator[int]:
        sys.stderr = os.fdopen(2, "w")  # pytest's has another descriptor
        yield 1
        raise ZeroDivisionError("a mistake")

    def refused() -> Iterator[int]:
        raise UnreadableAudio("as in the process itself")
        yield 0

    for items, expected in ((failing, [1, None]), (refused, [None])):
        fork = Fork(items)
        assert [fork.next() for _ in expected] == expected
        fork.close()
    printed = capfd.readouterr().err
    assert "ZeroDivisionError: a mistake" in printed and "as in the process itself" not in printed


def test_a_single_wrong_time_changes_nothing_wherever_it_is(passed: Passed) -> None:
    packet = 4096 / 48_000  # seconds; a part has 47 packets
    for number in range(38, 56):
        wrong = number * packet

        def moved(time: float, wrong: float = wrong) -> float:
            return time + 0.05 * (abs(time - wrong) < packet / 2)

        check(mux_ticks(Kind("matroska", "flac"), 12, moves=moved)[0])
    assert passed.parts.count(False) >= 9


def test_a_copy_that_is_killed_costs_nothing(threads: AudioThreads | None) -> None:
    data = encode(sweep(40, 44_100), "mp3", "libmp3lame", 44_100)
    with open_recording(data, processes=PROCESSES, threads=threads) as recording:
        blocks = recording.blocks()
        samples = [next(blocks)]
        assert recording._forks
        os.kill(recording._forks.forks[1]._pid, signal.SIGKILL)
        samples += blocks
    assert np.array_equal(np.concatenate(samples), read(data, 1)[0])


def test_no_copy_outlives_the_recording(threads: AudioThreads | None) -> None:
    data = encode(sweep(40, 44_100), "mp3", "libmp3lame", 44_100)
    before = set(psutil.Process().children())
    with open_recording(data, processes=PROCESSES, threads=threads) as recording:
        blocks = recording.blocks()
        next(blocks)
        assert len(set(psutil.Process().children()) - before) == PROCESSES
    assert set(psutil.Process().children()) == before
    with pytest.raises(TooLarge):
        read(data, PROCESSES, threads, max_seconds=10.0)
    gc.collect()
    assert set(psutil.Process().children()) == before


def test_only_a_long_recording_with_a_position_of_its_own_is_copied(passed: Passed) -> None:
    data = encode(sweep(20), "mp3", "libmp3lame")
    check(io.BytesIO(data))
    check(encode(sweep(4), "mp3", "libmp3lame"))
    check(encode(sweep(20), "wav", "pcm_s16le"))
    assert passed.parts == []
